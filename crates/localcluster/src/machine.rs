//! What the machine must give: root and a few Debian packages.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};

/// A file that must be there, and the Debian package that brings it.
const NEEDED: [(&str, &str); 9] = [
    ("runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/lib/cni/portmap", "containernetworking-plugins"),
    ("/usr/lib/cni/host-local", "containernetworking-plugins"),
    ("busybox", "busybox-static"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
];

/// Checks that real nodes can run here.
///
/// # Errors
/// We are not root, or packages are missing: the message has the line to run.
pub fn check() -> Result<()> {
    check_root()?;
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Missing {
        what: format!("the packages {}", missing.join(" ")),
        remedy: format!(
            "run `{}`, or `flywheel-localcluster programs --install-packages`",
            install_line(&missing)
        ),
    })
}

/// Checks that we are root.
///
/// # Errors
/// We are not.
pub(crate) fn check_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::Missing {
        what: "root's rights (nodes need network namespaces, mounts and control groups)".into(),
        remedy: "repeat with sudo".into(),
    })
}

/// Installs the missing packages with apt-get.
///
/// # Errors
/// apt-get fails; what it said is part of the message.
pub fn install_packages() -> Result<()> {
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    tracing::info!("installing {}", missing.join(" "));
    let mut install = Command::new("sh");
    install
        .args(["-c", &install_line(&missing)])
        .env("DEBIAN_FRONTEND", "noninteractive");
    crate::process::run(&mut install).map(drop)
}

fn install_line(packages: &[&str]) -> String {
    format!(
        "apt-get update && apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    )
}

fn missing_packages() -> Vec<&'static str> {
    let mut missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(file, _)| match find(file) {
            None => true,
            // A pod's image holds nothing but it: a busybox that needs libraries would not start.
            Some(path) => *file == "busybox" && !is_static(&path),
        })
        .map(|(_, package)| *package)
        .collect();
    missing.dedup();
    missing
}

/// Where `program` is; root's folders count even where PATH lacks them, as in cron or sudo.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|path| path.exists());
    }
    env::split_paths(&search_path(&[]))
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// A PATH with `first` in front and root's folders at the end.
pub(crate) fn search_path(first: &[&Path]) -> std::ffi::OsString {
    let usual = env::var_os("PATH").unwrap_or_default();
    let folders = first
        .iter()
        .map(|folder| folder.to_path_buf())
        .chain(env::split_paths(&usual))
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from));
    env::join_paths(folders).unwrap_or(usual)
}

fn is_static(program: &Path) -> bool {
    let loader = b"/ld-linux";
    fs::read(program).is_ok_and(|bytes| !bytes.windows(loader.len()).any(|window| window == loader))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_to_run_is_whole() {
        assert_eq!(
            install_line(&["runc", "iptables"]),
            "apt-get update && apt-get install -y --no-install-recommends runc iptables"
        );
    }

    #[test]
    fn programs_are_found_by_name_and_by_path() {
        assert!(find("sh").is_some());
        assert!(find("/nowhere/at/all").is_none());
    }
}
