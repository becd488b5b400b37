//! The cluster of the model: what the API server holds, what its controllers and kubelets do about it, what really runs on
//! the nodes, and the store that checkpoints go to. What the API server tells may be older than what is.

use std::rc::Rc;
use std::time::Duration;

use flywheel_api::names::{ANNOTATION_ENDED, ANNOTATION_GIVEN_UP, LABEL_COMPLETION_INDEX, TRAINER};
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::scalar::{Digest, Uri};
use flywheel_contract::termination::{Outcome, Position, TerminationMessage, Trained};
use flywheel_contract::trainer::ArtifactRef;
use flywheel_policy::training::hang::{Cause, Verdict};
use flywheel_policy::training::{Ended, Phase, fallback, image};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Pod,
    PodCondition, PodSpec, PodStatus, ResourceHealth, ResourceStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::counts::Counts;
use crate::service::Service;

/// The extended resource of the model's GPUs.
pub const GPU: &str = "nvidia.com/gpu";
/// The accelerator class of the TrainingJob.
pub const CLASS: &str = "a100";
/// Its fallback, in clusters that have one.
pub const FALLBACK: &str = "t4";
/// GPUs of a node.
const GPUS: usize = 2;
/// Seconds that a pod has to end; the default of Kubernetes.
const GRACE: i64 = 30;
/// Steps of a training, of one second each: it ends within a schedule, and most faults meet it while it runs.
const TOTAL_STEPS: u64 = 60;
/// Steps between two checkpoints.
const CHECKPOINT_STEPS: u64 = 10;
/// Seconds that a trainer tries to reach its store: its client gives up after a minute.
const STORE_PATIENCE: i64 = 60;
/// Seconds after which a trainer ends that misses another one.
const PEER_PATIENCE: i64 = 10;
/// Seconds between two renewals of a node's lease.
const LEASE_RENEWAL: i64 = 10;
/// Seconds without a renewal after which the node controller calls a node not ready.
const NODE_GRACE: i64 = 40;
/// Seconds after which pods of such a node are told to end: what ours tolerate.
const TOLERATED: i64 = 15;
/// Seconds that a program takes to start.
const START_SECONDS: i64 = 3;

/// Identity of an object, as its uid.
pub type Uid = u64;
/// Seconds since the beginning of a schedule.
pub type Second = i64;

/// The mechanism that is taken out, to see that its loss is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Nothing is taken out.
    None,
    /// The store takes commits of whoever has lost HEAD.
    NoFence,
    /// Objects are deleted by their names alone.
    NoUid,
    /// Names of Jobs do not tell the attempt, so that none is there already.
    DoubleStart,
    /// What the cache does not show is taken for deleted, without asking the API server.
    StaleCache,
    /// However many nodes seem lost, their pods are ended.
    BrakeOff,
}

/// This second as a time.
pub fn at(second: Second) -> Timestamp {
    /// An arbitrary beginning.
    const BEGINNING: i64 = 1_700_000_000;
    Timestamp::from_second(BEGINNING + second).unwrap()
}

fn time(second: Second) -> Time {
    Time(at(second))
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// It has power.
    pub alive: bool,
    /// Its kubelet reaches the API server.
    pub api: bool,
    /// Its pods can be read by the operator.
    pub net: bool,
    /// Its pods reach the store, and each other.
    pub store: bool,
    /// The accelerator class that it is of.
    pub class: &'static str,
    /// GPUs.
    pub gpus: usize,
    /// Its GPUs are broken.
    pub gpu_broken: bool,
    /// When its lease was renewed last.
    pub renewed: Second,
    /// What the control plane says.
    pub ready: bool,
    /// Since when it says so.
    pub changed: Second,
}

impl Node {
    /// Nothing is wrong with it.
    pub fn is_well(&self) -> bool {
        self.alive && self.api && self.net && self.store && !self.gpu_broken
    }

    /// Neither the operator nor the control plane hears of it.
    pub fn is_lost(&self) -> bool {
        !self.alive || (!self.api && !self.net)
    }
}

/// What the status of the TrainingJob says.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub attempt: u32,
    pub counted: Option<u32>,
    pub phase: Phase,
    pub position: Option<Position>,
    /// A phase of its progress is told: the pod has answered.
    pub answered: bool,
    pub ended: Option<Ended>,
}

/// The TrainingJob.
#[derive(Clone, Debug)]
pub struct Training {
    pub uid: Uid,
    pub created: Second,
    pub suspend: bool,
    pub max_restarts: u32,
    /// Pods of an attempt.
    pub pods: u32,
    pub status: Option<Rc<Status>>,
    /// Counts the writes of its status.
    pub version: u64,
}

/// A Job as the API server has it.
#[derive(Clone)]
pub struct JobObject {
    pub uid: Uid,
    pub owner: Uid,
    /// Stands for the name: that of an attempt is its number.
    pub name: u64,
    pub attempt: u32,
    pub counted: u32,
    pub class: &'static str,
    pub created: Second,
    pub suspended: bool,
    pub pods: u32,
    started: Option<Second>,
    /// Successfully or not, and when.
    finished: Option<(bool, Second)>,
    /// Indices whose pod was made since it started.
    made: Vec<u32>,
    /// It was suspended while pods of it ran.
    was_suspended: bool,
    pub given_up: Option<String>,
    pub ended: Option<String>,
    pub object: Job,
}

