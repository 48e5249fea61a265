//! Serving an image on a FUSE connection.

use crate::{
    connection, fuse::FuseAdapter, image_fs::ImageFs, mount_points, nodes::Layout, read_ahead,
};
use clip_fuse::{Connection, Dispatcher, Ended, Filesystem};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};
use tokio::runtime::Handle;

/// Threads for the requests of one mount. Two: while one waits for the disk under the cache, the other answers.
const THREADS: usize = 2;

/// How `clip mount` mounts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Honour set-user-ID, set-group-ID and file capabilities.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Let other users in; root only, or where `/etc/fuse.conf` allows it.
    pub allow_other: bool,
}

/// A connection for `image` on `fd` (an open `/dev/fuse` that another process has mounted), ready to be served. Returns once
/// the kernel's INIT was answered; see [`Connection::begin`].
pub fn begin(
    image: Arc<ImageFs>,
    fd: OwnedFd,
    layout: Layout,
    runtime: Handle,
) -> io::Result<Connection> {
    Connection::begin(fd, FuseAdapter::new(image, layout, runtime, true))
}

/// A connection for `image` on `fd`, whose server is gone; see [`Connection::resume`].
///
/// `image` must have the tree that the connection was begun with, byte for byte: the kernel knows its node numbers.
pub fn resume(
    image: Arc<ImageFs>,
    fd: OwnedFd,
    layout: Layout,
    runtime: Handle,
) -> io::Result<Connection> {
    Connection::resume(fd, FuseAdapter::new(image, layout, runtime, true))
}

/// A mount that is being served in the background.
#[derive(Debug)]
pub struct Session {
    ended: Ended,
    connection: OwnedFd,
    layout: Layout,
    /// Whose threads serve it.
    _dispatcher: Dispatcher,
}

impl Session {
    /// Mounts `image` at `dir` and serves it: by mount(2) as root, else through `fusermount3`.
    pub fn mount(
        image: Arc<ImageFs>,
        dir: &Path,
        source: &str,
        layout: Layout,
        options: MountOptions,
        runtime: Handle,
    ) -> io::Result<Self> {
        let dir = &std::path::absolute(dir)?;
        let adapter = FuseAdapter::new(image, layout, runtime, options.allow_other);
        let root = adapter.attributes(clip_fuse::ROOT)?;
        let root_mode = (root.mode & 0o7777) as u16;
        let fd = connection::mount(dir, source, root_mode, options)?;
        let session = Connection::begin(fd, adapter)
            .and_then(|connection| Self::serve(connection, layout))
            .inspect_err(|_| detach(dir))?;
        raise_read_ahead(dir);
        Ok(session)
    }

    /// Serves in the place of a server that is gone; see [`resume`].
    pub fn resume(
        image: Arc<ImageFs>,
        fd: OwnedFd,
        layout: Layout,
        runtime: Handle,
    ) -> io::Result<Self> {
        Self::serve(resume(image, fd, layout, runtime)?, layout)
    }

    /// The connection's descriptor. INIT was answered; whoever has a copy keeps the connection when this process is gone.
    pub fn connection(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    /// What the root of the connection shows.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Waits until the filesystem is unmounted or the connection aborted.
    pub fn join(self) -> io::Result<()> {
        self.ended.wait()
    }

    fn serve(connection: Connection, layout: Layout) -> io::Result<Self> {
        let dispatcher = Dispatcher::start(THREADS)?;
        Ok(Self {
            connection: connection.as_fd().try_clone_to_owned()?,
            ended: dispatcher.serve(connection)?,
            layout,
            _dispatcher: dispatcher,
        })
    }
}

/// Whether what is served on `connection` is still mounted or in use, and was not aborted. Asks the kernel only, so it is
/// answered when there is no server, too.
pub fn is_connected(connection: BorrowedFd<'_>) -> bool {
    let mut asked = [PollFd::new(connection, PollFlags::empty())];
    // The kernel answers at once, with an error for what has ended.
    let ended = poll(&mut asked, PollTimeout::ZERO).is_ok_and(|answers| answers > 0);
    !ended
}

/// Takes away the mount of a connection that could not be served.
fn detach(dir: &Path) {
    if let Err(error) = connection::detach(dir) {
        tracing::warn!(dir = %dir.display(), %error, "a mount without a server is left");
    }
}

/// Raises the read-ahead of the FUSE filesystem mounted at `dir`.
fn raise_read_ahead(dir: &Path) {
    if let Some(mount) = mount_points::at(dir).ok().flatten() {
        read_ahead::raise(&mount.device);
    }
}
