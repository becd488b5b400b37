//! A device plugin of the kubelet (`v1beta1`), as NVIDIA's is one, for GPUs that are not there.
//!
//! It is a process of its own in the node's namespaces. The kubelet asks it what GPUs there are and hears of each change of
//! their health; it writes both into the statuses of the node and of the pods that have them.

use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use futures::stream;
use http::uri::PathAndQuery;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::body::Body;
use tonic::client::Grpc as Client;
use tonic::codegen::StdError;
use tonic_prost::ProstCodec;
use tower::Service;

use crate::error::{Error, Result};
use crate::gpus::{self, NodeGpus};
use crate::kinds::GPU_RESOURCE;
use crate::paths;

/// Where every kubelet and its plugins meet.
const FOLDER: &str = "/var/lib/kubelet/device-plugins";
const KUBELET: &str = "kubelet.sock";
const PLUGIN: &str = "flywheel-gpu.sock";
const VERSION: &str = "v1beta1";
/// How often the GPUs and the kubelet's socket are looked at: soon for people and tests, nothing for a processor.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The kubelet takes as long to reach a plugin that registers.
const REGISTER_WITHIN: Duration = Duration::from_secs(10);

// The messages of `deviceplugin/v1beta1/api.proto`, with the fields that are used.

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct RegisterRequest {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    endpoint: String,
    #[prost(string, tag = "3")]
    resource_name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ListAndWatchResponse {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<Device>,
}

#[derive(Clone, PartialEq, Message)]
struct Device {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    health: String,
}

/// `AllocateRequest` and `AllocateResponse`: one entry for each container, which gets nothing but the kubelet's word.
#[derive(Clone, PartialEq, Message)]
struct Allocate {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Empty>,
}

fn devices(node: &str, gpus: &NodeGpus) -> ListAndWatchResponse {
    let devices = gpus.health().map(|(index, health)| Device {
        id: gpus::id(node, index),
        health: health.word().into(),
    });
    ListAndWatchResponse {
        devices: devices.collect(),
    }
}

/// Plays the GPUs of a node that `file` tells of, until it is killed. For the hidden command of that name; it runs in the
/// node's namespaces.
///
/// # Errors
/// The file or the folder of the sockets cannot be used.
pub fn play_gpus(node: &str, file: &Path) -> Result<Infallible> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::io("starting the device plugin"))?;
    let folder = Path::new(FOLDER);
    // The kubelet makes it as well; whoever comes first.
    paths::make(folder)?;
    runtime.block_on(play(node, file, folder))
}

async fn play(node: &str, file: &Path, folder: &Path) -> Result<Infallible> {
    let (tell, told) = watch::channel(devices(node, &NodeGpus::load(file)?));
    let mut registered = None;
    let mut server = JoinSet::new();
    loop {
        let now = devices(node, &NodeGpus::load(file)?);
        tell.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
        let kubelet = made(&folder.join(KUBELET));
        if kubelet.is_some() && kubelet != registered {
            // A kubelet that starts has removed all sockets in the folder.
            server.shutdown().await;
            server.spawn(serve(bind(&folder.join(PLUGIN))?, told.clone()));
            match timeout(REGISTER_WITHIN, register(&folder.join(KUBELET))).await {
                Ok(Ok(())) => {
                    tracing::info!("registered {} GPUs", tell.borrow().devices.len());
                    registered = kubelet;
                }
                // It may be starting still, or ending.
                Ok(Err(error)) => tracing::warn!("the kubelet does not take the registration: {error}"),
                Err(_) => tracing::warn!("the kubelet does not answer the registration"),
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

/// When a socket was made; numbers of files alone are used again.
fn made(socket: &Path) -> Option<(u64, i64, i64)> {
    let about = std::fs::metadata(socket).ok()?;
    Some((about.ino(), about.ctime(), about.ctime_nsec()))
}

fn bind(socket: &Path) -> Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::path("removing", socket)(error)),
        _ => {}
    }
    UnixListener::bind(socket).map_err(Error::path("listening at", socket))
}

async fn serve(listener: UnixListener, told: watch::Receiver<ListAndWatchResponse>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let told = told.clone();
                let service = service_fn(move |request| answer(told.clone(), request));
                connections.spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                sleep(LOOK_EVERY).await;
            }
        }
    }
}

async fn answer(
    told: watch::Receiver<ListAndWatchResponse>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    // The type of the futures that `tower::service_fn` takes.
    type Answer<T> = std::future::Ready<Result<tonic::Response<T>, Status>>;
    Ok(match request.uri().path() {
        "/v1beta1.DevicePlugin/ListAndWatch" => {
            let watch = |_: tonic::Request<Empty>| ready(Ok(tonic::Response::new(list_and_watch(told.clone()))));
            tonic::server::Grpc::new(ProstCodec::default())
                .server_streaming(tower::service_fn(watch), request)
                .await
        }
        "/v1beta1.DevicePlugin/Allocate" => {
            let allocate = |all: tonic::Request<Allocate>| -> Answer<Allocate> {
                ready(Ok(tonic::Response::new(all.into_inner())))
            };
            tonic::server::Grpc::new(ProstCodec::default())
                .unary(tower::service_fn(allocate), request)
                .await
        }
        // None of them is set.
        "/v1beta1.DevicePlugin/GetDevicePluginOptions" => {
            let options = |_: tonic::Request<Empty>| -> Answer<Empty> { ready(Ok(tonic::Response::new(Empty {}))) };
            tonic::server::Grpc::new(ProstCodec::default())
                .unary(tower::service_fn(options), request)
                .await
        }
        other => Status::unimplemented(other).into_http(),
    })
}

