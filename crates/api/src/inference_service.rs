//! InferenceService: pods that answer with a ModelVersion.

use flywheel_contract::scalar::{Decimal, Device, Precision};
use flywheel_contract::serving::{self, Agreement};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::drift::{Drift, DriftStatus, QualityStatus};
use crate::experiment::{Experiment, ExperimentStatus};
use crate::feedback::Feedback;
use crate::pod::{Accelerator, Image, LocalReference, PodSettings, Resources, Storage};
use crate::recovery::{RecoveryStatus, ServiceRecovery};
use crate::retraining::{AutoUpdate, Retrain, RetrainingStatus, ScheduleStatus};
use crate::scaling::{LoadStatus, Objectives, Scaling, ScalingStatus};

/// Serves a ModelVersion.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "flywheel.dev", version = "v1alpha1", kind = "InferenceService", namespaced,
    status = "InferenceServiceStatus", shortname = "infsvc", category = "flywheel",
    derive = "PartialEq",
    crates(kube = "::kube_derive", kube_core = "::kube_core"),
    attr = "x_kube(crates(kube_core = \"::kube_core\"))",
    doc = "Serves a ModelVersion on pods of an accelerator class, behind a Service of the same name.",
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 63")
        .message("the name must be a DNS label that starts with a letter (lower case, at most 63 characters)")
        .field_path(".metadata.name"),
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.modelVersion", description = "The version that answers"),
    printcolumn(name = "Canary", type_ = "string", json_path = ".status.canary", description = "The version that comes by steps, and its share"),
    printcolumn(name = "Replicas", type_ = "string", json_path = ".status.pods", description = "Pods ready / wanted"),
    printcolumn(name = "QPS", type_ = "string", json_path = ".status.load.qps", description = "Requests a second, with two digits"),
    printcolumn(name = "P99", type_ = "integer", json_path = ".status.load.latencyP99Milliseconds", description = "Milliseconds for 99 of 100 requests"),
    printcolumn(name = "Reason", type_ = "string", priority = 1, json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("self.model == oldSelf.model").message("model cannot be changed; make a new InferenceService").field_path(".model"))]
#[x_kube(validation = Rule::new("!has(self.experiment) || self.experiment.variants.exists(v, v.modelVersion == self.modelVersion)").message("one of the variants must be the version of modelVersion, which answers before and after the experiment").field_path(".experiment.variants"))]
#[x_kube(validation = Rule::new("!has(self.rollout) || !has(self.experiment)").message("a service has a rollout or an experiment, not both: each divides the requests").field_path(".rollout"))]
#[x_kube(validation = Rule::new("!has(self.retrain) || !has(self.retrain.minFeedback) || has(self.drift)").message("retrain.minFeedback needs drift: no other training waits for it").field_path(".retrain.minFeedback"))]
#[x_kube(validation = Rule::new("!has(self.retrain) || !has(self.retrain.minFeedback) || has(self.feedback)").message("retrain.minFeedback needs feedback, by which clients say what would have been right").field_path(".retrain.minFeedback"))]
#[x_kube(validation = Rule::new("!has(self.mirror) || (self.mirror.modelVersion != self.modelVersion && (!has(self.experiment) || !self.experiment.variants.exists(v, v.modelVersion == self.mirror.modelVersion)))").message("the version of mirror must be one that does not answer").field_path(".mirror.modelVersion"))]
#[x_kube(validation = Rule::new("!has(self.server.pod) || !has(self.server.pod.tolerations) || self.server.pod.tolerations.all(t, !has(t.tolerationSeconds) || t.tolerationSeconds == 0 || self.recovery.deadlineSeconds >= 170 + t.tolerationSeconds)").message("deadlineSeconds must be at least 170 s, which a recovery may take, and the largest tolerationSeconds of server.pod.tolerations together").field_path(".recovery.deadlineSeconds"))]
#[x_kube(validation = Rule::new("!has(self.objectives) || self.objectives.latencyP99Milliseconds <= self.server.timeoutMilliseconds").message("latencyP99Milliseconds must not be above server.timeoutMilliseconds, after which requests are answered 504").field_path(".objectives.latencyP99Milliseconds"))]
pub struct InferenceServiceSpec {
    /// Name of the model.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub model: String,
    /// Name of the ModelVersion to serve; with `autoUpdate` the one to begin with.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub model_version: String,
    /// Takes newer versions by itself. They wait while there is an `experiment`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_update: Option<AutoUpdate>,
    /// Throughput and latency that the service is to hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objectives: Option<Objectives>,
    /// Number of pods; where `scaling` says `Auto`, the number at the start. The scale subresource changes it, too. At 0
    /// there are none, whatever the load.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// Lets the number of pods follow the load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
    /// Where the pods run; one GPU each.
    #[serde(default = "default_accelerator")]
    pub accelerator: Accelerator,
    /// The pods.
    #[serde(default)]
    pub server: Server,
    /// Divides the requests among versions, in the pods as they are, and tells which is right more often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experiment: Option<Experiment>,
    /// Lets a change of `modelVersion` come by steps. Without it all pods change over at once, as soon as all have loaded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// Another version that gets a copy of some requests. Its answers are compared and thrown away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// Lets clients say what would have been right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feedback: Option<Feedback>,
    /// Tells when live texts do not look any more like those that the version was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
    /// Trains anew when they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrain: Option<Retrain>,
    /// What happens after a failure of pods, nodes or GPUs.
    #[serde(default)]
    pub recovery: ServiceRecovery,
    /// How the pods reach the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// Service account of the pods, for workload identity; its API token is never mounted. Setting it takes the right to
    /// create pods in the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
}

