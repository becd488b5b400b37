//! Reading a request's body within bounds of size, time and memory of all bodies together.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, TRANSFER_ENCODING};
use axum::http::{HeaderMap, HeaderValue};
use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
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

/// How a body is coded.
#[derive(Clone, Copy)]
pub(super) enum Coding {
    /// As it is.
    Plain,
    /// By gzip.
    Gzip,
}

/// How a body is coded, by its headers, or why it cannot be taken.
pub(super) fn check_headers(headers: &HeaderMap, body: &Body, media: Media) -> Result<Coding, Refusal> {
    let unsupported = |message: &str| Refusal::new(ErrorReason::UnsupportedMediaType, message);
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    if !media.takes(types.next()) || types.next().is_some() {
        return Err(unsupported("send JSON with the header Content-Type: application/json"));
    }
    let mut codings = headers.get_all(CONTENT_ENCODING).iter().map(HeaderValue::as_bytes);
    let coding = match codings.next() {
        None => Coding::Plain,
        Some(name) if name.eq_ignore_ascii_case(b"identity") => Coding::Plain,
        Some(name) if name.eq_ignore_ascii_case(b"gzip") => Coding::Gzip,
        Some(_) => return Err(unsupported("send the body with Content-Encoding: gzip or without")),
    };
    if codings.next().is_some() {
        return Err(unsupported("send one Content-Encoding or none"));
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
    Ok(coding)
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
    _share: Share,
}

impl Read {
    /// It as something else that takes no more memory.
    pub fn map(self, change: impl FnOnce(&[u8]) -> Vec<u8>) -> Self {
        Self {
            bytes: change(&self.bytes).into(),
            ..self
        }
    }
}

/// A body's share of the memory for all of them.
struct Share {
    budget: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Share {
    fn new(budget: &Arc<Semaphore>) -> Self {
        Self {
            budget: Arc::clone(budget),
            held: None,
        }
    }

    /// Takes what a body of this length needs, or refuses.
    fn grow(&mut self, length: usize) -> Result<(), Refusal> {
        if length > MAX_BODY_BYTES {
            return Err(too_large());
        }
        let units = length.saturating_sub(BODY_UNIT_BYTES).div_ceil(BODY_UNIT_BYTES);
        let more = units.saturating_sub(self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        if more == 0 {
            return Ok(());
        }
        let permit = u32::try_from(more)
            .ok()
            .and_then(|n| Arc::clone(&self.budget).try_acquire_many_owned(n).ok())
            .ok_or_else(|| {
                Refusal::new(
                    ErrorReason::TooManyRequests,
                    "too many large bodies at once; try again later or send smaller requests",
                )
            })?;
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        Ok(())
    }
}

/// Reads a body to its end.
pub(super) async fn read(body: &mut Body, coding: Coding, budget: &Arc<Semaphore>) -> Result<Read, Refusal> {
    let whole = timeout(SLOW, collect(body, budget)).await.unwrap_or_else(|_| {
        Err(Refusal::new(
            ErrorReason::BodyTimeout,
            format!("the body did not arrive within {} s", SLOW.as_secs()),
        ))
    })?;
    match coding {
        Coding::Plain => Ok(whole),
        Coding::Gzip => inflate(&whole.bytes, budget),
    }
}

async fn collect(body: &mut Body, budget: &Arc<Semaphore>) -> Result<Read, Refusal> {
    let (mut bytes, mut share) = (BytesMut::new(), Share::new(budget));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            Refusal::new(
                ErrorReason::MalformedRequest,
                "the body breaks off or is not framed as announced",
            )
        })?;
        // Trailers mean nothing here.
        let Ok(data) = frame.into_data() else { continue };
        share.grow(bytes.len() + data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok(Read {
        bytes: bytes.freeze(),
        _share: share,
    })
}

/// What gzip holds; its bounds are those of a body that comes as it is.
pub(super) fn inflate(bytes: &[u8], budget: &Arc<Semaphore>) -> Result<Read, Refusal> {
    let (mut inflated, mut share) = (Vec::new(), Share::new(budget));
    let mut reader = MultiGzDecoder::new(bytes);
    let mut part = [0; BODY_UNIT_BYTES];
    loop {
        let count = reader.read(&mut part).map_err(|_| {
            Refusal::new(
                ErrorReason::MalformedRequest,
                "the body is no gzip, as Content-Encoding says, or breaks off",
            )
        })?;
        let Some(part) = part.get(..count).filter(|part| !part.is_empty()) else {
            break;
        };
        share.grow(inflated.len() + part.len())?;
        inflated.extend_from_slice(part);
    }
    Ok(Read {
        bytes: inflated.into(),
        _share: share,
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
