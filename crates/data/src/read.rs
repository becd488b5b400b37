//! Reading CSV, JSONL and Parquet, row by row.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use flywheel_contract::dataset::Format;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;

use crate::error::{DataError, Result};
use crate::{LABEL_MAX_BYTES, MAX_ROWS, TEXT_MAX_BYTES};

/// Bytes that are read at once.
const READ_BYTES: usize = 256 * 1024;
/// Most bytes of one line of JSONL: a text of the longest kind with every character escaped, and as much beside it.
const LINE_MAX_BYTES: u64 = 1024 * 1024;
/// How a file in UTF-16 may begin; neither is UTF-8.
const UTF16_MARKS: [[u8; 2]; 2] = [[0xff, 0xfe], [0xfe, 0xff]];
/// Most column names in a message.
const COLUMNS_SHOWN: usize = 20;

/// The format of a source: as said, or by the suffix of its URI.
///
/// # Errors
/// [`DataError::FormatUnknown`].
pub fn format_of(uri: &str, said: Option<Format>) -> Result<Format> {
    if let Some(format) = said {
        return Ok(format);
    }
    let lower = uri.to_ascii_lowercase();
    match lower
        .rsplit('/')
        .next()
        .and_then(|name| name.rsplit_once('.'))
        .map(|(_, s)| s)
    {
        Some("csv") => Ok(Format::Csv),
        Some("jsonl" | "ndjson") => Ok(Format::Jsonl),
        Some("parquet") => Ok(Format::Parquet),
        _ => Err(DataError::FormatUnknown {
            source_name: uri.to_owned(),
        }),
    }
}

/// Where rows come from, and how many there may still be.
struct Context<'a> {
    name: &'a str,
    text_column: &'a str,
    label_column: &'a str,
    rows: u64,
    budget: u64,
}

impl Context<'_> {
    fn invalid(&self, line: Option<u64>, problem: impl Into<String>) -> DataError {
        DataError::invalid(self.name, line, problem)
    }

    /// With the line, where each has columns of its own.
    fn missing(&self, line: Option<u64>, column: &str, columns: &[&str]) -> DataError {
        let mut list: Vec<String> = columns
            .iter()
            .take(COLUMNS_SHOWN)
            .map(|c| {
                let short: String = c.chars().take(40).collect();
                format!("{short:?}")
            })
            .collect();
        if columns.len() > COLUMNS_SHOWN {
            list.push(format!("{} more", columns.len() - COLUMNS_SHOWN));
        }
        DataError::ColumnMissing {
            source_name: self.name.to_owned(),
            line,
            column: column.to_owned(),
            columns: if list.is_empty() {
                "none".to_owned()
            } else {
                list.join(", ")
            },
            remedy: match line {
                Some(_) if self.rows > 0 => "The rows before have it: add it to this line or drop the line",
                _ => "Set `textColumn` and `labelColumn` to names of the file",
            },
        }
    }

    fn no_rows(&self, expected: &'static str) -> DataError {
        DataError::NoRows {
            source_name: self.name.to_owned(),
            expected,
        }
    }

    /// Checks the bounds of a row and hands it on.
    fn row(&mut self, line: u64, text: &str, label: &str, sink: &mut dyn FnMut(u64, &str, &str)) -> Result<()> {
        self.rows += 1;
        if self.rows > self.budget {
            return Err(self.invalid(
                None,
                format!("the data set has more than {MAX_ROWS} rows, the most that is read; sample it down"),
            ));
        }
        if text.len() > TEXT_MAX_BYTES {
            return Err(self.invalid(
                Some(line),
                format!(
                    "a text has {} bytes, more than {TEXT_MAX_BYTES}; cut it or drop the row",
                    text.len()
                ),
            ));
        }
        if label.len() > LABEL_MAX_BYTES {
            return Err(self.invalid(
                Some(line),
                format!(
                    "a label has {} bytes, more than {LABEL_MAX_BYTES}; check that `labelColumn` names the right column",
                    label.len()
                ),
            ));
        }
        sink(line, text, label);
        Ok(())
    }

    fn utf8<'b>(&self, line: u64, column: &str, bytes: &'b [u8]) -> Result<&'b str> {
        std::str::from_utf8(bytes).map_err(|_| self.not_utf8(line, &format!("column {column:?}"), bytes))
    }

    /// `bytes` are those of `what`, which begin the file if nothing stands before them.
    fn not_utf8(&self, line: u64, what: &str, bytes: &[u8]) -> DataError {
        let utf16 = line == 1 && UTF16_MARKS.iter().any(|mark| bytes.starts_with(mark));
        let (mark, from) = match utf16 {
            true => (" but UTF-16, as its byte order mark tells", "-f UTF-16 "),
            false => ("", ""),
        };
        self.invalid(
            Some(line),
            format!("{what} is not UTF-8{mark}; convert the file, for example with `iconv {from}-t UTF-8`"),
        )
    }
}

