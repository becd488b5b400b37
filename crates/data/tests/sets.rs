//! Files to sets: every way in which a data set can be wrong, and the counts of what was done.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use flywheel_contract::dataset::{DataLimits, Dataset, Format, SetName, Source, Split};
use flywheel_contract::failure::FailureReason;
use flywheel_contract::profile::{Answer, PROJECTIONS};
use flywheel_contract::scalar::Digest;
use flywheel_contract::trainer::NearDuplicates;
use flywheel_data::{
    DataError, Prepared, SourceFile, SourceFiles, TextSet, TextTokenizer, check_limits, findings, format_of, prepare,
    profile, read_rows,
};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

fn dataset() -> Dataset {
    Dataset {
        sources: vec![Source {
            uri: "file:///x.csv".into(),
            format: None,
            hold_out_percent: None,
        }],
        text_column: "text".to_owned(),
        label_column: "label".to_owned(),
        deduplicate: true,
        split: None,
        validation: None,
        test: None,
        golden: None,
        limits: None,
        evaluation_sample: true,
    }
}

fn file(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> SourceFile {
    let path: PathBuf = folder.join(name);
    std::fs::write(&path, content.as_ref()).unwrap();
    SourceFile {
        name: format!("s3://b/{name}"),
        path,
        format: format_of(name, None).unwrap(),
        digest: Digest::sha256(&"0".repeat(64)),
    }
}

fn rows(n: usize) -> String {
    let mut out = "text,label\n".to_owned();
    for i in 0..n {
        out += &format!("text number {i},{}\n", ["red", "green", "blue"][i % 3]);
    }
    out
}

fn run(files: &SourceFiles) -> Result<Prepared, DataError> {
    prepare(&dataset(), files)
}

/// A text in UTF-16 with a byte order mark.
fn utf16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    "\u{feff}"
        .encode_utf16()
        .chain(text.encode_utf16())
        .flat_map(bytes)
        .collect()
}

fn one(content: impl AsRef<[u8]>, name: &str) -> Result<Prepared, DataError> {
    let dir = tempfile::tempdir().unwrap();
    run(&SourceFiles {
        sources: vec![file(dir.path(), name, content)],
        ..SourceFiles::default()
    })
}

