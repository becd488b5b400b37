//! The operator of the model: a leader with a cache that lags and a memory that dies with it. Its passes are those of the
//! operator's `training` and `serving` modules: what is read live, what is decided by the policy under test, and which writes
//! follow in which order. A pass is a queue of writes, so that anything may happen between two of them.

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use flywheel_api::conditions::reasons;
use flywheel_api::names::TRAINER;
use flywheel_api::recovery::{IncidentCause, RecoveryMode};
use flywheel_contract::progress::{CheckpointProgress, Phase as TrainerPhase, Progress, TrackingProgress};
use flywheel_contract::termination::{Outcome, Position};
use flywheel_policy::placement::{Problem, refused_since};
use flywheel_policy::recovery::nodes::Nodes;
use flywheel_policy::recovery::serving::{Leaving, Ledger, Look as ServiceLook, Place, Plan, PodSight, View, plan};
use flywheel_policy::serving::Stage;
use flywheel_policy::training::attempt::{
    AttemptState, End, Remains, index, is_out_of_contact, lives, nodes, running_since, runs, state, unhealthy_device,
    unrecorded, without_image_since,
};
use flywheel_policy::training::hang::{Cause, Look, Surroundings, Verdict, Watch};
use flywheel_policy::training::{
    AttemptView, Decision, Ended, Intent, Observed, Phase, Wishes, decide, fallback, image,
};
use k8s_openapi::api::core::v1::Pod;

use crate::cluster::{
    Bug, CLASS, Cluster, Doing, FALLBACK, GPU, JobObject, PodObject, Second, Status, Training, Uid, at,
};
use crate::service::ServicePod;

/// Time between two writes that only tell of progress.
const PROGRESS_INTERVAL: Second = 60;
/// Seconds for which a lease of a lost node must have been the same when it was looked at last: two renewals of ten seconds,
/// less the four between two looks.
const LEASE_SILENCE: Second = 16;
/// Attempts of which the memory keeps how far they were.
const POSITIONS: usize = 3;

/// What the watches have told so far. Each kind has one of its own, so each lags by itself.
pub struct Cache {
    training: Training,
    jobs: Vec<Rc<JobObject>>,
    pods: Vec<Rc<PodObject>>,
    ready: Vec<bool>,
    service: Vec<ServicePod>,
    version_of: Option<Uid>,
}

/// A kind of which the cache holds the objects.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Trainings,
    Jobs,
    Pods,
    Nodes,
    Versions,
}

/// All of them.
pub const KINDS: [Kind; 5] = [Kind::Trainings, Kind::Jobs, Kind::Pods, Kind::Nodes, Kind::Versions];

impl Cache {
    /// As a new leader lists it.
    pub fn of(cluster: &Cluster) -> Self {
        Self {
            training: cluster.training.clone(),
            jobs: cluster.jobs.clone(),
            pods: cluster.pods.clone(),
            ready: cluster.nodes.iter().map(|node| node.ready).collect(),
            service: cluster.service.pods.clone(),
            version_of: cluster.version_of,
        }
    }

    /// The watch of this kind tells what is.
    pub fn sync(&mut self, kind: Kind, cluster: &Cluster) {
        match kind {
            Kind::Trainings => self.training = cluster.training.clone(),
            Kind::Jobs => self.jobs.clone_from(&cluster.jobs),
            Kind::Pods => {
                self.pods.clone_from(&cluster.pods);
                self.service.clone_from(&cluster.service.pods);
            }
            Kind::Nodes => self.ready = cluster.nodes.iter().map(|node| node.ready).collect(),
            Kind::Versions => self.version_of = cluster.version_of,
        }
    }
}

/// A write that a pass has decided on.
#[derive(Clone, Debug)]
pub enum Write {
    Record {
        job: Uid,
        text: String,
    },
    StartAttempt {
        owner: Uid,
        attempt: u32,
        counted: u32,
        class: &'static str,
    },
    Suspend {
        job: Uid,
        suspend: bool,
    },
    GiveUp {
        job: Uid,
        text: String,
    },
    Version {
        owner: Uid,
    },
    StopPod {
        pod: Uid,
    },
    RemoveJob {
        name: u64,
        job: Uid,
    },
    Status {
        owner: Uid,
        status: Status,
    },
    ReplacePod {
        pod: Uid,
    },
    Scale {
        replicas: u32,
    },
}

