//! Tokens and redirect addresses that wear out.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use super::lock;

/// The tokens that the token service gave out, and how often each was used.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    used: Mutex<HashMap<String, u32>>,
    given: AtomicU64,
}

/// What becomes of a request under [`Mood::Tokens`](super::Mood::Tokens).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Passes,
    NeedsToken,
    Refused,
}

impl Tokens {
    pub(super) fn give(&self) -> String {
        let token = format!("t{}", self.given.fetch_add(1, Ordering::SeqCst));
        lock(&self.used).insert(token.clone(), 0);
        token
    }

    pub(super) fn judge(&self, authorization: Option<&str>, good_for: u32) -> Verdict {
        let Some(token) = authorization.and_then(|text| text.strip_prefix("Bearer ")) else {
            return Verdict::NeedsToken;
        };
        match lock(&self.used).get_mut(token) {
            None => Verdict::NeedsToken,
            Some(used) if *used >= good_for => Verdict::Refused,
            Some(used) => {
                *used += 1;
                Verdict::Passes
            }
        }
    }
}

/// Addresses at the store, and how often each may still be used.
#[derive(Debug, Default)]
pub(super) struct Tickets(Mutex<Vec<u32>>);

impl Tickets {
    /// The query of a new address.
    pub(super) fn give(&self, good_for: u32) -> String {
        let mut left = lock(&self.0);
        left.push(good_for);
        format!("ticket={}", left.len() - 1)
    }

    /// Whether a request with this query may pass.
    pub(super) fn take(&self, query: Option<&str>) -> bool {
        let number = query.and_then(|query| query.strip_prefix("ticket="));
        let number = number.and_then(|text| text.parse::<usize>().ok());
        let mut left = lock(&self.0);
        match number.and_then(|number| left.get_mut(number)) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        }
    }
}
