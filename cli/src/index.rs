//! `clip index IMAGE [OUT]`.

use crate::{
    common::{CommonArgs, RegistryArgs, runtime},
    failure::Failure,
    progress::Shown,
    publish::{PublishArgs, Published},
    units,
};
use clap::{Args, ValueEnum};
use clip_engine::{
    Archive, Digest, IndexOptions, IndexedImage, RuntimeDirs, SpanLimits, StateDir, index_image,
    registry::{Client, ImageSource, Platform},
};
use serde::Serialize;
use std::{path::PathBuf, sync::Arc};

/// Index an image: stream its layers once and write a metadata-only archive.
///
/// IMAGE is a reference as Docker users write it (`alpine:3.20`, `registry.local:5000/team/app`), or
/// `oci:DIR[:TAG]` for an OCI image layout on disk. Nothing but the archive is written to disk, and
/// the archive is written whole or not at all; after an interruption, run the command again.
///
/// Exit status: 0 done; 42 trying again cannot help (the image does not exist, credentials are
/// refused, content is not supported); 2 wrong usage; 1 anything else.
#[derive(Debug, Args)]
pub struct IndexArgs {
    /// The image.
    image: String,

    /// The archive to write, by custom `NAME.clip`. May be left out with --upload or --publish.
    #[arg(required_unless_present_any = ["upload", "publish"])]
    out: Option<PathBuf>,

    /// Which platform of a multi-platform image [default: this machine's].
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,

    /// /proc, /sys and /dev are left out. `empty` puts empty directories in their place, which a
    /// runtime needs as mount points on a read-only root without an overlay.
    #[arg(long, value_enum, default_value_t = RuntimeDirsArg::Omit)]
    runtime_dirs: RuntimeDirsArg,

    /// Largest piece that must be decoded for one read, in bytes (64 KiB to 256 MiB). Smaller
    /// pieces make a larger archive.
    #[arg(long, value_name = "BYTES", default_value_t = SpanLimits::default().tar, value_parser = clap::value_parser!(u64).range(65536..=268_435_456))]
    max_span: u64,

    /// Take layers that this earlier archive already describes from it instead of downloading them; may be given
    /// several times, and may name the archive that is to be replaced. The result is the same, but what was left out
    /// of these layers is not reported again. The archive is believed: `clip verify` checks one that you do not trust.
    #[arg(long, value_name = "ARCHIVE")]
    reuse: Vec<PathBuf>,

    /// Print what was made as one JSON object on stdout.
    #[arg(long)]
    json: bool,

    /// Write the result, good or bad, to this file as JSON, too (a pod's termination log).
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    termination_log: Option<PathBuf>,

    #[command(flatten)]
    registry: RegistryArgs,

    #[command(flatten)]
    publish: PublishArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RuntimeDirsArg {
    Omit,
    Empty,
}

/// What `--json` prints and the termination log holds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    reason: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest_digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    archive_digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    published: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    numbers: Option<Numbers>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Numbers {
    files: u64,
    layers: u64,
    image_bytes: u64,
    unpacked_bytes: u64,
    archive_bytes: u64,
    seek_points: u64,
}

/// Runs the command.
pub fn run(common: &CommonArgs, args: IndexArgs) -> Result<(), Failure> {
    let done = index(common, &args);
    let report = match &done {
        Ok(report) => report,
        Err(failure) => &Report {
            reason: failure.reason,
            message: failure.message.clone(),
            manifest_digest: None,
            archive_digest: None,
            published: None,
            duration_ms: None,
            numbers: None,
        },
    };
    let json = serde_json::to_string(report).map_err(Failure::local)?;
    if let Some(path) = &args.termination_log
        && let Err(error) = std::fs::write(path, &json)
    {
        tracing::warn!(path = %path.display(), %error, "cannot write the termination log");
    }
    if args.json && done.is_ok() {
        println!("{json}");
    }
    done.map(drop)
}

