//! Small values with bounds: decimals, URIs, names of metrics.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A decimal number written as a string: `"0.01"`, `"2e-5"`.
///
/// Floats in YAML are read differently by different tools (`2e-5` is a string to PyYAML, a number to Go), and floats in
/// JSON do not survive server-side apply unchanged; a string is the same to all of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Decimal(pub String);

impl Decimal {
    /// What a decimal may look like: at most nine digits on either side of the point and a two-digit exponent.
    pub const PATTERN: &'static str = r"^-?[0-9]{1,9}(\.[0-9]{1,9})?([eE]-?[0-9]{1,2})?$";

    /// What a share may look like, 0 to 1.
    pub const SHARE: &'static str = r"^(0(\.[0-9]{1,9})?|1(\.0{1,9})?)$";

    /// What a difference of two shares may look like, -1 to 1.
    pub const DIFFERENCE: &'static str = r"^-?(0(\.[0-9]{1,9})?|1(\.0{1,9})?)$";
    /// What may not be negative.
    pub const AMOUNT: &'static str = r"^[0-9]{1,9}(\.[0-9]{1,9})?([eE]-?[0-9]{1,2})?$";

    /// The number; `None` where the text is not one (the API server refuses such an object by [`Decimal::PATTERN`]).
    #[must_use]
    pub fn value(&self) -> Option<f64> {
        self.0.parse::<f64>().ok().filter(|v| v.is_finite())
    }
}

impl From<&str> for Decimal {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for Decimal {
    fn schema_name() -> Cow<'static, str> {
        "Decimal".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 24, "pattern": Self::PATTERN})
    }
}

/// Pattern of a bucket, with a path in it or without.
macro_rules! s3 {
    () => {
        r#"s3://[A-Za-z0-9._-]+(/[^\s?#@"'\\$]*)?"#
    };
}

/// Pattern of a file or folder; a file has no host.
macro_rules! file {
    () => {
        r#"file:///[^\s?#@"'\\$]+"#
    };
}

/// Where data lie: `s3://bucket/key`, `file:///path`, `https://host/path` or `http://host/path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Uri(pub String);

impl Uri {
    /// What a URI may look like. No user info, query, fragment, white space, quotes, backslash or `$` (which the kubelet
    /// would expand in an environment variable).
    pub const PATTERN: &'static str = concat!("^(", s3!(), "|", file!(), r#"|https?://[^\s?#@"'\\$/][^\s?#@"'\\$]*)$"#);
    /// The same for a place that is written to: http and https can only be read.
    pub const WRITABLE: &'static str = concat!("^(", s3!(), "|", file!(), ")$");

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This URI with `/` and `name` after it.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        Self(format!("{}/{}", self.0.trim_end_matches('/'), name))
    }
}

impl From<&str> for Uri {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for Uri {
    fn schema_name() -> Cow<'static, str> {
        "Uri".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 1024, "pattern": Self::PATTERN, "x-kubernetes-validations": [{
            "rule": "!self.matches('/[.][.]?(/|$)')",
            "message": ". and .. may not stand in a path; write the place itself",
        }]})
    }
}

/// The name of an object in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LocalReference {
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A content digest: `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(pub String);

impl Digest {
    /// What a digest looks like.
    pub const PATTERN: &'static str = "^sha256:[0-9a-f]{64}$";

    /// A digest from 64 hexadecimal digits.
    #[must_use]
    pub fn sha256(hex: &str) -> Self {
        Self(format!("sha256:{hex}"))
    }

    /// The digits without the `sha256:` before them.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.0.strip_prefix("sha256:").unwrap_or(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for Digest {
    fn schema_name() -> Cow<'static, str> {
        "Digest".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 71, "pattern": Self::PATTERN})
    }
}

/// One measured value: `test/accuracy` = `"0.931"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Metric {
    /// `<set>/<measure>`: set is validation, test, golden or newest; measure is accuracy, macroF1, weightedF1, auc or loss,
    /// of the newest set rows (how many were held out), and
    /// beside an incumbent accuracyDelta (how much more often the version is right, on the same rows) and accuracyDeltaError (the
    /// standard error of that).
    #[schemars(length(max = 64), regex(pattern = r"^[a-z]+/[A-Za-z0-9]+$"))]
    pub name: String,
    /// The value, with six decimals.
    pub value: Decimal,
}

impl Metric {
    /// A metric from a number; six decimals are kept.
    #[must_use]
    pub fn new(name: impl Into<String>, value: f64) -> Self {
        Self {
            name: name.into(),
            value: Decimal(format!("{value:.6}")),
        }
    }
}

/// The value of the metric called `name`.
#[must_use]
pub fn metric_value(metrics: &[Metric], name: &str) -> Option<f64> {
    metrics.iter().find(|m| m.name == name).and_then(|m| m.value.value())
}

/// What a pod computes on. It comes from the accelerator class in the operator's settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Device {
    /// An NVIDIA GPU; a pod that finds none fails loudly.
    Cuda,
    /// The processor, for clusters whose GPUs are simulated.
    #[default]
    Cpu,
}

/// Number format of matrix products and attention. A training keeps weights, moments and all figures of evaluation in single
/// precision; a server keeps weights in this format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Precision {
    /// `BFloat16` on GPUs (compute capability 8.0 and newer) and processors that compute in it, else `Float16` on GPUs and
    /// `Float32` on processors.
    #[default]
    Auto,
    /// Single precision throughout.
    Float32,
    /// bfloat16: the range of single precision in 16 bits.
    BFloat16,
    /// Half precision; in training with a loss scale that follows the gradients. For GPUs: processors are slow at it.
    Float16,
    /// Matrix products of 8 bits, for serving on processors; the rest in single precision. The artifact must hold the ranges
    /// of the model's inner numbers, as those that this release trains do.
    Int8,
}

/// What a model is made to do; fixes inputs, outputs, loss and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Task {
    /// One text in, one of several labels out.
    TextClassification,
}
