//! `flywheel-loadgen`: open-loop load on an HTTP endpoint; prints one JSON object of figures.
#![allow(clippy::print_stdout, reason = "the figures are the output of this program")]

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use clap::Parser;
use flywheel_loadgen::{Outcome, Plan, run, summary};
use serde::Serialize;

/// Offers an HTTP endpoint requests at a rate, whether it answers or not, and times each from the instant at which it was due.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// The server.
    #[arg(long)]
    address: SocketAddr,
    /// Path of the requests.
    #[arg(long, default_value = "/predict")]
    path: String,
    /// File of bodies, one JSON document per line, sent in turn.
    #[arg(long)]
    bodies: PathBuf,
    /// Requests per second on average.
    #[arg(long)]
    rate: f64,
    /// How long, seconds.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Most connections.
    #[arg(long, default_value_t = 256)]
    connections: usize,
    /// How long an answer is waited for, milliseconds.
    #[arg(long, default_value_t = 5000)]
    patience_milliseconds: u64,
    /// Within what an answer is of use, milliseconds.
    #[arg(long, default_value_t = 200)]
    objective_milliseconds: u64,
    /// Of the gaps between requests.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write how each request ended, in the order in which they were due, one JSON document per line: `at` (when it was
    /// due, seconds since 1970), `latency` (seconds from then), `body` (its line in the file of bodies), `status` (0 without an
    /// answer) and `answer` (the text, or why there is none).
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
}

/// A line of `--answers`.
#[derive(Serialize)]
struct Line<'a> {
    at: f64,
    latency: f64,
    body: usize,
    status: u16,
    answer: Cow<'a, str>,
}

fn write_answers(path: &Path, start: SystemTime, outcomes: &mut [Outcome]) -> Result<(), Box<dyn std::error::Error>> {
    let start = start.duration_since(UNIX_EPOCH)?;
    outcomes.sort_by_key(|outcome| outcome.due);
    let mut file = BufWriter::new(File::create(path)?);
    for outcome in outcomes {
        let (status, answer) = match &outcome.answer {
            Ok((status, body)) => (status.as_u16(), String::from_utf8_lossy(body)),
            Err(why) => (0, Cow::from(why.as_str())),
        };
        let line = Line {
            at: (start + outcome.due).as_secs_f64(),
            latency: outcome.latency.as_secs_f64(),
            body: outcome.body,
            status,
            answer,
        };
        serde_json::to_writer(&mut file, &line)?;
        file.write_all(b"\n")?;
    }
    Ok(file.flush()?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    if !(options.rate.is_finite() && options.rate > 0.0 && options.seconds.is_finite() && options.seconds > 0.0) {
        return Err("rate and seconds must be positive".into());
    }
    let text = std::fs::read_to_string(&options.bodies).map_err(|e| format!("{}: {e}", options.bodies.display()))?;
    let bodies: Vec<Bytes> = text.lines().map(|line| Bytes::from(line.to_owned())).collect();
    if bodies.is_empty() {
        return Err(format!("{} has no lines", options.bodies.display()).into());
    }
    let duration = Duration::from_secs_f64(options.seconds);
    let plan = Plan {
        address: options.address,
        path: options.path,
        bodies,
        rate: options.rate,
        duration,
        connections: options.connections.max(1),
        patience: Duration::from_millis(options.patience_milliseconds),
        seed: options.seed,
    };
    let start = SystemTime::now();
    let mut outcomes = Vec::new();
    // One thread: it must not take the processor from the server that it measures.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run(plan, |outcome| outcomes.push(outcome)));
    let figures = summary(
        &outcomes,
        duration,
        Duration::from_millis(options.objective_milliseconds),
    );
    if let Some(path) = &options.answers {
        write_answers(path, start, &mut outcomes).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}
