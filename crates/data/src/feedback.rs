//! Texts that serving pods kept, joined with what clients said of them.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use flywheel_contract::feedback::{LINE_MAX_BYTES, Record};
use serde_json::{Map, Value};

use crate::MAX_ROWS;
use crate::error::{DataError, Result};

/// Fewest judgements of a label for its texts to be rows: what one or two clients say, whether by mistake or on purpose, makes no new
/// class of a model.
pub const LEAST_JUDGEMENTS: usize = 5;

/// Fewest rows of a newest set: on fewer one answer is two percent.
pub const LEAST_HELD_OUT: u64 = 50;

/// What came of joining.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// Rows written: texts of which a client said what would have been right.
    pub rows: u64,
    /// Texts of which no client said anything.
    pub unjudged: u64,
    /// Texts whose label has fewer than [`LEAST_JUDGEMENTS`].
    pub rare: u64,
    /// Lines that are none of a pod's, such as one that breaks off.
    pub unreadable: u64,
}

/// Writes a row of JSON with these two columns for each text that a client judged, by the time of the prediction (those of one second
/// in the order of the files and their lines).
/// Of several judgements of a prediction the first counts, by time; each prediction counts once. Labels with few judgements are
/// left out.
///
/// # Errors
/// [`DataError::Io`]; more rows than are read.
pub fn join_feedback(files: &[PathBuf], out: &Path, text_column: &str, label_column: &str) -> Result<Joined> {
    let mut joined = Joined::default();
    let mut judged: HashMap<String, Option<(u64, String)>> = HashMap::new();
    for file in files {
        joined.unreadable += records(file, |record| {
            if let Record::Judgement {
                time,
                request_id,
                label,
            } = record
            {
                match judged.entry(request_id) {
                    Entry::Occupied(mut known) => {
                        if known.get().as_ref().is_some_and(|(first, _)| time < *first) {
                            known.insert(Some((time, label)));
                        }
                    }
                    Entry::Vacant(place) => _ = place.insert(Some((time, label))),
                }
            }
            Ok(())
        })?;
    }
    let mut judgements: HashMap<&str, usize> = HashMap::new();
    for (_, label) in judged.values().flatten() {
        *judgements.entry(label).or_default() += 1;
    }
    let rare = judgements.into_iter().filter(|(_, count)| *count < LEAST_JUDGEMENTS);
    let rare: HashSet<String> = rare.map(|(label, _)| label.to_owned()).collect();
    let io = |action: &'static str| {
        move |source| DataError::Io {
            action,
            path: out.display().to_string(),
            source,
        }
    };
    let mut rows: Vec<(u64, String)> = Vec::new();
    for file in files {
        records(file, |record| {
            let Record::Prediction {
                time, request_id, text, ..
            } = record
            else {
                return Ok(());
            };
            match judged.get_mut(&request_id) {
                None => joined.unjudged += 1,
                // Taken, so that a prediction that stands there twice counts once.
                Some(label) => match label.take() {
                    None => {}
                    Some((_, label)) if rare.contains(&label) => joined.rare += 1,
                    Some((_, label)) => {
                        joined.rows += 1;
                        if joined.rows > MAX_ROWS {
                            let problem =
                                format!("more than {MAX_ROWS} rows, the most that is read; lower feedback.sampleRate");
                            return Err(DataError::invalid("feedback", None, problem));
                        }
                        let row: Map<String, Value> = [(text_column, text), (label_column, label)]
                            .map(|(column, value)| (column.to_owned(), Value::from(value)))
                            .into_iter()
                            .collect();
                        rows.push((time, Value::Object(row).to_string()));
                    }
                },
            }
            Ok(())
        })?;
    }
    // Stable.
    rows.sort_by_key(|(time, _)| *time);
    let mut file = BufWriter::new(File::create(out).map_err(io("create"))?);
    for (_, line) in rows {
        writeln!(file, "{line}").map_err(io("write"))?;
    }
    file.flush().map_err(io("write"))?;
    Ok(joined)
}

/// Moves the last lines of a file that [`join_feedback`] wrote, so large a share of all, to another file; how many. None where these
/// would be fewer than [`LEAST_HELD_OUT`].
///
/// # Errors
/// [`DataError::Io`].
pub fn hold_out(rows: &Path, percent: u32, newest: &Path) -> Result<u64> {
    let io = |action: &'static str, path: &Path| {
        let path = path.display().to_string();
        move |source| DataError::Io { action, path, source }
    };
    let open = || File::open(rows).map(BufReader::new).map_err(io("open", rows));
    let (mut line, mut all) = (Vec::new(), 0_u64);
    let mut next = |reader: &mut BufReader<File>| {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(io("read", rows))
    };
    let mut reader = open()?;
    while next(&mut reader)? > 0 {
        all += 1;
    }
    let held = all * u64::from(percent) / 100;
    if held < LEAST_HELD_OUT {
        return Ok(0);
    }
    let (mut reader, mut kept) = (open()?, 0_u64);
    for _ in held..all {
        kept += next(&mut reader)? as u64;
    }
    let mut file = BufWriter::new(File::create(newest).map_err(io("create", newest))?);
    std::io::copy(&mut reader, &mut file).map_err(io("write", newest))?;
    file.flush().map_err(io("write", newest))?;
    let shorter = File::options()
        .write(true)
        .open(rows)
        .and_then(|file| file.set_len(kept));
    shorter.map_err(io("shorten", rows))?;
    Ok(held)
}

