//! What a TrainingJob needs next.
//!
//! [`attempt`] reads one attempt's Job and pods, [`hang`] says whether a pod that runs still works, [`restart`] says whether
//! and when another attempt follows a failure, [`fallback`] of which accelerator class it is, [`image`] when new pods are to
//! try where an image cannot be had, and [`decide`] puts them together with what the spec says.

pub mod attempt;
pub mod fallback;
pub mod hang;
pub mod image;
pub mod restart;

use std::time::Duration;

use flywheel_api::conditions::reasons;
use flywheel_contract::termination::{Outcome, Position, Trained};
use jiff::Timestamp;

use crate::placement::Problem;
use crate::remedy::{PodsOf, of_refusal};
use attempt::{AttemptState, End, EndedAttempt, Remains};
use hang::Verdict;
use restart::{After, Past};

/// What the spec wishes, as far as decisions need it.
#[derive(Clone, Copy, Debug)]
pub struct Wishes<'a> {
    /// Stop the pods and wait.
    pub suspend: bool,
    /// Restarts that count.
    pub max_restarts: u32,
    /// Leave alone what runs, whatever is seen of it.
    pub only_observe: bool,
    /// Its accelerator class.
    pub class: &'a str,
    /// The class that takes over where that one has no room, where the administrator named one.
    pub fallback: Option<&'a str>,
}

/// One attempt, as its Job and pods show it.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptView {
    /// From 1.
    pub number: u32,
    /// Counted restarts before it.
    pub counted: u32,
    /// The accelerator class of its pods.
    pub class: String,
    /// When its Job was made.
    pub created: Timestamp,
    /// Its Job says `suspend: true`.
    pub suspended: bool,
    /// Pods that it has at a time, at least 1.
    pub nodes: u32,
    /// Pods of it that run and were not told to end.
    pub running: u32,
    /// A pod of it was not told to end and may run.
    pub pod_lives: bool,
    /// What it does.
    pub state: AttemptState,
    /// How several pods of it ended, where its Job does not say so yet.
    pub unrecorded: Option<EndedAttempt>,
}

/// How the job ended, as its status tells; it counts where the Jobs that it was read from are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A result is committed and its ModelVersion made.
    Complete,
    /// It failed for this reason.
    Failed {
        /// The condition's reason.
        reason: String,
        /// Its message.
        message: String,
    },
}

/// A ModelVersion that has the name which the result is to get, and is not this job's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenVersion {
    /// Its name.
    pub name: String,
    /// Where its artifact lies.
    pub uri: String,
    /// Whether the result may turn out to be that artifact: an earlier TrainingJob of this name made it, and results are used
    /// again.
    pub may_be_ours: bool,
}

/// All that is known of a TrainingJob.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Its attempts in order.
    pub attempts: Vec<AttemptView>,
    /// Highest attempt that the status names, for when its Job was deleted.
    pub told_attempt: u32,
    /// Counted restarts as the status names them: those before that attempt, and one more where its failure was seen.
    pub told_counted: Option<u32>,
    /// How far that attempt was when it was last heard of, where that is known.
    pub told_position: Option<Position>,
    /// What pods of that attempt still do, where its Job was deleted.
    pub remains: Remains,
    /// What the status says of its end.
    pub ended: Option<Ended>,
    /// A ModelVersion with our uid in `source` is there.
    pub version_made: bool,
    /// Status or ModelVersion say that the result is an earlier job's.
    pub reused: bool,
    /// The ModelVersion of the job's version name, where it is another's.
    pub version_taken: Option<TakenVersion>,
    /// Why pods have no node.
    pub placement: Option<Problem>,
    /// That the last attempt is to be given up: it runs and hangs or is lost, or it has no room or no image.
    pub verdict: Option<Verdict>,
}

impl Observed {
    /// Highest attempt that is known of; 0 before the first.
    #[must_use]
    pub fn highest_attempt(&self) -> u32 {
        self.attempts.last().map_or(0, |a| a.number).max(self.told_attempt)
    }

    /// The result, and the attempt that told it, while its pod is there. Any attempt may bring one: a pod that was given up may
    /// have committed it in its last seconds.
    #[must_use]
    pub fn result(&self) -> Option<(u32, &Trained)> {
        self.attempts.iter().rev().find_map(|attempt| match &attempt.state {
            AttemptState::Ended(EndedAttempt {
                end: End::Told(Outcome::Trained(trained)),
                ..
            }) => Some((attempt.number, trained)),
            _ => None,
        })
    }

