//! The networks of [`super`] to answer with: rows of any lengths in one batch, and nothing computed for padding.
//!
//! The tokens of all rows stand one after another. Everything but attention looks at one token at a time, so it runs over
//! them as one matrix; attention runs over rows of one length together. (What NVIDIA's Effective Transformer does with
//! padded batches, without the padding.) Shapes: T tokens, B rows, H hidden, C classes.

use flywheel_contract::scalar::Precision;
use flywheel_torch_shim::InferenceGuard;
use flywheel_torch_shim::int8::Group;
use flywheel_torch_shim::onednn::{self, PackedLinear};
use tch::{Device, Kind, Tensor};

use super::int8::{ByteEncoder, Calibration, Map};
use super::{Linear, Norm, SequenceClassifier, check_row, rows_of};
use crate::config::{Activation, Architecture, EncoderConfig};
use crate::error::{Error, Result};

/// Rows of the matrices for which oneDNN lays weights out.
pub(super) const USUAL_TOKENS: i64 = 256;

/// A linear map in the form that its device is fastest with.
enum Dense {
    /// On processors, in single precision and bfloat16.
    OneDnn(PackedLinear),
    Plain(Linear),
}

impl Dense {
    fn new(linear: &Linear, kind: Kind, device: Device) -> Result<Self> {
        let weight = linear.weight.f_to_kind(kind)?;
        let bias = linear.bias.f_to_kind(kind)?;
        Ok(if device == Device::Cpu && kind != Kind::Half {
            Self::OneDnn(PackedLinear::new(&weight, &bias, USUAL_TOKENS)?)
        } else {
            Self::Plain(Linear { weight, bias })
        })
    }

    fn shallow_clone(&self) -> Self {
        match self {
            Self::OneDnn(linear) => Self::OneDnn(linear.shallow_clone()),
            Self::Plain(linear) => Self::Plain(linear.shallow_clone()),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::OneDnn(linear) => Ok(linear.forward(x, onednn::Activation::None)?),
            Self::Plain(linear) => linear.forward(x),
        }
    }

    fn activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        match self {
            Self::OneDnn(linear) => Ok(linear.forward(x, kernel_of(activation))?),
            Self::Plain(linear) => activation.apply(&linear.forward(x)?),
        }
    }

    fn plus(&self, x: &Tensor, addend: &Tensor) -> Result<Tensor> {
        match self {
            Self::OneDnn(linear) => Ok(linear.forward_and_add(x, addend)?),
            Self::Plain(linear) => Ok(linear.forward(x)?.f_add(addend)?),
        }
    }
}

/// The same in the words of the kernels.
pub(super) fn kernel_of(activation: Activation) -> onednn::Activation {
    match activation {
        Activation::Gelu => onednn::Activation::Gelu,
        Activation::GeluTanh => onednn::Activation::GeluTanh,
        Activation::Relu => onednn::Activation::Relu,
    }
}

/// Linear maps of the same inputs as one, their outputs side by side.
pub(super) fn joined(linears: &[&Linear]) -> Result<Linear> {
    let weights: Vec<&Tensor> = linears.iter().map(|l| &l.weight).collect();
    let biases: Vec<&Tensor> = linears.iter().map(|l| &l.bias).collect();
    Ok(Linear {
        weight: Tensor::f_cat(&weights, 0)?,
        bias: Tensor::f_cat(&biases, 0)?,
    })
}

struct Layer {
    /// Query, key and value in one map, [3H, H]; in the last layer key and value, [2H, H].
    projection: Dense,
    /// The last layer's alone: only the first tokens ask there.
    query: Option<Dense>,
    out: Dense,
    attention_norm: Norm,
    up: Dense,
    down: Dense,
    output_norm: Norm,
}

