//! The encoder of [`super::packed`] in 8 bits, for processors: inputs of the linear maps as bytes of ranges that were found
//! beforehand, weights as whole numbers with a step for each output.
//!
//! What keeps the answers: SmoothQuant (Xiao and others, 2023), which scales columns that reach far down and their weights up;
//! and bias correction (Nagel and others, 2019), which takes out what rounding adds on average. Both are computed once, over
//! texts of the training set, and kept as a [`Calibration`]. Shapes: T tokens, B rows, H hidden.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use flywheel_torch_shim::InferenceGuard;
use flywheel_torch_shim::int8;
use flywheel_torch_shim::int8::{ByteLinear, Bytes, activated, add_and_norm, attended};
use tch::{Device, Kind, Tensor};

use super::packed::{FloatEncoder, Packing, USUAL_TOKENS, joined, kernel_of, parts};
use super::{Linear, Norm, SequenceClassifier};
use crate::config::EncoderConfig;
use crate::error::{Error, Result};
use crate::weights::{self, WeightFile};

/// How much of a column's reach goes into the weights, 0 to 1. With MiniLM on banking77, 0.8 to 0.9 keep most labels; at 0.6 twice
/// as many change.
const SMOOTHING: f64 = 0.8;
/// The same where columns that reach far have more than one place.
const SMOOTHING_SPLIT: f64 = 0.9;
/// A column counts as reaching at least this share of what columns reach on average: one that was zero in every text of the
/// calibration may not be so in the next.
const LEAST_REACH: f64 = 0.01;
/// One column in so many gets a further place.
const SPLIT_ONE_OF: usize = 24;
/// Highest byte.
const BYTE: f64 = 255.0;
/// Highest whole weight; -128 is left out, so that zero stays in the middle.
const WHOLE: f64 = 127.0;

/// The linear maps of a layer, by what they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Map {
    /// Query, key and value side by side, [3H, H].
    Projection,
    Out,
    Up,
    Down,
}

impl Map {
    const ALL: [Self; 4] = [Self::Projection, Self::Out, Self::Up, Self::Down];

    /// The map of a layer, whole.
    fn of(self, layer: &super::Layer) -> Result<Linear> {
        Ok(match self {
            Self::Projection => joined(&[&layer.query, &layer.key, &layer.value])?,
            Self::Out => layer.out.shallow_clone(),
            Self::Up => layer.up.shallow_clone(),
            Self::Down => layer.down.shallow_clone(),
        })
    }

    /// Numbers that it takes and makes for each token.
    fn widths(self, config: &EncoderConfig) -> (i64, i64) {
        let (hidden, inner) = (config.hidden, config.intermediate);
        match self {
            Self::Projection => (hidden, 3 * hidden),
            Self::Out => (hidden, hidden),
            Self::Up => (hidden, inner),
            Self::Down => (inner, hidden),
        }
    }

    /// How much of a column's reach goes into the weights.
    fn smoothing(self) -> f64 {
        if self == Self::Down { SMOOTHING_SPLIT } else { SMOOTHING }
    }

    /// Which columns get further places, and how many places each has then: those that reach farthest (outlier channel splitting;
    /// Zhao and others, 2019). Only where it counts: what a GELU lets through reaches ten times farther in some columns than in
    /// most, and in one place these would leave coarse steps to the weights of all others.
    fn split(self, reach: &[f32]) -> (Vec<i64>, Vec<f32>) {
        let mut counts = vec![1.0_f32; reach.len()];
        let further = if self == Self::Down {
            reach.len() / SPLIT_ONE_OF
        } else {
            0
        };
        let mut copied = Vec::with_capacity(further);
        for _ in 0..further {
            let shares = reach.iter().zip(&counts).map(|(reach, count)| reach / count);
            let farthest = shares.enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
            if let Some((column, _)) = farthest
                && let Some(count) = counts.get_mut(column)
            {
                *count += 1.0;
                copied.push(column as i64);
            }
        }
        (copied, counts)
    }

