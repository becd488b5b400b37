//! What a version did, for whoever judges it beside another one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flywheel_contract::serving::{CopyFigures, VersionFigures};

/// The counts, which only grow.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    texts: AtomicU64,
    failed: AtomicU64,
    alone: AtomicU64,
    alone_nanoseconds: AtomicU64,
    /// Of microseconds.
    alone_squares: AtomicU64,
    judged: AtomicU64,
    correct: AtomicU64,
    copies: Mutex<Option<CopyFigures>>,
}

impl Figures {
    /// A batch of so many texts was computed, of which so many came to no numbers.
    pub fn computed(&self, texts: usize, broken: usize, took: Duration) {
        self.texts
            .fetch_add(texts.saturating_sub(broken) as u64, Ordering::Relaxed);
        self.failed.fetch_add(broken as u64, Ordering::Relaxed);
        if texts == 1 {
            let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            self.alone_nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
            let microseconds = nanoseconds / 1000;
            self.alone_squares
                .fetch_add(microseconds.saturating_mul(microseconds), Ordering::Relaxed);
            self.alone.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// So many texts could not be computed, or not in time.
    pub fn failed(&self, texts: usize) {
        self.failed.fetch_add(texts as u64, Ordering::Relaxed);
    }

    /// A client said what would have been right.
    pub fn judged(&self, correct: bool) {
        self.correct.fetch_add(u64::from(correct), Ordering::Relaxed);
        self.judged.fetch_add(1, Ordering::Relaxed);
    }

    /// Copies came to this.
    pub fn copied(&self, add: impl FnOnce(&mut CopyFigures)) {
        // No code that can panic runs under the lock.
        add(self
            .copies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_default());
    }

    /// What copies came to until now; none where there was none.
    pub fn copies(&self) -> Option<CopyFigures> {
        *self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All until now.
    pub fn told(&self) -> VersionFigures {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        VersionFigures {
            texts: count(&self.texts),
            failed: count(&self.failed),
            alone: count(&self.alone),
            alone_seconds: Duration::from_nanos(count(&self.alone_nanoseconds)).as_secs_f64(),
            #[allow(clippy::cast_precision_loss, reason = "a sum of squares needs no twelve digits")]
            alone_squares: count(&self.alone_squares) as f64 * 1e-12,
            judged: count(&self.judged),
            correct: count(&self.correct),
        }
    }
}
