//! The Fréchet distance between two sets of features (Heusel et al. 2017, equation 6).

use tch::{Kind, Tensor};

/// Why there is no distance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrechetError {
    /// A covariance of so few samples has no full rank, and the distance would be meaningless.
    #[error("{samples} samples are too few for features of width {width}: at least {} are needed", width + 1)]
    TooFew {
        /// Samples at hand.
        samples: i64,
        /// Width of the features.
        width: i64,
    },
    /// Features of different widths.
    #[error("features of width {ours} cannot be held against features of width {theirs}")]
    Widths {
        /// Width of these.
        ours: i64,
        /// Width of the others.
        theirs: i64,
    },
    /// Features that are NaN or infinite.
    #[error("{count} of the features are NaN or infinite")]
    NonFinite {
        /// How many.
        count: i64,
    },
}

/// Mean and covariance of a set of features, in f64.
#[derive(Debug)]
pub struct Moments {
    /// `[D]`
    mean: Tensor,
    /// `[D, D]`, of a sample: divided by N - 1.
    covariance: Tensor,
}

impl Moments {
    /// The moments of `features [N, D]`.
    pub fn of(features: &Tensor) -> Result<Self, FrechetError> {
        let (samples, width) = features.size2().expect("features are [samples, width]");
        if samples <= width {
            return Err(FrechetError::TooFew { samples, width });
        }
        let features = features.to_kind(Kind::Double);
        let non_finite = features.isfinite().logical_not().sum(Kind::Int64).int64_value(&[]);
        if non_finite > 0 {
            return Err(FrechetError::NonFinite { count: non_finite });
        }
        let mean = features.mean_dim([0i64].as_slice(), false, Kind::Double);
        let centred = features - &mean;
        Ok(Self { covariance: centred.tr().matmul(&centred) / (samples - 1), mean })
    }

    /// `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`.
    ///
    /// The trace of the root is that of `(C1^(1/2) C2 C1^(1/2))^(1/2)`, which is symmetric: its eigenvalues are real
    /// and, but for rounding, not negative.
    pub fn distance(&self, other: &Self) -> Result<f64, FrechetError> {
        let (ours, theirs) = (self.mean.size()[0], other.mean.size()[0]);
        if ours != theirs {
            return Err(FrechetError::Widths { ours, theirs });
        }
        let root = symmetric_root(&self.covariance);
        let (product_values, _) = root.matmul(&other.covariance).matmul(&root).linalg_eigh("L");
        let root_trace = product_values.clamp_min(0.0).sqrt().sum(Kind::Double);
        let means = (&self.mean - &other.mean).square().sum(Kind::Double);
        let distance = means + self.covariance.trace() + other.covariance.trace() - root_trace * 2.0;
        Ok(distance.double_value(&[]))
    }
}

/// The symmetric square root of a positive semi-definite matrix.
fn symmetric_root(matrix: &Tensor) -> Tensor {
    let (values, vectors) = matrix.linalg_eigh("L");
    (&vectors * values.clamp_min(0.0).sqrt()).matmul(&vectors.tr())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use tch::Device;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/frechet/frechet.safetensors");

    /// scipy's `sqrtm` on the same features, to a relative 1e-6.
    #[test]
    fn equals_scipy() {
        let fixtures = nn::Weights::open(Path::new(FIXTURES)).unwrap().to(Kind::Double, Device::Cpu);
        for case in ["plain", "correlated", "nearly_singular"] {
            let tensor = |name: &str| fixtures.tensor(&format!("{case}.{name}")).unwrap();
            let distance = Moments::of(&tensor("a")).unwrap().distance(&Moments::of(&tensor("b")).unwrap()).unwrap();
            let expected = tensor("distance").double_value(&[]);
            assert!((distance - expected).abs() <= 1e-6 * expected, "{case}: {distance}, scipy has {expected}");
        }
    }

    #[test]
    fn is_zero_for_the_same_symmetric_and_the_shift_squared_for_a_shift() {
        tch::manual_seed(1);
        let a = Tensor::randn([200, 8], (Kind::Double, Device::Cpu));
        let b = Tensor::randn([300, 8], (Kind::Double, Device::Cpu)) * 2.0 + 1.0;
        let (of_a, of_b) = (Moments::of(&a).unwrap(), Moments::of(&b).unwrap());
        assert!(of_a.distance(&of_a).unwrap().abs() < 1e-9);
        assert!((of_a.distance(&of_b).unwrap() - of_b.distance(&of_a).unwrap()).abs() < 1e-9);
        let shifted = Moments::of(&(&a + 3.0)).unwrap();
        assert!((of_a.distance(&shifted).unwrap() - 8.0 * 9.0).abs() < 1e-9);
    }

    #[test]
    fn what_has_no_distance_is_named() {
        let features = |samples: i64, width: i64| Tensor::randn([samples, width], (Kind::Float, Device::Cpu));
        assert_eq!(Moments::of(&features(8, 8)).unwrap_err(), FrechetError::TooFew { samples: 8, width: 8 });
        let (narrow, wide) = (Moments::of(&features(20, 4)).unwrap(), Moments::of(&features(20, 5)).unwrap());
        assert_eq!(narrow.distance(&wide).unwrap_err(), FrechetError::Widths { ours: 4, theirs: 5 });
        let mut broken = features(20, 4);
        let _nan = broken.get(3).get(1).fill_(f64::NAN);
        assert_eq!(
            Moments::of(&std::mem::replace(&mut broken, Tensor::new())).unwrap_err(),
            FrechetError::NonFinite { count: 1 }
        );
    }
}
