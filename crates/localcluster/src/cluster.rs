//! A whole cluster: up, down, and what can be done to it meanwhile.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::control_plane::{self, Layout};
use crate::error::{Error, Result};
use crate::gpus::Health;
use crate::kinds::NodeKind;
use crate::kubectl::Kubectl;
use crate::network::{self, Network};
use crate::node::{self, Ground, Node};
use crate::pki::Pki;
use crate::process::{self, Daemon};
use crate::programs::{KUBERNETES, Program};
use crate::services::{self, S3};
use crate::{cgroups, image, machine, paths};

/// A /14 of pod addresses holds 1,024 ranges, one per node.
const MOST_KWOK_NODES: u16 = 1000;
/// Addresses .10 to .209 of the bridge.
const MOST_REAL_NODES: u16 = 50;
/// The control plane's processes and services, in the order of their start.
const COMPONENTS: [&str; 6] = [
    "etcd",
    "apiserver",
    "controller-manager",
    "scheduler",
    "coredns",
    "minio",
];

/// What a cluster is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Clusters of different names run side by side.
    pub name: String,
    /// How many real nodes of each kind.
    pub nodes: BTreeMap<NodeKind, u16>,
    /// How many fake nodes, A100 and T4 in turn.
    pub kwok: u16,
    /// Version of Kubernetes, as `1.36.3`.
    pub kubernetes: String,
}

impl Default for Options {
    /// One real node of each kind.
    fn default() -> Self {
        Options {
            name: "default".into(),
            nodes: NodeKind::ALL.map(|kind| (kind, 1)).into(),
            kwok: 0,
            kubernetes: KUBERNETES.into(),
        }
    }
}

/// What is recorded of a cluster, before it is there.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    kubernetes: String,
    /// Nothing before a slot is sought.
    slot: Option<u8>,
    /// The control plane's loopback address.
    inner: Ipv4Addr,
    nodes: Vec<Node>,
    kwok: u16,
    s3: Option<S3>,
    /// False while `up` is at work, or was when it was killed.
    complete: bool,
}

impl State {
    fn load(folder: &Path) -> Result<Option<State>> {
        let file = folder.join("cluster.json");
        if !file.is_file() {
            return Ok(None);
        }
        serde_json::from_str(&paths::read(&file)?)
            .map(Some)
            .map_err(|error| Error::Format {
                what: file.display().to_string(),
                why: error.to_string(),
            })
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|error| Error::Format {
            what: "the cluster's state".into(),
            why: error.to_string(),
        })?;
        paths::write(&folder.join("cluster.json"), text)
    }

    fn components(&self) -> Vec<String> {
        let mut names: Vec<String> = COMPONENTS.map(str::to_owned).to_vec();
        names.extend((self.kwok > 0).then(|| "kwok".to_owned()));
        names.extend(self.nodes.iter().flat_map(Node::components));
        names
    }

    fn dead(&self, folder: &Path) -> Vec<String> {
        let alive = |name: &String| Daemon::recorded(folder, name).is_some_and(|daemon| daemon.alive());
        self.components().into_iter().filter(|name| !alive(name)).collect()
    }
}

/// A running cluster.
///
/// One that [`Cluster::up`] started ends when it is dropped, unless [`Cluster::leave_running`] was called; one that was
/// already up stays up.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    kubeconfig: PathBuf,
    kubectl: Kubectl,
    s3: Option<S3>,
    /// Nothing for the user's own cluster.
    local: Option<Local>,
    ends_with_us: bool,
}

#[derive(Debug)]
struct Local {
    folder: PathBuf,
    network: Network,
    state: State,
}

/// Whether `CLUSTER=current` asks for the user's own cluster instead of one on this machine.
///
/// # Errors
/// `CLUSTER` is something else, which would otherwise pass for the local cluster.
pub fn is_current() -> Result<bool> {
    match env::var_os("CLUSTER") {
        Some(value) if value == "current" => Ok(true),
        Some(value) if !value.is_empty() => Err(Error::Usage(format!(
            "CLUSTER is {}: only `current` is known, your own cluster by its KUBECONFIG; for a local cluster leave it out \
             (FLYWHEEL_CLUSTER or --name gives its name)",
            value.to_string_lossy()
        ))),
        _ => Ok(false),
    }
}

