//! `watch`: a service and what it learns, live: which version answers what, drift, feedback, training, rollout and news.

mod picture;

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use flywheel_api::InferenceService;
use flywheel_api::conditions::{find, types};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::ResourceExt as _;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, KeyCode, KeyModifiers};
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use ratatui::crossterm::{cursor, execute};
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::{Cluster, Patience};
use crate::error::Error;
use crate::progress::{Standing, View};
use crate::status::{event_time, events};
use crate::text::clean;

/// Time between two looks at the objects.
const INTERVAL: Duration = Duration::from_secs(2);
/// Time between two looks at the keyboard.
const KEYS: Duration = Duration::from_millis(50);
/// Least time between two lines of a training's figures, which are others at each look.
const FIGURES: Duration = Duration::from_secs(10);
/// How a line of a training begins.
const TRAINING: &str = "training: ";
/// Windows of live texts that are remembered for the curve.
const WINDOWS_MAX: usize = 120;

/// What the conditions are called that tell of the loop, in its order.
const LOOP: [&str; 4] = [
    types::DRIFT_DETECTED,
    types::RETRAINING,
    types::UPDATE_AVAILABLE,
    types::ROLLOUT_PROGRESSING,
];

/// What is seen at one moment.
#[derive(Default)]
struct Seen {
    service: Option<InferenceService>,
    /// The training that runs or ran last for the service.
    training: Option<Standing>,
    /// The newest first.
    events: Vec<Event>,
    /// Largest PSI of each window since the picture began, in thousandths, by its end.
    windows: Vec<(Timestamp, u64)>,
    /// What went wrong with the last look.
    trouble: Option<String>,
}

/// Shows a service until somebody ends it: a picture on a terminal, lines of news elsewhere.
pub(crate) async fn run(cluster: &Cluster, name: &str, out: &mut dyn Write, terminal: bool) -> Result<(), Error> {
    let mut watch = Watch {
        cluster,
        name,
        training: None,
        seen: Seen::default(),
    };
    // Before the picture, so that a name that is not there is said in the usual way.
    watch.look().await?;
    let mut told = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let ended = async {
        tokio::select! {
            _ = told.recv() => {}
            _ = interrupted.recv() => {}
        }
    };
    tokio::select! {
        () = ended => Ok(()),
        shown = async {
            if terminal {
                let mut screen = Screen::open(out)?;
                Box::pin(watch.draw(&mut screen)).await
            } else {
                Box::pin(watch.tell(out)).await
            }
        } => shown,
    }
}

/// The terminal while the picture has it; it is given back however the picture ends.
struct Screen<'a>(Terminal<CrosstermBackend<&'a mut dyn Write>>);

impl<'a> Screen<'a> {
    fn open(out: &'a mut dyn Write) -> std::io::Result<Self> {
        enable_raw_mode()?;
        let mut backend = CrosstermBackend::new(out);
        execute!(backend, EnterAlternateScreen)?;
        Ok(Self(Terminal::new(backend)?))
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        // Nobody is left to tell that it failed.
        let _ = disable_raw_mode();
        let _ = execute!(self.0.backend_mut(), LeaveAlternateScreen, cursor::Show);
    }
}

