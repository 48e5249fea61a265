//! Serving an image on a FUSE connection.

use crate::{
    connection, fuse::FuseAdapter, image_fs::ImageFs, mount_points, nodes::Layout, read_ahead,
    resume,
};
use fuser::{Config, SessionACL};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
    thread::JoinHandle,
};
use tokio::runtime::Handle;

/// Threads that read requests of one connection. Two: while one waits for the disk under the
/// cache, the other answers.
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

/// A connection whose INIT was answered, and that is to be served.
pub struct Connected(fuser::Session<FuseAdapter>);

impl Connected {
    /// For `image` on the connection `fd` (an open `/dev/fuse` that another process mounts or has mounted). Returns once
    /// the kernel's INIT was answered.
    pub fn new(
        image: Arc<ImageFs>,
        fd: OwnedFd,
        layout: Layout,
        runtime: Handle,
    ) -> io::Result<Self> {
        let adapter = FuseAdapter::new(image, layout, runtime, true);
        shake_hands(adapter, fd).map(Self)
    }

    /// For a connection `fd` whose server is gone and whose INIT was answered long ago. Requests which that one had taken
    /// come again, so no reader notices more than a pause.
    ///
    /// `image` must have the tree that the connection was begun with, byte for byte: the kernel knows its node numbers.
    ///
    /// # Errors
    /// `InvalidInput`: the kernel is older than Linux 6.9 and cannot resend.
    pub fn resume(
        image: Arc<ImageFs>,
        fd: OwnedFd,
        layout: Layout,
        runtime: Handle,
    ) -> io::Result<Self> {
        let adapter = FuseAdapter::new(image, layout, runtime, true);
        resume::resume(adapter, fd, config()).map(Self)
    }

    /// Serves it until the filesystem is unmounted or the connection aborted.
    pub fn serve(self) -> io::Result<()> {
        self.0.run()
    }
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connected").field(&self.0.as_fd()).finish()
    }
}

/// A mount that is being served in the background.
#[derive(Debug)]
pub struct Session {
    thread: JoinHandle<io::Result<()>>,
    connection: OwnedFd,
    layout: Layout,
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
        let root_mode = adapter
            .root_mode()
            .map_err(|errno| io::Error::from_raw_os_error(errno.into()))?;
        let connection = connection::mount(dir, source, root_mode, options)?;
        let session = shake_hands(adapter, connection)
            .and_then(|session| Self::spawn(session, layout))
            .inspect_err(|_| detach(dir))?;
        raise_read_ahead(dir);
        Ok(session)
    }

    /// Serves in the place of a server that is gone; see [`Connected::resume`].
    pub fn resume(
        image: Arc<ImageFs>,
        connection: OwnedFd,
        layout: Layout,
        runtime: Handle,
    ) -> io::Result<Self> {
        let connected = Connected::resume(image, connection, layout, runtime)?;
        Self::spawn(connected.0, layout)
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
        self.thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the FUSE session panicked")))
    }

    fn spawn(session: fuser::Session<FuseAdapter>, layout: Layout) -> io::Result<Self> {
        let connection = session.as_fd().try_clone_to_owned()?;
        let thread = std::thread::Builder::new()
            .name("fuse-session".to_owned())
            .spawn(move || session.run())?;
        Ok(Self {
            thread,
            connection,
            layout,
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

/// Answers the kernel's INIT on a new connection. Who may look into the mount is for the kernel to check.
fn shake_hands(
    adapter: FuseAdapter,
    connection: OwnedFd,
) -> io::Result<fuser::Session<FuseAdapter>> {
    fuser::Session::from_fd(adapter, connection, SessionACL::All, config())
}

fn config() -> Config {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    config
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
