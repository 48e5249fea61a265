//! [`SpanCache`] and [`LayerReader`]: who has which layer open, and the read path.

use crate::{
    access::{Access, Observer, Watcher},
    admission::{Admission, Class},
    fetch::FillError,
    flights::Flight,
    given_up::GivenUp,
    housekeeper::Housekeeper,
    landing::Landed,
    layer_store::LayerStore,
    limits::CacheLimits,
    long_files::{LongFiles, WHOLE_MAX},
    memory_spans::MemorySpans,
    patience::{Patience, ReadError},
    stats::{CacheStats, Counters},
};
use clip_archive::{Digest, SeekTable, Window};
use clip_registry::{BlobSource, FetchError};
use std::{
    collections::HashMap,
    io,
    iter::Peekable,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
    vec,
};
use tokio::runtime::Handle;

/// Loads a layer's windows when the first span that needs one is decoded.
pub type Windows = Box<dyn Fn() -> Result<Vec<Window>, String> + Send + Sync>;

/// One directory of cached layers, as seen by this process.
#[derive(Debug)]
pub struct SpanCache {
    dir: PathBuf,
    runtime: Handle,
    layers: Arc<Layers>,
    next_source: AtomicU64,
    admission: Arc<Admission>,
    counters: Arc<Counters>,
    memory: Arc<MemorySpans>,
    housekeeper: Arc<Housekeeper>,
}

/// The layers that this process has open.
#[derive(Debug, Default)]
pub struct Layers(Mutex<HashMap<Digest, Weak<LayerStore>>>);

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
    given_up: Arc<GivenUp>,
    pub(crate) runtime: Handle,
}

impl SpanCache {
    /// The cache in `dir`, which is created, kept within `limits` as long as anybody here uses it. Fetches run on
    /// `runtime`.
    pub fn open(dir: impl Into<PathBuf>, limits: CacheLimits, runtime: Handle) -> io::Result<Self> {
        let dir = dir.into();
        std::fs::create_dir_all(dir.join("layers"))?;
        let (layers, counters) = (Arc::<Layers>::default(), Arc::<Counters>::default());
        let housekeeper = Housekeeper::start(&dir, limits, counters.clone(), layers.clone())?;
        Ok(Self {
            dir,
            runtime,
            layers,
            next_source: AtomicU64::new(0),
            admission: Arc::default(),
            counters,
            memory: Arc::default(),
            housekeeper: Arc::new(housekeeper),
        })
    }

