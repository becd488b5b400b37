//! What was counted of live texts, window by window, and what of it was read already. It stands in a ConfigMap, so that an operator
//! that restarts goes on where the one before was.

use std::collections::BTreeMap;

use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::profile::{DataProfile, Judged, KEPT_WINDOWS, LiveProfiles, window_of};
use flywheel_contract::scalar::Digest;
use serde::{Deserialize, Serialize};

use super::quality::Quality;

/// Most windows that are kept.
const WINDOWS: usize = 48;
/// Most counts that are kept, of all windows: of versions with thousands of classes fewer windows are kept.
const COUNTS: usize = 24_000;
/// Fewest windows that are kept: what was judged of those before stands beside them.
const FEWEST_WINDOWS: usize = 4;
/// Seconds by which pods' clocks may differ from the operator's.
const SKEW_SECONDS: u64 = 2;

/// Live texts that one version answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Name of the ModelVersion.
    pub version: String,
    /// Digest of its artifact.
    pub digest: Digest,
    /// Length of the windows.
    pub window_seconds: u32,
    /// Its bins, with nothing in them.
    pub bins: DataProfile,
    /// What the test set looked like.
    pub test: Option<Vec<u64>>,
    /// The first window with enough texts, which later ones are compared with.
    pub first: Option<Window>,
    /// The last windows, ascending.
    pub windows: Vec<Window>,
    /// What was judged so far.
    #[serde(default)]
    pub streak: Streak,
    /// What clients said, as far as it is compared with what they said before.
    #[serde(default)]
    pub quality: Quality,
    /// What they said that a training would learn anew.
    #[serde(default)]
    pub called: Option<Called>,
    /// End of the newest window of each pod that was read, in seconds since 1970, by the pod's uid.
    pub read: BTreeMap<String, u64>,
}

/// What was judged, window after window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Streak {
    /// The newest window that was judged, or passed over.
    pub window: Option<u64>,
    /// Whether texts have drifted; none as long as nothing could be compared.
    pub drifted: Option<bool>,
    /// Whether the newest window that was judged has.
    pub last: bool,
    /// Windows one after another of which the same is true.
    pub windows: u32,
    /// Where the first window began that has drifted, as long as texts have.
    #[serde(default)]
    pub since: Option<u64>,
}

impl Streak {
    /// Notes whether the newest window, which began there, has drifted: it takes as many as `needed` one after another to change
    /// what is said.
    pub fn note(&mut self, window: u64, began: u64, drifted: bool, needed: u32) {
        self.window = Some(window);
        self.windows = if self.last == drifted {
            self.windows.saturating_add(1)
        } else {
            1
        };
        self.last = drifted;
        if self.windows >= needed {
            self.drifted = Some(drifted);
        } else {
            self.drifted.get_or_insert(false);
        }
        if drifted {
            self.since.get_or_insert(began);
        } else if self.drifted != Some(true) {
            self.since = None;
        }
    }
}

/// What clients said since texts drifted, or answers became worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Called {
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// What they said. Windows that are not kept any more count on.
    pub judged: Judged,
}

/// The end of a window of this length, in seconds since 1970.
pub(super) fn end_of(id: u64, seconds: u32) -> u64 {
    id.saturating_add(1).saturating_mul(seconds.into())
}

/// A window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// Seconds since 1970 over the length of the windows.
    pub id: u64,
    /// [`DataProfile::counts`].
    pub counts: Vec<u64>,
    /// What clients said in it.
    #[serde(default, skip_serializing_if = "Judged::is_empty")]
    pub judged: Judged,
}

impl Window {
    /// Texts in it.
    #[must_use]
    pub fn texts(&self) -> u64 {
        self.counts.first().copied().unwrap_or_default()
    }
}

impl History {
    /// Begins with what a pod says of the version with this digest; none where it says nothing of it.
    #[must_use]
    pub fn begin(version: &str, digest: &Digest, window_seconds: u32, told: &LiveProfiles) -> Option<Self> {
        let known = told.versions.iter().find(|known| known.digest == *digest)?;
        let bins = match (&known.test, known.windows.first()) {
            (Some(test), _) => test.clone(),
            (None, Some(window)) => window.profile.clone(),
            (None, None) => return None,
        };
        Some(Self {
            schema_version: SCHEMA_VERSION,
            version: version.to_owned(),
            digest: digest.clone(),
            window_seconds,
            bins: bins.emptied(),
            test: known.test.as_ref().map(|test| test.counts().collect()),
            first: None,
            windows: Vec::new(),
            streak: Streak::default(),
            quality: Quality::default(),
            called: None,
            read: BTreeMap::new(),
        })
    }

    /// Whether it is about this version in windows of this length.
    #[must_use]
    pub fn is_of(&self, digest: &Digest, window_seconds: u32) -> bool {
        self.schema_version == SCHEMA_VERSION && self.digest == *digest && self.window_seconds == window_seconds
    }