impl InferenceServiceSpec {
    /// Names of the versions that the pods hold, that of `modelVersion` first, each once.
    #[must_use]
    pub fn versions(&self) -> Vec<&str> {
        let variants = self
            .experiment
            .iter()
            .flat_map(|e| &e.variants)
            .map(|v| &v.model_version);
        let mirror = self.mirror.iter().map(|m| &m.model_version);
        let mut names: Vec<&str> = vec![&self.model_version];
        for name in variants.chain(mirror) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }

    /// Names and percents of the variants; empty without an experiment.
    #[must_use]
    pub fn shares(&self) -> Vec<(&str, u8)> {
        let variants = self.experiment.iter().flat_map(|experiment| &experiment.variants);
        variants
            .map(|v| (v.model_version.as_str(), percent(v.percent)))
            .collect()
    }

    /// The version that gets copies, as pods are told.
    #[must_use]
    pub fn mirrored(&self) -> Option<serving::Mirror> {
        self.mirror.as_ref().map(|mirror| serving::Mirror {
            version: mirror.model_version.clone(),
            percent: percent(mirror.percent),
        })
    }
}

/// Percents as the schema bounds them.
fn percent(percent: i32) -> u8 {
    u8::try_from(percent).unwrap_or(0)
}

fn default_replicas() -> i32 {
    1
}

fn default_accelerator() -> Accelerator {
    Accelerator { class: "t4".to_owned() }
}

/// How a new version comes to the pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("[0, 1, 2, 3, 4, 5, 6, 7, 8].all(i, i + 1 >= self.steps.size() || self.steps[i].weightPercent < self.steps[i + 1].weightPercent)").message("each step must have a greater weightPercent than the one before it").field_path(".steps"))]
pub struct Rollout {
    /// Shares of the requests that the new version gets, one after another. Only as many pods hold it as its share is of all, at
    /// least one in ten, and never the last one. After the last step all pods change over to it.
    #[schemars(length(min = 1, max = 10), extend("x-kubernetes-list-type" = "atomic"))]
    pub steps: Vec<RolloutStep>,
    /// Goes on to no further step while true, nor to the change of all pods after the last. To go back, set `modelVersion` to the version before.
    #[serde(default)]
    pub paused: bool,
    /// Name of a version that needs no further steps: while it is the one that comes, and nothing is `paused`, all pods change over to
    /// it as soon as all have loaded it, whatever it did so far, unless it ended a pod's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub approved_version: Option<String>,
    /// What the version may do worse than the one before. Beyond that it is rejected; with or without it a version is rejected that lacks
    /// a label of the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<Analysis>,
}

