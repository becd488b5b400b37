//! The picture of a service. It draws what was seen and asks nobody.

use flywheel_api::InferenceService;
use flywheel_api::conditions::{find, types};
use flywheel_api::inference_service::InferenceServiceStatus;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Gauge, Paragraph, Sparkline, Wrap};

use super::{LOOP, Seen};
use crate::status::event_time;
use crate::text::{age, clean, shortened};

/// Columns of a version's name.
const NAME: u16 = 36;
/// Lines of a condition, so that one with many words hides no other one.
const STAGE_LINES: u16 = 2;
/// Lines of a terminal from which on the curve gets more of them.
const TALL: u16 = 34;
/// Columns that a line may leave empty where a word goes to the next one.
const WORD: u16 = 20;

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, seen: &Seen, now: Timestamp) {
    let Some(service) = &seen.service else { return };
    let status = service.status.clone().unwrap_or_default();
    let versions = u16::try_from(status.traffic.len()).unwrap_or(0).clamp(1, 6);
    let [head, answers, stages, windows, news, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(versions + 2),
        Constraint::Length(2 + STAGE_LINES * LOOP.len() as u16 + 2),
        Constraint::Length(if frame.area().height < TALL { 4 } else { 6 }),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(headline(service, &status), head);
    draw_answers(frame, &status, answers);
    draw_stages(frame, seen, &status, now, stages);
    draw_windows(frame, seen, &status, windows);
    draw_news(frame, seen, now, news);
    let foot_text = match &seen.trouble {
        Some(trouble) => Line::from(clean(trouble)).red(),
        None => Line::from("q ends the picture, the service goes on").dim(),
    };
    frame.render_widget(foot_text, foot);
}

fn headline(service: &InferenceService, status: &InferenceServiceStatus) -> Line<'static> {
    let mut parts = vec![format!(
        "InferenceService {}/{}",
        service.namespace().unwrap_or_default(),
        service.name_any()
    )];
    parts.extend(status.state.clone());
    parts.extend(status.pods.as_ref().map(|pods| format!("{pods} pods")));
    if let Some(load) = &status.load {
        parts.push(format!("{} QPS", load.qps));
        parts.extend(load.latency_p99_milliseconds.map(|ms| format!("p99 {ms} ms")));
    }
    Line::from(clean(&parts.join(" · "))).bold()
}

/// A bar for each version that answers.
fn draw_answers(frame: &mut Frame<'_>, status: &InferenceServiceStatus, area: Rect) {
    let block = Block::bordered().title("who answers");
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let rows = Layout::vertical(status.traffic.iter().map(|_| Constraint::Length(1))).split(inner);
    // One alone gets all, whether somebody says so or not.
    let alone = status.traffic.len() == 1;
    let comes = status.canary.as_deref().and_then(|canary| canary.split(' ').next());
    for (traffic, row) in status.traffic.iter().zip(rows.iter()) {
        let [name, bar] = Layout::horizontal([Constraint::Length(NAME), Constraint::Min(10)]).areas(*row);
        frame.render_widget(Line::from(clean(&traffic.model_version)), name);
        let percent = traffic.percent.or(alone.then_some(100));
        let percent = u16::try_from(percent.unwrap_or(0)).unwrap_or(0).min(100);
        let color = if comes == Some(&traffic.model_version) {
            Color::Yellow
        } else {
            Color::Green
        };
        let gauge = Gauge::default()
            .percent(percent)
            .label(format!("{percent} % in {} pods", traffic.pods));
        frame.render_widget(gauge.gauge_style(Style::new().fg(color)), bar);
    }
}

/// Where the loop is: what drifted, what clients said, what trains, what comes.
fn draw_stages(frame: &mut Frame<'_>, seen: &Seen, status: &InferenceServiceStatus, now: Timestamp, area: Rect) {
    let mut lines = Vec::new();
    let most = usize::from(
        area.width
            .saturating_sub(2)
            .saturating_mul(STAGE_LINES)
            .saturating_sub(WORD),
    );
    for kind in LOOP {
        if let Some(condition) = find(&status.conditions, kind) {
            lines.push(stage(kind, condition, now, most));
        }
        if kind == types::DRIFT_DETECTED
            && let Some(drift) = &status.drift
            && let (Some(judged), Some(accuracy)) = (drift.judged, &drift.accuracy)
        {
            lines.push(Line::from(clean(&format!(
                "  Feedback  {judged} judged, {accuracy} of them right"
            ))));
        }
        if kind == types::RETRAINING
            && let Some(training) = &seen.training
        {
            let words = format!("  Training  {}", training.headline());
            lines.push(Line::from(shortened(&words, usize::from(area.width.saturating_sub(2)))));
        }
    }
    let text = Paragraph::new(lines).wrap(Wrap { trim: false });
    frame.render_widget(text.block(Block::bordered().title("the loop")), area);
}

/// `most`: its characters.
fn stage(kind: &str, condition: &Condition, now: Timestamp, most: usize) -> Line<'static> {
    let mark = match condition.status.as_str() {
        "True" => "● ".yellow(),
        "False" => "○ ".green(),
        _ => "· ".dim(),
    };
    let since = age(now, Some(condition.last_transition_time.0));
    let words = clean(&format!(" {} for {since}. {}", condition.reason, condition.message));
    let words = shortened(&words, most.saturating_sub(kind.len() + 2));
    Line::from(vec![mark, Span::from(kind.to_owned()).bold(), Span::from(words)])
}

/// How far each window was from the reference.
fn draw_windows(frame: &mut Frame<'_>, seen: &Seen, status: &InferenceServiceStatus, area: Rect) {
    let title = match status.drift.as_ref().and_then(|drift| drift.features.first()) {
        Some(feature) => format!("largest PSI by window, now {} of {}", feature.psi, feature.name),
        None => "largest PSI by window".to_owned(),
    };
    let data: Vec<u64> = seen.windows.iter().map(|(_, psi)| *psi).collect();
    let block = Block::bordered().title(clean(&title));
    let spark = Sparkline::default().data(data).style(Style::new().fg(Color::Cyan));
    frame.render_widget(spark.block(block), area);
}

fn draw_news(frame: &mut Frame<'_>, seen: &Seen, now: Timestamp, area: Rect) {
    let lines = seen.events.iter().take(usize::from(area.height)).map(|event| {
        let words = format!(
            "{:>4}  {}  {}",
            age(now, event_time(event)),
            event.reason.as_deref().unwrap_or_default(),
            event.message.as_deref().unwrap_or_default()
        );
        let line = Line::from(clean(&words));
        match event.type_.as_deref() {
            Some("Warning") => line.yellow(),
            _ => line,
        }
    });
    let news = Paragraph::new(lines.collect::<Vec<_>>()).wrap(Wrap { trim: false });
    frame.render_widget(news.block(Block::bordered().title("news")), area);
}
