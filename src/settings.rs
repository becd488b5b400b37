//! What the cluster's administrator says to the operator: one YAML file, usually rendered by the chart.
//!
//! ```yaml
//! namespaces: []                      # empty: all
//! verifierImage: registry/flywheel-trainer:0.1.0
//! imagePullPolicy: IfNotPresent
//! imagePullSecrets: []
//! gpuFaults:                          # what health monitors put on nodes whose GPUs are broken
//!   conditions: [GPUMissing]
//!   taints: []
//! acceleratorClasses:
//!   a100:
//!     labelTerms:                     # alternatives; each key with one of its values
//!     - nvidia.com/gpu.product: [NVIDIA-A100-SXM4-40GB]
//!     resource: nvidia.com/gpu
//!     tolerations: [{key: nvidia.com/gpu, operator: Exists}]
//!     trainerImage: registry/flywheel-trainer:0.1.0
//!     serverImage: registry/flywheel-server:0.1.0
//!     device: Cuda
//!     fallback: t4                    # optional: the class that takes its pods where it has no room
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flywheel_api::conditions::reasons;
use flywheel_api::pod::Toleration;
use flywheel_contract::scalar::Device;
use flywheel_policy::placement::{ClassView, FallbackView, LabelTerm};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Most bytes of the settings file.
const FILE_MAX: u64 = 1024 * 1024;

/// The settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Namespaces that the operator works in; empty for all. With names here it needs no right on the cluster as a whole,
    /// and knows nothing of nodes.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// Classes of GPUs by name.
    pub accelerator_classes: BTreeMap<String, AcceleratorClass>,
    /// Image of the pods that verify a ModelVersion; they need no GPU.
    pub verifier_image: String,
    /// Most memory of such a pod: it loads the weights in single precision, which takes twice their length and 300 MiB.
    #[serde(default = "verifier_memory")]
    pub verifier_memory: String,
    /// When the kubelet asks the registry.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,
    /// Names of Secrets with registry credentials, which must stand in the users' namespaces.
    #[serde(default)]
    pub image_pull_secrets: Vec<String>,
    /// What says that a node's GPUs are broken, beside what its kubelet says of each.
    #[serde(default)]
    pub gpu_faults: GpuFaults,
}

/// What health monitors (node-problem-detector, NVSentinel) put on a node whose GPUs are broken. Their names for it differ from
/// one installation to the next, and some report what only a program did wrong, so none is taken for granted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GpuFaults {
    /// Types of node conditions that say so while they are `True`.
    #[serde(default)]
    pub conditions: Vec<String>,
    /// Keys of taints.
    #[serde(default)]
    pub taints: Vec<String>,
}

/// A class of GPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AcceleratorClass {
    /// Alternatives that mark its nodes; with none, every node is one.
    #[serde(default)]
    pub label_terms: Vec<LabelTerm>,
    /// The extended resource that a GPU of it is.
    pub resource: String,
    /// Taints of its nodes that the pods accept.
    #[serde(default)]
    pub tolerations: Vec<Toleration>,
    /// Image of training pods.
    pub trainer_image: String,
    /// Image of serving pods.
    pub server_image: String,
    /// What the pods compute on; `Cpu` where the GPUs are simulated.
    pub device: Device,
    /// The class whose nodes take its pods where its own have no room. It differs in labels and tolerations alone, so that a
    /// pod is the same on both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
}

/// When the kubelet asks the registry for an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImagePullPolicy {
    /// At every start.
    Always,
    /// Where the node does not have it.
    #[default]
    IfNotPresent,
    /// Never; the node must have it.
    Never,
}

