//! Types and reasons of conditions, and how a condition list changes.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

macro_rules! words {
    ($($(#[doc = $doc:literal])+ $constant:ident = $text:literal),+ $(,)?) => {
        $($(#[doc = $doc])+ pub const $constant: &str = $text;)+
        /// All of them.
        pub const ALL: &[&str] = &[$($text),+];
        /// Each with what it says, for the reference.
        pub const DOCUMENTED: &[(&str, &str)] = &[$(($text, concat!($($doc),+).trim_ascii_start())),+];
    };
}

/// Types of conditions. `Ready` is the summary; `Reconciling` and `Stalled` stand only while True (kstatus).
pub mod types {
    words! {
        /// All is as the spec says.
        READY = "Ready",
        /// Work towards the spec goes on.
        RECONCILING = "Reconciling",
        /// Nothing more happens until the user acts.
        STALLED = "Stalled",
        /// TrainingJob: accepted, and its pods have a place to run.
        ADMITTED = "Admitted",
        /// TrainingJob: its pods run.
        RUNNING = "Running",
        /// TrainingJob: an attempt ended and the next begins.
        RESTARTING = "Restarting",
        /// TrainingJob: its state is saved as often as the spec says.
        CHECKPOINT_HEALTHY = "CheckpointHealthy",
        /// TrainingJob: a result is committed.
        COMPLETE = "Complete",
        /// TrainingJob: it ended without a result.
        FAILED = "Failed",
        /// TrainingJob: the spec asks it to wait.
        SUSPENDED = "Suspended",
        /// ModelVersion: the artifact lies where the spec says.
        ARTIFACT_AVAILABLE = "ArtifactAvailable",
        /// ModelVersion: every file is what the digest says.
        VERIFIED = "Verified",
        /// ModelVersion: verified, and its gates hold.
        PROMOTABLE = "Promotable",
        /// ModelVersion: an InferenceService serves it, or names it and is to, also with `replicas: 0`.
        SERVED = "Served",
        /// InferenceService: the pods run and answer.
        DEPLOYMENT_READY = "DeploymentReady",
        /// InferenceService: the Service leads to ready pods.
        ROUTES_READY = "RoutesReady",
        /// InferenceService: a version comes by the steps of `rollout`.
        ROLLOUT_PROGRESSING = "RolloutProgressing",
        /// InferenceService: live texts differ from those that the version was made for, or its answers are right less often.
        DRIFT_DETECTED = "DriftDetected",
        /// InferenceService: the variants of `experiment` were compared, and there is a verdict.
        EXPERIMENT_CONCLUDED = "ExperimentConcluded",
        /// InferenceService: a TrainingJob learns what has changed.
        RETRAINING = "Retraining",
        /// InferenceService: there is a newer version of the model, which is not taken by itself.
        UPDATE_AVAILABLE = "UpdateAvailable",
        /// InferenceService: the number of pods follows the load, or is computed from it.
        SCALING_ACTIVE = "ScalingActive",
        /// InferenceService: `objectives` are held, and the pods that there may be can hold them.
        OBJECTIVES_MET = "ObjectivesMet",
        /// TrainingJob, InferenceService: the last failure of the infrastructure was recovered from in time.
        RECOVERY_WITHIN_DEADLINE = "RecoveryWithinDeadline",
    }
}

/// Reasons that the operator itself gives. Reasons of failed pods are
/// [`flywheel_contract::failure::FailureReason`]; together they are every reason there is.
pub mod reasons {
    words! {
        /// Nothing is known yet.
        UNKNOWN = "Unknown",
        /// Nothing to say against it.
        AS_EXPECTED = "AsExpected",
        /// Objects are being made or changed.
        PROGRESSING = "Progressing",
        /// The pods have no node yet.
        PENDING = "Pending",
        /// Scheduled; images or volumes are on their way.
        STARTING = "Starting",
        /// The pods run.
        RUNNING = "Running",
        /// The spec says `suspend: true`.
        SUSPENDED = "Suspended",
        /// The result is committed.
        TRAINED = "Trained",
        /// The result of an earlier TrainingJob with the same spec, data and pretrained files is used; nothing was trained.
        RESULT_REUSED = "ResultReused",
        /// Waiting for the attempt that runs.
        IN_PROGRESS = "InProgress",
        /// A new attempt follows one that ended.
        NEW_ATTEMPT = "NewAttempt",
        /// All attempts are used up.
        MAX_RESTARTS_EXCEEDED = "MaxRestartsExceeded",
        /// The pods ended without saying why.
        POD_FAILED = "PodFailed",
        /// A pod was deleted, evicted or preempted.
        POD_LOST = "PodLost",
        /// The pod runs and does no work.
        HUNG = "Hung",
        /// A GPU of a running pod is broken, as its kubelet or a health monitor says.
        GPU_FAULT = "GpuFault",
        /// The accelerator class had no room, and an attempt of the other class follows: its fallback, or from there back.
        FALLBACK_CLASS = "FallbackClass",
        /// An attempt goes on from a checkpoint.
        RESUMED = "Resumed",
        /// Two attempts failed at the same step in the same way.
        REPEATED_FAILURE = "RepeatedFailure",
        /// A checkpoint could not be written.
        CHECKPOINT_FAILED = "CheckpointFailed",
        /// A checkpoint or `HEAD` was broken, and the newest one that is whole was used.
        CHECKPOINT_INVALID = "CheckpointInvalid",
        /// The job ended before a checkpoint was written.
        NO_CHECKPOINT = "NoCheckpoint",
        /// Figures do not come where `spec.tracking` says; the training goes on.
        TRACKING_FAILED = "TrackingFailed",
        /// The container used more memory than its limit.
        OUT_OF_MEMORY = "OutOfMemory",
        /// No node carries the labels of the accelerator class.
        NO_MATCHING_GPU = "NoMatchingGPU",
        /// Nodes of the class are there, none has a free GPU, or none has as many as a pod asks for.
        INSUFFICIENT_GPU = "InsufficientGPU",
        /// The scheduler finds no node for another reason.
        UNSCHEDULABLE = "Unschedulable",
        /// The operator's settings have no such class.
        UNKNOWN_ACCELERATOR_CLASS = "UnknownAcceleratorClass",
        /// An object that is not ours has the name that a child needs.
        NAME_TAKEN = "NameTaken",
        /// The API server refuses the pods: quota, LimitRange, Pod Security, a ServiceAccount or a class that is not there.
        POD_CREATION_FAILED = "PodCreationFailed",
        /// The image cannot be pulled.
        IMAGE_PULL_FAILED = "ImagePullFailed",
        /// The image's name is no reference of one.
        INVALID_IMAGE_NAME = "InvalidImageName",
        /// A Secret or ConfigMap that the pod names is missing.
        POD_CONFIG_INVALID = "PodConfigInvalid",
        /// The node cannot make a pod's volumes or its sandbox.
        POD_NOT_PREPARED = "PodNotPrepared",
        /// A container ends again and again.
        CRASH_LOOP = "CrashLoop",
        /// The API server refuses a child object.
        CHILD_REFUSED = "ChildRefused",
        /// The verification is running.
        VERIFYING = "Verifying",
        /// Every file is what the digest says, the model loads, and it answers its evaluation sample as recorded.
        VERIFIED = "Verified",
        /// Event of a ModelVersion that went by its `retention`, with its artifact.
        PRUNED = "Pruned",
        /// Event of a ModelVersion that is to go by its `retention` and whose artifact could not be removed.
        PRUNE_FAILED = "PruneFailed",
        /// All gates hold.
        GATES_PASSED = "GatesPassed",
        /// A gate does not hold.
        GATES_FAILED = "GatesFailed",
        /// The ModelVersion that `output.incumbent` names does not exist, or is of another model.
        INCUMBENT_NOT_FOUND = "IncumbentNotFound",
        /// The ModelVersion that `model.fromVersion` names does not exist.
        BASE_VERSION_NOT_FOUND = "BaseVersionNotFound",
        /// A ModelVersion of that name with other content is there already.
        VERSION_CONFLICT = "VersionConflict",
        /// An InferenceService serves it, or is to.
        SERVED = "Served",
        /// No InferenceService serves it or is to.
        NOT_SERVED = "NotServed",
        /// The ModelVersion does not exist.
        MODEL_VERSION_NOT_FOUND = "ModelVersionNotFound",
        /// The ModelVersion is of another model.
        MODEL_MISMATCH = "ModelMismatch",
        /// The ModelVersion failed its verification.
        MODEL_VERSION_NOT_VERIFIED = "ModelVersionNotVerified",
        /// A version by steps waits for its verification.
        VERIFICATION_PENDING = "VerificationPending",
        /// The server pods load the version.
        LOADING = "Loading",
        /// Pods that answer load another version beside the one that they answer with.
        VERSION_LOADING = "VersionLoading",
        /// All pods have the version and change over to it.
        VERSION_SWITCHING = "VersionSwitching",
        /// A pod cannot load the version; what answers goes on.
        VERSION_LOAD_FAILED = "VersionLoadFailed",
        /// A pod ended while it computed with the version, and holds it back; what else answers goes on.
        VERSION_HELD_BACK = "VersionHeldBack",
        /// Some pods answer with a version that comes by steps, or load it.
        ROLLOUT_STEP = "RolloutStep",
        /// The steps are over; all pods load the version and change over.
        ROLLOUT_LAST_STEP = "RolloutLastStep",
        /// `rollout.paused: true`.
        ROLLOUT_PAUSED = "RolloutPaused",
        /// No version is on its way.
        ROLLOUT_COMPLETE = "RolloutComplete",
        /// The version ended the process of a pod, or did worse than the limits of `rollout.analysis`, and is not rolled out any
        /// more.
        ROLLED_BACK = "RolledBack",
        /// A version by steps needs a second pod.
        INSUFFICIENT_REPLICAS = "InsufficientReplicas",
        /// A version that comes has answered too little to be judged.
        INSUFFICIENT_TRAFFIC = "InsufficientTraffic",
        /// The windows that are compared differ by more than chance and than the limits of the spec.
        DRIFTED = "Drifted",
        /// They do not.
        NO_DRIFT = "NoDrift",
        /// Answers are right less often than they were, by more than chance and than the spec allows.
        ACCURACY_DROPPED = "AccuracyDropped",
        /// What windows are compared with is being counted.
        COLLECTING_REFERENCE = "CollectingReference",
        /// A TrainingJob that was made for it runs.
        RETRAINING_RUNNING = "RetrainingRunning",
        /// The last retraining is not long enough ago.
        COOLDOWN = "Cooldown",
        /// Clients have said too little of the version's predictions for a training.
        WAITING_FOR_FEEDBACK = "WaitingForFeedback",
        /// There were as many retrainings in seven days as the spec allows.
        WEEKLY_LIMIT_REACHED = "WeeklyLimitReached",
        /// The last retrainings came to nothing, so no other one begins by itself.
        RETRAINING_STOPPED = "RetrainingStopped",
        /// No training is due, and drift is not looked for.
        NOT_DUE = "NotDue",
        /// `retrain.schedule` or `retrain.timeZone` cannot be read, or names a time that never comes.
        INVALID_SCHEDULE = "InvalidSchedule",
        /// The TrainingJob that a retraining is to be like does not exist.
        TRAINING_JOB_NOT_FOUND = "TrainingJobNotFound",
        /// Clients have judged too few predictions of the variants of an experiment.
        COLLECTING = "Collecting",
        /// The variants of an experiment differ by no more than chance may bring about.
        UNDECIDED = "Undecided",
        /// A variant of an experiment is right more often than the version of `modelVersion`.
        VARIANT_BETTER = "VariantBetter",
        /// No variant of an experiment is right more often than the version of `modelVersion`, and that is no chance.
        VARIANT_WORSE = "VariantWorse",
        /// A variant of an experiment did worse than its guardrails allow and gets no requests any more.
        GUARDRAIL_BROKEN = "GuardrailBroken",
        /// Nobody says which answers of an experiment's variants are right. Of a rollout, the word for what the version was not judged by.
        NOT_JUDGED = "NotJudged",
        /// A newer version waits for the end of the experiment.
        EXPERIMENT_RUNNING = "ExperimentRunning",
        /// A version with a higher number is promotable.
        NEWER_VERSION = "NewerVersion",
        /// None is.
        UP_TO_DATE = "UpToDate",
        /// Fewer pods answer than asked for.
        REPLICAS_UNAVAILABLE = "ReplicasUnavailable",
        /// `replicas: 0`.
        SCALED_TO_ZERO = "ScaledToZero",
        /// `replicas: 0`, so that no load is followed.
        SCALING_DISABLED = "ScalingDisabled",
        /// The number of pods is computed and told, not followed.
        OBSERVING = "Observing",
        /// More pods than `scaling.maxReplicas` would be wanted.
        MAXIMUM_REACHED = "MaximumReached",
        /// Nothing is known of the load yet.
        NO_DATA = "NoData",
        /// No pod that answers can be asked for its load.
        SCRAPE_BLOCKED = "ScrapeBlocked",
        /// Requests take longer than `objectives` say, or are refused.
        OBJECTIVE_MISSED = "ObjectiveMissed",
        /// The pods that there may be cannot carry `objectives.qps`.
        OBJECTIVE_OUT_OF_REACH = "ObjectiveOutOfReach",
        /// Nothing has failed yet.
        NO_INCIDENT = "NoIncident",
        /// Something failed, and its recovery goes on.
        RECOVERING = "Recovering",
        /// What failed is as it was before.
        RECOVERED = "Recovered",
        /// A recovery took, or takes, longer than `recovery.deadlineSeconds`.
        RECOVERY_OVERDUE = "RecoveryOverdue",
        /// The spec breaks a rule that the API server did not check.
        INVALID_SPEC = "InvalidSpec",
    }
}

/// Values of a condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Not known.
    Unknown,
}

impl Status {
    /// The word in the object.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// A condition that should be there, before times are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// One of [`types`].
    pub kind: &'static str,
    /// Its status.
    pub status: Status,
    /// CamelCase reason: one of [`reasons`] or a failure's reason.
    pub reason: String,
    /// For people; cut to [`MESSAGE_MAX`] bytes.
    pub message: String,
}

/// Most bytes of a condition's message that we write.
pub const MESSAGE_MAX: usize = 1024;

impl Desired {
    /// A condition.
    #[must_use]
    pub fn new(kind: &'static str, status: Status, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind,
            status,
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// The condition list for an object of this generation: a transition time changes only where a status does, so that the
/// same input gives the same list and no write. Conditions that are not desired are left out.
#[must_use]
pub fn merge(present: &[Condition], desired: &[Desired], generation: i64, now: &Time) -> Vec<Condition> {
    desired
        .iter()
        .map(|d| {
            let old = present
                .iter()
                .find(|c| c.type_ == d.kind && c.status == d.status.as_str());
            Condition {
                type_: d.kind.to_owned(),
                status: d.status.as_str().to_owned(),
                reason: d.reason.clone(),
                message: cut_words(&d.message, MESSAGE_MAX).into_owned(),
                observed_generation: Some(generation),
                last_transition_time: old.map_or_else(|| now.clone(), |c| c.last_transition_time.clone()),
            }
        })
        .collect()
}

/// The first `max` bytes of a text, not cutting a character in two.
#[must_use]
pub fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len()))
        .rev()
        .find(|i| text.is_char_boundary(*i))
        .unwrap_or(0);
    text.get(..end).unwrap_or(text)
}

/// At most `max` bytes of somebody's words, ended after a whole word with `…` where there are more.
#[must_use]
pub fn cut_words(text: &str, max: usize) -> Cow<'_, str> {
    const MORE: &str = " …";
    if text.len() <= max {
        return Cow::Borrowed(text);
    }
    let head = cut(text, max.saturating_sub(MORE.len()));
    let whole = text
        .get(head.len()..)
        .is_some_and(|rest| rest.starts_with(char::is_whitespace));
    // A long text without a space, such as a URI, is cut where it must be.
    let words = match head.rsplit_once(char::is_whitespace) {
        Some((words, _)) if !whole => words,
        _ => head,
    };
    Cow::Owned(format!("{}{MORE}", words.trim_end_matches([' ', ',', ';', ':'])))
}

/// The condition of this type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == kind)
}

