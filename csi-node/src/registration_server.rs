//! The gRPC server on the registration socket: as much of HTTP/2 as kubelet's two questions need.
//!
//! tonic cannot serve them. Kubelet dials this socket by its path, and Go's gRPC client then sends the path as
//! `:authority` (`%2Fvar%2Flib%2Fkubelet%2F...`), which the HTTP/2 library below tonic refuses with PROTOCOL_ERROR before
//! any of our code sees the request. (On the CSI socket kubelet says `localhost`; there tonic serves.)
//!
//! So headers are not read here at all. The two methods are told apart by their messages: `InfoRequest` has no fields and
//! is always empty, `RegistrationStatus` says at least one thing. Frames: RFC 9113, section 4; header fields: RFC 7541,
//! section 6; messages in frames: grpc/doc/PROTOCOL-HTTP2.md.

use std::collections::HashMap;
use std::io;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;

use crate::csi::registration::{RegistrationStatus, RegistrationStatusResponse};
use crate::registration::Registration;

/// What a client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest frame that a client may send to a server that set no other limit (RFC 9113, section 4.2).
const MAX_FRAME: usize = 16384;
/// `:status: 200` from the static table, then `content-type: application/grpc`, whose name is number 31 there.
const RESPONSE_HEADERS: &[u8] = b"\x88\x0f\x10\x10application/grpc";
const STATUS_OK: &[u8] = b"\x00\x0bgrpc-status\x010";
/// INVALID_ARGUMENT.
const STATUS_INVALID: &[u8] = b"\x00\x0bgrpc-status\x013";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;

const END_STREAM: u8 = 0x1;
/// Of SETTINGS and PING.
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// Answers everybody who connects, until dropped.
pub async fn serve(mut incoming: UnixListenerStream, registration: Registration) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = incoming.next() => match accepted {
                Some(stream) => {
                    let (stream, registration) = (stream?, registration.clone());
                    connections.spawn(async move { converse(stream, &registration).await });
                }
                None => return Ok(()),
            },
            Some(ended) = connections.join_next() => {
                if let Ok(Err(error)) = ended {
                    tracing::debug!(%error, "a connection to the registration socket broke off");
                }
            }
        }
    }
}

/// One connection, until the client closes it.
async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    registration: &Registration,
) -> io::Result<()> {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    if preface != *PREFACE {
        return Err(malformed("it does not speak HTTP/2"));
    }
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    let mut requests: HashMap<u32, Vec<u8>> = HashMap::new();
    while let Some(Frame {
        kind,
        flags,
        id,
        payload,
    }) = read_frame(&mut stream).await?
    {
        match kind {
            HEADERS if flags & END_STREAM != 0 => stream.write_all(&answer(id, None)).await?,
            DATA => {
                let request = requests.entry(id).or_default();
                request.extend_from_slice(without_padding(flags, &payload)?);
                if request.len() > MAX_FRAME {
                    return Err(malformed("its message is too long"));
                }
                if flags & END_STREAM != 0 {
                    let reply = requests
                        .remove(&id)
                        .and_then(|request| reply(&request, registration));
                    stream.write_all(&answer(id, reply)).await?;
                }
            }
            RST_STREAM => drop(requests.remove(&id)),
            SETTINGS if flags & ACK == 0 => stream.write_all(&frame(SETTINGS, ACK, 0, &[])).await?,
            PING if flags & ACK == 0 => stream.write_all(&frame(PING, ACK, 0, &payload)).await?,
            GO_AWAY => return Ok(()),
            // Everything else may be ignored by somebody who sends as little as this.
            _ => {}
        }
    }
    Ok(())
}

/// The reply to one gRPC message; `None` when it cannot be read.
fn reply(request: &[u8], registration: &Registration) -> Option<Vec<u8>> {
    // One byte says whether it is compressed, four how long it is.
    let (&[0, a, b, c, d], message) = request.split_first_chunk()? else {
        return None;
    };
    if message.len() != u32::from_be_bytes([a, b, c, d]) as usize {
        return None;
    }
    if message.is_empty() {
        return Some(registration.info().encode_to_vec());
    }
    registration.notify(RegistrationStatus::decode(message).ok()?);
    Some(RegistrationStatusResponse {}.encode_to_vec())
}

/// The frames that answer request `id`.
fn answer(id: u32, reply: Option<Vec<u8>>) -> Vec<u8> {
    let mut frames = frame(HEADERS, END_HEADERS, id, RESPONSE_HEADERS);
    if let Some(reply) = &reply {
        let mut message = vec![0];
        message.extend_from_slice(&(reply.len() as u32).to_be_bytes());
        message.extend_from_slice(reply);
        frames.extend(frame(DATA, 0, id, &message));
    }
    let status = if reply.is_some() {
        STATUS_OK
    } else {
        STATUS_INVALID
    };
    frames.extend(frame(HEADERS, END_HEADERS | END_STREAM, id, status));
    frames
}