impl Write {
    fn is_delete(&self) -> bool {
        matches!(
            self,
            Self::StopPod { .. } | Self::RemoveJob { .. } | Self::ReplacePod { .. }
        )
    }

    /// What it deletes is told to end.
    pub fn delete(self, cluster: &mut Cluster) {
        match self {
            Self::StopPod { pod } => {
                cluster.counts.add("act: stop a pod");
                cluster.stop_pod(pod);
            }
            Self::RemoveJob { name, job } => {
                cluster.counts.add("act: remove a Job");
                cluster.delete_job(name, job);
            }
            Self::ReplacePod { pod } => cluster.service.delete(pod, cluster.now),
            _ => {}
        }
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done.
    Done,
    /// It was done, and nobody heard of it.
    Lost,
    /// It was not done.
    Refused,
}

/// The leader, and what it keeps in memory.
pub struct Leader {
    pub cache: Cache,
    queue: VecDeque<Write>,
    nodes: Nodes,
    /// Of each node's lease, when it was looked at and when it had been renewed.
    leases: Vec<Option<(Second, Second)>>,
    watched: Uid,
    watch: Watch,
    positions: Vec<(u32, Position)>,
    told_progress: Option<Second>,
    /// The last status that it wrote, with the version that this made: it is believed more than a cache that does not show it.
    /// A watch that is later than the seconds for which the operator does so is not modelled.
    written: Option<(u64, Rc<Status>)>,
    ledger: Ledger,
    pub replaced: Vec<jiff::Timestamp>,
    surge: u32,
}

struct Observation {
    observed: Observed,
    jobs: Vec<Rc<JobObject>>,
    pods: Vec<(u32, Rc<PodObject>)>,
    progress: Option<Position>,
}

impl Leader {
    /// A process that just became the leader.
    pub fn new(cluster: &Cluster) -> Self {
        Self {
            cache: Cache::of(cluster),
            queue: VecDeque::new(),
            nodes: Nodes::default(),
            leases: vec![None; cluster.nodes.len()],
            watched: 0,
            watch: Watch::default(),
            positions: Vec::new(),
            told_progress: None,
            written: None,
            ledger: Ledger::new(&[]),
            replaced: Vec::new(),
            surge: 0,
        }
    }