#[test]
fn what_is_wrong_is_told_with_place_and_remedy() {
    let long = format!("text,label\n{},a\n", "x".repeat(64 * 1024 + 1));
    let long_label = format!("text,label\nx,{}\n", "x".repeat(300));
    let cases: Vec<(&str, Vec<u8>, FailureReason, &[&str])> = vec![
        (
            "empty.csv",
            b"".to_vec(),
            FailureReason::DatasetEmpty,
            &["s3://b/empty.csv has no rows", "header line"],
        ),
        (
            "header.csv",
            b"text,label\n".to_vec(),
            FailureReason::DatasetEmpty,
            &["has no rows"],
        ),
        (
            "blank.csv",
            b"text,label\n ,a\nx,\n".to_vec(),
            FailureReason::DatasetEmpty,
            &["none of the 2 rows", "textColumn"],
        ),
        (
            "wrong.csv",
            b"sentence,label\nx,a\n".to_vec(),
            FailureReason::ColumnMissing,
            &["\"text\"", "\"sentence\", \"label\"", "textColumn"],
        ),
        (
            "semicolon.csv",
            b"text;label\nx;a\n".to_vec(),
            FailureReason::ColumnMissing,
            &["\"text;label\""],
        ),
        (
            "utf8.csv",
            b"text,label\nfine,a\nbr\xf6ken,b\n".to_vec(),
            FailureReason::DatasetInvalid,
            &["line 3", "UTF-8", "iconv"],
        ),
        (
            "latin1.csv",
            b"t\xe9xt,label\nfine,a\n".to_vec(),
            FailureReason::DatasetInvalid,
            &["line 1: the header is not UTF-8; convert the file", "iconv"],
        ),
        (
            "utf16le.csv",
            utf16("text,label\nfine,a\n", u16::to_le_bytes),
            FailureReason::DatasetInvalid,
            &["line 1", "not UTF-8 but UTF-16", "iconv -f UTF-16 -t UTF-8"],
        ),
        (
            "utf16be.csv",
            utf16("text,label\nfine,a\n", u16::to_be_bytes),
            FailureReason::DatasetInvalid,
            &["line 1", "not UTF-8 but UTF-16", "iconv -f UTF-16 -t UTF-8"],
        ),
        (
            "utf16.jsonl",
            utf16("{\"text\": \"a\", \"label\": \"b\"}\n", u16::to_le_bytes),
            FailureReason::DatasetInvalid,
            &["line 1", "not UTF-8 but UTF-16", "iconv -f UTF-16 -t UTF-8"],
        ),
        (
            "ragged.csv",
            b"text,label\na,b\nhello, world,a\n".to_vec(),
            FailureReason::DatasetInvalid,
            &["line 3", "3 fields where the header has 2", "quote"],
        ),
        (
            "quote.csv",
            b"text,label\nx,a\ny,\"b\nz,c\nw,d\n".to_vec(),
            FailureReason::DatasetInvalid,
            &["line 3", "never closed"],
        ),
        (
            "open.csv",
            b"text,label\nx,a\n\"secret, b\nz,c\nw,d\n".to_vec(),
            FailureReason::DatasetInvalid,
            &[
                "line 3: 1 field where the header has 2",
                "a quote is opened in this line and never closed",
            ],
        ),
        (
            "open at the end.csv",
            b"text,label\nx,a\n\"secret, b".to_vec(),
            FailureReason::DatasetInvalid,
            &["line 3: 1 field where the header has 2", "never closed"],
        ),
        (
            "open for a while.csv",
            b"text,label\n\"secret, a\nz,\"c\"\nw,d\n".to_vec(),
            FailureReason::DatasetInvalid,
            &[
                "line 2: 1 field where the header has 2",
                "a quote that is opened in this line may never be closed",
            ],
        ),
        (
            "open header.csv",
            b"text,\"label\nsecret,a\n".to_vec(),
            FailureReason::DatasetInvalid,
            &["line 1: the header goes over several lines", "may never be closed"],
        ),
        (
            "long.csv",
            long.into_bytes(),
            FailureReason::DatasetInvalid,
            &["line 2", "65537 bytes", "65536"],
        ),
        (
            "label.csv",
            long_label.into_bytes(),
            FailureReason::DatasetInvalid,
            &["line 2", "300 bytes", "labelColumn"],
        ),
        (
            "one.csv",
            b"text,label\na,x\nb,x\nc,x\nd,x\ne,x\nf,x\ng,x\nh,x\ni,x\nj,x\n".to_vec(),
            FailureReason::SingleClass,
            &["all 7 rows of the training set", "at least two", "labelColumn"],
        ),
        (
            "few.csv",
            b"text,label\na,x\nb,y\n".to_vec(),
            FailureReason::DatasetEmpty,
            &["validation set is empty", "too few"],
        ),
        (
            "bad.jsonl",
            b"{\"text\": \"a\", \"label\": \"b\"}\n{\"text\": secret\n".to_vec(),
            FailureReason::DatasetInvalid,
            &["line 2", "no JSON"],
        ),
        (
            "list.jsonl",
            b"[1]\n".to_vec(),
            FailureReason::DatasetInvalid,
            &["line 1", "no JSON object"],
        ),
        (
            "key.jsonl",
            b"{\"text\": \"a\", \"intent\": \"b\"}\n".to_vec(),
            FailureReason::ColumnMissing,
            &["key.jsonl, line 1 has no column \"label\"", "\"intent\", \"text\""],
        ),
        (
            "one key.jsonl",
            b"{\"text\": \"a\", \"label\": \"b\"}\n\n{\"label\": \"b\"}\n".to_vec(),
            FailureReason::ColumnMissing,
            &[
                "one key.jsonl, line 3 has no column \"text\"",
                "The rows before have it: add it to this line or drop the line",
            ],
        ),
        (
            "type.jsonl",
            b"{\"text\": 3, \"label\": \"b\"}\n".to_vec(),
            FailureReason::DatasetInvalid,
            &["line 1", "no string"],
        ),
        (
            "utf8.jsonl",
            b"\xff\n".to_vec(),
            FailureReason::DatasetInvalid,
            &["line 1", "UTF-8"],
        ),
        (
            "empty.jsonl",
            b"\n\n".to_vec(),
            FailureReason::DatasetEmpty,
            &["has no rows"],
        ),
        (
            "empty.parquet",
            b"".to_vec(),
            FailureReason::DatasetEmpty,
            &["has no rows"],
        ),
        (
            "bad.parquet",
            b"PAR1 this is none PAR1".to_vec(),
            FailureReason::DatasetInvalid,
            &["no Parquet"],
        ),
    ];
    for (name, content, reason, words) in cases {
        let error = one(&content, name).expect_err(name);
        assert_eq!(error.reason(), reason, "{name}: {error}");
        for word in words {
            assert!(error.to_string().contains(word), "{name}: {error} lacks {word}");
        }
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    assert_eq!(
        format_of("s3://b/data.txt", None).unwrap_err().reason(),
        FailureReason::ConfigInvalid
    );
    assert_eq!(format_of("s3://b/data.txt", Some(Format::Csv)).unwrap(), Format::Csv);
    assert_eq!(format_of("s3://b.csv/DATA.NDJSON", None).unwrap(), Format::Jsonl);
}

#[test]
fn more_rows_than_the_budget_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let f = file(dir.path(), "a.csv", rows(6));
    let mut seen = 0;
    let mut read = |budget| {
        read_rows(&f.path, &f.name, f.format, ("text", "label"), budget, &mut |_, _, _| {
            seen += 1
        })
    };
    assert_eq!(read(6).unwrap(), 6);
    assert!(read(5).unwrap_err().to_string().contains("more than 10000000 rows"));
}

