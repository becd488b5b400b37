//! Answers batches of token ids over and over, on one thread, and prints how many rows a second of processor time gives:
//! the model alone, for `make bench-serve`.
//!
//! `answers <artifact> <batches.json> <precision> <seconds>`: the file holds batches of rows of token ids. Prints one JSON
//! object: rows, cpuSeconds, peakKiB, loadSeconds, labels (of every row of the file, in order).
//!
//! `answers compare <artifact> <batches.json> <precision>`: how near the answers are to those in `Float32`. Prints {"rows", "sameLabels",
//! "cosine": {"least", "median"}}, the cosines being those of the hidden states that the head looks at.
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
use flywheel_torch_shim::int8::ByteLinear;
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
        ["compare", artifact, batches, precision] => compare(artifact, batches, precision)?,
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

fn compare(artifact: &str, batches: &str, precision: &str) -> Result<Value, Fault> {
    let batches: Vec<Vec<Vec<i64>>> = serde_json::from_slice(&fs::read(batches)?)?;
    let load = |precision| Classifier::load(Path::new(artifact), TensorDevice::Cpu, precision);
    let (exact, other) = (load(Precision::Float32)?, load(precision_of(precision)?)?);
    let label = |answer: &Vec<f32>| most_probable(answer).map(|(label, _)| label);
    let (mut same, mut cosines) = (0, Vec::new());
    for batch in &batches {
        let answers = exact.predict(batch)?.into_iter().zip(other.predict(batch)?);
        same += answers.filter(|(a, b)| label(a) == label(b)).count();
        let states = exact.first_states(batch)?.into_iter().zip(other.first_states(batch)?);
        cosines.extend(states.map(|(a, b)| {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
        }));
    }
    cosines.sort_by(f64::total_cmp);
    Ok(json!({"rows": cosines.len(), "sameLabels": same,
              "cosine": {"least": cosines.first(), "median": cosines.get(cosines.len() / 2)}}))
}

/// One product, computed anew at every call.
type Product = Box<dyn Fn() -> Result<Tensor, flywheel_torch_shim::Error>>;

fn products([hidden, inner, tokens]: [i64; 3], precision: &str, seconds: u64) -> Result<Value, Fault> {
    let precision = precision_of(precision)?;
    let kind = match precision {
        Precision::BFloat16 => Kind::BFloat16,
        _ => Kind::Float,
    };
    let options = (Kind::Float, TensorDevice::Cpu);
    let mut maps: Vec<(Product, i64)> = Vec::new();
    for (from, to) in [(hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden)] {
        let [weight, bias, x] =
            [vec![to, from], vec![to], vec![tokens, from]].map(|shape| Tensor::randn(shape, options).to_kind(kind));
        let work = 2 * tokens * from * to;
        if precision == Precision::Int8 {
            let whole = |x: &Tensor, kind| x.multiply_scalar(20.0).clamp(-127.0, 127.0).round().to_kind(kind);
            let steps = Tensor::ones([to], options);
            let map = ByteLinear::new(&whole(&weight, Kind::Int8), &steps, &bias, 1.0, 128, tokens)?;
            let x = (whole(&x, Kind::Int) + 128).to_kind(Kind::Uint8);
            maps.push((Box::new(move || map.forward(&x)), work));
        } else {
            let map = PackedLinear::new(&weight, &bias, tokens)?;
            maps.push((Box::new(move || map.forward(&x, Activation::None)), work));
        }
    }
    let (limit, begun, before) = (Duration::from_secs(seconds), Instant::now(), ticks()?);
    let mut flops = 0;
    while begun.elapsed() < limit {
        for (map, work) in &maps {
            drop(map()?);
            flops += work;
        }
    }
    Ok(json!({"flops": flops, "cpuSeconds": seconds_since(before)?}))
}
