//! CoreDNS and MinIO on the machine's own address of the bridge, where pods and the machine reach them alike, and KWOK.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::control_plane::{Layout, listens};
use crate::error::{Error, Result};
use crate::kinds::{GPU_RESOURCE, GPU_TAINT, NodeKind};
use crate::kubectl::Kubectl;
use crate::process::{self, Daemon, Launch};
use crate::programs::Program;
use crate::{paths, random};

const DNS_PORT: u16 = 53;
/// Not MinIO's usual 9000: a MinIO of the machine's own may listen there on every address.
const S3_PORT: u16 = 19000;
pub(crate) const S3_CONSOLE_PORT: u16 = 19001;
pub(crate) const KWOK_PORT: u16 = 20247;
const READY_WITHIN: Duration = Duration::from_secs(60);

/// An object store that speaks S3, and how to enter it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct S3 {
    /// `http://ADDRESS:PORT`, for pods and for the machine.
    pub endpoint: String,
    /// Region to name in signatures.
    pub region: String,
    /// A bucket that is there.
    pub bucket: String,
    /// User.
    pub access_key: String,
    /// Password; made anew for each cluster.
    pub secret_key: String,
}

impl S3 {
    pub(crate) fn new(address: Ipv4Addr) -> Result<S3> {
        Ok(S3 {
            endpoint: format!("http://{address}:{S3_PORT}"),
            region: "us-east-1".into(),
            bucket: "flywheel".into(),
            access_key: "flywheel".into(),
            secret_key: random::hex(32)?,
        })
    }
}

pub(crate) fn start_dns(layout: &Layout, kubectl: &Kubectl) -> Result<Daemon> {
    let corefile = layout.folder.join("etc/Corefile");
    // No cache: names of headless services are to follow their pods at once.
    paths::write(
        &corefile,
        format!(
            ".:{DNS_PORT} {{\n  bind {}\n  errors\n  kubernetes cluster.local in-addr.arpa {{\n    kubeconfig {}\n  }}\n}}\n",
            layout.address,
            layout.kubeconfig().display()
        ),
    )?;
    let launch = Launch::new("coredns", Program::CoreDns.ensure(layout.kubernetes)?)
        .arg("-conf")
        .arg(&corefile);
    let dns = process::detach(layout.folder, &launch)?;
    process::wait_for("", READY_WITHIN, &dns, || Ok(listens(layout.address, DNS_PORT)))?;
    // Pods find it by kubelet's setting; who looks for it in the usual place finds it too.
    kubectl.apply(
        &json!({
            "apiVersion": "v1", "kind": "List", "items": [
                {
                    "apiVersion": "v1", "kind": "Service",
                    "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}},
                    "spec": {"ports": [
                        {"name": "dns", "port": DNS_PORT, "protocol": "UDP"},
                        {"name": "dns-tcp", "port": DNS_PORT, "protocol": "TCP"},
                    ]},
                },
                {
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                    "metadata": {"name": "kube-dns", "namespace": "kube-system",
                                 "labels": {"kubernetes.io/service-name": "kube-dns"}},
                    "addressType": "IPv4",
                    "endpoints": [{"addresses": [layout.address]}],
                    "ports": [
                        {"name": "dns", "port": DNS_PORT, "protocol": "UDP"},
                        {"name": "dns-tcp", "port": DNS_PORT, "protocol": "TCP"},
                    ],
                },
            ],
        })
        .to_string(),
    )?;
    Ok(dns)
}

pub(crate) fn start_s3(layout: &Layout, s3: &S3) -> Result<Daemon> {
    let data = layout.folder.join("s3");
    // A folder in MinIO's own is a bucket.
    paths::make(&data.join(&s3.bucket))?;
    let launch = Launch::new("minio", Program::Minio.ensure(layout.kubernetes)?)
        .arg("server")
        .arg(&data)
        .arg(format!("--address={}:{S3_PORT}", layout.address))
        .arg(format!("--console-address={}:{S3_CONSOLE_PORT}", layout.inner))
        .arg("--certs-dir")
        .arg(layout.folder.join("etc"))
        .arg("--quiet")
        .env("MINIO_ROOT_USER", s3.access_key.as_str())
        .env("MINIO_ROOT_PASSWORD", s3.secret_key.as_str())
        .env("MINIO_REGION", s3.region.as_str())
        .env("MINIO_BROWSER", "off")
        .env("MINIO_UPDATE", "off");
    let store = process::detach(layout.folder, &launch)?;
    process::wait_for("", READY_WITHIN, &store, || {
        Ok(answers(layout.address, S3_PORT, "/minio/health/ready"))
    })?;
    Ok(store)
}