#[test]
fn quoted_commas_lines_and_a_byte_order_mark_are_read() {
    let mut content = "\u{feff}label,text\r\na,\"one, \"\"two\"\"\nthree\"\r\n".to_owned();
    for i in 0..30 {
        content += &format!("{},n{i}\r\n", ["a", "b"][i % 2]);
    }
    let sets = one(content, "x.csv").unwrap();
    let all: Vec<&String> = sets
        .train
        .texts
        .iter()
        .chain(&sets.validation.texts)
        .chain(&sets.test.texts)
        .collect();
    assert_eq!(all.len(), 31);
    assert!(all.iter().any(|t| *t == "one, \"two\"\nthree"), "{all:?}");
}

/// The csv crate counts lines that end with `\r\n` one late.
#[test]
fn lines_are_counted_alike_whatever_they_end_with() {
    let lines = ["text,label", "a,x", "", "\"b", "c\",y", "z,z,z"];
    for end in ["\n", "\r\n", "\r"] {
        let error = one(lines.join(end) + end, "x.csv").unwrap_err().to_string();
        assert!(error.contains("line 6: 3 fields"), "{end:?}: {error}");
        let broken = [
            lines[..2].join(end).into_bytes(),
            end.into(),
            b"\xff,x".to_vec(),
            end.into(),
        ]
        .concat();
        let error = one(broken, "x.csv").unwrap_err().to_string();
        assert!(error.contains("line 3: column"), "{end:?}: {error}");
        let error = one(["{\"text\": \"a\", \"label\": \"b\"}", "", "["].join(end), "x.jsonl");
        let error = error.unwrap_err().to_string();
        assert!(error.contains("line 3: no JSON"), "{end:?}: {error}");
    }
}

/// What is held out is never trained on, nor is its text, and yet no label becomes unknown by it.
#[test]
fn the_newest_set_is_apart_from_all_that_is_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let row = |text: &str, label: &str| format!("{}\n", serde_json::json!({"text": text, "label": label}));
    let sources = rows(60).replace("text number 7,", "something else,");
    let fresh: Vec<String> = (0..50).map(|n| format!("never seen {n}")).collect();
    let mut newest = vec![
        // Of a file of one's own, which is trained on whatever clients say.
        ("text number 5", "green"),
        // Of clients.
        (" text number 7", "red"),
        // The one text of a label, and a label that only this set has.
        ("only one", "green"),
        ("brand new", "unheard"),
    ];
    newest.extend(fresh.iter().map(|text| (text.as_str(), "blue")));
    let lines = |rows: &[(&str, &str)]| -> String { rows.iter().map(|(text, label)| row(text, label)).collect() };
    let told = |name: &str, rows: &[(&str, &str)]| SourceFile {
        format: Format::Feedback,
        ..file(dir.path(), &format!("{name}.jsonl"), lines(rows))
    };
    let earlier = [("text number 7", "blue"), ("only one", "rare"), ("another", "red")];
    let files = SourceFiles {
        sources: vec![file(dir.path(), "train.csv", sources), told("earlier", &earlier)],
        newest: vec![told("newest", &newest)],
        ..SourceFiles::default()
    };
    let sets = run(&files).unwrap();
    let mut expected = vec!["text number 7"];
    expected.extend(fresh.iter().map(String::as_str));
    assert_eq!(sets.newest.texts, expected);
    let c = &sets.counts;
    assert_eq!((c.newest, c.newest_overlap, c.newest_left_out), (51, 1, 3));
    assert_eq!(
        c.rows,
        c.empty + c.duplicates + c.golden_overlap + c.newest_overlap + c.newest_left_out + c.kept()
    );
    assert!(sets.labels.contains(&"rare".to_owned()) && !sets.labels.contains(&"unheard".to_owned()));
    for set in [&sets.train, &sets.validation, &sets.test] {
        assert!(sets.newest.texts.iter().all(|text| !set.texts.contains(text)));
    }
    // Fewer than fifty are too few to compare versions on.
    let few = SourceFiles {
        newest: vec![told("few", &newest[..newest.len() - 2])],
        ..files.clone()
    };
    let few = run(&few).unwrap();
    assert_eq!((few.counts.newest, few.counts.newest_left_out), (0, 52));
    // It belongs to the data: another slice is another data set, and without one the digest is what it was.
    let without = SourceFiles {
        newest: vec![],
        ..files.clone()
    };
    assert_ne!(run(&without).unwrap().digest, sets.digest);
    assert_eq!(run(&files).unwrap(), sets);
}