impl ImagePullPolicy {
    /// The word in a container.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("settings file {}: {source}; give its path with --settings", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is too large to be settings.
    #[error("settings file {} has {bytes} bytes, more than {FILE_MAX}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// The text is no settings.
    #[error("settings: {0}")]
    Parse(String),
    /// A value cannot be used.
    #[error("settings: {field}: {problem}")]
    Value {
        /// Path of the field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Settings {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, or says what cannot be used.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let read = |source| SettingsError::Read {
            path: path.to_owned(),
            source,
        };
        let bytes = std::fs::metadata(path).map_err(read)?.len();
        if bytes > FILE_MAX {
            return Err(SettingsError::TooLarge {
                path: path.to_owned(),
                bytes,
            });
        }
        Self::parse(&std::fs::read_to_string(path).map_err(read)?)
    }

    /// Reads and checks a text.
    ///
    /// # Errors
    /// The text is no settings, or says what cannot be used.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        let settings: Self = serde_saphyr::from_str(text).map_err(|e| SettingsError::Parse(e.to_string()))?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), SettingsError> {
        let wrong = |field: String, problem: &str| {
            Err(SettingsError::Value {
                field,
                problem: problem.to_owned(),
            })
        };
        for (i, namespace) in self.namespaces.iter().enumerate() {
            if !is_dns_label(namespace) {
                return wrong(format!("namespaces[{i}]"), "must be the name of a namespace");
            }
        }
        if !is_image(&self.verifier_image) {
            return wrong("verifierImage".to_owned(), "must be the reference of an image");
        }
        if !is_memory(&self.verifier_memory) {
            return wrong("verifierMemory".to_owned(), "must be an amount of memory such as 4Gi");
        }
        for (i, secret) in self.image_pull_secrets.iter().enumerate() {
            if secret.is_empty() {
                return wrong(format!("imagePullSecrets[{i}]"), "must be the name of a Secret");
            }
        }
        if !self.namespaces.is_empty() && self.gpu_faults != GpuFaults::default() {
            return wrong(
                "gpuFaults".to_owned(),
                "is about nodes, of which nothing is known where the operator works in some namespaces only; leave it empty",
            );
        }
        for (list, names) in [
            ("conditions", &self.gpu_faults.conditions),
            ("taints", &self.gpu_faults.taints),
        ] {
            for (i, name) in names.iter().enumerate() {
                if name.is_empty() {
                    return wrong(format!("gpuFaults.{list}[{i}]"), "must not be empty");
                }
                if name == "Ready" || name.starts_with("node.kubernetes.io/") {
                    return wrong(
                        format!("gpuFaults.{list}[{i}]"),
                        "is Kubernetes' own word for the whole node, and says nothing of GPUs",
                    );
                }
            }
        }
        if self.accelerator_classes.is_empty() {
            return wrong(
                "acceleratorClasses".to_owned(),
                "must have at least one class; jobs and services name one",
            );
        }
        for (name, class) in &self.accelerator_classes {
            let at = |field: &str| format!("acceleratorClasses.{name}{field}");
            if !is_dns_label(name) {
                return wrong(at(""), "the name must be a DNS label");
            }
            for (i, term) in class.label_terms.iter().enumerate() {
                if term.0.is_empty() {
                    return wrong(at(&format!(".labelTerms[{i}]")), "must name at least one label");
                }
                for (key, values) in &term.0 {
                    if key.is_empty() || values.is_empty() {
                        return wrong(
                            at(&format!(".labelTerms[{i}].{key}")),
                            "must be a label's key with a list of at least one value",
                        );
                    }
                }
            }
            if !class.resource.contains('/') {
                return wrong(at(".resource"), "must be an extended resource such as nvidia.com/gpu");
            }
            for (field, image) in [
                (".trainerImage", &class.trainer_image),
                (".serverImage", &class.server_image),
            ] {
                if !is_image(image) {
                    return wrong(at(field), "must be the reference of an image");
                }
            }
            if let Some(problem) = class.fallback.as_ref().and_then(|to| self.unfit(name, class, to)) {
                return wrong(at(".fallback"), &problem);
            }
        }
        Ok(())
    }

    /// Why the class `to` cannot be the fallback of this one; `None` where it can.
    fn unfit(&self, name: &str, class: &AcceleratorClass, to: &str) -> Option<String> {
        if to == name {
            return Some("must be another class than itself".to_owned());
        }
        let Some(target) = self.accelerator_classes.get(to) else {
            let names: Vec<&str> = self.accelerator_classes.keys().map(String::as_str).collect();
            return Some(format!(
                "must be a class that there is, one of {}; {to} is none",
                names.join(", ")
            ));
        };
        if let Some(next) = &target.fallback {
            return Some(format!(
                "{to} has a fallback itself ({next}), and pods go one step only"
            ));
        }
        let same = [
            ("resource", class.resource == target.resource),
            ("device", class.device == target.device),
            ("trainerImage", class.trainer_image == target.trainer_image),
            ("serverImage", class.server_image == target.server_image),
        ];
        let (field, _) = same.into_iter().find(|(_, same)| !same)?;
        Some(format!("{to} has another {field}, and a pod must be the same on both"))
    }

    /// Settings as a local cluster has them, for tests.
    #[cfg(test)]
    #[must_use]
    pub fn example() -> Self {
        Self::parse(tests::EXAMPLE).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The class of this name.
    ///
    /// # Errors
    /// There is none; the message names those that there are.
    pub fn class(&self, name: &str) -> Result<&AcceleratorClass, Error> {
        self.accelerator_classes.get(name).ok_or_else(|| Error::InvalidSpec {
            reason: reasons::UNKNOWN_ACCELERATOR_CLASS,
            message: format!(
                "the cluster has no accelerator class {name}; it has {}. Name one of them in accelerator.class, or have the \
                 administrator add it to the operator's settings",
                self.accelerator_classes.keys().cloned().collect::<Vec<_>>().join(", ")
            ),
        })
    }

    /// The fallback of the class of this name, with its name; `None` where it has none.
    #[must_use]
    pub fn fallback(&self, name: &str) -> Option<(&str, &AcceleratorClass)> {
        let to = self.accelerator_classes.get(name)?.fallback.as_deref()?;
        Some((to, self.accelerator_classes.get(to)?))
    }

    /// What placement needs to know of the class of this name and of its fallback, for pods that may go to either; `None`
    /// where there is no such class.
    #[must_use]
    pub fn view_of_both<'a>(&'a self, name: &'a str) -> Option<ClassView<'a>> {
        let class = self.accelerator_classes.get(name)?;
        Some(ClassView {
            fallback: self.fallback(name).map(|(name, class)| FallbackView {
                name,
                terms: &class.label_terms,
            }),
            ..class.view(name)
        })
    }
}

