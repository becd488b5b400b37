//! One schedule: events drawn by a seed, with the invariants checked after each; then the faults stop, and what is left to be
//! recovered must be so within the deadline, and the job must come to its end.

use std::fmt;

use flywheel_api::conditions::reasons;
use flywheel_contract::failure::FailureReason;
use flywheel_policy::training::Ended;

use crate::cluster::{Bug, CLASS, Cluster, Doing, Exit, FALLBACK, Uid, failed};
use crate::counts::Counts;
use crate::operator::{Answer, KINDS, Leader, Write};
use crate::random::Random;

/// Events before the faults stop: at least, and at most.
const EVENTS: (i64, i64) = (50, 90);
/// Nodes at least: with room for all pods and one more.
const NODES_MIN: usize = 4;
/// Numbers of nodes that are drawn from; the larger ones hold the brake off.
const NODES_MORE: usize = 7;
/// How many of a hundred clusters have a class that the TrainingJob may fall back to, and in how many of those the class has
/// no room from the beginning.
const FALLBACK_PERCENT: (usize, usize) = (20, 70);
/// How often of a hundred events a delete arrives that is on its way: some are outlived by what they were meant for.
const LATE_PERCENT: usize = 5;
/// Seconds within which a recovery must be over where there is room: the deadline that a spec has by default.
const DEADLINE: i64 = 300;
/// Seconds within which a job comes to its end when everything is well: its steps, and a few waits before a restart.
const END_WITHIN: i64 = 600;
/// Seconds of one round.
const ROUND: i64 = 5;
/// Pods of a service that end for ever in one schedule; beyond as many within ten minutes none is replaced.
const CRASHES_MAX: usize = 3;

/// What must have happened in a run of all schedules.
pub const MUST_HAPPEN: &[&str] = &[
    "act: record",
    "act: remove a Job",
    "act: stop a pod",
    "end: GpuFault",
    "end: Hung",
    "end: InternalError",
    "end: Lost",
    "end: NoImage",
    "end: NoRoom",
    "end: OutOfMemory",
    "end: PeerLost",
    "end: Trained",
    "end: Unclear",
    "end: a failure of the user's",
    "failed: MaxRestartsExceeded",
    "failed: OutOfMemory",
    "failed: RepeatedFailure",
    "failed: a failure of the user's",
    "fault: a GPU breaks",
    "fault: a Job is deleted",
    "fault: a delete arrives late",
    "fault: a node crashes",
    "fault: a node is cut off from everything",
    "fault: a node is cut off from the API server",
    "fault: a node is cut off from the operator",
    "fault: a node is cut off, but not from the store",
    "fault: a node is healed",
    "fault: a pod is deleted",
    "fault: a pod is deleted by force",
    "fault: a pod is evicted",
    "fault: a server cannot have its image",
    "fault: a trainer cannot have its image",
    "fault: a server ends",
    "fault: a server ends again and again",
    "fault: a switch fails",
    "fault: a trainer ends",
    "fault: a trainer stands still",
    "fault: a write is refused",
    "fault: others hold the class, or let it go",
    "fault: the API server does not answer",
    "fault: the TrainingJob is recreated",
    "fault: the answer to a write is lost",
    "fault: the leader is killed",
    "fault: the leader is killed between two writes",
    "fault: the name of a new Job is taken",
    "intent: Complete",
    "intent: GiveUp GpuFault",
    "fallback: the job trains there",
    "intent: GiveUp Hung",
    "intent: GiveUp NoImage",
    "intent: GiveUp NoImage, later turn",
    "intent: GiveUp NoRoom",
    "intent: GiveUp NoRoom, second turn",
    "intent: GiveUp NodeLost",
    "intent: SetSuspend false",
    "intent: SetSuspend true",
    "intent: StartAttempt",
    "intent: StartAttempt in the fallback class",
    "intent: Wait",
    "serving: a pod of a lost node goes",
    "serving: a pod that ends again and again goes",
    "serving: a pod with a broken GPU goes",
    "serving: a pod without its image goes",
    "serving: held",
    "serving: one more pod is asked for",
    "store: a commit is refused",
    "store: a commit is taken",
    "store: a trainer finds itself replaced",
];

