//! `clip mount FILE|IMAGE DIR`.

mod background;
mod handover;
mod keeper;
mod kernel;
mod serving;

use crate::{
    archive_source::{Opened, SourceArgs},
    common::CommonArgs,
    failure::Failure,
    profile, units,
};
pub use background::Assignment;
use background::Role;
use clap::{Args, ValueEnum};
use clip_engine::{Layout, MountOptions, Pace, Session, StartProfile, mount_points, parse_bytes};
pub use kernel::{KernelMountArgs, run as run_kernel_mount};
use serving::Serving;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// Mount an archive or an image, read-only. What is read is fetched on demand.
///
/// Works as root, and for other users through `fusermount3`. Runs in the foreground until Ctrl-C or
/// `clip umount DIR`; with --background it returns once the mount is ready.
#[derive(Debug, Args)]
pub struct MountArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// An empty directory.
    #[arg(help_heading = None::<&str>)]
    dir: PathBuf,

    /// Return when the mount is ready; the server goes on in the background. Should it be killed, another takes its
    /// place and readers only wait for a moment (Linux 6.9).
    #[arg(short, long, help_heading = None::<&str>)]
    background: bool,

    /// Mount options, comma-separated. `suid` honours set-user-ID bits and file capabilities, `dev`
    /// device nodes, `allow_other` lets other users in (always on for root).
    #[arg(
        short = 'o',
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "OPTIONS",
        help_heading = None::<&str>
    )]
    options: Vec<OptionArg>,

    #[command(flatten)]
    serving: ServingArgs,
}

/// How an image is served, wherever it is mounted.
#[derive(Debug, Args)]
#[command(next_help_heading = "Serving")]
pub struct ServingArgs {
    /// Who answers for the tree. `fuse`: this program; names and attributes are asked once and then kept by the kernel.
    /// `erofs`: the kernel itself (Linux 6.12, root); this program is asked for cold bytes only. `auto`: `erofs` where it
    /// works, else `fuse`.
    #[arg(long, value_enum, default_value = "auto", env = "CLIP_ENGINE")]
    pub engine: Engine,

    /// Fetch ahead what this profile names, as `clip profile record` made it. What readers wait for goes first.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,

    /// Then fetch everything else while nobody waits: afterwards the registry may be gone.
    #[arg(long)]
    complete: bool,

    /// Fetch everything else at most at so many bytes a second, such as 20Mi; 0: as fast as it gets.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, requires = "complete")]
    complete_rate: Option<u64>,
}

impl ServingArgs {
    /// How fast everything else is fetched, if it is.
    fn completion(&self) -> Option<Arc<Pace>> {
        self.complete
            .then(|| Arc::new(Pace::new(self.complete_rate)))
    }

    /// The profile that was named.
    pub fn profile(&self) -> Result<Option<StartProfile>, Failure> {
        self.profile.as_deref().map(profile::read).transpose()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OptionArg {
    Suid,
    Dev,
    #[value(name = "allow_other")]
    AllowOther,
    /// Accepted for mount(8)'s sake.
    Ro,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    Auto,
    Fuse,
    Erofs,
}

/// Runs the command.
pub fn run(common: &CommonArgs, args: MountArgs) -> Result<(), Failure> {
    match Role::of_this_process() {
        Some(Role::Keeper) => keeper::run(&args.dir),
        Some(Role::Server) => args.serving(common).run_for_keeper(),
        None => {
            check_mount_point(&args.dir)?;
            match args.background {
                true => leave_behind(&args.dir),
                false => serve_in_foreground(common, &args),
            }
        }
    }
}

fn leave_behind(dir: &Path) -> Result<(), Failure> {
    background::start([])?;
    let dir = dir.display();
    eprintln!("Mounted at {dir}; unmount with `clip umount {dir}`");
    Ok(())
}

fn serve_in_foreground(common: &CommonArgs, args: &MountArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let dir = args.dir.display();
    args.serving(common).run(|opened| {
        let info = opened.image.fs.info();
        eprintln!(
            "Mounted {} ({}) at {dir} in {}",
            info.name,
            units::bytes(info.unpacked_bytes),
            units::seconds(started.elapsed())
        );
        eprintln!("Unmount with Ctrl-C or `clip umount {dir}`");
    })
}

impl MountArgs {
    fn serving<'a>(&'a self, common: &'a CommonArgs) -> Serving<'a> {
        let has = |option| self.options.contains(&option);
        Serving {
            common,
            source: &self.source,
            args: &self.serving,
            archive: None,
            dir: &self.dir,
            engine: self.serving.engine,
            options: MountOptions {
                suid: has(OptionArg::Suid),
                dev: has(OptionArg::Dev),
                allow_other: has(OptionArg::AllowOther) || nix::unistd::geteuid().is_root(),
            },
        }
    }
}

/// Serves a container's image: in the processes that [`Assignment::start`] started.
pub fn serve_container(
    common: &CommonArgs,
    source: &SourceArgs,
    args: &ServingArgs,
    assignment: Assignment,
) -> Result<(), Failure> {
    if Role::of_this_process() == Some(Role::Keeper) {
        return keeper::run(&assignment.dir);
    }
    let serving = Serving {
        common,
        source,
        args,
        archive: Some(assignment.archive),
        dir: &assignment.dir,
        engine: assignment.engine,
        // The runtime decides what set-user-ID bits and device nodes may do.
        options: MountOptions {
            suid: true,
            dev: true,
            allow_other: true,
        },
    };
    serving.run_for_keeper()
}

/// Mounts an opened image at `dir`.
pub fn mount(
    opened: &Opened,
    dir: &Path,
    engine: Engine,
    options: MountOptions,
) -> Result<Session, Failure> {
    let source = format!("clip:{}", opened.digest);
    match engine {
        Engine::Fuse => {}
        Engine::Erofs => return kernel::mount(opened, dir, &source, options),
        Engine::Auto => match kernel::mount(opened, dir, &source, options) {
            Ok(session) => return Ok(session),
            Err(failure) => tracing::info!("{}", failure.message),
        },
    }
    let (image, handle) = (opened.image.fs.clone(), opened.runtime.handle().clone());
    Session::mount(image, dir, &source, Layout::Tree, options, handle).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => ": is the package fuse3 installed, and /dev/fuse there?",
            std::io::ErrorKind::PermissionDenied => ": is /dev/fuse accessible, and `user_allow_other` set in /etc/fuse.conf if allow_other is wanted?",
            _ => "",
        };
        Failure::local(format!("cannot mount at {}: {error}{hint}", dir.display()))
    })
}

fn check_mount_point(dir: &Path) -> Result<(), Failure> {
    let shown = dir.display();
    let there = mount_points::at(dir).ok().flatten();
    if let Some(mount) = there.filter(mount_points::MountPoint::is_clip) {
        return Err(Failure::local(format!(
            "{} is already mounted at {shown}: unmount it with `clip umount {shown}` first",
            mount.source
        )));
    }
    let mut entries = std::fs::read_dir(dir).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::local(format!(
            "the mount point {shown} does not exist: create it with `mkdir -p {shown}`"
        )),
        std::io::ErrorKind::NotADirectory => {
            Failure::local(format!("the mount point {shown} is not a directory"))
        }
        _ => Failure::local(format!("cannot look at the mount point {shown}: {error}")),
    })?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Failure::local(format!(
            "the mount point {shown} is not empty: mounting would hide what is in it; use an empty directory"
        ))),
    }
}
