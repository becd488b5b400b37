//! Cleaning of rows: NFC, trim, empty rows, repeats, conflicting labels.

use std::collections::HashMap;

use unicode_normalization::{UnicodeNormalization, is_nfc};

use crate::checks::EXAMPLES;

/// Where a row stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Number of its file, in the order of reading.
    pub(crate) file: u32,
    /// Line or row, from 1.
    pub(crate) line: u32,
}

/// One labelled text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The text, cleaned.
    pub(crate) text: String,
    /// The label, cleaned.
    pub(crate) label: String,
    /// Where it was read.
    pub(crate) place: Place,
}

impl AsRef<str> for Row {
    fn as_ref(&self) -> &str {
        &self.text
    }
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

/// What is known of a text that was read.
#[derive(Debug)]
struct Seen {
    /// Label of its first row.
    label: String,
    place: Place,
    /// One bit for each set that holds it.
    sets: u8,
    /// Whether a conflict was counted.
    conflict: bool,
}

/// Collects the rows of a data set, one set after the other.
#[derive(Debug)]
pub(crate) struct Cleaner {
    deduplicate: bool,
    rows: Vec<Row>,
    seen: HashMap<String, Seen>,
    /// Bit of the present set.
    set: u8,
    /// Rows offered.
    pub(crate) read: u64,
    /// Rows without text or label.
    pub(crate) empty: u64,
    /// Rows whose text was there before in the same set.
    pub(crate) duplicates: u64,
    /// Texts with more than one label, in one set or several.
    pub(crate) conflicts: u64,
    /// The first few of them: two rows with different labels.
    pub(crate) examples: Vec<(Place, Place)>,
}

impl Cleaner {
    /// An empty data set. With `deduplicate` only the first row of each text is kept in a set; repeats are counted either
    /// way.
    pub(crate) fn new(deduplicate: bool) -> Self {
        Self {
            deduplicate,
            rows: Vec::new(),
            seen: HashMap::new(),
            set: 1,
            read: 0,
            empty: 0,
            duplicates: 0,
            conflicts: 0,
            examples: Vec::new(),
        }
    }

    /// Takes one row as it was read.
    pub(crate) fn add(&mut self, place: Place, text: &str, label: &str) {
        self.read += 1;
        let (text, label) = (clean_text(text), clean_text(label));
        if text.is_empty() || label.is_empty() {
            self.empty += 1;
            return;
        }
        if let Some(seen) = self.seen.get_mut(&text) {
            if seen.label != label && !seen.conflict {
                seen.conflict = true;
                self.conflicts += 1;
                if self.examples.len() < EXAMPLES {
                    self.examples.push((seen.place, place));
                }
            }
            let repeats = seen.sets & self.set != 0;
            seen.sets |= self.set;
            self.duplicates += u64::from(repeats);
            if repeats && self.deduplicate {
                return;
            }
        } else {
            let seen = Seen {
                label: label.clone(),
                place,
                sets: self.set,
                conflict: false,
            };
            self.seen.insert(text.clone(), seen);
        }
        self.rows.push(Row { text, label, place });
    }

    /// The rows kept of the set, in order. What is added from now on is another set's; there are at most eight.
    pub(crate) fn end_set(&mut self) -> Vec<Row> {
        self.set <<= 1;
        std::mem::take(&mut self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: usize) -> Place {
        Place {
            file: 0,
            line: line as u32,
        }
    }

    fn fed(deduplicate: bool) -> Cleaner {
        let mut c = Cleaner::new(deduplicate);
        for (i, (text, label)) in [
            (" cafe\u{301} ", "a"),
            ("caf\u{e9}", "a "),
            ("caf\u{e9}", "b"),
            ("caf\u{e9}", "c"),
            ("", "a"),
            ("\u{a0}\t", "a"),
            ("x", " "),
            ("x", "b"),
        ]
        .into_iter()
        .enumerate()
        {
            c.add(at(i), text, label);
        }
        c
    }

    #[test]
    fn composed_and_decomposed_texts_are_one_and_the_first_is_kept() {
        let mut c = fed(true);
        assert_eq!((c.read, c.empty, c.duplicates, c.conflicts), (8, 3, 3, 1));
        assert_eq!(
            c.examples,
            [(at(0), at(2))],
            "the first row and the first with another label"
        );
        let rows = c.end_set();
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].text.as_str(), rows[0].label.as_str()), ("caf\u{e9}", "a"));
    }

    #[test]
    fn without_deduplication_repeats_are_counted_and_kept() {
        let mut c = fed(false);
        assert_eq!((c.duplicates, c.conflicts), (3, 1));
        assert_eq!(c.end_set().len(), 5);
    }

    #[test]
    fn another_set_may_repeat_a_text_but_not_give_it_another_label() {
        let mut c = Cleaner::new(true);
        c.add(at(1), "yes", "a");
        c.add(at(2), "no", "b");
        assert_eq!(c.end_set().len(), 2);
        c.add(at(3), "yes", "a");
        c.add(at(4), "no", "a");
        c.add(at(5), "no", "a");
        assert_eq!((c.duplicates, c.conflicts), (1, 1));
        assert_eq!(c.examples, [(at(2), at(4))]);
        assert_eq!(c.end_set().len(), 2);
    }
}