/// An invariant that did not hold.
#[derive(Debug)]
pub struct Failure {
    /// Of which schedule.
    pub seed: u64,
    /// After which event.
    event: u64,
    /// What.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, event, what } = self;
        write!(
            f,
            "event {event} of schedule {seed}: {what}. SCHEDULE_SEED={seed} plays it again"
        )
    }
}

struct Schedule {
    random: Random,
    cluster: Cluster,
    leader: Option<Leader>,
    crashes: usize,
    /// A delete of a leader that died, on its way.
    late: Option<Write>,
}

/// Runs the schedule of this seed: what happened, how many events it had, and the first invariant that did not hold.
pub fn run(bug: Bug, seed: u64, tell: bool) -> (Counts, u64, Option<Failure>) {
    let mut random = Random::new(seed);
    let nodes = NODES_MIN + random.below(NODES_MORE);
    let pods = if random.percent(25) { 2 } else { 1 };
    let max_restarts = u32::try_from(random.below(4)).unwrap();
    let size = 1 + u32::try_from(random.below(3)).unwrap();
    let length = u64::try_from(random.within(EVENTS.0, EVENTS.1)).unwrap();
    let others = if random.percent(FALLBACK_PERCENT.0) {
        NODES_MIN
    } else {
        0
    };
    let mut cluster = Cluster::new(bug, [nodes, others], pods, max_restarts, size);
    cluster.held = cluster.fallback && random.percent(FALLBACK_PERCENT.1);
    let leader = Some(Leader::new(&cluster));
    let mut schedule = Schedule {
        random,
        cluster,
        leader,
        crashes: 0,
        late: None,
    };
    if tell {
        println!(
            "{nodes} nodes, {others} of another class, {pods} pods for an attempt, {max_restarts} restarts, {size} servers, {length} events"
        );
    }
    let mut event = 0;
    while event < length && schedule.cluster.broken.is_none() {
        event += 1;
        let what = schedule.happen();
        if tell {
            println!(
                "{event:>4} {:>5} s  {what:<56} {}",
                schedule.cluster.now,
                schedule.words()
            );
        }
    }
    if schedule.cluster.broken.is_none() {
        event += schedule.recover(tell);
    }
    let what = schedule.cluster.broken.take();
    let failure = what.map(|what| Failure { seed, event, what });
    (schedule.cluster.counts, event, failure)
}

impl Schedule {
    /// Where things stand, in short.
    fn words(&self) -> String {
        let cluster = &self.cluster;
        let attempts: Vec<String> = cluster
            .processes
            .iter()
            .map(|process| {
                let doing = match &process.doing {
                    Doing::Ended(_, exit) => format!("{exit:?}"),
                    doing => format!("{doing:?}"),
                };
                let doing: String = doing.chars().take(40).collect();
                format!(
                    "{}.{}@{} step {} {doing}",
                    process.attempt, process.index, process.node, process.step
                )
            })
            .collect();
        let status = cluster.training.status.as_ref();
        let told = status.map_or_else(String::new, |status| {
            format!("{:?} {} counted {:?}", status.phase, status.attempt, status.counted)
        });
        let jobs: Vec<u32> = cluster.jobs.iter().map(|job| job.attempt).collect();
        let pods: Vec<String> = cluster.pods.iter().map(|pod| pod.words()).collect();
        let ill = (0..cluster.nodes.len()).filter(|node| !cluster.nodes[*node].is_well());
        format!(
            "[{told}] Jobs {jobs:?} pods {} processes {} ill {:?} answering {}",
            pods.join("; "),
            attempts.join("; "),
            ill.collect::<Vec<_>>(),
            cluster.service.answering(&cluster.nodes)
        )
    }

    fn node(&mut self) -> usize {
        self.random.below(self.cluster.nodes.len())
    }

