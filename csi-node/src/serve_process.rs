//! The data process as control sees it: `clip-serve` is started, spoken to, and started again whenever it ends.
//!
//! Each life of it has a number, the *generation*. A mount belongs to the generation that serves it; when that one is
//! over, its readers wait until [`crate::mounts`] has handed its connection to the next.
//!
//! One that hangs is no better than one that is dead, but holds its connections: [`watch`](ServeProcess::watch) asks it
//! now and then how it is, and ends it when it does not answer.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use std::{io, thread};

use clip_engine::datagram;
use clip_registry::Digest;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::{oneshot, watch};

use crate::wire::{Command, Outcome, Refusal, Reply, Report, Request, Serving, Warmth};

/// How long the server may take for an answer. Opening an archive reads one local file: seconds mean a dying disk.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// How long a request waits for the server to be started again.
const START_LIMIT: Duration = Duration::from_secs(5);
/// Pauses between the restarts of a server that ends soon after its start: none, then from this, doubling, to `MAX_PAUSE`.
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// A server that ends later than this did not fail at its start, which takes a few milliseconds: readers wait, so the next
/// is started at once.
const STARTED: Duration = Duration::from_millis(250);
/// How long to wait when the server's socket is full.
const FULL_PAUSE: Duration = Duration::from_millis(5);
/// How often the server is asked how it is.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// Why a request was not answered with success.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The server said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No server is running, or it ended before it answered.
    #[error("clip-serve is not running; it is being started again (its log says why it ended)")]
    Down,
    /// The server runs and does not answer.
    #[error("clip-serve did not answer within {} s", ANSWER_LIMIT.as_secs())]
    Silent,
    /// The answer is to another question.
    #[error("clip-serve gave an answer to another question: is it of another version?")]
    Mistaken,
    /// The request could not be sent.
    #[error("cannot ask clip-serve: {0}")]
    Send(#[source] io::Error),
}

/// The program to run and its arguments.
#[derive(Clone, Debug)]
pub struct ServeProgram {
    /// Path of the binary.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// A `clip-serve` kept running. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServeProcess {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// `None` while no server runs.
    connection: watch::Sender<Option<Arc<Connection>>>,
}

/// The socket to one life of the server, and who waits for its answers.
#[derive(Debug)]
struct Connection {
    generation: u64,
    /// The process itself (pidfd_open(2)): its number may soon be another's.
    process: OwnedFd,
    socket: OwnedFd,
    next_id: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Outcome>>>,
}

impl ServeProcess {
    /// Starts the program and keeps it running until this process ends.
    ///
    /// The child is started and awaited by a thread that lives as long as this process, because the parent-death signal
    /// which the child asks for follows the *thread* that started it.
    pub fn start(program: ServeProgram) -> io::Result<ServeProcess> {
        let shared = Arc::new(Shared {
            connection: watch::Sender::new(None),
        });
        let supervised = shared.clone();
        thread::Builder::new()
            .name("serve-keeper".into())
            .spawn(move || supervise(&program, &supervised))?;
        Ok(ServeProcess { shared })
    }

    /// The number of the server's present life, once it runs. Waits a little for one that is being started.
    pub async fn generation(&self) -> Result<u64, ServeError> {
        Ok(self.connection().await?.generation)
    }

    /// Whether a server runs now.
    pub fn is_running(&self) -> bool {
        self.shared.connection.borrow().is_some()
    }

    /// Returns when a life later than `generation` has begun.
    pub async fn later_than(&self, generation: u64) -> u64 {
        let mut connections = self.shared.connection.subscribe();
        let is_later = |found: &Option<Arc<Connection>>| {
            found.as_ref().is_some_and(|c| c.generation > generation)
        };
        // The sender lives in `self`, so the wait cannot fail.
        match connections.wait_for(is_later).await {
            Ok(found) => found
                .as_ref()
                .map_or(generation, |connection| connection.generation),
            Err(_closed) => generation,
        }
    }

    /// Asks the server for something and waits until it is done.
    pub async fn ask(&self, command: Command) -> Result<(), ServeError> {
        match self.answer(command, None).await? {
            Outcome::Ok {} => Ok(()),
            outcome => Err(unexpected(outcome)),
        }
    }

    /// Asks the server to serve an archive ([`Command::Serve`]) on a FUSE connection, of which it gets this descriptor.
    pub async fn serve(
        &self,
        command: Command,
        connection: OwnedFd,
    ) -> Result<Serving, ServeError> {
        match self.answer(command, Some(connection)).await? {
            Outcome::Serving(serving) => Ok(serving),
            outcome => Err(unexpected(outcome)),
        }
    }

    /// How far the warming up of an archive is ([`Command::Warmth`]).
    pub async fn warmth(&self, archive_digest: Digest) -> Result<Warmth, ServeError> {
        match self
            .answer(Command::Warmth { archive_digest }, None)
            .await?
        {
            Outcome::Warmth(warmth) => Ok(warmth),
            outcome => Err(unexpected(outcome)),
        }
    }

    /// How it goes.
    pub async fn report(&self) -> Result<Report, ServeError> {
        match self.answer(Command::Report {}, None).await? {
            Outcome::Report(report) => Ok(report),
            outcome => Err(unexpected(outcome)),
        }
    }

