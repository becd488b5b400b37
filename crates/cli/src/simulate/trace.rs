//! Traces: requests per second over time, from a CSV file.

use std::path::Path;

use crate::Error;

/// Largest file, in bytes, most rows and longest time, in seconds: what a day in steps of a second needs several times.
const BYTES_MAX: u64 = 8 << 20;
const ROWS_MAX: usize = 200_000;
const SECONDS_MAX: f64 = 7.0 * 86_400.0;
/// Highest rate: a million replicas of one request per second are no service.
const QPS_MAX: f64 = 1e6;

/// A trace that comes with the plugin.
struct Shipped {
    name: &'static str,
    csv: &'static str,
    /// Seconds that pods need to start, where the trace is about that.
    start: Option<f64>,
}

const SHIPPED: [Shipped; 7] = [
    shipped("step", include_str!("traces/step.csv")),
    shipped("ramp", include_str!("traces/ramp.csv")),
    shipped("sine-day", include_str!("traces/sine-day.csv")),
    shipped("spikes", include_str!("traces/spikes.csv")),
    shipped("noise", include_str!("traces/noise.csv")),
    shipped("gap", include_str!("traces/gap.csv")),
    Shipped {
        start: Some(120.0),
        ..shipped("slow-start", include_str!("traces/slow-start.csv"))
    },
];

const fn shipped(name: &'static str, csv: &'static str) -> Shipped {
    Shipped { name, csv, start: None }
}

/// Requests per second over time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Trace {
    pub(crate) name: String,
    /// Seconds that pods need to start, where the trace is about that.
    pub(crate) start: Option<f64>,
    rows: Vec<Row>,
    /// Length in seconds.
    pub(crate) seconds: u32,
}

/// From a time on.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    seconds: f64,
    qps: f64,
    /// No pod answers who asks for its counters.
    silent: bool,
}

/// Names of the traces that come with the plugin.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().map(|shipped| shipped.name)
}

