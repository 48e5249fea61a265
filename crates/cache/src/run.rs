//! Carrying out a run: one range request, its spans decoded, checked and shown one by one as the bytes arrive.
//!
//! The network's task never decodes and never touches the disk. It hands chunks to a blocking thread, at most [`CHUNKS`]
//! ahead; when that is full it stops reading, and TCP slows the sender. So a run holds at most one decoded span
//! (2 MiB; longer ones are staged on disk, see `staged.rs`) and some chunks of up to 0.4 MiB (hyper's largest buffer).

use crate::{
    admission::{Class, Ticket},
    fetch::{self, FillError},
    flights::{Passenger, Run, range_of},
    landing::{self, Landed},
    layer::LayerReader,
    stats::Counters,
    whole,
};
use bytes::Bytes;
use clip_registry::{BlobStream, FetchError};
use futures::StreamExt;
use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
};
use tokio::sync::mpsc;

/// Chunks between the network and the decoder.
const CHUNKS: usize = 4;

/// Brings the spans of `run`.
pub async fn carry_out(reader: LayerReader, run: Arc<Run>) {
    if run.class != Class::Demand {
        // The runtime begins with the task that was spawned last. What the same read demands shall have the connection that
        // is open: a new one costs a round trip or three.
        tokio::task::yield_now().await;
    }
    if !run.is_open && is_there_after_all(&reader, &run).await {
        return;
    }
    let spans = &reader.store.table.spans;
    let asked = run.range(spans);
    let len = asked.end - asked.start;
    let ticket = reader
        .admission
        .admit(&reader.registry, run.class, len)
        .await;
    let is_wanted = run.is_wanted();
    let mut passengers = run.depart(asked.start);
    if !is_wanted {
        return land_all(&reader, &run, passengers, &Arc::new(FillError::Aborted));
    }
    // While it waited, others may have brought some of them. What is left has no gaps but those, which are passed over.
    let is_missing = |passenger: &mut Passenger| reader.store.is_missing(passenger.span);
    let there = passengers.extract_if(.., |passenger| !is_missing(passenger));
    reader.store.flights.land(&run, there, &Ok(Landed::OnDisk));
    if passengers.is_empty() {
        return;
    }
    if !reader.source.sends_whole_blobs() {
        let range = range_of(spans, &passengers);
        tracing::trace!(layer = %reader.store.blob_digest, ?range, class = ?run.class, first = passengers[0].span, spans = passengers.len(), "asking");
        Counters::add(&reader.store.counters.requests, 1);
        match reader.source.range(&reader.blob(), range.clone()).await {
            // Found out just now: this answer is not used.
            Ok(_) if reader.source.sends_whole_blobs() => {}
            Ok(stream) => {
                return transfer(&reader, &run, ticket, passengers, stream, range.start).await;
            }
            Err(error) => {
                let error = Arc::new(FillError::Fetch(error));
                return land_all(&reader, &run, passengers, &error);
            }
        }
    }
    drop(ticket);
    whole::ride_along(&reader, &run, passengers).await;
}

/// A run with one span that may be on the disk from before the machine was restarted: no network then.
async fn is_there_after_all(reader: &LayerReader, run: &Run) -> bool {
    let Some(span) = run.first() else {
        return false;
    };
    let store = reader.store.clone();
    let check = reader
        .runtime
        .spawn_blocking(move || landing::find(&store, span));
    let landing = match check.await {
        Ok(None) => return false,
        Ok(Some(landed)) => Ok(landed),
        Err(_) => Err(Arc::new(FillError::Aborted)),
    };
    reader.store.flights.land(run, run.depart(0), &landing);
    true
}

/// Brings `passengers` from a stream that begins at byte `at` of the blob.
pub async fn transfer(
    reader: &LayerReader,
    run: &Arc<Run>,
    mut ticket: Ticket,
    passengers: Vec<Passenger>,
    mut stream: BlobStream,
    at: u64,
) {
    run.at.store(at, Ordering::Relaxed);
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let input = Input {
        chunks: receiver,
        chunk: Bytes::new(),
        at,
    };
    let decoding = reader.runtime.spawn_blocking({
        let (reader, run) = (reader.clone(), run.clone());
        move || decode(&reader, &run, passengers, input)
    });
    tracing::trace!(layer = %reader.store.blob_digest, at, "begun");
    let from = at;
    while let Some(chunk) = stream.next().await {
        let len = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        run.at.fetch_add(len, Ordering::Relaxed);
        // A decoder that has all it needs listens no more; the body's last bytes are read all the same, so that the
        // connection can be used again.
        let _ = sender.send(chunk).await;
        ticket.give_way().await;
    }
    drop(sender);
    tracing::trace!(layer = %reader.store.blob_digest, at = from, "arrived");
    // The ticket is given back when the memory is.
    let _ = decoding.await;
}

/// Tells all `passengers` that their run failed.
pub fn land_all(
    reader: &LayerReader,
    run: &Run,
    passengers: Vec<Passenger>,
    error: &Arc<FillError>,
) {
    if run.class != Class::Demand {
        tracing::debug!(layer = %reader.store.blob_digest, %error, class = ?run.class, "not fetched");
    }
    let landing = Err(error.clone());
    reader.store.flights.land(run, passengers, &landing);
}

fn decode(reader: &LayerReader, run: &Run, passengers: Vec<Passenger>, mut input: Input) {
    let mut passengers = passengers.into_iter();
    while let Some(passenger) = passengers.next() {
        let filled = fetch::fill(&reader.store, passenger.span, &mut input).map_err(Arc::new);
        tracing::trace!(layer = %reader.store.blob_digest, span = passenger.span, "landed");
        match filled {
            // Nothing more arrives, for nobody.
            Err(error) if matches!(*error, FillError::Fetch(_) | FillError::Aborted) => {
                let all = std::iter::once(passenger).chain(passengers).collect();
                return land_all(reader, run, all, &error);
            }
            landing => {
                if landing
                    .as_ref()
                    .is_err_and(|error| error.is_wrong_content())
                {
                    reader.source.distrust_mirrors();
                }
                let landing = match run.is_waited_for {
                    true => landing,
                    false => landing.map(Landed::without_bytes),
                };
                reader.store.flights.land(run, [passenger], &landing);
            }
        }
    }
}

/// A blob's bytes as they arrive, for somebody who takes span after span. Neighbouring spans may share a byte.
#[derive(Debug)]
pub struct Input {
    chunks: mpsc::Receiver<Result<Bytes, FetchError>>,
    chunk: Bytes,
    /// Where in the blob the chunk begins.
    at: u64,
}

impl Input {
    /// The next of the bytes `wanted`, at least one; waits for them. What lies before them is passed over.
    pub fn next(&mut self, wanted: Range<u64>) -> Result<Bytes, FillError> {
        loop {
            let end = self.at + self.chunk.len() as u64;
            if wanted.start < end {
                let from = wanted.start.saturating_sub(self.at);
                let to = wanted.end.min(end) - self.at;
                return Ok(self.chunk.slice(from as usize..to as usize));
            }
            self.chunk = self.chunks.blocking_recv().ok_or(FillError::Aborted)??;
            self.at = end;
        }
    }
}
