//! The encoders with their classification heads, as `transformers` computes them.
//!
//! A network is first a plan (name, shape and initial values of every tensor), checked against the file, and only
//! then tensors: a damaged file never makes half a network. Shapes: B rows, L tokens, H hidden, C classes.

pub mod int8;
pub mod packed;

use std::collections::{BTreeMap, HashMap};

use flywheel_torch_shim::recomputed;
use tch::{Device, Kind, Tensor};

use crate::config::{Activation, Architecture, EncoderConfig};
use crate::error::{Error, Result};
use crate::random::SplitMix64;
use crate::weights::WeightFile;

/// Weights by their Hugging Face names.
pub type Parameters = BTreeMap<String, Tensor>;

/// A copy of a tensor on the host, made now.
pub(crate) fn host_copy(tensor: &Tensor) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let mut copy = Tensor::f_empty(tensor.size(), (tensor.kind(), Device::Cpu))?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}

/// [`host_copy`] of all.
pub(crate) fn host_copies(tensors: &Parameters) -> Result<Parameters> {
    let copies = tensors
        .iter()
        .map(|(name, tensor)| Ok((name.clone(), host_copy(tensor)?)));
    copies.collect()
}

/// Overwrites every tensor with the one of its name.
///
/// # Errors
/// [`Error::State`] when it is missing or has another shape (some tensors may be overwritten by then), [`Error::Torch`].
pub(crate) fn fill(tensors: &Parameters, from: &Parameters) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    for (name, tensor) in tensors {
        let source = from
            .get(name)
            .ok_or_else(|| Error::State(format!("tensor {name} is not in it")))?;
        if source.size() != tensor.size() {
            return Err(Error::State(format!(
                "tensor {name} has shape {:?}, not {:?}",
                source.size(),
                tensor.size()
            )));
        }
        tensor.shallow_clone().f_copy_(source)?;
    }
    Ok(())
}

/// Values of a tensor that no file gives.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Initial {
    /// Normal with the configuration's deviation.
    Normal,
    Zeros,
    Ones,
}

/// Whether a tensor may be missing in a pretrained file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Encoder,
    /// Pooler: trained anew for every task.
    Head,
    /// The last layer, with a row for each label.
    Labels,
}

/// One tensor of the plan.
#[derive(Debug, Clone, PartialEq)]
struct Planned {
    /// Name in full, with the architecture's prefix.
    name: String,
    shape: Vec<i64>,
    initial: Initial,
    part: Part,
}

/// How a file is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taking {
    /// To train on: head tensors that are missing or of another number of classes are made anew.
    Pretrained,
    /// To go on from: the last layer is made anew, and every other tensor must be there in its shape.
    Continued,
    /// To answer with: every tensor must be there in its shape.
    Exact,
}

/// Names of the parts of a layer, which the architectures write differently.
struct LayerNames {
    query: &'static str,
    key: &'static str,
    value: &'static str,
    out: &'static str,
    attention_norm: &'static str,
    up: &'static str,
    down: &'static str,
    output_norm: &'static str,
}

const BERT_LAYER: LayerNames = LayerNames {
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    out: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    output_norm: "output.LayerNorm",
};

const DISTILBERT_LAYER: LayerNames = LayerNames {
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    out: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    output_norm: "output_layer_norm",
};

fn layer_names(architecture: Architecture) -> (&'static str, &'static LayerNames) {
    match architecture {
        Architecture::DistilBert => ("transformer.layer", &DISTILBERT_LAYER),
        _ => ("encoder.layer", &BERT_LAYER),
    }
}

/// The two linears of a head: the dense one and the one that makes logits.
fn head_names(architecture: Architecture) -> (&'static str, &'static str) {
    match architecture {
        Architecture::Bert => ("bert.pooler.dense", "classifier"),
        Architecture::DistilBert => ("pre_classifier", "classifier"),
        Architecture::Roberta | Architecture::XlmRoberta => ("classifier.dense", "classifier.out_proj"),
    }
}

