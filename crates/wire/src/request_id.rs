//! Ids by which a client finds its request again.

/// Header that carries the id in both directions.
pub const REQUEST_ID_HEADER: &str = "x-request-id";
/// Most characters of an id that a client may choose.
pub const MAX_REQUEST_ID_BYTES: usize = 128;

/// The id that a client sent, if it can be used: 1 to 128 visible ASCII characters, so that it can be put into headers,
/// logs and JSON as it stands.
#[must_use]
pub fn accepted(value: &[u8]) -> Option<&str> {
    let fits = (1..=MAX_REQUEST_ID_BYTES).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic);
    if fits { std::str::from_utf8(value).ok() } else { None }
}

/// Id of one prediction. A request with a single text has the request's id; in a list each text has its own, so that
/// each prediction can be referred to.
#[must_use]
pub fn of_prediction(request: &str, index: usize, list: bool) -> String {
    if list {
        format!("{request}-{index}")
    } else {
        request.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_id_may_be() {
        let longest = "x".repeat(128);
        for good in ["a", "0f-3_b:7/9", longest.as_str()] {
            assert_eq!(accepted(good.as_bytes()), Some(good));
        }
        let longer = "x".repeat(129);
        for bad in ["", " ", "a b", "a\r\nX: y", "ü", "a\0", longer.as_str()] {
            assert_eq!(accepted(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(accepted(&[0xff]), None);
    }

    #[test]
    fn predictions_of_a_list_have_ids_of_their_own() {
        assert_eq!(of_prediction("r", 0, false), "r");
        assert_eq!(of_prediction("r", 0, true), "r-0");
        assert_ne!(of_prediction("r", 1, true), of_prediction("r", 2, true));
    }
}
