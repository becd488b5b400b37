//! The way of every process but process 0: it reads what process 0 reads, takes its part in every step, and ends when process
//! 0 does. It writes nothing.

use std::path::Path;
use std::sync::Arc;

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::progress::Phase;
use flywheel_contract::trainer::TrainerConfig;
use flywheel_store::Limits;

use crate::learning::{self, Part, Together};
use crate::peers::Peers;
use crate::tracker::Tracker;
use crate::train::{Inputs, inputs, opened, scratch_folder, wishes};

/// Takes part; returns only with a failure, since [`Peers::beside`] tells the end.
pub(crate) async fn assist(
    config: &TrainerConfig,
    limits: Limits,
    scratch: Option<&Path>,
    tracker: &Arc<Tracker>,
    peers: &Arc<Peers>,
) -> Result<(), Failure> {
    let place = Some(peers.place());
    let wishes = wishes(config, place, tracker).await?;
    let store = opened(config, limits, tracker)?;
    let scratch = scratch_folder(scratch)?;
    let Inputs {
        pretrained,
        prepared,
        sets,
        training,
    } = inputs(config, &store, scratch.path(), tracker).await?;
    let [train, validation, ..] = sets;
    let part = Part {
        wishes,
        pretrained,
        labels: prepared.labels,
        train,
        validation,
        training,
        together: Some(Together::ready(peers, tracker).await?),
    };
    let watched = Arc::clone(tracker);
    match learning::on_thread(tracker, place, move || learning::assist(&part, &watched)).await {
        // Process 0 saves the state now, or makes the artifact.
        Err(failure) if failure.reason == FailureReason::Interrupted => tracker.phase(Phase::Checkpointing),
        Ok(()) => tracker.phase(Phase::Uploading),
        Err(failure) => return Err(failure),
    }
    peers.wait(tracker).await
}
