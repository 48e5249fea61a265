//! Serving a mount: in the user's own command, or for a keeper, where it may be the mount of a server that has died.

use super::{
    Engine, ServingArgs, background,
    handover::{Handover, Line, Terms},
    mount,
};
use crate::{
    archive_source::{ArchiveFile, Opened, SourceArgs},
    common::{CommonArgs, runtime},
    failure::Failure,
    umount, units,
};
use clip_engine::{Layout, MountOptions, Session, StartProfile};
use std::{
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What is served where and how.
pub struct Serving<'a> {
    pub common: &'a CommonArgs,
    pub source: &'a SourceArgs,
    pub args: &'a ServingArgs,
    /// The archive, when it was decided already which one `source` means.
    pub archive: Option<PathBuf>,
    pub dir: &'a Path,
    pub engine: Engine,
    pub options: MountOptions,
}

impl Serving<'_> {
    /// Mounts, calls `ready`, and returns when it was unmounted.
    pub fn run(&self, ready: impl FnOnce(&Opened)) -> Result<(), Failure> {
        let mounted = self.mount()?;
        ready(&mounted.opened);
        self.serve(mounted)
    }

    /// The same for the keeper at the other end of standard input; goes on with the mount that it has, if it has one.
    pub fn run_for_keeper(&self) -> Result<(), Failure> {
        let line = Line::of_this_process().map_err(Failure::local)?;
        let mounted = match line.receive().map_err(Failure::local)? {
            None => self.mount()?,
            Some(handover) => self.take_over(handover)?,
        };
        // Without a keeper the mount lives as long as this process.
        let _ = mounted
            .handover()
            .and_then(|handover| line.send(Some(&handover)));
        mounted.opened.runtime.spawn(line.stay_alive());
        background::let_go_of_stderr();
        self.serve(mounted)
    }

    fn mount(&self) -> Result<Mounted, Failure> {
        let profile = self.args.profile()?;
        let opened = match &self.archive {
            Some(path) => self.source.open_file(path.clone(), runtime()?)?,
            None => self.source.open(self.common.verbose)?,
        };
        // Before the mount is there: a signal from now on unmounts it instead of leaving it behind.
        let signals = EndSignals::catch_on(&opened)?;
        let session = mount(&opened, self.dir, self.engine, self.options)?;
        Ok(Mounted {
            opened,
            session,
            signals,
            profile,
        })
    }

    /// Goes on where another server ended. The kernel keeps what that one has told it, so everything must be the same.
    fn take_over(&self, handover: Handover) -> Result<Mounted, Failure> {
        let terms = handover.terms;
        let refused = |problem: &str| {
            let name = &terms.name;
            Failure::permanent(
                "CannotResume",
                format!("cannot go on with the mount of {name}: {problem}"),
            )
        };
        let archive = ArchiveFile {
            path: PathBuf::from(&terms.name),
            file: handover.archive,
        };
        let bytes = archive.read()?;
        let opened = self.source.open_archive(archive, bytes, runtime()?)?;
        if opened.digest != terms.archive {
            return Err(refused("the archive has been overwritten"));
        }
        if opened.image.tree_id() != terms.tree {
            return Err(refused(
                "its tree has been expanded anew, by another version",
            ));
        }
        let signals = EndSignals::catch_on(&opened)?;
        let (image, handle) = (opened.image.fs.clone(), opened.runtime.handle().clone());
        let session = Session::resume(image, handover.connection, terms.layout(), handle);
        let session = session.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => refused("that needs Linux 6.9"),
            _ => Failure::local(format!("cannot take over the connection: {error}")),
        })?;
        Ok(Mounted {
            opened,
            session,
            signals,
            // It is about the start, which is over.
            profile: None,
        })
    }

    /// Returns when it was unmounted.
    fn serve(&self, mounted: Mounted) -> Result<(), Failure> {
        let Mounted {
            opened,
            session,
            signals,
            profile,
        } = mounted;
        let rest = self.args.completion();
        if profile.is_none() {
            opened.image.prepare_first_start(opened.runtime.handle());
        }
        let ahead = (profile.is_some() || rest.is_some()).then(|| {
            let (profile, handle) = (profile.unwrap_or_default(), opened.runtime.handle());
            opened.image.fetch_ahead(profile, rest, handle)
        });
        unmount_on_signal(&opened, self.dir, signals);
        if let Err(error) = session.join() {
            let dir = self.dir.display();
            return Err(Failure::local(format!("serving {dir} failed: {error}")));
        }
        drop(ahead);
        if self.common.verbose {
            let fetched = opened.image.fetched();
            eprintln!(
                "fetched {} ({} bytes) in {}",
                units::bytes(fetched.bytes),
                fetched.bytes,
                units::count(fetched.requests, "request")
            );
        }
        Ok(())
    }
}

/// An image that is being served.
struct Mounted {
    opened: Opened,
    session: Session,
    signals: EndSignals,
    /// What is to be fetched ahead.
    profile: Option<StartProfile>,
}

impl Mounted {
    /// What another server needs to go on with it.
    fn handover(&self) -> io::Result<Handover> {
        let Opened {
            image,
            archive,
            digest,
            ..
        } = &self.opened;
        Ok(Handover {
            terms: Terms {
                name: archive.path.display().to_string(),
                archive: *digest,
                tree: image.tree_id(),
                under_erofs: self.session.layout() == Layout::TreeAndBlobs,
            },
            connection: self.session.connection().as_fd().try_clone_to_owned()?,
            archive: archive.file.try_clone()?,
        })
    }
}

impl Terms {
    fn layout(&self) -> Layout {
        match self.under_erofs {
            true => Layout::TreeAndBlobs,
            false => Layout::Tree,
        }
    }
}

/// Ctrl-C and SIGTERM.
pub struct EndSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl EndSignals {
    /// From now on they wait for [`Self::received`]. To be called on a runtime.
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    fn catch_on(opened: &Opened) -> Result<Self, Failure> {
        let _inside = opened.runtime.enter();
        Self::catch().map_err(Failure::local)
    }

    /// Returns when one of them came.
    pub async fn received(&mut self) {
        tokio::select! { _ = self.interrupt.recv() => {}, _ = self.terminate.recv() => {} }
    }
}

/// The session then ends by itself.
fn unmount_on_signal(opened: &Opened, dir: &Path, mut signals: EndSignals) {
    let dir = dir.to_owned();
    opened.runtime.spawn(async move {
        signals.received().await;
        let unmounted = tokio::task::spawn_blocking(move || umount::unmount(&dir, true)).await;
        if !matches!(unmounted, Ok(Ok(()))) {
            std::process::exit(1);
        }
    });
}
