//! Bodies of gRPC's calls: frame, message, question.
#![no_main]

use flywheel_wire::grpc::{ModelInferRequest, ModelInferResponse, check_frame, decode};
use flywheel_wire::infer::Answers;
use flywheel_wire::predict::{MAX_TEXT_BYTES, MAX_TEXTS};
use flywheel_wire::{Refusal, request_timeout};
use libfuzzer_sys::fuzz_target;

fn refused(refusal: &Refusal) {
    assert!((400..500).contains(&refusal.reason.status()), "{refusal}");
    assert!(refusal.message.len() < 300, "{refusal}");
}

fuzz_target!(|body: &[u8]| {
    let _ = check_frame(body);
    let _ = request_timeout::parse_grpc(body);
    match decode::<ModelInferRequest>(body.to_vec().into()).and_then(ModelInferRequest::request) {
        Ok(request) => {
            assert!((1..=MAX_TEXTS).contains(&request.texts.len()));
            assert!(
                request
                    .texts
                    .iter()
                    .all(|t| !t.trim().is_empty() && t.len() <= MAX_TEXT_BYTES)
            );
            let (labels, rows) = (
                ["a".to_owned(), "b".to_owned()],
                vec![vec![0.25, 0.75]; request.texts.len()],
            );
            let answers = Answers::new(&labels, &rows).unwrap();
            let response = ModelInferResponse::new(&request.outputs, "m", "v", "7", &answers);
            assert_eq!(response.outputs.len(), request.outputs.len());
        }
        Err(refusal) => refused(&refusal),
    }
});
