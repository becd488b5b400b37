//! Text for people: tables, ages, figures.

use jiff::Timestamp;

/// Columns stand this far apart, as kubectl's do.
const GAP: &str = "   ";

/// A table of text; the last column is not padded.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(|h| (*h).to_owned()).collect()],
        }
    }

    /// Adds a row; what cannot be shown is replaced, what is empty becomes `-`.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let shown = |cell: String| if cell.is_empty() { "-".to_owned() } else { clean(&cell) };
        self.rows.push(cells.into_iter().map(shown).collect());
    }

    /// Whether there is only the header.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell: &String| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            text.push_str(cells.collect::<Vec<_>>().join(GAP).trim_end());
            text.push('\n');
        }
        text
    }
}

/// The text without control characters: what a pod or an object says must not steer the terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The first `max` characters, with an ellipsis where there are more.
pub(crate) fn shortened(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

/// Time since `then` in one unit, such as `45s`, `12m`, `7h`, `3d`; empty where it is not known.
pub(crate) fn age(now: Timestamp, then: Option<Timestamp>) -> String {
    let Some(then) = then else { return String::new() };
    let seconds = now.duration_since(then).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A length of time in two units, such as `12s`, `1m35s`, `2h05m`.
pub(crate) fn length(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// `key=value` as logs have it: quoted where the value has spaces, quotes or nothing at all.
pub(crate) fn pair(key: &str, value: &str) -> String {
    let value = clean(value);
    if value.is_empty() || value.contains([' ', '"', '=']) {
        format!("{key}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        format!("{key}={value}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["A", "LONG", "LAST"]);
        table.row(["éé".into(), String::new(), "a\u{1b}[31m\nb".into()]);
        assert_eq!(table.render(), "A    LONG   LAST\néé   -      a [31m b\n");
    }

    #[test]
    fn ages_and_lengths() {
        let at = |s| Timestamp::from_second(s).unwrap();
        for (seconds, text) in [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7200, "2h"),
            (172_800, "2d"),
        ] {
            assert_eq!(age(at(1_000_000 + seconds), Some(at(1_000_000))), text);
        }
        assert_eq!(age(at(0), None), "");
        for (seconds, text) in [(0, "0s"), (59, "59s"), (95, "1m35s"), (3600, "1h00m"), (7500, "2h05m")] {
            assert_eq!(length(seconds), text);
        }
    }

    #[test]
    fn pairs_are_quoted_where_they_must() {
        assert_eq!(pair("a", "b"), "a=b");
        assert_eq!(pair("a", ""), "a=\"\"");
        assert_eq!(pair("a", "say \"hi\"\n"), "a=\"say \\\"hi\\\" \"");
        assert_eq!(pair("a", "x=y"), "a=\"x=y\"");
    }

    #[test]
    fn long_texts_are_shortened() {
        assert_eq!(shortened("ééé", 3), "ééé");
        assert_eq!(shortened("éééé", 3), "éé…");
    }
}
