//! The Open Inference Protocol, version 2: tensors in, tensors out.
//!
//! One input `text` of BYTES, shape `[n]` or `[n, 1]`, in UTF-8; three outputs for n texts. Source: the REST and gRPC
//! specifications of `kserve/open-inference-protocol`, and the binary tensor extension of the same protocol at Triton,
//! where the bytes of tensors follow the JSON and [`HEADER_LENGTH_HEADER`] says how long the JSON is.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::error::{ErrorReason, Refusal};
use crate::json;
use crate::predict::{Best, MAX_BODY_BYTES, MAX_TEXTS, check_texts, too_many_texts};

/// Path of the server's metadata; everything of the protocol is at or below it.
pub const SERVER_PATH: &str = "/v2";
/// Header with the bytes of the JSON in front of binary tensors, in both directions.
pub const HEADER_LENGTH_HEADER: &str = "inference-header-content-length";
/// Name of the input.
pub const INPUT: &str = "text";
/// Data type of texts and labels.
pub(crate) const BYTES: &str = "BYTES";
/// Data type of probabilities.
const FP32: &str = "FP32";
/// What computes.
pub(crate) const PLATFORM: &str = "flywheel_text_classification";
/// Most bytes of a request's own id.
const MAX_ID_BYTES: usize = 128;
/// Bytes of the length in front of each element of a binary BYTES tensor.
const LENGTH_BYTES: usize = size_of::<u32>();
const EXPECTED: &str = "an inference request with one input text of BYTES";
/// Parameters that ask for what this server does not do; passing them over would answer another question. All others are
/// hints and may be passed over.
const UNSUPPORTED: [&str; 7] = [
    "classification",
    "sequence_id",
    "sequence_start",
    "sequence_end",
    "shared_memory_region",
    "shared_memory_byte_size",
    "shared_memory_offset",
];

/// An output of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The most probable label, BYTES `[n]`.
    Label,
    /// Its probability, FP32 `[n]`.
    Probability,
    /// Probability of every label in their order, FP32 `[n, labels]`.
    AllProbs,
}

impl Output {
    /// All, in the order in which they are answered.
    pub const ALL: [Self; 3] = [Self::Label, Self::Probability, Self::AllProbs];

    /// Name of the tensor.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Label => "label",
            Self::Probability => "probability",
            Self::AllProbs => "all_probs",
        }
    }

    /// Data type of the tensor.
    #[must_use]
    pub fn datatype(self) -> &'static str {
        match self {
            Self::Label => BYTES,
            Self::Probability | Self::AllProbs => FP32,
        }
    }

    /// Shape for a number of texts (-1: any) and labels.
    #[must_use]
    pub fn shape(self, texts: i64, labels: usize) -> Vec<i64> {
        match self {
            Self::Label | Self::Probability => vec![texts],
            Self::AllProbs => vec![texts, i64::try_from(labels).unwrap_or(i64::MAX)],
        }
    }

    fn named(name: &str) -> Result<Self, Refusal> {
        Self::ALL
            .into_iter()
            .find(|output| output.name() == name)
            .ok_or_else(|| invalid("there is no such output; this model has label, probability and all_probs"))
    }
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorReason::InvalidRequest, message)
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InferRequest {
    /// The client's own id.
    pub id: Option<String>,
    /// The model, where the body names it as well: KServe's client does.
    pub model: Option<String>,
    /// 1 to [`MAX_TEXTS`] texts.
    pub texts: Vec<String>,
    /// What to answer, and whether as binary; in the order that was asked for.
    pub outputs: Vec<(Output, bool)>,
}

