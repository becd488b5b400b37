//! What the command line means. Starts no cluster.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::process::Command;

/// `down` with these arguments and FLYWHEEL_CLUSTER, on an empty cache folder: whether it succeeds, and what it says.
fn down(environment: Option<&str>, arguments: &[&str]) -> (bool, String) {
    let cache = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flywheel-localcluster"));
    command.arg("down").args(arguments).env("FLYWHEEL_CACHE", cache.path());
    match environment {
        Some(name) => command.env("FLYWHEEL_CLUSTER", name),
        None => command.env_remove("FLYWHEEL_CLUSTER"),
    };
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), text)
}

#[test]
fn all_clusters_are_meant_whatever_the_environment_names_but_not_beside_a_name() {
    for environment in [None, Some("default"), Some("mine")] {
        let (done, text) = down(environment, &["--all"]);
        assert!(done, "{environment:?}: {text}");
        assert!(
            !text.contains("is down"),
            "{environment:?}: there is no cluster: {text}"
        );
        for arguments in [["--all", "--name", "mine"], ["--name", "mine", "--all"]] {
            let (done, text) = down(environment, &arguments);
            assert!(
                !done && text.contains("'--all' cannot be used with '--name"),
                "{environment:?} {arguments:?}: {text}"
            );
        }
    }
}

/// sudo gives a program another HOME, and so another cache folder.
#[test]
fn a_cluster_of_another_cache_folder_is_not_said_to_be_down() {
    let other = tempfile::tempdir().unwrap();
    let name = format!("other-{}", std::process::id());
    let folder = other.path().join("clusters").join(&name);
    let mut process = Command::new("sleep")
        .arg("600")
        .env("FLYWHEEL_LOCALCLUSTER", &folder)
        .spawn()
        .unwrap();
    let (done, text) = down(None, &["--name", &name]);
    let runs = process.try_wait().unwrap().is_none();
    process.kill().unwrap();
    process.wait().unwrap();
    let hint = format!("FLYWHEEL_CACHE={}", other.path().display());
    assert!(!done && text.contains(&hint) && !text.contains("is down"), "{text}");
    assert!(runs, "it belongs to somebody else");
    let (done, text) = down(None, &["--name", &name]);
    assert!(done, "nothing of it is left: {text}");
}

#[test]
fn a_cluster_is_current_or_local() {
    let program = || Command::new(env!("CARGO_BIN_EXE_flywheel-localcluster"));
    for (cluster, kubeconfig, says) in [
        ("mine", "/dev/null", "only `current` is known"),
        ("current", "/no/such/file", "KUBECONFIG names /no/such/file"),
    ] {
        let mut status = program();
        status
            .arg("status")
            .env("CLUSTER", cluster)
            .env("KUBECONFIG", kubeconfig);
        let output = status.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(says), "{text}");
    }
}
