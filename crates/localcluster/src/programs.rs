//! The programs of a cluster: built once from Go modules, then kept.
//!
//! `tools/<module>/go.mod` pins each module and all that it needs; this crate carries those files, so that its binary
//! works without the checkout.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::{paths, process};

/// The Kubernetes that a cluster gets when nobody asks for another.
pub const KUBERNETES: &str = "1.36.3";

/// A program that a cluster, or who works with it, needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is the program of that name")]
pub enum Program {
    Etcd,
    KubeApiserver,
    KubeControllerManager,
    KubeScheduler,
    Kubelet,
    KubeProxy,
    Kubectl,
    Kwok,
    Containerd,
    ContainerdShim,
    Ctr,
    CoreDns,
    Minio,
    Helm,
}

struct Module {
    /// Folder below `tools`.
    name: &'static str,
    /// As `go.mod` requires it.
    path: &'static str,
    /// Kubernetes: what [`KUBERNETES`] says.
    version: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
    tags: &'static str,
}

macro_rules! module {
    ($name:literal, $path:literal, $version:expr, $tags:literal) => {
        Module {
            name: $name,
            path: $path,
            version: $version,
            go_mod: include_str!(concat!("../../../tools/", $name, "/go.mod")),
            go_sum: include_str!(concat!("../../../tools/", $name, "/go.sum")),
            tags: $tags,
        }
    };
}

static ETCD: Module = module!("etcd", "go.etcd.io/etcd/server/v3", "3.7.3", "");
static K8S: Module = module!("kubernetes", "k8s.io/kubernetes", KUBERNETES, "");
static KWOK: Module = module!("kwok", "sigs.k8s.io/kwok", "0.8.0", "");
static CONTAINERD: Module = module!(
    "containerd",
    "github.com/containerd/containerd/v2",
    "2.4.2",
    "no_btrfs no_devmapper no_zfs"
);
static COREDNS: Module = module!("coredns", "github.com/coredns/coredns", "1.14.0", "");
static MINIO: Module = module!(
    "minio",
    "github.com/minio/minio",
    "0.0.0-20260212201848-7aac2a2c5b7c",
    ""
);
static HELM: Module = module!("helm", "helm.sh/helm/v4", "4.3.1", "");

impl Program {
    /// All of them, in the order of first need.
    pub const ALL: [Program; 14] = [
        Program::Etcd,
        Program::KubeApiserver,
        Program::Kubectl,
        Program::KubeControllerManager,
        Program::KubeScheduler,
        Program::Kubelet,
        Program::KubeProxy,
        Program::Containerd,
        Program::ContainerdShim,
        Program::Ctr,
        Program::CoreDns,
        Program::Minio,
        Program::Kwok,
        Program::Helm,
    ];