/// Whether somebody pressed a key that ends the picture.
fn left() -> std::io::Result<bool> {
    while event::poll(Duration::ZERO)? {
        if let event::Event::Key(key) = event::read()? {
            let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

struct Watch<'a> {
    cluster: &'a Cluster,
    name: &'a str,
    /// The training that is looked at.
    training: Option<View<'a>>,
    seen: Seen,
}

impl Watch<'_> {
    async fn draw(&mut self, screen: &mut Screen<'_>) -> Result<(), Error> {
        let mut patience = Patience::default();
        loop {
            screen
                .0
                .draw(|frame| picture::draw(frame, &self.seen, Timestamp::now()))?;
            let again = tokio::time::Instant::now() + INTERVAL;
            while tokio::time::Instant::now() < again {
                if left()? {
                    return Ok(());
                }
                tokio::time::sleep(KEYS).await;
            }
            self.look_again(&mut patience).await?;
        }
    }

    async fn tell(&mut self, out: &mut dyn Write) -> Result<(), Error> {
        let mut patience = Patience::default();
        let mut told = BTreeSet::new();
        let mut figures: Option<tokio::time::Instant> = None;
        loop {
            let mut lines = lines(&self.seen);
            // Held back they are told with the next look, as news then.
            let due = figures.is_none_or(|last| last.elapsed() >= FIGURES);
            lines.retain(|line| due || told.contains(line) || !line.starts_with(TRAINING));
            for line in lines.difference(&told) {
                writeln!(out, "{line}")?;
                if line.starts_with(TRAINING) {
                    figures = Some(tokio::time::Instant::now());
                }
            }
            out.flush()?;
            told = lines;
            tokio::time::sleep(INTERVAL).await;
            self.look_again(&mut patience).await?;
            if let Some(trouble) = &self.seen.trouble {
                eprintln!("{trouble}");
            }
        }
    }

    /// A look that may fail for a while.
    async fn look_again(&mut self, patience: &mut Patience) -> Result<(), Error> {
        match self.look().await {
            Ok(()) => patience.reset(),
            Err(error) => {
                self.seen.trouble = Some(error.to_string());
                patience.bear(error)?;
            }
        }
        Ok(())
    }

    async fn look(&mut self) -> Result<(), Error> {
        let service: InferenceService = self.cluster.get(self.name).await?;
        let uid = service.uid().unwrap_or_default();
        self.seen.events = events(self.cluster, &uid).await?;
        self.seen
            .events
            .sort_by_key(|event| std::cmp::Reverse(event_time(event)));
        let status = service.status.clone().unwrap_or_default();
        let job = status.retraining.map(|retraining| retraining.training_job);
        if self.training.as_ref().map(View::name) != job.as_deref() {
            self.training = job.map(|job| View::new(self.cluster, &job));
        }
        self.seen.training = match &mut self.training {
            None => None,
            Some(view) => match view.look().await {
                Ok(standing) => Some(standing),
                // Somebody deleted it; the service will say so.
                Err(Error::NotFound { .. }) => None,
                Err(error) => return Err(error),
            },
        };
        if let Some(drift) = &status.drift {
            let largest = drift
                .features
                .iter()
                .filter_map(|feature| feature.psi.parse::<f64>().ok());
            let largest = largest.fold(0.0, f64::max);
            let end = drift.window_end.0;
            if self.seen.windows.last().is_none_or(|(last, _)| *last < end) {
                // At most what a PSI of a broken feature is, some tens.
                self.seen.windows.push((end, (largest * 1000.0).round() as u64));
            }
            let surplus = self.seen.windows.len().saturating_sub(WINDOWS_MAX);
            self.seen.windows.drain(..surplus);
        }
        self.seen.service = Some(service);
        self.seen.trouble = None;
        Ok(())
    }
}

/// The service's standing, a line for each thing that can change.
fn lines(seen: &Seen) -> BTreeSet<String> {
    let Some(service) = &seen.service else {
        return BTreeSet::new();
    };
    let status = service.status.clone().unwrap_or_default();
    let mut lines: Vec<String> = status
        .traffic
        .iter()
        .map(|traffic| match traffic.percent {
            Some(percent) => format!("answers: {} {percent} %", traffic.model_version),
            None => format!("answers: {}", traffic.model_version),
        })
        .collect();
    for kind in LOOP {
        if let Some(condition) = find(&status.conditions, kind) {
            lines.push(format!("{kind}: {}: {}", condition.reason, condition.message));
        }
    }
    if let Some(training) = &seen.training {
        lines.push(format!("{TRAINING}{}", training.headline()));
    }
    lines.iter().map(|line| clean(line)).collect()
}

#[cfg(test)]
mod tests {
    use flywheel_testkit::objects::{CREATED, inference_service};
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn seen() -> Seen {
        let condition = |kind: &str, status: &str, reason: &str, message: &str| json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": CREATED});
        let service = inference_service(&json!({"status": {
        "state": "Ready", "pods": "2/2",
        "load": {"qps": "40", "concurrency": "1.0", "latencyP99Milliseconds": 88},
        "traffic": [{"modelVersion": "intent-v1", "pods": 2, "percent": 60}, {"modelVersion": "intent-v2", "pods": 1, "percent": 40}],
        "canary": "intent-v2 40 %",
        "drift": {"modelVersion": "intent-v1", "windowEnd": CREATED, "texts": 800, "referenceTexts": 800, "judged": 700, "accuracy": "0.652",
            "features": [{"name": "confidence", "psi": "0.376", "ks": "0.165", "drifted": true}]},
        "conditions": [
            condition("DriftDetected", "True", "Drifted", "confidence PSI 0.376\u{1b}[2J, the third window"),
            condition("RolloutProgressing", "True", "Progressing", "step 1 of 1"),
        ]}}));
        Seen {
            service: Some(service),
            windows: vec![(CREATED.parse().unwrap(), 12), (CREATED.parse().unwrap(), 376)],
            ..Seen::default()
        }
    }

    #[test]
    fn the_picture_shows_who_answers_and_where_the_loop_is() {
        let mut terminal = Terminal::new(TestBackend::new(100, 30)).unwrap();
        terminal
            .draw(|frame| picture::draw(frame, &seen(), CREATED.parse().unwrap()))
            .unwrap();
        let text = terminal.backend().to_string();
        for words in [
            "intent-v1",
            "60 %",
            "intent-v2",
            "40 %",
            "confidence PSI 0.376",
            "700 judged",
            "step 1 of 1",
            "40 QPS",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        // However much one of them says, and on a terminal as small as they are by default.
        let mut talkative = seen();
        if let Some(status) = talkative.service.as_mut().and_then(|service| service.status.as_mut()) {
            status.conditions[0].message = "confidence PSI 0.376 ".repeat(100);
        }
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal
            .draw(|frame| picture::draw(frame, &talkative, CREATED.parse().unwrap()))
            .unwrap();
        let small = terminal.backend().to_string();
        for words in [
            "confidence PSI 0.376",
            "700 judged",
            "step 1 of 1",
            "largest PSI",
            "news",
            "q ends",
        ] {
            assert!(small.contains(words), "{words}\n{small}");
        }
        // What an object says does not steer the terminal, and a small one is no reason to fail.
        assert!(!text.contains('\u{1b}'));
        for (width, height) in [(1, 1), (20, 4), (300, 90)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal
                .draw(|frame| picture::draw(frame, &seen(), Timestamp::UNIX_EPOCH))
                .unwrap();
        }
    }

    #[test]
    fn lines_tell_each_thing_once() {
        let lines = lines(&seen());
        let expected = [
            "DriftDetected: Drifted: confidence PSI 0.376",
            "RolloutProgressing: Progressing: step 1 of 1",
            "answers: intent-v1 60 %",
            "answers: intent-v2 40 %",
        ];
        assert_eq!(lines.len(), expected.len());
        for (line, start) in lines.iter().zip(expected) {
            assert!(line.starts_with(start) && !line.contains('\u{1b}'), "{line:?}");
        }
    }
}