impl Layer {
    fn new(layer: &super::Layer, last: bool, kind: Kind, device: Device) -> Result<Self> {
        let dense = |linear: &Linear| Dense::new(linear, kind, device);
        let (query, projection) = if last {
            (Some(dense(&layer.query)?), joined(&[&layer.key, &layer.value])?)
        } else {
            (None, joined(&[&layer.query, &layer.key, &layer.value])?)
        };
        let projection = dense(&projection)?;
        Ok(Self {
            projection,
            query,
            out: dense(&layer.out)?,
            attention_norm: layer.attention_norm.in_kind(kind)?,
            up: dense(&layer.up)?,
            down: dense(&layer.down)?,
            output_norm: layer.output_norm.in_kind(kind)?,
        })
    }

    fn shallow_clone(&self) -> Self {
        Self {
            projection: self.projection.shallow_clone(),
            query: self.query.as_ref().map(Dense::shallow_clone),
            out: self.out.shallow_clone(),
            attention_norm: self.attention_norm.shallow_clone(),
            up: self.up.shallow_clone(),
            down: self.down.shallow_clone(),
            output_norm: self.output_norm.shallow_clone(),
        }
    }

    /// Hidden states after this layer of `x` [T, H]: of all tokens, or in the last layer of the rows' first tokens, in the
    /// packed order of the rows. `see` is shown the inputs of each map and how many of them are not padding.
    fn forward(
        &self,
        x: &Tensor,
        packing: &Packing,
        config: &EncoderConfig,
        see: &mut dyn FnMut(Map, &Tensor, i64) -> Result<()>,
    ) -> Result<Tensor> {
        see(Map::Projection, x, packing.tokens)?;
        let projected = self.projection.forward(x)?;
        let (asking, queries) = match &self.query {
            Some(query) => {
                let firsts = x.f_index_select(0, &packing.firsts)?;
                let queries = query.forward(&firsts)?;
                (firsts, Some(queries))
            }
            None => (x.shallow_clone(), None),
        };
        let asked = match queries {
            Some(_) => packing.order.len() as i64,
            None => packing.tokens,
        };
        let attended = attend(&projected, queries.as_ref(), packing, config)?;
        see(Map::Out, &attended, asked)?;
        let x = self.attention_norm.forward(&self.out.plus(&attended, &asking)?)?;
        see(Map::Up, &x, asked)?;
        let up = self.up.activated(&x, config.activation)?;
        see(Map::Down, &up, asked)?;
        self.output_norm.forward(&self.down.plus(&up, &x)?)
    }
}

/// What every token that asks finds in its own row: [T, H], or with `queries` [B, H] of the first tokens alone [B, H].
/// `projected`: query, key and value of all tokens side by side; without the query where `queries` are given.
fn attend(projected: &Tensor, queries: Option<&Tensor>, packing: &Packing, config: &EncoderConfig) -> Result<Tensor> {
    let hidden = config.hidden;
    let (heads, size) = (config.heads, hidden / config.heads);
    let mut parts = Vec::with_capacity(packing.groups.len() + 1);
    for group in &packing.groups {
        let tokens = projected.f_narrow(0, group.start, group.rows * group.length)?;
        // One of the maps side by side, as [rows, heads, length, H / heads].
        let split = |tokens: &Tensor, at: i64, length: i64| -> Result<Tensor> {
            Ok(tokens
                .f_narrow(1, at * hidden, hidden)?
                .f_view([group.rows, length, heads, size])?
                .f_transpose(1, 2)?)
        };
        let (query, key, value, asking) = match queries {
            Some(queries) => {
                let firsts = queries.f_narrow(0, group.first_row, group.rows)?;
                (
                    split(&firsts, 0, 1)?,
                    split(&tokens, 0, group.length)?,
                    split(&tokens, 1, group.length)?,
                    1,
                )
            }
            None => {
                let [query, key, value] = [0, 1, 2].map(|at| split(&tokens, at, group.length));
                (query?, key?, value?, group.length)
            }
        };
        let found =
            Tensor::f_scaled_dot_product_attention(&query, &key, &value, None::<Tensor>, 0.0, false, None, false)?;
        parts.push(found.f_transpose(1, 2)?.f_reshape([group.rows * asking, hidden])?);
    }
    let (asked, wanted) = match queries {
        Some(queries) => (packing.order.len() as i64, queries.size2()?.0),
        None => (packing.tokens, projected.size2()?.0),
    };
    if wanted > asked {
        parts.push(Tensor::f_zeros(
            [wanted - asked, hidden],
            (projected.kind(), projected.device()),
        )?);
    }
    match parts.as_slice() {
        [one] => Ok(one.shallow_clone()),
        _ => Ok(Tensor::f_cat(&parts, 0)?),
    }
}