/// What the API server knows of a container.
#[derive(Clone, Debug)]
enum Told {
    Waiting,
    Running(Second),
    Ended(Second, Exit),
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Exit {
    /// With this message; how far it was, where it is known.
    Told(Box<(Outcome, Option<Position>)>),
    /// The kernel killed it for memory.
    OutOfMemory,
    /// Without a word.
    Unclear,
}

/// A training pod as the API server has it.
#[derive(Clone)]
pub struct PodObject {
    pub uid: Uid,
    pub job: Uid,
    pub job_name: u64,
    pub owner: Uid,
    pub attempt: u32,
    pub index: u32,
    class: &'static str,
    pub node: Option<usize>,
    /// Since when the scheduler finds no node for it.
    pub refused: Option<Second>,
    pub created: Second,
    told: Told,
    /// When it was told to end at the latest to be gone.
    deadline: Option<Second>,
    /// What took it away, beside a deletion.
    disrupted: bool,
    out_of_contact: bool,
    gpu_broken: bool,
    /// Its image cannot be had, and since when its kubelet says so.
    no_image: bool,
    image_fails_since: Option<Second>,
    pub object: Pod,
}

impl PodObject {
    /// In short.
    pub fn words(&self) -> String {
        let told = match self.told {
            Told::Waiting => "waits",
            Told::Running(_) => "runs",
            Told::Ended(..) => "ended",
        };
        let node = self.node.map_or_else(|| "-".to_owned(), |node| node.to_string());
        let until = self
            .deadline
            .map_or_else(String::new, |deadline| format!(" until {deadline}"));
        format!("{}.{}@{node} {told}{until}", self.attempt, self.index)
    }

    fn is_over(&self) -> bool {
        matches!(self.told, Told::Ended(..))
    }

    fn exit(&self) -> Option<&Exit> {
        match &self.told {
            Told::Ended(_, exit) => Some(exit),
            _ => None,
        }
    }

    fn has_done_its_part(&self) -> bool {
        let is_good = |outcome: &Outcome| matches!(outcome, Outcome::Trained(_) | Outcome::Assisted);
        matches!(self.exit(), Some(Exit::Told(told)) if is_good(&told.0))
    }
}

/// What a trainer does.
#[derive(Clone, Debug, PartialEq)]
pub enum Doing {
    /// Libraries are loaded until then.
    Starting(Second),
    /// It trains, or waits for the others.
    Training,
    /// It stands still; whether it takes connections without an answer.
    Frozen { silent: bool },
    /// It ended.
    Ended(Second, Exit),
}

/// A trainer's process, on whose node it may run on when the API server has forgotten its pod.
#[derive(Clone, Debug)]
pub struct Process {
    pub pod: Uid,
    pub job: Uid,
    pub lineage: Uid,
    pub node: usize,
    pub attempt: u32,
    pub index: u32,
    pods: u32,
    pub doing: Doing,
    /// It has taken HEAD, or its index 0 has.
    pub began: bool,
    pub step: u64,
    pub resumed: u64,
    pub checkpoint: u64,
    head_attempt: u32,
    pub worked: Second,
    pub since: Second,
    /// It was told to end: when it is killed.
    kill_at: Option<Second>,
    storeless_since: Option<Second>,
    peerless_since: Option<Second>,
}

impl Process {
    fn position(&self) -> Option<Position> {
        (self.head_attempt > 0).then_some(Position {
            step: self.step,
            resumed_from_step: self.resumed,
            checkpoint_step: self.checkpoint,
            head_attempt: self.head_attempt,
        })
    }

    pub fn runs(&self) -> bool {
        !matches!(self.doing, Doing::Ended(..))
    }
}

/// HEAD of a lineage's checkpoints.
#[derive(Clone, Copy, Debug)]
struct Head {
    lineage: Uid,
    attempt: u32,
    writer: Uid,
    checkpoint: u64,
    result: bool,
}

/// What really happened to a lineage, whatever anybody believes.
#[derive(Clone, Debug)]
pub struct Truth {
    lineage: Uid,
    /// Attempts that failed in a way that may count.
    pub failed: Vec<u32>,
    /// It ended in a way that trying again does not mend.
    pub is_final: bool,
}

/// All of it.
pub struct Cluster {
    pub now: Second,
    pub bug: Bug,
    pub nodes: Vec<Node>,
    pub training: Training,
    pub jobs: Vec<Rc<JobObject>>,
    pub pods: Vec<Rc<PodObject>>,
    pub processes: Vec<Process>,
    heads: Vec<Head>,
    pub truths: Vec<Truth>,
    /// Whose result has become a ModelVersion.
    pub version_of: Option<Uid>,
    pub service: Service,
    /// The class has a fallback, of which there are nodes.
    pub fallback: bool,
    /// Others hold what is free of the class.
    pub held: bool,
    /// The next training pod cannot have its image.
    pub image_fails: bool,
    /// The API server answers the operator.
    pub api_up: bool,
    /// The first invariant that does not hold.
    pub broken: Option<String>,
    pub counts: Counts,
    next_uid: Uid,
}

/// A failure of the trainer with this reason.
pub fn failed(reason: FailureReason) -> Outcome {
    Outcome::Failed(Failure::new(reason, "words"))
}

fn trained() -> Outcome {
    Outcome::Trained(Trained {
        artifact: ArtifactRef {
            uri: Uri("s3://b/k".to_owned()),
            digest: Digest(String::new()),
        },
        dataset_digest: Digest(String::new()),
        metrics: Vec::new(),
        steps: TOTAL_STEPS,
        reused: false,
    })
}

impl Cluster {
    /// With a TrainingJob that was just applied, and a service that answers.
    pub fn new(bug: Bug, nodes: [usize; 2], pods: u32, max_restarts: u32, size: u32) -> Self {
        let node = |class| Node {
            class,
            alive: true,
            api: true,
            net: true,
            store: true,
            gpus: GPUS,
            gpu_broken: false,
            renewed: 0,
            ready: true,
            changed: 0,
        };
        let mut cluster = Self {
            now: 0,
            bug,
            nodes: [vec![node(CLASS); nodes[0]], vec![node(FALLBACK); nodes[1]]].concat(),
            training: Training {
                uid: 0,
                created: 0,
                suspend: false,
                max_restarts,
                pods,
                status: None,
                version: 0,
            },
            jobs: Vec::new(),
            pods: Vec::new(),
            processes: Vec::new(),
            heads: Vec::new(),
            truths: Vec::new(),
            version_of: None,
            service: Service::new(size),
            fallback: nodes[1] > 0,
            held: false,
            image_fails: false,
            api_up: true,
            broken: None,
            counts: Counts::default(),
            next_uid: 1,
        };
        cluster.recreate_training();
        cluster
    }

