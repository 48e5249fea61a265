//! Fetching what nobody asked for yet: a list of spans in the order in which they will be needed, or a whole layer.
//!
//! Large requests, two at a time, below every reader: see [`Class::Prefetch`].

use crate::{admission::Class, fetch::FillError, layer::LayerReader, patience::LONGEST_PAUSE};
use futures::{StreamExt, TryStreamExt};
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::task::JoinHandle;

/// Requests at a time: while one ends, the next is on its way.
const AT_ONCE: usize = 2;
/// Spans that are asked for together, if they are neighbours: as many as one request may bring, and more.
const ROW_MAX: usize = 64;

/// What becomes of a prefetch when a registry fails in a way that may go away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// It is asked again until the prefetch is dropped.
    ForEver,
    /// The prefetch ends: whoever began it knows when to begin again.
    Once,
}

impl Persistence {
    fn bears(self, error: &FillError) -> bool {
        error.may_go_away() && (self == Self::ForEver || !matches!(error, FillError::Fetch(_)))
    }
}

/// A prefetch under way. Dropped, it starts no further request.
#[derive(Debug)]
pub struct Prefetch {
    progress: Arc<Done>,
    total: Progress,
    task: JoinHandle<Result<(), Arc<FillError>>>,
}

/// How far a prefetch is, or how far it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Spans.
    pub spans: u64,
    /// Their compressed bytes.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Done {
    spans: AtomicU64,
    bytes: AtomicU64,
}

impl LayerReader {
    /// Fetches those of `spans` that are missing, for readers that will come any moment: beside what readers wait for now,
    /// and behind it where both wait.
    ///
    /// # Errors
    /// With the first failure; nothing is tried again.
    pub async fn fetch_soon(&self, spans: Range<usize>) -> Result<(), Arc<FillError>> {
        self.access.foresee(spans.clone());
        for flight in self.join(spans, Class::ReadAhead) {
            flight.landed().await?;
        }
        Ok(())
    }

    /// Fetches those of `spans` that are missing, in this order. Neighbours that follow each other travel together. While
    /// the registry fails, `persistence` says what to do.
    ///
    /// # Panics
    /// If a span is not smaller than [`LayerReader::span_count`].
    pub fn prefetch(
        &self,
        spans: impl IntoIterator<Item = usize>,
        persistence: Persistence,
    ) -> Prefetch {
        let (mut rows, mut total) = (Vec::<Range<usize>>::new(), Progress::default());
        for span in spans {
            total.spans += 1;
            total.bytes += self.store.table.spans[span].blob_len;
            match rows.last_mut() {
                Some(row) if row.end == span && row.len() < ROW_MAX => row.end += 1,
                _ => rows.push(span..span + 1),
            }
        }
        let progress = Arc::<Done>::default();
        let (reader, done) = (self.clone(), progress.clone());
        let task = self.runtime.spawn(async move {
            futures::stream::iter(rows)
                .map(|row| fetch_row(&reader, row, persistence, &done))
                .buffered(AT_ONCE)
                .try_collect()
                .await
        });
        Prefetch {
            progress,
            total,
            task,
        }
    }
}

async fn fetch_row(
    reader: &LayerReader,
    row: Range<usize>,
    persistence: Persistence,
    done: &Done,
) -> Result<(), Arc<FillError>> {
    loop {
        let mut landing = Ok(());
        for flight in reader.join(row.clone(), Class::Prefetch) {
            landing = landing.and(flight.landed().await.map(drop));
        }
        match landing {
            Ok(()) => break,
            Err(error) if persistence.bears(&error) => tokio::time::sleep(LONGEST_PAUSE).await,
            Err(error) => return Err(error),
        }
    }
    for span in row {
        done.spans.fetch_add(1, Ordering::Relaxed);
        let bytes = reader.store.table.spans[span].blob_len;
        done.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
    Ok(())
}

impl Prefetch {
    /// What is there so far.
    pub fn progress(&self) -> Progress {
        Progress {
            spans: self.progress.spans.load(Ordering::Relaxed),
            bytes: self.progress.bytes.load(Ordering::Relaxed),
        }
    }

    /// What will be there in the end.
    pub fn total(&self) -> Progress {
        self.total
    }

    /// Waits until everything is there.
    ///
    /// # Errors
    /// With the first failure that will not go away.
    pub async fn finished(mut self) -> Result<(), Arc<FillError>> {
        let result = (&mut self.task).await;
        result.unwrap_or_else(|_| Err(Arc::new(FillError::Aborted)))
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
