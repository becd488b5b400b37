//! Texts of one set that nearly stand in another: MinHash signatures find candidates, true similarity decides.
//!
//! Two texts are near-duplicates where the Jaccard similarity of their sets of character trigrams is at least 0.8, after
//! case, compatibility forms, punctuation and white space have been evened out. Candidates come from locality-sensitive
//! hashing: a signature of least values under [`HASHES`] hash functions (Broder 1997), cut into bands (Leskovec,
//! Rajaraman, Ullman: Mining of Massive Datasets, 3.4). Two texts of similarity s share a band with probability
//! 1 − (1 − s^[`BAND_ROWS`])^[`BANDS`]: 0.99 at 0.8, 0.9997 at 0.85, 0.02 at 0.4. A candidate counts only once its
//! trigrams have been compared, so that no other text is ever reported.
//!
//! Memory is about 270 bytes per row of the later sets; rows of the first set are streamed. Work per row is bounded, and
//! rows for which the bounds were too tight are counted.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use unicode_normalization::UnicodeNormalization;

use crate::checks::EXAMPLES;

/// Characters of a shingle. Three fit into a `u64`, so that similarity is computed of the shingles themselves, not of hashes.
const SHINGLE: usize = 3;
/// Bits of a Unicode scalar value.
const CHAR_BITS: u32 = 21;
/// Near-duplicates have at least this Jaccard similarity: 4/5, exact in integers.
const ALIKE: (usize, usize) = (4, 5);
/// Values of the signature in one band.
const BAND_ROWS: usize = 8;
/// Bands.
pub(crate) const BANDS: usize = 25;
/// Values in a signature.
const HASHES: usize = BANDS * BAND_ROWS;
/// Words that hold one bit per value.
const BIT_WORDS: usize = HASHES.div_ceil(64);
/// Candidates agree in at least this many of the signature's lowest bits. Texts of similarity s agree in (1 + s)/2 of
/// them (Li and König 2010): 180 ± 4.2 at 0.8, so one in 2,000 such texts is lost, and what is below 0.6 is let go
/// without a look at the text.
const LEAST_AGREEMENTS: u32 = 166;
/// Rows of one band's bucket that are looked at for one text. Where more rows share a band, each text looks at the next
/// share of them.
const LOOKS: usize = 1024;
/// The same over all texts of a set; a look takes a few nanoseconds.
const LOOKS_IN_ALL: usize = 1 << 30;
/// Comparisons that may come out below the threshold for one text, nearest candidates first.
const FAILURES: usize = 64;
/// Bytes of texts that may be compared so over all texts of a set, at some 30 ns each; then only one more for each text.
const FAILED_BYTES_IN_ALL: usize = 1 << 31;
/// Texts whose signatures are made at once.
const BLOCK: usize = 1 << 15;

/// Rows of one set whose text nearly stands in an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    /// Place of the set in the list.
    pub(crate) set: usize,
    /// Place of the earlier set.
    pub(crate) of: usize,
    /// How many rows of `set` there are.
    pub(crate) rows: u64,
    /// Of these, those whose very text stands in `of`.
    pub(crate) identical: u64,
    /// The first few: row of `set`, row of `of`.
    pub(crate) examples: Vec<(usize, usize)>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Pairs of sets with at least one such row.
    pub(crate) pairs: Vec<Pair>,
    /// Rows that were found in none and for which a bound left candidates unseen.
    pub(crate) uncompared: u64,
}

/// Near-duplicates across sets: for each two of them, rows of the later one that have their like in the earlier one.
/// `bands` is [`BANDS`]; fewer find fewer.
pub(crate) fn near_duplicates<T: AsRef<str> + Sync>(sets: &[&[T]], bands: usize) -> Found {
    let later: Vec<&T> = sets.iter().skip(1).copied().flatten().collect();
    let index = Index::new(&later, bands);
    let mut found = Found::default();
    let mut unseen = vec![false; later.len()];
    // Where the sets after `of` begin in `later`.
    let mut first = 0;
    for (of, set) in sets.iter().enumerate().take(sets.len().saturating_sub(1)) {
        if of > 0 {
            first += set.len();
        }
        let mut search = Search::new(&later, &index, first);
        search.all(set);
        let mut start = first;
        for (place, one) in sets.iter().enumerate().skip(of + 1) {
            found
                .pairs
                .extend(search.pair(start, one.len(), place, of).filter(|pair| pair.rows > 0));
            start += one.len();
        }
        search.unseen(&mut unseen);
    }
    found.uncompared = unseen.iter().filter(|unseen| **unseen).count() as u64;
    found
}

