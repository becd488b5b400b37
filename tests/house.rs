//! The dependency rule of docs/architecture.md, held over `cargo metadata`: which crate may reach what.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Crate, what of ours it may name, and what it must not reach, however far away.
const RULES: &[(&str, &[&str], &[&str])] = &[
    ("contract", &[], &["tokio", "kube-core", "tch"]),
    ("wire", &[], &["tokio", "kube-core", "tch"]),
    ("api", &["contract"], &["tokio", "hyper", "kube-client", "tch"]),
    (
        "policy",
        &["api", "contract", "wire"],
        &["kube-client", "kube-runtime", "tokio", "hyper", "rand", "tch"],
    ),
    (
        "operator",
        &["api", "policy", "contract"],
        &["tch", "torch-sys", "object_store"],
    ),
    ("store", &["contract"], &["kube-core", "axum", "tch"]),
    ("data", &["contract"], &["kube-core", "axum", "tch", "tokio"]),
    ("torch-shim", &[], &["tokio", "kube-core"]),
    (
        "learn",
        &["torch-shim", "data", "store", "contract"],
        &["kube-core", "axum"],
    ),
    (
        "trainer",
        &["learn", "data", "store", "contract", "wire", "api"],
        &["kube-client", "kube-runtime"],
    ),
    (
        "server",
        &["learn", "data", "store", "contract", "wire", "api"],
        &["kube-client", "kube-runtime"],
    ),
    (
        "cli",
        &["api", "policy", "contract", "wire", "store"],
        &["tch", "torch-sys"],
    ),
    ("localcluster", &["api", "contract"], &["tch", "kube-runtime"]),
    ("loadgen", &[], &["kube-core", "tch"]),
    ("testkit", &["api", "contract", "policy", "wire", "store"], &["tch"]),
];

struct Graph {
    names: BTreeMap<String, String>,
    dependencies: BTreeMap<String, Vec<String>>,
    members: BTreeMap<String, String>,
}

fn graph() -> Graph {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    let text = |v: &Value| v.as_str().expect("a string").to_owned();
    let names: BTreeMap<_, _> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| (text(&p["id"]), text(&p["name"])))
        .collect();
    let dependencies = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| {
            let normal = node["deps"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|d| d["dep_kinds"].as_array().unwrap().iter().any(|k| k["kind"].is_null()));
            (text(&node["id"]), normal.map(|d| text(&d["pkg"])).collect())
        })
        .collect();
    let members = metadata["workspace_members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| {
            (
                names[id.as_str().unwrap()].trim_start_matches("flywheel-").to_owned(),
                text(id),
            )
        })
        .collect();
    Graph {
        names,
        dependencies,
        members,
    }
}

#[test]
fn every_crate_reaches_only_what_it_may() {
    let graph = graph();
    let ruled: BTreeSet<_> = RULES.iter().map(|(name, _, _)| (*name).to_owned()).collect();
    assert_eq!(
        graph.members.keys().cloned().collect::<BTreeSet<_>>(),
        ruled,
        "every crate has a rule, and every rule a crate"
    );
    let mut broken = vec![];
    for (name, ours, never) in RULES {
        let id = &graph.members[*name];
        for direct in &graph.dependencies[id] {
            let direct = graph.names[direct].trim_start_matches("flywheel-");
            if graph.members.contains_key(direct) && !ours.contains(&direct) {
                broken.push(format!("{name} names {direct}"));
            }
        }
        let (mut seen, mut open) = (BTreeSet::new(), vec![id]);
        while let Some(next) = open.pop() {
            for dependency in &graph.dependencies[next] {
                if seen.insert(dependency) {
                    open.push(dependency);
                }
            }
        }
        for reached in seen {
            if never.contains(&graph.names[reached].as_str()) {
                broken.push(format!("{name} reaches {}", graph.names[reached]));
            }
        }
    }
    assert_eq!(broken, Vec::<String>::new());
}
