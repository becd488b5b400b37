//! `simulate`: a trace of requests against a simulated service, sized by the operator's own policy, and beside it by
//! Knative's and Kubernetes' autoscalers.
//!
//! It asks no cluster. The decisions are `flywheel_policy::serving::scale`'s; nothing of them is written anew here.

mod hpa;
mod kpa;
mod plant;
mod trace;

use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use flywheel_api::inference_service::{InferenceService, Server};
use flywheel_api::manifest;
use flywheel_policy::serving::scale::{Goal, LATENCY, Metric, SCALE_DOWN_DELAY, STABLE_WINDOW, Scaler};
use serde::Serialize;

use crate::Error;
use crate::arguments::{Output, Simulate};
use crate::text::Table;

use hpa::Hpa;
use kpa::Kpa;
use plant::{Plant, Setting, time};
use trace::Trace;

/// Part of its throughput that a pod is planned for by who sets a target by hand; the first size is by it, too.
const BY_HAND: f64 = kpa::UTILIZATION;
/// Most replicas where no service bounds them: more than the traces need.
const REPLICAS_MAX: u32 = 100;
/// Largest file of a service, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Seconds within which changes of direction are counted.
const TURNS_WITHIN: u32 = 300;

/// An autoscaler to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// Knative's (KPA).
    Kpa,
    /// Kubernetes' HorizontalPodAutoscaler.
    Hpa,
}

/// What to simulate.
pub(crate) struct Plan {
    /// The command line.
    line: Simulate,
    goal: Goal,
    /// Longest time that a request waits in a pod, in seconds.
    wait: f64,
}

impl Simulate {
    /// The plan of this command line.
    ///
    /// # Errors
    /// A service that cannot be read, or that does not say how it scales.
    pub(crate) fn plan(self) -> Result<Plan, Error> {
        let (mut goal, server) = match &self.filename {
            Some(path) => of_file(path)?,
            None => (unnamed(), Server::default()),
        };
        if let Some(seconds) = self.scale_down_delay {
            goal.scale_down_delay = Duration::from_secs(seconds);
        }
        let own = 1.0 / self.capacity;
        if own > goal.latency.as_secs_f64() {
            return Err(Error::Simulation(format!(
                "at --capacity {} one request takes {:.0} ms, longer than the latency objective of {} ms: no number of \
                 replicas holds that. Raise --capacity, or objectives.latencyP99Milliseconds of a service with -f",
                self.capacity,
                own * 1000.0,
                goal.latency.as_millis()
            )));
        }
        // As a serving pod refuses: what would not begin within half of its time, and what is beyond its bound.
        let half = f64::from(server.timeout_milliseconds) / 2000.0;
        let wait = half.min(f64::from(server.max_concurrency) * own);
        Ok(Plan { line: self, goal, wait })
    }
}

/// What is simulated without a service.
fn unnamed() -> Goal {
    Goal {
        metric: Metric::Qps,
        target_per_replica: None,
        min_replicas: 1,
        max_replicas: REPLICAS_MAX,
        stable_window: STABLE_WINDOW,
        scale_down_delay: SCALE_DOWN_DELAY,
        qps: None,
        latency: LATENCY,
    }
}

/// What the InferenceService in that file wants.
fn of_file(path: &Path) -> Result<(Goal, Server), Error> {
    let wrong = |why: String| Error::Simulation(format!("{}: {why}", path.display()));
    let size = path.metadata().map_err(|error| wrong(error.to_string()))?.len();
    if size > FILE_BYTES_MAX {
        return Err(wrong(format!(
            "{size} bytes are more than {FILE_BYTES_MAX}; name a file with one InferenceService"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let documents = manifest::documents(&text).map_err(wrong)?;
    let services = manifest::objects::<InferenceService>(&documents).map_err(wrong)?;
    let [service] = services.as_slice() else {
        let count = services.len();
        return Err(wrong(format!(
            "{count} InferenceServices; name a file with one of them"
        )));
    };
    let spec = &service.spec;
    match Goal::of(spec) {
        Some(goal) if spec.scaling.is_some() => Ok((goal, spec.server.clone())),
        _ => Err(wrong(
            "the InferenceService has no spec.scaling, or replicas: 0, so nothing decides its size; add scaling.maxReplicas".to_owned(),
        )),
    }
}

/// Seconds that a pod needs to start: an image that is there and a model from a near bucket.
const START: f64 = 30.0;

/// Runs the plan and prints what came of it.
///
/// # Errors
/// A trace that cannot be read, or an output that cannot be written.
pub(crate) fn run(plan: &Plan, out: &mut dyn Write) -> Result<(), Error> {
    let names: Vec<String> = match plan.line.traces.as_slice() {
        [] => trace::names().map(str::to_owned).collect(),
        some => some.to_vec(),
    };
    // All are read before the first one runs, which may take a while.
    let traces = names
        .iter()
        .map(|name| Trace::find(name))
        .collect::<Result<Vec<_>, _>>()?;
    let results: Vec<Outcome> = traces.iter().map(|trace| plan.simulate(trace)).collect();
    match plan.line.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &results).map_err(std::io::Error::from)?;
            writeln!(out)?;
        }
        Output::Text => out.write_all(render(plan, &results).as_bytes())?,
    }
    Ok(())
}

/// What came of one trace.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    trace: String,
    seconds: u32,
    start_seconds: f64,
    runs: Vec<Run>,
}

