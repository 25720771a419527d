//! The C face of `cpp/shim.cpp` and `cpp/meter.cpp`: same order, same names.

use std::ffi::{c_char, c_int, c_void};

use torch_sys::C_tensor;

pub(crate) type Call = unsafe extern "C" fn(*mut c_void, *const *mut C_tensor, usize) -> *mut C_tensor;
pub(crate) type Drop = unsafe extern "C" fn(*mut c_void);

unsafe extern "C" {
    pub(crate) fn sd_last_error() -> *const c_char;
    pub(crate) fn sd_load_cuda() -> c_int;
    pub(crate) fn sd_keep_freed_memory();
    pub(crate) fn sd_fused_adam(
        params: *const *const C_tensor,
        grads: *const *const C_tensor,
        first_moments: *const *const C_tensor,
        second_moments: *const *const C_tensor,
        steps: *const *const C_tensor,
        count: usize,
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        epsilon: f64,
        decoupled_decay: c_int,
    ) -> c_int;
    pub(crate) fn sd_global_norm(tensors: *const *const C_tensor, count: usize) -> *mut C_tensor;
    pub(crate) fn sd_backward(
        roots: *const *const C_tensor,
        grads: *const *const C_tensor,
        count: usize,
        keep_graph: c_int,
    ) -> c_int;
    pub(crate) fn sd_set_grad(tensor: *const C_tensor, grad: *const C_tensor) -> c_int;
    pub(crate) fn sd_checkpoint(
        inputs: *const *const C_tensor,
        count: usize,
        call: Call,
        drop: Drop,
        data: *mut c_void,
    ) -> *mut C_tensor;
    pub(crate) fn sd_set_numerics(allow_tf32: c_int, deterministic: c_int, cudnn_benchmark: c_int) -> c_int;
    pub(crate) fn sd_set_attention(flash: c_int, memory_efficient: c_int, cudnn: c_int, math: c_int) -> c_int;
    pub(crate) fn sd_cuda_memory(device: c_int, out: *mut i64) -> c_int;
    pub(crate) fn sd_cuda_reset_peak(device: c_int) -> c_int;
    pub(crate) fn sd_cuda_empty_cache() -> c_int;
    pub(crate) fn sd_meter_start() -> *mut c_void;
    pub(crate) fn sd_meter_read(meter: *mut c_void, bytes: *mut i64, operations: *mut f64);
    pub(crate) fn sd_meter_restart(meter: *mut c_void);
    pub(crate) fn sd_meter_stop(meter: *mut c_void);
}
