//! Starting, watching, finding and ending processes.
//!
//! Every process that this crate starts carries [`MARKER`] in its environment with its cluster's folder, and its
//! children inherit it: so leftovers are found without any record of them, and nothing else is ever killed.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::{Error, Result};
use crate::paths;

/// Environment variable that names a process's cluster folder.
pub(crate) const MARKER: &str = "FLYWHEEL_LOCALCLUSTER";

/// Ends its child as soon as its standard input closes, which the system does when the owner ends, however it ends.
/// Arguments: where to write the child's id, a folder to remove at the end or nothing, program and arguments.
const LEASH: &str = r#"
pidfile=$1 remove=$2; shift 2
"$@" </dev/null & child=$!
echo "$child" >"$pidfile.tmp" && mv "$pidfile.tmp" "$pidfile"
read -r _
kill -KILL "$child" 2>/dev/null
wait "$child" 2>/dev/null
[ -z "$remove" ] || rm -rf -- "$remove" 2>/dev/null || { sleep 1; rm -rf -- "$remove"; }
"#;

/// A process that runs beside us.
#[derive(Debug, Clone)]
pub(crate) struct Daemon {
    pub(crate) name: String,
    pub(crate) log: PathBuf,
    pid: i32,
    /// Clock ticks since boot: with the id it names one process for ever, an id alone may be reused.
    started: u64,
}

impl Daemon {
    /// The daemon `name` of the cluster in `folder` as it was recorded, dead or alive.
    pub(crate) fn recorded(folder: &Path, name: &str) -> Option<Daemon> {
        let text = fs::read_to_string(pid_file(folder, name)).ok()?;
        let mut words = text.split_whitespace();
        let pid = words.next()?.parse().ok()?;
        let started = words.next()?.parse().ok()?;
        Some(Daemon {
            name: name.into(),
            log: log_file(folder, name),
            pid,
            started,
        })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    pub(crate) fn alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    pub(crate) fn died(&self) -> Error {
        Error::Died {
            component: self.name.clone(),
            log: self.log.clone(),
            tail: paths::tail(&self.log),
        }
    }
}

/// What to start.
pub(crate) struct Launch {
    /// Also the name of its log.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(String, OsString)>,
}

impl Launch {
    pub(crate) fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Launch {
            name: name.into(),
            program: program.into(),
            arguments: vec![],
            environment: vec![],
        }
    }

    pub(crate) fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    pub(crate) fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }
}

/// Starts it in a session of its own, so that it outlives us and no Ctrl-C of the terminal reaches it.
pub(crate) fn detach(folder: &Path, launch: &Launch) -> Result<Daemon> {
    let log = log_file(folder, &launch.name);
    let mut command = Command::new("setsid");
    command
        .arg(&launch.program)
        .args(&launch.arguments)
        .envs(launch.environment.iter().map(|(name, value)| (name, value)))
        .env(MARKER, folder)
        .stdin(Stdio::null());
    let mut child = with_log(&mut command, &log)?
        .spawn()
        .map_err(Error::path("starting", &launch.program))?;
    let pid = i32::try_from(child.id()).unwrap_or_default();
    let started = start_time(pid).unwrap_or_default();
    // While we live we are its parent: without this it would stay a zombie after its end.
    thread::spawn(move || child.wait());
    paths::write(&pid_file(folder, &launch.name), format!("{pid} {started}\n"))?;
    Ok(Daemon {
        name: launch.name.clone(),
        log,
        pid,
        started,
    })
}

/// A daemon that cannot outlive this process, not even when this process is killed.
#[derive(Debug)]
pub(crate) struct Leashed {
    pub(crate) daemon: Daemon,
    leash: Option<ChildStdin>,
    keeper: Child,
}

