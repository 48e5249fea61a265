//! `clip profile record`: mounts an image for a command, and writes down what is read.

use crate::{
    archive_source::{Opened, SourceArgs},
    common::CommonArgs,
    failure::Failure,
    mount::{self, Engine},
    profile, umount, units,
};
use clap::Args;
use clip_archive::StartProfile;
use clip_engine::{MountOptions, StateDir};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};

/// Mount an image, run a command that starts what it is for, and write down what was read first.
///
/// In the command's arguments `{}` stands for the directory where the image is mounted. Recording ends when the command
/// does, or after --seconds: a server that never ends is then asked to (SIGTERM). Needs no empty cache: what is read
/// counts, not what is fetched.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  clip profile record app.clip app.profile -- chroot {} python3 -c 'import numpy'
  clip profile record --seconds 10 app.clip app.profile -- chroot {} node server.js
  clip profile record --merge app.clip app.profile -- chroot {} node worker.js")]
pub struct RecordArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// The profile to write.
    profile: PathBuf,

    /// Add to the profile if it is there: what both starts read comes first.
    #[arg(long)]
    merge: bool,

    /// Record for so long at most.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..86400))]
    seconds: u64,

    /// What to run.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How long a command may take to end after it was asked to.
const PATIENCE: Duration = Duration::from_secs(5);

/// How recording came to its end.
enum End {
    Finished(ExitStatus),
    TimeIsUp,
    Interrupted,
}

/// Runs the command.
pub fn run(common: &CommonArgs, args: &RecordArgs) -> Result<(), Failure> {
    let shown = args.profile.display();
    let earlier = match (args.profile.exists(), args.merge) {
        (false, _) => None,
        (true, true) => Some(profile::read(&args.profile)?),
        (true, false) => {
            return Err(Failure::local(format!(
                "{shown} is there already: add --merge to combine both, or name another file"
            )));
        }
    };
    let opened = args.source.open(common.verbose)?;
    let recorded = record(&opened, args)?;
    if recorded.touches().is_empty() {
        return Err(Failure::local(
            "the command read nothing of the image, so no profile was written: `{}` in its arguments is where the image is",
        ));
    }
    let profile = match &earlier {
        None => recorded,
        Some(earlier) => StartProfile::merge([earlier, &recorded]),
    };
    StateDir::write(&args.profile, &profile.to_json())
        .map_err(|error| Failure::local(format!("cannot write {shown}: {error}")))?;
    eprintln!(
        "Recorded {shown}: {}",
        units::count(profile.touches().len() as u64, "span")
    );
    Ok(())
}

fn record(opened: &Opened, args: &RecordArgs) -> Result<StartProfile, Failure> {
    let dir = tempfile::Builder::new()
        .prefix("clip-profile-")
        .tempdir()
        .map_err(|error| Failure::local(format!("cannot make a directory to mount at: {error}")))?;
    let options = MountOptions {
        // As a runtime shows the image to its container.
        suid: true,
        dev: true,
        allow_other: nix::unistd::geteuid().is_root(),
    };
    opened.image.begin_profile();
    // The command's end, a signal, and the mount all meet in here, so that none leaves the mount behind.
    let end = opened.runtime.block_on(async {
        let mut interrupts = signal(SignalKind::interrupt()).map_err(Failure::local)?;
        let mut terminations = signal(SignalKind::terminate()).map_err(Failure::local)?;
        let session = mount::mount(opened, dir.path(), Engine::Fuse, options)?;
        let end = match start(&args.command, dir.path()) {
            Err(failure) => Err(failure),
            Ok(mut child) => {
                let end = tokio::select! {
                    ended = child.wait() => ended.map(End::Finished).map_err(Failure::local),
                    () = tokio::time::sleep(Duration::from_secs(args.seconds)) => Ok(End::TimeIsUp),
                    _ = interrupts.recv() => Ok(End::Interrupted),
                    _ = terminations.recv() => Ok(End::Interrupted),
                };
                if !matches!(end, Ok(End::Finished(_))) {
                    end_child(&mut child).await;
                }
                end
            }
        };
        umount::unmount(dir.path(), true)?;
        drop(session);
        end
    })?;
    let profile = opened.image.end_profile();
    match end {
        End::Finished(status) if !status.success() => Err(Failure::local(format!(
            "the command ended with {status}, so no profile was written"
        ))),
        End::Interrupted => Err(Failure::local("interrupted, so no profile was written")),
        End::Finished(_) | End::TimeIsUp => Ok(profile),
    }
}

fn start(command: &[OsString], dir: &Path) -> Result<Child, Failure> {
    let (program, arguments) = command.split_first().expect("clap asks for one");
    let dir = dir.to_string_lossy();
    let arguments = arguments.iter().map(|argument| match argument.to_str() {
        Some(text) => text.replace("{}", &dir).into(),
        None => argument.clone(),
    });
    Command::new(program)
        .args(arguments)
        .spawn()
        .map_err(|error| {
            let program = program.to_string_lossy();
            Failure::local(format!("cannot run {program}: {error}"))
        })
}

async fn end_child(child: &mut Child) {
    if let Some(pid) = child.id() {
        let _ = kill(Pid::from_raw(pid as i32), Signal::SIGTERM);
    }
    if tokio::time::timeout(PATIENCE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}
