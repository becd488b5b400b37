//! Configuration of the serving pod, and what it tells of itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::profile::WINDOW_SECONDS;
use crate::scalar::{Device, Digest, Precision, Uri};
use crate::split::Split;
use crate::storage::StorageSettings;
use crate::trainer::ArtifactRef;

/// Content of the ConfigMap `<name>-serving-<first digits of its digest>`: what stays as long as a pod lives. What it
/// answers with is the [`Assignment`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServingConfig {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Whose pod this is.
    pub service: ServiceIdentity,
    /// What to compute on.
    pub device: Device,
    /// In which format.
    #[serde(default)]
    pub precision: Precision,
    /// How to reach the bucket.
    #[serde(default)]
    pub storage: StorageSettings,
    /// With which certificate the data port speaks TLS; without one it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
    /// How clients tell what would have been right; without it they cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feedback: Option<FeedbackSettings>,
    /// Bounds.
    pub limits: ServingLimits,
}

/// Feedback on predictions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FeedbackSettings {
    /// Path of the file with the key by which pods know their own receipts.
    pub key: String,
    /// Where texts and what clients say of them are kept; without it no text is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<Capture>,
}

/// Texts that are kept for training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capture {
    /// Folder of the service; a pod writes files of its own below it.
    pub uri: Uri,
    /// Share of the predictions whose texts are kept, 0 to 1.
    pub sample_rate: f64,
    /// What is taken out of them first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redact: Vec<Redaction>,
    /// Days for which they are kept; for good where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_days: Option<u32>,
}

/// What looks like this in a text that is kept gives way to a placeholder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Redaction {
    /// `<email>`: a local part, `@` and a domain with a dot.
    EmailAddress,
    /// `<phone>`: with `+`, `00` or `0` before it, an area code in brackets, or as 555-123-4567.
    PhoneNumber,
    /// `<card>`: 13 to 19 digits, in groups or not, whose check digit is right (Luhn).
    CardNumber,
    /// `<iban>`: an account's number whose check digits are right (ISO 13616).
    Iban,
    /// `<ip>`: IPv4 and IPv6.
    IpAddress,
    /// `<url>`: whatever has `://` after a scheme, or begins with `www.`.
    Url,
}

/// A certificate and its key, in files that may change while the pod runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsFiles {
    /// Path of the certificate and what leads to its authority, in PEM.
    pub certificate: String,
    /// Path of its private key, in PEM.
    pub key: String,
}

/// Which InferenceService a pod belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceIdentity {
    /// Namespace of the InferenceService.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Content of the ConfigMap `<name>-serving`: the versions that the service's pods hold, and the one that they answer with.
/// It changes while pods run, and they follow: a version that is listed is loaded beside the others, the one to serve
/// answers as soon as it is loaded, and one that is not listed any more goes once nothing is computed with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Grows with every change; a pod passes over an older one than it has followed.
    pub generation: u64,
    /// Name of the version that answers, one of `versions`.
    pub serve: String,
    /// Versions to hold, at most [`MAX_VERSIONS`].
    pub versions: Vec<ServedVersion>,
    /// How requests are divided among several versions; without it `serve` gets all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
    /// The experiment that the split belongs to. Pods need not know of it; it stands here so that what was decided of its variants
    /// and their shares are one thing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<Trial>,
    /// The version that gets a copy of some requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// A version on its way to all pods, which some of them answer with already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// Crashes that speak against no version: a pod that holds one back for such a crash tries it again. At most
    /// [`MAX_CLEARED`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cleared: Vec<Cleared>,
    /// Length of the windows in which live texts are counted; [`WINDOW_SECONDS`] where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_seconds: Option<u32>,
    /// Since when a version comes by steps, or an experiment runs, in seconds since 1970: what clients say of earlier predictions is of
    /// other texts than those that the new version answered, and does not count in the figures of any version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged_since: Option<u64>,
}

impl Assignment {
    /// Length of the windows in which live texts are counted.
    #[must_use]
    pub fn window_seconds(&self) -> u32 {
        self.window_seconds.unwrap_or(WINDOW_SECONDS)
    }

    /// The version that answers; `None` in an assignment that contradicts itself.
    #[must_use]
    pub fn serving(&self) -> Option<&ServedVersion> {
        self.versions.iter().find(|v| v.name == self.serve)
    }

    /// What it says to the pod of this name: only the pods of the canary are to hold its version.
    #[must_use]
    pub fn of_pod(mut self, pod: &str) -> Self {
        if let Some(canary) = &mut self.canary {
            canary.pods.retain(|name, _| name == pod);
        }
        self.canary = self.canary.filter(|canary| !canary.pods.is_empty());
        if let Some(Canary { version, .. }) = &self.canary
            && !self.versions.contains(version)
        {
            self.versions.push(version.clone());
        }
        self
    }
}