/// Every tensor of an encoder with a head for `classes` classes.
fn plan(config: &EncoderConfig, classes: i64) -> Vec<Planned> {
    let mut plan = Vec::new();
    let mut add = |name: String, shape: Vec<i64>, initial, part| {
        plan.push(Planned {
            name,
            shape,
            initial,
            part,
        })
    };
    let prefix = config.architecture.prefix();
    let hidden = config.hidden;
    let embedding = |name: &str| format!("{prefix}embeddings.{name}");
    let tables = [
        ("word_embeddings", config.vocab_size),
        ("position_embeddings", config.max_positions),
        ("token_type_embeddings", config.type_vocab),
    ];
    for (name, rows) in tables {
        if rows > 0 {
            add(
                embedding(&format!("{name}.weight")),
                vec![rows, hidden],
                Initial::Normal,
                Part::Encoder,
            );
        }
    }
    add(
        embedding("LayerNorm.weight"),
        vec![hidden],
        Initial::Ones,
        Part::Encoder,
    );
    add(embedding("LayerNorm.bias"), vec![hidden], Initial::Zeros, Part::Encoder);
    let (folder, names) = layer_names(config.architecture);
    for layer in 0..config.layers {
        let linears = [
            (names.query, hidden, hidden),
            (names.key, hidden, hidden),
            (names.value, hidden, hidden),
            (names.out, hidden, hidden),
            (names.up, config.intermediate, hidden),
            (names.down, hidden, config.intermediate),
        ];
        for (name, to, from) in linears {
            let name = format!("{prefix}{folder}.{layer}.{name}");
            add(format!("{name}.weight"), vec![to, from], Initial::Normal, Part::Encoder);
            add(format!("{name}.bias"), vec![to], Initial::Zeros, Part::Encoder);
        }
        for name in [names.attention_norm, names.output_norm] {
            let name = format!("{prefix}{folder}.{layer}.{name}");
            add(format!("{name}.weight"), vec![hidden], Initial::Ones, Part::Encoder);
            add(format!("{name}.bias"), vec![hidden], Initial::Zeros, Part::Encoder);
        }
    }
    let (dense, logits) = head_names(config.architecture);
    for (name, to, part) in [(dense, hidden, Part::Head), (logits, classes, Part::Labels)] {
        add(format!("{name}.weight"), vec![to, hidden], Initial::Normal, part);
        add(format!("{name}.bias"), vec![to], Initial::Zeros, part);
    }
    plan
}

/// Name and shape of every weight that an encoder of this configuration with a head for `classes` classes trains.
#[must_use]
pub fn shapes(config: &EncoderConfig, classes: usize) -> BTreeMap<String, Vec<i64>> {
    plan(config, classes as i64)
        .into_iter()
        .map(|tensor| (tensor.name, tensor.shape))
        .collect()
}

/// Name under which a file holds a tensor: in full, without the prefix (a bare encoder), or with TensorFlow's old
/// words for a layer norm.
fn name_in_file(file: &WeightFile, full: &str, prefix: &str) -> Option<String> {
    let old = |name: &str| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        name.replace("LayerNorm.bias", "LayerNorm.beta")
    };
    let bare = full.strip_prefix(prefix).unwrap_or(full);
    [full.to_owned(), bare.to_owned(), old(full), old(bare)]
        .into_iter()
        .find(|name| file.info(name).is_some())
}

/// Where each tensor comes from; `None`: made anew.
fn sources(plan: &[Planned], file: &WeightFile, prefix: &str, taking: Taking) -> Result<Vec<Option<String>>> {
    let mut found = Vec::with_capacity(plan.len());
    let mut missing = Vec::new();
    for tensor in plan {
        if taking == Taking::Continued && tensor.part == Part::Labels {
            found.push(None);
            continue;
        }
        let may_be_new = taking == Taking::Pretrained && tensor.part != Part::Encoder;
        let Some(name) = name_in_file(file, &tensor.name, prefix) else {
            if !may_be_new {
                missing.push(tensor.name.clone());
            }
            found.push(None);
            continue;
        };
        let shape = file.info(&name).map(|info| info.shape.as_slice()).unwrap_or_default();
        if shape == tensor.shape {
            found.push(Some(name));
        } else if may_be_new {
            found.push(None);
        } else {
            let why = format!("its shape is {shape:?}, config.json says {:?}", tensor.shape);
            return Err(Error::WeightsInvalid {
                path: file.path().into(),
                tensor: name,
                why,
            });
        }
    }
    if missing.is_empty() {
        Ok(found)
    } else {
        Err(Error::WeightsMissing {
            path: file.path().into(),
            names: missing,
            wanted: plan.len(),
        })
    }
}

/// A linear map: weight [to, from], bias [to].
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn shallow_clone(&self) -> Self {
        Self {
            weight: self.weight.shallow_clone(),
            bias: self.bias.shallow_clone(),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_linear(&self.weight, Some(&self.bias))?)
    }
}

