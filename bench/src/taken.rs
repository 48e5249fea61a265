//! What something took on a line: time, and what passed.

use crate::relay::{Passed, Relay};
use anyhow::Result;
use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    /// By the clock.
    pub time: Duration,
    /// Over the line, in that time.
    pub passed: Passed,
}

impl Taken {
    /// Takes the time of `work`, and counts what passes `relay` meanwhile. What `work` leaves running or mounted is
    /// dropped when both are known.
    pub fn by<T>(relay: &Relay, work: impl FnOnce() -> Result<T>) -> Result<Self> {
        relay.take();
        let started = Instant::now();
        let left = work()?;
        let (time, passed) = (started.elapsed(), relay.take());
        drop(left);
        Ok(Self { time, passed })
    }

    /// In seconds.
    pub fn seconds(&self) -> f64 {
        self.time.as_secs_f64()
    }
}

/// The shorter of `best` and `taken`: whatever else the machine does only adds.
pub fn keep_shorter(best: &mut Option<Taken>, taken: Taken) {
    if best.is_none_or(|best| taken.time < best.time) {
        *best = Some(taken);
    }
}
