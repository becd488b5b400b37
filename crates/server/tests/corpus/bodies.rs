//! Bodies of `/predict`, each class with the one reason for which its cases are refused.

use super::dice::{Dice, inserted};

/// A class of bodies.
pub struct Class {
    pub name: &'static str,
    /// The word of the refusal; empty for bodies that are answered.
    pub reason: &'static str,
    pub make: fn(&mut Dice) -> Vec<u8>,
}

const MALFORMED: &str = "MalformedJson";
const INVALID: &str = "InvalidRequest";

/// Longest text and longest list, and a body's bytes, as docs/serving.md promises them.
const TEXT_BYTES: usize = 64 * 1024;
const TEXTS: usize = 128;
pub const BODY_BYTES: usize = 1024 * 1024;

/// All of them. A parser reads from left to right, and the first fault counts: each case has one only.
pub const CLASSES: &[Class] = &[
    Class {
        name: "good",
        reason: "",
        make: |d| d.good().into_bytes(),
    },
    Class {
        name: "escaped NUL and other odd but good texts",
        reason: "",
        make: odd_but_good,
    },
    Class {
        name: "longest texts and lists",
        reason: "",
        make: longest,
    },
    Class {
        name: "empty body",
        reason: MALFORMED,
        make: |d| " \n".repeat(d.below(3)).into_bytes(),
    },
    Class {
        name: "cut off",
        reason: MALFORMED,
        make: cut_off,
    },
    Class {
        name: "something behind",
        reason: MALFORMED,
        make: trailing,
    },
    Class {
        name: "invalid UTF-8",
        reason: MALFORMED,
        make: invalid_utf8,
    },
    Class {
        name: "UTF-16 and UTF-32",
        reason: MALFORMED,
        make: wide,
    },
    Class {
        name: "byte order mark",
        reason: MALFORMED,
        make: |d| inserted(d.good().as_bytes(), 0, b"\xef\xbb\xbf"),
    },
    Class {
        name: "lone surrogates",
        reason: MALFORMED,
        make: lone_surrogates,
    },
    Class {
        name: "control characters in strings",
        reason: MALFORMED,
        make: control_characters,
    },
    Class {
        name: "NUL bytes outside of strings",
        reason: MALFORMED,
        make: nul_outside,
    },
    Class {
        name: "unknown escapes",
        reason: MALFORMED,
        make: unknown_escapes,
    },
    Class {
        name: "JSON5, JavaScript, Python",
        reason: MALFORMED,
        make: other_notations,
    },
    Class {
        name: "numbers that are none",
        reason: MALFORMED,
        make: no_numbers,
    },
    Class {
        name: "numbers that no double holds",
        reason: MALFORMED,
        make: huge_numbers,
    },
    Class {
        name: "other formats",
        reason: MALFORMED,
        make: other_formats,
    },
    Class {
        name: "compressed without saying so",
        reason: MALFORMED,
        make: compressed,
    },
    Class {
        name: "random bytes",
        reason: MALFORMED,
        make: random_bytes,
    },
    Class {
        name: "unknown fields",
        reason: INVALID,
        make: unknown_fields,
    },
    Class {
        name: "duplicate fields",
        reason: INVALID,
        make: duplicates,
    },
    Class {
        name: "both fields",
        reason: INVALID,
        make: both,
    },
    Class {
        name: "neither field",
        reason: INVALID,
        make: |d| d.pick(&["{}", "{ }", "{\n}", "\t{\r\n}"]).as_bytes().to_vec(),
    },
    Class {
        name: "no object",
        reason: INVALID,
        make: no_object,
    },
    Class {
        name: "values of other types",
        reason: INVALID,
        make: |d| {
            let v = other_value(d);
            d.around(&v).into_bytes()
        },
    },
    Class {
        name: "a list as text, a text as list",
        reason: INVALID,
        make: swapped,
    },
    Class {
        name: "deep nesting",
        reason: INVALID,
        make: deep,
    },
    Class {
        name: "empty and white texts",
        reason: "EmptyText",
        make: empty_texts,
    },
    Class {
        name: "texts that are too long",
        reason: "TextTooLong",
        make: too_long,
    },
    Class {
        name: "lists that are too long",
        reason: "TooManyTexts",
        make: too_many,
    },
];

