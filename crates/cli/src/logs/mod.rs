//! `logs`: the log of an attempt's pod; following goes on over a broken connection, a suspension and a restart.

mod lines;

use std::collections::HashSet;
use std::io::Write;
use std::time::Duration;

use flywheel_api::TrainingJob;
use flywheel_api::names::TRAINER;
use futures::{AsyncBufRead, AsyncBufReadExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::LogParams;

use crate::cluster::{CALL_TIMEOUT, Cluster, Patience};
use crate::error::Error;
use crate::training::{Attempt, attempts, ended, has_log, is_first, runs, standing};
use lines::Lines;

/// Time between two looks for the next pod.
const INTERVAL: Duration = Duration::from_secs(2);
/// Silence after which is asked whether the pod still runs: of a dead node's pod no end ever comes.
const SILENCE: Duration = Duration::from_secs(15);

/// Prints the log of `attempt`, or of the current one; with `follow` to the end of the job, or of that attempt.
pub(crate) async fn run(
    cluster: &Cluster,
    name: &str,
    follow: bool,
    attempt: Option<u32>,
    out: &mut dyn Write,
) -> Result<(), Error> {
    if follow {
        return Box::pin(follow_all(cluster, name, attempt, out)).await;
    }
    let (job, all) = look(cluster, name).await?;
    let chosen = match attempt {
        Some(number) => all.iter().find(|a| a.number == number),
        None => all.last(),
    };
    let Some(pod) = chosen.and_then(Attempt::pod).filter(|pod| has_log(pod)) else {
        return Err(Error::NoPod(no_log(&job, &all, attempt)));
    };
    let pod = pod.name_any();
    let mut lines = Lines::default();
    let mut stream = open(cluster, &pod, false, &lines).await?;
    loop {
        match tokio::time::timeout(CALL_TIMEOUT, piece(&pod, &mut stream, &mut lines, out)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                let why = format!("nothing came for {} s", CALL_TIMEOUT.as_secs());
                return Err(Error::Log { pod, why });
            }
        }
    }
}

/// Why there is no log, and where there is one.
fn no_log(job: &TrainingJob, all: &[Attempt], wanted: Option<u32>) -> String {
    let with_log = all.iter().filter(|a| a.pod().is_some_and(has_log));
    let numbers: Vec<String> = with_log.map(|a| a.number.to_string()).collect();
    let there = if numbers.is_empty() {
        "none has a log".to_owned()
    } else {
        format!("those with a log: {}", numbers.join(", "))
    };
    let (reason, message) = standing(job);
    let which = wanted.map_or_else(|| "the current attempt".to_owned(), |n| format!("attempt {n}"));
    crate::text::clean(&format!(
        "{which} of TrainingJob {} has no pod that ran ({there}). The job stands at {reason}: {message}",
        job.name_any()
    ))
}

/// Follows one pod after the other.
async fn follow_all(cluster: &Cluster, name: &str, only: Option<u32>, out: &mut dyn Write) -> Result<(), Error> {
    let mut done = HashSet::new();
    let mut start = None;
    let mut told = None;
    let mut patience = Patience::default();
    loop {
        let (job, all) = match look(cluster, name).await {
            Ok(found) => found,
            Err(error) => {
                patience.bear(error)?;
                tokio::time::sleep(INTERVAL).await;
                continue;
            }
        };
        patience.reset();
        // Attempts before the current one are not asked for.
        let start = *start.get_or_insert_with(|| all.last().map_or(0, |a| a.number));
        let wanted = |a: &&Attempt| only.map_or(a.number >= start, |n| a.number == n);
        let of_attempt = |a: &Attempt| a.pods.iter().map(|p| (a.number, p.clone())).collect::<Vec<_>>();
        let mut pods = all.iter().filter(wanted).flat_map(of_attempt);
        let next = pods.find(|(_, p)| is_first(p) && has_log(p) && !done.contains(&p.uid().unwrap_or_default()));
        match next {
            Some((number, pod)) => {
                if !done.is_empty() || told.is_some() {
                    eprintln!("-- attempt {number}, pod {}", pod.name_any());
                }
                follow_pod(cluster, &pod, out).await?;
                done.insert(pod.uid().unwrap_or_default());
                told = None;
            }
            None => {
                let passed = |n: u32| !done.is_empty() || all.iter().any(|a| a.number > n);
                if ended(&job).is_some() || only.is_some_and(passed) {
                    if done.is_empty() {
                        return Err(Error::NoPod(no_log(&job, &all, only)));
                    }
                    return Ok(());
                }
                let now = standing(&job);
                if told.as_ref() != Some(&now) {
                    eprintln!("-- waiting for a pod: {}: {}", now.0, crate::text::clean(&now.1));
                    told = Some(now);
                }
                tokio::time::sleep(INTERVAL).await;
            }
        }
    }
}

