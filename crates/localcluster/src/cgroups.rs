//! One control group per node: a kubelet removes every pod's group that it does not know.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::paths;

const ROOT: &str = "/sys/fs/cgroup";

/// The folders below which groups are made: the one of version 2, or one per hierarchy of version 1.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").is_file() {
        return Ok(vec![root.to_owned()]);
    }
    let mut found = vec![];
    for entry in fs::read_dir(root).map_err(Error::path("listing", root))?.flatten() {
        // In the hybrid layout the kernel's second version is mounted beside the first, without controllers.
        if entry.path().is_dir() && entry.file_name() != "unified" {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Makes the group in every hierarchy.
pub(crate) fn make(group: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let folder = hierarchy.join(group);
        paths::make(&folder)?;
        if hierarchy.join("cgroup.controllers").is_file() {
            for controller in ["cpu", "cpuset", "memory", "pids", "io"] {
                // A controller that the machine does not hand out is one that its kubelet cannot use either.
                let _ = fs::write(hierarchy.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // Version 1 leaves these empty in a new group, and no process can enter it then.
            let (from, to) = (hierarchy.join(file), folder.join(file));
            if from.is_file() && to.is_file() {
                fs::write(&to, paths::read(&from)?).map_err(Error::path("writing", &to))?;
            }
        }
    }
    Ok(())
}

/// Every group whose name begins with `prefix`, wherever it is (runc also makes some beside ours).
fn found(prefix: &str) -> Vec<PathBuf> {
    let mut parents = vec![PathBuf::from(ROOT)];
    parents.extend(
        fs::read_dir(ROOT)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path()),
    );
    let children = parents
        .iter()
        .filter_map(|parent| fs::read_dir(parent).ok())
        .flatten()
        .flatten();
    children
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && !path.is_symlink())
        .collect()
}

/// The processes in these groups and below.
pub(crate) fn processes(prefix: &str) -> BTreeSet<i32> {
    let mut pids = BTreeSet::new();
    for group in found(prefix) {
        walk(&group, &mut |folder| {
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        });
    }
    pids
}

/// Removes these groups, which must be empty of processes; a group stays busy for a moment after its last one.
pub(crate) fn remove(prefix: &str) -> Result<()> {
    const WITHIN: Duration = Duration::from_secs(15);
    let deadline = Instant::now() + WITHIN;
    loop {
        let mut last = None;
        for group in found(prefix) {
            walk(&group, &mut |folder| {
                if let Err(error) = fs::remove_dir(folder) {
                    last = Some((folder.to_owned(), error));
                }
            });
        }
        match last {
            None => return Ok(()),
            Some((folder, error)) if Instant::now() > deadline => return Err(Error::path("removing", &folder)(error)),
            Some(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Visits the folders below `folder`, then itself.
fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
    visit(folder);
}