/// Rows, packed.
pub(super) struct Packing {
    /// Token ids, [T'], T rounded up.
    pub(super) ids: Tensor,
    /// Position of each token in its row, counted as the architecture does, [T'].
    pub(super) positions: Tensor,
    /// Where each row's first token stands, [B'], B rounded up.
    pub(super) firsts: Tensor,
    /// Index of each packed row in the rows that were given.
    order: Vec<usize>,
    pub(super) groups: Vec<Group>,
    /// T.
    tokens: i64,
}

impl Packing {
    pub(super) fn new(rows: &[&[i64]], config: &EncoderConfig, device: Device) -> Result<Self> {
        for (index, row) in rows.iter().enumerate() {
            check_row(index, row, config)?;
        }
        let length_of = |index: &usize| rows.get(*index).map_or(0, |row| row.len());
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(length_of);
        let tokens: usize = rows.iter().map(|row| row.len()).sum();
        let (rounded_tokens, rounded_rows) = (round_tokens(tokens), round_rows(rows.len()));
        let mut ids = Vec::with_capacity(rounded_tokens);
        let mut positions = Vec::with_capacity(rounded_tokens);
        let mut firsts = Vec::with_capacity(rounded_rows);
        let mut groups: Vec<Group> = Vec::new();
        for (place, index) in order.iter().enumerate() {
            let Some(row) = rows.get(*index) else { continue };
            let (start, length) = (ids.len() as i64, row.len() as i64);
            match groups.last_mut() {
                Some(group) if group.length == length => group.rows += 1,
                _ => groups.push(Group {
                    start,
                    first_row: place as i64,
                    rows: 1,
                    length,
                }),
            }
            firsts.push(start);
            ids.extend_from_slice(row);
            extend_positions(&mut positions, row, config);
        }
        ids.resize(rounded_tokens, config.pad_token_id);
        positions.resize(rounded_tokens, 0);
        firsts.resize(rounded_rows, 0);
        let tensor = |numbers: &[i64]| -> Result<Tensor> { Ok(Tensor::f_from_slice(numbers)?.f_to_device(device)?) };
        Ok(Self {
            ids: tensor(&ids)?,
            positions: tensor(&positions)?,
            firsts: tensor(&firsts)?,
            order,
            groups,
            tokens: tokens as i64,
        })
    }
}

/// Positions of a row's tokens: from 0, or as RoBERTa counts, after the padding id and only tokens that are not it.
fn extend_positions(positions: &mut Vec<i64>, row: &[i64], config: &EncoderConfig) {
    match config.architecture {
        Architecture::Bert | Architecture::DistilBert => positions.extend(0..row.len() as i64),
        Architecture::Roberta | Architecture::XlmRoberta => {
            let pad = config.pad_token_id;
            let mut last = pad;
            positions.extend(row.iter().map(|id| {
                if *id == pad {
                    pad
                } else {
                    last += 1;
                    last
                }
            }));
        }
    }
}

/// Most tokens of several rows that a processor computes at once: what lies between two maps stays in its cache and in memory
/// that is had already, and more at once is no faster.
const MOST_TOKENS: usize = 384;

