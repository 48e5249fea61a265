//! A registry that misbehaves on command: an HTTP/1.1 server on a loopback port whose answers a test decides.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What a client asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn authorization(&self) -> Option<&str> {
        self.headers.get("authorization").map(String::as_str)
    }

    /// First and last byte of `Range`; the last may be missing.
    pub fn range(&self) -> Option<(usize, Option<usize>)> {
        let (first, last) = self
            .headers
            .get("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()))
    }
}

/// What it gets.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Hang up after so many bytes of the body.
    pub cut_after: Option<usize>,
}

impl Reply {
    pub fn new(status: u16) -> Reply {
        Reply {
            status,
            ..Reply::default()
        }
    }

    pub fn ok(body: impl Into<Vec<u8>>) -> Reply {
        Reply {
            status: 200,
            body: body.into(),
            ..Reply::default()
        }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }

    pub fn cut_after(mut self, bytes: usize) -> Reply {
        self.cut_after = Some(bytes);
        self
    }

    /// The part of `content` that was asked for, as a good registry answers.
    pub fn ranged(asked: &Asked, content: &[u8]) -> Reply {
        let Some((first, last)) = asked.range() else {
            return Reply::ok(content);
        };
        if first >= content.len() {
            return Reply::new(416);
        }
        let last = last.unwrap_or(usize::MAX).min(content.len() - 1);
        let total = content.len();
        Reply {
            status: 206,
            ..Reply::ok(&content[first..=last])
        }
        .with("Content-Range", format!("bytes {first}-{last}/{total}"))
    }
}

/// The server. It stops when dropped.
pub struct FaultServer {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    stopped: Arc<AtomicBool>,
}

impl FaultServer {
    /// Answers each request as `answer` says; the number counts them from 0.
    pub fn start(answer: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static) -> FaultServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
        let server = FaultServer {
            address: listener.local_addr().expect("it is bound"),
            asked: Arc::default(),
            stopped: Arc::default(),
        };
        let (asked, stopped) = (server.asked.clone(), server.stopped.clone());
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let (asked, answer) = (asked.clone(), answer.clone());
                std::thread::spawn(move || {
                    // A client that hangs up in the middle is part of the scene.
                    let _ = serve(stream, &asked, &*answer);
                });
            }
        });
        server
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// What was asked so far, without the probe for plain HTTP.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Asked>>,
    answer: &dyn Fn(usize, &Asked) -> Reply,
) -> std::io::Result<()> {
    let asked = read_request(&stream)?;
    let reply = if asked.path == "/v2/" {
        Reply::new(200)
    } else {
        let number = {
            let mut log = log.lock().unwrap();
            log.push(asked.clone());
            log.len() - 1
        };
        answer(number, &asked)
    };
    let mut head = format!("HTTP/1.1 {} Test\r\nConnection: close\r\n", reply.status);
    let has_length = reply
        .headers
        .iter()
        .any(|(name, _)| *name == "Content-Length");
    if !has_length {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    if asked.method != "HEAD" {
        let length = reply.cut_after.unwrap_or(usize::MAX).min(reply.body.len());
        stream.write_all(&reply.body[..length])?;
    }
    stream.flush()
}

fn read_request(stream: &TcpStream) -> std::io::Result<Asked> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, path) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let (method, path) = (method.to_owned(), path.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
            None => break,
        };
    }
    let length = headers
        .get("content-length")
        .and_then(|text| text.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    Ok(Asked {
        method,
        path,
        headers,
        body,
    })
}