/// How the figures of a version that comes are judged: its agreement as soon as a pod has loaded it, the others as soon as it has answered the step's `minRequests` (100 where it has
/// none). Both versions' figures are those since the version came. A version that is not worse than allowed is rejected by chance
/// with a probability of at most about 0.01 for each figure and rollout, however often they are looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Analysis {
    /// How much larger the share of texts may be that cannot be computed, or not in time (also those that its full queue
    /// refuses), as soon as both versions answered 100.
    #[serde(default = "default_errors")]
    #[schemars(extend("pattern" = Decimal::SHARE))]
    pub max_error_rate_increase: Decimal,
    /// How much longer computing a text may take, in percent: batches of one text are compared, as soon as both versions
    /// computed 30 of them in the pods that have both.
    #[serde(default = "default_compute_time")]
    #[schemars(range(min = 0, max = 10_000))]
    pub max_compute_time_increase_percent: i32,
    /// Smallest share of the texts in the evaluation sample of the version before to which the new one gives the label that that one
    /// gives, 0 to 1. Not judged where the sample has fewer than 30 texts, or is not in the artifact.
    #[serde(default = "default_agreement")]
    #[schemars(extend("pattern" = Decimal::SHARE))]
    pub min_agreement: Decimal,
    /// Smallest difference of the accuracies that `feedback` tells, the new version's less that of the one before. Needs
    /// `minSamples` of both.
    #[serde(default = "default_accuracy")]
    #[schemars(extend("pattern" = Decimal::DIFFERENCE))]
    pub min_accuracy_delta: Decimal,
    /// Predictions with feedback that each version needs until their accuracies are compared. With `feedback` in the spec the
    /// rollout waits for them before its last step is over; without it accuracy is not judged.
    #[serde(default = "default_judged")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_samples: i32,
}

pub(crate) fn default_errors() -> Decimal {
    Decimal::from("0.01")
}
pub(crate) fn default_compute_time() -> i32 {
    20
}
fn default_agreement() -> Decimal {
    Decimal::from("0.8")
}
fn default_accuracy() -> Decimal {
    Decimal::from("-0.01")
}
fn default_judged() -> i32 {
    100
}

/// A step of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStep {
    /// Requests of a hundred that the new version gets.
    #[schemars(range(min = 1, max = 99))]
    pub weight_percent: i32,
    /// Seconds for which its pods must have answered with it until the next step.
    #[schemars(range(min = 0, max = 604_800))]
    pub duration_seconds: i32,
    /// Texts that it must have answered in all until the next step. With `analysis` they are 100 where the field is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub min_requests: Option<i32>,
}

/// A version that answers beside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Name of the ModelVersion.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub model_version: String,
    /// Requests of a hundred that it gets a copy of. A pod that is busy copies fewer.
    #[schemars(range(min = 1, max = 100))]
    pub percent: i32,
}

/// The serving pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    /// Processor and memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Image, where it is not the class's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// Number format of the model. A version whose labels on its own evaluation sample differ in this format from those in
    /// single precision in more than one text of two hundred is not served in it. `Int8` is for processors, is never chosen by
    /// `Auto`, and wants an artifact that this release trained or `flywheel-trainer calibrate` readied.
    #[serde(default)]
    pub precision: Precision,
    /// Texts waiting or computed at once in one pod; more are answered 429.
    #[serde(default = "default_max_concurrency")]
    #[schemars(range(min = 1, max = 65_536))]
    pub max_concurrency: i32,
    /// Milliseconds after which a request is answered 504.
    #[serde(default = "default_timeout")]
    #[schemars(range(min = 1, max = 600_000))]
    pub timeout_milliseconds: i32,
    /// Lets the pods speak TLS on their data port; the Service has port 443 then, and no port 80.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// More settings of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodSettings>,
}

/// TLS of the data port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Secret of type `kubernetes.io/tls`, with a certificate for `<name>.<namespace>.svc` and its key. The operator never
    /// reads it; the kubelet hands it to the pods, which take up a renewed one while they run.
    pub secret_ref: LocalReference,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            resources: None,
            image: None,
            precision: Precision::Auto,
            max_concurrency: default_max_concurrency(),
            timeout_milliseconds: default_timeout(),
            tls: None,
            pod: None,
        }
    }
}

