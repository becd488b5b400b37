//! Bodies of the Open Inference Protocol, each class with the one reason for which its cases are refused.

use super::dice::Dice;

/// Header that says how long the JSON in front of binary tensors is.
pub const HEADER: &str = "Inference-Header-Content-Length";

/// A body, and the value of [`HEADER`].
pub struct Body {
    pub header: Option<String>,
    pub bytes: Vec<u8>,
}

pub struct Class {
    pub name: &'static str,
    /// The word of the refusal; empty for bodies that are answered.
    pub reason: &'static str,
    pub make: fn(&mut Dice) -> Body,
}

const INVALID: &str = "InvalidRequest";
const MALFORMED: &str = "MalformedJson";
const BAD_HEADER: &str = "MalformedRequest";

pub const CLASSES: &[Class] = &[
    Class {
        name: "tensors: good JSON",
        reason: "",
        make: good_json,
    },
    Class {
        name: "tensors: good binary",
        reason: "",
        make: good_binary,
    },
    Class {
        name: "tensors: hints and deep ones",
        reason: "",
        make: hints,
    },
    Class {
        name: "tensors: shapes that do not fit",
        reason: INVALID,
        make: shapes,
    },
    Class {
        name: "tensors: other names and types",
        reason: INVALID,
        make: names,
    },
    Class {
        name: "tensors: elements of other types",
        reason: INVALID,
        make: elements,
    },
    Class {
        name: "tensors: fields unknown, twice, missing",
        reason: INVALID,
        make: fields,
    },
    Class {
        name: "tensors: lists in place of objects",
        reason: INVALID,
        make: lists,
    },
    Class {
        name: "tensors: outputs that are none",
        reason: INVALID,
        make: outputs,
    },
    Class {
        name: "tensors: parameters that ask for more",
        reason: INVALID,
        make: parameters,
    },
    Class {
        name: "tensors: deep nesting",
        reason: INVALID,
        make: deep,
    },
    Class {
        name: "tensors: elements that do not fill their bytes",
        reason: INVALID,
        make: broken_elements,
    },
    Class {
        name: "tensors: sizes that lie",
        reason: INVALID,
        make: sizes,
    },
    Class {
        name: "tensors: header lengths that are none",
        reason: BAD_HEADER,
        make: header_lengths,
    },
    Class {
        name: "tensors: header lengths too small",
        reason: MALFORMED,
        make: header_too_small,
    },
    Class {
        name: "tensors: cut off",
        reason: MALFORMED,
        make: cut_off,
    },
    Class {
        name: "tensors: empty and white texts",
        reason: "EmptyText",
        make: empty_texts,
    },
    Class {
        name: "tensors: texts that are too long",
        reason: "TextTooLong",
        make: too_long,
    },
    Class {
        name: "tensors: lists that are too long",
        reason: "TooManyTexts",
        make: too_many,
    },
];

fn plain(text: impl Into<Vec<u8>>) -> Body {
    Body {
        header: None,
        bytes: text.into(),
    }
}

fn input(shape: &str, tail: &str) -> String {
    format!("{{\"name\": \"text\", \"datatype\": \"BYTES\", \"shape\": {shape}{tail}}}")
}

fn request(input: &str, tail: &str) -> String {
    format!("{{\"inputs\": [{input}]{tail}}}")
}

/// A request with binary elements behind it; `size` is what it says of them.
fn binary(shape: &str, size: usize, bytes: &[u8]) -> Body {
    let json = request(
        &input(shape, &format!(", \"parameters\": {{\"binary_data_size\": {size}}}")),
        "",
    );
    Body {
        header: Some(json.len().to_string()),
        bytes: [json.as_bytes(), bytes].concat(),
    }
}

fn element(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat()
}

fn good_elements(d: &mut Dice) -> (usize, Vec<u8>) {
    let count = d.between(1, 9);
    (count, (0..count).flat_map(|_| element(d.text().as_bytes())).collect())
}

