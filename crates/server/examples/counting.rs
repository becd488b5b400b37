//! What it costs a worker to count the texts that it answers, for `make bench-serve`.
//!
//! `counting <artifact> <batches.json> <precision> <seconds>`: the file holds batches of rows of token ids. Slices of them are
//! computed twice, once as a version without a data profile is and once counted, each way first in every other slice, on one
//! thread. Prints one JSON object: rows (of each way), plainSeconds and countedSeconds of processor time, and costs: the extra
//! share of each slice.
#![allow(clippy::print_stdout, reason = "the result is the output of this program")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use flywheel_contract::profile::DataProfile;
use flywheel_contract::scalar::{Digest, Precision};
use flywheel_contract::serving::ServedVersion;
use flywheel_contract::trainer::ArtifactRef;
use flywheel_learn::Classifier;
use flywheel_learn::device::{self, TensorDevice};
use flywheel_server::profile::{Counter, Profiles, unix_seconds};
use serde_json::json;

type Fault = Box<dyn std::error::Error>;
type Batch = Vec<Vec<i64>>;

/// Tokens of a slice: a few hundredths of a second with a small encoder, so that what else the machine does meets both ways.
const SLICE_TOKENS: usize = 256;

/// Processor time of this thread, in nanoseconds (`proc_pid_schedstat`, Documentation/scheduler/sched-stats.rst).
fn nanoseconds() -> Result<u64, Fault> {
    let schedstat = fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(schedstat.split(' ').next().unwrap_or_default().parse()?)
}

/// Processor time of a way to answer a slice, in seconds.
fn timed(mut way: impl FnMut() -> Result<(), Fault>) -> Result<f64, Fault> {
    let before = nanoseconds()?;
    way()?;
    Ok((nanoseconds()? - before) as f64 / 1e9)
}

fn plain(classifier: &Classifier, slice: &[Batch]) -> Result<(), Fault> {
    for batch in slice {
        drop(classifier.predict(batch)?);
    }
    Ok(())
}

fn counted(classifier: &Classifier, counter: &mut Counter, slice: &[Batch]) -> Result<(), Fault> {
    for batch in slice {
        let answers = classifier.predict_and_project(batch)?;
        counter.count(unix_seconds(), batch.iter().map(Vec::as_slice).zip(&answers));
    }
    Ok(())
}

fn main() -> Result<(), Fault> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [artifact, batches, precision, seconds] = arguments.as_slice() else {
        return Err("give artifact, batches, precision and seconds; see the head of this program".into());
    };
    device::check_library()?;
    device::set_threads(1);
    let batches: Vec<Batch> = serde_json::from_slice(&fs::read(batches)?)?;
    let precision: Precision = serde_json::from_value(json!(precision))?;
    let classifier = Classifier::load(Path::new(artifact), TensorDevice::Cpu, precision)?;
    // Every batch once, so that no kernel is made while time is taken.
    let mut projections = Vec::new();
    for batch in &batches {
        let answers = classifier.predict_and_project(batch)?.into_iter();
        projections.extend(answers.filter_map(|answer| answer.projections));
    }
    let version = ServedVersion {
        name: "counted".to_owned(),
        artifact: ArtifactRef {
            uri: artifact.as_str().into(),
            digest: Digest::sha256(""),
        },
    };
    let profile = DataProfile::new(classifier.labels().len()).with_projections(&projections);
    let counters = Profiles::default().counters(&version, profile, 1);
    let mut counter = counters.into_iter().next().ok_or("no counter")?;

    let tokens = batches.iter().flatten().map(Vec::len).sum::<usize>().max(1);
    let slice = (SLICE_TOKENS * batches.len()).div_ceil(tokens).max(1);
    let (limit, begun) = (Duration::from_secs(seconds.parse()?), Instant::now());
    let (mut rows, mut sum_without, mut sum_with, mut costs) = (0, 0.0, 0.0, Vec::new());
    for (number, slice) in batches.chunks(slice).cycle().enumerate() {
        if begun.elapsed() >= limit {
            break;
        }
        let as_plain = || timed(|| plain(&classifier, slice));
        let mut as_counted = || timed(|| counted(&classifier, &mut counter, slice));
        let (without, with) = if number % 2 == 0 {
            let without = as_plain()?;
            (without, as_counted()?)
        } else {
            let with = as_counted()?;
            (as_plain()?, with)
        };
        rows += slice.iter().map(Vec::len).sum::<usize>();
        sum_without += without;
        sum_with += with;
        costs.push(with / without - 1.0);
    }
    println!(
        "{}",
        json!({"rows": rows, "plainSeconds": sum_without, "countedSeconds": sum_with, "costs": costs})
    );
    Ok(())
}
