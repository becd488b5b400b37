//! A run on an MLflow server, over its REST API 2.0.
//!
//! One job has one run, whatever becomes of its attempts and of requests whose answers are lost: it is looked for by the
//! job's uid before it is made and once more after that, and of several the oldest counts. What the server says is not
//! trusted: answers are bounded in time and size, of its texts only well-formed codes and ids are used, and none is shown.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flywheel_contract::tracking::{MLFLOW_CA_ENV, MLFLOW_PASSWORD_ENV, MLFLOW_TOKEN_ENV, MLFLOW_USERNAME_ENV, Mlflow};
use flywheel_contract::trainer::TrainerConfig;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Method, RequestBuilder, StatusCode, Url};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{End, Point, Sink, SinkCounters, ended, now};

/// Most figures that wait; then the oldest go.
const QUEUE_MAX: usize = 20_000;
/// Most figures of a request; servers take 1,000 figures, parameters and tags in all.
const BATCH_MAX: usize = 1000;
/// Least figures of a request to a server that does not come to an end with more.
const BATCH_MIN: usize = 50;
/// Time between two requests where all goes well.
const INTERVAL: Duration = Duration::from_secs(5);
/// To connect, and for a whole answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Most bytes of an answer.
const ANSWER_MAX: usize = 1024 * 1024;
/// Wait after a failure; doubles up to the longest, which also bounds what a server may ask for.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Runs of one job that are looked at.
const RUNS_MAX: usize = 100;

/// Tag by which the run of a job is found.
const TAG_UID: &str = "flywheel.job_uid";
/// Tag with the attempt that told last.
const TAG_ATTEMPT: &str = "flywheel.attempt";

/// A figure as MLflow takes it.
#[derive(Clone, Debug, PartialEq)]
struct Figure {
    key: String,
    value: f64,
    timestamp: u64,
    step: u64,
}

/// Figures on their way.
pub(super) struct Outbox {
    pub(super) sink: Sink,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    figures: VecDeque<Figure>,
    /// Figures that were taken out at the front so far.
    gone: u64,
    /// Nothing is sent any more.
    closed: bool,
}

