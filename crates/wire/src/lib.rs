//! What clients of a serving pod send and get: bodies of `/predict` and `/feedback`, receipts, the Open Inference Protocol, errors, request ids, the OpenAPI document.
//!
//! Bytes come in, values or an [`error::Refusal`] go out; nothing here panics, whatever the bytes. This crate must not
//! use an async runtime, a Kubernetes client or tensors.

pub mod accept_encoding;
pub mod error;
pub mod experiment;
pub mod feedback;
pub mod grpc;
pub mod infer;
mod json;
pub mod openapi;
pub mod predict;
pub mod receipt;
pub mod request_id;
pub mod request_timeout;
pub mod trace_context;

pub use error::{ErrorBody, ErrorReason, Refusal};
pub use predict::{PredictRequest, PredictResponse, Prediction};