/// Reads a file and hands each row's line (from 1; Parquet: row), text and label, as they stand, to `sink`. `name` stands for the file in messages;
/// at most `budget` rows are read. Returns the number of rows.
///
/// # Errors
/// A file without rows, that is none of its format, without the columns, or beyond a bound; the disk.
pub fn read_rows(
    path: &Path,
    name: &str,
    format: Format,
    columns: (&str, &str),
    budget: u64,
    sink: &mut dyn FnMut(u64, &str, &str),
) -> Result<u64> {
    let file = File::open(path).map_err(|source| DataError::Io {
        action: "open",
        path: path.display().to_string(),
        source,
    })?;
    let mut context = Context {
        name,
        text_column: columns.0,
        label_column: columns.1,
        rows: 0,
        budget,
    };
    match format {
        Format::Csv => read_csv(&mut context, file, sink)?,
        // What pods kept is joined before it comes here.
        Format::Jsonl | Format::Feedback => read_jsonl(&mut context, file, sink)?,
        Format::Parquet => read_parquet(&mut context, file, sink)?,
    }
    Ok(context.rows)
}

/// A file with `\n` alone at the end of lines: the csv crate counts lines that end with `\r\n` one late, and those that end
/// with `\r` not at all. A `\r` alone ends lines where it ends the first one, and is a part of a text elsewhere. Counts quotes
/// as they pass, to find one that is never closed: the csv crate takes the rest of the file as one field then.
struct Lines<R> {
    inner: R,
    /// A `\r` whose next byte is not known yet.
    held: bool,
    /// What a `\r` alone becomes; known from the end of the first line on.
    lone: Option<u8>,
    quotes: Rc<Cell<u64>>,
}

impl<R> Lines<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            held: false,
            lone: None,
            quotes: Rc::default(),
        }
    }
}

impl<R: BufRead> Read for Lines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // Each byte read may bring the one before it along.
        let room = buffer.len().saturating_sub(1);
        loop {
            let available = self.inner.fill_buf()?;
            let end = available.is_empty();
            let (mut out, mut written, mut used, mut quotes) = (buffer.iter_mut(), 0, 0, 0);
            let mut put = |byte: u8| {
                if let Some(place) = out.next() {
                    *place = byte;
                    written += 1;
                }
                written
            };
            if end && std::mem::take(&mut self.held) {
                put(*self.lone.get_or_insert(b'\n'));
            }
            let mut full = room == 0;
            for byte in available.iter().copied() {
                if full {
                    break;
                }
                used += 1;
                if std::mem::take(&mut self.held) && byte != b'\n' {
                    full = put(*self.lone.get_or_insert(b'\n')) >= room;
                }
                if byte == b'\n' {
                    self.lone.get_or_insert(b'\r');
                }
                quotes += u64::from(byte == b'"');
                if byte == b'\r' {
                    self.held = true;
                } else {
                    full = put(byte) >= room;
                }
            }
            self.inner.consume(used);
            self.quotes.set(self.quotes.get() + quotes);
            if written > 0 || end || room == 0 {
                return Ok(written);
            }
        }
    }
}

