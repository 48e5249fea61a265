//! A few threads for any number of connections.
//!
//! All wait on one epoll(7) instance. It tells of a connection once for each time that requests arrive (edge-triggered),
//! and tells one thread; that one answers until there is nothing left, while others may be told of later arrivals on the
//! same connection. So a connection that is busy uses all threads, and one that is idle costs none.

use crate::connection::{Buffers, Connection, Served};
use rustix::{
    buffer::spare_capacity,
    event::{
        EventfdFlags,
        epoll::{self, CreateFlags, EventData, EventFlags},
        eventfd,
    },
    io::Errno,
};
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::sync::oneshot;

/// So many requests of one connection in a row, then others get their turn.
const IN_A_ROW: usize = 64;
/// What epoll tells when the threads are to end. Connections are counted from 1.
const END: u64 = 0;

/// Threads that answer what the kernel asks on any number of connections. They end when this is dropped.
#[derive(Debug)]
pub struct Dispatcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    /// Becomes readable when the threads are to end. Open until the last of them has: epoll forgets what is closed, also
    /// when it has not told everybody yet.
    end: OwnedFd,
    /// By the number that epoll tells.
    connections: RwLock<HashMap<u64, Arc<Member>>>,
    last: AtomicU64,
}

#[derive(Debug)]
struct Member {
    connection: Connection,
    /// Taken by the first thread that meets the end.
    ended: Mutex<Option<oneshot::Sender<io::Result<()>>>>,
}

/// A connection that is being served: ready when it was unmounted everywhere, or aborted.
#[derive(Debug)]
pub struct Ended(oneshot::Receiver<io::Result<()>>);

impl Dispatcher {
    /// Starts so many threads.
    pub fn start(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            end: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            connections: RwLock::default(),
            last: AtomicU64::new(END),
        });
        let (epoll, end) = (&shared.epoll, &shared.end);
        // Not edge-triggered, and never read: every thread sees it.
        epoll::add(epoll, end, EventData::new_u64(END), EventFlags::IN)?;
        let dispatcher = Self { shared };
        for index in 0..threads {
            let shared = dispatcher.shared.clone();
            std::thread::Builder::new()
                .name(format!("fuse-{index}"))
                .spawn(move || shared.run())?;
        }
        Ok(dispatcher)
    }

    /// Answers what is asked on `connection` from now on.
    pub fn serve(&self, connection: Connection) -> io::Result<Ended> {
        connection.never_wait()?;
        let (sender, receiver) = oneshot::channel();
        let member = Arc::new(Member {
            connection,
            ended: Mutex::new(Some(sender)),
        });
        self.shared.add(member)?;
        Ok(Ended(receiver))
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        let told = rustix::io::write(&self.shared.end, &1_u64.to_ne_bytes());
        debug_assert!(told.is_ok());
    }
}

impl Ended {
    /// The same for a thread that may wait, outside of any runtime.
    pub fn wait(self) -> io::Result<()> {
        self.0.blocking_recv().unwrap_or_else(|_| Err(given_up()))
    }
}

impl Future for Ended {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let received = ready!(Pin::new(&mut self.0).poll(context));
        Poll::Ready(received.unwrap_or_else(|_| Err(given_up())))
    }
}

fn given_up() -> io::Error {
    io::Error::other("nobody serves the connection any more")
}

impl Shared {
    fn add(&self, member: Arc<Member>) -> io::Result<()> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.write().insert(number, member.clone());
        // What was asked before is told, too.
        let fd = member.connection.as_fd();
        let added = epoll::add(&self.epoll, fd, EventData::new_u64(number), interest());
        added.inspect_err(|_| drop(self.write().remove(&number)))?;
        Ok(())
    }

    /// What each thread does.
    fn run(&self) {
        let mut buffers = Buffers::default();
        while let Some(number) = self.wait() {
            // It may have ended since.
            let member = self.read().get(&number).cloned();
            if let Some(member) = member {
                self.serve(number, &member, &mut buffers);
            }
        }
    }

    /// The number of a connection on which something is asked. None: the end.
    fn wait(&self) -> Option<u64> {
        let mut event = Vec::with_capacity(1);
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut event), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "epoll fails");
                    return None;
                }
            }
            if let Some(event) = event.pop() {
                let number = event.data.u64();
                return (number != END).then_some(number);
            }
        }
    }

    fn serve(&self, number: u64, member: &Arc<Member>, buffers: &mut Buffers) {
        for _ in 0..IN_A_ROW {
            match member.connection.answer_one(buffers) {
                Served::One => {}
                Served::Nothing => return,
                Served::End(outcome) => return self.end(number, member, outcome),
            }
        }
        // Told again if there is more, after those that were told of meanwhile. Fails for one that has ended, which is
        // told by whoever met the end.
        let fd = member.connection.as_fd();
        let _ = epoll::modify(&self.epoll, fd, EventData::new_u64(number), interest());
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<u64, Arc<Member>>> {
        self.connections
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<u64, Arc<Member>>> {
        self.connections
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, number: u64, member: &Member, outcome: io::Result<()>) {
        let mut ended = member.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = ended.take() {
            // epoll forgets a descriptor only when all its copies are closed, and others have some.
            let _ = epoll::delete(&self.epoll, member.connection.as_fd());
            self.write().remove(&number);
            // Nobody need wait for it.
            let _ = sender.send(outcome);
        }
    }
}

/// Errors, such as the end, are told unasked.
fn interest() -> EventFlags {
    EventFlags::IN | EventFlags::ET
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn every_thread_ends_with_its_dispatcher() {
        for _ in 0..100 {
            let dispatcher = Dispatcher::start(4).unwrap();
            let threads = Arc::downgrade(&dispatcher.shared);
            drop(dispatcher);
            let begun = Instant::now();
            while threads.strong_count() > 0 {
                assert!(begun.elapsed() < Duration::from_secs(10), "one waits on");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
