//! What to do about pods that the API server refuses, or that get no image: one answer for all kinds of pods. What is to be
//! changed, and whether the object can be changed at all, depends on whose pods they are.

use std::time::Duration;

use flywheel_api::conditions::reasons;
use flywheel_api::names::{SERVER, VERIFIER};

use crate::placement::Problem;

/// Whose pods they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodsOf {
    /// They train.
    TrainingJob,
    /// They verify.
    ModelVersion,
    /// They serve.
    InferenceService,
}

/// Reasons of a waiting container whose image is not there. The kubelet tries again by itself.
const PULL_REASONS: [&str; 5] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
];
/// Time without its image after which a pod is made anew: its node tries again after up to 40 s by then, and waits longer with
/// each try.
pub const IMAGE_WAIT: Duration = Duration::from_secs(75);
/// Reason of a waiting container whose image can never be there.
const NO_REFERENCE: &str = "InvalidImageName";

impl PodsOf {
    /// Those whose main container has this name.
    #[must_use]
    pub fn container(name: &str) -> Self {
        match name {
            SERVER => Self::InferenceService,
            VERIFIER => Self::ModelVersion,
            _ => Self::TrainingJob,
        }
    }

    /// How a field gets another value: the specs of a TrainingJob's pods and of a ModelVersion cannot be changed.
    fn change(self, field: &str) -> String {
        match self {
            Self::TrainingJob => format!("apply a new TrainingJob with another {field}"),
            Self::ModelVersion => format!("delete this ModelVersion and make it anew with another {field}"),
            Self::InferenceService => format!("correct {field}"),
        }
    }

    /// The part of the spec that is about the pods; a verification has none.
    fn pods(self) -> Option<&'static str> {
        match self {
            Self::TrainingJob => Some("spec.trainer"),
            Self::ModelVersion => None,
            Self::InferenceService => Some("spec.server"),
        }
    }

    /// How the pods get another image.
    fn change_image(self) -> String {
        let class =
            |field| format!("or have the administrator correct {field} of the class where the spec names no image");
        match self {
            Self::TrainingJob => format!("{}, {}", self.change("spec.trainer.image"), class("trainerImage")),
            Self::ModelVersion => "have the administrator correct verifierImage in the operator's settings".to_owned(),
            Self::InferenceService => format!("{}, {}", self.change("spec.server.image"), class("serverImage")),
        }
    }
}

/// What follows `before` in `words`, up to `after`.
fn between<'a>(words: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (name, _) = words.split_once(before)?.1.split_once(after)?;
    (!name.is_empty()).then_some(name)
}

/// What to do about pods that the API server refuses with these words; half a sentence.
#[must_use]
pub fn of_refusal(pods_of: PodsOf, words: &str) -> String {
    if let Some(name) = between(words, "serviceaccount \"", "\" not found") {
        let change = pods_of.change("spec.serviceAccountName");
        return format!("make the ServiceAccount {name} in the namespace, or {change}");
    }
    // Both are the cluster's own, which users seldom may make.
    let classes = [
        (
            "PriorityClass",
            "priorityClassName",
            "no PriorityClass with name ",
            " was found",
        ),
        ("RuntimeClass", "runtimeClassName", "RuntimeClass \"", "\" not found"),
    ];
    let class = classes.iter().find_map(|(kind, field, before, after)| {
        let (name, pods) = (between(words, before, after)?, pods_of.pods()?);
        let change = pods_of.change(&format!("{pods}.pod.{field}"));
        Some(format!("{change}, or have the administrator make the {kind} {name}"))
    });
    if let Some(class) = class {
        return class;
    }
    let namespace = "have quota, LimitRange, Pod Security or admission policy of the namespace changed";
    match pods_of.pods() {
        Some(pods) => format!("{namespace}, or {}", pods_of.change(&format!("{pods}.resources"))),
        None => namespace.to_owned(),
    }
}

/// Why a container that waits for this reason has no image, and what to do; `None` where it waits for something else.
///
/// The kubelet's own words change with every try (back-off) and would make a write of each; the image does not.
#[must_use]
pub fn of_image(pods_of: PodsOf, pod: &str, reason: &str, image: &str) -> Option<Problem> {
    let (reason, message) = if reason == NO_REFERENCE {
        let message = format!(
            "pod {pod} gets no image, as {image} is no reference of one; {}",
            pods_of.change_image()
        );
        (reasons::INVALID_IMAGE_NAME, message)
    } else if PULL_REASONS.contains(&reason) {
        let secrets = match pods_of.pods() {
            Some(pods) => format!("{pods}.pod.imagePullSecrets names"),
            None => "imagePullSecrets in the operator's settings name".to_owned(),
        };
        let message = format!(
            "the image {image} cannot be pulled for pod {pod}. See that it exists, that the nodes reach its registry, and \
             that {secrets} its credentials, else {}; it is tried again by itself",
            pods_of.change_image()
        );
        (reasons::IMAGE_PULL_FAILED, message)
    } else {
        return None;
    };
    Some(Problem { reason, message })
}

