//! Follows the assignment: loads what is to be held, one version at a time and beside what answers.
//!
//! What answers goes on until the next one can: a version that cannot be loaded changes nothing but what `/stats` says.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::serving::{Assignment, LoadState, ServedVersion, ServingConfig};
use tokio::sync::watch;

use crate::app::App;
use crate::load::Likened;
use crate::marks::Crashes;
use crate::run::Options;
use crate::{config, fetch, load};

/// Time between two looks at the file. The kubelet puts a new content there within a second of a change.
const LOOK: Duration = Duration::from_millis(50);
/// Time until a version is tried again whose storage did not answer, after all tries of the first time.
const TRY_AGAIN: Duration = Duration::from_secs(30);
/// File in the scratch folder with the digest of the version that is being loaded beside another one.
const MARK: &str = "loading";

/// Where the assignment comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// It never changes.
    Fixed(Box<Assignment>),
    /// A file that is looked at again and again, by the pod of this name.
    File {
        /// The file.
        path: PathBuf,
        /// Name of the pod.
        pod: String,
    },
}

impl Source {
    /// The folder in which a process leaves word for the next one: none where nobody restarts it or clears what it left.
    pub(crate) fn outlived_in<'a>(&self, options: &'a Options) -> Option<&'a Path> {
        match self {
            Self::Fixed(_) => None,
            Self::File { .. } => Some(&options.scratch),
        }
    }

    /// The assignment of now, and what it changes to. Without the sender the receiver would see an end.
    fn open(&self) -> Result<(watch::Sender<Assignment>, watch::Receiver<Assignment>), Failure> {
        let (path, pod) = match self {
            Self::Fixed(assignment) => return Ok(watch::channel((**assignment).clone())),
            Self::File { path, pod } => (path.clone(), pod.clone()),
        };
        // The receiver first: the thread ends when there is none.
        let (sender, receiver) = watch::channel(config::assignment_from_file(&path)?.of_pod(&pod));
        let told = sender.clone();
        std::thread::Builder::new()
            .name("assignment".to_owned())
            .spawn(move || look(&path, &pod, &told))
            .map_err(|e| Failure::new(FailureReason::InternalError, format!("cannot start a thread: {e}")))?;
        Ok((sender, receiver))
    }
}

/// Sends what the file changes to, until nobody receives. A content that cannot be used is logged and passed over.
fn look(path: &Path, pod: &str, sender: &watch::Sender<Assignment>) {
    let mut refused = String::new();
    while !sender.is_closed() {
        std::thread::sleep(LOOK);
        match config::assignment_from_file(path).map(|assignment| assignment.of_pod(pod)) {
            Ok(assignment) => {
                refused.clear();
                sender.send_if_modified(|now| {
                    let changed = *now != assignment;
                    if changed {
                        *now = assignment;
                    }
                    changed
                });
            }
            Err(failure) => {
                // Once for each content.
                if refused != failure.message {
                    tracing::warn!(
                        message = failure.message,
                        "the assignment cannot be used; the last one is followed"
                    );
                    refused = failure.message;
                }
            }
        }
    }
}

