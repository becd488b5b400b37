//! The Open Inference Protocol over gRPC: messages of `inference.GRPCInferenceService`, and those of `grpc.health.v1.Health`.
//!
//! Written from `open_inference_grpc.proto` of `kserve/open-inference-protocol` and `health.proto` of `grpc/grpc-proto`. Fields
//! of the first that carry other data types than BYTES are not read, as there is no tensor of them.

use std::collections::HashMap;

use prost::Message;
use prost::bytes::Bytes;
use prost::encoding::{DecodeContext, decode_key, skip_field};

use crate::error::{ErrorReason, Refusal};
use crate::infer::{self, Answers, InferRequest, Output, Tensor, Texts};

/// Full name of the service.
pub const SERVICE: &str = "inference.GRPCInferenceService";
/// Full name of gRPC's own health service.
pub const HEALTH_SERVICE: &str = "grpc.health.v1.Health";
/// Header with the time that a client waits, in gRPC's own units.
pub const TIMEOUT_HEADER: &str = "grpc-timeout";
/// Header with the way in which a message is compressed.
pub const ENCODING_HEADER: &str = "grpc-encoding";
/// Header with the ways that the other side takes.
pub const ACCEPT_ENCODING_HEADER: &str = "grpc-accept-encoding";
/// Most fields of a message at its top. A few bytes each become hundreds in memory, so they are counted first.
const MAX_FIELDS: usize = 256;

/// Codes of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    /// The request is wrong.
    InvalidArgument = 3,
    /// Too late.
    DeadlineExceeded = 4,
    /// No such model or version.
    NotFound = 5,
    /// Full, or more than one request may have.
    ResourceExhausted = 8,
    /// No such method.
    Unimplemented = 12,
    /// A fault of ours.
    Internal = 13,
    /// Not ready, or ending.
    Unavailable = 14,
}

impl Code {
    /// The code for a reason.
    #[must_use]
    pub fn of(reason: ErrorReason) -> Self {
        match reason {
            ErrorReason::MalformedJson
            | ErrorReason::MalformedRequest
            | ErrorReason::LengthRequired
            | ErrorReason::UnsupportedMediaType
            | ErrorReason::InvalidRequest
            | ErrorReason::EmptyText
            | ErrorReason::TextTooLong
            | ErrorReason::TooManyTexts => Self::InvalidArgument,
            ErrorReason::NotFound => Self::NotFound,
            ErrorReason::MethodNotAllowed => Self::Unimplemented,
            ErrorReason::BodyTooLarge | ErrorReason::TooManyRequests => Self::ResourceExhausted,
            ErrorReason::BodyTimeout | ErrorReason::DeadlineExceeded => Self::DeadlineExceeded,
            ErrorReason::InternalError => Self::Internal,
            ErrorReason::NotReady | ErrorReason::Draining => Self::Unavailable,
        }
    }
}

/// Bytes in front of a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// The one message of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// As it is.
    Plain(&'a [u8]),
    /// Compressed, in the way that `grpc-encoding` says.
    Compressed(&'a [u8]),
}

/// Reads the frame of a body, which is to be one whole message.
///
/// # Errors
/// [`ErrorReason::InvalidRequest`].
pub fn frame(body: &[u8]) -> Result<Frame<'_>, Refusal> {
    let invalid = |message: &str| Err(Refusal::new(ErrorReason::InvalidRequest, message));
    let Some(([compressed, length @ ..], message)) = body.split_first_chunk::<PREFIX_BYTES>() else {
        return invalid("send one message");
    };
    if usize::try_from(u32::from_be_bytes(*length)) != Ok(message.len()) {
        return invalid("send exactly one message, of the length that stands before it");
    }
    match compressed {
        0 => Ok(Frame::Plain(message)),
        1 => Ok(Frame::Compressed(message)),
        _ => invalid("say with 0 or 1 whether the message is compressed"),
    }
}

/// A body of one plain message.
#[must_use]
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(PREFIX_BYTES + message.len());
    body.push(0);
    // A body of more than 4 GiB is none that a reader has taken.
    body.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    body.extend_from_slice(message);
    body
}

/// Reads a message.
///
/// # Errors
/// [`ErrorReason::InvalidRequest`] for what is none, or has more fields than any needs.
pub fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, Refusal> {
    let broken = || Refusal::new(ErrorReason::InvalidRequest, "the message is not what this method takes");
    let mut rest = bytes.as_ref();
    let mut fields = 0;
    while !rest.is_empty() {
        fields += 1;
        if fields > MAX_FIELDS {
            return Err(Refusal::new(
                ErrorReason::InvalidRequest,
                format!("the message has more than {MAX_FIELDS} fields; send one input"),
            ));
        }
        let (tag, kind) = decode_key(&mut rest).map_err(|_| broken())?;
        skip_field(kind, tag, &mut rest, DecodeContext::default()).map_err(|_| broken())?;
    }
    M::decode(bytes).map_err(|_| broken())
}

