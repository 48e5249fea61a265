//! Registries that answer ranges with whole blobs (some caching proxies do).
//!
//! The first answer gives them away ([`BlobSource::sends_whole_blobs`]). From then on a layer is read once, from its
//! beginning to its end, and all its missing spans are filled on the way: any two ranges would cost more.
//!
//! [`BlobSource::sends_whole_blobs`]: clip_registry::BlobSource::sends_whole_blobs

use crate::{
    admission::Class,
    fetch::FillError,
    flights::{Flight, Passenger, Run},
    landing::Landed,
    layer::LayerReader,
    run,
    stats::Counters,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What a whole blob weighs in the limits: what is under way of it at a time, not its length.
const WEIGHT: u64 = 4 << 20;

/// How often who missed a whole blob looks whether it has ended.
const NEXT_RIDE: Duration = Duration::from_millis(200);

/// The blobs of one layer that are being read whole, by source.
#[derive(Debug, Default)]
pub struct WholeBlobs(Mutex<HashMap<u64, Arc<HashMap<usize, Flight>>>>);

/// What the whole blob can do for a span.
enum Ride {
    /// Nothing: it is there.
    Arrived,
    /// It will bring it.
    Coming(Flight),
    /// It had it, or brought it, and it was taken away again to make room. The next one will bring it.
    Missed,
}

/// Lets `passengers` have their spans from the whole blob, which is fetched if nobody does so already.
pub async fn ride_along(reader: &LayerReader, run: &Run, passengers: Vec<Passenger>) {
    for passenger in passengers {
        let landing = loop {
            match ride_of(reader, passenger.span) {
                Ride::Arrived => break Ok(Landed::OnDisk),
                Ride::Coming(flight) => break flight.landed().await,
                // Nobody reads a whole blob once more for readers that have left.
                Ride::Missed if !run.is_wanted() => break Err(Arc::new(FillError::Aborted)),
                Ride::Missed => tokio::time::sleep(NEXT_RIDE).await,
            }
        };
        reader.store.flights.land(run, [passenger], &landing);
    }
}

fn ride_of(reader: &LayerReader, span: usize) -> Ride {
    let mut blobs = reader.store.whole.lock();
    if !reader.store.is_missing(span) {
        return Ride::Arrived;
    }
    let start = || Arc::new(start(reader));
    let flights = blobs.entry(reader.source_id).or_insert_with(start);
    match flights.get(&span).filter(|flight| !flight.has_landed()) {
        Some(flight) => Ride::Coming(flight.clone()),
        None => Ride::Missed,
    }
}

fn start(reader: &LayerReader) -> HashMap<usize, Flight> {
    let is_missing = |&span: &usize| reader.store.is_missing(span);
    let (run, flights) = Run::of_all(
        reader.source_id,
        (0..reader.span_count()).filter(is_missing),
    );
    reader
        .runtime
        .spawn(carry_out(reader.clone(), Arc::new(run)));
    flights
}

async fn carry_out(reader: LayerReader, run: Arc<Run>) {
    let admission = &reader.admission;
    let ticket = admission
        .admit(&reader.registry, Class::Demand, WEIGHT)
        .await;
    let passengers = run.depart(0);
    Counters::add(&reader.store.counters.requests, 1);
    match reader.source.stream(&reader.blob()).await {
        Ok(stream) => run::transfer(&reader, &run, ticket, passengers, stream, 0).await,
        Err(error) => run::land_all(
            &reader,
            &run,
            passengers,
            &Arc::new(FillError::Fetch(error)),
        ),
    }
    reader.store.whole.lock().remove(&reader.source_id);
}

impl WholeBlobs {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<HashMap<usize, Flight>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
