//! Labels, annotations and names of children, and whose child an object is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::{Digest as _, Sha256};

/// Label: which program a pod runs ([`TRAINER`], [`SERVER`], [`VERIFIER`]).
pub const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
/// Label: the name of the application; always [`FLYWHEEL`].
pub const LABEL_NAME: &str = "app.kubernetes.io/name";
/// Label: who made the object; always [`FLYWHEEL`]. The operator's caches and its cage go by it.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Label: what the object belongs to; the model's name.
pub const LABEL_PART_OF: &str = "app.kubernetes.io/part-of";
/// Label: name of the TrainingJob.
pub const LABEL_TRAINING_JOB: &str = "flywheel.dev/training-job";
/// Label: number of the attempt, from 1.
pub const LABEL_ATTEMPT: &str = "flywheel.dev/attempt";
/// Label that the Job controller gives a pod: its place among the pods of its Job, from 0.
pub const LABEL_COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Label: name of the InferenceService.
pub const LABEL_INFERENCE_SERVICE: &str = "flywheel.dev/inference-service";
/// Label: name of the ModelVersion.
pub const LABEL_MODEL_VERSION: &str = "flywheel.dev/model-version";
/// Label of a ModelVersion: name of its model, so that versions of a model can be listed.
pub const LABEL_MODEL: &str = "flywheel.dev/model";

/// Value of [`LABEL_NAME`] and [`LABEL_MANAGED_BY`].
pub const FLYWHEEL: &str = "flywheel";
/// Component: training pods.
pub const TRAINER: &str = "trainer";
/// Component: serving pods.
pub const SERVER: &str = "server";
/// Component: pods that verify an artifact.
pub const VERIFIER: &str = "verifier";
/// Component: pods that remove an artifact.
pub const PRUNER: &str = "pruner";

/// Annotation of a pod template: digest of the serving configuration, so that a change of it rolls the pods.
pub const ANNOTATION_CONFIG_DIGEST: &str = "flywheel.dev/config-digest";

/// Annotation of a serving pod: generation of the newest [`flywheel_contract::serving::Assignment`]. The kubelet brings the
/// pod's files up to date when it changes, at once instead of after a minute.
pub const ANNOTATION_ASSIGNMENT: &str = "flywheel.dev/assignment";
/// Annotation of a ModelVersion: that it ended the process of a pod or did too badly while it came by steps, as JSON with its uid
/// and why. It is not rolled out again while this stands.
pub const ANNOTATION_REJECTED: &str = "flywheel.dev/rejected";
/// Annotation of a child: digest of what the operator last applied, so that an unchanged object is not written again.
pub const ANNOTATION_APPLIED: &str = "flywheel.dev/applied";
/// Annotation of an attempt's Job: why the operator itself ended the attempt, as JSON. It is written before the pod is
/// deleted, since a deleted pod alone looks like one that was taken away, which costs nothing.
pub const ANNOTATION_GIVEN_UP: &str = "flywheel.dev/given-up";
/// Annotation of the Job of an attempt of several pods: how it ended, as the pod tells that knows most, as JSON. Pods that
/// were deleted take their words along, and those that stay may only have missed them.
pub const ANNOTATION_ENDED: &str = "flywheel.dev/ended";
/// Label of an attempt's Job: how many restarts before it count against `recovery.maxRestarts`.
pub const LABEL_COUNTED_RESTARTS: &str = "flywheel.dev/counted-restarts";
/// Label of an attempt's Job: the accelerator class of its pods, which is that of the spec or its fallback. A Job of an operator
/// that knew of no fallback has none, and is of the spec's class.
pub const LABEL_ACCELERATOR_CLASS: &str = "flywheel.dev/accelerator-class";

/// Label of a TrainingJob: the InferenceService that it trains anew for. Its number is at the end of its name.
pub const LABEL_RETRAINS: &str = "flywheel.dev/retrains";
/// Annotation of such a TrainingJob: why it was made.
pub const ANNOTATION_CAUSE: &str = "flywheel.dev/cause";
/// Annotation of such a TrainingJob: the value of `retrain.requested` that it was made for.
pub const ANNOTATION_REQUESTED: &str = "flywheel.dev/requested";
/// Annotation of such a TrainingJob: the time of the schedule that it was made for, RFC 3339.
pub const ANNOTATION_SCHEDULED: &str = "flywheel.dev/scheduled";

/// Longest name of a child: a label's value and a Service's name both end there.
pub const NAME_MAX: usize = 63;
/// Longest name of an indexed Job: the API server refuses one whose pods' host names, `<job>-<index>`, would be longer than
/// [`NAME_MAX`]. Room for four digits, so that names stay the same when jobs have many pods.
pub const JOB_NAME_MAX: usize = NAME_MAX - "-9999".len();
/// Digits of the hash in a shortened name.
const HASH_DIGITS: usize = 8;