/// A version that some pods answer with beside `serve`, which are named here and not told by a label: so its share and the pods
/// that have it change in one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Canary {
    /// The version.
    pub version: ServedVersion,
    /// Its step of `spec.rollout`, from 0; their number once all pods are to have it.
    pub step: u32,
    /// Since when its pods answer with it in this step, in milliseconds since 1970; absent until they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<i64>,
    /// Names of the pods, each with the buckets (of [`crate::split::BUCKETS`]) of its requests that the version gets. Which
    /// those are does not depend on keys.
    pub pods: BTreeMap<String, u16>,
}

/// An experiment whose variants answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trial {
    /// Tells it from others: what its variants are, and by what they are compared.
    pub id: String,
    /// Variants that get no requests any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stopped: Vec<Stopped>,
}

/// A variant that did worse than an experiment allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stopped {
    /// Name of the version.
    pub version: String,
    /// What it did.
    pub why: String,
}

/// A version that answers beside and is not heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Name of the version.
    pub version: String,
    /// Requests of a hundred that it gets a copy of, where the pod has time for that.
    pub percent: u8,
}

/// Most versions that a pod holds at once: those of one experiment beside those of the next.
pub const MAX_VERSIONS: usize = 12;

/// A crash that its version is not to blame for, or not for certain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cleared {
    /// Digest of the version's artifact.
    pub digest: Digest,
    /// [`Crash::id`].
    pub crash: String,
}

/// Most crashes that an assignment clears; the oldest go.
pub const MAX_CLEARED: usize = 64;

/// A version that a pod serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServedVersion {
    /// Name of the ModelVersion; answers carry it.
    pub name: String,
    /// Its artifact.
    pub artifact: ArtifactRef,
}

/// What a pod refuses to go beyond.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServingLimits {
    /// Texts waiting or computed at once; more are answered 429.
    pub max_concurrency: u32,
    /// Milliseconds after which a request is answered 504.
    pub timeout_milliseconds: u32,
}

/// Body of `/stats`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Whether `/readyz` says yes.
    pub ready: bool,
    /// Generation of the [`Assignment`] that the pod follows.
    pub generation: u64,
    /// Name of the version that answers, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<String>,
    /// The versions that it holds or is to hold, in the order of the assignment, and how far they are.
    pub versions: Vec<VersionStats>,
    /// Requests answered since the start, by class of status: 2xx, 4xx, 5xx.
    pub answered: [u64; 3],
    /// Texts waiting or computed now.
    pub in_flight: u32,
    /// Seconds since the start.
    pub uptime_seconds: f64,
    /// What it was asked and did. Pods of an operator that did not scale by it do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<Load>,
}

/// Upper bounds in seconds of the classes in [`Load::latency`]; one more class holds what took longer.
pub const LATENCY_BOUNDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0,
];

/// What a pod was asked and did since its start. All counts only grow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// Requests to the model that were well formed, whatever came of them.
    pub requests: u64,
    /// Those of them that were refused or given up because the pod was too busy (429, 504).
    pub refused: u64,
    /// Requests under way, summed over time, in seconds: its growth over a time is the mean concurrency.
    pub in_flight_seconds: f64,
    /// Time for which workers computed, of all workers, in seconds.
    pub busy_seconds: f64,
    /// Workers.
    pub workers: u32,
    /// Requests that were answered 2xx, by the time from their head to their answer, in the classes of [`LATENCY_BOUNDS`] and
    /// one more.
    pub latency: [u64; LATENCY_BOUNDS.len() + 1],
}

/// State of a version in a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionStats {
    /// Name of the ModelVersion.
    pub name: String,
    /// Digest of its artifact.
    pub digest: Digest,
    /// How far it is.
    pub state: LoadState,
    /// Format in which it computes, once loaded; never [`Precision::Auto`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// How its answers in that format compare with those in single precision, once loaded, if it came with answers to
    /// compare with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// How its answers compare with those of the version that answered when it was loaded: of versions that come by steps or get
    /// copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub likeness: Option<Likeness>,
    /// Its labels beside those of the version that answers, once both are loaded: of a version that comes by steps. As long as some
    /// are missing the pod does not answer with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<LabelsBeside>,
    /// Why the last try to load it failed, or why it is held back, while it is not loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The crash for which it is held back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crash: Option<Crash>,
    /// What was done with it, once loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figures: Option<VersionFigures>,
    /// What came of copies that it got, once it got one. Pods of an earlier release do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copies: Option<CopyFigures>,
}

/// What came of copies of requests in a pod since it loaded the version that got them. All counts only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CopyFigures {
    /// Texts whose label was compared with the one that was answered.
    pub texts: u64,
    /// Those of them that got the same label.
    pub same: u64,
    /// Texts that could not be computed.
    pub failed: u64,
    /// Texts that were left out, since the pod was busy.
    pub shed: u64,
    /// Requests whose texts were compared.
    pub requests: u64,
    /// Time that their copies took, from the copy on, in seconds.
    pub seconds: f64,
    /// Time that they took themselves, in the version that answered, in seconds.
    pub answered_seconds: f64,
}

