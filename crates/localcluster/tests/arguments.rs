//! What the command line means. Needs neither root nor any program.
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
