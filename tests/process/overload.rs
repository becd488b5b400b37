//! An API server that has too much to do: it is asked no more than it bears, and what waits goes on when it recovers.

use std::time::{Duration, Instant};

use flywheel_testkit::Overload;
use http::{Method, StatusCode};
use serde_json::json;

use super::{Operator, kubeconfig, plane_with_crds, proxy};

/// TrainingJobs that are made meanwhile.
const JOBS: u32 = 20;
/// How long the server refuses.
const OVERLOADED: Duration = Duration::from_secs(10);
/// Most calls a second for one object, on average: that is no hot loop.
const CALLS_PER_SECOND: f64 = 2.0;
/// The longest delay of an object that failed, and what its call takes then.
const GOES_ON_WITHIN: Duration = Duration::from_secs(35);

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_server_is_asked_little_and_all_goes_on_when_it_recovers() {
    let plane = plane_with_crds(false).await;
    let folder = tempfile::tempdir().unwrap();
    let proxy = proxy(&plane).await;
    let operator = Operator::start(folder.path(), "a", &kubeconfig(&proxy.server()));
    operator.until_it_says("leading");
    for (name, status, retry_after) in [
        ("silent", StatusCode::TOO_MANY_REQUESTS, None),
        // Waiting as long would break every promise.
        ("an-hour", StatusCode::SERVICE_UNAVAILABLE, Some(3600)),
    ] {
        let before = proxy.refused().len();
        proxy.overload(Some(Overload { status, retry_after }));
        for number in 0..JOBS {
            plane
                .create(&json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "TrainingJob",
                    "metadata": {"name": format!("{name}-{number}"), "namespace": "team"},
                    "spec": {"task": "TextClassification", "model": {"pretrained": {"uri": "s3://b/m"}},
                        "dataset": {"sources": [{"uri": "s3://b/d.csv"}]}, "output": {"model": "intent", "uri": "s3://b/o"}}}))
                .await;
        }
        plane
            .until("it is refused", || async {
                (proxy.refused().len() > before).then_some(())
            })
            .await;
        let begun = Instant::now();
        tokio::time::sleep(OVERLOADED).await;
        proxy.overload(None);
        let refused = proxy.refused().split_off(before);
        let per_object = f64::from(u32::try_from(refused.len()).unwrap()) / f64::from(JOBS);
        let seconds = begun.elapsed().as_secs_f64();
        println!("{name}: {:.1} calls a second for each object", per_object / seconds);
        assert!(per_object <= CALLS_PER_SECOND * seconds, "{refused:?}");

        let recovered = Instant::now();
        for number in 0..JOBS {
            let path = format!("/apis/batch/v1/namespaces/team/jobs/{name}-{number}-train-1");
            plane
                .until(&path, || async { plane.send(Method::GET, &path, None).await.ok() })
                .await;
        }
        let took = recovered.elapsed();
        println!("{name}: all went on within {:.1} s", took.as_secs_f64());
        assert!(took < GOES_ON_WITHIN, "{took:?}");
    }
}