impl Trace {
    /// The trace of that name, or in that file.
    ///
    /// # Errors
    /// Where there is neither, or the file is no trace, with the line.
    pub(crate) fn find(name: &str) -> Result<Self, Error> {
        if let Some(shipped) = SHIPPED.iter().find(|shipped| shipped.name == name) {
            return Ok(Self {
                start: shipped.start,
                ..Self::parse(name, shipped.csv)?
            });
        }
        let unreadable = |why: String| {
            let names = names().collect::<Vec<_>>().join(", ");
            Error::Simulation(format!(
                "trace {name}: {why}. Name a CSV file with the header `seconds,qps`, or one of {names}"
            ))
        };
        let path = Path::new(name);
        let size = path.metadata().map_err(|error| unreadable(error.to_string()))?.len();
        if size > BYTES_MAX {
            return Err(unreadable(format!("the file has {size} bytes, more than {BYTES_MAX}")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
        Self::parse(name, &text)
    }

    fn parse(name: &str, text: &str) -> Result<Self, Error> {
        let wrong = |line: usize, why: String| Error::Simulation(format!("trace {name}, line {line}: {why}"));
        let mut rows: Vec<Row> = vec![];
        let mut columns = None;
        for (number, line) in text.lines().enumerate() {
            let (number, line) = (number + 1, line.trim());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let cells: Vec<&str> = line.split(',').map(str::trim).collect();
            let Some(columns) = columns else {
                if cells != ["seconds", "qps"] && cells != ["seconds", "qps", "silent"] {
                    let why = "the header is to be `seconds,qps` or `seconds,qps,silent`".to_owned();
                    return Err(wrong(number, why));
                }
                columns = Some(cells.len());
                continue;
            };
            if cells.len() != columns {
                return Err(wrong(
                    number,
                    format!("{} cells where the header has {columns}", cells.len()),
                ));
            }
            let cell = |column: usize, most: f64| {
                let text = cells.get(column).copied().unwrap_or_default();
                let value = text.parse::<f64>().ok().filter(|value| (0.0..=most).contains(value));
                value.ok_or_else(|| wrong(number, format!("{text:?} is to be a number from 0 to {most}")))
            };
            let row = Row {
                seconds: cell(0, SECONDS_MAX)?,
                qps: cell(1, QPS_MAX)?,
                silent: match cells.get(2).copied() {
                    None | Some("0") => false,
                    Some("1") => true,
                    Some(other) => return Err(wrong(number, format!("silent is to be 0 or 1, not {other:?}"))),
                },
            };
            match rows.last() {
                None if row.seconds > 0.0 => {
                    return Err(wrong(number, "the first row is to be at second 0".to_owned()));
                }
                Some(last) if row.seconds <= last.seconds => {
                    let why = format!("second {} is not after the row before it", row.seconds);
                    return Err(wrong(number, why));
                }
                _ if rows.len() == ROWS_MAX => return Err(wrong(number, format!("more than {ROWS_MAX} rows"))),
                _ => rows.push(row),
            }
        }
        let seconds = rows.last().map_or(0.0, |row| row.seconds);
        if seconds < 1.0 {
            let why = "a trace has two rows at least, and the last one tells the second at which it ends".to_owned();
            return Err(wrong(text.lines().count().max(1), why));
        }
        Ok(Self {
            name: name.to_owned(),
            start: None,
            rows,
            seconds: seconds as u32,
        })
    }

    fn row(&self, seconds: f64) -> Option<&Row> {
        let after = self.rows.partition_point(|row| row.seconds <= seconds);
        self.rows.get(after.saturating_sub(1))
    }

    /// Requests per second at that second: those of the last row before it.
    pub(crate) fn qps(&self, seconds: f64) -> f64 {
        self.row(seconds).map_or(0.0, |row| row.qps)
    }

    /// Whether pods answer nobody at that second.
    pub(crate) fn silent(&self, seconds: f64) -> bool {
        self.row(seconds).is_some_and(|row| row.silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_holds_until_the_next_row_and_the_last_one_ends_the_trace() {
        let trace = Trace::parse("t", "# why\nseconds,qps,silent\n\n0,10,0\n 2.5 , 20 , 1\n9,0,0\n").unwrap();
        assert_eq!(trace.seconds, 9);
        let seen: Vec<_> = [0.0, 2.0, 2.5, 8.9].map(|t| (trace.qps(t), trace.silent(t))).into();
        assert_eq!(seen, [(10.0, false), (10.0, false), (20.0, true), (20.0, true)]);
    }

    #[test]
    fn a_file_that_is_no_trace_is_refused_with_its_line() {
        for (text, words) in [
            ("", "line 1: a trace has two rows"),
            ("seconds,qps\n0,1\n", "line 2: a trace has two rows"),
            ("time,qps\n0,1\n", "line 1: the header"),
            ("seconds,qps\n0,1\n5\n", "line 3: 1 cells"),
            ("seconds,qps\n0,-1\n", "line 2: \"-1\" is to be a number from 0"),
            ("seconds,qps\n0,NaN\n", "line 2: \"NaN\""),
            ("seconds,qps\n0,1e9\n", "line 2: \"1e9\""),
            (
                "seconds,qps\n0,1\n1e9,1\n",
                "line 3: \"1e9\" is to be a number from 0 to 604800",
            ),
            ("seconds,qps\n5,1\n", "line 2: the first row"),
            ("seconds,qps\n0,1\n5,1\n5,2\n", "line 4: second 5 is not after"),
            ("seconds,qps,silent\n0,1,yes\n", "line 2: silent is to be 0 or 1"),
        ] {
            let error = Trace::parse("t", text).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
        let long = (0..=ROWS_MAX).map(|i| format!("{i},1\n")).collect::<String>();
        let error = Trace::parse("t", &format!("seconds,qps\n{long}"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("more than 200000 rows"), "{error}");
    }

    #[test]
    fn shipped_traces_can_be_read_and_unknown_ones_are_named() {
        for name in names() {
            assert!(Trace::find(name).unwrap().seconds >= 1_200, "{name}");
        }
        let error = Trace::find("no-such").unwrap_err().to_string();
        assert!(error.contains("no-such") && error.contains("sine-day"), "{error}");
    }
}