    /// A new uid.
    pub fn uid(&mut self) -> Uid {
        self.next_uid += 1;
        self.next_uid
    }

    /// An invariant does not hold.
    pub fn violated(&mut self, what: impl Into<String>) {
        if self.broken.is_none() {
            self.broken = Some(what.into());
        }
    }

    /// What really happened to the TrainingJob.
    pub fn truth(&mut self, lineage: Uid) -> &mut Truth {
        let place = self.truths.iter().position(|truth| truth.lineage == lineage);
        let place = place.unwrap_or_else(|| {
            self.truths.push(Truth {
                lineage,
                failed: Vec::new(),
                is_final: false,
            });
            self.truths.len() - 1
        });
        &mut self.truths[place]
    }

    /// The user deletes the TrainingJob and applies it again under its name.
    pub fn recreate_training(&mut self) {
        let uid = self.uid();
        self.training = Training {
            uid,
            created: self.now,
            suspend: false,
            status: None,
            version: self.training.version + 1,
            ..self.training
        };
        self.version_of = None;
    }

    // What clients ask of the API server.

    /// Makes the Job of an attempt, unless one has its name: whether it belongs to this TrainingJob then.
    pub fn create_job(&mut self, owner: Uid, attempt: u32, counted: u32, class: &'static str) -> bool {
        let name = match self.bug {
            Bug::DoubleStart => self.uid() + 1_000_000,
            _ => u64::from(attempt),
        };
        if let Some(present) = self.jobs.iter().find(|job| job.name == name) {
            self.counts.add("fault: the name of a new Job is taken");
            return present.owner == owner;
        }
        let of_attempt = |job: &&Rc<JobObject>| job.owner == owner && job.attempt == attempt;
        if self.jobs.iter().any(|job| of_attempt(&job)) {
            self.violated(format!("attempt {attempt} has two Jobs"));
        }
        let beside = self.jobs.iter().find(|job| job.owner == owner && !self.is_over(job));
        if let Some(beside) = beside.map(|job| job.attempt) {
            self.violated(format!("attempt {attempt} begins while attempt {beside} goes on"));
        }
        if owner == self.training.uid {
            let (max, failures) = (self.training.max_restarts, self.truth(owner).failed.len());
            if counted > max {
                self.violated(format!("restart {counted} of {max}"));
            }
            if usize::try_from(counted).unwrap() > failures {
                self.violated(format!("{counted} restarts count, and {failures} attempts failed"));
            }
        }
        let lives = |pod: &PodObject| !pod.is_over() && pod.deadline.is_none() && !pod.out_of_contact;
        let has_job = |pod: &PodObject| self.jobs.iter().any(|job| job.uid == pod.job && job.owner == owner);
        let mut others = self.pods.iter().filter(|pod| pod.class != class);
        if let Some(other) = others.find(|pod| lives(pod) && has_job(pod)).map(|pod| pod.words()) {
            self.violated(format!(
                "attempt {attempt} begins in the class {class} beside {other} of another class"
            ));
        }
        let uid = self.uid();
        let mut job = JobObject {
            uid,
            owner,
            name,
            attempt,
            counted,
            class,
            created: self.now,
            suspended: false,
            pods: self.training.pods,
            started: None,
            finished: None,
            made: Vec::new(),
            was_suspended: false,
            given_up: None,
            ended: None,
            object: Job::default(),
        };
        job.render();
        self.jobs.push(Rc::new(job));
        true
    }

    /// Whether nothing of this Job's attempt is to be waited for: it says so, or a pod of it has ended, is to end or is gone.
    /// One that was suspended may be followed where a late watch still shows its old pod, on a node that was lost.
    fn is_over(&self, job: &JobObject) -> bool {
        let ends = |pod: &PodObject| pod.is_over() || pod.deadline.is_some();
        let gone = |index: &u32| !self.pods.iter().any(|pod| pod.job == job.uid && pod.index == *index);
        job.given_up.is_some()
            || job.ended.is_some()
            || job.was_suspended
            || job.finished.is_some()
            || job.made.iter().any(gone)
            || self.pods.iter().any(|pod| pod.job == job.uid && ends(pod))
    }