fn odd_but_good(d: &mut Dice) -> Vec<u8> {
    let odd = [
        r"\u0000",
        r"\ud83d\ude00",
        r"\/",
        r"\u202e",
        r"\uffff",
        r"\u0007",
        "\u{feff}",
        "\u{10ffff}",
        "\u{fdd0}",
        r#"\""#,
        r"\\",
        "<script>",
        "${jndi:ldap://x}",
        "../../etc/passwd",
        "file:///etc/passwd",
        "http://169.254.169.254/",
        "%00",
        "' OR 1=1 --",
        "{{7*7}}",
        r"\r\nx-injected: 1",
    ];
    let parts: String = (0..d.between(1, 5)).map(|_| d.pick(&odd)).collect();
    d.around(&format!("\"a{parts}\"")).into_bytes()
}

fn longest(d: &mut Dice) -> Vec<u8> {
    if d.coin() {
        let length = TEXT_BYTES - d.below(3);
        return format!("{{\"text\":\"{}\"}}", "x".repeat(length)).into_bytes();
    }
    let list: Vec<String> = (0..TEXTS - d.below(3)).map(|_| d.string()).collect();
    format!("{{\"texts\":[{}]}}", list.join(",")).into_bytes()
}

fn cut_off(d: &mut Dice) -> Vec<u8> {
    let good = d.good().into_bytes();
    let length = d.below(good.len());
    good[..length].to_vec()
}

fn trailing(d: &mut Dice) -> Vec<u8> {
    let mut body = d.good();
    let good = d.good();
    body.push_str(d.pick(&[
        "}",
        "]",
        ",",
        "x",
        "\0",
        "{}",
        "null",
        "0",
        "\"\"",
        "\n\n//",
        ";",
        "\u{feff}",
        good.as_str(),
    ]));
    body.into_bytes()
}

fn invalid_utf8(d: &mut Dice) -> Vec<u8> {
    let bad: [&[u8]; 14] = [
        b"\x80",
        b"\xbf",
        b"\xc0\xaf",
        b"\xc1\x81",
        b"\xe0\x80\xaf",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xf0\x80\x80\xaf",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xfe",
        b"\xff",
        b"\xe2\x82",
        b"\xf0\x9f\x98",
    ];
    let bad = d.pick(&bad);
    let body = match d.below(3) {
        0 => "{\"text\": \"ab c\"}",
        1 => "{\"texts\": [\"ab c\"]}",
        // In the field's name.
        _ => "{\"ab c\": 1}",
    };
    inserted(body.as_bytes(), body.find('b').unwrap() + d.below(2), bad)
}

fn wide(d: &mut Dice) -> Vec<u8> {
    let good = d.good();
    let marked = if d.coin() { format!("\u{feff}{good}") } else { good };
    match d.below(4) {
        0 => marked.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        1 => marked.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        2 => marked.chars().flat_map(|c| (c as u32).to_le_bytes()).collect(),
        _ => marked.chars().flat_map(|c| (c as u32).to_be_bytes()).collect(),
    }
}

fn lone_surrogates(d: &mut Dice) -> Vec<u8> {
    let (high, low) = (0xd800 + d.below(0x400), 0xdc00 + d.below(0x400));
    let text = match d.below(5) {
        0 => format!("\\u{high:04x}"),
        1 => format!("\\u{low:04x}"),
        2 => format!("\\u{high:04X}\\u{high:04X}"),
        3 => format!("\\u{low:04x}\\u{high:04x}"),
        _ => format!("\\u{high:04x}a\\u{low:04x}"),
    };
    d.around(&format!("\"a{text}b\"")).into_bytes()
}

fn control_characters(d: &mut Dice) -> Vec<u8> {
    let control = char::from(d.below(0x20) as u8);
    d.around(&format!("\"ab{control}c\"")).into_bytes()
}

fn nul_outside(d: &mut Dice) -> Vec<u8> {
    let at = d.below(5);
    let parts = ["", "{", "\"text\"", ":", "\"a\"", "}"];
    let mut body = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        body.extend_from_slice(part.as_bytes());
        if index == at {
            body.extend(std::iter::repeat_n(0, d.between(1, 9)));
        }
    }
    body
}

fn unknown_escapes(d: &mut Dice) -> Vec<u8> {
    let escape = d.pick(&[
        r"\x41",
        r"\u12",
        r"\u",
        r"\u{41}",
        r"\U00000041",
        r"\u00g0",
        r"\'",
        r"\0",
        r"\a",
        r"\ ",
        r"\u-001",
        r"\u+041",
        r"\N{DASH}",
    ]);
    d.around(&format!("\"a{escape}z\"")).into_bytes()
}

