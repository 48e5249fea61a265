//! `clip mount FILE|IMAGE DIR`.

mod kernel;

use crate::{
    archive_source::{Opened, SourceArgs},
    common::CommonArgs,
    failure::Failure,
    profile, umount, units,
};
use clap::{Args, ValueEnum};
use clip_engine::{Digest, Layout, MountOptions, Session, mount_points};
pub use kernel::{KernelMountArgs, run as run_kernel_mount};
use std::{
    io::{Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Mount an archive or an image, read-only. What is read is fetched on demand.
///
/// Works as root, and for other users through `fusermount3`. Runs in the foreground until Ctrl-C or
/// `clip umount DIR`; with --background it returns once the mount is ready.
#[derive(Debug, Args)]
pub struct MountArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// An empty directory.
    dir: PathBuf,

    /// Return when the mount is ready; the server goes on in the background.
    #[arg(short, long)]
    background: bool,

    /// Mount options, comma-separated. `suid` honours set-user-ID bits and file capabilities, `dev`
    /// device nodes, `allow_other` lets other users in (always on for root).
    #[arg(
        short = 'o',
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "OPTIONS"
    )]
    options: Vec<OptionArg>,

    /// Who answers for the tree. `fuse`: this program; names and attributes are asked once and then kept by the kernel.
    /// `erofs`: the kernel itself (Linux 6.12, root); this program is asked for cold bytes only. `auto`: `erofs` where it
    /// works, else `fuse`.
    #[arg(long, value_enum, default_value = "auto", env = "CLIP_ENGINE")]
    engine: Engine,

    /// Fetch ahead what this profile names, as `clip profile record` made it. What readers wait for goes first.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,

    /// Then fetch everything else while nobody waits: afterwards the registry may be gone.
    #[arg(long)]
    complete: bool,

    /// Set by --background for the process that serves.
    #[arg(long, hide = true, env = READY_ON_STDOUT, value_parser = clap::builder::FalseyValueParser::new())]
    ready_on_stdout: bool,
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

/// Tells the serving process that it is one. The environment, so that the user's arguments need not
/// be understood a second time.
const READY_ON_STDOUT: &str = "CLIP_READY_ON_STDOUT";
/// What the serving process says on its stdout once the mount is there.
const READY: &[u8] = b"ready\n";

/// Runs the command.
pub fn run(common: &CommonArgs, args: MountArgs) -> Result<(), Failure> {
    check_mount_point(&args.dir)?;
    match args.background && !args.ready_on_stdout {
        true => start_in_background(&args.dir),
        false => serve(common, &args),
    }
}

fn serve(common: &CommonArgs, args: &MountArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let profile = args.profile.as_deref().map(profile::read).transpose()?;
    let opened = args.source.open(common.verbose)?;
    // Before the mount is there: a signal from now on unmounts it instead of leaving it behind.
    let signals = EndSignals::catch(&opened).map_err(Failure::local)?;
    let has = |option| args.options.contains(&option);
    let options = MountOptions {
        suid: has(OptionArg::Suid),
        dev: has(OptionArg::Dev),
        allow_other: has(OptionArg::AllowOther) || nix::unistd::geteuid().is_root(),
    };
    let session = mount(&opened, &args.dir, args.engine, options)?;
    let runtime = opened.runtime.handle();
    let ahead = (profile.is_some() || args.complete).then(|| {
        let profile = profile.unwrap_or_default();
        opened.image.fetch_ahead(profile, args.complete, runtime)
    });
    if args.ready_on_stdout {
        announce_ready();
    } else {
        let info = opened.image.fs.info();
        eprintln!(
            "Mounted {} ({}) at {} in {}",
            info.name,
            units::bytes(info.unpacked_bytes),
            args.dir.display(),
            units::seconds(started.elapsed())
        );
        eprintln!(
            "Unmount with Ctrl-C or `clip umount {}`",
            args.dir.display()
        );
    }
    unmount_on_signal(&opened, &args.dir, signals);
    session.join().map_err(|error| {
        Failure::local(format!("serving {} failed: {error}", args.dir.display()))
    })?;
    drop(ahead);
    if common.verbose {
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

/// Mounts an opened image at `dir`.
pub fn mount(
    opened: &Opened,
    dir: &Path,
    engine: Engine,
    options: MountOptions,
) -> Result<Session, Failure> {
    let archive = std::fs::read(&opened.archive).map_err(|error| {
        Failure::local(format!("cannot read {}: {error}", opened.archive.display()))
    })?;
    let source = format!("clip:{}", Digest::of(&archive));
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

/// Starts this program again as the server, in a session of its own, and waits until it is ready or
/// has failed. What it complains of until then reaches the user's terminal.
fn start_in_background(dir: &Path) -> Result<(), Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::local(format!("cannot find the clip program: {error}")))?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(READY_ON_STDOUT, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| Failure::local(format!("cannot start the server: {error}")))?;
    let mut said = Vec::new();
    let mut stdout = child.stdout.take().expect("stdout is piped");
    let _ = stdout.read_to_end(&mut said);
    if said == READY {
        eprintln!(
            "Mounted at {}; unmount with `clip umount {}`",
            dir.display(),
            dir.display()
        );
        return Ok(());
    }
    // The server has printed the reason itself.
    let status = child
        .wait()
        .map_err(|error| Failure::local(format!("cannot wait for the server: {error}")))?;
    std::process::exit(status.code().unwrap_or(1));
}

/// Tells the parent, then lets go of the terminal.
fn announce_ready() {
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(READY).and_then(|()| stdout.flush());
    let _ = nix::unistd::setsid();
    if let Ok(null) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
    {
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
    }
}

/// Ctrl-C and SIGTERM.
struct EndSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl EndSignals {
    /// From now on they wait for [`unmount_on_signal`].
    fn catch(opened: &Opened) -> std::io::Result<Self> {
        let _inside = opened.runtime.enter();
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }
}

/// The session then ends by itself.
fn unmount_on_signal(opened: &Opened, dir: &Path, mut signals: EndSignals) {
    let dir = dir.to_owned();
    opened.runtime.spawn(async move {
        tokio::select! { _ = signals.interrupt.recv() => {}, _ = signals.terminate.recv() => {} }
        let unmounted = tokio::task::spawn_blocking(move || umount::unmount(&dir, true)).await;
        if !matches!(unmounted, Ok(Ok(()))) {
            std::process::exit(1);
        }
    });
}