    /// Name of one of its tensors in the file of a calibration.
    fn name(self, layer: usize, part: &str) -> String {
        let map = match self {
            Self::Projection => "projection",
            Self::Out => "out",
            Self::Up => "up",
            Self::Down => "down",
        };
        format!("layers.{layer}.{map}.{part}")
    }
}

/// What is known of one linear map's inputs.
struct Calibrated {
    /// What each column of the inputs is divided by and of the weight multiplied by, [from].
    smoothing: Tensor,
    /// What a step of an input byte is worth, after that division.
    step: f64,
    /// The byte of a zero.
    zero: i64,
    /// Its bias, corrected, [to].
    bias: Tensor,
}

impl Calibrated {
    fn inputs(&self) -> Result<Bytes> {
        let multipliers = self.smoothing.f_mul_scalar(self.step)?.f_reciprocal()?;
        Ok(Bytes {
            multipliers: multipliers.f_contiguous()?,
            zero: self.zero,
        })
    }

    /// A weight in steps of each output, with the columns that are split.
    fn whole(&self, weight: &Tensor, map: Map) -> Result<Whole> {
        let weight = weight.f_mul(&self.smoothing)?;
        let reach = weight.f_abs()?.f_amax([0].as_slice(), false)?;
        let (copied, counts) = map.split(&numbers_of(&reach)?);
        let counts = Tensor::f_from_slice(&counts)?.f_to_device(weight.device())?;
        // An output of nothing but zeros has any step.
        let steps = weight
            .f_abs()?
            .f_div(&counts)?
            .f_amax([1].as_slice(), false)?
            .f_div_scalar(WHOLE)?
            .f_clamp_min(f64::from(f32::MIN_POSITIVE))?;
        let most = counts.f_mul_scalar(WHOLE)?;
        let steps_of = weight.f_div(&steps.f_unsqueeze(1)?)?.f_round()?;
        Ok(Whole {
            weight: steps_of.f_clamp_tensor(Some(&most.f_neg()?), Some(&most))?,
            steps,
            counts,
            copied,
        })
    }

    /// Outputs from `start` on of a map with this weight, and the columns of its inputs that are to come once more.
    fn linear(&self, weight: &Tensor, map: Map, start: i64) -> Result<(ByteLinear, Vec<i64>)> {
        let count = weight.size2()?.0 - start;
        let whole = self.whole(&weight.f_narrow(0, start, count)?, map)?;
        let bias = self.bias.f_narrow(0, start, count)?.f_contiguous()?;
        let steps = whole.steps.f_contiguous()?;
        let linear = ByteLinear::new(&whole.stored()?, &steps, &bias, self.step, self.zero, USUAL_TOKENS)?;
        Ok((linear, whole.copied))
    }
}

/// A weight of whole numbers.
struct Whole {
    /// [to, from], in single precision: -127 to 127, or as many times that as a column has places.
    weight: Tensor,
    /// What one is worth in each output, [to].
    steps: Tensor,
    /// Places that each column has, [from].
    counts: Tensor,
    /// Columns of the places after the first ones.
    copied: Vec<i64>,
}

impl Whole {
    /// The weight as it is multiplied with, [to, from and copied]: a number of a column with k places is the sum of k numbers.
    fn stored(&self) -> Result<Tensor> {
        // Of n: floor(n / k), floor((n + 1) / k), …, floor((n + k - 1) / k), which add up to n (Hermite).
        let mut parts = vec![self.weight.f_div(&self.counts)?.f_floor()?];
        if !self.copied.is_empty() {
            let mut seen: BTreeMap<i64, f32> = BTreeMap::new();
            let places = self.copied.iter().map(|column| {
                let place = seen.entry(*column).or_default();
                *place += 1.0;
                *place
            });
            let places: Vec<f32> = places.collect();
            let columns = Tensor::f_from_slice(&self.copied)?.f_to_device(self.weight.device())?;
            let places = Tensor::f_from_slice(&places)?.f_to_device(self.weight.device())?;
            let of = |tensor: &Tensor, dim: i64| tensor.f_index_select(dim, &columns);
            parts.push(
                of(&self.weight, 1)?
                    .f_add(&places)?
                    .f_div(&of(&self.counts, 0)?)?
                    .f_floor()?,
            );
        }
        Ok(Tensor::f_cat(&parts, 1)?.f_to_kind(Kind::Int8)?.f_contiguous()?)
    }
}

