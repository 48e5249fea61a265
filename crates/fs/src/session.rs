//! Serving an image on a FUSE connection.

use crate::{
    fuse::FuseAdapter, image_fs::ImageFs, mount_points, nodes::Layout, read_ahead, resume,
};
use fuser::{Config, MountOption, SessionACL};
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
        let config = config(SessionACL::All, vec![]);
        fuser::Session::from_fd(adapter, fd, SessionACL::All, config).map(Self)
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
        resume::resume(adapter, fd, config(SessionACL::All, vec![])).map(Self)
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
        let acl = if options.allow_other {
            SessionACL::All
        } else {
            SessionACL::Owner
        };
        let either = |on: bool, yes, no| if on { yes } else { no };
        let mount_options = vec![
            MountOption::RO,
            MountOption::DefaultPermissions,
            either(options.suid, MountOption::Suid, MountOption::NoSuid),
            either(options.dev, MountOption::Dev, MountOption::NoDev),
            MountOption::FSName(source.to_owned()),
            MountOption::Subtype("clip".to_owned()),
        ];
        let adapter = FuseAdapter::new(image, layout, runtime, options.allow_other);
        let session = fuser::Session::new(adapter, dir, &config(acl, mount_options))?;
        let session = Self::spawn(session, layout)?;
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

fn config(acl: SessionACL, mount_options: Vec<MountOption>) -> Config {
    let mut config = Config::default();
    config.acl = acl;
    config.mount_options = mount_options;
    config.n_threads = Some(THREADS);
    config
}

/// Raises the read-ahead of the FUSE filesystem mounted at `dir`.
fn raise_read_ahead(dir: &Path) {
    if let Some(mount) = mount_points::at(dir).ok().flatten() {
        read_ahead::raise(mount.major, mount.minor);
    }
}