/// What a pod did with a version since it loaded it. All counts only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionFigures {
    /// Texts that were computed for clients.
    pub texts: u64,
    /// Texts that could not be computed.
    pub failed: u64,
    /// Batches of one text. What such a batch takes can be compared between versions, however much each has to do: a busier one
    /// computes more texts together, which takes less time for each.
    pub alone: u64,
    /// Time that those took, in seconds.
    pub alone_seconds: f64,
    /// Sum of the squares of their times, in square seconds.
    pub alone_squares: f64,
    /// Predictions of which a client said what would have been right, each counted once.
    #[serde(default)]
    pub judged: u64,
    /// Those of them that were right.
    #[serde(default)]
    pub correct: u64,
}

/// An end of a pod's process, not in order, while it computed with a version beside the stable one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Crash {
    /// Tells it from all others, of other pods as well.
    pub id: String,
    /// A second, since 1970 by the clock of the pod's node, in which the process still ran.
    pub at: i64,
    /// Such ends of this pod with the version, since it is held; this one counts.
    pub times: u32,
    /// Other versions beside the stable one were computed with or loaded at that moment, so that any may be to blame.
    pub together: bool,
    /// No other end of the process came after it.
    pub last: bool,
}

/// Answers of a version beside those that its artifact's evaluation sample holds, which were computed in single precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Agreement {
    /// Texts compared.
    #[schemars(with = "i32")]
    pub texts: u32,
    /// Those that got the same label.
    #[schemars(with = "i32")]
    pub same: u32,
}

/// Answers of a version beside those of another one, in single precision, to the texts of the other one's evaluation sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Likeness {
    /// Digest of the other one's artifact.
    pub to: Digest,
    /// Texts that got the label of the same name.
    pub agreement: Agreement,
}

/// Labels of a version beside those of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelsBeside {
    /// Digest of the other one's artifact.
    pub to: Digest,
    /// Labels of the other one.
    pub theirs: u32,
    /// Those of them that this version cannot give.
    pub missing: u32,
    /// The first [`MISSING_NAMED`] of those, in the order of the other one's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first: Vec<String>,
}

/// Labels that [`LabelsBeside`] names.
pub const MISSING_NAMED: usize = 3;

impl LabelsBeside {
    /// Compares a version's labels with those of another one by name; where they stand in the order does not matter.
    #[must_use]
    pub fn of(mine: &[String], to: &Digest, theirs: &[String]) -> Self {
        let mine: BTreeSet<&String> = mine.iter().collect();
        let missing = || theirs.iter().filter(|label| !mine.contains(label));
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            to: to.clone(),
            theirs: count(theirs.len()),
            missing: count(missing().count()),
            first: missing().take(MISSING_NAMED).cloned().collect(),
        }
    }
}

/// How far a version is in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadState {
    /// Another one is loaded first.
    Waiting,
    /// Bytes are fetched and checked.
    Downloading,
    /// The network is built and warmed up.
    Loading,
    /// It can answer.
    Ready,
    /// It cannot be loaded. Where the storage is to blame it is tried again.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_compared_by_name_and_few_are_named() {
        let labels = |names: &str| names.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let to = Digest::sha256(&"0".repeat(64));
        for (mine, theirs, missing, first) in [
            ("a b c", "c a b", 0, ""),
            ("a b c d", "a b", 0, ""),
            ("a b", "a c b", 1, "c"),
            ("A", "a", 1, "a"),
            ("x", "e d c b a", 5, "e d c"),
        ] {
            let told = LabelsBeside::of(&labels(mine), &to, &labels(theirs));
            assert_eq!(
                (told.missing, told.first.join(" ").as_str()),
                (missing, first),
                "{mine} beside {theirs}"
            );
            assert_eq!(told.theirs as usize, labels(theirs).len());
        }
    }

    #[test]
    fn only_the_pods_of_a_canary_hold_it() {
        let version = |name: &str| ServedVersion {
            name: name.to_owned(),
            artifact: ArtifactRef {
                uri: "s3://models/1".into(),
                digest: Digest::sha256(&"0".repeat(64)),
            },
        };
        let assignment = Assignment {
            schema_version: crate::SCHEMA_VERSION,
            generation: 1,
            serve: "v1".to_owned(),
            versions: vec![version("v1")],
            split: None,
            mirror: None,
            canary: Some(Canary {
                version: version("v2"),
                step: 0,
                since: None,
                pods: [("a", 500), ("b", 400)]
                    .map(|(pod, share)| (pod.to_owned(), share))
                    .into(),
            }),
            cleared: Vec::new(),
            window_seconds: None,
            judged_since: None,
            trial: None,
        };
        let b = assignment.clone().of_pod("b");
        assert_eq!(b.versions, [version("v1"), version("v2")]);
        assert_eq!(b.canary.clone().unwrap().pods, [("b".to_owned(), 400)].into());
        assert_eq!(b.clone().of_pod("b"), b, "once is enough");
        let c = assignment.of_pod("c");
        assert_eq!((c.versions.len(), c.canary), (1, None));
    }
}
