//! A server in a process of its own: this program once more, with the same arguments. What else it must know is in its
//! environment, so that the user's arguments need not be understood a second time.

use super::Engine;
use crate::failure::Failure;
use clap::ValueEnum;
use std::{
    ffi::OsString,
    io::{Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// Tells the serving process that it is one.
pub const READY_ON_STDOUT: &str = "CLIP_READY_ON_STDOUT";
/// What the serving process says on its stdout once the mount is there.
const READY: &[u8] = b"ready\n";

const ARCHIVE: &str = "CLIP_SERVE_ARCHIVE";
const DIR: &str = "CLIP_SERVE_DIR";
const ENGINE: &str = "CLIP_SERVE_ENGINE";

/// What to serve where, decided by the command that starts the server.
#[derive(Debug)]
pub struct Assignment {
    /// The archive; what the user named may mean another by now.
    pub archive: PathBuf,
    /// The mount point.
    pub dir: PathBuf,
    /// Who answers for the tree.
    pub engine: Engine,
}

impl Assignment {
    /// The assignment of this process, if it is a server.
    pub fn of_this_process() -> Option<Self> {
        let engine = std::env::var(ENGINE).ok()?;
        Some(Self {
            archive: std::env::var_os(ARCHIVE)?.into(),
            dir: std::env::var_os(DIR)?.into(),
            engine: Engine::from_str(&engine, false).ok()?,
        })
    }

    /// Starts a server with this assignment, and returns when it is ready.
    pub fn start(&self) -> Result<Child, Failure> {
        let engine = self.engine.to_possible_value();
        let engine = engine.expect("no engine is hidden").get_name().to_owned();
        start([
            (ARCHIVE, self.archive.clone().into()),
            (DIR, self.dir.clone().into()),
            (ENGINE, engine.into()),
        ])
    }
}

/// Starts the server, in a session of its own, and waits until it is ready or has failed. What it complains of until
/// then reaches the user's terminal.
pub fn start(
    environment: impl IntoIterator<Item = (&'static str, OsString)>,
) -> Result<Child, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::local(format!("cannot find the clip program: {error}")))?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(READY_ON_STDOUT, "1")
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| Failure::local(format!("cannot start the server: {error}")))?;
    let mut said = Vec::new();
    let mut stdout = child.stdout.take().expect("stdout is piped");
    let _ = stdout.read_to_end(&mut said);
    if said == READY {
        return Ok(child);
    }
    // The server has printed the reason itself.
    let status = child
        .wait()
        .map_err(|error| Failure::local(format!("cannot wait for the server: {error}")))?;
    Err(Failure::said_already(status.code()))
}

/// Tells the parent, then lets go of the terminal.
pub fn announce_ready() {
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