    /// File name.
    pub fn name(self) -> &'static str {
        self.spec().0
    }

    /// File name, module, package below the module, CPU seconds of a build on one 2025 server core.
    fn spec(self) -> (&'static str, &'static Module, &'static str, u32) {
        match self {
            Program::Etcd => ("etcd", &ETCD, "", 60),
            Program::KubeApiserver => ("kube-apiserver", &K8S, "/cmd/kube-apiserver", 330),
            Program::KubeControllerManager => ("kube-controller-manager", &K8S, "/cmd/kube-controller-manager", 60),
            Program::KubeScheduler => ("kube-scheduler", &K8S, "/cmd/kube-scheduler", 20),
            Program::Kubelet => ("kubelet", &K8S, "/cmd/kubelet", 30),
            Program::KubeProxy => ("kube-proxy", &K8S, "/cmd/kube-proxy", 10),
            Program::Kubectl => ("kubectl", &K8S, "/cmd/kubectl", 30),
            Program::Kwok => ("kwok", &KWOK, "/cmd/kwok", 110),
            Program::Containerd => ("containerd", &CONTAINERD, "/cmd/containerd", 85),
            Program::ContainerdShim => (
                "containerd-shim-runc-v2",
                &CONTAINERD,
                "/cmd/containerd-shim-runc-v2",
                8,
            ),
            Program::Ctr => ("ctr", &CONTAINERD, "/cmd/ctr", 8),
            Program::CoreDns => ("coredns", &COREDNS, "", 180),
            Program::Minio => ("minio", &MINIO, "", 230),
            Program::Helm => ("helm", &HELM, "/cmd/helm", 120),
        }
    }

    /// The program's path; builds it first when it is not there. `kubernetes` is the version of Kubernetes' programs
    /// (`1.36.3`), the others have one version each.
    ///
    /// # Errors
    /// Go is missing, the module cannot be downloaded, or the build fails: the message names the build's log.
    pub fn ensure(self, kubernetes: &str) -> Result<PathBuf> {
        let (name, module, package, cpu_seconds) = self.spec();
        let version = if std::ptr::eq(module, &K8S) {
            kubernetes
        } else {
            module.version
        };
        let cache = paths::cache()?;
        let folder = cache.join("bin").join(format!("{}-{version}", module.name));
        let file = folder.join(name);
        if file.is_file() {
            return Ok(file);
        }
        paths::make(&folder)?;
        // Builds of one module share its source folder, and Go uses every core anyhow.
        let _turn = paths::lock(&folder.join(".lock"))?;
        if file.is_file() {
            return Ok(file);
        }
        let source = cache.join("src").join(format!("{}-{version}", module.name));
        let resolve = lay_out(module, version, &source)?;
        let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
        let mut command = Command::new("go");
        command
            .current_dir(&source)
            .args([
                "build",
                "-trimpath",
                "-buildvcs=false",
                resolve,
                "-tags",
                module.tags,
                "-ldflags",
            ])
            .arg(link_flags(module, version))
            .arg("-o")
            .arg(&temporary)
            .arg(format!("{}{package}", module.path))
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .env("GOFLAGS", "");
        tracing::info!("building {name} {version}, once; about {cpu_seconds} s of CPU time when nothing is cached yet");
        build(
            &mut command,
            &format!("{name} {version}"),
            &cache.join("log").join(format!("build-{name}.log")),
        )?;
        fs::rename(&temporary, &file).map_err(Error::path("putting in place", &file))?;
        Ok(file)
    }
}

/// Builds what is missing of `programs`.
///
/// # Errors
/// As [`Program::ensure`].
pub fn ensure_all(programs: &[Program], kubernetes: &str) -> Result<()> {
    for program in programs {
        program.ensure(kubernetes)?;
    }
    Ok(())
}

/// `flywheel-localcluster` itself, parts of which run beside us: this program, or, where a test uses the library, the one
/// that was built with it, which lies in its folder or in the one above.
pub(crate) fn own() -> Result<PathBuf> {
    const NAME: &str = "flywheel-localcluster";
    let us = std::env::current_exe().map_err(Error::io("finding our own program"))?;
    if us.file_name().is_some_and(|name| name == NAME) {
        return Ok(us);
    }
    us.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(NAME))
        .find(|program| program.is_file())
        .ok_or_else(|| Error::Missing {
            what: format!("the program {NAME} beside {}", us.display()),
            remedy: format!("cargo build --workspace --bin {NAME}"),
        })
}

/// Writes `go.mod` and `go.sum` and says how Go is to treat them.
fn lay_out(module: &Module, version: &str, source: &Path) -> Result<&'static str> {
    paths::make(source)?;
    if version == module.version {
        paths::write(&source.join("go.mod"), module.go_mod)?;
        paths::write(&source.join("go.sum"), module.go_sum)?;
        return Ok("-mod=readonly");
    }
    // Another Kubernetes: its own go.mod says which of its modules lie in folders of it and are to be had elsewhere.
    let (major, minor, patch) = version_parts(version)?;
    let staging = format!("v0.{minor}.{patch}");
    let answer = process::run(
        Command::new("go")
            .args(["mod", "download", "-json", &format!("{}@v{version}", module.path)])
            .env("GOWORK", "off")
            .env("GOFLAGS", "-mod=mod")
            .current_dir(source),
    )
    .map_err(go_missing)?;
    let answer: serde_json::Value = serde_json::from_str(&answer).map_err(|error| Error::Format {
        what: "go mod download's answer".into(),
        why: error.to_string(),
    })?;
    let upstream = paths::read(Path::new(
        answer.get("GoMod").and_then(|path| path.as_str()).unwrap_or_default(),
    ))?;
    let mut text = format!(
        "module flywheel.dev/tools/kubernetes\n\ngo 1.26.0\n\nrequire {} v{version}\n\n",
        module.path
    );
    debug_assert_eq!(major, "1");
    for line in upstream.lines().map(str::trim) {
        let line = line.strip_prefix("replace ").unwrap_or(line);
        if let Some((name, folder)) = line.split_once(" => ")
            && folder.starts_with("./staging/")
        {
            text.push_str(&format!("replace {name} => {name} {staging}\n"));
        }
    }
    // Go adds the rest; what it added stays, so that a second program of this version resolves the same.
    if !source.join("go.mod").is_file() {
        paths::write(&source.join("go.mod"), text)?;
    }
    Ok("-mod=mod")
}

