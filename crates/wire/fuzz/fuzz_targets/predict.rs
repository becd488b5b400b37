//! Bodies of `/predict`: never a panic, and what is taken is within the bounds, is JSON and comes back the same.
#![no_main]

use flywheel_wire::PredictRequest;
use flywheel_wire::error::ErrorReason;
use flywheel_wire::predict::{MAX_TEXT_BYTES, MAX_TEXTS};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| match PredictRequest::parse(body) {
    Ok(request) => {
        assert!((1..=MAX_TEXTS).contains(&request.texts().len()));
        assert!(
            request
                .texts()
                .iter()
                .all(|t| !t.trim().is_empty() && t.len() <= MAX_TEXT_BYTES)
        );
        assert!(serde_json::from_slice::<serde_json::Value>(body).is_ok());
        assert_eq!(PredictRequest::parse(&request.to_json()), Ok(request));
    }
    Err(refusal) => {
        assert!((400..500).contains(&refusal.reason.status()), "{refusal}");
        let json = serde_json::from_slice::<serde_json::Value>(body).is_ok();
        assert!(!json || refusal.reason != ErrorReason::MalformedJson, "{refusal}");
        assert!(refusal.message.len() < 300, "{refusal}");
    }
});