/// What came of one scaler.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    scaler: &'static str,
    seconds_above: u32,
    requests: u64,
    refused: u64,
    late: u64,
    replica_hours: f64,
    most_replicas: u32,
    /// Changes of the size.
    changes: u32,
    /// Most changes of direction within five minutes.
    turns: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    timeline: Vec<Change>,
}

/// A change of the size.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Change {
    second: u32,
    qps: f64,
    from: u32,
    to: u32,
    why: String,
}

/// Who decides.
enum Driver {
    Flywheel { scaler: Scaler, next: u32 },
    Kpa(Kpa),
    Hpa { hpa: Hpa, counts: VecDeque<f64> },
}

impl Plan {
    fn simulate(&self, trace: &Trace) -> Outcome {
        let setting = Setting {
            capacity: self.line.capacity,
            start: self.line.start.or(trace.start).unwrap_or(START),
            wait: self.wait,
            latency: self.goal.latency.as_secs_f64(),
            seed: self.line.seed,
        };
        // What one replica gets where that is set by hand: the target of the service, else what it computes.
        let target = match self.goal.metric {
            Metric::Qps => self.goal.target_per_replica.unwrap_or(self.line.capacity),
            Metric::Concurrency => self.line.capacity,
        };
        let planned = BY_HAND * target;
        let first = self.bounded((trace.qps(0.0) / planned).ceil() as u32);
        let scaler = Scaler::new(time(0.0));
        let mut runs = vec![self.run(trace, setting, first, "flywheel", Driver::Flywheel { scaler, next: 1 })];
        for peer in &self.line.peers {
            let (name, driver) = match peer {
                Peer::Kpa => ("kpa", Driver::Kpa(Kpa::new(planned, first))),
                Peer::Hpa => {
                    let hpa = Hpa::new(planned, self.goal.min_replicas, self.goal.max_replicas);
                    let counts = VecDeque::from([0.0]);
                    ("hpa", Driver::Hpa { hpa, counts })
                }
            };
            runs.push(self.run(trace, setting, first, name, driver));
        }
        Outcome {
            trace: trace.name.clone(),
            seconds: trace.seconds,
            start_seconds: setting.start,
            runs,
        }
    }

    fn bounded(&self, replicas: u32) -> u32 {
        replicas.max(self.goal.min_replicas).min(self.goal.max_replicas)
    }

    fn run(&self, trace: &Trace, setting: Setting, first: u32, name: &'static str, mut driver: Driver) -> Run {
        let mut plant = Plant::new(setting, first);
        let mut wanted = first;
        let mut most = first;
        let mut timeline = vec![];
        for second in 0..trace.seconds {
            let began = f64::from(second);
            let (qps, silent) = (trace.qps(began), trace.silent(began));
            let before = plant.totals().requests;
            plant.second(qps);
            let asked = plant.totals().requests - before;
            let decided = driver.decide(&self.goal, &plant, second + 1, asked, silent, wanted);
            let Some((size, why)) = decided else { continue };
            let size = self.bounded(size);
            if size != wanted {
                timeline.push(Change {
                    second: second + 1,
                    qps,
                    from: wanted,
                    to: size,
                    why,
                });
                wanted = size;
                most = most.max(size);
                plant.resize(size);
            }
        }
        let totals = plant.totals();
        Run {
            scaler: name,
            seconds_above: totals.seconds_above,
            requests: totals.requests as u64,
            refused: totals.refused as u64,
            late: totals.late as u64,
            replica_hours: (totals.replica_seconds / 36.0).round() / 100.0,
            most_replicas: most,
            changes: timeline.len() as u32,
            turns: turns(&timeline),
            timeline: if self.line.timeline { timeline } else { vec![] },
        }
    }
}

