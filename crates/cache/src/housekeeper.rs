//! The thread that keeps the cache within its limits, off the path of every read.
//!
//! It looks now and then, when much was written, and at once when the disk is full or a dead evictor's work is found.
//! Of several processes with one cache, whichever comes first does the work; each knows only its own limits, so the
//! tightest of all hold. It also shares the process' times of use with the others.

use crate::{
    evict::Evictor,
    layer::Layers,
    limits::{CacheLimits, DiskSpace, Pressure},
    stats::Counters,
    survey::{disk_bytes, layer_dirs},
};
use nix::sys::statvfs::statvfs;
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::Duration,
};

/// How often it looks when nothing calls for it: others may fill the disk. A look is one stat per layer.
const ROUTINE: Duration = Duration::from_secs(10);
/// Between two looks, however much calls for them; also while another process evicts.
const PAUSE: Duration = Duration::from_millis(50);

/// Says what happens, to the thread.
#[derive(Debug)]
pub struct Housekeeper {
    house: Arc<House>,
    wake: SyncSender<()>,
    /// The thread lives as long as these: also without a `SpanCache`, while layers are open.
    _layers: Arc<Layers>,
}

#[derive(Debug)]
struct House {
    dir: PathBuf,
    limits: CacheLimits,
    counters: Arc<Counters>,
    /// Bytes since the last look.
    written: AtomicU64,
    disk_full: AtomicBool,
    abandoned: AtomicBool,
    complaints: OncePerMinute,
}

impl Housekeeper {
    /// Begins to look after the cache in `dir`, until this is dropped.
    pub fn start(
        dir: &Path,
        limits: CacheLimits,
        counters: Arc<Counters>,
        layers: Arc<Layers>,
    ) -> io::Result<Self> {
        let house = Arc::new(House {
            dir: dir.to_owned(),
            limits,
            counters,
            written: AtomicU64::new(0),
            disk_full: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            complaints: OncePerMinute::default(),
        });
        let (wake, woken) = sync_channel(1);
        let (kept, watched) = (house.clone(), Arc::downgrade(&layers));
        std::thread::Builder::new()
            .name("cache-keeper".into())
            .spawn(move || kept.keep(&woken, &watched))?;
        Ok(Self {
            house,
            wake,
            _layers: layers,
        })
    }

    /// So many bytes are new on the disk.
    pub fn wrote(&self, bytes: u64) {
        let before = self.house.written.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes >= self.house.limits.look_after() {
            self.wake();
        }
    }

    /// The disk refused a write.
    pub fn disk_is_full(&self) {
        self.house.disk_full.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// A span is being evicted: perhaps by a process that was killed.
    pub fn found_condemned(&self) {
        self.house.abandoned.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Makes room on a full disk before it returns.
    pub fn make_room(&self) {
        self.house.disk_full.store(true, Ordering::Relaxed);
        self.house.look_after_it();
    }

    /// Bytes that may come without anything being taken away but what `yielding` says of each layer's directory.
    pub fn room(&self, yielding: impl Fn(&Path) -> io::Result<u64>) -> io::Result<u64> {
        let dir = &self.house.dir;
        let (mut used, mut yields) = (0, 0);
        for layer in layer_dirs(dir)? {
            used += disk_bytes(&layer)?;
            yields += yielding(&layer)?;
        }
        let disk = space(&dir.join("layers"))?;
        Ok(self.house.limits.room(used, yields, disk))
    }

    fn wake(&self) {
        // Full: it will look anyway. Closed: it could not be started.
        let _ = self.wake.try_send(());
    }
}

impl House {
    fn keep(&self, woken: &Receiver<()>, layers: &Weak<Layers>) {
        let mut patience = ROUTINE;
        loop {
            match woken.recv_timeout(patience) {
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            }
            let Some(layers) = layers.upgrade() else {
                return;
            };
            layers.share_used();
            drop(layers);
            patience = match self.look_after_it() {
                true => ROUTINE,
                false => PAUSE,
            };
            std::thread::sleep(PAUSE);
        }
    }

    /// False if another process is at it and there is something to do.
    fn look_after_it(&self) -> bool {
        let done = self.try_to();
        if let Err(error) = &done
            && self.complaints.is_due()
        {
            tracing::warn!(%error, dir = %self.dir.display(), "cannot keep the cache within its limits");
        }
        done.unwrap_or(true)
    }

    fn try_to(&self) -> io::Result<bool> {
        let Some(evictor) = Evictor::try_lock(&self.dir)? else {
            return Ok(!self.disk_full.load(Ordering::Relaxed));
        };
        self.written.store(0, Ordering::Relaxed);
        let pressure = match self.disk_full.swap(false, Ordering::Relaxed) {
            true => Pressure::DiskFull,
            false => Pressure::Routine,
        };
        let abandoned = self.abandoned.swap(false, Ordering::Relaxed);
        let used = evictor.disk_bytes()?;
        let wanted = self
            .limits
            .excess(used, space(&self.dir.join("layers"))?, pressure);
        let mut left = used;
        if wanted > 0 || abandoned {
            let freed = evictor.free(wanted)?;
            Counters::add(&self.counters.spans_evicted, freed.spans);
            Counters::add(&self.counters.bytes_evicted, freed.bytes);
            left = used.saturating_sub(freed.bytes);
            tracing::debug!(wanted, ?freed, left, ?pressure, "made the cache smaller");
        }
        self.counters.bytes_on_disk.store(left, Ordering::Relaxed);
        Ok(true)
    }
}

fn space(dir: &Path) -> io::Result<DiskSpace> {
    let found = statvfs(dir)?;
    let block = found.fragment_size();
    Ok(DiskSpace {
        size: found.blocks() * block,
        available: found.blocks_available() * block,
    })
}

/// True once a minute, for complaints that would repeat with every read.
#[derive(Debug, Default)]
pub struct OncePerMinute(AtomicU32);

impl OncePerMinute {
    /// Whether a minute has passed since this was true.
    pub fn is_due(&self) -> bool {
        let (now, last) = (crate::states::now(), self.0.load(Ordering::Relaxed));
        now.abs_diff(last) >= 60
            && self
                .0
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}