#[test]
fn rows_that_are_dropped_and_kept_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut train = rows(60);
    train += "text number 3,green\n,red\n text number 4 ,green\n";
    let files = SourceFiles {
        sources: vec![file(dir.path(), "train.csv", &train)],
        golden: vec![file(
            dir.path(),
            "golden.jsonl",
            "{\"text\":\"text number 7\",\"label\":\"green\"}\n{\"text\":\"new\",\"label\":\"red\"}\n",
        )],
        ..SourceFiles::default()
    };
    let sets = run(&files).unwrap();
    let c = &sets.counts;
    assert_eq!(
        (c.rows, c.empty, c.duplicates, c.conflicts, c.golden_overlap),
        (65, 1, 2, 1, 1)
    );
    assert_eq!((c.train + c.validation + c.test, c.golden, c.labels), (59, 2, 3));
    assert_eq!(
        c.rows,
        c.empty + c.duplicates + c.golden_overlap + c.train + c.validation + c.test + c.golden
    );
    assert_eq!(sets.labels, ["blue", "green", "red"]);
    for set in [&sets.train, &sets.validation, &sets.test] {
        assert!(
            !set.texts.iter().any(|t| t == "text number 7"),
            "the golden text is in none of the three"
        );
    }
    let texts = |s: &TextSet| s.texts.clone();
    let mut all = [texts(&sets.train), texts(&sets.validation), texts(&sets.test)].concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 59, "no text is in two sets");
    assert_eq!(run(&files).unwrap(), sets, "the same bytes give the same sets");
}

#[test]
fn explicit_sets_are_taken_as_they_are_and_their_labels_must_be_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = SourceFiles {
        sources: vec![file(dir.path(), "train.csv", rows(9))],
        validation: Some(vec![file(dir.path(), "v.csv", "text,label\nv1,red\nv2,blue\n")]),
        test: Some(vec![file(dir.path(), "t.csv", "text,label\nt1,green\n")]),
        golden: vec![],
        newest: vec![],
    };
    let sets = run(&files).unwrap();
    assert_eq!((sets.train.len(), sets.validation.len(), sets.test.len()), (9, 2, 1));
    assert_eq!(sets.test.labels, [1]);

    files.test = Some(vec![file(dir.path(), "t2.csv", "text,label\nt1,violet\nt2,red\n")]);
    let error = run(&files).unwrap_err();
    assert_eq!(error.reason(), FailureReason::LabelNotInTrain);
    assert!(
        error.to_string().contains("the test set has 1 label(s)") && error.to_string().contains("\"violet\""),
        "{error}"
    );

    files.test = files.validation.clone();
    files.golden = vec![file(dir.path(), "g.csv", "text,label\ng,violet\n")];
    assert!(run(&files).unwrap_err().to_string().contains("golden set"));
}

/// Rows of random words, a third of each colour.
fn distinct_rows(n: usize) -> Vec<String> {
    let mut state = 1_u64;
    let mut word = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        format!("{:x}", state >> 40)
    };
    let colour = |i: usize| ["red", "green", "blue"][i % 3];
    (0..n)
        .map(|i| format!("{} {} {} {},{}", word(), word(), word(), word(), colour(i)))
        .collect()
}

