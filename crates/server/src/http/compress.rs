//! Answers by gzip, where the client takes it and it pays. gRPC's stay as they are: its clients take messages of any size, and
//! each would have to be framed anew.

use std::io::Write as _;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY};
use axum::http::{HeaderValue, Response};
use axum::middleware::Next;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use flywheel_wire::accept_encoding::{self, Coding};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;

use super::grpc;

/// Fewer bytes gain nothing: they fit into one packet with their head.
const PAYS_BYTES: u64 = 1024;
/// More bytes take longer than a thread that waits for sockets should be kept: half a millisecond.
const APART_BYTES: usize = 32 * 1024;

/// Compresses an answer.
pub(super) async fn compress(request: Request, next: Next) -> Response<Body> {
    let values = request.headers().get_all(ACCEPT_ENCODING).iter();
    let coding = accept_encoding::parse(values.map(HeaderValue::as_bytes));
    let response = next.run(request).await;
    let size = response.body().size_hint().exact().unwrap_or(0);
    let is_grpc = response.headers().get(CONTENT_TYPE).is_some_and(grpc::is_grpc);
    if size == 0 || is_grpc {
        return response;
    }
    let (mut head, body) = response.into_parts();
    head.headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    if coding == Coding::Plain || (coding == Coding::Gzip && size < PAYS_BYTES) {
        return Response::from_parts(head, body);
    }
    // It is whole in memory, as its size is known.
    let Ok(plain) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
        return Response::from_parts(head, Body::empty());
    };
    let smaller = if plain.len() > APART_BYTES {
        let plain = plain.clone();
        tokio::task::spawn_blocking(move || gzip(&plain)).await.ok().flatten()
    } else {
        gzip(&plain)
    };
    let body = match smaller {
        Some(smaller) => {
            head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            Body::from(smaller)
        }
        None => Body::from(plain),
    };
    Response::from_parts(head, body)
}

/// `None` where it fails, which writing into memory does not; the answer goes as it is then.
fn gzip(plain: &Bytes) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Compression::fast());
    encoder.write_all(plain).ok()?;
    encoder.finish().ok()
}
