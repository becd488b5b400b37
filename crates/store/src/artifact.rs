//! Artifacts: a manifest whose digest names the whole, and the files it lists.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use flywheel_contract::artifact::{MANIFEST_FILE, MANIFEST_MAX_BYTES, Manifest, ManifestFile};
use flywheel_contract::scalar::{Digest, Uri};
use flywheel_contract::termination::Verified;
use flywheel_contract::trainer::ArtifactRef;
use flywheel_contract::version::VERSION_FILE;

use crate::Store;
use crate::error::{Result, StoreError};
use crate::transfer::{Fetched, Sink, digest_of, disk, hash_here};

impl Store {
    /// Reads an artifact's manifest and checks its digest and sense.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Digest`], [`StoreError::Manifest`] and the others of [`StoreError`].
    pub async fn manifest(&self, artifact: &ArtifactRef) -> Result<Manifest> {
        Ok(self.manifest_bytes(artifact).await?.0)
    }

    async fn manifest_bytes(&self, artifact: &ArtifactRef) -> Result<(Manifest, bytes::Bytes)> {
        let uri = artifact.uri.join(MANIFEST_FILE);
        let (bytes, fetched) = self.get_bytes(&uri, MANIFEST_MAX_BYTES).await?;
        if fetched.digest != artifact.digest {
            return Err(StoreError::Digest {
                uri: uri.to_string(),
                problem: format!("its digest is {}, not {}", fetched.digest, artifact.digest),
            });
        }
        let manifest = parse(&uri, &bytes)?;
        Ok((manifest, bytes))
    }

    /// Downloads an artifact into a folder: the manifest is checked first, then each file while it comes in, under a
    /// temporary name until it is whole and right. Bytes beyond a file's length are refused at once.
    ///
    /// # Errors
    /// As [`Store::manifest`], for any file.
    pub async fn download_artifact(&self, artifact: &ArtifactRef, folder: &Path) -> Result<Manifest> {
        let (manifest, bytes) = self.manifest_bytes(artifact).await?;
        self.download_files(&artifact.uri, &manifest.files, folder).await?;
        // Last, so that a folder with a manifest is a whole one.
        let path = folder.join(MANIFEST_FILE);
        tokio::fs::write(&path, &bytes).await.map_err(disk("write", &path))?;
        Ok(manifest)
    }