    /// Changes a Job; whether it is there.
    pub fn change_job(&mut self, uid: Uid, change: impl FnOnce(&mut JobObject)) -> bool {
        let Some(job) = self.jobs.iter_mut().find(|job| job.uid == uid) else {
            return false;
        };
        let job = Rc::make_mut(job);
        change(job);
        job.render();
        true
    }

    fn change_pod(&mut self, uid: Uid, change: impl FnOnce(&mut PodObject)) {
        if let Some(pod) = self.pods.iter_mut().find(|pod| pod.uid == uid) {
            let pod = Rc::make_mut(pod);
            change(pod);
            pod.render();
        }
    }

    /// Tells a pod to end.
    pub fn delete_pod(&mut self, uid: Uid, disrupted: bool) {
        let deadline = self.now + GRACE;
        self.change_pod(uid, |pod| {
            pod.disrupted |= disrupted;
            pod.deadline = pod.deadline.or(Some(deadline));
        });
        // Where no kubelet has it yet, nothing is waited for.
        self.pods.retain(|pod| pod.uid != uid || pod.node.is_some());
    }

    /// The operator deletes a pod of an attempt that is over.
    pub fn stop_pod(&mut self, uid: Uid) {
        let Some(pod) = self.pods.iter().find(|pod| pod.uid == uid).cloned() else {
            return;
        };
        let job = self.jobs.iter().find(|job| job.uid == pod.job);
        let followed = self
            .jobs
            .iter()
            .any(|job| job.owner == pod.owner && job.attempt > pod.attempt);
        let complete = self.version_of == Some(pod.owner);
        if !followed && !complete && job.is_some_and(|job| !self.is_over(job)) {
            self.violated(format!(
                "a pod of attempt {} is deleted, and nothing is wrong with it",
                pod.attempt
            ));
        }
        self.delete_pod(uid, false);
    }

    /// Deletes the Job of this name where it has this uid; its pods follow.
    pub fn delete_job(&mut self, name: u64, uid: Uid) {
        let by_uid = self.bug != Bug::NoUid;
        let Some(place) = self
            .jobs
            .iter()
            .position(|job| job.name == name && (!by_uid || job.uid == uid))
        else {
            return;
        };
        let job = self.jobs.remove(place);
        if job.uid != uid {
            self.violated(format!(
                "a delete of the Job {uid} has hit the Job {} of its name",
                job.uid
            ));
        }
    }

    // What the control plane does.

    /// Marks nodes whose leases are old, and tells their pods to end when that has lasted.
    pub fn node_controller(&mut self) {
        let now = self.now;
        for index in 0..self.nodes.len() {
            let node = &mut self.nodes[index];
            let ready = now - node.renewed < NODE_GRACE;
            if ready != node.ready {
                (node.ready, node.changed) = (ready, now);
            }
            if node.ready {
                continue;
            }
            let evict = now - node.changed >= TOLERATED;
            let lost: Vec<Uid> = self
                .pods
                .iter()
                .filter(|pod| pod.node == Some(index) && !pod.is_over())
                .filter(|pod| !pod.out_of_contact || (evict && pod.deadline.is_none()))
                .map(|pod| pod.uid)
                .collect();
            for uid in lost {
                self.change_pod(uid, |pod| pod.out_of_contact = true);
                if evict {
                    self.delete_pod(uid, true);
                }
            }
            self.service.node_lost(index, evict, now);
        }
    }

    /// Deletes what has no owner.
    pub fn garbage_collector(&mut self) {
        let owner = self.training.uid;
        self.jobs.retain(|job| job.owner == owner);
        let orphans: Vec<Uid> = self
            .pods
            .iter()
            .filter(|pod| pod.deadline.is_none() && !self.jobs.iter().any(|job| job.uid == pod.job))
            .map(|pod| pod.uid)
            .collect();
        for uid in orphans {
            self.delete_pod(uid, false);
        }
        // What has ended is held by nothing.
        let jobs = &self.jobs;
        self.pods
            .retain(|pod| !pod.is_over() || jobs.iter().any(|job| job.uid == pod.job));
    }

