//! AdamW over plain tensors, its learning rate, and gradient clipping.

use flywheel_torch_shim::{AdamWLists, AdamWNumbers, drop_grads, fused_adamw, global_norm, unscale_all};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::network::{Parameters, fill, host_copy};

/// Decay of the first and of the second moment; PyTorch's defaults.
const BETAS: (f64, f64) = (0.9, 0.999);
/// Added to the root of the second moment; PyTorch's default.
const EPS: f64 = 1e-8;
/// Keeps the clipping factor finite; the value of `clip_grad_norm_`.
const CLIP_EPS: f64 = 1e-6;

/// Learning rate by step: a linear rise over the warm-up, then a linear fall to zero, exactly
/// `get_linear_schedule_with_warmup` of `transformers`. So the first step of a warm-up has rate 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    peak: f64,
    warmup: u64,
    total: u64,
}

impl Schedule {
    /// `warmup_ratio` of `total` steps, rounded up, rise to `peak`.
    #[must_use]
    pub fn new(peak: f64, warmup_ratio: f64, total: u64) -> Self {
        let warmup = (total as f64 * warmup_ratio).ceil().max(0.0) as u64;
        Self {
            peak,
            warmup: warmup.min(total),
            total,
        }
    }

    /// Rate of a step, counted from 0.
    #[must_use]
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let left = self.total.saturating_sub(step) as f64;
        self.peak * left / (self.total - self.warmup).max(1) as f64
    }
}

/// What AdamW remembers of past gradients, by the names of the weights.
#[derive(Debug)]
pub struct Moments {
    /// Decaying means of the gradients.
    pub exp_avg: Parameters,
    /// Decaying means of their squares.
    pub exp_avg_sq: Parameters,
}

/// Tensors with one weight decay, and their state.
struct Group {
    weight_decay: f64,
    params: Vec<Tensor>,
    names: Vec<String>,
    exp_avg: Vec<Tensor>,
    exp_avg_sq: Vec<Tensor>,
    steps: Vec<Tensor>,
    /// For parameters whose gradients have few rows: zeros of their shape, into which these rows are put for a step.
    tables: Vec<Option<Tensor>>,
}

/// The gradient of one weight.
enum Gradient {
    Dense(Tensor),
    /// Of a table of which few rows were used: their numbers, each once, [R], and their gradients, [R, H].
    Rows {
        rows: Tensor,
        values: Tensor,
    },
}

impl Gradient {
    fn of(param: &Tensor, name: &str) -> Result<Self> {
        let grad = param.f_grad()?;
        if !grad.defined() {
            return Err(Error::Torch(format!("the loss does not depend on {name}")));
        }
        if !grad.is_sparse() {
            return Ok(Self::Dense(grad));
        }
        let grad = grad.f_coalesce()?;
        Ok(Self::Rows {
            rows: grad.f_indices()?.f_select(0, 0)?,
            values: grad.f_values()?,
        })
    }

    /// All of its numbers that are not zero.
    fn numbers(&self) -> Tensor {
        match self {
            Self::Dense(numbers) | Self::Rows { values: numbers, .. } => numbers.shallow_clone(),
        }
    }
}

/// The gradients of a step, after its last backward.
pub struct Gradients {
    groups: [Vec<Gradient>; 2],
    numbers: Vec<Tensor>,
}

impl Gradients {
    /// Divides them by the scale of the loss; whether one of them is infinite or no number.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn unscale(&mut self, scale: f64) -> Result<bool> {
        Ok(unscale_all(&self.numbers, scale.recip())?)
    }

    /// Their common norm.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn norm(&self) -> Result<f64> {
        Ok(global_norm(&self.numbers)?.f_double_value(&[])?)
    }
}

/// By what gradients of this norm are divided so that it is at most `limit`.
#[must_use]
pub fn clipping(norm: f64, limit: f64) -> f64 {
    ((norm + CLIP_EPS) / limit).max(1.0)
}

/// AdamW (Loshchilov and Hutter, 2019). Weight decay is left off biases and layer norms, as in `transformers`.
pub struct AdamW {
    groups: [Group; 2],
}

