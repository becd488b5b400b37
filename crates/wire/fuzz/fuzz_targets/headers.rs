//! Values of headers: ids, times, lengths.
#![no_main]

use std::time::Duration;

use flywheel_wire::{infer, request_id, request_timeout};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|value: &[u8]| {
    if let Some(id) = request_id::accepted(value) {
        assert!((1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()));
    }
    if let Ok(time) = request_timeout::parse(value) {
        assert!(time > Duration::ZERO && time < Duration::from_secs(1_000_000));
        let text = std::str::from_utf8(value).unwrap();
        assert!((time.as_secs_f64() - text.parse::<f64>().unwrap()).abs() < 1e-6);
    }
    if let Ok(length) = infer::header_length(value) {
        assert_eq!(
            std::str::from_utf8(value)
                .unwrap()
                .trim_start_matches('0')
                .parse()
                .unwrap_or(0),
            length
        );
    }
});
