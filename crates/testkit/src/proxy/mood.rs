//! What the proxy does, and to which requests.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{Asked, lock};

/// How the proxy treats a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mood {
    /// Passes everything on.
    #[default]
    Relay,
    /// Passes everything on, each request after this pause.
    Slow(Duration),
    /// Bodies share a line of so many bytes a second.
    Bandwidth(u64),
    /// Bodies come in pieces of `piece` bytes with pauses between them.
    Drip {
        /// Bytes.
        piece: usize,
        /// Between two pieces.
        pause: Duration,
    },
    /// Accepts requests and says nothing until the rules change; then hangs up.
    Silent,
    /// The same after so many bytes of a body.
    SilentAfter(u64),
    /// Hangs up on every request.
    HangUp,
    /// Resets the connection (RST) after so many bytes of a body.
    ResetAfter(u64),
    /// Answers itself, with this status and, if given, `Retry-After` in seconds.
    Answer {
        /// The HTTP status.
        status: u16,
        /// `Retry-After`.
        retry_after: Option<u32>,
    },
    /// Flips bits in the bodies of blobs.
    Corrupt,
    /// Gives the bytes from so far behind those asked for, and says so in `Content-Range`.
    OtherRange(u64),
    /// Gives the bytes from so far behind those asked for, and does not say so.
    LyingRange(u64),
    /// Answers ranges with 200 and the whole blob.
    IgnoreRange,
    /// Wants a bearer token, which its own token service gives to anybody. Each is good for so many requests; after that
    /// it is refused with `status`.
    Tokens {
        /// Requests per token.
        good_for: u32,
        /// 401, with a challenge, or 403, without.
        status: u16,
    },
    /// Sends those who want blobs to another server, at an address that is good for so many requests, then 403.
    Redirect {
        /// Requests per address.
        good_for: u32,
    },
}

/// A mood, and the requests to which it is applied.
#[derive(Debug, Clone)]
pub struct Rule {
    mood: Mood,
    blobs_only: bool,
    below: Option<&'static str>,
    times: Option<u32>,
    share: Option<(f64, u64)>,
}

impl Rule {
    /// For every request.
    pub fn always(mood: Mood) -> Rule {
        Rule {
            mood,
            blobs_only: false,
            below: None,
            times: None,
            share: None,
        }
    }

    /// For requests for blobs.
    pub fn blobs(mood: Mood) -> Rule {
        Rule {
            blobs_only: true,
            ..Rule::always(mood)
        }
    }

    /// Only for those whose path begins with `path`: `/v2/team/app/`.
    pub fn below(self, path: &'static str) -> Rule {
        Rule {
            below: Some(path),
            ..self
        }
    }

    /// Only for the next `times` of these requests.
    pub fn times(self, times: u32) -> Rule {
        Rule {
            times: Some(times),
            ..self
        }
    }

    /// Only for a random share of them, from 0 to 1; the same seed gives the same choice.
    pub fn share(self, share: f64, seed: u64) -> Rule {
        Rule {
            share: Some((share, seed)),
            ..self
        }
    }
}

/// A rule at work.
#[derive(Debug, Clone)]
pub(super) struct Live {
    rule: Rule,
    left: Arc<AtomicU32>,
    dice: Arc<Mutex<fastrand::Rng>>,
}

impl From<Rule> for Live {
    fn from(rule: Rule) -> Live {
        Live {
            left: Arc::new(AtomicU32::new(rule.times.unwrap_or(0))),
            dice: Arc::new(Mutex::new(fastrand::Rng::with_seed(
                rule.share.map_or(0, |(_, seed)| seed),
            ))),
            rule,
        }
    }
}

impl Live {
    /// The mood, if this request is one that the rule means. Counts it.
    pub(super) fn applies(&self, asked: &Asked) -> Option<Mood> {
        if self.rule.blobs_only && !asked.path.contains("/blobs/") {
            return None;
        }
        if self
            .rule
            .below
            .is_some_and(|path| !asked.path.starts_with(path))
        {
            return None;
        }
        if let Some((share, _)) = self.rule.share
            && lock(&self.dice).f64() >= share
        {
            return None;
        }
        let one_less = |left: u32| left.checked_sub(1);
        if self.rule.times.is_some()
            && self
                .left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
                .is_err()
        {
            return None;
        }
        Some(self.rule.mood)
    }

    /// The mood, if it is for every request and so ends those under way.
    pub(super) fn outage(&self) -> Option<Mood> {
        let is_outage = matches!(self.rule.mood, Mood::Silent | Mood::HangUp)
            && !self.rule.blobs_only
            && self.rule.below.is_none()
            && self.rule.times.is_none()
            && self.rule.share.is_none();
        is_outage.then_some(self.rule.mood)
    }
}