impl AdamW {
    /// An optimiser over these weights, which from now on ask for gradients.
    ///
    /// # Errors
    /// [`Error::Torch`], [`Error::OutOfMemory`].
    pub fn new(parameters: &Parameters, weight_decay: f64) -> Result<Self> {
        let decayed = Group::new(parameters, weight_decay, decays)?;
        let plain = Group::new(parameters, 0.0, |name| !decays(name))?;
        Ok(Self {
            groups: [decayed, plain],
        })
    }

    /// Both moments, copied to the host, by the names of their weights: what has to be saved beside the weights and the
    /// number of steps.
    ///
    /// # Errors
    /// [`Error::Torch`], [`Error::OutOfMemory`].
    pub fn moments(&self) -> Result<Moments> {
        self.moments_by(host_copy)
    }

    /// [`AdamW::moments`] after the last step: without a copy where they lie on the host.
    ///
    /// # Errors
    /// [`Error::Torch`], [`Error::OutOfMemory`].
    pub fn last_moments(&self) -> Result<Moments> {
        self.moments_by(|tensor| Ok(tensor.f_to_device(Device::Cpu)?))
    }

    fn moments_by(&self, to_host: fn(&Tensor) -> Result<Tensor>) -> Result<Moments> {
        let named = |tensors: fn(&Group) -> &Vec<Tensor>| -> Result<Parameters> {
            let all = self.groups.iter().flat_map(|g| g.names.iter().zip(tensors(g)));
            all.map(|(name, tensor)| Ok((name.clone(), to_host(tensor)?))).collect()
        };
        Ok(Moments {
            exp_avg: named(|g| &g.exp_avg)?,
            exp_avg_sq: named(|g| &g.exp_avg_sq)?,
        })
    }

    /// Takes up where another optimiser stood after `steps` steps.
    ///
    /// # Errors
    /// [`Error::State`] when a moment is missing or of another shape, [`Error::Torch`].
    pub fn restore(&mut self, steps: u64, moments: &Moments) -> Result<()> {
        for group in &mut self.groups {
            let named = |tensors: &[Tensor]| -> Parameters {
                let names = group.names.iter().cloned();
                names.zip(tensors.iter().map(Tensor::shallow_clone)).collect()
            };
            fill(&named(&group.exp_avg), &moments.exp_avg)?;
            fill(&named(&group.exp_avg_sq), &moments.exp_avg_sq)?;
            for count in &mut group.steps {
                let _ = count.f_fill_(steps as f64)?;
            }
        }
        Ok(())
    }

    /// Takes all gradients away; the next backward makes them anew.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn zero_grad(&mut self) -> Result<()> {
        for group in &self.groups {
            drop_grads(&group.params)?;
        }
        Ok(())
    }

    /// The gradients of all weights, as the last backwards have left them.
    ///
    /// # Errors
    /// [`Error::Torch`], also for a weight without gradient.
    pub fn gradients(&self) -> Result<Gradients> {
        let [decayed, plain] = &self.groups;
        let groups = [decayed.gradients()?, plain.gradients()?];
        let numbers = groups.iter().flatten().map(Gradient::numbers).collect();
        Ok(Gradients { groups, numbers })
    }

    /// One step by these gradients, divided by `divisor`.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn step(&mut self, gradients: Gradients, lr: f64, divisor: f64) -> Result<()> {
        for (group, gradients) in self.groups.iter_mut().zip(gradients.groups) {
            group.step(&gradients, lr, divisor)?;
        }
        Ok(())
    }
}

impl Group {
    fn new(parameters: &Parameters, weight_decay: f64, belongs: impl Fn(&str) -> bool) -> Result<Self> {
        let mut group = Self {
            weight_decay,
            params: Vec::new(),
            names: Vec::new(),
            exp_avg: Vec::new(),
            exp_avg_sq: Vec::new(),
            steps: Vec::new(),
            tables: Vec::new(),
        };
        for (name, tensor) in parameters.iter().filter(|(name, _)| belongs(name)) {
            let param = tensor.f_set_requires_grad(true)?;
            group.exp_avg.push(param.f_detach()?.f_zeros_like()?);
            group.exp_avg_sq.push(param.f_detach()?.f_zeros_like()?);
            group
                .steps
                .push(Tensor::f_zeros([0i64; 0], (Kind::Float, param.device()))?);
            group.tables.push(None);
            group.params.push(param);
            group.names.push(name.clone());
        }
        Ok(group)
    }

