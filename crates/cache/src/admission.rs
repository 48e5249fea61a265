//! Who may ask a registry now: limits per registry and for the whole node, demand before everything else.
//!
//! Three classes. *Demand* is what a reader waits for. *Read-ahead* is what a reader will probably want next; it has
//! permits of its own and starts only while no demand of its registry is queued. *Prefetch* is what nobody asked for yet;
//! it starts only while no demand of its registry is queued or under way, and pauses when some comes
//! ([`Ticket::give_way`]).
//!
//! Each registry has a lane. A registry that hangs fills its own lane and no other: the node's limits do not hold for a
//! lane that has less under way than [`GUARANTEED`]. So the node's limits may be exceeded by that much for each registry
//! in use.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{oneshot, watch};

/// Why something is fetched, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A reader waits for it.
    Demand,
    /// A reader will probably want it next.
    ReadAhead,
    /// Nobody asked for it yet.
    Prefetch,
}

const CLASSES: [Class; 3] = [Class::Demand, Class::ReadAhead, Class::Prefetch];

/// What may be under way at once.
#[derive(Debug, Clone, Copy)]
struct Limit {
    requests: usize,
    /// Compressed bytes asked for.
    bytes: u64,
}

/// Of one registry. One request of HTTP/1.1 is one connection: browsers open 6 to a host, containerd 3 for each image it
/// pulls. A node has many readers that wait for small pieces, so there are more for demand; four streams of 4 MiB fill any
/// line that is worth it. Each request costs up to 3 MiB of memory (a decoded span, see `run.rs`).
const LANE: [Limit; 3] = [limit(12, 48 << 20), limit(4, 16 << 20), limit(2, 16 << 20)];
/// Of all registries together.
const NODE: [Limit; 3] = [limit(32, 128 << 20), limit(8, 32 << 20), limit(4, 32 << 20)];
/// Requests that each lane may have of a class whatever the others do.
const GUARANTEED: [usize; 3] = [4, 1, 0];

const fn limit(requests: usize, bytes: u64) -> Limit {
    Limit { requests, bytes }
}

/// All lanes.
#[derive(Debug, Default)]
pub struct Admission {
    lanes: Mutex<Lanes>,
}

#[derive(Debug, Default)]
struct Lanes {
    by_registry: BTreeMap<Arc<str>, Lane>,
    total: [Load; 3],
    /// The registry that was served last; the next one comes first the next time.
    last: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct Lane {
    load: [Load; 3],
    waiting: [VecDeque<Waiter>; 3],
    /// Demand that is queued or under way. Prefetches under way watch it.
    demand: watch::Sender<usize>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Load {
    requests: usize,
    bytes: u64,
}

#[derive(Debug)]
struct Waiter {
    bytes: u64,
    admitted: oneshot::Sender<()>,
}

/// The right to have one request under way; given back when dropped.
#[derive(Debug)]
pub struct Ticket {
    admission: Arc<Admission>,
    registry: Arc<str>,
    class: Class,
    bytes: u64,
    demand: watch::Receiver<usize>,
}

impl Admission {
    /// Waits until `bytes` may be asked of `registry`. Whoever stops waiting loses nothing.
    pub async fn admit(self: &Arc<Self>, registry: &Arc<str>, class: Class, bytes: u64) -> Ticket {
        let (admitted, admission) = oneshot::channel();
        let demand = {
            let mut lanes = self.lock();
            let lane = lanes.by_registry.entry(registry.clone()).or_default();
            lane.waiting[class as usize].push_back(Waiter { bytes, admitted });
            if class == Class::Demand {
                lane.demand.send_modify(|demand| *demand += 1);
            }
            lane.demand.subscribe()
        };
        // From here on it is given back whatever happens; a place in the queue, too.
        let mut place = Place {
            admission: self,
            registry,
            class,
            admitted: admission,
            bytes,
            is_taken: false,
        };
        self.lock().dispatch();
        // The queue never drops who waits.
        place.is_taken = (&mut place.admitted).await.is_ok();
        Ticket {
            admission: self.clone(),
            registry: registry.clone(),
            class,
            bytes,
            demand,
        }
    }

    fn release(&self, registry: &Arc<str>, class: Class, bytes: u64) {
        let mut lanes = self.lock();
        lanes.total[class as usize].remove(bytes);
        if let Some(lane) = lanes.by_registry.get_mut(registry) {
            lane.load[class as usize].remove(bytes);
            lane.demand_ended(class);
            if lane.is_idle() {
                lanes.by_registry.remove(registry);
            }
        }
        lanes.dispatch();
    }

    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a queue. Dropped before its turn came, it is left; dropped between its turn and the ticket, the turn is
/// given back.
struct Place<'a> {
    admission: &'a Admission,
    registry: &'a Arc<str>,
    class: Class,
    bytes: u64,
    admitted: oneshot::Receiver<()>,
    is_taken: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.is_taken {
            return;
        }
        self.admitted.close();
        if self.admitted.try_recv().is_ok() {
            return self
                .admission
                .release(self.registry, self.class, self.bytes);
        }
        let mut lanes = self.admission.lock();
        if let Some(lane) = lanes.by_registry.get_mut(self.registry) {
            lane.waiting[self.class as usize].retain(|waiter| !waiter.admitted.is_closed());
            lane.demand_ended(self.class);
            if lane.is_idle() {
                lanes.by_registry.remove(self.registry);
            }
        }
        // Demand that left may have been what read-ahead waited for.
        lanes.dispatch();
    }
}

impl Ticket {
    /// Waits while there is demand of the same registry, if this is a prefetch; but not longer than a connection may idle.
    pub async fn give_way(&mut self) {
        /// Servers and middle boxes close connections that idle for 15 s and more; the reader's own client gives up one on
        /// which nothing arrives for 30 s.
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

        if self.class == Class::Prefetch && *self.demand.borrow() > 0 {
            let quiet = self.demand.wait_for(|demand| *demand == 0);
            // Late or early, the transfer goes on.
            let _ = tokio::time::timeout(PATIENCE, quiet).await;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admission
            .release(&self.registry, self.class, self.bytes);
    }
}

impl Lanes {
    /// Admits whoever may go now: the most urgent class first, registries in turn.
    fn dispatch(&mut self) {
        for class in CLASSES {
            while self.admit_one(class) {}
        }
    }

