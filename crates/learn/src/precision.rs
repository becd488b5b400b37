//! Number formats of the forward and backward pass, and the loss scale of half precision.

use flywheel_contract::scalar::Precision;
use flywheel_torch_shim::{AutocastGuard, Half};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::error::{Error, Result};
use crate::task::Task;

/// The format in which this device computes; never [`Precision::Auto`], which takes no 8 bits.
///
/// # Errors
/// [`Error::PrecisionUnfit`] for 8 bits on a GPU; [`Error::Torch`] where the GPU cannot be asked.
pub fn choose(wanted: Precision, device: Device) -> Result<Precision> {
    Ok(match (wanted, device) {
        (Precision::Auto, Device::Cuda(_)) => {
            if flywheel_torch_shim::cuda_bfloat16()? {
                Precision::BFloat16
            } else {
                Precision::Float16
            }
        }
        (Precision::Auto, _) => {
            if cpu_has_bfloat16() {
                Precision::BFloat16
            } else {
                Precision::Float32
            }
        }
        (Precision::Int8, Device::Cuda(_)) => {
            return Err(Error::PrecisionUnfit(
                "Int8 is for processors, and this pod computes on a GPU; set spec.server.precision to Auto, BFloat16 or Float16",
            ));
        }
        (asked, _) => asked,
    })
}

/// Whether this processor multiplies bfloat16 by itself; without that it is slower than single precision.
fn cpu_has_bfloat16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("bf16");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// The forward pass of a training: its number format, on its device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forward {
    format: Precision,
    device: Device,
}

impl Forward {
    /// In a format that was chosen.
    pub(crate) fn new(format: Precision, device: Device) -> Self {
        Self { format, device }
    }

    /// Its format.
    pub(crate) fn format(self) -> Precision {
        self.format
    }

    /// Whether gradients could vanish, so that the loss is scaled up.
    pub(crate) fn is_scaled(self) -> bool {
        self.format == Precision::Float16
    }

    /// Mean loss of a batch in training, a scalar.
    pub(crate) fn loss<T: Task>(self, task: &T, batch: &T::Batch) -> Result<Tensor> {
        let half = match self.format {
            // Settings take no 8 bits: they are for answers.
            Precision::Auto | Precision::Float32 | Precision::Int8 => None,
            Precision::BFloat16 => Some(Half::BFloat16),
            Precision::Float16 => Some(Half::Float16),
        };
        let autocast = half.map(|half| AutocastGuard::enter(self.device, half)).transpose()?;
        let loss = task.loss(&task.outputs(batch, true)?, batch)?;
        drop(autocast);
        Ok(loss)
    }
}

/// The loss times a factor.
pub(crate) fn scaled(loss: &Tensor, factor: f64) -> Result<Tensor> {
    Ok(if factor == 1.0 {
        loss.shallow_clone()
    } else {
        loss.f_mul_scalar(factor)?
    })
}

/// First scale; this and the next three are the values of PyTorch's `GradScaler`.
const SCALE_START: f64 = 65_536.0;
/// Factor after an overflow.
const BACKOFF: f64 = 0.5;
/// Factor after [`GROWTH_STEPS`] steps without one.
const GROWTH: f64 = 2.0;
/// Steps without overflow after which a larger scale is tried.
const GROWTH_STEPS: u32 = 2000;
/// Largest scale: a sum of gradients of this times the largest half is still far from infinite in single precision.
const SCALE_MAX: f64 = 16_777_216.0;

/// What the loss is multiplied by before backward, so that small gradients do not vanish in half precision: it is halved
/// when a gradient overflows, which leaves the step out, and doubled after a long time without (Micikevicius and others,
/// 2018).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LossScale {
    /// The factor.
    pub scale: f64,
    /// Steps since it last changed.
    pub steps: u32,
    /// Steps that an overflow left out.
    pub skipped: u64,
}

impl LossScale {
    /// Before the first step.
    #[must_use]
    pub fn start() -> Self {
        Self {
            scale: SCALE_START,
            steps: 0,
            skipped: 0,
        }
    }

    /// After a step; `false` where there was an overflow although nothing is scaled up any more, so that it is no matter of
    /// the scale.
    #[must_use]
    pub(crate) fn after(&mut self, overflowed: bool) -> bool {
        if overflowed {
            self.skipped += 1;
            let of_the_scale = self.scale > 1.0;
            (self.scale, self.steps) = (self.scale * BACKOFF, 0);
            return of_the_scale;
        }
        self.steps += 1;
        if self.steps >= GROWTH_STEPS {
            (self.scale, self.steps) = ((self.scale * GROWTH).min(SCALE_MAX), 0);
        }
        true
    }

    /// Whether it is one that some training of so many steps can have.
    pub(crate) fn is_sensible(&self, steps: u64) -> bool {
        (0.5..=SCALE_MAX).contains(&self.scale) && self.steps < GROWTH_STEPS && self.skipped <= steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_taken_and_auto_is_what_the_processor_has() {
        for asked in [
            Precision::Float32,
            Precision::BFloat16,
            Precision::Float16,
            Precision::Int8,
        ] {
            assert_eq!(choose(asked, Device::Cpu).unwrap(), asked);
        }
        let refused = choose(Precision::Int8, Device::Cuda(0)).unwrap_err();
        assert!(refused.to_string().contains("Int8 is for processors"), "{refused}");
        let auto = choose(Precision::Auto, Device::Cpu).unwrap();
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let has = flags.contains("avx512_bf16") || flags.contains(" bf16");
        assert_eq!(auto, if has { Precision::BFloat16 } else { Precision::Float32 });
    }

    #[test]
    fn the_scale_follows_the_gradients() {
        let mut scale = LossScale::start();
        assert!(scale.after(true));
        assert_eq!((scale.scale, scale.skipped), (32_768.0, 1));
        for _ in 0..GROWTH_STEPS {
            assert!(scale.after(false));
        }
        assert_eq!((scale.scale, scale.steps), (65_536.0, 0));
        for _ in 0..16 {
            assert!(scale.after(true));
        }
        assert_eq!(scale.scale, 1.0);
        assert!(!scale.after(true), "it is not the scale that is too large");
        let mut scale = LossScale {
            scale: SCALE_MAX,
            ..LossScale::start()
        };
        for _ in 0..GROWTH_STEPS {
            assert!(scale.after(false));
        }
        assert_eq!(scale.scale, SCALE_MAX);
    }
}
