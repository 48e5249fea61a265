//! Unix sockets, for gRPC and others: private from their first moment, and put in place of what an earlier life left there.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

/// A socket on which connections can be accepted.
#[derive(Debug)]
pub struct Socket {
    /// Its connections.
    pub incoming: UnixListenerStream,
    path: PathBuf,
}

/// Why a socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}: {source}", .path.display())]
pub struct SocketError {
    path: PathBuf,
    source: io::Error,
}

impl Socket {
    /// Listens on `path`, for root only.
    pub fn listen(path: &Path) -> Result<Socket, SocketError> {
        let listen = || {
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            named_when_ready(path, |unnamed| UnixListener::bind(unnamed))
        };
        match listen() {
            Ok(listener) => Ok(Socket {
                incoming: UnixListenerStream::new(listener),
                path: path.to_owned(),
            }),
            Err(source) => Err(SocketError {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Takes the socket's name away, so that nobody finds it any more.
    pub fn remover(&self) -> impl FnOnce() + Send + 'static {
        let path = self.path.clone();
        move || {
            if let Err(error) = remove(&path) {
                tracing::warn!(socket = %path.display(), %error, "cannot remove the socket");
            }
        }
    }
}

/// Makes a socket for root only, and gives it its name when it is ready: whoever finds the name can connect, and a stale
/// socket of an earlier life is replaced at once. (Kubelet's plugin watcher leaves out names that begin with a dot.)
pub(crate) fn named_when_ready<S>(
    path: &Path,
    listen: impl FnOnce(&Path) -> io::Result<S>,
) -> io::Result<S> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unnamed = path.with_file_name(format!(".{name}.new"));
    remove(&unnamed)?;
    let socket = listen(&unnamed)?;
    std::fs::set_permissions(&unnamed, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&unnamed, path)?;
    Ok(socket)
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_by_one_that_only_root_may_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi/csi.sock");
        drop(Socket::listen(&path).unwrap());
        let socket = Socket::listen(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        socket.remover()();
        assert!(!path.exists());
    }
}