    /// Makes pods, ends them, and says how Jobs ended.
    pub fn job_controller(&mut self) {
        for place in 0..self.jobs.len() {
            let job = Rc::clone(&self.jobs[place]);
            let now = self.now;
            let of_job = |pod: &&Rc<PodObject>| pod.job == job.uid;
            let active: Vec<Uid> = self
                .pods
                .iter()
                .filter(of_job)
                .filter(|pod| !pod.is_over() && pod.deadline.is_none())
                .map(|pod| pod.uid)
                .collect();
            if job.finished.is_some() {
                continue;
            }
            if job.suspended {
                if job.started.is_some() {
                    self.change_job(job.uid, |job| {
                        job.started = None;
                        job.was_suspended = true;
                        job.made.clear();
                    });
                }
                active.into_iter().for_each(|uid| self.delete_pod(uid, false));
                continue;
            }
            let Some(started) = job.started else {
                self.change_job(job.uid, |job| job.started = Some(now));
                continue;
            };
            let of_run: Vec<&Rc<PodObject>> = self
                .pods
                .iter()
                .filter(of_job)
                .filter(|pod| pod.created >= started)
                .collect();
            let failed = of_run.iter().any(|pod| pod.is_over() && !pod.has_done_its_part())
                || job
                    .made
                    .iter()
                    .any(|index| !of_run.iter().any(|pod| pod.index == *index));
            let done = job.made.len() == usize::try_from(job.pods).unwrap()
                && of_run.iter().all(|pod| pod.has_done_its_part());
            if failed || done {
                self.change_job(job.uid, |job| job.finished = Some((done, now)));
                active.into_iter().for_each(|uid| self.delete_pod(uid, false));
                continue;
            }
            for index in 0..job.pods {
                if job.made.contains(&index) {
                    continue;
                }
                // One from before a suspension is waited for.
                let mut present = self.pods.iter().filter(of_job);
                if present.any(|pod| pod.index == index && !pod.is_over()) {
                    continue;
                }
                let uid = self.uid();
                let mut pod = PodObject {
                    uid,
                    job: job.uid,
                    job_name: job.name,
                    owner: job.owner,
                    attempt: job.attempt,
                    index,
                    class: job.class,
                    node: None,
                    refused: None,
                    created: now,
                    told: Told::Waiting,
                    deadline: None,
                    disrupted: false,
                    out_of_contact: false,
                    gpu_broken: false,
                    no_image: std::mem::take(&mut self.image_fails),
                    image_fails_since: None,
                    object: Pod::default(),
                };
                pod.render();
                self.pods.push(Rc::new(pod));
                self.change_job(job.uid, |job| job.made.push(index));
            }
        }
    }

    /// GPUs of a node that no pod holds, as the scheduler sees it. It knows of lost nodes at once: a training pod that waits on
    /// one for its kubelet is not seen by the policy, and stays until the control plane evicts it.
    pub fn free(&self, node: usize) -> usize {
        let seen = &self.nodes[node];
        if !seen.ready || seen.gpu_broken || seen.is_lost() || (self.held && seen.class == CLASS) {
            return 0;
        }
        let held = self
            .pods
            .iter()
            .filter(|pod| pod.node == Some(node) && !pod.is_over())
            .count();
        seen.gpus.saturating_sub(held + self.service.on(node))
    }

    /// Whether a pod that no kubelet has seen is on this node; see [`Cluster::free`].
    pub fn is_waited_for(&self, node: usize) -> bool {
        let mut pods = self.pods.iter();
        pods.any(|pod| pod.node == Some(node) && matches!(pod.told, Told::Waiting))
    }

