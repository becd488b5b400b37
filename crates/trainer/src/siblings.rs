//! The other processes of a pod: one for each GPU. The first starts them, passes on that they are to end, and does not
//! outlive them, nor they it.
//!
//! A pipe to their standard input is the line between them: a byte says that they are to end, and its end that the first
//! process is gone, however it went.

use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::termination::{Outcome, TerminationMessage};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::place::Place;

/// What is written to say that they are to end.
const END: u8 = b'e';
/// Time for siblings to end by themselves when all is done.
const END_WITHIN: Duration = Duration::from_secs(5);
/// The same after a failure, which they see as well.
const FAIL_WITHIN: Duration = Duration::from_millis(500);
/// Most bytes of a termination message; the kubelet keeps no more.
const MESSAGE_MAX_BYTES: u64 = 4096;

struct Sibling {
    local: u32,
    child: Child,
    line: Option<ChildStdin>,
    /// Its termination message.
    message: PathBuf,
}

/// The processes that this one has started.
pub(crate) struct Siblings {
    all: Vec<Sibling>,
    // Of the messages.
    _folder: tempfile::TempDir,
}

impl Siblings {
    /// Starts all others of the pod with these arguments beside those that name them; their termination messages go into
    /// `folder`. They inherit the environment.
    pub(crate) fn start(
        place: &Place,
        rendezvous: &str,
        arguments: &[String],
        folder: tempfile::TempDir,
    ) -> Result<Self, Failure> {
        let internal = |e: std::io::Error| {
            Failure::new(
                FailureReason::InternalError,
                format!("the other processes of this pod could not be started: {e}"),
            )
        };
        let program = std::env::current_exe().map_err(internal)?;
        let mut all = Vec::new();
        for local in 1..place.in_pod {
            let message = folder.path().join(local.to_string());
            let mut child = Command::new(&program)
                .arg("train")
                .args(["--local-rank", &local.to_string(), "--rendezvous", rendezvous])
                .args(arguments)
                .arg("--termination-log")
                .arg(&message)
                .stdin(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .map_err(internal)?;
            let line = child.stdin.take();
            all.push(Sibling {
                local,
                child,
                line,
                message,
            });
        }
        Ok(Self { all, _folder: folder })
    }

    /// The failure of the first that ends with one; never, where none does.
    pub(crate) async fn failed(&mut self) -> Failure {
        loop {
            let mut alive = false;
            for sibling in &mut self.all {
                match sibling.child.try_wait() {
                    Ok(None) => alive = true,
                    Ok(Some(status)) if status.success() => (),
                    Ok(Some(status)) => return sibling.failure(&status.to_string()),
                    Err(e) => return sibling.failure(&e.to_string()),
                }
            }
            if !alive {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Passes on that this process is to end.
    pub(crate) async fn tell_to_end(&mut self) {
        for sibling in &mut self.all {
            if let Some(line) = &mut sibling.line
                && let Err(error) = line.write_all(&[END]).await
            {
                tracing::warn!(local = sibling.local, %error, "a process of this pod could not be told to end");
            }
        }
    }

    /// Waits for all to end, shortly after a failure, and kills who does not.
    pub(crate) async fn end(mut self, failed: bool) {
        let within = if failed { FAIL_WITHIN } else { END_WITHIN };
        let all = async {
            for sibling in &mut self.all {
                let _ = sibling.child.wait().await;
            }
        };
        if timeout(within, all).await.is_ok() {
            return;
        }
        for sibling in &mut self.all {
            if let Err(error) = sibling.child.kill().await {
                tracing::warn!(local = sibling.local, %error, "a process of this pod could not be ended");
            }
        }
    }
}

impl Sibling {
    /// What it says itself, or that it is gone.
    fn failure(&self, status: &str) -> Failure {
        let mut text = String::new();
        let read =
            std::fs::File::open(&self.message).map(|file| file.take(MESSAGE_MAX_BYTES).read_to_string(&mut text));
        match read
            .ok()
            .and_then(|_| TerminationMessage::parse(&text))
            .map(|m| m.outcome)
        {
            Some(Outcome::Failed(failure)) => failure,
            _ => Failure::new(
                FailureReason::PeerLost,
                format!("process {} of this pod has ended: {status}", self.local),
            ),
        }
    }
}

/// What a sibling hears from the process that started it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Line {
    /// How often it was told to end.
    pub(crate) told: u32,
    /// The other side is gone.
    pub(crate) gone: bool,
}

/// The sibling's side of the line.
pub(crate) fn line() -> Result<watch::Receiver<Line>, Failure> {
    let (heard, line) = watch::channel(Line::default());
    std::thread::Builder::new()
        .name("line".to_owned())
        .spawn(move || {
            let mut byte = [0];
            // An error is an end as well.
            while let Ok(1) = std::io::stdin().read(&mut byte) {
                heard.send_modify(|line| line.told += 1);
            }
            heard.send_modify(|line| line.gone = true);
        })
        .map_err(|e| Failure::new(FailureReason::InternalError, format!("no thread for the line: {e}")))?;
    Ok(line)
}
