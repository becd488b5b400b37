//! Tables of limits, and two simulations on a scripted clock: injected hangs are found in time, and training that is only
//! uneven is left alone.

use std::sync::LazyLock;

use serde_json::json;

use super::*;

/// How often a running pod is scraped.
const SCRAPE: f64 = super::super::RUNNING.as_secs() as f64;
const REACHABLE: Surroundings = Surroundings {
    out_of_contact: false,
    answered_before: false,
    all_run_since: None,
    lost_peer: None,
    held: false,
};

fn at(seconds: f64) -> Timestamp {
    Timestamp::from_nanosecond(1_700_000_000_000_000_000 + (seconds * 1e9) as i128).unwrap()
}

fn progress(phase: Phase, heartbeat: Option<f64>, in_phase: f64, median: Option<f64>) -> Progress {
    static BASE: LazyLock<Progress> = LazyLock::new(|| {
        serde_json::from_value(json!({
            "schemaVersion": 1, "attempt": 2, "phase": "Training", "phaseSeconds": 0.0, "step": 120, "totalSteps": 800,
            "epoch": 1, "totalEpochs": 4
        }))
        .unwrap()
    });
    let mut progress = BASE.clone();
    progress.phase = phase;
    progress.phase_seconds = in_phase;
    progress.heartbeat_seconds = heartbeat;
    progress.median_pass_seconds = median;
    progress
}

fn answered(progress: Progress) -> Look {
    Look::Answered(Box::new(progress))
}

#[test]
fn each_phase_has_its_limit() {
    use Phase::{Checkpointing, Done, Downloading, Evaluating, Preparing, Starting, Training, Uploading};
    let table = [
        (Training, Some(0.2), 30.0),
        (Training, Some(3.0), 30.0),
        (Training, Some(6.0), 60.0),
        (Training, Some(12.0), 75.0),
        (Training, Some(45.0), 90.0),
        // Passes of a minute and more: never below two of them.
        (Training, Some(60.0), 120.0),
        (Training, None, 300.0),
        (Training, Some(f64::NAN), 300.0),
        (Training, Some(-1.0), 300.0),
        (Evaluating, Some(0.2), 75.0),
        (Evaluating, Some(60.0), 120.0),
        (Evaluating, None, 75.0),
        (Starting, None, 180.0),
        (Downloading, None, 120.0),
        (Uploading, Some(60.0), 120.0),
        (Preparing, None, 900.0),
        (Checkpointing, Some(0.2), 60.0),
        (Done, Some(0.2), 60.0),
    ];
    for (phase, median, seconds) in table {
        let limit = limit(&progress(phase, Some(0.0), 1000.0, median)).as_secs_f64();
        assert!((limit - seconds).abs() < 1e-6, "{phase:?} {median:?}: {limit}");
    }
}

#[test]
fn a_pod_that_answers_is_judged_by_its_own_heartbeat() {
    let verdict = |progress| {
        let mut watch = Watch::default();
        watch.add(answered(progress), at(0.0));
        watch.verdict(REACHABLE, at(0.0))
    };
    let training = |heartbeat, in_phase| progress(Phase::Training, heartbeat, in_phase, Some(2.0));
    let hung = verdict(training(Some(30.5), 600.0)).unwrap();
    assert_eq!((hung.cause, hung.at), (Cause::Hung, at(0.0)));
    assert_eq!(
        hung.how,
        "no sign of work for more than 30 s in phase Training at step 120"
    );
    assert_eq!(hung.position.unwrap().step, 120);
    for (case, progress) in [
        ("in time", training(Some(29.5), 600.0)),
        ("the phase has just begun", training(Some(500.0), 3.0)),
        ("a trainer that tells no heartbeat", training(None, 600.0)),
        ("no number", training(Some(f64::NAN), 600.0)),
        ("no time", training(Some(-5.0), 600.0)),
        (
            "a phase with a longer limit",
            progress(Phase::Preparing, Some(500.0), 500.0, None),
        ),
    ] {
        assert_eq!(verdict(progress), None, "{case}");
    }
}

/// What was seen last, and then one look every five seconds, for so many seconds: the time of the verdict.
fn looks(first: Option<Look>, then: &dyn Fn(u32) -> Look, around: Surroundings, seconds: u32) -> Option<f64> {
    let mut watch = Watch::default();
    if let Some(first) = first {
        watch.add(first, at(0.0));
    }
    (1..=seconds / 5).find_map(|i| {
        let now = f64::from(i) * SCRAPE;
        watch.add(then(i), at(now));
        watch.verdict(around, at(now)).map(|_| now)
    })
}