impl Outbox {
    pub(super) fn new(uri: &str, counters: SinkCounters) -> Self {
        Self {
            sink: Sink::new("MLflow", uri, counters),
            waiting: Mutex::default(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the figures of a point; where there are too many, the oldest go.
    pub(super) fn add(&self, point: &Point) {
        let mut waiting = self.waiting();
        let mut lost = 0;
        for (key, value) in &point.values {
            if waiting.closed {
                lost += 1;
                continue;
            }
            if waiting.figures.len() >= QUEUE_MAX {
                waiting.figures.pop_front();
                waiting.gone += 1;
                lost += 1;
            }
            waiting.figures.push_back(Figure {
                key: key.to_string(),
                value: *value,
                timestamp: point.time,
                step: point.step,
            });
        }
        drop(waiting);
        if lost > 0 {
            self.sink.dropped(lost);
        }
    }

    /// The oldest figures, at most so many, and the place behind them.
    fn oldest(&self, most: usize) -> (Vec<Figure>, u64) {
        let waiting = self.waiting();
        let batch: Vec<Figure> = waiting.figures.iter().take(most).cloned().collect();
        let end = waiting.gone + batch.len() as u64;
        (batch, end)
    }

    /// Takes out what stands before this place and is still there.
    fn remove(&self, end: u64) {
        let mut waiting = self.waiting();
        while waiting.gone < end && waiting.figures.pop_front().is_some() {
            waiting.gone += 1;
        }
    }

    /// From now on nothing is sent: the settings cannot work.
    pub(super) fn close(&self, problem: String) {
        self.waiting().closed = true;
        self.sink.failed("settings", problem);
    }

    /// What could not be sent by now never will be.
    pub(super) fn give_up(&self, after: Duration) {
        let lost = {
            let mut waiting = self.waiting();
            waiting.closed = true;
            std::mem::take(&mut waiting.figures).len() as u64
        };
        if lost > 0 {
            self.sink.dropped(lost);
            if self.sink.progress().problem.is_none() {
                self.sink.failed(
                    "late",
                    format!("the last figures could not be sent within {} s", after.as_secs()),
                );
            }
        }
    }
}

/// Why a request came to nothing.
#[derive(Debug)]
enum Trouble {
    /// No connection.
    Unreachable,
    /// No whole answer in time.
    Silent,
    /// 5xx.
    Unavailable(StatusCode),
    /// 429.
    Throttled(Option<Duration>),
    /// 401 or 403.
    Denied(StatusCode),
    /// 3xx.
    Elsewhere(StatusCode),
    /// Another status than 200, with MLflow's code where the answer has one.
    Rejected(StatusCode, Option<String>),
    /// Not the JSON that was expected, or too much of it.
    Unreadable(&'static str),
    /// The experiment or the run lies in MLflow's bin.
    Deleted(&'static str),
}

impl Trouble {
    fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Silent => "silent",
            Self::Unavailable(_) => "unavailable",
            Self::Throttled(_) => "throttled",
            Self::Denied(_) => "denied",
            Self::Elsewhere(_) => "elsewhere",
            Self::Rejected(..) => "rejected",
            Self::Unreadable(_) => "unreadable",
            Self::Deleted(_) => "deleted",
        }
    }

    /// What is wrong and what to do.
    fn words(&self) -> String {
        let doing = match self {
            Self::Unreachable => {
                "cannot be reached. Check tracking.mlflow.uri, that it runs, that pods of this namespace may connect to it, and \
                 for https that its certificate is one that the system or MLFLOW_TRACKING_CA knows"
                    .to_owned()
            }
            Self::Silent => format!("gives no whole answer within {} s. Check that it is well", ANSWER_LIMIT.as_secs()),
            Self::Unavailable(status) => format!("answers HTTP {}. Check that it is well", status.as_u16()),
            Self::Throttled(_) => "answers HTTP 429: it takes fewer requests than it gets".to_owned(),
            Self::Denied(status) => format!(
                "answers HTTP {}: it refuses the credentials. Check the Secret of tracking.mlflow.secretRef, and that its \
                 user may write to the experiment",
                status.as_u16()
            ),
            Self::Elsewhere(status) => format!(
                "answers HTTP {}, a redirection, which is not followed. Give the address that it leads to as tracking.mlflow.uri",
                status.as_u16()
            ),
            Self::Rejected(status, code) => format!(
                "answers HTTP {}{}. Check that tracking.mlflow.uri is that of an MLflow tracking server",
                status.as_u16(),
                code.as_ref().map(|code| format!(" {code}")).unwrap_or_default()
            ),
            Self::Unreadable(why) => format!(
                "answers with {why}. Check that tracking.mlflow.uri is that of an MLflow tracking server"
            ),
            Self::Deleted(what) => format!(
                "has deleted the {what}. Restore it (`mlflow {what}s restore`), or apply a new TrainingJob with another experiment"
            ),
        };
        format!("the MLflow server {doing}")
    }

    /// Whether the same request is refused again.
    fn is_final(&self) -> bool {
        matches!(self, Self::Rejected(..))
    }

    fn is(&self, code: &str) -> bool {
        matches!(self, Self::Rejected(_, Some(have)) if have == code)
    }
}

type Answer<T> = Result<T, Trouble>;

/// Credentials; never shown.
enum Login {
    None,
    Token(String),
    Password(String, String),
}

/// The way to a server.
struct Server {
    client: Client,
    base: Url,
    login: Login,
}

impl Server {
    /// Credentials and certificates come from the environment, as for MLflow's own clients.
    fn new(uri: &str) -> Result<Self, String> {
        let invalid = "tracking.mlflow.uri is no address that can be used; write http://host:port or https://host";
        // On its own first: what is put behind an address without a host would become its host.
        let base = Url::parse(uri)
            .and_then(|_| Url::parse(&format!("{}/api/2.0/mlflow/", uri.trim_end_matches('/'))))
            .map_err(|_| invalid.to_owned())?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(invalid.to_owned());
        }
        let variable = |name: &str| {
            let text = std::env::var(name).ok()?;
            // Secrets made from files often end with a line break.
            let text = text.trim();
            (!text.is_empty()).then(|| text.to_owned())
        };
        let login = match (variable(MLFLOW_TOKEN_ENV), variable(MLFLOW_USERNAME_ENV)) {
            (Some(token), _) if token.bytes().all(|b| b.is_ascii_graphic()) => Login::Token(token),
            (Some(_), _) => {
                return Err(format!(
                    "{MLFLOW_TOKEN_ENV} in the Secret of tracking.mlflow.secretRef has characters that no token has"
                ));
            }
            (None, Some(user)) => Login::Password(user, variable(MLFLOW_PASSWORD_ENV).unwrap_or_default()),
            (None, None) => Login::None,
        };
        let certificates = match variable(MLFLOW_CA_ENV) {
            None => Vec::new(),
            Some(pem) => match Certificate::from_pem_bundle(pem.as_bytes()) {
                Ok(list) if !list.is_empty() => list,
                _ => {
                    return Err(format!(
                        "{MLFLOW_CA_ENV} in the Secret of tracking.mlflow.secretRef holds no certificate in PEM"
                    ));
                }
            },
        };
        let builder = Client::builder()
            .user_agent(concat!("flywheel-trainer/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .timeout(ANSWER_LIMIT);
        // Without TLS there is no need for the system's certificates, which an image may lack.
        let builder = if base.scheme() == "http" {
            builder.tls_certs_only(certificates)
        } else {
            builder.tls_certs_merge(certificates)
        };
        let client = builder
            .build()
            .map_err(|_| format!("no TLS for {uri}: the system has no certificates; give {MLFLOW_CA_ENV} in the Secret of tracking.mlflow.secretRef"))?;
        Ok(Self { client, base, login })
    }

    async fn get(&self, path: &str, query: (&str, &str)) -> Answer<Value> {
        let mut url = self.url(path)?;
        url.query_pairs_mut().append_pair(query.0, query.1);
        self.send(self.client.request(Method::GET, url)).await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer<Value> {
        let request = self
            .client
            .request(Method::POST, self.url(path)?)
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string());
        self.send(request).await
    }

    fn url(&self, path: &str) -> Answer<Url> {
        self.base.join(path).map_err(|_| Trouble::Unreadable("no path"))
    }

    async fn send(&self, request: RequestBuilder) -> Answer<Value> {
        let request = match &self.login {
            Login::None => request,
            Login::Token(token) => request.bearer_auth(token),
            Login::Password(user, password) => request.basic_auth(user, Some(password)),
        };
        let failed = |e: reqwest::Error| {
            if e.is_timeout() {
                Trouble::Silent
            } else if e.is_connect() {
                Trouble::Unreachable
            } else {
                Trouble::Unreadable("no whole HTTP answer")
            }
        };
        let mut answer = request.send().await.map_err(failed)?;
        let status = answer.status();
        let asked = answer.headers().get(RETRY_AFTER);
        let asked = asked.and_then(|v| v.to_str().ok()?.trim().parse().ok());
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > ANSWER_MAX {
                return Err(Trouble::Unreadable("more than a megabyte"));
            }
            body.extend_from_slice(&chunk);
        }
        let parsed = serde_json::from_slice::<Value>(&body).ok();
        match status.as_u16() {
            200 => match parsed {
                Some(value @ Value::Object(_)) => Ok(value),
                _ => Err(Trouble::Unreadable("something else than a JSON object")),
            },
            429 => Err(Trouble::Throttled(asked.map(Duration::from_secs))),
            401 | 403 => Err(Trouble::Denied(status)),
            300..=399 => Err(Trouble::Elsewhere(status)),
            500.. => Err(Trouble::Unavailable(status)),
            _ => Err(Trouble::Rejected(status, parsed.as_ref().and_then(code))),
        }
    }
}

/// MLflow's word for an error, where it is one.
fn code(answer: &Value) -> Option<String> {
    let code = answer.get("error_code")?.as_str()?;
    let is_word = code.len() <= 64
        && code
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    is_word.then(|| code.to_owned())
}

/// An id that can be sent back and shown.
fn id(value: Option<&Value>) -> Answer<String> {
    let id = value.and_then(Value::as_str).unwrap_or_default();
    let is_id = (1..=64).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    is_id
        .then(|| id.to_owned())
        .ok_or(Trouble::Unreadable("no id where one should be"))
}

/// The run of a job, and what is told there.
pub(super) struct Run {
    server: Server,
    outbox: Arc<Outbox>,
    uri: String,
    experiment: String,
    name: String,
    uid: String,
    tags: Vec<(String, String)>,
    parameters: Vec<(String, String)>,
    /// Once it is known.
    id: Option<String>,
    /// Whether tags and parameters are there.
    described: bool,
    /// Figures of the next request.
    batch: usize,
}

impl Run {
    /// The run of the configuration's job; nothing is asked yet.
    pub(super) fn new(
        settings: &Mlflow,
        config: &TrainerConfig,
        parameters: Vec<(String, String)>,
        outbox: &Arc<Outbox>,
    ) -> Result<Self, String> {
        let job = &config.job;
        let short: String = job.uid.chars().take(8).collect();
        let tags = [
            (TAG_UID, job.uid.clone()),
            (TAG_ATTEMPT, job.attempt.to_string()),
            ("flywheel.job", format!("{}/{}", job.namespace, job.name)),
            ("flywheel.model", config.model_name.clone()),
            ("mlflow.source.type", "JOB".to_owned()),
            ("mlflow.source.name", format!("{}/{}", job.namespace, job.name)),
        ];
        let or = |asked: &Option<String>, usual: String| asked.clone().unwrap_or(usual);
        Ok(Self {
            server: Server::new(&settings.uri)?,
            outbox: Arc::clone(outbox),
            uri: settings.uri.trim_end_matches('/').to_owned(),
            experiment: or(&settings.experiment, format!("{}/{}", job.namespace, config.model_name)),
            name: or(&settings.run_name, format!("{}-{short}", job.name)),
            uid: job.uid.clone(),
            tags: tags.map(|(key, value)| (key.to_owned(), value)).into(),
            parameters,
            id: None,
            described: false,
            batch: BATCH_MAX,
        })
    }

    /// Sends what waits now and then, until the end; then all that is left, in one try.
    pub(super) async fn run(mut self, mut end: watch::Receiver<Option<End>>) {
        let mut failures = 0_u32;
        loop {
            let pause = match self.send().await {
                Ok(()) => {
                    failures = 0;
                    self.outbox.sink.well();
                    INTERVAL
                }
                Err(trouble) => {
                    self.outbox.sink.failed(trouble.kind(), trouble.words());
                    let grown = PAUSE_FIRST.saturating_mul(1 << failures.min(16));
                    failures += 1;
                    let asked = match trouble {
                        Trouble::Throttled(asked) => asked.unwrap_or_default(),
                        _ => Duration::ZERO,
                    };
                    grown.max(asked).min(PAUSE_MAX)
                }
            };
            let over = tokio::select! {
                () = tokio::time::sleep(pause) => None,
                over = ended(&mut end) => Some(over),
            };
            if let Some(over) = over {
                if let Err(trouble) = self.close(over).await {
                    self.outbox.sink.failed(trouble.kind(), trouble.words());
                }
                return;
            }
        }
    }

    /// Sends all that waits.
    async fn send(&mut self) -> Answer<()> {
        let run = match &self.id {
            Some(run) => run.clone(),
            None => {
                let run = self.find_or_make().await?;
                self.id = Some(run.clone());
                run
            }
        };
        if !self.described {
            self.describe(&run).await?;
            self.described = true;
        }
        loop {
            let (batch, behind) = self.outbox.oldest(self.batch);
            if batch.is_empty() {
                return Ok(());
            }
            match self.log(&run, json!({"metrics": metrics(&batch)})).await {
                Ok(()) => {
                    self.outbox.remove(behind);
                    self.batch = (self.batch * 2).min(BATCH_MAX);
                }
                Err(trouble) => {
                    if matches!(trouble, Trouble::Silent) {
                        self.batch = (self.batch / 4).max(BATCH_MIN);
                    }
                    if trouble.is_final() {
                        // Deleted or gone, most likely: it is looked for again.
                        (self.id, self.described) = (None, false);
                        if !trouble.is("RESOURCE_DOES_NOT_EXIST") {
                            self.outbox.remove(behind);
                            self.outbox.sink.dropped(batch.len() as u64);
                        }
                    }
                    return Err(trouble);
                }
            }
        }
    }

    /// Tags and parameters, and that it runs. The same again changes nothing.
    async fn describe(&self, run: &str) -> Answer<()> {
        let pairs = |list: &[(String, String)]| -> Vec<Value> {
            list.iter()
                .map(|(key, value)| json!({"key": key, "value": value}))
                .collect()
        };
        self.update(run, json!({"status": "RUNNING"})).await?;
        self.log(run, json!({"tags": pairs(&self.tags)})).await?;
        match self.log(run, json!({"params": pairs(&self.parameters)})).await {
            // Somebody gave one of them another value there, which cannot be changed; figures are worth more.
            Err(trouble) if trouble.is_final() => {
                self.outbox.sink.failed(trouble.kind(), trouble.words());
                Ok(())
            }
            other => other,
        }
    }

    async fn log(&self, run: &str, mut what: Value) -> Answer<()> {
        if let Value::Object(fields) = &mut what {
            fields.insert("run_id".to_owned(), run.into());
        }
        self.server.post("runs/log-batch", &what).await.map(drop)
    }

    async fn update(&self, run: &str, mut what: Value) -> Answer<()> {
        if let Value::Object(fields) = &mut what {
            fields.insert("run_id".to_owned(), run.into());
        }
        self.server.post("runs/update", &what).await.map(drop)
    }

    /// Sends what is left and says how it ended.
    async fn close(&mut self, end: End) -> Answer<()> {
        let status = match end {
            End::Finished => "FINISHED",
            End::Failed => "FAILED",
            End::Killed => "KILLED",
            End::Replaced => return Ok(()),
        };
        self.send().await?;
        if let Some(run) = &self.id {
            self.update(run, json!({"status": status, "end_time": now()})).await?;
        }
        self.outbox.sink.well();
        Ok(())
    }

    async fn find_or_make(&self) -> Answer<String> {
        let experiment = self.experiment().await?;
        let run = match self.find(&experiment).await? {
            Some(run) => run,
            None => {
                let made = self.make(&experiment).await?;
                // A try whose answer was lost, or another pod of this job, may have made one at the same time.
                let first = self.find(&experiment).await?.unwrap_or_else(|| made.clone());
                if first != made {
                    self.server.post("runs/delete", &json!({"run_id": made})).await?;
                }
                first
            }
        };
        let page = format!("{}/#/experiments/{experiment}/runs/{run}", self.uri);
        self.outbox.sink.lies_at(page);
        Ok(run)
    }

    async fn experiment(&self) -> Answer<String> {
        let by_name = ("experiment_name", self.experiment.as_str());
        let found = match self.server.get("experiments/get-by-name", by_name).await {
            Err(trouble) if trouble.is("RESOURCE_DOES_NOT_EXIST") => {
                let body = json!({"name": self.experiment});
                match self.server.post("experiments/create", &body).await {
                    Ok(made) => return id(made.get("experiment_id")),
                    Err(trouble) if trouble.is("RESOURCE_ALREADY_EXISTS") => {
                        self.server.get("experiments/get-by-name", by_name).await?
                    }
                    Err(trouble) => return Err(trouble),
                }
            }
            found => found?,
        };
        if found.pointer("/experiment/lifecycle_stage") == Some(&json!("deleted")) {
            return Err(Trouble::Deleted("experiment"));
        }
        id(found.pointer("/experiment/experiment_id"))
    }

    /// The run with the job's uid; of several the oldest.
    async fn find(&self, experiment: &str) -> Answer<Option<String>> {
        // The uid has letters, digits and hyphens alone.
        let body = json!({
            "experiment_ids": [experiment], "filter": format!("tags.`{TAG_UID}` = '{}'", self.uid),
            "run_view_type": "ALL", "max_results": RUNS_MAX, "order_by": ["attributes.start_time ASC"],
        });
        let found = self.server.post("runs/search", &body).await?;
        let none = Vec::new();
        let runs = found.get("runs").and_then(Value::as_array).unwrap_or(&none);
        let mut known = Vec::new();
        let mut deleted = false;
        for run in runs.iter().take(RUNS_MAX) {
            if run.pointer("/info/lifecycle_stage") == Some(&json!("deleted")) {
                deleted = true;
                continue;
            }
            let start = run.pointer("/info/start_time").and_then(Value::as_u64);
            known.push((start.unwrap_or(u64::MAX), id(run.pointer("/info/run_id"))?));
        }
        known.sort();
        match known.into_iter().next() {
            Some((_, run)) => Ok(Some(run)),
            // Whoever deleted it wants no other one.
            None if deleted => Err(Trouble::Deleted("run")),
            None => Ok(None),
        }
    }

    async fn make(&self, experiment: &str) -> Answer<String> {
        let body = json!({
            "experiment_id": experiment, "run_name": self.name, "start_time": now(),
            "tags": [{"key": TAG_UID, "value": self.uid}, {"key": "mlflow.runName", "value": self.name}],
        });
        let made = self.server.post("runs/create", &body).await?;
        id(made.pointer("/run/info/run_id"))
    }
}

fn metrics(figures: &[Figure]) -> Vec<Value> {
    let value = |f: &Figure| json!({"key": f.key, "value": f.value, "timestamp": f.timestamp, "step": f.step});
    figures.iter().map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(step: u64) -> Point {
        Point {
            step,
            time: 0,
            values: vec![("train/loss".into(), 1.0), ("train/grad_norm".into(), 2.0)],
        }
    }

    #[test]
    fn of_too_many_figures_the_oldest_go_and_are_counted() {
        let outbox = Outbox::new("http://h", SinkCounters::default());
        let points = QUEUE_MAX as u64 / 2 + 5;
        (1..=points).for_each(|step| outbox.add(&point(step)));
        assert_eq!(outbox.waiting().figures.len(), QUEUE_MAX);
        assert_eq!(outbox.sink.progress().dropped_points, 10);
        assert_eq!(outbox.oldest(BATCH_MAX).0[0].step, 6);
    }

    #[test]
    fn what_was_dropped_while_it_was_being_sent_is_not_taken_out_twice() {
        let outbox = Outbox::new("http://h", SinkCounters::default());
        (1..=QUEUE_MAX as u64 / 2).for_each(|step| outbox.add(&point(step)));
        let (batch, behind) = outbox.oldest(BATCH_MAX);
        assert_eq!(batch.len(), BATCH_MAX);
        // Meanwhile the first three points give way.
        (1..=3).for_each(|step| outbox.add(&point(1_000_000 + step)));
        outbox.remove(behind);
        assert_eq!(outbox.waiting().figures.len(), QUEUE_MAX + 6 - BATCH_MAX);
        assert_eq!(outbox.oldest(BATCH_MAX).0[0].step, BATCH_MAX as u64 / 2 + 1);
        outbox.give_up(Duration::from_secs(5));
        assert!(outbox.oldest(BATCH_MAX).0.is_empty());
        outbox.add(&point(9));
        assert!(
            outbox.oldest(BATCH_MAX).0.is_empty(),
            "nothing is kept that nobody sends"
        );
    }

    #[test]
    fn of_a_servers_texts_only_codes_and_ids_are_taken() {
        assert_eq!(
            code(&json!({"error_code": "BAD_REQUEST"})).as_deref(),
            Some("BAD_REQUEST")
        );
        assert_eq!(code(&json!({"error_code": "bad\u{1b}[2J"})), None);
        assert_eq!(code(&json!({"message": "the token is abc"})), None);
        assert!(id(Some(&json!("9f3a_b-C"))).is_ok());
        for bad in [json!(""), json!("a/b"), json!("x".repeat(65)), json!(7), Value::Null] {
            assert!(id(Some(&bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_that_cannot_work_are_refused() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        for bad in ["ftp://h", "mlflow", "http://"] {
            assert!(Server::new(bad).is_err(), "{bad}");
        }
        let server = Server::new("http://h:5000/prefix/").unwrap();
        assert_eq!(
            server.url("runs/create").unwrap().as_str(),
            "http://h:5000/prefix/api/2.0/mlflow/runs/create"
        );
    }
}
