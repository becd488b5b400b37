//! The versions that a pod holds, and the one that answers.
//!
//! A request takes the answering version once, at its beginning, and is computed and answered with it however the
//! assignment changes meanwhile. A version that is held no more goes with the last request that took it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use flywheel_contract::failure::{Failure, FailureClass};
use flywheel_contract::serving::{Assignment, LoadState, ServedVersion, VersionStats};

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
    loaded: Option<Arc<Version>>,
}

#[derive(Default)]
struct State {
    generation: u64,
    serve: String,
    held: Vec<Held>,
}

impl State {
    fn find(&mut self, version: &ServedVersion) -> Option<&mut Held> {
        self.held.iter_mut().find(|held| held.version == *version)
    }

    /// The version that is to answer, once it can.
    fn to_answer(&self) -> Option<&Arc<Version>> {
        let held = self.held.iter().find(|held| held.version.name == self.serve)?;
        held.loaded.as_ref()
    }
}

/// All of them.
#[derive(Default)]
pub(crate) struct Versions {
    state: Mutex<State>,
    answering: RwLock<Option<Arc<Version>>>,
}

impl Versions {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version that answers, for the whole of a request.
    pub fn answering(&self) -> Option<Arc<Version>> {
        self.answering.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Name of the version that is to answer.
    pub fn serve(&self) -> String {
        self.state().serve.clone()
    }

    /// Holds what the assignment lists, and lets it answer where it is loaded. What answers now goes on until what is to
    /// answer can. False for an assignment that is older than the one followed.
    pub fn follow(&self, assignment: &Assignment) -> bool {
        let mut state = self.state();
        if assignment.generation < state.generation {
            return false;
        }
        let mut before = std::mem::take(&mut state.held);
        state.generation = assignment.generation;
        state.serve.clone_from(&assignment.serve);
        let answering = self.answering();
        for version in &assignment.versions {
            let present = before.iter().position(|held| held.version == *version);
            state.held.push(present.map_or_else(
                || {
                    // It may still answer though it was not listed for a while.
                    let loaded = answering.as_ref().filter(|now| now.served == *version).cloned();
                    Held {
                        version: version.clone(),
                        state: loaded.as_ref().map_or(LoadState::Waiting, |_| LoadState::Ready),
                        failure: None,
                        loaded,
                    }
                },
                |at| before.swap_remove(at),
            ));
        }
        self.let_answer(&state);
        true
    }

    /// The next version to load: the one that is to answer before others.
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

    /// Whether this is the version that is to answer.
    pub fn is_to_answer(&self, version: &ServedVersion) -> bool {
        self.state().serve == version.name
    }

    /// How far the loading of a version is.
    pub fn set(&self, version: &ServedVersion, to: LoadState) {
        if let Some(held) = self.state().find(version) {
            held.state = to;
            held.failure = None;
        }
    }

    /// It could not be loaded.
    pub fn failed(&self, version: &ServedVersion, failure: Failure) {
        if let Some(held) = self.state().find(version) {
            held.state = LoadState::Failed;
            held.failure = Some(failure);
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
        let Some(next) = state.to_answer() else { return };
        let mut answering = self.answering.write().unwrap_or_else(PoisonError::into_inner);
        if answering.as_ref().is_some_and(|now| Arc::ptr_eq(now, next)) {
            return;
        }
        let before = answering.replace(Arc::clone(next));
        drop(answering);
        tracing::info!(
            version = next.name(),
            before = before.as_ref().map(|version| version.name()),
            generation = state.generation,
            "answers from now on"
        );
    }

    /// Every version that can compute, the answering one first.
    pub fn all(&self) -> Vec<Arc<Version>> {
        let mut all: Vec<Arc<Version>> = self.answering().into_iter().collect();
        for held in &self.state().held {
            if let Some(loaded) = &held.loaded
                && !all.iter().any(|known| Arc::ptr_eq(known, loaded))
            {
                all.push(Arc::clone(loaded));
            }
        }
        all
    }

    /// Generation that is followed, name of the version that answers, and how far each is.
    pub fn stats(&self) -> (u64, Option<String>, Vec<VersionStats>) {
        let answering = self.answering().map(|version| version.name().to_owned());
        let state = self.state();
        let versions = state.held.iter().map(|held| {
            let engine = held.loaded.as_ref().map(|version| &version.engine);
            VersionStats {
                name: held.version.name.clone(),
                digest: held.version.artifact.digest.clone(),
                state: held.state,
                precision: engine.map(Engine::precision),
                agreement: engine.and_then(Engine::agreement),
                failure: held.failure.clone(),
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
