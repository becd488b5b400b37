//! Container images without a container engine: OCI archives, written file by file.
//!
//! `images/NAME.yaml` says what an image holds. The same inputs give the same bytes: every time is zero, every owner
//! root, files are sorted, and layers are plain tar, so that a layer's digest is its content's.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::error::{Error, Result};
use crate::{machine, paths, process};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const PROGRAM_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;
/// Anyone writes, only owners delete.
const TMP_MODE: u32 = 0o1777;

/// What an image holds, as `images/NAME.yaml` says it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    tag: String,
    /// Where the program lies in the image.
    program: PathBuf,
    /// The program alone, when absent.
    entrypoint: Option<Vec<String>>,
    /// Whether users, certificates and the program's libraries belong in.
    base: bool,
    /// Where libtorch's libraries lie, if the program needs them.
    libtorch: Option<PathBuf>,
    user: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

fn definition(name: &str) -> Result<Definition> {
    let text = match name {
        "operator" => include_str!("../../../images/operator.yaml"),
        "trainer" => include_str!("../../../images/trainer.yaml"),
        "server" => include_str!("../../../images/server.yaml"),
        "pause" => include_str!("../../../images/pause.yaml"),
        _ => {
            return Err(Error::Usage(format!(
                "no image {name}; there are operator, trainer, server and pause"
            )));
        }
    };
    serde_saphyr::from_str(text).map_err(|error| Error::Format {
        what: format!("images/{name}.yaml"),
        why: error.to_string(),
    })
}

/// The name under which pods ask for the image `name`.
///
/// # Errors
/// There is no such image.
pub fn tag(name: &str) -> Result<String> {
    Ok(definition(name)?.tag)
}

/// What images are built from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The operator's program; no image of it when absent, and so the others.
    pub operator: Option<PathBuf>,
    /// The trainer's program.
    pub trainer: Option<PathBuf>,
    /// The server's program.
    pub server: Option<PathBuf>,
    /// libtorch's folder, with `lib` in it; trainer and server need it.
    pub libtorch: Option<PathBuf>,
}

/// Builds `NAME.tar` in `out` for each program that is given, and `pause.tar`; gives their paths.
///
/// # Errors
/// A program is not there or needs a library that is not, or `out` cannot be written.
pub fn build_all(sources: &Sources, out: &Path) -> Result<Vec<PathBuf>> {
    paths::make(out)?;
    let mut built = vec![];
    let programs = [
        ("operator", &sources.operator),
        ("trainer", &sources.trainer),
        ("server", &sources.server),
    ];
    for (name, program) in programs {
        if let Some(program) = program {
            let archive = out.join(format!("{name}.tar"));
            build(&definition(name)?, program, sources.libtorch.as_deref(), &archive)?;
            tracing::info!("{} is in {}", tag(name)?, archive.display());
            built.push(archive);
        }
    }
    let pause = out.join("pause.tar");
    build_pause(&pause)?;
    built.push(pause);
    Ok(built)
}

/// Builds the image that holds pods' namespaces.
///
/// # Errors
/// No busybox, or the archive cannot be written.
pub fn build_pause(archive: &Path) -> Result<()> {
    let busybox = machine::find("busybox").ok_or_else(|| Error::Missing {
        what: "busybox".into(),
        remedy: "apt-get install -y busybox-static".into(),
    })?;
    build(&definition("pause")?, &busybox, None, archive)
}

fn build(definition: &Definition, program: &Path, libtorch: Option<&Path>, archive: &Path) -> Result<()> {
    let folder = archive.parent().unwrap_or(Path::new("."));
    let scratch = folder.join(format!(".layers.{}", std::process::id()));
    paths::make(&scratch)?;
    let result = build_in(definition, program, libtorch, archive, &scratch);
    let _ = fs::remove_dir_all(&scratch);
    result
}

