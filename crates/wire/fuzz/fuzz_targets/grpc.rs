//! Bodies of gRPC's calls: frame, message, question.
#![no_main]

use flywheel_wire::grpc::{ModelInferRequest, ModelInferResponse, decode, frame};
use flywheel_wire::infer::Answers;
use flywheel_wire::request_timeout;
use flywheel_wire_fuzz::{refused, taken};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let _ = frame(body);
    let _ = request_timeout::parse_grpc(body);
    match decode::<ModelInferRequest>(body.to_vec().into()).and_then(ModelInferRequest::request) {
        Ok(request) => {
            taken(&request.texts);
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
