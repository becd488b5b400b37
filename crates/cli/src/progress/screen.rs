//! Where a training's standing is shown: a bar on a terminal, `key=value` lines or JSON otherwise.

use std::io::Write;
use std::time::{Duration, Instant};

use flywheel_api::training_job::{EvaluationStatus, SinkStatus};
use flywheel_contract::progress::Progress;
use flywheel_contract::scalar::Decimal;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

use super::Standing;
use crate::error::Error;
use crate::text::{clean, length, pair};

/// Least time between two lines that tell only of new figures.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Evaluations of the past that a bar begins with.
const EVALUATIONS_SHOWN: usize = 5;

/// Where a training's standing is shown.
pub(crate) enum Screen<'a> {
    /// A bar on the terminal.
    Bar(Bar<'a>),
    /// Lines of `key=value`.
    Lines {
        out: &'a mut dyn Write,
        last: Option<(Instant, String)>,
    },
    /// Lines of JSON.
    Json(&'a mut dyn Write),
}

impl<'a> Screen<'a> {
    pub(crate) fn bar(out: &'a mut dyn Write) -> Self {
        Self::Bar(Bar {
            out,
            bar: None,
            last: None,
            evaluated: None,
        })
    }

    pub(crate) fn lines(out: &'a mut dyn Write) -> Self {
        Self::Lines { out, last: None }
    }

    pub(crate) fn json(out: &'a mut dyn Write) -> Self {
        Self::Json(out)
    }

    /// Shows the standing; lines of figures come no faster than [`LINE_INTERVAL`], news at once.
    pub(crate) fn show(&mut self, standing: &Standing) -> Result<(), Error> {
        match self {
            Self::Bar(bar) => bar.show(standing)?,
            Self::Lines { out, last } => {
                let news = news(standing);
                let due = last.as_ref().is_none_or(|(at, told)| {
                    *told != news || (standing.progress.is_some() && at.elapsed() >= LINE_INTERVAL)
                });
                if due {
                    writeln!(out, "{}", line(standing))?;
                    out.flush()?;
                    *last = Some((Instant::now(), news));
                }
            }
            Self::Json(out) => {
                serde_json::to_writer(&mut **out, standing).map_err(std::io::Error::from)?;
                writeln!(out)?;
                out.flush()?;
            }
        }
        Ok(())
    }

    /// Says that a look failed, where somebody watches.
    pub(crate) fn trouble(&self, words: &str) {
        match self {
            Self::Bar(Bar { bar: Some(bar), .. }) => bar.set_message(clean(words)),
            _ => eprintln!("{words}"),
        }
    }
}

/// A bar while a pod tells, with a line above it for each piece of news.
pub(crate) struct Bar<'a> {
    out: &'a mut dyn Write,
    bar: Option<ProgressBar>,
    last: Option<String>,
    /// The last epoch whose evaluation was shown.
    evaluated: Option<i64>,
}

impl Bar<'_> {
    fn show(&mut self, standing: &Standing) -> std::io::Result<()> {
        let news = news(standing);
        if self.last.as_ref() != Some(&news) {
            let mut lines = vec![headline(standing)];
            lines.extend(self.evaluations(&standing.evaluations));
            let mut tell = || lines.iter().try_for_each(|line| writeln!(self.out, "{line}"));
            match &self.bar {
                Some(bar) => bar.suspend(tell)?,
                None => tell()?,
            }
            self.last = Some(news);
        }
        let Some(progress) = &standing.progress else {
            if let Some(bar) = self.bar.take() {
                bar.finish_and_clear();
            }
            return Ok(());
        };
        let bar = self.bar.get_or_insert_with(|| {
            // Drawn without a thread of its own; what is drawn last stays.
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
            bar.with_finish(ProgressFinish::Abandon)
        });
        if progress.total_steps > 0 {
            bar.set_style(style("{prefix} [{bar:30}] {pos}/{len} {percent}%\n{wide_msg}"));
            bar.set_length(progress.total_steps);
            bar.set_position(progress.step);
        } else {
            bar.set_style(style("{prefix}\n{wide_msg}"));
        }
        bar.set_prefix(phase(progress));
        bar.set_message(figures(progress));
        Ok(())
    }
}

impl Bar<'_> {
    /// Lines for the evaluations that were not shown yet.
    fn evaluations(&mut self, all: &[EvaluationStatus]) -> Vec<String> {
        let shown = self.evaluated;
        if let Some(last) = all.last() {
            // Epochs that a new attempt does again are told again.
            self.evaluated = Some(last.epoch);
        }
        let (first, fresh) = match shown {
            None => (all.len().saturating_sub(EVALUATIONS_SHOWN), None),
            Some(shown) => (0, Some(shown)),
        };
        let new = all.iter().skip(first);
        new.filter(|e| fresh.is_none_or(|shown| e.epoch > shown))
            .map(evaluation)
            .collect()
    }
}

