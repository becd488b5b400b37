//! Data profile: exact integer histograms that add up, so that live traffic can be compared with the training data.
//!
//! A version's profile of its test set lies in its artifact. Serving pods count what they answer in the same bins, by windows
//! of [`WINDOW_SECONDS`] or less, and tell it under [`crate::names::PROFILE_PATH`]. Nothing here holds a text.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::scalar::Digest;

/// Buckets of the hashed vocabulary.
pub const VOCABULARY_BUCKETS: usize = 128;
/// Upper edges (exclusive) of the token-length bins; one more bin takes the rest.
pub const LENGTH_EDGES: [f64; 15] = [
    4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 20.0, 24.0, 32.0, 48.0, 64.0, 128.0, 256.0, 512.0,
];
/// Upper edges (exclusive) of the confidence bins; one more bin takes the rest.
pub const CONFIDENCE_EDGES: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
/// Projections of what the classes are told by ([`Projector`]).
pub const PROJECTIONS: usize = 4;
/// Bins of each projection, each with as many texts of the test set as the others.
pub const PROJECTION_BINS: usize = 16;
/// Most bins of a profile, beside one for each class: with a hundred classes 320 in all.
pub const MAX_BINS: usize = 220;

/// Length of the windows in which pods count, where their assignment names no shorter one. Whoever looks at longer ones adds
/// windows up.
pub const WINDOW_SECONDS: u32 = 300;
/// Shortest length of a window.
pub const MIN_WINDOW_SECONDS: u32 = 10;
/// Most bytes of a body of [`LiveProfiles`], of as many versions as a pod may hold with a hundred classes each.
pub const PROFILE_BODY_MAX: usize = 1024 * 1024;
/// Windows that a pod tells: the one under way and those before it.
pub const KEPT_WINDOWS: u64 = 3;

/// Number of the window of this length to which a moment belongs, the same in every pod: seconds since 1970 (UTC) over its
/// length.
#[must_use]
pub fn window_of(unix_seconds: u64, window_seconds: u32) -> u64 {
    unix_seconds / u64::from(window_seconds.max(1))
}

/// What a model says of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Probability of each class.
    pub probabilities: Vec<f32>,
    /// Where the text lies ([`Projector::project`]); `None` where nothing is counted by it.
    pub projections: Option<[f64; PROJECTIONS]>,
}

impl Answer {
    /// Whether it says anything: broken weights, or an overflow, may come to numbers for one text and to none for another.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.probabilities.iter().all(|p| p.is_finite())
    }
}

/// Scalar products of a text's features with [`PROJECTIONS`] fixed unit vectors, which point anywhere. The features are what
/// the map takes that makes the logits: the hidden state of the first token after the last layer, through the dense map
/// before it (BERT's pooler) and its activation.
///
/// A vector's numbers are plus or minus one over the root of their count, by the highest bit of a hash of projection and
/// dimension. So they are the same for all programs and for good, and the same features always give the same number.
#[derive(Clone, Debug)]
pub struct Projector {
    /// By dimension: plus or minus one for each projection.
    signs: Vec<[f64; PROJECTIONS]>,
    scale: f64,
}

impl Projector {
    /// For this many features.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "there are far fewer than 2^52 features")]
    pub fn new(features: usize) -> Self {
        let sign = |projection: usize, dimension: usize| {
            let number = ((projection as u64) << 32) | dimension as u64;
            if mixed(number) >> 63 == 0 { 1.0 } else { -1.0 }
        };
        Self {
            signs: (0..features)
                .map(|dimension| std::array::from_fn(|projection| sign(projection, dimension)))
                .collect(),
            scale: 1.0 / (features.max(1) as f64).sqrt(),
        }
    }

    /// Projections of these features, summed up in their order.
    #[must_use]
    pub fn project(&self, features: &[f32]) -> [f64; PROJECTIONS] {
        let mut sums = [0.0; PROJECTIONS];
        for (signs, feature) in self.signs.iter().zip(features) {
            for (sum, sign) in sums.iter_mut().zip(signs) {
                *sum += sign * f64::from(*feature);
            }
        }
        sums.map(|sum| sum * self.scale)
    }
}

