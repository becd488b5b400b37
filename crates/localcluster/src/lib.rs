//! A real Kubernetes cluster on one machine, from packages: for users, examples, tests and benchmarks.
//!
//! [`Cluster`] has real nodes (kubelet, containerd, kube-proxy, each node in network and mount namespaces of its own),
//! any number of KWOK nodes, CoreDNS and an object store; it needs root. [`ControlPlane`] is etcd and an API server
//! alone, for tests of the API; it needs no root. Programs come from Go modules ([`Program`]), images are written
//! without a container engine ([`image`]).
//!
//! This crate knows nothing of the operator: what runs on the cluster is not its business.

mod cgroups;
mod cluster;
mod control_plane;
mod device_plugin;
mod error;
mod gpus;
pub mod image;
mod kinds;
mod kubectl;
pub mod machine;
mod network;
mod node;
pub mod paths;
mod pki;
mod process;
mod programs;
mod random;
mod services;

pub use cluster::{Cluster, Options, down, is_current, names};
pub use control_plane::{ControlPlane, ControlPlaneOptions};
pub use device_plugin::play_gpus;
pub use error::{Error, Result};
pub use gpus::Health;
pub use kinds::{GPU_RESOURCE, GPU_TAINT, Gpus, NodeKind};
pub use kubectl::Kubectl;
pub use programs::{KUBERNETES, Program, ensure_all};
pub use services::S3;
