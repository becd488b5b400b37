//! `config.json` of an encoder as Hugging Face writes it: read, bounded, and written again with our labels.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Encoders that this crate builds, by `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// BERT (Devlin et al., 2019).
    Bert,
    /// DistilBERT (Sanh et al., 2019).
    DistilBert,
    /// RoBERTa (Liu et al., 2019).
    Roberta,
    /// XLM-RoBERTa (Conneau et al., 2020); the network of RoBERTa.
    XlmRoberta,
}

impl Architecture {
    const ALL: [Self; 4] = [Self::Bert, Self::DistilBert, Self::Roberta, Self::XlmRoberta];

    /// `model_type` of `config.json`.
    #[must_use]
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::DistilBert => "distilbert",
            Self::Roberta => "roberta",
            Self::XlmRoberta => "xlm-roberta",
        }
    }

    /// Class of `transformers` that loads what we write.
    #[must_use]
    pub fn transformers_class(self) -> &'static str {
        match self {
            Self::Bert => "BertForSequenceClassification",
            Self::DistilBert => "DistilBertForSequenceClassification",
            Self::Roberta => "RobertaForSequenceClassification",
            Self::XlmRoberta => "XLMRobertaForSequenceClassification",
        }
    }

    /// Prefix of the encoder's tensors in a file with a head.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Bert => "bert.",
            Self::DistilBert => "distilbert.",
            Self::Roberta | Self::XlmRoberta => "roberta.",
        }
    }

    /// Whether positions count from `pad_token_id` + 1 and skip padding.
    fn positions_after_padding(self) -> bool {
        matches!(self, Self::Roberta | Self::XlmRoberta)
    }
}

/// Activation between the two linears of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x·Φ(x), by the error function.
    Gelu,
    /// Its approximation by tanh.
    GeluTanh,
    /// max(x, 0).
    Relu,
}

/// Bounds of what is built, far above every published encoder of these kinds; a file beyond them is damaged or hostile.
mod bounds {
    pub(super) const VOCABULARY: i64 = 4_000_000;
    pub(super) const HIDDEN: i64 = 16_384;
    pub(super) const LAYERS: i64 = 256;
    pub(super) const INTERMEDIATE: i64 = 131_072;
    pub(super) const POSITIONS: i64 = 131_072;
    pub(super) const TYPES: i64 = 1_024;
    /// Weights in all: 16 GB in f32.
    pub(super) const WEIGHTS: i64 = 4_000_000_000;
    /// Bytes of `config.json`.
    pub(super) const FILE: u64 = 1024 * 1024;
}

/// The checked numbers of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// Which network.
    pub architecture: Architecture,
    /// Rows of the token embedding.
    pub vocab_size: i64,
    /// Width of a hidden state.
    pub hidden: i64,
    /// Transformer layers.
    pub layers: i64,
    /// Attention heads per layer; divides `hidden`.
    pub heads: i64,
    /// Width between the two linears of a layer.
    pub intermediate: i64,
    /// Rows of the position embedding.
    pub max_positions: i64,
    /// Rows of the token type embedding; 0 where the architecture has none.
    pub type_vocab: i64,
    /// Between the two linears.
    pub activation: Activation,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f64,
    /// Id of the padding token; its embedding is not trained.
    pub pad_token_id: i64,
    /// Standard deviation of freshly initialised weights.
    pub initializer_range: f64,
    /// The whole file, so that what we do not know survives a round trip.
    raw: Map<String, Value>,
}

