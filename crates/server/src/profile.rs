//! What live traffic looks like: each worker counts the texts that it answered, and who asks adds the workers' counts up.
//!
//! Nothing is locked and no line of memory is shared while texts are counted: a worker counts in plain numbers of its own and
//! writes them, after each batch, where others read them, over lines that no other worker writes to. No text is kept.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use flywheel_contract::profile::{
    Answer, DataProfile, Judged, KEPT_WINDOWS, Outcomes, VersionProfile, WINDOW_SECONDS, WindowProfile, window_of,
};
use flywheel_contract::scalar::Digest;
use flywheel_contract::serving::{MAX_VERSIONS, ServedVersion};

/// Windows that a worker keeps: those that are told and one more, since it may begin the next one while they are read.
const SLOTS: usize = KEPT_WINDOWS as usize + 1;
/// Versions whose counts are kept: as many again as are held, of those that answered before.
const KEPT_VERSIONS: usize = 2 * MAX_VERSIONS;
/// How often a reader tries again whom a worker disturbed, yielding in between. A worker writes for less than a microsecond, but
/// for as long as it gets no processor.
const TRIES: u32 = 100;
/// Classes of a version of which a window tells what clients said, so that what a pod tells has a bound; of further ones only the sum.
const OUTCOMES_MAX: usize = 1000;

/// Seconds since 1970, by this machine's clock.
#[must_use]
pub fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Numbers that only one thread writes. Processors fetch lines of 64 bytes in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Line([AtomicU64; 16]);

/// A worker's counts as others read them.
#[repr(align(128))]
struct Shared {
    /// Odd while the worker writes: a sequence lock with one writer, who waits for nobody (Boehm, "Can Seqlocks Get Along With
    /// Programming Language Memory Models?", 2012).
    sequence: AtomicU64,
    /// The windows: number, then counts.
    slots: [Box<[Line]>; SLOTS],
}

impl Shared {
    fn new(empty: &DataProfile) -> Self {
        let lines = (1 + empty.counts().count()).div_ceil(Line::default().0.len());
        Self {
            sequence: AtomicU64::new(0),
            slots: std::array::from_fn(|_| (0..lines).map(|_| Line::default()).collect()),
        }
    }

    /// Writes a window. Only its worker may call it.
    fn write(&self, slot: usize, window: &WindowProfile) {
        let Some(lines) = self.slots.get(slot) else { return };
        let before = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(before + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        let values = std::iter::once(window.id).chain(window.profile.counts());
        for (number, value) in lines.iter().flat_map(|line| &line.0).zip(values) {
            number.store(value, Ordering::Relaxed);
        }
        self.sequence.store(before + 2, Ordering::Release);
    }

    /// The windows in which something was counted, each batch wholly or not at all; `None` where the worker is held up in the
    /// middle of writing.
    fn read(&self, empty: &DataProfile) -> Option<Vec<WindowProfile>> {
        for _ in 0..TRIES {
            let before = self.sequence.load(Ordering::Acquire);
            if before.is_multiple_of(2) {
                let windows = self
                    .slots
                    .iter()
                    .map(|lines| window_in(lines, empty))
                    .collect::<Vec<_>>();
                fence(Ordering::Acquire);
                if self.sequence.load(Ordering::Relaxed) == before {
                    return Some(windows.into_iter().filter(|window| window.profile.texts > 0).collect());
                }
            }
            std::thread::yield_now();
        }
        None
    }
}

fn window_in(lines: &[Line], empty: &DataProfile) -> WindowProfile {
    let mut numbers = lines.iter().flat_map(|line| &line.0).map(|n| n.load(Ordering::Relaxed));
    let id = numbers.next().unwrap_or_default();
    let mut profile = empty.clone();
    for (count, value) in profile.counts_mut().zip(numbers) {
        *count = value;
    }
    WindowProfile {
        id,
        profile,
        judged: Judged::default(),
        outcomes: BTreeMap::new(),
    }
}

/// Counts the texts that one worker answers.
pub struct Counter {
    shared: Arc<Shared>,
    /// Length of the windows. Numbers of windows of another length are far from those of this one.
    window_seconds: Arc<AtomicU32>,
    windows: [WindowProfile; SLOTS],
    /// Slot of the window that was begun last.
    newest: usize,
}

impl Counter {
    fn new(empty: &DataProfile, window_seconds: &Arc<AtomicU32>) -> Self {
        let window = || WindowProfile {
            id: 0,
            profile: empty.clone(),
            judged: Judged::default(),
            outcomes: BTreeMap::new(),
        };
        Self {
            shared: Arc::new(Shared::new(empty)),
            window_seconds: Arc::clone(window_seconds),
            windows: std::array::from_fn(|_| window()),
            newest: 0,
        }
    }

