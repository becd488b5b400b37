//! `predict`: one request per text to a ready pod of the service, so that each has a time of its own.

use std::io::Write;
use std::time::{Duration, Instant};

use flywheel_api::InferenceService;
use flywheel_api::conditions::{find, types};
use flywheel_api::names::{LABEL_COMPONENT, LABEL_INFERENCE_SERVICE, SERVER};
use flywheel_contract::names::DATA_PORT;
use flywheel_wire::predict::PREDICT_PATH;
use flywheel_wire::{ErrorBody, PredictRequest, PredictResponse, Prediction};
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::arguments::Output;
use crate::cluster::Cluster;
use crate::error::Error;
use crate::forward::PodPort;
use crate::text::{Table, shortened};

/// Wait beyond the service's own limit, for the way to the pod and back.
const WAY: Duration = Duration::from_secs(5);
/// Most bytes of an answer: one text's probabilities, for as many labels as anybody has.
const ANSWER_MAX: usize = 4 * 1024 * 1024;
/// Most characters of a text in the table.
const TEXT_MAX: usize = 60;

/// Asks the service and prints its predictions.
pub(crate) async fn run(
    cluster: &Cluster,
    name: &str,
    texts: Vec<String>,
    output: Output,
    out: &mut dyn Write,
) -> Result<(), Error> {
    // The service's own bounds, before anything is sent.
    let requests = texts.into_iter().map(|text| PredictRequest::One { text });
    let requests: Vec<PredictRequest> = requests
        .map(|request| PredictRequest::parse(&request.to_json()))
        .collect::<Result<_, _>>()?;
    let service: InferenceService = cluster.get(name).await?;
    let pod = ready_pod(cluster, &service).await?;
    let limit = u64::try_from(service.spec.server.timeout_milliseconds).unwrap_or(0);
    let wait = Duration::from_millis(limit) + WAY;
    let mut port = PodPort::new(cluster, pod, DATA_PORT);
    if service.spec.server.tls.is_some() {
        port = port.with_tls();
    }
    let mut told = Vec::new();
    for request in requests {
        // The first request also opens the connection, which is not the service's time.
        port.open().await?;
        let begin = Instant::now();
        let prediction = ask(&mut port, &request, wait).await?;
        told.push((request, prediction, begin.elapsed()));
    }
    match output {
        Output::Text => out.write_all(table(&told).as_bytes())?,
        Output::Json => {
            let predictions = told.into_iter().map(|(_, prediction, _)| prediction).collect();
            serde_json::to_writer(&mut *out, &PredictResponse { predictions }).map_err(std::io::Error::from)?;
            writeln!(out)?;
        }
    }
    Ok(())
}

/// Name of the newest ready pod.
async fn ready_pod(cluster: &Cluster, service: &InferenceService) -> Result<String, Error> {
    let name = service.name_any();
    let labels = format!("{LABEL_COMPONENT}={SERVER},{LABEL_INFERENCE_SERVICE}={name}");
    let (pods, _) = cluster.list::<Pod>(&labels).await?;
    let newest = pods
        .iter()
        .filter(|pod| is_ready(pod))
        .max_by_key(|pod| pod.creation_timestamp().map(|t| t.0));
    if let Some(pod) = newest {
        return Ok(pod.name_any());
    }
    let conditions = service
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let why = find(conditions, types::READY).map_or_else(
        || "the operator has not looked at it yet".to_owned(),
        |c| format!("{}: {}", c.reason, crate::text::clean(&c.message)),
    );
    Err(Error::NoPod(format!(
        "InferenceService {name} has no ready pod ({why}); `kubectl flywheel status inferenceservice/{name} -n {}` shows more",
        cluster.namespace()
    )))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut ready = conditions.filter(|c| c.type_ == "Ready" && c.status == "True");
    pod.metadata.deletion_timestamp.is_none() && ready.next().is_some()
}

