//! How far apart seek points are: what must be fetched and decoded before the first byte of interest.

use crate::rows::Row;
use anyhow::{Context, Result};
use clip_archive::Archive;
use std::path::Path;

/// Of all spans of an image, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Spans {
    /// The average of what they decode to.
    pub mean_decoded: f64,
    /// The most that one decodes to.
    pub longest_decoded: u64,
    /// The most that must be fetched for one.
    pub longest_fetched: u64,
}

impl Spans {
    /// Of an archive of ours.
    pub fn of(archive: &Path) -> Result<Self> {
        let archive = Archive::open(std::fs::read(archive)?)?;
        let layers = 0..archive.head().layers.len();
        let spans = layers
            .map(|layer| Ok(archive.seek_table(layer)?.spans))
            .collect::<Result<Vec<_>>>()?
            .concat();
        let decoded = spans.iter().map(|span| span.tar_len);
        let fetched = spans.iter().map(|span| span.blob_len);
        Ok(Self {
            mean_decoded: decoded.clone().sum::<u64>() as f64 / spans.len() as f64,
            longest_decoded: decoded.max().context("an image has spans")?,
            longest_fetched: fetched.max().context("an image has spans")?,
        })
    }

    /// As rows of `system`.
    pub fn rows(&self, bench: &'static str, case: &str, system: &'static str) -> [Row; 3] {
        let row = |metric, bytes| Row::new(bench, case, system, metric, bytes, "B");
        [
            row("mean span, decoded", self.mean_decoded.round()),
            row("longest span, decoded", self.longest_decoded as f64),
            row("longest span, fetched", self.longest_fetched as f64),
        ]
    }
}
