//! Bodies of the Open Inference Protocol. The first two bytes are the length of the JSON; 0xffff is none.
#![no_main]

use flywheel_wire::infer::{Answers, InferRequest, InferResponse};
use flywheel_wire_fuzz::{refused, taken};
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;

fuzz_target!(|input: &[u8]| {
    let Some((length, body)) = input.split_first_chunk::<2>() else {
        return;
    };
    let length = Some(u16::from_le_bytes(*length))
        .filter(|length| *length != u16::MAX)
        .map(usize::from);
    match InferRequest::parse(body, length) {
        Ok(request) => {
            taken(&request.texts);
            let json = body.get(..length.unwrap_or(body.len())).unwrap_or_default();
            // Hints may hold numbers that no double holds.
            assert!(serde_json::from_str::<IgnoredAny>(std::str::from_utf8(json).unwrap()).is_ok());
            // Whatever was asked for can be written.
            let (labels, rows) = (
                ["a".to_owned(), "b".to_owned()],
                vec![vec![0.25, 0.75]; request.texts.len()],
            );
            let answers = Answers::new(&labels, &rows).unwrap();
            let id = request.id.as_deref().unwrap_or_default();
            let response = InferResponse::new(&request.outputs, "m", "v", id, &answers).unwrap();
            let json = response
                .body
                .get(..response.header_length.unwrap_or(response.body.len()))
                .unwrap();
            let written: serde_json::Value = serde_json::from_slice(json).unwrap();
            assert_eq!(written["id"], id);
            assert_eq!(written["outputs"].as_array().unwrap().len(), request.outputs.len());
        }
        Err(refusal) => refused(&refusal),
    }
});