    /// Counts texts by their token ids and answers, at this moment. One whose probabilities are no numbers was no answer.
    pub fn count<'a>(&mut self, unix_seconds: u64, texts: impl Iterator<Item = (&'a [i64], &'a Answer)>) {
        let length = self.window_seconds.load(Ordering::Relaxed);
        let slot = self.slot_of(window_of(unix_seconds, length));
        let Some(window) = self.windows.get_mut(slot) else {
            return;
        };
        let answered = texts.filter(|(_, answer)| answer.is_finite());
        for (ids, answer) in answered {
            window.profile.add(ids, answer);
        }
        self.shared.write(slot, window);
    }

    /// Where a window is counted. A new one takes the place of the one that was begun first.
    fn slot_of(&mut self, id: u64) -> usize {
        if let Some(slot) = self.windows.iter().position(|window| window.id == id) {
            return slot;
        }
        self.newest = (self.newest + 1) % SLOTS;
        if let Some(window) = self.windows.get_mut(self.newest) {
            window.id = id;
            window.profile.counts_mut().for_each(|count| *count = 0);
        }
        self.newest
    }
}

/// Counts of one version.
struct Counted {
    version: ServedVersion,
    /// Of its test set.
    test: DataProfile,
    empty: DataProfile,
    workers: Vec<Arc<Shared>>,
    /// What workers counted that are gone, by window.
    left: BTreeMap<u64, DataProfile>,
    /// What clients said, by window.
    judged: BTreeMap<u64, (Judged, BTreeMap<u32, Outcomes>)>,
}

impl Counted {
    /// Takes over what workers leave that are gone.
    fn fold(&mut self) {
        for worker in std::mem::take(&mut self.workers) {
            match Arc::try_unwrap(worker) {
                // Without its worker nothing disturbs the reading.
                Ok(shared) => add(&mut self.left, shared.read(&self.empty).unwrap_or_default()),
                Err(worker) => self.workers.push(worker),
            }
        }
    }
}

fn add(sums: &mut BTreeMap<u64, DataProfile>, windows: Vec<WindowProfile>) {
    for window in windows {
        match sums.get_mut(&window.id) {
            // The bins are those of the version, in all of its workers.
            Some(sum) => _ = sum.merge(&window.profile),
            None => _ = sums.insert(window.id, window.profile),
        }
    }
}

/// Counts of all versions that this pod answered with lately.
pub struct Profiles {
    versions: Mutex<Vec<Counted>>,
    window_seconds: Arc<AtomicU32>,
}

impl Default for Profiles {
    fn default() -> Self {
        Self {
            versions: Mutex::default(),
            window_seconds: Arc::new(AtomicU32::new(WINDOW_SECONDS)),
        }
    }
}

impl Profiles {
    fn lock(&self) -> MutexGuard<'_, Vec<Counted>> {
        // No code that can panic runs under the lock.
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Length of the windows, from now on.
    pub fn set_window_seconds(&self, seconds: u32) {
        self.window_seconds.store(seconds, Ordering::Relaxed);
    }

    /// Length of the windows.
    pub fn window_seconds(&self) -> u32 {
        self.window_seconds.load(Ordering::Relaxed)
    }