/// What the quotes of a row say that is not as it should be.
#[derive(Clone, Copy)]
enum Quote {
    None,
    /// A field goes over several lines.
    ClosedLate,
    NeverClosed,
}

fn spans_lines(record: &csv::ByteRecord) -> bool {
    record.iter().any(|field| field.contains(&b'\n'))
}

fn csv_error(context: &Context<'_>, error: &csv::Error, quote: Quote) -> DataError {
    let line = error.position().map(csv::Position::line);
    let problem = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            let fields = if *len == 1 { "field" } else { "fields" };
            let why = match quote {
                Quote::None => "quote texts that hold commas (\"…\")",
                Quote::ClosedLate => {
                    "quote texts that hold commas (\"…\"); the row goes over several lines, so a quote that is opened in this line may never be closed"
                }
                Quote::NeverClosed => {
                    "a quote is opened in this line and never closed; quotes within a text are doubled (\"\")"
                }
            };
            format!("{len} {fields} where the header has {expected_len}; {why}")
        }
        csv::ErrorKind::Io(e) => format!("cannot be read: {e}"),
        other => format!("no CSV: {other:?}"),
    };
    context.invalid(line, problem)
}

/// Why a column is not in the header.
fn header_error(context: &Context<'_>, column: &str, header: &csv::ByteRecord, names: &[String]) -> DataError {
    let line = header.position().map_or(1, csv::Position::line);
    if spans_lines(header) {
        return context.invalid(
            Some(line),
            "the header goes over several lines, so a quote that is opened in it may never be closed; quotes within a name are doubled (\"\")",
        );
    }
    if std::str::from_utf8(header.as_slice()).is_err() {
        return context.not_utf8(line, "the header", header.as_slice());
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    context.missing(None, column, &names)
}

fn read_csv(context: &mut Context<'_>, file: File, sink: &mut dyn FnMut(u64, &str, &str)) -> Result<()> {
    const EXPECTED: &str = "a header line and at least one row below it";
    let lines = Lines::new(BufReader::with_capacity(READ_BYTES, file));
    let quotes = Rc::clone(&lines.quotes);
    let mut reader = csv::ReaderBuilder::new().has_headers(true).from_reader(lines);
    let header = reader
        .byte_headers()
        .map_err(|e| csv_error(context, &e, Quote::None))?
        .clone();
    if header.is_empty() {
        return Err(context.no_rows(EXPECTED));
    }
    let names: Vec<String> = header
        .iter()
        .map(|name| {
            String::from_utf8_lossy(name)
                .trim_start_matches('\u{feff}')
                .trim()
                .to_owned()
        })
        .collect();
    let place = |column: &str| {
        let found = names.iter().position(|n| n == column);
        found.ok_or_else(|| header_error(context, column, &header, &names))
    };
    let (text_at, label_at) = (place(context.text_column)?, place(context.label_column)?);
    let mut record = csv::ByteRecord::new();
    let mut last_line = 1;
    let mut last_spans_lines = false;
    loop {
        match reader.read_byte_record(&mut record) {
            Ok(true) => {
                last_line = record.position().map_or(0, csv::Position::line);
                last_spans_lines = spans_lines(&record);
            }
            Ok(false) => break,
            Err(e) => {
                let spans_lines = spans_lines(&record);
                let at_end = matches!(reader.read_byte_record(&mut record), Ok(false));
                let quote = match (at_end && quotes.get() % 2 == 1, spans_lines) {
                    (true, _) => Quote::NeverClosed,
                    (false, true) => Quote::ClosedLate,
                    (false, false) => Quote::None,
                };
                return Err(csv_error(context, &e, quote));
            }
        }
        let (text, label) = (
            record.get(text_at).unwrap_or_default(),
            record.get(label_at).unwrap_or_default(),
        );
        if last_spans_lines && text.len() > TEXT_MAX_BYTES {
            return Err(context.invalid(
                Some(last_line),
                format!(
                    "a text over several lines has more than {TEXT_MAX_BYTES} bytes; a quote is probably never closed"
                ),
            ));
        }
        let text = context.utf8(last_line, context.text_column, text)?;
        let label = context.utf8(last_line, context.label_column, label)?;
        context.row(last_line, text, label, sink)?;
    }
    if last_spans_lines && quotes.get() % 2 == 1 {
        return Err(context.invalid(
            Some(last_line),
            "a quote is opened here and never closed; quotes within a text are doubled (\"\")",
        ));
    }
    if context.rows == 0 {
        return Err(context.no_rows(EXPECTED));
    }
    Ok(())
}

fn read_jsonl(context: &mut Context<'_>, file: File, sink: &mut dyn FnMut(u64, &str, &str)) -> Result<()> {
    let lines = Lines::new(BufReader::with_capacity(READ_BYTES, file));
    let mut reader = BufReader::with_capacity(READ_BYTES, lines);
    let mut buffer = Vec::new();
    let mut line = 0_u64;
    loop {
        buffer.clear();
        let read = reader
            .by_ref()
            .take(LINE_MAX_BYTES + 1)
            .read_until(b'\n', &mut buffer)
            .map_err(|source| DataError::Io {
                action: "read",
                path: context.name.to_owned(),
                source,
            })?;
        if read == 0 {
            break;
        }
        line += 1;
        if buffer.len() as u64 > LINE_MAX_BYTES {
            return Err(context.invalid(
                Some(line),
                format!("the line has more than {LINE_MAX_BYTES} bytes; write one JSON object per line"),
            ));
        }
        let text = std::str::from_utf8(&buffer).map_err(|_| context.not_utf8(line, "the line", &buffer))?;
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            continue;
        }
        // serde_json's own message can hold a piece of the line, so only its place is told.
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| {
            context.invalid(
                Some(line),
                format!("no JSON (at column {}); write one JSON object per line", e.column()),
            )
        })?;
        let serde_json::Value::Object(object) = value else {
            return Err(context.invalid(
                Some(line),
                "no JSON object; write one object per line, such as {\"text\": …, \"label\": …}",
            ));
        };
        let keys = || object.keys().map(String::as_str).collect::<Vec<_>>();
        let get = |column: &str| {
            object
                .get(column)
                .ok_or_else(|| context.missing(Some(line), column, &keys()))
        };
        let text = match get(context.text_column)? {
            serde_json::Value::String(text) => text.as_str(),
            serde_json::Value::Null => "",
            _ => return Err(context.invalid(Some(line), format!("{:?} is no string", context.text_column))),
        };
        let label = match get(context.label_column)? {
            serde_json::Value::String(label) => label.clone(),
            serde_json::Value::Number(number) => number.to_string(),
            serde_json::Value::Bool(flag) => flag.to_string(),
            serde_json::Value::Null => String::new(),
            _ => {
                return Err(context.invalid(
                    Some(line),
                    format!("{:?} is no string, number or boolean", context.label_column),
                ));
            }
        };
        context.row(line, text, &label, sink)?;
    }
    if context.rows == 0 {
        return Err(context.no_rows("one JSON object per line"));
    }
    Ok(())
}

