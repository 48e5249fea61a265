//! Taking over a FUSE connection whose server is gone.
//!
//! Whoever holds a copy of the connection's descriptor keeps it alive: readers wait. The next server needs nothing but
//! the descriptor, because node numbers are those of the tree and nothing else was ever handed out. Two things differ
//! from a new connection: the kernel has long had its INIT answered and sends no other, and the requests that the dead
//! server had taken are lost until `FUSE_NOTIFY_RESEND` (Linux 6.9) brings them back.
//!
//! fuser begins every session with INIT. So it shakes hands over a pair of sockets, on one end of which we are the
//! kernel; then the connection is put in the socket's place.

// Replacing the file behind a descriptor that fuser owns cannot be said in safe Rust.
#![allow(unsafe_code)]

use fuser::{Config, Filesystem, Session, SessionACL};
use nix::{fcntl::OFlag, unistd::dup3_raw};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd},
};

/// Opcode of INIT, and the length of its message (linux/fuse.h: `fuse_in_header` and `fuse_init_in`).
const FUSE_INIT: u32 = 26;
const INIT_LEN: usize = 40 + 64;
/// The protocol that every kernel with `FUSE_NOTIFY_RESEND` speaks at least, 7.40 (Linux 6.9).
const PROTOCOL: (u32, u32) = (7, 40);
/// The kernel's default, beyond which fuser does not go.
const MAX_READAHEAD: u32 = 128 << 10;
/// linux/fuse.h.
const FUSE_NOTIFY_RESEND: u32 = 7;

/// A session that goes on with `connection`. `filesystem` must number its nodes as the one before.
///
/// # Errors
/// `InvalidInput`: the kernel does not know RESEND. Else what the kernel says of a connection that was aborted.
pub fn resume<F: Filesystem>(
    filesystem: F,
    connection: OwnedFd,
    config: Config,
) -> io::Result<Session<F>> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::write(&ours, &init_request())?;
    let session = Session::from_fd(filesystem, theirs, SessionACL::All, config)?;
    // The one before is dead: what it had taken and not answered comes again, before anything new.
    rustix::io::write(&connection, &resend_notification())?;
    let place = session.as_fd().as_raw_fd();
    // SAFETY: `place` is open, for the session owns it; it stays the session's, who will close it. No thread reads from
    // it yet.
    let replaced = unsafe { dup3_raw(&connection, place, OFlag::O_CLOEXEC) }?;
    let _still_the_sessions = replaced.into_raw_fd();
    Ok(session)
}

/// What the kernel says first on a new connection, with every capability: those that matter to a server are there in
/// any kernel that can resend.
fn init_request() -> [u8; INIT_LEN] {
    let mut message = [0; INIT_LEN];
    let mut put = |at: usize, value: u32| {
        message[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    };
    put(0, INIT_LEN as u32);
    put(4, FUSE_INIT);
    // `unique`, which the answer repeats.
    put(8, 1);
    put(40, PROTOCOL.0);
    put(44, PROTOCOL.1);
    put(48, MAX_READAHEAD);
    // `flags` and `flags2`.
    put(52, u32::MAX);
    put(56, u32::MAX);
    message
}

/// `fuse_out_header` with no request's number: a notification, its code where the error would be.
fn resend_notification() -> [u8; 16] {
    let mut message = [0; 16];
    message[..4].copy_from_slice(&16_u32.to_ne_bytes());
    message[4..8].copy_from_slice(&FUSE_NOTIFY_RESEND.to_ne_bytes());
    message
}
