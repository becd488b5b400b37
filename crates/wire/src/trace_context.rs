//! W3C Trace Context, level 1: which trace a request belongs to.

/// Header that carries it.
pub const TRACEPARENT_HEADER: &str = "traceparent";
/// Header with what tracing systems add to it.
pub const TRACESTATE_HEADER: &str = "tracestate";
/// Digits of a trace's id.
const TRACE_DIGITS: usize = 32;
/// Digits of the parent's id.
const PARENT_DIGITS: usize = 16;

/// Bit of the flags that says that the trace is kept.
const SAMPLED: u8 = 1;

/// The span above a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent<'a> {
    /// The trace's id, 32 hexadecimal digits in lower case.
    pub trace: &'a str,
    /// The span's id, 16 of them.
    pub span: &'a str,
    /// Whether the trace is kept.
    pub sampled: bool,
}

/// The span above, if the value is one as the specification wants it; else it counts as absent.
#[must_use]
pub fn parse(value: &[u8]) -> Option<Parent<'_>> {
    let text = std::str::from_utf8(value).ok()?;
    let mut parts = text.splitn(5, '-');
    let mut digits = |count: usize| {
        let lower = |part: &&str| part.len() == count && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        parts.next().filter(lower)
    };
    let (version, trace, span, flags) = (digits(2)?, digits(TRACE_DIGITS)?, digits(PARENT_DIGITS)?, digits(2)?);
    let sampled = u8::from_str_radix(flags, 16).ok()? & SAMPLED != 0;
    let zero = |id: &str| id.bytes().all(|b| b == b'0');
    // Later versions may have more behind the flags; 255 is none.
    let ends_well = parts.next().is_none() || version != "00";
    (version != "ff" && !zero(trace) && !zero(span) && ends_well).then_some(Parent { trace, span, sampled })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn what_is_a_trace() {
        let span = "00f067aa0ba902b7";
        for (version, tail, sampled) in [
            ("00", "01", true),
            ("00", "00", false),
            ("00", "fe", false),
            ("cc", "03-what-comes", true),
        ] {
            let value = format!("{version}-{TRACE}-{span}-{tail}");
            let parent = Parent {
                trace: TRACE,
                span,
                sampled,
            };
            assert_eq!(parse(value.as_bytes()), Some(parent), "{value}");
        }
    }

    #[test]
    fn what_is_none() {
        let zeros = "0".repeat(32);
        for bad in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}"),
            format!("00-{TRACE}-00f067aa0ba902b7"),
            format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
            format!("00-{TRACE}-00f067aa0ba902b7-1"),
            format!("00-{TRACE}-00f067aa0ba902b7-0g"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{zeros}-00f067aa0ba902b7-01"),
            format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
            format!("00-{TRACE}0-00f067aa0ba902b7-01"),
            format!(" 00-{TRACE}-00f067aa0ba902b7-01"),
            format!("00_{TRACE}_00f067aa0ba902b7_01"),
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(parse(&[0xff; 55]), None);
    }
}