fn read_parquet(context: &mut Context<'_>, file: File, sink: &mut dyn FnMut(u64, &str, &str)) -> Result<()> {
    let broken = |context: &Context<'_>, error: &parquet::errors::ParquetError| {
        context.invalid(
            None,
            format!("no Parquet file that can be read: {error}. Write it with snappy, zstd or no compression"),
        )
    };
    let length = file.metadata().map(|m| m.len()).unwrap_or(0);
    if length == 0 {
        return Err(context.no_rows("at least one row"));
    }
    let reader = SerializedFileReader::new(file).map_err(|e| broken(context, &e))?;
    let schema = reader.metadata().file_metadata().schema_descr().root_schema().clone();
    let fields = match &schema {
        Type::GroupType { fields, .. } => fields.clone(),
        Type::PrimitiveType { .. } => Vec::new(),
    };
    let names: Vec<&str> = fields.iter().map(|f| f.name()).collect();
    let mut wanted = Vec::new();
    for column in [context.text_column, context.label_column] {
        wanted.push(
            fields
                .iter()
                .find(|f| f.name() == column)
                .cloned()
                .ok_or_else(|| context.missing(None, column, &names))?,
        );
    }
    let projection = Type::group_type_builder(schema.name())
        .with_fields(wanted)
        .build()
        .map_err(|e| broken(context, &e))?;
    let rows = reader.get_row_iter(Some(projection)).map_err(|e| broken(context, &e))?;
    let mut number = 0_u64;
    for row in rows {
        let row = row.map_err(|e| broken(context, &e))?;
        number += 1;
        let (mut text, mut label) = (None, None);
        for (name, field) in row.get_column_iter() {
            let value = scalar(field).ok_or_else(|| {
                context.invalid(
                    Some(number),
                    format!("column {name:?} holds neither text nor a whole number nor a boolean"),
                )
            })?;
            if name == context.text_column {
                if !matches!(field, Field::Str(_) | Field::Bytes(_) | Field::Null) {
                    return Err(context.invalid(
                        Some(number),
                        format!("column {name:?} holds no text; check `textColumn`"),
                    ));
                }
                text = Some(value);
            } else {
                label = Some(value);
            }
        }
        let (text, label) = (text.unwrap_or_default(), label.unwrap_or_default());
        let text = context.utf8(number, context.text_column, &text)?;
        let label = context.utf8(number, context.label_column, &label)?;
        context.row(number, text, label, sink)?;
    }
    if context.rows == 0 {
        return Err(context.no_rows("at least one row"));
    }
    Ok(())
}

