//! Which training timesteps a run of few steps visits. Roundings are numpy's: half to even.

use super::config::SchedulerError;
use super::noise::linspace;

/// Ends at the noisiest timestep and steps down evenly: `round(arange(train, 0, -train / count)) - 1`.
///
/// Grids nest: that of 8 steps is every fourth of that of 32.
pub fn trailing_timesteps(train: usize, count: usize) -> Vec<f64> {
    let (train, count) = (train as f64, count as f64);
    // numpy's arange measures its stride between its first two values and its length by a division.
    let stride = train / count;
    let measured = (train - stride) - train;
    let length = (train / stride).ceil() as usize;
    (0..length).map(|i| (train + i as f64 * measured).round_ties_even() - 1.0).collect()
}

/// Starts at `offset` and steps up by the whole number `train / count`.
pub fn leading_timesteps(train: usize, count: usize, offset: usize) -> Vec<f64> {
    let stride = train / count;
    (0..count).rev().map(|i| (i * stride + offset) as f64).collect()
}

/// Both ends included, at FP32's precision as diffusers keeps them. One step visits timestep 0.
pub fn linspace_timesteps(train: usize, count: usize) -> Vec<f64> {
    linspace(0.0, (train - 1) as f64, count).into_iter().rev().map(|t| f64::from(t as f32)).collect()
}

/// The same at whole timesteps. They are rounded from double precision: where half a timestep is meant, what its
/// rounding error has left decides, as with numpy.
pub fn rounded_linspace_timesteps(train: usize, count: usize) -> Vec<f64> {
    linspace(0.0, (train - 1) as f64, count).into_iter().rev().map(f64::round_ties_even).collect()
}

/// Evenly spaced picks from the `original` timesteps that a consistency model was distilled on.
pub fn lcm_timesteps(train: usize, original: usize, count: usize) -> Result<Vec<f64>, SchedulerError> {
    if original == 0 || original > train || count > original {
        return Err(SchedulerError::LcmStepCount { count, original, train });
    }
    let stride = train / original;
    let timesteps: Vec<f64> = (1..=original).rev().map(|i| (i * stride - 1) as f64).collect();
    let pick = original as f64 / count as f64;
    Ok((0..count).map(|i| timesteps[(i as f64 * pick).floor() as usize]).collect())
}