    /// Adds what this pod counted in windows of its own that are over and were not read yet. Whether there was something.
    pub fn add(&mut self, pod: &str, told: &LiveProfiles, now: u64) -> bool {
        let length = told.window_seconds;
        let whole = length > 0 && self.window_seconds.is_multiple_of(length);
        let known = told.versions.iter().find(|known| known.digest == self.digest);
        let (true, Some(known)) = (whole, known) else {
            return false;
        };
        let under_way = window_of(now.saturating_sub(SKEW_SECONDS), length);
        let mut any = false;
        for window in &known.windows {
            let end = end_of(window.id, length);
            let unread = self.read.get(pod).is_none_or(|read| *read < end);
            let mut sum = self.bins.clone();
            if window.id >= under_way || !unread || !sum.merge(&window.profile) {
                continue;
            }
            let id = window.id.saturating_mul(length.into()) / u64::from(self.window_seconds);
            self.read.insert(pod.to_owned(), end);
            any = true;
            let began = end - u64::from(length);
            let classes = self.bins.classes.len();
            self.quality.add(began, window.judged, &window.outcomes, classes);
            if let Some(called) = self.called.as_mut().filter(|called| called.since < end) {
                called.judged.add(window.judged);
            }
            match self.windows.iter_mut().find(|known| known.id == id) {
                Some(known) => {
                    for (sum, count) in known.counts.iter_mut().zip(sum.counts()) {
                        *sum = sum.saturating_add(count);
                    }
                    known.judged.add(window.judged);
                }
                None => self.windows.push(Window {
                    id,
                    counts: sum.counts().collect(),
                    judged: window.judged,
                }),
            }
        }
        if any {
            self.windows.sort_by_key(|window| window.id);
            let numbers = self.bins.counts().count().max(1);
            let kept = (COUNTS / numbers).clamp(FEWEST_WINDOWS, WINDOWS);
            self.windows.drain(..self.windows.len().saturating_sub(kept));
            // What a pod does not tell any more need not be remembered.
            let oldest = under_way.saturating_sub(KEPT_WINDOWS) * u64::from(length);
            self.read.retain(|_, read| *read >= oldest);
        }
        any
    }

    /// What clients said of the version, in the windows that are kept.
    #[must_use]
    pub fn judged(&self) -> Judged {
        self.windows.iter().fold(Judged::default(), |mut sum, window| {
            sum.add(window.judged);
            sum
        })
    }

    /// Begins to count what clients say, with the windows that are kept, where texts have begun to drift or answers to become worse,
    /// and ends where neither is so any more. Whether that is new.
    pub(super) fn call(&mut self) -> bool {
        let texts = self
            .streak
            .since
            .map(|window| window.saturating_mul(self.window_seconds.into()));
        let since = [texts, self.quality.since()].into_iter().flatten().min();
        if self.called.map(|called| called.since) == since {
            return false;
        }
        self.called = since.map(|since| {
            let mut judged = Judged::default();
            let length = self.window_seconds;
            let kept = self.windows.iter().filter(|window| since < end_of(window.id, length));
            kept.for_each(|window| judged.add(window.judged));
            Called { since, judged }
        });
        true
    }

    /// Takes the first window that is over and has enough texts for what later ones are compared with. Whether it is new.
    pub fn take_first(&mut self, min_samples: u64, over: impl Fn(&Window) -> bool) -> bool {
        if self.first.is_some() {
            return false;
        }
        let first = self
            .windows
            .iter()
            .find(|window| over(window) && window.texts() >= min_samples);
        self.first = first.cloned();
        self.first.is_some()
    }

    /// Counts in their bins.
    #[must_use]
    pub fn profile(&self, counts: &[u64]) -> DataProfile {
        let mut profile = self.bins.clone();
        for (count, value) in profile.counts_mut().zip(counts) {
            *count = *value;
        }
        profile
    }
}

#[cfg(test)]
mod tests {
    use flywheel_contract::profile::{Answer, VersionProfile, WindowProfile};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn digest() -> Digest {
        Digest::sha256(&"0".repeat(64))
    }

    fn told(length: u32, windows: &[(u64, u64)]) -> LiveProfiles {
        let empty = DataProfile::new(2);
        let window = |(id, texts): &(u64, u64)| {
            let mut profile = empty.clone();
            for _ in 0..*texts {
                let answer = Answer {
                    probabilities: vec![0.2, 0.8],
                    projections: None,
                };
                profile.add(&[1, 2, 3], &answer);
            }
            WindowProfile {
                id: *id,
                profile,
                judged: Judged {
                    predictions: *texts,
                    correct: 1,
                },
                outcomes: BTreeMap::new(),
            }
        };
        LiveProfiles {
            schema_version: SCHEMA_VERSION,
            window_seconds: length,
            versions: vec![VersionProfile {
                name: "v1".to_owned(),
                digest: digest(),
                test: Some(empty.clone()),
                windows: windows.iter().map(window).collect(),
            }],
        }
    }

    fn texts(history: &History) -> Vec<(u64, u64)> {
        history
            .windows
            .iter()
            .map(|window| (window.id, window.texts()))
            .collect()
    }

