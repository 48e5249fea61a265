//! The plugin's side of the keeper ([`crate::keeper`]): what has to be held is held there as soon as, and whenever, there
//! is a keeper.
//!
//! Nothing waits for it. A keeper that is killed or replaced gets everything anew; without one, volumes do not outlive
//! this process, and nothing else is different.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clip_engine::datagram;
use clip_registry::Digest;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{SocketAddrUnix, connect};
use serde::{Deserialize, Serialize};

use crate::keeper::{Answer, Ask, Deposit, new_socket};
use crate::wire::{Login, Secret};

/// How long the keeper may take for an answer; it does nothing but remember.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long to wait before a keeper that is not there is looked for again.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long a new plugin waits for a keeper whose socket is there and that does not answer: it may be starting too.
const START_LIMIT: Duration = Duration::from_secs(5);

/// A FUSE connection as control has it: the server may die, this remains.
#[derive(Clone, Debug)]
pub struct Connection {
    /// A copy of the descriptor over which the server speaks to the kernel.
    pub descriptor: Arc<OwnedFd>,
    /// The device number of its filesystem, `MAJOR:MINOR`.
    pub device: String,
    /// The tree that is served on it ([`crate::wire::Serving::tree_id`]).
    pub tree_id: String,
}

/// What the keeper gives back to the plugin's next life.
#[derive(Debug)]
pub struct Kept {
    /// The connection.
    pub connection: Connection,
    /// The credentials with which the archive was read.
    pub login: Login,
}

/// The note that goes with a connection. Another version of the plugin may have to read it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    tree_id: String,
    #[serde(default)]
    login: Login,
}

/// What is to be held. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Custody {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    wanted: Mutex<HashMap<Digest, (Deposit, Arc<OwnedFd>)>>,
    changes: Sender<Change>,
}

#[derive(Debug)]
enum Change {
    Held(Digest),
    Released(Digest),
    Alive,
}

/// Everything that the keeper behind `socket` holds; nothing when there is none.
pub fn take(socket: &Path) -> HashMap<Digest, Kept> {
    let begun = Instant::now();
    loop {
        match Keeper::connect(socket).and_then(|keeper| keeper.held()) {
            Ok(kept) => return kept,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return HashMap::new(),
            Err(error) if begun.elapsed() > START_LIMIT => {
                tracing::warn!(%error, "the keeper does not answer; what it may hold is mounted anew");
                return HashMap::new();
            }
            Err(_) => std::thread::sleep(LOOK_AGAIN / 5),
        }
    }
}

impl Custody {
    /// Has everything held by the keeper behind `socket`, from now on and until this process ends.
    pub fn start(socket: PathBuf) -> io::Result<Custody> {
        let (changes, receiver) = mpsc::channel();
        let shared = Arc::new(Shared {
            wanted: Mutex::default(),
            changes,
        });
        let kept = shared.clone();
        std::thread::Builder::new()
            .name("custody".into())
            .spawn(move || kept.keep_up(&socket, &receiver))?;
        Ok(Custody { shared })
    }

    /// Has the connection of an archive held, in place of an earlier one.
    pub fn hold(&self, archive: &Digest, connection: &Connection, login: &Login) {
        let note = Note {
            tree_id: connection.tree_id.clone(),
            login: login.clone(),
        };
        let note = serde_json::to_string(&note).expect("plain data becomes JSON");
        let deposit = Deposit {
            archive: archive.clone(),
            device: connection.device.clone(),
            note: Secret(note),
        };
        let wanted = (deposit, connection.descriptor.clone());
        self.shared.wanted().insert(archive.clone(), wanted);
        self.change(Change::Held(archive.clone()));
    }

    /// Has it let go.
    pub fn release(&self, archive: &Digest) {
        if self.shared.wanted().remove(archive).is_some() {
            self.change(Change::Released(archive.clone()));
        }
    }

    /// Tells the keeper that the server is well.
    pub fn alive(&self) {
        self.change(Change::Alive);
    }

    fn change(&self, change: Change) {
        // The thread ends with the process.
        let _ = self.shared.changes.send(change);
    }
}

