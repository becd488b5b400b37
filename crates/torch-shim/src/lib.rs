//! What tch lacks: the only C++ and the only unsafe code of this project, so that a crashing process's last words
//! ([`crash`]) are here, too.
//!
//! Owns the calls into libtorch that tch does not bind (list kernels, inference mode, version check, loading CUDA,
//! process groups), each behind a safe function. Knows nothing of models or training. Every call that libtorch refuses is an
//! [`Error`] without a C++ stack.
#![allow(unsafe_code)]

pub mod collective;
pub mod crash;
mod ffi;
pub mod int8;
pub mod onednn;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr;

use tch::{Device, TchError, Tensor};

use ffi::Raw;

/// Why libtorch refused a call.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// libtorch's own words, without the C++ stack.
    #[error("{0}")]
    Torch(String),
    /// Lists that belong together differ in length.
    #[error("{what}: {got} tensors given for {want} parameters")]
    Length {
        /// Which list is wrong.
        what: &'static str,
        /// Tensors in that list.
        got: usize,
        /// Tensors in the list of parameters.
        want: usize,
    },
    /// A tensor without storage, for instance the gradient of a parameter that the loss does not depend on.
    #[error("{what}: tensor {index} is undefined")]
    Undefined {
        /// Which list holds it.
        what: &'static str,
        /// Its place in that list.
        index: usize,
    },
}

/// libtorch's message of an error from tch, without the C++ stack that follows it.
pub fn brief(error: &TchError) -> String {
    let text = error.to_string();
    let text = text.split("\nException raised from ").next().unwrap_or_default();
    text.trim_end().to_string()
}

fn check(code: c_int) -> Result<(), Error> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: fw_error returns a NUL-terminated string of this thread that lives until its next failing call.
    let text = unsafe { CStr::from_ptr(ffi::fw_error()) };
    Err(Error::Torch(text.to_string_lossy().into_owned()))
}

/// The tensor that a call makes, which is given a place for it.
fn made(call: impl FnOnce(*mut *mut torch_sys::C_tensor) -> c_int) -> Result<Tensor, Error> {
    let mut out = ptr::null_mut();
    check(call(&mut out))?;
    // SAFETY: on success `out` owns a new tensor, which passes to the returned value.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// Pointers for one call; the slice outlives them because every caller keeps it borrowed until the call returns.
fn raw(what: &'static str, tensors: &[Tensor], want: usize) -> Result<Vec<Raw>, Error> {
    if tensors.len() != want {
        return Err(Error::Length {
            what,
            got: tensors.len(),
            want,
        });
    }
    if let Some(index) = tensors.iter().position(|t| !t.defined()) {
        return Err(Error::Undefined { what, index });
    }
    Ok(tensors.iter().map(Tensor::as_ptr).collect())
}

/// Checks that the libtorch of this process is of the release whose headers this crate was compiled with.
///
/// Call it first in `main`: another release loads without complaint and computes garbage.
///
/// # Errors
/// [`Error::Torch`] that names both releases.
pub fn check_version() -> Result<(), Error> {
    // The check asks about CUDA. Why that cannot be loaded is for whoever needs it.
    let _ = load_cuda();
    // SAFETY: no arguments; exceptions are caught on the other side.
    check(unsafe { ffi::fw_check_version() })
}

/// Loads `libtorch_cuda.so` where it is present, so that one program serves machines with and without it (a program
/// that is linked against it would not start on the latter). Returns whether it is there. Repeating it is harmless;
/// [`check_version`] does it first.
///
/// # Errors
/// [`Error::Torch`] when the library is there but cannot be loaded, with the loader's reason, or when it comes too late.
pub fn load_cuda() -> Result<bool, Error> {
    let mut loaded = 0;
    // SAFETY: `loaded` is valid for a write during the call.
    check(unsafe { ffi::fw_load_cuda(&mut loaded) })?;
    Ok(loaded != 0)
}

/// The lists that one AdamW step reads and changes; all of one length, shapes equal place by place.
#[derive(Debug, Clone, Copy)]
pub struct AdamWLists<'a> {
    /// Weights, changed in place.
    pub params: &'a [Tensor],
    /// Their gradients, read.
    pub grads: &'a [Tensor],
    /// First moments, changed in place.
    pub exp_avg: &'a [Tensor],
    /// Second moments, changed in place.
    pub exp_avg_sq: &'a [Tensor],
    /// Scalars, f32: steps done so far; one is added to each.
    pub steps: &'a [Tensor],
}

