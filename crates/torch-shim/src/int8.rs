//! An encoder's layer in 8 bits, on processors: linear maps of bytes by oneDNN, and what stands between them in a few loops of
//! our own, each of which leaves the bytes that the next map takes. For inference only.
//!
//! A number v of column c is stored as the byte `multipliers[c] · v + zero`, rounded and kept within 0 to 255. Every row is
//! computed by itself, so its bytes are the same whatever rows are beside it.

use std::ptr;

use tch::{Kind, Tensor};

use crate::onednn::Activation;
use crate::{Error, brief, ffi, made};

/// How the inputs of a linear map are stored.
pub struct Bytes {
    /// [columns], single precision: what a column is multiplied by.
    pub multipliers: Tensor,
    /// The byte of a zero, 0 to 255.
    pub zero: i64,
}

impl Bytes {
    /// The same over the same numbers, for another thread.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self {
            multipliers: self.multipliers.shallow_clone(),
            zero: self.zero,
        }
    }
}

/// A linear map of bytes.
pub struct ByteLinear {
    /// Opaque: only oneDNN knows its layout.
    weight: Tensor,
    /// Step of each output's weights, [to].
    steps: Tensor,
    /// All zero, [to].
    zeros: Tensor,
    bias: Tensor,
    /// What one step of an input byte is worth, and the byte of a zero.
    step: f64,
    zero: i64,
}

impl ByteLinear {
    /// From whole weights [to, from] of -127 to 127 (`Int8`), the step of each output's weights [to] and its bias [to] in
    /// single precision; `step`: what one step of an input byte is worth; `zero`: the byte of a zero; `rows`: a usual number
    /// of rows of the inputs.
    ///
    /// # Errors
    /// [`Error::Torch`] for another shape or type.
    pub fn new(weight: &Tensor, steps: &Tensor, bias: &Tensor, step: f64, zero: i64, rows: i64) -> Result<Self, Error> {
        let zeros = Tensor::f_zeros(steps.size(), (Kind::Int, steps.device()));
        Ok(Self {
            // SAFETY: a live tensor.
            weight: made(|out| unsafe { ffi::fw_onednn_pack_int8(weight.as_ptr(), rows, out) })?,
            steps: steps.shallow_clone(),
            zeros: zeros.map_err(|e| Error::Torch(brief(&e)))?,
            bias: bias.shallow_clone(),
            step,
            zero,
        })
    }

    /// The same map over the same weight, for another thread.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self {
            weight: self.weight.shallow_clone(),
            steps: self.steps.shallow_clone(),
            zeros: self.zeros.shallow_clone(),
            bias: self.bias.shallow_clone(),
            step: self.step,
            zero: self.zero,
        }
    }

    /// Outputs [rows, to] of inputs [rows, from] of bytes; in bfloat16 where the processor has 512-bit vectors, else in single
    /// precision.
    ///
    /// # Errors
    /// [`Error::Torch`] for another shape or type.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        // SAFETY: five live tensors.
        made(|out| unsafe {
            ffi::fw_onednn_linear_int8(
                x.as_ptr(),
                self.step,
                self.zero,
                self.weight.as_ptr(),
                self.steps.as_ptr(),
                self.zeros.as_ptr(),
                self.bias.as_ptr(),
                out,
            )
        })
    }
}

/// Bytes of activation(x), x [rows, columns] in single precision or bfloat16, and after each row its columns `copied` once more.
///
/// # Errors
/// [`Error::Torch`] for another shape or type, or a column that is not there.
pub fn activated(x: &Tensor, activation: Activation, to: &Bytes, copied: &[i64]) -> Result<Tensor, Error> {
    // SAFETY: two live tensors, a number in range; `copied` is not kept.
    made(|out| unsafe {
        ffi::fw_activate_quantise(
            x.as_ptr(),
            activation.number(),
            to.multipliers.as_ptr(),
            to.zero,
            copied.as_ptr(),
            copied.len(),
            out,
        )
    })
}

/// Weight and bias of a layer norm, both [columns] in single precision, and what is added to its variance.
pub struct Norm<'a> {
    /// Factors.
    pub weight: &'a Tensor,
    /// Addends.
    pub bias: &'a Tensor,
    /// Keeps the root from zero.
    pub eps: f64,
}

/// Layer norm of x + `addend`, x [rows, columns] in single precision or bfloat16, `addend` in single precision: in single
/// precision and, where it is asked for, as bytes.
///
/// # Errors
/// [`Error::Torch`] for another shape or type.
pub fn add_and_norm(
    x: &Tensor,
    addend: &Tensor,
    norm: &Norm<'_>,
    to: Option<&Bytes>,
) -> Result<(Tensor, Option<Tensor>), Error> {
    let mut bytes = ptr::null_mut();
    // SAFETY: live tensors, or null where no bytes are asked for; `bytes` is valid for a write.
    let out = made(|out| unsafe {
        ffi::fw_add_norm_quantise(
            x.as_ptr(),
            addend.as_ptr(),
            norm.weight.as_ptr(),
            norm.bias.as_ptr(),
            norm.eps,
            to.map_or(ptr::null(), |to| to.multipliers.as_ptr()),
            to.map_or(0, |to| to.zero),
            out,
            &mut bytes,
        )
    })?;
    // SAFETY: on success `bytes` owns a new tensor where it was asked for, which passes to the returned value.
    Ok((out, to.map(|_| unsafe { Tensor::from_ptr(bytes) })))
}

