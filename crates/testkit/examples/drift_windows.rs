//! How often the operator's own policy declares drift, in windows of texts drawn from files, for `make bench-flywheel`.
//!
//! `drift_windows <plan.json>`: the plan has `bins` (a data profile), `seeds`, `windowSeconds`, `drift` (as in a spec), and
//! `runs`: each with `texts` (of a window, and of the reference), `windows` (after the reference), and `mix`: files of
//! `profile_texts` with shares that add up to 1. Texts are drawn at random, with replacement; the reference from the first file of
//! the first run. Prints a line of JSON for each run: name, texts, declared (seeds in which drift was declared at any time) and
//! drifted (windows that had drifted by themselves).
#![allow(clippy::print_stdout, reason = "the result is the output of this program")]

use std::collections::BTreeMap;
use std::fs;

use flywheel_api::drift::Drift;
use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::profile::{Answer, DataProfile, PROJECTIONS};
use flywheel_contract::scalar::Digest;
use flywheel_policy::drift::{History, Quality, Streak, Window, judge, settle};
use jiff::Timestamp;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde_json::json;

type Fault = Box<dyn std::error::Error>;

/// A whole number of the longest windows, so that the first one begins there.
const START: u64 = 604_800 * 3000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Plan {
    bins: DataProfile,
    drift: Drift,
    seeds: u64,
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    name: String,
    texts: usize,
    windows: u64,
    mix: Vec<(String, f64)>,
}

#[derive(Deserialize)]
struct Text {
    ids: Vec<i64>,
    class: usize,
    confidence: f32,
    projections: Option<[f64; PROJECTIONS]>,
}

/// What a text adds: places among a profile's counts, and how much to each.
type Adds = Vec<(usize, u64)>;

impl Text {
    /// The operator's own counting, once for each text: a plan draws it millions of times.
    fn adds(&self, empty: &DataProfile) -> Adds {
        let mut profile = empty.clone();
        // Only the most probable class is counted.
        let mut probabilities = vec![0.0; profile.classes.len()];
        if let Some(probability) = probabilities.get_mut(self.class) {
            *probability = self.confidence;
        }
        let answer = Answer {
            probabilities,
            projections: self.projections,
        };
        profile.add(&self.ids, &answer);
        profile.counts().enumerate().filter(|(_, count)| *count > 0).collect()
    }
}

fn main() -> Result<(), Fault> {
    let file = std::env::args()
        .nth(1)
        .ok_or("give a plan; see the head of this program")?;
    let plan: Plan = serde_json::from_slice(&fs::read(file)?)?;
    let empty = plan.bins.clone().emptied();
    let mut files: BTreeMap<&str, Vec<Adds>> = BTreeMap::new();
    for (name, _) in plan.runs.iter().flat_map(|run| &run.mix) {
        if !files.contains_key(name.as_str()) {
            let text = fs::read_to_string(name)?;
            let texts = text
                .lines()
                .map(|line| Ok(serde_json::from_str::<Text>(line)?.adds(&empty)));
            files.insert(name, texts.collect::<Result<_, Fault>>()?);
        }
    }
    let usual = plan.runs.first().and_then(|run| run.mix.first()).ok_or("no runs")?;
    let workers = std::thread::available_parallelism()?.get() as u64;
    for run in &plan.runs {
        let play = |worker: u64| {
            let mut sums = (0, 0);
            for seed in (worker..plan.seeds).step_by(workers as usize) {
                let (declared, drifted) = played(&plan, &files, &empty, usual, run, seed).map_err(|e| e.to_string())?;
                sums = (sums.0 + u64::from(declared), sums.1 + drifted);
            }
            Ok::<_, String>(sums)
        };
        let (declared, drifted) = std::thread::scope(|scope| {
            let running: Vec<_> = (0..workers).map(|worker| scope.spawn(move || play(worker))).collect();
            running.into_iter().try_fold((0, 0), |sums, worker| {
                let more = worker.join().map_err(|_| "a worker panicked")??;
                Ok::<_, Fault>((sums.0 + more.0, sums.1 + more.1))
            })
        })?;
        println!(
            "{}",
            json!({"name": run.name, "texts": run.texts, "seeds": plan.seeds, "windows": run.windows, "declared": declared,
                "drifted": drifted})
        );
    }
    Ok(())
}

/// One seed: whether drift was declared at any time, and how many windows had drifted by themselves.
fn played(
    plan: &Plan,
    files: &BTreeMap<&str, Vec<Adds>>,
    empty: &DataProfile,
    usual: &(String, f64),
    run: &Run,
    seed: u64,
) -> Result<(bool, u64), Fault> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut window = |mix: &[(String, f64)]| -> Result<Vec<u64>, Fault> {
        let mut counts = vec![0; empty.counts().count()];
        for _ in 0..run.texts {
            let mut place: f64 = random.random();
            let chosen = mix.iter().find(|(_, share)| {
                place -= share;
                place < 0.0
            });
            let (name, _) = chosen.or(mix.last()).ok_or("an empty mix")?;
            let texts = files.get(name.as_str()).ok_or("no such file")?;
            let text = texts.get(random.random_range(0..texts.len())).ok_or("an empty file")?;
            for (place, count) in text {
                *counts.get_mut(*place).ok_or("other bins")? += count;
            }
        }
        Ok(counts)
    };
    let mut history = history(plan, empty);
    let (mut declared, mut drifted) = (false, 0);
    for id in 0..=run.windows {
        let counts = window(if id == 0 { std::slice::from_ref(usual) } else { &run.mix })?;
        let length = u64::from(history.window_seconds);
        let id = START / length + id;
        history.windows.push(Window {
            id,
            counts,
            judged: Default::default(),
        });
        // As many as the operator keeps.
        let many = history.windows.len().saturating_sub(48);
        history.windows.drain(..many);
        let now = Timestamp::from_second(i64::try_from((id + 1) * length)?)?;
        settle(&mut history, &plan.drift, 0, now);
        // At each window's end, as the operator looks.
        let verdict = judge(&history, &plan.drift, 0, now);
        declared |= verdict.drifted == Some(true);
        drifted += u64::from(verdict.last.is_some_and(|last| last.drifted()));
    }
    Ok((declared, drifted))
}

fn history(plan: &Plan, empty: &DataProfile) -> History {
    History {
        schema_version: SCHEMA_VERSION,
        version: "measured".to_owned(),
        digest: Digest::sha256(""),
        window_seconds: u32::try_from(plan.drift.window_seconds).unwrap_or(3600),
        bins: empty.clone(),
        test: None,
        first: None,
        windows: Vec::new(),
        streak: Streak::default(),
        quality: Quality::default(),
        called: None,
        read: BTreeMap::new(),
    }
}