    /// Counters for so many workers of a version, in the bins of its profile. What it counted before, in this pod, stays.
    pub fn counters(&self, version: &ServedVersion, profile: DataProfile, workers: usize) -> Vec<Counter> {
        let empty = profile.clone().emptied();
        let counters = (0..workers).map(|_| Counter::new(&empty, &self.window_seconds));
        let counters: Vec<Counter> = counters.collect();
        let shared = counters.iter().map(|counter| Arc::clone(&counter.shared));
        let mut all = self.lock();
        all.iter_mut().for_each(Counted::fold);
        let same = |counted: &&mut Counted| {
            let known = &counted.version;
            known.name == version.name && known.artifact.digest == version.artifact.digest
        };
        match all.iter_mut().find(same) {
            Some(counted) => counted.workers.extend(shared),
            None => all.push(Counted {
                version: version.clone(),
                test: profile,
                empty,
                workers: shared.collect(),
                left: BTreeMap::new(),
                judged: BTreeMap::new(),
            }),
        }
        while all.len() > KEPT_VERSIONS
            && let Some(oldest) = all.iter().position(|counted| counted.workers.is_empty())
        {
            all.remove(oldest);
        }
        counters
    }

    /// Counts what a client says at this moment of a prediction of the version with this digest: which class was answered, and which
    /// would have been right, none where the version does not know it. Clients say little beside what is answered, so a lock is no
    /// cost.
    pub fn judged(&self, unix_seconds: u64, digest: &Digest, answered: u32, right: Option<u32>) {
        let window = window_of(unix_seconds, self.window_seconds());
        let mut all = self.lock();
        if let Some(counted) = all
            .iter_mut()
            .find(|counted| counted.version.artifact.digest == *digest)
        {
            let correct = right == Some(answered);
            let (judged, outcomes) = counted.judged.entry(window).or_default();
            judged.add(Judged {
                predictions: 1,
                correct: correct.into(),
            });
            let mut class = |class: u32, more: [u64; 3]| {
                if outcomes.len() < OUTCOMES_MAX || outcomes.contains_key(&class) {
                    outcomes.entry(class).or_default().add(Outcomes::from(more));
                }
            };
            class(answered, [correct.into(), (!correct).into(), 0]);
            if let Some(right) = right.filter(|_| !correct) {
                class(right, [0, 0, 1]);
            }
        }
    }

    /// Length of the windows, and what was counted in the last ones, of which the one at this moment is the newest; `None` where a
    /// worker is held up in the middle of writing, to be asked again a little later.
    pub fn told(&self, unix_seconds: u64) -> Option<(u32, Vec<VersionProfile>)> {
        let length = self.window_seconds();
        let newest = window_of(unix_seconds, length);
        let windows = newest.saturating_sub(KEPT_WINDOWS - 1)..=newest;
        let mut all = self.lock();
        let mut told = Vec::with_capacity(all.len());
        for counted in all.iter_mut() {
            counted.fold();
            counted.left.retain(|id, _| windows.contains(id));
            let mut sums = counted.left.clone();
            for worker in &counted.workers {
                add(&mut sums, worker.read(&counted.empty)?);
            }
            sums.retain(|id, _| windows.contains(id));
            counted.judged.retain(|id, _| windows.contains(id));
            for id in counted.judged.keys() {
                sums.entry(*id).or_insert_with(|| counted.empty.clone());
            }
            told.push(VersionProfile {
                name: counted.version.name.clone(),
                digest: counted.version.artifact.digest.clone(),
                test: Some(counted.test.clone()),
                windows: sums
                    .into_iter()
                    .map(|(id, profile)| {
                        let (judged, outcomes) = counted.judged.get(&id).cloned().unwrap_or_default();
                        WindowProfile {
                            id,
                            profile,
                            judged,
                            outcomes,
                        }
                    })
                    .collect(),
            });
        }
        all.retain(|counted| !counted.workers.is_empty() || !counted.left.is_empty() || !counted.judged.is_empty());
        told.retain(|version| !version.windows.is_empty());
        Some((length, told))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use flywheel_contract::trainer::ArtifactRef;

    use super::*;

    const WINDOW: u64 = WINDOW_SECONDS as u64;
    /// A moment in the middle of a window.
    const NOON: u64 = 6_000_000 * WINDOW + WINDOW / 2;

    fn version(name: &str) -> ServedVersion {
        ServedVersion {
            name: name.to_owned(),
            artifact: ArtifactRef {
                uri: "file:///none".into(),
                digest: Digest::sha256(&"0".repeat(64)),
            },
        }
    }

    fn empty() -> DataProfile {
        DataProfile::new(3).with_projections(&[[-1.0; 4], [0.0; 4], [1.0; 4]])
    }

    /// Texts that differ in every bin, from `seed` on.
    fn texts(seed: u64, count: u64) -> Vec<(Vec<i64>, Answer)> {
        let text = |n: u64| {
            let place = (n * 37 % 101) as f64 / 50.0 - 1.0;
            let answer = Answer {
                probabilities: [1, 2, 3].map(|class| ((n * class) % 7) as f32 / 7.0).into(),
                projections: Some([place, -place, place / 2.0, place * place]),
            };
            ((0..n as i64 % 40 + 1).collect(), answer)
        };
        (seed..seed + count).map(text).collect()
    }

    fn count(counter: &mut Counter, now: u64, texts: &[(Vec<i64>, Answer)]) {
        counter.count(now, texts.iter().map(|(ids, answer)| (ids.as_slice(), answer)));
    }

    fn sum<'a>(texts: impl IntoIterator<Item = &'a (Vec<i64>, Answer)>) -> DataProfile {
        let mut sum = empty();
        for (ids, answer) in texts {
            sum.add(ids, answer);
        }
        sum
    }

