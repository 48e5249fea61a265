//! Real images, made by `e2e/images/make` from Debian packages and kept in the cache, and how they get into a registry.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::guard::run;
use crate::registry::TestRegistry;

/// The OCI layout of the image `name`, tag `latest`; made first where the cache has none.
pub fn image(name: &str) -> Result<PathBuf> {
    let make = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../e2e/images/make");
    let printed = run(Command::new(make).arg(name))?;
    let path = printed.lines().last().context("make prints the path")?;
    Ok(Path::new(path).canonicalize()?)
}

/// Copies a layout's `latest` to `repository` (`team/app:1`), layers and digests as they are. Returns the reference.
pub fn push(layout: &Path, registry: &TestRegistry, repository: &str) -> Result<String> {
    push_as(layout, registry, repository, None)
}

/// The same with a user name and password.
pub fn push_as(
    layout: &Path,
    registry: &TestRegistry,
    repository: &str,
    user: Option<(&str, &str)>,
) -> Result<String> {
    let reference = format!("{}/{repository}", registry.address());
    let mut copy = Command::new("skopeo");
    copy.args([
        "copy",
        "--quiet",
        "--preserve-digests",
        "--dest-tls-verify=false",
    ]);
    if let Some((name, password)) = user {
        copy.arg(format!("--dest-creds={name}:{password}"));
    }
    let client = registry.client_certificate();
    if let Some(dir) = client.and_then(|client| client.certificate.parent()) {
        copy.arg(format!("--dest-cert-dir={}", dir.display()));
    }
    copy.arg(format!("oci:{}:latest", layout.display()));
    copy.arg(format!("docker://{reference}"));
    run(&mut copy)?;
    Ok(reference)
}

/// A judge from the folder of built tools: `fsck.erofs`, `dump.erofs`.
pub fn tool(name: &str) -> Result<PathBuf> {
    let dir = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    let cache = dir("CLIP_CACHE_DIR")
        .or_else(|| Some(dir("XDG_CACHE_HOME")?.join("clip")))
        .or_else(|| Some(dir("HOME")?.join(".cache/clip")))
        .context("HOME is set")?;
    std::fs::read_dir(cache.join("tools"))
        .into_iter()
        .flatten()
        .filter_map(|version| Some(version.ok()?.path().join(name)))
        .filter(|path| path.exists())
        .max()
        .with_context(|| {
            format!(
                "no {name} in {}/tools: `make setup` builds it",
                cache.display()
            )
        })
}