/// Rows, by index, that are computed together: on a GPU all, on a processor parts of about as many tokens each, of like lengths.
pub(super) fn parts(rows: &[&[i64]], device: Device) -> Vec<Vec<usize>> {
    let length_of = |index: &usize| rows.get(*index).map_or(0, |row| row.len());
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(length_of);
    let total: usize = rows.iter().map(|row| row.len()).sum();
    let most = match device {
        Device::Cpu => MOST_TOKENS,
        _ => total.max(1),
    };
    let each = total.div_ceil(total.div_ceil(most).max(1)).max(1);
    let mut parts: Vec<Vec<usize>> = Vec::new();
    let (mut before, mut tokens, mut number) = (0, 0, 0);
    for index in order {
        let length = length_of(&index);
        // A row belongs where its middle lies.
        let its = (before + length / 2) / each;
        before += length;
        match parts.last_mut() {
            Some(part) if its == number && tokens + length <= most => part.push(index),
            _ => {
                parts.push(vec![index]);
                (tokens, number) = (0, its);
            }
        }
        tokens += length;
    }
    parts
}

/// Tokens that are computed for so many. oneDNN makes and keeps a kernel for every number that it meets, so few may occur.
fn round_tokens(tokens: usize) -> usize {
    tokens.next_multiple_of(match tokens {
        0..=64 => 8,
        65..=256 => 16,
        257..=MOST_TOKENS => 32,
        _ => 64,
    })
}

/// The same for rows.
fn round_rows(rows: usize) -> usize {
    if rows <= 4 { rows } else { rows.next_multiple_of(8) }
}

/// An encoder in a floating-point format.
pub(super) struct FloatEncoder {
    kind: Kind,
    words: Tensor,
    /// With the type of a single text added, [P, H].
    positions: Tensor,
    embedding_norm: Norm,
    layers: Vec<Layer>,
}

impl FloatEncoder {
    pub(super) fn new(network: &SequenceClassifier, kind: Kind) -> Result<Self> {
        let count = network.layers.len();
        let layers = network.layers.iter().enumerate();
        Ok(Self {
            kind,
            words: network.words.f_to_kind(kind)?,
            positions: network.typed_positions()?,
            embedding_norm: network.embedding_norm.shallow_clone(),
            layers: layers
                .map(|(index, layer)| Layer::new(layer, index + 1 == count, kind, network.device))
                .collect::<Result<_>>()?,
        })
    }

    fn shallow_clone(&self) -> Self {
        Self {
            kind: self.kind,
            words: self.words.shallow_clone(),
            positions: self.positions.shallow_clone(),
            embedding_norm: self.embedding_norm.shallow_clone(),
            layers: self.layers.iter().map(Layer::shallow_clone).collect(),
        }
    }

    /// Hidden states of the rows' first tokens, [B', H]. `see` is shown the inputs of each layer's maps and how many of them
    /// are not padding.
    pub(super) fn forward(
        &self,
        packing: &Packing,
        config: &EncoderConfig,
        see: &mut dyn FnMut(usize, Map, &Tensor, i64) -> Result<()>,
    ) -> Result<Tensor> {
        // The sum is computed in single precision; tables of half its size are enough for the words.
        let words = self.words.f_index_select(0, &packing.ids)?.f_to_kind(Kind::Float)?;
        let x = words.f_add(&self.positions.f_index_select(0, &packing.positions)?)?;
        let mut x = self.embedding_norm.forward(&x)?.f_to_kind(self.kind)?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, packing, config, &mut |map, x, count| see(index, map, x, count))?;
        }
        Ok(x)
    }
}

enum Encoder {
    Float(FloatEncoder),
    Int8(ByteEncoder),
}

/// An encoder with its head, to answer with. `Send`, not `Sync`: each thread takes its own
/// [`PackedClassifier::shallow_clone`], which shares the weights.
pub struct PackedClassifier {
    config: EncoderConfig,
    device: Device,
    encoder: Encoder,
    head_dense: Dense,
    head_logits: Dense,
}

