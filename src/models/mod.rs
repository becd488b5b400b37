//! The ModelVersion controller: one Job reads the artifact, gates decide whether it may be promoted.

mod build;
mod observe;
mod report;
mod retention;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use flywheel_api::ModelVersion;
use flywheel_policy::models::promote::judge;
use flywheel_policy::models::{Decision, Intent, Outlook, Verification, decide};
use kube::ResourceExt as _;

use crate::context::Context;
use crate::controller::RESYNC;
use crate::error::Error;
use crate::kubeio::{Created, MODELS_MANAGER};

/// When to look again at a version that only somebody else can help.
const BLOCKED: Duration = Duration::from_secs(30);

/// One pass over a ModelVersion; when to look again.
///
/// # Errors
/// The API server does not answer, or refuses what is not the user's to mend.
pub async fn reconcile(version: Arc<ModelVersion>, context: Arc<Context>) -> Result<Duration, Error> {
    if version.metadata.deletion_timestamp.is_some() {
        // Its Jobs follow by their owner references.
        return Ok(RESYNC);
    }
    let observation = observe::observe(&version, &context).await?;
    let mut decision = decide(observation.known.as_ref(), observation.latest.as_ref(), context.now());
    if let Err(error) = apply(&version, &context, &decision).await {
        let Some((reason, message)) = error.problem() else {
            return Err(error);
        };
        decision = Decision {
            intent: Intent::Wait,
            verification: Verification::Pending {
                reason: reason.to_owned(),
                message,
                outlook: Outlook::Stalled,
            },
            again: BLOCKED,
        };
    }
    let verdict = judge(
        version.spec.gates.as_deref().unwrap_or_default(),
        version.spec.metrics.as_deref().unwrap_or_default(),
    );
    report::report(&version, &context, &observation, &decision, &verdict).await?;
    if matches!(decision.verification, Verification::Verified { .. })
        && let Some(leaving) = retention::observe(&version, &context, &observation)
    {
        retention::apply(&version, &context, &leaving).await?;
    }
    Ok(decision.again)
}

/// Makes the cluster follow the decision.
async fn apply(version: &ModelVersion, context: &Context, decision: &Decision) -> Result<(), Error> {
    let Intent::Verify { number } = decision.intent else {
        return Ok(());
    };
    let built = build::job(version, number, &context.settings)?;
    let namespace = version.namespace().unwrap_or_default();
    crate::training::apply_network_policy(context, &namespace, MODELS_MANAGER).await?;
    let created = context
        .writes(MODELS_MANAGER)
        .create_owned(&built, &version.uid().unwrap_or_default())
        .await?;
    if let Created::New(_) = created {
        tracing::info!(number, "a verification is started");
    }
    Ok(())
}