async fn look(cluster: &Cluster, name: &str) -> Result<(TrainingJob, Vec<Attempt>), Error> {
    let job: TrainingJob = cluster.get(name).await?;
    let all = attempts(cluster, &job).await?;
    Ok((job, all))
}

/// Follows a pod to the end of its container. A connection that breaks is opened again where it broke.
async fn follow_pod(cluster: &Cluster, pod: &Pod, out: &mut dyn Write) -> Result<(), Error> {
    let (name, uid) = (pod.name_any(), pod.uid());
    let mut lines = Lines::default();
    let mut patience = Patience::default();
    loop {
        match open(cluster, &name, true, &lines).await {
            Ok(mut stream) => {
                patience.reset();
                loop {
                    match tokio::time::timeout(SILENCE, piece(&name, &mut stream, &mut lines, out)).await {
                        Ok(Ok(true)) => {}
                        Ok(Err(error @ Error::Output(_))) => return Err(error),
                        Ok(_) => break,
                        Err(_) if still_runs(cluster, &name, uid.as_deref()).await => {}
                        Err(_) => break,
                    }
                }
            }
            // It was deleted with its log.
            Err(Error::NotFound { .. }) => return Ok(()),
            Err(error) => patience.bear(error)?,
        }
        if !still_runs(cluster, &name, uid.as_deref()).await {
            return Ok(());
        }
        lines.resume(out)?;
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Whether the pod is there and its trainer runs. Where nobody can say, it counts as running.
async fn still_runs(cluster: &Cluster, name: &str, uid: Option<&str>) -> bool {
    match cluster.get::<Pod>(name).await {
        Ok(pod) => pod.uid().as_deref() == uid && runs(&pod),
        Err(Error::NotFound { .. }) => false,
        Err(_) => true,
    }
}

/// The pod's log from where `lines` stopped.
async fn open(
    cluster: &Cluster,
    pod: &str,
    follow: bool,
    lines: &Lines,
) -> Result<impl AsyncBufRead + Unpin + use<>, Error> {
    let params = LogParams {
        container: Some(TRAINER.to_owned()),
        follow,
        // They tell where to go on after a break.
        timestamps: true,
        since_time: lines.last(),
        ..LogParams::default()
    };
    let what = format!("read the log of pod {pod}");
    cluster.ask(&what, cluster.api::<Pod>().log_stream(pod, &params)).await
}

/// Prints what comes next; false at the end.
async fn piece(
    pod: &str,
    stream: &mut (impl AsyncBufRead + Unpin),
    lines: &mut Lines,
    out: &mut dyn Write,
) -> Result<bool, Error> {
    let broken = |e: std::io::Error| Error::Log {
        pod: pod.to_owned(),
        why: e.to_string(),
    };
    let length = {
        let bytes = stream.fill_buf().await.map_err(broken)?;
        lines.print(bytes, out)?;
        bytes.len()
    };
    out.flush()?;
    stream.consume_unpin(length);
    Ok(length > 0)
}

#[cfg(test)]
mod tests {
    use flywheel_testkit::objects::training_job;
    use serde_json::json;

    use super::*;

    #[test]
    fn why_there_is_no_log_says_where_the_job_stands() {
        let job = training_job(&json!({"status": {"conditions": [
            {"type": "Ready", "status": "False", "reason": "NoMatchingGPU", "message": "no node", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        ]}}));
        assert_eq!(
            no_log(&job, &[], Some(2)),
            "attempt 2 of TrainingJob intent has no pod that ran (none has a log). The job stands at NoMatchingGPU: no node"
        );
    }
}
