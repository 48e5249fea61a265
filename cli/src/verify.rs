//! `clip verify FILE`: the archive against its image, or a cache against the archive.

mod report;

use crate::{
    common::{RegistryArgs, StateArgs, runtime},
    failure::{Failure, PERMANENT},
    progress::LayerProgress,
};
use clap::Args;
use clip_archive::{Archive, OpenError, header::HeaderError, open::Summary};
use clip_engine::{LayerVerified, VerifyOptions, VerifyProgress, verify_cache, verify_image};
use report::{Found, Report, What};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

/// Check an archive against its image, or what is cached against the archive.
///
/// Without options, the whole image is fetched once and kept nowhere. The archive must be
/// consistent; the manifest and configuration under its digest must list the archive's layers; each
/// layer must be the blob and the files that were indexed; and each span, decoded alone from its
/// seek point as a cold read does it, must give the bytes that the archive promises.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct VerifyArgs {
    /// The archive. Its head says where the image is: in a registry, or in an OCI layout.
    file: PathBuf,

    /// Check the archive itself and the image's manifest; fetch no layer.
    #[arg(long)]
    quick: bool,

    /// Check what is cached of the image instead, in the state directory or in DIR. Every span that
    /// is marked present is read again. Asks no registry, changes nothing, and may run beside mounts.
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true, conflicts_with = "quick")]
    cache: Option<Option<PathBuf>>,

    /// Only this layer: its number (the base is 0, as in `clip inspect --layers`), or its digest or
    /// the beginning of it. May be repeated.
    #[arg(long, value_name = "N|DIGEST", conflicts_with = "quick")]
    layer: Vec<String>,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    registry: RegistryArgs,
}

const AFTER_HELP: &str = "\
Exit codes:
   0  everything that was looked at is as it should be
   1  could not be checked; may be possible later (registry unreachable, file unreadable)
   2  wrong usage
   3  archive and image differ, or the archive is damaged: the last line says which is to blame
   4  the cache holds wrong bytes: the last line says how to have them fetched again
  42  could not be checked, and trying again cannot help (credentials refused, image deleted)

Examples:
  clip verify app.clip                   all of it
  clip verify --quick app.clip           before a rollout: is the image still there, and the same?
  clip verify --cache app.clip           is what this node has cached intact?
  clip verify --json app.clip | jq .status";

/// Archive and image differ.
const DIFFERS: u8 = 3;
/// The cache holds wrong bytes.
pub const CORRUPT: u8 = 4;

/// Runs the command.
pub fn run(args: VerifyArgs) -> ExitCode {
    let what = match look(&args) {
        Ok(what) => what,
        Err(failure) => What::Unavailable(failure),
    };
    let report = Report::new(&args.file, what);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let written = match args.json {
        true => report.write_json(&mut out),
        false => report.write_text(&mut out),
    };
    match written.and_then(|()| out.flush()) {
        // `clip verify FILE | head` is no failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            return Failure::local(format!("cannot write: {error}")).report();
        }
        _ => {}
    }
    match report.found() {
        Found::AsItShouldBe => ExitCode::SUCCESS,
        Found::Unavailable { permanent } => {
            eprintln!("clip: {}", report.verdict());
            ExitCode::from(if permanent { PERMANENT } else { 1 })
        }
        found => {
            eprintln!("clip: {}", report.verdict());
            ExitCode::from(if found == Found::Corrupt {
                CORRUPT
            } else {
                DIFFERS
            })
        }
    }
}

/// Looks at what the arguments name.
fn look(args: &VerifyArgs) -> Result<What, Failure> {
    let bytes = std::fs::read(&args.file)
        .map_err(|error| Failure::local(format!("cannot read {}: {error}", args.file.display())))?;
    let (archive, summary) = match open(bytes) {
        Ok(opened) => opened,
        Err(error) => return not_an_archive(&args.file, error),
    };
    let layers = match args.layer.as_slice() {
        [] => None,
        named => Some(layers_named(&archive, named)?),
    };
    match &args.cache {
        Some(dir) => look_at_cache(args, dir.as_deref(), archive, layers.as_deref()),
        None => look_at_image(args, archive, summary, layers),
    }
}