/// The numbers of a vector.
fn numbers_of(x: &Tensor) -> Result<Vec<f32>> {
    Ok(Vec::<f32>::try_from(&x.f_to_device(Device::Cpu)?.f_contiguous()?)?)
}

/// Ranges, smoothing and corrected biases of an encoder's linear maps, found over some texts.
pub struct Calibration {
    maps: BTreeMap<(usize, Map), Calibrated>,
}

/// What the inputs of one map were in all batches.
struct Seen {
    lowest: Tensor,
    highest: Tensor,
    sum: Tensor,
    count: i64,
}

impl Calibration {
    /// Looks at an encoder's inner numbers over rows of token ids, in single precision, on its device. `watch` is called after
    /// every batch and may end it.
    ///
    /// # Errors
    /// [`Error::EmptySet`] without rows, [`Error::Row`], [`Error::Interrupted`], [`Error::Torch`], [`Error::OutOfMemory`].
    pub fn of(
        network: &SequenceClassifier,
        rows: &[&[i64]],
        watch: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Self> {
        if rows.is_empty() {
            return Err(Error::EmptySet("calibration"));
        }
        let _inference = InferenceGuard::enter()?;
        let encoder = FloatEncoder::new(network, Kind::Float)?;
        let config = network.config();
        let mut seen: BTreeMap<(usize, Map), Seen> = BTreeMap::new();
        inputs_of(&encoder, config, network.device(), rows, watch, &mut |place, x| {
            let (lowest, highest) = (x.f_amin([0].as_slice(), false)?, x.f_amax([0].as_slice(), false)?);
            let (sum, count) = (sum_of(x)?, x.size2()?.0);
            let now = match seen.remove(&place) {
                None => Seen {
                    lowest,
                    highest,
                    sum,
                    count,
                },
                Some(before) => Seen {
                    lowest: before.lowest.f_minimum(&lowest)?,
                    highest: before.highest.f_maximum(&highest)?,
                    sum: before.sum.f_add(&sum)?,
                    count: before.count + count,
                },
            };
            seen.insert(place, now);
            Ok(())
        })?;
        let mut maps = BTreeMap::new();
        for (index, layer) in network.layers.iter().enumerate() {
            for map in Map::ALL {
                let seen = seen.get(&(index, map)).ok_or_else(|| lost(index, map))?;
                maps.insert((index, map), seen.calibrated(&map.of(layer)?, map)?);
            }
        }

        // What the bytes of the same texts add up to, for the biases.
        let mut stored: BTreeMap<(usize, Map), Tensor> = BTreeMap::new();
        inputs_of(&encoder, config, network.device(), rows, watch, &mut |place, x| {
            let calibrated: &Calibrated = maps.get(&place).ok_or_else(|| lost(place.0, place.1))?;
            let Bytes { multipliers, zero } = calibrated.inputs()?;
            let bytes = x
                .f_mul(&multipliers)?
                .f_add_scalar(zero)?
                .f_round()?
                .f_clamp(0.0, BYTE)?;
            let sum = sum_of(&bytes.f_sub_scalar(zero)?.f_mul_scalar(calibrated.step)?)?;
            let sum = match stored.remove(&place) {
                None => sum,
                Some(before) => before.f_add(&sum)?,
            };
            stored.insert(place, sum);
            Ok(())
        })?;
        for (index, layer) in network.layers.iter().enumerate() {
            for map in Map::ALL {
                let place = (index, map);
                let (Some(calibrated), Some(seen), Some(stored)) =
                    (maps.get_mut(&place), seen.get(&place), stored.get(&place))
                else {
                    return Err(lost(index, map));
                };
                calibrated.correct(&map.of(layer)?, map, seen, stored)?;
            }
        }
        Ok(Self { maps })
    }

    /// Writes it as a safetensors file.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Torch`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for ((layer, map), calibrated) in &self.maps {
            let Calibrated {
                smoothing,
                step,
                zero,
                bias,
            } = calibrated;
            tensors.insert(map.name(*layer, "smoothing"), smoothing.shallow_clone());
            let bytes = Tensor::f_from_slice(&[*step, *zero as f64])?;
            tensors.insert(map.name(*layer, "bytes"), bytes);
            tensors.insert(map.name(*layer, "bias"), bias.shallow_clone());
        }
        weights::write(path, &tensors)
    }

    /// Reads what [`Calibration::write`] wrote for an encoder of this configuration.
    ///
    /// # Errors
    /// [`Error::NotCalibrated`] without such a file, [`Error::WeightsInvalid`] where it is one of another encoder or no sense
    /// is in it, and what [`WeightFile::open`] refuses.
    pub fn read(path: &Path, config: &EncoderConfig) -> Result<Self> {
        if !path.is_file() {
            return Err(Error::NotCalibrated(path.into()));
        }
        let file = WeightFile::open(path)?;
        let read = |name: &str, width: i64| -> Result<Tensor> {
            match file.info(name) {
                Some(info) if info.shape == [width] => file.read(name, Device::Cpu),
                Some(info) => Err(invalid(
                    path,
                    name,
                    format!("its shape is {:?}, wanted [{width}]", info.shape),
                )),
                None => Err(invalid(path, name, "not in the file".into())),
            }
        };
        let mut maps = BTreeMap::new();
        for layer in 0..usize::try_from(config.layers).unwrap_or(0) {
            for map in Map::ALL {
                let (from, to) = map.widths(config);
                let name = map.name(layer, "bytes");
                let bytes = read(&name, 2)?;
                let (step, zero) = (bytes.f_double_value(&[0])?, bytes.f_double_value(&[1])?);
                if step <= 0.0 || !(0.0..=BYTE).contains(&zero) {
                    return Err(invalid(path, &name, format!("a step of {step} and a zero of {zero}")));
                }
                let name = map.name(layer, "smoothing");
                let smoothing = read(&name, from)?;
                if smoothing.f_gt(0.0)?.f_all()?.f_int64_value(&[])? == 0 {
                    return Err(invalid(path, &name, "a column is divided by zero or less".into()));
                }
                let calibrated = Calibrated {
                    smoothing,
                    step,
                    zero: zero as i64,
                    bias: read(&map.name(layer, "bias"), to)?,
                };
                maps.insert((layer, map), calibrated);
            }
        }
        Ok(Self { maps })
    }

    fn get(&self, layer: usize, map: Map) -> Result<&Calibrated> {
        self.maps.get(&(layer, map)).ok_or_else(|| lost(layer, map))
    }
}

