//! `--engine erofs`: the kernel serves the tree, this process only what is cold.

use crate::{archive_source::Opened, failure::Failure, umount};
use clap::Args;
use clip_engine::{KernelMount, Layout, MountOptions, Session};
use nix::mount::{MntFlags, umount2};
use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// How long the mount calls may take. They wait for this process alone, and it answers from memory.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the process that mounts is told.
#[derive(Debug, Args)]
pub struct KernelMountArgs {
    #[arg(long)]
    tree: PathBuf,
    #[arg(long)]
    source: String,
    #[arg(long)]
    blobs: PathBuf,
    #[arg(long)]
    layers: u16,
    #[arg(long)]
    suid: bool,
    #[arg(long)]
    dev: bool,
    dir: PathBuf,
}

/// Runs the hidden command that mounts: a process that waited for a file system that it serves itself could not be
/// killed.
pub fn run(args: KernelMountArgs) -> ExitCode {
    let mount = KernelMount {
        tree: args.tree,
        source: args.source,
        blobs: args.blobs,
        layers: args.layers,
        suid: args.suid,
        dev: args.dev,
    };
    match mount.mount(&args.dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Mounts an opened image at `dir`, by way of a connection that nobody sees.
pub fn mount(
    opened: &Opened,
    dir: &Path,
    source: &str,
    options: MountOptions,
) -> Result<Session, Failure> {
    let refused = |problem: String| {
        Failure::local(format!(
            "cannot mount {} with the kernel's EROFS: {problem}; --engine fuse works everywhere",
            dir.display()
        ))
    };
    if !nix::unistd::geteuid().is_root() {
        return Err(refused("only root may".to_owned()));
    }
    let hidden = tempfile::Builder::new()
        .prefix("clip-connection-")
        .tempdir()
        .map_err(|error| refused(error.to_string()))?;
    let image = opened.image.fs.clone();
    let (layers, handle) = (image.layers().len(), opened.runtime.handle().clone());
    let layout = Layout::TreeAndBlobs;
    let session = Session::mount(image, hidden.path(), source, layout, options, handle)
        .map_err(|error| refused(error.to_string()))?;
    let mut program = program()?;
    program
        .arg("kernel-mount")
        .arg(format!("--layers={layers}"))
        .arg(format!("--source={source}"))
        .arg("--tree")
        .arg(&opened.image.tree)
        .arg("--blobs")
        .arg(hidden.path().join("blobs"))
        .args(options.suid.then_some("--suid"))
        .args(options.dev.then_some("--dev"))
        .arg(dir);
    let mounted = wait(program);
    // EROFS holds the layers open; without it, this ends the connection.
    let detached = umount2(hidden.path(), MntFlags::MNT_DETACH)
        .map_err(|error| format!("cannot detach the connection: {error}"));
    if let Err(problem) = mounted.and(detached) {
        // It may have been mounted all the same, just when its time was up.
        let _ = umount::unmount(dir, true);
        return Err(refused(problem));
    }
    Ok(session)
}

fn program() -> Result<Command, Failure> {
    std::env::current_exe()
        .map(Command::new)
        .map_err(|error| Failure::local(format!("cannot find the clip program: {error}")))
}

/// Waits for the mounting process, which says on stderr why it failed.
fn wait(mut command: Command) -> Result<(), String> {
    let spawned = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child =
        spawned.map_err(|error| format!("cannot start the mounting process: {error}"))?;
    let stderr = child.stderr.take().expect("stderr is piped");
    let Some(said) = read_within(PATIENCE, stderr) else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("it took longer than {} s", PATIENCE.as_secs()));
    };
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) if said.trim().is_empty() => {
            Err(format!("the mounting process ended with {status}"))
        }
        Ok(_) => Err(said.trim().to_owned()),
        Err(error) => Err(format!("cannot wait for the mounting process: {error}")),
    }
}

/// What comes from `pipe` until its other end is closed, as it is when the process there ends.
fn read_within(patience: Duration, mut pipe: impl Read + Send + 'static) -> Option<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut text = Vec::new();
        let _ = pipe.read_to_end(&mut text);
        let _ = sender.send(String::from_utf8_lossy(&text).into_owned());
    });
    receiver.recv_timeout(patience).ok()
}