#[cfg(test)]
mod tests {
    use super::PodsOf::{InferenceService, ModelVersion, TrainingJob};
    use super::*;

    /// What admission of Kubernetes 1.34 says.
    const NO_ACCOUNT: &str = r#"error looking up service account team/robot: serviceaccount "robot" not found"#;
    const NO_PRIORITY: &str = "no PriorityClass with name urgent was found";
    const NO_RUNTIME: &str = r#"pod rejected: RuntimeClass "gvisor" not found"#;

    #[test]
    fn what_is_missing_is_to_be_made_and_what_is_wrong_corrected_where_it_stands() {
        let table: [(&str, PodsOf, &str, &[&str]); 9] = [
            (
                "account",
                TrainingJob,
                NO_ACCOUNT,
                &[
                    "make the ServiceAccount robot",
                    "a new TrainingJob with another spec.serviceAccountName",
                ],
            ),
            (
                "account of a service",
                InferenceService,
                NO_ACCOUNT,
                &["make the ServiceAccount robot", "or correct spec.serviceAccountName"],
            ),
            (
                "account of a version",
                ModelVersion,
                NO_ACCOUNT,
                &[
                    "make the ServiceAccount robot",
                    "make it anew with another spec.serviceAccountName",
                ],
            ),
            (
                "priority",
                TrainingJob,
                NO_PRIORITY,
                &[
                    "make the PriorityClass urgent",
                    "with another spec.trainer.pod.priorityClassName",
                ],
            ),
            (
                "priority of a service",
                InferenceService,
                NO_PRIORITY,
                &[
                    "make the PriorityClass urgent",
                    "correct spec.server.pod.priorityClassName",
                ],
            ),
            (
                "runtime",
                InferenceService,
                NO_RUNTIME,
                &[
                    "make the RuntimeClass gvisor",
                    "correct spec.server.pod.runtimeClassName",
                ],
            ),
            (
                "quota",
                TrainingJob,
                "exceeded quota: gpus",
                &["quota", "another spec.trainer.resources"],
            ),
            (
                "quota of a service",
                InferenceService,
                "exceeded quota: gpus",
                &["quota", "correct spec.server.resources"],
            ),
            (
                "quota of a version",
                ModelVersion,
                "exceeded quota: gpus",
                &["have quota"],
            ),
        ];
        for (case, pods_of, words, parts) in table {
            let remedy = of_refusal(pods_of, words);
            for part in parts {
                assert!(remedy.contains(part), "{case}: {part} is not in: {remedy}");
            }
            assert_eq!(remedy.contains("quota"), case.starts_with("quota"), "{case}: {remedy}");
        }
    }

    #[test]
    fn an_image_that_is_none_is_not_said_to_be_pulled_again() {
        let table: [(PodsOf, &str, &str); 3] = [
            (
                TrainingJob,
                "a new TrainingJob with another spec.trainer.image",
                "spec.trainer.pod.imagePullSecrets",
            ),
            (
                InferenceService,
                "correct spec.server.image",
                "spec.server.pod.imagePullSecrets",
            ),
            (
                ModelVersion,
                "correct verifierImage in the operator's settings",
                "imagePullSecrets in the operator's",
            ),
        ];
        for (pods_of, image, secrets) in table {
            let none = of_image(pods_of, "p", "InvalidImageName", "a:b:c").unwrap();
            assert_eq!(none.reason, "InvalidImageName");
            assert!(none.message.contains("a:b:c is no reference"), "{}", none.message);
            assert!(none.message.contains(image), "{}", none.message);
            for word in ["by itself", "imagePullSecrets", "registry"] {
                assert!(!none.message.contains(word), "{word} is in: {}", none.message);
            }
            for reason in PULL_REASONS {
                let away = of_image(pods_of, "p", reason, "r/i:1").unwrap();
                for words in ["r/i:1 cannot be pulled for pod p", secrets, image, "by itself"] {
                    assert!(away.message.contains(words), "{words} is not in: {}", away.message);
                }
            }
            assert_eq!(of_image(pods_of, "p", "ContainerCreating", "r/i:1"), None);
        }
    }

    #[test]
    fn pods_are_known_by_their_container() {
        for (name, pods_of) in [
            ("trainer", TrainingJob),
            ("verifier", ModelVersion),
            ("server", InferenceService),
        ] {
            assert_eq!(PodsOf::container(name), pods_of);
        }
    }
}
