//! `clip bundle FILE|IMAGE DIR`: a bundle for OCI runtimes, made of an archive alone.

mod container;
mod dir;
mod overlay;

use crate::{
    archive_source::{Opened, SourceArgs},
    common::CommonArgs,
    failure::Failure,
    mount::{self, Assignment, Engine, ServingArgs},
};
use clap::Args;
use clip_bundle::Spec;
use clip_engine::mount_points;
pub use container::ContainerArgs;
pub use dir::BundleDir;
use overlay::Overlay;
use std::{
    path::{Path, PathBuf},
    process::Child,
    time::{Duration, Instant},
};

/// Make a bundle from which runc, crun and other OCI runtimes start a container, without pulling the image.
///
/// DIR/config.json is made of the image's own configuration: command, environment, user, working directory. DIR/rootfs
/// is the image, mounted lazily, below what the container writes. Both can be changed before the container starts. The
/// network is the machine's own unless --net says otherwise. Only root can make a bundle, and only root can enter it.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  clip bundle debian:12 ./b -- sh -c 'id; cat /etc/os-release'
  runc run --bundle ./b try          # or crun
  clip umount --remove ./b           # without --remove, what the container wrote stays in ./b/.clip-bundle/upper")]
pub struct BundleArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// A directory that does not exist yet, or is empty.
    #[arg(help_heading = None::<&str>)]
    dir: PathBuf,

    #[command(flatten)]
    container: ContainerArgs,

    #[command(flatten)]
    serving: ServingArgs,
}

/// How long the server may take to end once its mount is gone. It then has nothing left to do.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the command.
pub fn run(common: &CommonArgs, args: BundleArgs) -> Result<(), Failure> {
    if let Some(assignment) = Assignment::of_this_process() {
        return mount::serve_container(common, &args.source, &args.serving, assignment);
    }
    check_root()?;
    BundleDir::check_unused(&args.dir)?;
    let opened = args.source.open(common.verbose)?;
    let spec = args.container.spec(&opened, false)?;
    let engine = args.serving.engine;
    Bundle::make(BundleDir::create(&args.dir)?, opened, &spec, engine)?;
    let dir = args.dir.display();
    eprintln!("Made a bundle in {dir}: start it with `runc run --bundle {dir} NAME`");
    eprintln!("Take it away with `clip umount --remove {dir}`");
    Ok(())
}

/// Overlays need root, and so do the mounts that containers expect.
pub fn check_root() -> Result<(), Failure> {
    match nix::unistd::geteuid().is_root() {
        true => Ok(()),
        false => Err(Failure::local(
            "only root can put a container's writable layer over an image; `clip mount` works for everybody",
        )),
    }
}

/// A bundle whose image is being served by a process of its own.
#[derive(Debug)]
pub struct Bundle {
    dir: BundleDir,
    server: Child,
}

impl Bundle {
    /// Mounts everything, then writes `config.json`: a bundle that is not whole has none. What cannot be finished is
    /// taken away again.
    pub fn make(
        dir: BundleDir,
        opened: Opened,
        spec: &Spec,
        engine: Engine,
    ) -> Result<Self, Failure> {
        let mounted = mount_all(&dir, opened, spec, engine);
        let made = mounted.and_then(|server| {
            dir.write_config(spec)?;
            Ok(server)
        });
        match made {
            Ok(server) => Ok(Self { dir, server }),
            Err(failure) => {
                // The first failure says more.
                let _ = dir.remove();
                Err(failure)
            }
        }
    }

    /// Where it is.
    pub fn dir(&self) -> &BundleDir {
        &self.dir
    }

    /// Takes everything away and waits until the server has ended, too.
    pub fn remove(mut self) -> Result<(), Failure> {
        self.dir.remove()?;
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.server.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// The image, and over it what the container writes or, if it may not, the places that mounts need.
fn mount_all(
    dir: &BundleDir,
    opened: Opened,
    spec: &Spec,
    engine: Engine,
) -> Result<Child, Failure> {
    let overlay = Overlay::prepare(dir, &opened, spec)?;
    let mut assignment = Assignment {
        archive: std::path::absolute(&opened.archive.path).map_err(Failure::local)?,
        dir: dir.image(),
        engine,
    };
    // The server opens the image itself.
    drop(opened);
    let server = assignment.start()?;
    match overlay.mount() {
        Ok(()) => Ok(server),
        // Not every kernel stacks an overlay on EROFS on whatever holds its tree.
        Err(problem) if engine == Engine::Auto && is_erofs(&dir.image()) => {
            tracing::info!("no overlay on EROFS here ({problem}); trying FUSE");
            dir.unmount(false)?;
            assignment.engine = Engine::Fuse;
            let server = assignment.start()?;
            overlay.mount().map_err(Failure::local)?;
            Ok(server)
        }
        Err(problem) => Err(Failure::local(problem)),
    }
}

fn is_erofs(mount_point: &Path) -> bool {
    let mount = mount_points::at(mount_point).ok().flatten();
    mount.is_some_and(|mount| mount.fs_type == "erofs")
}
