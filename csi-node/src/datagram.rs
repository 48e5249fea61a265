//! One datagram of a SOCK_SEQPACKET socket, and at most one descriptor with it (SCM_RIGHTS).
//!
//! The end of a process closes its sockets, and the kernel then drops descriptors still under way; that is how the other
//! side notices.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::slice;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The largest datagram. Linux gives a socket 208 KiB of buffer by default, and a datagram must fit into it.
pub const MAX_DATAGRAM: usize = 200 * 1024;

/// Sends one datagram, and a descriptor with it if there is one, waiting while the socket is full.
pub fn send(
    socket: impl AsFd,
    message: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    send_with(socket, message, descriptor, SendFlags::NOSIGNAL)
}

/// The same without waiting: `WouldBlock` when the socket is full.
pub fn send_now(
    socket: impl AsFd,
    message: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    send_with(
        socket,
        message,
        descriptor,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )
}

fn send_with(
    socket: impl AsFd,
    message: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
    flags: SendFlags,
) -> io::Result<()> {
    if message.len() > MAX_DATAGRAM {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the message is too long (credentials over 100 KiB?)",
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(descriptor) = &descriptor {
        control.push(SendAncillaryMessage::ScmRights(slice::from_ref(descriptor)));
    }
    sendmsg(socket, &[IoSlice::new(message)], &mut control, flags)?;
    Ok(())
}

/// Receives one datagram and the descriptor sent with it; `None` when the other side is gone.
pub fn receive(socket: impl AsFd) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut message = vec![0; MAX_DATAGRAM];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
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
    let descriptor = control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(Some((message, descriptor)))
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
    fn a_descriptor_travels_with_its_datagram() {
        let (ours, theirs) = pair();
        let mut file: File = tempfile::tempfile().unwrap();
        file.write_all(b"over there").unwrap();
        send_now(&ours, b"{}", Some(file.as_fd())).unwrap();
        send(&ours, b"second", None).unwrap();
        let (message, descriptor) = receive(&theirs).unwrap().unwrap();
        assert_eq!(message, b"{}");
        let mut other = File::from(descriptor.unwrap());
        other.rewind().unwrap();
        let mut text = String::new();
        other.read_to_string(&mut text).unwrap();
        assert_eq!(text, "over there");
        let (message, descriptor) = receive(&theirs).unwrap().unwrap();
        assert_eq!(
            (message.as_slice(), descriptor.is_none()),
            (&b"second"[..], true)
        );
    }

    #[test]
    fn the_largest_datagram_fits_and_a_larger_one_is_refused() {
        let (ours, theirs) = pair();
        send(&ours, &vec![b'x'; MAX_DATAGRAM], None).unwrap();
        assert_eq!(receive(&theirs).unwrap().unwrap().0.len(), MAX_DATAGRAM);
        let error = send(&ours, &vec![b'x'; MAX_DATAGRAM + 1], None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn the_end_of_the_other_side_is_seen() {
        let (ours, theirs) = pair();
        drop(ours);
        assert!(receive(&theirs).unwrap().is_none());
    }
}
