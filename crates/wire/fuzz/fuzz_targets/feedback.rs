//! Bodies of `/feedback`: never a panic, what is taken is within the bounds and comes back the same, and no receipt is believed that
//! was not signed.
#![no_main]

use flywheel_wire::feedback::{FeedbackRequest, MAX_JUDGEMENTS, MAX_LABEL_BYTES};
use flywheel_wire::receipt::{Key, Receipt};
use flywheel_wire_fuzz::refused;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let request = match FeedbackRequest::parse(body) {
        Ok(request) => request,
        Err(refusal) => return refused(&refusal),
    };
    let judgements = request.judgements();
    assert!((1..=MAX_JUDGEMENTS).contains(&judgements.len()));
    // The seed `one` is signed with it.
    let key = Key::new(&[7; 32], "team/intent").expect("a key");
    for judgement in judgements {
        assert!(!judgement.label.trim().is_empty() && judgement.label.len() <= MAX_LABEL_BYTES);
        if let Some(receipt) = Receipt::verify(&judgement.request_id, &key) {
            assert_eq!(receipt.sign(&key), judgement.request_id);
        }
    }
    let json = serde_json::to_vec(&request).expect("JSON");
    assert_eq!(FeedbackRequest::parse(&json), Ok(request));
});