impl EncoderConfig {
    /// Reads and checks `config.json` of a folder.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::Config`] with field, value and what is allowed.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(flywheel_contract::artifact::CONFIG_FILE);
        let size = std::fs::metadata(&path).map_err(Error::file("read", &path))?.len();
        let invalid = |why: String| Error::Config {
            path: path.clone(),
            why,
        };
        if size > bounds::FILE {
            return Err(invalid(format!("{size} bytes long, at most {} are read", bounds::FILE)));
        }
        let text = std::fs::read(&path).map_err(Error::file("read", &path))?;
        match serde_json::from_slice(&text) {
            Ok(Value::Object(raw)) => Self::from_json(raw, &path),
            Ok(_) => Err(invalid("not a JSON object".into())),
            Err(e) => Err(invalid(format!("not JSON: {e}"))),
        }
    }

    /// Checks an already parsed `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn from_json(raw: Map<String, Value>, path: &Path) -> Result<Self> {
        Self::parse(raw).map_err(|why| Error::Config { path: path.into(), why })
    }

    fn parse(raw: Map<String, Value>) -> Result<Self, String> {
        let model_type = raw.get("model_type").and_then(Value::as_str).unwrap_or("(missing)");
        let architecture = Architecture::ALL
            .into_iter()
            .find(|a| a.model_type() == model_type)
            .ok_or_else(|| {
                let known = Architecture::ALL.map(Architecture::model_type).join(", ");
                format!("model_type is {model_type}; supported are {known}")
            })?;
        let distil = architecture == Architecture::DistilBert;
        let name = |bert: &'static str, distilbert: &'static str| if distil { distilbert } else { bert };
        let integer = |field: &str, low: i64, high: i64| match raw.get(field).and_then(Value::as_i64) {
            Some(n) if (low..=high).contains(&n) => Ok(n),
            _ => Err(format!(
                "{field} is {}, not an integer from {low} to {high}",
                shown(&raw, field)
            )),
        };
        let vocab_size = integer("vocab_size", 2, bounds::VOCABULARY)?;
        let hidden = integer(name("hidden_size", "dim"), 1, bounds::HIDDEN)?;
        let layers = integer(name("num_hidden_layers", "n_layers"), 1, bounds::LAYERS)?;
        let heads_field = name("num_attention_heads", "n_heads");
        let heads = integer(heads_field, 1, hidden)?;
        if hidden % heads != 0 {
            return Err(format!(
                "hidden size {hidden} is not a multiple of {heads_field} {heads}"
            ));
        }
        let intermediate = integer(name("intermediate_size", "hidden_dim"), 1, bounds::INTERMEDIATE)?;
        let max_positions = integer("max_position_embeddings", 2, bounds::POSITIONS)?;
        let type_vocab = if distil {
            0
        } else {
            integer("type_vocab_size", 1, bounds::TYPES)?
        };

        // As an i128, since each factor alone may be near its bound.
        let wide = i128::from;
        let weights = wide(vocab_size + max_positions + type_vocab) * wide(hidden)
            + wide(layers) * (4 * wide(hidden) * wide(hidden) + 2 * wide(hidden) * wide(intermediate));
        if weights > wide(bounds::WEIGHTS) {
            return Err(format!(
                "it describes {weights} weights, at most {} are built",
                bounds::WEIGHTS
            ));
        }

        let default_pad = i64::from(architecture.positions_after_padding());
        let pad_token_id = match raw.get("pad_token_id") {
            None | Some(Value::Null) => default_pad,
            Some(_) => integer("pad_token_id", 0, vocab_size - 1)?,
        };
        if architecture.positions_after_padding() && pad_token_id + 2 > max_positions {
            return Err(format!(
                "max_position_embeddings {max_positions} leaves no position after pad_token_id {pad_token_id}"
            ));
        }

        let activation_field = name("hidden_act", "activation");
        let activation = match raw.get(activation_field).map_or(Some("gelu"), Value::as_str) {
            Some("gelu") => Activation::Gelu,
            Some("gelu_new" | "gelu_pytorch_tanh") => Activation::GeluTanh,
            Some("relu") => Activation::Relu,
            _ => {
                let found = shown(&raw, activation_field);
                return Err(format!(
                    "{activation_field} is {found}; supported are gelu, gelu_new, gelu_pytorch_tanh, relu"
                ));
            }
        };
        let positive = |field: &str, default: f64, high: f64| match raw.get(field) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|v| *v > 0.0 && *v <= high)
                .ok_or_else(|| format!("{field} is {value}, not a number above 0 and at most {high}")),
        };
        // DistilBERT's is fixed in its code.
        let layer_norm_eps = if distil {
            1e-12
        } else {
            positive("layer_norm_eps", 1e-12, 0.1)?
        };
        let initializer_range = positive("initializer_range", 0.02, 1.0)?;

        if let Some(kind) = raw.get("position_embedding_type")
            && kind.as_str() != Some("absolute")
        {
            return Err(format!("position_embedding_type is {kind}; only absolute is supported"));
        }
        for field in ["is_decoder", "add_cross_attention"] {
            if raw.get(field).and_then(Value::as_bool) == Some(true) {
                return Err(format!("{field} is true; only encoders are supported"));
            }
        }
        Ok(Self {
            architecture,
            vocab_size,
            hidden,
            layers,
            heads,
            intermediate,
            max_positions,
            type_vocab,
            activation,
            layer_norm_eps,
            pad_token_id,
            initializer_range,
            raw,
        })
    }

    /// Longest row that can be fed, tokens.
    #[must_use]
    pub fn max_length(&self) -> usize {
        let first = if self.architecture.positions_after_padding() {
            self.pad_token_id + 1
        } else {
            0
        };
        usize::try_from(self.max_positions - first).unwrap_or(0)
    }

    /// Checks that every id of the tokenizer has an embedding. `tokens`: highest id of the tokenizer plus one.
    ///
    /// # Errors
    /// [`Error::TokenizerMismatch`].
    pub fn check_tokenizer(&self, tokens: usize) -> Result<()> {
        match i64::try_from(tokens) {
            Ok(n) if n <= self.vocab_size => Ok(()),
            _ => Err(Error::TokenizerMismatch {
                tokenizer: tokens,
                config: self.vocab_size,
            }),
        }
    }

    /// Labels by class index (`id2label`), `None` where the file has none.
    ///
    /// # Errors
    /// [`Error::Config`] when the indices are not 0, 1, 2, …
    pub fn labels(&self) -> Result<Option<Vec<String>>> {
        let Some(map) = self.raw.get("id2label").and_then(Value::as_object) else {
            return Ok(None);
        };
        let labels = (0..map.len()).map(|i| map.get(&i.to_string()).and_then(Value::as_str).map(str::to_owned));
        labels
            .collect::<Option<Vec<_>>>()
            .map(Some)
            .ok_or_else(|| Error::Config {
                path: PathBuf::from(flywheel_contract::artifact::CONFIG_FILE),
                why: format!(
                    "id2label does not name the classes 0 to {}",
                    map.len().saturating_sub(1)
                ),
            })
    }

    /// `config.json` of a classifier over this encoder, such that `AutoModelForSequenceClassification` loads it. All
    /// that the original said of the encoder is kept.
    #[must_use]
    pub fn classifier_json(&self, labels: &[String]) -> Value {
        let mut raw = self.raw.clone();
        // A path on the machine that saved it, and the type of weights that are f32 now.
        for field in ["_name_or_path", "dtype"] {
            raw.remove(field);
        }
        let id2label: Map<String, Value> = labels
            .iter()
            .enumerate()
            .map(|(i, l)| (i.to_string(), l.as_str().into()))
            .collect();
        let label2id: Map<String, Value> = labels.iter().enumerate().map(|(i, l)| (l.clone(), i.into())).collect();
        raw.insert(
            "architectures".into(),
            serde_json::json!([self.architecture.transformers_class()]),
        );
        raw.insert("id2label".into(), Value::Object(id2label));
        raw.insert("label2id".into(), Value::Object(label2id));
        raw.insert("num_labels".into(), labels.len().into());
        raw.insert("problem_type".into(), "single_label_classification".into());
        raw.insert("torch_dtype".into(), "float32".into());
        Value::Object(raw)
    }
}