fn csv(rows: &[String]) -> String {
    format!("text,label\n{}\n", rows.join("\n"))
}

#[test]
fn what_the_checks_find_is_counted_and_pointed_at_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let all = distinct_rows(90);
    let (train, rest) = all.split_at(60);
    let (text, label) = train[0].split_once(',').unwrap();
    let (other, other_label) = train[1].split_once(',').unwrap();
    let mut test = rest[..10].to_vec();
    test.push(format!("{}!,{label}", text.to_uppercase()));
    test.push(format!("{other},{other_label}"));
    let mut validation = rest[10..20].to_vec();
    validation.push(format!("{other},{label}"));
    let golden: Vec<String> = rest[20..]
        .iter()
        .map(|row| row.replace("red", "blue").replace("green", "blue"))
        .collect();
    let mut train = train.to_vec();
    train.push(format!("{text},{other_label}"));
    train.push("a label with one row only,violet".to_owned());
    let files = SourceFiles {
        sources: vec![
            file(dir.path(), "a.csv", csv(&train[..30])),
            file(dir.path(), "b.csv", csv(&train[30..])),
        ],
        validation: Some(vec![file(dir.path(), "v.csv", csv(&validation))]),
        test: Some(vec![file(dir.path(), "t.csv", csv(&test))]),
        golden: vec![file(dir.path(), "g.csv", csv(&golden))],
        newest: vec![],
    };
    let mut sets = run(&files).unwrap();
    sets.counts.truncated = 7;
    let c = &sets.counts;
    assert_eq!((c.rows, c.duplicates, c.conflicts), (62 + 11 + 12 + 10, 1, 2));
    assert_eq!((c.train, c.validation, c.test, c.golden), (61, 11, 12, 10));
    assert_eq!(
        (c.labels, c.validation_labels, c.test_labels, c.golden_labels),
        (4, 3, 3, 1)
    );
    assert_eq!((c.largest_label, c.smallest_label, c.rare_labels), (20, 1, 1));
    let pair = |set, of, rows, identical| NearDuplicates {
        set,
        of,
        rows,
        identical,
    };
    assert_eq!(
        c.near_duplicates,
        [
            pair(SetName::Validation, SetName::Train, 1, 1),
            pair(SetName::Test, SetName::Train, 2, 1),
            pair(SetName::Test, SetName::Validation, 1, 1),
        ]
    );
    assert_eq!((c.near_duplicates_of_train(), c.uncompared), (3, 0));
    let places: Vec<String> = sets
        .examples
        .iter()
        .map(|e| format!("{:?}: {}, {}", e.problem, e.first, e.second))
        .collect();
    assert_eq!(
        places,
        [
            "Conflict: s3://b/a.csv line 2, s3://b/b.csv line 32",
            "Conflict: s3://b/a.csv line 3, s3://b/v.csv line 12",
            "NearDuplicate: s3://b/a.csv line 3, s3://b/v.csv line 12",
            "NearDuplicate: s3://b/a.csv line 2, s3://b/t.csv line 12",
            "NearDuplicate: s3://b/a.csv line 3, s3://b/t.csv line 13",
            "NearDuplicate: s3://b/v.csv line 12, s3://b/t.csv line 13",
        ]
    );

    let told: Vec<String> = findings(&dataset(), &sets).iter().map(ToString::to_string).collect();
    println!("{}", told.join("\n"));
    let expected: [&[&str]; 6] = [
        &["2 texts stand with more than one label, such as s3://b/a.csv line 2 and s3://b/b.csv line 32. Decide"],
        &[
            "3 rows to measure on",
            "1 of the validation set, 1 of them word for word; 2 of the test set, 1 of them word",
            "Drop",
        ],
        &["the largest label has 20 training rows and the smallest (\"violet\") 1. Add rows"],
        &["1 label has fewer than 10 training rows: \"violet\". Add"],
        &[
            "7 of 94 texts (7.4 %) are longer than hyperparameters.maxLength",
            "Raise maxLength",
        ],
        &["the golden set has rows of one label only"],
    ];
    assert_eq!(told.len(), expected.len());
    for (told, words) in told.iter().zip(expected) {
        assert!(words.iter().all(|w| told.contains(w)), "{told}");
        assert!(!told.contains(text) && !told.contains(other), "no text is told: {told}");
    }
    check_limits(&findings(&dataset(), &sets)).expect("without limits nothing ends");
}