/// What a row of the later sets has in the set that is searched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Like {
    None,
    /// Not found yet, and a candidate was left out.
    Unseen,
    /// A row with nearly its text.
    Near(usize),
    /// A row with its very text.
    Identical(usize),
}

/// The search for rows of one set among the rows of all later ones.
struct Search<'a, T> {
    rows: &'a [&'a T],
    index: &'a Index,
    /// The first row that counts.
    first: usize,
    likes: Vec<Like>,
    /// Rows of a bucket that each text looks at.
    looks: usize,
    /// What is left of [`FAILED_BYTES_IN_ALL`].
    failed_bytes: usize,
    /// Buckets, by band and range, of which not every row was looked at for every text.
    cut: BTreeSet<(usize, usize, usize)>,
}

impl<'a, T: AsRef<str> + Sync> Search<'a, T> {
    fn new(rows: &'a [&'a T], index: &'a Index, first: usize) -> Self {
        Self {
            rows,
            index,
            first,
            likes: vec![Like::None; rows.len()],
            looks: LOOKS,
            failed_bytes: FAILED_BYTES_IN_ALL,
            cut: BTreeSet::new(),
        }
    }

    fn all(&mut self, set: &[T]) {
        let mut places: HashMap<&str, usize> = HashMap::with_capacity(set.len());
        for (row, text) in set.iter().enumerate() {
            places.entry(text.as_ref()).or_insert(row);
        }
        for (like, text) in self.likes.iter_mut().zip(self.rows).skip(self.first) {
            if let Some(row) = places.get(text.as_ref()) {
                *like = Like::Identical(*row);
            }
        }
        // A repeated text finds nothing new.
        let distinct: Vec<(usize, &T)> = set
            .iter()
            .enumerate()
            .filter(|(row, text)| places.get(text.as_ref()) == Some(row))
            .collect();
        drop(places);
        self.looks = (LOOKS_IN_ALL / distinct.len().max(1)).clamp(1, LOOKS);
        for block in distinct.chunks(BLOCK) {
            let texts: Vec<&T> = block.iter().map(|(_, text)| *text).collect();
            for ((row, text), sketch) in block.iter().zip(sketches(&texts)) {
                self.one(*row, text.as_ref(), &sketch);
            }
        }
    }

    fn one(&mut self, number: usize, text: &str, sketch: &Sketch) {
        let mut candidates: Vec<(Reverse<u32>, usize)> = Vec::new();
        for (band, (entries, key)) in self.index.bands.iter().zip(&sketch.keys).enumerate() {
            let from = entries.partition_point(|(k, row)| (*k, *row as usize) < (*key, self.first));
            let to = entries.partition_point(|(k, _)| k <= key);
            let bucket = entries.get(from..to).unwrap_or_default();
            if bucket.is_empty() {
                continue;
            }
            if bucket.len() > self.looks {
                self.cut.insert((band, from, to));
            }
            let turn = number.wrapping_mul(self.looks) % bucket.len();
            let (before, after) = bucket.split_at_checked(turn).unwrap_or((bucket, &[]));
            for (_, row) in after.iter().chain(before).take(self.looks) {
                let row = *row as usize;
                if let (Some(Like::None | Like::Unseen), Some(other)) =
                    (self.likes.get(row), self.index.traits.get(row))
                    && sketch.traits.may_be_like(other)
                {
                    candidates.push((Reverse(sketch.traits.agreements(other)), row));
                }
            }
        }
        candidates.sort_unstable();
        candidates.dedup();
        let mut own = None;
        let mut failures = 0;
        for (_, row) in candidates {
            let (Some(like), Some(other)) = (self.likes.get_mut(row), self.rows.get(row)) else {
                continue;
            };
            let most = if self.failed_bytes == 0 { 1 } else { FAILURES };
            if failures >= most {
                *like = Like::Unseen;
            } else if alike(own.get_or_insert_with(|| shingles(text)), &shingles(other.as_ref())) {
                *like = Like::Near(number);
            } else {
                failures += 1;
                self.failed_bytes = self.failed_bytes.saturating_sub(other.as_ref().len());
            }
        }
    }

    /// The pair of `of` with the set `set` whose rows begin at `start`.
    fn pair(&self, start: usize, rows: usize, set: usize, of: usize) -> Option<Pair> {
        let mut pair = Pair {
            set,
            of,
            rows: 0,
            identical: 0,
            examples: Vec::new(),
        };
        for (row, like) in self.likes.get(start..start + rows)?.iter().enumerate() {
            if let Like::Near(other) | Like::Identical(other) = like {
                pair.rows += 1;
                pair.identical += u64::from(matches!(like, Like::Identical(_)));
                if pair.examples.len() < EXAMPLES {
                    pair.examples.push((row, *other));
                }
            }
        }
        Some(pair)
    }

    /// Marks rows without their like for which a candidate was left out.
    fn unseen(&self, marks: &mut [bool]) {
        let mut mark = |row: usize, like: &Like| {
            if let (Like::None | Like::Unseen, Some(mark)) = (like, marks.get_mut(row)) {
                *mark = true;
            }
        };
        for (row, like) in self.likes.iter().enumerate().filter(|(_, l)| **l == Like::Unseen) {
            mark(row, like);
        }
        for (band, from, to) in &self.cut {
            let bucket = self.index.bands.get(*band).and_then(|entries| entries.get(*from..*to));
            for (_, row) in bucket.unwrap_or_default() {
                if let Some(like) = self.likes.get(*row as usize) {
                    mark(*row as usize, like);
                }
            }
        }
    }
}

