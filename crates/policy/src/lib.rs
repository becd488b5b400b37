//! Every decision of the operator as a pure function.

pub mod drift;
pub mod flow;
pub mod models;
pub mod placement;
pub mod preparation;
pub mod recovery;
pub mod remedy;
pub mod retrain;
pub mod schedule;
pub mod serving;
pub mod training;