/// The numbers of one AdamW step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWNumbers {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
    /// By which gradients are divided first, in place; 1 leaves them.
    pub grad_scale: f64,
}

/// One step of AdamW (Loshchilov and Hutter, 2019) over all tensors in one kernel.
///
/// # Errors
/// [`Error::Length`] and [`Error::Undefined`] for lists that do not belong together, [`Error::Torch`] for shapes,
/// types or devices that differ.
pub fn fused_adamw(lists: AdamWLists<'_>, numbers: AdamWNumbers) -> Result<(), Error> {
    let n = lists.params.len();
    if n == 0 {
        return Ok(());
    }
    let params = raw("parameters", lists.params, n)?;
    let grads = raw("gradients", lists.grads, n)?;
    let exp_avg = raw("first moments", lists.exp_avg, n)?;
    let exp_avg_sq = raw("second moments", lists.exp_avg_sq, n)?;
    let steps = raw("step counts", lists.steps, n)?;
    // SAFETY: five arrays of n pointers to live tensors, all borrowed until the call returns.
    check(unsafe {
        ffi::fw_fused_adamw(
            params.as_ptr(),
            grads.as_ptr(),
            exp_avg.as_ptr(),
            exp_avg_sq.as_ptr(),
            steps.as_ptr(),
            n,
            numbers.lr,
            numbers.beta1,
            numbers.beta2,
            numbers.weight_decay,
            numbers.eps,
            numbers.grad_scale,
        )
    })
}

/// Euclidean norm over all numbers of all tensors, as a scalar tensor on their device. The list must not be empty.
///
/// # Errors
/// [`Error::Torch`], for instance for an empty list.
pub fn global_norm(tensors: &[Tensor]) -> Result<Tensor, Error> {
    let pointers = raw("gradients", tensors, tensors.len())?;
    let mut out = ptr::null_mut();
    // SAFETY: n pointers to live tensors; `out` is valid for a write.
    check(unsafe { ffi::fw_global_norm(pointers.as_ptr(), pointers.len(), &mut out) })?;
    // SAFETY: on success `out` owns a new tensor, which passes to the returned value.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// Multiplies every tensor by `factor`, in place; whether a number among them is infinite or none. The list must not be
/// empty.
///
/// # Errors
/// [`Error::Torch`] when libtorch refuses a tensor, [`Error::Undefined`].
pub fn unscale_all(tensors: &[Tensor], factor: f64) -> Result<bool, Error> {
    if tensors.is_empty() {
        return Err(Error::Torch("there are no gradients".to_owned()));
    }
    let pointers = raw("gradients", tensors, tensors.len())?;
    let mut overflowed = 0;
    // SAFETY: n > 0 pointers to live tensors; `overflowed` is valid for a write during the call.
    check(unsafe { ffi::fw_unscale_all(pointers.as_ptr(), pointers.len(), factor, &mut overflowed) })?;
    Ok(overflowed != 0)
}

/// Takes every tensor's gradient away, so that the next backward makes it anew.
///
/// # Errors
/// [`Error::Undefined`], [`Error::Torch`].
pub fn drop_grads(tensors: &[Tensor]) -> Result<(), Error> {
    let pointers = raw("parameters", tensors, tensors.len())?;
    // SAFETY: n pointers to live tensors.
    check(unsafe { ffi::fw_drop_grads(pointers.as_ptr(), pointers.len()) })
}

/// From now on this process treats memory as a training needs it. What is freed is kept: a training frees and takes the same
/// large pieces in every step, and fresh pages from the kernel cost more than what is computed in them. One arena, so that no
/// thread keeps pages that others lack. And oneDNN keeps few kernels. Call it first in `main`, while there is one thread;
/// returns whether the allocator heard.
pub fn memory_for_training() -> bool {
    // SAFETY: no pointers; the caller has the only thread, so nobody else reads or changes the environment.
    unsafe { ffi::fw_memory_for_training() != 0 }
}

/// From now on this thread, and threads that it starts later, compute with zero in place of numbers too small for the
/// usual form, which processors are slow at. Returns whether the processor can.
///
/// # Errors
/// [`Error::Torch`].
pub fn flush_denormals() -> Result<bool, Error> {
    let mut flushes = 0;
    // SAFETY: `flushes` is valid for a write during the call.
    check(unsafe { ffi::fw_flush_denormals(&mut flushes) })?;
    Ok(flushes != 0)
}

/// Whether the first GPU computes in bfloat16 by itself (compute capability 8.0 and newer). Needs [`load_cuda`] and a GPU.
///
/// # Errors
/// [`Error::Torch`] without CUDA.
pub fn cuda_bfloat16() -> Result<bool, Error> {
    let mut fast = 0;
    // SAFETY: `fast` is valid for a write during the call.
    check(unsafe { ffi::fw_cuda_bfloat16(&mut fast) })?;
    Ok(fast != 0)
}

/// A format of 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// 8 bits of exponent: the range of single precision.
    BFloat16,
    /// 5 bits of exponent: small gradients vanish without a loss scale.
    Float16,
}

