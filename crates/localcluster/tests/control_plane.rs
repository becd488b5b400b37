//! The lone control plane. Needs Go (or programs that are built already), no root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::time::{Duration, Instant};

use flywheel_localcluster::{ControlPlane, ControlPlaneOptions};

#[test]
fn two_side_by_side_know_nothing_of_each_other() {
    let start = || ControlPlane::start(&ControlPlaneOptions::default()).unwrap();
    let (one, two) = std::thread::scope(|scope| {
        let (one, two) = (scope.spawn(start), scope.spawn(start));
        (one.join().unwrap(), two.join().unwrap())
    });
    assert_ne!(one.server(), two.server());
    one.kubectl().run(["create", "namespace", "only-here"]).unwrap();
    let there = two.kubectl().run(["get", "namespaces", "-o", "name"]).unwrap();
    assert!(!there.contains("only-here"), "{there}");

    let folder = one.folder().to_owned();
    drop(one);
    assert!(!folder.exists(), "{} is left", folder.display());
    two.kubectl().run(["get", "--raw", "/readyz"]).unwrap();
}

#[test]
fn with_controllers_namespaces_end() {
    let options = ControlPlaneOptions {
        controllers: true,
        ..ControlPlaneOptions::default()
    };
    let plane = ControlPlane::start(&options).unwrap();
    plane.kubectl().run(["create", "namespace", "short-lived"]).unwrap();
    plane
        .kubectl()
        .run(["delete", "namespace", "short-lived", "--timeout=60s"])
        .unwrap();
    let version = plane.kubectl().run(["version", "-o", "json"]).unwrap();
    assert!(
        version.contains(&format!("\"gitVersion\": \"v{}\"", options.kubernetes)),
        "{version}"
    );
}

/// A test that is killed must leave no server behind.
#[test]
fn it_ends_with_its_owner_even_when_that_is_killed() {
    let mut owner = std::process::Command::new(env!("CARGO_BIN_EXE_flywheel-localcluster"))
        .args([
            "control-plane",
            "--",
            "sh",
            "-c",
            // The command is not the owner's to end; it ends with its standard input, which is this test's.
            "dirname \"$KUBECONFIG\"; exec cat",
        ])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut folder = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(owner.stdout.take().unwrap()), &mut folder).unwrap();
    let folder = std::path::PathBuf::from(folder.trim());
    assert!(folder.join("kubeconfig").is_file());
    owner.kill().unwrap();
    owner.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while folder.exists() {
        assert!(
            Instant::now() < deadline,
            "{} is still there 20 s after its owner's end",
            folder.display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