    /// Gradients of all tensors, in their order.
    fn gradients(&self) -> Result<Vec<Gradient>> {
        let named = self.params.iter().zip(&self.names);
        named.map(|(param, name)| Gradient::of(param, name)).collect()
    }

    fn step(&mut self, gradients: &[Gradient], lr: f64, divisor: f64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let mut full = Vec::with_capacity(gradients.len());
        for ((gradient, param), table) in gradients.iter().zip(&self.params).zip(&mut self.tables) {
            full.push(match gradient {
                Gradient::Dense(grad) => grad.shallow_clone(),
                Gradient::Rows { rows, values } => {
                    let mut zeros = match table.take() {
                        Some(zeros) => zeros,
                        None => param.f_zeros_like()?,
                    };
                    let _ = zeros.f_index_copy_(0, rows, values)?;
                    table.insert(zeros).shallow_clone()
                }
            });
        }
        let (beta1, beta2) = BETAS;
        fused_adamw(
            AdamWLists {
                params: &self.params,
                grads: &full,
                exp_avg: &self.exp_avg,
                exp_avg_sq: &self.exp_avg_sq,
                steps: &self.steps,
            },
            AdamWNumbers {
                lr,
                beta1,
                beta2,
                eps: EPS,
                weight_decay: self.weight_decay,
                grad_scale: divisor,
            },
        )?;
        for (gradient, table) in gradients.iter().zip(&mut self.tables) {
            if let (Gradient::Rows { rows, .. }, Some(table)) = (gradient, table) {
                let _ = table.f_index_fill_(0, rows, 0.0)?;
            }
        }
        Ok(())
    }
}