/// Rows by the keys of their bands.
struct Index {
    /// For each band, key and row, sorted.
    bands: Vec<Vec<(u32, u32)>>,
    /// For each row.
    traits: Vec<Traits>,
}

impl Index {
    fn new<T: AsRef<str> + Sync>(rows: &[&T], bands: usize) -> Self {
        let mut index = Self {
            bands: vec![Vec::with_capacity(rows.len()); bands],
            traits: Vec::with_capacity(rows.len()),
        };
        for block in rows.chunks(BLOCK) {
            for sketch in sketches(block) {
                // A data set has fewer rows than a `u32` counts.
                let row = u32::try_from(index.traits.len()).unwrap_or(u32::MAX);
                for (band, key) in index.bands.iter_mut().zip(sketch.keys) {
                    band.push((key, row));
                }
                index.traits.push(sketch.traits);
            }
        }
        index.bands.iter_mut().for_each(|band| band.sort_unstable());
        index
    }
}

/// What is kept of a text's signature to rule candidates out.
#[derive(Clone, Copy, Default)]
struct Traits {
    /// The lowest bit of each value.
    bits: [u64; BIT_WORDS],
    /// Number of shingles.
    shingles: u32,
}

impl Traits {
    /// Values whose lowest bits are equal.
    fn agreements(&self, other: &Self) -> u32 {
        let differences: u32 = self
            .bits
            .iter()
            .zip(&other.bits)
            .map(|(a, b)| (a ^ b).count_ones())
            .sum();
        (HASHES as u32).saturating_sub(differences)
    }

    fn may_be_like(&self, other: &Self) -> bool {
        let (few, many) = (self.shingles.min(other.shingles), self.shingles.max(other.shingles));
        few as usize * ALIKE.1 >= many as usize * ALIKE.0 && self.agreements(other) >= LEAST_AGREEMENTS
    }
}

/// A text's signature, cut into bands.
#[derive(Clone, Copy, Default)]
struct Sketch {
    keys: [u32; BANDS],
    traits: Traits,
}

impl Sketch {
    fn of(text: &str) -> Self {
        let set = shingles(text);
        let mut least = [u32::MAX; HASHES];
        for shingle in &set {
            let value = mix(*shingle) >> 32;
            for ((least, factor), summand) in least.iter_mut().zip(&FACTORS).zip(&SUMMANDS) {
                *least = (*least).min(high(factor.wrapping_mul(value).wrapping_add(*summand)));
            }
        }
        let mut sketch = Self::default();
        for (key, band) in sketch.keys.iter_mut().zip(least.chunks_exact(BAND_ROWS)) {
            *key = high(band.iter().fold(0, |sum, value| mix(sum ^ u64::from(*value))));
        }
        for (word, values) in sketch.traits.bits.iter_mut().zip(least.chunks(64)) {
            *word = values.iter().fold(0, |word, value| (word << 1) | u64::from(value & 1));
        }
        sketch.traits.shingles = u32::try_from(set.len()).unwrap_or(u32::MAX);
        sketch
    }
}