fn good_json(d: &mut Dice) -> Body {
    let count = d.between(1, 9);
    let texts: Vec<String> = (0..count).map(|_| d.string()).collect();
    let (shape, data) = if d.coin() {
        (format!("[{count}]"), texts.join(", "))
    } else {
        (
            format!("[{count}, 1]"),
            texts.iter().map(|t| format!("[{t}]")).collect::<Vec<_>>().join(","),
        )
    };
    let tail = d.pick(&[
        "", ", \"id\": \"a b\"", ", \"id\": null, \"parameters\": {}, \"outputs\": null", ", \"outputs\": []",
        ", \"outputs\": [{\"name\": \"label\"}]", ", \"parameters\": {\"binary_data_output\": true}",
        ", \"outputs\": [{\"name\": \"all_probs\", \"parameters\": {\"binary_data\": true}}, {\"name\": \"probability\"}]",
    ]);
    plain(request(&input(&shape, &format!(", \"data\": [{data}]")), tail))
}

fn good_binary(d: &mut Dice) -> Body {
    let (count, bytes) = good_elements(d);
    let shape = if d.coin() {
        format!("[{count}]")
    } else {
        format!("[{count}, 1]")
    };
    binary(&shape, bytes.len(), &bytes)
}

/// Parameters that are not known are passed over.
fn hints(d: &mut Dice) -> Body {
    let depth = d.between(1, 50_000);
    let deep = "[".repeat(depth) + &"]".repeat(depth);
    let value = d.pick(&["null", "true", "1", "1e99999", "\"str\"", "{\"a\": {}}", deep.as_str()]);
    let name = d.token();
    let parameters = format!(", \"parameters\": {{\"x-{name}\": {value}}}");
    plain(request(
        &input("[1]", &format!("{parameters}, \"data\": [\"a\"]")),
        &parameters,
    ))
}

fn shapes(d: &mut Dice) -> Body {
    let shape = d.pick(&[
        "[]",
        "[0]",
        "[1]",
        "[3]",
        "[2, 2]",
        "[1, 2]",
        "[2, 1, 1]",
        "[-1]",
        "[-2]",
        "[2.0]",
        "[2e0]",
        "[\"2\"]",
        "\"[2]\"",
        "2",
        "null",
        "[null]",
        "[[2]]",
        "{}",
        "[18446744073709551615]",
        "[18446744073709551616]",
        "[4294967296, 4294967296]",
        "[2, 0]",
        "[9223372036854775807, 2]",
        "[2, -1]",
        "[true]",
        "[1e308]",
    ]);
    plain(request(
        &input(shape, &format!(", \"data\": [{}, {}]", d.string(), d.string())),
        "",
    ))
}

fn names(d: &mut Dice) -> Body {
    let string = d.string();
    let (name, datatype) = if d.coin() {
        (
            d.pick(&[
                "\"\"",
                "\"Text\"",
                "\"text \"",
                "\"../text\"",
                "\"input_ids\"",
                "null",
                "1",
                "[\"text\"]",
            ]),
            "\"BYTES\"",
        )
    } else {
        (
            "\"text\"",
            d.pick(&[
                "\"FP32\"",
                "\"bytes\"",
                "\"STRING\"",
                "\"INT64\"",
                "\"BYTES[]\"",
                "\"\"",
                "null",
                "0",
                "{}",
            ]),
        )
    };
    plain(format!(
        "{{\"inputs\": [{{\"name\": {name}, \"datatype\": {datatype}, \"shape\": [1], \"data\": [{string}]}}]}}"
    ))
}

fn elements(d: &mut Dice) -> Body {
    let data = d.pick(&[
        "[1]",
        "[null]",
        "[true]",
        "[1.5]",
        "[{}]",
        "[{\"b64\": \"YQ==\"}]",
        "\"a\"",
        "{\"0\": \"a\"}",
        "1",
        "true",
        "[[[\"a\"]]]",
        "[[1]]",
        "[[null]]",
        "[[{}]]",
    ]);
    plain(request(&input("[1]", &format!(", \"data\": {data}")), ""))
}