fn build_in(
    definition: &Definition,
    program: &Path,
    libtorch: Option<&Path>,
    archive: &Path,
    scratch: &Path,
) -> Result<()> {
    let lib = match (&definition.libtorch, libtorch) {
        (None, _) => None,
        (Some(_), Some(folder)) => {
            let lib = folder.join("lib");
            Some(lib.canonicalize().map_err(Error::path("finding", &lib))?)
        }
        (Some(_), None) => {
            return Err(Error::Usage(format!(
                "{} needs libtorch: give its folder with --libtorch DIR",
                definition.tag
            )));
        }
    };
    let mut layers = vec![];
    if definition.base {
        let mut files = base_files()?;
        files.extend(libraries(program, lib.as_deref())?);
        layers.push(Layer::write(&scratch.join("base.tar"), &files)?);
    }
    if let (Some(target), Some(lib)) = (&definition.libtorch, &lib) {
        layers.push(libtorch_layer(lib, target)?);
    }
    let entry = Entry {
        path: definition.program.clone(),
        content: Content::File(program.into()),
        mode: PROGRAM_MODE,
    };
    layers.push(Layer::write(&scratch.join("program.tar"), &[entry])?);
    write_archive(definition, &layers, archive)
}

/// One entry of a layer.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// Absolute, inside the image.
    path: PathBuf,
    content: Content,
    mode: u32,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Content {
    File(PathBuf),
    Text(&'static str),
    Link(PathBuf),
    Folder,
}

/// What every program of ours expects of a system.
fn base_files() -> Result<Vec<Entry>> {
    if !Path::new(CERTIFICATES).is_file() {
        return Err(Error::Missing {
            what: format!("the authorities' certificates ({CERTIFICATES})"),
            remedy: "apt-get install -y ca-certificates".into(),
        });
    }
    let text = |path: &str, text| Entry {
        path: path.into(),
        content: Content::Text(text),
        mode: FILE_MODE,
    };
    Ok(vec![
        text(
            "/etc/passwd",
            "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n",
        ),
        text("/etc/group", "root:x:0:\nnonroot:x:65532:\n"),
        text("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
        Entry {
            path: CERTIFICATES.into(),
            content: Content::File(CERTIFICATES.into()),
            mode: FILE_MODE,
        },
        Entry {
            path: "/tmp".into(),
            content: Content::Folder,
            mode: TMP_MODE,
        },
    ])
}

/// The shared libraries and the loader that `program` asks for, without those that lie in `libtorch`.
fn libraries(program: &Path, libtorch: Option<&Path>) -> Result<Vec<Entry>> {
    if !program.is_file() {
        return Err(Error::Usage(format!(
            "no program at {}: build it first",
            program.display()
        )));
    }
    let mut ldd = Command::new("ldd");
    ldd.arg(program);
    if let Some(folder) = libtorch {
        ldd.env("LD_LIBRARY_PATH", folder);
    }
    let listing = match process::run(&mut ldd) {
        Err(Error::Command { output, .. }) if output.contains("not a dynamic executable") => return Ok(vec![]),
        other => other?,
    };
    let mut found = vec![];
    for (name, path) in parse_ldd(&listing) {
        let Some(path) = path else {
            return Err(Error::Usage(format!(
                "{} needs {name}, which is not on this machine{}",
                program.display(),
                if libtorch.is_some() {
                    " nor in libtorch's folder"
                } else {
                    ""
                }
            )));
        };
        if libtorch.is_none_or(|folder| !path.starts_with(folder)) {
            found.push(Entry {
                path: path.clone(),
                content: Content::File(path),
                mode: PROGRAM_MODE,
            });
        }
    }
    Ok(found)
}

/// `(name, path)` of each line; no path where ldd found none. The kernel's own library has none and is left out.
fn parse_ldd(listing: &str) -> Vec<(String, Option<PathBuf>)> {
    let without_address = |text: &str| text.split(" (0x").next().unwrap_or_default().trim().to_owned();
    listing
        .lines()
        .filter_map(|line| match line.trim().split_once(" => ") {
            Some((name, "not found")) => Some((name.to_owned(), None)),
            Some((name, path)) => Some((name.to_owned(), Some(PathBuf::from(without_address(path))))),
            None => {
                let path = without_address(line);
                path.starts_with('/').then(|| (path.clone(), Some(PathBuf::from(path))))
            }
        })
        .collect()
}

/// The layer of libtorch's libraries: written once for each content of the folder, then kept.
fn libtorch_layer(lib: &Path, target: &Path) -> Result<Layer> {
    let mut files = vec![];
    let mut key = Sha256::new();
    key.update(target.as_os_str().as_encoded_bytes());
    let mut entries: Vec<_> = fs::read_dir(lib)
        .map_err(Error::path("listing", lib))?
        .flatten()
        .collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), entry.file_name());
        if !name.to_string_lossy().contains(".so") {
            continue;
        }
        let about = entry.metadata().map_err(Error::path("reading", &path))?;
        let content = if about.is_symlink() {
            Content::Link(fs::read_link(&path).map_err(Error::path("reading", &path))?)
        } else {
            Content::File(path.clone())
        };
        let changed = about
            .modified()
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .unwrap_or_default();
        key.update(format!("{name:?} {} {} {content:?}\n", about.len(), changed.as_nanos()));
        files.push(Entry {
            path: target.join(name),
            content,
            mode: PROGRAM_MODE,
        });
    }
    let folder = paths::cache()?.join("layers");
    paths::make(&folder)?;
    let key = hex::encode(key.finalize());
    let (file, digest) = (folder.join(format!("{key}.tar")), folder.join(format!("{key}.digest")));
    let _turn = paths::lock(&folder.join(".lock"))?;
    if file.is_file() && digest.is_file() {
        let size = fs::metadata(&file).map_err(Error::path("reading", &file))?.len();
        return Ok(Layer {
            file,
            size,
            digest: paths::read(&digest)?,
        });
    }
    tracing::info!("writing the layer of libtorch, once");
    let layer = Layer::write(&file, &files)?;
    paths::write(&digest, &layer.digest)?;
    Ok(layer)
}

