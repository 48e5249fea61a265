//! One fetch per span however many readers wait, and neighbouring spans in one request.
//!
//! A [`Run`] is a row of neighbouring spans that one range request brings. Until it has departed, neighbours may join it.
//! Each span lands by itself: who waits for the first does not wait for the last.

use crate::{
    admission::Class, fetch::FillError, landing::Landed, layer::LayerReader, run, stats::Counters,
    word::SpanState,
};
use clip_archive::Span;
use futures::{FutureExt, future::Shared};
use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::oneshot;

/// Compressed bytes of one request. Demand and read-ahead: long enough that a round trip of 20 ms is lost in the 80 ms
/// that they take at 50 MB/s, short enough that several share a line. Prefetch asks for more, as nobody waits.
const RUN_MAX: [u64; 3] = [4 << 20, 4 << 20, 8 << 20];
/// A reader waits for a run of a lower class when its span is so near; else it asks for itself. About what arrives during
/// one round trip.
const NEAR: u64 = 1 << 20;

/// What became of a span.
pub type Landing = Result<Landed, Arc<FillError>>;

/// The runs of one layer, by source and span: readers with other credentials do not share a failure.
#[derive(Debug, Default)]
pub struct Flights(Mutex<HashMap<(u64, usize), Booking>>);

#[derive(Debug)]
struct Booking {
    run: Arc<Run>,
    landing: Shared<oneshot::Receiver<Landing>>,
}

/// A span that somebody waits for.
#[derive(Debug, Clone)]
pub struct Flight {
    pub span: usize,
    landing: Shared<oneshot::Receiver<Landing>>,
    /// A run that nobody waits for any more does not depart.
    _interest: Option<Arc<()>>,
}

/// A row of neighbouring spans on their way.
#[derive(Debug)]
pub struct Run {
    pub class: Class,
    source: u64,
    /// Passengers until departure.
    boarding: Mutex<Option<Vec<Passenger>>>,
    /// Whether neighbours may join before departure. Not where a span may be on the disk already.
    pub is_open: bool,
    /// Alive while somebody waits; none for read-ahead, which nobody waits for.
    interest: Option<Weak<()>>,
    /// Whether readers wait for each of its spans, and take the bytes as soon as they land.
    pub is_waited_for: bool,
    /// The next byte of the blob that is to arrive.
    pub at: AtomicU64,
}

/// A span to bring, and whom to tell.
#[derive(Debug)]
pub struct Passenger {
    pub span: usize,
    landing: oneshot::Sender<Landing>,
}

impl Flight {
    /// Of a span that is here already.
    fn of_landed(span: usize, landed: Landed) -> Self {
        let (passenger, landing) = Passenger::new(span);
        let _ = passenger.landing.send(Ok(landed));
        Self {
            span,
            landing: landing.shared(),
            _interest: None,
        }
    }

    /// Whether what became of the span is known, or never will be.
    pub fn has_landed(&self) -> bool {
        self.landing.clone().now_or_never().is_some()
    }

    /// Waits until the span is there, or cannot be had.
    pub async fn landed(self) -> Landing {
        self.landing
            .await
            .unwrap_or_else(|_| Err(Arc::new(FillError::Aborted)))
    }
}

impl LayerReader {
    /// Joins the fetches of those of `spans` that are not there, and starts what is not under way. Read-ahead starts only
    /// what nobody fetches, and is not waited for.
    pub(crate) fn join(&self, spans: Range<usize>, class: Class) -> Vec<Flight> {
        let store = &self.store;
        let mut started = Vec::new();
        let mut flights = Vec::new();
        {
            let mut bookings = store.flights.lock();
            for index in spans {
                let state = store.state(index);
                if state == SpanState::Present {
                    continue;
                }
                if let Some(bytes) = store.memory.get(&store.section_digest, index) {
                    flights.push(Flight::of_landed(index, Landed::InMemory(bytes)));
                    continue;
                }
                let (span, key) = (&store.table.spans[index], (self.source_id, index));
                if let Some(flight) = bookings.get(&key).and_then(|b| b.join(class, index, span)) {
                    flights.push(flight);
                    continue;
                }
                if class == Class::ReadAhead {
                    self.access.fetched_ahead(index);
                    Counters::add(&store.counters.read_ahead_spans, 1);
                }
                let neighbour = index.checked_sub(1).and_then(|before| {
                    let booking = bookings.get(&(self.source_id, before))?;
                    let run = booking.run.clone();
                    (run.class == class && state == SpanState::Absent).then_some(run)
                });
                let boarded =
                    neighbour.and_then(|run| Some((run.board(&store.table.spans, index)?, run)));
                let ((landing, interest), run) = boarded.unwrap_or_else(|| {
                    // What may be on the disk already is looked at first, each span by itself.
                    let is_open = state == SpanState::Absent;
                    let (run, landing, interest) = Run::new(self.source_id, class, index, is_open);
                    started.push(run.clone());
                    ((landing, interest), run)
                });
                let landing = landing.shared();
                flights.push(Flight {
                    span: index,
                    landing: landing.clone(),
                    _interest: interest,
                });
                bookings.insert(key, Booking { run, landing });
            }
        }
        for run in started {
            // A task of its own: it goes on when the reader that started it was killed.
            self.runtime.spawn(run::carry_out(self.clone(), run));
        }
        flights
    }