impl Cluster {
    /// Starts the cluster, or finds it running and adds the nodes that it lacks. Programs are built first where they
    /// are missing. What is left of a cluster of this name that is not whole is removed first.
    ///
    /// With `CLUSTER=current` nothing is started: it is the cluster that the user's kubeconfig points to.
    ///
    /// # Errors
    /// The machine lacks something, the running cluster has another version, or a component does not get ready; the message
    /// names it with the end of its log.
    pub fn up(options: &Options) -> Result<Cluster> {
        if is_current()? {
            return Cluster::current();
        }
        check(options)?;
        let folder = paths::cluster(&options.name)?;
        machine::check()?;
        let _turn = turn(&options.name)?;
        if let Some(state) = State::load(&folder)? {
            let dead = state.dead(&folder);
            let kubectl = Kubectl::new(Program::Kubectl.ensure(&state.kubernetes)?, &folder.join("kubeconfig"));
            if state.complete && dead.is_empty() && kubectl.ready().unwrap_or(false) {
                return grow(options, folder, state);
            }
            tracing::info!("cluster {} is not whole, starting it afresh", options.name);
        }
        // Also where nothing is recorded: the folder may have been removed under a running cluster.
        remove(&folder)?;
        start(options, folder)
    }

    /// The running cluster `name`.
    ///
    /// # Errors
    /// It does not run.
    pub fn find(name: &str) -> Result<Cluster> {
        if is_current()? {
            return Cluster::current();
        }
        let folder = paths::cluster(name)?;
        match State::load(&folder)? {
            Some(state) if state.complete => opened(name, folder, state, false),
            Some(_) => Err(Error::Usage(format!(
                "cluster {name} is being started, or its start was interrupted: repeat `up`"
            ))),
            None => Err(elsewhere(name, &folder).unwrap_or_else(|| {
                Error::Usage(format!(
                    "no cluster {name}: start it with `flywheel-localcluster up --name {name}`"
                ))
            })),
        }
    }

    fn current() -> Result<Cluster> {
        let kubeconfig = env::var_os("KUBECONFIG").map(PathBuf::from).ok_or_else(|| {
            Error::Usage("CLUSTER=current needs KUBECONFIG, the path of your cluster's kubeconfig".into())
        })?;
        // It may be a list, of which kubectl leaves out what is not there.
        if !env::split_paths(&kubeconfig).any(|path| path.is_file()) {
            let path = kubeconfig.display();
            return Err(Error::Usage(format!("KUBECONFIG names {path}, which is no file")));
        }
        let program = machine::find("kubectl").map_or_else(|| Program::Kubectl.ensure(KUBERNETES), Ok)?;
        let kubectl = Kubectl::new(program, &kubeconfig);
        kubectl.ready()?;
        let name = "current".into();
        Ok(Cluster {
            name,
            kubeconfig,
            kubectl,
            s3: None,
            local: None,
            ends_with_us: false,
        })
    }

