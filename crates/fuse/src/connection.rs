//! One connection: what the kernel asks goes in, answers go out.

use crate::{
    answer,
    dir_list::DirList,
    filesystem::{Filesystem, Traits},
    reply::{Channel, Reply, Waiting},
    request::{Operation, Request},
    wire::{MAJOR, NOTIFY_RESEND, capability},
};
use rustix::{buffer::spare_capacity, fs::OFlags, io::Errno};
use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
};
use zerocopy::IntoBytes;

/// The kernel does not hand out requests to whom has no room for the largest: a write of the size that was agreed upon,
/// and its header. Nobody writes, so the rest of the buffer is never touched, and costs no memory.
const REQUEST_LEN_MAX: usize = answer::READ_LEN_MAX as usize + 4096;

/// A FUSE connection whose INIT was answered, and that is to be served ([`Dispatcher::serve`](crate::Dispatcher::serve)).
pub struct Connection {
    channel: Channel,
    waiting: Waiting,
    filesystem: Box<dyn Filesystem>,
    traits: Traits,
    /// The kernel opens files and directories without asking, once it has been told so.
    opens_itself: bool,
}

/// Buffers of a thread that serves connections.
#[derive(Debug)]
pub struct Buffers {
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            request: Vec::with_capacity(REQUEST_LEN_MAX),
            answer: Vec::new(),
        }
    }
}

/// What came of looking for a request.
#[derive(Debug)]
pub enum Served {
    /// One was answered, or will be.
    One,
    /// There is none.
    Nothing,
    /// There will be none: it was unmounted or aborted; or the kernel says something else, which it never should.
    End(io::Result<()>),
}

