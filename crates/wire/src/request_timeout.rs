//! How long a client waits for its answer, said by itself.

use std::time::Duration;

use crate::error::{ErrorReason, Refusal};

/// Header with the time in seconds, such as `0.25`. It can only shorten the service's `timeoutMilliseconds`.
pub const REQUEST_TIMEOUT_HEADER: &str = "x-request-timeout";
/// Most digits before the point.
const WHOLE_DIGITS: usize = 6;
/// Most digits behind it: nanoseconds.
const FRACTION_DIGITS: usize = 9;

/// Reads the header's value: seconds above 0, in digits with at most one point.
///
/// # Errors
/// [`ErrorReason::MalformedRequest`] for anything else: a time that is passed over would be another one than was asked for.
pub fn parse(value: &[u8]) -> Result<Duration, Refusal> {
    read(value).ok_or_else(|| {
        Refusal::new(
            ErrorReason::MalformedRequest,
            format!(
                "{REQUEST_TIMEOUT_HEADER} must be seconds above 0 such as 2 or 0.25, at most {WHOLE_DIGITS} digits before \
                 the point and {FRACTION_DIGITS} behind it"
            ),
        )
    })
}

/// Reads the value of gRPC's own header, such as `250m` for 250 ms: at most 8 digits and one of H, M, S, m, u, n.
///
/// # Errors
/// As [`parse`].
pub fn parse_grpc(value: &[u8]) -> Result<Duration, Refusal> {
    let read = || {
        let (unit, digits) = value.split_last()?;
        let digits = std::str::from_utf8(digits).ok()?;
        let fits = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        let count: u64 = digits.parse().ok().filter(|_| fits)?;
        Some(match unit {
            b'H' => Duration::from_secs(count * 3600),
            b'M' => Duration::from_secs(count * 60),
            b'S' => Duration::from_secs(count),
            b'm' => Duration::from_millis(count),
            b'u' => Duration::from_micros(count),
            b'n' => Duration::from_nanos(count),
            _ => return None,
        })
    };
    read().ok_or_else(|| {
        Refusal::new(
            ErrorReason::MalformedRequest,
            "grpc-timeout must be at most 8 digits and one of H, M, S, m, u, n",
        )
    })
}

fn read(value: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = match text.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
        Some(_) => return None,
        None => (text, ""),
    };
    let digits = |part: &str, most: usize| part.len() <= most && part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole, WHOLE_DIGITS) || !digits(fraction, FRACTION_DIGITS) {
        return None;
    }
    let seconds = whole.parse().ok()?;
    let nanoseconds = format!("{fraction:0<FRACTION_DIGITS$}").parse().ok()?;
    Some(Duration::new(seconds, nanoseconds)).filter(|time| !time.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_with_a_point() {
        for (text, milliseconds) in [
            ("2", 2000),
            ("0.25", 250),
            ("000001.5", 1500),
            ("0.001", 1),
            ("999999", 999_999_000),
        ] {
            assert_eq!(
                parse(text.as_bytes()).unwrap(),
                Duration::from_millis(milliseconds),
                "{text}"
            );
        }
        assert_eq!(parse(b"0.000000001").unwrap(), Duration::from_nanos(1));
    }

    #[test]
    fn what_is_no_time() {
        for text in [
            "",
            "0",
            "0.0",
            "-1",
            "+1",
            "1e3",
            ".5",
            "5.",
            "1.2.3",
            " 1",
            "1 ",
            "1s",
            "250ms",
            "1,5",
            "0x1",
            "NaN",
            "inf",
            "1000000",
            "0.0000000001",
            "٣",
            "1\0",
        ] {
            let refusal = parse(text.as_bytes()).unwrap_err();
            assert_eq!(refusal.reason, ErrorReason::MalformedRequest, "{text:?}");
        }
        assert!(parse(&[0xff]).is_err());
    }

    #[test]
    fn the_units_of_grpc() {
        for (text, nanoseconds) in [
            ("1H", 3_600_000_000_000),
            ("2M", 120_000_000_000),
            ("3S", 3_000_000_000),
            ("4m", 4_000_000),
            ("5u", 5000),
            ("00000006n", 6),
        ] {
            assert_eq!(
                parse_grpc(text.as_bytes()).unwrap(),
                Duration::from_nanos(nanoseconds),
                "{text}"
            );
        }
        assert_eq!(parse_grpc(b"99999999H").unwrap().as_secs(), 359_999_996_400);
        for bad in [
            "",
            "S",
            "1",
            "1s",
            "-1S",
            "+1S",
            "1.5S",
            "123456789m",
            "1 S",
            "1SS",
            "١S",
        ] {
            assert!(parse_grpc(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
