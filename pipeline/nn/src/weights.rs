//! Where a network's tensors come from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use crate::file::{MappedFile, ReadError, open_all};
use crate::lora::Adapters;
use crate::scope::Build;
use crate::{Error, Init, Mismatch, Misshapen, Params, Scope};

/// A source of tensors, with the dtype and the device that they are wanted in (float32 on the CPU unless [`to`] says
/// otherwise).
///
/// [`to`]: Weights::to
pub struct Weights {
    origin: String,
    source: Source,
    kind: Kind,
    device: Device,
}

enum Source {
    /// Tensors of mapped files: the network's name -> the file and its own name for the tensor.
    Files { paths: Vec<PathBuf>, files: Vec<MappedFile>, names: BTreeMap<String, (usize, String)> },
    /// Tensors that are in memory already.
    Memory(BTreeMap<String, Tensor>),
    /// Fresh values.
    Seeded(u64),
    /// No values at all: tensors of one element seen in the wanted shape.
    Shapes,
}

/// A network with low-rank adapters on some of its layers.
pub struct Adapted<T> {
    /// The network.
    pub net: T,
    /// The parameters below the adapters.
    pub base: Params,
    /// The adapters' own parameters, `MODULE.lora_A.weight` and `MODULE.lora_B.weight`.
    pub lora: Params,
}

