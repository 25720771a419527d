//! What tch lacks: fused Adam, a global norm, backward with given gradients, activation checkpointing,
//! numeric switches, CUDA start-up, memory statistics, and a device for tensors without memory.
//!
//! This is the only crate of the workspace that calls C++ of its own; everything it exports is safe.

mod ffi;
mod meter;

pub use meter::{Meter, PHANTOM, Reading};

use std::ffi::{CStr, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use tch::Tensor;
use torch_sys::C_tensor;

/// What libtorch said when a call of this crate failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{call}: {message}")]
pub struct Error {
    /// The function of this crate that failed.
    pub call: &'static str,
    /// libtorch's own words, first line.
    pub message: String,
}

/// The result of a call into libtorch.
pub type Result<T> = std::result::Result<T, Error>;

fn last_error(call: &'static str) -> Error {
    // SAFETY: the shim returns a NUL-terminated string that lives until the next failure on this thread.
    let text = unsafe { CStr::from_ptr(ffi::sd_last_error()) }.to_string_lossy().into_owned();
    Error { call, message: text.lines().next().unwrap_or_default().to_string() }
}

fn check(call: &'static str, status: i32) -> Result<()> {
    if status != 0 { Ok(()) } else { Err(last_error(call)) }
}

fn check_tensor(call: &'static str, tensor: *mut C_tensor) -> Result<Tensor> {
    if tensor.is_null() {
        return Err(last_error(call));
    }
    // SAFETY: the shim hands over a tensor that it has just allocated and keeps no copy of the pointer.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}

fn pointers(tensors: &[Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(Tensor::as_ptr).collect()
}

/// Makes CUDA available where the machine and the libtorch at hand have it, and says whether they do.
///
/// One binary serves machines with and without a GPU: it links the CPU half of libtorch alone and loads the
/// CUDA half here. Call it first thing in `main`: libtorch caches the first answer to "is there a GPU?".
pub fn start_cuda() -> bool {
    static LOADED: OnceLock<bool> = OnceLock::new();
    // SAFETY: dlopen of a library of libtorch's own; its initialisers have no preconditions.
    *LOADED.get_or_init(|| unsafe { ffi::sd_load_cuda() } != 0) && tch::Cuda::is_available()
}

/// Has the allocator keep what tensors on the CPU leave behind for the tensors that follow: blocks of up to 64 MiB, and
/// 256 MiB at the heap's end. A pass of a network allocates and frees the same blocks over and over.
pub fn keep_freed_memory() {
    // SAFETY: mallopt changes how later blocks are taken, at any time and from any thread.
    unsafe { ffi::sd_keep_freed_memory() };
}

/// Adam's constants for one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Weight decay, decoupled (AdamW) or as an L2 term of the gradient.
    pub weight_decay: WeightDecay,
}

/// How weights are decayed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WeightDecay {
    /// As AdamW does: straight from the weight.
    Decoupled(f64),
    /// As Adam does: added to the gradient. `L2(0.0)` is no decay.
    L2(f64),
}

/// One fused Adam update in place of `params`, both moments and nothing else.
///
/// All slices have the same length. Each of `steps` is an FP32 tensor with one element, the number of this
/// update counted from 1 (the bias correction), on the device of its parameter.
pub fn fused_adam(
    adam: &Adam,
    params: &[Tensor],
    grads: &[Tensor],
    first_moments: &[Tensor],
    second_moments: &[Tensor],
    steps: &[Tensor],
) -> Result<()> {
    for list in [grads, first_moments, second_moments, steps] {
        assert_eq!(list.len(), params.len(), "one entry for each parameter");
    }
    let (decay, decoupled) = match adam.weight_decay {
        WeightDecay::Decoupled(decay) => (decay, 1),
        WeightDecay::L2(decay) => (decay, 0),
    };
    // SAFETY: every array holds `params.len()` live tensors for the length of the call.
    let status = unsafe {
        ffi::sd_fused_adam(
            pointers(params).as_ptr(),
            pointers(grads).as_ptr(),
            pointers(first_moments).as_ptr(),
            pointers(second_moments).as_ptr(),
            pointers(steps).as_ptr(),
            params.len(),
            adam.learning_rate,
            adam.beta1,
            adam.beta2,
            decay,
            adam.epsilon,
            decoupled,
        )
    };
    check("fused_adam", status)
}

/// The 2-norm over all elements of all tensors, as an FP32 scalar on their device (no host sync).
pub fn global_norm(tensors: &[Tensor]) -> Result<Tensor> {
    // SAFETY: the array holds `tensors.len()` live tensors for the length of the call.
    let norm = unsafe { ffi::sd_global_norm(pointers(tensors).as_ptr(), tensors.len()) };
    check_tensor("global_norm", norm)
}

/// Backward from `roots` with the given gradients of each (`torch.autograd.backward(roots, grads)`).
pub fn backward(roots: &[Tensor], grads: &[Tensor], keep_graph: bool) -> Result<()> {
    assert_eq!(roots.len(), grads.len(), "one gradient for each root");
    // SAFETY: both arrays hold `roots.len()` live tensors for the length of the call.
    let status =
        unsafe { ffi::sd_backward(pointers(roots).as_ptr(), pointers(grads).as_ptr(), roots.len(), keep_graph.into()) };
    check("backward", status)
}

/// Sets `.grad` of a leaf, so that the backward pass adds into `grad`'s storage.
pub fn set_grad(tensor: &Tensor, grad: &Tensor) -> Result<()> {
    // SAFETY: both tensors are live; libtorch checks nothing here, so shapes and types are checked first.
    assert_eq!(tensor.size(), grad.size(), "a gradient has the shape of its tensor");
    assert_eq!(tensor.kind(), grad.kind(), "a gradient has the type of its tensor");
    let status = unsafe { ffi::sd_set_grad(tensor.as_ptr(), grad.as_ptr()) };
    check("set_grad", status)
}

/// Runs `segment` without keeping what is inside it for the backward pass, which runs it once more.
///
/// Gradients equal those of the plain run bit for bit, because the segment must be deterministic and is
/// given the same inputs. It owns what it needs: the backward pass may call it on a thread of libtorch's,
/// hence `Send`; calls never overlap.
///
/// Where gradients are off, the segment simply runs.
pub fn checkpoint<F>(inputs: &[Tensor], segment: F) -> Result<Tensor>
where
    F: Fn(&[Tensor]) -> Tensor + Send + 'static,
{
    let data = Box::into_raw(Box::new(segment)).cast::<c_void>();
    // SAFETY: `call::<F>` and `release::<F>` match what `data` points to; the shim calls `release` exactly
    // once, when the last reference to the segment goes, and `call` only before that.
    let out = unsafe {
        ffi::sd_checkpoint(pointers(inputs).as_ptr(), inputs.len(), call_segment::<F>, drop_segment::<F>, data)
    };
    check_tensor("checkpoint", out)
}

unsafe extern "C" fn call_segment<F>(data: *mut c_void, inputs: *const *mut C_tensor, count: usize) -> *mut C_tensor
where
    F: Fn(&[Tensor]) -> Tensor + Send + 'static,
{
    // A panic must not unwind through C++; the shim turns null into an error.
    catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `data` came from Box::into_raw of an F and lives until drop_segment.
        let segment = unsafe { &*data.cast::<F>() };
        let inputs: Vec<Tensor> = (0..count)
            // SAFETY: the shim passes `count` live tensors; clone_from_ptr takes a reference of its own.
            .map(|i| unsafe { Tensor::clone_from_ptr(*inputs.add(i)) })
            .collect();
        let out = segment(&inputs);
        // SAFETY: a second handle on `out`, allocated as the shim expects; the shim deletes it.
        unsafe { torch_sys::at_shallow_clone(out.as_ptr().cast_mut()) }
    }))
    .unwrap_or(std::ptr::null_mut())
}