fn index(common: &CommonArgs, args: &IndexArgs) -> Result<Report, Failure> {
    let source: ImageSource = args
        .image
        .parse()
        .map_err(|error| Failure::permanent("InvalidReference", error))?;
    let out = args.out.as_deref().map(check_out).transpose()?;
    let client = args.registry.client()?;
    let runtime = runtime()?;
    let progress = Arc::new(Shown::new(common.verbose));
    let mut options = args.index_options()?;
    options
        .reuse
        .extend(runtime.block_on(args.publish.replaced()));
    let indexed = runtime.block_on(index_image(&client, &source, &options, progress.clone()))?;
    let summary = indexed.summary;
    let digest = Digest::of(&indexed.archive);

    eprintln!(
        "Successfully indexed image with {} files in {}",
        summary.files,
        units::seconds(indexed.duration)
    );
    if progress.left_out_count() > 0 && !common.verbose {
        eprintln!(
            "Left out {} entries in /proc, /sys and /dev (--verbose lists them)",
            progress.left_out_count()
        );
    }
    let (reused, bytes) = progress.reused();
    if reused > 0 {
        eprintln!(
            "Reused {} from earlier archives: {} not downloaded",
            units::count(reused, "layer"),
            units::bytes(bytes)
        );
    }
    if let Some(path) = out {
        StateDir::write(path, &indexed.archive)
            .map_err(|error| Failure::local(format!("cannot write {}: {error}", path.display())))?;
        let (archive, image) = (
            units::bytes(summary.archive_bytes),
            units::bytes(summary.image_bytes),
        );
        eprintln!(
            "Created metadata-only clip file {}: {archive} for an image of {image}",
            path.display()
        );
    }
    let published = runtime.block_on(send(args, &client, &indexed))?;
    Ok(Report {
        reason: "Indexed",
        message: format!(
            "indexed {} of {}",
            units::count(summary.files, "file"),
            units::count(summary.layers, "layer")
        ),
        manifest_digest: Some(indexed.image.manifest_digest.to_string()),
        archive_digest: Some(digest.to_string()),
        published: published.reference,
        duration_ms: Some(indexed.duration.as_millis() as u64),
        numbers: Some(Numbers {
            files: summary.files,
            layers: summary.layers,
            image_bytes: summary.image_bytes,
            unpacked_bytes: summary.unpacked_bytes,
            archive_bytes: summary.archive_bytes,
            seek_points: summary.seek_points,
        }),
    })
}

async fn send(
    args: &IndexArgs,
    client: &Client,
    indexed: &IndexedImage,
) -> Result<Published, Failure> {
    args.publish.send(&args.registry, client, indexed).await
}

/// An impossible output is found before an hour of work, not after.
fn check_out(path: &std::path::Path) -> Result<&std::path::Path, Failure> {
    if path.is_dir() {
        return Err(Failure::local(format!(
            "{} is a directory: name a file in it, like {}/image.clip",
            path.display(),
            path.display()
        )));
    }
    if path.exists() && !path.is_file() {
        return Err(Failure::local(format!(
            "{} is not a regular file and will not be replaced: name another file",
            path.display()
        )));
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => std::path::Path::new("."),
    };
    if !parent.is_dir() {
        return Err(Failure::local(format!(
            "the directory {} does not exist: create it with `mkdir -p {}`",
            parent.display(),
            parent.display()
        )));
    }
    nix::unistd::access(parent, nix::unistd::AccessFlags::W_OK).map_err(|error| {
        Failure::local(format!(
            "nothing can be written in {} ({}): name a file elsewhere",
            parent.display(),
            error.desc()
        ))
    })?;
    Ok(path)
}

impl IndexArgs {
    fn index_options(&self) -> Result<IndexOptions, Failure> {
        let defaults = SpanLimits::default();
        Ok(IndexOptions {
            platform: self.platform.clone().unwrap_or_else(Platform::host),
            runtime_dirs: match self.runtime_dirs {
                RuntimeDirsArg::Omit => RuntimeDirs::Omit,
                RuntimeDirsArg::Empty => RuntimeDirs::Empty,
            },
            // The compressed limit keeps its proportion to the decoded one.
            span_limits: SpanLimits {
                tar: self.max_span,
                blob: self.max_span / (defaults.tar / defaults.blob),
            },
            reuse: self.earlier_archives()?,
        })
    }

    fn earlier_archives(&self) -> Result<Vec<Archive>, Failure> {
        let open = |path: &PathBuf| {
            // Reading a FIFO or a device might never end.
            let bytes = match path.metadata() {
                Ok(metadata) if !metadata.is_file() => Err("not a regular file".to_owned()),
                _ => std::fs::read(path).map_err(|error| error.to_string()),
            };
            let archive =
                bytes.and_then(|bytes| Archive::open(bytes).map_err(|error| error.to_string()));
            archive.map_err(|error| Failure::local(format!("--reuse {}: {error}", path.display())))
        };
        self.reuse.iter().map(open).collect()
    }
}
