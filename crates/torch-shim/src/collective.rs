//! Processes that compute together: c10d's TCP store, its process groups over Gloo and NCCL, and the sum of gradients
//! while backward still runs.
//!
//! All processes of a group must make the same calls in the same order. What a call waits for may never come: whoever
//! calls needs another way to learn that a process is gone than the long time limit of an operation.

use std::ffi::CString;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::ptr::{self, NonNull};
use std::time::Duration;

use tch::Tensor;

use crate::{Error, check, ffi, raw};

/// How long processes that are all there may take to come together.
const JOIN_TIMEOUT: Duration = Duration::from_secs(120);

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn word(address: IpAddr) -> Result<CString, Error> {
    // An address has no zero byte.
    CString::new(address.to_string()).map_err(|e| Error::Torch(e.to_string()))
}

fn owned<T>(raw: *mut T) -> Result<NonNull<T>, Error> {
    NonNull::new(raw).ok_or_else(|| Error::Torch("libtorch gave no object".to_owned()))
}

fn number(what: &str, value: u32) -> Result<i32, Error> {
    i32::try_from(value).map_err(|_| Error::Torch(format!("{what} {value} is too large")))
}

/// Where the processes of a group find each other's addresses: a small server in the first of them.
pub struct Store {
    raw: NonNull<ffi::RawStore>,
    port: u16,
}

impl Store {
    /// The server, on a free port of all addresses. It ends with this value.
    ///
    /// # Errors
    /// [`Error::Torch`] when it cannot listen.
    pub fn listen() -> Result<Self, Error> {
        Self::open(IpAddr::from([127, 0, 0, 1]), 0, true)
    }

    /// A connection to the server.
    ///
    /// # Errors
    /// [`Error::Torch`] when there is none after two minutes.
    pub fn connect(host: IpAddr, port: u16) -> Result<Self, Error> {
        Self::open(host, port, false)
    }

    fn open(host: IpAddr, mut port: u16, listen: bool) -> Result<Self, Error> {
        let (host, mut out) = (word(host)?, ptr::null_mut());
        // SAFETY: a NUL-terminated string that outlives the call; `port` and `out` are valid for writes.
        check(unsafe {
            ffi::fw_store_open(
                host.as_ptr(),
                &mut port,
                listen.into(),
                milliseconds(JOIN_TIMEOUT),
                &mut out,
            )
        })?;
        Ok(Self { raw: owned(out)?, port })
    }

    /// The port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by fw_store_open and freed once; groups hold c10d's own reference to what is inside.
        unsafe { ffi::fw_store_free(self.raw.as_ptr()) }
    }
}

/// What carries a group's numbers.
#[derive(Debug, Clone, Copy)]
pub enum Carrier {
    /// TCP between hosts, for tensors on the CPU; this host is reached at the address.
    Gloo(IpAddr),
    /// NVLink, InfiniBand or TCP, for tensors on this process's GPU. Needs `libflywheel_nccl.so`. Not run on hardware yet.
    Nccl,
}

/// One process's place among those that compute together. Used by one thread.
pub struct Group {
    raw: NonNull<ffi::RawGroup>,
}

impl Group {
    /// Joins a group of `size` processes as number `rank`; returns when all are there. One group of each carrier can be
    /// made over a store. An operation fails after `timeout`.
    ///
    /// # Errors
    /// [`Error::Torch`] when they do not come together within two minutes, or for a carrier that is not there.
    pub fn join(store: &Store, carrier: Carrier, rank: u32, size: u32, timeout: Duration) -> Result<Self, Error> {
        let (rank, size, mut out) = (number("rank", rank)?, number("size", size)?, ptr::null_mut());
        let store = store.raw.as_ptr();
        match carrier {
            Carrier::Gloo(address) => {
                let address = word(address)?;
                let (join, timeout) = (milliseconds(JOIN_TIMEOUT), milliseconds(timeout));
                // SAFETY: the store lives and the string outlives the call; `out` is valid for a write.
                check(unsafe { ffi::fw_group_gloo(store, address.as_ptr(), rank, size, join, timeout, &mut out) })?;
            }
            Carrier::Nccl => {
                // SAFETY: the store lives; `out` is valid for a write.
                check(unsafe { ffi::fw_group_nccl(store, rank, size, milliseconds(timeout), &mut out) })?;
            }
        }
        Ok(Self { raw: owned(out)? })
    }

    /// Begins to add a tensor up over all processes, in place. It holds the sum after [`Pending::wait`].
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn all_reduce(&self, tensor: &Tensor) -> Result<Pending<'_>, Error> {
        let mut out = ptr::null_mut();
        // SAFETY: the group and the tensor live; `out` is valid for a write. The work holds the tensor by itself.
        check(unsafe { ffi::fw_all_reduce(self.raw.as_ptr(), tensor.as_ptr(), &mut out) })?;
        Ok(Pending {
            raw: owned(out)?,
            group: PhantomData,
        })
    }

    /// Overwrites a tensor with that of process 0.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn broadcast(&self, tensor: &Tensor) -> Result<(), Error> {
        // SAFETY: the group and the tensor live until the call returns.
        check(unsafe { ffi::fw_broadcast(self.raw.as_ptr(), tensor.as_ptr()) })
    }

    /// Returns when all processes are here.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn barrier(&self) -> Result<(), Error> {
        // SAFETY: the group lives until the call returns.
        check(unsafe { ffi::fw_barrier(self.raw.as_ptr()) })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: made by fw_group_… and freed once; what was made of it borrows it or holds its own reference.
        unsafe { ffi::fw_group_free(self.raw.as_ptr()) }
    }
}