    /// Whether somebody fetches `span`.
    pub(crate) fn is_under_way(&self, span: usize) -> bool {
        let bookings = self.store.flights.lock();
        bookings.contains_key(&(self.source_id, span))
    }
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, HashMap<(u64, usize), Booking>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody who waits for `passengers` what became of them. Nobody can join a run that has failed while its
    /// other waiters are being told.
    pub fn land(
        &self,
        run: &Run,
        passengers: impl IntoIterator<Item = Passenger>,
        landing: &Landing,
    ) {
        let passengers = Vec::from_iter(passengers);
        {
            let mut bookings = self.lock();
            for passenger in &passengers {
                let key = (run.source, passenger.span);
                let booking = bookings.get(&key);
                // A reader that could not wait may have started another run for it.
                if booking.is_some_and(|booking| std::ptr::eq(&*booking.run, run)) {
                    bookings.remove(&key);
                }
            }
        }
        for passenger in passengers {
            // Nobody need be waiting any more.
            let _ = passenger.landing.send(landing.clone());
        }
    }
}

impl Booking {
    /// A place for one more who wants this span, unless they should not wait for this run.
    fn join(&self, class: Class, index: usize, span: &Span) -> Option<Flight> {
        let run = &self.run;
        let has_departed = run.boarding().is_none();
        let interest = run.interest.as_ref().and_then(Weak::upgrade);
        let is_left = run.interest.is_some() && interest.is_none();
        // A prefetch gives way to readers: who waits for it might wait for them all.
        let is_near = || span.blob_offset <= run.at.load(Ordering::Relaxed) + NEAR;
        let in_time =
            run.class <= class || run.class == Class::ReadAhead && has_departed && is_near();
        if self.landing.peek().is_some() {
            // It ended without landing: its task died.
            return None;
        }
        let flight = Flight {
            span: index,
            landing: self.landing.clone(),
            _interest: interest,
        };
        (in_time && (has_departed || !is_left)).then_some(flight)
    }
}

impl Run {
    fn new(
        source: u64,
        class: Class,
        first: usize,
        is_open: bool,
    ) -> (Arc<Run>, oneshot::Receiver<Landing>, Option<Arc<()>>) {
        let interest = (class != Class::ReadAhead).then(Arc::default);
        let (passenger, landing) = Passenger::new(first);
        let run = Run {
            class,
            source,
            boarding: Mutex::new(Some(vec![passenger])),
            is_open,
            interest: interest.as_ref().map(Arc::downgrade),
            is_waited_for: class == Class::Demand,
            at: AtomicU64::new(0),
        };
        (Arc::new(run), landing, interest)
    }

    /// A run with all of `spans`, which nobody can join, and their flights.
    pub fn of_all(
        source: u64,
        spans: impl Iterator<Item = usize>,
    ) -> (Run, HashMap<usize, Flight>) {
        let mut flights = HashMap::new();
        let passengers = spans.map(|span| {
            let (passenger, landing) = Passenger::new(span);
            let landing = landing.shared();
            flights.insert(
                span,
                Flight {
                    span,
                    landing,
                    _interest: None,
                },
            );
            passenger
        });
        let run = Run {
            class: Class::Demand,
            source,
            boarding: Mutex::new(Some(passengers.collect())),
            is_open: false,
            interest: None,
            is_waited_for: false,
            at: AtomicU64::new(0),
        };
        (run, flights)
    }

    /// Takes on one more span, if it is the next one and the request does not become too long.
    fn board(
        &self,
        spans: &[Span],
        index: usize,
    ) -> Option<(oneshot::Receiver<Landing>, Option<Arc<()>>)> {
        let interest = match &self.interest {
            Some(interest) => Some(interest.upgrade()?),
            None => None,
        };
        let mut boarding = self.boarding();
        let passengers = boarding.as_mut().filter(|_| self.is_open)?;
        let (first, last) = (passengers.first()?.span, passengers.last()?.span);
        let len = end_of(&spans[index]) - spans[first].blob_offset;
        if last + 1 != index || len > RUN_MAX[self.class as usize] {
            return None;
        }
        let (passenger, landing) = Passenger::new(index);
        passengers.push(passenger);
        Some((landing, interest))
    }

    /// The blob's bytes for those who have boarded so far.
    pub fn range(&self, spans: &[Span]) -> Range<u64> {
        let boarding = self.boarding();
        let passengers = boarding.as_deref().unwrap_or_default();
        range_of(spans, passengers)
    }

    /// The first span, until departure.
    pub fn first(&self) -> Option<usize> {
        Some(self.boarding().as_ref()?.first()?.span)
    }

    /// Nobody else can join from now on.
    pub fn depart(&self, first_byte: u64) -> Vec<Passenger> {
        self.at.store(first_byte, Ordering::Relaxed);
        self.boarding().take().unwrap_or_default()
    }

    /// Whether somebody waits for it, or nobody ever had to.
    pub fn is_wanted(&self) -> bool {
        let is_alive = |interest: &Weak<()>| interest.strong_count() > 0;
        self.interest.as_ref().is_none_or(is_alive)
    }

    fn boarding(&self) -> MutexGuard<'_, Option<Vec<Passenger>>> {
        self.boarding.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Passenger {
    fn new(span: usize) -> (Passenger, oneshot::Receiver<Landing>) {
        let (landing, receiver) = oneshot::channel();
        (Passenger { span, landing }, receiver)
    }
}

/// The blob's bytes that hold the spans of `passengers`, which are in order.
pub fn range_of(spans: &[Span], passengers: &[Passenger]) -> Range<u64> {
    match passengers {
        [] => 0..0,
        [first, .., last] => spans[first.span].blob_offset..end_of(&spans[last.span]),
        [only] => spans[only.span].blob_offset..end_of(&spans[only.span]),
    }
}

fn end_of(span: &Span) -> u64 {
    span.blob_offset + span.blob_len
}
