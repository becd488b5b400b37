//! What came of the copies that a mirror got, as its pods say, and when that is worth a write.

use std::time::Duration;

use flywheel_api::inference_service::MirrorStatus;
use flywheel_contract::serving::{CopyFigures, ServedVersion};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::sequential::share;
use super::update::PodSays;

/// Time between two writes, and after which pods are asked for it alone.
pub const EVERY: Duration = Duration::from_secs(30);
/// Part of the texts by which they change before it is written again.
const CHANGE: f64 = 0.1;
/// Difference of a share of them that is, too.
const SHARE_CHANGE: f64 = 0.01;

/// Whether the pods are to be asked. `before`: what is told.
#[must_use]
pub fn is_due(before: Option<&MirrorStatus>, now: Timestamp) -> bool {
    before.is_none_or(|before| now.duration_since(before.observed.0).unsigned_abs() >= EVERY)
}

/// What there is to tell of the version that gets copies. `pods`: those that answer; where one of them says nothing the sum would be
/// less than it is, so what was told stays.
#[must_use]
pub fn told(
    before: Option<&MirrorStatus>,
    version: &ServedVersion,
    pods: &[PodSays],
    now: Timestamp,
) -> Option<MirrorStatus> {
    let before = before.filter(|before| before.model_version == version.name);
    let all_say = !pods.is_empty() && pods.iter().all(|pod| pod.stats.is_some());
    if !all_say || !is_due(before, now) {
        return before.cloned();
    }
    let copies = pods.iter().filter_map(|pod| pod.version(version)?.copies);
    let Some(sum) = copies.reduce(plus) else {
        return before.cloned();
    };
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let mean = |seconds: f64| (sum.requests > 0).then(|| format!("{:.1}", seconds * 1000.0 / sum.requests as f64));
    let now = MirrorStatus {
        model_version: version.name.clone(),
        observed: Time(now),
        texts: count(sum.texts),
        same: count(sum.same),
        failed: count(sum.failed),
        shed: count(sum.shed),
        milliseconds: mean(sum.seconds),
        answered_milliseconds: mean(sum.answered_seconds),
    };
    Some(match before {
        Some(before) if !is_news(before, &now) => before.clone(),
        _ => now,
    })
}

fn plus(a: CopyFigures, b: CopyFigures) -> CopyFigures {
    CopyFigures {
        texts: a.texts + b.texts,
        same: a.same + b.same,
        failed: a.failed + b.failed,
        shed: a.shed + b.shed,
        requests: a.requests + b.requests,
        seconds: a.seconds + b.seconds,
        answered_seconds: a.answered_seconds + b.answered_seconds,
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn is_news(before: &MirrorStatus, now: &MirrorStatus) -> bool {
    let all = |told: &MirrorStatus| told.texts + told.failed + told.shed;
    let grown = (all(now) - all(before)).abs() as f64 > CHANGE * all(before) as f64;
    let part = |count: i64, told: &MirrorStatus| share(count.unsigned_abs(), all(told).unsigned_abs());
    let moved = |of: fn(&MirrorStatus) -> i64| (part(of(now), now) - part(of(before), before)).abs() >= SHARE_CHANGE;
    grown || moved(|told| told.same) || moved(|told| told.failed) || moved(|told| told.shed)
}

#[cfg(test)]
mod tests {
    use flywheel_contract::scalar::Digest;
    use flywheel_contract::serving::{LoadState, Stats, VersionStats};
    use flywheel_contract::trainer::ArtifactRef;

    use super::*;

    fn version() -> ServedVersion {
        ServedVersion {
            name: "v2".to_owned(),
            artifact: ArtifactRef {
                uri: "s3://models/2".into(),
                digest: Digest::sha256(&"2".repeat(64)),
            },
        }
    }

    fn figures(texts: u64, same: u64) -> CopyFigures {
        CopyFigures {
            texts,
            same,
            requests: texts,
            seconds: 0.02 * texts as f64,
            answered_seconds: 0.01 * texts as f64,
            ..CopyFigures::default()
        }
    }

    /// A pod that says this of its copies, or nothing at all.
    fn pod(copies: Option<Option<CopyFigures>>) -> PodSays {
        let stats = copies.map(|copies| Stats {
            schema_version: flywheel_contract::SCHEMA_VERSION,
            ready: true,
            generation: 1,
            serving: Some("v1".to_owned()),
            versions: vec![VersionStats {
                name: "v2".to_owned(),
                digest: version().artifact.digest,
                state: LoadState::Ready,
                precision: None,
                agreement: None,
                likeness: None,
                labels: None,
                failure: None,
                crash: None,
                figures: None,
                copies,
            }],
            answered: [0; 3],
            in_flight: 0,
            uptime_seconds: 1.0,
            load: None,
        });
        PodSays {
            name: "a".to_owned(),
            stats,
            ended: None,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn some(texts: u64, same: u64) -> PodSays {
        pod(Some(Some(figures(texts, same))))
    }

    #[test]
    fn pods_add_up_and_one_of_an_earlier_release_or_without_a_copy_adds_nothing() {
        assert_eq!(told(None, &version(), &[], at(0)), None);
        assert_eq!(told(None, &version(), &[pod(Some(None))], at(0)), None);
        let told = told(None, &version(), &[some(100, 90), pod(Some(None)), some(50, 40)], at(0)).unwrap();
        assert_eq!((told.texts, told.same, told.failed, told.shed), (150, 130, 0, 0));
        assert_eq!(told.milliseconds.as_deref(), Some("20.0"));
        assert_eq!(told.answered_milliseconds.as_deref(), Some("10.0"));
    }

    #[test]
    fn it_is_written_at_most_every_half_minute_and_where_much_has_changed() {
        let before = told(None, &version(), &[some(1000, 900)], at(0)).unwrap();
        let texts = |pods: &[PodSays], second| told(Some(&before), &version(), pods, at(second)).unwrap().texts;
        assert_eq!(texts(&[some(9000, 100)], 29), 1000, "too soon");
        assert_eq!(texts(&[some(1100, 990)], 30), 1000, "a tenth more");
        assert_eq!(texts(&[some(1101, 991)], 30), 1101);
        assert_eq!(texts(&[some(1050, 930)], 30), 1050, "other labels");
        assert_eq!(texts(&[some(10, 9)], 30), 10, "a pod began anew");
        assert_eq!(texts(&[some(9000, 100), pod(None)], 30), 1000, "one does not say");
    }

    #[test]
    fn what_was_said_of_another_version_goes() {
        let before = MirrorStatus {
            model_version: "v1".to_owned(),
            ..told(None, &version(), &[some(1000, 900)], at(0)).unwrap()
        };
        assert_eq!(told(Some(&before), &version(), &[pod(Some(None))], at(1)), None);
        assert_eq!(
            told(Some(&before), &version(), &[some(5, 5)], at(1)).unwrap().texts,
            5,
            "at once"
        );
    }
}
