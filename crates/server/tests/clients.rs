//! The clients under `examples/clients`, as they are written.
//!
//! Needs `FLYWHEEL_PYTHON`, a Python with `tests/python/requirements.txt`; without it these tests fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "common/pod.rs"]
mod pod;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use pod::Pod;

fn client(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples/clients")
        .join(path)
}

/// What a client prints, its labels being those of the pod.
fn runs(program: impl AsRef<OsStr>, arguments: &[&OsStr]) -> String {
    let output = Command::new(program.as_ref()).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

fn python() -> std::ffi::OsString {
    std::env::var_os("FLYWHEEL_PYTHON").expect(
        "FLYWHEEL_PYTHON is not set: make a venv, pip install -r tests/python/requirements.txt, and set it to its python",
    )
}

#[test]
fn curl() {
    let pod = Pod::ready(8, 5000, 1);
    let text = runs(client("curl.sh"), &[format!("http://{}", pod.data).as_ref()]);
    assert_eq!(text.matches("\"long\"").count(), 7, "{text}");
    assert_eq!(pod.stats().answered, [3, 0, 0]);
}

#[test]
fn python_with_and_without_a_library() {
    let pod = Pod::ready(8, 5000, 1);
    let text = runs(
        python(),
        &[client("predict.py").as_ref(), format!("http://{}", pod.data).as_ref()],
    );
    assert_eq!(
        text.lines().filter(|line| line.starts_with("long 0.9")).count(),
        2,
        "{text}"
    );
    let text = runs(
        python(),
        &[client("open_inference.py").as_ref(), pod.data.to_string().as_ref()],
    );
    assert_eq!(
        text.lines().filter(|line| line.starts_with("long 0.9")).count(),
        2,
        "{text}"
    );
    assert_eq!(pod.stats().answered, [2, 0, 0]);
}

#[test]
fn rust() {
    let pod = Pod::ready(8, 5000, 1);
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("clients");
    let arguments = ["run", "-q", "--locked", "--manifest-path"].map(OsStr::new);
    let (manifest, url) = (client("rust/Cargo.toml"), format!("http://{}", pod.data));
    let rest: [&OsStr; 5] = [
        manifest.as_ref(),
        "--target-dir".as_ref(),
        target.as_ref(),
        "--".as_ref(),
        url.as_ref(),
    ];
    let text = runs(env!("CARGO"), &[&arguments[..], &rest[..]].concat());
    assert_eq!(
        text.lines().filter(|line| line.starts_with("long 0.9")).count(),
        2,
        "{text}"
    );
    assert_eq!(pod.stats().answered, [1, 0, 0]);
}