impl InferRequest {
    /// Reads and checks a body. `header_length`: bytes of the JSON, where [`HEADER_LENGTH_HEADER`] says it.
    ///
    /// # Errors
    /// As [`crate::PredictRequest::parse`], and [`ErrorReason::MalformedRequest`] where the body is shorter than its JSON
    /// should be.
    pub fn parse(body: &[u8], header_length: Option<usize>) -> Result<Self, Refusal> {
        let (text, binary) = body
            .split_at_checked(header_length.unwrap_or(body.len()))
            .ok_or_else(|| {
                Refusal::new(
                    ErrorReason::MalformedRequest,
                    format!("the body is shorter than {HEADER_LENGTH_HEADER} says"),
                )
            })?;
        // The parser looks at the strings only that it keeps.
        let text = std::str::from_utf8(text)
            .map_err(|_| Refusal::new(ErrorReason::MalformedJson, "the JSON is not in UTF-8"))?;
        let Object(request): Object<Body> =
            serde_json::from_str(text).map_err(|error| json::refuse(&error, EXPECTED))?;
        let Ok([Object(input)]) = <[Object<Input>; 1]>::try_from(request.inputs) else {
            return Err(invalid("send exactly one input, text"));
        };
        let binary_size = input.parameters.unwrap_or_default().binary_data_size;
        let texts = match (input.data, binary_size) {
            (Some(data), None) if binary.is_empty() => data,
            (None, Some(size)) if usize::try_from(size) == Ok(binary.len()) => elements(binary)?,
            _ => {
                return Err(invalid(format!(
                    "send either data, or binary_data_size with as many bytes behind the JSON and {HEADER_LENGTH_HEADER}"
                )));
            }
        };
        let tensor = Tensor {
            name: &input.name,
            datatype: &input.datatype,
            shape: &input.shape,
        };
        let default_binary = request
            .parameters
            .unwrap_or_default()
            .binary_data_output
            .unwrap_or(false);
        let outputs = request.outputs.unwrap_or_default().into_iter().map(|Object(output)| {
            let binary = output.parameters.unwrap_or_default().binary_data;
            (output.name, binary.unwrap_or(default_binary))
        });
        let checked = Self::checked(request.id, tensor, texts, outputs, default_binary)?;
        Ok(Self {
            model: request.model_name,
            ..checked
        })
    }

    /// Whether the body is about the model that is asked.
    ///
    /// # Errors
    /// [`ErrorReason::InvalidRequest`].
    pub fn is_for(&self, model: &str) -> Result<(), Refusal> {
        match &self.model {
            Some(other) if other != model => Err(invalid("model_name is not the model of the path; send one of them")),
            _ => Ok(()),
        }
    }

    /// The request from its parts; the outputs are all where none is named.
    pub(crate) fn checked(
        id: Option<String>,
        tensor: Tensor<'_>,
        texts: Texts,
        outputs: impl Iterator<Item = (String, bool)>,
        binary: bool,
    ) -> Result<Self, Refusal> {
        if id.as_ref().is_some_and(|id| id.len() > MAX_ID_BYTES) {
            return Err(invalid(format!("id has more than {MAX_ID_BYTES} bytes; shorten it")));
        }
        if tensor.name != INPUT || tensor.datatype != BYTES {
            return Err(invalid("the one input is text of data type BYTES"));
        }
        let (&[rows] | &[rows, 1]) = tensor.shape else {
            return Err(invalid("the shape of text is [n] or [n, 1]"));
        };
        if usize::try_from(rows) != Ok(texts.count) {
            return Err(invalid(format!(
                "the shape of text and its {} elements do not fit together",
                texts.count
            )));
        }
        if texts.count > MAX_TEXTS {
            return Err(too_many_texts(texts.count, MAX_TEXTS));
        }
        check_texts(&texts.texts)?;
        let mut wanted: Vec<(Output, bool)> = Vec::new();
        for (name, binary) in outputs {
            let output = Output::named(&name)?;
            if wanted.iter().any(|(other, _)| *other == output) {
                return Err(invalid("an output is asked for twice"));
            }
            wanted.push((output, binary));
        }
        if wanted.is_empty() {
            wanted = Output::ALL.map(|output| (output, binary)).to_vec();
        }
        Ok(Self {
            id,
            model: None,
            texts: texts.texts,
            outputs: wanted,
        })
    }
}

/// What a tensor says of itself.
pub(crate) struct Tensor<'a> {
    pub name: &'a str,
    pub datatype: &'a str,
    pub shape: &'a [u64],
}

/// Bytes of the JSON, from the value of [`HEADER_LENGTH_HEADER`].
///
/// # Errors
/// [`ErrorReason::MalformedRequest`] for what is no number of bytes that a body may have.
pub fn header_length(value: &[u8]) -> Result<usize, Refusal> {
    std::str::from_utf8(value)
        .ok()
        .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .filter(|length| *length <= MAX_BODY_BYTES)
        .ok_or_else(|| {
            Refusal::new(
                ErrorReason::MalformedRequest,
                format!("{HEADER_LENGTH_HEADER} must be the bytes of the JSON, at most {MAX_BODY_BYTES}"),
            )
        })
}

