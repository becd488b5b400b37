//! Environment variables, paths, ports and metric names that both sides rely on.

/// Environment variable with the JSON of [`crate::trainer::TrainerConfig`] or [`crate::trainer::VerifyConfig`].
pub const CONFIG_ENV: &str = "FLYWHEEL_CONFIG";
/// Most bytes that the value of [`CONFIG_ENV`] may have; the API server and `execve` both have limits above it.
pub const CONFIG_MAX_BYTES: usize = 64 * 1024;
/// Folder where the serving pod finds its configuration.
pub const SERVING_CONFIG_DIR: &str = "/etc/flywheel/serving";
/// Key in the serving ConfigMap, and file name, of [`crate::serving::ServingConfig`].
pub const SERVING_CONFIG_FILE: &str = "serving.json";
/// Folder where the serving pod finds which versions it holds; its content changes while the pod runs.
pub const ASSIGNMENT_DIR: &str = "/etc/flywheel/assignment";
/// Key in that ConfigMap, and file name, of [`crate::serving::Assignment`].
pub const ASSIGNMENT_FILE: &str = "assignment.json";
/// Folder where the CA bundle of the storage is mounted.
pub const STORAGE_CA_DIR: &str = "/etc/flywheel/storage-ca";
/// Folder where the certificate of the data port is mounted; its content changes when the certificate is renewed.
pub const TLS_DIR: &str = "/etc/flywheel/tls";
/// Keys of a Secret of type `kubernetes.io/tls`, and names of their files: the certificate and its private key.
pub const TLS_FILES: [&str; 2] = ["tls.crt", "tls.key"];
/// Folder where the key of receipts is mounted.
pub const RECEIPT_KEY_DIR: &str = "/etc/flywheel/receipts";
/// Name of its file.
pub const RECEIPT_KEY_FILE: &str = "key";
/// Folder for downloads and caches, an emptyDir.
pub const SCRATCH_DIR: &str = "/var/lib/flywheel";
/// File whose content the kubelet puts into the container's status at its end.
pub const TERMINATION_LOG: &str = "/dev/termination-log";
/// Most bytes of a termination message that the kubelet keeps.
pub const TERMINATION_MAX_BYTES: usize = 4096;

/// Port of the trainer's `/progress` and `/metrics`, and of the server's `/livez`, `/stats`, `/profile` and
/// `/metrics`.
pub const INSIDE_PORT: u16 = 9090;
/// Name of [`INSIDE_PORT`] in pods.
pub const INSIDE_PORT_NAME: &str = "inside";
/// Port of `/predict` and `/readyz` in serving pods; their Service has port 80, or 443 with TLS, and leads here.
pub const DATA_PORT: u16 = 8080;
/// Name of [`DATA_PORT`] in pods and Services.
pub const DATA_PORT_NAME: &str = "http";
/// The same where it speaks TLS.
pub const TLS_DATA_PORT_NAME: &str = "https";

/// Port of node 0 of an attempt with several nodes, where its processes meet; PyTorch's usual one.
pub const RENDEZVOUS_PORT: u16 = 29500;
/// Environment variable with a pod's place among those of its attempt, from 0; the Job controller sets it.
pub const COMPLETION_INDEX_ENV: &str = "JOB_COMPLETION_INDEX";

/// Path of [`crate::progress::Progress`] on the trainer's inside port.
pub const PROGRESS_PATH: &str = "/progress";
/// Path of [`crate::serving::Stats`] on the server's inside port.
pub const STATS_PATH: &str = "/stats";
/// Path of [`crate::profile::LiveProfiles`] on the server's inside port.
pub const PROFILE_PATH: &str = "/profile";
/// Liveness of the serving pod, on the inside port.
pub const LIVEZ_PATH: &str = "/livez";
/// Readiness of the serving pod, on the data port.
pub const READYZ_PATH: &str = "/readyz";

/// Exit code of a pod's program whose failure is told by its termination message.
pub const EXIT_FAILED: i32 = 1;
/// Exit code for a wrong command line.
pub const EXIT_USAGE: i32 = 2;