/// The bytes of a value that can stand as text or label.
fn scalar(field: &Field) -> Option<Vec<u8>> {
    match field {
        Field::Null => Some(Vec::new()),
        Field::Str(text) => Some(text.clone().into_bytes()),
        Field::Bytes(bytes) => Some(bytes.data().to_vec()),
        Field::Bool(v) => Some(v.to_string().into_bytes()),
        Field::Byte(v) => Some(v.to_string().into_bytes()),
        Field::Short(v) => Some(v.to_string().into_bytes()),
        Field::Int(v) => Some(v.to_string().into_bytes()),
        Field::Long(v) => Some(v.to_string().into_bytes()),
        Field::UByte(v) => Some(v.to_string().into_bytes()),
        Field::UShort(v) => Some(v.to_string().into_bytes()),
        Field::UInt(v) => Some(v.to_string().into_bytes()),
        Field::ULong(v) => Some(v.to_string().into_bytes()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the file comes in pieces.
    #[test]
    fn lines_end_with_line_feeds_and_other_carriage_returns_stay() {
        let cases = [
            ("a\r\nb\rc\r\r\n\"\"\r", "a\nb\rc\r\n\"\"\r"),
            ("a\nb\rc\r\r\n\"\"\r", "a\nb\rc\r\n\"\"\r"),
            ("a\rb\r\r\"c\"\r\n\r", "a\nb\n\n\"c\"\n\n"),
            ("\"a\"\r", "\"a\"\n"),
            ("\"a\"\n\r\r\r\rb", "\"a\"\n\r\r\r\rb"),
        ];
        let pieces = [(1, 2), (2, 3), (3, 2), (100, 100)];
        for ((text, expected), (piece, room)) in cases.iter().flat_map(|c| pieces.map(|p| (c, p))) {
            let mut lines = Lines::new(BufReader::with_capacity(piece, text.as_bytes()));
            let quotes = Rc::clone(&lines.quotes);
            let (mut all, mut buffer) = (Vec::new(), vec![0; room]);
            loop {
                let n = lines.read(&mut buffer).unwrap();
                if n == 0 {
                    break;
                }
                all.extend_from_slice(&buffer[..n]);
            }
            assert_eq!(String::from_utf8(all).unwrap(), *expected, "{piece} {room}");
            assert_eq!(quotes.get(), 2);
        }
    }
}
