//! The versions that a pod holds, and those that answer.
//!
//! A request takes its version once, at its beginning, and is computed and answered with it however the assignment changes
//! meanwhile. A version that is held no more goes with the last request that took it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use flywheel_contract::failure::{Failure, FailureClass, FailureReason};
use flywheel_contract::serving::{Assignment, Crash, LabelsBeside, LoadState, Mirror, ServedVersion, VersionStats};
use flywheel_contract::split::{BUCKETS, BUCKETS_PER_PERCENT, Split};
use sha2::{Digest as _, Sha256};

use crate::engine::Engine;

/// A version that can answer.
pub(crate) struct Version {
    /// What it is.
    pub served: ServedVersion,
    /// Computes.
    pub engine: Engine,
}

impl Version {
    /// Name of the ModelVersion.
    pub fn name(&self) -> &str {
        &self.served.name
    }
}

/// What the assignment lists.
struct Held {
    version: ServedVersion,
    state: LoadState,
    failure: Option<Failure>,
    /// Why it is held back.
    crash: Option<Crash>,
    loaded: Option<Arc<Version>>,
}

/// Who answers what.
pub(crate) struct Answering {
    /// Answers what nobody else does.
    pub stable: Arc<Version>,
    split: Option<(Split, Vec<Arc<Version>>)>,
    mirror: Option<(Arc<Version>, u8)>,
    /// With the buckets that it gets.
    canary: Option<(Arc<Version>, u16)>,
}

impl Answering {
    /// The version of a request with this key, or of the one that has this place among those without.
    pub fn pick(&self, key: Option<&[u8]>, place: u64) -> &Arc<Version> {
        let Some((split, versions)) = &self.split else {
            return self.canary_of(place).unwrap_or(&self.stable);
        };
        let bucket = match key {
            Some(key) => bucket_of_key(&split.salt, key),
            None => bucket_of_place(place),
        };
        let name = split.version(bucket);
        let version = versions.iter().find(|version| Some(version.name()) == name);
        version.unwrap_or(&self.stable)
    }

    /// The canary, if the request that has this place is one of its share: the last buckets, as copies are made of the first.
    fn canary_of(&self, place: u64) -> Option<&Arc<Version>> {
        let (version, share) = self.canary.as_ref()?;
        (bucket_of_place(place) >= BUCKETS.saturating_sub(*share)).then_some(version)
    }

    /// All that answer, the stable one first.
    fn versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        let variants = self.split.iter().flat_map(|(_, versions)| versions);
        let canary = self.canary.iter().map(|(version, _)| version);
        std::iter::once(&self.stable).chain(variants).chain(canary)
    }

    /// The version of this name, if it answers.
    pub fn named(&self, name: &str) -> Option<&Arc<Version>> {
        self.versions().find(|version| version.name() == name)
    }

    /// The version that gets a copy of the request that has this place among all.
    pub fn mirrors(&self, place: u64) -> Option<&Arc<Version>> {
        let (version, percent) = self.mirror.as_ref()?;
        let share = u16::from(*percent) * BUCKETS_PER_PERCENT;
        (bucket_of_place(place) < share).then_some(version)
    }
}

/// The same in every pod: the first eight bytes of a SHA-256, so that who knows some keys' versions learns nothing of others.
fn bucket_of_key(salt: &str, key: &[u8]) -> u16 {
    let digest = Sha256::new()
        .chain_update(salt)
        .chain_update([0])
        .chain_update(key)
        .finalize();
    let mut first = [0; 8];
    first.copy_from_slice(digest.get(..8).unwrap_or(&[0; 8]));
    scaled(u64::from_be_bytes(first))
}

