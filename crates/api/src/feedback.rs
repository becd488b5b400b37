//! What clients say of predictions.

use flywheel_contract::scalar::{Decimal, Uri};
use flywheel_contract::serving::{Capture, FeedbackSettings, Redaction};
use kube_derive::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::pod::KeyReference;

/// Lets clients say at `POST /feedback` what would have been right. Each prediction's `request_id` is a receipt then, which only
/// the service's own pods can make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("self.capture == has(self.uri)").message("uri and capture: true are given together: texts are kept there, and only where you say so").field_path(".uri"))]
#[x_kube(validation = Rule::new("self.capture || !has(self.redact)").message("redact is of texts that are kept; set capture: true and uri, or leave it out").field_path(".redact"))]
#[x_kube(validation = Rule::new("self.capture || !has(self.retentionDays)").message("retentionDays is of texts that are kept; set capture: true and uri, or leave it out").field_path(".retentionDays"))]
pub struct Feedback {
    /// Key of a Secret with at least 32 random bytes, by which pods know their own receipts. The operator never reads it; the
    /// kubelet hands it to the pods. Receipts of another key count nothing.
    pub signing_key_secret_ref: KeyReference,
    /// Keeps the texts of predictions, and what clients say of them, for training. Texts of customers lie in your bucket then.
    #[serde(default)]
    pub capture: bool,
    /// Folder to keep them in; each service has one of its own below, `<namespace>/<name>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = Uri::WRITABLE))]
    pub uri: Option<Uri>,
    /// Share of the predictions whose texts are kept, 0 to 1, chosen at random.
    #[serde(default = "default_rate")]
    #[schemars(extend("pattern" = Decimal::SHARE))]
    pub sample_rate: Decimal,
    /// What looks like one of these in a text gives way to a placeholder before the text leaves the pod: `<email>`, `<phone>`,
    /// `<card>`, `<iban>`, `<ip>`, `<url>`. A pattern knows no names and no addresses of streets. Labels stay as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 6), extend("x-kubernetes-list-type" = "set"))]
    pub redact: Vec<Redaction>,
    /// Days for which texts and what clients say of them are kept, 30 where it is absent: the pods remove the files of this service
    /// in the folders of older days (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3650))]
    pub retention_days: Option<i32>,
}

/// Days for which texts are kept where the spec does not say.
const RETENTION_DAYS: u32 = 30;

fn default_rate() -> Decimal {
    Decimal::from("1.0")
}

impl Feedback {
    /// The folder of a service.
    #[must_use]
    pub fn folder(&self, namespace: &str, service: &str) -> Option<Uri> {
        let uri = self.uri.as_ref().filter(|_| self.capture)?;
        Some(uri.join(namespace).join(service))
    }

    /// What the pods of a service are told, with the key in the file of this path.
    #[must_use]
    pub fn settings(&self, namespace: &str, service: &str, key: String) -> FeedbackSettings {
        FeedbackSettings {
            key,
            capture: self.folder(namespace, service).map(|uri| Capture {
                uri,
                // As the schema bounds it.
                sample_rate: self.sample_rate.value().unwrap_or(1.0),
                redact: self.redact.clone(),
                retention_days: Some(
                    self.retention_days
                        .and_then(|days| u32::try_from(days).ok())
                        .unwrap_or(RETENTION_DAYS),
                ),
            }),
        }
    }
}