/// Whether an HTTP server answers 200.
fn answers(address: Ipv4Addr, port: u16, path: &str) -> bool {
    const PATIENCE: Duration = Duration::from_secs(2);
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&(address, port).into(), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(head.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}

pub(crate) fn start_kwok(layout: &Layout) -> Result<Daemon> {
    let stages = layout.folder.join("etc/kwok.yaml");
    paths::write(&stages, include_str!("kwok-stages.yaml"))?;
    let launch = Launch::new("kwok", Program::Kwok.ensure(layout.kubernetes)?)
        .arg("--kubeconfig")
        .arg(layout.kubeconfig())
        .arg("--config")
        .arg(&stages)
        // By label and not by annotation: taking the label away is a node's true death, its lease ages.
        .arg("--manage-nodes-with-label-selector=type=kwok")
        .arg("--node-lease-duration-seconds=40")
        .arg(format!("--node-ip={}", layout.inner))
        .arg(format!("--server-address={}:{KWOK_PORT}", layout.inner));
    let kwok = process::detach(layout.folder, &launch)?;
    process::wait_for("", READY_WITHIN, &kwok, || {
        Ok(answers(layout.inner, KWOK_PORT, "/healthz"))
    })?;
    Ok(kwok)
}

/// Name of the fake node `number`, which counts from 1.
fn kwok_name(number: u16) -> String {
    format!("kwok-{number:04}")
}

/// A100 and T4 in turn, so that any number has about as many of each.
fn kwok_kind(number: u16) -> NodeKind {
    if number % 2 == 1 { NodeKind::A100 } else { NodeKind::T4 }
}

/// Adds the fake nodes `from..=to` and waits until all `to` are Ready.
pub(crate) fn add_kwok_nodes(layout: &Layout, kubectl: &Kubectl, kwok: &Daemon, from: u16, to: u16) -> Result<()> {
    if from > to {
        return Ok(());
    }
    let mut manifest = String::new();
    for number in from..=to {
        let name = kwok_name(number);
        let (key, value, effect) = GPU_TAINT;
        let mut labels = json!({
            "type": "kwok",
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
        });
        let mut resources = json!({"cpu": "32", "memory": "256Gi", "pods": "110"});
        let mut taints = vec![json!({"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"})];
        if let (Some(gpus), Some(labels), Some(resources)) = (
            kwok_kind(number).gpus(),
            labels.as_object_mut(),
            resources.as_object_mut(),
        ) {
            labels.insert("nvidia.com/gpu.product".into(), gpus.product.into());
            resources.insert(GPU_RESOURCE.into(), gpus.count.to_string().into());
            taints.push(json!({"key": key, "value": value, "effect": effect}));
        }
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels},
            "spec": {"taints": taints},
            "status": {"allocatable": resources, "capacity": resources},
        });
        // One document per node; writing to a string cannot fail.
        let _ = write!(manifest, "---\n{node}\n");
    }
    create(kubectl, &manifest, layout.folder)?;
    // Each takes kubectl a request and KWOK two.
    let within = READY_WITHIN + Duration::from_millis(200) * u32::from(to);
    process::wait_for("fake nodes Ready", within, kwok, || {
        let columns = r#"jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}"#;
        let answer = kubectl.run(["get", "nodes", "-l", "type=kwok", "-o", columns])?;
        Ok(answer.lines().filter(|line| *line == "True").count() >= usize::from(to))
    })
}

fn create(kubectl: &Kubectl, manifest: &str, folder: &Path) -> Result<()> {
    let file = folder.join("etc/kwok-nodes.yaml");
    paths::write(&file, manifest)?;
    let mut command = kubectl.command();
    command.args(["create", "-f"]).arg(&file);
    match process::run(&mut command) {
        // An `up` that was interrupted had made some of them.
        Err(Error::Command { output, .. })
            if output
                .lines()
                .all(|line| is_progress(line) || line.contains("already exists")) =>
        {
            Ok(())
        }
        other => other.map(drop),
    }
}

fn is_progress(line: &str) -> bool {
    line.is_empty() || line.ends_with(" created")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fake_nodes_alternate() {
        assert_eq!(
            (kwok_name(7).as_str(), kwok_kind(7), kwok_kind(8)),
            ("kwok-0007", NodeKind::A100, NodeKind::T4)
        );
    }

    #[test]
    fn jobs_on_fake_nodes_do_not_end_by_themselves() {
        let stages = include_str!("kwok-stages.yaml");
        assert!(stages.contains("kwok.flywheel.dev/complete"));
        assert!(!stages.contains("ownerReferences"));
    }
}