/// A layer on disk.
#[derive(Debug)]
struct Layer {
    file: PathBuf,
    size: u64,
    /// SHA-256 in hexadecimal.
    digest: String,
}

impl Layer {
    fn write(file: &Path, entries: &[Entry]) -> Result<Layer> {
        let failed = || Error::path("writing", file);
        let output = File::create(file).map_err(failed())?;
        let mut builder = Builder::new(Hashing {
            inner: BufWriter::new(output),
            hash: Sha256::new(),
            size: 0,
        });
        let mut entries: Vec<&Entry> = entries.iter().collect();
        entries.sort();
        entries.dedup_by(|a, b| a.path == b.path);
        for entry in entries {
            entry.append(&mut builder)?;
        }
        let mut hashing = builder.into_inner().map_err(failed())?;
        hashing.flush().map_err(failed())?;
        Ok(Layer {
            file: file.into(),
            size: hashing.size,
            digest: hex::encode(hashing.hash.finalize()),
        })
    }
}

impl Entry {
    fn append(&self, builder: &mut Builder<impl Write>) -> Result<()> {
        let path = self.path.strip_prefix("/").unwrap_or(&self.path);
        let failed = || Error::path("packing", &self.path);
        match &self.content {
            Content::File(source) => {
                let file = File::open(source).map_err(Error::path("opening", source))?;
                let size = file.metadata().map_err(Error::path("reading", source))?.len();
                let mut header = header(EntryType::Regular, size, self.mode);
                // No more than announced: a file that grows meanwhile must not break the archive.
                builder
                    .append_data(&mut header, path, file.take(size))
                    .map_err(failed())
            }
            Content::Text(text) => {
                let mut header = header(EntryType::Regular, text.len() as u64, self.mode);
                builder
                    .append_data(&mut header, path, text.as_bytes())
                    .map_err(failed())
            }
            Content::Link(target) => {
                let mut header = header(EntryType::Symlink, 0, self.mode);
                builder.append_link(&mut header, path, target).map_err(failed())
            }
            Content::Folder => {
                let mut header = header(EntryType::Directory, 0, self.mode);
                builder
                    .append_data(&mut header, path.join(""), io::empty())
                    .map_err(failed())
            }
        }
    }
}

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// An OCI image layout in a tar.
fn write_archive(definition: &Definition, layers: &[Layer], archive: &Path) -> Result<()> {
    let digest = |text: &str| format!("sha256:{}", hex::encode(Sha256::digest(text)));
    let program = definition.program.display().to_string();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned();
    let variables = definition.env.iter().map(|(name, value)| format!("{name}={value}"));
    let mut settings = json!({
        "Entrypoint": definition.entrypoint.clone().unwrap_or_else(|| vec![program]),
        "Env": std::iter::once(path).chain(variables).collect::<Vec<_>>(),
        "WorkingDir": "/",
    });
    if let (Some(user), Some(settings)) = (&definition.user, settings.as_object_mut()) {
        settings.insert("User".into(), user.clone().into());
    }
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": settings,
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|layer| format!("sha256:{}", layer.digest)).collect::<Vec<_>>(),
        },
    })
    .to_string();
    let described = |kind: &str, text: &str| json!({"mediaType": kind, "digest": digest(text), "size": text.len()});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers.iter().map(|layer| json!({
            "mediaType": LAYER, "digest": format!("sha256:{}", layer.digest), "size": layer.size,
        })).collect::<Vec<Value>>(),
    })
    .to_string();
    let mut named = described("application/vnd.oci.image.manifest.v1+json", &manifest);
    if let Some(named) = named.as_object_mut() {
        let version = definition.tag.rsplit(':').next().unwrap_or_default();
        named.insert(
            "annotations".into(),
            json!({"io.containerd.image.name": definition.tag, "org.opencontainers.image.ref.name": version}),
        );
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [named],
    })
    .to_string();

    let temporary = archive.with_extension(format!("{}.tmp", std::process::id()));
    let failed = || Error::path("writing", archive);
    let mut builder = Builder::new(BufWriter::new(File::create(&temporary).map_err(failed())?));
    let texts = [
        ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", index.as_str()),
    ];
    for (name, text) in texts {
        append(&mut builder, name, text.len() as u64, text.as_bytes()).map_err(failed())?;
    }
    for text in [&manifest, &config] {
        append(&mut builder, &blob(&digest(text)), text.len() as u64, text.as_bytes()).map_err(failed())?;
    }
    let mut written = vec![];
    for layer in layers {
        if !written.contains(&&layer.digest) {
            let file = File::open(&layer.file).map_err(Error::path("opening", &layer.file))?;
            append(&mut builder, &blob(&layer.digest), layer.size, file.take(layer.size)).map_err(failed())?;
            written.push(&layer.digest);
        }
    }
    builder
        .into_inner()
        .and_then(|mut writer| writer.flush())
        .map_err(failed())?;
    fs::rename(&temporary, archive).map_err(failed())
}