#[test]
fn silence_is_a_hang_only_of_a_pod_that_could_be_reached() {
    let well = || Some(answered(progress(Phase::Training, Some(0.1), 60.0, Some(0.2))));
    let silent = |_| Look::Silent;
    let refused = |_| Look::Refused;
    let unreachable = |_| Look::Unreachable;
    assert_eq!(looks(well(), &silent, REACHABLE, 300), Some(75.0));
    assert_eq!(looks(well(), &refused, REACHABLE, 300), Some(75.0));
    assert_eq!(
        looks(well(), &unreachable, REACHABLE, 3600),
        None,
        "the network may be broken"
    );
    assert_eq!(
        looks(None, &refused, REACHABLE, 3600),
        None,
        "it may be a firewall that refuses"
    );
    assert_eq!(
        looks(None, &silent, REACHABLE, 3600),
        Some(80.0),
        "it never answered, but takes connections"
    );
    // It loads its libraries for three minutes, and stands still just after it has begun to listen.
    let loads_first = |i: u32| if i <= 36 { Look::Refused } else { Look::Silent };
    assert_eq!(looks(None, &loads_first, REACHABLE, 3600), Some(260.0));
    // An operator that has just taken over: the status tells that it did answer.
    let known = Surroundings {
        answered_before: true,
        ..REACHABLE
    };
    assert_eq!(looks(None, &silent, known, 300), Some(80.0));
    assert_eq!(looks(None, &refused, known, 300), Some(80.0));
    assert_eq!(looks(None, &unreachable, known, 3600), None);
    // Now and then something is heard.
    let now_and_then = |i: u32| {
        if i.is_multiple_of(15) {
            Look::Unreadable
        } else {
            Look::Silent
        }
    };
    assert_eq!(looks(well(), &now_and_then, REACHABLE, 3600), None);
    // Its node is lost: a matter of seconds, and of the network as well as of silence.
    let lost = Surroundings {
        out_of_contact: true,
        ..known
    };
    assert_eq!(looks(well(), &unreachable, lost, 300), Some(10.0));
    assert_eq!(looks(None, &unreachable, lost, 300), Some(15.0));
    let answers = |_| answered(progress(Phase::Training, Some(0.1), 60.0, Some(0.2)));
    assert_eq!(
        looks(well(), &answers, lost, 3600),
        None,
        "only the control plane has lost it"
    );
}

#[test]
fn a_pod_that_waits_for_the_others_does_not_hang() {
    let starting = progress(Phase::Starting, Some(900.0), 900.0, None);
    let mut watch = Watch::default();
    watch.add(answered(starting), at(0.0));
    let since = |seconds| Surroundings {
        all_run_since: Some(at(seconds)),
        ..REACHABLE
    };
    assert!(watch.verdict(REACHABLE, at(0.0)).is_some(), "alone");
    assert_eq!(watch.verdict(since(-180.0), at(0.0)), None);
    assert_eq!(watch.verdict(since(30.0), at(0.0)), None, "a clock that is ahead");
    let hung = watch.verdict(since(-181.0), at(0.0)).unwrap();
    assert_eq!(hung.cause, Cause::Hung);
}

#[test]
fn a_lost_node_under_another_pod_counts_where_nothing_moves() {
    let lost = Surroundings {
        lost_peer: Some(3),
        ..REACHABLE
    };
    let verdict = |heartbeat, around| {
        let mut watch = Watch::default();
        watch.add(
            answered(progress(Phase::Training, Some(heartbeat), 60.0, Some(0.2))),
            at(0.0),
        );
        watch.verdict(around, at(0.0))
    };
    assert_eq!(verdict(9.9, lost), None, "only the control plane has lost it");
    assert_eq!(verdict(10.0, REACHABLE), None);
    let found = verdict(10.0, lost).unwrap();
    assert_eq!(found.cause, Cause::NodeLost);
    assert!(found.how.contains("pod 3"), "{}", found.how);
    let mut silent = Watch::default();
    silent.add(Look::Unreachable, at(0.0));
    silent.add(Look::Unreachable, at(10.0));
    assert_eq!(silent.verdict(REACHABLE, at(10.0)), None);
    assert_eq!(silent.verdict(lost, at(10.0)).unwrap().cause, Cause::NodeLost);
}

