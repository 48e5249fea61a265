//! Removing what no ClipImage needs any more.
//!
//! An archive is needed while the record of a living ClipImage names it. So there is no finalizer: a ClipImage
//! is deleted at once, also while the operator is down, and what it leaves is found by looking.
//!
//! Nothing goes at first sight. A status may still name an archive whose record was just replaced, and a
//! ClipImage may be younger than the list of the living: only what is unneeded for the whole grace period goes.

use std::{
    collections::{HashMap, HashSet},
    io,
    time::{Duration, Instant},
};

use clip_archive::Digest;

use crate::store::{Record, Store, StoredArchive};

/// Something that may be removed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Waste {
    /// The record of a ClipImage that is gone, by uid.
    Record(String),
    /// An archive that no record names.
    Archive(Digest),
}

/// What is unneeded now.
pub fn waste(
    archives: &[StoredArchive],
    records: &[Record],
    is_living: impl Fn(&str) -> bool,
) -> Vec<Waste> {
    let (living, dead): (Vec<_>, Vec<_>) =
        records.iter().partition(|record| is_living(&record.uid));
    let needed: HashSet<&str> = living.iter().map(|record| record.digest.as_str()).collect();
    let dead = dead
        .into_iter()
        .map(|record| Waste::Record(record.uid.clone()));
    let unneeded = archives
        .iter()
        .filter(|archive| !needed.contains(archive.digest.to_string().as_str()));
    dead.chain(unneeded.map(|archive| Waste::Archive(archive.digest)))
        .collect()
}

/// Remembers since when something has been unneeded.
#[derive(Debug)]
pub struct Collector {
    grace: Duration,
    since: HashMap<Waste, Instant>,
}

impl Collector {
    /// Removes what has been unneeded for `grace`.
    pub fn new(grace: Duration) -> Self {
        Self {
            grace,
            since: HashMap::new(),
        }
    }

    /// One round; what stays.
    ///
    /// # Errors
    /// When the folder cannot be listed or something not removed; the next round tries again.
    pub fn collect(
        &mut self,
        store: &Store,
        is_living: impl Fn(&str) -> bool,
        now: Instant,
    ) -> io::Result<Vec<StoredArchive>> {
        let mut archives = store.archives()?;
        let waste = waste(&archives, &store.records()?, is_living);
        let ripe = self.ripen(waste, now);
        for waste in ripe {
            match &waste {
                Waste::Record(uid) => {
                    store.remove_record(uid)?;
                    tracing::info!(uid, "removed the record of a ClipImage that is gone");
                }
                Waste::Archive(digest) => {
                    store.remove_archive(*digest)?;
                    tracing::info!(%digest, "removed an archive that no ClipImage needs");
                    archives.retain(|archive| archive.digest != *digest);
                }
            }
            self.since.remove(&waste);
        }
        Ok(archives)
    }

    /// What is unneeded now and was in every round of the grace period.
    fn ripen(&mut self, waste: Vec<Waste>, now: Instant) -> Vec<Waste> {
        let still: HashSet<&Waste> = waste.iter().collect();
        self.since.retain(|known, _| still.contains(known));
        waste
            .into_iter()
            .filter(|waste| {
                let since = *self.since.entry(waste.clone()).or_insert(now);
                now.duration_since(since) >= self.grace
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
