//! OCI image layouts on disk, made of a test's own layers: consistent, or wrong where the test wants them wrong.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::kinds::pipe;

/// A layer before it is compressed.
pub struct Layer(tar::Builder<Vec<u8>>);

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Layer")
    }
}

impl Default for Layer {
    fn default() -> Layer {
        Layer::new()
    }
}

impl Layer {
    /// A layer without entries.
    pub fn new() -> Layer {
        Layer(tar::Builder::new(Vec::new()))
    }

    /// Adds a file, 0644, owner 0:0, from 2024.
    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Layer {
        self.entry(tar::EntryType::Regular, path, 0o644, content.as_ref())
    }

    /// Adds a directory, 0755.
    pub fn dir(self, path: &str) -> Layer {
        self.entry(tar::EntryType::Directory, path, 0o755, &[])
    }

    /// Adds a symbolic link.
    pub fn link(mut self, path: &str, target: &str) -> Layer {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        self.0
            .append_link(&mut header, path, target)
            .expect("writing to memory");
        self
    }

    /// Adds an entry of any type.
    pub fn entry(mut self, kind: tar::EntryType, path: &str, mode: u32, content: &[u8]) -> Layer {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_714_979_289);
        header.set_size(content.len() as u64);
        self.0
            .append_data(&mut header, path, content)
            .expect("writing to memory");
        self
    }

    /// The tar stream.
    pub fn tar(self) -> Vec<u8> {
        self.0.into_inner().expect("writing to memory")
    }
}

/// What is wrong with an image on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flaw {
    /// Nothing.
    #[default]
    None,
    /// The configuration names diffIDs that the layers do not have.
    WrongDiffIds,
    /// The layers' media type is one that nobody knows.
    UnknownLayerType,
    /// The manifest says that it is one of Docker's schema 1.
    DockerSchema1,
}

/// Writes a layout with one image, tag `latest`, for linux/amd64, of gzip layers. Returns `dir`.
pub fn write(dir: &Path, layers: Vec<Layer>, flaw: Flaw) -> Result<PathBuf> {
    let media_type = match flaw {
        Flaw::UnknownLayerType => "application/vnd.example.layer.v9+brotli",
        _ => "application/vnd.oci.image.layer.v1.tar+gzip",
    };
    let (mut diff_ids, mut descriptors) = (Vec::new(), Vec::new());
    for layer in layers {
        let tar = layer.tar();
        diff_ids.push(match flaw {
            Flaw::WrongDiffIds => digest_of(b"something else"),
            _ => digest_of(&tar),
        });
        descriptors.push(add_blob(dir, &gzip(&tar)?, media_type)?);
    }
    let config = add_config(dir, &diff_ids, "application/vnd.oci.image.config.v1+json")?;
    let media_type = match flaw {
        Flaw::DockerSchema1 => "application/vnd.docker.distribution.manifest.v1+prettyjws",
        _ => "application/vnd.oci.image.manifest.v1+json",
    };
    let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": descriptors });
    let manifest = add_json(dir, &manifest, media_type)?;
    tag_latest(dir, manifest)
}

/// Writes a layout whose one image, tag `latest`, is that of the layout `base` with `layer` on top and `config` as what it
/// says about containers. Returns `dir`.
pub fn on_top(dir: &Path, base: &Path, layer: Layer, config: Value) -> Result<PathBuf> {
    let blob = |dir: &Path, descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        dir.join("blobs/sha256")
            .join(digest.trim_start_matches("sha256:"))
    };
    let document =
        |path: PathBuf| -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    let index = document(base.join("index.json"))?;
    let manifest = document(blob(base, &index["manifests"][0]))?;
    let mut image = document(blob(base, &manifest["config"]))?;
    let mut layers = manifest["layers"].as_array().cloned().unwrap_or_default();
    std::fs::create_dir_all(dir.join("blobs/sha256"))?;
    for below in &layers {
        std::os::unix::fs::symlink(blob(base, below).canonicalize()?, blob(dir, below))?;
    }
    let tar = layer.tar();
    layers.push(add_blob(
        dir,
        &gzip(&tar)?,
        "application/vnd.oci.image.layer.v1.tar+gzip",
    )?);
    let mut diff_ids = image["rootfs"]["diff_ids"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    diff_ids.push(digest_of(&tar).into());
    image["rootfs"]["diff_ids"] = diff_ids.into();
    image["config"] = config;
    // It would have to tell of the new layer, too.
    image.as_object_mut().map(|image| image.remove("history"));
    let config = add_json(dir, &image, "application/vnd.oci.image.config.v1+json")?;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers });
    let manifest = add_json(dir, &manifest, media_type)?;
    tag_latest(dir, manifest)
}

/// Adds the configuration of an image for linux/amd64; its descriptor.
pub fn add_config(dir: &Path, diff_ids: &[String], media_type: &str) -> Result<Value> {
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    add_json(dir, &config, media_type)
}

/// Completes a layout whose one image or index, tag `latest`, is `manifest`. Returns `dir`.
pub fn tag_latest(dir: &Path, mut manifest: Value) -> Result<PathBuf> {
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(dir.join("index.json"), serde_json::to_vec(&index)?)?;
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(dir.to_owned())
}

/// `sha256:…` of some bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Bytes that do not compress, the same for the same seed (xorshift64*).
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes()
    };
    let mut out: Vec<u8> = std::iter::repeat_with(&mut next)
        .take(len.div_ceil(8))
        .flatten()
        .collect();
    out.truncate(len);
    out
}

/// Adds a document; its descriptor.
pub fn add_json(dir: &Path, value: &Value, media_type: &str) -> Result<Value> {
    add_blob(dir, &serde_json::to_vec(value)?, media_type)
}

/// Adds a blob; its descriptor.
pub fn add_blob(dir: &Path, content: &[u8], media_type: &str) -> Result<Value> {
    let digest = digest_of(content);
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    std::fs::write(blobs.join(&digest["sha256:".len()..]), content)?;
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": content.len() }))
}

fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    pipe(&["gzip", "-n", "-6"], content)
}