    #[test]
    fn each_window_of_each_pod_is_added_once_when_it_is_over() {
        let now = window_of(NOW, 300);
        let seconds = |window: u64| window * 300;
        let all = told(300, &[(now - 2, 5), (now - 1, 7), (now, 9)]);
        let mut history = History::begin("v1", &digest(), 600, &all).unwrap();
        assert!(history.add("a", &all, seconds(now) + 3));
        assert!(!history.add("a", &all, seconds(now) + 9), "the same again");
        assert!(history.add("b", &all, seconds(now) + 9));
        assert_eq!(texts(&history).iter().map(|(_, texts)| texts).sum::<u64>(), 24);
        // Through JSON, as the next operator finds it.
        let mut history: History = serde_json::from_str(&serde_json::to_string(&history).unwrap()).unwrap();
        assert!(!history.add("a", &all, seconds(now) + 9));
        assert!(!history.add("a", &all, seconds(now + 1) + 1), "clocks may differ");
        assert!(history.add("a", &all, seconds(now + 1) + 2));
        let sums = texts(&history);
        assert_eq!(sums.iter().map(|(_, texts)| texts).sum::<u64>(), 33);
        assert!(sums.iter().all(|(id, _)| (now - 2) / 2 <= *id && *id <= now / 2));
        let judged = history.judged();
        assert_eq!((judged.predictions, judged.correct), (33, 5));
        assert_eq!(
            history.windows[0].counts.iter().sum::<u64>() % 6,
            0,
            "text, three tokens, length and more"
        );
    }

    #[test]
    fn what_clients_say_is_counted_from_the_first_drifted_window_on() {
        let start = window_of(NOW, 10);
        let mut history = History::begin("v1", &digest(), 10, &told(10, &[])).unwrap();
        let add = |history: &mut History, n: u64| {
            assert!(history.add("a", &told(10, &[(start + n, 3)]), NOW + n * 10 + 60));
        };
        let called = |history: &History| history.called.map(|called| called.judged.predictions);
        (0..4).for_each(|n| add(&mut history, n));
        assert!(!history.call());
        let note = |history: &mut History, n: u64, drifted: bool| history.streak.note(start + n, start + n, drifted, 2);
        note(&mut history, 1, true);
        note(&mut history, 2, false);
        assert_eq!(history.streak.since, None, "one window is none");
        note(&mut history, 2, true);
        note(&mut history, 3, true);
        assert!(history.call());
        assert_eq!(called(&history), Some(6), "before that clients spoke of what was usual");
        // Also of windows that are not kept.
        (4..104).for_each(|n| add(&mut history, n));
        assert!(!history.call());
        assert_eq!((history.windows.len(), called(&history)), (WINDOWS, Some(306)));
        note(&mut history, 104, false);
        assert!(!history.call(), "one usual window ends nothing");
        note(&mut history, 105, false);
        assert!(history.call());
        assert_eq!(called(&history), None);
    }

    #[test]
    fn a_pod_that_counts_in_longer_windows_from_now_on_is_read_on() {
        let mut history = History::begin("v1", &digest(), 3600, &told(20, &[])).unwrap();
        let short = window_of(NOW, 20);
        assert!(history.add("a", &told(20, &[(short, 5)]), NOW + 30));
        let long = window_of(NOW, 300);
        assert!(history.add("a", &told(300, &[(long, 7)]), NOW + 400));
        assert!(!history.add("a", &told(300, &[(long, 7)]), NOW + 400));
        assert_eq!(texts(&history), [(NOW / 3600, 12)]);
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_what_is_kept_is_bounded() {
        let start = window_of(NOW, 10);
        let mut history = History::begin("v1", &digest(), 10, &told(10, &[])).unwrap();
        assert!(
            !history.add("a", &told(7, &[(5, 1)]), NOW),
            "no whole number of windows"
        );
        let mut other = told(10, &[(start, 1)]);
        other.versions[0].digest = Digest::sha256(&"1".repeat(64));
        assert!(!history.add("a", &other, NOW + 60));
        assert!(!history.is_of(&other.versions[0].digest, 10) && history.is_of(&digest(), 10));
        for n in 0..100 {
            assert!(history.add(&format!("pod-{n}"), &told(10, &[(start + n, 1)]), NOW + n * 10 + 60));
        }
        assert_eq!(history.windows.len(), WINDOWS);
        assert!(history.read.len() <= 9, "{:?}", history.read);
        let many = DataProfile::new(10_000);
        let mut told = told(10, &[]);
        told.versions[0].test = Some(many.clone());
        let mut history = History::begin("v1", &digest(), 10, &told).unwrap();
        for n in 0..30 {
            told.versions[0].windows = vec![WindowProfile {
                id: start + n,
                profile: many.clone(),
                judged: Judged::default(),
                outcomes: BTreeMap::new(),
            }];
            history.add("a", &told, NOW + n * 10 + 60);
        }
        assert_eq!(history.windows.len(), FEWEST_WINDOWS);
    }
}