    /// A reader of the layer described by `spec` that fetches what is missing from `source`.
    pub fn layer(&self, spec: LayerSpec, source: BlobSource) -> io::Result<LayerReader> {
        let source_id = self.next_source.fetch_add(1, Ordering::Relaxed);
        let store = self.store(spec)?;
        let (registry, _) = source.location();
        Ok(LayerReader {
            access: Arc::new(Access::new(store.table.spans.len())),
            given_up: Arc::default(),
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

    /// Makes room on a disk that is full.
    pub fn make_room(&self) {
        self.housekeeper.make_room();
    }

    fn store(&self, spec: LayerSpec) -> io::Result<Arc<LayerStore>> {
        let mut layers = self.layers.lock();
        if let Some(store) = layers.get(&spec.section_digest).and_then(Weak::upgrade) {
            return Ok(store);
        }
        let section = spec.section_digest;
        let store = Arc::new(LayerStore::open(
            spec,
            self.dir.join("layers").join(section.hex()),
            self.counters.clone(),
            self.memory.clone(),
            self.housekeeper.clone(),
        )?);
        layers.retain(|_, store| store.strong_count() > 0);
        layers.insert(section, Arc::downgrade(&store));
        Ok(store)
    }
}

impl Layers {
    /// Lets other processes know which spans this one uses.
    pub fn share_used(&self) {
        let stores: Vec<_> = self.lock().values().filter_map(Weak::upgrade).collect();
        stores.iter().for_each(|store| store.share_used());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Weak<LayerStore>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LayerReader {
    /// Size of the uncompressed layer in bytes.
    pub fn size(&self) -> u64 {
        self.store.table.tar_size
    }

    /// Reads `buf.len()` bytes at `offset` if every byte is here; false when something must be
    /// fetched first. Never waits for a network. The range must lie inside the layer.
    pub fn read_cached(&self, offset: u64, buf: &mut [u8]) -> bool {
        let spans = self.store.spans_of(offset, buf.len());
        let found = self.store.read_present(&spans, offset, buf);
        if found {
            if self.access.is_news(&spans) {
                self.touch(&spans, offset, buf.len());
            }
            Counters::add(&self.store.counters.hits, 1);
        }
        found
    }

    /// Reads `buf.len()` bytes at `offset`, fetching what is missing; a registry that does not
    /// answer is asked again until `deadline`, but not again for a read that repeats one which has failed so (see
    /// `given_up.rs`). The range must lie inside the layer.
    pub async fn read(
        &self,
        offset: u64,
        buf: &mut [u8],
        deadline: Instant,
    ) -> Result<(), ReadError> {
        if self.read_cached(offset, buf) {
            return Ok(());
        }
        Counters::add(&self.store.counters.misses, 1);
        let repeated = self.given_up.repeated(offset);
        let deadline = repeated
            .as_ref()
            .map_or(deadline, |repeated| deadline.min(repeated.deadline));
        let len = buf.len();
        let read = self.read_missing(offset, buf, deadline).await;
        let Err(error) = read else {
            self.given_up.forget();
            return Ok(());
        };
        Counters::add(&self.store.counters.reads_failed, 1);
        match repeated {
            Some(repeated) if error.is_late() => {
                self.given_up.note_again(offset);
                return Err(repeated.error);
            }
            None if error.is_late() => self.given_up.note(offset, len, &error),
            _ => {}
        }
        Err(error)
    }

    /// The same when something must be fetched.
    async fn read_missing(
        &self,
        offset: u64,
        buf: &mut [u8],
        deadline: Instant,
    ) -> Result<(), ReadError> {
        let spans = self.store.spans_of(offset, buf.len());
        let mut flights = self.board(spans.clone());
        // Behind the demand, so that it goes first.
        self.touch(&spans, offset, buf.len());
        let mut patience = Patience::until(deadline);
        let (mut span, mut gone) = (spans.start, 0);
        while span < spans.end {
            let (at, part) = self.store.part_of(span, offset, buf.len());
            if let Some(flight) = flights.next_if(|flight| flight.span == span) {
                match patience.wait_for(flight).await? {
                    Some(Landed::InMemory(bytes)) => {
                        buf[part.clone()].copy_from_slice(&bytes[at as usize..][..part.len()]);
                        span += 1;
                        continue;
                    }
                    Some(Landed::OnDisk) => {}
                    None => {
                        // What travelled with it has failed, too.
                        flights = self.board(span..spans.end);
                        continue;
                    }
                }
            }
            let start = self.store.starts[span] + at;
            if self
                .store
                .read_present(&(span..span + 1), start, &mut buf[part])
            {
                (span, gone) = (span + 1, 0);
                continue;
            }
            // It was there, and was taken away before it was read. Again and again if the cache is far too small for all
            // that is read at once.
            gone += 1;
            if gone > 1 {
                patience.pause_after_loss().await?;
            }
            flights = self.board(span..spans.end);
        }
        Ok(())
    }

    /// The flights of those of `spans` that are not there, in order.
    fn board(&self, spans: Range<usize>) -> Peekable<vec::IntoIter<Flight>> {
        self.join(spans, Class::Demand).into_iter().peekable()
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

    /// Notes that `len` bytes at `offset`, which lie in `spans`, are read, and fetches ahead what will probably come next.
    fn touch(&self, spans: &Range<usize>, offset: u64, len: usize) {
        let store = &self.store;
        tracing::trace!(layer = %store.blob_digest, ?spans, "touched");
        if !self.access.touch(spans, &store.counters) {
            return;
        }
        let bytes = offset..offset + len as u64;
        let into_last = offset.saturating_sub(store.starts[spans.end - 1]);
        let is_missing = |span| store.is_missing(span);
        let ahead = (self.access).ahead(&store.table, spans, &bytes, into_last, is_missing);
        for spans in ahead {
            // Nobody waits for these.
            drop(self.join(spans, Class::ReadAhead));
        }
        self.access.tell_watcher(&bytes);
    }

    /// Whether nothing of the layer is here.
    pub fn is_untouched(&self) -> bool {
        (0..self.span_count()).all(|span| self.store.is_missing(span))
    }

    /// Asks for one byte of the layer's blob, see [`BlobSource::greet`], when read-ahead may ask for something.
    ///
    /// # Errors
    /// As a read's; nothing is tried again.
    pub async fn greet(&self) -> Result<(), FetchError> {
        let _ticket = (self.admission)
            .admit(&self.registry, Class::ReadAhead, 1)
            .await;
        self.source.greet(&self.blob()).await
    }

    /// Tells `watcher` which bytes are read, when some of them are touched first or waited for; the first watcher stays.
    /// Nothing is told of a layer of which a list says what is read next.
    pub fn watch(&self, watcher: Watcher) {
        self.access.watch(watcher);
    }

    /// Compressed bytes that must be fetched for these `bytes`, which lie in the layer, and are not on their way.
    pub fn missing_bytes(&self, bytes: &Range<u64>) -> u64 {
        let len = bytes.end - bytes.start;
        let spans = self.store.spans_of(bytes.start, len as usize);
        let missing = spans.filter(|&span| self.store.is_missing(span) && !self.is_under_way(span));
        missing.map(|span| self.span_bytes(span)).sum()
    }

    /// Fetches this `content` ahead if it is no more than a short file, as if the beginning of such a file were read, and if
    /// `may_fetch` so many compressed bytes.
    pub fn bring(&self, content: Range<u64>, may_fetch: impl FnOnce(u64) -> bool) {
        let len = content.end - content.start;
        let spans = self.store.spans_of(content.start, len as usize);
        let all: u64 = spans.clone().map(|span| self.span_bytes(span)).sum();
        if all <= WHOLE_MAX && may_fetch(self.missing_bytes(&content)) {
            drop(self.join(spans, Class::ReadAhead));
        }
    }

    /// Reads `buf.len()` bytes at `offset` for somebody who wants to know what will be read next: what is missing is
    /// fetched as read-ahead, tried once, and nothing counts as touched. False when the bytes are gone again. The range must
    /// lie inside the layer.
    ///
    /// # Errors
    /// When something could not be fetched.
    pub async fn peek(&self, offset: u64, buf: &mut [u8]) -> Result<bool, Arc<FillError>> {
        let spans = self.store.spans_of(offset, buf.len());
        for flight in self.join(spans.clone(), Class::ReadAhead) {
            flight.landed().await?;
        }
        Ok(self.store.read_present(&spans, offset, buf))
    }

    /// Says where the content of each file lies in the layer, so that the rest of a file is fetched when parts of it are
    /// read. Of the files only those are kept that lie in several spans.
    pub fn know_files(&self, contents: impl IntoIterator<Item = Range<u64>>) {
        let store = &self.store;
        let spans_of = |content: &Range<u64>| {
            let len = content.end - content.start;
            store.spans_of(content.start, len as usize)
        };
        let is_here = |content: &Range<u64>| !content.is_empty() && content.end <= self.size();
        let contents = contents.into_iter().filter(is_here);
        self.access.know(LongFiles::new(contents, spans_of));
    }

    /// Of the file that begins where `used` does, nothing more is wanted by who runs it: nothing behind is fetched ahead.
    /// Must lie inside the layer. Says nothing of files that are not known yet.
    pub fn shorten_file(&self, used: &Range<u64>) {
        let len = used.end - used.start;
        let spans = self.store.spans_of(used.start, len as usize);
        self.access.shorten(used, spans);
    }
}

impl std::fmt::Debug for LayerSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerSpec")
            .field("section_digest", &self.section_digest)
            .finish_non_exhaustive()
    }
}