impl Shared {
    fn keep_up(&self, socket: &Path, changes: &Receiver<Change>) {
        let mut complained = false;
        loop {
            // What changed while there was no keeper is in `wanted`.
            while changes.try_recv().is_ok() {}
            let lost = match Keeper::connect(socket) {
                Ok(keeper) => {
                    tracing::info!("connections are held by the keeper");
                    complained = false;
                    self.keep(&keeper, changes)
                }
                Err(error) => Err(error),
            };
            if let Err(error) = lost
                && !complained
            {
                complained = true;
                tracing::warn!(socket = %socket.display(), %error, "no keeper: until there is one, volumes do not outlive a restart of this plugin");
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn keep(&self, keeper: &Keeper, changes: &Receiver<Change>) -> io::Result<()> {
        let archives: Vec<Digest> = self.wanted().keys().cloned().collect();
        for archive in &archives {
            self.hold(keeper, archive)?;
        }
        keeper.ask(&Ask::Only { archives })?;
        while let Ok(change) = changes.recv() {
            match change {
                Change::Held(archive) => self.hold(keeper, &archive)?,
                Change::Released(archive) => keeper.ask(&Ask::Release { archive })?,
                Change::Alive => keeper.ask(&Ask::Alive {})?,
            }
        }
        Ok(())
    }

    fn hold(&self, keeper: &Keeper, archive: &Digest) -> io::Result<()> {
        let wanted = self.wanted().get(archive).cloned();
        match wanted {
            Some((deposit, descriptor)) => keeper.ask_with(&Ask::Hold(deposit), Some(&descriptor)),
            // Released since; its own change follows.
            None => Ok(()),
        }
    }

    fn wanted(&self) -> MutexGuard<'_, HashMap<Digest, (Deposit, Arc<OwnedFd>)>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A keeper that answers.
#[derive(Debug)]
pub struct Keeper {
    socket: OwnedFd,
}

impl Keeper {
    /// Connects to the keeper behind `socket`; `NotFound` when there is none.
    pub fn connect(socket: &Path) -> io::Result<Keeper> {
        let connection = new_socket()?;
        set_socket_timeout(&connection, Timeout::Recv, Some(ANSWER_LIMIT))?;
        set_socket_timeout(&connection, Timeout::Send, Some(ANSWER_LIMIT))?;
        connect(&connection, &SocketAddrUnix::new(socket)?)?;
        Ok(Keeper { socket: connection })
    }

    /// Asks for something without a descriptor.
    pub fn ask(&self, ask: &Ask) -> io::Result<()> {
        self.ask_with(ask, None)
    }

    fn ask_with(&self, ask: &Ask, descriptor: Option<&OwnedFd>) -> io::Result<()> {
        let message = serde_json::to_vec(ask)?;
        datagram::send(
            &self.socket,
            &message,
            descriptor.map(OwnedFd::as_fd).as_slice(),
        )?;
        match self.answer()? {
            (Answer::Ok {}, _) => Ok(()),
            (answer, _) => Err(mistaken(answer)),
        }
    }

    fn held(&self) -> io::Result<HashMap<Digest, Kept>> {
        datagram::send(&self.socket, &serde_json::to_vec(&Ask::Held {})?, &[])?;
        let count = match self.answer()? {
            (Answer::Held { count }, _) => count,
            (answer, _) => return Err(mistaken(answer)),
        };
        let mut held = HashMap::new();
        for _ in 0..count {
            match self.answer()? {
                (Answer::Deposit(deposit), Some(descriptor)) => {
                    held.extend(read(deposit, descriptor));
                }
                (answer, _) => return Err(mistaken(answer)),
            }
        }
        Ok(held)
    }

    fn answer(&self) -> io::Result<(Answer, Option<OwnedFd>)> {
        let (json, descriptors) =
            datagram::receive(&self.socket)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((
            serde_json::from_slice(&json)?,
            descriptors.into_iter().next(),
        ))
    }
}

fn mistaken(answer: Answer) -> io::Error {
    io::Error::other(match answer {
        Answer::Error { message } => message,
        _ => "it answered another question: is it of another version?".to_owned(),
    })
}

/// A note that cannot be read is that of a plugin which nobody knows yet: the archive is mounted anew.
fn read(deposit: Deposit, descriptor: OwnedFd) -> Option<(Digest, Kept)> {
    let Secret(note) = &deposit.note;
    let note: Note = serde_json::from_str(note)
        // Without the error's words: they may quote a secret.
        .inspect_err(|_| tracing::warn!(archive = %deposit.archive, "a kept connection has a note that cannot be read"))
        .ok()?;
    let connection = Connection {
        descriptor: Arc::new(descriptor),
        device: deposit.device,
        tree_id: note.tree_id,
    };
    let login = note.login;
    Some((deposit.archive, Kept { connection, login }))
}
