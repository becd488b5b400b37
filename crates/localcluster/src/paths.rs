//! Where programs, layers and clusters lie on disk.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A Unix socket's path holds 107 bytes and a zero.
const SOCKET_PATH_BYTES: usize = 107;
/// The longest path below a cluster's folder that is a socket: a node's name, then containerd's second socket.
const LONGEST_SOCKET: &str = "/nodes/system-99/run/containerd.sock.ttrpc";

/// The folder of everything that is kept between runs: `$FLYWHEEL_CACHE`, else `$XDG_CACHE_HOME/flywheel`, else
/// `~/.cache/flywheel`.
///
/// # Errors
/// Neither variable nor `HOME` is set, or the folder cannot be made.
pub fn cache() -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = match (set("FLYWHEEL_CACHE"), set("XDG_CACHE_HOME"), set("HOME")) {
        (Some(folder), _, _) => folder,
        (None, Some(cache), _) => cache.join("flywheel"),
        (None, None, Some(home)) => home.join(".cache/flywheel"),
        (None, None, None) => {
            return Err(Error::Usage(
                "no cache folder: set FLYWHEEL_CACHE or HOME to a folder you may write".into(),
            ));
        }
    };
    make(&folder)?;
    // One true name per cluster: its processes are found by it.
    folder.canonicalize().map_err(Error::path("resolving", &folder))
}

/// The folder of the cluster `name`, which need not exist.
///
/// # Errors
/// The name is no short DNS label, or the folder's path is too long for the sockets in it.
pub fn cluster(name: &str) -> Result<PathBuf> {
    let valid = !name.is_empty()
        && name.len() <= 20
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-');
    if !valid {
        return Err(Error::Usage(format!(
            "`{name}` is no name for a cluster: use up to 20 of a-z, 0-9 and -, not starting with -"
        )));
    }
    let folder = clusters()?.join(name);
    if folder.as_os_str().len() + LONGEST_SOCKET.len() > SOCKET_PATH_BYTES {
        return Err(Error::Usage(format!(
            "{} is too long a path for the sockets in it: set FLYWHEEL_CACHE to a shorter folder",
            folder.display()
        )));
    }
    Ok(folder)
}

/// The folder of all clusters.
pub(crate) fn clusters() -> Result<PathBuf> {
    let folder = cache()?.join("clusters");
    make(&folder)?;
    Ok(folder)
}

pub(crate) fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::path("making", folder))
}

pub(crate) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::path("reading", path))
}

/// Writes under another name, then renames: a reader never sees half a file.
pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    fs::write(&temporary, content).map_err(Error::path("writing", &temporary))?;
    fs::rename(&temporary, path).map_err(Error::path("writing", path))
}

/// An exclusive lock between processes; the system lets go of it when its holder ends, however it ends.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let file = open_lock(path)?;
    file.lock().map_err(Error::path("locking", path))?;
    Ok(file)
}

/// The same, or nothing when another process holds it.
pub(crate) fn try_lock(path: &Path) -> Result<Option<File>> {
    let file = open_lock(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(Error::path("locking", path)(error)),
    }
}

fn open_lock(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(Error::path("opening", path))
}

/// The last lines of a log, for an error message.
pub(crate) fn tail(log: &Path) -> String {
    const LINES: usize = 15;
    let text = fs::read(log)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LINES);
    let end = lines.get(from..).unwrap_or_default().join("\n");
    if end.is_empty() { "(empty)".into() } else { end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_the_folder_are_refused() {
        for name in ["", "..", "a/b", "-x", "Upper", "a-name-of-more-than-twenty"] {
            assert!(cluster(name).is_err(), "{name}");
        }
        assert!(cluster("default").unwrap().ends_with("clusters/default"));
    }

    #[test]
    fn a_lock_is_held_until_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = lock(&path).unwrap();
        assert!(try_lock(&path).unwrap().is_none());
        drop(held);
        assert!(try_lock(&path).unwrap().is_some());
    }
}
