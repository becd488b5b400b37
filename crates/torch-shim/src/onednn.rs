//! Linear maps on oneDNN's own layout of their weights: on processors faster than libtorch's default by a sixth to a
//! factor of more than two, the more the newer the processor. For inference only.

use std::ffi::c_int;
use std::ptr;

use tch::Tensor;

use crate::{Error, check, ffi};

/// What a linear map's outputs go through, in the same kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// x times the normal distribution of x.
    Gelu,
    /// The same, approximated by tanh.
    GeluTanh,
    /// What is above zero.
    Relu,
}

/// A linear map whose weight oneDNN has reordered. In single precision or bfloat16, whichever the weight has.
pub struct PackedLinear {
    /// Opaque: only oneDNN knows its layout.
    weight: Tensor,
    bias: Tensor,
}

impl PackedLinear {
    /// From a weight [to, from] and a bias [to] of one type, on the CPU; `rows`: a usual number of rows of the inputs.
    ///
    /// # Errors
    /// [`Error::Torch`] where this processor lacks what the type needs.
    pub fn new(weight: &Tensor, bias: &Tensor, rows: i64) -> Result<Self, Error> {
        let mut out = ptr::null_mut();
        // SAFETY: a live tensor; `out` is valid for a write.
        check(unsafe { ffi::fw_onednn_pack(weight.as_ptr(), rows, &mut out) })?;
        Ok(Self {
            // SAFETY: on success `out` owns a new tensor, which passes to the returned value.
            weight: unsafe { Tensor::from_ptr(out) },
            bias: bias.shallow_clone(),
        })
    }

    /// The same map over the same weight, for another thread.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self {
            weight: self.weight.shallow_clone(),
            bias: self.bias.shallow_clone(),
        }
    }

    /// Outputs [rows, to] of inputs [rows, from] of the weight's type.
    ///
    /// # Errors
    /// [`Error::Torch`] for another shape or type.
    pub fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor, Error> {
        let number: c_int = match activation {
            Activation::None => 0,
            Activation::Gelu => 1,
            Activation::GeluTanh => 2,
            Activation::Relu => 3,
        };
        let mut out = ptr::null_mut();
        // SAFETY: three live tensors, a number in range; `out` is valid for a write.
        check(unsafe {
            ffi::fw_onednn_linear(x.as_ptr(), self.weight.as_ptr(), self.bias.as_ptr(), number, &mut out)
        })?;
        // SAFETY: on success `out` owns a new tensor, which passes to the returned value.
        Ok(unsafe { Tensor::from_ptr(out) })
    }

    /// Outputs [rows, to] of inputs [rows, from] plus `addend` [rows, to], all of the weight's type.
    ///
    /// # Errors
    /// [`Error::Torch`] for another shape or type.
    pub fn forward_and_add(&self, x: &Tensor, addend: &Tensor) -> Result<Tensor, Error> {
        let mut out = ptr::null_mut();
        // SAFETY: four live tensors; `out` is valid for a write.
        check(unsafe {
            ffi::fw_onednn_linear_add(
                x.as_ptr(),
                addend.as_ptr(),
                self.weight.as_ptr(),
                self.bias.as_ptr(),
                &mut out,
            )
        })?;
        // SAFETY: on success `out` owns a new tensor, which passes to the returned value.
        Ok(unsafe { Tensor::from_ptr(out) })
    }
}
