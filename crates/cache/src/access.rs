//! What one mount's readers do with a layer: first touches of spans, streams, and whether read-ahead was of use.

use crate::{read_ahead::Streams, stats::Counters};
use clip_archive::SeekTable;
use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError, RwLock,
        atomic::{AtomicU8, Ordering},
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

/// See the module.
pub struct Access {
    flags: Vec<AtomicU8>,
    streams: Mutex<Streams>,
    observer: RwLock<Option<Observer>>,
}

impl Access {
    pub fn new(spans: usize) -> Self {
        Self {
            flags: std::iter::repeat_with(AtomicU8::default)
                .take(spans)
                .collect(),
            streams: Mutex::default(),
            observer: RwLock::default(),
        }
    }

    /// Whether some of `spans` were not touched yet. All that a read of what is there and was read before costs.
    pub fn is_news(&self, spans: &Range<usize>) -> bool {
        let flags = &self.flags[spans.clone()];
        flags
            .iter()
            .any(|flags| flags.load(Ordering::Relaxed) & (TOUCHED | AHEAD) != TOUCHED)
    }

    /// A reader touches `spans`, and must wait for some of them or touches some for the first time: what to fetch ahead.
    /// `into_last` is how far behind the beginning of the last of them the read begins.
    pub fn touch(
        &self,
        table: &SeekTable,
        spans: &Range<usize>,
        into_last: u64,
        counters: &Counters,
    ) -> Option<Range<usize>> {
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
        if all_foreseen {
            // Whoever foresaw this read knows better what comes next.
            return None;
        }
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.step(table, spans, into_last)
    }

    /// `spans` are on a list of what is read next, which goes on where they end.
    pub fn foresee(&self, spans: Range<usize>) {
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