/// Starts it on a leash; `remove` is a folder that the leash removes at the end.
pub(crate) fn leash(folder: &Path, launch: &Launch, remove: Option<&Path>) -> Result<Leashed> {
    const WITHIN: Duration = Duration::from_secs(10);
    let log = log_file(folder, &launch.name);
    let file = pid_file(folder, &launch.name);
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", LEASH, "leash"])
        .arg(&file)
        .arg(remove.map(Path::as_os_str).unwrap_or_default())
        .arg(&launch.program)
        .args(&launch.arguments)
        .envs(launch.environment.iter().map(|(name, value)| (name, value)))
        .env(MARKER, folder)
        // Ctrl-C must reach us, not the daemon before us.
        .process_group(0)
        .stdin(Stdio::piped());
    let mut keeper = with_log(&mut command, &log)?
        .spawn()
        .map_err(Error::path("starting", &launch.program))?;
    let leash = keeper.stdin.take();
    let deadline = Instant::now() + WITHIN;
    let pid = loop {
        if let Some(pid) = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()) {
            break pid;
        }
        if Instant::now() > deadline {
            drop(leash);
            return Err(Error::NotReady {
                component: launch.name.clone(),
                waited: WITHIN,
                last: String::new(),
                tail: paths::tail(&log),
                log,
            });
        }
        thread::sleep(Duration::from_millis(5));
    };
    let started = start_time(pid).unwrap_or_default();
    Ok(Leashed {
        daemon: Daemon {
            name: launch.name.clone(),
            log,
            pid,
            started,
        },
        leash,
        keeper,
    })
}

impl Drop for Leashed {
    fn drop(&mut self) {
        drop(self.leash.take());
        // Its shell only kills and waits: nothing to learn from its status.
        let _ = self.keeper.wait();
    }
}

fn with_log<'a>(command: &'a mut Command, log: &Path) -> Result<&'a mut Command> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .map_err(Error::path("opening", log))?;
    let copy = file.try_clone().map_err(Error::path("opening", log))?;
    Ok(command.stdout(file).stderr(copy))
}

fn pid_file(folder: &Path, name: &str) -> PathBuf {
    folder.join("pid").join(name)
}

fn log_file(folder: &Path, name: &str) -> PathBuf {
    folder.join("log").join(format!("{name}.log"))
}

/// Start of a process in clock ticks since boot; nothing when it is gone or only waits for its parent.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold spaces and parentheses.
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 2..)?.split(' ').collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// All processes that belong to the cluster in `folder`: marked by it, or in one of its control groups.
fn belonging(folder: &Path, in_groups: &BTreeSet<i32>) -> BTreeSet<i32> {
    let mut marker = format!("{MARKER}=").into_bytes();
    marker.extend_from_slice(folder.as_os_str().as_encoded_bytes());
    let mut found = BTreeSet::new();
    let Ok(entries) = fs::read_dir("/proc") else {
        return found;
    };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if start_time(pid).is_some() && (in_groups.contains(&pid) || is_marked(pid, &marker)) {
            found.insert(pid);
        }
    }
    found
}

/// Folders of all clusters that have a process, whoever started it.
pub(crate) fn folders() -> BTreeSet<PathBuf> {
    let Ok(all) = fs::read_dir("/proc") else {
        return BTreeSet::new();
    };
    let marker = format!("{MARKER}=").into_bytes();
    all.flatten()
        .filter_map(|entry| fs::read(entry.path().join("environ")).ok())
        .filter_map(|environment| {
            let mut variables = environment.split(|byte| *byte == 0);
            let folder = variables.find_map(|variable| variable.strip_prefix(marker.as_slice()))?;
            Some(PathBuf::from(OsStr::from_bytes(folder)))
        })
        .collect()
}

fn is_marked(pid: i32, marker: &[u8]) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else {
        return false;
    };
    environment.split(|byte| *byte == 0).any(|variable| variable == marker)
}

