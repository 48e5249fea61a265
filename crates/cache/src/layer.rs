//! [`SpanCache`] and [`LayerReader`]: who holds which file, and the read path.

use crate::{
    access::{Access, Observer},
    admission::{Admission, Class},
    fetch::FillError,
    flights::{Flight, Flights},
    housekeeper::{Housekeeper, OncePerMinute},
    landing::{self, Landed},
    layer_files::LayerFiles,
    limits::CacheLimits,
    long_files::LongFiles,
    memory_spans::MemorySpans,
    states,
    stats::{CacheStats, Counters},
    whole::WholeBlobs,
    word::{self, SpanState, Word},
};
use clip_archive::{Digest, SeekTable, Window};
use clip_registry::BlobSource;
use std::{
    collections::HashMap,
    io,
    iter::Peekable,
    ops::Range,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
    vec,
};
use tokio::runtime::Handle;

/// After the registry client has given up (1.4 s when connections are refused), a read waits so
/// long before it asks again, and then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// A registry that comes back is noticed within this time.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The pause before a span is fetched once more that was there and gone twice.
const GONE_AGAIN: Duration = Duration::from_millis(50);
/// Content with a wrong digest is fetched so often before a read fails: a broken cache between us and the registry may be
/// passed by the next time, an archive that does not fit never will.
const WRONG_CONTENT_TRIES: u32 = 3;

/// How often a layer that could not be opened on its disk is tried again.
const OPEN_AGAIN: Duration = Duration::from_secs(10);
/// Spans that are looked at, read and looked at again in one go. A read is 1 MiB at most, and spans are seldom smaller
/// than 128 KiB.
const SPANS_AT_ONCE: usize = 8;

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
    pub(crate) runtime: Handle,
}

/// A layer's files, shared by all its readers in this process.
pub struct LayerStore {
    pub section_digest: Digest,
    pub blob_digest: Digest,
    pub table: SeekTable,
    /// Position of each span in the tar.
    pub starts: Vec<u64>,
    pub dir: PathBuf,
    files: OnceLock<LayerFiles>,
    /// When the files were last tried to be opened, if they could not be.
    tried: Mutex<Instant>,
    pub load_windows: Windows,
    pub windows: OnceLock<Vec<Window>>,
    pub flights: Flights,
    pub whole: WholeBlobs,
    pub counters: Arc<Counters>,
    pub memory: Arc<MemorySpans>,
    pub housekeeper: Arc<Housekeeper>,
    pub disk_complaints: OncePerMinute,
    pub damage_complaints: OncePerMinute,
}

