//! Linear maps on oneDNN's own layout of their weights: on processors faster than libtorch's default by a sixth to a
//! factor of more than two, the more the newer the processor. For inference only.

use std::ffi::c_int;

use tch::Tensor;

use crate::{Error, ffi, made};

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

impl Activation {
    /// Its number on the other side.
    pub(crate) fn number(self) -> c_int {
        match self {
            Self::None => 0,
            Self::Gelu => 1,
            Self::GeluTanh => 2,
            Self::Relu => 3,
        }
    }
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
        Ok(Self {
            // SAFETY: a live tensor.
            weight: made(|out| unsafe { ffi::fw_onednn_pack(weight.as_ptr(), rows, out) })?,
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
        // SAFETY: three live tensors, a number in range.
        made(|out| unsafe {
            ffi::fw_onednn_linear(
                x.as_ptr(),
                self.weight.as_ptr(),
                self.bias.as_ptr(),
                activation.number(),
                out,
            )
        })
    }

    /// Outputs [rows, to] of inputs [rows, from] plus `addend` [rows, to], all of the weight's type.
    ///
    /// # Errors
    /// [`Error::Torch`] for another shape or type.
    pub fn forward_and_add(&self, x: &Tensor, addend: &Tensor) -> Result<Tensor, Error> {
        // SAFETY: four live tensors.
        made(|out| unsafe {
            ffi::fw_onednn_linear_add(
                x.as_ptr(),
                addend.as_ptr(),
                self.weight.as_ptr(),
                self.bias.as_ptr(),
                out,
            )
        })
    }
}