fn open(bytes: Vec<u8>) -> Result<(Archive, Summary), OpenError> {
    let archive = Archive::open(bytes)?;
    let summary = archive.verify()?;
    Ok((archive, summary))
}

fn not_an_archive(file: &Path, error: OpenError) -> Result<What, Failure> {
    let message = format!("{}: {error}", file.display());
    match error {
        // Another version may find nothing wrong with it.
        OpenError::Header(HeaderError::TooNew(_) | HeaderError::StorageType) => {
            Err(Failure::permanent("UnsupportedArchive", message))
        }
        _ => Ok(What::Damaged(message)),
    }
}

fn look_at_image(
    args: &VerifyArgs,
    archive: Archive,
    summary: Summary,
    layers: Option<Vec<usize>>,
) -> Result<What, Failure> {
    let client = args.registry.client()?;
    let progress = Arc::new(Shown(LayerProgress::new("verified")));
    if !args.quick {
        begin(&progress.0, &archive, layers.as_deref(), |layer| layer.size);
    }
    let archive = Arc::new(archive);
    let options = VerifyOptions {
        quick: args.quick,
        layers,
    };
    let verified = runtime()?.block_on(verify_image(&client, archive.clone(), &options, progress));
    Ok(What::Image {
        archive,
        summary,
        options,
        verified,
    })
}

fn look_at_cache(
    args: &VerifyArgs,
    dir: Option<&Path>,
    archive: Archive,
    layers: Option<&[usize]>,
) -> Result<What, Failure> {
    let dir = match dir {
        Some(dir) => dir.to_owned(),
        None => args.state.path()?,
    };
    let progress = LayerProgress::new("read");
    begin(&progress, &archive, layers, |layer| layer.tar_size);
    let advanced = |index, bytes| progress.advanced(index, bytes);
    let verified = verify_cache(&dir, &archive, layers, &advanced).map_err(Failure::local)?;
    for (index, _) in &verified.layers {
        progress.layer_done(*index);
    }
    Ok(What::Cache {
        archive: Arc::new(archive),
        dir,
        verified,
    })
}

fn begin(
    progress: &LayerProgress,
    archive: &Archive,
    wanted: Option<&[usize]>,
    size: impl Fn(&clip_archive::LayerRef) -> u64,
) {
    let layers = archive.head().layers.iter().enumerate();
    let wanted = layers.filter(|(index, _)| wanted.is_none_or(|wanted| wanted.contains(index)));
    progress.begin(wanted.map(|(index, layer)| (index, layer.digest.short(), size(layer))));
}

/// The positions of the layers that `--layer` names, in the image's order.
fn layers_named(archive: &Archive, named: &[String]) -> Result<Vec<usize>, Failure> {
    let layers = &archive.head().layers;
    let mut found = Vec::new();
    for name in named {
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        let is_meant = |index: usize| match name.parse::<usize>() {
            Ok(number) if name.len() < 5 => index == number,
            _ => digits.len() >= 5 && layers[index].digest.hex().starts_with(digits),
        };
        let before = found.len();
        found.extend((0..layers.len()).filter(|&index| is_meant(index)));
        if found.len() == before {
            return Err(Failure::local(format!(
                "the archive has no layer {name}: `clip inspect --layers` lists its {}",
                layers.len()
            )));
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Shows progress.
#[derive(Debug)]
struct Shown(LayerProgress);

impl VerifyProgress for Shown {
    fn advanced(&self, index: usize, bytes: u64) {
        self.0.advanced(index, bytes);
    }

    fn layer_done(&self, layer: &LayerVerified) {
        self.0.layer_done(layer.index);
    }
}
