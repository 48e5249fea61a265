//! Something that happened, and is forgotten after a while.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When it happened last.
#[derive(Debug, Default)]
pub(crate) struct Recently {
    last: Mutex<Option<Instant>>,
}

impl Recently {
    /// It happens at `now`.
    pub(crate) fn note(&self, now: Instant) {
        *self.lock() = Some(now);
    }

    /// Whether it happened less than `memory` before `now`.
    pub(crate) fn was_within(&self, memory: Duration, now: Instant) -> bool {
        self.lock()
            .is_some_and(|last| now.saturating_duration_since(last) < memory)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_for_a_while() {
        let (recently, start) = (Recently::default(), Instant::now());
        let (memory, second) = (Duration::from_secs(60), Duration::from_secs(1));
        assert!(!recently.was_within(memory, start));
        recently.note(start);
        assert!(recently.was_within(memory, start + 59 * second));
        assert!(!recently.was_within(memory, start + 60 * second));
        recently.note(start + 60 * second);
        assert!(recently.was_within(memory, start + 61 * second));
    }
}
