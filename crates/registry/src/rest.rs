//! How long a mirror is left alone after it failed: for everything, or, if it refused, for one repository.
//!
//! A refusal (401, 403) says something of an image and of those who read it; readers of other images do not pay for it.
//! Whatever else goes wrong is the mirror's own state.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Long enough that a dead mirror costs one read in a hundred its time-out, short enough that one that restarts is used
/// again soon.
const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);

/// The rests of one mirror.
#[derive(Debug, Default)]
pub(crate) struct Rests {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    all: Rest,
    /// By the repository's name.
    of: HashMap<String, Rest>,
}

#[derive(Debug)]
struct Rest {
    until: Option<Instant>,
    next: Duration,
}

impl Rests {
    /// Whether `repository` is not to be asked for at `now`.
    pub(crate) fn hold_for(&self, repository: &str, now: Instant) -> bool {
        let state = self.lock();
        let of_this = state.of.get(repository);
        state.all.lasts(now) || of_this.is_some_and(|rest| rest.lasts(now))
    }

    /// Begins a rest for everything. None if it rests already: requests that were under way together fail together, and
    /// count once.
    pub(crate) fn begin(&self, now: Instant) -> Option<Duration> {
        self.lock().all.begin(now)
    }

    /// The same for one repository.
    pub(crate) fn begin_for(&self, repository: &str, now: Instant) -> Option<Duration> {
        let mut state = self.lock();
        state.of.retain(|_, rest| rest.matters(now));
        let rest = state.of.entry(repository.to_owned()).or_default();
        rest.begin(now)
    }

    /// It gave all of what it was asked for in `repository`: the next rest is a short one again.
    pub(crate) fn shorten(&self, repository: &str) {
        let mut state = self.lock();
        state.all.next = FIRST;
        if let Some(rest) = state.of.get_mut(repository) {
            rest.next = FIRST;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Rest {
    fn default() -> Rest {
        Rest {
            until: None,
            next: FIRST,
        }
    }
}

impl Rest {
    fn lasts(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    fn begin(&mut self, now: Instant) -> Option<Duration> {
        if self.lasts(now) {
            return None;
        }
        let length = self.next;
        self.until = Some(now + length);
        self.next = (length * 2).min(LONGEST);
        Some(length)
    }

    /// Whether it lasts, or ended so recently that the next one is to be longer.
    fn matters(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until + LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn rests_grow_until_something_succeeds() {
        let (rests, start) = (Rests::default(), Instant::now());
        let mut now = start;
        let mut lengths = Vec::new();
        for _ in 0..7 {
            let length = rests.begin(now).unwrap();
            assert!(rests.hold_for("a", now));
            now += length;
            assert!(!rests.hold_for("a", now));
            lengths.push(length.as_secs());
        }
        assert_eq!(lengths, [10, 20, 40, 80, 160, 300, 300]);
        rests.shorten("a");
        assert_eq!(rests.begin(now), Some(FIRST));
    }

    #[test]
    fn requests_that_fail_together_make_one_rest() {
        let (rests, start) = (Rests::default(), Instant::now());
        assert_eq!(rests.begin(start), Some(FIRST));
        assert_eq!(rests.begin(after(start, 9)), None);
        assert!(!rests.hold_for("a", after(start, 10)));
        assert_eq!(rests.begin(after(start, 10)), Some(2 * FIRST));
    }

    #[test]
    fn a_refusal_is_one_repositorys_own_affair() {
        let (rests, start) = (Rests::default(), Instant::now());
        assert_eq!(rests.begin_for("a", start), Some(FIRST));
        assert_eq!(rests.begin_for("a", after(start, 1)), None);
        assert!(rests.hold_for("a", start) && !rests.hold_for("b", start));
        assert_eq!(rests.begin_for("a", after(start, 10)), Some(2 * FIRST));
        // What another repository gives says nothing of this one.
        rests.shorten("b");
        assert_eq!(rests.begin_for("a", after(start, 30)), Some(4 * FIRST));
        rests.shorten("a");
        assert_eq!(rests.begin_for("a", after(start, 70)), Some(FIRST));
    }

    #[test]
    fn refusals_of_long_ago_take_no_memory() {
        let (rests, start) = (Rests::default(), Instant::now());
        for repository in 0..100 {
            rests.begin_for(&repository.to_string(), start);
        }
        rests.begin_for("now", after(start, 310));
        assert_eq!(rests.lock().of.len(), 1);
    }
}