#[test]
fn each_limit_holds_to_its_last_count_and_says_what_to_do() {
    type Set = fn(&mut DataLimits, Option<i32>);
    // The largest count that breaks the limit, or the smallest that keeps it for the lower bound.
    let table: [(&str, Set, i32, i32, &[&str]); 5] = [
        (
            "maxConflicts",
            |l, n| l.max_conflicts = n,
            2,
            3,
            &["3 texts stand", "correct the files"],
        ),
        (
            "maxNearDuplicates",
            |l, n| l.max_near_duplicates = n,
            4,
            5,
            &["5 rows to measure on", "keep alike texts"],
        ),
        (
            "maxImbalanceRatio",
            |l, n| l.max_imbalance_ratio = n,
            3,
            4,
            &["has 13 training rows", "\"a\"", "merge"],
        ),
        (
            "minRowsPerLabel",
            |l, n| l.min_rows_per_label = n,
            5,
            4,
            &["1 label has fewer than 5", "\"a\"", "drop them"],
        ),
        (
            "maxTruncatedPercent",
            |l, n| l.max_truncated_percent = n,
            9,
            10,
            &["10 of 101 texts (9.9 %)", "Raise maxLength"],
        ),
    ];
    let prepared = |limits: &DataLimits| {
        let dir = tempfile::tempdir().unwrap();
        let labels: Vec<String> = (0..17)
            .map(|i| format!("x{i},{}", if i < 4 { "a" } else { "b" }))
            .collect();
        let own = SourceFiles {
            sources: vec![file(dir.path(), "x.csv", csv(&labels))],
            validation: Some(vec![file(dir.path(), "v.csv", "text,label\nv,a\nw,b\n")]),
            test: Some(vec![file(dir.path(), "t.csv", "text,label\nt,a\nu,b\n")]),
            golden: vec![],
            newest: vec![],
        };
        let with = Dataset {
            limits: Some(limits.clone()),
            ..dataset()
        };
        let mut sets = prepare(&with, &own).unwrap();
        sets.counts.conflicts = 3;
        sets.counts.near_duplicates = [
            (SetName::Test, SetName::Train, 4),
            (SetName::Golden, SetName::Train, 1),
            (SetName::Golden, SetName::Test, 9),
        ]
        .map(|(set, of, rows)| NearDuplicates {
            set,
            of,
            rows,
            identical: 0,
        })
        .to_vec();
        (sets.counts.truncated, sets.counts.golden) = (10, 80);
        check_limits(&findings(&with, &sets))
    };
    let mut all = DataLimits::default();
    for (name, set, breaks, keeps, words) in table {
        let mut limits = DataLimits::default();
        set(&mut limits, Some(keeps));
        prepared(&limits).unwrap_or_else(|e| panic!("{name} {keeps}: {e}"));
        set(&mut limits, Some(breaks));
        let error = prepared(&limits).expect_err(name);
        println!("{error}");
        assert_eq!(error.reason(), FailureReason::DatasetCheckFailed);
        let message = error.to_string();
        assert!(
            message.starts_with(&format!("dataset.limits.{name} is {breaks}, but ")),
            "{message}"
        );
        assert!(message.ends_with(", or change the limit"), "{message}");
        assert!(words.iter().all(|w| message.contains(w)), "{message}");
        set(&mut all, Some(breaks));
    }
    let message = prepared(&all).unwrap_err().to_string();
    assert_eq!(message.matches("dataset.limits.").count(), 5, "all at once: {message}");
}

#[test]
fn a_golden_set_without_a_whole_row_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let files = SourceFiles {
        sources: vec![file(dir.path(), "x.csv", rows(60))],
        golden: vec![file(dir.path(), "g.csv", "text,label\n,red\nx,\n")],
        ..SourceFiles::default()
    };
    let error = run(&files).unwrap_err();
    assert_eq!(error.reason(), FailureReason::DatasetEmpty);
    assert!(
        error.to_string().contains("golden set is empty: none of its 2 rows"),
        "{error}"
    );
}