impl Seen {
    /// Smoothing and range for a map that takes these inputs; its bias as it is.
    fn calibrated(&self, linear: &Linear, map: Map) -> Result<Calibrated> {
        let at_least = |reach: &Tensor| -> Result<Tensor> {
            let least = LEAST_REACH * reach.f_mean(Kind::Float)?.f_double_value(&[])?;
            Ok(reach.f_clamp_min(least.max(f64::from(f32::MIN_POSITIVE)))?)
        };
        let inputs = at_least(&self.lowest.f_abs()?.f_maximum(&self.highest.f_abs()?)?)?;
        let weights = at_least(&linear.weight.f_abs()?.f_amax([0].as_slice(), false)?)?;
        let smoothing = inputs
            .f_pow_tensor_scalar(map.smoothing())?
            .f_div(&weights.f_pow_tensor_scalar(1.0 - map.smoothing())?)?;
        // Zero is among the bytes: what is padded or cut off means nothing.
        let lowest = self.lowest.f_div(&smoothing)?.f_min()?.f_double_value(&[])?.min(0.0);
        let highest = self.highest.f_div(&smoothing)?.f_max()?.f_double_value(&[])?.max(0.0);
        let step = if highest > lowest {
            (highest - lowest) / BYTE
        } else {
            1.0
        };
        Ok(Calibrated {
            smoothing,
            step,
            zero: (-lowest / step).round() as i64,
            bias: linear.bias.shallow_clone(),
        })
    }
}