/// While it lives, this thread computes in a format of 16 bits what gains by it (matrix products, attention), as
/// `torch.autocast` does, on one kind of device. Weights stay as they are; what was converted is kept until the guard is
/// dropped, so it must not outlive a change of the weights. Bind it to a name.
#[must_use = "autocast ends when the guard is dropped"]
pub struct AutocastGuard {
    raw: *mut ffi::RawAutocast,
    // The setting belongs to the thread that made it.
    not_send: PhantomData<*const ()>,
}

impl AutocastGuard {
    /// Turns it on for this thread.
    ///
    /// # Errors
    /// [`Error::Torch`] for a format that the device does not have.
    pub fn enter(device: Device, half: Half) -> Result<Self, Error> {
        let mut raw = ptr::null_mut();
        let cuda = c_int::from(matches!(device, Device::Cuda(_)));
        // SAFETY: `raw` is valid for a write.
        check(unsafe { ffi::fw_autocast_enter(cuda, c_int::from(half == Half::BFloat16), &mut raw) })?;
        Ok(Self {
            raw,
            not_send: PhantomData,
        })
    }
}

impl Drop for AutocastGuard {
    fn drop(&mut self) {
        // SAFETY: made by fw_autocast_enter on this thread (the guard is not Send) and freed once.
        unsafe { ffi::fw_autocast_exit(self.raw) }
    }
}

/// A part of a forward pass, and why it last failed.
struct Segment {
    compute: Box<Compute>,
    why: CString,
}

type Compute = dyn Fn(&Tensor) -> Result<Tensor, String> + Send;

/// What `compute` makes of `input`, without what backward needs of it but the input: backward computes it again, with the same
/// random numbers and in the same format (activation checkpointing; Chen and others, 2016). The input must ask for a gradient.
/// `compute` may be called on another thread.
///
/// # Errors
/// [`Error::Torch`] with what `compute` says, and when libtorch refuses. Where it fails in backward, that fails with its text.
pub fn recomputed(
    input: &Tensor,
    compute: impl Fn(&Tensor) -> Result<Tensor, String> + Send + 'static,
) -> Result<Tensor, Error> {
    unsafe extern "C" fn call(
        context: *mut c_void,
        input: Raw,
        output: *mut *mut torch_sys::C_tensor,
    ) -> *const c_char {
        // SAFETY: the context is the box made below, and libtorch calls this from one thread at a time.
        let segment = unsafe { &mut *context.cast::<Segment>() };
        // SAFETY: the caller's tensor lives as long as this call and stays the caller's: it is not dropped here.
        let input = std::mem::ManuallyDrop::new(unsafe { Tensor::from_ptr(input.cast_mut()) });
        match (segment.compute)(&input) {
            Ok(made) => {
                // SAFETY: `output` is valid for a write; the caller takes over what it points to.
                unsafe { *output = std::mem::ManuallyDrop::new(made).as_mut_ptr() };
                ptr::null()
            }
            Err(why) => {
                segment.why = CString::new(why.replace('\0', " ")).unwrap_or_default();
                segment.why.as_ptr()
            }
        }
    }
    unsafe extern "C" fn release(context: *mut c_void) {
        // SAFETY: the box made below, freed once.
        drop(unsafe { Box::from_raw(context.cast::<Segment>()) });
    }
    if !input.defined() {
        return Err(Error::Undefined {
            what: "input",
            index: 0,
        });
    }
    let segment = Box::new(Segment {
        compute: Box::new(compute),
        why: CString::default(),
    });
    let mut out = ptr::null_mut();
    // SAFETY: a live tensor; the context passes to the callee, which releases it in any case; `out` is valid for a write.
    check(unsafe { ffi::fw_recomputed(input.as_ptr(), Box::into_raw(segment).cast(), call, release, &mut out) })?;
    // SAFETY: on success `out` owns a new tensor, which passes to the returned value.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// While it lives, this thread records nothing for backward and tensors made in it can never be trained. Cheaper
/// than [`tch::no_grad_guard`]. Bind it to a name: `let _ = …` would drop it at once.
#[must_use = "inference mode ends when the guard is dropped"]
pub struct InferenceGuard {
    raw: *mut ffi::RawInference,
    // The mode belongs to the thread that entered it.
    not_send: PhantomData<*const ()>,
}

impl InferenceGuard {
    /// Enters inference mode on this thread.
    ///
    /// # Errors
    /// [`Error::Torch`] when libtorch refuses.
    pub fn enter() -> Result<Self, Error> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is valid for a write.
        check(unsafe { ffi::fw_inference_enter(&mut raw) })?;
        Ok(Self {
            raw,
            not_send: PhantomData,
        })
    }
}