unsafe extern "C" fn drop_segment<F>(data: *mut c_void) {
    // SAFETY: `data` came from Box::into_raw of an F, and the shim calls this once.
    drop(unsafe { Box::from_raw(data.cast::<F>()) });
}

/// Switches that decide how exact and how repeatable arithmetic is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numerics {
    /// FP32 products in TF32 on GPUs that have it: about 10 bits of mantissa, several times the speed.
    pub allow_tf32: bool,
    /// Only kernels that give the same bits each time; an operation that has none fails.
    pub deterministic: bool,
    /// cuDNN tries its algorithms on new shapes and keeps the fastest; ignored where deterministic.
    pub cudnn_benchmark: bool,
}

/// Sets the switches for the process.
pub fn set_numerics(numerics: Numerics) -> Result<()> {
    // SAFETY: plain values.
    let status = unsafe {
        ffi::sd_set_numerics(numerics.allow_tf32.into(), numerics.deterministic.into(), numerics.cudnn_benchmark.into())
    };
    check("set_numerics", status)
}

/// Which kernels scaled dot-product attention may choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionKernels {
    /// FlashAttention 2.
    pub flash: bool,
    /// The memory-efficient kernel.
    pub memory_efficient: bool,
    /// cuDNN's.
    pub cudnn: bool,
    /// Plain products and softmax; the fallback for all shapes.
    pub math: bool,
}

