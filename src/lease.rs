//! Who leads: client-go's algorithm on a `coordination.k8s.io/v1` Lease.
//!
//! A lease lasts 15 s; the leader renews it every 2 s and stops itself when it could not for 10 s, by the monotonic
//! clock, so that it has stopped before another one may begin. A candidate watches the Lease and waits for a whole lease
//! duration of its own clock since the last change that it saw: clocks of other machines are never compared.
//! [`Election`] is that algorithm without a client; [`run`] drives it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
// The monotonic clock, which tests turn.
use tokio::time::Instant;

use crate::error::Error;
use crate::kubeio::within;

/// Name of the Lease.
pub const LEASE_NAME: &str = "flywheel-operator";
/// How long a lease lasts without being renewed.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How long a leader goes on without having renewed.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two renewals, and between two tries of a candidate.
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// Whether this replica leads. Cheap to clone and to ask.
#[derive(Clone, Debug)]
pub struct LeaseHandle {
    renewed: Arc<Mutex<Held>>,
}

#[derive(Clone, Copy, Debug)]
enum Held {
    /// Not leading.
    No,
    /// Renewed at this time, after so many changes of the leader.
    Since { renewed: Instant, term: i32 },
    /// There is no election: tests.
    Always,
}

impl LeaseHandle {
    /// A handle of a replica that does not lead.
    #[must_use]
    pub fn none() -> Self {
        Self {
            renewed: Arc::new(Mutex::new(Held::No)),
        }
    }

    /// A handle that always says yes, where there is no election.
    #[must_use]
    pub fn always() -> Self {
        Self {
            renewed: Arc::new(Mutex::new(Held::Always)),
        }
    }

    /// Whether no other replica can lead now: asked before each write.
    #[must_use]
    pub fn still_valid(&self) -> bool {
        self.valid_at(Instant::now())
    }

    fn valid_at(&self, now: Instant) -> bool {
        match *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) {
            Held::No => false,
            Held::Since { renewed, .. } => now.saturating_duration_since(renewed) < RENEW_DEADLINE,
            Held::Always => true,
        }
    }

    /// How often the leader had changed when this replica began to lead; `None` where it does not lead, or there is no
    /// election.
    #[must_use]
    pub fn term(&self) -> Option<i32> {
        match *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) {
            Held::Since { term, .. } => Some(term),
            Held::No | Held::Always => None,
        }
    }

    fn set(&self, held: Held) {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }
}

/// What a Lease said when it was last seen to change.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    holder: String,
    renew_time: Option<Timestamp>,
    transitions: i32,
    at: Instant,
}

/// The algorithm, on a clock that the caller reads.
#[derive(Debug)]
pub struct Election {
    identity: String,
    seen: Option<Seen>,
    /// Start of the last request that the API server accepted.
    renewed: Option<Instant>,
}

/// What to do with the Lease now.
#[derive(Clone, Debug, PartialEq)]
pub enum Move {
    /// Write this spec: nobody holds the Lease, or we do.
    Take(LeaseSpec),
    /// Another one holds it for at least this long.
    Wait(Duration),
}

impl Election {
    /// A candidate of this name, which no other replica may have.
    #[must_use]
    pub fn new(identity: impl Into<String>) -> Self {
        Self {
            identity: identity.into(),
            seen: None,
            renewed: None,
        }
    }

    /// Looks at the Lease as it stands (`None`: there is none).
    pub fn look(&mut self, lease: Option<&LeaseSpec>, now: Instant) {
        let Some(spec) = lease else {
            self.seen = None;
            return;
        };
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let renew_time = spec.renew_time.as_ref().map(|t| t.0);
        let transitions = spec.lease_transitions.unwrap_or(0);
        let changed = self
            .seen
            .as_ref()
            .is_none_or(|s| s.holder != holder || s.renew_time != renew_time || s.transitions != transitions);
        if changed {
            self.seen = Some(Seen {
                holder,
                renew_time,
                transitions,
                at: now,
            });
        }
    }

    /// What to do now; `wall` only goes into the Lease for people to read.
    #[must_use]
    pub fn next(&self, now: Instant, wall: Timestamp) -> Move {
        let (held_by_us, transitions) = match &self.seen {
            None => (false, 0),
            Some(seen) if seen.holder == self.identity => (true, seen.transitions),
            Some(seen) => {
                let age = now.saturating_duration_since(seen.at);
                if !seen.holder.is_empty() && age < LEASE_DURATION {
                    return Move::Wait(LEASE_DURATION.saturating_sub(age));
                }
                (false, seen.transitions.saturating_add(1))
            }
        };
        Move::Take(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(LEASE_DURATION.as_secs()).unwrap_or(15)),
            acquire_time: (!held_by_us).then_some(MicroTime(wall)),
            renew_time: Some(MicroTime(wall)),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        })
    }

    /// The API server accepted a write that was sent at `sent`.
    pub fn written(&mut self, spec: &LeaseSpec, sent: Instant) {
        self.look(Some(spec), sent);
        self.renewed = Some(sent);
    }

    /// Until when we lead, unless we renew before: the last accepted write is younger than the renew deadline. `None` where
    /// we do not lead.
    #[must_use]
    pub fn leads_until(&self, now: Instant) -> Option<Instant> {
        self.renewed
            .filter(|_| self.seen.as_ref().is_some_and(|s| s.holder == self.identity))
            .map(|at| at + RENEW_DEADLINE)
            .filter(|until| now < *until)
    }

    /// Whether we lead.
    #[must_use]
    pub fn leads(&self, now: Instant) -> bool {
        self.leads_until(now).is_some()
    }

    fn forget(&mut self) {
        self.renewed = None;
    }
}