/// Whether weight decay applies to a tensor of this name.
fn decays(name: &str) -> bool {
    !name.ends_with(".bias") && !name.contains("LayerNorm") && !name.contains("layer_norm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_transformers() {
        // get_linear_schedule_with_warmup(num_warmup_steps=2, num_training_steps=6) of a rate of 1.
        let schedule = Schedule::new(1.0, 0.3, 6);
        let rates: Vec<f64> = (0..7).map(|s| schedule.rate(s)).collect();
        assert_eq!(rates, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]);
        assert_eq!(Schedule::new(1.0, 0.0, 4).rate(0), 1.0);
    }

    #[test]
    fn decay_spares_biases_and_layer_norms() {
        for name in [
            "classifier.bias",
            "bert.embeddings.LayerNorm.weight",
            "distilbert.transformer.layer.0.sa_layer_norm.weight",
        ] {
            assert!(!decays(name), "{name}");
        }
        assert!(decays("bert.embeddings.word_embeddings.weight") && decays("classifier.weight"));
    }

    fn parameters() -> Parameters {
        let tensor = |x: f32| Tensor::from_slice(&[x, x]);
        [("a.bias", 1.0), ("a.weight", 2.0)]
            .map(|(name, x)| (name.to_owned(), tensor(x)))
            .into()
    }

    fn loss(parameters: &Parameters) -> Tensor {
        parameters
            .values()
            .map(|t| t.sum(Kind::Float))
            .reduce(|a, b| a + b)
            .unwrap()
            * 3.0
    }

    #[test]
    fn clipping_bounds_the_common_norm() {
        let parameters = parameters();
        let optimiser = AdamW::new(&parameters, 0.0).unwrap();
        loss(&parameters).backward();
        // Four gradients of 3.
        let norm = optimiser.gradients().unwrap().norm().unwrap();
        assert!((norm - 6.0).abs() < 1e-5);
        assert!((norm / clipping(norm, 1.0) - 1.0).abs() < 1e-5);
        assert_eq!((clipping(0.5, 1.0), clipping(0.0, 1.0)), (1.0, 1.0));
    }

    /// A table of words of which each step uses some rows, one of them twice.
    #[test]
    fn gradients_of_few_rows_train_as_full_ones_do() {
        let train = |sparse: bool| {
            let table = Tensor::arange(12, (Kind::Float, Device::Cpu)).view([6, 2]) * 0.1;
            let parameters: Parameters = [("words.weight".to_owned(), table)].into();
            let mut optimiser = AdamW::new(&parameters, 0.1).unwrap();
            let mut norms = Vec::new();
            for ids in [[1_i64, 3, 1], [0, 5, 5], [4, 4, 3]] {
                optimiser.zero_grad().unwrap();
                // Two passes, as with micro-batches.
                for ids in [&ids[..2], &ids[2..]] {
                    let words =
                        Tensor::embedding(&parameters["words.weight"], &Tensor::from_slice(ids), -1, false, sparse);
                    (&words * &words).sum(Kind::Float).backward();
                }
                let mut gradients = optimiser.gradients().unwrap();
                assert!(!gradients.unscale(2.0).unwrap());
                norms.push(gradients.norm().unwrap());
                optimiser.step(gradients, 0.1, clipping(norms[0], 0.5)).unwrap();
            }
            (
                Vec::<f32>::try_from(&parameters["words.weight"].flatten(0, -1)).unwrap(),
                norms,
            )
        };
        let (full, few) = (train(false), train(true));
        for (a, b) in full.0.iter().zip(&few.0) {
            assert!((a - b).abs() < 1e-6, "{full:?} {few:?}");
        }
        for (a, b) in full.1.iter().zip(&few.1) {
            assert!((a - b).abs() < 1e-6, "{full:?} {few:?}");
        }
    }

    #[test]
    fn restored_moments_go_on_as_if_nothing_had_happened() {
        let steps = |optimiser: &mut AdamW, parameters: &Parameters, numbers: std::ops::Range<i32>| {
            for n in numbers {
                optimiser.zero_grad().unwrap();
                (loss(parameters) * f64::from(n + 1)).backward();
                let gradients = optimiser.gradients().unwrap();
                optimiser.step(gradients, 0.1, 1.0).unwrap();
            }
        };
        let (whole, first) = (parameters(), parameters());
        steps(&mut AdamW::new(&whole, 0.5).unwrap(), &whole, 0..5);
        let mut optimiser = AdamW::new(&first, 0.5).unwrap();
        steps(&mut optimiser, &first, 0..3);
        let moments = optimiser.moments().unwrap();

        let resume = |count, moments: &Moments| {
            let second = parameters();
            let mut optimiser = AdamW::new(&second, 0.5).unwrap();
            fill(&second, &first).unwrap();
            optimiser.restore(count, moments).unwrap();
            steps(&mut optimiser, &second, 3..5);
            whole.iter().all(|(name, tensor)| second[name] == *tensor)
        };
        assert!(resume(3, &moments));
        // Both the count and each moment matter.
        assert!(!resume(2, &moments));
        let zeros = |p: &Parameters| p.iter().map(|(n, t)| (n.clone(), t.zeros_like())).collect();
        let copies = |p: &Parameters| p.iter().map(|(n, t)| (n.clone(), t.copy())).collect();
        assert!(!resume(
            3,
            &Moments {
                exp_avg: zeros(&moments.exp_avg),
                exp_avg_sq: copies(&moments.exp_avg_sq),
            }
        ));
        assert!(!resume(
            3,
            &Moments {
                exp_avg: copies(&moments.exp_avg),
                exp_avg_sq: zeros(&moments.exp_avg_sq),
            }
        ));
        // What does not fit is refused.
        let mut lacking = Moments {
            exp_avg: copies(&moments.exp_avg),
            exp_avg_sq: copies(&moments.exp_avg_sq),
        };
        lacking.exp_avg_sq.remove("a.bias");
        let error = AdamW::new(&parameters(), 0.5)
            .unwrap()
            .restore(3, &lacking)
            .unwrap_err();
        assert!(error.to_string().contains("a.bias"), "{error}");
    }

    #[test]
    fn a_step_decays_weights_only() {
        let parameters = parameters();
        let mut optimiser = AdamW::new(&parameters, 0.5).unwrap();
        loss(&parameters).backward();
        let gradients = optimiser.gradients().unwrap();
        optimiser.step(gradients, 0.1, 1.0).unwrap();
        let first = |name: &str| parameters[name].double_value(&[0]);
        assert!((first("a.bias") - 0.9).abs() < 1e-6);
        assert!((first("a.weight") - (2.0 * 0.95 - 0.1)).abs() < 1e-6);
    }

    #[test]
    fn a_weight_that_the_loss_does_not_reach_is_named() {
        let parameters = parameters();
        let optimiser = AdamW::new(&parameters, 0.0).unwrap();
        parameters["a.weight"].sum(Kind::Float).backward();
        let error = optimiser.gradients().err().unwrap();
        assert!(error.to_string().contains("a.bias"), "{error}");
    }
}
