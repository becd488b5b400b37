//! One real node: kubelet, containerd, kube-proxy and a device plugin in a network and a mount namespace of their own.
//!
//! A process that only sleeps holds the namespaces. When the node's last process ends, its mounts, its pods' networks
//! and its cable go with the namespaces, whoever ended it and however.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::control_plane::{API_PORT, Layout};
use crate::error::{Error, Result};
use crate::gpus::{self, NodeGpus};
use crate::kinds::{GPU_RESOURCE, GPU_TAINT, NodeKind};
use crate::kubectl::Kubectl;
use crate::network::{self, Network};
use crate::pki::{Pki, Subject};
use crate::process::{self, Daemon, Launch};
use crate::programs::{self, Program};
use crate::{cgroups, machine, paths};

/// Ready 2 s after its start on an idle machine.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// Folders of the machine that programs insist on; each node has its own in their place.
const PRIVATE: [(&str, &str); 4] = [
    ("/var/lib/kubelet", "kubelet"),
    ("/run/containerd", "run"),
    ("/var/log/containers", "container-logs"),
    ("/var/lib/cni", "cni-state"),
];

/// The process that plays the node's GPUs.
const DEVICE_PLUGIN: &str = "device-plugin";

/// Arguments: folders in pairs, the node's own and the machine's that it replaces.
const HOLD: &str = r#"
set -e
mount --make-rshared /
while [ $# -gt 0 ]; do mount --bind "$1" "$2"; shift 2; done
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
: >"$FLYWHEEL_HELD"
exec sleep 2147483647
"#;

/// A node as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) kind: NodeKind,
    /// Counts from 1 within its kind.
    pub(crate) number: u16,
    /// Counts from 0 within the cluster; its address derives from it.
    pub(crate) index: u8,
}

impl Node {
    pub(crate) fn name(&self) -> String {
        format!("{}-{}", self.kind.name(), self.number)
    }

    /// Its processes.
    pub(crate) fn components(&self) -> Vec<String> {
        let mut parts = vec!["node", "containerd", "kubelet", "kube-proxy"];
        parts.extend(self.kind.gpus().map(|_| DEVICE_PLUGIN));
        parts.into_iter().map(|part| self.component(part)).collect()
    }

    fn component(&self, part: &str) -> String {
        format!("{part}-{}", self.name())
    }

    /// The process whose namespaces are the node's.
    pub(crate) fn holder(&self, cluster: &Path) -> Result<Daemon> {
        Daemon::recorded(cluster, &self.component("node"))
            .filter(Daemon::alive)
            .ok_or_else(|| {
                Error::Usage(format!(
                    "{} does not run; `flywheel-localcluster up` starts the cluster afresh",
                    self.name()
                ))
            })
    }
}

/// What all nodes of a cluster share.
pub(crate) struct Ground<'a> {
    pub(crate) layout: &'a Layout<'a>,
    pub(crate) network: Network,
    pub(crate) pki: &'a Pki,
    pub(crate) kubectl: &'a Kubectl,
    /// OCI archive of the image that holds each pod's namespaces.
    pub(crate) pause: &'a Path,
    pub(crate) pause_tag: &'a str,
}