impl Driver {
    /// The size at the end of this second, in which so much was asked, and why; `None` without a decision.
    fn decide(
        &mut self,
        goal: &Goal,
        plant: &Plant,
        second: u32,
        asked: f64,
        silent: bool,
        wanted: u32,
    ) -> Option<(u32, String)> {
        match self {
            Self::Flywheel { scaler, next } => {
                if second < *next {
                    return None;
                }
                scaler.look(plant.look(silent));
                let decision = scaler.decide(goal, wanted, time(plant.now()));
                // As the operator looks: each second while something changes, else every other one.
                *next = second + if decision.in_change { 1 } else { 2 };
                Some((
                    decision.replicas,
                    format!("{}: {}", decision.reason.as_str(), decision.why),
                ))
            }
            Self::Kpa(kpa) => {
                if !silent && plant.ready() > 0 && second.is_multiple_of(kpa::SCRAPE) {
                    kpa.record(second, asked);
                }
                if !second.is_multiple_of(kpa::TICK) {
                    return None;
                }
                kpa.scale(second, plant.ready()).map(|size| (size, String::new()))
            }
            Self::Hpa { hpa, counts } => {
                counts.push_back(counts.back().unwrap_or(&0.0) + asked);
                while counts.len() > RATE_COUNTS {
                    counts.pop_front();
                }
                if !second.is_multiple_of(hpa::SYNC) {
                    return None;
                }
                let (first, last) = (counts.front()?, counts.back()?);
                let rate = (last - first) / (counts.len() - 1) as f64;
                let load = (!silent).then_some((rate * 1000.0).round());
                Some((hpa.scale(second, load, wanted, wanted), String::new()))
            }
        }
    }
}

/// Counts of which the first and the last are [`hpa::RATE`] seconds apart.
const RATE_COUNTS: usize = hpa::RATE as usize + 1;

/// Most changes of direction within [`TURNS_WITHIN`].
fn turns(timeline: &[Change]) -> u32 {
    let mut at: VecDeque<u32> = VecDeque::new();
    let mut most = 0;
    for two in timeline.windows(2) {
        let [before, after] = two else { continue };
        if (before.to > before.from) != (after.to > after.from) {
            at.push_back(after.second);
            while at.front().is_some_and(|first| first + TURNS_WITHIN <= after.second) {
                at.pop_front();
            }
            most = most.max(at.len() as u32);
        }
    }
    most
}

fn render(plan: &Plan, results: &[Outcome]) -> String {
    let mut table = Table::new(&[
        "TRACE",
        "SCALER",
        "SECONDS ABOVE",
        "REFUSED",
        "REPLICA-HOURS",
        "MOST",
        "CHANGES",
        "TURNS IN 5 MIN",
    ]);
    for result in results {
        for run in &result.runs {
            let refused = run.refused as f64 / (run.requests as f64).max(1.0) * 100.0;
            table.row([
                result.trace.clone(),
                run.scaler.to_owned(),
                run.seconds_above.to_string(),
                format!("{refused:.2} %"),
                format!("{:.2}", run.replica_hours),
                run.most_replicas.to_string(),
                run.changes.to_string(),
                run.turns.to_string(),
            ]);
        }
    }
    let mut text = table.render();
    let behind = behind(results);
    if !plan.line.peers.is_empty() {
        text.push_str(if behind.is_empty() {
            "\nFlywheel is behind on no trace.\n"
        } else {
            "\nWhere Flywheel is behind:\n"
        });
        text.push_str(&behind.join(""));
    }
    for result in results {
        for run in result.runs.iter().filter(|run| !run.timeline.is_empty()) {
            text.push_str(&format!("\n{}, {}\n", result.trace, run.scaler));
            let mut table = Table::new(&["SECOND", "QPS", "FROM", "TO", "WHY"]);
            for change in &run.timeline {
                table.row([
                    change.second.to_string(),
                    change.qps.to_string(),
                    change.from.to_string(),
                    change.to.to_string(),
                    change.why.clone(),
                ]);
            }
            text.push_str(&table.render());
        }
    }
    text
}

