//! The program in a process of its own.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use flywheel_contract::artifact::MANIFEST_FILE;
use flywheel_contract::failure::FailureReason;
use flywheel_contract::names::ASSIGNMENT_FILE;
use flywheel_contract::serving::{Assignment, Stats};
use flywheel_contract::termination::{Outcome, TerminationMessage};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::common::{PATIENCE, get, until};
use crate::fixture::Setup;

/// A running program with a folder of its own.
pub struct Program {
    child: Child,
    pub data: SocketAddr,
    pub inside: SocketAddr,
    log: Arc<Mutex<String>>,
    /// Holds the termination log and, unless told otherwise, the scratch folder.
    pub home: tempfile::TempDir,
}

impl Program {
    pub fn start(arguments: impl FnOnce(&Path) -> Vec<String>) -> Self {
        Self::start_with(&[], arguments)
    }

    fn start_with(variables: &[(&str, &str)], arguments: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = home.path();
        let mut child = Command::new(env!("CARGO_BIN_EXE_flywheel-server"))
            .args([
                "--data-addr",
                "127.0.0.1:0",
                "--inside-addr",
                "127.0.0.1:0",
                "--storage-timeout",
                "1",
            ])
            .args(["--load-tries", "2", "--termination-log"])
            .arg(path.join("termination"))
            .arg("--scratch")
            .arg(path.join("scratch"))
            .args(arguments(path))
            // The line of each request, too, so that what no log may hold is looked for there as well.
            .env("RUST_LOG", "info,flywheel_server=debug")
            .envs(variables.iter().copied())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        thread::spawn({
            let log = Arc::clone(&log);
            move || {
                for line in lines.map_while(Result::ok) {
                    let mut log = log.lock().unwrap();
                    log.push_str(&line);
                    log.push('\n');
                }
            }
        });
        let (data, inside) = until("it listens", || {
            let log = log.lock().unwrap();
            let line = log.lines().find(|l| l.contains("\"listening\""))?;
            let json: Value = serde_json::from_str(line).unwrap();
            let address = |name: &str| json[name].as_str().unwrap().parse().unwrap();
            Some((address("data"), address("inside")))
        });
        Self {
            child,
            data,
            inside,
            log,
            home,
        }
    }

    pub fn serve(setup: &Setup) -> Self {
        Self::serve_from(setup, None)
    }

    /// With these environment variables.
    pub fn serve_with(setup: &Setup, variables: &[(&str, &str)]) -> Self {
        Self::start_with(variables, |home| arguments(home, setup, None))
    }

    /// With a scratch folder that outlives it.
    pub fn serve_from(setup: &Setup, scratch: Option<&Path>) -> Self {
        Self::serve_as("", setup, scratch)
    }

    /// As the pod of this name.
    pub fn serve_as(pod: &str, setup: &Setup, scratch: Option<&Path>) -> Self {
        Self::start(|home| {
            let mut arguments = arguments(home, setup, scratch);
            arguments.extend(["--pod".to_owned(), pod.to_owned()]);
            arguments
        })
    }

    /// Gives it another assignment, as the kubelet does: the file is exchanged in one step.
    pub fn assign(&self, assignment: &Assignment) {
        assign(self.home.path(), assignment);
    }

    pub fn ready(setup: &Setup) -> Self {
        let mut program = Self::serve(setup);
        program.wait_ready();
        program
    }

    pub fn wait_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while get(self.data, "/readyz").status != 200 {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("ended with {status}: {}", self.log());
            }
            assert!(Instant::now() < deadline, "never ready: {}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn stats(&self) -> Stats {
        serde_json::from_slice(&get(self.inside, "/stats").body).unwrap()
    }

    pub fn signal(&self) {
        self.send(Signal::TERM);
    }

    pub fn send(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Stops it where it is, until [`Signal::CONT`] or its end.
    pub fn stop(&self) {
        self.send(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.child.id());
        until("it stands", || {
            let stat = fs::read_to_string(&stat).unwrap();
            stat.rsplit(") ").next()?.starts_with('T').then_some(())
        });
    }

    pub fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        until("it ends", || child.try_wait().unwrap())
    }

    pub fn rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn arguments(home: &Path, setup: &Setup, scratch: Option<&Path>) -> Vec<String> {
    let config = home.join("serving.json");
    fs::write(&config, serde_json::to_vec(&setup.config).unwrap()).unwrap();
    assign(home, &setup.assignment);
    let mut arguments = vec!["serve".to_owned(), "--config".to_owned(), text(&config)];
    arguments.extend(["--assignment".to_owned(), text(&home.join(ASSIGNMENT_FILE))]);
    if let Some(scratch) = scratch {
        arguments.extend(["--scratch".to_owned(), text(scratch)]);
    }
    arguments
}

fn assign(home: &Path, assignment: &Assignment) {
    let new = home.join("assignment.new");
    fs::write(&new, serde_json::to_vec(assignment).unwrap()).unwrap();
    fs::rename(new, home.join(ASSIGNMENT_FILE)).unwrap();
}

pub fn assert_fails(name: &str, program: &mut Program, reason: FailureReason, word: &str) {
    let status = program.ended();
    assert_eq!(status.code(), Some(1), "{name}: {}", program.log());
    let written = fs::read_to_string(program.home.path().join("termination")).unwrap();
    let Some(TerminationMessage {
        outcome: Outcome::Failed(failure),
        ..
    }) = TerminationMessage::parse(&written)
    else {
        panic!("{name}: {written}")
    };
    assert_eq!(failure.reason, reason, "{name}: {failure}");
    assert!(failure.message.contains(word), "{name}: {failure}");
    let left: Vec<PathBuf> = fs::read_dir(program.home.path().join("scratch/artifacts"))
        .map(|entries| entries.map(|e| e.unwrap().path()).collect())
        .unwrap_or_default();
    let whole = left.iter().all(|path| path.join(MANIFEST_FILE).exists());
    assert!(whole, "{name}: left behind in the cache: {left:?}");
}