/// Follows until a failure that leaves nothing to answer with.
///
/// # Errors
/// Why there is no assignment, or why the version that is to answer could not be loaded while none answers.
pub(crate) async fn follow(
    app: &App,
    config: &ServingConfig,
    options: &Options,
    source: &Source,
) -> Result<std::convert::Infallible, Failure> {
    let (_sender, mut assignments) = source.open()?;
    let mark = Mark(options.scratch.join(MARK));
    let mut crashed = mark.read().await;
    let mut crashes = Crashes::take_over(source.outlived_in(options), crashed.as_deref()).await;
    let follow = |assignments: &mut watch::Receiver<Assignment>| {
        let assignment = assignments.borrow_and_update().clone();
        if !app.follow(&assignment) {
            return;
        }
        tracing::info!(
            generation = assignment.generation,
            serve = assignment.serve,
            versions = assignment.versions.len(),
            "follows the assignment"
        );
    };
    follow(&mut assignments);
    loop {
        if let Some(digest) = &crashed
            && !assignments
                .borrow()
                .versions
                .iter()
                .any(|v| v.artifact.digest.hex() == digest)
        {
            // Who wants it again has mended something.
            crashed = None;
            mark.clear().await;
        }
        let now = assignments.borrow().clone();
        for version in crashes.follow(&now).await {
            app.versions.release(&version);
        }
        let Some(version) = app.versions.next() else {
            fetch::tidy(
                &options.scratch,
                assignments.borrow().versions.iter().map(|v| &v.artifact.digest),
            )
            .await;
            let again = app.versions.may_recover();
            tokio::select! {
                _ = assignments.changed() => {}
                () = tokio::time::sleep(TRY_AGAIN), if again => {
                    app.versions.retry();
                    continue;
                }
            }
            follow(&mut assignments);
            continue;
        };
        let beside = app.versions.answering().is_some();
        if !app.versions.is_stable(&version) {
            if crashed.as_deref() == Some(version.artifact.digest.hex()) {
                app.failed(&version, crash(&version));
                continue;
            }
            if let Some(crash) = crashes.holds_back(&version) {
                app.held_back(&version, crash);
                continue;
            }
        }
        let likened = likened(&now, &version, options);
        let mut loading = pin!(load_one(
            app,
            config,
            options,
            &version,
            beside.then_some(&mark),
            likened
        ));
        let outcome = loop {
            tokio::select! {
                outcome = &mut loading => break outcome,
                _ = assignments.changed() => {}
            }
            follow(&mut assignments);
            if !app.versions.wants(&version) {
                tracing::info!(version = version.name, "is not wanted any more; its loading ends");
                break Ok(());
            }
        };
        if let Err(failure) = outcome {
            app.failed(&version, failure.clone());
            if app.versions.answering().is_none() && app.versions.is_stable(&version) {
                return Err(failure);
            }
            tracing::error!(
                version = version.name,
                reason = failure.reason.as_str(),
                message = failure.message,
                "cannot be loaded; what answers goes on"
            );
        }
    }
}

/// What a version's answers are compared with: those of the version that answers, where this one comes by steps, gets copies or
/// a share, so that it is known should it come by steps later. One that all pods change over to at once is not to be waited for
/// longer than need be.
fn likened(assignment: &Assignment, version: &ServedVersion, options: &Options) -> Option<Likened> {
    let comes = assignment.canary.as_ref().map(|canary| &canary.version) == Some(version);
    let copied = assignment.mirror.as_ref().map(|mirror| &mirror.version) == Some(&version.name);
    let shares = assignment.split.iter().flat_map(|split| &split.ranges);
    let varies = shares.into_iter().any(|range| range.version == version.name);
    let stable = assignment.serving().filter(|stable| *stable != version)?;
    (comes || copied || varies).then(|| Likened {
        folder: fetch::folder(&options.scratch, &stable.artifact.digest),
        digest: stable.artifact.digest.clone(),
    })
}

/// Loads a version, beside another one where there is a `mark`.
async fn load_one(
    app: &App,
    config: &ServingConfig,
    options: &Options,
    version: &ServedVersion,
    mark: Option<&Mark>,
    likened: Option<Likened>,
) -> Result<(), Failure> {
    let since = Instant::now();
    app.versions.set(version, LoadState::Downloading);
    let fetched = load::fetch(config, options, version, mark.is_some()).await?;
    app.versions.set(version, LoadState::Loading);
    if let Some(mark) = mark {
        mark.set(version).await;
    }
    let outcome = match load::build(config, fetched, mark.is_some(), likened).await {
        Ok(loaded) => app.install(version.clone(), loaded, since).await,
        Err(failure) => Err(failure),
    };
    if let Some(mark) = mark {
        mark.clear().await;
    }
    outcome
}

fn crash(version: &ServedVersion) -> Failure {
    Failure::new(
        FailureReason::LoadCrashed,
        format!(
            "the server ended while it loaded {} beside the version that answers, so this pod does not try again. `kubectl logs \
             --previous` and the pod's last state say why; where it ran out of memory raise server.resources.limits.memory",
            version.name
        ),
    )
}

/// Remembers over the end of the process which version was being built: one that ends it must not end it again and again.
struct Mark(PathBuf);

impl Mark {
    async fn read(&self) -> Option<String> {
        tokio::fs::read_to_string(&self.0).await.ok()
    }

    async fn set(&self, version: &ServedVersion) {
        if let Err(error) = tokio::fs::write(&self.0, version.artifact.digest.hex()).await {
            tracing::warn!(%error, path = %self.0.display(), "cannot be written; a version that ends the process would do so again");
        }
    }

    async fn clear(&self) {
        if let Err(error) = tokio::fs::remove_file(&self.0).await {
            tracing::warn!(%error, path = %self.0.display(), "cannot be removed");
        }
    }
}
