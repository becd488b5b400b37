//! Whole requests as they stand on the wire, each class with the rule of HTTP (RFC 9110, RFC 9112) or of ours that says
//! what must become of its cases.

use std::io::{Read, Write};

use super::bodies::BODY_BYTES;
use super::dice::{Dice, inserted};

/// What must come back.
#[derive(Clone, Debug)]
pub enum Expect {
    /// This status, and this word where it is not empty.
    Answer(u16, &'static str),
    /// One of these statuses: the rule leaves the choice.
    OneOf(&'static [u16]),
    /// The client has broken off: one of these statuses, or an end without an answer.
    OneOfOrClosed(&'static [u16]),
}

/// Bytes to send and what must come back for them.
pub struct Case {
    pub bytes: Vec<u8>,
    /// Whether the client ends its side behind them.
    pub shut: bool,
    /// Answers in order; none is a connection that ends without one.
    pub expect: Vec<Expect>,
    /// Whether the connection must end behind them, so that nothing more that was sent is ever taken for a request.
    pub ends: bool,
}

pub struct Class {
    pub name: &'static str,
    pub make: fn(&mut Dice) -> Case,
}

const OK: Expect = Expect::Answer(200, "");
const BAD: Expect = Expect::Answer(400, "");
const MALFORMED_REQUEST: Expect = Expect::Answer(400, "MalformedRequest");
const JSON: &str = "Content-Type: application/json\r\n";

pub const CLASSES: &[Class] = &[
    Class {
        name: "good heads",
        make: good_heads,
    },
    Class {
        name: "several requests at once",
        make: pipelined,
    },
    Class {
        name: "wrong content types",
        make: content_types,
    },
    Class {
        name: "content encodings",
        make: content_encodings,
    },
    Class {
        name: "gzip",
        make: gzip,
    },
    Class {
        name: "gzip that is none",
        make: bad_gzip,
    },
    Class {
        name: "gzip that is too large",
        make: gzip_bombs,
    },
    Class {
        name: "no length",
        make: no_length,
    },
    Class {
        name: "lengths that are none",
        make: bad_lengths,
    },
    Class {
        name: "lengths that contradict each other",
        make: two_lengths,
    },
    Class {
        name: "length larger than the body",
        make: length_too_large,
    },
    Class {
        name: "length smaller than the body",
        make: length_too_small,
    },
    Class {
        name: "bodies that are too large",
        make: too_large,
    },
    Class {
        name: "chunks of a few bytes",
        make: small_chunks,
    },
    Class {
        name: "chunks that are none",
        make: bad_chunks,
    },
    Class {
        name: "chunks that break off",
        make: chunks_break_off,
    },
    Class {
        name: "chunks without end",
        make: chunks_without_end,
    },
    Class {
        name: "smuggled behind length and chunks",
        make: length_and_chunks,
    },
    Class {
        name: "transfer encodings that are not chunked",
        make: transfer_encodings,
    },
    Class {
        name: "HTTP/1.0",
        make: http_1_0,
    },
    Class {
        name: "methods",
        make: methods,
    },
    Class {
        name: "paths",
        make: paths,
    },
    Class {
        name: "models and versions that are none",
        make: models,
    },
    Class {
        name: "long paths",
        make: long_paths,
    },
    Class {
        name: "request lines",
        make: request_lines,
    },
    Class {
        name: "header lines",
        make: header_lines,
    },
    Class {
        name: "heads that are too large",
        make: large_heads,
    },
    Class {
        name: "too many headers",
        make: many_headers,
    },
    Class {
        name: "no host or several",
        make: hosts,
    },
    Class {
        name: "request ids",
        make: request_ids,
    },
    Class {
        name: "request timeouts",
        make: request_timeouts,
    },
    Class {
        name: "request timeouts that are none",
        make: bad_timeouts,
    },
    Class {
        name: "upgrades and expectations",
        make: upgrades,
    },
    Class {
        name: "heads that break off",
        make: heads_break_off,
    },
    Class {
        name: "other protocols",
        make: other_protocols,
    },
];

fn case(bytes: impl Into<Vec<u8>>, expect: Expect) -> Case {
    Case {
        bytes: bytes.into(),
        shut: false,
        expect: vec![expect],
        ends: false,
    }
}

/// A request that leaves the connection unusable.
fn last(bytes: impl Into<Vec<u8>>, expect: Expect) -> Case {
    Case {
        ends: true,
        ..case(bytes, expect)
    }
}

fn post(headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "POST /predict HTTP/1.1\r\nHost: a\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn chunked(headers: &str, chunks: &[u8]) -> Vec<u8> {
    let head = format!("POST /predict HTTP/1.1\r\nHost: a\r\n{JSON}{headers}Transfer-Encoding: chunked\r\n\r\n");
    [head.as_bytes(), chunks].concat()
}

fn in_chunks(body: &[u8], d: &mut Dice) -> Vec<u8> {
    let mut chunks = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let (chunk, others) = rest.split_at(d.between(1, 7).min(rest.len()));
        chunks.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        chunks.extend_from_slice(chunk);
        chunks.extend_from_slice(b"\r\n");
        rest = others;
    }
    chunks.extend_from_slice(b"0\r\n\r\n");
    chunks
}

fn good_heads(d: &mut Dice) -> Case {
    let kind = d.pick(&[
        "Content-Type: application/json\r\n",
        "content-type:application/json\r\n",
        "CONTENT-TYPE: \t Application/JSON ; charset=utf-8 \r\n",
        "Content-Type: application/json\r\nContent-Encoding: identity\r\n",
        "Content-Type: application/json\r\nAccept: text/html\r\nAccept-Encoding: gzip, br\r\n",
        "Content-Type: application/json\r\nCookie: a=\"b\\\"\r\nX-Bytes: \u{e9}\r\n",
        "Content-Type: application/json\r\nRange: bytes=0-1\r\nIf-None-Match: *\r\nIf-Modified-Since: never\r\n",
        "Content-Type: application/json\r\nX-Forwarded-For: 127.0.0.1\r\nForwarded: for=unknown;host=\"x\"\r\nX-HTTP-Method-Override: DELETE\r\n",
        "Content-Type: application/json\r\nAuthorization: Basic AAAA\r\nConnection: keep-alive\r\nKeep-Alive: timeout=999999\r\n",
    ]);
    case(post(kind, d.good().as_bytes()), OK)
}

fn pipelined(d: &mut Dice) -> Case {
    let count = d.between(2, 6);
    let bytes: Vec<u8> = (0..count).flat_map(|_| post(JSON, d.good().as_bytes())).collect();
    Case {
        bytes,
        shut: false,
        expect: vec![OK; count],
        ends: false,
    }
}

/// Anything but exactly one `application/json` is 415.
fn content_types(d: &mut Dice) -> Case {
    let token = format!("Content-Type: application/{}-json\r\n", d.token());
    let kind = d.pick(&[
        "",
        "Content-Type:\r\n",
        "Content-Type: text/plain\r\n",
        "Content-Type: text/json\r\n",
        "Content-Type: json\r\n",
        "Content-Type: application/jsonp\r\n",
        "Content-Type: application/json, text/plain\r\n",
        "Content-Type: application/ld+json\r\n",
        "Content-Type: application/x-www-form-urlencoded\r\n",
        "Content-Type: multipart/form-data; boundary=a\r\n",
        "Content-Type: application/octet-stream\r\n",
        "Content-Type: */*\r\n",
        "Content-Type: ;application/json\r\n",
        "Content-Type: \"application/json\"\r\n",
        "Content-Type: application/json\r\nContent-Type: text/plain\r\n",
        "Content-Type: application/json\r\nContent-Type: application/json\r\n",
        "Content-Type: \u{e9}\r\n",
        token.as_str(),
    ]);
    case(
        post(kind, d.good().as_bytes()),
        Expect::Answer(415, "UnsupportedMediaType"),
    )
}

fn content_encodings(d: &mut Dice) -> Case {
    let coding = d.pick(&[
        "br",
        "zstd",
        "compress",
        "deflate",
        "x-gzip2",
        "identity, br",
        "aes128gcm",
        "",
        "\u{e9}",
        "gzip;q=1",
    ]);
    let headers = format!("{JSON}Content-Encoding: {coding}\r\n");
    case(
        post(&headers, d.good().as_bytes()),
        Expect::Answer(415, "UnsupportedMediaType"),
    )
}

fn gzipped(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn gzip(d: &mut Dice) -> Case {
    let coding = d.pick(&["gzip", "GZIP"]);
    let mut body = gzipped(d.good().as_bytes());
    if d.coin() {
        // Several members are one body (RFC 1952, 2.2).
        body.extend(gzipped(b" \n"));
    }
    case(post(&format!("{JSON}Content-Encoding: {coding}\r\n"), &body), OK)
}

fn bad_gzip(d: &mut Dice) -> Case {
    let good = gzipped(d.good().as_bytes());
    let body = match d.below(4) {
        0 => d.good().into_bytes(),
        1 => good[..d.between(1, good.len())].to_vec(),
        // Its checksum.
        2 => {
            let mut body = good;
            let at = body.len() - 1 - d.below(8);
            body[at] ^= 0x55;
            body
        }
        _ => [&good[..], b"behind it"].concat(),
    };
    case(
        post(&format!("{JSON}Content-Encoding: gzip\r\n"), &body),
        MALFORMED_REQUEST,
    )
}

/// The bound is on what a body holds.
fn gzip_bombs(d: &mut Dice) -> Case {
    let size = BODY_BYTES + 1 + d.below(8 * BODY_BYTES);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    // The client has no memory for it either.
    std::io::copy(&mut std::io::repeat(b' ').take(size as u64), &mut encoder).unwrap();
    let body = encoder.finish().unwrap();
    case(
        post(&format!("{JSON}Content-Encoding: gzip\r\n"), &body),
        Expect::Answer(413, "BodyTooLarge"),
    )
}

fn no_length(d: &mut Dice) -> Case {
    let token = d.token();
    let bytes = format!("POST /predict HTTP/1.1\r\nHost: a\r\n{JSON}X-A: {token}\r\n\r\n");
    case(bytes, Expect::Answer(411, "LengthRequired"))
}

fn with_length(headers: &str, body: &str) -> Vec<u8> {
    format!("POST /predict HTTP/1.1\r\nHost: a\r\n{JSON}{headers}\r\n{body}").into_bytes()
}

/// RFC 9112, 6.3: a length that is no number is unrecoverable; 9110, 8.6: overflow must be expected.
fn bad_lengths(d: &mut Dice) -> Case {
    let large = format!("{}{}", d.between(2, 10), "0".repeat(d.between(19, 400)));
    let length = d.pick(&[
        "-1",
        "+12",
        "0x10",
        "1e3",
        "1.0",
        "",
        "a",
        "12;12",
        "12 12",
        "1_2",
        "１２",
        "NaN",
        "12, 13",
        large.as_str(),
    ]);
    let bytes = with_length(&format!("Content-Length: {length}\r\n"), "{\"text\":\"a\"}");
    last(bytes, Expect::OneOf(&[400, 413, 431]))
}

fn two_lengths(d: &mut Dice) -> Case {
    let (a, b) = (d.between(0, 100), d.between(100, 200));
    let (a, b) = if d.coin() { (a, b) } else { (b, a) };
    last(
        with_length(
            &format!("Content-Length: {a}\r\nContent-Length: {b}\r\n"),
            "{\"text\":\"a\"}",
        ),
        BAD,
    )
}

fn length_too_large(d: &mut Dice) -> Case {
    let body = d.good();
    let length = body.len() + d.between(1, 500_000);
    Case {
        shut: true,
        ..last(
            with_length(&format!("Content-Length: {length}\r\n"), &body),
            Expect::OneOfOrClosed(&[400]),
        )
    }
}

/// The body is what the length says; what is behind it is no request.
fn length_too_small(d: &mut Dice) -> Case {
    let body = format!("{{\"text\":\"{}\"}}", d.token());
    let length = d.below(body.len());
    let bytes = with_length(&format!("Content-Length: {length}\r\n"), &format!("{body}\r\n\r\n"));
    Case {
        expect: vec![Expect::Answer(400, "MalformedJson"), BAD],
        ..last(bytes, BAD)
    }
}

fn too_large(d: &mut Dice) -> Case {
    let large = Expect::Answer(413, "BodyTooLarge");
    let length = BODY_BYTES + 1 + d.below(BODY_BYTES);
    match d.below(4) {
        0 => case(post(JSON, &vec![b' '; length]), large),
        // Announced and never sent; the client would wait.
        1 => last(
            with_length(&format!("Content-Length: {length}\r\nExpect: 100-continue\r\n"), ""),
            large,
        ),
        2 => {
            let length = d.roll() >> d.between(2, 30);
            let length = length.max(BODY_BYTES as u64 + 1);
            Case {
                shut: true,
                ..last(
                    with_length(&format!("Content-Length: {length}\r\n"), "{\"text\":\"a"),
                    large,
                )
            }
        }
        _ => {
            let mut chunks = Vec::new();
            for _ in 0..=BODY_BYTES / 16_384 {
                chunks.extend_from_slice(b"4000\r\n");
                chunks.extend_from_slice(&[b' '; 16_384]);
                chunks.extend_from_slice(b"\r\n");
            }
            chunks.extend_from_slice(b"0\r\n\r\n");
            case(chunked("", &chunks), large)
        }
    }
}

fn small_chunks(d: &mut Dice) -> Case {
    match d.below(8) {
        0 => case(chunked("", b"0\r\n\r\n"), Expect::Answer(400, "MalformedJson")),
        1 => {
            let bytes = in_chunks(d.good().as_bytes(), d);
            let end = bytes.len() - 2;
            case(
                chunked(
                    "Trailer: x-a\r\n",
                    &inserted(&bytes, end, b"X-A: b\r\nContent-Length: 3\r\n"),
                ),
                OK,
            )
        }
        2 => case(
            chunked(
                "",
                &in_chunks(format!("{{\"text\":\"{}\"}}", "x".repeat(9000)).as_bytes(), d),
            ),
            OK,
        ),
        _ => {
            let good = d.good();
            case(chunked("", &in_chunks(good.as_bytes(), d)), OK)
        }
    }
}

fn bad_chunks(d: &mut Dice) -> Case {
    let digits = "f".repeat(d.between(17, 400));
    let extension = format!(
        "c;{}\r\n{{\"text\":\"a\"}}\r\n0\r\n\r\n",
        "x".repeat(d.between(40_000, 60_000))
    );
    let chunks = d.pick(&[
        "x\r\n{\"text\":\"a\"}\r\n0\r\n\r\n",
        "-c\r\n{\"text\":\"a\"}\r\n0\r\n\r\n",
        "0xc\r\n{\"text\":\"a\"}\r\n0\r\n\r\n",
        "c\r\n{\"text\":\"a\"}0\r\n\r\n",
        "b\r\n{\"text\":\"a\"}\r\n0\r\n\r\n",
        "\r\n{\"text\":\"a\"}\r\n0\r\n\r\n",
        "c\n{\"text\":\"a\"}\r\n0\r\n\r\n",
        ";a=b\r\n{\"text\":\"a\"}\r\n0\r\n\r\n",
        "ffffffffffffffff1\r\n{\"text\":\"a\"}",
        digits.as_str(),
        extension.as_str(),
    ]);
    last(chunked("", chunks.as_bytes()), MALFORMED_REQUEST)
}

fn chunks_break_off(d: &mut Dice) -> Case {
    let good = d.good();
    let chunks = in_chunks(good.as_bytes(), d);
    let length = d.below(chunks.len() - 5);
    Case {
        shut: true,
        ..last(chunked("", &chunks[..length]), Expect::OneOfOrClosed(&[400]))
    }
}

/// Trailers without an end are no way around the bound of a head.
fn chunks_without_end(d: &mut Dice) -> Case {
    let mut chunks = b"c\r\n{\"text\":\"a\"}\r\n0\r\n".to_vec();
    let name = d.token();
    while chunks.len() < 200_000 {
        chunks.extend_from_slice(format!("{name}: {}\r\n", "y".repeat(900)).as_bytes());
    }
    last(chunked("", &chunks), MALFORMED_REQUEST)
}

/// RFC 9112, 6.3: chunks win over a length, and the connection must end behind such a request.
fn length_and_chunks(d: &mut Dice) -> Case {
    let smuggled = format!("GET /readyz HTTP/1.1\r\nHost: a\r\nX-A: {}\r\n\r\n", d.token());
    let (body, expect) = if d.coin() {
        (format!("0\r\n\r\n{smuggled}"), Expect::Answer(400, "MalformedJson"))
    } else {
        (format!("c\r\n{{\"text\":\"a\"}}\r\n0\r\n\r\n{smuggled}"), OK)
    };
    let length = format!(
        "Content-Length: {}\r\n",
        if d.coin() { body.len() } else { d.below(body.len()) }
    );
    let coding = d.pick(&["Transfer-Encoding: chunked\r\n", "transfer-encoding:\tCHUNKED \r\n"]);
    let headers = if d.coin() {
        format!("{length}{coding}")
    } else {
        format!("{coding}{length}")
    };
    last(with_length(&headers, &body), expect)
}

/// Every coding but a single `chunked` is refused, as are the spellings that programs read differently.
fn transfer_encodings(d: &mut Dice) -> Case {
    let coding = d.pick(&[
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "Transfer-Encoding\t: chunked\r\n",
        "X-A: b\rTransfer-Encoding: chunked\r\n",
    ]);
    let smuggled = format!("GET /readyz HTTP/1.1\r\nHost: a\r\nX-A: {}\r\n\r\n", d.token());
    last(
        with_length(coding, &format!("c\r\n{{\"text\":\"a\"}}\r\n0\r\n\r\n{smuggled}")),
        BAD,
    )
}

fn http_1_0(d: &mut Dice) -> Case {
    let body = d.good();
    let head = "POST /predict HTTP/1.0\r\nContent-Type: application/json\r\n";
    match d.below(3) {
        // No host is needed, and the connection ends.
        0 => last(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()), OK),
        // Chunks came with HTTP/1.1.
        1 => last(
            format!("{head}Transfer-Encoding: chunked\r\n\r\nc\r\n{{\"text\":\"a\"}}\r\n0\r\n\r\n"),
            BAD,
        ),
        _ => last(format!("{head}\r\n"), Expect::Answer(411, "LengthRequired")),
    }
}

fn methods(d: &mut Dice) -> Case {
    let token = d.token().to_uppercase();
    let (method, path) = if d.coin() {
        (
            d.pick(&[
                "GET",
                "PUT",
                "DELETE",
                "PATCH",
                "OPTIONS",
                "TRACE",
                "post",
                "Post",
                "PROPFIND",
                "_",
                "POSTX",
                token.as_str(),
            ]),
            "/predict",
        )
    } else {
        (
            d.pick(&[
                "POST",
                "PUT",
                "DELETE",
                "PATCH",
                "OPTIONS",
                "get",
                "M-SEARCH",
                token.as_str(),
            ]),
            d.pick(&["/readyz", "/openapi.json"]),
        )
    };
    let body = d.good();
    let bytes = format!(
        "{method} {path} HTTP/1.1\r\nHost: a\r\n{JSON}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    case(bytes, Expect::Answer(405, "MethodNotAllowed"))
}

/// Nothing is decoded or simplified: a path is ours to the byte, or nothing is there. A query says nothing.
fn paths(d: &mut Dice) -> Case {
    if d.below(6) == 0 {
        let query = d.pick(&["?", "?a=b", "?text=a", "?%00", "??", "?/../..", "?a=%ff&a"]);
        let body = d.good();
        let target = d.pick(&["/predict", "http://elsewhere/predict"]);
        let bytes = format!(
            "POST {target}{query} HTTP/1.1\r\nHost: a\r\n{JSON}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        return case(bytes, OK);
    }
    let token = d.token();
    let other = format!("/{token}-");
    let below = format!("/predict/{token}");
    let path = d.pick(&[
        "/",
        "//",
        "/predict/",
        "//predict",
        "/./predict",
        "/a/../predict",
        "/predict/..",
        "/Predict",
        "/PREDICT",
        "/predict%00",
        "/%70redict",
        "/predict;a=b",
        "/predict%2f",
        "/%2fpredict",
        "/predict%20",
        "/..%2f..%2fetc/passwd",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/",
        "/metrics",
        "/stats",
        "/livez",
        "/admin",
        "/models",
        "/v2x",
        "/V2",
        "/.git/config",
        "/actuator/env",
        "/cgi-bin/",
        "http://169.254.169.254/latest/meta-data/",
        "http://metadata.google.internal/",
        "*",
        "/predict\\",
        "/\\predict",
        "/%",
        "/%zz",
        "/ⓟredict",
        other.as_str(),
        below.as_str(),
    ]);
    let method = d.pick(&["POST", "GET"]);
    let body = d.good();
    let bytes = format!(
        "{method} {path} HTTP/1.1\r\nHost: a\r\n{JSON}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // A target that is no URI at all may be refused as such; then the connection ends.
    if path.is_ascii() && !path.contains('\\') && path != "*" {
        case(bytes, Expect::Answer(404, "NotFound"))
    } else {
        case(bytes, Expect::OneOf(&[400, 404]))
    }
}

/// Names are those of the objects, and nothing else leads to them.
fn models(d: &mut Dice) -> Case {
    let (word, long) = (d.token(), "m".repeat(d.between(1000, 20_000)));
    let other = format!("intent-{word}");
    let name = d.pick(&[
        "../intent",
        "..%2fintent",
        "%2e%2e",
        ".",
        "..",
        "Intent",
        "intent%00",
        "intent%20",
        "intent%ff",
        "intent;v=1",
        "%",
        "team%2fintent",
        "team.intent",
        other.as_str(),
        long.as_str(),
    ]);
    let target = match d.below(4) {
        0 => format!("/v2/models/{name}/infer"),
        1 => format!("/v2/models/{name}/versions/intent-v7/infer"),
        2 => format!("/v2/models/intent/versions/{name}/infer"),
        _ => format!("/v2/models/intent/{name}/infer"),
    };
    let body = "{\"inputs\": []}";
    let bytes = format!(
        "POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    case(bytes, Expect::Answer(404, "NotFound"))
}

fn long_paths(d: &mut Dice) -> Case {
    let length = d.between(8_000, 60_000);
    let path = d.pick(&["/a", "/../", "/predict/", "/%41", "/predict?"]).to_owned();
    let found = path.ends_with('?');
    let path = format!("{path}{}", "x".repeat(length));
    let bytes = format!("POST {path} HTTP/1.1\r\nHost: a\r\n{JSON}Content-Length: 12\r\n\r\n{{\"text\":\"a\"}}");
    case(bytes, if found { OK } else { Expect::OneOf(&[404, 414]) })
}

fn request_lines(d: &mut Dice) -> Case {
    let token = d.token();
    let line = d.pick(&[
        "POST /predict",
        "POST /predict HTTP/1.2",
        "POST /predict HTTP/2.0",
        "POST /predict HTTP/0.9",
        "POST /predict http/1.1",
        "POST /predict HTTP/1.1 x",
        "POST /predict HTTPS/1.1",
        "POST /predict HTTP/01.1",
        "POST  /predict HTTP/1.1",
        "POST /pre dict HTTP/1.1",
        "POST /predict\tHTTP/1.1",
        "POST /predict\0 HTTP/1.1",
        "POST /predict\x7f HTTP/1.1",
        "POST\t/predict HTTP/1.1",
        " POST /predict HTTP/1.1",
        "PO\0ST /predict HTTP/1.1",
        "(POST) /predict HTTP/1.1",
        "P{}ST /predict HTTP/1.1",
        "\u{e9} /predict HTTP/1.1",
        "{\"text\": \"a\"}",
        ": /predict HTTP/1.1",
        "POST",
    ]);
    last(
        format!("{line}\r\nHost: a\r\nX-A: {token}\r\n{JSON}Content-Length: 12\r\n\r\n{{\"text\":\"a\"}}"),
        BAD,
    )
}

fn header_lines(d: &mut Dice) -> Case {
    let token = d.token();
    let line = d.pick(&[
        "X A: b",
        "X-A : b",
        " X-A: b",
        "X-A",
        ": b",
        "X-A: b\0c",
        "X-A: b\x07c",
        "X-A: b\x7fc",
        "X-A: b\r c",
        "X\0A: b",
        "X-\u{e9}: b",
        "X(A): b",
        "X[A]: b",
        "X,A: b",
        "X;A: b",
        "X@A: b",
        "X\"A\": b",
        "X\\A: b",
        "X/A: b",
        "X<A>: b",
        "X=A: b",
        "X?A: b",
        "{}: b",
        "X-A: b\r\n folded",
        "X-A: b\r\n\tfolded",
        "\tX-A: b",
    ]);
    last(
        format!(
            "POST /predict HTTP/1.1\r\nHost: a\r\n{line}\r\nX-B: {token}\r\n{JSON}Content-Length: 12\r\n\r\n{{\"text\":\"a\"}}"
        ),
        BAD,
    )
}

fn large_heads(d: &mut Dice) -> Case {
    let filler = "x".repeat(d.between(66_000, 90_000));
    let headers = match d.below(3) {
        0 => format!("X-A: {filler}\r\n"),
        1 => format!("{filler}: a\r\n"),
        _ => format!("Cookie: {}\r\n", filler.replace("xx", "a;")),
    };
    last(
        post(&format!("{JSON}{headers}"), b"{\"text\":\"a\"}"),
        Expect::Answer(431, ""),
    )
}

fn many_headers(d: &mut Dice) -> Case {
    let count = d.between(100, 3000);
    let name = d.token();
    let headers: String = (0..count).map(|i| format!("{name}{}: a\r\n", i % 7)).collect();
    last(
        post(&format!("{JSON}{headers}"), b"{\"text\":\"a\"}"),
        Expect::Answer(431, ""),
    )
}

/// RFC 9112, 3.2: 400 without exactly one host.
fn hosts(d: &mut Dice) -> Case {
    let other = format!("Host: a\r\nHost: {}\r\n", d.token());
    let hosts = d.pick(&["", "Host: a\r\nHost: a\r\n", other.as_str()]);
    let body = d.good();
    let bytes = format!(
        "POST /predict HTTP/1.1\r\n{hosts}{JSON}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    last(bytes, MALFORMED_REQUEST)
}

/// What cannot be an id is passed over, and never repeated.
fn request_ids(d: &mut Dice) -> Case {
    let long = "x".repeat(d.between(129, 4000));
    let id = d.pick(&[
        "",
        "a b",
        "\u{e9}",
        "a\tb",
        "%0d%0aX-A: b",
        "<script>",
        "../..",
        "{{7*7}}",
        "\u{2028}",
        long.as_str(),
    ]);
    case(post(&format!("{JSON}X-Request-Id: {id}\r\n"), d.good().as_bytes()), OK)
}

/// Longer than the service's is as good as none.
fn request_timeouts(d: &mut Dice) -> Case {
    let time = format!("{}.{}", d.between(30, 1_000_000), d.below(1_000_000_000));
    case(
        post(&format!("{JSON}X-Request-Timeout: {time}\r\n"), d.good().as_bytes()),
        OK,
    )
}

fn bad_timeouts(d: &mut Dice) -> Case {
    let digits = "1".repeat(d.between(7, 400));
    let twice = format!("{}\r\nX-Request-Timeout: 5", d.between(1, 9));
    let time = d.pick(&[
        "",
        "0",
        "0.0",
        "-1",
        "+1",
        "1e3",
        ".5",
        "5.",
        "1.2.3",
        "1s",
        "250ms",
        "1,5",
        "0x1",
        "NaN",
        "Infinity",
        "soon",
        "\u{e9}",
        "１",
        "1 2",
        digits.as_str(),
        twice.as_str(),
    ]);
    case(
        post(&format!("{JSON}X-Request-Timeout: {time}\r\n"), d.good().as_bytes()),
        MALFORMED_REQUEST,
    )
}

fn upgrades(d: &mut Dice) -> Case {
    let headers = d.pick(&[
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
        "Upgrade: TLS/1.2\r\nConnection: upgrade\r\n",
        "Expect: 100-continue\r\n",
        "Expect: 100-Continue\r\n",
        "Connection: content-length\r\n",
        "TE: trailers, gzip\r\nConnection: TE\r\n",
        "Proxy-Connection: keep-alive\r\nProxy: http://127.0.0.1\r\n",
        "Max-Forwards: 0\r\n",
    ]);
    case(post(&format!("{JSON}{headers}"), d.good().as_bytes()), OK)
}

fn heads_break_off(d: &mut Dice) -> Case {
    let whole = post(JSON, b"");
    let length = d.below(whole.len());
    Case {
        bytes: whole[..length].to_vec(),
        shut: true,
        expect: Vec::new(),
        ends: true,
    }
}

/// Bytes of other protocols: 400 or an end, never an answer to them.
fn other_protocols(d: &mut Dice) -> Case {
    let bytes: [&[u8]; 9] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\x20\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        b"\x00\x00\x00\x2a\xffSMB\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n\r\n",
        b"EHLO a\r\n\r\n",
        b"\x05\x01\x00\r\n\r\n",
        b"GET / RTSP/1.0\r\n\r\n",
        b"OPTIONS sip:a SIP/2.0\r\n\r\n",
        b"\x80\x2e\x01\x00\x02\r\n\r\n",
    ];
    let mut bytes = d.pick(&bytes).to_vec();
    bytes.extend((0..d.below(60)).map(|_| d.roll() as u8));
    Case {
        shut: true,
        ..last(bytes, Expect::OneOfOrClosed(&[400]))
    }
}