/// Counts over stored bin edges. `counts` has one entry more than `edges`: bin i holds values below `edges[i]` and at
/// least `edges[i-1]`; the last bin holds the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Histogram {
    /// Upper edges, ascending.
    pub edges: Vec<f64>,
    /// Counts.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// An empty histogram over these edges.
    #[must_use]
    pub fn new(edges: &[f64]) -> Self {
        Self {
            edges: edges.to_vec(),
            counts: vec![0; edges.len() + 1],
        }
    }

    /// Counts one value; a NaN goes to the last bin.
    pub fn add(&mut self, value: f64) {
        let bin = self.edges.iter().position(|e| value < *e).unwrap_or(self.edges.len());
        if let Some(count) = self.counts.get_mut(bin) {
            *count += 1;
        }
    }

    /// An empty histogram whose bins have as many of these values as each other: its edges are quantiles, to six decimals, so
    /// that JSON gives back the very numbers.
    #[must_use]
    fn of_quantiles(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let quantile = |bin: usize| values.get(bin * values.len() / PROJECTION_BINS).copied().unwrap_or(0.0);
        let edges: Vec<f64> = (1..PROJECTION_BINS)
            .map(|bin| (quantile(bin) * 1e6).round() / 1e6)
            .collect();
        Self::new(&edges)
    }

    /// Whether there is a count for each bin and the edges ascend.
    fn is_whole(&self) -> bool {
        self.counts.len() == self.edges.len() + 1
            && self.edges.iter().all(|edge| edge.is_finite())
            && self.edges.is_sorted()
    }
}

/// Texts, counted. In `data_profile.json`: what the test set looked like to the model of this artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataProfile {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Texts counted.
    pub texts: u64,
    /// Tokens per text, after truncation, special tokens included.
    pub length: Histogram,
    /// Tokens by hash of their id, [`VOCABULARY_BUCKETS`] buckets ([`vocabulary_bucket`]).
    pub vocabulary: Vec<u64>,
    /// Highest probability per text.
    pub confidence: Histogram,
    /// Answers per class index.
    pub classes: Vec<u64>,
    /// Texts by each of their projections ([`Projector`]), over edges at the quantiles of the test set. Empty in artifacts of
    /// earlier releases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub projections: Vec<Histogram>,
}

impl DataProfile {
    /// An empty profile for this many classes, without projections.
    #[must_use]
    pub fn new(classes: usize) -> Self {
        Self {
            schema_version: crate::SCHEMA_VERSION,
            texts: 0,
            length: Histogram::new(&LENGTH_EDGES),
            vocabulary: vec![0; VOCABULARY_BUCKETS],
            confidence: Histogram::new(&CONFIDENCE_EDGES),
            classes: vec![0; classes],
            projections: Vec::new(),
        }
    }

    /// With bins for projections, at the quantiles of those of some texts, of which there is at least one.
    #[must_use]
    pub fn with_projections(mut self, of: &[[f64; PROJECTIONS]]) -> Self {
        self.projections = (0..PROJECTIONS)
            .map(|projection| Histogram::of_quantiles(of.iter().filter_map(|text| text.get(projection).copied())))
            .collect();
        self
    }

    /// The same bins with nothing in them.
    #[must_use]
    pub fn emptied(mut self) -> Self {
        for count in self.counts_mut() {
            *count = 0;
        }
        self
    }

    /// Counts one text by its token ids and what the model says of it.
    pub fn add(&mut self, ids: &[i64], answer: &Answer) {
        self.texts += 1;
        #[allow(clippy::cast_precision_loss, reason = "texts have far fewer than 2^52 tokens")]
        self.length.add(ids.len() as f64);
        for id in ids {
            if let Some(count) = self.vocabulary.get_mut(vocabulary_bucket(*id)) {
                *count += 1;
            }
        }
        if let Some((class, confidence)) = most_probable(&answer.probabilities) {
            self.confidence.add(f64::from(confidence));
            if let Some(count) = self.classes.get_mut(class) {
                *count += 1;
            }
        }
        for (histogram, value) in self.projections.iter_mut().zip(answer.projections.iter().flatten()) {
            histogram.add(*value);
        }
    }

