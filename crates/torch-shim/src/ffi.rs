//! The C interface of `cpp/`, word for word. Everything unsafe in this project is here and in [`crate`].

use std::ffi::{c_char, c_int, c_void};

use torch_sys::C_tensor;

/// `c10::InferenceMode`, opaque here.
#[repr(C)]
pub(crate) struct RawInference([u8; 0]);

/// What autocast was set to before, opaque here.
#[repr(C)]
pub(crate) struct RawAutocast([u8; 0]);

/// c10d's store of names and addresses, opaque here.
#[repr(C)]
pub(crate) struct RawStore([u8; 0]);

/// c10d's process group, opaque here.
#[repr(C)]
pub(crate) struct RawGroup([u8; 0]);

/// An operation of a group that is under way, opaque here.
#[repr(C)]
pub(crate) struct RawWork([u8; 0]);

/// The sum of gradients, opaque here.
#[repr(C)]
pub(crate) struct RawReducer([u8; 0]);

/// Computes a part of the forward pass: null and `*output`, which passes to the caller, or why there is none.
pub(crate) type Compute =
    unsafe extern "C" fn(context: *mut c_void, input: Raw, output: *mut *mut C_tensor) -> *const c_char;

/// An `at::Tensor*` that the callee only reads through (it may change the numbers behind it).
pub(crate) type Raw = *const C_tensor;

unsafe extern "C" {
    pub(crate) fn fw_error() -> *const c_char;
    pub(crate) fn fw_check_version() -> c_int;
    pub(crate) fn fw_load_cuda(loaded: *mut c_int) -> c_int;
    pub(crate) fn fw_fused_adamw(
        params: *const Raw,
        grads: *const Raw,
        exp_avg: *const Raw,
        exp_avg_sq: *const Raw,
        steps: *const Raw,
        n: usize,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        grad_scale: f64,
    ) -> c_int;
    pub(crate) fn fw_global_norm(tensors: *const Raw, n: usize, out: *mut *mut C_tensor) -> c_int;
    pub(crate) fn fw_unscale_all(tensors: *const Raw, n: usize, factor: f64, overflowed: *mut c_int) -> c_int;
    pub(crate) fn fw_drop_grads(tensors: *const Raw, n: usize) -> c_int;
    pub(crate) fn fw_memory_for_training() -> c_int;
    pub(crate) fn fw_flush_denormals(flushes: *mut c_int) -> c_int;
    pub(crate) fn fw_cuda_bfloat16(fast: *mut c_int) -> c_int;
    pub(crate) fn fw_autocast_enter(cuda: c_int, bfloat16: c_int, out: *mut *mut RawAutocast) -> c_int;
    pub(crate) fn fw_autocast_exit(before: *mut RawAutocast);
    pub(crate) fn fw_recomputed(
        input: Raw,
        context: *mut c_void,
        compute: Compute,
        release: unsafe extern "C" fn(context: *mut c_void),
        out: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn fw_onednn_pack(weight: Raw, rows: i64, out: *mut *mut C_tensor) -> c_int;
    pub(crate) fn fw_onednn_linear(x: Raw, packed: Raw, bias: Raw, activation: c_int, out: *mut *mut C_tensor)
    -> c_int;
    pub(crate) fn fw_onednn_linear_add(x: Raw, addend: Raw, packed: Raw, bias: Raw, out: *mut *mut C_tensor) -> c_int;
    pub(crate) fn fw_onednn_pack_int8(weight: Raw, rows: i64, out: *mut *mut C_tensor) -> c_int;
    pub(crate) fn fw_onednn_linear_int8(
        x: Raw,
        step: f64,
        zero: i64,
        packed: Raw,
        steps: Raw,
        zeros: Raw,
        bias: Raw,
        out: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn fw_activate_quantise(
        x: Raw,
        activation: c_int,
        multipliers: Raw,
        zero: i64,
        copied: *const i64,
        copies: usize,
        out: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn fw_add_norm_quantise(
        x: Raw,
        addend: Raw,
        weight: Raw,
        bias: Raw,
        eps: f64,
        multipliers: Raw,
        zero: i64,
        out: *mut *mut C_tensor,
        quantised: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn fw_attend_quantise(
        projected: Raw,
        queries: Raw,
        groups: *const i64,
        count: usize,
        heads: i64,
        hidden: i64,
        multipliers: Raw,
        zero: i64,
        out: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn fw_inference_enter(out: *mut *mut RawInference) -> c_int;
    pub(crate) fn fw_inference_exit(guard: *mut RawInference);
    pub(crate) fn fw_exit(code: c_int) -> !;
    pub(crate) fn fw_store_open(
        host: *const c_char,
        port: *mut u16,
        listen: c_int,
        timeout_ms: i64,
        out: *mut *mut RawStore,
    ) -> c_int;
    pub(crate) fn fw_store_free(store: *mut RawStore);
    pub(crate) fn fw_group_gloo(
        store: *mut RawStore,
        address: *const c_char,
        rank: c_int,
        size: c_int,
        join_ms: i64,
        timeout_ms: i64,
        out: *mut *mut RawGroup,
    ) -> c_int;
    pub(crate) fn fw_group_nccl(
        store: *mut RawStore,
        rank: c_int,
        size: c_int,
        timeout_ms: i64,
        out: *mut *mut RawGroup,
    ) -> c_int;
    pub(crate) fn fw_group_free(group: *mut RawGroup);
    pub(crate) fn fw_all_reduce(group: *mut RawGroup, tensor: Raw, out: *mut *mut RawWork) -> c_int;
    pub(crate) fn fw_work_wait(work: *mut RawWork) -> c_int;
    pub(crate) fn fw_work_free(work: *mut RawWork);
    pub(crate) fn fw_broadcast(group: *mut RawGroup, tensor: Raw) -> c_int;
    pub(crate) fn fw_barrier(group: *mut RawGroup) -> c_int;
    pub(crate) fn fw_reducer_make(
        group: *mut RawGroup,
        params: *const Raw,
        n: usize,
        bucket_bytes: usize,
        out: *mut *mut RawReducer,
    ) -> c_int;
    pub(crate) fn fw_reducer_begin(reducer: *mut RawReducer) -> c_int;
    pub(crate) fn fw_reducer_finish(reducer: *mut RawReducer) -> c_int;
    pub(crate) fn fw_reducer_free(reducer: *mut RawReducer);
}