/// `<owner><suffix>`, shortened with a hash of the whole where it would be longer than [`NAME_MAX`].
///
/// Two owners whose names shorten alike still get different children; stable for good, since children are found by it.
#[must_use]
pub fn child(owner: &str, suffix: &str) -> String {
    within(NAME_MAX, owner, suffix)
}

/// As [`child`], of at most `max` bytes.
fn within(max: usize, owner: &str, suffix: &str) -> String {
    let whole = format!("{owner}{suffix}");
    if whole.len() <= max {
        return whole;
    }
    let mut digest = hex::encode(Sha256::digest(whole.as_bytes()));
    digest.truncate(HASH_DIGITS);
    let keep = max.saturating_sub(HASH_DIGITS + 1 + suffix.len());
    let head = crate::conditions::cut(owner, keep).trim_end_matches(['-', '.']);
    format!("{head}-{digest}{suffix}")
}

/// Name of a TrainingJob that a service is trained anew by.
#[must_use]
pub fn retraining(service: &str, number: u32) -> String {
    child(service, &format!("-retrain-{number}"))
}

/// Name of the ConfigMap with the windows of live texts that were counted.
#[must_use]
pub fn history(service: &str) -> String {
    child(service, "-history")
}

/// Name of the ConfigMap with what was counted of an experiment.
#[must_use]
pub fn experiment(service: &str) -> String {
    child(service, "-experiment")
}

/// Name of the Job of an attempt.
#[must_use]
pub fn training_attempt(job: &str, attempt: u32) -> String {
    within(JOB_NAME_MAX, job, &format!("-train-{attempt}"))
}

/// Name of the headless Service by which the pods of a TrainingJob of several nodes find each other. One for all attempts:
/// a pod's host name has the attempt in it ([`training_attempt`]).
#[must_use]
pub fn training_service(job: &str) -> String {
    child(job, "-train")
}

/// Name of the Job that verifies a ModelVersion.
#[must_use]
pub fn verify_job(version: &str) -> String {
    within(JOB_NAME_MAX, version, "-verify")
}

/// Name of the Job of a later try to verify a ModelVersion; the first is [`verify_job`].
#[must_use]
pub fn verify_attempt(version: &str, attempt: u32) -> String {
    if attempt <= 1 {
        verify_job(version)
    } else {
        within(JOB_NAME_MAX, version, &format!("-verify-{attempt}"))
    }
}

/// Name of the Job that removes the artifact of a ModelVersion.
#[must_use]
pub fn prune_job(version: &str) -> String {
    within(JOB_NAME_MAX, version, "-prune")
}

/// Default name of the ModelVersion of a TrainingJob: `<job>-<first 8 of uid>`.
#[must_use]
pub fn default_version(job: &str, uid: &str) -> String {
    child(job, &format!("-{}", crate::conditions::cut(uid, 8)))
}

/// Name of the NetworkPolicy that covers all training and verifying pods of a namespace.
pub const TRAINERS_NETWORK_POLICY: &str = "flywheel-trainers";

/// The uid of an object's controlling owner, of which there is one at most.
#[must_use]
pub fn controller_uid(metadata: &ObjectMeta) -> Option<&str> {
    let mut owners = metadata.owner_references.iter().flatten();
    let controller = owners.find(|owner| owner.controller == Some(true))?;
    Some(&controller.uid)
}

/// Whether the controlling owner of an object is the one with this uid.
#[must_use]
pub fn is_controlled_by(metadata: &ObjectMeta, owner_uid: &str) -> bool {
    controller_uid(metadata) == Some(owner_uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_shortened_and_stay_apart() {
        assert_eq!(training_attempt("intent", 2), "intent-train-2");
        let long = "a".repeat(60);
        let (x, y) = (
            training_attempt(&format!("{long}-x"), 1),
            training_attempt(&format!("{long}-y"), 1),
        );
        assert_ne!(x, y, "two long names that shorten alike");
        for name in [&x, &y] {
            assert!(name.len() <= NAME_MAX && name.ends_with("-train-1"), "{name}");
        }
        for name in [training_attempt(&long, 12), verify_job(&long), verify_attempt(&long, 3)] {
            assert!(
                name.len() + "-0".len() <= NAME_MAX,
                "the host name of its pod is no DNS label: {name}"
            );
        }
        let service = training_service(&"a".repeat(NAME_MAX));
        assert!(
            service.len() <= NAME_MAX && service.ends_with("-train"),
            "no DNS label: {service}"
        );
        assert_eq!(x, training_attempt(&format!("{long}-x"), 1), "stable");
        assert_ne!(training_attempt(&long, 1), training_attempt(&long, 2));
    }

    #[test]
    fn a_shortened_name_is_still_a_dns_label() {
        let name = child(&format!("{}-------{}", "b".repeat(45), "c".repeat(10)), "-serving");
        assert!(name.len() <= NAME_MAX && !name.contains("--------"), "{name}");
    }
}