async fn ask(port: &mut PodPort, request: &PredictRequest, wait: Duration) -> Result<Prediction, Error> {
    let body = request.to_json().into();
    let answer = port
        .exchange(Method::POST, PREDICT_PATH, body, wait, ANSWER_MAX)
        .await?;
    if answer.status == 200 {
        let read = serde_json::from_slice(&answer.body);
        return read.map_err(|e| port.error(&format!("the prediction cannot be read: {e}")));
    }
    match serde_json::from_slice::<ErrorBody>(&answer.body) {
        Ok(body) => Err(Error::Refused {
            pod: port.pod().to_owned(),
            refusal: body.error,
        }),
        Err(_) => Err(port.error(&format!("{PREDICT_PATH} answers with status {}", answer.status))),
    }
}

fn table(told: &[(PredictRequest, Prediction, Duration)]) -> String {
    let mut table = Table::new(&["LABEL", "PROBABILITY", "MS", "VERSION", "TEXT"]);
    for (request, prediction, time) in told {
        table.row([
            prediction.label.clone(),
            format!("{:.4}", prediction.probability),
            format!("{:.1}", time.as_secs_f64() * 1000.0),
            prediction.model_version.clone(),
            shortened(&request.texts().concat(), TEXT_MAX),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use flywheel_testkit::objects::{CREATED, inference_service, object};
    use flywheel_testkit::{Scenario, Step};
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, created: &str, ready: &str, over: Value) -> Value {
        flywheel_testkit::objects::merged(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "creationTimestamp": created},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}),
            &over,
        )
    }

    async fn chosen(pods: Vec<Value>) -> Result<String, Error> {
        let (client, scenario) = Scenario::start(vec![Step::list("/api/v1/namespaces/team/pods", "Pod", "v1", pods)]);
        let service = inference_service(&json!({"status": {"conditions": [
            {"type": "Ready", "status": "False", "reason": "ReplicasUnavailable", "message": "0 of 1", "lastTransitionTime": CREATED}
        ]}}));
        let found = ready_pod(&Cluster::of(client, "team"), &service).await;
        scenario.finish().await;
        found
    }

    #[tokio::test]
    async fn the_newest_ready_pod_is_asked() {
        let pods = vec![
            pod("old", CREATED, "True", json!({})),
            pod("new", "2026-01-02T00:00:00Z", "True", json!({})),
            pod("loading", "2026-01-03T00:00:00Z", "False", json!({})),
            pod(
                "going",
                "2026-01-03T00:00:00Z",
                "True",
                json!({"metadata": {"deletionTimestamp": CREATED}}),
            ),
        ];
        assert_eq!(chosen(pods).await.unwrap(), "new");
        let error = chosen(vec![pod("loading", CREATED, "False", json!({}))])
            .await
            .unwrap_err();
        assert!(error.to_string().contains("ReplicasUnavailable: 0 of 1"), "{error}");
    }

    #[tokio::test]
    async fn a_text_that_would_be_refused_is_not_sent() {
        let (client, scenario) = Scenario::start(vec![]);
        let texts = vec!["good".to_owned(), " ".to_owned()];
        let mut out = Vec::new();
        let error = run(&Cluster::of(client, "team"), "intent", texts, Output::Text, &mut out).await;
        assert!(matches!(error, Err(Error::Request(_))), "{error:?}");
        scenario.finish().await;
    }

    #[test]
    fn the_table() {
        let prediction: Prediction = object(json!({
            "intent_id": 1, "label": "lights\u{7}_off", "probability": 0.9877, "all_probs": {}, "model_version": "intent-v1",
            "request_id": "r"
        }));
        let request = PredictRequest::One {
            text: format!("{} x", "turn the lights off ".repeat(4)),
        };
        assert_eq!(
            table(&[(request, prediction, Duration::from_micros(12_340))]),
            "LABEL         PROBABILITY   MS     VERSION     TEXT\n\
             lights _off   0.9877        12.3   intent-v1   turn the lights off turn the lights off turn the lights off…\n"
        );
    }
}
