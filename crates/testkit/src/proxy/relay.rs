//! Taking requests, asking the registry, and spoiling what it says.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::{Frame, Incoming},
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_RANGE, HOST, HeaderMap, HeaderValue, LOCATION, RANGE,
        RETRY_AFTER, WWW_AUTHENTICATE,
    },
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt::Linger};
use tokio::net::{TcpListener, TcpStream};

use super::{Asked, Mood, Shared, guard::Verdict, lock};

/// Bodies are handed on in pieces of this size where a mood counts bytes or time.
const PIECE: usize = 16 << 10;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, Error>;

/// Takes connections until it is dropped.
pub(super) async fn listen(shared: Arc<Shared>, listener: std::net::TcpListener) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    let is_store = listener.local_addr().is_ok_and(|at| at == shared.store);
    while let Ok((stream, _)) = listener.accept().await {
        let number = shared.connections.fetch_add(1, Ordering::SeqCst);
        let Ok(socket) = stream.as_fd().try_clone_to_owned() else {
            continue;
        };
        let door = Arc::new(Door {
            shared: shared.clone(),
            number,
            is_store,
            socket,
        });
        tokio::spawn(async move {
            door.shared.open.fetch_add(1, Ordering::SeqCst);
            if door.is_out_for_tls(&stream).await {
                door.shared.open.fetch_sub(1, Ordering::SeqCst);
                return;
            }
            let service = service_fn(|request| door.clone().answer(request));
            let serving = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            // A side that hangs up in the middle is part of the scene.
            drop(serving.await);
            door.shared.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// One connection.
struct Door {
    shared: Arc<Shared>,
    number: u64,
    is_store: bool,
    /// The connection's socket once more, to say how it shall be closed.
    socket: OwnedFd,
}

impl Door {
    /// Whether somebody who tries TLS meets an outage. Without one they are told, as by any server of plain HTTP, that
    /// this is no request.
    async fn is_out_for_tls(&self, stream: &TcpStream) -> bool {
        const TLS_HANDSHAKE: u8 = 0x16;
        let mut first = [0];
        let tls = stream.peek(&mut first).await.is_ok() && first[0] == TLS_HANDSHAKE;
        match self.outage().filter(|_| tls) {
            None => false,
            Some(mood) => {
                if mood == Mood::Silent {
                    self.keep_silent().await;
                }
                // What was not read would turn the end into a reset.
                let _ = stream.try_read(&mut [0; 16 << 10]);
                true
            }
        }
    }

    /// The mood that ends everything under way, if there is one.
    fn outage(&self) -> Option<Mood> {
        let rules = self.shared.rules.borrow();
        rules.iter().find_map(|rule| rule.outage())
    }

    /// An error ends the connection without an answer.
    async fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Error> {
        let shared = &self.shared;
        let asked = self.asked(&request);
        lock(&shared.asked).push(asked.clone());
        if request.uri().path() == "/token" {
            return Ok(token(&shared.tokens.give()));
        }
        let moods: Vec<Mood> = shared
            .rules
            .borrow()
            .iter()
            .filter_map(|rule| rule.applies(&asked))
            .collect();
        if self.is_store && !shared.tickets.take(request.uri().query()) {
            return Ok(empty(StatusCode::FORBIDDEN));
        }
        for mood in &moods {
            if let Some(answer) = self.instead(mood, &asked).await? {
                return Ok(answer);
            }
        }
        for mood in &moods {
            change_request(mood, &mut request);
        }
        let answer = shared.ask_registry(request).await?;
        let (mut head, body) = answer.into_parts();
        for mood in &moods {
            change_head(mood, &asked, &mut head.headers);
        }
        let is_blob = asked.path.contains("/blobs/");
        Ok(Response::from_parts(head, self.spoil(body, moods, is_blob)))
    }

    fn asked(&self, request: &Request<Incoming>) -> Asked {
        let text = |name| {
            let value = request.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        Asked {
            method: request.method().to_string(),
            path: request
                .uri()
                .path_and_query()
                .map_or_else(String::new, ToString::to_string),
            range: text(RANGE),
            authorization: text(AUTHORIZATION),
            connection: self.number,
        }
    }

    /// What is done instead of asking the registry.
    async fn instead(&self, mood: &Mood, asked: &Asked) -> Result<Option<Response<Body>>, Error> {
        let shared = &self.shared;
        match *mood {
            Mood::Slow(pause) => tokio::time::sleep(pause).await,
            Mood::HangUp => return Err("hung up".into()),
            Mood::Silent => return Err(self.keep_silent().await),
            Mood::Answer {
                status,
                retry_after,
            } => {
                let mut answer = empty(StatusCode::from_u16(status)?);
                answer
                    .headers_mut()
                    .extend(retry_after.map(|seconds| (RETRY_AFTER, seconds.into())));
                return Ok(Some(answer));
            }
            Mood::Tokens { good_for, status } if !self.is_store => {
                let verdict = shared
                    .tokens
                    .judge(asked.authorization.as_deref(), good_for);
                return Ok(match verdict {
                    Verdict::Passes => None,
                    Verdict::Refused if status != 401 => Some(empty(StatusCode::from_u16(status)?)),
                    Verdict::Refused | Verdict::NeedsToken => Some(self.challenge()?),
                });
            }
            Mood::Redirect { good_for } if !self.is_store && asked.path.contains("/blobs/") => {
                let query = shared.tickets.give(good_for);
                let address = format!("http://{}{}?{query}", shared.store, asked.path);
                let mut answer = empty(StatusCode::TEMPORARY_REDIRECT);
                let address = HeaderValue::from_str(&address)?;
                answer.headers_mut().insert(LOCATION, address);
                return Ok(Some(answer));
            }
            _ => {}
        }
        Ok(None)
    }

    fn challenge(&self) -> Result<Response<Body>, Error> {
        let realm = format!(
            "Bearer realm=\"http://{}/token\",service=\"proxy\"",
            self.shared.address
        );
        let mut answer = empty(StatusCode::UNAUTHORIZED);
        let realm = HeaderValue::from_str(&realm)?;
        answer.headers_mut().insert(WWW_AUTHENTICATE, realm);
        Ok(answer)
    }

    /// Waits until the rules change.
    async fn keep_silent(&self) -> Error {
        let mut rules = self.shared.rules.subscribe();
        // Fails when the proxy is gone, which is a change, too.
        drop(rules.changed().await);
        "hung up after a silence".into()
    }

    /// The body as the moods leave it.
    fn spoil(self: Arc<Self>, body: Incoming, moods: Vec<Mood>, is_blob: bool) -> Body {
        let spoiled = Spoiled {
            door: self,
            body,
            moods,
            is_blob,
            ready: Bytes::new(),
            given: 0,
        };
        let pieces = futures::stream::try_unfold(spoiled, |mut spoiled| async move {
            let piece = spoiled.piece().await?;
            Ok(piece.map(|piece| (Frame::data(piece), spoiled)))
        });
        StreamBody::new(pieces).boxed_unsync()
    }
}

/// A body on its way to the client.
struct Spoiled {
    door: Arc<Door>,
    body: Incoming,
    moods: Vec<Mood>,
    is_blob: bool,
    /// What came from the registry and was not handed on yet.
    ready: Bytes,
    given: u64,
}

impl Spoiled {
    async fn piece(&mut self) -> Result<Option<Bytes>, Error> {
        if self.ready.is_empty() {
            self.ready = loop {
                match self.body.frame().await.transpose()? {
                    None => return Ok(None),
                    Some(frame) => match frame.into_data() {
                        Ok(data) if !data.is_empty() => break data,
                        _ => {}
                    },
                }
            };
        }
        match self.door.outage() {
            Some(Mood::Silent) => return Err(self.door.keep_silent().await),
            Some(_) => return Err("hung up".into()),
            None => {}
        }
        let mut len = self.ready.len().min(PIECE);
        for mood in &self.moods {
            match *mood {
                Mood::Drip { piece, .. } => len = len.min(piece.max(1)),
                Mood::ResetAfter(limit) | Mood::SilentAfter(limit) => {
                    len = len.min(limit.saturating_sub(self.given) as usize);
                }
                _ => {}
            }
        }
        for mood in &self.moods {
            match *mood {
                Mood::Drip { pause, .. } => tokio::time::sleep(pause).await,
                Mood::Bandwidth(rate) => self.door.shared.take_line(len, rate).await,
                Mood::ResetAfter(_) if len == 0 => {
                    // Closing then sends RST instead of FIN.
                    let at_once = nix::libc::linger {
                        l_onoff: 1,
                        l_linger: 0,
                    };
                    setsockopt(&self.door.socket, Linger, &at_once)?;
                    return Err("reset".into());
                }
                Mood::SilentAfter(_) if len == 0 => return Err(self.door.keep_silent().await),
                _ => {}
            }
        }
        let mut piece = self.ready.split_to(len);
        if self.is_blob && self.moods.contains(&Mood::Corrupt) {
            let mut bytes = piece.to_vec();
            bytes[len / 2] ^= 0x55;
            piece = bytes.into();
        }
        self.given += len as u64;
        self.door
            .shared
            .body_bytes
            .fetch_add(len as u64, Ordering::SeqCst);
        Ok(Some(piece))
    }
}

impl Shared {
    /// Sends the request on; a connection for each.
    async fn ask_registry(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<Response<Incoming>, Error> {
        let stream = TcpStream::connect(&self.upstream).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = match path {
            Some(path) => Uri::from(path),
            None => Uri::from_static("/"),
        };
        // The registry makes absolute addresses from Host, so the client's is kept.
        if !request.headers().contains_key(HOST) {
            let host = HeaderValue::from_str(&self.upstream)?;
            request.headers_mut().insert(HOST, host);
        }
        request.headers_mut().remove(CONNECTION);
        let mut answer = sender.send_request(request).await?;
        answer.headers_mut().remove(CONNECTION);
        Ok(answer)
    }

    /// Waits until `len` bytes have passed a line of `rate` bytes a second that all bodies share.
    async fn take_line(&self, len: usize, rate: u64) {
        let until = {
            let mut free = lock(&self.line_free);
            let begin = (*free).max(Instant::now());
            *free = begin + Duration::from_secs_f64(len as f64 / rate as f64);
            *free
        };
        tokio::time::sleep_until(until.into()).await;
    }
}

fn change_request(mood: &Mood, request: &mut Request<Incoming>) {
    match *mood {
        Mood::IgnoreRange => drop(request.headers_mut().remove(RANGE)),
        Mood::OtherRange(by) | Mood::LyingRange(by) => {
            let range = request
                .headers()
                .get(RANGE)
                .and_then(|range| shifted(range, by));
            if let Some(range) = range {
                request.headers_mut().insert(RANGE, range);
            }
        }
        _ => {}
    }
}

fn change_head(mood: &Mood, asked: &Asked, headers: &mut HeaderMap) {
    if let (Mood::LyingRange(_), Some(range)) = (mood, &asked.range) {
        let total = headers
            .get(CONTENT_RANGE)
            .and_then(|value| value.to_str().ok()?.rsplit_once('/'))
            .map_or("*", |(_, total)| total);
        let lie = range.replace("bytes=", "bytes ") + "/" + total;
        if let Ok(lie) = HeaderValue::from_str(&lie) {
            headers.insert(CONTENT_RANGE, lie);
        }
    }
}

/// `bytes=FIRST-LAST` further behind.
fn shifted(range: &HeaderValue, by: u64) -> Option<HeaderValue> {
    let (first, last) = range
        .to_str()
        .ok()?
        .strip_prefix("bytes=")?
        .split_once('-')?;
    let behind = |text: &str| Some(text.parse::<u64>().ok()? + by);
    let text = format!("bytes={}-{}", behind(first)?, behind(last)?);
    HeaderValue::from_str(&text).ok()
}

fn token(token: &str) -> Response<Body> {
    let json = format!("{{\"token\": \"{token}\", \"expires_in\": 3600}}");
    Response::new(Full::from(json).map_err(Into::into).boxed_unsync())
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut answer = Response::new(Empty::new().map_err(Into::into).boxed_unsync());
    *answer.status_mut() = status;
    answer
}