    /// Counted restarts before the attempt that follows the one of which the status alone tells, by what it tells. That its
    /// Job was deleted adds none.
    fn told_count(&self) -> Option<u32> {
        let counted = self.told_counted?;
        match &self.ended {
            // It failed, and the restart that would have followed was one too many.
            Some(Ended::Failed { reason, .. }) if reason == reasons::MAX_RESTARTS_EXCEEDED => {
                Some(counted.saturating_add(1))
            }
            _ if self.told_position.is_some_and(|p| restart::came_further(p, 0)) => Some(0),
            _ => Some(counted),
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Intent {
    /// Make the Job of this attempt, after this many counted restarts.
    StartAttempt {
        /// From 1.
        attempt: u32,
        /// Counted restarts before it.
        counted: u32,
        /// Accelerator class of its pods.
        class: String,
    },
    /// Set `suspend` of this attempt's Job.
    SetSuspend {
        /// The attempt.
        attempt: u32,
        /// The wish.
        suspend: bool,
    },
    /// Write at this attempt's Job that it is over; its pod is deleted and the next attempt follows when that is written.
    GiveUp {
        /// The attempt.
        attempt: u32,
        /// Why.
        verdict: Verdict,
    },
    /// Make the ModelVersion.
    Complete(Box<Trained>),
    /// Nothing.
    Wait,
}

/// Where the job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its pods have no node yet.
    Pending,
    /// Its pods cannot start until somebody acts; the kubelet or the Job controller tries again by itself.
    Blocked,
    /// Nothing of it can be made until somebody acts.
    Stalled,
    /// Its pods have a node and are being started.
    Starting,
    /// Its pods run.
    Running,
    /// An attempt ended and the next is not running yet.
    Restarting,
    /// The spec asks it to wait.
    Suspended,
    /// A result is committed.
    Complete,
    /// It ended without a result.
    Failed,
}

/// A decision with its reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// What is to be written at the Job of the last attempt before anything else: how its pods ended.
    pub record: Option<EndedAttempt>,
    /// What is to be done.
    pub intent: Intent,
    /// Counted restarts, with the one that is about to follow; `None` where only the status knows.
    pub counted: Option<u32>,
    /// Attempts whose pods are to be deleted, since the attempt is over and they run on.
    pub stop: Vec<u32>,
    /// Attempts whose Jobs are to be deleted, since their pods could still run, or since there are too many.
    pub remove: Vec<u32>,
    /// Where the job stands.
    pub phase: Phase,
    /// Reason of the conditions.
    pub reason: String,
    /// Message of the conditions: what is, and where something is wrong, what to do.
    pub message: String,
    /// When to look again, where nothing happens before.
    pub again: Duration,
}

/// Attempts whose Jobs are kept for their logs.
pub const KEPT_ATTEMPTS: usize = 3;
/// When to look again while pods wait for a node: a GPU condition must appear within 30 s.
const WAITING: Duration = Duration::from_secs(10);
/// When to look again while pods run: how often they are scraped, too.
pub const RUNNING: Duration = Duration::from_secs(5);
/// When to look again where the next step only waits for a write to be seen or for a pod to end.
const SOON: Duration = Duration::from_secs(1);
/// When to look again where nothing is expected.
const QUIET: Duration = Duration::from_secs(60);
/// How long the other pods of a training that is complete are left to end by themselves, so that its Job is complete, too.
const PARTING: Duration = Duration::from_secs(30);
/// Of a job whose last attempt lost its Job and not yet its pods.
const SAVES_FIRST: &str = "the Job of the last attempt was deleted; a new attempt, which does not count, is started when its \
                           pod has saved its state";
/// How long pods may hold their GPUs while another of them finds none, before it is said that two jobs may wait for each
/// other.
const GANG_PATIENCE: Duration = Duration::from_secs(300);

/// The longest wait of an attempt for what it cannot have, before another one tries elsewhere: two Jobs an hour are no load,
/// and what becomes free or mended is found within it.
const LONGEST_TURN: Duration = Duration::from_secs(1800);
/// Doublings of such a wait after which it is at its longest.
const DOUBLINGS_MAX: u32 = 5;

/// Turns in a row that ended for want of room or of an image with the attempt before the latest.
fn turns(attempts: &[AttemptView]) -> u32 {
    match attempts.iter().rev().nth(1).map(|before| &before.state) {
        Some(AttemptState::Ended(EndedAttempt {
            end: End::NoRoom { turn, .. } | End::NoImage { turn, .. },
            ..
        })) => *turn,
        _ => 0,
    }
}

/// How long an attempt waits after this many in a row that did, where the first waits for `first`.
fn turn_after(first: Duration, turns: u32) -> Duration {
    first.saturating_mul(1 << turns.min(DOUBLINGS_MAX)).min(LONGEST_TURN)
}

impl Decision {
    /// Nothing is done.
    fn wait(phase: Phase, reason: &str, message: impl Into<String>, again: Duration) -> Self {
        Self {
            record: None,
            intent: Intent::Wait,
            counted: None,
            stop: Vec::new(),
            remove: Vec::new(),
            phase,
            reason: reason.to_owned(),
            message: message.into(),
            again,
        }
    }
}

/// What the job needs now.
#[must_use]
pub fn decide(wishes: Wishes<'_>, observed: &Observed, now: Timestamp) -> Decision {
    let mut decision = intent(wishes, observed, now);
    // A suspension ends all pods one by one, which is no end of the attempt; its Job may not show it yet.
    let last = observed.attempts.last().filter(|_| !wishes.suspend);
    decision.record = last.and_then(|a| a.unrecorded.clone());
    // The Job of a later attempt was deleted; what it counted is in the status.
    let is_told_latest = |a: &&AttemptView| a.number >= observed.told_attempt;
    let counted = observed.attempts.last().filter(is_told_latest).map(|a| a.counted);
    decision.counted = decision.counted.or(counted);
    let latest = observed.attempts.last().map(|a| a.number);
    decision.stop = observed
        .attempts
        .iter()
        .filter(|a| a.pod_lives && !decision.remove.contains(&a.number))
        .filter(|a| {
            let given_up = matches!(&decision.intent, Intent::GiveUp { attempt, .. } if *attempt == a.number);
            given_up || is_over(&a.state, wishes.suspend, now) || Some(a.number) != latest
        })
        .map(|a| a.number)
        .chain(observed.remains.live.then_some(observed.told_attempt))
        .collect();
    decision
}

/// Whether all pods of an attempt in this state are to end.
fn is_over(state: &AttemptState, suspend: bool, now: Timestamp) -> bool {
    match state {
        AttemptState::Ended(EndedAttempt {
            end: End::Told(Outcome::Trained(_)),
            at: Some(at),
            ..
        }) => Duration::try_from(now.duration_since(*at)).is_ok_and(|since| since >= PARTING),
        AttemptState::Ended(_) => true,
        // Of several pods some may not have noticed that another ended, and it is index 0 that saves the state. In a
        // suspension the Job controller ends them all.
        AttemptState::Ending(_) => !suspend,
        _ => false,
    }
}

/// How the last attempt is over.
enum Over<'a> {
    /// It ended.
    Ended,
    /// It was told to end and may still save its state.
    Ending,
    /// It runs or waits, and is given up.
    GivenUp(&'a Verdict),
}

fn intent(wishes: Wishes<'_>, observed: &Observed, now: Timestamp) -> Decision {
    let finished = |phase, reason: &str, message: &str| Decision {
        remove: live(&observed.attempts, None),
        ..Decision::wait(phase, reason, message, QUIET)
    };
    let reused = observed.result().map_or(observed.reused, |(_, trained)| trained.reused);
    let (reason, message) = match reused {
        true => (reasons::RESULT_REUSED, REUSED_MESSAGE),
        false => (reasons::TRAINED, COMPLETE_MESSAGE),
    };
    if observed.version_made || observed.ended == Some(Ended::Complete) {
        return finished(Phase::Complete, reason, message);
    }
    if let Some((number, trained)) = observed.result() {
        return Decision {
            intent: Intent::Complete(Box::new(trained.clone())),
            remove: live(&observed.attempts, Some(number)),
            ..finished(Phase::Complete, reason, message)
        };
    }
    let Some(latest) = observed.attempts.last() else {
        return without_attempt(wishes, observed, 0);
    };
    let over = match &latest.state {
        AttemptState::Ended(ended) => Some((ended.clone(), Over::Ended)),
        AttemptState::Ending(ended) => Some((ended.clone(), Over::Ending)),
        // A suspension ends the pod as well, and costs nothing.
        AttemptState::Running | AttemptState::Unscheduled | AttemptState::Blocked { .. }
            if !wishes.suspend && !wishes.only_observe =>
        {
            observed
                .verdict
                .as_ref()
                // It is about what the attempt did when it was looked at.
                .filter(|verdict| verdict.cause.is_of(&latest.state))
                .map(|verdict| (verdict.ended(), Over::GivenUp(verdict)))
        }
        _ => None,
    };
    let mut decision = match over {
        Some((ended, over)) => {
            if let (Over::Ended, Some((reason, message))) = (&over, stays_failed(wishes, observed, latest)) {
                return finished(Phase::Failed, reason, message);
            }
            let past = Past {
                attempt: latest,
                ended: &ended,
                before: before(&observed.attempts),
                highest: observed.highest_attempt(),
            };
            let give_up = |verdict: &Verdict| Intent::GiveUp {
                attempt: latest.number,
                verdict: verdict.clone(),
            };
            match restart::after(wishes.max_restarts, &past, now) {
                After::Fail { reason, message } => match over {
                    Over::GivenUp(verdict) => Decision {
                        intent: give_up(verdict),
                        // The Job keeps the verdict, so only its pod goes.
                        remove: live(&observed.attempts, Some(latest.number)),
                        ..finished(Phase::Failed, &reason, &message)
                    },
                    Over::Ended => finished(Phase::Failed, &reason, &message),
                    // Its state is still being saved, and why it ended may be told better.
                    Over::Ending => Decision {
                        remove: Vec::new(),
                        again: SOON,
                        ..finished(Phase::Restarting, &reason, &message)
                    },
                },
                // It has been followed, by an attempt whose Job is gone.
                After::Restart { counted, .. }
                    if matches!(over, Over::Ended) && observed.told_attempt > latest.number =>
                {
                    return without_attempt(wishes, observed, counted);
                }
                After::Restart { .. } if wishes.suspend => suspended(Intent::Wait),
                After::Restart {
                    attempt,
                    counted,
                    wait,
                    reason,
                    message,
                } => {
                    // Its failure was seen before what told of it was taken away.
                    let told = observed.told_counted.filter(|_| is_lost(latest));
                    let counted = told.filter(|told| *told > latest.counted).unwrap_or(counted);
                    let is_ending = matches!(over, Over::Ending);
                    // Pods that have not begun could do so beside the next ones, and none are of two classes.
                    let not_begun = matches!(ended.end, End::NoRoom { .. } | End::NoImage { .. });
                    let class = wishes.next_class(&latest.class, &ended.end);
                    let holds_on = latest.pod_lives && (not_begun || class != latest.class);
                    let (intent, again) = match over {
                        Over::Ended if holds_on => (Intent::Wait, SOON),
                        Over::Ended if wait.is_zero() => {
                            let intent = Intent::StartAttempt {
                                attempt,
                                counted,
                                class: class.to_owned(),
                            };
                            (intent, RUNNING)
                        }
                        Over::Ended => (Intent::Wait, wait),
                        Over::Ending => (Intent::Wait, SOON),
                        Over::GivenUp(verdict) => (give_up(verdict), SOON),
                    };
                    Decision {
                        intent,
                        // Told before the wait, so that whoever deletes the Job meanwhile takes nothing back. How an
                        // attempt that still ends has ended may yet be told better.
                        counted: (!is_ending).then_some(counted),
                        ..Decision::wait(Phase::Restarting, &reason, message, again)
                    }
                }
            }
        }
        None if wishes.suspend => suspended(if latest.suspended {
            Intent::Wait
        } else {
            Intent::SetSuspend {
                attempt: latest.number,
                suspend: true,
            }
        }),
        None => {
            let mut decision = going_on(wishes, observed, latest, now);
            if latest.suspended {
                decision.intent = Intent::SetSuspend {
                    attempt: latest.number,
                    suspend: false,
                };
            }
            decision
        }
    };
    // A pod that was taken from a dead node would hold its GPU in the scheduler's books for as long as its Job keeps it.
    let lost = observed.attempts.iter().filter(|a| is_lost(a));
    let starts = usize::from(matches!(decision.intent, Intent::StartAttempt { .. }));
    let surplus = observed
        .attempts
        .len()
        .saturating_sub(KEPT_ATTEMPTS.saturating_sub(starts));
    for old in lost.chain(observed.attempts.iter().take(surplus)) {
        // The latest attempt is the memory of the restart budget until the next one stands.
        if old.number != latest.number && !decision.remove.contains(&old.number) {
            decision.remove.push(old.number);
        }
    }
    decision
}

fn is_lost(attempt: &AttemptView) -> bool {
    matches!(&attempt.state, AttemptState::Ended(e) if matches!(e.end, End::Lost { .. }))
}

/// The end of the last attempt before the latest that was not merely taken away.
fn before(attempts: &[AttemptView]) -> Option<&EndedAttempt> {
    attempts.iter().rev().skip(1).find_map(|a| match &a.state {
        AttemptState::Ended(ended) => {
            let taken = matches!(
                ended.end,
                End::Lost { .. } | End::GpuFault { .. } | End::NoRoom { .. } | End::NoImage { .. }
            );
            (!taken).then_some(ended)
        }
        _ => None,
    })
}

/// Reason and message of a failure that was told of this attempt, or of a later one, before. What it was read from may be
/// gone by now (a pod or a Job that was cleaned up), which is no reason to start again; that the budget was raised is.
fn stays_failed<'a>(wishes: Wishes<'_>, observed: &'a Observed, latest: &AttemptView) -> Option<(&'a str, &'a str)> {
    match &observed.ended {
        Some(Ended::Failed { reason, message }) if observed.told_attempt >= latest.number => {
            let raised = if observed.told_attempt == latest.number {
                reason == reasons::MAX_RESTARTS_EXCEEDED && latest.counted < wishes.max_restarts
            } else {
                is_raised(wishes, observed, reason)
            };
            (!raised).then_some((reason.as_str(), message.as_str()))
        }
        _ => None,
    }
}

