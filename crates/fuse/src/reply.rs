//! Answers that come later.

use crate::{answer, wire::OutHeader};
use rustix::io::Errno;
use std::{
    io::IoSlice,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};
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

/// The right to answer a READ.
///
/// One that is dropped leaves the request to the connection's next server, which the kernel asks again; unless it is
/// dropped by a panic, which answers `EIO`, so that nobody waits for ever.
#[derive(Debug)]
pub struct Reply {
    channel: Channel,
    unique: u64,
}

impl Reply {
    pub(crate) fn new(channel: Channel, unique: u64) -> Self {
        Self { channel, unique }
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
        // What was answered cannot be answered again: no request has this number then.
        if std::thread::panicking() {
            self.channel.send_error(self.unique, Errno::IO);
        }
    }
}
