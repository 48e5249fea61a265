//! How often and after which pause a request is tried again.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// With these the pauses are about 0.2, 0.4 and 0.8 s: enough for a registry that restarts behind a load balancer,
/// short enough for a reader that waits. Who can wait longer asks again.
const TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The longest `Retry-After` that is waited for here. Docker Hub's are hours: those go to the caller.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// Counts the tries of one request.
#[derive(Debug)]
pub(crate) struct Backoff {
    tries_left: u32,
    pause: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Backoff {
        Backoff {
            tries_left: TRIES - 1,
            pause: FIRST_PAUSE,
        }
    }

    /// A request that must not be repeated.
    pub(crate) fn once() -> Backoff {
        Backoff {
            tries_left: 0,
            pause: FIRST_PAUSE,
        }
    }

    /// Waits before the next try; `false` if there shall be none. `asked` is what the server asked for.
    pub(crate) async fn wait(&mut self, asked: Option<Duration>) -> bool {
        let asked = asked.unwrap_or_default();
        if self.tries_left == 0 || asked > LONGEST_PAUSE {
            return false;
        }
        self.tries_left -= 1;
        // Jitter over ±50%, so that nodes that failed together do not come back together.
        let jittered = self.pause.mul_f64(0.5 + fastrand::f64());
        self.pause *= 2;
        tokio::time::sleep(jittered.max(asked)).await;
        true
    }
}

/// Whether the same request may succeed in a moment.
pub(crate) fn is_transient(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
        || status.is_server_error()
}

/// The seconds of `Retry-After`. Its other form, a date, is rare among registries and read as "no wish".
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}