/// The sketch of each text, made on all cores.
fn sketches<T: AsRef<str> + Sync>(texts: &[&T]) -> Vec<Sketch> {
    let mut out = vec![Sketch::default(); texts.len()];
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = texts.len().div_ceil(cores).max(1);
    std::thread::scope(|scope| {
        for (texts, out) in texts.chunks(share).zip(out.chunks_mut(share)) {
            scope.spawn(move || {
                for (text, sketch) in texts.iter().zip(out) {
                    *sketch = Sketch::of(text.as_ref());
                }
            });
        }
    });
    out
}

/// Factors and summands of the hash functions x → (ax + b) div 2³² of 32 bits (Dietzfelbinger 1996), the same for good.
static FACTORS: [u64; HASHES] = numbers(0x0066_6c79_7768_6565);
static SUMMANDS: [u64; HASHES] = numbers(0x6c20_6d69_6e68_6173);

/// SplitMix64's numbers from a seed (Steele, Lea, Flood 2014).
const fn numbers(mut state: u64) -> [u64; HASHES] {
    let mut out = [0; HASHES];
    let mut rest: &mut [u64] = &mut out;
    while let Some((number, more)) = rest.split_first_mut() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        *number = mix(state);
        rest = more;
    }
    out
}

/// SplitMix64's mixing function.
const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[allow(clippy::cast_possible_truncation, reason = "the high half of 64 bits has 32")]
const fn high(x: u64) -> u32 {
    (x >> 32) as u32
}

/// Whether two sorted sets are near-duplicates.
fn alike(mut a: &[u64], mut b: &[u64]) -> bool {
    let all = a.len() + b.len();
    let mut both = 0;
    while let ([x, more_a @ ..], [y, more_b @ ..]) = (a, b) {
        both += usize::from(x == y);
        if x <= y {
            a = more_a;
        }
        if y <= x {
            b = more_b;
        }
    }
    both * ALIKE.1 >= (all - both) * ALIKE.0
}

/// The distinct trigrams of a text, sorted; never empty. Three characters of 21 bits each in a number.
fn shingles(text: &str) -> Vec<u64> {
    let characters = compared(text);
    let mut out: Vec<u64> = characters
        .windows(SHINGLE)
        .map(|three| three.iter().fold(0, |sum, c| (sum << CHAR_BITS) | u64::from(*c)))
        .collect();
    out.sort_unstable();
    out.dedup();
    out
}

/// The text as it is compared: NFKC, lower case, punctuation and white space as one space, and one at either end. Symbols
/// such as `+`, `#`, `$` and emoji tell texts apart and stay. A text of punctuation alone is compared as it stands.
fn compared(text: &str) -> Vec<char> {
    let mut out = Vec::with_capacity(text.len() + 2);
    out.push(' ');
    let mut add = |c: char| {
        if !is_separator(c) {
            out.push(c);
        } else if out.last() != Some(&' ') {
            out.push(' ');
        }
    };
    if text.is_ascii() {
        text.chars().for_each(|c| add(c.to_ascii_lowercase()));
    } else {
        text.nfkc().flat_map(char::to_lowercase).for_each(add);
    }
    if out.len() == 1 {
        out.extend(text.chars());
    }
    if out.last() != Some(&' ') || out.len() < SHINGLE {
        out.push(' ');
    }
    out
}