/// Sets the choice for the process.
pub fn set_attention_kernels(kernels: AttentionKernels) -> Result<()> {
    // SAFETY: plain values.
    let status = unsafe {
        ffi::sd_set_attention(
            kernels.flash.into(),
            kernels.memory_efficient.into(),
            kernels.cudnn.into(),
            kernels.math.into(),
        )
    };
    check("set_attention_kernels", status)
}

/// What the caching allocator of one GPU holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaMemory {
    /// Held by live tensors.
    pub allocated: u64,
    /// The most that live tensors held since the last [`reset_cuda_peak`].
    pub peak_allocated: u64,
    /// Taken from the driver.
    pub reserved: u64,
    /// The most that was taken from the driver since the last [`reset_cuda_peak`].
    pub peak_reserved: u64,
}

/// Memory statistics of a GPU; an error where there is none.
pub fn cuda_memory(device: usize) -> Result<CudaMemory> {
    let mut bytes = [0_i64; 4];
    // SAFETY: `bytes` has the four places that the shim fills.
    let status = unsafe { ffi::sd_cuda_memory(device_index(device), bytes.as_mut_ptr()) };
    check("cuda_memory", status)?;
    let [allocated, peak_allocated, reserved, peak_reserved] = bytes.map(|b| b.max(0).unsigned_abs());
    Ok(CudaMemory { allocated, peak_allocated, reserved, peak_reserved })
}

/// Starts the peaks of [`cuda_memory`] anew.
pub fn reset_cuda_peak(device: usize) -> Result<()> {
    // SAFETY: a plain value.
    check("reset_cuda_peak", unsafe { ffi::sd_cuda_reset_peak(device_index(device)) })
}

/// Gives cached blocks that no tensor holds back to the driver.
pub fn empty_cuda_cache() -> Result<()> {
    // SAFETY: no arguments.
    check("empty_cuda_cache", unsafe { ffi::sd_cuda_empty_cache() })
}