impl Calibrated {
    /// Corrects the bias, so that on average the outputs are those of single precision. `stored`: sum of what the bytes of
    /// all inputs stand for.
    fn correct(&mut self, linear: &Linear, map: Map, seen: &Seen, stored: &Tensor) -> Result<()> {
        let whole = self.whole(&linear.weight, map)?;
        let weight = whole.weight.f_mul(&whole.steps.f_unsqueeze(1)?)?;
        let mean =
            |sum: &Tensor| -> Result<Tensor> { Ok(sum.f_div_scalar(seen.count as f64)?.f_to_kind(Kind::Float)?) };
        let (exact, stored) = (linear.weight.f_mv(&mean(&seen.sum)?)?, weight.f_mv(&mean(stored)?)?);
        self.bias = linear.bias.f_add(&exact)?.f_sub(&stored)?;
        Ok(())
    }
}

/// Sum of the rows, which may be many.
fn sum_of(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_sum_dim_intlist([0].as_slice(), false, Kind::Double)?)
}

fn lost(layer: usize, map: Map) -> Error {
    Error::Torch(format!("nothing is known of {}", map.name(layer, "inputs")))
}

fn invalid(path: &Path, tensor: &str, why: String) -> Error {
    Error::WeightsInvalid {
        path: path.into(),
        tensor: tensor.into(),
        why: format!("{why}; calibrate the artifact again"),
    }
}

/// Shows the inputs of every map, without those of padding.
fn inputs_of(
    encoder: &FloatEncoder,
    config: &EncoderConfig,
    device: Device,
    rows: &[&[i64]],
    watch: &mut dyn FnMut() -> ControlFlow<()>,
    see: &mut impl FnMut((usize, Map), &Tensor) -> Result<()>,
) -> Result<()> {
    for part in parts(rows, device) {
        let rows: Vec<&[i64]> = part.iter().filter_map(|index| rows.get(*index).copied()).collect();
        let packing = Packing::new(&rows, config, device)?;
        let mut see = |layer, map, x: &Tensor, count| see((layer, map), &x.f_narrow(0, 0, count)?);
        drop(encoder.forward(&packing, config, &mut see)?);
        if watch().is_break() {
            return Err(Error::Interrupted);
        }
    }
    Ok(())
}

/// A linear map and how it takes its inputs.
struct Taking {
    linear: ByteLinear,
    inputs: Bytes,
    /// Columns of its inputs that come once more after the others.
    copied: Vec<i64>,
}

impl Taking {
    fn shallow_clone(&self) -> Self {
        Self {
            linear: self.linear.shallow_clone(),
            inputs: self.inputs.shallow_clone(),
            copied: self.copied.clone(),
        }
    }
}

struct ByteLayer {
    /// Query, key and value, [3H, H]; in the last layer key and value, [2H, H].
    projection: Taking,
    /// The last layer's alone.
    query: Option<ByteLinear>,
    out: Taking,
    attention_norm: Norm,
    up: Taking,
    down: Taking,
    output_norm: Norm,
}

/// Hidden states in single precision, and as the next map takes them.
type States = (Tensor, Option<Tensor>);

impl ByteLayer {
    fn new(layer: &super::Layer, index: usize, last: bool, calibration: &Calibration) -> Result<Self> {
        let taking = |map: Map, start: i64| -> Result<Taking> {
            let (calibrated, linear) = (calibration.get(index, map)?, map.of(layer)?);
            let (linear, copied) = calibrated.linear(&linear.weight, map, start)?;
            Ok(Taking {
                linear,
                inputs: calibrated.inputs()?,
                copied,
            })
        };
        let hidden = layer.query.bias.size1()?;
        let query = if last {
            let calibrated = calibration.get(index, Map::Projection)?;
            Some(calibrated.linear(&layer.query.weight, Map::Projection, 0)?.0)
        } else {
            None
        };
        Ok(Self {
            projection: taking(Map::Projection, if last { hidden } else { 0 })?,
            query,
            out: taking(Map::Out, 0)?,
            attention_norm: layer.attention_norm.shallow_clone(),
            up: taking(Map::Up, 0)?,
            down: taking(Map::Down, 0)?,
            output_norm: layer.output_norm.shallow_clone(),
        })
    }

