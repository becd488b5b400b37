//! Looks at many services again and again, beside the reconciles.

use std::sync::Arc;
use std::time::Duration;

use flywheel_api::InferenceService;
use flywheel_policy::serving::{PodView, Stage};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;

use super::observe::Pods;
use crate::admin::Beats;
use crate::context::Context;

/// A look at a service: the service, where there is something new about it.
pub(super) type Look<'a> = BoxFuture<'a, Option<&'a InferenceService>>;

/// What a pod is asked.
pub(super) type Ask<T> = for<'a> fn(&'a PodView, &'a Pod, &'a Context) -> BoxFuture<'a, Option<T>>;

/// How a loop goes round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounds {
    /// Its name among the signs of life.
    pub name: &'static str,
    /// Time between two rounds.
    pub tick: Duration,
    /// Services that are looked at at once.
    pub services_at_once: usize,
    /// Pods that are asked at once, of all services.
    pub asked_at_once: usize,
}

impl Rounds {
    /// Looks at the services that are `wanted` until `stop` is told. `changed` is told the namespace and name of those of which there
    /// is something new.
    pub(super) async fn follow(
        self,
        context: Arc<Context>,
        beats: Beats,
        mut stop: watch::Receiver<bool>,
        wanted: impl Fn(&InferenceService) -> bool,
        look: impl for<'a> Fn(&'a InferenceService, &'a Semaphore, &'a Context) -> Look<'a>,
        changed: impl Fn(&str, &str),
    ) {
        let asked = Semaphore::new(self.asked_at_once);
        let mut tick = tokio::time::interval(self.tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
            beats.beat(self.name);
            let services = context.caches.inference_services.all(&wanted);
            // In a list first: a lazy iterator of futures ties lifetimes so that no caller can be sent between threads.
            let looks: Vec<_> = services.iter().map(|service| look(service, &asked, &context)).collect();
            let mut looks = stream::iter(looks).buffer_unordered(self.services_at_once);
            while let Some(of) = looks.next().await {
                // A round of much to read may take longer than a sign of life may be away.
                beats.beat(self.name);
                if let Some(service) = of {
                    changed(&service.namespace().unwrap_or_default(), &service.name_any());
                }
            }
        }
        beats.ended(self.name);
    }

    /// Asks each ready pod, as many at once as this loop may; what those told that told something, by their uids.
    pub(super) async fn ask<T: Send>(
        self,
        pods: &Pods,
        asked: &Semaphore,
        context: &Context,
        ask: Ask<T>,
    ) -> Vec<(String, T)> {
        let mut answers = Vec::new();
        for (view, pod) in pods.pods.iter().filter(|(view, _)| view.stage == Stage::Ready) {
            let of_pod = async move {
                // It is never closed.
                let _permit = asked.acquire().await.ok()?;
                Some((pod.uid()?, ask(view, pod, context).await?))
            };
            answers.push(of_pod.boxed());
        }
        stream::iter(answers)
            .buffered(self.asked_at_once)
            .filter_map(std::future::ready)
            .collect()
            .await
    }
}