impl Ground<'_> {
    fn folder(&self, node: &Node) -> PathBuf {
        folder(self.layout.folder, node)
    }

    fn kubernetes(&self, program: Program) -> Result<PathBuf> {
        program.ensure(self.layout.kubernetes)
    }

    /// A launch inside the node's namespaces.
    fn inside(&self, node: &Node, holder: &Daemon, part: &str, program: PathBuf) -> Launch {
        Launch::new(
            node.component(part),
            machine::find("nsenter").unwrap_or_else(|| "nsenter".into()),
        )
        .args(namespaces(holder.pid()))
        .arg(program)
    }

    /// Starts the node and waits until it is Ready.
    pub(crate) fn start(&self, node: &Node) -> Result<()> {
        let name = node.name();
        let home = self.folder(node);
        for (_, own) in PRIVATE {
            paths::make(&home.join(own))?;
        }
        paths::make(&home.join("cni"))?;
        let holder = self.hold(node, &home)?;
        self.network.connect(self.layout.folder, node.index, holder.pid())?;
        cgroups::make(&self.group(node))?;
        self.start_containerd(node, &home, &holder)?;
        let kubelet = self.start_kubelet(node, &home, &holder)?;
        if let Some(gpus) = node.kind.gpus() {
            NodeGpus::healthy(gpus.count).save(&gpus::file(&home))?;
            self.start_device_plugin(node, &home, &holder)?;
        }
        let range = self.pod_range(&name, &kubelet)?;
        self.network.route(&range, node.index)?;
        self.write_cni(&home, &range)?;
        self.start_proxy(node, &home, &holder)?;
        self.wait(node, &kubelet)
    }

    fn wait(&self, node: &Node, kubelet: &Daemon) -> Result<()> {
        process::wait_for("node Ready", READY_WITHIN, kubelet, || {
            let ready = self
                .status(node)?
                .get("conditions")
                .and_then(|all| all.as_array())
                .is_some_and(|all| {
                    all.iter().any(|one| {
                        one.get("type").is_some_and(|kind| kind == "Ready")
                            && one.get("status").is_some_and(|is| is == "True")
                    })
                });
            Ok(ready)
        })?;
        let Some(plugin) = Daemon::recorded(self.layout.folder, &node.component(DEVICE_PLUGIN)) else {
            return Ok(());
        };
        let gpus = gpus::file(&self.folder(node));
        process::wait_for("GPUs counted", READY_WITHIN, &plugin, || {
            let (status, gpus) = (self.status(node)?, NodeGpus::load(&gpus)?);
            let counted = |what: &str| status.get(what).and_then(|all| all.get(GPU_RESOURCE)?.as_str());
            Ok(counted("capacity") == Some(&gpus.count.to_string())
                && counted("allocatable") == Some(&gpus.usable().to_string()))
        })
    }

    fn status(&self, node: &Node) -> Result<serde_json::Value> {
        let name = node.name();
        let answer = self.kubectl.run(["get", "node", &name, "-o", "json"])?;
        let mut object: serde_json::Value = serde_json::from_str(&answer).map_err(|error| Error::Format {
            what: format!("node {name}"),
            why: error.to_string(),
        })?;
        Ok(object
            .get_mut("status")
            .map(serde_json::Value::take)
            .unwrap_or_default())
    }

    /// Waits for a node that has been started before.
    pub(crate) fn wait_started(&self, node: &Node) -> Result<()> {
        let kubelet = Daemon::recorded(self.layout.folder, &node.component("kubelet"));
        kubelet.map_or(Ok(()), |kubelet| self.wait(node, &kubelet))
    }

    fn group(&self, node: &Node) -> String {
        format!("{}-{}", network::tag(self.layout.folder), node.name())
    }

    fn hold(&self, node: &Node, home: &Path) -> Result<Daemon> {
        let held = home.join("held");
        let mut launch = Launch::new(
            node.component("node"),
            machine::find("unshare").unwrap_or_else(|| "unshare".into()),
        )
        // Private: what the node mounts stays with it, what the machine mounts later does not reach it.
        .args([
            "--net",
            "--mount",
            "--propagation",
            "private",
            "/bin/sh",
            "-c",
            HOLD,
            "hold",
        ])
        .env("FLYWHEEL_HELD", &held)
        .env("PATH", machine::search_path(&[]));
        for (shared, own) in PRIVATE {
            paths::make(Path::new(shared))?;
            launch = launch.arg(home.join(own)).arg(shared);
        }
        let holder = process::detach(self.layout.folder, &launch)?;
        process::wait_for("namespaces", READY_WITHIN, &holder, || Ok(held.is_file()))?;
        Ok(holder)
    }

    fn start_containerd(&self, node: &Node, home: &Path, holder: &Daemon) -> Result<()> {
        let path = |below: &str| home.join(below).display().to_string();
        let snapshotter = if on_overlay(home) { "native" } else { "overlayfs" };
        // `netns_mounts_under_state_dir`: the pods' networks end with the cluster. `restrict_oom_score_adj`: without
        // CAP_SYS_RESOURCE runc could start nothing otherwise.
        let config = format!(
            r#"version = 3
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins.'io.containerd.internal.v1.opt']
  path = "{opt}"
[plugins.'io.containerd.nri.v1.nri']
  disable = true
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "{snapshotter}"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{pause}"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "{cni}"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
"#,
            root = path("containerd"),
            state = path("run/state"),
            socket = socket(home).display(),
            opt = path("opt"),
            pause = self.pause_tag,
            cni = path("cni"),
        );
        let file = home.join("containerd.toml");
        paths::write(&file, config)?;
        let shim = self.kubernetes(Program::ContainerdShim)?;
        let launch = self
            .inside(node, holder, "containerd", self.kubernetes(Program::Containerd)?)
            .arg("--config")
            .arg(&file)
            .env("PATH", machine::search_path(shim.parent().as_slice()));
        let containerd = process::detach(self.layout.folder, &launch)?;
        let ctr = self.kubernetes(Program::Ctr)?;
        process::wait_for("", READY_WITHIN, &containerd, || {
            process::run(Command::new(&ctr).arg("--address").arg(socket(home)).arg("version")).map(|_| true)
        })?;
        import(self.layout.folder, node, holder, &ctr, self.pause, None)
    }

    fn start_kubelet(&self, node: &Node, home: &Path, holder: &Daemon) -> Result<Daemon> {
        let (name, address) = (node.name(), self.network.node(node.index));
        let (user, file) = (format!("system:node:{name}"), home.join("kubelet.yaml"));
        self.pki.issue(&Subject {
            name: &name,
            user: &user,
            group: Some("system:nodes"),
            names: &[&name],
            addresses: &[IpAddr::V4(address)],
        })?;
        let kubeconfig = self.layout.component_kubeconfig(&name);
        self.pki
            .kubeconfig(&kubeconfig, &self.layout.server(), &name, &user, Some("system:nodes"))?;
        let (key, value, effect) = GPU_TAINT;
        let taints = match node.kind.gpus() {
            Some(_) => json!([{"key": key, "value": value, "effect": effect}]),
            None => json!([]),
        };
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": false}, "x509": {"clientCAFile": self.pki.certificate("ca")}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.group(node)),
            "failCgroupV1": false,
            "failSwapOn": false,
            "containerRuntimeEndpoint": format!("unix://{}", socket(home).display()),
            "tlsCertFile": self.pki.certificate(&name),
            "tlsPrivateKeyFile": self.pki.key(&name),
            "resolvConf": "",
            "clusterDNS": [self.network.gateway()],
            "clusterDomain": "cluster.local",
            "registerWithTaints": taints,
            // The machine's disk is not the cluster's: its filling up must not throw pods out.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi"},
            "podLogsDir": home.join("logs"),
        });
        paths::write(&file, format!("{config:#}\n"))?;
        let mut launch = self
            .inside(node, holder, "kubelet", self.kubernetes(Program::Kubelet)?)
            .arg("--config")
            .arg(&file)
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .arg(format!("--hostname-override={name}"))
            .arg(format!("--node-ip={address}"))
            .arg("--root-dir=/var/lib/kubelet")
            .arg("--cert-dir")
            .arg(home.join("certificates"))
            .env("PATH", machine::search_path(&[]));
        if let Some(gpus) = node.kind.gpus() {
            launch = launch.arg(format!("--node-labels=nvidia.com/gpu.product={}", gpus.product));
        }
        process::detach(self.layout.folder, &launch)
    }

    fn start_device_plugin(&self, node: &Node, home: &Path, holder: &Daemon) -> Result<Daemon> {
        let launch = self
            .inside(node, holder, DEVICE_PLUGIN, programs::own()?)
            .arg("device-plugin")
            .arg(node.name())
            .arg(gpus::file(home));
        process::detach(self.layout.folder, &launch)
    }

    fn pod_range(&self, name: &str, kubelet: &Daemon) -> Result<String> {
        let mut range = String::new();
        process::wait_for("range of pod addresses", READY_WITHIN, kubelet, || {
            range = self
                .kubectl
                .run(["get", "node", name, "-o", "jsonpath={.spec.podCIDR}"])?;
            Ok(range.contains('/'))
        })?;
        Ok(range)
    }

    fn write_cni(&self, home: &Path, range: &str) -> Result<()> {
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "flywheel",
            "plugins": [
                {
                    "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": range}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                        "dataDir": home.join("addresses"),
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        paths::write(&home.join("cni/10-bridge.conflist"), format!("{config:#}\n"))
    }

    fn start_proxy(&self, node: &Node, home: &Path, holder: &Daemon) -> Result<Daemon> {
        let (pods, prefix) = self.network.pods();
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": self.layout.component_kubeconfig("kube-proxy")},
            "mode": "iptables",
            "clusterCIDR": format!("{pods}/{prefix}"),
            "hostnameOverride": node.name(),
            // The limit is the machine's, not the namespace's: leave it alone.
            "conntrack": {"maxPerCore": 0},
        });
        let file = home.join("kube-proxy.yaml");
        paths::write(&file, format!("{config:#}\n"))?;
        let launch = self
            .inside(node, holder, "kube-proxy", self.kubernetes(Program::KubeProxy)?)
            .arg("--config")
            .arg(&file)
            .env("PATH", machine::search_path(&[]));
        process::detach(self.layout.folder, &launch)
    }

    pub(crate) fn prepare(&self) -> Result<()> {
        let kubeconfig = self.layout.component_kubeconfig("kube-proxy");
        self.pki.kubeconfig(
            &kubeconfig,
            &self.layout.server(),
            "kube-proxy",
            "system:kube-proxy",
            None,
        )
    }

    pub(crate) fn cut_api(&self, node: &Node) -> Result<()> {
        self.network.cut_api(node.holder(self.layout.folder)?.pid(), API_PORT)
    }

    pub(crate) fn heal_api(&self, node: &Node) -> Result<()> {
        self.network.heal_api(node.holder(self.layout.folder)?.pid(), API_PORT)
    }
}