/// Any message without fields, such as `ServerLiveRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Nothing {}

/// Answer of `ServerLive`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ServerLiveResponse {
    /// Whether it listens.
    #[prost(bool, tag = "1")]
    pub live: bool,
}

/// Answer of `ServerReady` and `ModelReady`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReadyResponse {
    /// Whether it answers.
    #[prost(bool, tag = "1")]
    pub ready: bool,
}

/// Question of `ModelReady` and `ModelMetadata`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ModelRequest {
    /// Name of the InferenceService.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Name of the ModelVersion; empty for any.
    #[prost(string, tag = "2")]
    pub version: String,
}

/// Answer of `ServerMetadata`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ServerMetadataResponse {
    /// Name of the server.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The program's version.
    #[prost(string, tag = "2")]
    pub version: String,
    /// Extensions.
    #[prost(string, repeated, tag = "3")]
    pub extensions: Vec<String>,
}

impl ServerMetadataResponse {
    /// As [`infer::server_metadata`].
    #[must_use]
    pub fn new(version: &str) -> Self {
        Self {
            name: infer::SERVER_NAME.to_owned(),
            version: version.to_owned(),
            extensions: infer::EXTENSIONS.map(str::to_owned).to_vec(),
        }
    }
}

/// Answer of `ModelMetadata`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ModelMetadataResponse {
    /// Name of the InferenceService.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Name of the ModelVersion.
    #[prost(string, repeated, tag = "2")]
    pub versions: Vec<String>,
    /// What computes.
    #[prost(string, tag = "3")]
    pub platform: String,
    /// The input.
    #[prost(message, repeated, tag = "4")]
    pub inputs: Vec<TensorMetadata>,
    /// The outputs.
    #[prost(message, repeated, tag = "5")]
    pub outputs: Vec<TensorMetadata>,
}

/// What a tensor looks like.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TensorMetadata {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its data type.
    #[prost(string, tag = "2")]
    pub datatype: String,
    /// Its shape; -1 is any number.
    #[prost(int64, repeated, tag = "3")]
    pub shape: Vec<i64>,
}

impl ModelMetadataResponse {
    /// As [`infer::model_metadata`], for which this protocol has no place for the labels' names.
    #[must_use]
    pub fn new(model: &str, version: &str, labels: usize) -> Self {
        Self {
            name: model.to_owned(),
            versions: vec![version.to_owned()],
            platform: infer::PLATFORM.to_owned(),
            inputs: vec![TensorMetadata {
                name: infer::INPUT.to_owned(),
                datatype: infer::BYTES.to_owned(),
                shape: vec![-1],
            }],
            outputs: Output::ALL
                .map(|output| TensorMetadata {
                    name: output.name().to_owned(),
                    datatype: output.datatype().to_owned(),
                    shape: output.shape(-1, labels),
                })
                .to_vec(),
        }
    }
}

/// Question of `ModelInfer`.
#[derive(Clone, PartialEq, Message)]
pub struct ModelInferRequest {
    /// Name of the InferenceService.
    #[prost(string, tag = "1")]
    pub model_name: String,
    /// Name of the ModelVersion; empty for any.
    #[prost(string, tag = "2")]
    pub model_version: String,
    /// The client's own id.
    #[prost(string, tag = "3")]
    pub id: String,
    /// Parameters by name.
    #[prost(map = "string, message", tag = "4")]
    pub parameters: HashMap<String, Parameter>,
    /// The input.
    #[prost(message, repeated, tag = "5")]
    pub inputs: Vec<InferTensor>,
    /// What to answer; all where none is named.
    #[prost(message, repeated, tag = "6")]
    pub outputs: Vec<RequestedOutput>,
    /// The input's elements, each its length and itself.
    #[prost(bytes = "bytes", repeated, tag = "7")]
    pub raw_input_contents: Vec<Bytes>,
}

/// A parameter's value, of which nothing is read.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Parameter {}

/// A tensor of a question or an answer.
#[derive(Clone, PartialEq, Message)]
pub struct InferTensor {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its data type.
    #[prost(string, tag = "2")]
    pub datatype: String,
    /// Its shape.
    #[prost(int64, repeated, tag = "3")]
    pub shape: Vec<i64>,
    /// Parameters by name.
    #[prost(map = "string, message", tag = "4")]
    pub parameters: HashMap<String, Parameter>,
    /// Its elements, unless they are raw.
    #[prost(message, optional, tag = "5")]
    pub contents: Option<Contents>,
}