#[test]
fn the_digest_follows_content_order_and_role() {
    let dir = tempfile::tempdir().unwrap();
    let with = |digit: &str| SourceFile {
        digest: Digest::sha256(&digit.repeat(64)),
        ..file(dir.path(), "x.csv", "")
    };
    let sources = |list: Vec<SourceFile>| {
        flywheel_data::dataset_digest(&SourceFiles {
            sources: list,
            ..SourceFiles::default()
        })
    };
    let golden = flywheel_data::dataset_digest(&SourceFiles {
        sources: vec![with("1")],
        golden: vec![with("2")],
        ..SourceFiles::default()
    });
    let all = [
        sources(vec![with("1")]),
        sources(vec![with("1"), with("2")]),
        sources(vec![with("2"), with("1")]),
        golden,
    ];
    let distinct: std::collections::HashSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), 4);
    assert_eq!(
        all[0].to_string(),
        // printf "sources %s\n" 111…1 | sha256sum
        "sha256:dce8d0380227edcab2ffe43bb20976dd1c090d3f81efa65664872b985beb4318"
    );
}

fn parquet_file(path: &Path, schema: &str, texts: &[&[u8]], labels: &[i64]) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(
        WriterProperties::builder()
            .set_compression(parquet::basic::Compression::SNAPPY)
            .build(),
    );
    let mut writer = SerializedFileWriter::new(std::fs::File::create(path).unwrap(), schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let values: Vec<ByteArray> = texts.iter().map(|t| ByteArray::from(t.to_vec())).collect();
    column
        .typed::<ByteArrayType>()
        .write_batch(&values, None, None)
        .unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(labels, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn parquet_is_read_by_column_with_whole_numbers_as_labels() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let texts: Vec<String> = (0..40).map(|i| format!("text {i} é")).collect();
    let bytes: Vec<&[u8]> = texts.iter().map(|t| t.as_bytes()).collect();
    let labels: Vec<i64> = (0..40).map(|i| i % 2).collect();
    let schema = "message m { required byte_array text (UTF8); required int64 label; }";
    parquet_file(&path, schema, &bytes, &labels);
    let mut read = Vec::new();
    let n = read_rows(&path, "x", Format::Parquet, ("text", "label"), 100, &mut |_, t, l| {
        read.push((t.to_owned(), l.to_owned()))
    })
    .unwrap();
    assert_eq!(n, 40);
    assert_eq!(read[3], ("text 3 é".to_owned(), "1".to_owned()));

    let missing = read_rows(&path, "x", Format::Parquet, ("text", "intent"), 100, &mut |_, _, _| ()).unwrap_err();
    assert!(missing.to_string().contains("\"text\", \"label\""), "{missing}");
    let numbers = read_rows(&path, "x", Format::Parquet, ("label", "text"), 100, &mut |_, _, _| ()).unwrap_err();
    assert!(numbers.to_string().contains("holds no text"), "{numbers}");

    let cut = dir.path().join("cut.parquet");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(
        read_rows(&cut, "x", Format::Parquet, ("text", "label"), 100, &mut |_, _, _| ())
            .unwrap_err()
            .reason(),
        FailureReason::DatasetInvalid
    );

    parquet_file(
        &path,
        "message m { required byte_array text; required int64 label; }",
        &[b"ok", b"br\xf6ken"],
        &[1, 2],
    );
    let broken = read_rows(&path, "x", Format::Parquet, ("text", "label"), 100, &mut |_, _, _| ()).unwrap_err();
    assert!(
        broken.to_string().contains("line 2") && broken.to_string().contains("UTF-8"),
        "{broken}"
    );
}

#[test]
fn unstratified_splits_and_their_seeds_come_from_the_spec() {
    let dir = tempfile::tempdir().unwrap();
    let files = SourceFiles {
        sources: vec![file(dir.path(), "x.csv", rows(100))],
        ..SourceFiles::default()
    };
    let with = |stratify, seed| {
        let mut d = dataset();
        d.split = Some(Split {
            train_percent: 60,
            validation_percent: 20,
            test_percent: 20,
            stratify,
            seed,
        });
        prepare(&d, &files).unwrap()
    };
    assert_eq!(with(false, 1).train.len(), 60);
    assert_ne!(with(true, 1).train, with(true, 2).train);
    assert_ne!(with(true, 1).train, with(false, 1).train);
}

const VOCABULARY: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nturn\non\n##s\nthe\nlight\ncafe\nTurn\n";

#[test]
fn a_vocabulary_becomes_berts_tokenizer_and_its_saved_form_encodes_alike() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("vocab.txt"), VOCABULARY).unwrap();
    let tokenizer = TextTokenizer::load(dir.path(), 6, 12).unwrap();
    let text = tokenizer.encode("Turn ON the lights CAFÉ zz").unwrap();
    assert_eq!(
        text.ids,
        [2, 5, 6, 8, 9, 3],
        "lower case, accents stripped, cut at six with [SEP] kept"
    );
    assert!(text.truncated);
    assert_eq!(tokenizer.encode("café zz").unwrap().ids, [2, 10, 1, 3], "not padded");
    assert!(!tokenizer.encode("café zz").unwrap().truncated);
    assert_eq!(tokenizer.encode("").unwrap().ids, [2, 3]);

    let out = tempfile::tempdir().unwrap();
    tokenizer.save(out.path()).unwrap();
    let again = TextTokenizer::load(out.path(), 6, 12).unwrap();
    for text in ["Turn ON the lights CAFÉ zz", "", "x", "light 灯 🙂"] {
        assert_eq!(again.encode(text).unwrap(), tokenizer.encode(text).unwrap());
    }
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.path().join("tokenizer_config.json")).unwrap()).unwrap();
    assert_eq!(
        (config["cls_token"].as_str(), config["model_max_length"].as_i64()),
        (Some("[CLS]"), Some(6))
    );

    std::fs::write(dir.path().join("tokenizer_config.json"), "{\"do_lower_case\": false}").unwrap();
    let cased = TextTokenizer::load(dir.path(), 6, 12).unwrap();
    assert_eq!(cased.encode("Turn on").unwrap().ids, [2, 11, 6, 3]);
}