/// Gives an OCI archive's image to a node, by one more name where one is given.
pub(crate) fn import(
    cluster: &Path,
    node: &Node,
    holder: &Daemon,
    ctr: &Path,
    archive: &Path,
    name: Option<&str>,
) -> Result<()> {
    // Through standard input: the node's mount namespace need not know the archive's folder.
    let file = fs::File::open(archive).map_err(Error::path("opening", archive))?;
    let mut command = Command::new(machine::find("nsenter").unwrap_or_else(|| "nsenter".into()));
    command
        .args(namespaces(holder.pid()))
        .arg(ctr)
        .arg("--address")
        .arg(socket(&folder(cluster, node)));
    command.args(["--namespace", "k8s.io", "images", "import"]);
    if let Some(name) = name {
        command.args(["--index-name", name]);
    }
    command.arg("-");
    process::run_from(&mut command, file).map(drop)
}

/// Changes the GPUs of a node.
pub(crate) fn change_gpus(cluster: &Path, node: &Node, change: impl FnOnce(&mut NodeGpus) -> Result<()>) -> Result<()> {
    if node.kind.gpus().is_none() {
        return Err(Error::Usage(format!("{} has no GPUs", node.name())));
    }
    NodeGpus::change(&gpus::file(&folder(cluster, node)), change)
}

fn folder(cluster: &Path, node: &Node) -> PathBuf {
    cluster.join("nodes").join(node.name())
}

fn socket(home: &Path) -> PathBuf {
    home.join("run/containerd.sock")
}

/// `nsenter` and not `ip netns exec`, which would hide the mounts of the control groups.
fn namespaces(holder: i32) -> [String; 3] {
    [
        format!("--net=/proc/{holder}/ns/net"),
        format!("--mount=/proc/{holder}/ns/mnt"),
        "--".into(),
    ]
}

/// An overlay cannot be stacked on an overlay, which is what a container's own root is.
fn on_overlay(folder: &Path) -> bool {
    const OVERLAYFS_SUPER_MAGIC: i64 = 0x794c_7630;
    rustix::fs::statfs(folder).is_ok_and(|about| about.f_type == OVERLAYFS_SUPER_MAGIC)
}
