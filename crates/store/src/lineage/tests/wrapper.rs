//! An object store around another that fails, stalls, forgets conditions and writes down what is done.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::Semaphore;

/// What a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Put,
    Get,
    List,
    Delete,
}

/// One call.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) kind: Kind,
    pub(super) path: String,
    /// What a put carries.
    pub(super) bytes: Bytes,
    /// Whether it did what it was to do.
    pub(super) done: bool,
}

impl Call {
    /// Whether it changes who may write or what holds.
    pub(super) fn swaps(&self) -> bool {
        self.kind == Kind::Put && self.path.contains("/HEAD")
    }
}

/// What happens to a call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    Pass,
    /// It fails with this error number of the system, undone.
    Fail(i32),
    /// It is done, and then fails with this error number.
    FailLate(i32),
    /// It waits for [`Wrapped::release`], then is done.
    Stall,
    /// It is done, then waits for [`Wrapped::release`].
    StallLate,
    /// It is done after this time.
    Slow(Duration),
    /// What a put carries is written with one bit changed, and nobody is told.
    Garble,
}

/// Which conditions of writes are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forget {
    Nothing,
    /// If-Match and If-None-Match of `HEAD`: a storage without the fence.
    OfHead,
    Creates,
    Updates,
    All,
    /// Nothing, but ETags tell the length alone.
    Tags,
}

type Plan = dyn Fn(usize, &Call) -> Act + Send + Sync;

struct Shared {
    plan: Box<Plan>,
    forget: Forget,
    calls: AtomicUsize,
    log: Mutex<Vec<Call>>,
    reached: Semaphore,
    released: Semaphore,
}

/// The wrapper; its clones are one.
#[derive(Clone)]
pub(super) struct Wrapped {
    inner: Arc<dyn ObjectStore>,
    shared: Arc<Shared>,
}

impl Wrapped {
    pub(super) fn new(
        inner: &Arc<dyn ObjectStore>,
        forget: Forget,
        plan: impl Fn(usize, &Call) -> Act + Send + Sync + 'static,
    ) -> Self {
        Self {
            inner: Arc::clone(inner),
            shared: Arc::new(Shared {
                plan: Box::new(plan),
                forget,
                calls: AtomicUsize::new(0),
                log: Mutex::default(),
                reached: Semaphore::new(0),
                released: Semaphore::new(0),
            }),
        }
    }

    pub(super) fn client(&self) -> Arc<dyn ObjectStore> {
        Arc::new(self.clone())
    }

    /// All calls so far, in the order in which they ended.
    pub(super) fn log(&self) -> Vec<Call> {
        self.shared.log.lock().unwrap().clone()
    }

    /// Counts calls from 0 again.
    pub(super) fn restart(&self) {
        self.shared.calls.store(0, Ordering::SeqCst);
        self.shared.log.lock().unwrap().clear();
    }

    pub(super) fn calls(&self) -> usize {
        self.shared.calls.load(Ordering::SeqCst)
    }

    /// Waits until a call stalls.
    pub(super) async fn stalled(&self) {
        self.shared.reached.acquire().await.unwrap().forget();
    }

    pub(super) fn release(&self) {
        self.shared.released.add_permits(1);
    }

    async fn stall(&self) {
        self.shared.reached.add_permits(1);
        self.shared.released.acquire().await.unwrap().forget();
    }

    /// Counts a call and says what happens to it.
    fn next(&self, kind: Kind, path: &Path, bytes: Bytes) -> (Call, Act) {
        let number = self.shared.calls.fetch_add(1, Ordering::SeqCst);
        let call = Call {
            kind,
            path: path.to_string(),
            bytes,
            done: false,
        };
        let act = (self.shared.plan)(number, &call);
        (call, act)
    }

    async fn around<T>(&self, (mut call, act): (Call, Act), work: impl Future<Output = Result<T>> + Send) -> Result<T> {
        match act {
            Act::Fail(code) => return Err(system(code)),
            Act::Stall => self.stall().await,
            Act::Slow(time) => tokio::time::sleep(time).await,
            _ => (),
        }
        let done = work.await;
        call.done = done.is_ok();
        self.shared.log.lock().unwrap().push(call);
        match act {
            Act::FailLate(code) => return Err(system(code)),
            Act::StallLate => self.stall().await,
            _ => (),
        }
        done
    }
}

fn system(code: i32) -> object_store::Error {
    object_store::Error::Generic {
        store: "test",
        source: std::io::Error::from_raw_os_error(code).into(),
    }
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wrapped")
    }
}

impl fmt::Display for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wrapped")
    }
}

#[async_trait]
impl ObjectStore for Wrapped {
    async fn put_opts(&self, path: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        let head = path.as_ref().contains("/HEAD");
        let forgotten = match (&options.mode, self.shared.forget) {
            (PutMode::Create | PutMode::Update(_), Forget::All)
            | (PutMode::Create, Forget::Creates)
            | (PutMode::Update(_), Forget::Updates) => true,
            (_, Forget::OfHead) => head,
            _ => false,
        };
        if forgotten {
            options.mode = PutMode::Overwrite;
        }
        let tag = format!("\"{}\"", payload.content_length());
        let tags = self.shared.forget == Forget::Tags;
        if tags && let PutMode::Update(version) = &options.mode {
            let there = self.inner.head(path).await?.size;
            if version.e_tag.as_deref() == Some(format!("\"{there}\"").as_str()) {
                options.mode = PutMode::Overwrite;
            }
        }
        let bytes: Bytes = payload.iter().flat_map(|b| b.to_vec()).collect::<Vec<u8>>().into();
        let (call, act) = self.next(Kind::Put, path, bytes.clone());
        let payload = if matches!(act, Act::Garble) {
            let mut garbled = bytes.to_vec();
            garbled[0] ^= 1;
            garbled.into()
        } else {
            payload
        };
        let put = self.inner.put_opts(path, payload, options);
        let mut put = self.around((call, act), put).await?;
        if tags {
            put.e_tag = Some(tag);
        }
        Ok(put)
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let next = self.next(Kind::Get, path, Bytes::new());
        self.around(next, self.inner.get_opts(path, options)).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let me = self.clone();
        paths
            .then(move |path| {
                let me = me.clone();
                async move {
                    let path = path?;
                    let next = me.next(Kind::Delete, &path, Bytes::new());
                    me.around(next, me.inner.delete(&path)).await?;
                    Ok(path)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let path = prefix.cloned().unwrap_or_default();
        let next = self.next(Kind::List, &path, Bytes::new());
        self.around(next, self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
