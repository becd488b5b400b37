//! Answers batches of token ids over and over, on one thread, and prints how many rows a second of processor time gives:
//! the model alone, for `make bench-serve`.
//!
//! `answers <artifact> <batches.json> <precision> <seconds>`: the file holds batches of rows of token ids. Prints one JSON
//! object: rows, cpuSeconds, peakKiB, loadSeconds, labels (of every row of the file, in order).
//!
//! `answers products <hidden> <inner> <tokens> <precision> <seconds>`: the matrix products of an encoder's layer alone, in
//! oneDNN's layout. Prints {"flops", "cpuSeconds"}: the limit that this processor sets.
#![allow(clippy::print_stdout, reason = "the result is the output of this program")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use flywheel_contract::profile::most_probable;
use flywheel_contract::scalar::Precision;
use flywheel_learn::device::{self, TensorDevice};
use flywheel_learn::{Classifier, precision};
use flywheel_torch_shim::onednn::{Activation, PackedLinear};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

type Fault = Box<dyn std::error::Error>;

/// Ticks of processor time of this process, user and system (`proc_pid_stat(5)`, fields 14 and 15); a hundred a second.
fn ticks() -> Result<u64, Fault> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    match fields.get(11..13) {
        Some([user, system]) => Ok(user.parse::<u64>()? + system.parse::<u64>()?),
        _ => Err("/proc/self/stat is cut off".into()),
    }
}

fn seconds_since(before: u64) -> Result<f64, Fault> {
    Ok((ticks()? - before) as f64 / 100.0)
}

fn peak_kib() -> Result<u64, Fault> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap_or_default();
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn main() -> Result<(), Fault> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    device::check_library()?;
    device::set_threads(1);
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["products", hidden, inner, tokens, precision, seconds] => products(
            [hidden.parse()?, inner.parse()?, tokens.parse()?],
            precision,
            seconds.parse()?,
        )?,
        [artifact, batches, precision, seconds] => answers(artifact, batches, precision, seconds.parse()?)?,
        _ => return Err("give artifact, batches, precision and seconds; see the head of this program".into()),
    };
    println!("{result}");
    Ok(())
}

fn precision_of(word: &str) -> Result<Precision, Fault> {
    Ok(precision::choose(
        serde_json::from_value(json!(word))?,
        TensorDevice::Cpu,
    )?)
}

fn answers(artifact: &str, batches: &str, precision: &str, seconds: u64) -> Result<Value, Fault> {
    let batches: Vec<Vec<Vec<i64>>> = serde_json::from_slice(&fs::read(batches)?)?;
    let start = Instant::now();
    let chosen = precision_of(precision)?;
    let classifier = Classifier::load(Path::new(artifact), TensorDevice::Cpu, chosen)?;
    let load = start.elapsed();
    // Every batch once, so that no kernel is made while time is taken.
    let mut labels = Vec::new();
    for batch in &batches {
        for answer in classifier.predict(batch)? {
            labels.push(most_probable(&answer).map(|(label, _)| label));
        }
    }
    let (limit, begun, before) = (Duration::from_secs(seconds), Instant::now(), ticks()?);
    let mut rows = 0;
    for batch in batches.iter().cycle() {
        if begun.elapsed() >= limit {
            break;
        }
        rows += classifier.predict(batch)?.len();
    }
    Ok(
        json!({"rows": rows, "cpuSeconds": seconds_since(before)?, "peakKiB": peak_kib()?, "loadSeconds": load.as_secs_f64(),
              "precision": chosen, "labels": labels}),
    )
}

fn products([hidden, inner, tokens]: [i64; 3], precision: &str, seconds: u64) -> Result<Value, Fault> {
    let kind = match precision_of(precision)? {
        Precision::BFloat16 => Kind::BFloat16,
        _ => Kind::Float,
    };
    let options = (Kind::Float, TensorDevice::Cpu);
    let mut maps = Vec::new();
    for (from, to) in [(hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden)] {
        let [weight, bias, x] =
            [vec![to, from], vec![to], vec![tokens, from]].map(|shape| Tensor::randn(shape, options).to_kind(kind));
        maps.push((PackedLinear::new(&weight, &bias, tokens)?, x, 2 * tokens * from * to));
    }
    let (limit, begun, before) = (Duration::from_secs(seconds), Instant::now(), ticks()?);
    let mut flops = 0;
    while begun.elapsed() < limit {
        for (map, x, work) in &maps {
            drop(map.forward(x, Activation::None)?);
            flops += work;
        }
    }
    Ok(json!({"flops": flops, "cpuSeconds": seconds_since(before)?}))
}