/// What there is, and again after each change.
fn list_and_watch(
    mut told: watch::Receiver<ListAndWatchResponse>,
) -> impl stream::Stream<Item = Result<ListAndWatchResponse, Status>> {
    told.mark_changed();
    stream::unfold(told, |mut told| async {
        told.changed().await.ok()?;
        let now = told.borrow_and_update().clone();
        Some((Ok(now), told))
    })
}

async fn register(kubelet: &Path) -> Result<(), StdError> {
    let request = RegisterRequest {
        version: VERSION.into(),
        endpoint: PLUGIN.into(),
        resource_name: GPU_RESOURCE.into(),
    };
    let path = PathAndQuery::from_static("/v1beta1.Registration/Register");
    client(kubelet)
        .await?
        .unary(tonic::Request::new(request), path, ProstCodec::<_, Empty>::default())
        .await?;
    Ok(())
}

/// Its connection ends with it.
async fn client(
    socket: &Path,
) -> Result<Client<impl Service<Request<Body>, Response = Response<Incoming>, Error = hyper::Error> + use<>>, StdError>
{
    let stream = TokioIo::new(UnixStream::connect(socket).await?);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
    tokio::spawn(connection);
    let send = move |request| sender.clone().send_request(request);
    Ok(Client::with_origin(
        tower::service_fn(send),
        Uri::from_static("http://localhost"),
    ))
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::gpus::Health;

    const SOON: Duration = Duration::from_secs(10);

    /// What a kubelet does when it starts: it removes what is in the folder and takes registrations.
    fn kubelet(folder: &Path) -> (JoinSet<()>, mpsc::Receiver<RegisterRequest>) {
        for socket in [KUBELET, PLUGIN] {
            let _ = std::fs::remove_file(folder.join(socket));
        }
        let listener = bind(&folder.join(KUBELET)).unwrap();
        let (sender, registrations) = mpsc::channel(1);
        let mut server = JoinSet::new();
        server.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let sender = sender.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    assert_eq!(request.uri().path(), "/v1beta1.Registration/Register");
                    let sender = sender.clone();
                    let register = move |request: tonic::Request<RegisterRequest>| {
                        sender.try_send(request.into_inner()).unwrap();
                        ready(Ok(tonic::Response::new(Empty {})))
                    };
                    async {
                        let mut server = tonic::server::Grpc::new(ProstCodec::default());
                        Ok::<_, Infallible>(server.unary(tower::service_fn(register), request).await)
                    }
                });
                // The plugin ends its connection when it is registered.
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        });
        (server, registrations)
    }

    async fn lists(folder: &Path) -> tonic::Streaming<ListAndWatchResponse> {
        let path = PathAndQuery::from_static("/v1beta1.DevicePlugin/ListAndWatch");
        let mut plugin = client(&folder.join(PLUGIN)).await.unwrap();
        let codec = ProstCodec::<Empty, _>::default();
        plugin
            .server_streaming(tonic::Request::new(Empty {}), path, codec)
            .await
            .unwrap()
            .into_inner()
    }

    async fn next(lists: &mut tonic::Streaming<ListAndWatchResponse>) -> Vec<(String, String)> {
        let list = timeout(SOON, lists.message()).await.unwrap().unwrap().unwrap();
        list.devices
            .into_iter()
            .map(|device| (device.id, device.health))
            .collect()
    }

    fn told<const N: usize>(words: [&str; N]) -> Vec<(String, String)> {
        let ids = (0..).map(|index| format!("GPU-n-{index}"));
        ids.zip(words.map(str::to_owned)).collect()
    }

    #[tokio::test]
    async fn a_kubelet_hears_of_each_change_and_the_next_one_of_all() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, file) = (folder.path(), gpus::file(folder.path()));
        NodeGpus::healthy(2).save(&file).unwrap();
        let kubelets = async {
            let (first, mut registrations) = kubelet(folder);
            let registration = timeout(SOON, registrations.recv()).await.unwrap().unwrap();
            assert_eq!(registration.resource_name, "nvidia.com/gpu");
            assert_eq!(
                (registration.version.as_str(), registration.endpoint.as_str()),
                (VERSION, PLUGIN)
            );
            let mut heard = lists(folder).await;
            assert_eq!(next(&mut heard).await, told(["Healthy", "Healthy"]));
            NodeGpus::change(&file, |gpus| gpus.set(1, Health::Unhealthy)).unwrap();
            assert_eq!(next(&mut heard).await, told(["Healthy", "Unhealthy"]));

            let both = Allocate {
                containers: vec![Empty {}, Empty {}],
            };
            let path = PathAndQuery::from_static("/v1beta1.DevicePlugin/Allocate");
            let mut plugin = client(&folder.join(PLUGIN)).await.unwrap();
            let codec = ProstCodec::<_, Allocate>::default();
            let given = plugin.unary(tonic::Request::new(both.clone()), path, codec).await;
            assert_eq!(given.unwrap().into_inner(), both);

            drop(first);
            let (_second, mut registrations) = kubelet(folder);
            timeout(SOON, registrations.recv()).await.unwrap().unwrap();
            assert_eq!(next(&mut lists(folder).await).await, told(["Healthy", "Unhealthy"]));
        };
        tokio::select! {
            ended = play("n", &file, folder) => panic!("it ends: {ended:?}"),
            () = kubelets => {}
        }
    }
}
