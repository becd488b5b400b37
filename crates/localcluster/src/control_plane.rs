//! etcd, API server, controller manager and scheduler: under a whole cluster, or alone on loopback for tests.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::kubectl::Kubectl;
use crate::pki::{Pki, Subject};
use crate::process::{self, Daemon, Launch, Leashed};
use crate::programs::{KUBERNETES, Program};
use crate::{paths, random, services};

/// Ports differ from the usual ones, so that a Kubernetes that listens on every address of the machine is no conflict.
pub(crate) const API_PORT: u16 = 16443;
const ETCD_PORT: u16 = 12379;
const ETCD_PEER_PORT: u16 = 12380;
const CONTROLLER_MANAGER_PORT: u16 = 20257;
const SCHEDULER_PORT: u16 = 20259;

/// What listens on a control plane's inner address.
const INNER_PORTS: [u16; 7] = [
    API_PORT,
    ETCD_PORT,
    ETCD_PEER_PORT,
    CONTROLLER_MANAGER_PORT,
    SCHEDULER_PORT,
    services::S3_CONSOLE_PORT,
    services::KWOK_PORT,
];

/// The API server is ready 3 s after its start on an idle machine; builds beside it make that many times longer.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// Where a control plane lives and what it hands out.
pub(crate) struct Layout<'a> {
    pub(crate) folder: &'a Path,
    /// Where the API server listens, also what clients inside pods are told.
    pub(crate) address: Ipv4Addr,
    /// A loopback address of its own for all that only the control plane itself talks to.
    pub(crate) inner: Ipv4Addr,
    /// First address and prefix length of the services' range.
    pub(crate) services: (Ipv4Addr, u8),
    /// The pods' range, if there are nodes.
    pub(crate) pods: Option<(Ipv4Addr, u8)>,
    pub(crate) kubernetes: &'a str,
}

