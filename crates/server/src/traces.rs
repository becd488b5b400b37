//! Traces by OTLP, where the environment variables of OpenTelemetry ask for them: one span for each request of a client, below
//! the one that `traceparent` names. Probes have none, and no span holds what a client wrote: a path is told by its template.
//!
//! Nothing waits for a collector. Spans that the queue has no room for are dropped.

use std::borrow::Cow;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, Method, Response, Version};
use axum::middleware::Next;
use flywheel_contract::names::READYZ_PATH;
use flywheel_contract::serving::ServiceIdentity;
use flywheel_wire::trace_context::TRACESTATE_HEADER;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId,
    TraceState, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span, SpanData};
use opentelemetry_sdk::{Resource, trace};

use crate::app::App;
use crate::http::{grpc_code, span_above};

const TRACESTATE: HeaderName = HeaderName::from_static(TRACESTATE_HEADER);
/// Longest wait at the end of the process for the last spans to leave.
const FLUSH: Duration = Duration::from_secs(2);
/// What stands for a method that is none of ours.
const OTHER: &str = "_OTHER";
/// Name of the service among what describes the process.
const SERVICE_NAME: &str = "service.name";
/// Variables with the collector's address.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// Variables with how it is spoken to.
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
/// The one way to speak to it.
const PROTOCOL: &str = "http/protobuf";

/// Makes spans and sends them.
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    /// `http` or `https`.
    scheme: &'static str,
    port: u16,
    /// Templates of the paths that are served over HTTP.
    routes: Vec<String>,
}

/// A variable's value; an empty one counts as unset.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Traces {
    /// As the environment variables say; `None` where they ask for no traces, or for what there is not, which is logged: a pod
    /// answers without them. `tls` and `port` are those of the data port.
    #[must_use]
    pub fn from_environment(service: &ServiceIdentity, tls: bool, port: u16) -> Option<Self> {
        ENDPOINTS.into_iter().find_map(variable)?;
        let off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let exporter = variable("OTEL_TRACES_EXPORTER").unwrap_or_else(|| "otlp".to_owned());
        if off || exporter == "none" {
            return None;
        }
        let protocol = PROTOCOLS.into_iter().find_map(variable);
        let unusable = if exporter != "otlp" {
            Some(format!(
                "OTEL_TRACES_EXPORTER is {exporter}, and otlp and none are known"
            ))
        } else if protocol.as_deref().is_some_and(|protocol| protocol != PROTOCOL) {
            Some(format!(
                "the protocol is to be {}, and {PROTOCOL} is spoken; give the collector's port for that, which is usually 4318",
                protocol.unwrap_or_default()
            ))
        } else {
            None
        };
        let built = match unusable {
            Some(problem) => Err(problem),
            None => Self::build(service, tls, port),
        };
        built
            .inspect_err(|problem| tracing::warn!(problem, "no traces are sent"))
            .ok()
    }

    fn build(service: &ServiceIdentity, tls: bool, port: u16) -> Result<Self, String> {
        // The client of HTTP wants one. Fails only where one is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .build()
            .map_err(|error| error.to_string())?;
        let mut resource = Resource::builder();
        let named = variable("OTEL_SERVICE_NAME").is_some()
            || variable("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|text| {
                text.split(',')
                    .any(|pair| pair.split('=').next().is_some_and(|key| key.trim() == SERVICE_NAME))
            });
        if !named {
            resource = resource.with_attributes([
                KeyValue::new(SERVICE_NAME, service.name.clone()),
                KeyValue::new("service.namespace", service.namespace.clone()),
            ]);
        }
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_batch_exporter(Told::new(exporter))
            .build();
        tracing::info!("traces are sent");
        Ok(Self {
            tracer: provider.tracer("flywheel-server"),
            provider,
            scheme: if tls { "https" } else { "http" },
            port,
            routes: Vec::new(),
        })
    }

    /// With the templates of the paths that are served, such as `/v2/models/{model}`.
    pub(crate) fn with_routes(self, routes: impl IntoIterator<Item = String>) -> Self {
        Self {
            routes: routes.into_iter().collect(),
            ..self
        }
    }

    /// Sends what is left, at the end of the process.
    pub(crate) fn flush(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH) {
            tracing::warn!(%error, "the last traces are lost");
        }
    }

    fn begin(&self, request: &Request) -> Span {
        let route = self.routes.iter().find(|route| fits(request.uri().path(), route));
        let method = method(request.method());
        let version = match request.version() {
            Version::HTTP_2 => "2",
            Version::HTTP_10 => "1.0",
            _ => "1.1",
        };
        let mut attributes = vec![
            KeyValue::new("http.request.method", method),
            KeyValue::new("url.scheme", self.scheme),
            KeyValue::new("server.port", i64::from(self.port)),
            KeyValue::new("network.protocol.version", version),
        ];
        let mut name = Cow::Borrowed(method);
        if let Some(route) = route {
            name = Cow::Owned(format!("{method} {route}"));
            attributes.push(KeyValue::new("http.route", route.clone()));
        }
        let span = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Server)
            .with_attributes(attributes);
        self.tracer.build_with_context(span, &parent(request.headers()))
    }
}

/// Whether a path is one of a template.
fn fits(path: &str, route: &str) -> bool {
    let (mut parts, mut wanted) = (path.split('/'), route.split('/'));
    loop {
        match (parts.next(), wanted.next()) {
            (None, None) => return true,
            (Some(part), Some(want)) if part == want || want.starts_with('{') => {}
            _ => return false,
        }
    }
}