impl PackedClassifier {
    /// From a network, whose own weights are not needed any more afterwards, in a precision that was chosen
    /// ([`crate::precision::choose`]); for [`Precision::Int8`] there is [`PackedClassifier::int8`].
    ///
    /// # Errors
    /// [`crate::Error::Torch`] where the device lacks the precision, [`crate::Error::OutOfMemory`].
    pub fn new(network: &SequenceClassifier, precision: Precision) -> Result<Self> {
        let _inference = InferenceGuard::enter()?;
        let kind = match precision {
            Precision::Auto | Precision::Float32 => Kind::Float,
            Precision::BFloat16 => Kind::BFloat16,
            Precision::Float16 => Kind::Half,
            Precision::Int8 => return Err(Error::Setting("numbers of 8 bits need a calibration".into())),
        };
        Self::over(network, Encoder::Float(FloatEncoder::new(network, kind)?), kind)
    }

    /// From a network on a processor and what is known of its inner numbers: its encoder in 8 bits, its head in single
    /// precision.
    ///
    /// # Errors
    /// [`crate::Error::Torch`], also for a calibration of another network.
    pub fn int8(network: &SequenceClassifier, calibration: &Calibration) -> Result<Self> {
        let _inference = InferenceGuard::enter()?;
        Self::over(
            network,
            Encoder::Int8(ByteEncoder::new(network, calibration)?),
            Kind::Float,
        )
    }

    fn over(network: &SequenceClassifier, encoder: Encoder, head: Kind) -> Result<Self> {
        Ok(Self {
            config: network.config.clone(),
            device: network.device,
            encoder,
            head_dense: Dense::new(&network.head_dense, head, network.device)?,
            head_logits: Dense::new(&network.head_logits, head, network.device)?,
        })
    }

