//! The keeper holds a copy of the descriptor of every connection, so that connections outlive the node plugin: while the
//! plugin is replaced or started again readers wait, and nobody gets an error.
//!
//! It is a process of its own (`clip-keeper`), small and dull, so that it needs no upgrade when the plugin does. It knows
//! nothing of what it holds: the plugin gives it a note with each descriptor and gets both back.
//!
//! ```text
//!  clip-csi-node ──hold, release, only, alive──►  clip-keeper
//!                ◄── held: notes and descriptors ──
//! ```
//! The socket is SOCK_SEQPACKET and for root only; each datagram is one JSON document ([`Ask`], [`Answer`]), every question
//! gets one answer. Fields may be added to them, never taken away: keeper and plugin are upgraded apart from each other.
//!
//! With copies of a connection about, the death of its server is no longer its end, and readers would wait for ever for a
//! plugin that never comes back. So the keeper wants to be told that the server is well; when it has not heard so for its
//! *patience*, it aborts what it holds.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clip_engine::datagram;
use clip_registry::Digest;
// rustix cannot say who a client in another pod is: its process has no number here.
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};
use serde::{Deserialize, Serialize};

use crate::server::named_when_ready;
use crate::wire::Secret;

/// How many clients may wait to be accepted.
const BACKLOG: i32 = 16;
/// How often the keeper looks whether its patience is at an end.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A connection that is to be held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deposit {
    /// Which archive is served on it; there is one connection for each.
    pub archive: Digest,
    /// The device number of its filesystem, `MAJOR:MINOR`; the minor number is its name in fusectl.
    pub device: String,
    /// What the plugin wants to find again. It may hold credentials.
    pub note: Secret,
}

/// What the plugin may say.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ask {
    /// Hold the connection whose descriptor comes with this datagram, in place of an earlier one for the archive.
    Hold(Deposit),
    /// Let go of it.
    Release {
        /// Which.
        archive: Digest,
    },
    /// Let go of all others.
    Only {
        /// Which to go on with.
        archives: Vec<Digest>,
    },
    /// Give copies of everything.
    Held {},
    /// The server is well.
    Alive {},
    /// Nothing: for somebody who only wants to know whether there is an answer.
    Probe {},
}

/// What the keeper may answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// Done.
    Ok {},
    /// So many [`Deposit`](Answer::Deposit)s follow, a datagram each.
    Held {
        /// How many.
        count: usize,
    },
    /// One of them; its descriptor comes with it.
    Deposit(Deposit),
    /// Not done.
    Error {
        /// Why.
        message: String,
    },
}

/// What `clip-keeper` does.
#[derive(Debug)]
pub struct Keeper {
    held: Mutex<Held>,
    /// Where the kernel lets connections be aborted, `/sys/fs/fuse/connections`.
    fusectl: PathBuf,
    patience: Duration,
}

#[derive(Debug)]
struct Held {
    connections: HashMap<Digest, (Deposit, OwnedFd)>,
    /// When the server was last known to be well.
    alive: Instant,
}

impl Keeper {
    /// One that holds nothing yet.
    pub fn new(fusectl: PathBuf, patience: Duration) -> Keeper {
        let held = Held {
            connections: HashMap::new(),
            alive: Instant::now(),
        };
        Keeper {
            held: Mutex::new(held),
            fusectl,
            patience,
        }
    }