impl Connection {
    /// Begins with `filesystem` on a connection that is mounted: waits for the kernel's INIT, and answers it.
    ///
    /// # Errors
    /// `Unsupported`: the kernel speaks another protocol. Else what the kernel says of what is no connection, or was aborted.
    pub fn begin(fd: OwnedFd, filesystem: impl Filesystem) -> io::Result<Self> {
        let mut connection = Self::new(fd, filesystem);
        let mut buffers = Buffers::default();
        let message = read_message(&connection.channel, &mut buffers.request)?;
        match Request::parse(message) {
            Some(Request {
                unique,
                operation:
                    Operation::Init {
                        major: MAJOR,
                        minor: _,
                        max_readahead,
                        capabilities,
                    },
                ..
            }) => {
                let no_open = capability::NO_OPEN_SUPPORT | capability::NO_OPENDIR_SUPPORT;
                connection.opens_itself = capabilities & no_open == no_open;
                let out = &mut buffers.answer;
                answer::begin(out);
                let agreed = answer::init(capabilities, max_readahead, connection.traits);
                out.extend_from_slice(agreed.as_bytes());
                answer::seal(out, unique);
                connection.channel.send(out);
                Ok(connection)
            }
            other => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("the kernel begins with {other:?}"),
            )),
        }
    }

    /// Goes on with a connection whose server is gone. Requests which that one had taken come again.
    ///
    /// Whoever holds a copy of the connection's descriptor keeps it alive: readers wait. The next server needs nothing
    /// else, if `filesystem` numbers its nodes as the one before. The kernel has long had its INIT answered and sends no
    /// other.
    ///
    /// # Errors
    /// `InvalidInput`: the kernel is older than Linux 6.9 and cannot resend. Else what it says of a connection that was
    /// aborted.
    pub fn resume(fd: OwnedFd, filesystem: impl Filesystem) -> io::Result<Self> {
        let connection = Self::new(fd, filesystem);
        let resend = answer::header(0, NOTIFY_RESEND, 0);
        rustix::io::write(&connection.channel, resend.as_bytes())?;
        Ok(connection)
    }

    fn new(fd: OwnedFd, filesystem: impl Filesystem) -> Self {
        Self {
            channel: Channel::new(fd),
            waiting: Waiting::default(),
            traits: filesystem.traits(),
            filesystem: Box::new(filesystem),
            // As every kernel does that can resend.
            opens_itself: true,
        }
    }

    /// From now on [`answer_one`](Self::answer_one) does not wait. Says so for all copies of the descriptor; whoever else
    /// has one does not read from it.
    pub(crate) fn never_wait(&self) -> rustix::io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&self.channel)?;
        rustix::fs::fcntl_setfl(&self.channel, flags | OFlags::NONBLOCK)
    }

    /// Takes one request, if there is one, and answers it.
    pub(crate) fn answer_one(&self, buffers: &mut Buffers) -> Served {
        let message = match read_message(&self.channel, &mut buffers.request) {
            Ok(message) => message,
            Err(Errno::AGAIN) => return Served::Nothing,
            Err(Errno::NODEV) => return Served::End(Ok(())),
            Err(error) => return Served::End(Err(error.into())),
        };
        let Some(request) = Request::parse(message) else {
            let broken = io::Error::other("the kernel sent what is no request");
            return Served::End(Err(broken));
        };
        let unique = request.unique;
        let answered = catch_unwind(AssertUnwindSafe(|| {
            self.answer(&request, &mut buffers.answer)
        }));
        match answered {
            Ok(Some(Ok(()))) => {
                answer::seal(&mut buffers.answer, unique);
                self.channel.send(&buffers.answer);
            }
            Ok(Some(Err(error))) => self.channel.send_error(unique, error),
            Ok(None) => {}
            // The panic was reported already. Whoever asked must not wait for ever.
            Err(_) => self.channel.send_error(unique, Errno::IO),
        }
        Served::One
    }

    /// Writes the answer into `out`. None: there is none, or it comes later.
    fn answer(&self, request: &Request<'_>, out: &mut Vec<u8>) -> Option<Result<(), Errno>> {
        let (node, unique) = (request.node, request.unique);
        answer::begin(out);
        match request.operation {
            Operation::Forget => None,
            Operation::Interrupt { unique } => match self.waiting.interrupt(unique) {
                true => None,
                // It was answered meanwhile, or another thread has just taken it: the kernel says it again if need be.
                false => Some(Err(Errno::AGAIN)),
            },
            Operation::Read {
                offset,
                len,
                is_direct,
            } => {
                let len = len as usize;
                let later = || {
                    let (channel, waiting) = (self.channel.clone(), self.waiting.clone());
                    Reply::new(channel, unique, waiting, is_direct)
                };
                self.read(node, offset, len, out, later)
            }
            ref operation => Some(self.answer_now(node, operation, out)),
        }
    }

    fn read(
        &self,
        node: u64,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
        later: impl FnOnce() -> Reply,
    ) -> Option<Result<(), Errno>> {
        match self.filesystem.read_now(node, offset, len, out) {
            Ok(true) => Some(Ok(())),
            Ok(false) => {
                self.filesystem.read_later(node, offset, len, later());
                None
            }
            Err(error) => Some(Err(error)),
        }
    }

    fn answer_now(
        &self,
        node: u64,
        operation: &Operation<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let filesystem = &self.filesystem;
        match *operation {
            Operation::Lookup { name } => {
                let found = filesystem.lookup(node, name)?;
                let entry = found.map_or_else(answer::no_entry, |found| answer::entry(&found));
                out.extend_from_slice(entry.as_bytes());
            }
            Operation::GetAttributes => {
                let attributes = answer::attributes(&filesystem.attributes(node)?);
                out.extend_from_slice(attributes.as_bytes());
            }
            Operation::ReadLink => filesystem.read_link(node, out)?,
            // The kernel asks once, then opens everything by itself.
            Operation::Open | Operation::OpenDirectory if self.opens_itself => {
                return Err(Errno::NOSYS);
            }
            Operation::Open | Operation::OpenDirectory => {
                out.extend_from_slice(answer::open().as_bytes());
            }
            Operation::ReadDirectory { cookie, len, plus } => {
                let mut list = DirList::new(out, len as usize, plus);
                filesystem.read_dir(node, cookie, &mut list)?;
            }
            Operation::Statistics => {
                out.extend_from_slice(answer::statistics(filesystem.statistics()).as_bytes());
            }
            // Without attributes: asked once.
            Operation::GetXattr { .. } | Operation::ListXattr { .. } if !self.traits.xattrs => {
                return Err(Errno::NOSYS);
            }
            Operation::GetXattr { name, len } => {
                filesystem.xattr(node, name, out)?;
                answer::fit_xattr(out, len)?;
            }
            Operation::ListXattr { len } => {
                filesystem.xattr_names(node, out)?;
                answer::fit_xattr(out, len)?;
            }
            Operation::Release => {}
            _ => return Err(Errno::NOSYS),
        }
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("channel", &self.channel)
            .field("traits", &self.traits)
            .finish_non_exhaustive()
    }
}

/// The next message.
fn read_message<'a>(channel: &Channel, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], Errno> {
    loop {
        buffer.clear();
        match rustix::io::read(channel, spare_capacity(buffer)) {
            Ok(_) => return Ok(buffer),
            // `ENOENT`: who asked was killed meanwhile.
            Err(Errno::INTR | Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
}