/// The first [`MAX_TEXTS`] elements of a tensor and how many it has; what is beyond is read over, not kept.
#[derive(Default)]
pub(crate) struct Texts {
    pub texts: Vec<String>,
    pub count: usize,
}

impl Texts {
    fn push(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        if self.texts.len() < MAX_TEXTS {
            let text = std::str::from_utf8(bytes)
                .map_err(|_| invalid(format!("element {} of text is not in UTF-8", self.count)))?;
            self.texts.push(text.to_owned());
        }
        self.count += 1;
        Ok(())
    }

    /// From elements as they are.
    pub fn of<'a>(elements: impl Iterator<Item = &'a [u8]>) -> Result<Self, Refusal> {
        let mut texts = Self::default();
        for element in elements {
            texts.push(element)?;
        }
        Ok(texts)
    }
}

/// Elements of a binary BYTES tensor: each its length as a little-endian u32, then its bytes.
pub(crate) fn elements(mut binary: &[u8]) -> Result<Texts, Refusal> {
    let broken = || {
        invalid(
            "the elements of text do not fill its bytes: each is its length in 4 bytes, low byte first, and then itself",
        )
    };
    let mut texts = Texts::default();
    while !binary.is_empty() {
        let (length, rest) = binary.split_first_chunk::<LENGTH_BYTES>().ok_or_else(broken)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| broken())?;
        let (element, rest) = rest.split_at_checked(length).ok_or_else(broken)?;
        texts.push(element)?;
        binary = rest;
    }
    Ok(texts)
}

/// An object and nothing else: a derived struct would take a list of its fields as well.
struct Object<T>(T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: DeserializeOwned> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor(std::marker::PhantomData))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    id: Option<String>,
    model_name: Option<String>,
    parameters: Option<Parameters>,
    inputs: Vec<Object<Input>>,
    outputs: Option<Vec<Object<RequestedOutput>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    name: String,
    shape: Vec<u64>,
    datatype: String,
    parameters: Option<Parameters>,
    data: Option<Texts>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestedOutput {
    name: String,
    parameters: Option<Parameters>,
}

/// The parameters that are known.
#[derive(Default)]
struct Parameters {
    binary_data_size: Option<u64>,
    binary_data: Option<bool>,
    binary_data_output: Option<bool>,
}

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ParametersVisitor;
        impl<'de> Visitor<'de> for ParametersVisitor {
            type Value = Parameters;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of parameters")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
                let mut known = Parameters::default();
                while let Some(name) = map.next_key::<String>()? {
                    let again = match name.as_str() {
                        "binary_data_size" => known.binary_data_size.replace(map.next_value()?).is_some(),
                        "binary_data" => known.binary_data.replace(map.next_value()?).is_some(),
                        "binary_data_output" => known.binary_data_output.replace(map.next_value()?).is_some(),
                        name => {
                            supported(name).map_err(de::Error::custom)?;
                            map.next_value::<IgnoredAny>()?;
                            false
                        }
                    };
                    if again {
                        return Err(de::Error::custom("a parameter is given twice"));
                    }
                }
                Ok(known)
            }
        }
        deserializer.deserialize_map(ParametersVisitor)
    }
}

/// Refuses a parameter by its name.
pub(crate) fn supported(name: &str) -> Result<(), String> {
    match UNSUPPORTED.iter().find(|unsupported| **unsupported == name) {
        Some(name) => Err(format!("the parameter {name} is not supported; leave it out")),
        None => Ok(()),
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Elements one after another, or one in a list of its own each.
        struct Elements<'a>(&'a mut Texts, bool);

        impl<'de> de::DeserializeSeed<'de> for Elements<'_> {
            type Value = ();

            fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
                deserializer.deserialize_any(self)
            }
        }

        impl<'de> Visitor<'de> for Elements<'_> {
            type Value = ();

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of strings")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
                self.0.push(text.as_bytes()).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
                if self.1 {
                    return Err(de::Error::custom("a list that is too deep, expected strings"));
                }
                while list.next_element_seed(Elements(self.0, true))?.is_some() {}
                Ok(())
            }
        }

        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of strings")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
                let mut texts = Texts::default();
                while list.next_element_seed(Elements(&mut texts, false))?.is_some() {}
                Ok(texts)
            }
        }
        deserializer.deserialize_seq(List)
    }
}

