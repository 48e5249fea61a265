//! [`SpanCache`] and [`LayerReader`]: who holds which file, and the read path.

use crate::{
    fetch::{self, FillError, Flight},
    states::{DataFile, SpanState, SpanStates},
    stats::{CacheStats, Counters},
    touches::{LayerTouches, Touches},
};
use clip_archive::{Digest, SeekTable, Window};
use clip_registry::BlobSource;
use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::runtime::Handle;

/// After the registry client has given up (1.4 s when connections are refused), a read waits so
/// long before it asks again, and then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// A registry that comes back is noticed within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Loads a layer's windows when the first span that needs one is decoded.
pub type Windows = Box<dyn Fn() -> Result<Vec<Window>, String> + Send + Sync>;

/// One directory of cached layers, as seen by this process.
#[derive(Debug)]
pub struct SpanCache {
    dir: PathBuf,
    runtime: Handle,
    layers: Mutex<HashMap<Digest, Weak<LayerStore>>>,
    next_source: AtomicU64,
    counters: Arc<Counters>,
}

/// What the cache must know of a layer.
pub struct LayerSpec {
    /// Identity of the layer's section in the archive.
    pub section_digest: Digest,
    /// Digest of the blob in the registry.
    pub blob_digest: Digest,
    /// The spans.
    pub table: SeekTable,
    /// The windows, when needed.
    pub windows: Windows,
}

/// A layer as one image reads it: the shared store, and where this image fetches from.
#[derive(Debug, Clone)]
pub struct LayerReader {
    pub(crate) store: Arc<LayerStore>,
    pub(crate) source: BlobSource,
    pub(crate) source_id: u64,
    pub(crate) runtime: Handle,
    touches: Option<Arc<LayerTouches>>,
}

/// A layer's files, shared by all its readers in this process.
pub(crate) struct LayerStore {
    pub blob_digest: Digest,
    pub table: SeekTable,
    /// Position of each span in the tar.
    pub starts: Vec<u64>,
    pub dir: PathBuf,
    pub data: File,
    pub states: SpanStates,
    pub load_windows: Windows,
    pub windows: OnceLock<Vec<Window>>,
    /// Fetches under way, by source and span: readers with other credentials do not share a failure.
    pub flights: Mutex<HashMap<(u64, usize), Flight>>,
    pub counters: Arc<Counters>,
}

/// Why a read failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The bytes could not be fetched.
    #[error(transparent)]
    Fill(#[from] Arc<FillError>),
    /// The cache's own files cannot be read.
    #[error("cannot read the cached layer: {0}")]
    Io(Arc<io::Error>),
    /// Nobody answered in time.
    #[error("gave up after {:.0} s: the registry does not answer", .0.as_secs_f64())]
    Timeout(Duration),
}

impl SpanCache {
    /// The cache in `dir`, which is created. Fetches run on `runtime`.
    pub fn open(dir: impl Into<PathBuf>, runtime: Handle) -> io::Result<Self> {
        let dir = dir.into();
        std::fs::create_dir_all(dir.join("layers"))?;
        Ok(Self {
            dir,
            runtime,
            layers: Mutex::default(),
            next_source: AtomicU64::new(0),
            counters: Arc::default(),
        })
    }

    /// A reader of the layer described by `spec` that fetches what is missing from `source`.
    pub fn layer(&self, spec: LayerSpec, source: BlobSource) -> io::Result<LayerReader> {
        let source_id = self.next_source.fetch_add(1, Ordering::Relaxed);
        let store = self.store(spec)?;
        Ok(LayerReader {
            store,
            source,
            source_id,
            runtime: self.runtime.clone(),
            touches: None,
        })
    }

    /// What this process did so far.
    pub fn stats(&self) -> CacheStats {
        self.counters.snapshot()
    }