/// Takes part in the election until `stop` is told, and keeps `handle` and `leading` up to date. Ends with `Ok` after the
/// Lease was released, and with an error when the leadership was lost: the caller ends the process then, since whatever
/// still runs must not write.
///
/// # Errors
/// The leadership was lost.
pub async fn run(
    client: Client,
    namespace: &str,
    identity: String,
    handle: LeaseHandle,
    leading: tokio::sync::watch::Sender<bool>,
    mut stop: tokio::sync::watch::Receiver<bool>,
) -> Result<(), Error> {
    let api: Api<Lease> = Api::namespaced(client, namespace);
    let mut election = Election::new(identity);
    // The watch only wakes a candidate up when a leader releases the Lease; what counts is what is read.
    let watch = watcher(
        api.clone(),
        crate::client::watch_config().fields(&format!("metadata.name={LEASE_NAME}")),
    );
    // With a back-off: while the API server refuses, a watch ends at once, again and again.
    let mut changes = std::pin::pin!(
        watch
            .default_backoff()
            .filter_map(|event| async move {
                matches!(event, Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_))).then_some(())
            })
            .fuse()
    );
    loop {
        let was_leading = *leading.borrow();
        let late = || Error::Timeout {
            what: "the renewal of the Lease".to_owned(),
            limit: RENEW_DEADLINE,
        };
        let stepped = match election.leads_until(Instant::now()) {
            // A leader that gets no answer ends when its time is up, not when the call's is.
            Some(until) => tokio::time::timeout_at(until, step(&api, &mut election))
                .await
                .unwrap_or_else(|_| Err(late())),
            None if was_leading => Err(late()),
            None => step(&api, &mut election).await,
        };
        if let Err(error) = stepped {
            tracing::warn!(%error, "the Lease could not be read or written");
        }
        let now = Instant::now();
        let leads = election.leads(now);
        handle.set(match (election.renewed, &election.seen) {
            (Some(renewed), Some(seen)) if leads => Held::Since {
                renewed,
                term: seen.transitions,
            },
            _ => Held::No,
        });
        if leads != was_leading {
            tracing::info!(leads, "leadership changed");
            leading.send_replace(leads);
        }
        if was_leading && !leads {
            return Err(Error::NotLeading);
        }
        let wait = match election.next(now, Timestamp::now()) {
            Move::Wait(left) if !leads => left,
            _ => RETRY_PERIOD,
        };
        let next = election
            .leads_until(now)
            .map_or(now + wait, |until| until.min(now + wait));
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            Some(_) = changes.next(), if !leads => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    if election.leads(Instant::now()) {
        handle.set(Held::No);
        release(&api, &mut election).await;
    }
    leading.send_replace(false);
    Ok(())
}

/// Reads the Lease, and takes or renews it where that is ours to do.
async fn step(api: &Api<Lease>, election: &mut Election) -> Result<(), Error> {
    let present = within("read the Lease", api.get_opt(LEASE_NAME)).await?;
    election.look(present.as_ref().and_then(|l| l.spec.as_ref()), Instant::now());
    let Move::Take(spec) = election.next(Instant::now(), Timestamp::now()) else {
        return Ok(());
    };
    let sent = Instant::now();
    let written = match present {
        None => {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(LEASE_NAME.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: Some(spec),
            };
            within("create the Lease", api.create(&PostParams::default(), &lease)).await?
        }
        Some(mut lease) => {
            // The resource version goes along, so that of two candidates only one wins.
            let acquired = lease.spec.as_ref().and_then(|s| s.acquire_time.clone());
            let mut spec = spec;
            spec.acquire_time = spec.acquire_time.or(acquired);
            lease.metadata.managed_fields = None;
            lease.spec = Some(spec);
            within(
                "renew the Lease",
                api.replace(LEASE_NAME, &PostParams::default(), &lease),
            )
            .await?
        }
    };
    if let Some(spec) = &written.spec {
        election.written(spec, sent);
    }
    Ok(())
}

/// Gives the Lease up, so that the other replica begins at once. If that fails, it begins when the lease has run out.
async fn release(api: &Api<Lease>, election: &mut Election) {
    election.forget();
    let released = async {
        let Some(mut lease) = within("read the Lease", api.get_opt(LEASE_NAME)).await? else {
            return Ok::<(), Error>(());
        };
        let Some(spec) = lease.spec.as_mut() else {
            return Ok(());
        };
        if spec.holder_identity.as_deref() != Some(election.identity.as_str()) {
            return Ok(());
        }
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        lease.metadata.managed_fields = None;
        within(
            "release the Lease",
            api.replace(LEASE_NAME, &PostParams::default(), &lease),
        )
        .await?;
        Ok(())
    };
    match released.await {
        Ok(()) => tracing::info!("the Lease is released"),
        Err(error) => tracing::warn!(%error, "the Lease could not be released; it runs out by itself"),
    }
}

#[cfg(test)]
mod tests;
