//! The Open Inference Protocol over gRPC, and gRPC's own health service. tonic frames; bodies are read as those of HTTP are.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, Version};
use axum::routing::post;
use bytes::{Buf, Bytes};
use flywheel_wire::error::{ErrorReason, Refusal};
use flywheel_wire::grpc::{
    self, Code, Frame, HealthCheckRequest, HealthCheckResponse, ModelInferRequest, ModelInferResponse,
    ModelMetadataResponse, ModelRequest, Nothing, ReadyResponse, ServerLiveResponse, ServerMetadataResponse,
};
use flywheel_wire::infer::Answers;
use flywheel_wire::predict::MAX_BODY_BYTES;
use flywheel_wire::request_timeout;
use http_body_util::Full;
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;
use tower::service_fn;

use super::request::{self, Question, Served};
use super::{body, refusal_response};
use crate::app::App;

const TIMEOUT: HeaderName = HeaderName::from_static(grpc::TIMEOUT_HEADER);
const ENCODING: HeaderName = HeaderName::from_static(grpc::ENCODING_HEADER);
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static(grpc::ACCEPT_ENCODING_HEADER);
/// The one way of compression.
const GZIP: HeaderValue = HeaderValue::from_static("gzip");
/// When a client may try again, as clients of gRPC read it; as `Retry-After`.
const RETRY_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const RETRY_PUSHBACK_MILLISECONDS: HeaderValue = HeaderValue::from_static("1000");
/// States of gRPC's health service.
const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

pub(super) fn router() -> Router<Arc<App>> {
    Router::new()
        .route(&format!("/{}/{{method}}", grpc::SERVICE), post(inference))
        .route(&format!("/{}/{{method}}", grpc::HEALTH_SERVICE), post(health))
}

/// Whether a `Content-Type` is gRPC's.
pub(crate) fn is_grpc(kind: &HeaderValue) -> bool {
    let rest = kind.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+") || rest.starts_with(b";"))
}

fn status(refusal: &Refusal) -> Status {
    Status::new((Code::of(refusal.reason) as i32).into(), refusal.to_string())
}

/// Code of an answer of gRPC whose body is not read: one that has a body is good.
pub(crate) fn code(response: &Response<Body>) -> tonic::Code {
    Status::from_header_map(response.headers()).map_or(tonic::Code::Ok, |status| status.code())
}

/// Status of HTTP that says the same as an answer of gRPC, for the figures.
fn figure(response: &Response<Body>) -> u16 {
    match code(response) {
        tonic::Code::Ok => 200,
        tonic::Code::ResourceExhausted => 429,
        tonic::Code::DeadlineExceeded => 504,
        tonic::Code::Unavailable => 503,
        tonic::Code::Internal | tonic::Code::Unknown | tonic::Code::DataLoss => 500,
        _ => 400,
    }
}

/// Messages by prost, counted before they are unfolded.
struct Bounded<Q, A>(PhantomData<(Q, A)>);

impl<Q, A> Codec for Bounded<Q, A>
where
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    type Encode = A;
    type Decode = Q;
    type Encoder = ProstEncoder<A>;
    type Decoder = BoundedDecoder<Q>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(PhantomData)
    }
}

struct BoundedDecoder<Q>(PhantomData<Q>);

impl<Q: Message + Default> Decoder for BoundedDecoder<Q> {
    type Item = Q;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Q>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        grpc::decode(bytes).map(Some).map_err(|refusal| status(&refusal))
    }
}

/// A call whose body is read.
struct Call {
    head: Parts,
    bytes: Bytes,
}

impl Call {
    /// Reads a call's body, or gives the answer where there is none to read.
    async fn read(app: &App, mut head: Parts, mut body: Body) -> Result<(Self, body::Read), Response<Body>> {
        if head.version != Version::HTTP_2 || !head.headers.get(CONTENT_TYPE).is_some_and(is_grpc) {
            return Err(refusal_response(&Refusal::new(
                ErrorReason::UnsupportedMediaType,
                "call it with gRPC: HTTP/2 and Content-Type: application/grpc",
            )));
        }
        let message = body::read(&mut body, body::Coding::Plain, &app.bodies).await;
        let message = message.and_then(|read| match grpc::frame(&read.bytes)? {
            Frame::Plain(_) => Ok(Some(read)),
            // Inflated here and not by tonic, so that the bounds of all bodies hold.
            Frame::Compressed(message) if head.headers.get(ENCODING).is_some_and(|name| name == GZIP) => {
                body::inflate(message, &app.bodies).map(|read| Some(read.map(grpc::framed)))
            }
            Frame::Compressed(_) => Ok(None),
        });
        head.headers.remove(ENCODING);
        match message {
            Ok(Some(read)) => {
                let bytes = read.bytes.clone();
                Ok((Self { head, bytes }, read))
            }
            Ok(None) => {
                let mut response = Status::unimplemented("compress the message with gzip or not at all").into_http();
                response.headers_mut().insert(ACCEPT_ENCODING, GZIP);
                Err(response)
            }
            Err(refusal) => Err(status(&refusal).into_http()),
        }
    }