fn default_max_concurrency() -> i32 {
    256
}
fn default_timeout() -> i32 {
    1000
}

/// What the operator saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InferenceServiceStatus {
    /// Generation of the spec that this status is about; -1 before the operator has seen the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Address inside the cluster, once the Service of that name is there and is this object's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The version that every ready pod answers with; absent while they answer with two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_version: Option<String>,
    /// How many of the ready pods answer with which version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["modelVersion"]))]
    pub traffic: Vec<Traffic>,
    /// The version that comes by steps, with its share of the requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<String>,
    /// What the version that comes by steps, or came so and answers, was judged by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// What came of the copies that the version of `mirror` got, once there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorStatus>,
    /// Pods there are, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Pods ready / wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<String>,
    /// What is asked of the pods, where `objectives` or `scaling` are set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadStatus>,
    /// How many pods the load wants, where `scaling` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingStatus>,
    /// What was recovered from, and how long it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<RecoveryStatus>,
    /// The last window of live texts that was judged, where `drift` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftStatus>,
    /// How often answers were right, beside how often they were before, where `drift` and `feedback` are set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<QualityStatus>,
    /// How the variants compare, where `experiment` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experiment: Option<ExperimentStatus>,
    /// The last retraining, where `retrain` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retraining: Option<RetrainingStatus>,
    /// How the schedule of retrainings stands, where `retrain.schedule` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrain_schedule: Option<ScheduleStatus>,
    /// Selector of the pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Where the pods compute: `Cpu` where the class's GPUs are simulated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
}

/// What a version was judged by that came by steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// Name of the ModelVersion.
    pub model_version: String,
    /// What there was enough of, and spoke not against it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub judged: Vec<RolloutFigure>,
    /// What it was not judged by: there is too little of it, or no limit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub not_judged: Vec<RolloutFigure>,
}

impl RolloutStatus {
    /// From what the version was judged by so far.
    #[must_use]
    pub fn of(model_version: &str, judged: &[RolloutFigure]) -> Self {
        let (judged, not_judged) = RolloutFigure::ALL
            .into_iter()
            .partition(|figure| judged.contains(figure));
        Self {
            model_version: model_version.to_owned(),
            judged,
            not_judged,
        }
    }
}

/// What speaks for or against a version that comes by steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RolloutFigure {
    /// It knows the labels of the version before.
    Labels,
    /// `minAgreement`.
    Agreement,
    /// `maxErrorRateIncrease`.
    ErrorRate,
    /// `maxComputeTimeIncreasePercent`.
    ComputeTime,
    /// `minAccuracyDelta`.
    Accuracy,
}

impl RolloutFigure {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Labels,
        Self::Agreement,
        Self::ErrorRate,
        Self::ComputeTime,
        Self::Accuracy,
    ];
}

/// A version that answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Name of the ModelVersion.
    pub model_version: String,
    /// Ready pods that answer with it.
    pub pods: i32,
    /// Requests of a hundred that it gets, where an experiment or a rollout divides them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<i32>,
    /// Number format in which it computes, as the pods say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// How its answers in that format compare with those in single precision, on the artifact's evaluation sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
}

/// What came of the copies that a version got in the pods that there are, since each loaded it. It is written at most every 30 s, and
/// where something has changed by much: texts by a tenth, or a share of them by a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MirrorStatus {
    /// Name of the ModelVersion.
    pub model_version: String,
    /// When the pods said so.
    pub observed: Time,
    /// Texts whose label was compared with the one that was answered.
    pub texts: i64,
    /// Those of them that got the same label.
    pub same: i64,
    /// Texts that it could not compute.
    pub failed: i64,
    /// Texts that were left out, since their pods were busy.
    pub shed: i64,
    /// Mean time of a copy in its pod, with its wait for a worker, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub milliseconds: Option<String>,
    /// That of the same requests in the version that answered them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_milliseconds: Option<String>,
}