/// An evaluation, for people.
fn evaluation(told: &EvaluationStatus) -> String {
    let figures = [
        ("loss", &told.train_loss),
        ("validation loss", &told.validation_loss),
        ("accuracy", &told.accuracy),
        ("macro F1", &told.macro_f1),
    ];
    let known: Vec<String> = figures
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name} {}", clean(&value.as_ref()?.0))))
        .collect();
    format!("epoch {}: {}", told.epoch, known.join(", "))
}

fn problem(sink: Option<&SinkStatus>) -> Option<String> {
    sink.and_then(|s| s.problem.clone())
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

/// What makes a standing another one, apart from its figures.
fn news(standing: &Standing) -> String {
    format!(
        "{} {} {} {:?} {:?} {} {:?} {}",
        standing.state,
        standing.reason,
        standing.message,
        standing.attempt,
        standing.progress.as_ref().map(|p| p.phase),
        standing.pod_error.is_some(),
        standing.evaluations.last().map(|e| e.epoch),
        standing
            .tracking
            .as_ref()
            .is_some_and(|t| problem(t.tensor_board.as_ref())
                .or(problem(t.mlflow.as_ref()))
                .is_some())
    )
}

/// The standing in one sentence.
fn headline(standing: &Standing) -> String {
    let mut text = format!("{}: {}", standing.training_job, standing.state);
    if let Some(attempt) = standing.attempt.filter(|a| *a > 1) {
        text.push_str(&format!(", attempt {attempt}"));
    }
    text.push_str(&format!(": {}", clean(&standing.message)));
    if let Some(error) = &standing.pod_error {
        text.push_str(&format!(" (live figures are missing: {})", clean(error)));
    }
    for (name, sink) in [
        (
            "TensorBoard",
            standing.tracking.as_ref().and_then(|t| t.tensor_board.as_ref()),
        ),
        ("MLflow", standing.tracking.as_ref().and_then(|t| t.mlflow.as_ref())),
    ] {
        if let Some(words) = problem(sink) {
            text.push_str(&format!(" ({name}: {})", clean(&words)));
        }
    }
    if let Some(result) = &standing.result {
        text.push_str(&format!(" (ModelVersion {}", clean(&result.model_version)));
        for metric in &result.metrics {
            text.push_str(&format!(", {} {}", metric.name, metric.value.0));
        }
        text.push(')');
    }
    text
}

/// The standing in one sentence, with what a running pod tells.
pub(super) fn sentence(standing: &Standing) -> String {
    match &standing.progress {
        None => headline(standing),
        Some(progress) => {
            let steps = format!("{}/{}", progress.step, progress.total_steps);
            let words = [phase(progress), format!("step {steps}"), figures(progress)];
            format!("{}: {}", standing.training_job, words.join(", "))
        }
    }
}

fn phase(progress: &Progress) -> String {
    if progress.epoch > 0 {
        format!(
            "{:?} epoch {}/{}",
            progress.phase, progress.epoch, progress.total_epochs
        )
    } else {
        format!("{:?}", progress.phase)
    }
}

/// The figures of a running pod, for people.
fn figures(progress: &Progress) -> String {
    let checkpoint = &progress.checkpoint;
    let parts = [
        progress.loss.map(|v| format!("loss {v:.4}")),
        progress.learning_rate.map(|v| format!("learning rate {v:.2e}")),
        progress.grad_norm.map(|v| format!("gradient norm {v:.3}")),
        progress.examples_per_second.map(|v| format!("{v:.1} examples/s")),
        progress
            .validation_accuracy
            .map(|v| format!("validation accuracy {v:.4}")),
        checkpoint.step.map(|step| match checkpoint.age_seconds {
            Some(age) => format!("checkpoint at step {step}, {} ago", length(age.max(0.0) as u64)),
            None => format!("checkpoint at step {step}"),
        }),
        checkpoint
            .problem
            .as_ref()
            .map(|words| format!("checkpoint problem: {words}")),
        progress.eta_seconds.map(|v| format!("{} left", length(v))),
    ];
    clean(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

/// The standing as `key=value`. Keys keep their names and order; those without a value are left out.
fn line(standing: &Standing) -> String {
    let number = |v: Option<i64>| v.map(|v| v.to_string());
    let mut pairs = vec![
        ("state", Some(standing.state.clone())),
        ("attempt", number(standing.attempt)),
    ];
    match &standing.progress {
        Some(p) => pairs.extend([
            ("phase", Some(format!("{:?}", p.phase))),
            (
                "epoch",
                (p.epoch > 0).then(|| format!("{}/{}", p.epoch, p.total_epochs)),
            ),
            (
                "step",
                (p.total_steps > 0).then(|| format!("{}/{}", p.step, p.total_steps)),
            ),
            ("loss", p.loss.map(|v| format!("{v:.4}"))),
            ("learning_rate", p.learning_rate.map(|v| format!("{v:.2e}"))),
            ("grad_norm", p.grad_norm.map(|v| format!("{v:.4}"))),
            ("examples_per_second", p.examples_per_second.map(|v| format!("{v:.1}"))),
            ("eta_seconds", p.eta_seconds.map(|v| v.to_string())),
            ("validation_accuracy", p.validation_accuracy.map(|v| format!("{v:.4}"))),
            ("resumed_from_step", p.resumed_from_step.map(|v| v.to_string())),
            ("checkpoint_step", p.checkpoint.step.map(|v| v.to_string())),
            (
                "checkpoint_age_seconds",
                p.checkpoint.age_seconds.map(|v| format!("{v:.0}")),
            ),
            (
                "checkpoint_failures",
                (p.checkpoint.failures > 0).then(|| p.checkpoint.failures.to_string()),
            ),
            ("checkpoint_problem", p.checkpoint.problem.clone()),
        ]),
        None => {
            let reported = standing.reported.clone().unwrap_or_default();
            pairs.extend([
                ("reason", Some(standing.reason.clone())),
                ("message", Some(standing.message.clone())),
                ("phase", reported.phase),
                ("step", reported.step),
                ("loss", reported.loss),
                ("eta_seconds", number(reported.eta_seconds)),
                ("resumed_from_step", number(reported.resumed_from_step)),
                ("checkpoint_step", number(reported.checkpoint_step)),
                ("pod_error", standing.pod_error.clone()),
            ]);
        }
    }
    let last = standing.evaluations.last();
    let figure = |of: fn(&EvaluationStatus) -> &Option<Decimal>| last.and_then(|e| Some(of(e).as_ref()?.0.clone()));
    let tracking = standing.tracking.as_ref();
    pairs.extend([
        ("evaluated_epoch", number(last.map(|e| e.epoch))),
        ("epoch_loss", figure(|e| &e.train_loss)),
        ("epoch_validation_loss", figure(|e| &e.validation_loss)),
        ("epoch_accuracy", figure(|e| &e.accuracy)),
        ("epoch_macro_f1", figure(|e| &e.macro_f1)),
        (
            "tensorboard_problem",
            problem(tracking.and_then(|t| t.tensor_board.as_ref())),
        ),
        ("mlflow_problem", problem(tracking.and_then(|t| t.mlflow.as_ref()))),
    ]);
    let mut words: Vec<String> = pairs
        .into_iter()
        .filter_map(|(key, value)| Some(pair(key, &value?)))
        .collect();
    if let Some(result) = &standing.result {
        words.push(pair("model_version", &result.model_version));
        words.extend(result.metrics.iter().map(|m| pair(&m.name, &m.value.0)));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use flywheel_contract::SCHEMA_VERSION;
    use serde_json::json;

    use super::*;

    fn standing() -> Standing {
        Standing {
            training_job: "intent".to_owned(),
            namespace: "team".to_owned(),
            state: "Running".to_owned(),
            reason: "Running".to_owned(),
            message: "the pod runs".to_owned(),
            attempt: Some(1),
            restarts: Some(0),
            progress: None,
            pod_error: None,
            reported: None,
            evaluations: Vec::new(),
            tracking: None,
            result: None,
            end: None,
        }
    }

    fn progress(over: serde_json::Value) -> Progress {
        let base = json!({
            "schemaVersion": SCHEMA_VERSION, "attempt": 1, "phase": "Training", "phaseSeconds": 1.0, "step": 120,
            "totalSteps": 800, "epoch": 2, "totalEpochs": 3
        });
        serde_json::from_value(flywheel_testkit::objects::merged(base, &over)).unwrap()
    }

    #[test]
    fn a_running_pods_line_and_figures() {
        let full = json!({
            "loss": 0.432_19, "learningRate": 2e-5, "gradNorm": 0.5, "examplesPerSecond": 812.34, "etaSeconds": 95, "validationAccuracy": 0.9,
            "resumedFromStep": 50, "checkpoint": {"step": 100, "ageSeconds": 12.4, "failures": 1, "problem": "no \u{1b}[2Janswer"}
        });
        let standing = Standing {
            progress: Some(progress(full)),
            ..standing()
        };
        assert_eq!(
            line(&standing),
            "state=Running attempt=1 phase=Training epoch=2/3 step=120/800 loss=0.4322 learning_rate=2.00e-5 grad_norm=0.5000 \
             examples_per_second=812.3 eta_seconds=95 validation_accuracy=0.9000 resumed_from_step=50 checkpoint_step=100 \
             checkpoint_age_seconds=12 checkpoint_failures=1 checkpoint_problem=\"no  [2Janswer\""
        );
        let progress = standing.progress.as_ref().unwrap();
        assert_eq!(phase(progress), "Training epoch 2/3");
        assert_eq!(
            figures(progress),
            "loss 0.4322, learning rate 2.00e-5, gradient norm 0.500, 812.3 examples/s, validation accuracy 0.9000, checkpoint at step 100, 12s \
             ago, checkpoint problem: no  [2Janswer, 1m35s left"
        );
    }

    #[test]
    fn each_evaluation_is_told_once_and_the_last_of_the_past() {
        let of = |epochs: std::ops::RangeInclusive<i64>| -> Vec<EvaluationStatus> {
            let one = |epoch| json!({"epoch": epoch, "step": 7, "trainLoss": "0.5000", "validationLoss": "0.4000", "accuracy": "0.9000"});
            epochs
                .map(|epoch| serde_json::from_value(one(epoch)).unwrap())
                .collect()
        };
        let mut out = Vec::new();
        let Screen::Bar(mut bar) = Screen::bar(&mut out) else {
            panic!("no bar")
        };
        let mut told = |epochs| {
            let lines = bar.evaluations(&of(epochs));
            lines
                .iter()
                .map(|l| l.split(':').next().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(told(1..=9), ["epoch 5", "epoch 6", "epoch 7", "epoch 8", "epoch 9"]);
        assert!(told(1..=9).is_empty());
        assert_eq!(told(1..=11), ["epoch 10", "epoch 11"]);
        // A new attempt has gone back.
        assert!(told(1..=10).is_empty());
        assert_eq!(told(1..=11), ["epoch 11"]);
        let standing = Standing {
            evaluations: of(1..=2),
            tracking: serde_json::from_value(json!({"mlflow": {"uri": "http://m", "problem": "it is \u{1b}away"}}))
                .unwrap(),
            ..standing()
        };
        assert_eq!(
            evaluation(&standing.evaluations[1]),
            "epoch 2: loss 0.5000, validation loss 0.4000, accuracy 0.9000"
        );
        let text = line(&standing);
        assert!(
            text.contains("evaluated_epoch=2 epoch_loss=0.5000 epoch_validation_loss=0.4000 epoch_accuracy=0.9000 mlflow_problem=\"it is"),
            "{text}"
        );
        assert!(
            headline(&standing).ends_with("(MLflow: it is  away)"),
            "{}",
            headline(&standing)
        );
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let standing = Standing {
            progress: Some(progress(
                json!({"phase": "Downloading", "step": 0, "totalSteps": 0, "epoch": 0}),
            )),
            ..standing()
        };
        assert_eq!(line(&standing), "state=Running attempt=1 phase=Downloading");
        let progress = standing.progress.as_ref().unwrap();
        assert_eq!(
            (phase(progress), figures(progress)),
            ("Downloading".to_owned(), String::new())
        );
    }

    #[test]
    fn without_a_pod_the_status_tells() {
        let result = json!({"modelVersion": "intent-v1", "metrics": [{"name": "test/accuracy", "value": "0.931000"}]});
        let standing = Standing {
            state: "Complete".to_owned(),
            reason: "Trained".to_owned(),
            message: "the result is committed".to_owned(),
            attempt: Some(2),
            reported: serde_json::from_value(json!({"step": "800/800", "checkpointStep": 800})).unwrap(),
            result: serde_json::from_value(result).unwrap(),
            ..standing()
        };
        assert_eq!(
            line(&standing),
            "state=Complete attempt=2 reason=Trained message=\"the result is committed\" step=800/800 checkpoint_step=800 \
             model_version=intent-v1 test/accuracy=0.931000"
        );
        assert_eq!(
            headline(&standing),
            "intent: Complete, attempt 2: the result is committed (ModelVersion intent-v1, test/accuracy 0.931000)"
        );
    }

    #[test]
    fn lines_tell_news_at_once_and_figures_now_and_then() {
        let mut out = Vec::new();
        let mut screen = Screen::lines(&mut out);
        let with = |over| Standing {
            progress: Some(progress(over)),
            ..standing()
        };
        screen.show(&with(json!({}))).unwrap();
        screen.show(&with(json!({"step": 121}))).unwrap();
        screen.show(&with(json!({"phase": "Evaluating"}))).unwrap();
        let text = String::from_utf8(out).unwrap();
        let phases: Vec<&str> = text.lines().filter_map(|l| l.split(' ').nth(2)).collect();
        assert_eq!(phases, ["phase=Training", "phase=Evaluating"]);
    }
}
