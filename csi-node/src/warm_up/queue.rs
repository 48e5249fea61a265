//! Which image is warmed up next, and when one is tried again: decided here, without a clock or a node.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::wishes::{ImageId, Wish, Wishes};
use crate::wire::NotWarmKind;

/// The pause after a first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// A registry that comes back is noticed within this time.
const LAST_PAUSE: Duration = Duration::from_secs(600);
/// How often it is looked whether what was warm still is, and whether what did not fit does now. A layer counts as unused
/// after an hour, so sooner there is hardly ever news; and whatever evicts an image, it is fetched again once an hour at most.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// What is to be warmed up, and how far each of it is.
#[derive(Debug, Default)]
pub struct Queue(BTreeMap<ImageId, Entry>);

#[derive(Debug)]
struct Entry {
    wish: Wish,
    state: State,
    /// When it is the next one's turn.
    due: Instant,
    failures: u32,
}

/// How far an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It was not tried yet, or was interrupted.
    Waiting,
    /// All of it was there at the last look.
    Warm,
    /// The last try failed.
    Failed,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Warm this one up.
    Now(ImageId),
    /// Wait until then, or for other news.
    At(Instant),
    /// Wait for news.
    Never,
}

/// What came of warming up an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// All of it is there.
    Warm {
        /// Compressed bytes that were fetched for it.
        fetched_bytes: u64,
        /// How long it took.
        took: Duration,
    },
    /// It is not, for a cause that its owner is told.
    Failed {
        /// What kind of cause.
        kind: NotWarmKind,
        /// For people.
        message: String,
    },
    /// The server ended meanwhile.
    Interrupted,
}

impl Queue {
    /// Takes over what is wished for. What is new, or another wish than before, is due at once.
    pub fn update(&mut self, wishes: &Wishes, now: Instant) {
        self.0
            .retain(|image, entry| wishes.get(image) == Some(&entry.wish));
        for (image, wish) in wishes {
            self.0.entry(image.clone()).or_insert_with(|| Entry {
                wish: wish.clone(),
                state: State::Waiting,
                due: now,
                failures: 0,
            });
        }
    }

    /// Another server runs: what the last one kept is looked at again. Failures wait as before, for they may be why it ended.
    pub fn look_again(&mut self, now: Instant) {
        for entry in self.0.values_mut() {
            if entry.state == State::Warm {
                entry.due = now;
            }
        }
    }

    /// Whose turn it is.
    pub fn next(&self, now: Instant) -> Next {
        let first = self.0.iter().min_by_key(|(_, entry)| entry.due);
        match first {
            None => Next::Never,
            Some((image, entry)) if entry.due <= now => Next::Now(image.clone()),
            Some((_, entry)) => Next::At(entry.due),
        }
    }

    /// Notes what came of an attempt. Returns whether that is news.
    pub fn record(&mut self, image: &ImageId, attempt: &Attempt, now: Instant) -> bool {
        let Some(entry) = self.0.get_mut(image) else {
            return false;
        };
        let before = entry.state;
        entry.failures = match attempt {
            Attempt::Warm { .. } => 0,
            Attempt::Failed { .. } | Attempt::Interrupted => entry.failures.saturating_add(1),
        };
        entry.due = now + pause(attempt, entry.failures);
        entry.state = match attempt {
            Attempt::Warm { .. } => State::Warm,
            Attempt::Failed { .. } => State::Failed,
            Attempt::Interrupted => State::Waiting,
        };
        match attempt {
            Attempt::Warm { fetched_bytes, .. } => *fetched_bytes > 0 || before != State::Warm,
            Attempt::Failed { .. } => true,
            Attempt::Interrupted => false,
        }
    }

    /// How many images are this far.
    pub fn count(&self, state: State) -> usize {
        self.0.values().filter(|entry| entry.state == state).count()
    }
}

/// How long to wait after the last of so many failures, or after a success.
pub fn pause(attempt: &Attempt, failures: u32) -> Duration {
    match attempt {
        Attempt::Warm { .. }
        | Attempt::Failed {
            kind: NotWarmKind::NoRoom,
            ..
        } => LOOK_AGAIN,
        Attempt::Failed { .. } | Attempt::Interrupted => {
            let doublings = failures.saturating_sub(1).min(10);
            (FIRST_PAUSE * 2_u32.pow(doublings)).min(LAST_PAUSE)
        }
    }
}

