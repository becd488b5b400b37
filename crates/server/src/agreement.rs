//! What is kept of the comparison of a version with its evaluation sample.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use flywheel_contract::scalar::Precision;
use flywheel_contract::serving::Agreement;
use flywheel_learn::device::TensorDevice;

/// The note that keeps the agreement of an artifact in the cache, since it takes longer to measure than all else of a load. It holds
/// for one digest, format, kind of processor and release; another one measures anew.
pub(crate) struct Seen(PathBuf);

impl Seen {
    /// `None` on a GPU, which nothing here tells from another one.
    pub fn new(folder: &Path, device: TensorDevice, precision: Precision) -> Option<Self> {
        let TensorDevice::Cpu = device else { return None };
        let processor = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        let what = |line: &&str| line.starts_with("flags") || line.starts_with("Features");
        let mut hasher = DefaultHasher::new();
        (processor.lines().find(what)?, env!("CARGO_PKG_VERSION")).hash(&mut hasher);
        let digest = folder.file_name()?.to_str()?;
        let name = format!("{digest}.{precision:?}.{:016x}.json", hasher.finish());
        // Beside the folder of all artifacts, which holds nothing else.
        Some(Self(folder.parent()?.with_file_name("agreements").join(name)))
    }

    /// What was seen before; `None` also where the file is no such thing.
    pub fn read(&self) -> Option<Agreement> {
        let agreement: Agreement = serde_json::from_slice(&std::fs::read(&self.0).ok()?).ok()?;
        (agreement.texts > 0 && agreement.same <= agreement.texts).then_some(agreement)
    }

    /// Kept if it can be; without it the next load takes longer.
    pub fn write(&self, agreement: Agreement) {
        let part = self.0.with_extension(format!("{}.part", std::process::id()));
        let written = self.0.parent().map_or(Ok(()), std::fs::create_dir_all);
        let written = written
            .and_then(|()| Ok(serde_json::to_vec(&agreement)?))
            .and_then(|text| std::fs::write(&part, text))
            .and_then(|()| std::fs::rename(&part, &self.0));
        if let Err(error) = written {
            tracing::warn!(file = %self.0.display(), %error, "the agreement cannot be kept; the next load measures it again");
        }
    }
}