    /// Number and profile of each window of the only version.
    fn windows(profiles: &Profiles, now: u64) -> Vec<(u64, DataProfile)> {
        let (_, told) = profiles.told(now).unwrap();
        assert!(told.len() <= 1, "{told:?}");
        let windows = told.into_iter().flat_map(|version| version.windows);
        windows.map(|window| (window.id, window.profile)).collect()
    }

    #[test]
    fn workers_count_at_once_and_a_reader_sees_whole_batches_that_add_up() {
        let (workers, batches, rows) = (4, 2000, 8);
        let profiles = Profiles::default();
        let counters = profiles.counters(&version("v1"), empty(), workers);
        let over = AtomicBool::new(false);
        let batch = |worker: u64, n: u64| texts(worker * 1_000_000 + n * rows, rows);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut before = 0;
                while !over.load(Ordering::Relaxed) {
                    // Now and then a worker is held up in the middle.
                    let Some((_, told)) = profiles.told(NOON) else { continue };
                    for WindowProfile { profile, .. } in told.into_iter().flat_map(|version| version.windows) {
                        assert!(
                            profile.texts.is_multiple_of(rows) && profile.texts >= before,
                            "{before} {profile:?}"
                        );
                        before = profile.texts;
                        let lists = profile.projections.iter().map(|projection| &projection.counts);
                        for counts in lists.chain([&profile.length.counts, &profile.classes]) {
                            assert_eq!(counts.iter().sum::<u64>(), profile.texts, "half of a batch");
                        }
                    }
                }
                before
            });
            let writers: Vec<_> = (0..)
                .zip(counters)
                .map(|(worker, mut counter)| {
                    scope.spawn(move || {
                        for n in 0..batches {
                            count(&mut counter, NOON, &batch(worker, n));
                        }
                        counter
                    })
                })
                .collect();
            let counters: Vec<Counter> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
            over.store(true, Ordering::Relaxed);
            assert!(reader.join().unwrap() <= 4 * batches * rows);
            let all: Vec<_> = (0..4)
                .flat_map(|worker| (0..batches).flat_map(move |n| batch(worker, n)))
                .collect();
            assert_eq!(windows(&profiles, NOON), [(window_of(NOON, WINDOW_SECONDS), sum(&all))]);
            // They are gone, and what they counted is not.
            drop(counters);
            assert_eq!(windows(&profiles, NOON), [(window_of(NOON, WINDOW_SECONDS), sum(&all))]);
        });
    }

    #[test]
    fn windows_follow_the_clock_and_the_last_three_are_told() {
        let profiles = Profiles::default();
        let mut counters = profiles.counters(&version("v1"), empty(), 2);
        let first = window_of(NOON, WINDOW_SECONDS);
        assert_eq!(windows(&profiles, NOON), []);
        // The second worker has nothing to do but in every fourth window.
        for n in 0..9 {
            let now = NOON + n * WINDOW;
            count(&mut counters[0], now, &texts(n, 3));
            if n % 4 == 0 {
                count(&mut counters[1], now, &texts(100 + n, 5));
            }
            let want = (n.saturating_sub(2)..=n).map(|n| {
                let idle = if n % 4 == 0 { texts(100 + n, 5) } else { Vec::new() };
                (first + n, sum(texts(n, 3).iter().chain(&idle)))
            });
            assert_eq!(windows(&profiles, now), want.collect::<Vec<_>>(), "{n}");
        }
        let last = NOON + 8 * WINDOW;
        // One that has begun the next window keeps those that a reader with a slower clock asks for.
        let before = windows(&profiles, last);
        count(&mut counters[0], last + WINDOW, &texts(0, 1));
        assert_eq!(windows(&profiles, last), before);
        // A clock that is set back goes on with the window of that moment, and one that was wrong is not told.
        count(&mut counters[1], last + 1_000_000 * WINDOW, &texts(0, 1));
        count(&mut counters[1], last, &texts(7, 2));
        let (mut again, id) = (before, first + 8);
        again.iter_mut().filter(|(at, _)| *at == id).for_each(|(_, profile)| {
            assert!(profile.merge(&sum(&texts(7, 2))));
        });
        assert_eq!(windows(&profiles, last), again);
        // Quiet ones pass by.
        assert_eq!(windows(&profiles, last + 10 * WINDOW), []);
    }

    #[test]
    fn a_version_that_comes_back_goes_on_and_one_that_is_long_gone_is_forgotten() {
        let profiles = Profiles::default();
        for n in 0..100 {
            let mut counters = profiles.counters(&version("v1"), empty(), 1);
            count(&mut counters[0], NOON, &texts(n, 1));
        }
        let all: Vec<_> = (0..100).flat_map(|n| texts(n, 1)).collect();
        assert_eq!(windows(&profiles, NOON), [(window_of(NOON, WINDOW_SECONDS), sum(&all))]);
        assert_eq!(profiles.lock().iter().map(|c| c.workers.len()).sum::<usize>(), 0);
        assert_eq!(profiles.told(NOON + 3 * WINDOW), Some((WINDOW_SECONDS, Vec::new())));
        assert!(profiles.lock().is_empty());
        // Those that are held stay, whatever others come and go.
        let mut held = profiles.counters(&version("held"), empty(), 1);
        for n in 0..100 {
            let mut counters = profiles.counters(&version(&n.to_string()), empty(), 1);
            count(&mut counters[0], NOON, &texts(n, 1));
        }
        count(&mut held[0], NOON, &texts(5, 5));
        let (_, told) = profiles.told(NOON).unwrap();
        assert_eq!(told.len(), KEPT_VERSIONS);
        assert_eq!(
            (told[0].name.as_str(), &told[0].windows[0].profile),
            ("held", &sum(&texts(5, 5)))
        );
    }

    #[test]
    fn what_is_no_number_was_no_answer_and_a_worker_that_is_held_up_is_told() {
        let profiles = Profiles::default();
        let mut counters = profiles.counters(&version("v1"), empty(), 1);
        let mut two = texts(3, 2);
        two[1].1.probabilities[1] = f32::NAN;
        count(&mut counters[0], NOON, &two);
        assert_eq!(
            windows(&profiles, NOON),
            [(window_of(NOON, WINDOW_SECONDS), sum(&two[..1]))]
        );
        counters[0].shared.sequence.fetch_add(1, Ordering::Relaxed);
        assert_eq!(profiles.told(NOON), None);
    }
}
