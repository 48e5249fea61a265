//! What a server leaves to the next one, and the line on which its keeper receives it and passes it on.
//!
//! The line is a pair of sockets. The server's end is its standard input: a descriptor whose number everybody knows, and
//! that no other process inherits. The keeper says first what there is to go on with, if anything; the server answers
//! with what it serves, once it does. Both say it in the same way: one datagram with the [`Terms`] and two descriptors.
//! From then on the server says now and then that it is alive.

use super::background;
use clip_engine::{Digest, datagram};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};
use tokio::{io::Interest, net::UnixDatagram};

/// A mount that is being served, or is to be served again.
#[derive(Debug)]
pub struct Handover {
    /// What the next server must hold to.
    pub terms: Terms,
    /// The FUSE connection, its INIT answered.
    pub connection: OwnedFd,
    /// The archive, whatever has its name by now.
    pub archive: File,
}

/// What was mounted. The kernel was told of it and keeps what it was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// What the archive was called, for messages.
    pub name: String,
    /// The digest of the archive's bytes.
    pub archive: Digest,
    /// The expanded tree ([`clip_engine::OpenedImage::tree_id`]).
    pub tree: String,
    /// Whether the connection is that of an EROFS mount.
    pub under_erofs: bool,
}

/// How often a server says that it is alive.
pub const ALIVE_EVERY: Duration = Duration::from_secs(2);

/// One end of the line between a keeper and a server.
#[derive(Debug)]
pub struct Line(OwnedFd);

impl Line {
    /// A new line: the keeper's end, and what is to be the server's standard input.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        // One datagram is one message, and the other side's end is noticed.
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
        Ok((Self(ours), theirs))
    }

    /// The server's end, in the server. Its standard input is empty from now on.
    pub fn of_this_process() -> io::Result<Self> {
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        nix::unistd::dup2_stdin(background::null()?)?;
        Ok(Self(socket))
    }

    /// Says what there is to go on with; `None`: nothing. From a keeper that means that a mount is to be made, from a server
    /// that it is alive.
    pub fn send(&self, handover: Option<&Handover>) -> io::Result<()> {
        let message = serde_json::to_vec(&handover.map(|handover| &handover.terms))?;
        let descriptors = handover.map(|left| [left.connection.as_fd(), left.archive.as_fd()]);
        datagram::send(&self.0, &message, descriptors.as_slice().as_flattened())
    }

    /// Waits for what the other side has to say.
    pub fn receive(&self) -> io::Result<Option<Handover>> {
        receive(&self.0)
    }

    /// Says every [`ALIVE_EVERY`] that this process works, as long as somebody listens.
    pub async fn stay_alive(self) {
        // A keeper that does not listen must not stop this process.
        let quick = rustix::io::ioctl_fionbio(&self.0, true);
        while quick.is_ok() {
            tokio::time::sleep(ALIVE_EVERY).await;
            match self.send(None) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
    }

    /// For a keeper, who waits for other things as well.
    pub fn listen(self) -> io::Result<ListeningLine> {
        // It differs from a socket for datagrams by having ends that are noticed. tokio only waits for it to be readable.
        let socket = std::os::unix::net::UnixDatagram::from(self.0);
        socket.set_nonblocking(true)?;
        UnixDatagram::from_std(socket).map(ListeningLine)
    }
}

/// A line on which nothing more will be said from this end.
#[derive(Debug)]
pub struct ListeningLine(UnixDatagram);

impl ListeningLine {
    /// Returns when the other side has said something.
    pub async fn receive(&self) -> io::Result<Option<Handover>> {
        let now = || receive(&self.0);
        self.0.async_io(Interest::READABLE, now).await
    }
}

fn receive(socket: impl AsFd) -> io::Result<Option<Handover>> {
    let (message, descriptors) = datagram::receive(socket)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let terms: Option<Terms> = serde_json::from_slice(&message)?;
    terms
        .map(|terms| Handover::new(terms, descriptors))
        .transpose()
}

impl Handover {
    fn new(terms: Terms, descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let both: [OwnedFd; 2] = descriptors
            .try_into()
            .map_err(|_| io::Error::other("a handover came without its descriptors"))?;
        let [connection, archive] = both;
        Ok(Self {
            terms,
            connection,
            archive: archive.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Seek as _, Write as _};

    fn ends() -> (Line, Line) {
        let (ours, theirs) = Line::new().unwrap();
        (ours, Line(theirs))
    }

    #[test]
    fn a_handover_arrives_with_its_descriptors() {
        let (ours, theirs) = ends();
        let file = |content: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(content).unwrap();
            file
        };
        let terms = Terms {
            // As long as a path can be, with what JSON writes longest.
            name: "\u{1}".repeat(4096),
            archive: Digest::of(b"archive"),
            tree: "tree".to_owned(),
            under_erofs: true,
        };
        let handover = Handover {
            terms: terms.clone(),
            connection: file(b"connection").into(),
            archive: file(b"archive"),
        };
        ours.send(Some(&handover)).unwrap();
        let mut received = theirs.receive().unwrap().unwrap();
        assert_eq!(received.terms, terms);
        let mut content = String::new();
        received.archive.rewind().unwrap();
        received.archive.read_to_string(&mut content).unwrap();
        assert_eq!(content, "archive");
        let mut connection = File::from(received.connection);
        connection.rewind().unwrap();
        connection.read_to_string(&mut content).unwrap();
        assert_eq!(content, "archiveconnection");
    }

    #[test]
    fn nothing_to_go_on_with_is_something_else_than_the_end_of_the_other_side() {
        let (ours, theirs) = ends();
        ours.send(None).unwrap();
        assert!(theirs.receive().unwrap().is_none());
        drop(ours);
        let error = theirs.receive().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
