//! FILE or IMAGE: commands that read take either. An image is indexed first, once per digest.

use crate::{
    common::{CacheLimitArgs, RegistryArgs, StateArgs, runtime},
    failure::Failure,
    progress::Shown,
};
use clap::Args;
use clip_engine::{
    Digest, IndexOptions, Node, NodeOptions, OpenImageError, OpenedImage, StateDir, index_image,
    registry::{ImageSource, Platform},
};
use std::{
    fs::File,
    io::{Read as _, Seek as _},
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::runtime::Runtime;

/// An archive or an image, and how to get at its content.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// An archive, or an image to index first (kept in the state directory for the next time).
    #[arg(value_name = "FILE|IMAGE")]
    source: String,

    /// How long a read may wait for the registry before it fails, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    read_timeout: u64,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    cache: CacheLimitArgs,

    #[command(flatten)]
    registry: RegistryArgs,
}

/// An opened image and the runtime on which it fetches.
#[derive(Debug)]
pub struct Opened {
    /// The image.
    pub image: OpenedImage,
    /// The archive's file.
    pub archive: ArchiveFile,
    /// The digest of its bytes.
    pub digest: Digest,
    /// Dropped last: fetches run on it.
    pub runtime: Runtime,
}

/// An archive's file, held open: another may take its name later.
#[derive(Debug)]
pub struct ArchiveFile {
    /// What it is called.
    pub path: PathBuf,
    /// The file itself.
    pub file: File,
}

impl ArchiveFile {
    /// The file that has this name now.
    pub fn open(path: PathBuf) -> Result<Self, Failure> {
        match File::open(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(OpenImageError::Read { path, source }.into()),
        }
    }

    /// All of it.
    pub fn read(&self) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        let mut file = &self.file;
        // Its position is shared with other processes that have the file.
        let read = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
        read.map_err(|source| OpenImageError::Read {
            path: self.path.clone(),
            source,
        })?;
        Ok(bytes)
    }
}

impl SourceArgs {
    /// Opens what the user named.
    pub fn open(&self, verbose: bool) -> Result<Opened, Failure> {
        let runtime = runtime()?;
        let archive = match self.archive_file()? {
            Some(file) => file,
            None => self.index(&runtime, verbose)?,
        };
        self.open_file(archive, runtime)
    }

    /// Opens the archive at `path` in the way that the user asked for, whatever was named.
    pub fn open_file(&self, path: PathBuf, runtime: Runtime) -> Result<Opened, Failure> {
        let archive = ArchiveFile::open(path)?;
        let bytes = archive.read()?;
        self.open_archive(archive, bytes, runtime)
    }

    /// The same for an archive that was read.
    pub fn open_archive(
        &self,
        archive: ArchiveFile,
        bytes: Vec<u8>,
        runtime: Runtime,
    ) -> Result<Opened, Failure> {
        let read_timeout = Duration::from_secs(self.read_timeout);
        let mut client = self.registry.options()?;
        // A connection that hangs is given up in time for the next reader to try a new one.
        client.read_timeout = client.read_timeout.min(read_timeout);
        let options = NodeOptions {
            state_dir: self.state.path()?,
            cache: self.cache.limits(),
            client,
            read_timeout,
        };
        let (digest, image) = std::thread::scope(|scope| {
            // A large archive takes as long to hash as to open, and next to nothing to copy.
            let copy = bytes.clone();
            let digest = scope.spawn(move || Digest::of(&copy));
            let image = Node::new(options, runtime.handle().clone())
                .and_then(|node| node.open_archive(&archive.path, bytes, None));
            (digest.join(), image)
        });
        Ok(Opened {
            image: image?,
            digest: digest.unwrap_or_else(|panic| resume_unwind(panic)),
            archive,
            runtime,
        })
    }

    /// The file that is meant, or none when it is an image.
    fn archive_file(&self) -> Result<Option<PathBuf>, Failure> {
        let path = Path::new(&self.source);
        if path.is_file() {
            return Ok(Some(path.to_owned()));
        }
        let looks_like_a_file =
            self.source.ends_with(".clip") || self.source.starts_with(['/', '.', '~']);
        match looks_like_a_file {
            true => Err(Failure::local(format!(
                "{} does not exist: make it with `clip index IMAGE {}`",
                self.source, self.source
            ))),
            false => Ok(None),
        }
    }

    fn index(&self, runtime: &Runtime, verbose: bool) -> Result<PathBuf, Failure> {
        let source: ImageSource = self.source.parse().map_err(|error| {
            Failure::local(format!(
                "{:?} is neither a file nor an image: {error}",
                self.source
            ))
        })?;
        let client = self.registry.client()?;
        let state = StateDir::open(self.state.path()?)
            .map_err(|error| Failure::local(format!("cannot use the state directory: {error}")))?;
        let resolved = runtime
            .block_on(client.resolve(&source, &Platform::host()))
            .map_err(|error| Failure {
                reason: error.reason(),
                permanent: error.is_permanent(),
                message: error.to_string(),
            })?;
        let path = state.archive(&clip_engine::digest_of(&resolved.manifest_digest));
        if !path.exists() {
            eprintln!("Indexing {} (once; the archive is kept)", self.source);
            let progress = Arc::new(Shown::new(verbose));
            let indexed = runtime.block_on(index_image(
                &client,
                &source,
                &IndexOptions::default(),
                progress,
            ))?;
            StateDir::write(&path, &indexed.archive).map_err(|error| {
                Failure::local(format!("cannot write {}: {error}", path.display()))
            })?;
        }
        Ok(path)
    }
}
