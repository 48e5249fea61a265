//! The protocol, with this test in the kernel's place: what a kernel may say and this machine's does not.

use std::{
    io,
    os::fd::OwnedFd,
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use clip_fuse::{
    Attributes, Connection, DirList, Dispatcher, Filesystem, ROOT, Reply, Statistics, Traits,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};

/// Operation codes of linux/fuse.h.
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const GETXATTR: u32 = 22;
const INIT: u32 = 26;
const READDIR: u32 = 28;
const INTERRUPT: u32 = 36;
const READDIRPLUS: u32 = 44;

/// Capabilities of INIT.
const NO_OPEN_SUPPORT: u32 = 1 << 17;
const POSIX_ACL: u32 = 1 << 20;
const NO_OPENDIR_SUPPORT: u32 = 1 << 24;
const INIT_EXT: u32 = 1 << 30;
/// Of `flags2`.
const HAS_RESEND: u32 = 1 << 7;

const ENOSYS: i32 = -38;
const EIO: i32 = -5;
const ERANGE: i32 = -34;
const EAGAIN: i32 = -11;

/// A node whose attributes nobody can tell without a panic.
const PANIC: u64 = 66;

/// A directory with three entries. Reads are answered when the test says how.
struct Tree {
    reads: Sender<Reply>,
}

impl Filesystem for Tree {
    fn traits(&self) -> Traits {
        Traits {
            xattrs: true,
            idmapped: false,
        }
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Errno> {
        assert_ne!(node, PANIC, "as it was asked to");
        Ok(Attributes {
            node,
            size: 42,
            mtime: -1,
            mtime_nsec: 7,
            mode: 0o100_644,
            nlink: 1,
            uid: 1000,
            gid: 100,
            rdev: 0,
        })
    }

    fn lookup(&self, _: u64, _: &[u8]) -> Result<Option<Attributes>, Errno> {
        Ok(None)
    }

    fn read_link(&self, _: u64, _: &mut Vec<u8>) -> Result<(), Errno> {
        Err(Errno::INVAL)
    }

    fn read_dir(&self, _: u64, cookie: u64, list: &mut DirList<'_>) -> Result<(), Errno> {
        for (at, name) in ["a", "eight888", "nine99999"].iter().enumerate() {
            let next = at as u64 + 1;
            let add = |list: &mut DirList<'_>| {
                list.add(next, name.as_bytes(), 10 + next, 0o100_000, || {
                    self.attributes(10 + next)
                })
            };
            if next > cookie && !add(list)? {
                break;
            }
        }
        Ok(())
    }

    fn read_now(&self, _: u64, offset: u64, _: usize, out: &mut Vec<u8>) -> Result<bool, Errno> {
        let is_there = offset == 0;
        if is_there {
            out.extend_from_slice(b"at hand");
        }
        Ok(is_there)
    }

    fn read_later(&self, _: u64, _: u64, _: usize, reply: Reply) {
        self.reads.send(reply).unwrap();
    }

    fn xattr(&self, _: u64, name: &[u8], out: &mut Vec<u8>) -> Result<(), Errno> {
        assert_eq!(name, b"user.x");
        out.extend_from_slice(b"value");
        Ok(())
    }

    fn xattr_names(&self, _: u64, _: &mut Vec<u8>) -> Result<(), Errno> {
        Ok(())
    }

    fn statistics(&self) -> Statistics {
        Statistics { bytes: 1, nodes: 1 }
    }
}

/// The kernel's end of a connection that is served.
struct Kernel {
    end: OwnedFd,
    reads: Receiver<Reply>,
    _dispatcher: Dispatcher,
}

impl Kernel {
    /// Offers `flags`; what was answered comes, too.
    fn begin(flags: u32, flags2: u32) -> (Self, Vec<u8>) {
        let (end, theirs) = pair();
        rustix::io::write(&end, &init(7, flags, flags2)).unwrap();
        let (sender, reads) = channel();
        let connection = Connection::begin(theirs, Tree { reads: sender }).unwrap();
        let dispatcher = Dispatcher::start(2).unwrap();
        drop(dispatcher.serve(connection).unwrap());
        let kernel = Self {
            end,
            reads,
            _dispatcher: dispatcher,
        };
        let (error, agreed) = kernel.answer_to(1);
        assert_eq!(error, 0);
        (kernel, agreed)
    }

    fn ask(&self, unique: u64, opcode: u32, node: u64, body: &[u8]) {
        rustix::io::write(&self.end, &message(unique, opcode, node, body)).unwrap();
    }

    /// The error and the bytes that answer request `unique`.
    fn answer_to(&self, unique: u64) -> (i32, Vec<u8>) {
        assert!(self.is_answered(Duration::from_secs(10)), "no answer");
        let mut answer = vec![0; 1 << 16];
        let len = rustix::io::read(&self.end, &mut answer).unwrap();
        answer.truncate(len);
        assert_eq!(number(&answer, 0) as usize, len);
        assert_eq!(u64::from(number(&answer, 8)), unique);
        (number(&answer, 4) as i32, answer.split_off(16))
    }

    fn is_answered(&self, within: Duration) -> bool {
        let mut asked = [PollFd::new(&self.end, PollFlags::IN)];
        let within = Timespec::try_from(within).unwrap();
        poll(&mut asked, Some(&within)).unwrap() > 0
    }
}

fn pair() -> (OwnedFd, OwnedFd) {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap()
}

fn message(unique: u64, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut message = (40 + body.len() as u32).to_ne_bytes().to_vec();
    message.extend(opcode.to_ne_bytes());
    message.extend(unique.to_ne_bytes());
    message.extend(node.to_ne_bytes());
    message.resize(40, 0);
    message.extend(body);
    message
}

fn init(major: u32, flags: u32, flags2: u32) -> Vec<u8> {
    let numbers = [major, 31, 128 << 10, flags];
    let mut body: Vec<u8> = numbers
        .iter()
        .flat_map(|number| number.to_ne_bytes())
        .collect();
    // Kernels before Linux 5.17 end here.
    if flags & INIT_EXT != 0 {
        body.extend(flags2.to_ne_bytes());
        body.resize(64, 0);
    }
    message(1, INIT, 0, &body)
}

/// `fuse_read_in`.
fn read_in(offset: u64, len: u32) -> Vec<u8> {
    let mut body = vec![0; 40];
    body[8..16].copy_from_slice(&offset.to_ne_bytes());
    body[16..20].copy_from_slice(&len.to_ne_bytes());
    body
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn only_what_the_kernel_offers_is_agreed_upon() {
    let (_old, agreed) = Kernel::begin(POSIX_ACL | 1 << 31, u32::MAX);
    assert_eq!(agreed.len(), 64);
    assert_eq!((number(&agreed, 0), number(&agreed, 12)), (7, POSIX_ACL));
    assert_eq!(number(&agreed, 32), 0, "flags2 without INIT_EXT");
    let (_new, agreed) = Kernel::begin(INIT_EXT | POSIX_ACL, HAS_RESEND | 1 << 9);
    assert_eq!(number(&agreed, 12), INIT_EXT | POSIX_ACL);
    assert_eq!(number(&agreed, 32), HAS_RESEND);
}

#[test]
fn a_kernel_that_cannot_do_without_open_gets_an_answer_to_it() {
    let (old, _) = Kernel::begin(NO_OPENDIR_SUPPORT, 0);
    old.ask(2, OPEN, ROOT, &[0; 8]);
    let (error, opened) = old.answer_to(2);
    assert_eq!((error, opened.len()), (0, 16));
    let (new, _) = Kernel::begin(NO_OPENDIR_SUPPORT | NO_OPEN_SUPPORT, 0);
    new.ask(2, OPEN, ROOT, &[0; 8]);
    assert_eq!(new.answer_to(2).0, ENOSYS);
}

#[test]
fn another_protocol_is_refused() {
    let (kernel, theirs) = pair();
    rustix::io::write(&kernel, &init(8, 0, 0)).unwrap();
    let (reads, _) = channel();
    let refused = Connection::begin(theirs, Tree { reads }).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
}

#[test]
fn a_panic_is_an_io_error_and_the_next_request_is_answered() {
    let (kernel, _) = Kernel::begin(0, 0);
    for unique in 2..10 {
        kernel.ask(unique, GETATTR, PANIC, &[0; 16]);
        assert_eq!(kernel.answer_to(unique).0, EIO);
    }
    kernel.ask(10, GETATTR, ROOT, &[0; 16]);
    let (error, attributes) = kernel.answer_to(10);
    assert_eq!((error, attributes.len()), (0, 104));
    assert_eq!(
        attributes[16 + 32..16 + 40],
        (-1_i64).to_ne_bytes(),
        "mtime"
    );
}

#[test]
fn a_read_may_be_answered_later_and_holds_up_no_other() {
    let (kernel, _) = Kernel::begin(0, 0);
    for unique in 2..6 {
        kernel.ask(unique, READ, 10, &read_in(4096, 100));
    }
    kernel.ask(6, READ, 10, &read_in(0, 100));
    assert_eq!(kernel.answer_to(6), (0, b"at hand".to_vec()));
    let mut waiting: Vec<Reply> = (0..4).map(|_| kernel.reads.recv().unwrap()).collect();
    waiting.pop().unwrap().data(b"later");
    waiting.pop().unwrap().error(Errno::IO);
    let mut answers: Vec<i32> = Vec::new();
    for _ in 0..2 {
        let mut answer = [0; 100];
        assert!(kernel.is_answered(Duration::from_secs(10)));
        let len = rustix::io::read(&kernel.end, &mut answer).unwrap();
        assert!(len == 16 || answer[16..len] == *b"later");
        answers.push(number(&answer, 4) as i32);
    }
    answers.sort_unstable();
    assert_eq!(answers, [EIO, 0]);
}

#[test]
fn a_read_that_is_given_up_is_left_to_the_next_server_but_not_after_a_panic() {
    let (kernel, _) = Kernel::begin(0, 0);
    kernel.ask(2, READ, 10, &read_in(4096, 100));
    drop(kernel.reads.recv().unwrap());
    assert!(!kernel.is_answered(Duration::from_millis(100)));
    kernel.ask(3, READ, 10, &read_in(4096, 100));
    let reply = kernel.reads.recv().unwrap();
    let panicked = std::thread::spawn(move || {
        let _held = reply;
        panic!("as it was asked to");
    });
    assert!(panicked.join().is_err());
    assert_eq!(kernel.answer_to(3).0, EIO);
}

#[test]
fn a_listing_ends_where_the_kernels_room_does() {
    let (kernel, _) = Kernel::begin(0, 0);
    // Names take 8, 8 and 16 bytes after 24 of `fuse_dirent`.
    let cases = [
        (READDIR, 0, 31, 0),
        (READDIR, 0, 32, 32),
        (READDIR, 0, 64, 64),
        (READDIR, 0, 103, 64),
        (READDIR, 0, 104, 104),
        (READDIR, 2, 104, 40),
        (READDIR, 3, 104, 0),
        (READDIRPLUS, 0, 159, 0),
        (READDIRPLUS, 0, 320, 320),
    ];
    for (unique, (opcode, cookie, room, expected)) in (2..).zip(cases) {
        kernel.ask(unique, opcode, ROOT, &read_in(cookie, room));
        let (error, list) = kernel.answer_to(unique);
        assert_eq!((error, list.len()), (0, expected), "{room} from {cookie}");
    }
}

#[test]
fn an_attribute_fits_or_its_length_is_told() {
    let (kernel, _) = Kernel::begin(0, 0);
    let wanted = |len: u32| [&len.to_ne_bytes()[..], &[0; 4], b"user.x\0"].concat();
    kernel.ask(2, GETXATTR, ROOT, &wanted(0));
    assert_eq!(kernel.answer_to(2), (0, vec![5, 0, 0, 0, 0, 0, 0, 0]));
    kernel.ask(3, GETXATTR, ROOT, &wanted(4));
    assert_eq!(kernel.answer_to(3).0, ERANGE);
    kernel.ask(4, GETXATTR, ROOT, &wanted(5));
    assert_eq!(kernel.answer_to(4), (0, b"value".to_vec()));
}

#[test]
fn only_a_read_past_the_page_cache_is_told_of_a_signal() {
    let (kernel, _) = Kernel::begin(0, 0);
    let mut direct = read_in(4096, 100);
    direct[32..36].copy_from_slice(&OFlags::DIRECT.bits().to_ne_bytes());
    let cases = [(2, direct, true), (4, read_in(4096, 100), false)];
    for (unique, body, is_told) in cases {
        kernel.ask(unique, READ, 10, &body);
        let mut reply = kernel.reads.recv().unwrap();
        // The kernel marks the number of an INTERRUPT by its last bit.
        kernel.ask(unique + 1, INTERRUPT, 0, &unique.to_ne_bytes());
        let told = clock().block_on(async {
            tokio::time::timeout(Duration::from_millis(300), reply.signalled()).await
        });
        assert_eq!(told.is_ok(), is_told);
        reply.data(b"later");
        assert_eq!(kernel.answer_to(unique), (0, b"later".to_vec()));
        // Now it does not wait any more.
        kernel.ask(unique + 1, INTERRUPT, 0, &unique.to_ne_bytes());
        assert_eq!(kernel.answer_to(unique + 1).0, EAGAIN);
    }
}

fn clock() -> tokio::runtime::Runtime {
    let mut clock = tokio::runtime::Builder::new_current_thread();
    clock.enable_time().build().unwrap()
}
