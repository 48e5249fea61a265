//! Messages between the processes that pass connections on to each other: a datagram of a SOCK_SEQPACKET socket, and
//! descriptors with it (SCM_RIGHTS).
//!
//! The end of a process closes its sockets, and the kernel then drops descriptors still under way; that is how the other
//! side notices.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The largest datagram. Linux gives a socket 208 KiB of buffer by default, and a datagram must fit into it.
pub const MAX_DATAGRAM: usize = 200 * 1024;
/// How many descriptors may come with one.
const MAX_DESCRIPTORS: usize = 2;

/// Sends one datagram, and at most two descriptors with it, waiting while the socket is full.
pub fn send(socket: impl AsFd, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_with(socket, message, descriptors, SendFlags::NOSIGNAL)
}

/// The same without waiting: `WouldBlock` when the socket is full.
pub fn send_now(
    socket: impl AsFd,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    send_with(
        socket,
        message,
        descriptors,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )
}

fn send_with(
    socket: impl AsFd,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    if message.len() > MAX_DATAGRAM {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the message is too long (credentials over 100 KiB?)",
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors for one message",
        ));
    }
    sendmsg(socket, &[IoSlice::new(message)], &mut control, flags)?;
    Ok(())
}

/// Receives one datagram and the descriptors sent with it; `None` when the other side is gone.
pub fn receive(socket: impl AsFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut message = vec![0; MAX_DATAGRAM];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut message)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        return Ok(None);
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a datagram was cut off",
        ));
    }
    message.truncate(received.bytes);
    let descriptors = control
        .drain()
        .filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    Ok(Some((message, descriptors)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap()
    }

    #[test]
    fn descriptors_travel_with_their_datagram() {
        let (ours, theirs) = pair();
        let files = ["over", "there"].map(|content| {
            let mut file: File = tempfile::tempfile().unwrap();
            file.write_all(content.as_bytes()).unwrap();
            file
        });
        send_now(&ours, b"{}", &files.each_ref().map(File::as_fd)).unwrap();
        send(&ours, b"second", &[]).unwrap();
        let (message, descriptors) = receive(&theirs).unwrap().unwrap();
        assert_eq!(message, b"{}");
        let mut text = String::new();
        for descriptor in descriptors {
            let mut other = File::from(descriptor);
            other.rewind().unwrap();
            other.read_to_string(&mut text).unwrap();
        }
        assert_eq!(text, "overthere");
        let (message, descriptors) = receive(&theirs).unwrap().unwrap();
        assert_eq!((message.as_slice(), descriptors.len()), (&b"second"[..], 0));
    }

    #[test]
    fn the_largest_datagram_fits_and_a_larger_one_is_refused() {
        let (ours, theirs) = pair();
        send(&ours, &vec![b'x'; MAX_DATAGRAM], &[]).unwrap();
        assert_eq!(receive(&theirs).unwrap().unwrap().0.len(), MAX_DATAGRAM);
        let error = send(&ours, &vec![b'x'; MAX_DATAGRAM + 1], &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn the_end_of_the_other_side_is_seen() {
        let (ours, theirs) = pair();
        drop(ours);
        assert!(receive(&theirs).unwrap().is_none());
    }
}