impl Drop for InferenceGuard {
    fn drop(&mut self) {
        // SAFETY: made by fw_inference_enter on this thread (the guard is not Send) and freed once.
        unsafe { ffi::fw_inference_exit(self.raw) }
    }
}

/// Ends the process at once: no destructor of a static object runs. libtorch's may wait for threads that never end, such
/// as one that waits for a process that is gone.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: no arguments but a number; the call does not return.
    unsafe { ffi::fw_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    #[test]
    fn library_is_of_the_release_of_the_headers() {
        check_version().unwrap();
    }

    #[test]
    fn errors_carry_no_cpp_stack() {
        let bad = Tensor::ones([2, 3], CPU)
            .f_matmul(&Tensor::ones([2, 3], CPU))
            .unwrap_err();
        let text = brief(&bad);
        assert!(
            text.contains("cannot be multiplied") && !text.contains("frame #"),
            "{text}"
        );
        let ours = global_norm(&[]).unwrap_err().to_string();
        assert!(!ours.is_empty() && !ours.contains("frame #"), "{ours}");
    }

    #[test]
    fn one_adamw_step_is_the_formula() {
        let w = Tensor::from_slice(&[1.0f32, -2.0]);
        let (m, v, step) = (w.zeros_like(), w.zeros_like(), Tensor::zeros([], CPU));
        let numbers = AdamWNumbers {
            lr: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.5,
            grad_scale: 4.0,
        };
        let grads = [Tensor::from_slice(&[0.5f32, -3.0])];
        let (w, m, v, step) = ([w], [m], [v], [step]);
        let lists = AdamWLists {
            params: &w,
            grads: &grads,
            exp_avg: &m,
            exp_avg_sq: &v,
            steps: &step,
        };
        fused_adamw(lists, numbers).unwrap();
        // First step: both bias corrections cancel, so the update is lr * sign(g); before it w *= 1 - lr * wd.
        let got = Vec::<f32>::try_from(&w[0]).unwrap();
        for (got, want) in got.iter().zip([1.0 * 0.95 - 0.1, -2.0 * 0.95 + 0.1]) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        assert_eq!(step[0].double_value(&[]), 1.0);
        // The moments are of gradients that were divided.
        let first = Vec::<f32>::try_from(&m[0]).unwrap();
        for (got, want) in first.iter().zip([0.1 * 0.125, 0.1 * -0.75]) {
            assert!((got - want).abs() < 1e-7, "{got} {want}");
        }
    }

    #[test]
    fn lists_that_do_not_belong_together_are_refused() {
        let w = [Tensor::ones([2], CPU)];
        let lists = AdamWLists {
            params: &w,
            grads: &[],
            exp_avg: &w,
            exp_avg_sq: &w,
            steps: &w,
        };
        let numbers = AdamWNumbers {
            lr: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            grad_scale: 1.0,
        };
        assert_eq!(
            fused_adamw(lists, numbers),
            Err(Error::Length {
                what: "gradients",
                got: 0,
                want: 1
            })
        );
        let none = [Tensor::new()];
        let lists = AdamWLists { grads: &none, ..lists };
        assert_eq!(
            fused_adamw(lists, numbers),
            Err(Error::Undefined {
                what: "gradients",
                index: 0
            })
        );
    }

    #[test]
    fn the_norm_goes_over_all_tensors() {
        let list = [Tensor::from_slice(&[3.0f32]), Tensor::from_slice(&[0.0f32, 4.0])];
        assert_eq!(global_norm(&list).unwrap().double_value(&[]), 5.0);
    }

    /// Segments set the process's random numbers back: their tests take turns.
    static RANDOM: std::sync::Mutex<()> = std::sync::Mutex::new(());

    /// Two layers with dropout over a fixed input: its gradient, those of the weights, and the next random number.
    fn through(again: bool, half: Option<Half>) -> (Vec<Vec<f32>>, f64) {
        tch::manual_seed(7);
        let x = Tensor::arange(12, CPU).view([3, 4]).set_requires_grad(true);
        let weights = [0.7, 0.6].map(|by| (Tensor::arange(16, CPU).view([4, 4]) * 0.1 - by).set_requires_grad(true));
        let layer = |x: &Tensor, w: &Tensor| x.matmul(w).tanh().dropout(0.5, true);
        let guard = half.map(|half| AutocastGuard::enter(Device::Cpu, half).unwrap());
        let y = weights.iter().fold(x.shallow_clone(), |y, w| {
            if again {
                let w = w.shallow_clone();
                recomputed(&y, move |y| Ok(layer(y, &w))).unwrap()
            } else {
                layer(&y, w)
            }
        });
        let loss = y.sum(Kind::Float);
        drop(guard);
        loss.backward();
        let numbers = |t: &Tensor| Vec::<f32>::try_from(&t.grad().flatten(0, -1)).unwrap();
        (
            std::iter::once(&x).chain(&weights).map(numbers).collect(),
            Tensor::rand([1], CPU).double_value(&[0]),
        )
    }

    #[test]
    fn what_is_computed_again_gives_the_same_gradients() {
        let _turn = RANDOM.lock().unwrap();
        for half in [None, Some(Half::BFloat16)] {
            let kept = through(false, half);
            assert_eq!(through(true, half), kept);
            assert!(kept.0.iter().all(|grads| grads.iter().any(|g| *g != 0.0)));
        }
        assert_ne!(through(true, None), through(true, Some(Half::BFloat16)));
    }

    #[test]
    fn what_cannot_be_computed_says_so_in_both_passes() {
        let _turn = RANDOM.lock().unwrap();
        let x = Tensor::ones([1], CPU).set_requires_grad(true);
        assert_eq!(
            recomputed(&x, |_| Err("no such layer".into())).unwrap_err(),
            Error::Torch("no such layer".into())
        );
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let y = recomputed(&x, move |x| {
            match calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
                0 => Ok(x * 2.0),
                _ => Err("out of memory, say".into()),
            }
        });
        let error = brief(&y.unwrap().f_backward().unwrap_err());
        assert!(
            error.contains("out of memory, say") && !error.contains("frame #"),
            "{error}"
        );
        drop(x);
    }

    /// What a segment holds goes with the graph.
    #[test]
    fn a_segment_is_released_once_with_its_graph() {
        let _turn = RANDOM.lock().unwrap();
        let held = std::sync::Arc::new(());
        let x = Tensor::ones([1], CPU).set_requires_grad(true);
        let mine = std::sync::Arc::clone(&held);
        let y = recomputed(&x, move |x| {
            let _ = &mine;
            Ok(x * 2.0)
        })
        .unwrap();
        assert_eq!(std::sync::Arc::strong_count(&held), 2);
        y.backward();
        drop(y);
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }

    #[test]
    fn a_gradient_that_was_dropped_is_made_anew() {
        let w = [Tensor::ones([2], CPU).set_requires_grad(true)];
        for _ in 0..2 {
            (&w[0] * 3.0).sum(Kind::Float).backward();
            assert_eq!(Vec::<f32>::try_from(&w[0].grad()).unwrap(), [3.0, 3.0], "not added to");
            drop_grads(&w).unwrap();
            assert!(!w[0].grad().defined());
        }
    }

    #[test]
    fn tiny_numbers_become_zero_on_this_thread_and_on_those_it_starts() {
        let tiny = || {
            let half = Tensor::from_slice(&[f32::MIN_POSITIVE; 1024]) * 0.5;
            half.sum(Kind::Double).double_value(&[])
        };
        let flushed = std::thread::spawn(move || {
            let before = tiny();
            let can = flush_denormals().unwrap();
            (before, can, tiny(), std::thread::spawn(tiny).join().unwrap())
        });
        let (before, can, after, child) = flushed.join().unwrap();
        assert!(before > 0.0);
        assert_eq!((after, child), if can { (0.0, 0.0) } else { (before, before) });
    }

    #[test]
    fn autocast_computes_in_its_format_and_ends_with_its_guard() {
        let (a, w) = (Tensor::ones([2, 3], CPU), Tensor::ones([3, 4], CPU));
        let kind = || a.matmul(&w).kind();
        for (half, want) in [(Half::BFloat16, Kind::BFloat16), (Half::Float16, Kind::Half)] {
            let guard = AutocastGuard::enter(Device::Cpu, half).unwrap();
            assert_eq!(kind(), want);
            assert_eq!(
                std::thread::spawn({
                    let (a, w) = (a.shallow_clone(), w.shallow_clone());
                    move || a.matmul(&w).kind()
                })
                .join()
                .unwrap(),
                Kind::Float,
                "of this thread only"
            );
            drop(guard);
            assert_eq!(kind(), Kind::Float);
        }
    }

    #[test]
    fn gradients_are_scaled_back_and_an_overflow_is_seen() {
        let list = [Tensor::from_slice(&[4.0f32]), Tensor::from_slice(&[0.0f32, -8.0])];
        assert!(!unscale_all(&list, 0.25).unwrap());
        assert_eq!(Vec::<f32>::try_from(&list[1]).unwrap(), [0.0, -2.0]);
        for bad in [f32::INFINITY, f32::NAN] {
            assert!(unscale_all(&[Tensor::from_slice(&[1.0f32]), Tensor::from_slice(&[bad])], 0.5).unwrap());
        }
        assert!(unscale_all(&[], 1.0).is_err());
    }

    #[test]
    fn inference_mode_records_nothing_and_ends_with_its_guard() {
        let w = Tensor::ones([1], CPU).set_requires_grad(true);
        let guard = InferenceGuard::enter().unwrap();
        assert!(!(&w * 2.0).requires_grad());
        drop(guard);
        assert!((&w * 2.0).requires_grad());
    }

    #[test]
    #[ignore = "a process of the next test"]
    fn cuda_is_known_after_the_check() {
        check_version().unwrap();
        assert!(
            load_cuda().unwrap(),
            "no libtorch_cuda.so in {:?}",
            std::env::var_os("LD_LIBRARY_PATH")
        );
    }

    /// With the libtorch of the tests' Python environment, which has CUDA.
    #[test]
    fn the_check_does_not_hide_cuda() {
        let python = std::env::var_os("FLYWHEEL_PYTHON").expect("FLYWHEEL_PYTHON is not set; run it through make");
        let script = "import glob, sysconfig; p = sysconfig.get_path('purelib'); \
                      print(':'.join([p + '/torch/lib', *glob.glob(p + '/nvidia/*/lib')]), end='')";
        let run = |command: &mut std::process::Command| {
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                output.status.success(),
                "{said}{}",
                String::from_utf8_lossy(&output.stderr)
            );
            said
        };
        let libraries = run(std::process::Command::new(python)
            .args(["-c", script])
            .env_remove("LD_LIBRARY_PATH"));
        let said = run(std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::cuda_is_known_after_the_check", "--ignored"])
            .env("LD_LIBRARY_PATH", libraries));
        assert!(said.contains("1 passed"), "{said}");
    }

    #[test]
    fn cuda_is_loaded_only_where_it_is() {
        // Whatever the machine: absent is `false`, present is `true`, and a second call says the same.
        assert_eq!(load_cuda().unwrap(), load_cuda().unwrap());
    }
}