/// A layer norm over the last dimension: weight [H], bias [H].
struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl Norm {
    fn shallow_clone(&self) -> Self {
        Self {
            weight: self.weight.shallow_clone(),
            bias: self.bias.shallow_clone(),
            eps: self.eps,
        }
    }

    fn in_kind(&self, kind: Kind) -> Result<Self> {
        Ok(Self {
            weight: self.weight.f_to_kind(kind)?,
            bias: self.bias.f_to_kind(kind)?,
            eps: self.eps,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)?)
    }
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    output_norm: Norm,
    heads: i64,
    activation: Activation,
    architecture: Architecture,
}

impl Layer {
    fn shallow_clone(&self) -> Self {
        Self {
            query: self.query.shallow_clone(),
            key: self.key.shallow_clone(),
            value: self.value.shallow_clone(),
            out: self.out.shallow_clone(),
            attention_norm: self.attention_norm.shallow_clone(),
            up: self.up.shallow_clone(),
            down: self.down.shallow_clone(),
            output_norm: self.output_norm.shallow_clone(),
            heads: self.heads,
            activation: self.activation,
            architecture: self.architecture,
        }
    }

    /// One post-norm transformer layer: `asking` tokens [B, Q, H], which are the first of `x`, look at all of `x`,
    /// [B, L, H]; gives [B, Q, H]. `dropout` is 0 where nothing is trained.
    fn forward(&self, asking: &Tensor, x: &Tensor, mask: Option<&Tensor>, dropout: f64) -> Result<Tensor> {
        let (rows, length, hidden) = asking.size3()?;
        let heads = self.heads;
        let split = |t: Tensor| -> Result<Tensor> {
            Ok(t.f_view([rows, -1, heads, hidden / heads])?.f_transpose(1, 2)?) // [B, heads, Q or L, H / heads]
        };
        let query = split(self.query.forward(asking)?)?;
        let key = split(self.key.forward(x)?)?;
        let value = split(self.value.forward(x)?)?;
        let attention =
            Tensor::f_scaled_dot_product_attention(&query, &key, &value, mask, dropout, false, None, false)?;
        let attention = self
            .out
            .forward(&attention.f_transpose(1, 2)?.f_reshape([rows, length, hidden])?)?;
        // DistilBERT has no dropout at this place.
        let attention = match self.architecture {
            Architecture::DistilBert => attention,
            _ => dropped(attention, dropout)?,
        };
        let x = self.attention_norm.forward(&attention.f_add(asking)?)?;
        let up = self.activation.apply(&self.up.forward(&x)?)?;
        let down = dropped(self.down.forward(&up)?, dropout)?;
        self.output_norm.forward(&down.f_add(&x)?)
    }
}

impl Activation {
    fn apply(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Gelu => x.f_gelu("none")?,
            Self::GeluTanh => x.f_gelu("tanh")?,
            Self::Relu => x.f_relu()?,
        })
    }
}

/// With some of its numbers set to zero.
fn dropped(x: Tensor, dropout: f64) -> Result<Tensor> {
    if dropout > 0.0 {
        Ok(x.f_dropout(dropout, true)?)
    } else {
        Ok(x)
    }
}

/// Whether a row of token ids can be fed; `row` is its place.
fn check_row(row: usize, tokens: &[i64], config: &EncoderConfig) -> Result<()> {
    let max = config.max_length();
    if tokens.is_empty() || tokens.len() > max {
        return Err(Error::Row {
            row,
            why: format!("{} tokens, 1 to {max} can be fed", tokens.len()),
        });
    }
    // On a GPU a wrong id would end the process, not the call.
    if let Some(id) = tokens.iter().find(|id| !(0..config.vocab_size).contains(id)) {
        let why = format!("token id {id}, the vocabulary has 0 to {}", config.vocab_size - 1);
        return Err(Error::Row { row, why });
    }
    Ok(())
}

/// A batch of rows, padded to the longest.
pub struct TokenBatch {
    /// Token ids, [B, L], i64.
    pub ids: Tensor,
    /// True where a token is real, [B, 1, 1, L]; `None` where no row is padded.
    mask: Option<Tensor>,
}

