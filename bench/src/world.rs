//! What every bench needs: the repository, real images in a real registry behind a counting relay,
//! the binaries.

use crate::relay::{Link, Relay};
use anyhow::{Context, Result, ensure};
use clip_testkit::registry::TestRegistry;
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// The images; `e2e/images/make` makes them.
pub const IMAGES: [&str; 8] = [
    "alpine-like",
    "debian-slim",
    "debian-min",
    "python-app",
    "packages",
    "go-toolchain",
    "node-app",
    "python-ml",
];
/// One of 125,000 small files, and one of 3 GB: not in the registry, each for one question.
pub const MANY_FILES: &str = "many-files";
pub const LARGE: &str = "large";
/// Those of which single files are read: the origin fetches a whole layer for each.
pub const READ_IMAGES: [&str; 2] = ["debian-min", "go-toolchain"];

/// See the module.
#[derive(Debug)]
pub struct World {
    /// Counts what systems fetch.
    pub relay: Relay,
    /// Scratch space.
    pub scratch: TempDir,
    case: Option<String>,
    repository: PathBuf,
    registry: TestRegistry,
}

impl World {
    /// Makes the images where they are missing, starts the registry, and pushes them. Benches of many cases leave
    /// out those that do not have `case` in their names.
    pub fn prepare(case: Option<String>) -> Result<Self> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the bench lies in the repository")?
            .to_owned();
        let registry = TestRegistry::start()?;
        let relay = Relay::start(registry.address(), Link::default())?;
        let world = Self {
            relay,
            scratch: tempfile::tempdir()?,
            case,
            repository,
            registry,
        };
        for image in IMAGES {
            let layout = world.layout(image)?;
            world.push(&layout, &world.reference(image))?;
        }
        world.relay.take();
        Ok(world)
    }

    /// Pushes the image of an OCI layout, and what its index holds beside it.
    pub fn push(&self, layout: &Path, reference: &str) -> Result<()> {
        let mut skopeo = Command::new("skopeo");
        skopeo
            .args(["copy", "-q", "--all", "--insecure-policy"])
            .arg("--dest-tls-verify=false")
            .arg(format!("oci:{}", layout.display()))
            .arg(format!("docker://{reference}"));
        crate::run::timed(&mut skopeo).map(drop)
    }

    /// The reference of `image` behind the relay.
    pub fn reference(&self, image: &str) -> String {
        self.reference_behind(&self.relay, image)
    }

    /// The reference of `image` behind another relay.
    pub fn reference_behind(&self, relay: &Relay, image: &str) -> String {
        format!("{}:1", self.repository_behind(relay, image))
    }

    /// The same without a tag, where archives are published.
    pub fn repository_behind(&self, relay: &Relay, image: &str) -> String {
        format!("{}/bench/{image}", relay.address())
    }

    /// Whether a case is asked for.
    pub fn wants(&self, case: &str) -> bool {
        self.case.as_deref().is_none_or(|part| case.contains(part))
    }

    /// Another way to the registry.
    pub fn relay_over(&self, link: Link) -> Result<Relay> {
        Relay::start(self.registry.address(), link)
    }

    /// The directory of `image` as an OCI layout.
    pub fn layout(&self, image: &str) -> Result<PathBuf> {
        let output = Command::new(self.repository.join("e2e/images/make"))
            .arg(image)
            .output()?;
        ensure!(
            output.status.success(),
            "e2e/images/make {image}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let path = String::from_utf8(output.stdout)?;
        Ok(path
            .lines()
            .last()
            .context("e2e/images/make prints the path")?
            .into())
    }

    /// The compressed layers of `image` on disk, base first.
    pub fn layers(&self, image: &str) -> Result<Vec<PathBuf>> {
        layers(&self.layout(image)?)
    }

    /// The release build of `clip`.
    pub fn clip(&self) -> Command {
        let this = std::env::current_exe().unwrap_or_default();
        let mut command = Command::new(this.with_file_name("clip"));
        command.env("CLIP_STATE_DIR", self.scratch.path().join("state"));
        command
    }

    /// A directory outside the repository where built peers are kept.
    pub fn cache(&self) -> PathBuf {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/clip"));
        std::env::var_os("CLIP_CACHE_DIR")
            .map(PathBuf::from)
            .or_else(home)
            .unwrap_or_else(|| self.scratch.path().to_owned())
    }

    /// The repository.
    pub fn repository(&self) -> &Path {
        &self.repository
    }

    /// Processors, memory, kernel.
    pub fn machine(&self) -> Value {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let line = |text: &str, key: &str| {
            text.lines()
                .find(|line| line.starts_with(key))
                .and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
        };
        json!({
            "cpu": line(&read("/proc/cpuinfo"), "model name"),
            "shaInstructions": has_sha_instructions(),
            "cpus": std::thread::available_parallelism().map_or(0, usize::from),
            "memory": line(&read("/proc/meminfo"), "MemTotal"),
            "kernel": read("/proc/sys/kernel/osrelease").trim(),
        })
    }

    /// Versions of what was measured.
    pub fn versions(&self) -> Value {
        let first_line = |command: &mut Command| {
            command.output().ok().and_then(|output| {
                String::from_utf8_lossy(&output.stdout)
                    .lines()
                    .next()
                    .map(str::to_owned)
            })
        };
        json!({
            "clip": first_line(self.clip().arg("--version")),
            "gzip": first_line(Command::new("gzip").arg("--version")),
            "origin": crate::peers::ORIGIN_VERSION,
            "containerd": first_line(Command::new("containerd").arg("--version")),
            "stargz-snapshotter": crate::peers::STARGZ_VERSION,
            "soci-snapshotter": crate::peers::SOCI_VERSION,
            "nydus": crate::peers::NYDUS_VERSION,
        })
    }
}

/// The compressed layers of the image of an OCI layout, base first.
pub fn layers(layout: &Path) -> Result<Vec<PathBuf>> {
    let blob = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
    let read =
        |path: PathBuf| -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    let index = read(layout.join("index.json"))?;
    let manifest = read(blob(
        index["manifests"][0]["digest"]
            .as_str()
            .context("a manifest")?,
    ))?;
    let layers = manifest["layers"].as_array().context("layers")?;
    layers
        .iter()
        .map(|layer| Ok(blob(layer["digest"].as_str().context("a digest")?)))
        .collect()
}

/// Of all these files together.
pub fn total_bytes(files: &[PathBuf]) -> Result<u64> {
    files
        .iter()
        .map(|file| Ok(std::fs::metadata(file)?.len()))
        .sum()
}

/// Whether the processor computes SHA-256 itself (`sha_ni` of x86, `sha2` of Arm).
pub fn has_sha_instructions() -> bool {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpu.split_whitespace()
        .any(|flag| ["sha_ni", "sha2"].contains(&flag))
}