/// Elements of a tensor.
#[derive(Clone, PartialEq, Message)]
pub struct Contents {
    /// Of FP32.
    #[prost(float, repeated, tag = "6")]
    pub fp32_contents: Vec<f32>,
    /// Of BYTES.
    #[prost(bytes = "bytes", repeated, tag = "8")]
    pub bytes_contents: Vec<Bytes>,
}

/// An output that is asked for.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RequestedOutput {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Parameters by name.
    #[prost(map = "string, message", tag = "2")]
    pub parameters: HashMap<String, Parameter>,
}

impl ModelInferRequest {
    /// What is asked for. An output is answered raw where the input was raw.
    ///
    /// # Errors
    /// As [`InferRequest::parse`].
    pub fn request(self) -> Result<InferRequest, Refusal> {
        let invalid = |message: String| Refusal::new(ErrorReason::InvalidRequest, message);
        let Ok([input]) = <[InferTensor; 1]>::try_from(self.inputs) else {
            return Err(invalid("send exactly one input, text".to_owned()));
        };
        let names = [&self.parameters, &input.parameters];
        let names = names
            .into_iter()
            .chain(self.outputs.iter().map(|output| &output.parameters));
        for name in names.flat_map(HashMap::keys) {
            infer::supported(name).map_err(invalid)?;
        }
        let texts = match (input.contents, self.raw_input_contents.as_slice()) {
            (Some(contents), []) => Texts::of(contents.bytes_contents.iter().map(Bytes::as_ref))?,
            (None, [raw]) => infer::elements(raw)?,
            _ => {
                return Err(invalid(
                    "send either bytes_contents or one of raw_input_contents".to_owned(),
                ));
            }
        };
        let raw = !self.raw_input_contents.is_empty();
        // What is below 0 fits to no number of elements.
        let shape: Vec<u64> = input
            .shape
            .into_iter()
            .map(|n| u64::try_from(n).unwrap_or(u64::MAX))
            .collect();
        let tensor = Tensor {
            name: &input.name,
            datatype: &input.datatype,
            shape: &shape,
        };
        let outputs = self.outputs.into_iter().map(|output| (output.name, raw));
        InferRequest::checked(Some(self.id).filter(|id| !id.is_empty()), tensor, texts, outputs, raw)
    }
}

/// Answer of `ModelInfer`.
#[derive(Clone, PartialEq, Message)]
pub struct ModelInferResponse {
    /// Name of the InferenceService.
    #[prost(string, tag = "1")]
    pub model_name: String,
    /// Name of the ModelVersion that answered.
    #[prost(string, tag = "2")]
    pub model_version: String,
    /// Id of the request, or the one that was made for it.
    #[prost(string, tag = "3")]
    pub id: String,
    /// The outputs.
    #[prost(message, repeated, tag = "5")]
    pub outputs: Vec<InferTensor>,
    /// Their elements, where they are raw.
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub raw_output_contents: Vec<Bytes>,
}

impl ModelInferResponse {
    /// The answer to a request.
    #[must_use]
    pub fn new(outputs: &[(Output, bool)], model: &str, version: &str, id: &str, answers: &Answers<'_>) -> Self {
        let mut response = Self {
            model_name: model.to_owned(),
            model_version: version.to_owned(),
            id: id.to_owned(),
            ..Self::default()
        };
        for &(output, raw) in outputs {
            let contents = if raw {
                response.raw_output_contents.push(answers.binary(output).into());
                None
            } else {
                let labels = answers.labels().filter(|_| output == Output::Label);
                Some(Contents {
                    fp32_contents: answers.numbers(output),
                    bytes_contents: labels.map(|label| Bytes::copy_from_slice(label.as_bytes())).collect(),
                })
            };
            response.outputs.push(InferTensor {
                name: output.name().to_owned(),
                datatype: output.datatype().to_owned(),
                shape: answers.shape(output),
                parameters: HashMap::new(),
                contents,
            });
        }
        response
    }
}

/// Question of gRPC's health service.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct HealthCheckRequest {
    /// Full name of a service; empty for the server.
    #[prost(string, tag = "1")]
    pub service: String,
}