    /// Time passes, with what never rests.
    fn pass_time(&mut self, seconds: i64) {
        for _ in 0..seconds {
            self.cluster.pass_second();
            if let Some(leader) = &mut self.leader {
                leader.look_at_leases(&self.cluster);
            }
        }
        self.cluster.run_programs(seconds);
        self.cluster.node_controller();
    }

    fn controllers(&mut self) {
        self.cluster.garbage_collector();
        self.cluster.job_controller();
        let mut next = self.cluster.uid() << 20;
        let now = self.cluster.now;
        self.cluster.service.replica_set(now, || {
            next += 1;
            next
        });
        self.cluster.scheduler();
    }

    fn kubelets(&mut self) {
        (0..self.cluster.nodes.len()).for_each(|node| self.cluster.kubelet(node));
    }

    fn sync(&mut self) {
        if let Some(leader) = &mut self.leader
            && self.cluster.api_up
        {
            KINDS
                .into_iter()
                .for_each(|kind| leader.cache.sync(kind, &self.cluster));
        }
    }

    /// All writes of the pass that goes on.
    fn finish_pass(&mut self) {
        while let Some(leader) = self.leader.as_mut().filter(|leader| leader.is_writing()) {
            leader.write(&mut self.cluster, Answer::Done);
        }
    }

    /// Everything does its work once.
    fn round(&mut self) {
        self.pass_time(ROUND);
        self.kubelets();
        self.controllers();
        self.kubelets();
        self.sync();
        self.finish_pass();
        if let Some(leader) = &mut self.leader {
            leader.begin_training(&mut self.cluster);
        }
        self.finish_pass();
        if let Some(leader) = &mut self.leader {
            leader.begin_service(&mut self.cluster);
        }
        self.finish_pass();
    }