fn shown(raw: &Map<String, Value>, field: &str) -> String {
    raw.get(field).map_or_else(|| "missing".into(), Value::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bert() -> Value {
        json!({
            "model_type": "bert", "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 40,
            "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0,
            "something_of_others": [1, 2], "_name_or_path": "/somebody/here"
        })
    }

    fn with(changes: Value) -> Result<EncoderConfig> {
        let (Value::Object(mut raw), Value::Object(changes)) = (bert(), changes) else {
            panic!("not objects")
        };
        raw.extend(changes);
        EncoderConfig::from_json(raw, Path::new("config.json"))
    }

    #[test]
    fn bounds_name_field_value_and_what_is_allowed() {
        let cases = [
            (json!({"model_type": "gpt2"}), "model_type is gpt2; supported are bert"),
            (
                json!({"hidden_size": 30}),
                "hidden size 30 is not a multiple of num_attention_heads 4",
            ),
            (
                json!({"hidden_size": null}),
                "hidden_size is null, not an integer from 1 to",
            ),
            (json!({"hidden_size": 1e9}), "hidden_size is 1000000000.0"),
            (json!({"vocab_size": -5}), "vocab_size is -5"),
            (json!({"num_hidden_layers": 100000}), "num_hidden_layers is 100000"),
            (json!({"max_position_embeddings": 1}), "max_position_embeddings is 1"),
            (
                json!({"hidden_act": "silu"}),
                "hidden_act is \"silu\"; supported are gelu",
            ),
            (json!({"layer_norm_eps": 0}), "layer_norm_eps is 0"),
            (json!({"pad_token_id": 100}), "pad_token_id is 100"),
            (json!({"position_embedding_type": "relative_key"}), "only absolute"),
            (json!({"is_decoder": true}), "only encoders"),
            (
                json!({"hidden_size": 16384, "num_hidden_layers": 256, "intermediate_size": 131072}),
                "weights, at most 4000000000",
            ),
            (
                json!({"model_type": "roberta", "pad_token_id": 39}),
                "leaves no position",
            ),
        ];
        for (changes, want) in cases {
            let error = with(changes.clone()).unwrap_err().to_string();
            assert!(error.contains(want), "{changes}: {error}");
        }
    }

    #[test]
    fn longest_row_counts_the_positions_before_the_first() {
        assert_eq!(with(json!({})).unwrap().max_length(), 40);
        assert_eq!(
            with(json!({"model_type": "roberta", "pad_token_id": 1}))
                .unwrap()
                .max_length(),
            38
        );
    }

    #[test]
    fn a_tokenizer_larger_than_the_embedding_is_refused() {
        let config = with(json!({})).unwrap();
        config.check_tokenizer(100).unwrap();
        assert!(matches!(
            config.check_tokenizer(101),
            Err(Error::TokenizerMismatch {
                tokenizer: 101,
                config: 100
            })
        ));
    }

    #[test]
    fn labels_survive_the_round_trip_and_foreign_fields_stay() {
        let config = with(json!({"dtype": "float16"})).unwrap();
        assert_eq!(config.labels().unwrap(), None);
        let labels: Vec<String> = (0..12).map(|i| format!("label {i}")).collect();
        let Value::Object(written) = config.classifier_json(&labels) else {
            panic!("no object")
        };
        assert_eq!(written["something_of_others"], json!([1, 2]));
        assert_eq!((written.get("_name_or_path"), written.get("dtype")), (None, None));
        let again = EncoderConfig::from_json(written, Path::new("config.json")).unwrap();
        assert_eq!(again.labels().unwrap(), Some(labels));
        let gap = with(json!({"id2label": {"0": "a", "2": "b"}})).unwrap();
        assert!(gap.labels().unwrap_err().to_string().contains("classes 0 to 1"));
    }
}