/// Ends every process of the cluster in `folder`; `groups` lists the processes in its control groups.
///
/// They are killed, not asked: their data goes with the cluster, and their mounts and networks live in namespaces that
/// end with them.
pub(crate) fn end_all(folder: &Path, groups: impl Fn() -> BTreeSet<i32>) -> Result<()> {
    const WITHIN: Duration = Duration::from_secs(30);
    let deadline = Instant::now() + WITHIN;
    loop {
        let pids = belonging(folder, &groups());
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Usage(format!(
                "these processes of {} do not end though killed for {} s: {pids:?}; look at them with ps, then repeat",
                folder.display(),
                WITHIN.as_secs()
            )));
        }
        let mut marker = format!("{MARKER}=").into_bytes();
        marker.extend_from_slice(folder.as_os_str().as_encoded_bytes());
        for pid in pids {
            let Some(id) = Pid::from_raw(pid) else { continue };
            // First a handle, then the question, then the signal: the id cannot pass to a stranger in between.
            let Ok(handle) = pidfd_open(id, PidfdFlags::empty()) else {
                continue;
            };
            if is_marked(pid, &marker) || groups().contains(&pid) {
                // It may have ended by itself meanwhile; the next round looks again.
                let _ = pidfd_send_signal(&handle, Signal::KILL);
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Runs a program to its end and gives what it printed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    run_with(command, &[])
}

/// The same with something on its standard input.
pub(crate) fn run_with(command: &mut Command, input: &[u8]) -> Result<String> {
    let shown = shown(command);
    let mut child = command
        .stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io(format!("starting `{shown}`")))?;
    let writer = child.stdin.take().map(|mut pipe| {
        let input = input.to_vec();
        // A program that ends early closes the pipe; its status tells more than that.
        thread::spawn(move || drop(pipe.write_all(&input)))
    });
    let output = child
        .wait_with_output()
        .map_err(Error::io(format!("waiting for `{shown}`")))?;
    if let Some(writer) = writer {
        let _ = writer.join();
    }
    finished(shown, &output)
}

/// The same with a file on its standard input.
pub(crate) fn run_from(command: &mut Command, input: File) -> Result<String> {
    let shown = shown(command);
    let output = command
        .stdin(input)
        .output()
        .map_err(Error::io(format!("starting `{shown}`")))?;
    finished(shown, &output)
}

fn finished(command: String, output: &Output) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    Err(Error::Command {
        command,
        status: output.status.to_string(),
        output: said.trim_end().into(),
    })
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|argument| argument.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

/// Calls `probe` until it says yes, `within` is over or the daemon ends.
pub(crate) fn wait_for(
    what: &str,
    within: Duration,
    daemon: &Daemon,
    mut probe: impl FnMut() -> Result<bool>,
) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(100);
    let deadline = Instant::now() + within;
    loop {
        let answer = probe();
        // First whether it lives: somebody else may answer in its place, which is why it could not start.
        if !daemon.alive() {
            return Err(daemon.died());
        }
        if matches!(answer, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let last = answer
                .err()
                .map(|error| format!(" (the last attempt said: {error})"))
                .unwrap_or_default();
            let component = if what.is_empty() {
                daemon.name.clone()
            } else {
                format!("{} ({what})", daemon.name)
            };
            return Err(Error::NotReady {
                component,
                waited: within,
                last,
                log: daemon.log.clone(),
                tail: paths::tail(&daemon.log),
            });
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("pid")).unwrap();
        fs::create_dir(folder.path().join("log")).unwrap();
        folder
    }

    #[test]
    fn marked_processes_are_found_and_ended_others_are_not() {
        let (ours, theirs) = (folder(), folder());
        let launch = Launch::new("sleeper", "sleep").arg("300");
        let mine = detach(ours.path(), &launch).unwrap();
        let other = detach(theirs.path(), &launch).unwrap();
        wait_for("", Duration::from_secs(5), &mine, || {
            Ok(!belonging(ours.path(), &BTreeSet::new()).is_empty())
        })
        .unwrap();
        assert!(Daemon::recorded(ours.path(), "sleeper").unwrap().alive());
        end_all(ours.path(), BTreeSet::new).unwrap();
        assert!(!mine.alive());
        assert!(other.alive());
        end_all(theirs.path(), BTreeSet::new).unwrap();
    }

    #[test]
    fn a_leash_ends_its_daemon_and_removes_the_folder() {
        let folder = folder();
        let path = folder.path().to_owned();
        let leashed = leash(&path, &Launch::new("sleeper", "sleep").arg("300"), Some(&path)).unwrap();
        let daemon = leashed.daemon.clone();
        assert!(daemon.alive());
        drop(leashed);
        assert!(!daemon.alive());
        assert!(!path.exists());
    }

    #[test]
    fn a_daemon_that_ends_is_reported_with_its_last_lines() {
        let folder = folder();
        let launch = Launch::new("speaker", "sh").args(["-c", "echo cannot bind; exit 1"]);
        let daemon = detach(folder.path(), &launch).unwrap();
        let error = wait_for("", Duration::from_secs(10), &daemon, || Ok(false))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("speaker ended by itself") && error.contains("cannot bind"),
            "{error}"
        );
    }
}