impl Layout<'_> {
    pub(crate) fn server(&self) -> String {
        format!("https://{}:{API_PORT}", self.address)
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// The address of the service `kubernetes`: the range's second.
    fn service_address(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.services.0.to_bits() + 1)
    }

    /// Folders, certificates and the administrator's kubeconfig.
    pub(crate) fn prepare(&self) -> Result<Pki> {
        for folder in ["pid", "log", "etc"] {
            paths::make(&self.folder.join(folder))?;
        }
        let pki = Pki::open(&self.folder.join("pki"))?;
        let addresses = [self.address, self.service_address(), Ipv4Addr::LOCALHOST].map(IpAddr::V4);
        let names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
        ];
        pki.issue(&Subject {
            name: "apiserver",
            user: "kube-apiserver",
            group: None,
            names: &names,
            addresses: &addresses,
        })?;
        pki.kubeconfig(
            &self.kubeconfig(),
            &self.server(),
            "admin",
            "admin",
            Some("system:masters"),
        )?;
        for (name, user) in [
            ("controller-manager", "system:kube-controller-manager"),
            ("scheduler", "system:kube-scheduler"),
        ] {
            pki.kubeconfig(&self.component_kubeconfig(name), &self.server(), name, user, None)?;
        }
        Ok(pki)
    }

    pub(crate) fn component_kubeconfig(&self, name: &str) -> PathBuf {
        self.folder.join("etc").join(format!("{name}.kubeconfig"))
    }

    pub(crate) fn etcd(&self) -> Result<Launch> {
        let clients = format!("http://{}:{ETCD_PORT}", self.inner);
        let peers = format!("http://{}:{ETCD_PEER_PORT}", self.inner);
        Ok(Launch::new("etcd", Program::Etcd.ensure(self.kubernetes)?)
            .args(["--data-dir".into(), self.folder.join("etcd")])
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .arg("--initial-cluster")
            .arg(format!("default={peers}"))
            // The data goes with the cluster; a power cut may take it.
            .args(["--unsafe-no-fsync", "--log-level=warn"]))
    }

    pub(crate) fn api_server(&self, pki: &Pki) -> Result<Launch> {
        let flag = |name: &str, path: PathBuf| {
            let mut text = std::ffi::OsString::from(format!("--{name}="));
            text.push(path);
            text
        };
        let mut launch = Launch::new("apiserver", Program::KubeApiserver.ensure(self.kubernetes)?)
            .arg(format!("--etcd-servers=http://{}:{ETCD_PORT}", self.inner))
            .arg(format!("--secure-port={API_PORT}"))
            .arg(format!("--bind-address={}", self.address))
            .arg(format!("--advertise-address={}", self.address))
            .arg(format!(
                "--service-cluster-ip-range={}/{}",
                self.services.0, self.services.1
            ))
            .arg(flag("tls-cert-file", pki.certificate("apiserver")))
            .arg(flag("tls-private-key-file", pki.key("apiserver")))
            .arg(flag("client-ca-file", pki.certificate("ca")))
            .arg(flag("service-account-key-file", pki.token_key()))
            .arg(flag("service-account-signing-key-file", pki.key("sa")))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg("--authorization-mode=Node,RBAC")
            .arg("--enable-admission-plugins=NodeRestriction")
            .arg(flag("kubelet-client-certificate", pki.certificate("admin")))
            .arg(flag("kubelet-client-key", pki.key("admin")))
            // Without this logs, exec and port-forward fail: nodes' names are in no DNS.
            .arg("--kubelet-preferred-address-types=InternalIP")
            .arg("--allow-privileged=true")
            .arg(flag("cert-dir", self.folder.join("apiserver")));
        if self.address.is_loopback() {
            // No pod will ask for it, and a loopback address would be refused as an endpoint.
            launch = launch.arg("--endpoint-reconciler-type=none");
        }
        Ok(launch)
    }

    pub(crate) fn controller_manager(&self, pki: &Pki) -> Result<Launch> {
        let mut launch = self
            .controller(
                "controller-manager",
                Program::KubeControllerManager,
                CONTROLLER_MANAGER_PORT,
            )?
            .arg("--service-account-private-key-file")
            .arg(pki.key("sa"))
            .arg("--root-ca-file")
            .arg(pki.certificate("ca"))
            .arg("--use-service-account-credentials=true");
        if let Some((pods, prefix)) = self.pods {
            launch = launch
                .arg("--allocate-node-cidrs=true")
                .arg(format!("--cluster-cidr={pods}/{prefix}"));
        }
        Ok(launch)
    }

    pub(crate) fn scheduler(&self) -> Result<Launch> {
        self.controller("scheduler", Program::KubeScheduler, SCHEDULER_PORT)
    }

    fn controller(&self, name: &str, program: Program, port: u16) -> Result<Launch> {
        let kubeconfig = self.component_kubeconfig(name);
        Ok(Launch::new(name, program.ensure(self.kubernetes)?)
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .arg("--authentication-kubeconfig")
            .arg(&kubeconfig)
            .arg("--authorization-kubeconfig")
            .arg(&kubeconfig)
            .arg("--leader-elect=false")
            .arg(format!("--bind-address={}", self.inner))
            .arg(format!("--secure-port={port}"))
            // The defaults (20 and 30) would make load tests measure this program's own throttle.
            .args(["--kube-api-qps=1000", "--kube-api-burst=2000"]))
    }

    pub(crate) fn kubectl(&self) -> Result<Kubectl> {
        Ok(Kubectl::new(
            Program::Kubectl.ensure(self.kubernetes)?,
            &self.kubeconfig(),
        ))
    }

    pub(crate) fn wait_for_etcd(&self, etcd: &Daemon) -> Result<()> {
        process::wait_for("", READY_WITHIN, etcd, || Ok(listens(self.inner, ETCD_PORT)))
    }

    pub(crate) fn wait_for_api(&self, server: &Daemon, kubectl: &Kubectl) -> Result<()> {
        process::wait_for("", READY_WITHIN, server, || Ok(listens(self.address, API_PORT)))?;
        process::wait_for("", READY_WITHIN, server, || kubectl.ready())
    }

    /// Pods cannot be made before the controller manager has made this account.
    pub(crate) fn wait_for_accounts(&self, manager: &Daemon, kubectl: &Kubectl) -> Result<()> {
        process::wait_for("default service account", READY_WITHIN, manager, || {
            kubectl.run(["get", "serviceaccount", "default"]).map(|_| true)
        })
    }
}

/// Whether somebody accepts connections there.
pub(crate) fn listens(address: Ipv4Addr, port: u16) -> bool {
    TcpStream::connect_timeout(&(address, port).into(), Duration::from_millis(500)).is_ok()
}

/// Who wrote what and when, without the content.
const AUDIT_POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  verbs: [create, update, patch, delete, deletecollection]
";

/// What a lone control plane is to have.
#[derive(Debug, Clone)]
pub struct ControlPlaneOptions {
    /// Version of Kubernetes, as `1.36.3`.
    pub kubernetes: String,
    /// Whether controller manager and scheduler run too. Without them no Job makes pods, nothing is collected as
    /// garbage and namespaces stay in deletion, but it is up sooner.
    pub controllers: bool,
    /// Whether the API server notes who wrote what ([`ControlPlane::audit_log`]).
    pub audit: bool,
}