impl AcceleratorClass {
    /// What placement needs to know of it alone, for pods that do not go to its fallback by themselves.
    #[must_use]
    pub fn view<'a>(&'a self, name: &'a str) -> ClassView<'a> {
        ClassView {
            name,
            resource: &self.resource,
            terms: &self.label_terms,
            fallback: None,
        }
    }
}

fn is_dns_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Weights of 1.8 GB: all encoders but the largest.
fn verifier_memory() -> String {
    "4Gi".to_owned()
}

/// Whole units, which are enough here.
fn is_memory(text: &str) -> bool {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    !digits.is_empty()
        && digits.len() <= 6
        && digits.bytes().all(|b| b.is_ascii_digit())
        && matches!(text.get(digits.len()..), Some("Mi" | "Gi" | "M" | "G"))
}

fn is_image(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.len() <= 512
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._:/@-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settings as the local cluster has them.
    pub const EXAMPLE: &str = r"
verifierImage: localhost/flywheel-trainer:dev
acceleratorClasses:
  a100:
    labelTerms:
    - nvidia.com/gpu.product: [NVIDIA-A100-SXM4-40GB, A100-SXM4-40GB]
    - cloud.google.com/gke-accelerator: [nvidia-tesla-a100]
    resource: nvidia.com/gpu
    tolerations:
    - {key: nvidia.com/gpu, operator: Exists}
    trainerImage: localhost/flywheel-trainer:dev
    serverImage: localhost/flywheel-server:dev
    device: Cpu
  t4:
    labelTerms:
    - nvidia.com/gpu.product: [Tesla-T4]
    resource: nvidia.com/gpu
    tolerations:
    - {key: nvidia.com/gpu, operator: Exists}
    trainerImage: localhost/flywheel-trainer:dev
    serverImage: localhost/flywheel-server:dev
    device: Cpu
";

    #[test]
    fn a_file_is_read_with_its_defaults() {
        let settings = Settings::parse(EXAMPLE).unwrap();
        assert_eq!(settings.image_pull_policy, ImagePullPolicy::IfNotPresent);
        let class = settings.class("a100").unwrap();
        assert_eq!((class.device, class.label_terms.len()), (Device::Cpu, 2));
        let error = settings.class("h100").unwrap_err().to_string();
        assert!(error.contains("h100") && error.contains("it has a100, t4"), "{error}");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let table = [
            (
                "resource: nvidia.com/gpu",
                "resource: gpu",
                "acceleratorClasses.a100.resource",
            ),
            ("device: Cpu", "device: Tpu", "Tpu"),
            ("device: Cpu", "devise: Cpu", "devise"),
            (
                "verifierImage: localhost/flywheel-trainer:dev",
                "verifierImage: ''",
                "verifierImage",
            ),
            ("  a100:", "  A100:", "acceleratorClasses.A100"),
            (
                "[nvidia-tesla-a100]",
                "[]",
                "labelTerms[1].cloud.google.com/gke-accelerator",
            ),
            (
                "verifierImage",
                "namespaces: [Bad_Name]\nverifierImage",
                "namespaces[0]",
            ),
            (
                "verifierImage",
                "gpuFaults: {conditions: [Ready]}\nverifierImage",
                "gpuFaults.conditions[0]",
            ),
            (
                "verifierImage",
                "namespaces: [team]\ngpuFaults: {taints: [t]}\nverifierImage",
                "gpuFaults: is about nodes",
            ),
            (
                "verifierImage",
                "gpuFaults: {taints: ['']}\nverifierImage",
                "gpuFaults.taints[0]",
            ),
        ];
        for (from, to, word) in table {
            let error = Settings::parse(&EXAMPLE.replace(from, to)).expect_err(word).to_string();
            assert!(error.contains(word), "{word} is not in: {error}");
        }
        let none = Settings::load(Path::new("/nonexistent/settings.yaml"))
            .unwrap_err()
            .to_string();
        assert!(none.contains("--settings"), "{none}");
    }

    #[test]
    fn a_fallback_is_another_class_for_the_same_pods() {
        let with_fallback = |of: &str, to: &str| {
            let at = EXAMPLE.find(&format!("  {of}:")).unwrap() + of.len() + 4;
            format!("{}    fallback: {to}\n{}", &EXAMPLE[..at], &EXAMPLE[at..])
        };
        let good = Settings::parse(&with_fallback("a100", "t4")).unwrap();
        assert_eq!(good.fallback("a100").map(|(name, _)| name), Some("t4"));
        assert_eq!(good.fallback("t4"), None);
        // The last class of the text is t4.
        let differs = |from: &str, to: &str| {
            let text = with_fallback("a100", "t4");
            let at = text.rfind(from).unwrap();
            format!("{}{to}{}", &text[..at], &text[at + from.len()..])
        };
        let chain = with_fallback("a100", "t4").replace("  t4:\n", "  t4:\n    fallback: a100\n");
        let table = [
            (
                with_fallback("a100", "a100"),
                "acceleratorClasses.a100.fallback: must be another",
            ),
            (
                with_fallback("t4", "h100"),
                "acceleratorClasses.t4.fallback: must be a class",
            ),
            (
                chain,
                "acceleratorClasses.a100.fallback: t4 has a fallback itself (a100)",
            ),
            (
                differs("resource: nvidia.com/gpu", "resource: nvidia.com/mig-1g.5gb"),
                "t4 has another resource",
            ),
            (differs("device: Cpu", "device: Cuda"), "t4 has another device"),
            (
                differs("flywheel-trainer:dev", "flywheel-trainer:t4"),
                "t4 has another trainerImage",
            ),
            (
                differs("flywheel-server:dev", "flywheel-server:t4"),
                "t4 has another serverImage",
            ),
        ];
        for (text, words) in table {
            let error = Settings::parse(&text).expect_err(words).to_string();
            assert!(error.contains(words), "{words} is not in: {error}");
        }
    }
}
