//! What a checkpoint holds: the tensors and numbers of a [`State`], as files in a folder.
//!
//! Weights, both moments and the best epoch's weights are safetensors files of f32; all else is `state.json`. Where the
//! folder is kept, and that its bytes are those that were written, is not decided here; but whoever wrote them, nothing is
//! believed before it is checked: names, shapes and types of every tensor, and that all numbers belong to one place of
//! this training, before the first tensor is made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::artifact::WEIGHTS_FILE;
use flywheel_contract::hyperparameters::Hyperparameters;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use crate::error::{Error, Result};
use crate::network::Parameters;
use crate::optim::Moments;
use crate::settings::Settings;
use crate::train::{Cursor, State, steps_per_epoch};
use crate::weights::{self, WeightFile};

/// Numbers of a state.
const STATE_FILE: &str = "state.json";
/// First moments.
const EXP_AVG_FILE: &str = "exp_avg.safetensors";
/// Second moments.
const EXP_AVG_SQ_FILE: &str = "exp_avg_sq.safetensors";
/// Weights of the best epoch; absent before one is done.
const BEST_FILE: &str = "best.safetensors";
/// Most bytes of `state.json`: a thousand epochs have some 300 KB.
const STATE_MAX_BYTES: u64 = 4 * 1024 * 1024;

/// What a checkpoint and the training that goes on from it must agree on, beside the shapes of the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Terms {
    /// How the model is trained.
    pub hyperparameters: Hyperparameters,
    /// Size of the training set.
    pub train_rows: usize,
    /// Size of the validation set.
    pub validation_rows: usize,
}

impl Terms {
    /// What differs from saved terms, as a sentence; none where nothing does.
    fn changed_since(&self, saved: &Self) -> Result<Option<String>> {
        let fields = |terms: &Self| match serde_json::to_value(&terms.hyperparameters) {
            Ok(serde_json::Value::Object(fields)) => Ok(fields),
            Ok(other) => Err(Error::State(format!("{other} are no hyperparameters"))),
            Err(e) => Err(Error::State(format!("hyperparameters cannot be compared: {e}"))),
        };
        let (was, now) = (fields(saved)?, fields(self)?);
        let shown = |value: Option<&serde_json::Value>| match value {
            None => "not set".to_owned(),
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        let names: BTreeSet<&String> = was.keys().chain(now.keys()).collect();
        let mut changes: Vec<String> = names
            .into_iter()
            .filter(|name| was.get(*name) != now.get(*name))
            .map(|name| {
                format!(
                    "{name} was {} and is {} now",
                    shown(was.get(name)),
                    shown(now.get(name))
                )
            })
            .collect();
        for (set, was, now) in [
            ("training", saved.train_rows, self.train_rows),
            ("validation", saved.validation_rows, self.validation_rows),
        ] {
            if was != now {
                changes.push(format!("the {set} set had {was} rows and has {now} now"));
            }
        }
        Ok((!changes.is_empty()).then(|| changes.join(", ")))
    }
}

/// `state.json`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Numbers<C> {
    schema_version: u32,
    terms: Terms,
    cursor: C,
}

/// Writes a state into an existing folder; returns the names of the files.
///
/// # Errors
/// [`Error::File`], [`Error::Torch`], and [`Error::State`] for numbers that JSON does not hold, such as an infinite loss.
pub fn write<R: Serialize + DeserializeOwned + PartialEq>(
    folder: &Path,
    terms: &Terms,
    state: &State<R>,
) -> Result<Vec<String>> {
    let numbers = Numbers {
        schema_version: SCHEMA_VERSION,
        terms: terms.clone(),
        cursor: &state.cursor,
    };
    let unwritable = |e: serde_json::Error| Error::State(format!("{STATE_FILE} cannot be written: {e}"));
    let text = serde_json::to_vec_pretty(&numbers).map_err(unwritable)?;
    let back: Numbers<Cursor<R>> = serde_json::from_slice(&text).map_err(unwritable)?;
    if back.cursor != state.cursor {
        return Err(Error::State(format!("{STATE_FILE} does not hold its numbers exactly")));
    }
    let mut tensors = vec![
        (WEIGHTS_FILE, &state.weights),
        (EXP_AVG_FILE, &state.moments.exp_avg),
        (EXP_AVG_SQ_FILE, &state.moments.exp_avg_sq),
    ];
    tensors.extend(state.best.as_ref().map(|best| (BEST_FILE, best)));
    let mut files = Vec::new();
    for (name, tensors) in tensors {
        weights::write(&folder.join(name), tensors)?;
        files.push(name.to_owned());
    }
    let path = folder.join(STATE_FILE);
    std::fs::write(&path, text).map_err(Error::file("write", &path))?;
    files.push(STATE_FILE.to_owned());
    Ok(files)
}

/// A checkpoint whose every header and number was checked; its tensors are not read yet.
#[derive(Debug)]
pub struct Saved<R> {
    cursor: Cursor<R>,
    weights: WeightFile,
    exp_avg: WeightFile,
    exp_avg_sq: WeightFile,
    best: Option<WeightFile>,
}

