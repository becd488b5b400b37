//! Reading a request's body within bounds of size, time and memory of all bodies together.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, TRANSFER_ENCODING};
use axum::http::{HeaderMap, HeaderValue};
use bytes::{Bytes, BytesMut};
use flywheel_wire::error::{ErrorReason, Refusal};
use flywheel_wire::predict::MAX_BODY_BYTES;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::app::BODY_UNIT_BYTES;
use crate::connection::SLOW;

/// Bytes of a refused body that are read and thrown away, so that a client that is still writing gets the answer instead
/// of a reset connection.
const DISCARD_BYTES: usize = 4 * MAX_BODY_BYTES;
/// How long that may take.
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// What a body may be.
#[derive(Clone, Copy)]
pub(super) enum Media {
    /// JSON, and said to be.
    Json,
    /// JSON, with or without binary tensors behind it. Clients of the Open Inference Protocol often say nothing.
    Tensors,
}

impl Media {
    fn takes(self, kind: Option<&HeaderValue>) -> bool {
        let Some(kind) = kind else {
            return matches!(self, Self::Tensors);
        };
        let name = kind
            .to_str()
            .ok()
            .and_then(|text| text.split(';').next())
            .unwrap_or_default()
            .trim();
        name.eq_ignore_ascii_case("application/json")
            || matches!(self, Self::Tensors) && name.eq_ignore_ascii_case("application/octet-stream")
    }
}

/// What the headers say about a body that cannot be taken.
pub(super) fn check_headers(headers: &HeaderMap, body: &Body, media: Media) -> Result<(), Refusal> {
    let unsupported = |message: &str| Refusal::new(ErrorReason::UnsupportedMediaType, message);
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    if !media.takes(types.next()) || types.next().is_some() {
        return Err(unsupported("send JSON with the header Content-Type: application/json"));
    }
    if headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|v| !v.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        return Err(unsupported(
            "send the body without Content-Encoding; compressed bodies are not read",
        ));
    }
    if !headers.contains_key(CONTENT_LENGTH) && !headers.contains_key(TRANSFER_ENCODING) && body.is_end_stream() {
        return Err(Refusal::new(
            ErrorReason::LengthRequired,
            "send a body with Content-Length or Transfer-Encoding: chunked",
        ));
    }
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(too_large());
    }
    Ok(())
}

fn too_large() -> Refusal {
    Refusal::new(
        ErrorReason::BodyTooLarge,
        format!("the body has more than {MAX_BODY_BYTES} bytes; send several requests"),
    )
}

/// A body in memory. Its share of the budget is given back when it is dropped.
pub(super) struct Read {
    pub bytes: Bytes,
    _budget: Option<OwnedSemaphorePermit>,
}

/// Reads a body to its end.
pub(super) async fn read(body: &mut Body, budget: &Arc<Semaphore>) -> Result<Read, Refusal> {
    match timeout(SLOW, collect(body, budget)).await {
        Ok(result) => result,
        Err(_) => Err(Refusal::new(
            ErrorReason::BodyTimeout,
            format!("the body did not arrive within {} s", SLOW.as_secs()),
        )),
    }
}

async fn collect(body: &mut Body, budget: &Arc<Semaphore>) -> Result<Read, Refusal> {
    let mut bytes = BytesMut::new();
    let mut held: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            Refusal::new(
                ErrorReason::MalformedRequest,
                "the body breaks off or is not framed as announced",
            )
        })?;
        // Trailers mean nothing here.
        let Ok(data) = frame.into_data() else { continue };
        let length = bytes.len() + data.len();
        if length > MAX_BODY_BYTES {
            return Err(too_large());
        }
        let units = length.saturating_sub(BODY_UNIT_BYTES).div_ceil(BODY_UNIT_BYTES);
        let more = units.saturating_sub(held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        if more > 0 {
            let permit = u32::try_from(more)
                .ok()
                .and_then(|n| Arc::clone(budget).try_acquire_many_owned(n).ok())
                .ok_or_else(|| {
                    Refusal::new(
                        ErrorReason::TooManyRequests,
                        "too many large bodies at once; try again later or send smaller requests",
                    )
                })?;
            match &mut held {
                Some(held) => held.merge(permit),
                None => held = Some(permit),
            }
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Read {
        bytes: bytes.freeze(),
        _budget: held,
    })
}

/// Reads what is left of a body that was refused and throws it away, within bounds. Returns whether it came to its end;
/// if not, the connection has to be closed.
pub(super) async fn discard(headers: &HeaderMap, body: &mut Body) -> bool {
    if body.is_end_stream() {
        return true;
    }
    // Reading would ask the client for the body that it has not sent yet.
    if headers.contains_key(EXPECT) {
        return false;
    }
    let whole = async {
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => read += frame.data_ref().map_or(0, Bytes::len),
                Err(_) => return false,
            }
            if read > DISCARD_BYTES {
                return false;
            }
        }
        true
    };
    timeout(DISCARD_TIME, whole).await.unwrap_or(false)
}
