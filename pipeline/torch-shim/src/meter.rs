//! What tensors take, measured where they are made; and a device whose tensors take nothing.

use std::ffi::c_void;
use std::marker::PhantomData;

use tch::Device;

use crate::ffi;

/// A device without memory and without arithmetic: libtorch's meta device, for which tch has no name.
///
/// A tensor here has a dtype and a shape and no values; what is computed from it has the right dtype and shape, takes
/// part in backward passes, and is charged to a [`Meter`] like any other. A program that runs here says what it would
/// take elsewhere. Values cannot be read, and moving a tensor here from here makes another one.
pub const PHANTOM: Device = Device::Mps;

/// Counts the bytes of all tensors that this thread makes, on the CPU or on [`PHANTOM`], from `start` on.
///
/// One meter is active on a thread, the one started last. A block counts in multiples of 512 bytes, as CUDA's caching
/// allocator hands them out, until it is freed, on whatever thread. Memory that libraries take for themselves, past
/// libtorch's allocator, is not seen.
#[derive(Debug)]
pub struct Meter {
    handle: *mut c_void,
    /// Bound to its thread.
    _not_send: PhantomData<*const ()>,
}

/// What a [`Meter`] shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// Held by tensors now.
    pub live_bytes: u64,
    /// The most that was held since the start or the last [`Meter::restart`].
    pub peak_bytes: u64,
    /// Additions and multiplications in products, convolutions and attention on [`PHANTOM`] since then.
    pub operations: f64,
}

impl Meter {
    /// Starts at zero. The first call in a process puts meters between libtorch and its CPU allocator.
    pub fn start() -> Meter {
        // SAFETY: no preconditions; the handle is this value's own.
        Meter { handle: unsafe { ffi::sd_meter_start() }, _not_send: PhantomData }
    }

    /// What it shows now.
    pub fn read(&self) -> Reading {
        let (mut bytes, mut operations) = ([0_i64; 2], 0.0);
        // SAFETY: the handle lives until drop; both places are as large as the shim fills.
        unsafe { ffi::sd_meter_read(self.handle, bytes.as_mut_ptr(), &raw mut operations) };
        let [live_bytes, peak_bytes] = bytes.map(|bytes| bytes.max(0).unsigned_abs());
        Reading { live_bytes, peak_bytes, operations }
    }

    /// Sets the peak to what is held now, and the operations to zero.
    pub fn restart(&self) {
        // SAFETY: the handle lives until drop.
        unsafe { ffi::sd_meter_restart(self.handle) }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // SAFETY: the handle is this value's own and not used again.
        unsafe { ffi::sd_meter_stop(self.handle) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    const KIB: u64 = 1024;

    #[test]
    fn tensors_are_counted_while_they_live() {
        for device in [Device::Cpu, PHANTOM] {
            let meter = Meter::start();
            let first = Tensor::zeros([1024], (Kind::Float, device));
            let second = &first + &first;
            let view = second.narrow(0, 0, 10);
            drop(first);
            drop(second);
            let Reading { live_bytes, peak_bytes, .. } = meter.read();
            assert_eq!((live_bytes, peak_bytes), (4 * KIB, 8 * KIB), "{device:?}: a view holds all of its storage");
            drop(view);
            meter.restart();
            assert_eq!(meter.read().peak_bytes, 0);
        }
    }

    #[test]
    fn a_storage_goes_back_to_the_meter_it_came_from() {
        let first = Meter::start();
        let tensor = Tensor::zeros([1024], (Kind::Float, Device::Cpu));
        let second = Meter::start();
        std::thread::spawn(move || drop(tensor)).join().unwrap();
        assert_eq!((first.read().live_bytes, second.read().live_bytes), (0, 0));
        let _unseen = std::thread::spawn(|| Tensor::zeros([1024], (Kind::Float, Device::Cpu))).join().unwrap();
        assert_eq!(second.read().peak_bytes, 0);
    }

    #[test]
    fn phantoms_have_shapes_and_cost_what_they_would() {
        let meter = Meter::start();
        let phantom = |shape: &[i64]| Tensor::zeros(shape, (Kind::BFloat16, PHANTOM));
        let (x, weight) = (phantom(&[2, 8, 16, 16]), phantom(&[4, 8, 3, 3]).set_requires_grad(true));
        let y = x.conv2d(&weight, None::<&Tensor>, [2, 2], [1, 1], [1, 1], 1);
        assert_eq!((y.size(), y.kind(), y.device()), (vec![2, 4, 8, 8], Kind::BFloat16, PHANTOM));
        let forward = 2.0 * (2 * 4 * 8 * 8) as f64 * (8 * 3 * 3) as f64;
        assert_eq!(meter.read().operations, forward);
        y.square().sum(Kind::Float).backward();
        // The input wants no gradient.
        assert_eq!(meter.read().operations, 2.0 * forward);
        assert_eq!(weight.grad().size(), [4, 8, 3, 3]);

        meter.restart();
        let a = Tensor::zeros([3, 5], (Kind::Float, Device::Cpu)).to_device(PHANTOM);
        assert_eq!(a.matmul(&a.tr()).size(), [3, 3]);
        assert_eq!(meter.read().operations, 2.0 * 3.0 * 5.0 * 3.0);
    }

    /// One of each layer of the networks, forward and backward: the phantom's peak is the CPU's.
    #[test]
    fn a_phantom_pass_peaks_like_a_real_one() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let peak = |device| {
                let meter = Meter::start();
                let parameter = |shape: &[i64]| Tensor::ones(shape, (kind, device)).set_requires_grad(true);
                let (conv, one, linear) = (parameter(&[64, 64, 3, 3]), parameter(&[64]), parameter(&[64, 64]));
                let x = Tensor::ones([2, 64, 32, 32], (kind, device));
                let y = x.conv2d(&conv, Some(&one), [1, 1], [1, 1], [1, 1], 1);
                let y = y.group_norm(32, Some(&one), Some(&one), 1e-5, true).silu();
                let tokens = y.permute([0, 2, 3, 1]).reshape([2, 1024, 64]);
                let tokens = tokens.layer_norm([64], Some(&one), Some(&one), 1e-5, true);
                let heads = tokens.linear(&linear, None::<&Tensor>).view([2, 1024, 4, 16]).transpose(1, 2);
                let attended = Tensor::scaled_dot_product_attention(
                    &heads,
                    &heads,
                    &heads,
                    None::<&Tensor>,
                    0.0,
                    false,
                    None,
                    false,
                );
                let out = attended.transpose(1, 2).reshape([2, 1024, 64]).linear(&linear, Some(&one)).gelu("none");
                let large = y.upsample_nearest2d([64, 64], None, None);
                (out.square().mean(Kind::Float) + large.softplus().mean(Kind::Float)).backward();
                meter.read().peak_bytes as f64
            };
            let (real, phantom) = (peak(Device::Cpu), peak(PHANTOM));
            assert!((phantom / real - 1.0).abs() < 0.02, "{kind:?}: {phantom} beside {real}");
        }
    }
}
