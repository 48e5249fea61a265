//! How far indexing and verifying are: bars on a terminal, plain lines in a log.

use crate::units;
use clip_engine::{Progress, registry::ResolvedImage};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    collections::HashMap,
    io::IsTerminal,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Without a terminal, a line is written so often.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Shows how far layers are, on stderr: bars if that is a terminal, else lines.
#[derive(Debug)]
pub struct LayerProgress {
    /// What has been done to so many bytes: `indexed`, `verified`.
    verb: &'static str,
    display: Display,
}

#[derive(Debug)]
enum Display {
    Bars {
        all: MultiProgress,
        layers: Mutex<HashMap<usize, ProgressBar>>,
    },
    Lines {
        total: AtomicU64,
        done: AtomicU64,
        last: Mutex<Instant>,
    },
}

impl LayerProgress {
    /// Nothing to show yet.
    pub fn new(verb: &'static str) -> Self {
        let display = match std::io::stderr().is_terminal() {
            true => Display::Bars {
                all: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()),
                layers: Mutex::default(),
            },
            false => Display::Lines {
                total: AtomicU64::new(0),
                done: AtomicU64::new(0),
                last: Mutex::new(Instant::now()),
            },
        };
        Self { verb, display }
    }

    /// These layers follow: position, the first digits of the digest, bytes.
    pub fn begin(&self, layers: impl Iterator<Item = (usize, String, u64)>) {
        match &self.display {
            Display::Bars { all, layers: bars } => {
                let style = ProgressStyle::with_template(
                    "{prefix} {bar:30} {decimal_bytes:>10} of {decimal_total_bytes:10} {decimal_bytes_per_sec}",
                )
                .unwrap_or_else(|_| ProgressStyle::default_bar());
                let bar = |(index, name, size)| {
                    let bar = all.add(ProgressBar::new(size).with_style(style.clone()));
                    bar.set_prefix(name);
                    (index, bar)
                };
                lock(bars).extend(layers.map(bar));
            }
            Display::Lines { total, .. } => {
                let bytes = layers.map(|(_, _, size)| size).sum();
                total.fetch_add(bytes, Ordering::Relaxed);
            }
        }
    }

    /// So many more bytes of layer `index` are done.
    pub fn advanced(&self, index: usize, bytes: u64) {
        match &self.display {
            Display::Bars { layers, .. } => {
                if let Some(bar) = lock(layers).get(&index) {
                    bar.inc(bytes);
                }
            }
            Display::Lines { total, done, last } => {
                let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                let mut last = lock(last);
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    eprintln!(
                        "{} {} of {}",
                        self.verb,
                        units::bytes(done),
                        units::bytes(total.load(Ordering::Relaxed))
                    );
                }
            }
        }
    }

    /// Layer `index` is done.
    pub fn layer_done(&self, index: usize) {
        if let Display::Bars { layers, .. } = &self.display
            && let Some(bar) = lock(layers).get(&index)
        {
            bar.finish_and_clear();
        }
    }

    /// A line above the bars.
    pub fn print(&self, line: &str) {
        match &self.display {
            Display::Bars { all, .. } => drop(all.println(line)),
            Display::Lines { .. } => eprintln!("{line}"),
        }
    }
}

/// Shows how far indexing is.
#[derive(Debug)]
pub struct Shown {
    verbose: bool,
    layers: LayerProgress,
    left_out: AtomicU64,
    sizes: Mutex<Vec<u64>>,
    reused: AtomicU64,
    reused_bytes: AtomicU64,
}

impl Shown {
    /// `verbose` lists every entry that is left out.
    pub fn new(verbose: bool) -> Self {
        Self {
            verbose,
            layers: LayerProgress::new("indexed"),
            left_out: AtomicU64::new(0),
            sizes: Mutex::default(),
            reused: AtomicU64::new(0),
            reused_bytes: AtomicU64::new(0),
        }
    }

    /// How many layers were taken from earlier archives, and their bytes.
    pub fn reused(&self) -> (u64, u64) {
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        (load(&self.reused), load(&self.reused_bytes))
    }

    /// How many entries were left out.
    pub fn left_out_count(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }
}

impl Progress for Shown {
    fn resolved(&self, image: &ResolvedImage) {
        let total = image.layers.iter().map(|layer| layer.size).sum();
        self.layers.print(&format!(
            "{}, {}, {}",
            units::count(image.layers.len() as u64, "layer"),
            units::bytes(total),
            image.manifest_digest
        ));
        *lock(&self.sizes) = image.layers.iter().map(|layer| layer.size).collect();
        let layers = image.layers.iter().enumerate();
        self.layers.begin(layers.map(|(index, layer)| {
            let name = layer.digest.hex()[..12].to_owned();
            (index, name, layer.size)
        }));
    }

    fn advanced(&self, index: usize, bytes: u64) {
        self.layers.advanced(index, bytes);
    }

    fn layer_done(&self, index: usize) {
        self.layers.layer_done(index);
    }

    fn reused(&self, index: usize) {
        let bytes = lock(&self.sizes).get(index).copied().unwrap_or(0);
        self.layers.advanced(index, bytes);
        self.layers.layer_done(index);
        self.reused.fetch_add(1, Ordering::Relaxed);
        self.reused_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn left_out(&self, path: &[u8]) {
        self.left_out.fetch_add(1, Ordering::Relaxed);
        if self.verbose {
            self.layers.print(&format!(
                "Left out runtime path /{}",
                String::from_utf8_lossy(path)
            ));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