/// Rows of one length that stand one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Group {
    /// Place of its first token.
    pub start: i64,
    /// Place of its first row.
    pub first_row: i64,
    /// How many rows.
    pub rows: i64,
    /// Tokens of each.
    pub length: i64,
}

/// What every token that asks finds in its own row, as bytes: [tokens, `hidden`], or with `queries` [rows, `hidden`] of the
/// rows' first tokens [rows, `hidden`]. `projected`: query, key and value of all tokens side by side; without the query where
/// `queries` are given. Both in single precision or both in bfloat16. What no group covers becomes what a zero does.
///
/// # Errors
/// [`Error::Torch`] for another shape or type, or groups that leave gaps.
pub fn attended(
    projected: &Tensor,
    queries: Option<&Tensor>,
    groups: &[Group],
    heads: i64,
    hidden: i64,
    to: &Bytes,
) -> Result<Tensor, Error> {
    // SAFETY: live tensors, or null without queries; a group is four numbers.
    made(|out| unsafe {
        ffi::fw_attend_quantise(
            projected.as_ptr(),
            queries.map_or(ptr::null(), |queries| queries.as_ptr()),
            groups.as_ptr().cast(),
            groups.len(),
            heads,
            hidden,
            to.multipliers.as_ptr(),
            to.zero,
            out,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows and columns that no vector divides, and some that it does.
    const SHAPES: [(i64, i64); 4] = [(1, 1), (3, 17), (5, 64), (8, 100)];

    fn bytes(columns: i64) -> Bytes {
        Bytes {
            multipliers: Tensor::rand([columns], (Kind::Float, tch::Device::Cpu)) * 20.0 + 5.0,
            zero: 100,
        }
    }

    fn normal(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, tch::Device::Cpu))
    }

    /// At most one byte beside what the numbers `want` become.
    fn assert_bytes(got: &Tensor, want: &Tensor, to: &Bytes) {
        let want = (want * &to.multipliers + to.zero as f64).round().clamp(0.0, 255.0);
        let off = (got.to_kind(Kind::Float) - &want).abs();
        assert!(off.max().double_value(&[]) <= 1.0, "{off:?}");
        // Nearly all are the same: a half is rounded one way or the other.
        assert!(off.mean(Kind::Float).double_value(&[]) < 0.03, "{off:?}");
        let spread = want.max() - want.min();
        assert!(
            want.numel() == 1 || spread.double_value(&[]) > 10.0,
            "all the same byte tells nothing"
        );
    }

    #[test]
    fn activations_become_bytes() {
        for (rows, columns) in SHAPES {
            let (x, to) = (normal(&[rows, columns]) * 2.0, bytes(columns));
            for kind in [Kind::Float, Kind::BFloat16] {
                let x = x.to_kind(kind);
                let exact = x.to_kind(Kind::Float);
                let cases = [
                    (Activation::None, exact.shallow_clone()),
                    (Activation::Gelu, exact.gelu("none")),
                    (Activation::GeluTanh, exact.gelu("tanh")),
                    (Activation::Relu, exact.relu()),
                ];
                for (activation, want) in cases {
                    let copied = [columns - 1, 0];
                    let got = activated(&x, activation, &to, &copied).unwrap();
                    assert_eq!(got.size(), [rows, columns + 2]);
                    assert_bytes(&got.narrow(1, 0, columns), &want, &to);
                    assert_eq!(got.narrow(1, columns, 1), got.narrow(1, columns - 1, 1));
                    assert_eq!(got.narrow(1, columns + 1, 1), got.narrow(1, 0, 1));
                }
            }
        }
        // Far outside all that is usual, on both sides.
        let far = Tensor::from_slice(&[-60.0_f32, 9.0, 60.0, -4.0]).view([1, 4]);
        let to = Bytes {
            multipliers: Tensor::from_slice(&[4.0_f32; 4]),
            zero: 10,
        };
        let got = activated(&far, Activation::Gelu, &to, &[]).unwrap();
        assert_eq!(Vec::<i64>::try_from(got.view(-1)).unwrap(), [10, 46, 250, 10]);
    }

    #[test]
    fn layer_norms_are_those_of_libtorch() {
        for (rows, columns) in SHAPES {
            let (x, addend) = (normal(&[rows, columns]), normal(&[rows, columns]));
            let (weight, bias, to) = (normal(&[columns]), normal(&[columns]), bytes(columns));
            let norm = Norm {
                weight: &weight,
                bias: &bias,
                eps: 1e-5,
            };
            for kind in [Kind::Float, Kind::BFloat16] {
                let x = x.to_kind(kind);
                let sum = x.to_kind(Kind::Float) + &addend;
                let want = sum.layer_norm([columns], Some(&weight), Some(&bias), 1e-5, true);
                let (got, made) = add_and_norm(&x, &addend, &norm, Some(&to)).unwrap();
                assert!((&got - &want).abs().max().double_value(&[]) < 1e-4);
                assert_bytes(&made.unwrap(), &got, &to);
                assert!(add_and_norm(&x, &addend, &norm, None).unwrap().1.is_none());
            }
        }
    }

    #[test]
    fn attention_is_that_of_libtorch() {
        for (heads, size) in [(3, 8), (2, 32), (1, 33), (2, 64)] {
            let hidden = heads * size;
            let to = bytes(hidden);
            let group = |start, first_row, rows, length| Group {
                start,
                first_row,
                rows,
                length,
            };
            // Three tokens at the end belong to no row.
            let groups = [
                group(0, 0, 2, 1),
                group(2, 2, 1, 5),
                group(7, 3, 3, 17),
                group(58, 6, 1, 40),
            ];
            let (tokens, rows) = (101, 8);
            for kind in [Kind::Float, Kind::BFloat16] {
                let projected = (normal(&[tokens, 3 * hidden]) * 2.0).to_kind(kind);
                let queries = normal(&[rows, hidden]).to_kind(kind);
                let pairs = projected.narrow(1, hidden, 2 * hidden).contiguous();
                let all = attended(&projected, None, &groups, heads, hidden, &to).unwrap();
                let first = attended(&pairs, Some(&queries), &groups, heads, hidden, &to).unwrap();
                assert_eq!((all.size(), first.size()), (vec![tokens, hidden], vec![rows, hidden]));
                for Group {
                    start,
                    first_row,
                    rows,
                    length,
                } in groups
                {
                    let split = |x: Tensor, length: i64| {
                        x.to_kind(Kind::Float).view([rows, length, heads, size]).transpose(1, 2)
                    };
                    let part = |at: i64| {
                        split(
                            projected
                                .narrow(0, start, rows * length)
                                .narrow(1, at * hidden, hidden)
                                .contiguous(),
                            length,
                        )
                    };
                    let find = |query: &Tensor| {
                        Tensor::scaled_dot_product_attention(
                            query,
                            &part(1),
                            &part(2),
                            None::<Tensor>,
                            0.0,
                            false,
                            None,
                            false,
                        )
                        .transpose(1, 2)
                        .reshape([-1, hidden])
                    };
                    assert_bytes(&all.narrow(0, start, rows * length), &find(&part(0)), &to);
                    let asked = split(queries.narrow(0, first_row, rows).contiguous(), 1);
                    assert_bytes(&first.narrow(0, first_row, rows), &find(&asked), &to);
                }
                for rest in [all.narrow(0, 98, 3), first.narrow(0, 7, 1)] {
                    assert_eq!(rest.to_kind(Kind::Int).eq(to.zero).all().int64_value(&[]), 1);
                }
            }
            let gap = [groups[0], groups[2]];
            let projected = normal(&[tokens, 3 * hidden]);
            assert!(attended(&projected, None, &gap, heads, hidden, &to).is_err());
            let beyond = [group(0, 0, 6, 17)];
            assert!(attended(&projected, None, &beyond, heads, hidden, &to).is_err());
        }
    }

    #[test]
    fn products_of_bytes_are_exact_and_the_same_in_any_company() {
        for (from, to) in [(16, 8), (33, 20), (384, 96)] {
            let weight = Tensor::randint_low(-127, 128, [to, from], (Kind::Int8, tch::Device::Cpu));
            let steps = Tensor::rand([to], (Kind::Float, tch::Device::Cpu)) * 0.01 + 0.001;
            let bias = normal(&[to]);
            let x = Tensor::randint(256, [37, from], (Kind::Uint8, tch::Device::Cpu));
            let linear = ByteLinear::new(&weight, &steps, &bias, 0.02, 130, 256).unwrap();
            let got = linear.forward(&x).unwrap();
            let exact = (x.to_kind(Kind::Double) - 130.0) * 0.02;
            let exact = exact.matmul(&(weight.to_kind(Kind::Double) * steps.unsqueeze(1)).tr()) + &bias;
            let off = ((got.to_kind(Kind::Double) - &exact).abs() / (exact.abs() + 0.1)).max();
            // Half a unit of bfloat16's last place.
            assert!(off.double_value(&[]) < 0.005, "{off:?}");
            for row in [0, 36] {
                let alone = linear.forward(&x.narrow(0, row, 1)).unwrap();
                assert_eq!(alone, got.narrow(0, row, 1), "{from}, {to}");
            }
        }
    }
}
