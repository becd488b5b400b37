//! What a version says of texts, as its pods count it, for `make bench-flywheel`.
//!
//! `profile_texts <artifact> <texts.json>`: the file holds a list of texts. Prints a line of JSON for each: ids (of its tokens),
//! class, confidence, projections.
#![allow(clippy::print_stdout, reason = "the result is the output of this program")]

use std::fs;
use std::path::Path;

use flywheel_contract::artifact::{MANIFEST_FILE, Manifest};
use flywheel_contract::profile::most_probable;
use flywheel_contract::scalar::Precision;
use flywheel_data::{TextTokenizer, clean_text};
use flywheel_learn::Classifier;
use flywheel_learn::device::{self, TensorDevice};
use serde_json::json;

type Fault = Box<dyn std::error::Error>;

/// Texts in a batch; nothing depends on it.
const BATCH: usize = 32;

fn main() -> Result<(), Fault> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [artifact, texts] = arguments.as_slice() else {
        return Err("give artifact and texts; see the head of this program".into());
    };
    device::check_library()?;
    let folder = Path::new(artifact);
    let manifest: Manifest = serde_json::from_slice(&fs::read(folder.join(MANIFEST_FILE))?)?;
    let classifier = Classifier::load(folder, TensorDevice::Cpu, Precision::Float32)?;
    let vocabulary = usize::try_from(classifier.config().vocab_size)?;
    let tokenizer = TextTokenizer::load(folder, usize::try_from(manifest.max_length)?, vocabulary)?;
    let texts: Vec<String> = serde_json::from_slice(&fs::read(texts)?)?;
    for batch in texts.chunks(BATCH) {
        let rows: Vec<Vec<i64>> = batch
            .iter()
            .map(|text| Ok(tokenizer.encode(&clean_text(text))?.ids))
            .collect::<Result<_, Fault>>()?;
        for (ids, answer) in rows.iter().zip(classifier.predict_and_project(&rows)?) {
            let (class, confidence) = most_probable(&answer.probabilities).ok_or("no classes")?;
            let line = json!({"ids": ids, "class": class, "confidence": confidence, "projections": answer.projections});
            println!("{line}");
        }
    }
    Ok(())
}