    fn admit_one(&mut self, class: Class) -> bool {
        let total = self.total[class as usize];
        let may_go = |lane: &Lane| lane.next(class, total).is_some();
        let mut registries = self.by_registry.iter();
        let first = registries
            .clone()
            .find(|(name, lane)| self.last.as_ref() < Some(name) && may_go(lane));
        let Some((registry, _)) = first.or_else(|| registries.find(|(_, lane)| may_go(lane)))
        else {
            return false;
        };
        let registry = registry.clone();
        let Some(lane) = self.by_registry.get_mut(&registry) else {
            return false;
        };
        let Some(waiter) = lane.waiting[class as usize].pop_front() else {
            return false;
        };
        // One that has left meanwhile sees to its place itself, see `Place`.
        if waiter.admitted.send(()).is_ok() {
            lane.load[class as usize].add(waiter.bytes);
            self.total[class as usize].add(waiter.bytes);
            self.last = Some(registry);
        }
        true
    }
}

impl Lane {
    /// The first in the queue of `class`, if it may go while `total` is under way on the node.
    fn next(&self, class: Class, total: Load) -> Option<&Waiter> {
        let at = class as usize;
        let waiter = self.waiting[at].front()?;
        let held_up = match class {
            Class::Demand => false,
            Class::ReadAhead => !self.waiting[Class::Demand as usize].is_empty(),
            Class::Prefetch => *self.demand.borrow() > 0,
        };
        let fits = self.load[at].fits(waiter.bytes, LANE[at])
            && (self.load[at].requests < GUARANTEED[at] || total.fits(waiter.bytes, NODE[at]));
        (fits && !held_up).then_some(waiter)
    }

    fn demand_ended(&self, class: Class) {
        if class == Class::Demand {
            self.demand.send_modify(|demand| *demand -= 1);
        }
    }

    fn is_idle(&self) -> bool {
        self.load.iter().all(|load| load.requests == 0)
            && self.waiting.iter().all(VecDeque::is_empty)
    }
}

impl Load {
    /// A single request may be larger than the limit.
    fn fits(self, bytes: u64, limit: Limit) -> bool {
        self.requests == 0 || (self.requests < limit.requests && self.bytes + bytes <= limit.bytes)
    }