/// Whether `recovery.maxRestarts` allows another attempt after one that used the budget up and whose Job was deleted.
fn is_raised(wishes: Wishes<'_>, observed: &Observed, reason: &str) -> bool {
    let allowed = |counted| counted <= wishes.max_restarts;
    reason == reasons::MAX_RESTARTS_EXCEEDED && observed.told_count().is_some_and(allowed)
}

/// One message from the start of the first attempt until its pods have a node, so that it is written once.
const NO_NODE_YET: &str = "waiting for a node";
/// What is added where some pods have waited long for the rest.
const GANG_WAITS: &str = "The pods that have theirs hold them and wait. If another job waits in the same way, neither goes on: \
                          set spec.suspend of one of them to true until the other runs";
/// Of a suspended job that has no attempt yet.
const NEVER_BEGUN: &str = "spec.suspend is true: nothing has been started. Set it to false to begin the training";
const COMPLETE_MESSAGE: &str = "the training is complete and its ModelVersion is there";
const REUSED_MESSAGE: &str = "nothing was trained: an earlier TrainingJob with the same spec, data and pretrained files came to this \
                              result under output.uri, and its ModelVersion is there. To train all the same, set output.reuse to Never";

/// Numbers of the attempts whose pods may still run, but for one.
fn live(attempts: &[AttemptView], except: Option<u32>) -> Vec<u32> {
    attempts
        .iter()
        .filter(|a| Some(a.number) != except && a.state.may_run())
        .map(|a| a.number)
        .collect()
}