    /// Answers one message with one.
    async fn unary<Q, A, F>(self, answer: impl Fn(Q) -> F) -> Response<Body>
    where
        Q: Message + Default + 'static,
        A: Message + 'static,
        F: Future<Output = Result<A, Refusal>>,
    {
        let request = axum::http::Request::from_parts(self.head, Full::new(self.bytes));
        let service = service_fn(|request: tonic::Request<Q>| {
            let answer = answer(request.into_inner());
            async {
                answer
                    .await
                    .map(tonic::Response::new)
                    .map_err(|refusal| status(&refusal))
            }
        });
        let response = tonic::server::Grpc::new(Bounded(PhantomData))
            .max_decoding_message_size(MAX_BODY_BYTES)
            .unary(service, request)
            .await;
        let mut response = response.map(Body::new);
        if matches!(figure(&response), 429 | 503) {
            response
                .headers_mut()
                .insert(RETRY_PUSHBACK, RETRY_PUSHBACK_MILLISECONDS);
        }
        response
    }
}

async fn inference(State(app): State<Arc<App>>, Path(method): Path<String>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    if method == "ModelInfer" {
        return infer(&app, head, body).await;
    }
    let call = match Call::read(&app, head, body).await {
        Ok((call, _read)) => call,
        Err(response) => return response,
    };
    let app = &*app;
    match method.as_str() {
        "ServerLive" => {
            call.unary(async |_: Nothing| Ok(ServerLiveResponse { live: true }))
                .await
        }
        "ServerReady" => {
            call.unary(async |_: Nothing| {
                Ok(ReadyResponse {
                    ready: request::ready(app).is_ok(),
                })
            })
            .await
        }
        "ServerMetadata" => {
            call.unary(async |_: Nothing| Ok(ServerMetadataResponse::new(env!("CARGO_PKG_VERSION"))))
                .await
        }
        "ModelReady" => {
            call.unary(async |model: ModelRequest| {
                // A version that is not there is an error, one that is not ready yet an answer.
                let Ok(served) = Served::now(app, &HeaderMap::new()) else {
                    return Ok(ReadyResponse { ready: false });
                };
                served.named(&model.name, &model.version)?;
                Ok(ReadyResponse {
                    ready: request::ready(app).is_ok(),
                })
            })
            .await
        }
        "ModelMetadata" => {
            call.unary(async |model: ModelRequest| {
                let served = Served::now(app, &HeaderMap::new())?.named(&model.name, &model.version)?;
                let (name, labels) = (&app.service.name, served.labels().len());
                Ok(ModelMetadataResponse::new(name, served.version(), labels))
            })
            .await
        }
        _ => no_such_method(),
    }
}

fn no_such_method() -> Response<Body> {
    Status::unimplemented("there is no such method").into_http()
}

async fn health(State(app): State<Arc<App>>, Path(method): Path<String>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let app = &*app;
    match Call::read(app, head, body).await {
        Ok((call, _read)) if method == "Check" => {
            call.unary(async |question: HealthCheckRequest| {
                if !question.service.is_empty() && question.service != grpc::SERVICE {
                    return Err(Refusal::new(ErrorReason::NotFound, "there is no such service"));
                }
                let status = if request::ready(app).is_ok() {
                    SERVING
                } else {
                    NOT_SERVING
                };
                Ok(HealthCheckResponse { status })
            })
            .await
        }
        // Clients that would watch fall back to asking.
        Ok(_) => no_such_method(),
        Err(response) => response,
    }
}

/// When the client stops waiting: by gRPC's header or ours, whichever is first.
fn deadline(question: &Question<'_>, headers: &HeaderMap) -> Result<Option<Instant>, Refusal> {
    let time = headers
        .get(TIMEOUT)
        .map(|value| request_timeout::parse_grpc(value.as_bytes()))
        .transpose()?;
    let own = time.and_then(|time| question.start.checked_add(time));
    Ok(question.deadline(headers)?.into_iter().chain(own).min())
}

async fn infer(app: &App, head: Parts, body: Body) -> Response<Body> {
    let question = Question::new(app, &head.headers);
    let deadline = deadline(&question, &head.headers);
    let mut response = match Call::read(app, head, body).await {
        Ok((call, read)) => {
            let (question, deadline) = (&question, &deadline);
            let response = call.unary(async |request: ModelInferRequest| {
                let served = question.name(&request.model_name, &request.model_version)?;
                let deadline = deadline.clone()?;
                let request = request.request()?;
                let rows = served.classify(&request.texts, deadline).await?;
                let answers = Answers::new(served.labels(), &rows)?;
                let id = request.id.as_deref().unwrap_or(&question.id);
                let name = &app.service.name;
                Ok(ModelInferResponse::new(
                    &request.outputs,
                    name,
                    served.version(),
                    id,
                    &answers,
                ))
            });
            let response = response.await;
            drop(read);
            response
        }
        Err(response) => response,
    };
    let status = if response.status().is_success() {
        figure(&response)
    } else {
        response.status().as_u16()
    };
    question.end(&mut response, status);
    response
}