    /// Lets the cluster outlive this value.
    #[must_use]
    pub fn leave_running(mut self) -> Cluster {
        self.ends_with_us = false;
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A kubectl for it.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// Its object store; nothing for the user's own cluster.
    pub fn s3(&self) -> Option<&S3> {
        self.s3.as_ref()
    }

    /// Names of its real nodes.
    pub fn nodes(&self) -> Vec<String> {
        self.local
            .iter()
            .flat_map(|local| &local.state.nodes)
            .map(Node::name)
            .collect()
    }

    /// Ends it. Processes, mounts, links, routes, firewall rules and control groups are as they were before it.
    ///
    /// # Errors
    /// Something does not go; the message names it.
    pub fn down(mut self) -> Result<()> {
        self.ends_with_us = false;
        match self.local {
            Some(_) => down(&self.name).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Takes a node off the network; what runs on it runs on.
    ///
    /// # Errors
    /// No such node, or the cluster is not local.
    pub fn cut(&self, node: &str) -> Result<()> {
        let (local, node) = self.node(node)?;
        local.network.cut(node.index)
    }

    /// Undoes [`Cluster::cut`].
    ///
    /// # Errors
    /// As [`Cluster::cut`].
    pub fn heal(&self, node: &str) -> Result<()> {
        let (local, node) = self.node(node)?;
        local.network.heal(node.index)
    }

    /// Hides the API server alone from a node and its pods; they still reach each other and the object store.
    ///
    /// # Errors
    /// As [`Cluster::cut`].
    pub fn cut_api(&self, node: &str) -> Result<()> {
        let (local, node) = self.node(node)?;
        local.with_ground(&self.kubectl, |ground| ground.cut_api(node))
    }

    /// Undoes [`Cluster::cut_api`].
    ///
    /// # Errors
    /// As [`Cluster::cut`].
    pub fn heal_api(&self, node: &str) -> Result<()> {
        let (local, node) = self.node(node)?;
        local.with_ground(&self.kubectl, |ground| ground.heal_api(node))
    }

    /// Breaks a simulated GPU of a node, or mends it; GPUs count from 0.
    ///
    /// # Errors
    /// No such node or GPU, or the cluster is not local.
    pub fn set_gpu(&self, node: &str, index: u32, health: Health) -> Result<()> {
        let (local, node) = self.node(node)?;
        node::change_gpus(&local.folder, node, |gpus| gpus.set(index, health))
    }

    /// Changes how many simulated GPUs a node has.
    ///
    /// # Errors
    /// As [`Cluster::set_gpu`].
    pub fn set_gpus(&self, node: &str, count: u32) -> Result<()> {
        let (local, node) = self.node(node)?;
        node::change_gpus(&local.folder, node, |gpus| {
            gpus.resize(count);
            Ok(())
        })
    }

    /// Gives the image of an OCI archive to these real nodes, or to each where none is named, by its own name and by `name`
    /// where there is one; pods use it with `imagePullPolicy: Never`.
    ///
    /// # Errors
    /// The archive is none, there is no such node, or the cluster is not local.
    pub fn load_image(&self, archive: &Path, nodes: &[String], name: Option<&str>) -> Result<()> {
        let local = self.local()?;
        let ctr = Program::Ctr.ensure(&local.state.kubernetes)?;
        let nodes: Vec<&Node> = match nodes {
            [] => local.state.nodes.iter().collect(),
            named => named.iter().map(|node| Ok(self.node(node)?.1)).collect::<Result<_>>()?,
        };
        in_parallel(&nodes, |node| {
            node::import(&local.folder, node, &node.holder(&local.folder)?, &ctr, archive, name)
        })
    }

    /// Its parts and whether they live, then its nodes, for people to read.
    ///
    /// # Errors
    /// The API server does not answer, though no process of the cluster is known to be dead.
    pub fn status(&self) -> Result<String> {
        let mut text = format!("cluster     {}\nkubeconfig  {}\n", self.name, self.kubeconfig.display());
        if let Some(s3) = &self.s3 {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "S3          {} (bucket {}; `env` prints the keys)",
                s3.endpoint, s3.bucket
            );
        }
        let mut is_whole = true;
        if let Some(local) = &self.local {
            let dead = local.state.dead(&local.folder);
            let of = local.state.components().len();
            let _ = writeln!(
                text,
                "processes   {} of {of} alive; logs in {}/log",
                of - dead.len(),
                local.folder.display()
            );
            if !dead.is_empty() {
                let _ = writeln!(text, "dead        {}; `up` starts the cluster afresh", dead.join(" "));
            }
            is_whole = dead.is_empty();
        }
        let columns = "NAME:.metadata.name,READY:.status.conditions[?(@.type==\"Ready\")].status,GPU:.metadata.labels.nvidia\\.com/gpu\\.product,GPUS:.status.allocatable.nvidia\\.com/gpu,ADDRESS:.status.addresses[?(@.type==\"InternalIP\")].address";
        let nodes = self
            .kubectl
            .run(["get", "nodes", "-o", &format!("custom-columns={columns}")]);
        text.push('\n');
        text.push_str(&match nodes {
            Err(error) if !is_whole => format!("The nodes are not known: {error}\n"),
            nodes => nodes?,
        });
        Ok(text)
    }

    /// Environment for programs that are to use the cluster: name and value.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![("KUBECONFIG", self.kubeconfig.display().to_string())];
        if let Some(s3) = &self.s3 {
            variables.extend([
                ("FLYWHEEL_S3_ENDPOINT", s3.endpoint.clone()),
                ("AWS_REGION", s3.region.clone()),
                ("FLYWHEEL_S3_BUCKET", s3.bucket.clone()),
                ("AWS_ACCESS_KEY_ID", s3.access_key.clone()),
                ("AWS_SECRET_ACCESS_KEY", s3.secret_key.clone()),
            ]);
        }
        variables
    }

    fn local(&self) -> Result<&Local> {
        self.local.as_ref().ok_or_else(|| {
            Error::Usage(
                "with CLUSTER=current this is not possible: images go to your registry (`make push REGISTRY=…`), and \
                 nodes are not ours to cut off"
                    .into(),
            )
        })
    }

    fn node(&self, name: &str) -> Result<(&Local, &Node)> {
        let local = self.local()?;
        let node = local.state.nodes.iter().find(|node| node.name() == name);
        let node = node.ok_or_else(|| {
            Error::Usage(format!(
                "no real node {name} in cluster {}; there are {}",
                self.name,
                self.nodes().join(" ")
            ))
        })?;
        Ok((local, node))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.ends_with_us
            && let Err(error) = down(&self.name)
        {
            tracing::error!("ending cluster {}: {error}", self.name);
        }
    }
}

impl Local {
    fn layout(&self) -> Layout<'_> {
        Layout {
            folder: &self.folder,
            address: self.network.gateway(),
            inner: self.state.inner,
            services: self.network.services(),
            pods: Some(self.network.pods()),
            kubernetes: &self.state.kubernetes,
        }
    }