    /// Adds another profile's counts; `false`, and nothing changed, where the bins differ.
    pub fn merge(&mut self, other: &Self) -> bool {
        let same = self.vocabulary.len() == other.vocabulary.len()
            && self.classes.len() == other.classes.len()
            && self
                .histograms()
                .map(|h| &h.edges)
                .eq(other.histograms().map(|h| &h.edges));
        if !same || !self.histograms().chain(other.histograms()).all(Histogram::is_whole) {
            return false;
        }
        for (mine, theirs) in self.counts_mut().zip(other.counts()) {
            *mine += theirs;
        }
        true
    }

    fn histograms(&self) -> impl Iterator<Item = &Histogram> {
        [&self.length, &self.confidence].into_iter().chain(&self.projections)
    }

    /// All counts, the texts first; their order is that of [`DataProfile::counts_mut`].
    pub fn counts(&self) -> impl Iterator<Item = u64> {
        let lists = [
            &self.length.counts,
            &self.vocabulary,
            &self.confidence.counts,
            &self.classes,
        ];
        let lists = lists.into_iter().chain(self.projections.iter().map(|h| &h.counts));
        std::iter::once(self.texts).chain(lists.flatten().copied())
    }

    /// All counts, to change; in the order of [`DataProfile::counts`].
    pub fn counts_mut(&mut self) -> impl Iterator<Item = &mut u64> {
        let lists = [
            &mut self.length.counts,
            &mut self.vocabulary,
            &mut self.confidence.counts,
            &mut self.classes,
        ];
        let lists = lists
            .into_iter()
            .chain(self.projections.iter_mut().map(|h| &mut h.counts));
        std::iter::once(&mut self.texts).chain(lists.flatten())
    }

    /// What is wrong with it as the profile of a model of this many classes, if anything.
    ///
    /// # Errors
    /// One sentence.
    pub fn check(&self, classes: usize) -> Result<(), String> {
        if self.schema_version != crate::SCHEMA_VERSION {
            return Err(format!(
                "schemaVersion {} is not {}, the one understood here",
                self.schema_version,
                crate::SCHEMA_VERSION
            ));
        }
        if self.classes.len() != classes {
            return Err(format!(
                "it counts {} classes, the model has {classes}",
                self.classes.len()
            ));
        }
        if self.vocabulary.len() != VOCABULARY_BUCKETS {
            return Err(format!(
                "its vocabulary has {} buckets, not {VOCABULARY_BUCKETS}",
                self.vocabulary.len()
            ));
        }
        if ![0, PROJECTIONS].contains(&self.projections.len()) {
            return Err(format!(
                "it has {} projections, not {PROJECTIONS}",
                self.projections.len()
            ));
        }
        if !self.histograms().all(Histogram::is_whole) {
            return Err("a histogram has not one count more than edges, or edges that do not ascend".to_owned());
        }
        let bins = self.vocabulary.len() + self.histograms().map(|h| h.counts.len()).sum::<usize>();
        if bins > MAX_BINS {
            return Err(format!(
                "it has {bins} bins beside the classes, at most {MAX_BINS} are counted"
            ));
        }
        Ok(())
    }
}

/// Body of `/profile` of a serving pod: what it answered in the last [`KEPT_WINDOWS`] windows. Counts of several pods add up
/// ([`DataProfile::merge`]); those of a window that is over do not change any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveProfiles {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Length of the windows.
    pub window_seconds: u32,
    /// The versions that answered, also such as are not held any more.
    pub versions: Vec<VersionProfile>,
}