/// Why a read failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The bytes could not be fetched.
    #[error(transparent)]
    Fill(#[from] Arc<FillError>),
    /// Nobody answered in time.
    #[error("gave up after {:.0} s: the registry does not answer", .0.as_secs_f64())]
    Timeout(Duration),
    /// What was fetched was evicted again before it could be read, until the time was up.
    #[error(
        "gave up after {:.0} s: the cache has no room for what is read at once; give it more (--cache-max, --cache-min-free)",
        .0.as_secs_f64()
    )]
    Thrashing(Duration),
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
        let next_start = |at: &mut u64, len: u64| Some(std::mem::replace(at, *at + len));
        let starts = spec
            .table
            .spans
            .iter()
            .map(|span| span.tar_len)
            .scan(0, next_start)
            .collect();
        let store = Arc::new(LayerStore {
            section_digest: spec.section_digest,
            blob_digest: spec.blob_digest,
            table: spec.table,
            starts,
            dir: self.dir.join("layers").join(spec.section_digest.hex()),
            files: OnceLock::new(),
            tried: Mutex::new(Instant::now()),
            load_windows: spec.windows,
            windows: OnceLock::new(),
            flights: Flights::default(),
            whole: WholeBlobs::default(),
            counters: self.counters.clone(),
            memory: self.memory.clone(),
            housekeeper: self.housekeeper.clone(),
            disk_complaints: OncePerMinute::default(),
            damage_complaints: OncePerMinute::default(),
        });
        store.open_files()?;
        layers.retain(|_, store| store.strong_count() > 0);
        layers.insert(spec.section_digest, Arc::downgrade(&store));
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
    /// answer is asked again until `deadline`. The range must lie inside the layer.
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
        let read = self.read_missing(offset, buf, deadline).await;
        if read.is_err() {
            Counters::add(&self.store.counters.reads_failed, 1);
        }
        read
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

    /// Waits until a span has landed. After a failure that may go away it pauses, and says nothing; the caller then asks
    /// again.
    async fn wait_for(&mut self, flight: Flight) -> Result<Option<Landed>, ReadError> {
        match tokio::time::timeout_at(self.deadline.into(), flight.landed()).await {
            Ok(Ok(landed)) => Ok(Some(landed)),
            Ok(Err(error)) => self.pause_after(error).await.map(|()| None),
            Err(_) => Err(self.timeout()),
        }
    }

    /// After a span that had landed could not be read: that may not go on past the deadline either.
    async fn pause_after_loss(&mut self) -> Result<(), ReadError> {
        if Instant::now() + GONE_AGAIN >= self.deadline {
            return Err(ReadError::Thrashing(self.started.elapsed()));
        }
        tokio::time::sleep(GONE_AGAIN).await;
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
    /// The files, unless the disk refuses them.
    pub fn files(&self) -> Option<&LayerFiles> {
        self.files.get()
    }

    /// The files; tries again to open them if it was some time ago that the disk refused.
    pub fn files_now(&self) -> Option<&LayerFiles> {
        if self.files.get().is_none() {
            let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
            if tried.elapsed() > OPEN_AGAIN {
                *tried = Instant::now();
                // Whoever stores a span then says why it cannot.
                let _ = self.open_files();
            }
        }
        self.files.get()
    }

    /// A disk that is full or read-only is no error: the layer is served from memory.
    fn open_files(&self) -> io::Result<()> {
        let ends: Vec<u64> = self
            .starts
            .iter()
            .zip(&self.table.spans)
            .map(|(start, span)| start + span.tar_len)
            .collect();
        let opened = LayerFiles::open(&self.dir, &ends).or_else(|error| match error.kind() {
            io::ErrorKind::StorageFull => {
                self.housekeeper.make_room();
                LayerFiles::open(&self.dir, &ends)
            }
            _ => Err(error),
        });
        match opened {
            Ok(files) => {
                // Set already: another thread was quicker, and these are closed again.
                let _ = self.files.set(files);
                Ok(())
            }
            Err(error) if landing::refuses_writes(&error) => {
                tracing::warn!(%error, dir = %self.dir.display(), "cannot open the cache of a layer: serving it from memory");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// What the disk has of a span.
    pub fn state(&self, span: usize) -> SpanState {
        self.files()
            .map_or(SpanState::Absent, |files| files.states.look(span).state())
    }

    /// Whether a span cannot be read from the disk at once.
    pub fn is_missing(&self, span: usize) -> bool {
        self.state(span) != SpanState::Present
    }

    /// Reads from `spans`, which hold the bytes, if every byte is on the disk.
    fn read_present(&self, spans: &Range<usize>, offset: u64, buf: &mut [u8]) -> bool {
        let Some(files) = self.files() else {
            return buf.is_empty();
        };
        let len = buf.len();
        let now = states::now();
        for first in spans.clone().step_by(SPANS_AT_ONCE) {
            let group = first..spans.end.min(first + SPANS_AT_ONCE);
            let start = self.part_of(first, offset, len).1.start;
            let end = self.part_of(group.end - 1, offset, len).1.end;
            let part = &mut buf[start..end];
            if !self.read_group(files, group, offset + start as u64, part, now) {
                return false;
            }
        }
        true
    }

    /// See `word`: the bytes were there if all words are the same before and after.
    fn read_group(
        &self,
        files: &LayerFiles,
        spans: Range<usize>,
        offset: u64,
        part: &mut [u8],
        now: u32,
    ) -> bool {
        let states = &files.states;
        let mut seen = [Word::from_bits(0); SPANS_AT_ONCE];
        for (seen, span) in seen.iter_mut().zip(spans.clone()) {
            *seen = states.look(span);
            if !seen.is_present() {
                return false;
            }
        }
        if let Err(error) = files.data.read_exact_at(part, offset) {
            // What the file held can be had again. If somebody cut it, everything behind the cut is gone, also once a
            // write has made it long again.
            let lost = match error.kind() {
                io::ErrorKind::UnexpectedEof => 0..self.starts.len(),
                _ => spans,
            };
            lost.for_each(|span| landing::forget(self, files, span));
            return false;
        }
        seen.iter().zip(spans).all(|(&seen, span)| {
            states.touch(span, now);
            word::is_unchanged(states.cell(span), seen)
        })
    }

    /// Of a read of `len` bytes at `offset`: where in `span` its part of that begins, and which part it is.
    fn part_of(&self, span: usize, offset: u64, len: usize) -> (u64, Range<usize>) {
        let (start, end) = (self.starts[span], offset + len as u64);
        let from = start.max(offset);
        let to = (start + self.table.spans[span].tar_len).min(end);
        (
            from - start,
            (from - offset) as usize..(to - offset) as usize,
        )
    }

    fn share_used(&self) {
        if let Some(files) = self.files()
            && let Err(error) = files.states.share_used()
        {
            tracing::debug!(%error, dir = %self.dir.display(), "cannot say what was used last");
        }
    }

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

impl Drop for LayerStore {
    fn drop(&mut self) {
        self.share_used();
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