/// The context of the span above; an empty one where there is none.
fn parent(headers: &HeaderMap) -> Context {
    let context = || {
        let parent = span_above(headers)?;
        let states: Vec<&str> = headers
            .get_all(TRACESTATE)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .collect();
        Some(SpanContext::new(
            TraceId::from_hex(parent.trace).ok()?,
            SpanId::from_hex(parent.span).ok()?,
            TraceFlags::new(u8::from(parent.sampled)),
            true,
            TraceState::from_str(&states.join(",")).unwrap_or_default(),
        ))
    };
    context().map_or_else(Context::new, |above| Context::new().with_remote_span_context(above))
}

fn method(method: &Method) -> &'static str {
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::OPTIONS,
        Method::PATCH,
        Method::TRACE,
        Method::CONNECT,
    ];
    let names = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT",
    ];
    let place = known.iter().position(|name| name == method);
    place.and_then(|place| names.get(place)).copied().unwrap_or(OTHER)
}

/// Which version answered, told with an answer.
#[derive(Clone)]
pub(crate) struct AnsweredBy(pub String);

/// A span around a request.
pub(crate) async fn trace(State(app): State<Arc<App>>, request: Request, next: Next) -> Response<Body> {
    let path = request.uri().path();
    let probe = path == READYZ_PATH || path.starts_with("/v2/health/") || path.starts_with("/grpc.health.v1.");
    let Some(traces) = app.traces.as_ref().filter(|_| !probe) else {
        return next.run(request).await;
    };
    // It ends when it is dropped, also where the client goes.
    let mut span = traces.begin(&request);
    let path = path.to_owned();
    let response = next.run(request).await;
    let status = response.status();
    span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
    if let Some(AnsweredBy(version)) = response.extensions().get() {
        span.set_attribute(KeyValue::new("flywheel.model_version", version.clone()));
    }
    let mut error = status.is_server_error().then(|| status.as_str().to_owned());
    if response.headers().get(CONTENT_TYPE).is_some_and(crate::http::is_grpc) {
        let code = grpc_code(&response);
        span.set_attribute(KeyValue::new("rpc.system.name", "grpc"));
        span.set_attribute(KeyValue::new("rpc.response.status_code", code_name(code)));
        // What is no method of ours is a client's text.
        let method = match path.strip_prefix('/') {
            Some(method) if code != tonic::Code::Unimplemented => method.to_owned(),
            _ => OTHER.to_owned(),
        };
        span.update_name(method.clone());
        span.set_attribute(KeyValue::new("rpc.method", method));
        error = is_fault(code).then(|| code_name(code));
    }
    if let Some(error) = error {
        span.set_attribute(KeyValue::new("error.type", error));
        span.set_status(Status::error(""));
    }
    response
}

/// Whether a code tells of a fault of the server's.
fn is_fault(code: tonic::Code) -> bool {
    use tonic::Code::{DataLoss, DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown};
    matches!(
        code,
        Unknown | DeadlineExceeded | Unimplemented | Internal | Unavailable | DataLoss
    )
}

/// `InvalidArgument` as `INVALID_ARGUMENT`.
fn code_name(code: tonic::Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// Says once that spans cannot be delivered, and once that they can again.
#[derive(Debug)]
struct Told {
    exporter: SpanExporter,
    failing: AtomicBool,
}

impl Told {
    fn new(exporter: SpanExporter) -> Self {
        Self {
            exporter,
            failing: AtomicBool::new(false),
        }
    }
}

impl trace::SpanExporter for Told {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let outcome = self.exporter.export(batch).await;
        match (&outcome, self.failing.swap(outcome.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => tracing::warn!(%error, "traces cannot be delivered and are dropped"),
            (Ok(()), true) => tracing::info!("traces are delivered again"),
            _ => {}
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use flywheel_wire::trace_context::TRACEPARENT_HEADER;

    use super::*;

    const TRACEPARENT: HeaderName = HeaderName::from_static(TRACEPARENT_HEADER);

    #[test]
    fn codes_have_the_names_of_the_conventions() {
        assert_eq!(code_name(tonic::Code::Ok), "OK");
        assert_eq!(code_name(tonic::Code::InvalidArgument), "INVALID_ARGUMENT");
    }

    #[test]
    fn paths_of_a_template() {
        for (path, route, one) in [
            ("/predict", "/predict", true),
            ("/predict/", "/predict", false),
            ("/v2/models/intent/infer", "/v2/models/{model}/infer", true),
            ("/v2/models/intent", "/v2/models/{model}/infer", false),
            ("/v2/models/intent/ready", "/v2/models/{model}/infer", false),
        ] {
            assert_eq!(fits(path, route), one, "{path} {route}");
        }
    }

    #[test]
    fn a_parent_is_taken_as_it_is_or_not_at_all() {
        let headers = |values: &[(&HeaderName, &str)]| -> HeaderMap {
            let pairs = values
                .iter()
                .map(|(name, value)| ((*name).clone(), value.parse().unwrap()));
            pairs.collect()
        };
        const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = parent(&headers(&[(&TRACEPARENT, GOOD), (&TRACESTATE, "a=1,b=2")]));
        let span = context.span().span_context().clone();
        assert_eq!(span.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(span.span_id().to_string(), "00f067aa0ba902b7");
        assert!(span.is_sampled() && span.is_remote());
        assert_eq!(span.trace_state().get("b"), Some("2"));
        for bad in [
            &[][..],
            &[(&TRACEPARENT, "00-0-0-0")],
            &[(&TRACEPARENT, GOOD), (&TRACEPARENT, GOOD)],
        ] {
            assert!(!parent(&headers(bad)).has_active_span());
        }
    }
}