/// Opens a checkpoint and checks all of it but the values of its tensors. `shapes`: every weight of the network
/// ([`crate::network::shapes`]). The files are held open, so the folder may be removed.
///
/// # Errors
/// [`Error::OtherTraining`] for what is of other terms or of a network of other shapes, [`Error::State`] for what is of
/// another release or contradicts itself, [`Error::File`], and the errors of [`WeightFile::open`].
pub fn open<R: DeserializeOwned>(
    folder: &Path,
    terms: &Terms,
    shapes: &BTreeMap<String, Vec<i64>>,
) -> Result<Saved<R>> {
    let path = folder.join(STATE_FILE);
    let mut text = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(STATE_MAX_BYTES + 1).read_to_end(&mut text))
        .map_err(Error::file("read", &path))?;
    let unreadable = |why: String| Error::State(format!("{STATE_FILE} {why}"));
    if text.len() as u64 > STATE_MAX_BYTES {
        return Err(unreadable(format!("has more than {STATE_MAX_BYTES} bytes")));
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        schema_version: u32,
    }
    let no_state = |e: serde_json::Error| unreadable(format!("cannot be read: {e}"));
    let version: Version = serde_json::from_slice(&text).map_err(no_state)?;
    if version.schema_version != SCHEMA_VERSION {
        return Err(unreadable(format!(
            "has schemaVersion {}, {SCHEMA_VERSION} is understood here",
            version.schema_version
        )));
    }
    let numbers: Numbers<Cursor<R>> = serde_json::from_slice(&text).map_err(no_state)?;
    if let Some(changes) = terms.changed_since(&numbers.terms)? {
        return Err(Error::OtherTraining(changes));
    }
    check(&numbers.cursor, terms)?;
    let file = |name: &str| {
        let file = WeightFile::open(&folder.join(name))?;
        check_tensors(&file, name, shapes)?;
        Ok::<_, Error>(file)
    };
    Ok(Saved {
        weights: file(WEIGHTS_FILE)?,
        exp_avg: file(EXP_AVG_FILE)?,
        exp_avg_sq: file(EXP_AVG_SQ_FILE)?,
        best: numbers.cursor.best_epoch.map(|_| file(BEST_FILE)).transpose()?,
        cursor: numbers.cursor,
    })
}

/// Whether a cursor is a place of this training.
fn check<R>(cursor: &Cursor<R>, terms: &Terms) -> Result<()> {
    let settings = Settings::new(&terms.hyperparameters)?;
    let per_epoch = steps_per_epoch(terms.train_rows, &settings);
    let done = u64::from(cursor.epoch.saturating_sub(1));
    let over = done == u64::from(settings.epochs);
    let epochs = cursor.epochs.len() as u64;
    let sensible = cursor.epoch >= 1
        && done <= u64::from(settings.epochs)
        && cursor.batch <= if over { 0 } else { per_epoch }
        && cursor.step == done * per_epoch + cursor.batch
        && epochs == done
        && cursor
            .best_epoch
            .map_or(epochs == 0, |best| (1..=done).contains(&u64::from(best)))
        && cursor.loss_scale.is_none_or(|scale| scale.is_sensible(cursor.step))
        && cursor.seconds >= 0.0;
    if sensible {
        return Ok(());
    }
    Err(Error::State(format!(
        "step {}, epoch {}, batch {}, {epochs} epochs done and best epoch {:?} are no place of a training of {} epochs of {per_epoch} steps",
        cursor.step, cursor.epoch, cursor.batch, cursor.best_epoch, settings.epochs
    )))
}

/// Whether a file holds exactly these tensors, in f32.
fn check_tensors(file: &WeightFile, name: &str, shapes: &BTreeMap<String, Vec<i64>>) -> Result<()> {
    let wrong = |why: String| {
        Err(Error::OtherTraining(format!(
            "its network was another one ({name}: {why})"
        )))
    };
    if let Some(tensor) = file.names().find(|tensor| !shapes.contains_key(*tensor)) {
        return wrong(format!("tensor {tensor} is none of the network's"));
    }
    for (tensor, shape) in shapes {
        match file.info(tensor) {
            None => return wrong(format!("tensor {tensor} is not in it")),
            Some(info) if info.kind != Kind::Float || info.shape != *shape => {
                return wrong(format!(
                    "tensor {tensor} is {:?} {:?}, not {:?} {shape:?}",
                    info.kind,
                    info.shape,
                    Kind::Float
                ));
            }
            Some(_) => (),
        }
    }
    Ok(())
}

impl<R> Saved<R> {
    /// The place to go on from.
    #[must_use]
    pub fn cursor(&self) -> &Cursor<R> {
        &self.cursor
    }

    /// Reads the tensors.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Torch`], [`Error::OutOfMemory`].
    pub fn read(self) -> Result<State<R>> {
        let tensors = |file: &WeightFile| -> Result<Parameters> {
            file.names()
                .map(|name| Ok((name.to_owned(), file.read(name, Device::Cpu)?)))
                .collect()
        };
        Ok(State {
            weights: tensors(&self.weights)?,
            moments: Moments {
                exp_avg: tensors(&self.exp_avg)?,
                exp_avg_sq: tensors(&self.exp_avg_sq)?,
            },
            best: self.best.as_ref().map(tensors).transpose()?,
            cursor: self.cursor,
        })
    }
}
