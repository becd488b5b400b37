//! The recovery decisions against a model of the cluster, by random schedules: nodes that crash and are cut off, pods that
//! end in every way, a leader that is killed between any two writes, a cache that lags, writes whose answer is lost. After
//! each event the invariants must hold, and when the faults stop every recovery must be over within its deadline.
//!
//! `SCHEDULES=` sets how many, `SCHEDULE_SEED=` plays one again and prints its events.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod cluster;
mod counts;
mod operator;
mod random;
mod schedule;
mod service;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use cluster::Bug;
use counts::Counts;
use schedule::{Failure, run};

/// Schedules where nothing else is asked for.
const SCHEDULES: u64 = 100_000;
/// Schedules within which each seeded bug must be found.
const FOUND_WITHIN: u64 = 100_000;
/// Least events of a schedule.
const EVENTS_MIN: u64 = 50;

fn wished(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Runs schedules of these seeds on all processors until one fails: what happened, events, and the failure of the lowest
/// seed that was found.
fn run_all(bug: Bug, number: u64) -> (Counts, u64, Option<Failure>) {
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let results: Vec<(Counts, u64, Option<Failure>)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let (mut counts, mut events) = (Counts::default(), 0);
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= number || stop.load(Ordering::Relaxed) {
                            return (counts, events, None);
                        }
                        let (did, length, failure) = run(bug, seed, false);
                        counts.merge(&did);
                        events += length;
                        assert!(
                            length >= EVENTS_MIN || failure.is_some(),
                            "schedule {seed} has {length} events"
                        );
                        if failure.is_some() {
                            stop.store(true, Ordering::Relaxed);
                            return (counts, events, failure);
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let (mut counts, mut events, mut first) = (Counts::default(), 0, None::<Failure>);
    for (did, length, failure) in results {
        counts.merge(&did);
        events += length;
        if let Some(failure) = failure
            && first.as_ref().is_none_or(|first| failure.seed < first.seed)
        {
            first = Some(failure);
        }
    }
    (counts, events, first)
}

#[test]
fn no_schedule_breaks_an_invariant() {
    if let Some(seed) = wished("SCHEDULE_SEED") {
        let (_, _, failure) = run(Bug::None, seed, true);
        assert!(failure.is_none(), "{}", failure.unwrap());
        return;
    }
    let number = wished("SCHEDULES").unwrap_or(SCHEDULES);
    let begun = Instant::now();
    let (counts, events, failure) = run_all(Bug::None, number);
    println!(
        "{number} schedules, {events} events, {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    counts.lines().for_each(|line| println!("{line}"));
    assert!(failure.is_none(), "{}", failure.unwrap());
    let missing: Vec<&str> = schedule::MUST_HAPPEN
        .iter()
        .filter(|what| counts.of(what) == 0)
        .copied()
        .collect();
    assert!(missing.is_empty(), "never happened: {missing:?}");
}

#[test]
fn each_seeded_bug_is_found() {
    for bug in [
        Bug::NoFence,
        Bug::NoUid,
        Bug::DoubleStart,
        Bug::StaleCache,
        Bug::BrakeOff,
    ] {
        let (_, _, failure) = run_all(bug, FOUND_WITHIN);
        let failure = failure.unwrap_or_else(|| panic!("{bug:?} was not found within {FOUND_WITHIN} schedules"));
        println!("{bug:?} is found by schedule {}: {}", failure.seed, failure.what);
    }
}