struct Frame {
    kind: u8,
    flags: u8,
    id: u32,
    payload: Vec<u8>,
}

/// The next frame; `None` when the client is gone.
async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0; 9];
    match stream.read_exact(&mut head).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let [l0, l1, l2, kind, flags, i0, i1, i2, i3] = head;
    let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
    if length > MAX_FRAME {
        return Err(malformed("its frame is too long"));
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    // The highest bit of the number is reserved.
    let id = u32::from_be_bytes([i0 & 0x7f, i1, i2, i3]);
    Ok(Some(Frame {
        kind,
        flags,
        id,
        payload,
    }))
}

fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let [_, l0, l1, l2] = (payload.len() as u32).to_be_bytes();
    let [i0, i1, i2, i3] = id.to_be_bytes();
    let mut frame = vec![l0, l1, l2, kind, flags, i0, i1, i2, i3];
    frame.extend_from_slice(payload);
    frame
}

fn without_padding(flags: u8, payload: &[u8]) -> io::Result<&[u8]> {
    if flags & PADDED == 0 {
        return Ok(payload);
    }
    let (&padding, rest) = payload
        .split_first()
        .ok_or_else(|| malformed("its padding is missing"))?;
    let length = rest.len().checked_sub(padding.into());
    length
        .and_then(|length| rest.get(..length))
        .ok_or_else(|| malformed("its padding is too long"))
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::sync::mpsc;

    use super::*;
    use crate::csi::registration::PluginInfo;

    /// What Go's gRPC client sends for a socket's path: `:method POST`, `:scheme http`, `:path`, and an `:authority` that
    /// no other HTTP/2 server would take.
    const GO_HEADERS: &[u8] = b"\x83\x86\x44\x02/x\x41\x10%2Fvar%2Fx-r.soc";

    fn message(body: &[u8]) -> Vec<u8> {
        let mut message = vec![0, 0, 0, 0, body.len() as u8];
        message.extend_from_slice(body);
        message
    }

    /// Asks with `body`; returns the message that comes back, if any, and the trailers.
    async fn ask(body: &[u8]) -> (Option<Vec<u8>>, Vec<u8>, mpsc::Receiver<String>) {
        let (sender, refused) = mpsc::channel(1);
        let registration = Registration::new(PathBuf::from("/k/csi.sock"), sender);
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let served = tokio::spawn(async move { converse(server, &registration).await });
        let mut request = PREFACE.to_vec();
        request.extend(frame(SETTINGS, 0, 0, &[]));
        request.extend(frame(HEADERS, END_HEADERS, 1, GO_HEADERS));
        request.extend(frame(DATA, END_STREAM, 1, body));
        client.write_all(&request).await.unwrap();
        client.shutdown().await.unwrap();
        served.await.unwrap().unwrap();
        let (mut reply, mut trailers) = (None, Vec::new());
        while let Some(frame) = read_frame(&mut client).await.unwrap() {
            match frame.kind {
                DATA => reply = Some(frame.payload[5..].to_vec()),
                HEADERS if frame.flags & END_STREAM != 0 => trailers = frame.payload,
                _ => {}
            }
        }
        (reply, trailers, refused)
    }

    #[tokio::test]
    async fn kubelet_is_told_what_plugin_it_is_whatever_authority_it_names() {
        let (reply, trailers, _) = ask(&message(&[])).await;
        let info = PluginInfo::decode(reply.unwrap().as_slice()).unwrap();
        assert_eq!(
            (info.r#type.as_str(), info.endpoint.as_str()),
            ("CSIPlugin", "/k/csi.sock")
        );
        assert_eq!(trailers, STATUS_OK);
    }

    #[tokio::test]
    async fn a_refusal_is_passed_on_and_acknowledged() {
        let status = RegistrationStatus {
            plugin_registered: false,
            error: "no".into(),
        };
        let (reply, trailers, mut refused) = ask(&message(&status.encode_to_vec())).await;
        assert_eq!((reply, trailers.as_slice()), (Some(Vec::new()), STATUS_OK));
        assert_eq!(refused.recv().await.unwrap(), "no");
    }

    #[tokio::test]
    async fn what_is_no_grpc_message_is_refused() {
        for body in [&b"\x00\x00"[..], &[0, 0, 0, 0, 9, 1], &[1, 0, 0, 0, 0]] {
            let (reply, trailers, _) = ask(body).await;
            assert_eq!((reply, trailers.as_slice()), (None, STATUS_INVALID));
        }
    }
}