    fn with_ground<T>(&self, kubectl: &Kubectl, act: impl FnOnce(&Ground) -> Result<T>) -> Result<T> {
        let layout = self.layout();
        let pki = Pki::open(&self.folder.join("pki"))?;
        let (pause, pause_tag) = (self.folder.join("pause.tar"), image::tag("pause")?);
        let network = self.network;
        let ground = Ground {
            layout: &layout,
            network,
            pki: &pki,
            kubectl,
            pause: &pause,
            pause_tag: &pause_tag,
        };
        act(&ground)
    }
}

/// Ends the cluster `name` or what is left of it; nothing is fine too. Whether it is ours to end: not with `CLUSTER=current`.
///
/// # Errors
/// Something does not go; the message names it.
pub fn down(name: &str) -> Result<bool> {
    if is_current()? {
        return Ok(false);
    }
    let folder = paths::cluster(name)?;
    machine::check_root()?;
    let _turn = turn(name)?;
    let was_there = folder.exists();
    remove(&folder)?;
    match elsewhere(name, &folder).filter(|_| !was_there) {
        Some(error) => Err(error),
        None => Ok(true),
    }
}

/// That a cluster of this name runs, but belongs to another cache folder.
fn elsewhere(name: &str, folder: &Path) -> Option<Error> {
    let other = process::folders().into_iter().find(|other| {
        other != folder
            && other.file_name() == folder.file_name()
            && other
                .parent()
                .and_then(Path::file_name)
                .is_some_and(|parent| parent == "clusters")
    })?;
    let cache = other.parent()?.parent()?.display();
    Some(Error::Usage(format!(
        "cluster {name} runs from another cache folder, {cache}: repeat with FLYWHEEL_CACHE={cache} (sudo gives a program \
         another HOME)"
    )))
}

