//! How long and how often a read tries, and why it fails.

use crate::{fetch::FillError, flights::Flight, landing::Landed};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// After the registry client has given up (1.4 s when connections are refused), a read waits so
/// long before it asks again, and then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// A registry that comes back is noticed within this time.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The pause before a span is fetched once more that was there and gone twice.
const GONE_AGAIN: Duration = Duration::from_millis(50);
/// Content with a wrong digest is fetched so often before a read fails: a broken cache between us and the registry may be
/// passed by the next time, an archive that does not fit never will.
const WRONG_CONTENT_TRIES: u32 = 3;
/// Why a read failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The bytes could not be fetched.
    #[error(transparent)]
    Fill(#[from] Arc<FillError>),
    /// Nobody answered in time.
    #[error("gave up after {:.0} s: the registry does not answer", .0.as_secs_f64())]
    Timeout(Duration),
    /// What was fetched was evicted again before it could be read, until the time was up.
    #[error(
        "gave up after {:.0} s: the cache has no room for what is read at once; give it more (--cache-max, --cache-min-free)",
        .0.as_secs_f64()
    )]
    Thrashing(Duration),
}

impl ReadError {
    /// Whether it is the time that was up. Other errors come at once, and again at once.
    pub fn is_late(&self) -> bool {
        match self {
            Self::Fill(error) => error.may_go_away(),
            Self::Timeout(_) | Self::Thrashing(_) => true,
        }
    }
}

/// How long and how often a read tries.
#[derive(Debug)]
pub struct Patience {
    deadline: Instant,
    started: Instant,
    pause: Duration,
    wrong_content: u32,
    /// Why the last try failed.
    cause: Option<Arc<FillError>>,
}

impl Patience {
    /// Tries until `deadline`.
    pub fn until(deadline: Instant) -> Self {
        Self {
            deadline,
            started: Instant::now(),
            pause: FIRST_PAUSE,
            wrong_content: 0,
            cause: None,
        }
    }

    /// Waits until a span has landed. After a failure that may go away it pauses, and says nothing; the caller then asks
    /// again.
    pub async fn wait_for(&mut self, flight: Flight) -> Result<Option<Landed>, ReadError> {
        match tokio::time::timeout_at(self.deadline.into(), flight.landed()).await {
            Ok(Ok(landed)) => Ok(Some(landed)),
            Ok(Err(error)) => self.pause_after(error).await.map(|()| None),
            Err(_) => Err(self.timeout()),
        }
    }

    /// After a span that had landed could not be read: that may not go on past the deadline either.
    pub async fn pause_after_loss(&mut self) -> Result<(), ReadError> {
        if Instant::now() + GONE_AGAIN >= self.deadline {
            return Err(ReadError::Thrashing(self.started.elapsed()));
        }
        tokio::time::sleep(GONE_AGAIN).await;
        Ok(())
    }

    async fn pause_after(&mut self, error: Arc<FillError>) -> Result<(), ReadError> {
        self.wrong_content += u32::from(error.is_wrong_content());
        let is_bearable =
            error.may_go_away() || (1..WRONG_CONTENT_TRIES).contains(&self.wrong_content);
        if !is_bearable || Instant::now() + self.pause >= self.deadline {
            return Err(error.into());
        }
        if self.pause == FIRST_PAUSE {
            let left = self
                .deadline
                .saturating_duration_since(Instant::now())
                .as_secs();
            tracing::warn!(%error, "a read waits; trying again for up to {left} s");
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.cause = Some(error);
        Ok(())
    }

    /// The time is up. The last cause says more than that.
    fn timeout(&mut self) -> ReadError {
        match self.cause.take() {
            Some(cause) => ReadError::Fill(cause),
            None => ReadError::Timeout(self.started.elapsed()),
        }
    }
}