/// Places one after another are spread as evenly over the buckets as can be (the additive recurrence with the golden ratio).
fn bucket_of_place(place: u64) -> u16 {
    scaled(place.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// A number of 64 bits as a bucket.
fn scaled(number: u64) -> u16 {
    let bucket = (u128::from(number) * u128::from(BUCKETS)) >> 64;
    u16::try_from(bucket).unwrap_or(0)
}

#[derive(Default)]
struct State {
    generation: u64,
    judged_since: Option<u64>,
    serve: String,
    split: Option<Split>,
    mirror: Option<Mirror>,
    /// Name and buckets of the canary, in its pods.
    canary: Option<(String, u16)>,
    held: Vec<Held>,
}

impl State {
    fn find(&mut self, version: &ServedVersion) -> Option<&mut Held> {
        self.held.iter_mut().find(|held| held.version == *version)
    }

    fn named(&self, name: &str) -> Option<&Held> {
        self.held.iter().find(|held| held.version.name == name)
    }

    /// The labels of the canary beside those of the version that it is to take the place of, once both are loaded.
    fn labels_of_canary(&self) -> Option<LabelsBeside> {
        let (canary, _) = self.canary.as_ref()?;
        let loaded = |name: &str| self.named(name)?.loaded.as_ref();
        let (stable, canary) = (loaded(&self.serve)?, loaded(canary)?);
        let to = &stable.served.artifact.digest;
        Some(LabelsBeside::of(canary.engine.labels(), to, stable.engine.labels()))
    }

    /// Who is to answer what, once all of them can. A variant that cannot be loaded leaves its requests to the stable version:
    /// to answer counts for more than to keep who gets what.
    fn to_answer(&self) -> Option<Answering> {
        let stable = Arc::clone(self.named(&self.serve)?.loaded.as_ref()?);
        let split = match &self.split {
            None => None,
            Some(split) => {
                let variants: BTreeSet<&str> = split.ranges.iter().map(|range| range.version.as_str()).collect();
                let variants: Vec<&Held> = variants.into_iter().filter_map(|name| self.named(name)).collect();
                let pending = |held: &&Held| held.loaded.is_none() && held.state != LoadState::Failed;
                if variants.iter().any(pending) {
                    return None;
                }
                let loaded = variants.iter().filter_map(|held| held.loaded.clone()).collect();
                Some((split.clone(), loaded))
            }
        };
        let mirror = self.mirror.as_ref().and_then(|mirror| {
            let version = self.named(&mirror.version)?.loaded.clone()?;
            Some((version, mirror.percent))
        });
        // What lacks a label meets no client: whoever decides over it learns of that from `/stats` only after it is loaded.
        let knows_all = self.labels_of_canary().is_some_and(|labels| labels.missing == 0);
        let canary = self.canary.as_ref().filter(|_| knows_all).and_then(|(name, share)| {
            let version = self.named(name)?.loaded.clone()?;
            Some((version, *share))
        });
        Some(Answering {
            stable,
            split,
            mirror,
            canary,
        })
    }
}

/// All of them.
#[derive(Default)]
pub(crate) struct Versions {
    state: Mutex<State>,
    answering: RwLock<Option<Arc<Answering>>>,
}

impl Versions {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who answers what, for the whole of a request.
    pub fn answering(&self) -> Option<Arc<Answering>> {
        self.answering.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Name of the version that is to answer.
    pub fn serve(&self) -> String {
        self.state().serve.clone()
    }

    /// From which second on predictions must be for what is said of them to count in figures.
    pub fn judged_since(&self) -> Option<u64> {
        self.state().judged_since
    }

    /// Holds what the assignment, as it is for this pod, lists, and lets it answer where it is loaded. What answers now goes on until what is to
    /// answer can. False for an assignment that is older than the one followed.
    pub fn follow(&self, assignment: &Assignment) -> bool {
        let mut state = self.state();
        if assignment.generation < state.generation {
            return false;
        }
        let mut before = std::mem::take(&mut state.held);
        state.generation = assignment.generation;
        state.judged_since = assignment.judged_since;
        state.serve.clone_from(&assignment.serve);
        state.split.clone_from(&assignment.split);
        state.mirror.clone_from(&assignment.mirror);
        state.canary = assignment.canary.as_ref().and_then(|canary| {
            let share = canary.pods.values().next()?;
            Some((canary.version.name.clone(), *share))
        });
        let answering = self.answering();
        for version in &assignment.versions {
            let present = before.iter().position(|held| held.version == *version);
            state.held.push(present.map_or_else(
                || {
                    // It may still answer though it was not listed for a while.
                    let loaded = answering.as_ref().and_then(|now| now.named(&version.name));
                    let loaded = loaded.filter(|now| now.served == *version).cloned();
                    Held {
                        version: version.clone(),
                        state: loaded.as_ref().map_or(LoadState::Waiting, |_| LoadState::Ready),
                        failure: None,
                        crash: None,
                        loaded,
                    }
                },
                |at| before.swap_remove(at),
            ));
        }
        self.let_answer(&state);
        true
    }

    /// The next version to load: the stable one before others.
    pub fn next(&self) -> Option<ServedVersion> {
        let state = self.state();
        let mut waiting = state.held.iter().filter(|held| held.state == LoadState::Waiting);
        let first = waiting.clone().find(|held| held.version.name == state.serve);
        first.or_else(|| waiting.next()).map(|held| held.version.clone())
    }

    /// Whether this version is still to be held.
    pub fn wants(&self, version: &ServedVersion) -> bool {
        self.state().find(version).is_some()
    }

    /// Whether this is the stable version.
    pub fn is_stable(&self, version: &ServedVersion) -> bool {
        self.state().serve == version.name
    }

    /// How far the loading of a version is.
    pub fn set(&self, version: &ServedVersion, to: LoadState) {
        if let Some(held) = self.state().find(version) {
            held.state = to;
            held.failure = None;
            held.crash = None;
        }
    }

    /// It could not be loaded; what waited for it answers without it.
    pub fn failed(&self, version: &ServedVersion, failure: Failure) {
        let mut state = self.state();
        if let Some(held) = state.find(version) {
            held.state = LoadState::Failed;
            held.failure = Some(failure);
        }
        self.let_answer(&state);
    }

    /// It is held back for a crash; what waited for it answers without it.
    pub fn held_back(&self, version: &ServedVersion, crash: &Crash) {
        let mut state = self.state();
        if let Some(held) = state.find(version) {
            held.state = LoadState::Failed;
            held.failure = Some(Failure::new(
                FailureReason::ExecutionCrashed,
                format!(
                    "the server ended while it computed with {}, so this pod holds it back and answers with the stable version. \
                     `kubectl logs --previous` and the pod's last state say why",
                    version.name
                ),
            ));
            held.crash = Some(crash.clone());
        }
        self.let_answer(&state);
    }

    /// Lets a version be tried that was held back.
    pub fn release(&self, version: &ServedVersion) {
        if let Some(held) = self.state().find(version)
            && held.crash.take().is_some()
        {
            held.state = LoadState::Waiting;
            held.failure = None;
        }
    }

    /// Lets versions be tried again that failed for what time may mend. Whether there is one.
    pub fn retry(&self) -> bool {
        let mut any = false;
        for held in &mut self.state().held {
            if held.may_recover() {
                held.state = LoadState::Waiting;
                any = true;
            }
        }
        any
    }

    /// Whether one failed for what time may mend.
    pub fn may_recover(&self) -> bool {
        self.state().held.iter().any(Held::may_recover)
    }

    /// It is loaded; it answers from now on if it is to. What is not held any more goes.
    pub fn loaded(&self, loaded: Version) {
        let mut state = self.state();
        if let Some(held) = state.find(&loaded.served) {
            held.state = LoadState::Ready;
            held.failure = None;
            held.loaded = Some(Arc::new(loaded));
        }
        self.let_answer(&state);
    }

    fn let_answer(&self, state: &State) {
        for version in self.all_of(state) {
            version.engine.set_beside(version.name() != state.serve);
        }
        let Some(next) = state.to_answer() else { return };
        let stable = Arc::clone(&next.stable);
        let before = {
            let mut answering = self.answering.write().unwrap_or_else(PoisonError::into_inner);
            answering.replace(Arc::new(next))
        };
        if before
            .as_ref()
            .is_none_or(|before| !Arc::ptr_eq(&before.stable, &stable))
        {
            tracing::info!(
                version = stable.name(),
                before = before.as_ref().map(|before| before.stable.name()),
                generation = state.generation,
                "answers from now on"
            );
        }
    }

    /// Every version that can compute, the stable one first.
    pub fn all(&self) -> Vec<Arc<Version>> {
        self.all_of(&self.state())
    }

    fn all_of(&self, state: &State) -> Vec<Arc<Version>> {
        let answering = self.answering();
        let answering = answering.iter().flat_map(|answering| answering.versions());
        let held = state.held.iter().filter_map(|held| held.loaded.as_ref());
        let mut all: Vec<Arc<Version>> = Vec::new();
        for version in answering.chain(held) {
            if !all.iter().any(|known| Arc::ptr_eq(known, version)) {
                all.push(Arc::clone(version));
            }
        }
        all
    }

    /// Generation that is followed, name of the stable version once it answers, and how far each is.
    pub fn stats(&self) -> (u64, Option<String>, Vec<VersionStats>) {
        let answering = self.answering().map(|answering| answering.stable.name().to_owned());
        let state = self.state();
        let canary = state.canary.as_ref().map(|(name, _)| name);
        let versions = state.held.iter().map(|held| {
            let engine = held.loaded.as_ref().map(|version| &version.engine);
            VersionStats {
                name: held.version.name.clone(),
                digest: held.version.artifact.digest.clone(),
                state: held.state,
                precision: engine.map(Engine::precision),
                agreement: engine.and_then(Engine::agreement),
                likeness: engine.and_then(Engine::likeness).cloned(),
                labels: (canary == Some(&held.version.name))
                    .then(|| state.labels_of_canary())
                    .flatten(),
                failure: held.failure.clone(),
                crash: held.crash.clone(),
                figures: engine.map(|engine| engine.figures().told()),
                copies: engine.and_then(|engine| engine.figures().copies()),
            }
        });
        (state.generation, answering, versions.collect())
    }
}

impl Held {
    fn may_recover(&self) -> bool {
        self.state == LoadState::Failed
            && self
                .failure
                .as_ref()
                .is_some_and(|failure| failure.reason.class() == FailureClass::Infrastructure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_without_a_key_are_divided_evenly_from_any_place_on() {
        for start in [0, 12_345, u64::MAX - 500] {
            for (share, of) in [(500_u16, 1000_u64), (500, 10_000), (5000, 10_000), (100, 10_000)] {
                let mine = (0..of)
                    .filter(|n| bucket_of_place(start.wrapping_add(*n)) < share)
                    .count();
                let (got, want) = (mine as f64 / of as f64, f64::from(share) / 10_000.0);
                assert!(
                    (got - want).abs() <= 0.001_f64.max(3.0 / of as f64),
                    "{start}: {got} of {of}, not {want}"
                );
            }
        }
    }

    #[test]
    fn a_key_keeps_its_bucket_and_keys_are_spread() {
        // Held against another implementation: sha256(b"s\0user-1")[:8] as a number, times 10000, over 2^64.
        assert_eq!(bucket_of_key("s", b"user-1"), 4442);
        assert_ne!(bucket_of_key("s", b"user-1"), bucket_of_key("t", b"user-1"));
        let keys = 100_000;
        let mine = (0..keys)
            .filter(|n| bucket_of_key("s", n.to_string().as_bytes()) < 500)
            .count();
        // Binomial: five percent within four deviations.
        assert!(
            (mine as f64 - 5000.0).abs() < 4.0 * (keys as f64 * 0.05 * 0.95).sqrt(),
            "{mine}"
        );
    }
}
