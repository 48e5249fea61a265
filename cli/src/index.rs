//! `clip index IMAGE [FILE]`.

mod earlier;
mod targets;

use crate::{
    common::{CommonArgs, RegistryArgs, runtime},
    failure::Failure,
    progress::Shown,
    publish::PublishArgs,
    units,
};
use clap::{Args, ValueEnum, error::ErrorKind};
use clip_engine::{
    ArchiveFolder, Digest, IndexOptions, IndexedImage, RuntimeDirs, SpanLimits, StateDir,
    index_image,
    registry::{Client, Platform},
};
use earlier::EarlierArgs;
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use targets::Target;
use tokio::runtime::Runtime;

/// Index an image: stream its layers once and write a metadata-only archive.
///
/// IMAGE is a reference as Docker users write it (`alpine:3.20`, `registry.local:5000/team/app`), or
/// `oci:DIR[:TAG]` for an OCI image layout on disk. Nothing but the archive is written to disk, and
/// the archive is written whole or not at all; after an interruption, run the command again.
///
/// With --dir several images are indexed, one after the other. What they share is downloaded once, and so is what an
/// archive in the directory describes already: repeated, the command costs what has changed.
///
/// Exit status: 0 done; 42 trying again cannot help (the image does not exist, credentials are
/// refused, content is not supported; with --dir, for none of those that failed); 2 wrong usage; 1 anything else.
#[derive(Debug, Args)]
#[command(
    override_usage = "clip index [OPTIONS] <IMAGE> <FILE>\n       clip index [OPTIONS] --dir <DIR> <IMAGE>..."
)]
pub struct IndexArgs {
    /// The image, and the archive to write, by custom `NAME.clip`, which may be left out with --upload or --publish.
    /// With --dir, images only.
    #[arg(required = true, value_name = "IMAGE|FILE")]
    words: Vec<String>,

    /// Write an archive for each image into this directory, named after repository and tag: `library_alpine_3.20.clip`.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

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

    /// Print what was made as one JSON object on stdout; with --dir, a line for each image.
    #[arg(long)]
    json: bool,

    /// Write the result, good or bad, to this file as JSON, too (a pod's termination log).
    #[arg(
        long,
        value_name = "FILE",
        hide_short_help = true,
        conflicts_with = "dir"
    )]
    termination_log: Option<PathBuf>,

    #[command(flatten)]
    earlier: EarlierArgs,

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
#[derive(Debug, Clone, Serialize)]
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

#[derive(Debug, Clone, Copy, Serialize)]
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
    match &args.dir {
        Some(dir) => index_all(common, &args, dir),
        None => index_one(common, &args),
    }
}

fn index_one(common: &CommonArgs, args: &IndexArgs) -> Result<(), Failure> {
    let done = args.target().and_then(|target| {
        let mut indexing = Indexing::new(common, args)?;
        let asking = args.publish.add_to(&mut indexing.options);
        indexing.runtime.block_on(asking);
        indexing.index(&target)
    });
    if let Some(path) = &args.termination_log {
        let report = done.as_ref().map_or_else(Report::of_failure, Report::clone);
        let json = serde_json::to_string(&report).map_err(Failure::local)?;
        if let Err(error) = std::fs::write(path, json) {
            tracing::warn!(path = %path.display(), %error, "cannot write the termination log");
        }
    }
    done.map(drop)
}

/// One image that cannot be indexed keeps none of the others from it.
fn index_all(common: &CommonArgs, args: &IndexArgs, dir: &Path) -> Result<(), Failure> {
    let targets = targets::in_folder(&args.words, dir)?;
    let mut indexing = Indexing::new(common, args)?;
    let folder = Arc::new(earlier::folder(dir)?);
    indexing.options.reuse_from.push(folder.clone());
    indexing.folder = Some(folder);
    let mut failures = Vec::new();
    for (number, target) in targets.iter().enumerate() {
        eprintln!("[{}/{}] {}", number + 1, targets.len(), target.image);
        if let Err(failure) = indexing.index(target) {
            eprintln!("Failed: {}", failure.message);
            failures.push((target, failure));
        }
    }
    let Some((_, last)) = failures.last() else {
        return Ok(());
    };
    let names: Vec<_> = failures
        .iter()
        .map(|(target, _)| target.image.as_str())
        .collect();
    Err(Failure {
        reason: last.reason,
        permanent: failures.iter().all(|(_, failure)| failure.permanent),
        message: format!(
            "{} of {} failed: {}",
            failures.len(),
            units::count(targets.len() as u64, "image"),
            names.join(", ")
        ),
    })
}

