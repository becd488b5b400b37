//! What holds for every body, whatever its protocol.

use flywheel_wire::Refusal;
use flywheel_wire::predict::{MAX_TEXT_BYTES, MAX_TEXTS};

/// Texts that were taken are within the bounds.
pub fn taken(texts: &[String]) {
    assert!((1..=MAX_TEXTS).contains(&texts.len()));
    assert!(texts.iter().all(|t| !t.trim().is_empty() && t.len() <= MAX_TEXT_BYTES));
}

/// A refusal is the client's to mend, and short.
pub fn refused(refusal: &Refusal) {
    assert!((400..500).contains(&refusal.reason.status()), "{refusal}");
    assert!(refusal.message.len() < 300, "{refusal}");
}