fn version_parts(version: &str) -> Result<(&str, &str, &str)> {
    let parts: Vec<&str> = version.split('.').collect();
    match parts.as_slice() {
        [major @ "1", minor, patch] if [minor, patch].iter().all(|part| part.parse::<u16>().is_ok()) => {
            Ok((major, minor, patch))
        }
        _ => Err(Error::Usage(format!(
            "`{version}` is no version of Kubernetes: write it like {KUBERNETES}"
        ))),
    }
}

/// Without its version kubectl and the discovery of features misbehave.
fn link_flags(module: &Module, version: &str) -> String {
    let mut flags = "-s -w".to_owned();
    if let Ok((major, minor, _)) = version_parts(version)
        && module.name == "kubernetes"
    {
        for (name, value) in [
            ("gitVersion", format!("v{version}").as_str()),
            ("gitMajor", major),
            ("gitMinor", minor),
            ("gitTreeState", "clean"),
        ] {
            flags.push_str(&format!(" -X k8s.io/component-base/version.{name}={value}"));
        }
    }
    flags
}

fn build(command: &mut Command, what: &str, log: &Path) -> Result<()> {
    const REPORT_EVERY: Duration = Duration::from_secs(30);
    if let Some(folder) = log.parent() {
        paths::make(folder)?;
    }
    let file = fs::File::create(log).map_err(Error::path("opening", log))?;
    let copy = file.try_clone().map_err(Error::path("opening", log))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(copy)
        .spawn()
        .map_err(Error::io("starting go"))
        .map_err(go_missing)?;
    let start = Instant::now();
    let mut next = start + REPORT_EVERY;
    loop {
        match child.try_wait().map_err(Error::io("waiting for go"))? {
            Some(status) if status.success() => {
                tracing::info!("built {what} in {} s", start.elapsed().as_secs());
                return Ok(());
            }
            Some(_) => {
                return Err(Error::Build {
                    program: what.into(),
                    log: log.to_owned(),
                    tail: paths::tail(log),
                });
            }
            None => {
                if Instant::now() >= next {
                    tracing::info!("still building {what}: {} s", start.elapsed().as_secs());
                    next += REPORT_EVERY;
                }
                thread::sleep(Duration::from_millis(200));
            }
        }
    }
}

fn go_missing(error: Error) -> Error {
    match error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Error::Missing {
            what: "Go".into(),
            remedy: "install Go 1.26 or newer (https://go.dev/dl) and put its bin folder into PATH".into(),
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_the_go_mod_files_say() {
        for program in Program::ALL {
            let (name, module, package, _) = program.spec();
            let required = format!("{} v{}", module.path, module.version);
            assert!(
                module.go_mod.contains(&required),
                "{name}: go.mod does not require {required}"
            );
            let tool = format!("{}{package}", module.path);
            let listed = module
                .go_mod
                .lines()
                .any(|line| line.trim().trim_start_matches("tool ") == tool);
            assert!(listed, "{name}: go.mod has no tool line for {tool}");
            assert!(
                module.go_sum.contains(&format!("{required} h1:")),
                "{name}: go.sum has no line for {required}"
            );
        }
    }

    #[test]
    fn versions() {
        assert_eq!(version_parts("1.36.3").unwrap(), ("1", "36", "3"));
        for bad in ["1.36", "v1.36.3", "2.0.0", "1.36.x", "../x"] {
            assert!(version_parts(bad).is_err(), "{bad}");
        }
        assert!(link_flags(&K8S, "1.35.4").contains("gitVersion=v1.35.4"));
        assert_eq!(link_flags(&ETCD, "3.7.3"), "-s -w");
    }
}
