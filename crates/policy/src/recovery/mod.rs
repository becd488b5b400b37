//! Recovery: which nodes are lost, which pods are beyond help and what replaces them, and how long it took.
//!
//! Nothing that may still run is ended on one sign alone. A node counts as lost ([`nodes`]) when its pods do not answer the
//! operator and the control plane hears nothing of it either; where many seem lost at once, nothing is ended, since then it is
//! more likely that those who look are cut off. What is done climbs a ladder ([`serving`]): the kubelet starts a program again
//! where it is; a pod that this does not help is replaced; one whose node or GPU may be to blame stays, as a placeholder, until
//! another one answers elsewhere. Training attempts have their own rules ([`crate::training`]); of both an [`incident`] tells
//! each stage with its seconds.

pub mod incident;
pub mod nodes;
pub mod quarantine;
pub mod serving;
pub mod training;