impl Default for ControlPlaneOptions {
    fn default() -> Self {
        ControlPlaneOptions {
            kubernetes: KUBERNETES.into(),
            controllers: false,
            audit: false,
        }
    }
}

/// etcd and an API server on a loopback address of their own, for tests of the API: needs no root and no network, any
/// number run side by side. It ends when dropped, and also when this process ends in whatever way.
#[derive(Debug)]
pub struct ControlPlane {
    folder: PathBuf,
    kubectl: Kubectl,
    server: String,
    /// In the order in which they are to end.
    daemons: Vec<Leashed>,
    /// Tells others that we live.
    _owner: File,
}

impl ControlPlane {
    /// Starts one; its programs are built first where they are missing.
    ///
    /// # Errors
    /// A program cannot be built or does not get ready.
    pub fn start(options: &ControlPlaneOptions) -> Result<ControlPlane> {
        let folder = paths::clusters()?.join(format!("cp-{}", random::hex(6)?));
        let owner = {
            // Nobody may take a folder for abandoned between its making and its locking.
            let _turn = paths::lock(&paths::clusters()?.join(".control-planes"))?;
            remove_abandoned()?;
            paths::make(&folder)?;
            paths::lock(&folder.join("owner"))?
        };
        let address = free_loopback()?;
        let layout = Layout {
            folder: &folder,
            address,
            inner: address,
            services: (Ipv4Addr::new(10, 96, 0, 0), 16),
            pods: None,
            kubernetes: &options.kubernetes,
        };
        let pki = layout.prepare()?;
        let kubectl = layout.kubectl()?;
        let mut plane = ControlPlane {
            folder: folder.clone(),
            kubectl,
            server: layout.server(),
            daemons: vec![],
            _owner: owner,
        };
        let etcd = plane.start_one(&layout.etcd()?, Some(&folder))?;
        layout.wait_for_etcd(&etcd)?;
        let mut server = layout.api_server(&pki)?;
        if options.audit {
            let policy = folder.join("etc/audit-policy.yaml");
            paths::write(&policy, AUDIT_POLICY)?;
            server = server
                .arg("--audit-policy-file")
                .arg(policy)
                .arg("--audit-log-path")
                .arg(plane.audit_log());
        }
        let server = plane.start_one(&server, None)?;
        layout.wait_for_api(&server, &plane.kubectl)?;
        if options.controllers {
            let manager = plane.start_one(&layout.controller_manager(&pki)?, None)?;
            plane.start_one(&layout.scheduler()?, None)?;
            layout.wait_for_accounts(&manager, &plane.kubectl)?;
        }
        Ok(plane)
    }

    fn start_one(&mut self, launch: &Launch, remove: Option<&Path>) -> Result<Daemon> {
        let leashed = process::leash(&self.folder, launch, remove)?;
        let daemon = leashed.daemon.clone();
        self.daemons.insert(0, leashed);
        Ok(daemon)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// `https://ADDRESS:PORT` of the API server.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// A kubectl for it.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// The API server's audit log, if it keeps one: a line of JSON for each write that it has answered.
    pub fn audit_log(&self) -> PathBuf {
        self.folder.join("log/audit.log")
    }

    /// The folder with its logs (`log/apiserver.log`).
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Removes control planes whose owners ended without removing them.
fn remove_abandoned() -> Result<()> {
    let clusters = paths::clusters()?;
    for entry in fs::read_dir(&clusters)
        .map_err(Error::path("listing", &clusters))?
        .flatten()
    {
        let folder = entry.path();
        if !entry.file_name().to_string_lossy().starts_with("cp-") || !folder.join("owner").is_file() {
            continue;
        }
        // Held: its owner lives. Gone meanwhile: somebody else removed it.
        if let Ok(Some(_lock)) = paths::try_lock(&folder.join("owner")) {
            process::end_all(&folder, Default::default)?;
            let _ = fs::remove_dir_all(&folder);
        }
    }
    Ok(())
}

/// A random address of 127.64.0.0/10 on which nobody listens: 4 million of them, so nobody has to agree on ports.
pub(crate) fn free_loopback() -> Result<Ipv4Addr> {
    const ATTEMPTS: u32 = 20;
    for _ in 0..ATTEMPTS {
        let bits = u32::from_be_bytes(random::bytes()?) & 0x003f_ffff;
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(127, 64, 0, 0).to_bits() | bits | 1);
        let free = INNER_PORTS
            .iter()
            .all(|port| TcpListener::bind((address, *port)).is_ok());
        if free {
            return Ok(address);
        }
    }
    Err(Error::Usage(format!(
        "no free loopback address: something listens on every address at one of the ports {INNER_PORTS:?}; `ss -ltnp` \
         names it"
    )))
}
