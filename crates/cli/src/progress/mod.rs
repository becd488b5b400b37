//! `progress`: what the training pod itself tells, and the status where no pod runs.

mod screen;

use std::time::{Duration, Instant};

use flywheel_api::TrainingJob;
use flywheel_api::training_job::{EvaluationStatus, ProgressStatus, ResultStatus, TrackingStatus};
use flywheel_contract::names::{INSIDE_PORT, PROGRESS_PATH};
use flywheel_contract::progress::Progress;
use kube::ResourceExt as _;
use serde::Serialize;

use crate::Outcome;
use crate::cluster::{Cluster, Patience};
use crate::error::Error;
use crate::forward::PodPort;
use crate::training::{End, attempts, ended, runs, standing};

pub(crate) use screen::Screen;

/// Time between two looks at a pod.
const LIVE_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two looks at the objects where there is no pod, and while a pod tells.
const OBJECT_INTERVAL: Duration = Duration::from_secs(2);
const OBJECT_INTERVAL_LIVE: Duration = Duration::from_secs(5);
/// Longest wait for a pod's answer; a busy trainer answers in milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of a pod's answer, as the operator reads it.
const ANSWER_MAX: usize = 64 * 1024;

/// How a training stands at one moment; printed as it is by `-o json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Standing {
    /// Name of the TrainingJob.
    training_job: String,
    namespace: String,
    /// The status' word.
    state: String,
    /// Reason and message of the condition that sums up.
    reason: String,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    restarts: Option<i64>,
    /// What the pod tells, where one runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Progress>,
    /// Why a running pod cannot be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_error: Option<String>,
    /// What the status tells; it may be a minute old.
    #[serde(skip_serializing_if = "Option::is_none")]
    reported: Option<ProgressStatus>,
    /// The last evaluations: the pod's, or the status' where no pod tells any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    evaluations: Vec<EvaluationStatus>,
    /// Where else figures are to be seen, from the pod or the status.
    #[serde(skip_serializing_if = "Option::is_none")]
    tracking: Option<TrackingStatus>,
    /// What came out.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<ResultStatus>,
    #[serde(skip)]
    end: Option<End>,
}

impl Standing {
    /// In one sentence, with the figures of the pod where one tells them.
    pub(crate) fn headline(&self) -> String {
        screen::sentence(self)
    }

    fn of(job: &TrainingJob) -> Self {
        let status = job.status.clone().unwrap_or_default();
        let (reason, message) = standing(job);
        Self {
            training_job: job.name_any(),
            namespace: job.namespace().unwrap_or_default(),
            state: status.state.unwrap_or_else(|| "Pending".to_owned()),
            reason,
            message,
            attempt: status.attempt,
            restarts: status.restarts,
            progress: None,
            pod_error: None,
            reported: status.progress,
            evaluations: status.evaluations,
            tracking: status.tracking,
            result: status.result,
            end: ended(job),
        }
    }
}

/// Shows how the training stands, with `watch` until it ends.
pub(crate) async fn run(cluster: &Cluster, name: &str, watch: bool, mut screen: Screen<'_>) -> Result<Outcome, Error> {
    let mut view = View::new(cluster, name);
    let mut patience = Patience::default();
    loop {
        match view.look().await {
            Ok(standing) => {
                patience.reset();
                screen.show(&standing)?;
                match standing.end {
                    Some(End::Complete) => return Ok(Outcome::Done),
                    Some(End::Failed) => return Ok(Outcome::TrainingFailed),
                    None if !watch => return Ok(Outcome::Done),
                    None => {}
                }
            }
            Err(error) if watch => {
                let words = error.to_string();
                patience.bear(error)?;
                screen.trouble(&words);
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(view.interval()).await;
    }
}

/// A TrainingJob and the pod of its current attempt, as last seen.
pub(crate) struct View<'a> {
    cluster: &'a Cluster,
    name: String,
    job: Option<(Instant, TrainingJob)>,
    pod: Option<PodPort>,
    /// Whether that pod has answered.
    answered: bool,
}

impl<'a> View<'a> {
    pub(crate) fn new(cluster: &'a Cluster, name: &str) -> Self {
        Self {
            cluster,
            name: name.to_owned(),
            job: None,
            pod: None,
            answered: false,
        }
    }

    /// Name of the TrainingJob.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn interval(&self) -> Duration {
        if self.pod.is_some() {
            LIVE_INTERVAL
        } else {
            OBJECT_INTERVAL
        }
    }

    /// How it stands now.
    pub(crate) async fn look(&mut self) -> Result<Standing, Error> {
        let known = self
            .job
            .take_if(|(at, _)| self.pod.is_some() && at.elapsed() < OBJECT_INTERVAL_LIVE);
        let (at, job) = match known {
            Some(known) => known,
            None => (Instant::now(), self.read().await?),
        };
        let mut standing = Standing::of(&job);
        if let Some(pod) = &mut self.pod {
            match pod
                .get_json::<Progress>(PROGRESS_PATH, ANSWER_TIMEOUT, ANSWER_MAX)
                .await
            {
                Ok(progress) => {
                    let live = EvaluationStatus::list(&progress.evaluations);
                    if !live.is_empty() {
                        standing.evaluations = live;
                    }
                    standing.tracking = TrackingStatus::told(&progress.tracking).or(standing.tracking);
                    standing.progress = Some(progress);
                    self.answered = true;
                }
                // It is starting or ending, or its node is away: the status goes on telling. One that answered before has most
                // likely ended, which is no trouble; the next look knows.
                Err(error) if error.may_pass() => {
                    standing.pod_error = (!self.answered).then(|| error.to_string());
                    self.pod = None;
                    self.answered = false;
                }
                Err(error) => return Err(error),
            }
        }
        self.job = Some((at, job));
        Ok(standing)
    }

    /// Reads the job, and finds the pod that tells of it.
    async fn read(&mut self) -> Result<TrainingJob, Error> {
        let job: TrainingJob = self.cluster.get(&self.name).await?;
        let current = job.status.as_ref().and_then(|s| s.attempt);
        let found = match current {
            Some(current) if ended(&job).is_none() => attempts(self.cluster, &job)
                .await?
                .iter()
                .find(|attempt| i64::from(attempt.number) == current)
                .and_then(|attempt| attempt.pod().filter(|pod| runs(pod)).map(|pod| pod.name_any())),
            _ => None,
        };
        // A connection that stands is kept.
        let kept = self.pod.take().filter(|open| Some(open.pod()) == found.as_deref());
        self.answered &= kept.is_some();
        self.pod = kept.or_else(|| Some(PodPort::new(self.cluster, found?, INSIDE_PORT)));
        Ok(job)
    }
}