    /// Serves everybody who connects to `socket` ([`listen_on`]), for ever.
    pub fn run(self: Arc<Keeper>, socket: OwnedFd) -> io::Result<()> {
        let watchdog = self.clone();
        std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || watchdog.watch())?;
        loop {
            let client = accept_with(&socket, SocketFlags::CLOEXEC)?;
            let keeper = self.clone();
            std::thread::Builder::new()
                .name("client".into())
                .spawn(move || keeper.serve(&client))?;
        }
    }

    fn serve(&self, client: &OwnedFd) {
        // The socket's mode says so too; this does not depend on where it lies.
        match getsockopt(client, PeerCredentials) {
            Ok(peer) if peer.uid() == 0 => {}
            Ok(peer) => return tracing::warn!(uid = peer.uid(), "refused: not root"),
            Err(error) => return tracing::warn!(%error, "refused: nobody knows who it is"),
        }
        loop {
            match datagram::receive(client) {
                Ok(Some((json, descriptors))) => {
                    let descriptor = descriptors.into_iter().next();
                    if let Err(error) = self.answer(client, &json, descriptor) {
                        return tracing::warn!(%error, "a client does not take its answer");
                    }
                }
                Ok(None) => return tracing::info!("the plugin is gone; its connections are held"),
                Err(error) => return tracing::warn!(%error, "a client's socket failed"),
            }
        }
    }

    fn answer(&self, client: &OwnedFd, json: &[u8], descriptor: Option<OwnedFd>) -> io::Result<()> {
        let answer = match (serde_json::from_slice(json), descriptor) {
            (Ok(Ask::Held {}), _) => return self.give(client),
            (Ok(Ask::Hold(deposit)), Some(descriptor)) => {
                let mut held = self.held();
                held.alive = Instant::now();
                let archive = deposit.archive.clone();
                held.connections.insert(archive, (deposit, descriptor));
                Answer::Ok {}
            }
            (Ok(Ask::Hold(_)), None) => Answer::Error {
                message: "no descriptor came with it".to_owned(),
            },
            (Ok(Ask::Release { archive }), _) => {
                self.held().connections.remove(&archive);
                Answer::Ok {}
            }
            (Ok(Ask::Only { archives }), _) => {
                let mut held = self.held();
                held.connections
                    .retain(|archive, _| archives.contains(archive));
                Answer::Ok {}
            }
            (Ok(Ask::Alive {}), _) => {
                self.held().alive = Instant::now();
                Answer::Ok {}
            }
            (Ok(Ask::Probe {}), _) => Answer::Ok {},
            (Err(error), _) => Answer::Error {
                message: error.to_string(),
            },
        };
        send(client, &answer)
    }

    /// Whoever takes over gets copies: should it die too, they are still here.
    fn give(&self, client: &OwnedFd) -> io::Result<()> {
        let deposits = self.held().copies()?;
        let count = deposits.len();
        send(client, &Answer::Held { count })?;
        for (deposit, descriptor) in deposits {
            let answer = serde_json::to_vec(&Answer::Deposit(deposit))?;
            datagram::send(client, &answer, &[descriptor.as_fd()])?;
        }
        Ok(())
    }

    fn watch(&self) {
        loop {
            std::thread::sleep(LOOK_EVERY);
            let mut held = self.held();
            if held.alive.elapsed() < self.patience || held.connections.is_empty() {
                continue;
            }
            tracing::error!(
                connections = held.connections.len(),
                patience = ?self.patience,
                "no server for too long; everything is aborted, and whoever reads gets an error"
            );
            for (deposit, descriptor) in std::mem::take(&mut held.connections).into_values() {
                self.abort(&deposit);
                // Without a server's copy this alone would be the end. A server that hangs in the kernel keeps its own.
                drop(descriptor);
            }
        }
    }

    fn abort(&self, deposit: &Deposit) {
        let Some((_major, minor)) = deposit.device.split_once(':') else {
            return;
        };
        let file = self.fusectl.join(minor).join("abort");
        if let Err(error) = std::fs::write(&file, "1") {
            tracing::warn!(archive = %deposit.archive, file = %file.display(), %error, "cannot abort a connection");
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn copies(&mut self) -> io::Result<Vec<(Deposit, OwnedFd)>> {
        self.alive = Instant::now();
        self.connections
            .values()
            .map(|(deposit, descriptor)| Ok((deposit.clone(), descriptor.try_clone()?)))
            .collect()
    }
}

fn send(client: &OwnedFd, answer: &Answer) -> io::Result<()> {
    datagram::send(client, &serde_json::to_vec(answer)?, &[])
}

/// A socket at `path` that only root may use, in place of what an earlier life left there. It gets its name when it is
/// ready.
pub fn listen_on(path: &Path) -> io::Result<OwnedFd> {
    named_when_ready(path, |unnamed| {
        let socket = new_socket()?;
        bind(&socket, &SocketAddrUnix::new(unnamed)?)?;
        listen(&socket, BACKLOG)?;
        Ok(socket)
    })
}

/// A socket of the kind that the keeper speaks.
pub(crate) fn new_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}