fn other_notations(d: &mut Dice) -> Vec<u8> {
    let word = d.token();
    match d.below(12) {
        0 => format!("{{'text': '{word}'}}"),
        1 => format!("{{text: \"{word}\"}}"),
        2 => format!("{{\"text\": '{word}'}}"),
        3 => format!("{{\"text\": \"{word}\",}}"),
        4 => format!("{{\"texts\": [\"{word}\",]}}"),
        5 => format!("/* {word} */ {{\"text\": \"a\"}}"),
        6 => format!("{{\"text\": \"{word}\" // end\n}}"),
        7 => format!("# {word}\n{{\"text\": \"a\"}}"),
        8 => format!("{{\"text\" => \"{word}\"}}"),
        9 => format!("{{\"text\" \"{word}\"}}"),
        10 => format!("({{\"text\": \"{word}\"}})"),
        _ => format!("{{\"text\": `{word}`}}"),
    }
    .into_bytes()
}

fn no_numbers(d: &mut Dice) -> Vec<u8> {
    let digits = d.below(1000);
    let value = match d.below(9) {
        0 => "NaN".to_owned(),
        1 => "Infinity".to_owned(),
        2 => "-Infinity".to_owned(),
        3 => format!("+{digits}"),
        4 => format!("0{digits}"),
        5 => format!(".{digits}"),
        6 => format!("{digits}."),
        7 => format!("{digits}e"),
        _ => "-".to_owned(),
    };
    d.around(&value).into_bytes()
}

fn huge_numbers(d: &mut Dice) -> Vec<u8> {
    let exponent = d.between(400, 100_000);
    let value = match d.below(4) {
        0 => format!("1e{exponent}"),
        1 => format!("-1e{exponent}"),
        2 => format!("9.9E+{exponent}"),
        _ => "9".repeat(exponent),
    };
    d.around(&value).into_bytes()
}

fn other_formats(d: &mut Dice) -> Vec<u8> {
    let word = d.token();
    match d.below(7) {
        0 => format!("text={word}"),
        1 => format!("--{word}\r\ncontent-disposition: form-data; name=\"text\"\r\n\r\na\r\n--{word}--"),
        2 => format!("<?xml version=\"1.0\"?><text>{word}</text>"),
        3 => format!("<!DOCTYPE a [<!ENTITY b SYSTEM \"file:///etc/passwd\">]><text>&b;{word}</text>"),
        4 => format!("text: {word}\n"),
        5 => format!("!!python/object/apply:os.system [{word}]"),
        _ => format!("(dp0\nS'{word}'\np1\n."),
    }
    .into_bytes()
}

fn compressed(d: &mut Dice) -> Vec<u8> {
    let mark: [&[u8]; 6] = [
        b"\x1f\x8b\x08\x00",
        b"\x28\xb5\x2f\xfd",
        b"\x78\x9c",
        b"BZh9",
        b"\xfd7zXZ\x00",
        b"PK\x03\x04",
    ];
    let mut body = d.pick(&mark).to_vec();
    body.extend((0..d.below(600)).map(|_| d.roll() as u8));
    body
}

fn random_bytes(d: &mut Dice) -> Vec<u8> {
    let mut body: Vec<u8> = (0..d.between(1, 900)).map(|_| d.roll() as u8).collect();
    // No first byte of a JSON value.
    body[0] = *d.pick(&[
        &0_u8, &b')', &b'}', &b']', &b',', &b':', &b'a', &b'\\', &0x7f, &0x80, &0xc3, &0xff,
    ]);
    body
}

fn unknown_fields(d: &mut Dice) -> Vec<u8> {
    let word = d.token();
    let longer = format!("text{word}");
    let huge = "k".repeat(d.between(10_000, 60_000));
    let name = d.pick(&[
        "Text",
        "TEXT",
        " text",
        "text ",
        "tехt",
        "te\\u0000xt",
        "",
        "input",
        "top_k",
        "__proto__",
        "constructor",
        "$ref",
        "inputs",
        longer.as_str(),
        huge.as_str(),
    ]);
    match d.below(3) {
        0 => format!("{{\"{name}\": {}}}", d.string()),
        1 => format!("{{\"text\": {}, \"{name}\": null}}", d.string()),
        _ => format!("{{\"{name}\": [[{{}}]], \"text\": {}}}", d.string()),
    }
    .into_bytes()
}

