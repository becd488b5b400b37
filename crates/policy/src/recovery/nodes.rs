//! Which nodes are lost, from what their pods and their leases show.
//!
//! Ages are those of the operator's own even clock: a lease counts as silent when it does not change while it is looked at, so
//! that no node's clock is compared with another one.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

/// Reads of a node's pods in a row that must have had no answer before its lease is looked at, and before it can be lost.
const UNANSWERED_MIN: u32 = 2;
/// For how long its pods must not have answered. A connection that breaks in the middle costs a read or two.
const UNANSWERED_FOR: Duration = Duration::from_secs(3);
/// For how long a lease must not have changed: kubelets renew it each 10 s, so it was left out once for certain.
const LEASE_SILENCE: Duration = Duration::from_secs(20);
/// When a lease that was renewed while it was looked at should have been once more: each 10 s, seen within 4 s.
const LEASE_OVERDUE: Duration = Duration::from_secs(15);
/// Looks at a lease that must have found it the same, so that a pause of the operator is not taken for the node's.
const LEASE_LOOKS_MIN: u32 = 4;
/// Time between two looks at a lease.
const LEASE_INTERVAL: Duration = Duration::from_secs(4);
/// Time between two reads without an answer from which on the later one begins anew: pods are read every five seconds at the
/// least while they are to answer, and a pod that was not for a while says nothing of its node.
const GAP: Duration = Duration::from_secs(15);
/// A node of which no pod was read for this long is forgotten.
const KEPT: Duration = Duration::from_secs(120);
/// Time after which nobody knows any more that pods of a node can be read.
const HEARD: Duration = Duration::from_secs(3600);
/// Lost nodes from which on their share counts: in a cluster of two, one is half of it.
const HELD_MIN: usize = 3;
/// Percent of all nodes that may be lost before nothing is ended any more.
const HELD_PERCENT: usize = 30;
/// For how long nothing is ended after they became fewer: nodes that were cut off together come back one by one, and the last of
/// them are no more lost than the first.
const HELD_FOR: Duration = Duration::from_secs(30);

/// Whether so many of these nodes are or may be lost that it is more likely that those who look are cut off.
#[must_use]
pub fn is_held(lost: usize, all: usize) -> bool {
    lost >= HELD_MIN && lost.saturating_mul(100) > all.saturating_mul(HELD_PERCENT)
}

/// What is seen of the nodes whose pods do not answer, and which answered lately.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    suspects: BTreeMap<String, Suspect>,
    /// When a pod of each node last answered.
    answered: BTreeMap<String, Timestamp>,
    /// When so many were lost for the last time that nothing is ended.
    held: Option<Timestamp>,
}

#[derive(Clone, Debug)]
struct Suspect {
    since: Timestamp,
    unanswered: u32,
    lease: Option<Lease>,
    /// When its lease was last looked at.
    looked: Option<Timestamp>,
    /// When a pod of it was last read.
    asked: Timestamp,
    /// Its lease was renewed while it was looked at: it is the pods that do not answer.
    renewed: bool,
}

impl Suspect {
    fn is_silent(&self, now: Timestamp) -> bool {
        self.unanswered >= UNANSWERED_MIN && since(self.since, now) >= UNANSWERED_FOR
    }

    /// Whether its lease is renewed as ever.
    fn is_renewed(&self, now: Timestamp) -> bool {
        let renewal = self.lease.as_ref().map(|lease| since(lease.since, now));
        self.renewed && renewal.is_some_and(|ago| ago < LEASE_OVERDUE)
    }
}

#[derive(Clone, Debug)]
struct Lease {
    renewed: String,
    since: Timestamp,
    looks: u32,
}

impl Nodes {
    /// A pod of the node answered, if only that nobody listens.
    pub fn answered(&mut self, node: &str, now: Timestamp) {
        self.suspects.remove(node);
        self.answered.insert(node.to_owned(), now);
    }

    /// A pod of the node did not answer. Where none ever did, something on the way may keep them from being read, and says
    /// nothing of the node.
    pub fn unanswered(&mut self, node: &str, now: Timestamp) {
        if !self.answered.contains_key(node) {
            return;
        }
        if self
            .suspects
            .get(node)
            .is_some_and(|suspect| since(suspect.asked, now) >= GAP)
        {
            self.suspects.remove(node);
        }
        let suspect = self.suspects.entry(node.to_owned()).or_insert(Suspect {
            since: now,
            unanswered: 0,
            lease: None,
            looked: None,
            asked: now,
            renewed: false,
        });
        suspect.unanswered = suspect.unanswered.saturating_add(1);
        suspect.asked = now;
    }

