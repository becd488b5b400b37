//! Work that takes a processor for long, on a thread of its own.

use flywheel_contract::failure::{Failure, FailureReason};
use tokio::sync::oneshot;

/// Niceness of a thread that works while requests are answered: a third of a worker's share where both want a core.
const YIELD: i32 = 5;

/// Runs it. `yielding`: requests are answered meanwhile and come first. A panic in there is a failure.
pub(crate) async fn apart<T: Send + 'static>(
    yielding: bool,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let (reply, outcome) = oneshot::channel();
    let run = move || {
        // Of this thread alone, and of those that it starts.
        if yielding && let Err(error) = rustix::process::nice(YIELD) {
            tracing::debug!(%error, "work beside competes with what answers");
        }
        // Nobody waits any more for a version that is not wanted any more.
        let _ = reply.send(work());
    };
    let internal = |message: String| Failure::new(FailureReason::InternalError, message);
    std::thread::Builder::new()
        .name("load".to_owned())
        .spawn(run)
        .map_err(|e| internal(format!("cannot start a thread: {e}")))?;
    outcome
        .await
        .unwrap_or_else(|_| Err(internal("loading panicked; the log says where".to_owned())))
}
