//! Bodies of `/predict`: never a panic, and what is taken is within the bounds, is JSON and comes back the same.
#![no_main]

use flywheel_wire::PredictRequest;
use flywheel_wire::error::ErrorReason;
use flywheel_wire_fuzz::{refused, taken};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| match PredictRequest::parse(body) {
    Ok(request) => {
        taken(request.texts());
        assert!(serde_json::from_slice::<serde_json::Value>(body).is_ok());
        assert_eq!(PredictRequest::parse(&request.to_json()), Ok(request));
    }
    Err(refusal) => {
        refused(&refusal);
        let json = serde_json::from_slice::<serde_json::Value>(body).is_ok();
        assert!(!json || refusal.reason != ErrorReason::MalformedJson, "{refusal}");
    }
});