    /// Nodes whose leases are to be looked at now; they count as looked at.
    pub fn due(&mut self, now: Timestamp) -> Vec<String> {
        self.suspects.retain(|_, suspect| since(suspect.asked, now) < KEPT);
        self.answered.retain(|_, at| since(*at, now) < HEARD);
        let due = self.suspects.iter_mut().filter(|(_, suspect)| {
            let rested = suspect.looked.is_none_or(|looked| since(looked, now) >= LEASE_INTERVAL);
            suspect.unanswered >= UNANSWERED_MIN && rested
        });
        due.map(|(node, suspect)| {
            suspect.looked = Some(now);
            node.clone()
        })
        .collect()
    }

    /// What a node's lease says of its last renewal; where it could not be read, nothing is known.
    pub fn lease(&mut self, node: &str, renewed: Option<String>, now: Timestamp) {
        let Some(suspect) = self.suspects.get_mut(node) else {
            return;
        };
        let Some(renewed) = renewed else {
            suspect.lease = None;
            return;
        };
        match &mut suspect.lease {
            Some(lease) if lease.renewed == renewed => {
                lease.looks = lease.looks.saturating_add(1);
            }
            lease => {
                suspect.renewed |= lease.is_some();
                *lease = Some(Lease {
                    renewed,
                    since: now,
                    looks: 1,
                });
            }
        }
    }

    /// Since when a node is lost, if it is; `not_ready`: the control plane itself has lost it.
    #[must_use]
    pub fn lost(&self, node: &str, not_ready: bool, now: Timestamp) -> Option<Timestamp> {
        let suspect = self.suspects.get(node)?;
        let lease = suspect.lease.as_ref();
        let silent =
            lease.is_some_and(|lease| lease.looks >= LEASE_LOOKS_MIN && since(lease.since, now) >= LEASE_SILENCE);
        (suspect.is_silent(now) && (silent || not_ready)).then_some(suspect.since)
    }

    /// Names of all that are lost or may turn out to be. Nodes that fail together are found out one by one, within half a minute:
    /// by the first of them nobody knows how many they are, by these one does.
    #[must_use]
    pub fn all_that_may_be(&self, now: Timestamp) -> Vec<&str> {
        let silent = self.suspects.iter().filter(|(_, suspect)| suspect.is_silent(now));
        silent
            .filter(|(node, suspect)| !suspect.is_renewed(now) || self.lost(node, false, now).is_some())
            .map(|(node, _)| node.as_str())
            .collect()
    }

    /// Whether nothing is ended, since so many of all nodes are or may be lost ([`is_held`]), or were a moment ago.
    pub fn is_held(&mut self, lost: usize, all: usize, now: Timestamp) -> bool {
        if is_held(lost, all) {
            self.held = Some(now);
        }
        self.held.is_some_and(|held| since(held, now) < HELD_FOR)
    }

    /// Names of all that are lost by their pods and their leases.
    #[must_use]
    pub fn all_lost(&self, now: Timestamp) -> Vec<&str> {
        let names = self.suspects.keys();
        names
            .filter(|node| self.lost(node, false, now).is_some())
            .map(String::as_str)
            .collect()
    }
}

