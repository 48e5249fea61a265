//! [`Node::open_image`]: an archive goes in, a filesystem comes out.

use crate::state_dir::StateDir;
use clip_archive::{
    Archive, Digest, LayerRef, OpenError, StartProfile,
    erofs::{self, Image, ImageWriter},
    profile::Touch,
};
use clip_cache::{CacheLimits, CacheStats, LayerReader, LayerSpec, SpanCache};
use clip_fs::{ImageFs, ImageInfo, Layout, Mapped};
use clip_fuse::Connection;
use clip_registry::{
    BlobSource, Client, ClientError, ClientOptions, Credentials, FetchStats, ReferenceError,
};
use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::runtime::Handle;

/// What all images of a node share: the state directory with its cache, and how registries are
/// spoken to.
#[derive(Debug)]
pub struct Node {
    state: StateDir,
    cache: SpanCache,
    /// With the node's own credentials. Clients of images share its connections.
    client: Client,
    read_timeout: Duration,
    runtime: Handle,
}

/// How a node works.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Where trees and the span cache live.
    pub state_dir: PathBuf,
    /// How much of the disk the span cache may take.
    pub cache: CacheLimits,
    /// How registries are spoken to.
    pub client: ClientOptions,
    /// How long a read may wait for a registry before it fails with EIO.
    pub read_timeout: Duration,
}

/// An image that was opened, and the counters of what it fetches.
#[derive(Debug, Clone)]
pub struct OpenedImage {
    /// The filesystem.
    pub fs: Arc<ImageFs>,
    /// Where its content comes from.
    pub source: BlobSource,
    /// The expanded tree, a file.
    pub tree: PathBuf,
    /// The image configuration, as the archive holds it; empty for an artifact without one.
    pub config: Arc<[u8]>,
    /// Digests of the layers' sections, base first.
    pub(crate) sections: Arc<[Digest]>,
    /// What a profile that is being recorded has so far.
    touches: Arc<Mutex<Vec<Touch>>>,
}