    fn store(&self, spec: LayerSpec) -> io::Result<Arc<LayerStore>> {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = layers.get(&spec.section_digest).and_then(Weak::upgrade) {
            return Ok(store);
        }
        let dir = self.dir.join("layers").join(spec.section_digest.hex());
        std::fs::create_dir_all(&dir)?;
        let data = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("data"))?;
        let found = data.metadata()?;
        let whole = found.len() == spec.table.tar_size;
        if !whole {
            data.set_len(spec.table.tar_size)?;
        }
        let file = DataFile {
            inode: found.ino(),
            whole,
        };
        let states = SpanStates::open(&dir.join("states"), spec.table.spans.len(), file)?;
        let next_start = |at: &mut u64, len: u64| Some(std::mem::replace(at, *at + len));
        let starts = spec
            .table
            .spans
            .iter()
            .map(|span| span.tar_len)
            .scan(0, next_start)
            .collect();
        let store = Arc::new(LayerStore {
            blob_digest: spec.blob_digest,
            table: spec.table,
            starts,
            dir,
            data,
            states,
            load_windows: spec.windows,
            windows: OnceLock::new(),
            flights: Mutex::default(),
            counters: self.counters.clone(),
        });
        layers.retain(|_, store| store.strong_count() > 0);
        layers.insert(spec.section_digest, Arc::downgrade(&store));
        Ok(store)
    }
}

impl LayerReader {
    /// The same reader, whose first reads of each span are recorded in `touches` as those of `layer`.
    pub fn recorded(mut self, touches: &Arc<Touches>, layer: u16) -> Self {
        let spans = self.store.table.spans.len();
        self.touches = Some(Arc::new(LayerTouches::new(touches.clone(), layer, spans)));
        self
    }

    /// Size of the uncompressed layer in bytes.
    pub fn size(&self) -> u64 {
        self.store.table.tar_size
    }

    /// Reads `buf.len()` bytes at `offset` if every byte is here; false when something must be
    /// fetched first. Never waits for a network. The range must lie inside the layer.
    pub fn read_cached(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        let mut spans = self.store.spans_of(offset, buf.len());
        if let Some(touches) = &self.touches {
            touches.note(spans.clone());
        }
        if !spans.all(|span| self.store.states.get(span) == SpanState::Present) {
            return Ok(false);
        }
        self.store.data.read_exact_at(buf, offset)?;
        Counters::add(&self.store.counters.hits, 1);
        Ok(true)
    }

    /// Reads `buf.len()` bytes at `offset`, fetching what is missing; a registry that does not
    /// answer is asked again until `deadline`. The range must lie inside the layer.
    pub async fn read(
        &self,
        offset: u64,
        buf: &mut [u8],
        deadline: Instant,
    ) -> Result<(), ReadError> {
        let io_error = |error| ReadError::Io(Arc::new(error));
        if self.read_cached(offset, buf).map_err(io_error)? {
            return Ok(());
        }
        Counters::add(&self.store.counters.misses, 1);
        let missing = self
            .store
            .spans_of(offset, buf.len())
            .filter(|&span| self.store.states.get(span) != SpanState::Present);
        let flights: Vec<(usize, Flight)> = missing
            .map(|span| (span, fetch::join(self, span)))
            .collect();
        for (span, flight) in flights {
            self.wait_for(span, flight, deadline).await?;
        }
        self.store.data.read_exact_at(buf, offset).map_err(io_error)
    }

    async fn wait_for(
        &self,
        span: usize,
        mut flight: Flight,
        deadline: Instant,
    ) -> Result<(), ReadError> {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let landed = tokio::time::timeout_at(deadline.into(), flight).await;
            let error = match landed.map_err(|_| ReadError::Timeout(started.elapsed()))? {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !error.may_go_away() || Instant::now() + pause >= deadline {
                return Err(error.into());
            }
            if pause == FIRST_PAUSE {
                let left = deadline.saturating_duration_since(Instant::now()).as_secs();
                tracing::warn!(%error, "a read waits; trying again for up to {left} s");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            flight = fetch::join(self, span);
        }
    }
}

impl LayerStore {
    /// The spans that hold `len` bytes at `offset`.
    fn spans_of(&self, offset: u64, len: usize) -> std::ops::Range<usize> {
        if len == 0 {
            return 0..0;
        }
        let first = self.starts.partition_point(|&start| start <= offset) - 1;
        let last = self
            .starts
            .partition_point(|&start| start < offset + len as u64);
        first..last
    }
}

impl std::fmt::Debug for LayerStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerStore")
            .field("blob_digest", &self.blob_digest)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for LayerSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerSpec")
            .field("section_digest", &self.section_digest)
            .finish_non_exhaustive()
    }
}