fn device_index(device: usize) -> i32 {
    i32::try_from(device).expect("a GPU's index is small")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn arange(n: i64) -> Tensor {
        Tensor::arange(n, (Kind::Float, Device::Cpu)) / 7.0 - 1.0
    }

    /// Three updates against Adam written out, with the paper's beta1 = 0 and with PyTorch's defaults.
    #[test]
    fn fused_adam_is_adam() {
        for (beta1, beta2) in [(0.0, 0.99), (0.9, 0.999)] {
            let adam = Adam { learning_rate: 1e-2, beta1, beta2, epsilon: 1e-8, weight_decay: WeightDecay::L2(0.0) };
            let param = arange(13);
            let (m, v) = (param.zeros_like(), param.zeros_like());
            let mut expected: Vec<f64> = Vec::try_from(param.to_kind(Kind::Double)).unwrap();
            let mut moments = vec![(0.0_f64, 0.0_f64); 13];
            for step in 1..=3 {
                let grad = (&param * 3.0 + f64::from(step)).sin();
                let grads: Vec<f64> = Vec::try_from(grad.to_kind(Kind::Double)).unwrap();
                for ((x, g), (m, v)) in expected.iter_mut().zip(grads).zip(&mut moments) {
                    *m = beta1 * *m + (1.0 - beta1) * g;
                    *v = beta2 * *v + (1.0 - beta2) * g * g;
                    let (m_hat, v_hat) = (*m / (1.0 - beta1.powi(step)), *v / (1.0 - beta2.powi(step)));
                    *x -= adam.learning_rate * m_hat / (v_hat.sqrt() + adam.epsilon);
                }
                let count = Tensor::from_slice(&[step as f32]);
                fused_adam(
                    &adam,
                    &[param.shallow_clone()],
                    &[grad],
                    &[m.shallow_clone()],
                    &[v.shallow_clone()],
                    &[count],
                )
                .unwrap();
            }
            let difference = (&param - Tensor::from_slice(&expected)).abs().max().double_value(&[]);
            assert!(difference < 1e-6, "{difference}");
        }
    }

    #[test]
    fn global_norm_is_the_norm_of_all() {
        let (a, b) = (arange(5), arange(9).view([3, 3]));
        let expected = (a.square().sum(Kind::Double) + b.square().sum(Kind::Double)).sqrt();
        let norm = global_norm(&[a, b]).unwrap();
        assert!((norm.double_value(&[]) - expected.double_value(&[])).abs() < 1e-6);
    }

    #[test]
    fn backward_takes_given_gradients_and_adds_into_set_storage() {
        let x = arange(4).set_requires_grad(true);
        let storage = Tensor::ones([4], (Kind::Float, Device::Cpu));
        set_grad(&x, &storage).unwrap();
        let seed = arange(4);
        backward(&[&x * &x], &[seed.shallow_clone()], false).unwrap();
        let expected = &x * &seed * 2.0 + 1.0;
        assert_eq!(storage, expected.detach());
    }

    /// A two-layer segment: gradients of input, of weights, and of an input that needs none.
    #[test]
    fn checkpoint_gradients_equal_plain_ones_bit_for_bit() {
        let weight = arange(16).view([4, 4]).set_requires_grad(true);
        let run = |checkpointed: bool, input_needs_grad: bool| {
            let mut weight = weight.shallow_clone();
            weight.zero_grad();
            let x = arange(8).view([2, 4]).set_requires_grad(input_needs_grad);
            let shared = weight.shallow_clone();
            let segment = move |inputs: &[Tensor]| inputs[0].matmul(&shared).tanh().matmul(&shared) * &inputs[1];
            let inputs = [x.shallow_clone(), arange(4)];
            let y = if checkpointed { checkpoint(&inputs, segment).unwrap() } else { segment(&inputs) };
            y.square().sum(Kind::Float).backward();
            let x_grad = input_needs_grad.then(|| x.grad().copy());
            (y.detach(), weight.grad().copy(), x_grad)
        };
        for input_needs_grad in [true, false] {
            assert_eq!(run(true, input_needs_grad), run(false, input_needs_grad));
        }
    }

    #[test]
    fn a_panic_inside_a_segment_is_an_error() {
        let error = checkpoint(&[arange(2)], |_| panic!("inside")).unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
    }

    #[test]
    fn segments_are_freed() {
        let token = std::sync::Arc::new(());
        let held = token.clone();
        let y = checkpoint(&[arange(2)], move |inputs| {
            let _ = &held;
            &inputs[0] * 2.0
        })
        .unwrap();
        drop(y);
        assert_eq!(std::sync::Arc::strong_count(&token), 1);
    }

    #[test]
    fn memory_statistics_fail_by_name_without_a_gpu() {
        if !start_cuda() {
            assert_eq!(cuda_memory(0).unwrap_err().call, "cuda_memory");
        }
    }
}