/// A sum that is under way.
#[must_use = "the tensor holds the sum only after wait()"]
pub struct Pending<'a> {
    raw: NonNull<ffi::RawWork>,
    group: PhantomData<&'a Group>,
}

impl Pending<'_> {
    /// Waits for its end.
    ///
    /// # Errors
    /// [`Error::Torch`] when a process has ended or the time is up.
    pub fn wait(self) -> Result<(), Error> {
        // SAFETY: made by fw_all_reduce and not freed yet.
        check(unsafe { ffi::fw_work_wait(self.raw.as_ptr()) })
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        // SAFETY: made by fw_all_reduce and freed once.
        unsafe { ffi::fw_work_free(self.raw.as_ptr()) }
    }
}

/// Adds the gradients of parameters up over all processes. They are sent in flat buckets while backward still runs, in
/// the order in which process 0's first backward had them; in the first step after it.
///
/// The last backward of each step must lie between [`Reducer::begin`] and [`Reducer::finish`] while this value lives; what
/// earlier ones of the step have added to the gradients is summed along.
pub struct Reducer<'a> {
    raw: NonNull<ffi::RawReducer>,
    group: PhantomData<&'a Group>,
}

impl<'a> Reducer<'a> {
    /// Over these parameters, in the same order in every process, of one type and on one device; buckets of at most so
    /// many bytes, or of one parameter.
    ///
    /// # Errors
    /// [`Error::Undefined`], [`Error::Torch`] also for a tensor that asks for no gradient.
    pub fn new(group: &'a Group, params: &[Tensor], bucket_bytes: usize) -> Result<Self, Error> {
        let params = raw("parameters", params, params.len())?;
        let mut out = ptr::null_mut();
        // SAFETY: n pointers to live tensors, of which it keeps its own references; `out` is valid for a write.
        check(unsafe {
            ffi::fw_reducer_make(
                group.raw.as_ptr(),
                params.as_ptr(),
                params.len(),
                bucket_bytes,
                &mut out,
            )
        })?;
        Ok(Self {
            raw: owned(out)?,
            group: PhantomData,
        })
    }

    /// Before the last backward of a step.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn begin(&mut self) -> Result<(), Error> {
        // SAFETY: made by fw_reducer_make and not freed yet.
        check(unsafe { ffi::fw_reducer_begin(self.raw.as_ptr()) })
    }

    /// After it: waits until every gradient is the sum over all processes.
    ///
    /// # Errors
    /// [`Error::Torch`], also when a parameter got no gradient.
    pub fn finish(&mut self) -> Result<(), Error> {
        // SAFETY: made by fw_reducer_make and not freed yet.
        check(unsafe { ffi::fw_reducer_finish(self.raw.as_ptr()) })
    }
}