fn is_separator(c: char) -> bool {
    c.is_whitespace()
        || c.is_control()
        || matches!(
            c,
            '!' | '"' | '\'' | '(' | ')' | '*' | ',' | '-' | '.' | '/' | ':' | ';' | '?' | '[' | '\\' | ']' | '_' | '`' | '{' | '}'
            // Latin, then general punctuation without its joiners and marks of direction.
            | '¡' | '«' | '·' | '»' | '¿' | '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{205e}'
            // Greek, Armenian, Hebrew, Arabic, Devanagari.
            | '\u{37e}' | '\u{55a}'..='\u{55f}' | '\u{589}' | '\u{5be}' | '\u{60c}' | '\u{61b}' | '\u{61f}' | '\u{6d4}' | '\u{964}' | '\u{965}'
            // Chinese, Japanese, Korean.
            | '\u{3001}'..='\u{3003}' | '\u{3008}'..='\u{3011}' | '\u{3014}'..='\u{301f}' | '\u{30fb}'
        )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Instant;

    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::RngCore;

    use super::*;
    use crate::random::generator;

    fn pick(rng: &mut ChaCha8Rng, n: usize) -> usize {
        rng.next_u32() as usize % n
    }

    fn word(rng: &mut ChaCha8Rng) -> String {
        let letters = 2 + pick(rng, 7);
        (0..letters).map(|_| char::from(b'a' + pick(rng, 26) as u8)).collect()
    }

    fn text(rng: &mut ChaCha8Rng) -> String {
        let words = 4 + pick(rng, 20);
        (0..words).map(|_| word(rng)).collect::<Vec<_>>().join(" ")
    }

    /// Similarity as the module's text defines it, written another way; for texts of lower-case words.
    fn similarity(a: &str, b: &str) -> f64 {
        let trigrams = |text: &str| -> HashSet<String> {
            let padded: Vec<char> = format!(" {text} ").chars().collect();
            padded.windows(3).map(|w| w.iter().collect()).collect()
        };
        let (a, b) = (trigrams(a), trigrams(b));
        a.intersection(&b).count() as f64 / a.union(&b).count() as f64
    }

    /// The text after random edits, as far from it as 0.8 allows.
    fn edited(rng: &mut ChaCha8Rng, original: &str) -> String {
        let mut last = original.to_owned();
        let mut refused = 0;
        while refused < 20 {
            let mut words: Vec<String> = last.split(' ').map(str::to_owned).collect();
            let at = pick(rng, words.len());
            match pick(rng, 4) {
                0 => words.insert(at, word(rng)),
                1 if words.len() > 1 => drop(words.remove(at)),
                2 => words[at] = word(rng),
                _ => {
                    let letter = pick(rng, words[at].len());
                    words[at].replace_range(letter..=letter, "q");
                }
            }
            let next = words.join(" ");
            if similarity(&next, original) >= 0.8 {
                last = next;
            } else {
                refused += 1;
            }
        }
        last
    }

    /// A training set, and a test set with 50 near-duplicates of it at its end.
    fn planted(seed: i64) -> (Vec<String>, Vec<String>) {
        let mut rng = generator(seed, 0);
        let train: Vec<String> = (0..200).map(|_| text(&mut rng)).collect();
        let mut test: Vec<String> = (0..50).map(|_| text(&mut rng)).collect();
        test.extend(train.iter().take(50).map(|original| edited(&mut rng, original)));
        (train, test)
    }

    /// Rows of the test set that are found, each with its like.
    fn found(train: &[String], test: &[String], bands: usize) -> Vec<(usize, usize)> {
        let later: Vec<&String> = test.iter().collect();
        let index = Index::new(&later, bands);
        let mut search = Search::new(&later, &index, 0);
        search.all(train);
        let likes = search.likes.iter().enumerate();
        likes
            .filter_map(|(row, like)| match like {
                Like::Near(other) | Like::Identical(other) => Some((row, *other)),
                Like::None | Like::Unseen => None,
            })
            .collect()
    }

    #[test]
    fn planted_near_duplicates_are_found_and_nothing_else_is() {
        let (mut all, mut halved) = (0, 0);
        let seeds = 10;
        for seed in 0..seeds {
            let (train, test) = planted(seed);
            let rows = found(&train, &test, BANDS);
            for (row, other) in &rows {
                let likeness = similarity(&train[*other], &test[*row]);
                assert!(likeness >= 0.8, "row {row}: {likeness}");
            }
            let planted = rows.iter().filter(|(row, _)| *row >= 50).count();
            println!("seed {seed}: {planted} of 50 found, {} others", rows.len() - planted);
            assert!(planted * 100 >= 50 * 95, "seed {seed}: {planted} of 50");
            all += planted;
            halved += found(&train, &test, BANDS / 2).len();
        }
        let planted = seeds as usize * 50;
        println!("recall {all} of {planted}; with half the bands {halved}");
        assert!(
            halved * 100 < planted * 95,
            "the planted texts are so near that fewer bands would do: {halved}"
        );
    }

    #[test]
    fn short_texts_and_other_scripts() {
        let table = [
            ("yes", "Yes!", true),
            ("yes", "no", false),
            ("ok", "okay", false),
            ("a", "b", false),
            ("a", "A.", true),
            ("turn it on", "turn it off", false),
            ("turn it on", "Turn  it on…", true),
            ("what's my balance?", "What’s my balance", true),
            ("caf\u{e9} au lait", "CAFE\u{301} AU LAIT.", true),
            ("ＡＢＣ　１２３！", "abc 123", true),
            ("我想查询余额。", "我想查询余额", true),
            ("我想查询余额", "我要取消订单", false),
            ("मेरा बैलेंस क्या है।", "मेरा बैलेंस क्या है", true),
            ("كم رصيدي؟", "كم رصيدي", true),
            ("good 😀", "good 😡", false),
            ("😀", "😡", false),
            ("!!!", "???", false),
            ("!!!", "!!!", true),
            ("in c++", "in c#", false),
            ("5 %", "5", false),
        ];
        for (a, b, near) in table {
            let found = near_duplicates(&[&[a], &[b]], BANDS);
            assert_eq!(found.pairs.len() == 1, near, "{a:?} {b:?}");
            assert_eq!(found.uncompared, 0);
        }
        assert_eq!(near_duplicates::<&str>(&[], BANDS), Found::default());
        assert_eq!(near_duplicates::<&str>(&[&[], &[], &["x"]], BANDS), Found::default());
        for text in ["", " ", "x", "\u{0}", "e\u{301}", "ﷺ"] {
            assert!(!shingles(text).is_empty() || text.trim().is_empty(), "{text:?}");
        }
    }

    #[test]
    fn each_pair_of_sets_is_told_apart_and_a_row_counts_once() {
        let train = [
            "how do i reset my password",
            "where is my parcel now",
            "nothing like the others",
        ];
        let validation = ["how do I reset my password?", "how do i reset my password"];
        let test = [
            "Where is my parcel, now?",
            "how do i reset my passwords",
            "something else entirely",
        ];
        let golden = ["something else, entirely"];
        let found = near_duplicates(&[&train, &validation, &test, &golden], BANDS);
        let pair = |set, of, rows, identical, examples: &[(usize, usize)]| Pair {
            set,
            of,
            rows,
            identical,
            examples: examples.to_vec(),
        };
        assert_eq!(
            found.pairs,
            [
                pair(1, 0, 2, 1, &[(0, 0), (1, 0)]),
                pair(2, 0, 2, 0, &[(0, 1), (1, 0)]),
                // Which of two like rows is told is all the same.
                pair(2, 1, 1, 0, &found.pairs[2].examples),
                pair(3, 2, 1, 0, &[(0, 2)]),
            ]
        );
        assert_eq!(found.pairs[2].examples[0].0, 1);
    }

    #[test]
    fn texts_beyond_the_bounds_are_counted_and_taken_in_turn() {
        let many: Vec<String> = (0..1500).map(|i| format!("ok{}", ".".repeat(i + 1))).collect();
        let one = near_duplicates(&[&["ok".to_owned()], &many], BANDS);
        assert_eq!((one.pairs[0].rows, one.uncompared), (LOOKS as u64, 1500 - LOOKS as u64));
        let two = near_duplicates(&[&["ok".to_owned(), "OK".to_owned()], &many], BANDS);
        assert_eq!((two.pairs[0].rows, two.uncompared), (1500, 0));
        // Alike, but not enough: the nearest are compared first, and not all of the rest.
        let mut rng = generator(1, 0);
        let mut order = || {
            let (what, place) = (word(&mut rng), word(&mut rng));
            format!("please send all that i have put into the basket so far, and {what}, to the office in {place}")
        };
        let train: Vec<String> = (0..3).map(|_| order()).collect();
        let mut test: Vec<String> = (0..900).map(|_| order()).collect();
        test.extend(train.iter().map(|text| text.replace("the basket", "the baskets")));
        let uncompared = near_duplicates(&[&train, &test], BANDS).uncompared;
        assert!((100..900).contains(&uncompared), "{uncompared}");
        let rows = found(&train, &test, BANDS);
        assert!((900..903).all(|row| rows.contains(&(row, row - 900))), "{rows:?}");
    }

    /// `cargo test --release -p flywheel-data -- --ignored --nocapture hundred_thousand`
    #[test]
    #[ignore = "a measurement"]
    fn hundred_thousand_rows() {
        let mut rng = generator(1, 0);
        let train: Vec<String> = (0..70_000).map(|_| text(&mut rng)).collect();
        let mut test: Vec<String> = (0..29_000).map(|_| text(&mut rng)).collect();
        test.extend(train.iter().take(1000).map(|original| edited(&mut rng, original)));
        let start = Instant::now();
        let found = near_duplicates(&[&train, &test], BANDS);
        let rows: u64 = found.pairs.iter().map(|p| p.rows).sum();
        println!("100,000 rows in {:?}; 1,000 planted, {rows} found", start.elapsed());
    }
}