fn append(builder: &mut Builder<impl Write>, name: &str, size: u64, content: impl Read) -> io::Result<()> {
    builder.append_data(&mut header(EntryType::Regular, size, FILE_MODE), name, content)
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}

/// The machine's architecture as OCI calls it.
fn architecture() -> &'static str {
    match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_definition_can_be_read() {
        for name in ["operator", "trainer", "server", "pause"] {
            let definition = definition(name).unwrap();
            assert!(definition.tag.starts_with("localhost/flywheel-"), "{name}");
        }
        assert!(definition("other").is_err());
    }

    #[test]
    fn ldd_is_understood() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t\
                       /lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibtorch.so => not found\n";
        let expected = [
            ("libc.so.6".into(), Some("/lib/x86_64-linux-gnu/libc.so.6".into())),
            (
                "/lib64/ld-linux-x86-64.so.2".into(),
                Some("/lib64/ld-linux-x86-64.so.2".into()),
            ),
            ("libtorch.so".into(), None),
        ];
        assert_eq!(parse_ldd(listing), expected);
    }

    #[test]
    fn the_same_program_gives_the_same_archive() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::copy("/bin/true", &program).unwrap();
        let build = |name: &str| {
            let archive = folder.path().join(name);
            build(&definition("operator").unwrap(), &program, None, &archive).unwrap();
            fs::read(archive).unwrap()
        };
        let first = build("a.tar");
        // Another time of change, the same content.
        fs::copy("/bin/true", &program).unwrap();
        assert!(first == build("b.tar"), "archives differ");
        let names: Vec<String> = tar::Archive::new(first.as_slice())
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(
            names.len(),
            6,
            "layout, index, manifest, config, base, program: {names:?}"
        );
    }

    #[test]
    fn what_is_missing_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let trainer = definition("trainer").unwrap();
        let archive = folder.path().join("trainer.tar");
        let error = build(&trainer, Path::new("/bin/true"), None, &archive)
            .unwrap_err()
            .to_string();
        assert!(error.contains("--libtorch"), "{error}");
        let operator = definition("operator").unwrap();
        let error = build(&operator, Path::new("/nowhere"), None, &archive)
            .unwrap_err()
            .to_string();
        assert!(error.contains("build it first"), "{error}");
    }
}