/// What all images of a command have in common.
struct Indexing<'a> {
    args: &'a IndexArgs,
    verbose: bool,
    client: Client,
    runtime: Runtime,
    options: IndexOptions,
    /// Where the archives go, and the next image may find its layers.
    folder: Option<Arc<ArchiveFolder>>,
}

impl<'a> Indexing<'a> {
    fn new(common: &CommonArgs, args: &'a IndexArgs) -> Result<Self, Failure> {
        let client = args.registry.client()?;
        let mut options = args.index_options();
        let archive_client = || args.publish.archive_client(&args.registry, &client);
        args.earlier.add_to(&mut options, archive_client)?;
        args.publish.check()?;
        Ok(Indexing {
            args,
            verbose: common.verbose,
            client,
            runtime: runtime()?,
            options,
            folder: None,
        })
    }

    fn index(&self, target: &Target) -> Result<Report, Failure> {
        let progress = Arc::new(Shown::new(self.verbose));
        let indexed = index_image(
            &self.client,
            &target.source,
            &self.options,
            progress.clone(),
        );
        let indexed = self.runtime.block_on(indexed)?;
        self.tell(&indexed, &progress);
        if let Some(file) = &target.file {
            write(file, &indexed)?;
            if let Some(folder) = &self.folder {
                folder.add(file.clone());
            }
        }
        let sent = self
            .args
            .publish
            .send(&self.args.registry, &self.client, &indexed);
        let published = self.runtime.block_on(sent)?;
        let report = Report::of(&indexed, published.reference);
        if self.args.json {
            println!(
                "{}",
                serde_json::to_string(&report).map_err(Failure::local)?
            );
        }
        Ok(report)
    }

    fn tell(&self, indexed: &IndexedImage, progress: &Shown) {
        eprintln!(
            "Successfully indexed image with {} files in {}",
            indexed.summary.files,
            units::seconds(indexed.duration)
        );
        if progress.left_out_count() > 0 && !self.verbose {
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
    }
}

fn write(file: &Path, indexed: &IndexedImage) -> Result<(), Failure> {
    StateDir::write(file, &indexed.archive)
        .map_err(|error| Failure::local(format!("cannot write {}: {error}", file.display())))?;
    eprintln!(
        "Created metadata-only clip file {}: {} for an image of {}",
        file.display(),
        units::bytes(indexed.summary.archive_bytes),
        units::bytes(indexed.summary.image_bytes)
    );
    Ok(())
}

impl Report {
    fn of(indexed: &IndexedImage, published: Option<String>) -> Report {
        let summary = &indexed.summary;
        Report {
            reason: "Indexed",
            message: format!(
                "indexed {} of {}",
                units::count(summary.files, "file"),
                units::count(summary.layers, "layer")
            ),
            manifest_digest: Some(indexed.image.manifest_digest.to_string()),
            archive_digest: Some(Digest::of(&indexed.archive).to_string()),
            published,
            duration_ms: Some(indexed.duration.as_millis() as u64),
            numbers: Some(Numbers {
                files: summary.files,
                layers: summary.layers,
                image_bytes: summary.image_bytes,
                unpacked_bytes: summary.unpacked_bytes,
                archive_bytes: summary.archive_bytes,
                seek_points: summary.seek_points,
            }),
        }
    }

    fn of_failure(failure: &Failure) -> Report {
        Report {
            reason: failure.reason,
            message: failure.message.clone(),
            manifest_digest: None,
            archive_digest: None,
            published: None,
            duration_ms: None,
            numbers: None,
        }
    }
}

impl IndexArgs {
    /// The one image, without --dir.
    fn target(&self) -> Result<Target, Failure> {
        match self.words.as_slice() {
            [image] if self.publish.anywhere() => Target::new(image, None),
            [image, file] => Target::new(image, Some(Path::new(file))),
            [image] => wrong_usage(&format!(
                "name the archive to write, too: clip index {image} image.clip"
            )),
            _ => wrong_usage("for several images name a directory with --dir"),
        }
    }

    fn index_options(&self) -> IndexOptions {
        let defaults = SpanLimits::default();
        IndexOptions {
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
            ..IndexOptions::default()
        }
    }
}

/// Ends as the argument parser does.
fn wrong_usage(message: &str) -> ! {
    let command = IndexArgs::augment_args(clap::Command::new("clip index"));
    let mut command = command.bin_name("clip index");
    command
        .error(ErrorKind::WrongNumberOfValues, message)
        .exit()
}