/// The texts' answers, from which outputs are made.
pub struct Answers<'a> {
    labels: &'a [String],
    rows: &'a [Vec<f32>],
    best: Vec<Best<'a>>,
}

impl<'a> Answers<'a> {
    /// From each text's probabilities in the order of the labels.
    ///
    /// # Errors
    /// As [`crate::Prediction::new`].
    pub fn new(labels: &'a [String], rows: &'a [Vec<f32>]) -> Result<Self, Refusal> {
        let best = rows.iter().map(|row| Best::of(labels, row)).collect::<Result<_, _>>()?;
        Ok(Self { labels, rows, best })
    }

    /// Shape of an output.
    #[must_use]
    pub fn shape(&self, output: Output) -> Vec<i64> {
        output.shape(i64::try_from(self.rows.len()).unwrap_or(i64::MAX), self.labels.len())
    }

    /// Labels of the texts.
    pub(crate) fn labels(&self) -> impl Iterator<Item = &'a str> {
        self.best.iter().map(|best| best.label)
    }

    /// Numbers of an output; none for labels.
    pub(crate) fn numbers(&self, output: Output) -> Vec<f32> {
        match output {
            Output::Label => Vec::new(),
            Output::Probability => self.best.iter().map(|best| best.probability).collect(),
            Output::AllProbs => self.rows.concat(),
        }
    }

    /// An output's bytes as a binary tensor.
    pub(crate) fn binary(&self, output: Output) -> Vec<u8> {
        if output == Output::Label {
            let mut bytes = Vec::new();
            for label in self.labels() {
                // An artifact's labels are far shorter.
                let length = u32::try_from(label.len()).unwrap_or(u32::MAX);
                bytes.extend_from_slice(&length.to_le_bytes());
                bytes.extend_from_slice(label.as_bytes());
            }
            return bytes;
        }
        self.numbers(output).into_iter().flat_map(f32::to_le_bytes).collect()
    }
}

/// A body to answer with.
#[derive(Debug)]
pub struct InferResponse {
    /// JSON, and binary tensors behind it.
    pub body: Vec<u8>,
    /// Bytes of the JSON where there are binary tensors: the value of [`HEADER_LENGTH_HEADER`].
    pub header_length: Option<usize>,
}

#[derive(Serialize)]
struct ResponseBody<'a> {
    model_name: &'a str,
    model_version: &'a str,
    id: &'a str,
    outputs: Vec<ResponseOutput<'a>>,
}

#[derive(Serialize)]
struct ResponseOutput<'a> {
    name: &'static str,
    datatype: &'static str,
    shape: Vec<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinarySize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Data<'a>>,
}

