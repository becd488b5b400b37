//! Where the figures of a training go beside status and `/metrics`: TensorBoard's event files, an MLflow server.
//!
//! None of it can end or hold up a training; what goes wrong is told in [`crate::progress::TrackingProgress`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalar::{LocalReference, Uri};

/// Folder of TensorBoard's event files beside the checkpoints, where no other is given.
pub const TENSOR_BOARD_DIR: &str = "tensorboard";
/// Bearer token for MLflow.
pub const MLFLOW_TOKEN_ENV: &str = "MLFLOW_TRACKING_TOKEN";
/// User name for MLflow; a token wins over it.
pub const MLFLOW_USERNAME_ENV: &str = "MLFLOW_TRACKING_USERNAME";
/// Password for MLflow.
pub const MLFLOW_PASSWORD_ENV: &str = "MLFLOW_TRACKING_PASSWORD";
/// PEM certificates to trust beside the system's, for MLflow alone.
pub const MLFLOW_CA_ENV: &str = "MLFLOW_TRACKING_CA";

/// Where the figures of a training go beside its status. Nothing here ends a training or holds it up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Tracking {
    /// Event files for TensorBoard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor_board: Option<TensorBoard>,
    /// A run on an MLflow server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlflow: Option<Mlflow>,
}

/// Event files for TensorBoard, one for each attempt, in one folder for each job: `tensorboard --logdir` shows one curve.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TensorBoard {
    /// Folder under which each job has one of its own, `<name>-<uid>`, reached as `storage` says. Without it the files lie
    /// beside the checkpoints, in `<checkpoint.uri or output.uri>/<uid>/tensorboard`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = Uri::WRITABLE))]
    pub uri: Option<Uri>,
}

/// A run on an MLflow server. All attempts of a job go on with one run, found by its tag `flywheel.job_uid`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Mlflow {
    /// Address of the server, such as `https://mlflow.example.com`.
    #[schemars(length(max = 512), regex(pattern = r#"^https?://[^\s?#@"'\\$]+$"#))]
    pub uri: String,
    /// Name of the experiment, made where there is none; `<namespace>/<output.model>` where no name is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 250), regex(pattern = "^[A-Za-z0-9/_][A-Za-z0-9 ._:/@-]*$"))]
    pub experiment: Option<String>,
    /// Name of the run; `<job>-<first 8 of uid>` where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 250), regex(pattern = "^[A-Za-z0-9/_][A-Za-z0-9 ._:/@-]*$"))]
    pub run_name: Option<String>,
    /// Secret with `MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`; and with
    /// `MLFLOW_TRACKING_CA` (PEM) where the server's certificate needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<LocalReference>,
}