    /// Whether a pass waits for the answer to a write.
    pub fn is_writing(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Looks at the leases of suspects, as it does each second.
    pub fn look_at_leases(&mut self, cluster: &Cluster) {
        for node in self.nodes.due(at(cluster.now)) {
            let place: usize = node.parse().unwrap();
            let renewed = cluster.nodes[place].renewed;
            self.leases[place] = cluster.api_up.then_some((cluster.now, renewed));
            let told = cluster.api_up.then(|| renewed.to_string());
            self.nodes.lease(&node, told, at(cluster.now));
        }
    }

    /// Does the next write of the pass.
    pub fn write(&mut self, cluster: &mut Cluster, answer: Answer) {
        let Some(write) = self.queue.pop_front() else { return };
        if answer == Answer::Refused || !cluster.api_up {
            self.queue.clear();
            return;
        }
        let goes_on = self.carry_out(write, cluster, answer);
        if !goes_on || answer == Answer::Lost {
            self.queue.clear();
        }
    }

    /// The leader dies while it deletes something: what it deletes, which may arrive when another one leads.
    pub fn last_delete(&mut self, cluster: &mut Cluster) -> Option<Write> {
        while self.queue.front().is_some_and(|write| !write.is_delete()) {
            self.write(cluster, Answer::Done);
        }
        self.queue.pop_front()
    }

    fn carry_out(&mut self, write: Write, cluster: &mut Cluster, answer: Answer) -> bool {
        match write {
            Write::Record { job, text } => {
                cluster.counts.add("act: record");
                cluster.change_job(job, |job| job.ended = Some(text))
            }
            Write::StartAttempt {
                owner,
                attempt,
                counted,
                class,
            } => cluster.create_job(owner, attempt, counted, class),
            Write::Suspend { job, suspend } => cluster.change_job(job, |job| job.suspended = suspend),
            Write::GiveUp { job, text } => cluster.change_job(job, |job| job.given_up = Some(text)),
            Write::Version { owner } => {
                if cluster.training.uid == owner {
                    cluster.version_of = Some(owner);
                }
                true
            }
            Write::Status { owner, status } => {
                if cluster.training.uid == owner {
                    let status = Rc::new(status);
                    cluster.training.status = Some(Rc::clone(&status));
                    cluster.training.version += 1;
                    if answer == Answer::Done {
                        self.written = Some((cluster.training.version, status));
                    }
                }
                true
            }
            write @ (Write::StopPod { .. } | Write::RemoveJob { .. } | Write::ReplacePod { .. }) => {
                write.delete(cluster);
                true
            }
            Write::Scale { replicas } => {
                cluster.service.replicas = replicas;
                true
            }
        }
    }

    fn read(&mut self, node: usize, answered: bool, now: Second) {
        let name = node.to_string();
        if answered {
            self.nodes.answered(&name, at(now));
        } else {
            self.nodes.unanswered(&name, at(now));
        }
    }

    fn all_lost(&self, now: Second) -> BTreeSet<usize> {
        let names = self
            .nodes
            .all_lost(at(now))
            .into_iter()
            .map(|name| name.parse().unwrap());
        let not_ready = self.cache.ready.iter().enumerate().filter(|(_, ready)| !**ready);
        names.chain(not_ready.map(|(place, _)| place)).collect()
    }

    fn is_held(&mut self, cluster: &Cluster) -> bool {
        let lost = self.all_lost(cluster.now).len();
        let held = self.nodes.is_held(lost, self.cache.ready.len(), at(cluster.now));
        cluster.bug != Bug::BrakeOff && held
    }

    fn lost(&self, node: usize, out_of_contact: bool, now: Second) -> Option<jiff::Timestamp> {
        let not_ready = out_of_contact || !self.cache.ready[node];
        self.nodes.lost(&node.to_string(), not_ready, at(now))
    }

    /// A pod is given up for its node: never where more than 30 % of the nodes, and at least three, seem lost.
    fn check_brake(&self, cluster: &mut Cluster) {
        let (lost, all) = (self.all_lost(cluster.now).len(), self.cache.ready.len());
        if lost >= 3 && lost * 10 > all * 3 {
            cluster.violated(format!(
                "a pod is given up for its node while {lost} of {all} nodes seem lost"
            ));
        }
    }

    // The TrainingJob.

    /// Begins a pass over the TrainingJob.
    pub fn begin_training(&mut self, cluster: &mut Cluster) {
        let mut training = self.cache.training.clone();
        if let Some((after, status)) = &self.written
            && training.version < *after
        {
            training.status = Some(Rc::clone(status));
        }
        let wishes = Wishes {
            suspend: training.suspend,
            max_restarts: training.max_restarts,
            only_observe: false,
            class: CLASS,
            fallback: cluster.fallback.then_some(FALLBACK),
        };
        let Some(observation) = self.observe(&training, wishes, cluster) else {
            return;
        };
        let decision = decide(wishes, &observation.observed, at(cluster.now));
        count(&decision, &observation.observed, cluster);
        if let Some(verdict) = &observation.observed.verdict
            && verdict.cause == Cause::NodeLost
            && matches!(decision.intent, Intent::GiveUp { .. })
        {
            self.check_brake(cluster);
        }
        self.apply(&training, &observation, &decision);
        self.report(&training, &observation, &decision, cluster.now);
    }

    /// What is seen; none where the API server does not answer.
    fn observe(&mut self, training: &Training, wishes: Wishes<'_>, cluster: &mut Cluster) -> Option<Observation> {
        let now = cluster.now;
        let mut jobs: Vec<Rc<JobObject>> = self
            .cache
            .jobs
            .iter()
            .filter(|job| job.owner == training.uid)
            .cloned()
            .collect();
        jobs.sort_by_key(|job| job.attempt);
        let status = training.status.as_deref();
        let told = status.map_or(0, |status| status.attempt);
        let ended = status.and_then(|status| status.ended.clone());
        let cached = jobs.last().map_or(0, |job| job.attempt);
        let mut deleted = None;
        if told > cached && ended.is_none() {
            let live = match cluster.bug {
                Bug::StaleCache => None,
                Bug::DoubleStart => cluster.jobs.iter().find(|job| job.attempt == told),
                _ if !cluster.api_up => return None,
                _ => cluster.jobs.iter().find(|job| job.name == u64::from(told)),
            };
            match live {
                Some(live) if live.owner == training.uid => jobs.push(Rc::clone(live)),
                Some(_) => {}
                None => deleted = Some(u64::from(told)),
            }
        }
        let mut pods: Vec<(u32, Rc<PodObject>)> = Vec::new();
        let mut attempts = Vec::new();
        for job in &jobs {
            let of_job: Vec<&Rc<PodObject>> = self.cache.pods.iter().filter(|pod| pod.job == job.uid).collect();
            let views: Vec<&Pod> = of_job.iter().map(|pod| &pod.object).collect();
            let all_ran = told == job.attempt && status.is_some_and(|status| status.phase == Phase::Running);
            let mut seen = state(&job.object, &views, all_ran, TRAINER, at(now));
            if let AttemptState::Ended(end) | AttemptState::Ending(end) = &mut seen {
                let heard = self.position(job.attempt).filter(|heard| {
                    end.position.is_none_or(|told| {
                        told.checkpoint_step < heard.checkpoint_step && told.head_attempt <= heard.head_attempt
                    })
                });
                end.position = heard.or(end.position);
            }
            let living = || views.iter().filter(|pod| lives(pod, TRAINER));
            attempts.push(AttemptView {
                number: job.attempt,
                counted: job.counted,
                class: job.class.to_owned(),
                created: at(job.created),
                suspended: job.suspended,
                nodes: nodes(&job.object),
                running: u32::try_from(living().filter(|pod| runs(pod, TRAINER)).count()).unwrap(),
                pod_lives: living().next().is_some(),
                unrecorded: unrecorded(&job.object, &seen),
                state: seen,
            });
            pods.extend(of_job.into_iter().map(|pod| (job.attempt, Rc::clone(pod))));
        }
        let mut remains = Remains::default();
        if let Some(deleted) = deleted {
            let is_left = |pod: &&Rc<PodObject>| pod.job_name == deleted && pod.created >= training.created;
            let left: Vec<&Rc<PodObject>> = self.cache.pods.iter().filter(is_left).collect();
            let views: Vec<&Pod> = left.iter().map(|pod| &pod.object).collect();
            remains = Remains::of(&views, TRAINER, at(now));
            pods.extend(left.into_iter().map(|pod| (told, Rc::clone(pod))));
        }
        let (mut verdict, mut progress) = (None, None);
        if let Some(view) = attempts.last().filter(|view| view.state == AttemptState::Running) {
            let of_job: Vec<Rc<PodObject>> = pods
                .iter()
                .filter(|(number, pod)| *number == view.number && lives(&pod.object, TRAINER))
                .map(|(_, pod)| Rc::clone(pod))
                .collect();
            let newest = of_job
                .iter()
                .filter(|pod| index(&pod.object) == 0)
                .max_by_key(|pod| pod.created);
            if let Some(pod) = newest {
                let answered_before = told == view.number && status.is_some_and(|status| status.answered);
                let look = self.scrape(view.number, pod, cluster);
                if let Look::Answered(answer) = &look {
                    progress = Some(written(answer));
                }
                let too_many = self.is_held(cluster);
                let lost = |pod: &PodObject| {
                    let out = is_out_of_contact(&pod.object);
                    out || pod.node.is_some_and(|node| self.lost(node, out, now).is_some())
                };
                let held = too_many && of_job.iter().any(|pod| lost(pod));
                let is_lost = |pod: &PodObject| !held && lost(pod);
                let several = view.nodes > 1;
                let around = Surroundings {
                    out_of_contact: is_lost(pod),
                    answered_before,
                    all_run_since: of_job
                        .iter()
                        .filter(|_| several)
                        .filter_map(|pod| running_since(&pod.object, TRAINER))
                        .max(),
                    lost_peer: of_job
                        .iter()
                        .filter(|pod| is_lost(pod))
                        .map(|pod| pod.index)
                        .find(|index| *index > 0),
                    held,
                };
                self.hear(view.number, pod.uid, look, now);
                let fault = |pod: &Pod| unhealthy_device(pod, TRAINER, GPU);
                let faulty = of_job.iter().find_map(|pod| Some((pod, fault(&pod.object)?)));
                let (of, suspected, by_gpu) = match faulty {
                    Some((of, device)) => {
                        let place = several.then_some(of.index);
                        let verdict = Verdict::gpu_fault(place, &device, self.watch.position(), at(now));
                        (of, Some(verdict), true)
                    }
                    None => (pod, self.watch.verdict(around, at(now)), false),
                };
                if suspected.is_some() {
                    if !cluster.api_up {
                        return None;
                    }
                    let live = cluster.pods.iter().find(|live| live.uid == of.uid);
                    let still = live.is_some_and(|live| {
                        let live = &live.object;
                        lives(live, TRAINER) && runs(live, TRAINER) && (!by_gpu || fault(live).is_some())
                    });
                    verdict = suspected.filter(|_| still);
                }
            }
        }
        let mut placement = None;
        if let Some(view) = attempts.last().filter(|view| view.state == AttemptState::Unscheduled) {
            let of_job = pods
                .iter()
                .filter(|(number, pod)| *number == view.number && lives(&pod.object, TRAINER));
            let since = of_job.filter_map(|(_, pod)| refused_since(&pod.object)).min();
            placement = since.map(|_| Problem {
                reason: reasons::INSUFFICIENT_GPU,
                message: String::new(),
            });
            verdict = since.and_then(|since| fallback::verdict(wishes, &attempts, since, at(now)));
            if verdict.is_some() {
                if !cluster.api_up {
                    return None;
                }
                let job = jobs.last().map_or(0, |job| job.uid);
                let live = || cluster.pods.iter().filter(|pod| pod.job == job).map(|pod| &pod.object);
                let waits = |pod: &Pod| lives(pod, TRAINER) && pod.spec.as_ref().is_some_and(|s| s.node_name.is_none());
                let still = live().any(waits) && !live().any(|pod| runs(pod, TRAINER));
                verdict = verdict.filter(|_| still);
                let works = cluster
                    .processes
                    .iter()
                    .any(|process| process.job == job && process.runs());
                if works && verdict.is_some() {
                    cluster.violated("an attempt of which a pod runs is given up for want of room");
                }
            }
        }
        let number = attempts.last().map_or(0, |latest| latest.number);
        let of_attempt = pods.iter().filter(|(of, _)| *of == number).map(|(_, pod)| &pod.object);
        if let Some((of, suspected)) = image::verdict(wishes, &attempts, of_attempt, TRAINER, at(now)) {
            if !cluster.api_up {
                return None;
            }
            let uid = pods
                .iter()
                .find(|(_, pod)| std::ptr::eq(&pod.object, of))
                .map(|(_, pod)| pod.uid);
            let live = cluster.pods.iter().find(|live| Some(live.uid) == uid);
            let still = live.is_some_and(|live| without_image_since(&live.object, TRAINER).is_some());
            verdict = Some(suspected).filter(|_| still);
        }
        Some(Observation {
            observed: Observed {
                told_attempt: told,
                told_counted: status.and_then(|status| status.counted),
                told_position: self
                    .position(told)
                    .or_else(|| status.and_then(|status| status.position)),
                remains,
                ended,
                reused: false,
                version_made: self.cache.version_of == Some(training.uid),
                version_taken: None,
                placement,
                verdict,
                attempts,
            },
            jobs,
            pods,
            progress,
        })
    }

    fn position(&self, attempt: u32) -> Option<Position> {
        let (_, position) = self.positions.iter().find(|(of, _)| *of == attempt)?;
        Some(*position)
    }

    fn hear(&mut self, attempt: u32, pod: Uid, look: Look, now: Second) {
        if self.watched != pod {
            (self.watched, self.watch) = (pod, Watch::default());
        }
        self.watch.add(look, at(now));
        if let Some(position) = self.watch.position() {
            self.positions.retain(|(of, _)| *of != attempt);
            self.positions.push((attempt, position));
            let surplus = self.positions.len().saturating_sub(POSITIONS);
            self.positions.drain(..surplus);
        }
    }

    fn scrape(&mut self, attempt: u32, pod: &PodObject, cluster: &Cluster) -> Look {
        let Some(node) = pod.node else {
            return Look::Unreachable;
        };
        let seen = &cluster.nodes[node];
        let process = cluster.processes.iter().find(|process| process.pod == pod.uid);
        let look = match process.filter(|_| seen.alive && seen.net) {
            None if seen.alive && seen.net => Look::Refused,
            None => Look::Unreachable,
            Some(process) => match &process.doing {
                Doing::Ended(..) => Look::Refused,
                Doing::Frozen { silent: true } => Look::Silent,
                _ => Look::Answered(Box::new(Progress {
                    schema_version: 1,
                    attempt,
                    phase: if process.began {
                        TrainerPhase::Training
                    } else {
                        TrainerPhase::Starting
                    },
                    phase_seconds: seconds(cluster.now - process.since),
                    step: process.step,
                    total_steps: 0,
                    epoch: 1,
                    total_epochs: 1,
                    loss: None,
                    learning_rate: None,
                    examples_per_second: None,
                    eta_seconds: None,
                    precision: None,
                    validation_accuracy: None,
                    heartbeat_seconds: Some(seconds(cluster.now - process.worked)),
                    median_pass_seconds: Some(1.0),
                    resumed_from_step: process.began.then_some(process.resumed),
                    checkpoint: CheckpointProgress {
                        step: process.began.then_some(process.checkpoint),
                        age_seconds: (process.checkpoint > process.resumed).then_some(1.0),
                        ..CheckpointProgress::default()
                    },
                    dataset: None,
                    grad_norm: None,
                    evaluations: Vec::new(),
                    tracking: TrackingProgress::default(),
                })),
            },
        };
        self.read(node, matches!(look, Look::Answered(_) | Look::Refused), cluster.now);
        look
    }

    fn apply(&mut self, training: &Training, observation: &Observation, decision: &Decision) {
        let job_of = |attempt: u32| observation.jobs.iter().find(|job| job.attempt == attempt);
        if let Some(ended) = &decision.record
            && let Some(job) = observation.jobs.last()
        {
            self.queue.push_back(Write::Record {
                job: job.uid,
                text: serde_json::to_string(ended).unwrap(),
            });
        }
        let write = match &decision.intent {
            Intent::StartAttempt {
                attempt,
                counted,
                class,
            } => Some(Write::StartAttempt {
                owner: training.uid,
                attempt: *attempt,
                counted: *counted,
                class: if class == CLASS { CLASS } else { FALLBACK },
            }),
            Intent::SetSuspend { attempt, suspend } => job_of(*attempt).map(|job| Write::Suspend {
                job: job.uid,
                suspend: *suspend,
            }),
            Intent::GiveUp { attempt, verdict } => job_of(*attempt).map(|job| Write::GiveUp {
                job: job.uid,
                text: serde_json::to_string(verdict).unwrap(),
            }),
            Intent::Complete(_) => Some(Write::Version { owner: training.uid }),
            Intent::Wait => None,
        };
        self.queue.extend(write);
        for number in &decision.stop {
            let of_attempt = observation.pods.iter().filter(|(of, _)| of == number);
            let living = of_attempt.filter(|(_, pod)| lives(&pod.object, TRAINER));
            self.queue
                .extend(living.map(|(_, pod)| Write::StopPod { pod: pod.uid }));
        }
        let removed = decision.remove.iter().filter_map(|number| job_of(*number));
        self.queue.extend(removed.map(|job| Write::RemoveJob {
            name: job.name,
            job: job.uid,
        }));
    }

    fn report(&mut self, training: &Training, observation: &Observation, decision: &Decision, now: Second) {
        let present = training.status.as_deref();
        let attempt = match decision.intent {
            Intent::StartAttempt { attempt, .. } => attempt,
            _ => observation.observed.highest_attempt(),
        };
        let kept = present.and_then(|status| status.position);
        let answered = present.is_some_and(|status| status.answered);
        let mut status = Status {
            attempt,
            counted: decision
                .counted
                .filter(|_| attempt > 0)
                .or(present.and_then(|status| status.counted)),
            phase: decision.phase,
            position: kept,
            answered,
            ended: match decision.phase {
                Phase::Complete => Some(Ended::Complete),
                Phase::Failed => Some(Ended::Failed {
                    reason: decision.reason.clone(),
                    message: decision.message.clone(),
                }),
                _ => None,
            },
        };
        match decision.phase {
            Phase::Pending | Phase::Restarting => (status.position, status.answered) = (None, false),
            Phase::Suspended => status.answered = false,
            _ => {}
        }
        let is_due = self.told_progress.is_none_or(|at| now - at >= PROGRESS_INTERVAL);
        if decision.phase == Phase::Running
            && let Some(position) = observation.progress
            && (Some(&status) != present || is_due || !answered)
        {
            (status.position, status.answered) = (Some(position), true);
            self.told_progress = Some(now);
        }
        if Some(&status) != present {
            self.queue.push_back(Write::Status {
                owner: training.uid,
                status,
            });
        }
    }

    // The service.

    /// Begins a pass over the service.
    pub fn begin_service(&mut self, cluster: &mut Cluster) {
        let now = cluster.now;
        let pods = self.cache.service.clone();
        for pod in pods.iter().filter(|pod| pod.asked.is_none()) {
            if let Some(node) = pod.node {
                let seen = &cluster.nodes[node];
                self.read(node, seen.alive && seen.net, now);
            }
        }
        let living: Vec<&ServicePod> = pods.iter().filter(|pod| pod.asked.is_none()).collect();
        let sights: Vec<PodSight> = living
            .iter()
            .map(|pod| {
                let node = pod.node.map(|node| node.to_string());
                let place = Place {
                    node_lost: pod.node.and_then(|node| self.lost(node, pod.out_of_contact, now)),
                    gpu_fault: pod.gpu_broken.then(|| "gpu-0".to_owned()),
                    crash_loops: false,
                };
                PodSight::of(&pod.view(), &pod.uid.to_string(), node.as_deref(), &place, at(now))
            })
            .collect();
        let leaving: Vec<Leaving> = pods
            .iter()
            .filter_map(|pod| {
                Some(Leaving {
                    uid: pod.uid.to_string(),
                    asked: at(pod.asked?),
                    how: "it was deleted".to_owned(),
                })
            })
            .collect();
        let held = self.is_held(cluster);
        let no_room_since = living.iter().filter_map(|pod| pod.no_room_since()).min().map(at);
        let plan = plan(
            &View {
                size: cluster.service.size,
                pods: &sights,
                mode: RecoveryMode::Enforce,
                held,
                exchanging: false,
                no_room_since,
                proven: self.ledger.proven(&sights),
                replaced: &self.replaced,
            },
            at(now),
        );
        let look = ServiceLook {
            size: cluster.service.size,
            pods: &sights,
            leaving: &leaving,
            exchanging: false,
            no_room: no_room_since.is_some(),
            plan: &plan,
        };
        self.ledger.look(&look, at(now));
        if held {
            cluster.counts.add("serving: held");
        }
        self.check_plan(&plan, &living, cluster);
        for replace in &plan.replace {
            if replace.cause == IncidentCause::CrashLoop {
                self.replaced.push(at(now));
            }
            let pod = replace.uid.parse().unwrap();
            self.queue.push_back(Write::ReplacePod { pod });
        }
        if plan.surge > 0 {
            cluster.counts.add("serving: one more pod is asked for");
        }
        if plan.surge != self.surge || cluster.service.replicas != cluster.service.size + plan.surge {
            self.queue.push_back(Write::Scale {
                replicas: cluster.service.size + plan.surge,
            });
            self.surge = plan.surge;
        }
    }

    /// None that answers goes, unless its node is lost by two signs, or its GPU broke and another one answers.
    fn check_plan(&self, plan: &Plan, living: &[&ServicePod], cluster: &mut Cluster) {
        for replace in &plan.replace {
            let Some(pod) = living.iter().find(|pod| pod.uid.to_string() == replace.uid) else {
                cluster.violated("a pod is to be deleted that is not there");
                continue;
            };
            cluster.counts.add(match replace.cause {
                IncidentCause::NodeLost => "serving: a pod of a lost node goes",
                IncidentCause::GpuFault => "serving: a pod with a broken GPU goes",
                IncidentCause::CrashLoop => "serving: a pod that ends again and again goes",
                IncidentCause::ImagePullFailed => "serving: a pod without its image goes",
                _ => "serving: a pod goes for another cause",
            });
            let goes = |uid: Uid| plan.replace.iter().any(|replace| replace.uid == uid.to_string());
            let another = living
                .iter()
                .any(|other| other.stage == Stage::Ready && !goes(other.uid));
            let answers = pod.stage == Stage::Ready;
            match replace.cause {
                IncidentCause::NodeLost => {
                    self.check_brake(cluster);
                    let node = pod.node.unwrap();
                    let read = cluster.nodes[node].alive && cluster.nodes[node].net;
                    let silent = self.leases[node].is_some_and(|(looked, renewed)| looked - renewed >= LEASE_SILENCE);
                    if read || !(silent || pod.out_of_contact || !self.cache.ready[node]) {
                        cluster.violated(format!(
                            "pod {} goes for its node, of which there is only one sign",
                            pod.uid
                        ));
                    }
                }
                IncidentCause::GpuFault if !answers || another => {}
                _ if !answers => {}
                cause => cluster.violated(format!("pod {} answers and goes for {cause:?}", pod.uid)),
            }
        }
    }
}

fn seconds(seconds: Second) -> f64 {
    f64::from(i32::try_from(seconds).unwrap())
}

/// How far a training is by what is written into the status of it.
fn written(progress: &Progress) -> Position {
    Position {
        step: progress.step,
        resumed_from_step: progress.resumed_from_step.unwrap_or(0),
        checkpoint_step: progress.checkpoint.step.unwrap_or(0),
        ..Position::default()
    }
}

fn count(decision: &Decision, observed: &Observed, cluster: &mut Cluster) {
    let counts = &mut cluster.counts;
    counts.add(match &decision.intent {
        Intent::StartAttempt { class, .. } if class == FALLBACK => "intent: StartAttempt in the fallback class",
        Intent::StartAttempt { .. } => "intent: StartAttempt",
        Intent::SetSuspend { suspend: true, .. } => "intent: SetSuspend true",
        Intent::SetSuspend { suspend: false, .. } => "intent: SetSuspend false",
        Intent::GiveUp { verdict, .. } => match verdict.cause {
            Cause::Hung => "intent: GiveUp Hung",
            Cause::NodeLost => "intent: GiveUp NodeLost",
            Cause::GpuFault => "intent: GiveUp GpuFault",
            Cause::NoImage { turn: 1, .. } => "intent: GiveUp NoImage",
            Cause::NoImage { .. } => "intent: GiveUp NoImage, later turn",
            Cause::NoRoom { turn: 1 } => "intent: GiveUp NoRoom",
            Cause::NoRoom { turn: 2 } => "intent: GiveUp NoRoom, second turn",
            Cause::NoRoom { .. } => "intent: GiveUp NoRoom, later turn",
        },
        Intent::Complete(_) => "intent: Complete",
        Intent::Wait => "intent: Wait",
    });
    if let Some(AttemptState::Ended(ended)) = observed.attempts.last().map(|attempt| &attempt.state) {
        counts.add(match &ended.end {
            End::Told(Outcome::Trained(_)) => "end: Trained",
            End::Told(Outcome::Failed(failure)) => match failure.reason.as_str() {
                "Fenced" => "end: Fenced",
                "PeerLost" => "end: PeerLost",
                "StorageUnavailable" => "end: StorageUnavailable",
                "InternalError" => "end: InternalError",
                "Interrupted" => "end: Interrupted",
                "OutOfMemory" => "end: OutOfMemory, told",
                _ => "end: a failure of the user's",
            },
            End::Told(_) => "end: Assisted",
            End::OutOfMemory => "end: OutOfMemory",
            End::Unclear { .. } => "end: Unclear",
            End::Lost { .. } => "end: Lost",
            End::Hung { .. } => "end: Hung",
            End::GpuFault { .. } => "end: GpuFault",
            End::NoImage { .. } => "end: NoImage",
            End::NoRoom { .. } => "end: NoRoom",
        });
    }
    if decision.phase == Phase::Failed {
        counts.add(match decision.reason.as_str() {
            "MaxRestartsExceeded" => "failed: MaxRestartsExceeded",
            "RepeatedFailure" => "failed: RepeatedFailure",
            "OutOfMemory" => "failed: OutOfMemory",
            _ => "failed: a failure of the user's",
        });
    }
}
