//! Where tensors live and how many threads compute on them.

use flywheel_contract::scalar::Device;

use crate::error::{Error, Result};

pub use flywheel_torch_shim::crash::tell_crashes;
pub use tch::Device as TensorDevice;

/// Checks that the libtorch of this process is the one this program was built for. First thing in `main`.
///
/// # Errors
/// [`Error::LibraryMismatch`] with both releases.
pub fn check_library() -> Result<()> {
    flywheel_torch_shim::check_version().map_err(|e| Error::LibraryMismatch(e.to_string()))
}

/// The device that the accelerator class asks for. `Cuda` is the GPU of this number, from 0, among those that the container
/// sees, and it is tried with a real tensor: libraries without a driver, or a GPU without a fitting kernel, are found here
/// and not in the first step.
///
/// # Errors
/// [`Error::GpuUnavailable`]; there is no silent fallback to the CPU.
pub fn resolve(device: Device, number: u32) -> Result<tch::Device> {
    match device {
        Device::Cpu => Ok(tch::Device::Cpu),
        Device::Cuda => {
            let unavailable = |reason: String| Error::GpuUnavailable { reason };
            if !flywheel_torch_shim::load_cuda().map_err(|e| unavailable(e.to_string()))? {
                return Err(unavailable("this image has no libtorch_cuda.so".into()));
            }
            let seen = tch::Cuda::device_count();
            if seen < 1 {
                return Err(unavailable("the container sees no GPU or no driver".into()));
            }
            let number = usize::try_from(number).unwrap_or(usize::MAX);
            if i64::try_from(number).unwrap_or(i64::MAX) >= seen {
                return Err(unavailable(format!(
                    "the container sees {seen} GPUs and needs {}",
                    number.saturating_add(1)
                )));
            }
            let gpu = tch::Device::Cuda(number);
            tch::Tensor::f_ones([1], (tch::Kind::Float, gpu))
                .and_then(|one| one.f_double_value(&[0]))
                .map_err(|e| unavailable(flywheel_torch_shim::brief(&e)))?;
            Ok(gpu)
        }
    }
}

/// From now on this thread, and those that libtorch starts for it, take numbers too small for the usual form for zero.
/// AdamW's means of gradients decay into such numbers (the embedding of a rare word), and processors are slow at them.
/// Call it before the thread's first operation.
///
/// # Errors
/// [`Error::Torch`].
pub fn flush_denormals() -> Result<()> {
    if !flywheel_torch_shim::flush_denormals()? {
        tracing::info!("this processor cannot flush denormal numbers; long trainings may be slower");
    }
    Ok(())
}

/// Keeps freed memory for the next step, since fresh pages from the kernel are dear, and few of oneDNN's kernels. First thing
/// in `main` of a program that trains, while it has one thread.
pub fn memory_for_training() {
    if !flywheel_torch_shim::memory_for_training() {
        tracing::info!("this allocator has no settings; trainings may be slower");
    }
}

/// Threads that one operation may use, for the calling thread (each worker calls it for itself). At least 1.
pub fn set_threads(threads: usize) {
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
}

/// Ends the process at once, whatever its threads wait for: one that computes with others may wait for a process that is
/// gone, and an orderly end would wait for it.
pub fn exit_now(code: i32) -> ! {
    flywheel_torch_shim::exit_now(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_fits() {
        check_library().unwrap();
    }

    #[test]
    fn cuda_is_a_gpu_or_an_error_but_never_the_cpu() {
        assert_eq!(resolve(Device::Cpu, 0).unwrap(), tch::Device::Cpu);
        match resolve(Device::Cuda, 0) {
            Ok(device) => assert_eq!(device, tch::Device::Cuda(0)),
            Err(error) => {
                let text = error.to_string();
                assert!(matches!(error, Error::GpuUnavailable { .. }), "{text}");
                assert!(text.contains("set device Cpu") && !text.contains("frame #"), "{text}");
            }
        }
    }
}