impl Drop for Reducer<'_> {
    fn drop(&mut self) {
        // SAFETY: made by fw_reducer_make and freed once; its hooks go with it.
        unsafe { ffi::fw_reducer_free(self.raw.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc;
    use std::time::Instant;
    use tch::{Device, Kind};

    const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Runs this in `size` threads, each of them a process of one group; their answers in order.
    fn together<T: Send>(size: u32, work: impl Fn(u32, &Group) -> T + Sync) -> Vec<T> {
        let (port, ports) = mpsc::channel();
        let ports = Mutex::new(ports);
        let one = |rank: u32| {
            let store = if rank == 0 {
                let store = Store::listen().unwrap();
                (1..size).for_each(|_| port.send(store.port()).unwrap());
                store
            } else {
                Store::connect(HOST, ports.lock().unwrap().recv().unwrap()).unwrap()
            };
            let group = Group::join(&store, Carrier::Gloo(HOST), rank, size, Duration::from_secs(20)).unwrap();
            work(rank, &group)
        };
        let one = &one;
        std::thread::scope(|scope| {
            // The sender is used by rank 0 alone, but borrowed by all.
            let threads: Vec<_> = (0..size).map(|rank| scope.spawn(move || one(rank))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(&tensor.detach().flatten(0, -1)).unwrap()
    }

    #[test]
    fn sums_and_copies_reach_everybody() {
        let answers = together(3, |rank, group| {
            let mine = Tensor::from_slice(&[rank as f32, 1.0]);
            let other = Tensor::full([2], f64::from(rank), (Kind::Float, Device::Cpu));
            let (first, second) = (group.all_reduce(&mine).unwrap(), group.all_reduce(&other).unwrap());
            second.wait().unwrap();
            first.wait().unwrap();
            let copied = Tensor::from_slice(&[10 + i64::from(rank)]);
            group.broadcast(&copied).unwrap();
            group.barrier().unwrap();
            (numbers(&mine), numbers(&other), copied.int64_value(&[0]))
        });
        assert_eq!(answers, vec![(vec![3.0, 3.0], vec![3.0, 3.0], 10); 3]);
    }

    /// Parameters of different shapes; the loss uses them in the order of their names, so gradients come backwards.
    fn grads(group: Option<(&Group, u32, usize)>, steps: usize) -> Vec<Vec<f32>> {
        let params: Vec<Tensor> = [[2_i64, 3], [3, 4], [4, 5], [5, 1]]
            .iter()
            .map(|shape| {
                let n: i64 = shape.iter().product();
                (Tensor::arange(n, (Kind::Float, Device::Cpu)) * 0.1 - 0.3)
                    .view(*shape)
                    .set_requires_grad(true)
            })
            .collect();
        let mut reducer = group.map(|(group, _, bytes)| Reducer::new(group, &params, bytes).unwrap());
        let mut all = Vec::new();
        for step in 0..steps {
            crate::drop_grads(&params).unwrap();
            let rows = Tensor::arange(8, (Kind::Float, Device::Cpu)).view([4, 2]) * (step as f64 + 0.5);
            let rows = match group {
                None => rows,
                Some((_, rank, _)) => rows.narrow(0, i64::from(rank) * 2, 2),
            };
            if let Some(reducer) = &mut reducer {
                reducer.begin().unwrap();
            }
            let out = params.iter().fold(rows, |x, w| x.matmul(w).tanh());
            out.sum(Kind::Float).backward();
            if let Some(reducer) = &mut reducer {
                reducer.finish().unwrap();
            }
            all.extend(params.iter().map(|p| numbers(&p.grad())));
        }
        all
    }

    #[test]
    fn gradients_are_those_of_all_rows_whatever_the_buckets() {
        let whole = grads(None, 3);
        for bytes in [4, 100, 1 << 20] {
            for answer in together(2, |rank, group| grads(Some((group, rank, bytes)), 3)) {
                assert_eq!(answer.len(), whole.len());
                for (got, want) in answer.iter().flatten().zip(whole.iter().flatten()) {
                    assert!((got - want).abs() <= 1e-5 * want.abs().max(1e-3), "{got} {want}");
                }
            }
        }
    }

    /// One process gets its sums although the other has done no more than its backward.
    #[test]
    fn gradients_travel_while_backward_runs() {
        let (done, waited) = mpsc::channel();
        let waited = Mutex::new(waited);
        together(2, |rank, group| {
            let params = [1.0, 2.0].map(|x| Tensor::from_slice(&[x]).set_requires_grad(true));
            let mut reducer = Reducer::new(group, &params, 1).unwrap();
            for step in 0..2 {
                crate::drop_grads(&params).unwrap();
                reducer.begin().unwrap();
                (&params[0] * &params[1]).backward();
                if rank == 0 && step == 1 {
                    waited.lock().unwrap().recv_timeout(Duration::from_secs(15)).unwrap();
                }
                reducer.finish().unwrap();
                assert_eq!(Vec::<f64>::try_from(&params[0].grad()).unwrap(), [4.0]);
                if rank == 1 && step == 1 {
                    done.send(()).unwrap();
                }
            }
        });
    }

    #[test]
    fn a_reducer_leaves_no_hook_behind_and_names_a_parameter_without_gradient() {
        together(2, |_, group| {
            let used = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
            let unused = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
            let mut reducer = Reducer::new(group, &[used.shallow_clone(), unused], 1).unwrap();
            reducer.begin().unwrap();
            (&used * 2.0).backward();
            let error = reducer.finish().unwrap_err().to_string();
            assert!(
                error.contains("every parameter") && !error.contains("frame #"),
                "{error}"
            );
            drop(reducer);
            crate::drop_grads(std::slice::from_ref(&used)).unwrap();
            (&used * 2.0).backward();
            assert_eq!(numbers(&used.grad()), [2.0]);
        });
    }

    #[test]
    fn nccl_where_it_cannot_be_says_what_is_missing() {
        let store = Store::listen().unwrap();
        // Without the library, or with it and without a GPU.
        if let Err(error) = Group::join(&store, Carrier::Nccl, 0, 1, Duration::from_secs(20)) {
            let error = error.to_string();
            assert!(
                error.contains("libflywheel_nccl.so") || error.contains("no GPUs found"),
                "{error}"
            );
            assert!(!error.contains("frame #"), "{error}");
        }
    }

    #[test]
    fn who_left_is_an_error_and_no_wait() {
        let start = Instant::now();
        let answers = together(2, |rank, group| {
            if rank == 1 {
                return None;
            }
            let tensor = Tensor::ones([1 << 16], (Kind::Float, Device::Cpu));
            let error = group.all_reduce(&tensor).and_then(Pending::wait).unwrap_err();
            Some(error.to_string())
        });
        let error = answers[0].as_deref().unwrap();
        assert!(!error.is_empty() && !error.contains("frame #"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(15));
    }
}
