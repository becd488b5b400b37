//! GPUs that break under pods, as the device plugin of the node tells its kubelet.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cluster::{apply, delete, describe, get, list, localcluster, run as command, wait};
use super::{NAMESPACE, OTHER, SOON, goes_on, saved, training};

const NAME: &str = "gpu-trainer";
/// Hard cap of docs/recovery.md.
const TRAINER_CAP: Duration = Duration::from_secs(120);

/// A GPU of a node, as the statuses of pods name it: `GPU-<node>-<index>`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpu {
    node: String,
    index: String,
}

impl Gpu {
    /// The one that this pod holds; its kubelet writes it into the status.
    pub fn of(pod: &str) -> Self {
        wait(
            &format!("the GPU of {pod} is told"),
            SOON,
            describe("pod", NAMESPACE, pod),
            || {
                let pod = get("pod", NAMESPACE, pod)?;
                let told = &pod["status"]["containerStatuses"][0]["allocatedResourcesStatus"][0]["resources"][0];
                let (node, index) = told["resourceID"].as_str()?.strip_prefix("GPU-")?.rsplit_once('-')?;
                let (node, index) = (node.to_owned(), index.to_owned());
                Some(Self { node, index })
            },
        )
    }

    fn set(&self, health: &str) -> Result<String, String> {
        command(
            Command::new(localcluster()).args(["gpu", &self.node, &self.index, health]),
            None,
        )
    }

    /// It is broken until what this gives is dropped.
    pub fn breaks(&self) -> Heals<'_> {
        self.set("unhealthy").expect("gpu unhealthy");
        Heals(self)
    }
}

/// The GPU is well again, whatever happened.
pub struct Heals<'a>(&'a Gpu);

impl Drop for Heals<'_> {
    fn drop(&mut self) {
        let _ = self.0.set("healthy");
    }
}

/// The GPU of the pod of an attempt.
fn of_attempt(attempt: u64) -> Gpu {
    let selector = format!("flywheel.dev/training-job={NAME},flywheel.dev/attempt={attempt}");
    let pods = list("pods", NAMESPACE, &selector);
    Gpu::of(pods[0]["metadata"]["name"].as_str().expect("name"))
}

/// The GPU of a trainer breaks; the next attempt gets another one of the same node, since it must not leave that.
pub fn trainer() -> (&'static str, Duration, Duration) {
    apply(&training(NAME, OTHER, true));
    saved(NAME);
    let gpu = of_attempt(1);
    let _heals = gpu.breaks();
    let fault = Instant::now();
    let before = saved(NAME);
    let took = goes_on(NAME, 2..=2, before, fault, TRAINER_CAP);
    assert_ne!(of_attempt(2), gpu, "a broken GPU is given to no pod");
    let job = get("trainingjob", NAMESPACE, NAME).expect("the job");
    let incidents = job["status"]["recovery"]["incidents"].as_array().expect("incidents");
    let causes: Vec<&Value> = incidents.iter().map(|incident| &incident["cause"]).collect();
    assert_eq!(causes, ["GpuFault"], "{}", job["status"]);
    // It would take processors from the others.
    delete("trainingjob", NAMESPACE, NAME);
    ("GPU of a trainer breaks", took, TRAINER_CAP)
}