#[test]
fn neither_a_pause_of_the_operator_nor_its_clock_makes_a_hang() {
    let mut watch = Watch::default();
    watch.add(answered(progress(Phase::Training, Some(0.1), 60.0, Some(0.2))), at(0.0));
    // Ten minutes without a look, then three that fail.
    for now in [600.0, 605.0, 610.0] {
        watch.add(Look::Silent, at(now));
        assert_eq!(watch.verdict(REACHABLE, at(now)), None);
    }
    watch.add(Look::Silent, at(615.0));
    watch.add(Look::Silent, at(-60.0));
    assert_eq!(watch.verdict(REACHABLE, at(-60.0)), None, "the clock went back");
    assert!(watch.verdict(REACHABLE, at(620.0)).is_some());
}

#[test]
fn only_a_commit_of_its_own_is_an_attempts_progress() {
    let position = |checkpoint: serde_json::Value, resumed: Option<u64>| {
        let mut told = progress(Phase::Training, Some(0.1), 60.0, Some(0.2));
        told.checkpoint = serde_json::from_value(checkpoint).unwrap();
        told.resumed_from_step = resumed;
        let mut watch = Watch::default();
        watch.add(answered(told), at(0.0));
        let position = watch.position().unwrap();
        (position.resumed_from_step, position.checkpoint_step)
    };
    assert_eq!(position(json!({"step": 100, "ageSeconds": 9.0}), Some(80)), (80, 100));
    assert_eq!(position(json!({"step": 80}), Some(80)), (80, 80));
    // It has found the checkpoint of an earlier attempt, and has not gone on from it.
    assert_eq!(position(json!({"step": 80}), None), (0, 0));
    assert_eq!(position(json!({}), None), (0, 0));
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// `median · e^(sigma · N(0, 1))`.
    fn lognormal(&mut self, median: f64, sigma: f64) -> f64 {
        let normal = (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        median * (sigma * normal).exp()
    }
}

/// The median of the last steps, as the trainer tells it.
#[derive(Default)]
struct Median {
    steps: Vec<f64>,
    next: usize,
    value: Option<f64>,
}

impl Median {
    const WINDOW: usize = 64;

    fn add(&mut self, step: f64) {
        if self.steps.len() < Self::WINDOW {
            self.steps.push(step);
        } else {
            self.steps[self.next] = step;
        }
        self.next = (self.next + 1) % Self::WINDOW;
        // Often enough, and cheap.
        if self.next.is_multiple_of(16) {
            let mut sorted = self.steps.clone();
            sorted.sort_by(f64::total_cmp);
            self.value = Some(sorted[sorted.len() / 2]);
        }
    }
}

/// Signs of work of one phase: how long it takes, and the longest and usual time between two signs.
#[derive(Clone, Copy)]
enum Work {
    /// No sign until it is over.
    Quiet { phase: Phase, seconds: f64 },
    /// A sign after each piece of about so many seconds.
    Pieces {
        phase: Phase,
        seconds: f64,
        piece: f64,
        longest: f64,
    },
    /// Optimiser steps for so many seconds.
    Steps { seconds: f64 },
}

/// A training pod on a scripted clock: the state that `/progress` would tell, moved on from one scrape to the next.
struct Pod {
    random: Random,
    median: f64,
    sigma: f64,
    steps: Median,
    /// What is still to be done, the present phase last.
    plan: Vec<Work>,
    phase_since: f64,
    phase_until: f64,
    beat: f64,
    next_beat: f64,
    /// When the next copy of the state is due.
    copy_due: f64,
}

impl Pod {
    fn new(seed: u64, median: f64, sigma: f64) -> Self {
        let mut pod = Self {
            random: Random(seed),
            median,
            sigma,
            steps: Median::default(),
            plan: vec![],
            phase_since: 0.0,
            phase_until: 0.0,
            beat: 0.0,
            next_beat: 0.0,
            copy_due: 60.0,
        };
        pod.plan_life();
        pod.begin(0.0);
        pod
    }

    /// A start, then six hours of training with an evaluation every twenty minutes.
    fn plan_life(&mut self) {
        let r = &mut self.random;
        let mut life = vec![
            Work::Quiet {
                phase: Phase::Starting,
                seconds: r.between(5.0, 120.0),
            },
            Work::Pieces {
                phase: Phase::Downloading,
                seconds: r.between(30.0, 900.0),
                piece: 0.5,
                longest: 70.0,
            },
            Work::Quiet {
                phase: Phase::Preparing,
                seconds: r.between(5.0, 800.0),
            },
        ];
        for _ in 0..18 {
            life.push(Work::Steps { seconds: 1200.0 });
            let batch = self.median / 3.0;
            life.push(Work::Pieces {
                phase: Phase::Evaluating,
                seconds: r.between(10.0, 300.0),
                piece: batch,
                longest: 40.0,
            });
        }
        life.reverse();
        self.plan = life;
    }

    fn begin(&mut self, now: f64) {
        if self.plan.is_empty() {
            self.plan_life();
            self.steps = Median::default();
        }
        let seconds = match *self.plan.last().unwrap() {
            Work::Quiet { seconds, .. } | Work::Pieces { seconds, .. } | Work::Steps { seconds } => seconds,
        };
        (self.phase_since, self.phase_until) = (now, now + seconds);
        self.next_beat = now + self.piece(now);
    }

    /// Seconds to the next sign of work.
    fn piece(&mut self, now: f64) -> f64 {
        match *self.plan.last().unwrap() {
            Work::Quiet { .. } => f64::INFINITY,
            Work::Pieces { piece, longest, .. } => {
                // One piece in a thousand waits for a slow storage or a cold file.
                let slow = self.random.unit() < 0.001;
                if slow {
                    self.random.between(1.0, longest)
                } else {
                    self.random.lognormal(piece, 0.5)
                }
            }
            Work::Steps { .. } => {
                let mut step = self.random.lognormal(self.median, self.sigma);
                if self.random.unit() < 0.01 {
                    step *= 4.0;
                }
                if now >= self.copy_due {
                    // The training stops while the state is copied for a checkpoint.
                    self.copy_due = now + 60.0;
                    step += self.random.between(0.1, 2.0);
                }
                step
            }
        }
    }

    fn advance(&mut self, now: f64) {
        loop {
            if self.next_beat.min(self.phase_until) > now {
                return;
            }
            if self.next_beat <= self.phase_until {
                if matches!(self.plan.last(), Some(Work::Steps { .. })) {
                    self.steps.add(self.next_beat - self.beat.max(self.phase_since));
                }
                self.beat = self.next_beat;
                self.next_beat += self.piece(self.beat);
            } else {
                self.plan.pop();
                let until = self.phase_until;
                self.begin(until);
            }
        }
    }

    fn phase(&self) -> Phase {
        match *self.plan.last().unwrap() {
            Work::Quiet { phase, .. } | Work::Pieces { phase, .. } => phase,
            Work::Steps { .. } => Phase::Training,
        }
    }

    fn progress(&self, now: f64) -> Progress {
        progress(
            self.phase(),
            Some(now - self.beat),
            now - self.phase_since,
            self.steps.value,
        )
    }
}

/// Kinds of training pods: median pass and its spread. Short passes vary with the length of their texts; long ones are
/// large batches, which average it out.
const KINDS: [(f64, f64); 4] = [(0.4, 0.4), (1.5, 0.4), (6.0, 0.2), (12.0, 0.1)];

/// Hours until now and false alarms, with this factor in place of [`PASSES`] (the pod's median is told as so much smaller).
fn false_alarms(hours: u32, factor: f64) -> (f64, u32) {
    let (mut alarms, mut total) = (0, 0.0);
    for (seed, (median, sigma)) in KINDS.into_iter().enumerate() {
        let mut pod = Pod::new(20_260_101 + seed as u64, median, sigma);
        let mut watch = Watch::default();
        let scrapes = u64::from(hours) * 3600 / KINDS.len() as u64 / SCRAPE as u64;
        for i in 1..=scrapes {
            let now = i as f64 * SCRAPE;
            pod.advance(now);
            let mut told = pod.progress(now);
            told.median_pass_seconds = told.median_pass_seconds.map(|m| m * factor / PASSES);
            watch.add(answered(told), at(now));
            if watch.verdict(REACHABLE, at(now)).is_some() {
                alarms += 1;
                // The next attempt begins.
                pod.plan.clear();
                pod.begin(now);
                pod.beat = now;
                pod.steps = Median::default();
                watch = Watch::default();
            }
        }
        total += scrapes as f64 * SCRAPE / 3600.0;
    }
    (total, alarms)
}

#[test]
fn uneven_training_is_left_alone() {
    let (hours, alarms) = false_alarms(1000, PASSES);
    println!("hang detection: {alarms} false alarms in {hours:.0} simulated hours");
    assert!(hours > 999.0 && alarms <= 1, "{alarms} false alarms in {hours:.0} h");
    // The same trace with a limit of five median passes, to see that it has what a limit can be too short for.
    let (hours, alarms) = false_alarms(1000, 5.0);
    println!("hang detection: {alarms} false alarms in {hours:.0} simulated hours with a factor of 5");
    assert!(alarms > 10, "the trace is too even: {alarms}");
}

#[test]
fn injected_hangs_are_found_in_time() {
    let (mut found, mut slowest) = (0, 0.0_f64);
    let mut random = Random(7);
    for case in 0..600_u64 {
        let (median, sigma) = KINDS[case as usize % KINDS.len()];
        let mut pod = Pod::new(1000 + case, median, sigma);
        let mut watch = Watch::default();
        let offset = random.between(0.0, SCRAPE);
        let mut hangs_at = random.between(2500.0, 9000.0);
        // One in three stops as a whole (SIGSTOP) and does not answer either.
        let stopped = case.is_multiple_of(3);
        let mut frozen: Option<(f64, Progress)> = None;
        let detected = (0..).map(|i| offset + f64::from(i) * SCRAPE).find(|now| {
            if frozen.is_none() && *now >= hangs_at {
                pod.advance(hangs_at);
                if matches!(pod.phase(), Phase::Training | Phase::Evaluating) {
                    frozen = Some((hangs_at, pod.progress(hangs_at)));
                } else {
                    // Other phases have other limits; the hang waits for the next one of these.
                    hangs_at = *now + 1.0;
                }
            }
            let look = match &frozen {
                Some(_) if stopped => Look::Silent,
                Some((since, state)) => {
                    let mut told = state.clone();
                    let more = *now - since;
                    told.phase_seconds += more;
                    told.heartbeat_seconds = told.heartbeat_seconds.map(|age| age + more);
                    answered(told)
                }
                None => {
                    pod.advance(*now);
                    answered(pod.progress(*now))
                }
            };
            watch.add(look, at(*now));
            let verdict = watch.verdict(REACHABLE, at(*now));
            assert!(
                frozen.is_some() || verdict.is_none(),
                "case {case}: {verdict:?} before the hang"
            );
            verdict.is_some()
        });
        // One that was stopped has answered until then.
        let last_sign = if stopped {
            frozen.unwrap().0
        } else {
            pod.beat.max(pod.phase_since)
        };
        let took = detected.unwrap() - last_sign;
        assert!(took <= 90.0, "case {case}: found after {took:.1} s");
        slowest = slowest.max(took);
        found += 1;
    }
    println!(
        "hang detection: {found} of 600 injected hangs found, the slowest {slowest:.1} s after the last sign of life"
    );
}

#[test]
fn a_pod_that_could_not_be_reached_is_not_silent_before_it_can() {
    let mut watch = Watch::default();
    watch.add(answered(progress(Phase::Training, Some(0.2), 9.0, Some(0.2))), at(0.0));
    for scrape in 1..=30 {
        watch.add(Look::Unreachable, at(f64::from(scrape) * SCRAPE));
    }
    let back = 31.0 * SCRAPE;
    for scrape in 0..30 {
        let now = back + f64::from(scrape) * SCRAPE;
        watch.add(Look::Refused, at(now));
        let hangs = watch.verdict(REACHABLE, at(now)).is_some();
        assert_eq!(hangs, now - back >= SILENCE_MAX.as_secs_f64(), "{} s later", now - back);
    }
}

#[test]
fn nothing_is_given_up_while_many_nodes_seem_lost() {
    let mut watch = Watch::default();
    watch.add(answered(progress(Phase::Training, Some(0.2), 9.0, Some(0.2))), at(0.0));
    // Its program has ended, and its kubelet cannot say so.
    for scrape in 1..=30 {
        watch.add(Look::Refused, at(f64::from(scrape) * SCRAPE));
    }
    let held = Surroundings {
        held: true,
        ..REACHABLE
    };
    let now = at(31.0 * SCRAPE);
    assert_eq!(
        watch.verdict(REACHABLE, now).map(|verdict| verdict.cause),
        Some(Cause::Hung)
    );
    assert_eq!(watch.verdict(held, now), None);
    let mut stands_still = Watch::default();
    stands_still.add(
        answered(progress(Phase::Training, Some(90.0), 99.0, Some(0.2))),
        at(0.0),
    );
    assert_eq!(
        stands_still.verdict(REACHABLE, at(0.0)).map(|verdict| verdict.cause),
        Some(Cause::Hung)
    );
    assert_eq!(stands_still.verdict(held, at(0.0)), None);
}
