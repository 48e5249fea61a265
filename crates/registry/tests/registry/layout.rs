//! Images that a test writes: an OCI layout, pushed by skopeo.

use clip_registry::{Digest, ImageSource, OCI_INDEX, OCI_MANIFEST, Platform};
use clip_testkit::registry::TestRegistry;
use serde_json::json;
use std::{path::Path, process::Command};

/// An OCI layout with one image, made of two uncompressed layers.
pub struct Layout {
    dir: tempfile::TempDir,
    pub layers: Vec<Vec<u8>>,
}

pub const TAG: &str = "v1";

impl Layout {
    pub fn new(platform: &str) -> Layout {
        let layers = vec![
            layer("etc/hostname", b"clip\n"),
            layer("data", &vec![7; 300_000]),
        ];
        let mut layout = Layout {
            dir: tempfile::tempdir().unwrap(),
            layers,
        };
        std::fs::create_dir_all(layout.path().join("blobs/sha256")).unwrap();
        std::fs::write(
            layout.path().join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        let mut manifest = layout.image(platform);
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": TAG });
        layout.set_index(vec![manifest]);
        layout
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn source(&self, tag: Option<&str>) -> ImageSource {
        ImageSource::Layout {
            dir: self.path().to_owned(),
            tag: tag.map(str::to_owned),
        }
    }

    /// Writes an image of the layers for a platform; returns its descriptor.
    pub fn image(&mut self, platform: &str) -> serde_json::Value {
        let platform: Platform = platform.parse().unwrap();
        let diff_ids: Vec<_> = self
            .layers
            .iter()
            .map(|layer| Digest::sha256_of(layer))
            .collect();
        let config = json!({
            "os": platform.os, "architecture": platform.architecture,
            "config": { "Cmd": ["/bin/true"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.add(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|layer| self.add("application/vnd.oci.image.layer.v1.tar", layer))
            .collect();
        let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers });
        let mut descriptor = self.add(OCI_MANIFEST, manifest.to_string().as_bytes());
        descriptor["platform"] = serde_json::to_value(platform).unwrap();
        descriptor
    }

    pub fn index(&self, manifests: Vec<serde_json::Value>) -> serde_json::Value {
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        self.add(OCI_INDEX, index.to_string().as_bytes())
    }

    pub fn add(&self, media_type: &str, content: &[u8]) -> serde_json::Value {
        let digest = Digest::sha256_of(content);
        std::fs::write(self.path().join("blobs/sha256").join(digest.hex()), content).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": content.len() })
    }

    pub fn set_index(&self, manifests: Vec<serde_json::Value>) {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        std::fs::write(self.path().join("index.json"), index.to_string()).unwrap();
    }

    pub fn push(&self, registry: &TestRegistry, image: &str, credentials: Option<&str>) {
        let mut skopeo = Command::new("skopeo");
        skopeo.args([
            "copy",
            "--all",
            "--preserve-digests",
            "--dest-tls-verify=false",
            "--insecure-policy",
        ]);
        skopeo.args(credentials.map(|c| format!("--dest-creds={c}")));
        skopeo.arg(format!("oci:{}:{TAG}", self.path().display()));
        skopeo.arg(format!("docker://{}/{image}", registry.address()));
        let output = skopeo.output().expect("apt-get install skopeo");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

fn layer(path: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, path, content).unwrap();
    tar.into_inner().unwrap()
}
