//! What GPUs a node is to have and which of them are broken: a file that commands write and the node's device plugin reads.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::paths;

/// The simulated GPUs of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeGpus {
    pub(crate) count: u32,
    /// Indexes below `count`.
    unhealthy: BTreeSet<u32>,
}

impl NodeGpus {
    /// All of them healthy.
    pub(crate) fn healthy(count: u32) -> Self {
        Self {
            count,
            unhealthy: BTreeSet::new(),
        }
    }

    pub(crate) fn load(file: &Path) -> Result<Self> {
        serde_json::from_str(&paths::read(file)?).map_err(|error| Error::Format {
            what: file.display().to_string(),
            why: error.to_string(),
        })
    }

    pub(crate) fn save(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string(self).map_err(|error| Error::Format {
            what: file.display().to_string(),
            why: error.to_string(),
        })?;
        paths::write(file, text)
    }

    /// Changes what stands in `file`; two changes at once follow one another.
    pub(crate) fn change(file: &Path, change: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let _turn = paths::lock(&file.with_extension("lock"))?;
        let mut gpus = Self::load(file)?;
        change(&mut gpus)?;
        gpus.save(file)
    }

    /// Those that are left are as they were, those that are added are healthy.
    pub(crate) fn resize(&mut self, count: u32) {
        self.count = count;
        self.unhealthy.retain(|index| *index < count);
    }

    pub(crate) fn set(&mut self, index: u32, health: Health) -> Result<()> {
        if index >= self.count {
            return Err(Error::Usage(format!(
                "no GPU {index}: they are counted from 0, and there are {}",
                self.count
            )));
        }
        match health {
            Health::Healthy => self.unhealthy.remove(&index),
            Health::Unhealthy => self.unhealthy.insert(index),
        };
        Ok(())
    }

    /// All of them, in the order of their indexes.
    pub(crate) fn health(&self) -> impl Iterator<Item = (u32, Health)> {
        (0..self.count).map(|index| match self.unhealthy.contains(&index) {
            true => (index, Health::Unhealthy),
            false => (index, Health::Healthy),
        })
    }

    /// How many a node offers to new pods.
    pub(crate) fn usable(&self) -> usize {
        self.health().filter(|(_, health)| *health == Health::Healthy).count()
    }
}

/// Whether a GPU works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Healthy,
    /// It is broken: no new pod gets it, and the status of the pod that has it says so.
    Unhealthy,
}

impl Health {
    /// As device plugins say it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Healthy => "Healthy",
            Self::Unhealthy => "Unhealthy",
        }
    }
}

/// Name of a GPU, which the statuses of pods give.
pub(crate) fn id(node: &str, index: u32) -> String {
    format!("GPU-{node}-{index}")
}

/// The file of the node whose folder is `home`.
pub(crate) fn file(home: &Path) -> PathBuf {
    home.join("gpus.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_broken_stays_so_until_it_is_healed_or_gone() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        NodeGpus::healthy(2).save(&file).unwrap();
        NodeGpus::change(&file, |gpus| gpus.set(1, Health::Unhealthy)).unwrap();
        let broken = NodeGpus::load(&file).unwrap();
        assert_eq!(
            broken.health().collect::<Vec<_>>(),
            [(0, Health::Healthy), (1, Health::Unhealthy)]
        );
        assert_eq!(broken.usable(), 1);
        let none = NodeGpus::change(&file, |gpus| gpus.set(2, Health::Unhealthy)).unwrap_err();
        assert!(none.to_string().contains("there are 2"), "{none}");

        for (counts, usable) in [(vec![40], 39), (vec![1, 2], 2)] {
            let mut gpus = broken.clone();
            counts.iter().for_each(|count| gpus.resize(*count));
            assert_eq!(gpus.usable(), usable, "{counts:?}");
        }
        NodeGpus::change(&file, |gpus| gpus.set(1, Health::Healthy)).unwrap();
        assert_eq!(NodeGpus::load(&file).unwrap(), NodeGpus::healthy(2));
    }
}