    /// The same network over the same weights, for another thread.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self {
            config: self.config.clone(),
            device: self.device,
            encoder: match &self.encoder {
                Encoder::Float(encoder) => Encoder::Float(encoder.shallow_clone()),
                Encoder::Int8(encoder) => Encoder::Int8(encoder.shallow_clone()),
            },
            head_dense: self.head_dense.shallow_clone(),
            head_logits: self.head_logits.shallow_clone(),
        }
    }

    /// The encoder's numbers.
    #[must_use]
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Probabilities of each row's classes, in the order of the rows; softmax of the logits, computed in f32.
    ///
    /// # Errors
    /// [`crate::Error::Row`], [`crate::Error::Torch`], [`crate::Error::OutOfMemory`].
    pub fn predict(&self, rows: &[&[i64]]) -> Result<Vec<Vec<f32>>> {
        self.answers(rows, |packing| {
            Ok(self.logits_of(packing)?.f_softmax(-1, Kind::Float)?)
        })
    }

    /// The same, and of each row its features, H of them: what the map takes that makes the logits.
    ///
    /// # Errors
    /// Those of [`PackedClassifier::predict`].
    pub fn predict_with_features(&self, rows: &[&[i64]]) -> Result<Vec<(Vec<f32>, Vec<f32>)>> {
        let width = usize::try_from(self.config.hidden).unwrap_or(0);
        // Side by side, so that a device hands them over at once.
        let both = self.answers(rows, |packing| {
            let features = self.features_of(packing)?;
            let logits = self.head_logits.forward(&features)?;
            let parts = [logits.f_softmax(-1, Kind::Float)?, features.f_to_kind(Kind::Float)?];
            Ok(Tensor::f_cat(&parts, 1)?)
        })?;
        let split = both.into_iter().map(|mut probabilities| {
            let features = probabilities.split_off(probabilities.len().saturating_sub(width));
            (probabilities, features)
        });
        Ok(split.collect())
    }

    /// Logits of each row's classes, in the order of the rows.
    ///
    /// # Errors
    /// Those of [`PackedClassifier::predict`].
    pub fn logits(&self, rows: &[&[i64]]) -> Result<Vec<Vec<f32>>> {
        self.answers(rows, |packing| self.logits_of(packing))
    }

    /// Hidden state of each row's first token, which the head looks at, in the order of the rows.
    ///
    /// # Errors
    /// Those of [`PackedClassifier::predict`].
    pub fn first_states(&self, rows: &[&[i64]]) -> Result<Vec<Vec<f32>>> {
        self.answers(rows, |packing| self.encode(packing))
    }

    /// What `of` makes of packed rows, a row for each, in the order of the rows.
    fn answers(&self, rows: &[&[i64]], of: impl Fn(&Packing) -> Result<Tensor>) -> Result<Vec<Vec<f32>>> {
        let _inference = InferenceGuard::enter()?;
        let mut answers = vec![Vec::new(); rows.len()];
        for part in parts(rows, self.device) {
            let chosen: Vec<&[i64]> = part.iter().filter_map(|index| rows.get(*index).copied()).collect();
            let packing = Packing::new(&chosen, &self.config, self.device)?;
            let packed = rows_of(&of(&packing)?.f_narrow(0, 0, chosen.len() as i64)?)?;
            for (index, answer) in packing.order.iter().zip(packed) {
                if let Some(place) = part.get(*index).and_then(|index| answers.get_mut(*index)) {
                    *place = answer;
                }
            }
        }
        Ok(answers)
    }

    /// Hidden states of the packed rows' first tokens, [B', H].
    fn encode(&self, packing: &Packing) -> Result<Tensor> {
        match &self.encoder {
            Encoder::Float(encoder) => encoder.forward(packing, &self.config, &mut |_, _, _, _| Ok(())),
            Encoder::Int8(encoder) => encoder.forward(packing, &self.config),
        }
    }

    /// Logits of the packed rows, [B', C].
    fn logits_of(&self, packing: &Packing) -> Result<Tensor> {
        self.head_logits.forward(&self.features_of(packing)?)
    }

    /// What the map takes that makes the packed rows' logits, [B', H].
    fn features_of(&self, packing: &Packing) -> Result<Tensor> {
        let features = self.head_dense.forward(&self.encode(packing)?)?;
        Ok(match self.config.architecture {
            Architecture::DistilBert => features.f_relu()?,
            Architecture::Bert | Architecture::Roberta | Architecture::XlmRoberta => features.f_tanh()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rows_are_computed_in_parts_of_like_size() {
        let row = vec![7_i64; 512];
        let cases: [(&[usize], &[usize]); 6] = [
            (&[], &[]),
            (&[512], &[512]),
            (&[16; 16], &[256]),
            (&[64; 16], &[320, 384, 320]),
            (&[200, 200, 3], &[203, 200]),
            (&[512, 5, 512, 5], &[10, 512, 512]),
        ];
        for (lengths, want) in cases {
            let rows: Vec<&[i64]> = lengths.iter().map(|length| &row[..*length]).collect();
            let made = parts(&rows, Device::Cpu);
            let tokens: Vec<usize> = made.iter().map(|part| part.iter().map(|i| lengths[*i]).sum()).collect();
            assert_eq!(tokens, want, "{lengths:?}");
            let mut all: Vec<usize> = made.concat();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..lengths.len()), "{made:?}");
            assert!(parts(&rows, Device::Cuda(0)).len() <= 1);
        }
    }

    #[test]
    fn few_sizes_occur_and_little_is_computed_for_nothing() {
        // More than a processor computes at once occurs where a single row is that long.
        let sizes: std::collections::BTreeSet<usize> = (1..=512).map(round_tokens).collect();
        assert!(sizes.len() <= 26, "{}", sizes.len());
        for tokens in 1..=1024 {
            let rounded = round_tokens(tokens);
            assert!(rounded >= tokens && rounded - tokens < 64 && (rounded as f64) < 1.5 * tokens as f64 + 8.0);
        }
        assert_eq!(
            (1..=32)
                .map(round_rows)
                .collect::<std::collections::BTreeSet<_>>()
                .len(),
            8
        );
    }
}
