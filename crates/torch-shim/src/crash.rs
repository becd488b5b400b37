//! What a process that crashes says last: a line on stderr with numbers that others keep up to date.

use std::io::{Cursor, Write as _};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Signals that a faulty program gets: a broken pointer, a broken mapping, `abort` (also by a C++ exception that nobody
/// catches), an illegal instruction, a division by zero.
const SIGNALS: [i32; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT, libc::SIGILL, libc::SIGFPE];
/// Room for the line: names of a program's own, and numbers.
const LINE_MAX: usize = 512;

/// Numbers and their names.
pub type Numbers = [(&'static str, AtomicU64)];

static NUMBERS: OnceLock<&'static Numbers> = OnceLock::new();
static BEFORE: OnceLock<Vec<(i32, libc::sigaction)>> = OnceLock::new();

/// From now on this process, when it crashes, first writes
/// `{"level":"ERROR","message":"crashed","signal":11,"position":{"name":1,...}}` as a line to stderr, and then ends as it
/// would have. SIGKILL cannot be told. Counts once per process.
pub fn tell_crashes(numbers: &'static Numbers) {
    if NUMBERS.set(numbers).is_err() {
        return;
    }
    let mut before = Vec::new();
    for signal in SIGNALS {
        // SAFETY: all zeros is a valid sigaction: no flags, an empty mask, no handler.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = tell as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: as above.
        let mut old: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: both point to actions that live through the call; the handler has the signature of SA_SIGINFO and calls
        // only what may be called in a signal handler.
        if unsafe { libc::sigaction(signal, &action, &mut old) } == 0 {
            before.push((signal, old));
        }
    }
    let _ = BEFORE.set(before);
}

/// Formats on its stack, writes, and lets the process end.
extern "C" fn tell(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let mut line = [0_u8; LINE_MAX];
    let length = format(&mut line, signal, NUMBERS.get().copied().unwrap_or_default());
    // SAFETY: the pointer and the length are those of a part of `line`.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length) };
    // SAFETY: the kernel gives a valid siginfo with SA_SIGINFO.
    let is_sent = unsafe { (*info).si_code } <= 0;
    let before = BEFORE.get().and_then(|all| all.iter().find(|(of, _)| *of == signal));
    match before.filter(|_| !is_sent) {
        // A fault happens again on return, and the handler before this one may know more of it: that of Rust tells of a
        // stack that is full.
        // SAFETY: an action that sigaction gave; nothing is asked back.
        Some((_, before)) => unsafe {
            libc::sigaction(signal, before, ptr::null_mut());
        },
        // One that somebody sent, as `abort` does, comes once.
        // SAFETY: the default action is valid for each signal, and both calls may be made in a signal handler.
        None => unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        },
    }
}

/// The line; its length. Allocates nothing. What has no room is left out.
fn format(line: &mut [u8], signal: i32, numbers: &Numbers) -> usize {
    let mut to = Cursor::new(line);
    let _ = write!(
        to,
        r#"{{"level":"ERROR","message":"crashed","signal":{signal},"position":{{"#
    );
    for (i, (name, number)) in numbers.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(to, r#"{comma}"{name}":{}"#, number.load(Ordering::Relaxed));
    }
    let _ = writeln!(to, "}}}}");
    usize::try_from(to.position()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_json_with_the_numbers() {
        let numbers = [("step", AtomicU64::new(7)), ("attempt", AtomicU64::new(u64::MAX))];
        let mut line = [0; LINE_MAX];
        let length = format(&mut line, 11, &numbers);
        assert_eq!(
            std::str::from_utf8(&line[..length]).unwrap(),
            "{\"level\":\"ERROR\",\"message\":\"crashed\",\"signal\":11,\"position\":{\"step\":7,\"attempt\":18446744073709551615}}\n"
        );
        let mut small = [0; 10];
        assert_eq!(format(&mut small, 11, &numbers), 10, "no room is no panic");
    }
}
