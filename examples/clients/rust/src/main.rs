//! Asks a service: `cargo run -- [http://localhost:8080]`.

use std::thread::sleep;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

const TRIES: u32 = 3;

#[derive(Deserialize)]
struct Answer {
    predictions: Vec<Prediction>,
}

/// The fields that are used here.
#[derive(Deserialize)]
struct Prediction {
    label: String,
    probability: f32,
    request_id: String,
}

/// One prediction for each text. Another try where the pod is full, ending or gone: another pod may answer.
fn predict(url: &str, texts: &[&str]) -> Result<Vec<Prediction>, Box<dyn std::error::Error>> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(3)))
        .build()
        .into();
    let mut left = TRIES;
    loop {
        left -= 1;
        let request = agent.post(format!("{url}/predict")).header("X-Request-Timeout", "2");
        let mut response = match request.send_json(json!({"texts": texts})) {
            Ok(response) => response,
            // No answer, and a question changes nothing: it may be sent again.
            Err(ureq::Error::Io(_) | ureq::Error::ConnectionFailed) if left > 0 => {
                sleep(Duration::from_secs(1));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        match response.status().as_u16() {
            200 => return Ok(response.body_mut().read_json::<Answer>()?.predictions),
            429 | 503 if left > 0 => sleep(Duration::from_secs(1)),
            status => return Err(format!("{status}: {}", response.body_mut().read_to_string()?).into()),
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "http://localhost:8080".to_owned());
    for prediction in predict(&url, &["how much longer on the egg timer", "turn off the lights"])? {
        println!(
            "{} {:.3} {}",
            prediction.label, prediction.probability, prediction.request_id
        );
    }
    Ok(())
}
