//! What stands between a client and its registry: counts what is asked for, and misbehaves on command.
//!
//! [`Mood`] lists what it can do, [`Rule`] to which requests: all, those for blobs, the next few, a random share. Moods
//! add up: a slow line may also be cut. Connections are kept alive as a registry keeps them, so they can be counted.
//!
//! It runs on a thread and a runtime of its own, so that tests with and without a runtime can use it.

mod guard;
mod mood;
mod relay;

pub use mood::{Mood, Rule};

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::{Context as _, Result};
use guard::{Tickets, Tokens};
use mood::Live;
use tokio::sync::{oneshot, watch};

/// A request that came by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `GET`, `HEAD`.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The value of the header `Range`.
    pub range: Option<String>,
    /// The value of the header `Authorization`.
    pub authorization: Option<String>,
    /// Which connection it came by; they are counted from 0.
    pub connection: u64,
}

impl Asked {
    fn is_greeting(&self) -> bool {
        self.path.contains("/blobs/") && self.range.as_deref() == Some("bytes=0-0")
    }
}

/// A proxy before one registry, on a free loopback port. It stops when dropped.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    /// Dropped with the proxy, which ends its thread.
    _stop: oneshot::Sender<()>,
}

/// What all connections know.
#[derive(Debug)]
struct Shared {
    upstream: String,
    /// As it stands in references.
    address: SocketAddr,
    /// Where [`Mood::Redirect`] sends clients: as another server than the registry.
    store: SocketAddr,
    rules: watch::Sender<Vec<Live>>,
    asked: Mutex<Vec<Asked>>,
    connections: AtomicU64,
    open: AtomicU64,
    body_bytes: AtomicU64,
    tokens: Tokens,
    tickets: Tickets,
    /// When the line of [`Mood::Bandwidth`] is free again.
    line_free: Mutex<Instant>,
}

impl Proxy {
    /// A proxy before the registry at `upstream` (`127.0.0.1:PORT`).
    pub fn before(upstream: &str) -> Result<Proxy> {
        let listener = || {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            listener.set_nonblocking(true)?;
            anyhow::Ok(listener)
        };
        let (door, store_door) = (listener()?, listener()?);
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            address: door.local_addr()?,
            store: store_door.local_addr()?,
            rules: watch::Sender::default(),
            asked: Mutex::default(),
            connections: AtomicU64::new(0),
            open: AtomicU64::new(0),
            body_bytes: AtomicU64::new(0),
            tokens: Tokens::default(),
            tickets: Tickets::default(),
            line_free: Mutex::new(Instant::now()),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let serving = shared.clone();
        std::thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = relay::listen(serving.clone(), door) => {}
                        () = relay::listen(serving, store_door) => {}
                        // An error only says that the proxy is gone.
                        _ = stopped => {}
                    }
                });
            })
            .context("the proxy's thread")?;
        Ok(Proxy {
            shared,
            _stop: stop,
        })
    }

    /// `127.0.0.1:PORT`, as it stands in references.
    pub fn address(&self) -> String {
        self.shared.address.to_string()
    }

    /// Treats every request so from now on, and forgets all rules.
    pub fn set(&self, mood: Mood) {
        self.set_rules([Rule::always(mood)]);
    }

    /// Has these rules from now on, and no others.
    pub fn set_rules(&self, rules: impl IntoIterator<Item = Rule>) {
        let rules = rules.into_iter().map(Live::from).collect();
        self.shared.rules.send_replace(rules);
    }

    /// Adds a rule to those that hold.
    pub fn add(&self, rule: Rule) {
        self.shared
            .rules
            .send_modify(|rules| rules.push(rule.into()));
    }

    /// What was asked since the start or the last [`Proxy::forget`].
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }

    /// Requests for parts of blobs among them, without [greetings](Proxy::greetings).
    pub fn ranges(&self) -> Vec<Asked> {
        let mut asked = self.asked();
        asked.retain(|asked| {
            asked.path.contains("/blobs/") && asked.range.is_some() && !asked.is_greeting()
        });
        asked
    }

    /// Requests for the first byte of a blob: what a mount asks for before anybody reads.
    pub fn greetings(&self) -> Vec<Asked> {
        let mut asked = self.asked();
        asked.retain(Asked::is_greeting);
        asked
    }

    /// Connections that were accepted since the start.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> u64 {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Bytes of answers' bodies that were handed on since the start or the last [`Proxy::forget`].
    pub fn body_bytes(&self) -> u64 {
        self.shared.body_bytes.load(Ordering::SeqCst)
    }

    /// Begins to count requests and bytes anew.
    pub fn forget(&self) {
        lock(&self.shared.asked).clear();
        self.shared.body_bytes.store(0, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
