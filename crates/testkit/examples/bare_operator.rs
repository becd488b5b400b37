//! The least that an operator of Jobs can do, for `make bench-scale`: per object one Indexed Job, and one merge patch of the
//! status once its pod is ready. What ours costs is told as a ratio to it, measured in the same run.
//!
//! `bare_operator crd` prints the definition of its kind; `bare_operator run <template.json>` runs it until it is ended, with
//! pods of this template.
#![allow(clippy::print_stdout, reason = "the definition is the output of this program")]

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, CustomResource, CustomResourceExt as _, Resource as _, ResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

type Fault = Box<dyn std::error::Error>;

/// Reconciles at once: they wait for the API server most of the time.
const CONCURRENCY: u16 = 32;
/// Wait after an error.
const AGAIN: Duration = Duration::from_secs(1);
/// Marks the Jobs of this operator.
const LABEL: &str = "bench.flywheel.dev/bare";
/// The state of an object whose pod is ready.
const RUNNING: &str = "Running";

/// Nothing: every pod is the same.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "bench.flywheel.dev",
    version = "v1",
    kind = "BareJob",
    namespaced,
    status = "BareStatus"
)]
struct BareJobSpec {}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct BareStatus {
    state: String,
}

struct Context {
    client: Client,
    jobs: Store<Job>,
    template: PodTemplateSpec,
}

async fn reconcile(object: Arc<BareJob>, context: Arc<Context>) -> Result<Action, kube::Error> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let Some(job) = context.jobs.get(&ObjectRef::new(&name).within(&namespace)) else {
        let made = Api::namespaced(context.client.clone(), &namespace)
            .create(&PostParams::default(), &job(&object, &context.template))
            .await;
        return match made {
            // The cache does not show it yet.
            Err(kube::Error::Api(answer)) if answer.is_already_exists() => Ok(Action::await_change()),
            other => other.map(|_: Job| Action::await_change()),
        };
    };
    let ready = job.status.as_ref().and_then(|status| status.ready).unwrap_or(0) > 0;
    let told = object.status.as_ref().is_some_and(|status| status.state == RUNNING);
    if ready && !told {
        Api::<BareJob>::namespaced(context.client.clone(), &namespace)
            .patch_status(
                &name,
                &PatchParams::default(),
                &Patch::Merge(json!({"status": {"state": RUNNING}})),
            )
            .await?;
    }
    Ok(Action::await_change())
}

/// As the operator's Jobs are: one pod, tried once.
fn job(owner: &BareJob, template: &PodTemplateSpec) -> Job {
    Job {
        metadata: ObjectMeta {
            name: Some(owner.name_any()),
            namespace: owner.namespace(),
            labels: Some([(LABEL.to_owned(), "true".to_owned())].into()),
            owner_references: owner.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            backoff_limit: Some(0),
            completion_mode: Some("Indexed".to_owned()),
            completions: Some(1),
            parallelism: Some(1),
            pod_replacement_policy: Some("Failed".to_owned()),
            template: template.clone(),
            ..JobSpec::default()
        }),
        status: None,
    }
}

/// Keeps of a Job what is read of it.
fn prune(job: &mut Job) {
    job.metadata.managed_fields = None;
    job.metadata.annotations = None;
    job.spec = None;
}

async fn run(template: PodTemplateSpec) -> Result<(), Fault> {
    let client = Client::try_default().await?;
    let (jobs, writer) = reflector::store();
    let changes = watcher(
        Api::<Job>::all(client.clone()),
        watcher::Config::default().labels(LABEL),
    )
    .default_backoff()
    .modify(prune)
    .reflect(writer)
    .touched_objects();
    let context = Arc::new(Context {
        client: client.clone(),
        jobs,
        template,
    });
    Controller::new(Api::<BareJob>::all(client), watcher::Config::default())
        .owns_stream(changes)
        .with_config(Config::default().concurrency(CONCURRENCY))
        .run(
            reconcile,
            |_, error, _| {
                eprintln!("bare_operator: {error}");
                Action::requeue(AGAIN)
            },
            context,
        )
        .for_each(|_| async {})
        .await;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Fault> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["crd"] => println!("{}", serde_json::to_string(&BareJob::crd())?),
        ["run", file] => run(serde_json::from_slice(&fs::read(file)?)?).await?,
        _ => return Err("usage: bare_operator crd | run <template.json>".into()),
    }
    Ok(())
}
