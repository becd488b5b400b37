//! Kubernetes' HorizontalPodAutoscaler, ported from k8s.io/kubernetes v1.36.3, pkg/controller/podautoscaler: an external
//! metric with `averageValue` (as KEDA makes one), no `behavior`, and the defaults of kube-controller-manager.
//! `tests/scaling-vectors/hpa` holds it to the original.

use std::collections::VecDeque;

/// Seconds between two decisions.
pub(crate) const SYNC: u32 = 15;
/// Seconds over which the metric is a mean: two scrapes of Prometheus, the least that makes a rate.
pub(crate) const RATE: u32 = 30;
/// `--horizontal-pod-autoscaler-tolerance`.
const TOLERANCE: f64 = 0.1;
/// `--horizontal-pod-autoscaler-downscale-stabilization`, in seconds.
const STABILIZATION: u32 = 300;
/// One decision at most doubles the pods, or makes four.
const UP_FACTOR: f64 = 2.0;
const UP_LEAST: f64 = 4.0;

/// The autoscaler of one service.
#[derive(Clone, Debug)]
pub(crate) struct Hpa {
    /// Load of one replica, in thousandths.
    target: f64,
    min: u32,
    max: u32,
    /// When a size was recommended, and which.
    recommended: VecDeque<(u32, u32)>,
}

impl Hpa {
    pub(crate) fn new(target: f64, min: u32, max: u32) -> Self {
        Self {
            target: (target * 1000.0).ceil(),
            min,
            max,
            recommended: VecDeque::new(),
        }
    }

    /// The size at that second, where `spec` pods are wanted now and `status` are there. `load` in thousandths.
    pub(crate) fn scale(&mut self, second: u32, load: Option<f64>, spec: u32, status: u32) -> u32 {
        if self.recommended.is_empty() {
            self.recommended.push_back((second, spec));
        }
        if spec > self.max || spec < self.min {
            return spec.clamp(self.min, self.max);
        }
        let Some(load) = load else { return spec };
        let used = load / (self.target * f64::from(status));
        let within = (1.0 - TOLERANCE..=1.0 + TOLERANCE).contains(&used);
        let wanted = if within {
            status
        } else {
            (load / self.target).ceil() as u32
        };

        while self
            .recommended
            .front()
            .is_some_and(|(at, _)| at + STABILIZATION < second)
        {
            self.recommended.pop_front();
        }
        self.recommended.push_back((second, wanted));
        let highest = self.recommended.iter().map(|(_, size)| *size).max().unwrap_or(wanted);
        let most = (UP_FACTOR * f64::from(spec)).max(UP_LEAST) as u32;
        highest.max(self.min).min(self.max.min(most))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Vector {
        name: String,
        target: f64,
        min: u32,
        max: u32,
        steps: Vec<Step>,
    }

    #[derive(Deserialize)]
    struct Step {
        second: f64,
        load: Option<f64>,
        spec: u32,
        status: u32,
        replicas: u32,
    }

    /// Anew: see tests/scaling-vectors/hpa/vectors_test.go.
    #[test]
    fn decisions_equal_kubernetes() {
        let text = include_str!("../../../../tests/scaling-vectors/hpa.json");
        let vectors: Vec<Vector> = serde_json::from_str(text).unwrap();
        let mut decisions = 0;
        for vector in vectors {
            let mut hpa = Hpa::new(vector.target / 1000.0, vector.min, vector.max);
            for step in vector.steps {
                let replicas = hpa.scale(step.second as u32, step.load, step.spec, step.status);
                assert_eq!(replicas, step.replicas, "{} at {} s", vector.name, step.second);
                decisions += 1;
            }
        }
        assert_eq!(decisions, 800);
    }
}
