//! A TCP relay before the registry that counts what passes: the same yardstick for every system.

use anyhow::Result;
use std::{
    fmt,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// Marks a request for a blob in what a client sends.
const BLOB_REQUEST: &[u8] = b"/blobs/sha256:";

/// What lies between a client and its registry.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Each connection takes so long to come about, and all that a client sends to have an effect.
    pub round_trip: Duration,
    /// Bytes a second from the registry, for each connection.
    pub per_connection: f64,
    /// The same for all together.
    pub shared: f64,
}

impl Default for Link {
    /// As fast as loopback.
    fn default() -> Self {
        Self::LOOPBACK
    }
}

/// The lines over which whole images are compared: loopback, and one with 20 ms and 50 MB/s.
pub const LINES: [(&str, Link); 2] = [
    ("loopback", Link::LOOPBACK),
    (
        SLOW,
        Link {
            round_trip: Duration::from_millis(20),
            shared: 50e6,
            ..Link::LOOPBACK
        },
    ),
];
/// The second of them, for which promises are made.
pub const SLOW: &str = "slow";

impl Link {
    const LOOPBACK: Self = Self {
        round_trip: Duration::ZERO,
        per_connection: f64::INFINITY,
        shared: f64::INFINITY,
    };
}

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

impl fmt::Display for Passed {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = self.bytes as f64 / 1e6;
        write!(text, "{megabytes:.1} MB in {} requests", self.blob_requests)
    }
}

impl Relay {
    /// Listens on a free loopback port and relays to `upstream`, as fast as `link` is.
    pub fn start(upstream: &str, link: Link) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let relay = Self {
            address: listener.local_addr()?.to_string(),
            counts: Arc::default(),
        };
        let (counts, upstream) = (relay.counts.clone(), upstream.to_owned());
        let line = Arc::new(Mutex::new(Instant::now()));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&upstream) else {
                    continue;
                };
                let _ = join(client, server, &counts, link, line.clone());
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
    link: Link,
    line: Arc<Mutex<Instant>>,
) -> Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let up = counts.clone();
    let (travels, arrivals) = mpsc::sync_channel::<(Instant, Vec<u8>)>(64);
    thread::spawn(move || {
        // The connection itself travels first.
        let open = Instant::now() + link.round_trip;
        let mut buffer = vec![0; 128 << 10];
        while let Ok(len @ 1..) = from_client.read(&mut buffer) {
            let arrival = open.max(Instant::now()) + link.round_trip;
            if travels.send((arrival, buffer[..len].to_vec())).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (arrival, sent) in arrivals {
            thread::sleep(arrival.saturating_duration_since(Instant::now()));
            let requests = sent
                .windows(BLOB_REQUEST.len())
                .filter(|window| *window == BLOB_REQUEST)
                .count();
            up.blob_requests
                .fetch_add(requests as u64, Ordering::Relaxed);
            if to_server.write_all(&sent).is_err() {
                break;
            }
        }
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut from_server, mut to_client, down) = (server, client, counts.clone());
    let mut due = Instant::now();
    thread::spawn(move || {
        let mut buffer = vec![0; 128 << 10];
        while let Ok(len @ 1..) = from_server.read(&mut buffer) {
            down.bytes.fetch_add(len as u64, Ordering::Relaxed);
            let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
            let arrival = book(&mut line, len, link.shared);
            drop(line);
            let arrival = arrival.max(book(&mut due, len, link.per_connection));
            thread::sleep(arrival.saturating_duration_since(Instant::now()));
            if to_client.write_all(&buffer[..len]).is_err() {
                break;
            }
        }
        let _ = to_client.shutdown(Shutdown::Write);
    });
    Ok(())
}

/// Books `len` bytes on a line that is free from `free` on; when the last of them is through. A pause in which nothing came
/// gives no right to a burst.
fn book(free: &mut Instant, len: usize, bytes_per_second: f64) -> Instant {
    *free = (*free).max(Instant::now()) + Duration::from_secs_f64(len as f64 / bytes_per_second);
    *free
}