/// Time since then; none where a clock went back.
fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// The pods of the node have answered.
    fn heard() -> Nodes {
        let mut nodes = Nodes::default();
        nodes.answered("n", at(-1));
        nodes
    }

    /// A node whose pods are read each second from `from` on without an answer, and whose lease says `renewed(second)`.
    fn watched(
        nodes: &mut Nodes,
        seconds: std::ops::Range<i64>,
        renewed: impl Fn(i64) -> Option<String>,
    ) -> Option<i64> {
        for second in seconds {
            nodes.unanswered("n", at(second));
            for node in nodes.due(at(second)) {
                nodes.lease(&node, renewed(second), at(second));
            }
            if nodes.lost("n", false, at(second)).is_some() {
                return Some(second);
            }
        }
        None
    }

    #[test]
    fn a_node_is_lost_when_neither_its_pods_nor_its_lease_say_anything() {
        let mut nodes = heard();
        let lost = watched(&mut nodes, 0..60, |_| Some("then".to_owned()));
        assert_eq!(lost, Some(21), "20 s after its lease was first looked at");
        assert_eq!(
            nodes.lost("n", false, at(21)),
            Some(at(0)),
            "since its pods were silent"
        );
        assert_eq!(nodes.all_lost(at(21)), ["n"]);
        nodes.answered("n", at(22));
        assert_eq!(nodes.lost("n", true, at(22)), None, "one answer is enough");
    }

    #[test]
    fn nodes_that_fail_together_are_many_before_the_first_is_lost() {
        let mut nodes = Nodes::default();
        let all: Vec<String> = (0..10).map(|number| format!("n-{number}")).collect();
        for node in &all {
            nodes.answered(node, at(-1));
        }
        let mut first = None;
        for second in 0..60 {
            // Four do not answer; the lease of one of them is renewed.
            for (number, node) in all.iter().take(4).enumerate() {
                // Each is read at other moments.
                if second % 5 == i64::try_from(number).unwrap() {
                    nodes.unanswered(node, at(second));
                }
            }
            for node in nodes.due(at(second)) {
                let renewed = if node == "n-3" { second / 10 } else { 0 };
                nodes.lease(&node, Some(renewed.to_string()), at(second));
            }
            if first.is_none() && !nodes.all_lost(at(second)).is_empty() {
                first = Some(second);
                assert_eq!(nodes.all_that_may_be(at(second)), ["n-0", "n-1", "n-2"]);
            }
        }
        assert!(first.is_some_and(|second| second < 30), "{first:?}");
        assert_eq!(nodes.all_lost(at(59)), ["n-0", "n-1", "n-2"]);
    }

    #[test]
    fn one_sign_alone_is_not_enough() {
        let renews = |second: i64| Some(format!("{}", second / 10));
        assert_eq!(watched(&mut heard(), 0..600, renews), None, "its lease is renewed");
        assert_eq!(
            watched(&mut heard(), 0..600, |_| None),
            None,
            "its lease cannot be read"
        );
        let nodes = heard();
        assert_eq!(nodes.lost("n", true, at(0)), None, "its pods answer");
    }

    #[test]
    fn a_node_that_was_never_heard_is_no_suspect() {
        let mut nodes = Nodes::default();
        assert_eq!(watched(&mut nodes, 0..600, |_| Some("then".to_owned())), None);
        assert_eq!(nodes.lost("n", true, at(600)), None);
    }

    #[test]
    fn the_control_plane_s_word_stands_for_the_lease() {
        let mut nodes = heard();
        for second in 0..3 {
            nodes.unanswered("n", at(second));
            assert_eq!(nodes.lost("n", true, at(second)), None, "a read or two");
        }
        assert_eq!(nodes.lost("n", true, at(3)), Some(at(0)));
    }

    #[test]
    fn a_pause_of_the_operator_is_not_the_node_s() {
        let mut nodes = heard();
        let same = |_| Some("then".to_owned());
        assert_eq!(watched(&mut nodes, 0..3, same), None);
        // It stood still for a minute.
        assert_eq!(watched(&mut nodes, 63..120, same), Some(84));
        assert_eq!(
            nodes.lost("n", false, at(84)),
            Some(at(63)),
            "what was before says nothing"
        );
    }

    #[test]
    fn leases_are_looked_at_every_few_seconds_whether_they_can_be_read_or_not() {
        for renewed in [Some("then".to_owned()), None] {
            let mut nodes = heard();
            let mut looks = 0;
            for second in 0..21 {
                nodes.unanswered("n", at(second));
                for node in nodes.due(at(second)) {
                    looks += 1;
                    nodes.lease(&node, renewed.clone(), at(second));
                }
            }
            assert_eq!(looks, 5, "{renewed:?}");
            assert_eq!(nodes.due(at(139)), ["n"]);
            assert_eq!(nodes.due(at(140)), [""; 0], "no pod of it is read any more");
        }
    }

    #[test]
    fn where_many_seem_lost_nothing_is_ended() {
        for (lost, all, held) in [
            (1, 1, false),
            (1, 2, false),
            (2, 3, false),
            (3, 10, false),
            (3, 9, true),
            (100, 1000, false),
            (301, 1000, true),
            (3, 0, true),
        ] {
            assert_eq!(is_held(lost, all), held, "{lost} of {all}");
        }
    }

    #[test]
    fn nothing_is_ended_while_nodes_come_back_one_by_one() {
        let mut nodes = Nodes::default();
        assert!(!nodes.is_held(12, 42, at(0)));
        assert!(nodes.is_held(14, 42, at(10)) && nodes.is_held(13, 42, at(20)));
        assert!(nodes.is_held(12, 42, at(21)) && nodes.is_held(1, 42, at(49)));
        assert!(
            !nodes.is_held(12, 42, at(50)),
            "what is lost after half a minute stays so"
        );
        assert!(nodes.is_held(13, 42, at(51)));
    }
}
