//! [`SpanCache`] and [`LayerReader`]: who holds which file, and the read path.

use crate::{
    access::{Access, Observer},
    admission::{Admission, Class},
    fetch::FillError,
    flights::{Flight, Flights},
    states::{DataFile, SpanState, SpanStates},
    stats::{CacheStats, Counters},
    whole::WholeBlobs,
};
use clip_archive::{Digest, SeekTable, Window};
use clip_registry::BlobSource;
use std::{
    collections::HashMap,
    fs::File,
    io,
    ops::Range,
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
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Content with a wrong digest is fetched so often before a read fails: a broken cache between us and the registry may be
/// passed by the next time, an archive that does not fit never will.
const WRONG_CONTENT_TRIES: u32 = 3;

/// Loads a layer's windows when the first span that needs one is decoded.
pub type Windows = Box<dyn Fn() -> Result<Vec<Window>, String> + Send + Sync>;

/// One directory of cached layers, as seen by this process.
#[derive(Debug)]
pub struct SpanCache {
    dir: PathBuf,
    runtime: Handle,
    layers: Mutex<HashMap<Digest, Weak<LayerStore>>>,
    next_source: AtomicU64,
    admission: Arc<Admission>,
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
    /// The lane of [`Admission`] in which this reader's requests travel.
    pub(crate) registry: Arc<str>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) access: Arc<Access>,
    pub(crate) runtime: Handle,
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
    pub flights: Flights,
    pub whole: WholeBlobs,
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
            admission: Arc::default(),
            counters: Arc::default(),
        })
    }

    /// A reader of the layer described by `spec` that fetches what is missing from `source`.
    pub fn layer(&self, spec: LayerSpec, source: BlobSource) -> io::Result<LayerReader> {
        let source_id = self.next_source.fetch_add(1, Ordering::Relaxed);
        let store = self.store(spec)?;
        let (registry, _) = source.location();
        Ok(LayerReader {
            access: Arc::new(Access::new(store.table.spans.len())),
            store,
            source,
            source_id,
            registry: registry.into(),
            admission: self.admission.clone(),
            runtime: self.runtime.clone(),
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
            flights: Flights::default(),
            whole: WholeBlobs::default(),
            counters: self.counters.clone(),
        });
        layers.retain(|_, store| store.strong_count() > 0);
        layers.insert(spec.section_digest, Arc::downgrade(&store));
        Ok(store)
    }
}

impl LayerReader {
    /// Size of the uncompressed layer in bytes.
    pub fn size(&self) -> u64 {
        self.store.table.tar_size
    }

    /// Reads `buf.len()` bytes at `offset` if every byte is here; false when something must be
    /// fetched first. Never waits for a network. The range must lie inside the layer.
    pub fn read_cached(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        let spans = self.store.spans_of(offset, buf.len());
        if !self.copy(&spans, offset, buf)? {
            return Ok(false);
        }
        if self.access.is_news(&spans) {
            self.touch(&spans);
        }
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
        if self.read_cached(offset, buf).map_err(io_error)? {
            return Ok(());
        }
        Counters::add(&self.store.counters.misses, 1);
        let spans = self.store.spans_of(offset, buf.len());
        let mut patience = Patience::until(deadline);
        let mut is_first = true;
        loop {
            let flights = self.join(spans.clone(), Class::Demand);
            if std::mem::take(&mut is_first) {
                // Behind the demand, so that it goes first.
                self.touch(&spans);
            }
            patience.wait_for(flights).await?;
            // What is there may have been evicted before it was read.
            if self.copy(&spans, offset, buf).map_err(io_error)? {
                return Ok(());
            }
        }
    }

    /// Tells `observer` each span that this reader touches first from now on; what was touched before counts as
    /// untouched. Costs nothing where nobody observes.
    pub fn observe_first_touches(&self, observer: Option<Observer>) {
        self.access.observe(observer);
    }

    /// Compressed bytes of a span.
    pub fn span_bytes(&self, span: usize) -> u64 {
        self.store.table.spans[span].blob_len
    }

    /// How many spans the layer has.
    pub fn span_count(&self) -> usize {
        self.store.table.spans.len()
    }

    /// The blob's digest as the registry knows it.
    pub(crate) fn blob(&self) -> clip_registry::Digest {
        clip_registry::Digest::from_sha256(*self.store.blob_digest.as_bytes())
    }

    /// Copies the bytes at `offset` to `buf`, if `spans`, which hold them, are all there.
    fn copy(&self, spans: &Range<usize>, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        let is_there = |span| self.store.states.get(span) == SpanState::Present;
        if !spans.clone().all(is_there) {
            return Ok(false);
        }
        self.store.data.read_exact_at(buf, offset)?;
        Ok(true)
    }

    /// Notes that `spans` are read, and fetches ahead what will probably come next.
    fn touch(&self, spans: &Range<usize>) {
        let (store, counters) = (&self.store, &self.store.counters);
        if let Some(ahead) = self.access.touch(&store.table, spans, counters) {
            // Nobody waits for these.
            drop(self.join(ahead, Class::ReadAhead));
        }
    }
}

fn io_error(error: io::Error) -> ReadError {
    ReadError::Io(Arc::new(error))
}

/// How long and how often a read tries.
#[derive(Debug)]
struct Patience {
    deadline: Instant,
    started: Instant,
    pause: Duration,
    wrong_content: u32,
    /// Why the last try failed.
    cause: Option<Arc<FillError>>,
}

impl Patience {
    fn until(deadline: Instant) -> Self {
        Self {
            deadline,
            started: Instant::now(),
            pause: FIRST_PAUSE,
            wrong_content: 0,
            cause: None,
        }
    }

    /// Waits until all have landed. After a failure that may go away it pauses; the caller then asks again.
    async fn wait_for(&mut self, flights: Vec<Flight>) -> Result<(), ReadError> {
        for flight in flights {
            let landed = tokio::time::timeout_at(self.deadline.into(), flight.landed()).await;
            match landed {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return self.pause_after(error).await,
                Err(_) => return Err(self.timeout()),
            }
        }
        Ok(())
    }

    async fn pause_after(&mut self, error: Arc<FillError>) -> Result<(), ReadError> {
        self.wrong_content += u32::from(error.is_wrong_content());
        let is_bearable =
            error.may_go_away() || (1..WRONG_CONTENT_TRIES).contains(&self.wrong_content);
        if !is_bearable || Instant::now() + self.pause >= self.deadline {
            return Err(error.into());
        }
        if self.pause == FIRST_PAUSE {
            let left = self
                .deadline
                .saturating_duration_since(Instant::now())
                .as_secs();
            tracing::warn!(%error, "a read waits; trying again for up to {left} s");
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.cause = Some(error);
        Ok(())
    }

    /// The time is up. The last cause says more than that.
    fn timeout(&mut self) -> ReadError {
        match self.cause.take() {
            Some(cause) => ReadError::Fill(cause),
            None => ReadError::Timeout(self.started.elapsed()),
        }
    }
}

impl LayerStore {
    /// The spans that hold `len` bytes at `offset`.
    fn spans_of(&self, offset: u64, len: usize) -> Range<usize> {
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