fn suspended(intent: Intent) -> Decision {
    let message = "spec.suspend is true: the pod saves its state and ends. Set it to false to go on from there";
    Decision {
        intent,
        ..Decision::wait(Phase::Suspended, reasons::SUSPENDED, message, QUIET)
    }
}

/// That the version name is taken by a ModelVersion with its artifact at `uri`, with what comes of it for the result.
#[must_use]
pub fn version_conflict(name: &str, uri: &str, outcome: &str) -> String {
    format!(
        "the ModelVersion {name} is there already with another artifact ({uri}), so {outcome}. Delete that one, or apply a \
         TrainingJob with another output.versionName"
    )
}

/// What follows where there is no Job of the last attempt: before the first, and after it was deleted. `counted` holds where
/// the status tells no count.
fn without_attempt(wishes: Wishes<'_>, observed: &Observed, counted: u32) -> Decision {
    let raised = match &observed.ended {
        Some(Ended::Failed { reason, message }) if !is_raised(wishes, observed, reason) => {
            return Decision::wait(Phase::Failed, reason, message, QUIET);
        }
        Some(Ended::Failed { .. }) => true,
        Some(Ended::Complete) | None => false,
    };
    if wishes.suspend {
        let mut decision = suspended(Intent::Wait);
        if observed.highest_attempt() == 0 {
            NEVER_BEGUN.clone_into(&mut decision.message);
        }
        return decision;
    }
    // Hours of training would end in the same. Once it has begun, the other one may be gone by its end. One that an earlier job
    // of this name made may be what comes out, which the pod finds out before it trains.
    if let (
        0,
        Some(TakenVersion {
            name,
            uri,
            may_be_ours: false,
        }),
    ) = (observed.told_attempt, &observed.version_taken)
    {
        let message = version_conflict(name, uri, "the result would get none");
        return Decision::wait(Phase::Stalled, reasons::VERSION_CONFLICT, message, WAITING);
    }
    let counted = observed.told_count().unwrap_or(counted);
    if observed.remains.save {
        return Decision {
            counted: Some(counted),
            ..Decision::wait(Phase::Restarting, reasons::POD_LOST, SAVES_FIRST, SOON)
        };
    }
    let (phase, reason, message) = if raised {
        (
            Phase::Restarting,
            reasons::NEW_ATTEMPT,
            format!(
                "recovery.maxRestarts was raised: restart {counted} of {} follows",
                wishes.max_restarts
            ),
        )
    } else if observed.told_attempt > 0 {
        (
            Phase::Restarting,
            reasons::POD_LOST,
            "the Job of the last attempt was deleted; a new attempt is started, which does not count".to_owned(),
        )
    } else {
        (Phase::Pending, reasons::PENDING, NO_NODE_YET.to_owned())
    };
    Decision {
        intent: Intent::StartAttempt {
            attempt: observed.told_attempt.saturating_add(1),
            counted,
            class: wishes.class.to_owned(),
        },
        counted: Some(counted),
        ..Decision::wait(phase, reason, message, WAITING)
    }
}

