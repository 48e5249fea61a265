//! What stands between a client and its registry: counts what is asked for, and misbehaves on command.

use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;

/// How the proxy treats requests, from now on and, where it can, those under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mood {
    /// Passes everything on.
    #[default]
    Relay,
    /// Passes everything on, each request after this pause.
    Slow(Duration),
    /// Accepts connections and says nothing until the mood changes; then hangs up.
    Silent,
    /// Hangs up on every request.
    HangUp,
    /// Flips bits in the bodies of blobs.
    Corrupt,
}

/// A request that came by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `GET`, `HEAD`.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The value of the header `Range`.
    pub range: Option<String>,
}

/// A proxy before one registry, on a free loopback port. It stops when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: String,
    mood: Mutex<Mood>,
    asked: Mutex<Vec<Asked>>,
    stopped: AtomicBool,
}

impl Proxy {
    /// A proxy before the registry at `upstream` (`127.0.0.1:PORT`).
    pub fn before(upstream: &str) -> Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let proxy = Proxy {
            address: listener.local_addr()?,
            shared: Arc::new(Shared {
                upstream: upstream.to_owned(),
                mood: Mutex::default(),
                asked: Mutex::default(),
                stopped: AtomicBool::new(false),
            }),
        };
        let shared = proxy.shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if shared.stopped.load(Ordering::SeqCst) {
                    break;
                }
                let shared = shared.clone();
                // A side that hangs up in the middle is part of the scene.
                std::thread::spawn(move || drop(shared.serve(client)));
            }
        });
        Ok(proxy)
    }

    /// `127.0.0.1:PORT`, as it stands in references.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Behaves otherwise from now on.
    pub fn set(&self, mood: Mood) {
        *lock(&self.shared.mood) = mood;
    }

    /// What was asked since the start or the last [`Proxy::forget`].
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }

    /// Requests for parts of blobs among them.
    pub fn ranges(&self) -> Vec<Asked> {
        let mut asked = self.asked();
        asked.retain(|asked| asked.path.contains("/blobs/") && asked.range.is_some());
        asked
    }

    /// Begins to count anew.
    pub fn forget(&self) {
        lock(&self.shared.asked).clear();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn mood(&self) -> Mood {
        *lock(&self.mood)
    }

    /// One request per connection: the client is told to close, so every request is seen.
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        let (asked, head) = read_request(&client)?;
        lock(&self.asked).push(asked.clone());
        match self.mood() {
            Mood::HangUp => return Ok(()),
            Mood::Silent => {
                while self.mood() == Mood::Silent && !self.stopped.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(10));
                }
                return Ok(());
            }
            Mood::Slow(pause) => std::thread::sleep(pause),
            Mood::Relay | Mood::Corrupt => {}
        }
        let mut upstream = TcpStream::connect(&self.upstream)?;
        upstream.write_all(head.as_bytes())?;
        let mut answer = BufReader::new(upstream);
        loop {
            let mut line = Vec::new();
            answer.read_until(b'\n', &mut line)?;
            client.write_all(&line)?;
            if line.len() <= 2 {
                break;
            }
        }
        self.relay_body(&asked, &mut answer, &mut client)
    }

    fn relay_body(
        &self,
        asked: &Asked,
        answer: &mut impl Read,
        client: &mut TcpStream,
    ) -> io::Result<()> {
        let mut buf = vec![0; 64 << 10];
        loop {
            let len = answer.read(&mut buf)?;
            match self.mood() {
                _ if len == 0 => return Ok(()),
                Mood::HangUp | Mood::Silent => return Ok(()),
                Mood::Corrupt if asked.path.contains("/blobs/") => buf[len / 2] ^= 0x55,
                _ => {}
            }
            client.write_all(&buf[..len])?;
        }
    }
}

/// The request, and its head with `Connection: close`. Pulling sends no bodies.
fn read_request(client: &TcpStream) -> io::Result<(Asked, String)> {
    let mut reader = BufReader::new(client);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut words = first.split_whitespace().map(str::to_owned);
    let mut asked = Asked {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        range: None,
    };
    let mut head = first;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "connection" => continue,
            "range" => asked.range = Some(value.to_owned()),
            _ => {}
        }
        head += &line;
    }
    Ok((asked, head + "Connection: close\r\n\r\n"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
