//! What one mount's readers do with a layer: first touches of spans, streams, and whether read-ahead was of use.

use crate::{
    long_files::{Known, LongFiles},
    read_ahead::Streams,
    stats::Counters,
};
use clip_archive::SeekTable;
use std::{
    ops::Range,
    sync::{
        Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

/// A reader touched it since it was opened or last observed.
const TOUCHED: u8 = 1;
/// It was fetched ahead and nobody touched it yet.
const AHEAD: u8 = 2;
/// It is on a list of what will be read, which also says what comes next, and nobody touched it yet.
const FORESEEN: u8 = 4;

/// Told the number of each span when a reader touches it first.
pub type Observer = Box<dyn Fn(usize) + Send + Sync>;

/// Told the bytes of each read that touches something first, or waits for it, and that no list foresaw.
pub type Watcher = Box<dyn Fn(&Range<u64>) + Send + Sync>;

/// See the module.
pub struct Access {
    flags: Vec<AtomicU8>,
    streams: Mutex<Streams>,
    files: OnceLock<Mutex<LongFiles>>,
    /// Whether a list says what is read of this layer. What it does not name of a file was not wanted by earlier readers.
    has_list: AtomicBool,
    observer: RwLock<Option<Observer>>,
    watcher: OnceLock<Watcher>,
}

impl Access {
    pub fn new(spans: usize) -> Self {
        Self {
            flags: std::iter::repeat_with(AtomicU8::default)
                .take(spans)
                .collect(),
            streams: Mutex::default(),
            files: OnceLock::new(),
            has_list: AtomicBool::new(false),
            observer: RwLock::default(),
            watcher: OnceLock::new(),
        }
    }

    /// Whether some of `spans` were not touched yet. All that a read of what is there and was read before costs.
    pub fn is_news(&self, spans: &Range<usize>) -> bool {
        let flags = &self.flags[spans.clone()];
        flags
            .iter()
            .any(|flags| flags.load(Ordering::Relaxed) & (TOUCHED | AHEAD) != TOUCHED)
    }

    /// A reader touches `spans`, and must wait for some of them or touches some for the first time. Whether nobody foresaw
    /// that: who did knows better what comes next.
    pub fn touch(&self, spans: &Range<usize>, counters: &Counters) -> bool {
        let mut all_foreseen = true;
        for span in spans.clone() {
            let flags = &self.flags[span];
            let before = flags.fetch_or(TOUCHED, Ordering::Relaxed);
            flags.fetch_and(!(AHEAD | FORESEEN), Ordering::Relaxed);
            all_foreseen &= before & FORESEEN != 0;
            if before & AHEAD != 0 {
                Counters::add(&counters.read_ahead_used, 1);
            }
            if before & TOUCHED == 0
                && let Some(observer) =
                    &*self.observer.read().unwrap_or_else(PoisonError::into_inner)
            {
                observer(span);
            }
        }
        !all_foreseen
    }

    /// What to fetch ahead for a reader of `bytes`, which lie in `spans`. `into_last` is how far behind the beginning of the
    /// last of them the read begins.
    pub fn ahead(
        &self,
        table: &SeekTable,
        spans: &Range<usize>,
        bytes: &Range<u64>,
        into_last: u64,
        is_missing: impl Fn(usize) -> bool,
    ) -> Vec<Range<usize>> {
        let known = |span: usize| match self.flags[span].load(Ordering::Relaxed) & AHEAD {
            0 if is_missing(span) => Known::Missing,
            0 => Known::Done,
            _ => Known::Unread,
        };
        let files = self.files.get();
        let files = files.filter(|_| !self.has_list.load(Ordering::Relaxed));
        let of_file = files.map(|files| {
            let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
            files.step(table, spans, bytes, known)
        });
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let in_order = streams.step(table, spans, into_last);
        in_order
            .into_iter()
            .chain(of_file.unwrap_or_default())
            .collect()
    }

    /// Where the layer's files lie, as far as they lie in several spans.
    pub fn know(&self, files: LongFiles) {
        // Known already: the same.
        let _ = self.files.set(Mutex::new(files));
    }

    /// Of the file that begins where `used` does, nobody will read more. Says nothing of files that are not known yet.
    pub fn shorten(&self, used: &Range<u64>, spans: Range<usize>) {
        if let Some(files) = self.files.get() {
            let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
            files.shorten(used, spans);
        }
    }

    /// A read of `bytes` touches something first. Where a list says what comes next nobody is told.
    pub fn tell_watcher(&self, bytes: &Range<u64>) {
        if let Some(watcher) = self.watcher.get()
            && !self.has_list.load(Ordering::Relaxed)
        {
            watcher(bytes);
        }
    }

    /// Tells `watcher` from now on; the first one stays.
    pub fn watch(&self, watcher: Watcher) {
        let _ = self.watcher.set(watcher);
    }

    /// `spans` are on a list of what is read next, which goes on where they end.
    pub fn foresee(&self, spans: Range<usize>) {
        self.has_list.store(true, Ordering::Relaxed);
        for flags in &self.flags[spans] {
            flags.fetch_or(FORESEEN, Ordering::Relaxed);
        }
    }

    /// `span` is being fetched ahead.
    pub fn fetched_ahead(&self, span: usize) {
        self.flags[span].fetch_or(AHEAD, Ordering::Relaxed);
    }

    /// From now on tells `observer`; what was touched before counts as untouched.
    pub fn observe(&self, observer: Option<Observer>) {
        *self
            .observer
            .write()
            .unwrap_or_else(PoisonError::into_inner) = observer;
        for flags in &self.flags {
            flags.fetch_and(!TOUCHED, Ordering::Relaxed);
        }
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access")
            .field("spans", &self.flags.len())
            .finish_non_exhaustive()
    }
}