#[test]
fn truncation_and_padding_of_the_file_are_not_used() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("vocab.txt"), VOCABULARY).unwrap();
    let tokenizer = TextTokenizer::load(dir.path(), 64, 12).unwrap();
    tokenizer.save(dir.path()).unwrap();
    let path = dir.path().join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = serde_json::json!({"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"});
    std::fs::write(&path, json.to_string()).unwrap();
    let loaded = TextTokenizer::load(dir.path(), 64, 12).unwrap();
    assert_eq!(loaded.encode("turn on the light").unwrap().ids, [2, 5, 6, 8, 9, 3]);
}

#[test]
fn tokenizers_that_cannot_work_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let load = |max, vocabulary| TextTokenizer::load(dir.path(), max, vocabulary).unwrap_err();
    assert_eq!(load(8, 12).reason(), FailureReason::TokenizerMissing);
    std::fs::write(dir.path().join("vocab.txt"), "[PAD]\n[UNK]\nhello\n").unwrap();
    assert!(load(8, 12).to_string().contains("[CLS]"));
    std::fs::write(dir.path().join("vocab.txt"), VOCABULARY).unwrap();
    assert!(load(8, 11).to_string().contains("token ids up to 11"));
    assert!(load(2, 12).to_string().contains("raise it"));
    std::fs::write(dir.path().join("tokenizer_config.json"), "[]").unwrap();
    assert!(load(8, 12).to_string().contains("tokenizer_config.json"));
    std::fs::write(dir.path().join("tokenizer_config.json"), "{}").unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), "{\"version\"").unwrap();
    let error = load(8, 12);
    assert_eq!(error.reason(), FailureReason::TokenizerInvalid);
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}

#[test]
fn a_set_is_encoded_in_order_with_cut_texts_counted_and_profiled() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("vocab.txt"), VOCABULARY).unwrap();
    let tokenizer = TextTokenizer::load(dir.path(), 4, 12).unwrap();
    let set = TextSet {
        texts: (0..5000)
            .map(|i| if i % 5 == 0 { "turn on the light" } else { "light" }.to_owned())
            .collect(),
        labels: (0..5000).map(|i| i % 2).collect(),
    };
    let (encoded, truncated) = tokenizer.encode_set(&set).unwrap();
    assert_eq!((encoded.len(), truncated), (5000, 1000));
    assert_eq!(encoded.ids[4095..4097], [vec![2, 5, 6, 3], vec![2, 9, 3]]);
    let answers: Vec<Answer> = (0..5000)
        .map(|i| Answer {
            probabilities: if i % 2 == 0 { vec![0.75, 0.25] } else { vec![0.05, 0.95] },
            projections: Some([f64::from(i); PROJECTIONS]),
        })
        .collect();
    let profile = profile(&encoded, &answers, 2);
    assert_eq!((profile.texts, profile.classes.clone()), (5000, vec![2500, 2500]));
    assert_eq!(profile.length.counts[..2], [4000, 1000]);
    for projection in &profile.projections {
        assert_eq!(projection.counts.iter().sum::<u64>(), 5000);
        assert!(
            projection.counts.iter().all(|count| (312..=313).contains(count)),
            "{projection:?}"
        );
    }
}