#[cfg(test)]
mod tests {
    use clip_registry::Digest;

    use super::*;

    fn id(name: &str) -> ImageId {
        ImageId {
            namespace: "team-a".into(),
            name: name.into(),
        }
    }

    fn wishes(images: &[(&str, &str)]) -> Wishes {
        let wish = |(name, archive): &(&str, &str)| {
            let archive = Digest::sha256_of(archive.as_bytes());
            (id(name), Wish::of_archive(archive))
        };
        images.iter().map(wish).collect()
    }

    fn queue(images: &[(&str, &str)], now: Instant) -> Queue {
        let mut queue = Queue::default();
        queue.update(&wishes(images), now);
        queue
    }

    fn warm(fetched_bytes: u64) -> Attempt {
        Attempt::Warm {
            fetched_bytes,
            took: Duration::ZERO,
        }
    }

    fn failed(kind: NotWarmKind) -> Attempt {
        Attempt::Failed {
            kind,
            message: "m".into(),
        }
    }

    #[test]
    fn one_image_comes_after_the_other_and_a_failed_one_behind_those_that_wait() {
        let now = Instant::now();
        let mut queue = queue(&[("a", "1"), ("b", "2")], now);
        assert_eq!(queue.next(now), Next::Now(id("a")));
        assert!(queue.record(&id("a"), &failed(NotWarmKind::Other), now));
        assert_eq!(queue.next(now), Next::Now(id("b")));
        assert!(queue.record(&id("b"), &warm(5), now));
        assert_eq!(queue.next(now), Next::At(now + FIRST_PAUSE));
        let counts = [State::Waiting, State::Warm, State::Failed].map(|state| queue.count(state));
        assert_eq!(counts, [0, 1, 1]);
    }

    #[test]
    fn pauses_after_failures_grow_and_begin_anew_after_a_success() {
        let now = Instant::now();
        let mut queue = queue(&[("a", "1")], now);
        let mut after = |attempt: &Attempt| {
            queue.record(&id("a"), attempt, now);
            match queue.next(now) {
                Next::At(due) => (due - now).as_secs(),
                next => panic!("{next:?}"),
            }
        };
        let pauses: Vec<u64> = (0..8)
            .map(|_| after(&failed(NotWarmKind::Refused)))
            .collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 600, 600]);
        assert_eq!(after(&warm(0)), 3600);
        assert_eq!(after(&Attempt::Interrupted), 10);
    }

    #[test]
    fn what_does_not_fit_is_not_tried_again_for_an_hour() {
        let now = Instant::now();
        let mut queue = queue(&[("a", "1")], now);
        queue.record(&id("a"), &failed(NotWarmKind::NoRoom), now);
        assert_eq!(queue.next(now), Next::At(now + LOOK_AGAIN));
        queue.look_again(now);
        assert_eq!(queue.next(now), Next::At(now + LOOK_AGAIN));
    }

    #[test]
    fn another_archive_is_fetched_at_once_and_what_is_no_longer_wished_is_forgotten() {
        let now = Instant::now();
        let mut queue = queue(&[("a", "1"), ("b", "2")], now);
        for image in ["a", "b"] {
            queue.record(&id(image), &warm(5), now);
        }
        queue.update(&wishes(&[("a", "new")]), now);
        assert_eq!(queue.next(now), Next::Now(id("a")));
        queue.update(&Wishes::new(), now);
        assert_eq!(queue.next(now), Next::Never);
        assert!(!queue.record(&id("a"), &warm(5), now), "it came too late");
    }

    #[test]
    fn after_the_servers_restart_all_that_was_warm_is_looked_at_and_only_changes_are_told() {
        let now = Instant::now();
        let mut queue = queue(&[("a", "1")], now);
        assert!(queue.record(&id("a"), &warm(0), now), "never told before");
        queue.look_again(now);
        assert_eq!(queue.next(now), Next::Now(id("a")));
        assert!(!queue.record(&id("a"), &Attempt::Interrupted, now));
        assert!(queue.record(&id("a"), &warm(0), now));
        assert!(!queue.record(&id("a"), &warm(0), now), "nothing happened");
        assert!(queue.record(&id("a"), &warm(7), now));
    }
}
