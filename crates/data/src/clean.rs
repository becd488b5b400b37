//! Cleaning of rows: NFC, trim, empty rows, repeats, conflicting labels.

use std::collections::HashMap;

use unicode_normalization::{UnicodeNormalization, is_nfc};

/// One labelled text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The text, cleaned.
    pub text: String,
    /// The label, cleaned.
    pub label: String,
}

/// A text in Unicode's NFC, without white space at its ends. Serving applies the same.
#[must_use]
pub fn clean_text(text: &str) -> String {
    let trimmed = text.trim();
    if is_nfc(trimmed) {
        return trimmed.to_owned();
    }
    // Composing can leave white space where there was none (U+2000 becomes U+2002), never at new places; trim again.
    trimmed.nfc().collect::<String>().trim().to_owned()
}

/// Collects the rows of one set.
#[derive(Debug, Default)]
pub struct Cleaner {
    deduplicate: bool,
    rows: Vec<Row>,
    /// Text to (label of its first row, whether a conflict was counted).
    seen: HashMap<String, (String, bool)>,
    /// Rows offered.
    pub read: u64,
    /// Rows without text or label.
    pub empty: u64,
    /// Rows whose text was there before.
    pub duplicates: u64,
    /// Texts with more than one label.
    pub conflicts: u64,
}

impl Cleaner {
    /// An empty set. With `deduplicate` only the first row of each text is kept; repeats are counted either way.
    #[must_use]
    pub fn new(deduplicate: bool) -> Self {
        Self {
            deduplicate,
            ..Self::default()
        }
    }

    /// Takes one row as it was read.
    pub fn add(&mut self, text: &str, label: &str) {
        self.read += 1;
        let (text, label) = (clean_text(text), clean_text(label));
        if text.is_empty() || label.is_empty() {
            self.empty += 1;
            return;
        }
        if let Some((first, counted)) = self.seen.get_mut(&text) {
            self.duplicates += 1;
            if *first != label && !*counted {
                *counted = true;
                self.conflicts += 1;
            }
            if self.deduplicate {
                return;
            }
        } else {
            self.seen.insert(text.clone(), (label.clone(), false));
        }
        self.rows.push(Row { text, label });
    }

    /// The rows kept, in order.
    #[must_use]
    pub fn into_rows(self) -> Vec<Row> {
        self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(deduplicate: bool) -> Cleaner {
        let mut c = Cleaner::new(deduplicate);
        for (text, label) in [
            (" cafe\u{301} ", "a"),
            ("caf\u{e9}", "a "),
            ("caf\u{e9}", "b"),
            ("caf\u{e9}", "c"),
            ("", "a"),
            ("\u{a0}\t", "a"),
            ("x", " "),
            ("x", "b"),
        ] {
            c.add(text, label);
        }
        c
    }

    #[test]
    fn composed_and_decomposed_texts_are_one_and_the_first_is_kept() {
        let c = fed(true);
        assert_eq!((c.read, c.empty, c.duplicates, c.conflicts), (8, 3, 3, 1));
        let rows = c.into_rows();
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].text.as_str(), rows[0].label.as_str()), ("caf\u{e9}", "a"));
    }

    #[test]
    fn without_deduplication_repeats_are_counted_and_kept() {
        let c = fed(false);
        assert_eq!((c.duplicates, c.conflicts), (3, 1));
        assert_eq!(c.into_rows().len(), 5);
    }
}
