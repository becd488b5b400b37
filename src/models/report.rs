//! Status and events of a ModelVersion, from what was decided.

use flywheel_api::ModelVersion;
use flywheel_api::conditions::{Desired, Status, find, reasons, types};
use flywheel_api::model_version::{ModelVersionSpec, ModelVersionStatus};
use flywheel_contract::failure::FailureReason;
use flywheel_policy::models::promote::Verdict;
use flywheel_policy::models::{Decision, Outlook, Verification};

use super::observe::Observation;
use crate::context::Context;
use crate::error::Error;
use crate::kubeio::{MODELS_MANAGER, Note};
use crate::report::{Standing, conditions, summary};

/// Failures that say that the artifact is not where the spec says, or cannot be reached.
const UNAVAILABLE: [FailureReason; 3] = [
    FailureReason::ArtifactNotFound,
    FailureReason::StorageForbidden,
    FailureReason::StorageInvalid,
];

/// Writes the status where it changed, and an event where the version stands otherwise than before.
pub async fn report(
    version: &ModelVersion,
    context: &Context,
    observation: &Observation,
    decision: &Decision,
    verdict: &Verdict,
) -> Result<(), Error> {
    let present = version.status.clone().unwrap_or_default();
    // A version that failed comes to nobody who waits for it, and may be deleted.
    let services = match decision.verification {
        Verification::Failed { .. } => &observation.answering,
        _ => &observation.services,
    };
    let desired = desired(&decision.verification, verdict, services);
    let served = !services.is_empty();
    let status = ModelVersionStatus {
        observed_generation: version.metadata.generation,
        state: Some(state_word(&decision.verification, verdict).to_owned()),
        conditions: conditions(
            &present.conditions,
            &desired,
            version.metadata.generation,
            context.now(),
        ),
        metric: shown_metric(&version.spec),
        served: Some(if served { "True" } else { "False" }.to_owned()),
        services: services.clone(),
    };
    let writes = context.writes(MODELS_MANAGER);
    if !writes.status(version, &status).await? {
        return Ok(());
    }
    let ready = |s: &ModelVersionStatus| {
        find(&s.conditions, types::READY).map(|c| (c.status.clone(), c.reason.clone(), c.message.clone()))
    };
    let (before, after) = (ready(&present), ready(&status));
    // Every version begins with it.
    let begins = |reason: &str| before.is_none() && reason == reasons::VERIFYING;
    if let Some((is_ready, reason, message)) = after
        && !begins(&reason)
        && before.as_ref().map(|(status, reason, _)| (status, reason)) != Some((&is_ready, &reason))
    {
        tracing::info!(state = status.state, reason, message, "the version moved on");
        let pending = matches!(
            decision.verification,
            Verification::Pending {
                outlook: Outlook::Working,
                ..
            }
        );
        let note = Note {
            warning: is_ready != "True" && !pending,
            reason,
            action: "Verify",
            text: message,
        };
        writes.event(version, &note).await;
    }
    Ok(())
}

fn state_word(verification: &Verification, verdict: &Verdict) -> &'static str {
    match (verification, verdict) {
        (Verification::Pending { outlook, .. }, _) => match outlook {
            Outlook::Working => "Verifying",
            Outlook::Blocked => "Blocked",
            Outlook::Stalled => "Stalled",
        },
        (Verification::Failed { .. }, _) => "Failed",
        (Verification::Verified { .. }, Verdict::Passed { .. }) => "Promotable",
        (Verification::Verified { .. }, Verdict::Failed { .. }) => "GatesFailed",
    }
}

/// All conditions, as they should be.
fn desired(verification: &Verification, verdict: &Verdict, services: &[String]) -> Vec<Desired> {
    let mut all = match verification {
        Verification::Pending { reason, message, .. } => vec![
            Desired::new(types::ARTIFACT_AVAILABLE, Status::Unknown, reason, message),
            Desired::new(types::VERIFIED, Status::Unknown, reason, message),
            Desired::new(types::PROMOTABLE, Status::Unknown, reason, "not verified yet"),
        ],
        Verification::Failed { reason, message } => {
            let available = if UNAVAILABLE.iter().any(|r| r.as_str() == reason) {
                Desired::new(types::ARTIFACT_AVAILABLE, Status::False, reason, message)
            } else {
                Desired::new(
                    types::ARTIFACT_AVAILABLE,
                    Status::True,
                    reasons::AS_EXPECTED,
                    "there is an artifact, though not the right one",
                )
            };
            vec![
                available,
                Desired::new(types::VERIFIED, Status::False, reason, message),
                Desired::new(types::PROMOTABLE, Status::False, reason, message),
            ]
        }
        Verification::Verified { message } => vec![
            Desired::new(
                types::ARTIFACT_AVAILABLE,
                Status::True,
                reasons::AS_EXPECTED,
                "the artifact lies where the spec says",
            ),
            Desired::new(types::VERIFIED, Status::True, reasons::VERIFIED, message),
            match verdict {
                Verdict::Passed { message } => {
                    Desired::new(types::PROMOTABLE, Status::True, reasons::GATES_PASSED, message)
                }
                Verdict::Failed { message } => Desired::new(
                    types::PROMOTABLE,
                    Status::False,
                    reasons::GATES_FAILED,
                    format!("{message}. Train again, or serve it by name all the same"),
                ),
            },
        ],
    };
    all.push(if services.is_empty() {
        Desired::new(
            types::SERVED,
            Status::False,
            reasons::NOT_SERVED,
            "no InferenceService serves it",
        )
    } else {
        Desired::new(
            types::SERVED,
            Status::True,
            reasons::SERVED,
            format!("served by {}", services.join(", ")),
        )
    });
    all.extend(match verification {
        Verification::Pending {
            reason,
            message,
            outlook,
        } => {
            let standing = match outlook {
                Outlook::Working | Outlook::Blocked => Standing::Working,
                Outlook::Stalled => Standing::Stalled,
            };
            summary(standing, reason, message)
        }
        Verification::Failed { reason, message } => summary(Standing::Stalled, reason, message),
        Verification::Verified { message } => summary(Standing::Ready, reasons::VERIFIED, message),
    });
    all
}

/// The metric of the column: that of the first gate, else the accuracy on the test set, else the first there is.
fn shown_metric(spec: &ModelVersionSpec) -> Option<String> {
    let metrics = spec.metrics.as_deref().unwrap_or_default();
    let gate = spec.gates.iter().flatten().map(|g| g.metric.as_str()).next();
    let shown = metrics
        .iter()
        .find(|m| m.name == gate.unwrap_or("test/accuracy"))
        .or(metrics.first())?;
    let value = shown
        .value
        .value()
        .map_or_else(|| shown.value.to_string(), |v| format!("{v:.2}"));
    Some(format!("{} {value}", shown.name))
}