    /// Downloads the files that a manifest lists, each under a temporary name until it is whole and right.
    pub(crate) async fn download_files(&self, from: &Uri, files: &[ManifestFile], folder: &Path) -> Result<()> {
        tokio::fs::create_dir_all(folder)
            .await
            .map_err(disk("create", folder))?;
        for file in files {
            let uri = from.join(&file.name);
            let target = folder.join(&file.name);
            let part = folder.join(format!(".{}.part", file.name));
            let fetched = self.fetch(&uri, file.length, &mut Sink::File(&part)).await;
            match check(&uri, file, fetched) {
                Ok(()) => tokio::fs::rename(&part, &target).await.map_err(disk("rename", &part))?,
                Err(error) => {
                    let _ = tokio::fs::remove_file(&part).await;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Reads the files that a manifest lists and checks every digest and length, keeping nothing; returns the bytes.
    pub(crate) async fn verify_files(&self, from: &Uri, files: &[ManifestFile]) -> Result<u64> {
        let mut bytes = 0;
        for file in files {
            let uri = from.join(&file.name);
            check(&uri, file, self.fetch(&uri, file.length, &mut Sink::Nowhere).await)?;
            bytes += file.length;
        }
        Ok(bytes)
    }

    /// Reads an artifact and checks every digest and length, keeping nothing.
    ///
    /// # Errors
    /// As [`Store::manifest`], for any file.
    pub async fn verify_artifact(&self, artifact: &ArtifactRef) -> Result<Verified> {
        let manifest = self.manifest(artifact).await?;
        let bytes = self.verify_files(&artifact.uri, &manifest.files).await?;
        Ok(Verified {
            files: u32::try_from(manifest.files.len()).unwrap_or(u32::MAX),
            bytes,
            ..Verified::default()
        })
    }

    /// Removes the files that an artifact's manifest lists, the receipt beside them, and the manifest as the last, and nothing else;
    /// how many files the manifest listed, or none where it is gone: then so is the artifact.
    ///
    /// # Errors
    /// [`StoreError::Digest`] where another artifact lies there, before anything is removed, and the others of [`StoreError`].
    pub async fn remove_artifact(&self, artifact: &ArtifactRef) -> Result<Option<usize>> {
        let manifest = match self.manifest(artifact).await {
            Ok(manifest) => manifest,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let names = manifest.files.iter().map(|file| file.name.as_str());
        // Whoever goes on after an end in between finds by the manifest what is left.
        for name in names.chain([VERSION_FILE, MANIFEST_FILE]) {
            self.delete(&artifact.uri.join(name)).await?;
        }
        Ok(Some(manifest.files.len()))
    }

    /// Uploads a folder with a manifest: its files, then the manifest, then everything is read back and checked.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where something else is there, [`StoreError::Digest`] where the folder or what was read
    /// back is not what the manifest says, and the others of [`StoreError`].
    pub async fn upload_artifact(&self, folder: &Path, uri: &Uri) -> Result<ArtifactRef> {
        let path = folder.join(MANIFEST_FILE);
        let bytes = tokio::fs::read(&path).await.map_err(disk("read", &path))?;
        let manifest = parse(&uri.join(MANIFEST_FILE), &bytes)?;
        let artifact = ArtifactRef {
            uri: uri.clone(),
            digest: digest_of(&bytes),
        };
        for file in &manifest.files {
            self.put_file(&uri.join(&file.name), &folder.join(&file.name)).await?;
        }
        self.put_create(&uri.join(MANIFEST_FILE), bytes.into()).await?;
        self.verify_artifact(&artifact).await?;
        Ok(artifact)
    }
}

/// Checks an artifact that lies in a folder, its manifest and every byte of every file, on the thread that calls. It reads in
/// large pieces and waits for no other thread, so that it gets on as fast as that thread does beside others.
///
/// # Errors
/// [`StoreError::Disk`], [`StoreError::Digest`], [`StoreError::Manifest`].
pub fn check_folder(folder: &Path, digest: &Digest) -> Result<Manifest> {
    let manifest = manifest_of_folder(folder, digest)?;
    for file in &manifest.files {
        let path = folder.join(&file.name);
        let fetched = hash_here(&path).map_err(disk("read", &path));
        check(&local(folder, &file.name), file, fetched)?;
    }
    Ok(manifest)
}

/// The manifest of a local artifact, checked against the digest; its files are not looked at.
///
/// # Errors
/// [`StoreError::Disk`], [`StoreError::Digest`], [`StoreError::Manifest`].
pub fn manifest_of_folder(folder: &Path, digest: &Digest) -> Result<Manifest> {
    let path = folder.join(MANIFEST_FILE);
    let mut bytes = Vec::new();
    let manifest = File::open(&path).and_then(|file| file.take(MANIFEST_MAX_BYTES + 1).read_to_end(&mut bytes));
    manifest.map_err(disk("read", &path))?;
    let uri = local(folder, MANIFEST_FILE);
    let found = digest_of(&bytes);
    if found != *digest {
        return Err(StoreError::Digest {
            uri: uri.to_string(),
            problem: format!("its digest is {found}, not {digest}"),
        });
    }
    parse(&uri, &bytes)
}

fn local(folder: &Path, name: &str) -> Uri {
    Uri(format!("file://{}", folder.join(name).display()))
}

/// Describes a local file for a manifest.
///
/// # Errors
/// [`StoreError::Disk`].
pub async fn describe(folder: &Path, name: &str) -> Result<ManifestFile> {
    let path = folder.join(name);
    let length = tokio::fs::metadata(&path).await.map_err(disk("read", &path))?;
    Ok(ManifestFile {
        name: name.to_owned(),
        length: length.len(),
        digest: crate::transfer::hash_file(&path).await?,
    })
}

fn parse(uri: &Uri, bytes: &[u8]) -> Result<Manifest> {
    let unusable = |problem: String| StoreError::Manifest {
        uri: uri.to_string(),
        problem,
    };
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| unusable(e.to_string()))?;
    manifest.check().map_err(unusable)?;
    Ok(manifest)
}

fn check(uri: &Uri, file: &ManifestFile, fetched: Result<Fetched>) -> Result<()> {
    let wrong = |problem| {
        Err(StoreError::Digest {
            uri: uri.to_string(),
            problem,
        })
    };
    match fetched {
        Ok(got) if got.length != file.length => wrong(format!(
            "it has {} bytes, the manifest says {}",
            got.length, file.length
        )),
        Ok(got) if got.digest != file.digest => wrong(format!(
            "its digest is {}, the manifest says {}",
            got.digest, file.digest
        )),
        Ok(_) => Ok(()),
        Err(StoreError::TooLarge { size, max, .. }) => wrong(match size {
            Some(size) => format!("it has {size} bytes, the manifest says {max}"),
            None => format!("it has more bytes than the {max} of the manifest"),
        }),
        Err(error) => Err(error),
    }
}