impl Weights {
    /// Maps a safetensors file, or the files that a `*.safetensors.index.json` names.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let origin = path.display().to_string();
        let (paths, files) = open_all(path)?;
        let mut names = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for name in file.names() {
                if names.insert(name.clone(), (index, name.clone())).is_some() {
                    return Err(Error::Duplicate { origin, tensor: name });
                }
            }
        }
        Ok(Self::new(origin, Source::Files { paths, files, names }))
    }

    /// Opens the weights of one folder of a diffusers model. `stem` is `diffusion_pytorch_model` for a UNet or a VAE
    /// and `model` for a text encoder; the plain file, its sharded form and the `fp16` variant are looked for in turn.
    pub fn open_folder(folder: &Path, stem: &str) -> Result<Self, Error> {
        let looked_for: Vec<String> =
            ["safetensors", "safetensors.index.json", "fp16.safetensors", "safetensors.index.fp16.json"]
                .map(|ending| format!("{stem}.{ending}"))
                .into();
        match looked_for.iter().map(|name| folder.join(name)).find(|path| path.exists()) {
            Some(path) => Self::open(&path),
            None => Err(Error::NoWeights { folder: folder.to_owned(), looked_for }),
        }
    }

    /// Takes tensors that are in memory. Those that already have the wanted dtype and device are shared, not copied.
    pub fn from_tensors(origin: impl Into<String>, tensors: BTreeMap<String, Tensor>) -> Self {
        Self::new(origin.into(), Source::Memory(tensors))
    }

    /// Shares the tensors of another network, in the dtype and on the device that they have there.
    pub fn shared(params: &Params) -> Self {
        let tensors: BTreeMap<_, _> =
            params.iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect();
        let (kind, device) = match tensors.values().next() {
            Some(tensor) => (tensor.kind(), tensor.device()),
            None => (Kind::Float, Device::Cpu),
        };
        Self::from_tensors("shared parameters", tensors).to(kind, device)
    }

    /// Draws every tensor afresh, as PyTorch's layers do by default. The values depend on the seed and on the tensors'
    /// names alone. On [`PHANTOM`](torch_shim::PHANTOM) a network of any size is there in no time.
    pub fn seeded(seed: u64) -> Self {
        Self::new(format!("seed {seed}"), Source::Seeded(seed))
    }

    /// Has no values: a network of any size is built in no time and no memory, to look at its names and shapes.
    pub fn shapes_only() -> Self {
        Self::new("shapes".into(), Source::Shapes)
    }

    fn new(origin: String, source: Source) -> Self {
        Self { origin, source, kind: Kind::Float, device: Device::Cpu }
    }

    /// Sets the dtype and the device that the network is wanted in.
    pub fn to(mut self, kind: Kind, device: Device) -> Self {
        (self.kind, self.device) = (kind, device);
        self
    }

    /// The dtype that the network will have.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The device that the network will be on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The files that the tensors lie in, with the index of a sharded set; none for other sources.
    pub fn files(&self) -> &[PathBuf] {
        match &self.source {
            Source::Files { paths, .. } => paths,
            Source::Memory(_) | Source::Seeded(_) | Source::Shapes => &[],
        }
    }

    /// The names of the tensors at hand, in order; none for a seed or for shapes.
    pub fn names(&self) -> Vec<&str> {
        match &self.source {
            Source::Files { names, .. } => names.keys().map(String::as_str).collect(),
            Source::Memory(tensors) => tensors.keys().map(String::as_str).collect(),
            Source::Seeded(_) | Source::Shapes => Vec::new(),
        }
    }

    /// Whether a tensor of that name is at hand.
    pub fn contains(&self, name: &str) -> bool {
        match &self.source {
            Source::Files { names, .. } => names.contains_key(name),
            Source::Memory(tensors) => tensors.contains_key(name),
            Source::Seeded(_) | Source::Shapes => false,
        }
    }

    /// Renames the tensors at hand, or drops those for which there is no name.
    pub fn rename(mut self, name: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        fn renamed<V>(
            origin: &str,
            old: BTreeMap<String, V>,
            name: impl Fn(&str) -> Option<String>,
        ) -> Result<BTreeMap<String, V>, Error> {
            let mut new = BTreeMap::new();
            for (key, value) in old {
                if let Some(key) = name(&key) {
                    if new.contains_key(&key) {
                        return Err(Error::Duplicate { origin: origin.to_owned(), tensor: key });
                    }
                    new.insert(key, value);
                }
            }
            Ok(new)
        }
        self.source = match self.source {
            Source::Files { paths, files, names } => {
                Source::Files { paths, files, names: renamed(&self.origin, names, name)? }
            }
            Source::Memory(tensors) => Source::Memory(renamed(&self.origin, tensors, name)?),
            fresh @ (Source::Seeded(_) | Source::Shapes) => fresh,
        };
        Ok(self)
    }

    /// One tensor at hand, in the wanted dtype and on the wanted device.
    pub fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        let absent = || Error::NoTensor { origin: self.origin.clone(), tensor: name.to_owned() };
        match &self.source {
            Source::Files { files, names, .. } => {
                let (file, stored_name) = names.get(name).ok_or_else(absent)?;
                files[*file].read(stored_name, (self.kind, self.device)).map_err(|error| match error {
                    ReadError::Absent => absent(),
                    ReadError::NotFloat(dtype) => Error::Dtype {
                        origin: self.origin.clone(),
                        tensor: name.to_owned(),
                        dtype: format!("{dtype:?}"),
                    },
                    ReadError::Torch(source) => Error::Torch { tensor: name.to_owned(), source },
                })
            }
            Source::Memory(tensors) => {
                let tensor = tensors.get(name).ok_or_else(absent)?;
                if (tensor.kind(), tensor.device()) == (self.kind, self.device) {
                    return Ok(tensor.shallow_clone());
                }
                tensor
                    .f_to_device(self.device)
                    .and_then(|tensor| tensor.f_to_kind(self.kind))
                    .map_err(|source| Error::Torch { tensor: name.to_owned(), source })
            }
            Source::Seeded(_) | Source::Shapes => Err(absent()),
        }
    }

    /// Builds a network. The closure walks the scope and takes every tensor that the network has; if any is missing,
    /// misshapen or unreadable, or any tensor at hand is not taken, the one error lists them all.
    pub fn build<T>(&self, network: impl FnOnce(&Scope<'_>) -> T) -> Result<(T, Params), Error> {
        let adapted = self.build_with(None, network)?;
        Ok((adapted.net, adapted.base))
    }

    /// Builds a network with low-rank adapters. An adapter that fits no layer is an error like a surplus tensor.
    pub fn build_adapted<T>(
        &self,
        adapters: Adapters,
        network: impl FnOnce(&Scope<'_>) -> T,
    ) -> Result<Adapted<T>, Error> {
        self.build_with(Some(adapters), network)
    }

    fn build_with<T>(
        &self,
        adapters: Option<Adapters>,
        network: impl FnOnce(&Scope<'_>) -> T,
    ) -> Result<Adapted<T>, Error> {
        let build = Build::new(self, adapters);
        let net = network(&Scope::root(&build));
        let (base, lora, mut mismatch) = build.finish();
        mismatch.surplus.extend(self.names().iter().filter(|name| base.get(name).is_none()).map(|&n| n.to_owned()));
        if mismatch.is_empty() {
            Ok(Adapted { net, base, lora })
        } else {
            mismatch.origin = self.origin.clone();
            Err(Error::Mismatch(mismatch))
        }
    }

    /// The tensor that a layer asks for. What is wrong goes into the mismatch, and a stand-in of the right shape lets
    /// the walk go on to find the rest.
    pub(crate) fn take(&self, name: &str, shape: &[i64], init: Init, mismatch: &mut Mismatch) -> Tensor {
        let stand_in = || Tensor::zeros([1], (self.kind, self.device)).expand(shape, false);
        let found = match &self.source {
            Source::Shapes => return stand_in(),
            Source::Seeded(seed) => return init.draw_on(*seed, name, shape, (self.kind, self.device)),
            Source::Files { files, names, .. } => {
                names.get(name).and_then(|(file, stored_name)| files[*file].shape(stored_name))
            }
            Source::Memory(tensors) => tensors.get(name).map(Tensor::size),
        };
        let Some(found) = found else {
            mismatch.missing.push(name.to_owned());
            return stand_in();
        };
        if found != shape {
            mismatch.misshapen.push(Misshapen { name: name.to_owned(), expected: shape.to_vec(), found });
            return stand_in();
        }
        self.tensor(name).unwrap_or_else(|error| {
            let reason = match error {
                Error::Dtype { dtype, .. } => format!("has type {dtype}, expected a floating-point type"),
                Error::Torch { source, .. } => source.to_string(),
                other => other.to_string(),
            };
            mismatch.unreadable.push((name.to_owned(), reason));
            stand_in()
        })
    }
}