impl TokenBatch {
    /// Pads rows to the longest of them, after checking each: 1 to [`EncoderConfig::max_length`] tokens, every id in
    /// the vocabulary.
    ///
    /// # Errors
    /// [`Error::Row`] with the row's place in `rows`.
    pub fn pad(rows: &[&[i64]], config: &EncoderConfig, device: Device) -> Result<Self> {
        let longest = rows.iter().map(|r| r.len()).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(rows.len() * longest);
        let mut real = Vec::with_capacity(rows.len() * longest);
        for (row, tokens) in rows.iter().enumerate() {
            check_row(row, tokens, config)?;
            let padding = longest - tokens.len();
            ids.extend_from_slice(tokens);
            ids.extend(std::iter::repeat_n(config.pad_token_id, padding));
            real.extend(std::iter::repeat_n(true, tokens.len()));
            real.extend(std::iter::repeat_n(false, padding));
        }
        let shape = [rows.len() as i64, longest as i64];
        let mask = if real.contains(&false) {
            let mask = Tensor::f_from_slice(&real)?.f_view([shape[0], 1, 1, shape[1]])?;
            Some(mask.f_to_device(device)?)
        } else {
            None
        };
        Ok(Self {
            ids: Tensor::f_from_slice(&ids)?.f_view(shape)?.f_to_device(device)?,
            mask,
        })
    }
}

/// An encoder with a head that makes one logit per class, to train; [`packed::PackedClassifier`] answers.
pub struct SequenceClassifier {
    config: EncoderConfig,
    device: Device,
    dropout: f64,
    recomputes: bool,
    words: Tensor,
    positions: Tensor,
    types: Option<Tensor>,
    embedding_norm: Norm,
    layers: Vec<Layer>,
    head_dense: Linear,
    head_logits: Linear,
    parameters: Parameters,
}

impl SequenceClassifier {
    /// Builds the network from a file. `dropout` (0 to 1) counts in training only, everywhere where the architecture
    /// has one; `seed` is for tensors that are made anew, whose names are returned.
    ///
    /// # Errors
    /// [`Error::WeightsMissing`] and [`Error::WeightsInvalid`] with the tensors' names, before any tensor is made.
    pub fn load(
        config: &EncoderConfig,
        file: &WeightFile,
        classes: usize,
        taking: Taking,
        dropout: f64,
        seed: i64,
        device: Device,
    ) -> Result<(Self, Vec<String>)> {
        let plan = plan(config, classes as i64);
        let sources = sources(&plan, file, config.architecture.prefix(), taking)?;
        let mut parameters = Parameters::new();
        let mut made = Vec::new();
        for (tensor, source) in plan.into_iter().zip(sources) {
            let value = match source {
                Some(name) => file.read(&name, device)?,
                None => {
                    made.push(tensor.name.clone());
                    fresh(&tensor, config, seed, device)?
                }
            };
            parameters.insert(tensor.name, value);
        }
        Ok((Self::assemble(config.clone(), parameters, dropout, device)?, made))
    }

    /// Builds the network of a file whose labels are `known`, in the order of its rows, for `labels`: the rows of the last layer of
    /// labels that stand in both are the file's, wherever they stand, and those of others are new.
    ///
    /// # Errors
    /// Those of [`SequenceClassifier::load`], also where the file has not a row for each of its labels; [`Error::Torch`].
    pub fn continued(
        config: &EncoderConfig,
        file: &WeightFile,
        (known, labels): (&[String], &[String]),
        dropout: f64,
        seed: i64,
        device: Device,
    ) -> Result<(Self, Vec<String>)> {
        let (network, made) = Self::load(config, file, labels.len(), Taking::Continued, dropout, seed, device)?;
        let _no_grad = tch::no_grad_guard();
        let places: HashMap<&str, i64> = known.iter().map(String::as_str).zip(0..).collect();
        let (_, logits) = head_names(config.architecture);
        for tensor in plan(config, known.len() as i64) {
            let Some(new) = network
                .parameters
                .get(&tensor.name)
                .filter(|_| tensor.part == Part::Labels)
            else {
                continue;
            };
            let name = name_in_file(file, &tensor.name, config.architecture.prefix()).unwrap_or(tensor.name);
            let old = file.read(&name, device)?;
            if old.size() != tensor.shape {
                return Err(Error::WeightsInvalid {
                    path: file.path().into(),
                    tensor: name,
                    why: format!("its shape is {:?}, config.json says {:?}", old.size(), tensor.shape),
                });
            }
            for (row, label) in (0..).zip(labels) {
                if let Some(from) = places.get(label.as_str()) {
                    new.f_get(row)?.f_copy_(&old.f_get(*from)?)?;
                }
            }
        }
        tracing::debug!(
            layer = logits,
            kept = labels
                .iter()
                .filter(|label| places.contains_key(label.as_str()))
                .count(),
            "rows of the last layer are those of the version before"
        );
        Ok((network, made))
    }