/// Whether the condition of this type is True.
#[must_use]
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|c| c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap())
    }

    #[test]
    fn a_transition_time_changes_only_with_the_status() {
        let running = |status, message: &str| vec![Desired::new(types::RUNNING, status, reasons::RUNNING, message)];
        let first = merge(&[], &running(Status::True, "1 of 1"), 1, &at(10));
        let second = merge(&first, &running(Status::True, "still"), 2, &at(20));
        assert_eq!(second[0].last_transition_time, at(10));
        assert_eq!(
            (second[0].message.as_str(), second[0].observed_generation),
            ("still", Some(2))
        );
        let third = merge(&second, &running(Status::False, "gone"), 2, &at(30));
        assert_eq!(third[0].last_transition_time, at(30));
        assert_eq!(merge(&third, &[], 2, &at(40)), []);
    }

    #[test]
    fn reasons_are_camel_case_words_and_never_twice() {
        let mut all: Vec<&str> = reasons::ALL.to_vec();
        all.extend(
            flywheel_contract::failure::FailureReason::ALL
                .iter()
                .map(|r| r.as_str())
                .filter(|r| *r != reasons::OUT_OF_MEMORY),
        );
        for reason in &all {
            assert!(
                reason.starts_with(|c: char| c.is_ascii_uppercase())
                    && reason.chars().all(|c| c.is_ascii_alphanumeric()),
                "{reason}"
            );
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "a reason stands twice");
    }

    #[test]
    fn a_cut_text_stays_text() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
        assert_eq!(cut("", 3), "");
    }

    #[test]
    fn words_are_left_whole() {
        assert_eq!(cut_words("it failed", 9), "it failed");
        assert_eq!(cut_words("it failed badly, again", 20), "it failed badly …");
        assert_eq!(cut_words("é".repeat(20).as_str(), 14), "ééééé …");
    }
}