/// Names of the clusters that are there, whole or not.
///
/// # Errors
/// The cache folder cannot be read.
pub fn names() -> Result<Vec<String>> {
    let folder = paths::clusters()?;
    let entries = fs::read_dir(&folder).map_err(Error::path("listing", &folder))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join("cluster.json").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

/// Two of `up` and `down` for one name wait for each other.
fn turn(name: &str) -> Result<File> {
    paths::lock(&paths::clusters()?.join(format!(".{name}.lock")))
}

fn check(options: &Options) -> Result<()> {
    let real: u32 = options.nodes.values().map(|count| u32::from(*count)).sum();
    if real > u32::from(MOST_REAL_NODES) {
        return Err(Error::Usage(format!(
            "{real} real nodes are too many: at most {MOST_REAL_NODES}; take KWOK nodes"
        )));
    }
    if options.kwok > MOST_KWOK_NODES {
        return Err(Error::Usage(format!(
            "{} fake nodes are too many: at most {MOST_KWOK_NODES}",
            options.kwok
        )));
    }
    Ok(())
}

/// Says that there are more nodes than asked for.
fn keeps(cluster: &str, there: impl std::fmt::Display, kind: &str, wanted: impl std::fmt::Display) {
    tracing::info!(
        "cluster {cluster} keeps its {there} {kind} nodes, where {wanted} would do: nodes cannot be taken away"
    );
}

/// The nodes that `options` asks for beyond those in `have`.
fn lacking(options: &Options, have: &[Node]) -> Result<Vec<Node>> {
    let mut lacking = vec![];
    for kind in NodeKind::ALL {
        let wanted = options.nodes.get(&kind).copied().unwrap_or(0);
        let there = have.iter().filter(|node| node.kind == kind).count();
        if there > usize::from(wanted) {
            keeps(&options.name, there, kind.name(), wanted);
        }
        for number in 1..=wanted {
            if !have.iter().any(|node| node.kind == kind && node.number == number) {
                let index = u8::try_from(have.len() + lacking.len())
                    .map_err(|_| Error::Usage(format!("more than {MOST_REAL_NODES} real nodes")))?;
                lacking.push(Node { kind, number, index });
            }
        }
    }
    if have.len() + lacking.len() > usize::from(MOST_REAL_NODES) {
        return Err(Error::Usage(format!(
            "{} real nodes with those that there are, which is too many: at most {MOST_REAL_NODES}",
            have.len() + lacking.len()
        )));
    }
    Ok(lacking)
}

fn start(options: &Options, folder: PathBuf) -> Result<Cluster> {
    let began = Instant::now();
    ensure_programs(options)?;
    paths::make(&folder)?;
    let mut state = State {
        kubernetes: options.kubernetes.clone(),
        slot: None,
        inner: control_plane::free_loopback()?,
        nodes: lacking(options, &[])?,
        kwok: options.kwok,
        s3: None,
        complete: false,
    };
    state.save(&folder)?;
    // What we have begun we end: an error must not leave half a cluster behind.
    match build(options, &folder, &mut state) {
        Ok(()) => {
            tracing::info!(
                "cluster {} is up after {:.1} s",
                options.name,
                began.elapsed().as_secs_f64()
            );
            opened(&options.name, folder, state, true)
        }
        Err(error) => {
            if let Err(second) = remove(&folder) {
                tracing::error!("removing what was begun: {second}");
            }
            Err(error)
        }
    }
}

fn build(options: &Options, folder: &Path, state: &mut State) -> Result<()> {
    let network = Network::claim(folder, |slot| {
        state.slot = Some(slot);
        state.save(folder)
    })?;
    let s3 = S3::new(network.gateway())?;
    state.s3 = Some(s3.clone());
    state.save(folder)?;
    image::build_pause(&folder.join("pause.tar"))?;
    let local = Local {
        folder: folder.to_owned(),
        network,
        state: state.clone(),
    };
    let layout = local.layout();
    let pki = layout.prepare()?;
    let kubectl = layout.kubectl()?;
    tracing::info!("starting the control plane at {}", layout.server());
    let etcd = process::detach(folder, &layout.etcd()?)?;
    let store = services::start_s3(&layout, &s3)?;
    layout.wait_for_etcd(&etcd)?;
    let server = process::detach(folder, &layout.api_server(&pki)?)?;
    layout.wait_for_api(&server, &kubectl)?;
    let manager = process::detach(folder, &layout.controller_manager(&pki)?)?;
    let scheduler = process::detach(folder, &layout.scheduler()?)?;
    services::start_dns(&layout, &kubectl)?;
    layout.wait_for_accounts(&manager, &kubectl)?;
    add_nodes(&local, &kubectl, &state.nodes)?;
    if options.kwok > 0 {
        tracing::info!("adding {} fake nodes", options.kwok);
        let kwok = services::start_kwok(&layout)?;
        services::add_kwok_nodes(&layout, &kubectl, &kwok, 1, options.kwok)?;
    }
    if let Some(dead) = [&store, &scheduler].into_iter().find(|daemon| !daemon.alive()) {
        return Err(dead.died());
    }
    state.complete = true;
    state.save(folder)
}

fn add_nodes(local: &Local, kubectl: &Kubectl, nodes: &[Node]) -> Result<()> {
    if nodes.is_empty() {
        return Ok(());
    }
    tracing::info!(
        "starting nodes {}",
        nodes.iter().map(Node::name).collect::<Vec<_>>().join(" ")
    );
    local.with_ground(kubectl, |ground| {
        ground.prepare()?;
        in_parallel(nodes, |node| ground.start(node))
    })?;
    if let Some(first) = local.state.nodes.first().or(nodes.first()) {
        // So that this machine reaches services too, through one node's kube-proxy.
        let (services, prefix) = local.network.services();
        local.network.route(&format!("{services}/{prefix}"), first.index)?;
    }
    Ok(())
}

/// A running cluster gets the nodes that it lacks.
fn grow(options: &Options, folder: PathBuf, mut state: State) -> Result<Cluster> {
    if options.kubernetes != state.kubernetes {
        return Err(Error::Usage(format!(
            "cluster {} runs Kubernetes {}: end it first with `flywheel-localcluster down --name {}`",
            options.name, state.kubernetes, options.name
        )));
    }
    let lacking = lacking(options, &state.nodes)?;
    let had_kwok = state.kwok;
    if options.kwok < had_kwok {
        keeps(&options.name, had_kwok, "fake", options.kwok);
    }
    let grows = !lacking.is_empty() || options.kwok > had_kwok;
    if grows {
        ensure_programs(options)?;
        state.nodes.extend(lacking.iter().cloned());
        state.kwok = options.kwok.max(had_kwok);
        state.complete = false;
        state.save(&folder)?;
    }
    let mut cluster = opened(&options.name, folder, state, false)?;
    if let Some(local) = &mut cluster.local {
        add_nodes(local, &cluster.kubectl, &lacking)?;
        if options.kwok > had_kwok {
            let layout = local.layout();
            let kwok = Daemon::recorded(&local.folder, "kwok").filter(Daemon::alive);
            let kwok = kwok.map_or_else(|| services::start_kwok(&layout), Ok)?;
            services::add_kwok_nodes(&layout, &cluster.kubectl, &kwok, had_kwok + 1, options.kwok)?;
        }
        local.with_ground(&cluster.kubectl, |ground| {
            in_parallel(&local.state.nodes, |node| ground.wait_started(node))
        })?;
        if grows {
            local.state.complete = true;
            local.state.save(&local.folder)?;
        }
    }
    tracing::info!("cluster {} is up", options.name);
    Ok(cluster)
}

fn ensure_programs(options: &Options) -> Result<()> {
    for program in Program::ALL {
        if program == Program::Helm || (program == Program::Kwok && options.kwok == 0) {
            continue;
        }
        program.ensure(&options.kubernetes)?;
    }
    Ok(())
}

fn opened(name: &str, folder: PathBuf, state: State, ends_with_us: bool) -> Result<Cluster> {
    let slot = state.slot.ok_or_else(|| Error::Format {
        what: folder.join("cluster.json").display().to_string(),
        why: "it has no slot".into(),
    })?;
    let kubeconfig = folder.join("kubeconfig");
    Ok(Cluster {
        name: name.into(),
        kubectl: Kubectl::new(Program::Kubectl.ensure(&state.kubernetes)?, &kubeconfig),
        kubeconfig,
        s3: state.s3.clone(),
        local: Some(Local {
            folder,
            network: Network::of(slot),
            state,
        }),
        ends_with_us,
    })
}

/// Removes the cluster in `folder` or whatever is left of it.
fn remove(folder: &Path) -> Result<()> {
    let groups = format!("{}-", network::tag(folder));
    // A record that cannot be read is no reason to leave the rest behind.
    let slot = State::load(folder).ok().flatten().and_then(|state| state.slot);
    process::end_all(folder, || cgroups::processes(&groups))?;
    network::remove(folder, slot)?;
    cgroups::remove(&groups)?;
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::path("removing", folder)(error)),
        _ => Ok(()),
    }
}

