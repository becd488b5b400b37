//! Processes that train one model together, data-parallel: each takes a part of every batch, and gradients are added up.
//!
//! A step of all is the step that one process would take with the whole batch: each process weighs its mean loss by its
//! share of the rows, so that the sum of the gradients is that of the batch's mean. What has to be decided is decided by
//! process 0 (which epoch is best) or by all together (when to save and stop), and done by all at the same place.

use std::net::IpAddr;
use std::time::Duration;

use flywheel_torch_shim::collective::{Carrier, Group, Pending, Reducer, Store};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::{Device, Tensor};

use crate::error::{Error, Result};
use crate::network::{Parameters, fill, host_copies};
use crate::optim::AdamW;

/// Bytes of gradients that are sent at once; PyTorch's figure. Smaller ones leave earlier, larger ones travel better.
const BUCKET_BYTES: usize = 25 * 1024 * 1024;
/// Time limit of one operation. It only has to be longer than anything that a process may rightly be busy with meanwhile:
/// that one is gone, whoever runs this has to find out earlier and by other means.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Most bytes that process 0 tells the others at once: a thousand epochs have some 300 KB.
const TOLD_MAX_BYTES: i64 = 4 * 1024 * 1024;

/// This process's place among those that train together. Used by the thread that made it.
pub struct Collective {
    rank: u32,
    size: u32,
    /// On the CPU: decisions, figures, states.
    control: Group,
    /// For gradients on a GPU.
    gpu: Option<Group>,
    // Process 0 serves it as long as there are groups.
    _store: Store,
}

impl Collective {
    /// Process 0 of `size`. `announce` gets the port at which the others can join, and must tell them; `address` is this
    /// host's as they reach it.
    ///
    /// # Errors
    /// [`Error::Peers`].
    pub fn host(size: u32, address: IpAddr, device: Device, announce: impl FnOnce(u16)) -> Result<Self> {
        let store = Store::listen().map_err(lost)?;
        announce(store.port());
        Self::with(store, 0, size, address, device)
    }

    /// Another one, which joins process 0 at this address and port.
    ///
    /// # Errors
    /// [`Error::Peers`].
    pub fn join(rank: u32, size: u32, host: (IpAddr, u16), address: IpAddr, device: Device) -> Result<Self> {
        let store = Store::connect(host.0, host.1).map_err(lost)?;
        Self::with(store, rank, size, address, device)
    }

    fn with(store: Store, rank: u32, size: u32, address: IpAddr, device: Device) -> Result<Self> {
        let group = |carrier| Group::join(&store, carrier, rank, size, OPERATION_TIMEOUT).map_err(lost);
        Ok(Self {
            rank,
            size,
            control: group(Carrier::Gloo(address))?,
            gpu: match device {
                Device::Cuda(_) => Some(group(Carrier::Nccl)?),
                _ => None,
            },
            _store: store,
        })
    }