/// What one version answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionProfile {
    /// Name of the ModelVersion.
    pub name: String,
    /// Digest of its artifact.
    pub digest: Digest,
    /// What its artifact says that the test set looked like, in the same bins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<DataProfile>,
    /// Windows with texts or feedback, ascending.
    pub windows: Vec<WindowProfile>,
}

/// What was answered in one window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WindowProfile {
    /// [`window_of`] its moments.
    pub id: u64,
    /// The texts, in the bins of the version's own profile.
    pub profile: DataProfile,
    /// What clients said in it of the version's predictions, of whichever window.
    #[serde(default, skip_serializing_if = "Judged::is_empty")]
    pub judged: Judged,
    /// The same by class of the version, as far as something was said of it. Pods of earlier releases do not tell it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outcomes: BTreeMap<u32, Outcomes>,
}

/// What clients said of one class. As JSON its three numbers in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u64; 3]", into = "[u64; 3]")]
pub struct Outcomes {
    /// It was answered and was right.
    pub right: u64,
    /// It was answered and was not; what would have been is another class, or a label that the version does not know.
    pub wrong: u64,
    /// It would have been right, and another one was answered.
    pub missed: u64,
}

impl From<[u64; 3]> for Outcomes {
    fn from([right, wrong, missed]: [u64; 3]) -> Self {
        Self { right, wrong, missed }
    }
}

impl From<Outcomes> for [u64; 3] {
    fn from(of: Outcomes) -> Self {
        [of.right, of.wrong, of.missed]
    }
}

impl Outcomes {
    /// Adds others.
    pub fn add(&mut self, other: Self) {
        self.right = self.right.saturating_add(other.right);
        self.wrong = self.wrong.saturating_add(other.wrong);
        self.missed = self.missed.saturating_add(other.missed);
    }

    /// Harmonic mean of the share of its answers that were right and of the share of its texts that got it; 0 without any.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn f1(&self) -> f64 {
        let [right, wrong, missed] = <[u64; 3]>::from(*self).map(|count| count as f64);
        if right > 0.0 {
            2.0 * right / (2.0 * right + wrong + missed)
        } else {
            0.0
        }
    }
}

/// Predictions of which clients said what would have been right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Judged {
    /// All of them.
    pub predictions: u64,
    /// Those that were right.
    pub correct: u64,
}

impl Judged {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.predictions == 0
    }

    /// Adds others.
    pub fn add(&mut self, other: Self) {
        self.predictions = self.predictions.saturating_add(other.predictions);
        self.correct = self.correct.saturating_add(other.correct);
    }
}

/// Class and probability of an answer; none without classes.
#[must_use]
pub fn most_probable(probabilities: &[f32]) -> Option<(usize, f32)> {
    let classes = probabilities.iter().copied().enumerate();
    classes.max_by(|a, b| a.1.total_cmp(&b.1))
}

/// Bucket of a token id, hashed so that neighbouring ids spread.
#[must_use]
pub fn vocabulary_bucket(id: i64) -> usize {
    usize::try_from(mixed(id.cast_unsigned()) % VOCABULARY_BUCKETS as u64).unwrap_or(0)
}