/// Does it for all at once and gives the first error.
fn in_parallel<T: Sync>(items: &[T], act: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let act = &act;
    thread::scope(|scope| {
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(move || act(item))).collect();
        let results: Vec<Result<()>> = threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Error::Usage("a thread of ours panicked".into())))
            })
            .collect();
        results.into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(nodes: &[Node]) -> Vec<(String, u8)> {
        nodes.iter().map(|node| (node.name(), node.index)).collect()
    }

    #[test]
    fn a_cluster_grows_by_the_nodes_it_lacks_and_never_shrinks() {
        let mut options = Options::default();
        let first = lacking(&options, &[]).unwrap();
        assert_eq!(
            names(&first),
            [("system-1".into(), 0), ("a100-1".into(), 1), ("t4-1".into(), 2)]
        );
        options.nodes.insert(NodeKind::T4, 2);
        assert_eq!(names(&lacking(&options, &first).unwrap()), [("t4-2".into(), 3)]);
        options.nodes.insert(NodeKind::A100, 0);
        assert_eq!(names(&lacking(&options, &first).unwrap()), [("t4-2".into(), 3)]);
    }

    #[test]
    fn too_many_nodes_are_refused() {
        let mut options = Options {
            kwok: MOST_KWOK_NODES + 1,
            ..Options::default()
        };
        assert!(check(&options).is_err());
        options.kwok = 0;
        options.nodes.insert(NodeKind::T4, MOST_REAL_NODES);
        assert!(check(&options).is_err());
    }
}
