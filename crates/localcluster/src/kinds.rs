//! The kinds of nodes and what each offers.

use serde::{Deserialize, Serialize};

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// No GPU, no taint: where the operator and all else run.
    System,
    /// Trains: simulated A100s.
    A100,
    /// Serves: simulated T4s.
    T4,
}

/// The GPUs of a node, simulated: Kubernetes counts them, no device is behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpus {
    /// Value of the label `nvidia.com/gpu.product`, as NVIDIA's feature discovery writes it.
    pub product: &'static str,
    /// How many the node has.
    pub count: u32,
}

/// Taint of every node with GPUs, as clouds set it.
pub const GPU_TAINT: (&str, &str, &str) = ("nvidia.com/gpu", "present", "NoSchedule");

/// Name of the GPUs among a node's resources.
pub const GPU_RESOURCE: &str = "nvidia.com/gpu";

impl NodeKind {
    /// All of them; nodes are started in this order.
    pub const ALL: [NodeKind; 3] = [NodeKind::System, NodeKind::A100, NodeKind::T4];

    /// What the nodes' names begin with.
    pub fn name(self) -> &'static str {
        match self {
            NodeKind::System => "system",
            NodeKind::A100 => "a100",
            NodeKind::T4 => "t4",
        }
    }

    /// Its GPUs, if it has any.
    pub fn gpus(self) -> Option<Gpus> {
        match self {
            NodeKind::System => None,
            NodeKind::A100 => Some(Gpus {
                product: "NVIDIA-A100-SXM4-40GB",
                count: 2,
            }),
            NodeKind::T4 => Some(Gpus {
                product: "Tesla-T4",
                count: 4,
            }),
        }
    }
}
