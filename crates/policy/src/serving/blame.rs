//! Whether a version is to blame for the end of a pod's process.
//!
//! A pod knows with which versions beside the stable one it computed when its process ended, and holds them back. How the process
//! ended stands in the container's last state. Only both together tell, and where they leave a doubt the version is tried once
//! more: an innocent one must not go for what another did, and a guilty one does it again.

use flywheel_contract::serving::Crash;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ContainerStateTerminated;

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It used more memory than its limit: whoever asked for the last piece of it is killed with all others.
    OutOfMemory,
    /// It was killed from outside, by its node or after its time to end was over.
    Killed,
    /// It was told to end and did.
    Told,
    /// By a signal that a process brings upon itself, such as SIGSEGV or SIGABRT.
    Signal(i32),
    /// By itself with this exit code: a device that works no more, for example.
    Code(i32),
}

/// The last end of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How.
    pub how: How,
    /// When, by the clock of its node.
    pub at: Timestamp,
}

/// Exit codes from here on are this number and that of a signal, of which there are [`LAST_SIGNAL`].
const SIGNALS: i32 = 128;
const LAST_SIGNAL: i32 = 64;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

impl Ended {
    /// From a container's status; `None` where that does not say when.
    #[must_use]
    pub fn of(state: &ContainerStateTerminated) -> Option<Self> {
        let code = state.exit_code;
        // A runtime that lost sight of the process says 255.
        let signal = Some(code - SIGNALS).filter(|signal| (1..=LAST_SIGNAL).contains(signal));
        let signal = state.signal.or(signal);
        let how = match signal {
            _ if state.reason.as_deref() == Some("OOMKilled") => How::OutOfMemory,
            Some(SIGKILL) => How::Killed,
            Some(SIGTERM) => How::Told,
            Some(signal) => How::Signal(signal),
            None if code == 0 => How::Told,
            None => How::Code(code),
        };
        let at = state.finished_at.as_ref()?.0;
        Some(Self { how, at })
    }
}

/// What follows from a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// How the process ended is not known yet: the version stays held back.
    Unknown,
    /// It is not to blame, or not for certain: it is tried once more.
    Cleared,
    /// It ended the process: it stays held back.
    Guilty,
}

/// Judges a crash by the last end that is known of its pod's container.
#[must_use]
pub fn verdict(crash: &Crash, ended: Option<Ended>) -> Verdict {
    if crash.times > 1 {
        return Verdict::Guilty;
    }
    if !crash.last {
        // How it ended then stands nowhere any more.
        return Verdict::Cleared;
    }
    let Some(ended) = ended.filter(|ended| ended.at.as_second() >= crash.at) else {
        return Verdict::Unknown;
    };
    match ended.how {
        How::OutOfMemory | How::Killed | How::Code(_) => Verdict::Cleared,
        How::Signal(_) | How::Told if crash.together => Verdict::Cleared,
        // A pod that was told to end leaves no mark but that of a batch that never ended, for which its kubelet told it.
        How::Signal(_) | How::Told => Verdict::Guilty,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_last_state_tells_how() {
        for (code, signal, reason, how) in [
            (137, None, "OOMKilled", How::OutOfMemory),
            (137, None, "Error", How::Killed),
            (0, Some(9), "Error", How::Killed),
            (0, None, "Completed", How::Told),
            (143, None, "Error", How::Told),
            (134, None, "Error", How::Signal(6)),
            (139, None, "Error", How::Signal(11)),
            (1, None, "Error", How::Code(1)),
            (255, None, "Unknown", How::Code(255)),
            (192, None, "Error", How::Signal(64)),
            (101, None, "Error", How::Code(101)),
        ] {
            let state = ContainerStateTerminated {
                exit_code: code,
                signal,
                reason: Some(reason.to_owned()),
                finished_at: Some(Time(at(100))),
                ..ContainerStateTerminated::default()
            };
            assert_eq!(
                Ended::of(&state),
                Some(Ended { how, at: at(100) }),
                "{code} {signal:?} {reason}"
            );
            let state = ContainerStateTerminated {
                finished_at: None,
                ..state
            };
            assert_eq!(Ended::of(&state), None);
        }
    }

    #[test]
    fn only_what_is_certain_is_held_against_a_version() {
        use Verdict::{Cleared, Guilty, Unknown};
        let (abort, memory) = (Some(How::Signal(6)), Some(How::OutOfMemory));
        // times, together, last, how the container ended, and at which second (the crash was at 100)
        let table = [
            ("it ended the process", 1, false, true, abort, 100, Guilty),
            ("two were computed with", 1, true, true, abort, 101, Cleared),
            (
                "for the second time, again with another",
                2,
                true,
                true,
                abort,
                101,
                Guilty,
            ),
            ("memory", 1, false, true, memory, 101, Cleared),
            ("memory again", 2, false, true, memory, 101, Guilty),
            ("killed from outside", 1, false, true, Some(How::Killed), 101, Cleared),
            ("the device failed", 1, false, true, Some(How::Code(1)), 101, Cleared),
            ("a batch never ended", 1, false, true, Some(How::Told), 130, Guilty),
            ("one of two never ended", 1, true, true, Some(How::Told), 130, Cleared),
            ("nothing is known yet", 1, false, true, None, 0, Unknown),
            ("what is known is older", 1, false, true, abort, 99, Unknown),
            (
                "for the second time, whatever is known",
                2,
                false,
                true,
                None,
                0,
                Guilty,
            ),
            (
                "what is known is about a later end",
                1,
                false,
                false,
                abort,
                101,
                Cleared,
            ),
        ];
        for (case, times, together, last, how, second, expected) in table {
            let crash = Crash {
                id: "1".to_owned(),
                at: 100,
                times,
                together,
                last,
            };
            let ended = how.map(|how| Ended { how, at: at(second) });
            assert_eq!(verdict(&crash, ended), expected, "{case}");
        }
    }
}