fn duplicates(d: &mut Dice) -> Vec<u8> {
    let (a, b) = (d.string(), d.string());
    match d.below(4) {
        0 => format!("{{\"text\": {a}, \"text\": {b}}}"),
        1 => format!("{{\"texts\": [{a}], \"texts\": [{b}]}}"),
        // The same name, written otherwise.
        2 => format!("{{\"text\": {a}, \"\\u0074ext\": {a}}}"),
        _ => format!("{{\"text\": {a}, \"text\": null}}"),
    }
    .into_bytes()
}

fn both(d: &mut Dice) -> Vec<u8> {
    let (a, b) = (d.string(), d.string());
    if d.coin() {
        format!("{{\"text\": {a}, \"texts\": [{b}]}}")
    } else {
        format!("{{\"texts\": [{a}, {b}], \"text\": {b}}}")
    }
    .into_bytes()
}

fn no_object(d: &mut Dice) -> Vec<u8> {
    let string = d.string();
    match d.below(4) {
        0 => string,
        1 => format!("[{string}]"),
        2 => format!("[{{\"text\": {string}}}]"),
        _ => {
            let number = d.roll().to_string();
            d.pick(&["null", "true", "false", "0", "-0", "1.5", "[]", "[[]]", number.as_str()])
                .to_owned()
        }
    }
    .into_bytes()
}

/// A value that is no string, and no list either.
fn other_value(d: &mut Dice) -> String {
    let number = d.roll().to_string();
    let fraction = format!("{}.{}e{}", d.below(9), d.below(1000), d.below(200));
    d.pick(&[
        "null",
        "true",
        "false",
        "0",
        "-0",
        "-1",
        "9223372036854775808",
        "18446744073709551616",
        "1e-400",
        "1e308",
        "{}",
        "{\"text\": \"a\"}",
        "{\"$binary\": \"YQ==\"}",
        number.as_str(),
        fraction.as_str(),
    ])
    .to_owned()
}

fn swapped(d: &mut Dice) -> Vec<u8> {
    let string = d.string();
    match d.below(4) {
        0 => format!("{{\"text\": [{string}]}}"),
        1 => format!("{{\"texts\": {string}}}"),
        2 => format!("{{\"texts\": [[{string}]]}}"),
        _ => format!("{{\"texts\": {{\"0\": {string}}}}}"),
    }
    .into_bytes()
}

fn deep(d: &mut Dice) -> Vec<u8> {
    let depth = d.between(2, 100_000);
    let value = match d.below(3) {
        0 => "[".repeat(depth) + &"]".repeat(depth),
        1 => "{\"a\":".repeat(depth) + "1" + &"}".repeat(depth),
        // Open: the first bracket is wrong already.
        _ => "[".repeat(depth),
    };
    match d.below(3) {
        0 => format!("{{\"text\": {value}}}"),
        1 => format!("{{\"texts\": [\"a\", {value}]}}"),
        _ => format!("{{\"x\": {value}}}"),
    }
    .into_bytes()
}

fn empty_texts(d: &mut Dice) -> Vec<u8> {
    if d.below(8) == 0 {
        return b"{\"texts\": []}".to_vec();
    }
    let white = [
        " ", "\\t", "\\n", "\\r", "\\u000b", "\\f", "\\u0085", "\u{a0}", "\u{1680}", "\u{2003}", "\u{2028}",
        "\u{2029}", "\u{202f}", "\u{205f}", "\u{3000}", "\\u0020",
    ];
    let text: String = (0..d.below(20)).map(|_| d.pick(&white)).collect();
    d.around(&format!("\"{text}\"")).into_bytes()
}

fn too_long(d: &mut Dice) -> Vec<u8> {
    let letter = d.pick(&["x", "é", "猫", "😀", "\\u00e9"]);
    let bytes = if letter.starts_with('\\') { 2 } else { letter.len() };
    let count = TEXT_BYTES / bytes + 1 + d.below(30_000 / letter.len());
    d.around(&format!("\"{}\"", letter.repeat(count))).into_bytes()
}

fn too_many(d: &mut Dice) -> Vec<u8> {
    let count = d.between(TEXTS + 1, 4000);
    let mut list = vec!["\"a\""; count];
    if d.coin() {
        // What is beyond is read over, whatever it is.
        list.extend(["[[[]]]", "null", "{\"a\": 1e99999}"]);
    }
    format!("{{\"texts\": [{}]}}", list.join(",")).into_bytes()
}