/// Why an image cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenImageError {
    /// The archive cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The archive is not usable.
    #[error("{path}: {source}")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: Box<OpenError>,
    },
    /// The tree cannot be written as EROFS.
    #[error("{path}: {source}")]
    Tree {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: erofs::WriteError,
    },
    /// The expanded tree is damaged.
    #[error("{path} is damaged ({source}) and could not be made again")]
    Expanded {
        /// The expanded tree.
        path: PathBuf,
        /// Why.
        source: erofs::ReadError,
    },
    /// The state directory cannot be used.
    #[error("cannot use the state directory {path}: {source}; name another with --state-dir")]
    State {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The registry client cannot be built.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The archive names a registry or repository that is not one.
    #[error("the archive names an impossible place for its layers: {0}")]
    Location(#[from] ReferenceError),
}

impl Node {
    /// A node with its state in `options.state_dir`. Network work is done on `runtime`.
    pub fn new(options: NodeOptions, runtime: Handle) -> Result<Self, OpenImageError> {
        let state_error = |source| OpenImageError::State {
            path: options.state_dir.clone(),
            source,
        };
        let state = StateDir::open(&options.state_dir).map_err(state_error)?;
        let cache = SpanCache::open(&options.state_dir, options.cache, runtime.clone())
            .map_err(state_error)?;
        Ok(Self {
            state,
            cache,
            client: Client::new(options.client)?,
            read_timeout: options.read_timeout,
            runtime,
        })
    }

    /// Opens the archive at `path`. `credentials`, when given, take the place of the node's own for
    /// this image. Blocks on the disk, never on a network.
    pub fn open_image(
        &self,
        path: &Path,
        credentials: Option<Credentials>,
    ) -> Result<OpenedImage, OpenImageError> {
        let bytes = std::fs::read(path).map_err(|source| OpenImageError::Read {
            path: path.to_owned(),
            source,
        })?;
        self.open_archive(path, bytes, credentials)
    }

    /// The same for an archive whose bytes were read already; errors call it `path`.
    pub fn open_archive(
        &self,
        path: &Path,
        bytes: Vec<u8>,
        credentials: Option<Credentials>,
    ) -> Result<OpenedImage, OpenImageError> {
        let archive = Archive::open(bytes).map_err(|source| OpenImageError::Archive {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let archive = Arc::new(archive);
        let tree = self.expand(path, &archive)?;
        let source = self.source_of(&archive, credentials)?;
        let layers = self.layers_of(path, &archive, &source)?;
        let head = archive.head();
        let info = ImageInfo {
            name: head.image_name(),
            unpacked_bytes: head.layers.iter().map(|layer| layer.tar_size).sum(),
        };
        let fs = Arc::new(ImageFs::new(tree, layers, info, self.read_timeout));
        let sections = head.layers.iter().map(LayerRef::section_digest).collect();
        Ok(OpenedImage {
            fs,
            source,
            tree: self.state.tree(&head.tree_digest()),
            config: head.config.as_slice().into(),
            sections,
            touches: Arc::default(),
        })
    }

    /// An opened image on a FUSE connection, ready to be served.
    pub fn connect(
        &self,
        image: Arc<ImageFs>,
        connection: OwnedFd,
        layout: Layout,
    ) -> io::Result<Connection> {
        clip_fs::begin(image, connection, layout, self.runtime.clone())
    }

    /// An opened image on a connection whose server is gone; see [`clip_fs::resume`].
    pub fn resume(
        &self,
        image: Arc<ImageFs>,
        connection: OwnedFd,
        layout: Layout,
    ) -> io::Result<Connection> {
        clip_fs::resume(image, connection, layout, self.runtime.clone())
    }

    /// What the cache did in this process so far.
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// The merged tree as EROFS: made once per archive and node, then mapped.
    fn expand(
        &self,
        archive_path: &Path,
        archive: &Archive,
    ) -> Result<Image<Mapped>, OpenImageError> {
        let path = self.state.tree(&archive.head().tree_digest());
        if let Ok(image) = open_tree(&path) {
            return Ok(image);
        }
        let archive_error = |source| OpenImageError::Archive {
            path: archive_path.to_owned(),
            source: Box::new(source),
        };
        let tree = archive.merge().map_err(archive_error)?;
        let writer = ImageWriter::new(&tree).map_err(|source| OpenImageError::Tree {
            path: archive_path.to_owned(),
            source,
        })?;
        let kept = self.keep_tree(&path, &writer);
        kept.map_err(|source| OpenImageError::State {
            path: path.clone(),
            source,
        })?;
        open_written(&path).map_err(|error| match error {
            TreeFileError::Io(source) => OpenImageError::State { path, source },
            TreeFileError::Format(source) => OpenImageError::Expanded { path, source },
        })
    }

    /// Writes an expanded tree. It need not have reached the disk: whoever opens it checks every byte.
    fn keep_tree(&self, path: &Path, tree: &ImageWriter<'_>) -> io::Result<()> {
        let content = |file: &File| tree.write_at(|at, bytes| file.write_all_at(bytes, at));
        match StateDir::write_unsynced(path, content) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                self.cache.make_room();
                StateDir::write_unsynced(path, content)
            }
            written => written,
        }
    }

    fn source_of(
        &self,
        archive: &Archive,
        credentials: Option<Credentials>,
    ) -> Result<BlobSource, OpenImageError> {
        let client = match credentials {
            Some(credentials) => self.client.with_credentials(&credentials)?,
            None => self.client.clone(),
        };
        let head = archive.head();
        Ok(BlobSource::open_image(
            &client,
            &head.registry,
            &head.repository,
            clip_registry::Digest::from_sha256(*head.manifest_digest.as_bytes()),
        )?)
    }

    fn layers_of(
        &self,
        path: &Path,
        archive: &Arc<Archive>,
        source: &BlobSource,
    ) -> Result<Vec<LayerReader>, OpenImageError> {
        let open_layer = |(index, layer): (usize, &LayerRef)| {
            let table = archive
                .seek_table(index)
                .map_err(|source| OpenImageError::Archive {
                    path: path.to_owned(),
                    source: Box::new(source),
                })?;
            let archive = archive.clone();
            let spec = LayerSpec {
                section_digest: layer.section_digest(),
                blob_digest: layer.digest,
                table,
                windows: Box::new(move || {
                    archive.windows(index).map_err(|error| error.to_string())
                }),
            };
            let state_error = |source| OpenImageError::State {
                path: self.state.path().to_owned(),
                source,
            };
            self.cache.layer(spec, source.clone()).map_err(state_error)
        };
        archive
            .head()
            .layers
            .iter()
            .enumerate()
            .map(open_layer)
            .collect()
    }
}

impl OpenedImage {
    /// The UUID of the expanded tree, which follows from all of its bytes: a server may go on with the connection of
    /// another only if both have the same, because the kernel knows that one's node numbers.
    pub fn tree_id(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.fs.tree().uuid()))
    }

    /// Reads with these credentials from the next fetch on, in all layers and without disturbing anybody who reads.
    /// Reads under way end with those they began with.
    pub fn renew_credentials(&self, credentials: &Credentials) -> Result<(), OpenImageError> {
        Ok(self.source.renew_credentials(credentials)?)
    }

    /// Says that credentials are still to come: until then reads that the registry refuses wait, at most the read
    /// timeout, instead of failing at once.
    pub fn expect_credentials(&self) {
        self.source.expect_credentials();
    }

    /// Records from now on which spans are read first, in the cache or not.
    pub fn begin_profile(&self) {
        for (layer, section) in self.fs.layers().iter().zip(self.sections.iter().copied()) {
            let touches = self.touches.clone();
            layer.observe_first_touches(Some(Box::new(move |span| {
                let touch = Touch {
                    section,
                    span: span as u32,
                };
                lock(&touches).push(touch);
            })));
        }
    }

    /// What was read since [`begin_profile`](Self::begin_profile). Nothing more is recorded.
    pub fn end_profile(&self) -> StartProfile {
        for layer in self.fs.layers() {
            layer.observe_first_touches(None);
        }
        StartProfile::new(std::mem::take(&mut *lock(&self.touches)))
    }

    /// Requests and compressed bytes that this image caused so far.
    pub fn fetched(&self) -> FetchStats {
        self.source.stats()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

enum TreeFileError {
    Io(io::Error),
    Format(erofs::ReadError),
}

/// Maps a tree and checks every byte of it: a few GB a second, once per mount. What that brought into memory goes again:
/// little of a tree is looked at afterwards, with engine erofs nothing.
fn open_tree(path: &Path) -> Result<Image<Mapped>, TreeFileError> {
    let file = File::open(path).map_err(TreeFileError::Io)?;
    let checked = image_of(Mapped::whole(&file))
        .and_then(|whole| whole.verify().map_err(TreeFileError::Format));
    checked.and_then(|()| image_of(Mapped::new(&file)))
}

/// Maps a tree that this process has just written.
fn open_written(path: &Path) -> Result<Image<Mapped>, TreeFileError> {
    image_of(File::open(path).and_then(|file| Mapped::new(&file)))
}

fn image_of(mapped: io::Result<Mapped>) -> Result<Image<Mapped>, TreeFileError> {
    Image::open(mapped.map_err(TreeFileError::Io)?).map_err(TreeFileError::Format)
}
