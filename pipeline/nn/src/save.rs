//! Writing safetensors files.

use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};
use shards::atomic::AtomicFile;
use tch::{Device, Kind, Tensor};

use crate::Error;

/// Writes tensors to a safetensors file that appears whole or not at all. `metadata` is added to `format: pt`, which
/// Python's loaders look for. Same tensors, same bytes: wide types come first, so that all are aligned, and names in
/// order within a type. No more than one tensor is copied at a time.
pub fn save<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: &[(&str, &str)],
) -> Result<(), Error> {
    let mut tensors: Vec<_> = tensors.into_iter().collect();
    tensors.sort_by_key(|&(name, tensor)| (std::cmp::Reverse(tensor.kind().elt_size_in_bytes()), name));

    let mut header = Map::new();
    let mut about: Map<String, Value> = metadata.iter().map(|&(key, value)| (key.into(), value.into())).collect();
    about.insert("format".into(), "pt".into());
    header.insert("__metadata__".into(), about.into());
    let mut end = 0;
    for &(name, tensor) in &tensors {
        let start = end;
        end += tensor.numel() * tensor.kind().elt_size_in_bytes();
        let dtype = dtype_name(tensor.kind()).ok_or_else(|| Error::Dtype {
            origin: path.display().to_string(),
            tensor: name.to_owned(),
            dtype: format!("{:?}", tensor.kind()),
        })?;
        let entry = json!({ "dtype": dtype, "shape": tensor.size(), "data_offsets": [start, end] });
        if header.insert(name.to_owned(), entry).is_some() {
            return Err(Error::Duplicate { origin: path.display().to_string(), tensor: name.to_owned() });
        }
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let failed = |source| Error::Io { path: path.to_owned(), source };
    let mut file = AtomicFile::create(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, &mut file);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    out.write_all(&header).map_err(failed)?;
    for (name, tensor) in tensors {
        let torch = |source| Error::Torch { tensor: name.to_owned(), source };
        let local = tensor.detach().f_to_device(Device::Cpu).map_err(torch)?.f_contiguous().map_err(torch)?;
        let mut bytes = vec![0; local.numel() * local.kind().elt_size_in_bytes()];
        local.f_copy_data_u8(&mut bytes, local.numel()).map_err(torch)?;
        out.write_all(&bytes).map_err(failed)?;
    }
    out.flush().map_err(failed)?;
    drop(out);
    Ok(file.commit()?)
}

fn dtype_name(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Bool => Some("BOOL"),
        Kind::Uint8 => Some("U8"),
        Kind::Int => Some("I32"),
        Kind::Int64 => Some("I64"),
        Kind::Half => Some("F16"),
        Kind::BFloat16 => Some("BF16"),
        Kind::Float => Some("F32"),
        Kind::Double => Some("F64"),
        _ => None,
    }
}