/// Hands each record of a file on; lines that are none, or too long for one, are counted.
fn records(path: &Path, mut each: impl FnMut(Record) -> Result<()>) -> Result<u64> {
    let io = |source| DataError::Io {
        action: "read",
        path: path.display().to_string(),
        source,
    };
    let mut reader = BufReader::new(File::open(path).map_err(io)?);
    let (mut line, mut unreadable) = (Vec::new(), 0);
    loop {
        line.clear();
        let read = std::io::Read::take(&mut reader, LINE_MAX_BYTES as u64 + 1)
            .read_until(b'\n', &mut line)
            .map_err(io)?;
        if read == 0 {
            return Ok(unreadable);
        }
        match serde_json::from_slice(&line) {
            Ok(record) => each(record)?,
            Err(_) => unreadable += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_predictions_are_held_out_whatever_the_order_of_files() {
        let folder = tempfile::tempdir().unwrap();
        let (out, newest) = (folder.path().join("out"), folder.path().join("newest"));
        // Two pods in turn, each with a file of its own: the second's are the even seconds.
        let files: Vec<PathBuf> = (0..2)
            .map(|pod| {
                let lines: Vec<String> = (0..150)
                    .map(|n| {
                        let time = 2 * n + pod;
                        format!(
                            r#"{{"kind":"Prediction","time":{time},"requestId":"{time}","modelVersion":"v","text":"t{time}","label":"x","probability":0.1}}
{{"kind":"Judgement","time":{},"requestId":"{time}","label":"y"}}"#,
                            1000 - time
                        )
                    })
                    .collect();
                let path = folder.path().join(pod.to_string());
                std::fs::write(&path, lines.join("\n")).unwrap();
                path
            })
            .collect();
        let texts = |path: &Path| -> Vec<String> {
            let text = std::fs::read_to_string(path).unwrap();
            let row = |line: &str| {
                serde_json::from_str::<Value>(line).unwrap()["text"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            };
            text.lines().map(row).collect()
        };
        let wanted = |range: std::ops::Range<u32>| range.map(|n| format!("t{n}")).collect::<Vec<_>>();
        for (percent, held) in [(0, 0), (16, 0), (17, 51), (50, 150)] {
            join_feedback(&files, &out, "text", "label").unwrap();
            assert_eq!(texts(&out), wanted(0..300));
            let _ = std::fs::remove_file(&newest);
            assert_eq!(hold_out(&out, percent, &newest).unwrap(), u64::from(held), "{percent}");
            assert_eq!(texts(&out), wanted(0..300 - held));
            assert_eq!(newest.exists(), held > 0);
            if held > 0 {
                assert_eq!(texts(&newest), wanted(300 - held..300));
            }
        }
    }

    #[test]
    fn texts_meet_their_first_judgement_once() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, lines: &[&str]| {
            let path = folder.path().join(name);
            std::fs::write(&path, lines.join("\n")).unwrap();
            path
        };
        let text = |id: &str, text: &str| {
            format!(
                r#"{{"kind":"Prediction","time":1,"requestId":"{id}","modelVersion":"v","text":"{text}","label":"x","probability":0.1}}"#
            )
        };
        let said = |id: &str, time: u64, label: &str| {
            format!(r#"{{"kind":"Judgement","time":{time},"requestId":"{id}","label":"{label}"}}"#)
        };
        // Each of these labels often enough, with a text or without.
        let often = |label: &str| -> Vec<String> { (0..4).map(|n| said(&format!("{label}-{n}"), 7, label)).collect() };
        let often: Vec<String> = ["first", "early"].iter().flat_map(|label| often(label)).collect();
        let often: Vec<&str> = often.iter().map(String::as_str).collect();
        let files = [
            write("0", &often),
            write(
                "1",
                &[
                    &text("a", "one"),
                    &said("b", 9, "late"),
                    &text("b", "two"),
                    "{\"kind\":\"Predi",
                ],
            ),
            write(
                "2",
                &[
                    &said("a", 5, "first"),
                    &said("b", 4, "early"),
                    &text("c", "three"),
                    &text("a", "one"),
                    &text("e", "four"),
                ],
            ),
            write(
                "3",
                &[
                    &said("a", 6, "again"),
                    &said("d", 1, "of no text"),
                    &said("e", 1, "once"),
                    "",
                ],
            ),
        ];
        let out = folder.path().join("out");
        let joined = join_feedback(&files, &out, "text", "intent").unwrap();
        assert_eq!(
            joined,
            Joined {
                rows: 2,
                unjudged: 1,
                rare: 1,
                unreadable: 1
            }
        );
        assert_eq!(
            std::fs::read_to_string(out).unwrap(),
            "{\"intent\":\"first\",\"text\":\"one\"}\n{\"intent\":\"early\",\"text\":\"two\"}\n"
        );
    }
}