/// An attempt that has not ended.
fn going_on(wishes: Wishes<'_>, observed: &Observed, latest: &AttemptView, now: Timestamp) -> Decision {
    let placement = observed.placement.as_ref();
    let several = latest.nodes > 1;
    let waited = Duration::try_from(now.duration_since(latest.created)).unwrap_or_default();
    let later = latest.number > 1;
    let decision = |phase, reason: &str, message: String, again| {
        let phase = match phase {
            Phase::Pending | Phase::Starting if later => Phase::Restarting,
            phase => phase,
        };
        Decision::wait(phase, reason, message, again)
    };
    match &latest.state {
        AttemptState::NoPod {
            refused: Some(message), ..
        } => decision(
            Phase::Blocked,
            reasons::POD_CREATION_FAILED,
            format!(
                "{} cannot be made: {}. It is tried again by itself, so {}",
                if several { "a pod" } else { "the pod" },
                message.trim_end_matches('.'),
                of_refusal(PodsOf::TrainingJob, message)
            ),
            WAITING,
        ),
        AttemptState::Blocked { reason, message } => {
            let message = match image::prospect(wishes, &observed.attempts) {
                Some(prospect) => format!("{}. {prospect}", message.trim_end_matches('.')),
                None => message.clone(),
            };
            decision(Phase::Blocked, reason, message, WAITING)
        }
        AttemptState::NoPod { refused: None } | AttemptState::Unscheduled => match placement {
            Some(problem) if latest.running > 0 && waited >= GANG_PATIENCE => {
                let message = format!("{}. {GANG_WAITS}", problem.message);
                decision(Phase::Pending, problem.reason, message, WAITING)
            }
            Some(problem) => {
                let prospect = fallback::prospect(wishes, &observed.attempts).filter(|_| problem.is_want_of_gpus());
                let message = match prospect {
                    Some(prospect) => format!("{}. {prospect}", problem.message),
                    None => problem.message.clone(),
                };
                decision(Phase::Pending, problem.reason, message, WAITING)
            }
            None => decision(Phase::Pending, reasons::PENDING, NO_NODE_YET.to_owned(), WAITING),
        },
        AttemptState::Starting => decision(
            Phase::Starting,
            reasons::STARTING,
            if several {
                "all pods have a node, and some are being started".to_owned()
            } else {
                "the pod has a node and is being started".to_owned()
            },
            WAITING,
        ),
        AttemptState::Running => {
            let message = if several {
                format!("all {} pods run", latest.nodes)
            } else {
                "the pod runs".to_owned()
            };
            let message = if latest.class == wishes.class {
                message
            } else {
                format!("{message}, in the fallback class {}", latest.class)
            };
            decision(Phase::Running, reasons::RUNNING, message, RUNNING)
        }
        // Handled before; said again rather than assumed.
        AttemptState::Ending(_) | AttemptState::Ended(_) => decision(
            Phase::Restarting,
            reasons::NEW_ATTEMPT,
            "the attempt ended".to_owned(),
            RUNNING,
        ),
    }
}

#[cfg(test)]
mod tests;