fn fields(d: &mut Dice) -> Body {
    let word = format!("x{}", d.token());
    let one = input("[1]", ", \"data\": [\"a\"]");
    plain(match d.below(12) {
        0 => "{}".to_owned(),
        1 => "{\"inputs\": []}".to_owned(),
        2 => format!("{{\"inputs\": [{one}, {one}]}}"),
        3 => format!("{{\"inputs\": [{one}], \"inputs\": [{one}]}}"),
        4 => request(&one, &format!(", \"{word}\": 1")),
        5 => request(&input("[1]", &format!(", \"data\": [\"a\"], \"{word}\": null")), ""),
        6 => request(&input("[1]", ", \"data\": [\"a\"], \"data\": [\"b\"]"), ""),
        7 => request(&input("[1]", ""), ""),
        8 => "{\"inputs\": [{\"name\": \"text\", \"shape\": [1], \"data\": [\"a\"]}]}".to_owned(),
        9 => request(&one, ", \"id\": 7"),
        10 => request(&one, &format!(", \"id\": \"{}\"", "i".repeat(d.between(129, 3000)))),
        _ => format!("{{\"text\": \"{word}\"}}"),
    })
}

fn lists(d: &mut Dice) -> Body {
    let string = d.string();
    plain(match d.below(5) {
        0 => format!("[null, null, [{}], null]", input("[1]", ", \"data\": [\"a\"]")),
        1 => format!("{{\"inputs\": [[\"text\", [1], \"BYTES\", null, [{string}]]]}}"),
        2 => request(&input("[1]", ", \"data\": [\"a\"], \"parameters\": []"), ""),
        3 => request(
            &input("[1]", ", \"data\": [\"a\"]"),
            ", \"outputs\": [[\"label\", null]]",
        ),
        _ => format!("{{\"inputs\": {{\"text\": [{string}]}}}}"),
    })
}

fn outputs(d: &mut Dice) -> Body {
    let word = d.token();
    let other = format!("[{{\"name\": \"{word}_\"}}]");
    let list = d.pick(&[
        "[{\"name\": \"\"}]",
        "[{\"name\": \"Label\"}]",
        "[{\"name\": \"label\"}, {\"name\": \"label\"}]",
        "[{}]",
        "[\"label\"]",
        "[null]",
        "{}",
        "\"label\"",
        "[{\"name\": \"label\", \"datatype\": \"BYTES\"}]",
        "[{\"name\": \"label\", \"parameters\": {\"binary_data\": 1}}]",
        "[{\"name\": \"label\", \"parameters\": {\"classification\": 2}}]",
        other.as_str(),
    ]);
    plain(request(
        &input("[1]", ", \"data\": [\"a\"]"),
        &format!(", \"outputs\": {list}"),
    ))
}

fn parameters(d: &mut Dice) -> Body {
    let word = d.token();
    let region = format!("{{\"shared_memory_region\": \"/{word}\", \"shared_memory_byte_size\": 9}}");
    let parameters = d.pick(&[
        "{\"sequence_id\": 1}",
        "{\"sequence_start\": true}",
        "{\"sequence_end\": false}",
        "{\"shared_memory_offset\": 0}",
        "\"\"",
        "1",
        "true",
        "{\"binary_data_output\": \"true\"}",
        "{\"binary_data_output\": true, \"binary_data_output\": true}",
        "{\"binary_data_output\": 1}",
        region.as_str(),
    ]);
    plain(request(
        &input("[1]", ", \"data\": [\"a\"]"),
        &format!(", \"parameters\": {parameters}"),
    ))
}

fn deep(d: &mut Dice) -> Body {
    let depth = d.between(3, 100_000);
    let deep = "[".repeat(depth) + &"]".repeat(depth);
    plain(match d.below(4) {
        0 => request(&input("[1]", &format!(", \"data\": {deep}")), ""),
        1 => request(&input(&deep, ", \"data\": [\"a\"]"), ""),
        2 => format!("{{\"inputs\": {deep}}}"),
        _ => format!("{{\"id\": {deep}}}"),
    })
}

