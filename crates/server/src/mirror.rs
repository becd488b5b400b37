//! Copies of requests for a version that is not heard: its labels are compared with those that were answered, and thrown away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flywheel_contract::profile::most_probable;
use tokio::sync::Semaphore;

use crate::metrics::Metrics;
use crate::versions::Version;

/// Copies that wait or are computed at once; a pod that is slow copies fewer.
const COPIES: usize = 8;

/// Sends copies.
#[derive(Clone)]
pub(crate) struct Copies {
    places: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Copies {
    pub fn new(metrics: &Arc<Metrics>) -> Self {
        Self {
            places: Arc::new(Semaphore::new(COPIES)),
            metrics: Arc::clone(metrics),
        }
    }

    /// Sends texts that were answered with these labels, within `took`, to another version, beside everything else. Where the pod is
    /// busy they are left out, since clients come first.
    pub fn send(
        &self,
        to: &Arc<Version>,
        answered_by: &Version,
        texts: Vec<String>,
        labels: Vec<String>,
        took: Duration,
    ) {
        let begun = Instant::now();
        let engine = &answered_by.engine;
        let busy = engine.in_flight() > engine.limit() / 2;
        let place = Arc::clone(&self.places).try_acquire_owned();
        let (Ok(place), false) = (place, busy) else {
            self.metrics.mirrored(to.name(), "shed", texts.len());
            to.engine.figures().copied(|copies| copies.shed += texts.len() as u64);
            return;
        };
        let (to, metrics) = (Arc::clone(to), Arc::clone(&self.metrics));
        tokio::spawn(async move {
            let _place = place;
            let count = texts.len();
            match to.engine.predict(texts, None).await {
                Ok(answers) => {
                    let theirs = answers.iter().map(|answer| {
                        let (class, _) = most_probable(answer)?;
                        to.engine.labels().get(class)
                    });
                    let same = theirs
                        .zip(&labels)
                        .filter(|(theirs, ours)| *theirs == Some(ours))
                        .count();
                    metrics.mirrored(to.name(), "same", same);
                    metrics.mirrored(to.name(), "different", count - same);
                    let copy_took = begun.elapsed();
                    metrics.mirror_seconds(to.name(), copy_took);
                    to.engine.figures().copied(|copies| {
                        copies.texts += count as u64;
                        copies.same += same as u64;
                        copies.requests += 1;
                        copies.seconds += copy_took.as_secs_f64();
                        copies.answered_seconds += took.as_secs_f64();
                    });
                }
                // Refused where it has too much to do, like any request.
                Err(refusal) => {
                    let shed = refusal.reason.status() < 500;
                    metrics.mirrored(to.name(), if shed { "shed" } else { "failed" }, count);
                    to.engine.figures().copied(|copies| {
                        let counted = if shed { &mut copies.shed } else { &mut copies.failed };
                        *counted += count as u64;
                    });
                }
            }
        });
    }
}
