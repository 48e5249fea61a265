//! How fast images are completed in the background: nobody waits for it, and the line is there for others, too.

use std::{num::NonZeroU64, sync::Mutex, time::Duration};
use tokio::time::{Instant, sleep_until};

/// A bound for all that shares it.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: Option<NonZeroU64>,
    /// When what was fetched so far is paid for.
    due: Mutex<Instant>,
}

impl Pace {
    /// Bytes per second; `None` or 0: as fast as it gets.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            bytes_per_second: bytes_per_second.and_then(NonZeroU64::new),
            due: Mutex::new(Instant::now()),
        }
    }

    /// How much to fetch between two waits: what may come in a quarter of a second.
    pub(crate) fn portion(&self) -> Option<u64> {
        Some(self.bytes_per_second?.get() / 4)
    }

    /// Returns when there is time for more, after `bytes` were fetched.
    pub(crate) async fn fetched(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else {
            return;
        };
        let took = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
        let due = {
            let mut due = self
                .due
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            // Time in which nothing was fetched is not saved up.
            *due = Instant::now().max(*due) + took;
            *due
        };
        sleep_until(due).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_that_share_a_pace_are_held_to_it_together() {
        let (begun, pace) = (Instant::now(), Pace::new(Some(1000)));
        tokio::join!(pace.fetched(500), pace.fetched(1500));
        assert_eq!(begun.elapsed().as_secs(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_not_caught_up_on() {
        let pace = Pace::new(Some(1000));
        sleep_until(Instant::now() + Duration::from_secs(60)).await;
        let resumed = Instant::now();
        pace.fetched(3000).await;
        assert_eq!(resumed.elapsed().as_secs(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_bound_nobody_waits() {
        let begun = Instant::now();
        for unbounded in [None, Some(0)] {
            Pace::new(unbounded).fetched(u64::MAX).await;
        }
        assert!(begun.elapsed().is_zero());
    }
}