    fn add(&mut self, bytes: u64) {
        self.requests += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: u64) {
        self.requests -= 1;
        self.bytes -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn registry(name: &str) -> Arc<str> {
        name.into()
    }

    /// A ticket, if there is one at once.
    fn now(admission: &Arc<Admission>, name: &str, class: Class, bytes: u64) -> Option<Ticket> {
        let name = registry(name);
        admission.admit(&name, class, bytes).now_or_never()
    }

    fn all(admission: &Arc<Admission>, name: &str, class: Class, bytes: u64) -> Vec<Ticket> {
        std::iter::from_fn(|| now(admission, name, class, bytes)).collect()
    }

    #[test]
    fn a_lane_holds_so_many_requests_and_bytes_and_gets_them_back() {
        let admission = Arc::<Admission>::default();
        let requests = all(&admission, "a", Class::Demand, 1);
        assert_eq!(requests.len(), LANE[0].requests);
        drop(requests);
        let bytes = all(&admission, "a", Class::Demand, 16 << 20);
        assert_eq!(bytes.len() as u64, LANE[0].bytes / (16 << 20));
        drop(bytes);
        let huge = now(&admission, "a", Class::Demand, 1 << 40);
        assert!(huge.is_some() && now(&admission, "a", Class::Demand, 1).is_none());
        drop(huge);
        assert!(
            admission.lock().by_registry.is_empty(),
            "nothing is left of a registry that nobody uses"
        );
    }

    #[test]
    fn however_many_registries_hang_another_one_is_asked() {
        let admission = Arc::<Admission>::default();
        let hung: Vec<_> = (0..50)
            .flat_map(|n| all(&admission, &format!("hung-{n}"), Class::Demand, 1 << 20))
            .collect();
        assert!(hung.len() >= NODE[0].requests);
        let good = all(&admission, "good", Class::Demand, 1 << 20);
        assert_eq!(good.len(), GUARANTEED[0]);
        assert!(now(&admission, "good", Class::ReadAhead, 1 << 20).is_some());
    }

    #[tokio::test]
    async fn demand_goes_before_read_ahead_and_that_before_prefetch() {
        let admission = Arc::<Admission>::default();
        let name = registry("a");
        let mut held = all(&admission, "a", Class::Demand, 1);
        let (order, mut seen) = tokio::sync::mpsc::unbounded_channel();
        for class in [Class::Demand, Class::Prefetch, Class::ReadAhead] {
            let (admission, name, order) = (admission.clone(), name.clone(), order.clone());
            tokio::spawn(async move {
                let ticket = admission.admit(&name, class, 1).await;
                order.send(class).unwrap();
                drop(ticket);
            });
            tokio::task::yield_now().await;
        }
        assert!(seen.try_recv().is_err(), "demand is queued, all wait");
        held.pop();
        assert_eq!(seen.recv().await, Some(Class::Demand));
        assert_eq!(seen.recv().await, Some(Class::ReadAhead));
        assert!(seen.try_recv().is_err(), "demand is under way");
        held.clear();
        assert_eq!(seen.recv().await, Some(Class::Prefetch));
    }

    #[tokio::test]
    async fn a_prefetch_under_way_waits_for_demand_to_end() {
        let admission = Arc::<Admission>::default();
        let mut prefetch = now(&admission, "a", Class::Prefetch, 1).unwrap();
        assert!(prefetch.give_way().now_or_never().is_some());
        let demand = now(&admission, "a", Class::Demand, 1).unwrap();
        let other = now(&admission, "b", Class::Demand, 1).unwrap();
        assert!(prefetch.give_way().now_or_never().is_none());
        drop(demand);
        assert!(prefetch.give_way().now_or_never().is_some());
        drop(other);
    }

    #[tokio::test]
    async fn who_stops_waiting_holds_up_nobody() {
        let admission = Arc::<Admission>::default();
        let mut held = all(&admission, "a", Class::Demand, 1);
        let name = registry("a");
        let mut left = Box::pin(admission.admit(&name, Class::Demand, 1));
        let mut stays = Box::pin(admission.admit(&name, Class::Demand, 1));
        assert!((&mut left).now_or_never().is_none() && (&mut stays).now_or_never().is_none());
        // One leaves the queue, another one between its turn and its ticket.
        drop(left);
        held.pop();
        drop(stays);
        assert!(now(&admission, "a", Class::Demand, 1).is_some());
        held.clear();
        assert!(admission.lock().by_registry.is_empty());
    }
}