fn broken_elements(d: &mut Dice) -> Body {
    let (count, mut bytes) = good_elements(d);
    match d.below(5) {
        // Too few bytes, at any place but between two elements.
        0 => bytes.truncate(bytes.len() - 1 - d.below(element(b"").len() - 1)),
        // A length beyond the end.
        1 => bytes.extend_from_slice(&[0xff; 4]),
        2 => bytes.extend_from_slice(&(d.between(1, 1 << 31) as u32).to_le_bytes()),
        // High byte first.
        3 => bytes = [&9_u32.to_be_bytes()[..], b"a card or "].concat(),
        // No UTF-8.
        _ => bytes.extend(element(b"a\xff")),
    }
    binary(&format!("[{}]", count + 1), bytes.len(), &bytes)
}

fn sizes(d: &mut Dice) -> Body {
    let (count, bytes) = good_elements(d);
    let shape = format!("[{count}]");
    match d.below(5) {
        0 => binary(&shape, bytes.len() + d.between(1, 1 << 40), &bytes),
        1 => binary(&shape, d.below(bytes.len()), &bytes),
        2 => binary(&format!("[{}]", count + d.between(1, 1 << 40)), bytes.len(), &bytes),
        // Bytes of which the JSON says nothing.
        3 => {
            let json = request(&input("[1]", ", \"data\": [\"a\"]"), "");
            Body {
                header: Some(json.len().to_string()),
                bytes: [json.as_bytes(), &bytes].concat(),
            }
        }
        // Both kinds at once.
        _ => {
            let json = request(
                &input(
                    &shape,
                    &format!(
                        ", \"data\": [\"a\"], \"parameters\": {{\"binary_data_size\": {}}}",
                        bytes.len()
                    ),
                ),
                "",
            );
            Body {
                header: Some(json.len().to_string()),
                bytes: [json.as_bytes(), &bytes].concat(),
            }
        }
    }
}

fn header_lengths(d: &mut Dice) -> Body {
    let large = "9".repeat(d.between(8, 400));
    let beyond = d.between(100_000, 1_000_000).to_string();
    let header = d.pick(&[
        "",
        "-1",
        "+1",
        "1.0",
        "0x10",
        "1e2",
        "a",
        "12, 12",
        "12 12",
        "１２",
        large.as_str(),
        beyond.as_str(),
    ]);
    Body {
        header: Some(header.to_owned()),
        ..good_binary(d)
    }
}

fn header_too_small(d: &mut Dice) -> Body {
    let good = good_binary(d);
    let length: usize = good.header.as_ref().unwrap().parse().unwrap();
    Body {
        header: Some(d.below(length).to_string()),
        ..good
    }
}

fn cut_off(d: &mut Dice) -> Body {
    let good = good_json(d).bytes;
    let length = d.below(good.len());
    plain(&good[..length])
}

fn empty_texts(d: &mut Dice) -> Body {
    if d.coin() {
        let text = d.pick(&["", " ", "\\t\\n", "\\u3000"]);
        return plain(request(&input("[2]", &format!(", \"data\": [\"a\", \"{text}\"]")), ""));
    }
    if d.coin() {
        binary("[1]", 4, &element(b""))
    } else {
        plain(request(&input("[0]", ", \"data\": []"), ""))
    }
}

fn too_long(d: &mut Dice) -> Body {
    let text = "x".repeat(d.between(64 * 1024 + 1, 200_000));
    if d.coin() {
        let bytes = element(text.as_bytes());
        return binary("[1]", bytes.len(), &bytes);
    }
    plain(request(&input("[1, 1]", &format!(", \"data\": [[\"{text}\"]]")), ""))
}

fn too_many(d: &mut Dice) -> Body {
    let count = d.between(129, 5000);
    if d.coin() {
        let bytes = element(b"a").repeat(count);
        return binary(&format!("[{count}]"), bytes.len(), &bytes);
    }
    plain(request(
        &input(
            &format!("[{count}]"),
            &format!(", \"data\": [{}]", vec!["\"a\""; count].join(",")),
        ),
        "",
    ))
}