    /// The operator does one thing: it begins a pass, or does its next write.
    fn operate(&mut self) -> &'static str {
        let Some(leader) = &mut self.leader else {
            self.leader = Some(Leader::new(&self.cluster));
            return "a leader begins";
        };
        if leader.is_writing() {
            leader.write(&mut self.cluster, Answer::Done);
            "a write"
        } else if self.random.percent(60) {
            leader.begin_training(&mut self.cluster);
            "a pass over the TrainingJob"
        } else {
            leader.begin_service(&mut self.cluster);
            "a pass over the service"
        }
    }

    fn happen(&mut self) -> &'static str {
        if self.random.percent(LATE_PERCENT)
            && let Some(late) = self.late.take()
        {
            late.delete(&mut self.cluster);
            self.cluster.counts.add("fault: a delete arrives late");
            return "fault: a delete arrives late";
        }
        match self.random.below(100) {
            0..22 => {
                self.round();
                "a round"
            }
            22..34 => {
                let seconds = self.random.within(1, 12);
                self.pass_time(seconds);
                "time passes"
            }
            34..42 => {
                if self.random.percent(50) {
                    self.kubelets();
                } else {
                    let node = self.node();
                    self.cluster.kubelet(node);
                }
                "kubelets"
            }
            42..50 => {
                self.controllers();
                "controllers"
            }
            50..57 => {
                let kind = KINDS[self.random.below(KINDS.len())];
                if let Some(leader) = &mut self.leader
                    && self.cluster.api_up
                {
                    leader.cache.sync(kind, &self.cluster);
                }
                "a watch tells"
            }
            57..78 => self.operate(),
            _ => {
                let what = self.fault();
                self.cluster.counts.add(what);
                what
            }
        }
    }

    /// A fault, or what users do.
    fn fault(&mut self) -> &'static str {
        const NOTHING: &str = "fault: none, as there is nothing to fail";
        let node = self.node();
        let (pod, process) = (self.any_pod(), self.any_process());
        let server = match self.cluster.service.pods.len() {
            0 => None,
            pods => Some(self.random.below(pods)),
        };
        match self.random.below(100) {
            0..9 => self.end_of_a_trainer(process).unwrap_or(NOTHING),
            9..14 => match process {
                Some(place) => {
                    let silent = self.random.percent(50);
                    self.cluster.processes[place].doing = Doing::Frozen { silent };
                    let (lineage, attempt) = (
                        self.cluster.processes[place].lineage,
                        self.cluster.processes[place].attempt,
                    );
                    let truth = self.cluster.truth(lineage);
                    if !truth.failed.contains(&attempt) {
                        truth.failed.push(attempt);
                    }
                    "fault: a trainer stands still"
                }
                None => NOTHING,
            },
            14..19 => {
                self.cluster.crash(node);
                "fault: a node crashes"
            }
            19..24 => {
                (self.cluster.nodes[node].api, self.cluster.nodes[node].net) = (false, false);
                "fault: a node is cut off, but not from the store"
            }
            24..28 => {
                self.cluster.nodes[node].api = false;
                "fault: a node is cut off from the API server"
            }
            28..31 => {
                let node = &mut self.cluster.nodes[node];
                (node.api, node.net, node.store) = (false, false, false);
                "fault: a node is cut off from everything"
            }
            31..34 => {
                self.cluster.nodes[node].net = false;
                "fault: a node is cut off from the operator"
            }
            34..37 => {
                let first = self.node();
                let all = self.cluster.nodes.len();
                for next in 0..3.max(all / 2) {
                    let node = &mut self.cluster.nodes[(first + next) % all];
                    (node.api, node.net) = (false, false);
                }
                "fault: a switch fails"
            }
            37..49 => {
                let ill = (0..self.cluster.nodes.len()).find(|node| !self.cluster.nodes[*node].is_well());
                match ill {
                    Some(ill) => {
                        self.heal(ill);
                        "fault: a node is healed"
                    }
                    None => NOTHING,
                }
            }
            49..53 => {
                self.cluster.nodes[node].gpu_broken = true;
                "fault: a GPU breaks"
            }
            53..59 => {
                let kill = self.leader.as_ref().map(Leader::is_writing);
                // What was on its way when the leader died may have arrived, or arrives later.
                match (self.random.below(3), &mut self.leader) {
                    (0, Some(leader)) => leader.write(&mut self.cluster, Answer::Lost),
                    (1, Some(leader)) => self.late = leader.last_delete(&mut self.cluster).or(self.late.take()),
                    _ => {}
                }
                self.leader = None;
                match kill {
                    Some(true) => "fault: the leader is killed between two writes",
                    Some(false) => "fault: the leader is killed",
                    None => NOTHING,
                }
            }
            59..64 => self.fail_a_write(Answer::Lost, "fault: the answer to a write is lost"),
            64..67 => self.fail_a_write(Answer::Refused, "fault: a write is refused"),
            67..71 => {
                self.cluster.api_up = !self.cluster.api_up;
                if self.cluster.api_up {
                    "fault: the API server answers again"
                } else {
                    "fault: the API server does not answer"
                }
            }
            71..76 => {
                self.cluster.training.suspend = !self.cluster.training.suspend;
                self.cluster.training.version += 1;
                "fault: the user suspends or resumes"
            }
            76..80 => self.take_away(pod, "fault: a pod is deleted"),
            80..83 => self.take_away(pod, "fault: a pod is evicted"),
            83..86 => self.take_away(pod, "fault: a pod is deleted by force"),
            86..88 => match self.cluster.jobs.len() {
                0 => NOTHING,
                jobs => {
                    let place = self.random.below(jobs);
                    self.cluster.jobs.remove(place);
                    "fault: a Job is deleted"
                }
            },
            88..90 => {
                self.cluster.recreate_training();
                "fault: the TrainingJob is recreated"
            }
            90 => match self.cluster.fallback {
                true => {
                    self.cluster.held = !self.cluster.held;
                    "fault: others hold the class, or let it go"
                }
                false => NOTHING,
            },
            91..95 => self.end_of_a_server(server).unwrap_or(NOTHING),
            95 => {
                self.cluster.image_fails = true;
                "fault: a trainer cannot have its image"
            }
            96..98 => match server {
                Some(place) => {
                    self.cluster.service.pods[place].no_image = true;
                    "fault: a server cannot have its image"
                }
                None => NOTHING,
            },
            _ => match server {
                Some(place) => {
                    let (uid, now) = (self.cluster.service.pods[place].uid, self.cluster.now);
                    self.cluster.service.delete(uid, now);
                    "fault: a server's pod is deleted"
                }
                None => NOTHING,
            },
        }
    }

    fn any_pod(&mut self) -> Option<Uid> {
        let pods = self.cluster.pods.len();
        (pods > 0).then(|| self.cluster.pods[self.random.below(pods)].uid)
    }

    /// A trainer that runs.
    fn any_process(&mut self) -> Option<usize> {
        let processes = &self.cluster.processes;
        let running: Vec<usize> = (0..processes.len())
            .filter(|place| matches!(processes[*place].doing, Doing::Starting(_) | Doing::Training))
            .filter(|place| self.cluster.nodes[processes[*place].node].alive)
            .collect();
        (!running.is_empty()).then(|| running[self.random.below(running.len())])
    }

    fn end_of_a_trainer(&mut self, place: Option<usize>) -> Option<&'static str> {
        let place = place?;
        match self.random.below(10) {
            0 => self.cluster.end(place, Exit::OutOfMemory),
            1 => self.cluster.end_with(place, failed(FailureReason::DatasetInvalid)),
            2..6 => self.cluster.end(place, Exit::Unclear),
            _ => self.cluster.end_with(place, failed(FailureReason::InternalError)),
        }
        Some("fault: a trainer ends")
    }

    fn end_of_a_server(&mut self, place: Option<usize>) -> Option<&'static str> {
        let for_ever = self.crashes < CRASHES_MAX && self.random.percent(60);
        self.crashes += usize::from(for_ever);
        let now = self.cluster.now;
        self.cluster.service.end(place?, for_ever, now);
        Some(if for_ever {
            "fault: a server ends again and again"
        } else {
            "fault: a server ends"
        })
    }

    fn fail_a_write(&mut self, answer: Answer, what: &'static str) -> &'static str {
        match &mut self.leader {
            Some(leader) if leader.is_writing() => {
                leader.write(&mut self.cluster, answer);
                what
            }
            _ => "fault: none, as there is nothing to fail",
        }
    }

    fn take_away(&mut self, pod: Option<Uid>, what: &'static str) -> &'static str {
        let Some(pod) = pod else {
            return "fault: none, as there is nothing to fail";
        };
        match what {
            "fault: a pod is deleted by force" => self.cluster.pods.retain(|other| other.uid != pod),
            _ => self.cluster.delete_pod(pod, what == "fault: a pod is evicted"),
        }
        what
    }

    fn heal(&mut self, node: usize) {
        let now = self.cluster.now;
        let node = &mut self.cluster.nodes[node];
        (node.alive, node.api, node.net, node.store) = (true, true, true, true);
        (node.gpu_broken, node.renewed) = (false, now);
    }

    /// The faults stop. Nodes of which nobody hears stay so, where the others have room: what is wrong must be mended
    /// within the deadline. Then they come back, and the job must come to its end. How many rounds it took.
    fn recover(&mut self, tell: bool) -> u64 {
        let all = self.cluster.nodes.len();
        self.cluster.api_up = true;
        self.cluster.image_fails = false;
        self.cluster.training.suspend = false;
        self.cluster.training.version += 1;
        if self.leader.is_none() {
            self.leader = Some(Leader::new(&self.cluster));
        }
        // Who is lost to one side only is not acted upon, by design.
        for node in 0..all {
            if !self.cluster.nodes[node].is_lost() || self.cluster.is_waited_for(node) {
                self.heal(node);
            }
        }
        let lost = (0..all).filter(|node| self.cluster.nodes[*node].is_lost()).count();
        // What runs in part is not given up: it waits for what others hold.
        if self.cluster.is_partly_placed() {
            self.cluster.held = false;
        }
        let (held, has_fallback) = (self.cluster.held, self.cluster.fallback);
        let size = self.cluster.service.size;
        let needed = usize::try_from(self.cluster.training.pods + size + 1).unwrap();
        let lacks = |class: &str| {
            let well = self
                .cluster
                .nodes
                .iter()
                .filter(|node| node.is_well() && node.class == class);
            well.map(|node| node.gpus).sum::<usize>() < needed
        };
        if (lost >= 3 && lost * 10 > all * 3) || (!held && lacks(CLASS)) || (has_fallback && lacks(FALLBACK)) {
            (0..all).for_each(|node| self.heal(node));
        }
        let proven = self.cluster.service.answering(&self.cluster.nodes) > 0;
        let replaced = self.leader.as_ref().map_or(0, |leader| leader.replaced.len());
        for pod in &mut self.cluster.service.pods {
            pod.crashes &= proven && replaced == 0;
        }
        let answering = usize::try_from(size).unwrap();
        let mut rounds = 0;
        let begun = self.cluster.now;
        // An attempt that waits in the class without room, or for its image, does so for its turn.
        let deadline = DEADLINE + i64::try_from(self.cluster.turn().as_secs()).unwrap();
        let is_mended = |cluster: &Cluster| cluster.trains() && cluster.service.answering(&cluster.nodes) >= answering;
        while !is_mended(&self.cluster) && self.cluster.broken.is_none() {
            if self.cluster.now - begun >= deadline {
                let trains = self.cluster.trains();
                self.cluster.violated(format!(
                    "{} is not mended {deadline} s after the last fault, and there is room",
                    if trains { "the service" } else { "the training" }
                ));
                break;
            }
            rounds += 1;
            self.round();
            if tell {
                println!(
                    "     {:>5} s  a round without faults {:<33} {}",
                    self.cluster.now,
                    "",
                    self.words()
                );
            }
        }
        self.check_class(begun);
        self.cluster.held = false;
        (0..all).for_each(|node| self.heal(node));
        let begun = self.cluster.now;
        while self.cluster.broken.is_none() {
            let status = self.cluster.training.status.clone();
            match status.as_ref().and_then(|status| status.ended.as_ref()) {
                Some(ended) => {
                    self.check_end(ended);
                    break;
                }
                None if self.cluster.now - begun >= END_WITHIN => {
                    self.cluster.violated("the job does not come to its end");
                }
                None => {}
            }
            rounds += 1;
            self.round();
            if tell {
                println!(
                    "     {:>5} s  a round, all is well {:<36} {}",
                    self.cluster.now,
                    "",
                    self.words()
                );
            }
        }
        rounds
    }

    /// What was begun since `begun` trains where there is room.
    fn check_class(&mut self, begun: i64) {
        let newest = self.cluster.jobs.iter().max_by_key(|job| job.attempt);
        let Some((class, created)) = newest.map(|job| (job.class, job.created)) else {
            return;
        };
        let ended = self
            .cluster
            .training
            .status
            .as_ref()
            .and_then(|status| status.ended.as_ref());
        if ended.is_some() || self.cluster.broken.is_some() || !self.cluster.held {
            return;
        }
        if class == FALLBACK {
            self.cluster.counts.add("fallback: the job trains there");
        } else if created >= begun {
            self.cluster.violated("the job trains in a class that has no room");
        }
    }

    /// A job is complete, or failed of what really happened.
    fn check_end(&mut self, ended: &Ended) {
        let (uid, max) = (self.cluster.training.uid, self.cluster.training.max_restarts);
        let truth = self.cluster.truth(uid).clone();
        let failures = truth.failed.len();
        let is_so = match ended {
            Ended::Complete => self.cluster.version_of == Some(uid) && self.cluster.has_result(uid),
            Ended::Failed { reason, .. } if reason == reasons::MAX_RESTARTS_EXCEEDED => {
                failures > usize::try_from(max).unwrap()
            }
            Ended::Failed { reason, .. } if reason == reasons::REPEATED_FAILURE => failures >= 2,
            Ended::Failed { .. } => truth.is_final,
        };
        if !is_so {
            self.cluster.violated(format!(
                "the job ended as {ended:?} after {failures} failures, which is not so"
            ));
        }
    }
}
