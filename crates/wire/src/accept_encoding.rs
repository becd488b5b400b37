//! Whether an answer may be sent by gzip: `Accept-Encoding` of RFC 9110, 12.5.3.

/// What a client takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// As it is.
    Plain,
    /// By gzip or as it is.
    Gzip,
    /// By gzip only.
    GzipOnly,
}

/// Weight of a coding that is taken without a word about how gladly, in thousandths.
const FULL: u16 = 1000;

/// What the values of the header say. What cannot be read names nothing, and a client that takes neither gets the answer as it
/// is, which it can still read.
pub fn parse<'v>(values: impl IntoIterator<Item = &'v [u8]>) -> Coding {
    let (mut gzip, mut identity, mut others) = (None, None, None);
    let items = values.into_iter().filter_map(|value| std::str::from_utf8(value).ok());
    for item in items.flat_map(|value| value.split(',')) {
        let (name, weight) = item.split_once(';').unwrap_or((item, ""));
        let Some(weight) = weight_of(weight.trim()) else {
            continue;
        };
        let name = name.trim();
        let place = match name {
            "*" => &mut others,
            _ if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") => &mut gzip,
            _ if name.eq_ignore_ascii_case("identity") => &mut identity,
            _ => continue,
        };
        *place = Some(weight);
    }
    let gzip = gzip.or(others).unwrap_or(0);
    let taken_plain = identity.or(others) != Some(0);
    match (gzip, taken_plain) {
        (0, _) => Coding::Plain,
        (_, false) => Coding::GzipOnly,
        // Only who says so would rather have it as it is.
        _ if identity.is_some_and(|identity| identity > gzip) => Coding::Plain,
        _ => Coding::Gzip,
    }
}

/// `q=0.5` in thousandths; nothing is [`FULL`].
fn weight_of(text: &str) -> Option<u16> {
    if text.is_empty() {
        return Some(FULL);
    }
    let (name, value) = text.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("q") {
        return None;
    }
    let value = value.trim();
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let digits = fraction.len() <= 3 && fraction.bytes().all(|b| b.is_ascii_digit());
    match whole {
        "0" if digits => format!("{fraction:0<3}").parse().ok(),
        "1" if digits && fraction.bytes().all(|b| b == b'0') => Some(FULL),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_say() {
        let table: [(&[&str], Coding); 25] = [
            (&[], Coding::Plain),
            (&[""], Coding::Plain),
            (&["gzip"], Coding::Gzip),
            (&["GZip, deflate, br"], Coding::Gzip),
            (&["x-gzip"], Coding::Gzip),
            (&["br", "gzip"], Coding::Gzip),
            (&["br, zstd"], Coding::Plain),
            (&["*"], Coding::Gzip),
            (&["*;q=0.1"], Coding::Gzip),
            (&["*;q=0"], Coding::Plain),
            (&["gzip;q=0"], Coding::Plain),
            (&["gzip;q=0.000, *"], Coding::Plain),
            (&["gzip;q=0, *;q=0"], Coding::Plain),
            (&["gzip;q=0.001"], Coding::Gzip),
            (&["gzip;q=0.5, identity"], Coding::Plain),
            (&["gzip;q=0.5, identity;q=0.5"], Coding::Gzip),
            (&["gzip;q=1.0, identity; q=0.5"], Coding::Gzip),
            (&["gzip, identity;q=0"], Coding::GzipOnly),
            (&["gzip, *;q=0"], Coding::GzipOnly),
            (&["*, identity;q=0"], Coding::GzipOnly),
            (&["identity;q=0"], Coding::Plain),
            (&["gzip;q=0.1, *;q=0, identity;q=0.2"], Coding::Plain),
            // What is no weight is no coding.
            (&["gzip;q=2"], Coding::Plain),
            (
                &["gzip;q=1.001, gzip;level=9, gzip;q=0.1234, gzip;q=, gzip;q=-1"],
                Coding::Plain,
            ),
            (&["gzipped, *gzip"], Coding::Plain),
        ];
        for (values, coding) in table {
            assert_eq!(parse(values.iter().map(|v| v.as_bytes())), coding, "{values:?}");
        }
        assert_eq!(parse([&b"\xff"[..], b"gzip"]), Coding::Gzip);
    }
}
