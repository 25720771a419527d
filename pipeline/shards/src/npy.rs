//! Arrays in NumPy's format, the members that hold latents and embeddings.
//!
//! Reading and writing is the `webdataset` crate's; this module fixes the element types of our contracts.

use bytes::Bytes;
use half::f16;
use webdataset::core::npy::{from_npy, to_npy};
use webdataset::core::tensor::{DType, Tensor};

use crate::{Error, Result};

/// A dense C-ordered array of a floating type.
#[derive(Debug, Clone, PartialEq)]
pub struct Npy {
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: NpyData,
}

/// Elements of an [`Npy`].
#[derive(Debug, Clone, PartialEq)]
pub enum NpyData {
    /// `<f2`
    F16(Vec<f16>),
    /// `<f4`
    F32(Vec<f32>),
}

impl Npy {
    /// Reads an array of f16 or f32.
    ///
    /// # Errors
    /// [`Error::Array`] for anything else, for Fortran order, and for a length that does not fit the shape.
    pub fn parse(bytes: &[u8]) -> Result<Npy> {
        let tensor = from_npy(bytes).map_err(|e| Error::Array(e.to_string()))?;
        let shape = tensor.shape().to_vec();
        let size = shape.iter().try_fold(tensor.dtype().size(), |bytes, n| bytes.checked_mul(*n));
        if size != Some(tensor.data().len()) {
            return Err(Error::Array(format!("{} bytes do not fill the shape {shape:?}", tensor.data().len())));
        }
        let data = match tensor.dtype() {
            DType::F16 => NpyData::F16(elements(tensor.data(), f16::from_le_bytes)),
            DType::F32 => NpyData::F32(elements(tensor.data(), f32::from_le_bytes)),
            other => return Err(Error::Array(format!("elements are {}, expected f2 or f4", other.short_name()))),
        };
        Ok(Npy { shape, data })
    }

    /// The elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            NpyData::F16(values) => values.iter().map(|v| v.to_f32()).collect(),
            NpyData::F32(values) => values.clone(),
        }
    }
}

/// Writes an array of f16.
///
/// # Errors
/// [`Error::Array`] where `shape` does not hold `values.len()` elements.
pub fn to_npy_f16(shape: &[usize], values: &[f16]) -> Result<Vec<u8>> {
    write(DType::F16, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// Writes an array of f32.
///
/// # Errors
/// [`Error::Array`] where `shape` does not hold `values.len()` elements.
pub fn to_npy_f32(shape: &[usize], values: &[f32]) -> Result<Vec<u8>> {
    write(DType::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn write(dtype: DType, shape: &[usize], bytes: Vec<u8>) -> Result<Vec<u8>> {
    let tensor = Tensor::new(dtype, shape.to_vec(), Bytes::from(bytes)).map_err(|e| Error::Array(e.to_string()))?;
    Ok(to_npy(&tensor))
}

fn elements<T, const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BY_NUMPY: &[u8] = include_bytes!("../../../tests/fixtures/npy/array_f16.npy");

    fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        [&bytes[..at], to, &bytes[at + to.len()..]].concat()
    }

    #[test]
    fn numpys_bytes_both_ways() {
        let values = [0.0, 1.0, -2.0, 0.5].map(f16::from_f32);
        let array = Npy::parse(BY_NUMPY).unwrap();
        assert_eq!(array, Npy { shape: vec![2, 2], data: NpyData::F16(values.to_vec()) });
        assert_eq!(Npy::parse(&to_npy_f16(&[2, 2], &values).unwrap()).unwrap(), array);
        assert_eq!(array.to_f32(), [0.0, 1.0, -2.0, 0.5]);
    }

    #[test]
    fn f32_round_trip() {
        let bytes = to_npy_f32(&[1, 3], &[1.5, -0.0, f32::MAX]).unwrap();
        assert_eq!(Npy::parse(&bytes).unwrap().to_f32(), [1.5, -0.0, f32::MAX]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(matches!(to_npy_f32(&[2, 2], &[1.0]), Err(Error::Array(_))));
        assert!(matches!(Npy::parse(b""), Err(Error::Array(_))));
        assert!(matches!(Npy::parse(&BY_NUMPY[..BY_NUMPY.len() - 1]), Err(Error::Array(_))));
        for (from, to) in [("<f2", "<i2"), ("False", "True "), ("(2, 2)", "(9, 2)"), ("(2, 2)", "(2,-2)")] {
            let changed = replaced(BY_NUMPY, from.as_bytes(), to.as_bytes());
            assert!(matches!(Npy::parse(&changed), Err(Error::Array(_))), "{from} -> {to}");
        }
        // 2^32 * 2^32 elements: the product overflows to nothing.
        let wide = replaced(BY_NUMPY, b"(2, 2), }            ", b"(4294967296, 4294967296), }");
        assert!(matches!(Npy::parse(&wide), Err(Error::Array(_))));
    }
}