#[derive(Serialize)]
struct BinarySize {
    binary_data_size: usize,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data<'a> {
    Labels(Vec<&'a str>),
    Numbers(Vec<f32>),
}

impl InferResponse {
    /// The answer to a request. `id` is that of the request, or the one that was made for it.
    ///
    /// # Errors
    /// [`ErrorReason::InternalError`] where it cannot be written.
    pub fn new(
        outputs: &[(Output, bool)],
        model: &str,
        version: &str,
        id: &str,
        answers: &Answers<'_>,
    ) -> Result<Self, Refusal> {
        let mut binary = Vec::new();
        let outputs = outputs.iter().map(|&(output, as_binary)| {
            let (mut parameters, mut data) = (None, None);
            if as_binary {
                let bytes = answers.binary(output);
                parameters = Some(BinarySize {
                    binary_data_size: bytes.len(),
                });
                binary.extend_from_slice(&bytes);
            } else {
                data = Some(match output {
                    Output::Label => Data::Labels(answers.labels().collect()),
                    Output::Probability | Output::AllProbs => Data::Numbers(answers.numbers(output)),
                });
            }
            ResponseOutput {
                name: output.name(),
                datatype: output.datatype(),
                shape: answers.shape(output),
                parameters,
                data,
            }
        });
        let outputs: Vec<_> = outputs.collect();
        let any_binary = outputs.iter().any(|output| output.parameters.is_some());
        let response = ResponseBody {
            model_name: model,
            model_version: version,
            id,
            outputs,
        };
        let mut body = serde_json::to_vec(&response)
            .map_err(|_| Refusal::new(ErrorReason::InternalError, "the answer cannot be written as JSON"))?;
        let header_length = any_binary.then_some(body.len());
        body.extend_from_slice(&binary);
        Ok(Self { body, header_length })
    }
}

/// Extensions that the server has, as [`server_metadata`] names them.
pub const EXTENSIONS: [&str; 1] = ["binary_tensor_data"];
/// Name of the server, as [`server_metadata`] says it.
pub const SERVER_NAME: &str = "flywheel";

/// What [`SERVER_PATH`] answers; `version` is the program's.
#[must_use]
pub fn server_metadata(version: &str) -> Value {
    json!({"name": SERVER_NAME, "version": version, "extensions": EXTENSIONS})
}

/// Metadata of a model. The labels stand beside the output in whose order they are.
#[must_use]
pub fn model_metadata(model: &str, version: &str, labels: &[String]) -> Value {
    let outputs = Output::ALL.map(|output| {
        let mut tensor = json!({
            "name": output.name(), "datatype": output.datatype(), "shape": output.shape(-1, labels.len())
        });
        if output == Output::AllProbs
            && let Some(tensor) = tensor.as_object_mut()
        {
            tensor.insert("parameters".to_owned(), json!({"labels": labels}));
        }
        tensor
    });
    json!({
        "name": model, "versions": [version], "platform": PLATFORM,
        "inputs": [{"name": INPUT, "datatype": BYTES, "shape": [-1]}],
        "outputs": outputs,
    })
}

/// The body of a refusal in this protocol: `{"error": "Reason: message"}`.
#[must_use]
pub fn error_body(refusal: &Refusal) -> Vec<u8> {
    json!({"error": refusal.to_string()}).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<InferRequest, Refusal> {
        InferRequest::parse(body.as_bytes(), None)
    }

    fn reason(body: &str) -> ErrorReason {
        match parse(body) {
            Err(refusal) => refusal.reason,
            Ok(_) => panic!("accepted: {body}"),
        }
    }

    fn input(tail: &str) -> String {
        format!("{{\"inputs\": [{{\"name\": \"text\", \"datatype\": \"BYTES\", {tail}}}]}}")
    }

    fn with_binary(json: &Value, binary: &[u8]) -> Result<InferRequest, Refusal> {
        let json = json.to_string();
        InferRequest::parse(&[json.as_bytes(), binary].concat(), Some(json.len()))
    }

    #[test]
    fn the_model_may_be_named_once_more() {
        let body = input(r#""shape": [1], "data": ["a"]"#).replacen('{', r#"{"model_name": "intent", "#, 1);
        let request = parse(&body).unwrap();
        assert!(request.is_for("intent").is_ok());
        assert_eq!(request.is_for("other").unwrap_err().reason, ErrorReason::InvalidRequest);
        let unnamed = parse(&input(r#""shape": [1], "data": ["a"]"#)).unwrap();
        assert!(unnamed.is_for("other").is_ok());
    }

    #[test]
    fn json_in_its_forms() {
        let all = |binary| Output::ALL.map(|output| (output, binary)).to_vec();
        for shape in ["[2]", "[2, 1]"] {
            for data in [r#"["a", "é"]"#, r#"[["a"], ["é"]]"#, r#"["a", ["é"]]"#] {
                let body = input(&format!(
                    "\"shape\": {shape}, \"data\": {data}, \"parameters\": {{\"content_type\": \"str\", \"x\": [[1e99999]]}}"
                ));
                let request = parse(&body).unwrap();
                assert_eq!(
                    (request.id, request.texts, request.outputs),
                    (None, vec!["a".to_owned(), "é".to_owned()], all(false))
                );
            }
        }
        let body = json!({
            "id": "42", "parameters": {"binary_data_output": true}, "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}],
            "outputs": [{"name": "all_probs"}, {"name": "label", "parameters": {"binary_data": false}}]
        });
        let request = parse(&body.to_string()).unwrap();
        assert_eq!(request.id.as_deref(), Some("42"));
        assert_eq!(request.outputs, [(Output::AllProbs, true), (Output::Label, false)]);
    }

    #[test]
    fn binary_tensors() {
        let json = |size: usize, n: usize| {
            json!({
                "inputs": [{"name": "text", "shape": [n], "datatype": "BYTES", "parameters": {"binary_data_size": size}}],
                "parameters": {"binary_data_output": true},
            })
        };
        let good = b"\x01\0\0\0a\x02\0\0\0\xc3\xa9";
        let request = with_binary(&json(good.len(), 2), good).unwrap();
        assert_eq!(request.texts, ["a", "é"]);
        assert!(request.outputs.iter().all(|(_, binary)| *binary));
        for (binary, n) in [
            (&b"\x01\0\0\0a\x02\0\0\0\xc3"[..], 2),
            (b"\x01\0\0\0a\x02\0\0", 2),
            (b"\xff\xff\xff\xffa", 1),
            (b"\x01\0\0\0\xff", 1),
            (good, 3),
            (good, 1),
            (b"", 1),
        ] {
            let refusal = with_binary(&json(binary.len(), n), binary).unwrap_err();
            assert_eq!(refusal.reason, ErrorReason::InvalidRequest, "{binary:?} {n}");
        }
        // Lies about sizes.
        assert!(with_binary(&json(good.len() + 1, 2), good).is_err());
        assert!(with_binary(&json(good.len() - 1, 2), good).is_err());
        assert!(InferRequest::parse(json(good.len(), 2).to_string().as_bytes(), None).is_err());
        let text = json(0, 1).to_string();
        assert_eq!(
            InferRequest::parse(text.as_bytes(), Some(text.len() + 1))
                .unwrap_err()
                .reason,
            ErrorReason::MalformedRequest
        );
        let many: Vec<u8> = b"\x01\0\0\0a".repeat(MAX_TEXTS + 1);
        assert_eq!(
            with_binary(&json(many.len(), MAX_TEXTS + 1), &many).unwrap_err().reason,
            ErrorReason::TooManyTexts
        );
    }

    #[test]
    fn what_is_refused() {
        for tail in [
            "\"shape\": [], \"data\": [\"a\"]",
            "\"shape\": [1, 2], \"data\": [\"a\", \"b\"]",
            "\"shape\": [1, 1, 1], \"data\": [\"a\"]",
            "\"shape\": [2], \"data\": [\"a\"]",
            "\"shape\": [0], \"data\": [\"a\"]",
            "\"shape\": [-1], \"data\": [\"a\"]",
            "\"shape\": [1.0], \"data\": [\"a\"]",
            "\"shape\": [18446744073709551615, 2], \"data\": [\"a\"]",
            "\"shape\": [18446744073709551616], \"data\": [\"a\"]",
            "\"shape\": \"1\", \"data\": [\"a\"]",
            "\"shape\": [1], \"data\": \"a\"",
            "\"shape\": [1], \"data\": [1]",
            "\"shape\": [1], \"data\": [null]",
            "\"shape\": [1], \"data\": [[[\"a\"]]]",
            "\"shape\": [1], \"data\": {\"0\": \"a\"}",
            "\"shape\": [1], \"data\": null",
            "\"shape\": [1]",
            "\"shape\": [1], \"data\": [\"a\"], \"SECRET\": 1",
            "\"shape\": [1], \"data\": [\"a\"], \"shape\": [1]",
            "\"shape\": [1], \"data\": [\"a\"], \"parameters\": []",
            "\"shape\": [1], \"data\": [\"a\"], \"parameters\": {\"binary_data_size\": 5}",
            "\"shape\": [1], \"data\": [\"a\"], \"parameters\": {\"binary_data_size\": -1}",
            "\"shape\": [1], \"data\": [\"a\"], \"parameters\": {\"binary_data\": true, \"binary_data\": true}",
            "\"shape\": [1], \"data\": [\"a\"], \"parameters\": {\"shared_memory_region\": \"SECRET\"}",
        ] {
            let body = input(tail);
            assert_eq!(reason(&body), ErrorReason::InvalidRequest, "{body}");
        }
        let text = json!({"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]});
        for body in [
            json!(null),
            json!([]),
            json!({}),
            json!([null, null, [text], null]),
            json!({"inputs": []}),
            json!({"inputs": [text, text]}),
            json!({"inputs": {"text": "a"}}),
            json!({"inputs": [["text", [1], "BYTES", null, ["a"]]]}),
            json!({"inputs": [{"name": "SECRET", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}),
            json!({"inputs": [{"name": "text", "shape": [1], "datatype": "FP32", "data": ["a"]}]}),
            json!({"inputs": [text], "outputs": [{"name": "SECRET"}]}),
            json!({"inputs": [text], "outputs": [{"name": "label"}, {"name": "label"}]}),
            json!({"inputs": [text], "outputs": ["label"]}),
            json!({"inputs": [text], "outputs": [{"name": "label", "parameters": {"classification": 3}}]}),
            json!({"inputs": [text], "parameters": {"sequence_id": 1}}),
            json!({"inputs": [text], "id": 7}),
            json!({"inputs": [text], "id": "x".repeat(129)}),
            json!({"inputs": [text], "SECRET": true}),
        ] {
            let refusal = parse(&body.to_string()).unwrap_err();
            assert_eq!(refusal.reason, ErrorReason::InvalidRequest, "{body}");
            assert!(!refusal.message.contains("SECRET"), "{refusal}");
        }
        assert_eq!(reason(&input("\"shape\": [0], \"data\": []")), ErrorReason::EmptyText);
        assert_eq!(
            reason(&input("\"shape\": [1], \"data\": [\" \"]")),
            ErrorReason::EmptyText
        );
        assert_eq!(reason("{\"inputs\": ["), ErrorReason::MalformedJson);
        // Also where nothing is kept of it.
        let hint = input("\"shape\": [1], \"data\": [\"a\"], \"parameters\": {\"hint\": \"?\"}").into_bytes();
        let hint: Vec<u8> = hint.into_iter().map(|b| if b == b'?' { 0xff } else { b }).collect();
        assert_eq!(
            InferRequest::parse(&hint, None).unwrap_err().reason,
            ErrorReason::MalformedJson
        );
        let many = format!("\"shape\": [200], \"data\": {}", json!(vec!["a"; 200]));
        assert_eq!(reason(&input(&many)), ErrorReason::TooManyTexts);
    }

    #[test]
    fn the_length_of_the_json_is_digits() {
        assert_eq!(header_length(b"12").unwrap(), 12);
        for bad in ["", "-1", "+1", "1.0", "0x1", " 1", "1048577", "99999999999999999999"] {
            assert_eq!(
                header_length(bad.as_bytes()).unwrap_err().reason,
                ErrorReason::MalformedRequest,
                "{bad}"
            );
        }
    }

    #[test]
    fn answers_in_both_forms() {
        let (labels, rows) = (["a", "bc"].map(str::to_owned), [vec![0.25, 0.75], vec![0.5, 0.5]]);
        let answers = Answers::new(&labels, &rows).unwrap();
        let json = InferResponse::new(&Output::ALL.map(|o| (o, false)), "m", "v", "7", &answers).unwrap();
        assert_eq!(json.header_length, None);
        assert_eq!(
            serde_json::from_slice::<Value>(&json.body).unwrap(),
            json!({"model_name": "m", "model_version": "v", "id": "7", "outputs": [
                {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["bc", "a"]},
                {"name": "probability", "datatype": "FP32", "shape": [2], "data": [0.75, 0.5]},
                {"name": "all_probs", "datatype": "FP32", "shape": [2, 2], "data": [0.25, 0.75, 0.5, 0.5]},
            ]})
        );
        let binary = InferResponse::new(
            &[(Output::Label, true), (Output::Probability, true)],
            "m",
            "v",
            "7",
            &answers,
        )
        .unwrap();
        let (json, bytes) = binary.body.split_at(binary.header_length.unwrap());
        let outputs = serde_json::from_slice::<Value>(json).unwrap()["outputs"].clone();
        assert_eq!(outputs[0]["parameters"]["binary_data_size"], json!(11));
        assert_eq!(outputs[1]["parameters"]["binary_data_size"], json!(8));
        assert_eq!(bytes, b"\x02\0\0\0bc\x01\0\0\0a\0\0\x40\x3f\0\0\0\x3f");
        assert!(Answers::new(&labels, &[vec![f32::NAN, 0.0]]).is_err());
    }
}