    async fn answer(
        &self,
        command: Command,
        descriptor: Option<OwnedFd>,
    ) -> Result<Outcome, ServeError> {
        let connection = self.connection().await?;
        let answer = connection.ask(command, descriptor);
        match tokio::time::timeout(ANSWER_LIMIT, answer).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(error)) => {
                if matches!(error, ServeError::Down) {
                    self.forget(&connection);
                }
                Err(error)
            }
            Err(_elapsed) => Err(ServeError::Silent),
        }
    }

    /// Calls `well` whenever the server says that it is well, and ends a server that does not answer; for ever.
    pub async fn watch(&self, mut well: impl FnMut(Report, u64)) {
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            let Ok(connection) = self.connection().await else {
                continue;
            };
            match self.report().await {
                Ok(report) => well(report, connection.generation),
                Err(ServeError::Silent) => connection.end(),
                // It is being started again, or of another version.
                Err(error) => tracing::debug!(%error, "clip-serve does not say how it is"),
            }
        }
    }

    /// Its end was noticed before the supervisor could reap it: nobody shall try it again.
    fn forget(&self, dead: &Arc<Connection>) {
        self.shared.connection.send_if_modified(|connection| {
            let is_it = connection
                .as_ref()
                .is_some_and(|other| Arc::ptr_eq(other, dead));
            if is_it {
                *connection = None;
            }
            is_it
        });
    }

    async fn connection(&self) -> Result<Arc<Connection>, ServeError> {
        let mut connections = self.shared.connection.subscribe();
        let running =
            tokio::time::timeout(START_LIMIT, connections.wait_for(Option::is_some)).await;
        match running {
            Ok(Ok(connection)) => connection.clone().ok_or(ServeError::Down),
            Ok(Err(_)) | Err(_) => Err(ServeError::Down),
        }
    }
}

impl Connection {
    fn end(&self) {
        tracing::error!(
            generation = self.generation,
            "clip-serve hangs; it is killed and started again"
        );
        if let Err(error) = pidfd_send_signal(&self.process, Signal::KILL) {
            tracing::warn!(%error, "cannot kill clip-serve");
        }
    }

    async fn ask(
        &self,
        command: Command,
        descriptor: Option<OwnedFd>,
    ) -> Result<Outcome, ServeError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let message = serde_json::to_vec(&Request { id, command })
            .map_err(|error| ServeError::Send(error.into()))?;
        let (sender, answer) = oneshot::channel();
        self.waiting().insert(id, sender);
        let sent = self.send(&message, descriptor.as_ref()).await;
        if let Err(error) = sent {
            self.waiting().remove(&id);
            return Err(match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ServeError::Down,
                _ => ServeError::Send(error),
            });
        }
        answer.await.map_err(|_sender_gone| ServeError::Down)
    }

    async fn send(&self, message: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<()> {
        loop {
            match datagram::send_now(
                &self.socket,
                message,
                descriptor.map(OwnedFd::as_fd).as_slice(),
            ) {
                // The server reads a request at once, so the socket is full for moments only, if ever.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(FULL_PAUSE).await
                }
                done => return done,
            }
        }
    }

    /// Hands answers to those who wait for them, until the server closes its end.
    fn read_answers(&self) {
        loop {
            let reply: Reply = match datagram::receive(&self.socket)
                .map(|datagram| datagram.map(|(json, _)| serde_json::from_slice(&json)))
            {
                Ok(Some(Ok(reply))) => reply,
                Ok(Some(Err(error))) => {
                    tracing::error!(%error, "clip-serve sent an answer that cannot be read");
                    continue;
                }
                Ok(None) | Err(_) => break,
            };
            if let Some(sender) = self.waiting().remove(&reply.id) {
                // Whoever asked may have given up.
                let _ = sender.send(reply.outcome);
            }
        }
        self.waiting().clear();
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Outcome>>> {
        self.waiting
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn unexpected(outcome: Outcome) -> ServeError {
    match outcome {
        Outcome::Error(refusal) => refusal.into(),
        _ => ServeError::Mistaken,
    }
}

/// Starts the server again and again; runs on its own thread and never returns.
fn supervise(program: &ServeProgram, shared: &Shared) {
    let mut pause = Duration::ZERO;
    for generation in 1.. {
        let begun = Instant::now();
        match launch(program, generation) {
            Ok((mut child, connection)) => {
                let connection = Arc::new(connection);
                let reader = connection.clone();
                thread::spawn(move || reader.read_answers());
                tracing::info!(pid = child.id(), generation, "clip-serve started");
                shared.connection.send_replace(Some(connection));
                let ended = child.wait();
                shared.connection.send_replace(None);
                match ended {
                    Ok(status) => {
                        tracing::error!(generation, %status, "clip-serve ended; the next one goes on with its connections")
                    }
                    Err(error) => {
                        tracing::error!(generation, %error, "clip-serve cannot be waited for")
                    }
                }
            }
            Err(error) => {
                tracing::error!(program = %program.path.display(), %error, "cannot start clip-serve")
            }
        }
        if begun.elapsed() >= STARTED {
            pause = Duration::ZERO;
        }
        thread::sleep(pause);
        pause = (pause * 2).clamp(MIN_PAUSE, MAX_PAUSE);
    }
}

fn launch(program: &ServeProgram, generation: u64) -> io::Result<(Child, Connection)> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // As the child's standard input the socket needs no descriptor that every other child would inherit too.
    let child = std::process::Command::new(&program.path)
        .args(&program.arguments)
        .stdin(Stdio::from(theirs))
        .spawn()?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    Ok((
        child,
        Connection {
            generation,
            process,
            socket: ours,
            next_id: AtomicU64::new(1),
            waiting: Mutex::default(),
        },
    ))
}