#[cfg(test)]
mod tests {
    use flywheel_testkit::objects::{CREATED, training_job};
    use flywheel_testkit::{Scenario, Step};
    use serde_json::{Value, json};

    use super::*;

    const JOB: &str = "/apis/flywheel.dev/v1alpha1/namespaces/team/trainingjobs/intent";

    fn status(state: &str, kind: &str, reason: &str) -> Value {
        let job = training_job(&json!({"status": {
        "state": state, "attempt": 2, "restarts": 1, "conditions": [
            {"type": kind, "status": "True", "reason": reason, "message": "why", "lastTransitionTime": CREATED},
            {"type": "Ready", "status": "False", "reason": reason, "message": "why", "lastTransitionTime": CREATED}
        ]}}));
        serde_json::to_value(job).unwrap()
    }

    async fn told(steps: Vec<Step>, watch: bool) -> (Result<Outcome, Error>, Vec<Value>) {
        let (client, scenario) = Scenario::start(steps);
        let mut out = Vec::new();
        let outcome = run(&Cluster::of(client, "team"), "intent", watch, Screen::json(&mut out)).await;
        scenario.finish().await;
        let lines = String::from_utf8(out).unwrap();
        (
            outcome,
            lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect(),
        )
    }

    #[tokio::test]
    async fn a_job_that_nobody_has_seen_is_told_without_looking_for_pods() {
        let job = serde_json::to_value(training_job(&json!({}))).unwrap();
        let (outcome, lines) = told(vec![Step::get(JOB, job)], false).await;
        assert_eq!(outcome.unwrap(), Outcome::Done);
        assert_eq!(lines[0]["state"], "Pending");
        assert!(
            lines[0]["message"]
                .as_str()
                .unwrap()
                .contains("kubectl flywheel version")
        );
        assert!(lines[0].get("progress").is_none());
    }

    #[tokio::test]
    async fn a_job_without_a_pod_is_told_from_its_condition() {
        let steps = vec![
            Step::get(JOB, status("Pending", "Reconciling", "NoMatchingGPU")),
            Step::list("/apis/batch/v1/namespaces/team/jobs", "Job", "batch/v1", vec![]),
            Step::list("/api/v1/namespaces/team/pods", "Pod", "v1", vec![]),
        ];
        let (outcome, lines) = told(steps, false).await;
        assert_eq!(outcome.unwrap(), Outcome::Done);
        assert_eq!(
            (&lines[0]["reason"], &lines[0]["message"], &lines[0]["attempt"]),
            (&json!("NoMatchingGPU"), &json!("why"), &json!(2))
        );
    }

    #[tokio::test]
    async fn watching_ends_with_the_job_and_says_how() {
        for (kind, outcome) in [("Complete", Outcome::Done), ("Failed", Outcome::TrainingFailed)] {
            let steps = vec![
                Step::get(JOB, serde_json::to_value(training_job(&json!({}))).unwrap()),
                Step::refuse("GET", JOB, 500, "InternalError", "etcd"),
                Step::get(JOB, status(kind, kind, "R")),
            ];
            let (end, lines) = told(steps, true).await;
            assert_eq!(end.unwrap(), outcome);
            assert_eq!(lines.len(), 2);
        }
    }

    #[tokio::test]
    async fn watching_ends_where_there_is_nothing_to_wait_for() {
        let gone = Step::refuse(
            "GET",
            JOB,
            404,
            "NotFound",
            "trainingjobs.flywheel.dev \"intent\" not found",
        );
        let (outcome, lines) = told(vec![gone], true).await;
        assert!(matches!(outcome, Err(Error::NotFound { .. })));
        assert!(lines.is_empty());
    }
}
