//! A TCP relay before the registry that counts what passes: the same yardstick for every system.

use anyhow::Result;
use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Marks a request for a blob in what a client sends.
const BLOB_REQUEST: &[u8] = b"/blobs/sha256:";

/// A running relay; it ends with the process.
#[derive(Debug, Clone)]
pub struct Relay {
    address: String,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    bytes: AtomicU64,
    blob_requests: AtomicU64,
}

/// What passed since the last look.
#[derive(Debug, Clone, Copy)]
pub struct Passed {
    /// Bytes from the registry, headers included.
    pub bytes: u64,
    /// Requests for blobs.
    pub blob_requests: u64,
}

impl Relay {
    /// Listens on a free loopback port and relays to `upstream`.
    pub fn start(upstream: &str) -> Result<Self> {
        Self::limited(upstream, f64::INFINITY)
    }

    /// The same, but each connection gets at most `bytes_per_second` from `upstream`, as from registries on the internet.
    pub fn limited(upstream: &str, bytes_per_second: f64) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let relay = Self {
            address: listener.local_addr()?.to_string(),
            counts: Arc::default(),
        };
        let (counts, upstream) = (relay.counts.clone(), upstream.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&upstream) else {
                    continue;
                };
                let _ = join(client, server, &counts, bytes_per_second);
            }
        });
        Ok(relay)
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What passed since the last call.
    pub fn take(&self) -> Passed {
        Passed {
            bytes: self.counts.bytes.swap(0, Ordering::Relaxed),
            blob_requests: self.counts.blob_requests.swap(0, Ordering::Relaxed),
        }
    }
}

fn join(
    client: TcpStream,
    server: TcpStream,
    counts: &Arc<Counts>,
    bytes_per_second: f64,
) -> Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let up = counts.clone();
    thread::spawn(move || {
        copy(&mut from_client, &mut to_server, |sent| {
            let requests = sent
                .windows(BLOB_REQUEST.len())
                .filter(|window| *window == BLOB_REQUEST)
                .count();
            up.blob_requests
                .fetch_add(requests as u64, Ordering::Relaxed);
        })
    });
    let (mut from_server, mut to_client, down) = (server, client, counts.clone());
    let mut due = Instant::now();
    thread::spawn(move || {
        copy(&mut from_server, &mut to_client, |received| {
            down.bytes
                .fetch_add(received.len() as u64, Ordering::Relaxed);
            // A pause in which nothing came gives no right to a burst.
            due = due.max(Instant::now());
            thread::sleep(due.saturating_duration_since(Instant::now()));
            due += Duration::from_secs_f64(received.len() as f64 / bytes_per_second);
        })
    });
    Ok(())
}

fn copy(from: &mut TcpStream, to: &mut TcpStream, mut count: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 128 << 10];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        count(&buffer[..len]);
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
