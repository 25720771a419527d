//! Memory-mapped safetensors files.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::Error;

/// One mapped file whose header has been validated: offsets lie inside the file, cover it and agree with the shapes.
pub(crate) struct MappedFile {
    map: Mmap,
    metadata: Metadata,
    data_start: usize,
}

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only and private to this struct. Another process that truncates the file while it is
        // mapped can end this one; files of weights are replaced by rename, here and by the other tools of the field.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|source| Error::Format { path: path.to_owned(), source })?;
        Ok(Self { map, metadata, data_start: header + size_of::<u64>() })
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// A shape with a side beyond `i64` holds no bytes and fits no network: it is shown with that side at the limit.
    pub(crate) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        let info = self.metadata.info(name)?;
        Some(info.shape.iter().map(|&side| i64::try_from(side).unwrap_or(i64::MAX)).collect())
    }

    /// Copies a tensor straight from the map to its dtype and device.
    pub(crate) fn read(&self, name: &str, to: (Kind, Device)) -> Result<Tensor, ReadError> {
        let info = self.metadata.info(name).ok_or(ReadError::Absent)?;
        let kind = float_kind(info.dtype).ok_or(ReadError::NotFloat(info.dtype))?;
        let shape = info
            .shape
            .iter()
            .map(|&side| i64::try_from(side))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| ReadError::Torch(tch::TchError::Shape(format!("{:?} is out of range", info.shape))))?;
        let (start, end) = info.data_offsets;
        let bytes = &self.map[self.data_start + start..self.data_start + end];
        let aligned = bytes.as_ptr().addr().is_multiple_of(kind.elt_size_in_bytes());
        let tensor = if aligned && to != (kind, Device::Cpu) {
            // SAFETY: the bytes are aligned for the dtype, their number is that of the shape (checked with the
            // header), and the borrowed tensor is copied before the map can go away.
            #[allow(unsafe_code)]
            let view = unsafe { Tensor::f_from_blob(bytes.as_ptr(), &shape, &[], kind, Device::Cpu) }?;
            if to.1 == Device::Cpu { view.f_to_kind(to.0)? } else { view.f_to_device(to.1)?.f_to_kind(to.0)? }
        } else {
            Tensor::f_from_data_size(bytes, &shape, kind)?.f_to_device(to.1)?.f_to_kind(to.0)?
        };
        // What has been copied is not wanted again: without this the peak of memory holds the weights twice.
        // SAFETY: the map is of a file and read-only, so that its pages come back from the file with what they held.
        #[allow(unsafe_code)]
        let _ =
            unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, self.data_start + start, end - start) };
        Ok(tensor)
    }
}

/// Why one tensor could not be read.
pub(crate) enum ReadError {
    Absent,
    NotFloat(Dtype),
    Torch(tch::TchError),
}

impl From<tch::TchError> for ReadError {
    fn from(source: tch::TchError) -> Self {
        ReadError::Torch(source)
    }
}

fn float_kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F32 => Some(Kind::Float),
        Dtype::F64 => Some(Kind::Double),
        _ => None,
    }
}

/// The index of a sharded set: `{"metadata": .., "weight_map": {tensor: file}}`.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// Opens a single file, or all the files that a `*.index.json` names. The paths are all that was read.
pub(crate) fn open_all(path: &Path) -> Result<(Vec<PathBuf>, Vec<MappedFile>), Error> {
    let mut paths = vec![path.to_owned()];
    if path.extension().is_none_or(|extension| extension != "json") {
        return Ok((paths, vec![MappedFile::open(path)?]));
    }
    let text = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let wrong = |reason: String| Error::Index { path: path.to_owned(), reason };
    let index: ShardIndex = serde_json::from_slice(&text).map_err(|e| wrong(format!("not a weight index: {e}")))?;
    let folder = path.parent().unwrap_or(Path::new(""));

    let mut by_file: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, file) in &index.weight_map {
        by_file.entry(file).or_default().push(tensor);
    }
    let mut files = Vec::new();
    for (file, tensors) in by_file {
        if PathBuf::from(file).file_name().is_none_or(|name| name != file) {
            return Err(wrong(format!("`{file}` is not the name of a file beside the index")));
        }
        let shard = folder.join(file);
        let mapped = MappedFile::open(&shard)?;
        paths.push(shard);
        let mut held = mapped.names();
        held.sort_unstable();
        if let Some(absent) = tensors.iter().find(|&&t| held.binary_search_by(|h| h.as_str().cmp(t)).is_err()) {
            return Err(wrong(format!("`{absent}` is not in {file}")));
        }
        if let Some(unlisted) = held.iter().find(|&t| index.weight_map.get(t).is_none_or(|f| f != file)) {
            return Err(wrong(format!("`{unlisted}` is in {file}, where the index does not place it")));
        }
        files.push(mapped);
    }
    Ok((paths, files))
}
