//! Answers that come later.

use crate::{answer, wire::OutHeader};
use rustix::io::Errno;
use std::{
    collections::HashMap,
    io::IoSlice,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;
use zerocopy::IntoBytes;

/// The descriptor of a connection. It is closed when the last answer was given.
#[derive(Debug, Clone)]
pub struct Channel(Arc<OwnedFd>);

impl Channel {
    pub fn new(fd: OwnedFd) -> Self {
        Self(Arc::new(fd))
    }

    /// Sends a whole answer.
    pub fn send(&self, answer: &[u8]) {
        let sent = rustix::io::write(&self.0, answer);
        check(sent);
    }

    /// Answers request `unique` with an error.
    pub fn send_error(&self, unique: u64, error: Errno) {
        self.send(answer::header(unique, -error.raw_os_error(), 0).as_bytes());
    }

    fn send_data(&self, unique: u64, data: &[u8]) {
        let header: OutHeader = answer::header(unique, 0, data.len());
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(data)];
        check(rustix::io::writev(&self.0, &parts));
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `ENOENT`: who asked was killed. Of a connection that has ended the reading side learns.
fn check(sent: rustix::io::Result<usize>) {
    if let Err(error) = sent
        && !matches!(error, Errno::NOENT | Errno::NODEV | Errno::CONNABORTED)
    {
        tracing::error!(%error, "the kernel does not take an answer");
    }
}

/// The READs that are to be answered later, by their numbers: whom to tell of a signal. Nobody is told of one that goes
/// through the page cache.
#[derive(Debug, Clone, Default)]
pub struct Waiting(Arc<Mutex<HashMap<u64, Option<oneshot::Sender<()>>>>>);

impl Waiting {
    /// Tells of a signal to whoever waits for request `unique`. False: it does not wait, or not yet.
    pub fn interrupt(&self, unique: u64) -> bool {
        let mut waiting = self.lock();
        let Some(told) = waiting.get_mut(&unique) else {
            return false;
        };
        if let Some(told) = told.take() {
            // Whoever answers may have stopped to listen.
            let _ = told.send(());
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Option<oneshot::Sender<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to answer a READ.
///
/// One that is dropped leaves the request to the connection's next server, which the kernel asks again; unless it is
/// dropped by a panic, which answers `EIO`, so that nobody waits for ever.
#[derive(Debug)]
pub struct Reply {
    channel: Channel,
    unique: u64,
    waiting: Waiting,
    signal: Option<oneshot::Receiver<()>>,
}

impl Reply {
    pub(crate) fn new(channel: Channel, unique: u64, waiting: Waiting, is_direct: bool) -> Self {
        let (sender, signal) = match is_direct {
            true => {
                let (sender, receiver) = oneshot::channel();
                (Some(sender), Some(receiver))
            }
            false => (None, None),
        };
        waiting.lock().insert(unique, sender);
        Self {
            channel,
            unique,
            waiting,
            signal,
        }
    }

    /// Returns when who asked got a signal, and cannot be killed before there is an answer. Which signal, nobody tells.
    ///
    /// So it is with reads past the page cache (`O_DIRECT`). For all others this never returns.
    pub async fn signalled(&mut self) {
        let told = match self.signal.take() {
            Some(signal) => signal.await,
            None => return std::future::pending().await,
        };
        debug_assert!(told.is_ok(), "the sender goes with this");
    }

    /// The bytes that were asked for.
    pub fn data(self, data: &[u8]) {
        self.channel.send_data(self.unique, data);
    }

    /// Why there are none.
    pub fn error(self, error: Errno) {
        self.channel.send_error(self.unique, error);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.unique);
        // What was answered cannot be answered again: no request has this number then.
        if std::thread::panicking() {
            self.channel.send_error(self.unique, Errno::IO);
        }
    }
}