/// Its answer.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct HealthCheckResponse {
    /// 1 for serving, 2 for not serving.
    #[prost(int32, tag = "1")]
    pub status: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> ModelInferRequest {
        ModelInferRequest {
            inputs: vec![InferTensor {
                name: "text".to_owned(),
                datatype: "BYTES".to_owned(),
                shape: vec![2],
                contents: Some(Contents {
                    bytes_contents: vec![Bytes::from_static(b"a"), Bytes::from_static(b"\xc3\xa9")],
                    ..Contents::default()
                }),
                ..InferTensor::default()
            }],
            ..ModelInferRequest::default()
        }
    }

    fn raw(bytes: &'static [u8]) -> ModelInferRequest {
        let mut raw = request();
        raw.inputs[0].contents = None;
        raw.raw_input_contents = vec![Bytes::from_static(bytes)];
        raw
    }

    #[test]
    fn both_forms_of_elements() {
        let texts = request().request().unwrap();
        assert_eq!(texts.texts, ["a", "é"]);
        assert_eq!(texts.outputs, Output::ALL.map(|output| (output, false)));
        let texts = raw(b"\x01\0\0\0a\x02\0\0\0\xc3\xa9").request().unwrap();
        assert_eq!(texts.texts, ["a", "é"]);
        assert!(texts.outputs.iter().all(|(_, raw)| *raw));
        let bytes = Bytes::from(request().encode_to_vec());
        assert_eq!(decode::<ModelInferRequest>(bytes).unwrap(), request());
    }

    #[test]
    fn what_is_refused() {
        let changed = |change: fn(&mut ModelInferRequest)| {
            let mut request = request();
            change(&mut request);
            request.request().unwrap_err()
        };
        let changes: [fn(&mut ModelInferRequest); 9] = [
            |r| r.inputs.clear(),
            |r| r.inputs.push(r.inputs[0].clone()),
            |r| r.inputs[0].shape = vec![-1],
            |r| r.inputs[0].shape = vec![3],
            |r| r.inputs[0].datatype = "FP32".to_owned(),
            |r| r.inputs[0].contents = None,
            |r| r.raw_input_contents.push(Bytes::new()),
            |r| {
                r.outputs.push(RequestedOutput {
                    name: "other".to_owned(),
                    ..RequestedOutput::default()
                })
            },
            |r| r.parameters.extend([("sequence_id".to_owned(), Parameter {})]),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            assert_eq!(changed(change).reason, ErrorReason::InvalidRequest, "{index}");
        }
        assert_eq!(
            raw(b"\x02\0\0\0a").request().unwrap_err().reason,
            ErrorReason::InvalidRequest
        );
    }

    #[test]
    fn a_body_is_one_message() {
        for message in [&b""[..], b"ab"] {
            assert_eq!(frame(&framed(message)), Ok(Frame::Plain(message)));
        }
        assert_eq!(frame(b"\x01\0\0\0\x02ab"), Ok(Frame::Compressed(b"ab")));
        for body in [
            &b""[..],
            b"\0\0\0\0",
            b"\x01\0\0\0\x01",
            b"\x02\0\0\0\0",
            b"\xff\0\0\0\0",
            b"\0\0\0\0\x03ab",
            b"\0\0\0\0\x01ab",
            b"\0\xff\xff\xff\xffab",
            b"\0\0\0\0\0\0\0\0\0\0",
        ] {
            assert_eq!(frame(body).unwrap_err().reason, ErrorReason::InvalidRequest, "{body:?}");
        }
    }

    #[test]
    fn small_fields_in_masses_are_not_unfolded() {
        // An empty input is two bytes here and two hundred in memory.
        let many = Bytes::from([0x2a, 0x00].repeat(MAX_FIELDS + 1));
        assert!(
            decode::<ModelInferRequest>(many)
                .unwrap_err()
                .message
                .contains("fields")
        );
        for broken in [
            &b"\x2a"[..],
            b"\x2a\x05a",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x0b",
            b"\x0a\x01\xff",
        ] {
            let refusal = decode::<ModelInferRequest>(Bytes::copy_from_slice(broken)).unwrap_err();
            assert_eq!(refusal.reason, ErrorReason::InvalidRequest, "{broken:?}");
        }
    }

    #[test]
    fn answers_in_both_forms() {
        let (labels, rows) = (["a", "bc"].map(str::to_owned), [vec![0.25, 0.75]]);
        let answers = Answers::new(&labels, &rows).unwrap();
        let plain = ModelInferResponse::new(&Output::ALL.map(|o| (o, false)), "m", "v", "7", &answers);
        let contents = |i: usize| plain.outputs[i].contents.clone().unwrap();
        assert_eq!(contents(0).bytes_contents, [&b"bc"[..]]);
        assert_eq!(
            (contents(1).fp32_contents, contents(2).fp32_contents),
            (vec![0.75], vec![0.25, 0.75])
        );
        let raw = ModelInferResponse::new(&[(Output::Label, true)], "m", "v", "7", &answers);
        assert_eq!(
            (raw.raw_output_contents, raw.outputs[0].contents.clone()),
            (vec![Bytes::from_static(b"\x02\0\0\0bc")], None)
        );
    }
}
