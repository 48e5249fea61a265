//! The image of every test: a few files that can be told apart, pushed as one gzip layer.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use clip_registry::{Client, Descriptor, OCI_MANIFEST, Platform, Repository};

/// Pushes it as tag `1`.
pub async fn push(client: &Client, repository: &Repository) {
    let tar = layer();
    let config = serde_json::json!({
        "os": "linux",
        "architecture": Platform::host().architecture,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [clip_registry::Digest::sha256_of(&tar)]},
    });
    let (config, layer) = (serde_json::to_vec(&config).unwrap(), gzip(&tar));
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": Descriptor::of("application/vnd.oci.image.config.v1+json", &config),
        "layers": [Descriptor::of("application/vnd.oci.image.layer.v1.tar+gzip", &layer)],
    });
    client.push_blob(repository, config.into()).await.unwrap();
    client.push_blob(repository, layer.into()).await.unwrap();
    let manifest = serde_json::to_vec(&manifest).unwrap();
    client
        .push_manifest(repository, "1", OCI_MANIFEST, manifest.into())
        .await
        .unwrap();
}

/// `etc/greeting`, `etc/private` for root only, `usr/lib/big` (1 MiB), `escape`, a link to `/etc`, and `srv/0` to `srv/7`, the [`part`]s.
fn layer() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("etc")).unwrap();
    std::fs::create_dir_all(path("usr/lib")).unwrap();
    std::fs::create_dir(path("srv")).unwrap();
    for number in 0..8 {
        std::fs::write(path(&format!("srv/{number}")), part(number)).unwrap();
    }
    std::fs::write(path("etc/greeting"), "hello\n").unwrap();
    std::fs::write(path("etc/private"), "only root\n").unwrap();
    let for_root = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path("etc/private"), for_root).unwrap();
    std::fs::write(path("usr/lib/big"), big()).unwrap();
    std::os::unix::fs::symlink("/etc", path("escape")).unwrap();
    let output = Command::new("tar")
        .args([
            "--create",
            "--owner=0",
            "--group=0",
            "--sort=name",
            "--directory",
        ])
        .arg(folder.path())
        .arg(".")
        .output()
        .unwrap();
    assert!(output.status.success());
    output.stdout
}

/// The content of `usr/lib/big`.
pub fn big() -> Vec<u8> {
    noise(0, 1 << 18)
}

/// The content of `srv/NUMBER`, 512 KiB.
pub fn part(number: u32) -> Vec<u8> {
    noise(1 + number, 1 << 17)
}

fn noise(seed: u32, words: u32) -> Vec<u8> {
    (0..words)
        .flat_map(|number| (number ^ seed << 20).wrapping_mul(2654435761).to_le_bytes())
        .collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = Command::new("gzip")
        .arg("-nc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = gzip.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
    let output = gzip.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    output.stdout
}
