//! How far indexing is: bars on a terminal, plain lines in a log.

use crate::units;
use clip_engine::{Progress, registry::ResolvedImage};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::IsTerminal,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Without a terminal, a line is written so often.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Shows progress on stderr.
#[derive(Debug)]
pub struct Shown {
    verbose: bool,
    display: Display,
    left_out: AtomicU64,
}

#[derive(Debug)]
enum Display {
    Bars {
        all: MultiProgress,
        layers: Mutex<Vec<ProgressBar>>,
    },
    Lines {
        total: AtomicU64,
        done: AtomicU64,
        last: Mutex<Instant>,
    },
}

impl Shown {
    /// Bars if stderr is a terminal, else lines. `verbose` lists every entry that is left out.
    pub fn new(verbose: bool) -> Self {
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
        Self {
            verbose,
            display,
            left_out: AtomicU64::new(0),
        }
    }

    /// How many entries were left out.
    pub fn left_out_count(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    fn print(&self, line: &str) {
        match &self.display {
            Display::Bars { all, .. } => drop(all.println(line)),
            Display::Lines { .. } => eprintln!("{line}"),
        }
    }
}

impl Progress for Shown {
    fn resolved(&self, image: &ResolvedImage) {
        let total = image.layers.iter().map(|layer| layer.size).sum();
        self.print(&format!(
            "{}, {}, {}",
            units::count(image.layers.len() as u64, "layer"),
            units::bytes(total),
            image.manifest_digest
        ));
        match &self.display {
            Display::Bars { all, layers } => {
                let style = ProgressStyle::with_template(
                    "{prefix} {bar:30} {decimal_bytes:>10} of {decimal_total_bytes:10} {decimal_bytes_per_sec}",
                )
                .unwrap_or_else(|_| ProgressStyle::default_bar());
                let bar = |layer: &clip_engine::registry::LayerDescriptor| {
                    let bar = all.add(ProgressBar::new(layer.size).with_style(style.clone()));
                    bar.set_prefix(layer.digest.hex()[..12].to_owned());
                    bar
                };
                *layers.lock().unwrap_or_else(PoisonError::into_inner) =
                    image.layers.iter().map(bar).collect();
            }
            Display::Lines { total: sum, .. } => sum.store(total, Ordering::Relaxed),
        }
    }

    fn advanced(&self, index: usize, bytes: u64) {
        match &self.display {
            Display::Bars { layers, .. } => {
                if let Some(bar) = layers
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get(index)
                {
                    bar.inc(bytes);
                }
            }
            Display::Lines { total, done, last } => {
                let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    eprintln!(
                        "indexed {} of {}",
                        units::bytes(done),
                        units::bytes(total.load(Ordering::Relaxed))
                    );
                }
            }
        }
    }

    fn layer_done(&self, index: usize) {
        if let Display::Bars { layers, .. } = &self.display
            && let Some(bar) = layers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(index)
        {
            bar.finish_and_clear();
        }
    }

    fn left_out(&self, path: &[u8]) {
        self.left_out.fetch_add(1, Ordering::Relaxed);
        if self.verbose {
            self.print(&format!(
                "Left out runtime path /{}",
                String::from_utf8_lossy(path)
            ));
        }
    }
}
