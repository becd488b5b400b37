//! `/openapi.json` against what the server does, by a tool that makes its requests from the document.
//!
//! Needs `FLYWHEEL_PYTHON`, a Python with `tests/python/requirements.txt`; without it these tests fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "common/pod.rs"]
mod pod;

use std::path::Path;
use std::process::Command;

use pod::Pod;

#[test]
fn answers_are_what_the_document_says() {
    let python = std::env::var_os("FLYWHEEL_PYTHON").expect(
        "FLYWHEEL_PYTHON is not set: make a venv, pip install -r tests/python/requirements.txt, and set it to its python",
    );
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/schemathesis.toml");
    let config = config.canonicalize().unwrap();
    let pod = Pod::ready(256, 30_000, 2);
    // It keeps notes where it runs.
    let here = tempfile::tempdir().unwrap();
    let output = Command::new(python)
        .current_dir(here.path())
        .args(["-m", "schemathesis.cli", "--config-file"])
        .arg(config)
        .args(["run", &format!("http://{}/openapi.json", pod.data)])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let answered = pod.stats().answered;
    assert!(answered[0] >= 20, "hardly a question was good: {answered:?}");
}