/// SplitMix64's number after this state (Steele, Lea, Flood, 2014).
fn mixed(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_value_is_counted_below_the_first_edge_above_it() {
        let mut histogram = Histogram::new(&CONFIDENCE_EDGES);
        for value in [-1.0, 0.0, 0.1, 0.35, 0.9, 1.0, f64::NAN] {
            histogram.add(value);
        }
        assert_eq!(histogram.counts, [2, 1, 0, 1, 0, 0, 0, 0, 0, 3]);
    }

    #[test]
    fn buckets_are_fixed_for_good_and_spread() {
        assert_eq!([0, 1, 101, 30_521].map(vocabulary_bucket), [47, 65, 23, 74]);
        let mut counts = [0_u32; VOCABULARY_BUCKETS];
        for id in 0..30_522 {
            counts[vocabulary_bucket(id)] += 1;
        }
        assert!(counts.iter().all(|c| (150..350).contains(c)), "{counts:?}");
    }

    #[test]
    fn projections_are_fixed_for_good_and_hardly_share_a_direction() {
        let signs = |projection: usize, count: usize| -> String {
            let signs = Projector::new(count).signs;
            let sign = |signs: &[f64; PROJECTIONS]| if signs[projection] > 0.0 { '+' } else { '-' };
            signs.iter().map(sign).collect()
        };
        let first: [String; PROJECTIONS] = std::array::from_fn(|projection| signs(projection, 16));
        assert_eq!(
            first, PINNED,
            "a change here would change what live traffic is compared with"
        );
        let width = 384;
        let projector = Projector::new(width);
        for (one, other) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
            let cosine = projector.signs.iter().map(|s| s[one] * s[other]).sum::<f64>() / width as f64;
            assert!(cosine.abs() < 4.0 / (width as f64).sqrt(), "{one} {other}: {cosine}");
        }
        // A unit vector: the longest projection of features of length one is one.
        let along: Vec<f32> = projector
            .signs
            .iter()
            .map(|s| s[2] as f32 / (width as f32).sqrt())
            .collect();
        assert!((projector.project(&along)[2] - 1.0).abs() < 1e-6);
        // Not one feature is passed over, and none comes from elsewhere.
        let [one, both] =
            [&[3.0][..], &[3.0, 4.0]].map(|features| Projector::new(2).project(features)[0] * 2_f64.sqrt());
        assert!((one + 3.0).abs() < 1e-12 && (both + 7.0).abs() < 1e-12, "{one} {both}");
    }

    /// Computed by another implementation.
    const PINNED: [&str; PROJECTIONS] = [
        "---+++-+--++--+-",
        "-+--++++-+++-+++",
        "----+-++---+-+++",
        "+-++--+-+-+-++-+",
    ];

    type Text = (Vec<i64>, Answer);

    fn text() -> impl Strategy<Value = Text> {
        let ids = prop::collection::vec(0..30_000_i64, 1..40);
        let probabilities = prop::collection::vec(0.0..1.0_f32, 3);
        let projections = prop::array::uniform4(-3.0..3.0_f64);
        (ids, probabilities, projections).prop_map(|(ids, probabilities, projections)| {
            let answer = Answer {
                probabilities,
                projections: Some(projections),
            };
            (ids, answer)
        })
    }

    fn counted<'a>(mut empty: DataProfile, texts: impl IntoIterator<Item = &'a Text>) -> DataProfile {
        for (ids, answer) in texts {
            empty.add(ids, answer);
        }
        empty
    }

    proptest! {
        #[test]
        fn parts_add_up_to_the_whole_through_json_in_any_order(
            texts in prop::collection::vec(text(), 1..60), cut in 0_usize..60, other in prop::array::uniform4(-3.0..3.0_f64)
        ) {
            let projections: Vec<_> = texts.iter().filter_map(|(_, answer)| answer.projections).collect();
            let empty = DataProfile::new(3).with_projections(&projections);
            prop_assert_eq!(empty.check(3), Ok(()));
            let whole = counted(empty.clone(), &texts);
            let (left, right) = texts.split_at(cut.min(texts.len()));
            let told = |profile: &DataProfile| serde_json::from_slice(&serde_json::to_vec(profile).unwrap()).unwrap();
            let [left, right]: [DataProfile; 2] = [left, right].map(|part| told(&counted(empty.clone(), part)));
            for (first, second) in [(&left, &right), (&right, &left)] {
                let mut sum = first.clone();
                prop_assert!(sum.merge(second));
                prop_assert_eq!(&sum, &whole);
            }
            prop_assert!(whole.projections.iter().all(|h| h.counts.iter().sum::<u64>() == whole.texts));
            prop_assert_eq!(&whole.clone().emptied(), &empty);
            let mut unchanged = whole.clone();
            prop_assert!(!unchanged.merge(&counted(DataProfile::new(3).with_projections(&[other]), &texts)));
            prop_assert!(!unchanged.merge(&counted(DataProfile::new(3), &texts)));
            prop_assert!(!unchanged.merge(&counted(DataProfile::new(4).with_projections(&projections), &texts)));
            prop_assert_eq!(unchanged, whole);
        }
    }

    #[test]
    fn the_edges_of_projections_part_the_test_set_evenly() {
        let texts: Vec<[f64; PROJECTIONS]> = (0..1600)
            .map(|i| [f64::from(i * 7919 % 1600), 0.0, f64::NAN, 1e-9])
            .collect();
        let mut profile = DataProfile::new(2).with_projections(&texts);
        for projections in texts {
            let answer = Answer {
                probabilities: vec![0.5, 0.5],
                projections: Some(projections),
            };
            profile.add(&[1, 2], &answer);
        }
        assert_eq!(profile.projections[0].counts, [100; PROJECTION_BINS]);
        // What is all the same, or no number, has an edge all the same.
        for projection in &profile.projections[1..] {
            assert_eq!(projection.edges, [0.0; PROJECTION_BINS - 1]);
            assert_eq!(projection.counts.last(), Some(&1600));
        }
        assert_eq!(profile.check(2), Ok(()));
    }

    #[test]
    fn a_profile_without_projections_is_read_and_one_that_fits_no_model_is_refused() {
        let mut old = serde_json::to_value(DataProfile::new(3)).unwrap();
        assert!(old.as_object_mut().unwrap().remove("projections").is_none());
        let old: DataProfile = serde_json::from_value(old).unwrap();
        assert_eq!((old.check(3), old.projections.len()), (Ok(()), 0));

        type Change = fn(&mut DataProfile);
        let changes: [(&str, Change); 8] = [
            ("schemaVersion 9", |p| p.schema_version = 9),
            ("4 classes", |p| p.classes.push(0)),
            ("buckets", |p| p.vocabulary.truncate(100)),
            ("2 projections", |p| p.projections.truncate(2)),
            ("edges", |p| p.length.counts.truncate(3)),
            ("ascend", |p| p.confidence.edges.reverse()),
            ("ascend", |p| p.projections[1].edges[3] = f64::INFINITY),
            ("at most 220", |p| p.length = Histogram::new(&[1.0; 100])),
        ];
        for (word, change) in changes {
            let mut profile = DataProfile::new(3).with_projections(&[[0.0; PROJECTIONS]]);
            change(&mut profile);
            let why = profile.check(3).unwrap_err();
            assert!(why.contains(word), "{word}: {why}");
        }
    }

    #[test]
    fn a_profile_has_few_bins_and_what_a_pod_tells_is_bounded() {
        let classes = 100;
        let profile = DataProfile::new(classes).with_projections(&[[-19.595_918; PROJECTIONS]]);
        let bins = profile.counts().count() - 1;
        assert_eq!(bins, MAX_BINS - 2 + classes);
        // The longest numbers that there are, in every version that a pod may hold.
        let mut longest = profile;
        for count in longest.counts_mut() {
            *count = u64::MAX;
        }
        let window = |id| WindowProfile {
            id,
            profile: longest.clone(),
            judged: Judged {
                predictions: u64::MAX,
                correct: u64::MAX,
            },
            outcomes: (0..100).map(|class| (class, Outcomes::from([u64::MAX; 3]))).collect(),
        };
        let version = |n: usize| VersionProfile {
            name: format!("{n:a>63}"),
            digest: Digest::sha256(&"0".repeat(64)),
            test: Some(longest.clone()),
            windows: (u64::MAX - KEPT_WINDOWS..u64::MAX).map(window).collect(),
        };
        let told = LiveProfiles {
            schema_version: crate::SCHEMA_VERSION,
            window_seconds: WINDOW_SECONDS,
            versions: (0..crate::serving::MAX_VERSIONS).map(version).collect(),
        };
        let bytes = serde_json::to_vec(&told).unwrap().len();
        assert!(bytes < PROFILE_BODY_MAX, "{bytes}");
    }
}
