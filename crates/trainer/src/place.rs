//! Which of the processes that train together this one is, and where they meet.

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::names::{COMPLETION_INDEX_ENV, RENDEZVOUS_PORT};
use flywheel_contract::trainer::World;

/// A process among those of its attempt. `rank = node × processes per node + number in the pod`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its number, from 0.
    pub(crate) rank: u32,
    /// How many there are.
    pub(crate) size: u32,
    /// Its number in its pod, from 0; also that of its GPU.
    pub(crate) local: u32,
    /// How many its pod has.
    pub(crate) in_pod: u32,
}

impl Place {
    /// The process with this number in the pod, in a world that was checked. `index` is the value of
    /// [`COMPLETION_INDEX_ENV`].
    pub(crate) fn new(world: &World, index: Option<&str>, local: u32) -> Result<Self, Failure> {
        let invalid = |text: String| Failure::new(FailureReason::ConfigInvalid, text);
        let node = match index.map(str::parse::<u32>) {
            _ if world.nodes == 1 => 0,
            Some(Ok(node)) if node < world.nodes => node,
            _ => {
                return Err(invalid(format!(
                    "{COMPLETION_INDEX_ENV} is {index:?}, not a number below {} (world.nodes); a Job with completionMode Indexed sets it",
                    world.nodes
                )));
            }
        };
        if local >= world.processes_per_node {
            return Err(invalid(format!(
                "process {local} of a pod that has {} (world.processesPerNode)",
                world.processes_per_node
            )));
        }
        Ok(Self {
            rank: node * world.processes_per_node + local,
            size: world.nodes * world.processes_per_node,
            local,
            in_pod: world.processes_per_node,
        })
    }

    /// Whether it is the one that keeps checkpoints, artifact and result.
    pub(crate) fn is_first(&self) -> bool {
        self.rank == 0
    }
}

/// Host and port of a rendezvous: the usual port, unless the host comes with one of its own.
pub(crate) fn rendezvous(text: &str) -> (String, u16) {
    match text.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
        Some((host, Ok(port))) => (host.trim_matches(['[', ']']).to_owned(), port),
        _ => (text.to_owned(), RENDEZVOUS_PORT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_count_through_the_nodes() {
        let world = |nodes, processes_per_node| World {
            nodes,
            processes_per_node,
            rendezvous: None,
        };
        let rank = |world: &World, index, local| Place::new(world, index, local).map(|p| (p.rank, p.size)).ok();
        assert_eq!(rank(&world(1, 1), None, 0), Some((0, 1)));
        assert_eq!(rank(&world(1, 1), Some("0"), 0), Some((0, 1)));
        assert_eq!(rank(&world(1, 4), None, 3), Some((3, 4)));
        assert_eq!(rank(&world(3, 4), Some("2"), 1), Some((9, 12)));
        for index in [None, Some("3"), Some("-1"), Some("x")] {
            assert_eq!(rank(&world(3, 1), index, 0), None, "{index:?}");
        }
        assert_eq!(rank(&world(3, 4), Some("0"), 4), None);
    }

    #[test]
    fn a_rendezvous_may_name_its_port() {
        for (text, host, port) in [
            ("intent-train-1-0.intent", "intent-train-1-0.intent", 29500),
            ("127.0.0.1:4000", "127.0.0.1", 4000),
            ("[::1]:4000", "::1", 4000),
        ] {
            assert_eq!(rendezvous(text), (host.to_owned(), port));
        }
    }
}