    /// Builds the network with random weights, the same for the same seed.
    ///
    /// # Errors
    /// [`Error::Torch`], [`Error::OutOfMemory`].
    pub fn random(config: &EncoderConfig, classes: usize, dropout: f64, seed: i64, device: Device) -> Result<Self> {
        let mut parameters = Parameters::new();
        for tensor in plan(config, classes as i64) {
            let value = fresh(&tensor, config, seed, device)?;
            parameters.insert(tensor.name, value);
        }
        Self::assemble(config.clone(), parameters, dropout, device)
    }

    fn assemble(config: EncoderConfig, parameters: Parameters, dropout: f64, device: Device) -> Result<Self> {
        let get = |name: &str| match parameters.get(name) {
            Some(tensor) => Ok(tensor.shallow_clone()),
            None => Err(Error::Torch(format!("the plan of the network lacks {name}"))),
        };
        let linear = |name: &str| -> Result<Linear> {
            Ok(Linear {
                weight: get(&format!("{name}.weight"))?,
                bias: get(&format!("{name}.bias"))?,
            })
        };
        let norm = |name: &str| -> Result<Norm> {
            let Linear { weight, bias } = linear(name)?;
            Ok(Norm {
                weight,
                bias,
                eps: config.layer_norm_eps,
            })
        };
        let prefix = config.architecture.prefix();
        let (folder, names) = layer_names(config.architecture);
        let layers = (0..config.layers).map(|i| {
            let at = |name: &str| format!("{prefix}{folder}.{i}.{name}");
            Ok(Layer {
                query: linear(&at(names.query))?,
                key: linear(&at(names.key))?,
                value: linear(&at(names.value))?,
                out: linear(&at(names.out))?,
                attention_norm: norm(&at(names.attention_norm))?,
                up: linear(&at(names.up))?,
                down: linear(&at(names.down))?,
                output_norm: norm(&at(names.output_norm))?,
                heads: config.heads,
                activation: config.activation,
                architecture: config.architecture,
            })
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let embedding = |name: &str| format!("{prefix}embeddings.{name}");
        let (dense, logits) = head_names(config.architecture);
        Ok(Self {
            words: get(&embedding("word_embeddings.weight"))?,
            positions: get(&embedding("position_embeddings.weight"))?,
            types: (config.type_vocab > 0)
                .then(|| get(&embedding("token_type_embeddings.weight")))
                .transpose()?,
            embedding_norm: norm(&embedding("LayerNorm"))?,
            layers,
            head_dense: linear(dense)?,
            head_logits: linear(logits)?,
            config,
            device,
            dropout,
            recomputes: false,
            parameters,
        })
    }

    /// Whether training keeps each layer's input alone and computes the layer again in backward (activation
    /// checkpointing): less memory, more time, the same numbers.
    #[must_use]
    pub fn recomputing(mut self, recomputes: bool) -> Self {
        self.recomputes = recomputes;
        self
    }

    /// The encoder's numbers.
    #[must_use]
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Where its weights live.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// Number of classes.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.head_logits.bias.numel()
    }

    /// All weights by name; the tensors are those of the network, so changing them in place changes it.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The positions' table with the type of a single text added, [P, H].
    fn typed_positions(&self) -> Result<Tensor> {
        Ok(match &self.types {
            Some(types) => self.positions.f_add(&types.f_select(0, 0)?)?,
            None => self.positions.shallow_clone(),
        })
    }

    /// Logits, [B, C], f32. With `train`, dropout is on and what backward needs is recorded (if the weights ask for
    /// gradients).
    ///
    /// # Errors
    /// [`Error::Torch`], [`Error::OutOfMemory`].
    pub fn logits(&self, batch: &TokenBatch, train: bool) -> Result<Tensor> {
        let dropout = if train { self.dropout } else { 0.0 };
        let first = self.encode(batch, train, dropout)?;
        // The three heads differ in activation and in where dropout stands.
        let features = match self.config.architecture {
            Architecture::Bert => self.head_dense.forward(&first)?.f_tanh()?,
            Architecture::DistilBert => self.head_dense.forward(&first)?.f_relu()?,
            Architecture::Roberta | Architecture::XlmRoberta => {
                self.head_dense.forward(&dropped(first, dropout)?)?.f_tanh()?
            }
        };
        self.head_logits.forward(&dropped(features, dropout)?)
    }

    /// Hidden states of the first tokens after the last layer, [B, H]. The heads look at no others, so the last layer
    /// computes no others.
    fn encode(&self, batch: &TokenBatch, train: bool, dropout: f64) -> Result<Tensor> {
        let pad = self.config.pad_token_id;
        // A full gradient of the vocabulary, mostly zeros, costs a processor a tenth of the step.
        let few_rows = train && self.device == Device::Cpu;
        let mut x = Tensor::f_embedding(&self.words, &batch.ids, pad, false, few_rows)?;
        if let Some(types) = &self.types {
            // One text per row: every token is of type 0.
            x = x.f_add(&types.f_select(0, 0)?)?;
        }
        let positions = match self.config.architecture {
            Architecture::Bert | Architecture::DistilBert => {
                self.positions.f_narrow(0, 0, batch.ids.size2()?.1)? // [L, H]
            }
            Architecture::Roberta | Architecture::XlmRoberta => {
                let real = batch.ids.f_ne(pad)?.f_to_kind(Kind::Int64)?;
                let index = real.f_cumsum(1, Kind::Int64)?.f_mul(&real)?.f_add_scalar(pad)?;
                Tensor::f_embedding(&self.positions, &index, pad, false, false)? // [B, L, H]
            }
        };
        x = self.embedding_norm.forward(&x.f_add(&positions)?)?;
        x = dropped(x, dropout)?;
        if let Some((last, before)) = self.layers.split_last() {
            for layer in before {
                x = if train && self.recomputes {
                    let (layer, mask) = (layer.shallow_clone(), batch.mask.as_ref().map(Tensor::shallow_clone));
                    recomputed(&x, move |x| {
                        layer.forward(x, x, mask.as_ref(), dropout).map_err(|e| e.to_string())
                    })?
                } else {
                    layer.forward(&x, &x, batch.mask.as_ref(), dropout)?
                };
            }
            x = last.forward(&x.f_narrow(1, 0, 1)?, &x, batch.mask.as_ref(), dropout)?;
        }
        Ok(x.f_select(1, 0)?)
    }
}

/// A tensor that no file gives. Made on the CPU, so that a seed means the same on every device, and from a generator of
/// its own: libtorch's is shared by all threads of the process.
fn fresh(tensor: &Planned, config: &EncoderConfig, seed: i64, device: Device) -> Result<Tensor> {
    let options = (Kind::Float, Device::Cpu);
    let shape = tensor.shape.as_slice();
    let value = match tensor.initial {
        Initial::Normal => {
            let count = usize::try_from(shape.iter().product::<i64>()).unwrap_or(0);
            let numbers = normal(seed, &tensor.name, count, config.initializer_range);
            Tensor::f_from_slice(&numbers)?.f_reshape(shape)?
        }
        Initial::Zeros => Tensor::f_zeros(shape, options)?,
        Initial::Ones => Tensor::f_ones(shape, options)?,
    };
    Ok(value.f_to_device(device)?)
}

/// `count` normal numbers of this deviation, fixed by seed and name: SplitMix64, begun at an FNV-1a hash of the name,
/// through the Box-Muller transform.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "53 random bits fit a double exactly; weights are single precision"
)]
fn normal(seed: i64, name: &str, count: usize, deviation: f64) -> Vec<f32> {
    let mut numbers = SplitMix64(
        name.bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64 ^ seed.cast_unsigned(), |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            }),
    );
    // In (0, 1]: the logarithm below must stay finite.
    let mut uniform = || ((numbers.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    (0..count)
        .map(|_| {
            let (radius, angle) = (uniform(), uniform());
            ((-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos() * deviation) as f32
        })
        .collect()
}

/// The rows of a [B, C] tensor as plain numbers.
pub(crate) fn rows_of(tensor: &Tensor) -> Result<Vec<Vec<f32>>> {
    let tensor = tensor
        .f_detach()?
        .f_to_device(Device::Cpu)?
        .f_to_kind(Kind::Float)?
        .f_contiguous()?;
    let (_, width) = tensor.size2()?;
    let mut numbers = vec![0f32; tensor.numel()];
    tensor.f_copy_data(&mut numbers, tensor.numel())?;
    let width = usize::try_from(width).unwrap_or(0).max(1);
    Ok(numbers.chunks(width).map(<[f32]>::to_vec).collect())
}