/// A line for each figure in which a peer does better.
fn behind(results: &[Outcome]) -> Vec<String> {
    let mut lines = vec![];
    for result in results {
        let Some((ours, peers)) = result.runs.split_first() else {
            continue;
        };
        for peer in peers {
            let (trace, name) = (&result.trace, peer.scaler);
            if ours.seconds_above > peer.seconds_above {
                let (mine, theirs) = (ours.seconds_above, peer.seconds_above);
                lines.push(format!(
                    "  {trace}: {mine} seconds above the objective, {name} {theirs}\n"
                ));
            }
            if ours.replica_hours > peer.replica_hours {
                let (mine, theirs) = (ours.replica_hours, peer.replica_hours);
                lines.push(format!("  {trace}: {mine:.2} replica-hours, {name} {theirs:.2}\n"));
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::CommandLine;
    use crate::arguments::Command;

    fn simulate(line: &str) -> Result<String, String> {
        let words = ["kubectl-flywheel", "simulate"]
            .into_iter()
            .chain(line.split_whitespace());
        let Command::Simulate(simulate) = CommandLine::try_parse_from(words).map_err(|e| e.to_string())?.command else {
            panic!("another command");
        };
        let mut out = vec![];
        let plan = simulate.plan().map_err(|e| e.to_string())?;
        run(&plan, &mut out).map_err(|e| e.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn results(line: &str) -> Vec<serde_json::Value> {
        serde_json::from_str(&simulate(&format!("{line} -o json")).unwrap()).unwrap()
    }

    /// All but the day, which takes a while.
    const SHORT: &str = "--trace step --trace ramp --trace spikes --trace noise --trace gap --trace slow-start";

    #[test]
    fn with_the_patience_of_knative_no_peer_does_better() {
        let text = simulate(&format!("{SHORT} --scale-down-delay 0")).unwrap();
        assert!(text.ends_with("\nFlywheel is behind on no trace.\n"), "{text}");
        for result in results(&format!("{SHORT} --scale-down-delay 0")) {
            // What is ordered ahead of a growing load stays until it has come.
            assert!(result["trace"] != "ramp" || result["runs"][0]["turns"] == 0, "{result}");
            let above = |run: usize| result["runs"][run]["secondsAbove"].as_u64().unwrap();
            for peer in [1, 2] {
                assert!(above(peer) == 0 || above(0) < above(peer), "{result}");
            }
        }
    }

    #[test]
    fn what_the_default_delay_costs_is_what_the_docs_say() {
        let text = simulate(SHORT).unwrap();
        let behind = text.split("behind:\n").nth(1).unwrap();
        let published = include_str!("../../../../docs/scaling.md");
        assert!(published.contains(behind), "docs/scaling.md does not hold:\n{text}");
    }

    #[test]
    fn a_burst_is_answered_within_two_seconds_and_noise_with_nothing() {
        let results = results("--trace step --trace noise --timeline");
        let first = &results[0]["runs"][0]["timeline"][0];
        assert!(first["second"].as_u64().unwrap() <= 122, "{first}");
        assert!(results[1]["runs"][0]["turns"].as_u64().unwrap() <= 1, "{}", results[1]);
    }

    #[test]
    fn output_is_the_same_each_time_and_tells_why() {
        let line = "--trace spikes --timeline --peer kpa --seed 3";
        let text = simulate(line).unwrap();
        assert_eq!(text, simulate(line).unwrap());
        assert!(text.contains("Burst: ") && text.contains("LoadFell: "), "{text}");
        assert!(!text.contains("hpa"), "{text}");
    }

    #[test]
    fn a_service_gives_bounds_and_target() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("service.yaml");
        let write = |scaling: &str| {
            let text = format!(
                "apiVersion: flywheel.dev/v1alpha1\nkind: InferenceService\nmetadata: {{name: intent}}\n\
                 spec: {{model: intent, modelVersion: intent-v1{scaling}}}\n"
            );
            std::fs::write(&path, text).unwrap();
            simulate(&format!("--trace step --peer kpa -f {} -o json", path.display()))
        };
        let text = write(", scaling: {minReplicas: 2, maxReplicas: 12, targetPerReplica: 50}").unwrap();
        let results: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(results[0]["runs"][0]["mostReplicas"], 12);
        assert_eq!(results[0]["runs"][1]["mostReplicas"], 12);
        let error = write("").unwrap_err();
        assert!(
            error.contains("spec.scaling") && error.contains("service.yaml"),
            "{error}"
        );
        let error = write(", scaling: {maxReplicas: 0}").unwrap_err();
        assert!(error.contains("maxReplicas"), "{error}");
    }

    #[test]
    fn what_cannot_be_simulated_is_told_with_what_to_do() {
        for (line, words) in [
            ("--trace no-such", "or one of step, ramp"),
            ("--capacity 4", "Raise --capacity"),
            ("--capacity 0", "from 0.001"),
            ("--start nan", "from 0.001"),
            ("--peer other", "[possible values: kpa, hpa]"),
            ("-f no-such.yaml", "no-such.yaml: No such file"),
        ] {
            let error = simulate(line).unwrap_err();
            assert!(error.contains(words), "{line}: {error}");
        }
    }

    #[test]
    fn turns_are_counted_within_five_minutes() {
        let change = |(second, from, to)| Change {
            second,
            qps: 0.0,
            from,
            to,
            why: String::new(),
        };
        let timeline = [(0, 1, 2), (10, 2, 3), (20, 3, 2), (300, 2, 3), (330, 3, 2)].map(change);
        assert_eq!(turns(&timeline), 2);
        assert_eq!(turns(&[]), 0);
    }
}