    /// Gives pods a node.
    pub fn scheduler(&mut self) {
        let now = self.now;
        let waiting: Vec<(Uid, &'static str, bool)> = self
            .pods
            .iter()
            .filter(|pod| pod.node.is_none())
            .map(|pod| (pod.uid, pod.class, pod.refused.is_none()))
            .collect();
        for (uid, class, first) in waiting {
            let mut of_class = (0..self.nodes.len()).filter(|node| self.nodes[*node].class == class);
            match of_class.find(|node| self.free(*node) > 0) {
                Some(node) => self.change_pod(uid, |pod| pod.node = Some(node)),
                None if first => self.change_pod(uid, |pod| pod.refused = Some(now)),
                None => {}
            }
        }
        while let Some(node) = (0..self.nodes.len()).rev().find(|node| self.free(*node) > 0) {
            if !self.service.place(node) {
                break;
            }
        }
        self.service.no_room(self.now);
    }

    /// The kubelet of a node looks at its pods, if it can.
    pub fn kubelet(&mut self, node: usize) {
        let now = self.now;
        if !self.nodes[node].alive || !self.nodes[node].api {
            return;
        }
        self.nodes[node].renewed = now;
        let gpu_broken = self.nodes[node].gpu_broken;
        for place in (0..self.pods.len()).rev() {
            let pod = Rc::clone(&self.pods[place]);
            if pod.node != Some(node) {
                continue;
            }
            let process = self.processes.iter_mut().find(|process| process.pod == pod.uid);
            match (process, &pod.told) {
                (None, Told::Waiting) if pod.deadline.is_some() => {
                    self.pods.remove(place);
                }
                (None, Told::Waiting) if pod.no_image => {
                    self.change_pod(pod.uid, |pod| {
                        pod.image_fails_since.get_or_insert(now);
                    });
                }
                (None, Told::Waiting) => {
                    self.processes.push(Process::of(&pod, node, self.training.pods, now));
                    self.change_pod(pod.uid, |pod| {
                        pod.told = Told::Running(now);
                        pod.gpu_broken = gpu_broken;
                    });
                }
                (Some(process), Told::Running(_)) => {
                    if let (Some(deadline), None) = (pod.deadline, process.kill_at) {
                        process.kill_at = Some(deadline.max(now));
                    }
                    let ended = match &process.doing {
                        Doing::Ended(at, exit) => Some(Told::Ended(*at, exit.clone())),
                        _ => None,
                    };
                    if ended.is_some() || pod.out_of_contact || pod.gpu_broken != gpu_broken {
                        self.change_pod(pod.uid, |pod| {
                            pod.out_of_contact = false;
                            pod.gpu_broken = gpu_broken;
                            pod.told = ended.unwrap_or_else(|| pod.told.clone());
                        });
                    }
                }
                // The API server has heard how it ended.
                (_, Told::Ended(..)) if pod.deadline.is_some() => {
                    self.pods.remove(place);
                }
                _ => {}
            }
        }
        // Of pods that were removed by force nothing is left when the kubelet hears of it.
        let pods = &self.pods;
        self.processes
            .retain(|process| process.node != node || pods.iter().any(|pod| pod.uid == process.pod));
        self.service.kubelet(node, &self.nodes[node], now);
    }

    // What runs.

    /// A second passes: kubelets renew their leases.
    pub fn pass_second(&mut self) {
        self.now += 1;
        let now = self.now;
        let kubelets = self.nodes.iter_mut().filter(|node| node.alive && node.api);
        for node in kubelets.filter(|node| now - node.renewed >= LEASE_RENEWAL) {
            node.renewed = now;
        }
    }

    /// Programs go on for these seconds, which have passed.
    pub fn run_programs(&mut self, seconds: i64) {
        let now = self.now;
        for place in 0..self.processes.len() {
            if self.processes[place].runs() && self.nodes[self.processes[place].node].alive {
                self.go_on(place, u64::try_from(seconds).unwrap());
            }
        }
        self.service.go_on(&self.nodes, now);
    }

    /// A trainer ends.
    pub fn end(&mut self, place: usize, exit: Exit) {
        let now = self.now;
        let process = &mut self.processes[place];
        let (lineage, attempt) = (process.lineage, process.attempt);
        process.doing = Doing::Ended(now, exit.clone());
        let (counts, is_final) = match &exit {
            Exit::Told(told) => match &told.0 {
                Outcome::Failed(failure) => match (failure.reason.class(), failure.reason) {
                    (flywheel_contract::failure::FailureClass::Infrastructure, FailureReason::Fenced) => (false, false),
                    (flywheel_contract::failure::FailureClass::Infrastructure, _) => (true, false),
                    _ => (false, true),
                },
                _ => (false, false),
            },
            Exit::OutOfMemory => (false, true),
            Exit::Unclear => (true, false),
        };
        let truth = self.truth(lineage);
        truth.is_final |= is_final;
        if counts && !truth.failed.contains(&attempt) {
            truth.failed.push(attempt);
        }
    }

    /// A trainer ends with these words.
    pub fn end_with(&mut self, place: usize, outcome: Outcome) {
        let position = self.processes[place].position();
        self.end(place, Exit::Told(Box::new((outcome, position))));
    }

    fn head(&mut self, lineage: Uid) -> &mut Head {
        let place = self.heads.iter().position(|head| head.lineage == lineage);
        let place = place.unwrap_or_else(|| {
            self.heads.push(Head {
                lineage,
                attempt: 0,
                writer: 0,
                checkpoint: 0,
                result: false,
            });
            self.heads.len() - 1
        });
        &mut self.heads[place]
    }

    /// Whether the result of this lineage is in the store.
    pub fn has_result(&self, lineage: Uid) -> bool {
        self.heads.iter().any(|head| head.lineage == lineage && head.result)
    }

    /// A trainer makes HEAD its own, unless a later attempt has it.
    fn take(&mut self, place: usize) -> bool {
        let Process {
            lineage, attempt, pod, ..
        } = self.processes[place];
        let fence = self.bug != Bug::NoFence;
        let head = self.head(lineage);
        if head.attempt > attempt && fence {
            return false;
        }
        head.attempt = head.attempt.max(attempt);
        head.writer = pod;
        true
    }

    /// A trainer commits a checkpoint, or its result; not where it has lost HEAD.
    fn commit(&mut self, place: usize, result: bool) -> bool {
        let Process {
            lineage,
            attempt,
            pod,
            step,
            ..
        } = self.processes[place];
        let fence = self.bug != Bug::NoFence;
        let head = self.head(lineage);
        let holder = head.attempt;
        if head.writer != pod {
            if fence {
                self.counts.add("store: a commit is refused");
                return false;
            }
            self.violated(format!(
                "attempt {attempt} commits a checkpoint after attempt {holder} took HEAD"
            ));
            return true;
        }
        head.checkpoint = step;
        head.result |= result;
        self.counts.add("store: a commit is taken");
        true
    }

    fn fenced(&mut self, place: usize) {
        self.counts.add("store: a trainer finds itself replaced");
        let lineage = self.processes[place].lineage;
        let (attempt, checkpoint) = (self.head(lineage).attempt, self.head(lineage).checkpoint);
        let process = &mut self.processes[place];
        (process.head_attempt, process.checkpoint) = (attempt, checkpoint);
        self.end_with(place, failed(FailureReason::Fenced));
    }

    fn go_on(&mut self, place: usize, seconds: u64) {
        let now = self.now;
        let process = self.processes[place].clone();
        let store = self.nodes[process.node].store;
        if let Some(kill_at) = process.kill_at {
            match process.doing {
                Doing::Starting(_) | Doing::Training => {
                    if process.began && process.index == 0 && store {
                        if !self.commit(place, false) {
                            return self.fenced(place);
                        }
                        self.processes[place].checkpoint = process.step;
                    }
                    // What told it to end is what counts.
                    let position = self.processes[place].position();
                    let told = Box::new((failed(FailureReason::Interrupted), position));
                    self.processes[place].doing = Doing::Ended(now, Exit::Told(told));
                }
                _ if now >= kill_at => self.processes[place].doing = Doing::Ended(now, Exit::Unclear),
                _ => {}
            }
            return;
        }
        match process.doing {
            Doing::Starting(until) if now >= until => {
                let process = &mut self.processes[place];
                process.doing = Doing::Training;
                (process.worked, process.since) = (now, now);
            }
            Doing::Training => {}
            _ => return,
        }
        self.processes[place].storeless_since = if store {
            None
        } else {
            process.storeless_since.or(Some(now))
        };
        if !store {
            // Only what is to be saved waits; its store's client gives up before that looks like a hang.
            self.processes[place].worked = now;
            if process
                .storeless_since
                .is_some_and(|since| now - since >= STORE_PATIENCE)
            {
                self.end_with(place, failed(FailureReason::StorageUnavailable));
            }
            return;
        }
        let peers = self
            .processes
            .iter()
            .filter(|peer| peer.job == process.job && peer.pod != process.pod);
        let meets = |peer: &Process| {
            let node = &self.nodes[peer.node];
            peer.doing == Doing::Training && node.alive && node.store
        };
        let met = peers.filter(|peer| meets(peer)).count() + 1 >= usize::try_from(process.pods).unwrap();
        if !met {
            let since = process.peerless_since.unwrap_or(now);
            self.processes[place].peerless_since = process.began.then_some(since);
            if process.began && now - since >= PEER_PATIENCE {
                self.end_with(place, failed(FailureReason::PeerLost));
            }
            return;
        }
        self.processes[place].peerless_since = None;
        if process.index > 0 {
            let first = self
                .processes
                .iter()
                .find(|first| first.job == process.job && first.index == 0);
            let (step, began) = first.map_or((0, false), |first| (first.step, first.began));
            let head = self.head(process.lineage).attempt;
            let process = &mut self.processes[place];
            (process.step, process.began, process.head_attempt) = (step, began, if began { head } else { 0 });
            process.worked = now;
            return;
        }
        if !process.began {
            if !self.take(place) {
                return self.fenced(place);
            }
            let head = *self.head(process.lineage);
            let process = &mut self.processes[place];
            process.began = true;
            (process.step, process.resumed, process.checkpoint) = (head.checkpoint, head.checkpoint, head.checkpoint);
            process.head_attempt = head.attempt;
            process.worked = now;
            if head.result {
                self.finish(place);
            }
            return;
        }
        let process = &mut self.processes[place];
        process.step = (process.step + seconds).min(TOTAL_STEPS);
        process.worked = now;
        let (step, checkpoint) = (process.step, process.checkpoint);
        if step == TOTAL_STEPS {
            if !self.commit(place, true) {
                return self.fenced(place);
            }
            self.processes[place].checkpoint = step;
            self.finish(place);
        } else if step >= checkpoint + CHECKPOINT_STEPS {
            if !self.commit(place, false) {
                return self.fenced(place);
            }
            self.processes[place].checkpoint = step;
        }
    }

    /// The training is complete: index 0 tells the result, the others that they took part.
    fn finish(&mut self, place: usize) {
        let job = self.processes[place].job;
        for other in 0..self.processes.len() {
            let process = &self.processes[other];
            if other != place && process.job == job && process.doing == Doing::Training {
                self.end_with(other, Outcome::Assisted);
            }
        }
        self.end_with(place, trained());
    }

    /// A node loses its power; what ran on it is gone.
    pub fn crash(&mut self, node: usize) {
        self.nodes[node].alive = false;
        for place in 0..self.processes.len() {
            if self.processes[place].node == node && self.processes[place].runs() {
                // When the node is back its kubelet says of each container that it ended, and nothing of why.
                self.end(place, Exit::Unclear);
            }
        }
        self.service.crash(node);
    }

    /// How much longer than a first attempt the newest one waits for room or for its image, by how those before it ended.
    pub fn turn(&self) -> Duration {
        let mut jobs: Vec<&Rc<JobObject>> = self.jobs.iter().filter(|job| job.owner == self.training.uid).collect();
        jobs.sort_by_key(|job| job.attempt);
        let text = jobs.iter().rev().nth(1).and_then(|job| job.given_up.as_deref());
        let verdict: Option<Verdict> = text.map(|text| serde_json::from_str(text).unwrap());
        let turn = match verdict.map(|verdict| verdict.cause) {
            Some(Cause::NoRoom { turn } | Cause::NoImage { turn, .. }) => turn,
            _ => 0,
        };
        let without_room = fallback::patience(turn).saturating_mul(u32::from(self.fallback));
        let without_image = image::patience(turn).saturating_mul(turn.min(1));
        without_room.max(without_image)
    }

    /// Some pods of an attempt have a node, and others none.
    pub fn is_partly_placed(&self) -> bool {
        self.jobs.iter().any(|job| {
            let of_job = || self.pods.iter().filter(|pod| pod.job == job.uid);
            of_job().any(|pod| pod.node.is_some()) && of_job().any(|pod| pod.node.is_none())
        })
    }

    /// The pods of the newest attempt really train, or the result is there.
    pub fn trains(&self) -> bool {
        let ended = self.training.status.as_ref().and_then(|status| status.ended.as_ref());
        let Some(newest) = self.jobs.iter().max_by_key(|job| job.attempt) else {
            return ended.is_some();
        };
        let working = |process: &&Process| {
            process.job == newest.uid
                && process.began
                && process.doing == Doing::Training
                && self.nodes[process.node].alive
        };
        let count = self.processes.iter().filter(working).count();
        ended.is_some() || count == usize::try_from(newest.pods).unwrap()
    }
}

impl Process {
    fn of(pod: &PodObject, node: usize, pods: u32, now: Second) -> Self {
        Self {
            pod: pod.uid,
            job: pod.job,
            lineage: pod.owner,
            node,
            attempt: pod.attempt,
            index: pod.index,
            pods,
            doing: Doing::Starting(now + START_SECONDS),
            began: false,
            step: 0,
            resumed: 0,
            checkpoint: 0,
            head_attempt: 0,
            worked: now,
            since: now,
            kill_at: None,
            storeless_since: None,
            peerless_since: None,
        }
    }
}

impl JobObject {
    /// The object, as its fields say.
    fn render(&mut self) {
        let mut annotations = std::collections::BTreeMap::new();
        for (key, value) in [(ANNOTATION_GIVEN_UP, &self.given_up), (ANNOTATION_ENDED, &self.ended)] {
            if let Some(value) = value {
                annotations.insert(key.to_owned(), value.clone());
            }
        }
        self.object.metadata = ObjectMeta {
            annotations: Some(annotations),
            creation_timestamp: Some(time(self.created)),
            ..ObjectMeta::default()
        };
        let spec = self.object.spec.get_or_insert_with(JobSpec::default);
        spec.suspend = Some(self.suspended);
        spec.completions = Some(i32::try_from(self.pods).unwrap());
        let condition = self.finished.map(|(good, at)| JobCondition {
            type_: if good { "Complete" } else { "Failed" }.to_owned(),
            status: "True".to_owned(),
            last_transition_time: Some(time(at)),
            ..JobCondition::default()
        });
        self.object.status = Some(JobStatus {
            start_time: self.started.map(time),
            conditions: condition.map(|condition| vec![condition]),
            ..JobStatus::default()
        });
    }
}

fn condition(kind: &str, is: bool) -> PodCondition {
    PodCondition {
        type_: kind.to_owned(),
        status: if is { "True" } else { "False" }.to_owned(),
        ..PodCondition::default()
    }
}

impl PodObject {
    /// The object, as its fields say.
    fn render(&mut self) {
        self.object.metadata = ObjectMeta {
            labels: Some([(LABEL_COMPLETION_INDEX.to_owned(), self.index.to_string())].into()),
            creation_timestamp: Some(time(self.created)),
            deletion_timestamp: self.deadline.map(time),
            deletion_grace_period_seconds: self.deadline.map(|_| GRACE),
            ..ObjectMeta::default()
        };
        let spec = self.object.spec.get_or_insert_with(PodSpec::default);
        spec.node_name = self.node.map(|node| node.to_string());
        let (phase, state) = match &self.told {
            Told::Waiting => (
                "Pending",
                ContainerState {
                    waiting: Some(ContainerStateWaiting {
                        reason: self.image_fails_since.map(|_| "ImagePullBackOff".to_owned()),
                        ..ContainerStateWaiting::default()
                    }),
                    ..ContainerState::default()
                },
            ),
            Told::Running(since) => (
                "Running",
                ContainerState {
                    running: Some(ContainerStateRunning {
                        started_at: Some(time(*since)),
                    }),
                    ..ContainerState::default()
                },
            ),
            Told::Ended(at, exit) => {
                let message = match exit {
                    Exit::Told(told) => Some(
                        TerminationMessage {
                            position: told.1,
                            ..TerminationMessage::new(told.0.clone())
                        }
                        .to_json(),
                    ),
                    _ => None,
                };
                (
                    if self.has_done_its_part() {
                        "Succeeded"
                    } else {
                        "Failed"
                    },
                    ContainerState {
                        terminated: Some(ContainerStateTerminated {
                            exit_code: i32::from(!self.has_done_its_part()),
                            finished_at: Some(time(*at)),
                            reason: (*exit == Exit::OutOfMemory).then(|| "OOMKilled".to_owned()),
                            message,
                            ..ContainerStateTerminated::default()
                        }),
                        ..ContainerState::default()
                    },
                )
            }
        };
        let runs = matches!(self.told, Told::Running(_));
        let mut conditions = vec![
            condition("ContainersReady", runs),
            condition("Ready", runs && !self.out_of_contact),
        ];
        if let Some(since) = self.refused.filter(|_| self.node.is_none()) {
            conditions.push(PodCondition {
                last_transition_time: Some(time(since)),
                ..condition("PodScheduled", false)
            });
        }
        if let Some(since) = self.image_fails_since {
            conditions.push(PodCondition {
                last_transition_time: Some(time(since)),
                ..condition("PodReadyToStartContainers", true)
            });
        }
        if self.disrupted {
            conditions.push(condition("DisruptionTarget", true));
        }
        self.object.status = Some(PodStatus {
            phase: Some(phase.to_owned()),
            conditions: Some(conditions),
            container_statuses: self.node.map(|_| {
                vec![ContainerStatus {
                    name: TRAINER.to_owned(),
                    state: Some(state),
                    allocated_resources_status: self.gpu_broken.then(|| {
                        vec![ResourceStatus {
                            name: GPU.to_owned(),
                            resources: Some(vec![ResourceHealth {
                                health: Some("Unhealthy".to_owned()),
                                resource_id: "gpu-0".to_owned(),
                            }]),
                        }]
                    }),
                    ..ContainerStatus::default()
                }]
            }),
            ..PodStatus::default()
        });
    }
}
