//! Which nodes new training attempts are to keep away from, by what failed on them lately.
//!
//! The incidents in the statuses are the ledger, so that nothing else has to be kept or to expire: blame ends half an hour after
//! its incident, or with the object that tells of it. Attempts only prefer other nodes. A healthy one that has no room is no
//! reason to wait for, and a whole class that fails (of a driver, say) does not stop the training.

use std::collections::BTreeMap;
use std::time::Duration;

use flywheel_api::recovery::{Incident, IncidentCause};
use jiff::Timestamp;

/// How long an incident counts.
const WINDOW: Duration = Duration::from_secs(30 * 60);
/// Blame from which on a node is kept away from.
const ENOUGH: u32 = 2;
/// Most nodes that are kept away from.
const MOST: usize = 3;

/// How much an incident says against its node, where it is another object's. Programs fail for reasons of their own, and a
/// deleted pod says nothing.
fn blame(cause: IncidentCause) -> u32 {
    match cause {
        IncidentCause::GpuFault => ENOUGH,
        IncidentCause::NodeLost | IncidentCause::Hung | IncidentCause::CrashLoop | IncidentCause::PodFailed => 1,
        IncidentCause::PodUnready | IncidentCause::ImagePullFailed | IncidentCause::PodLost => 0,
    }
}

/// Names of the nodes to keep away from: those that the object's pods could not have their image on lately, then the most
/// blamed. What failed of the object itself counts at once: another node is the next rung of its ladder.
#[must_use]
pub fn avoided<'a>(
    without_image: Vec<String>,
    own: &[Incident],
    others: impl IntoIterator<Item = &'a Incident>,
    now: Timestamp,
) -> Vec<String> {
    let mut blamed: BTreeMap<&str, u32> = BTreeMap::new();
    let all = own.iter().map(|incident| (incident, ENOUGH));
    for (incident, factor) in all.chain(others.into_iter().map(|incident| (incident, 1))) {
        let recent = Duration::try_from(now.duration_since(incident.began.0)).is_ok_and(|age| age < WINDOW);
        if let Some(node) = incident.node.as_deref().filter(|_| recent) {
            let sum = blamed.entry(node).or_default();
            *sum = sum.saturating_add(blame(incident.cause).saturating_mul(factor));
        }
    }
    let mut nodes: Vec<(&str, u32)> = blamed.into_iter().filter(|(_, sum)| *sum >= ENOUGH).collect();
    nodes.sort_by_key(|(node, sum)| (std::cmp::Reverse(*sum), *node));
    let mut avoided = without_image;
    for (node, _) in nodes {
        if !avoided.iter().any(|other| other == node) {
            avoided.push(node.to_owned());
        }
    }
    avoided.truncate(MOST);
    avoided
}

#[cfg(test)]
mod tests {
    use super::super::incident::{Failure, open};
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn failed(cause: IncidentCause, node: &str, second: i64) -> Incident {
        let failure = Failure {
            cause,
            object: "o".to_owned(),
            node: Some(node.to_owned()),
            how: "how".to_owned(),
            began: at(second),
        };
        open(&failure, at(second))
    }

    #[test]
    fn nodes_on_which_things_fail_are_kept_away_from_for_a_while() {
        use IncidentCause::{GpuFault, Hung, NodeLost, PodFailed, PodLost};
        let now = at(10_000);
        type Row<'a> = (&'a str, Vec<Incident>, Vec<Incident>, Vec<&'a str>);
        let table: Vec<Row<'_>> = vec![
            ("nothing failed", vec![], vec![], vec![]),
            ("its own failure", vec![failed(Hung, "n", 9_000)], vec![], vec!["n"]),
            ("its own deletion", vec![failed(PodLost, "n", 9_000)], vec![], vec![]),
            ("another one's", vec![], vec![failed(Hung, "n", 9_000)], vec![]),
            ("a broken GPU", vec![], vec![failed(GpuFault, "n", 9_000)], vec!["n"]),
            (
                "two others",
                vec![],
                vec![failed(NodeLost, "n", 9_000), failed(PodFailed, "n", 9_500)],
                vec!["n"],
            ),
            (
                "on two nodes",
                vec![],
                vec![failed(NodeLost, "n", 9_000), failed(PodFailed, "m", 9_500)],
                vec![],
            ),
            (
                "long ago",
                vec![failed(GpuFault, "n", 8_200)],
                vec![failed(GpuFault, "n", 8_200)],
                vec![],
            ),
        ];
        for (case, own, others, expected) in table {
            assert_eq!(avoided(Vec::new(), &own, &others, now), expected, "{case}");
        }
        let own = [failed(Hung, "c", 9_000), failed(Hung, "d", 9_000)];
        let others = [
            failed(GpuFault, "a", 9_000),
            failed(GpuFault, "c", 9_000),
            failed(GpuFault, "b", 9_000),
        ];
        assert_eq!(
            avoided(Vec::new(), &own, &others, now),
            ["c", "a", "b"],
            "the most blamed ones only"
        );
        let without_image = ["e", "a"].map(str::to_owned).to_vec();
        assert_eq!(avoided(without_image, &own, &others, now), ["e", "a", "c"]);
    }
}