    fn shallow_clone(&self) -> Self {
        Self {
            projection: self.projection.shallow_clone(),
            query: self.query.as_ref().map(ByteLinear::shallow_clone),
            out: self.out.shallow_clone(),
            attention_norm: self.attention_norm.shallow_clone(),
            up: self.up.shallow_clone(),
            down: self.down.shallow_clone(),
            output_norm: self.output_norm.shallow_clone(),
        }
    }

    /// Hidden states after this layer, of all tokens or in the last layer of the rows' first tokens; as bytes for `next`.
    fn forward(
        &self,
        x: &Tensor,
        bytes: &Tensor,
        packing: &Packing,
        config: &EncoderConfig,
        next: Option<&Bytes>,
    ) -> Result<States> {
        let projected = self.projection.linear.forward(bytes)?;
        let (asking, queries) = match &self.query {
            Some(query) => {
                let queries = query.forward(&bytes.f_index_select(0, &packing.firsts)?)?;
                (x.f_index_select(0, &packing.firsts)?, Some(queries))
            }
            None => (x.shallow_clone(), None),
        };
        let found = attended(
            &projected,
            queries.as_ref(),
            &packing.groups,
            config.heads,
            config.hidden,
            &self.out.inputs,
        )?;
        let out = self.out.linear.forward(&found)?;
        let (x, bytes) = add_and_norm(&out, &asking, &normed(&self.attention_norm), Some(&self.up.inputs))?;
        let up = self.up.linear.forward(&taken(bytes)?)?;
        let up = activated(&up, kernel_of(config.activation), &self.down.inputs, &self.down.copied)?;
        let down = self.down.linear.forward(&up)?;
        Ok(add_and_norm(&down, &x, &normed(&self.output_norm), next)?)
    }
}

fn normed(norm: &Norm) -> int8::Norm<'_> {
    int8::Norm {
        weight: &norm.weight,
        bias: &norm.bias,
        eps: norm.eps,
    }
}

fn taken(bytes: Option<Tensor>) -> Result<Tensor> {
    bytes.ok_or_else(|| Error::Torch("no bytes were made for a map that takes some".into()))
}

/// An encoder in 8 bits. `Send`, not `Sync`, as its tensors are.
pub(super) struct ByteEncoder {
    /// In half of single precision, which the sum with the position is computed in.
    words: Tensor,
    /// With the type of a single text added, [P, H].
    positions: Tensor,
    embedding_norm: Norm,
    layers: Vec<ByteLayer>,
}

impl ByteEncoder {
    pub(super) fn new(network: &SequenceClassifier, calibration: &Calibration) -> Result<Self> {
        let count = network.layers.len();
        let layers = network.layers.iter().enumerate();
        Ok(Self {
            words: network.words.f_to_kind(Kind::BFloat16)?,
            positions: network.typed_positions()?,
            embedding_norm: network.embedding_norm.shallow_clone(),
            layers: layers
                .map(|(index, layer)| ByteLayer::new(layer, index, index + 1 == count, calibration))
                .collect::<Result<_>>()?,
        })
    }

    pub(super) fn shallow_clone(&self) -> Self {
        Self {
            words: self.words.shallow_clone(),
            positions: self.positions.shallow_clone(),
            embedding_norm: self.embedding_norm.shallow_clone(),
            layers: self.layers.iter().map(ByteLayer::shallow_clone).collect(),
        }
    }

    /// Hidden states of the rows' first tokens, [B', H], in single precision.
    pub(super) fn forward(&self, packing: &Packing, config: &EncoderConfig) -> Result<Tensor> {
        let words = self.words.f_index_select(0, &packing.ids)?;
        let positions = self.positions.f_index_select(0, &packing.positions)?;
        let mut takers = self.layers.iter().map(|layer| &layer.projection.inputs);
        let (mut x, mut bytes) = add_and_norm(&words, &positions, &normed(&self.embedding_norm), takers.next())?;
        for layer in &self.layers {
            (x, bytes) = layer.forward(&x, &taken(bytes)?, packing, config, takers.next())?;
        }
        Ok(x)
    }
}
