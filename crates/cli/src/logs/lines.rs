//! A log with timestamps, printed without them: they only tell where to go on after a break.

use std::io::{self, Write};

use jiff::Timestamp;

/// Longest timestamp and the space behind it, as the kubelet writes them (RFC 3339 with nanoseconds).
const STAMP_MAX: usize = 40;

/// The place within a log.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// The beginning of a line as far as it came, up to the end of its timestamp.
    head: Vec<u8>,
    place: Place,
    /// Time of the line that is being printed.
    current: Option<Timestamp>,
    /// Time of the last line that was printed to its end.
    last: Option<Timestamp>,
    /// Lines up to here were printed before the connection broke.
    printed: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Head,
    Text,
    Skipped,
}

impl Lines {
    /// Time of the last whole line.
    pub(crate) fn last(&self) -> Option<Timestamp> {
        self.last
    }

    /// Prints what these bytes add.
    pub(crate) fn print(&mut self, mut bytes: &[u8], out: &mut dyn Write) -> io::Result<()> {
        while !bytes.is_empty() {
            let end = bytes.iter().position(|b| *b == b'\n');
            let (line, rest) = match end {
                Some(end) => bytes.split_at(end + 1),
                None => (bytes, &[][..]),
            };
            let text = if self.place == Place::Head {
                self.enter(line, out)?
            } else {
                line
            };
            if self.place == Place::Text {
                out.write_all(text)?;
            }
            if end.is_some() {
                if self.place == Place::Text {
                    self.last = self.current.or(self.last);
                }
                self.place = Place::Head;
                self.head.clear();
            }
            bytes = rest;
        }
        Ok(())
    }

    /// Takes the timestamp from the beginning of a line; what is left of `line` behind it.
    fn enter<'a>(&mut self, line: &'a [u8], out: &mut dyn Write) -> io::Result<&'a [u8]> {
        let room = STAMP_MAX.saturating_sub(self.head.len());
        let space = line.iter().take(room).position(|b| *b == b' ');
        let taken = space.map_or_else(|| line.len().min(room), |space| space + 1);
        let (head, rest) = line.split_at(taken);
        self.head.extend_from_slice(head);
        let whole = space.is_some() || self.head.len() >= STAMP_MAX || self.head.ends_with(b"\n");
        if !whole {
            return Ok(rest);
        }
        let stamp = std::str::from_utf8(&self.head)
            .ok()
            .and_then(|s| s.trim_end().parse().ok());
        self.current = stamp;
        let was_printed = stamp.is_some() && stamp <= self.printed;
        self.place = if was_printed { Place::Skipped } else { Place::Text };
        match stamp {
            // An empty line may have no space behind its time.
            Some(_) if self.head.ends_with(b"\n") && !was_printed => out.write_all(b"\n")?,
            Some(_) => {}
            // No timestamp: it is the line itself.
            None => out.write_all(&self.head)?,
        }
        Ok(rest)
    }

    /// Makes ready for the log to come again from [`Lines::last`]: what was printed is skipped, a line that was cut in two is
    /// ended and comes again as a whole.
    pub(crate) fn resume(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.place == Place::Text {
            out.write_all(b"\n")?;
        }
        self.printed = self.last;
        self.place = Place::Head;
        self.head.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:00.1Z one\n2026-01-01T00:00:00.2Z\n2026-01-01T00:00:00.3Z  three é\n2026-01-01T00:00:00.4Z \n";
    const TEXT: &str = "one\n\n three é\n\n";

    #[test]
    fn timestamps_go_wherever_the_pieces_are_cut() {
        for size in 1..LOG.len() {
            let (mut lines, mut out) = (Lines::default(), Vec::new());
            for piece in LOG.as_bytes().chunks(size) {
                lines.print(piece, &mut out).unwrap();
            }
            assert_eq!(String::from_utf8(out).unwrap(), TEXT, "pieces of {size}");
            assert_eq!(lines.last(), Some("2026-01-01T00:00:00.4Z".parse().unwrap()));
        }
    }

    #[test]
    fn after_a_break_no_line_is_lost_or_told_twice() {
        // The server gives whole seconds: all lines come again.
        for cut in 0..LOG.len() {
            let (mut lines, mut out) = (Lines::default(), Vec::new());
            lines.print(&LOG.as_bytes()[..cut], &mut out).unwrap();
            let before = String::from_utf8_lossy(&out).into_owned();
            lines.resume(&mut out).unwrap();
            lines.print(LOG.as_bytes(), &mut out).unwrap();
            let text = String::from_utf8_lossy(&out).into_owned();
            let whole: Vec<&str> = text.lines().collect();
            // Only a line that was cut in two stands there a second time, in part.
            let half = before.rsplit('\n').next().unwrap_or_default();
            let place = before.matches('\n').count();
            let mut expected: Vec<String> = TEXT.lines().map(str::to_owned).collect();
            if lines_in_text(cut) {
                expected.insert(place, half.to_owned());
            }
            assert_eq!(whole, expected, "cut at {cut}");
        }
    }

    /// Whether a cut here is within a line's text, behind its timestamp.
    fn lines_in_text(cut: usize) -> bool {
        let before = LOG.get(..cut).map_or_else(
            || String::from_utf8_lossy(&LOG.as_bytes()[..cut]).into_owned(),
            str::to_owned,
        );
        before.rsplit('\n').next().unwrap_or_default().contains(' ')
    }

    #[test]
    fn what_has_no_timestamp_is_printed_as_it_is() {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        let long = "x".repeat(100);
        let text = format!("unable to retrieve\n{long}\n\n");
        lines.print(text.as_bytes(), &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), text);
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let mut lines = Lines::default();
        lines.print(b"2026-01-01T00:00:00Z ", &mut io::sink()).unwrap();
        for _ in 0..1000 {
            lines.print(&[b'x'; 1000], &mut io::sink()).unwrap();
        }
        assert!(lines.head.capacity() <= 2 * STAMP_MAX, "{}", lines.head.capacity());
    }
}