    /// Its number, from 0.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// How many there are.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Whether it is process 0.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// This process's rows of a batch: one of as many parts as there are processes, which differ by one row at most; none
    /// where there are fewer rows than processes.
    pub(crate) fn share<'a>(&self, rows: &'a [usize]) -> &'a [usize] {
        share(rows, self.rank, self.size)
    }

    /// Adds numbers up over all processes, place by place.
    ///
    /// # Errors
    /// [`Error::Peers`], [`Error::Torch`].
    pub fn sum(&self, numbers: &[f64]) -> Result<Vec<f64>> {
        self.start_sum(numbers)?.wait()
    }

    fn start_sum(&self, numbers: &[f64]) -> Result<Sum<'_>> {
        let tensor = Tensor::f_from_slice(numbers)?;
        let pending = self.control.all_reduce(&tensor).map_err(lost)?;
        Ok(Sum { tensor, pending })
    }

    /// What process 0 says.
    ///
    /// # Errors
    /// [`Error::Peers`], [`Error::Torch`].
    pub fn first_says(&self, this: bool) -> Result<bool> {
        let said = self.sum(&[f64::from(u8::from(this && self.is_first()))])?;
        Ok(said.first().is_some_and(|n| *n > 0.0))
    }

    /// Whether all processes hold the same value; all of them learn it.
    ///
    /// # Errors
    /// [`Error::Peers`], [`Error::Torch`], [`Error::State`].
    pub fn all_have(&self, value: &(impl Serialize + DeserializeOwned + PartialEq)) -> Result<bool> {
        let same = self.told_by_first(value)? == *value;
        let others = self.sum(&[f64::from(u8::from(!same))])?;
        Ok(others.iter().all(|n| *n == 0.0))
    }

    /// Process 0's value.
    pub(crate) fn told_by_first<T: Serialize + DeserializeOwned>(&self, value: &T) -> Result<T> {
        let wrong = |e: serde_json::Error| Error::State(format!("what process 0 tells cannot be read: {e}"));
        let mut bytes = serde_json::to_vec(value).map_err(wrong)?;
        let length = Tensor::f_from_slice(&[i64::try_from(bytes.len()).unwrap_or(i64::MAX)])?;
        self.control.broadcast(&length).map_err(lost)?;
        let length = length.f_int64_value(&[0])?;
        if !(0..=TOLD_MAX_BYTES).contains(&length) {
            return Err(Error::State(format!(
                "process 0 tells {length} bytes at once, more than {TOLD_MAX_BYTES}"
            )));
        }
        if !self.is_first() {
            bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        }
        let tensor = Tensor::f_from_slice(&bytes)?;
        self.control.broadcast(&tensor).map_err(lost)?;
        tensor.f_copy_data(&mut bytes, tensor.numel())?;
        serde_json::from_slice(&bytes).map_err(wrong)
    }

    /// Makes every process begin where process 0 does: its place, weights and moments.
    pub(crate) fn begin_alike<C: Serialize + DeserializeOwned>(
        &self,
        cursor: &C,
        steps: impl FnOnce(&C) -> u64,
        parameters: &Parameters,
        optimiser: &mut AdamW,
    ) -> Result<C> {
        let cursor = self.told_by_first(cursor)?;
        let share = |tensors: &Parameters| {
            tensors
                .values()
                .try_for_each(|t| self.control.broadcast(t).map_err(lost))
        };
        let weights = host_copies(parameters)?;
        share(&weights)?;
        fill(parameters, &weights)?;
        let steps = steps(&cursor);
        if steps > 0 {
            let moments = optimiser.moments()?;
            share(&moments.exp_avg)?;
            share(&moments.exp_avg_sq)?;
            optimiser.restore(steps, &moments)?;
        }
        Ok(cursor)
    }

    /// Completes the rows of a whole set, of which each process has computed some and left the others empty.
    pub(crate) fn gather(&self, rows: &mut [Vec<f32>]) -> Result<()> {
        // Process 0 computes the first batch, so it knows the width of a row.
        let width = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = self.told_by_first(&width)?;
        let mut flat = vec![0f32; rows.len().saturating_mul(width)];
        for (row, place) in rows.iter().zip(flat.chunks_exact_mut(width.max(1))) {
            if row.len() == width {
                place.copy_from_slice(row);
            }
        }
        // Exact: each number is added to zeros.
        let tensor = Tensor::f_from_slice(&flat)?;
        self.control.all_reduce(&tensor).and_then(Pending::wait).map_err(lost)?;
        tensor.f_copy_data(&mut flat, tensor.numel())?;
        for (row, place) in rows.iter_mut().zip(flat.chunks_exact(width.max(1))) {
            *row = place.to_vec();
        }
        Ok(())
    }

    /// Returns when all processes are here.
    pub(crate) fn meet(&self) -> Result<()> {
        self.control.barrier().map_err(lost)
    }
}

fn lost(error: flywheel_torch_shim::Error) -> Error {
    Error::Peers(error.to_string())
}

/// A sum under way.
struct Sum<'a> {
    tensor: Tensor,
    pending: Pending<'a>,
}

impl Sum<'_> {
    fn wait(self) -> Result<Vec<f64>> {
        self.pending.wait().map_err(lost)?;
        Ok(Vec::try_from(&self.tensor)?)
    }
}

/// The `rank`-th of `size` parts.
fn share(rows: &[usize], rank: u32, size: u32) -> &[usize] {
    let cut = |part: u32| rows.len() * part as usize / size.max(1) as usize;
    rows.get(cut(rank)..cut(rank + 1)).unwrap_or_default()
}

/// The part of a training that is done together.
pub(crate) struct Together<'a> {
    pub(crate) group: &'a Collective,
    reducer: Reducer<'a>,
}

impl<'a> Together<'a> {
    /// Over parameters that ask for gradients.
    pub(crate) fn new(group: &'a Collective, parameters: &Parameters) -> Result<Self> {
        let params: Vec<Tensor> = parameters.values().map(Tensor::shallow_clone).collect();
        let reducer = Reducer::new(group.gpu.as_ref().unwrap_or(&group.control), &params, BUCKET_BYTES)?;
        Ok(Self { group, reducer })
    }

    /// The last backward of a step, and the sum over all processes: `mean` is this one's part of the batch's mean loss, which
    /// is returned. Where that is finite, gradients are those of the whole batch.
    pub(crate) fn last_backward(&mut self, loss: &Tensor, mean: f64) -> Result<f64> {
        // On its way while backward runs.
        let mean = self.group.start_sum(&[mean])?;
        self.reducer.begin()?;
        loss.f_backward()?;
        let mean = mean.wait()?.first().copied().unwrap_or(f64::NAN);
        if mean.is_finite() {
            self.reducer.finish().map_err(lost)?;
        }
        Ok(mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_one_process() {
        for (rows, size) in [(0, 1), (1, 3), (2, 3), (8, 3), (9, 4), (100, 7)] {
            let rows: Vec<usize> = (0..rows).collect();
            let parts: Vec<&[usize]> = (0..size).map(|rank| share(&rows, rank, size)).collect();
            assert_eq!(parts.concat(), rows);
            let (least, most) = (parts.iter().map(|p| p.len()).min(), parts.iter().map(|p| p.len()).max());
            assert!(most.unwrap() - least.unwrap() <= 1, "{parts:?}");
        }
    }
}
