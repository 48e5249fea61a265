//! One comparison: a place with both views and the unpackers, and a stack to try there.

use crate::{
    judge::{self, Verdict},
    model,
    rules::Excuse,
    stack::{Layer, Stack},
    tar_write,
    unpackers::Unpackers,
    views::{Bench, Blob, Outcome},
};
use anyhow::{Context as _, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tokio::runtime::Handle;

/// Where stacks are tried, one after the other.
pub struct Place {
    bench: Bench,
    unpackers: Unpackers,
    scratch: PathBuf,
}

impl Place {
    /// Sets up directories called `name` below `root`, to which the unpackers are confined.
    pub fn new(program: &Path, root: &Path, name: &str, runtime: Handle) -> Result<Self> {
        let scratch = root.join("ram").join(name);
        fs::create_dir_all(&scratch)?;
        Ok(Self {
            bench: Bench::new(&root.join(name), runtime)?,
            unpackers: Unpackers::start(program, root)?,
            scratch,
        })
    }

    /// Compares a stack.
    pub fn compare(&mut self, stack: &Stack) -> Result<Verdict> {
        let blobs = stack.layers.iter().map(blob).collect::<Result<Vec<_>>>()?;
        self.compare_blobs(&blobs, |_| model::excuses(stack))
    }

    /// Compares an image. `excuses` gets the entries as we read them; empty where we refuse.
    pub fn compare_blobs(
        &mut self,
        blobs: &[Blob],
        excuses: impl FnOnce(&[Vec<clip_archive::Entry>]) -> Vec<Excuse>,
    ) -> Result<Verdict> {
        self.bench.write_tars(blobs)?;
        let tars: Vec<PathBuf> = (0..blobs.len())
            .map(|index| self.bench.tar(index))
            .collect();
        match self.bench.mount(blobs)? {
            Outcome::Refused(reason) => {
                let seen = self.unpackers.ask(&tars, &self.scratch, &[])?;
                Ok(judge::judge(&excuses(&[]), Some(&reason), &seen))
            }
            Outcome::Mounted(mounted) => {
                let views = self.bench.views();
                let seen = self.unpackers.ask(&tars, &self.scratch, &views)?;
                let excuses = excuses(&mounted.layers);
                mounted.unmount()?;
                Ok(judge::judge(&excuses, None, &seen))
            }
        }
    }
}

fn blob(layer: &Layer) -> Result<Blob> {
    let tar = tar_write::tar(layer);
    let bytes = match layer.zstd {
        true => zstd::bulk::compress(&tar, 1).context("zstd")?,
        false => tar.clone(),
    };
    Ok(Blob { bytes, tar })
}
