//! A mount that its command leaves behind. Two processes stay, each this program once more with the same arguments:
//!
//! ```text
//!  clip mount --background ──starts──► keeper ──starts, again and again──► server
//!                          ◄──ready──         ◄──handover ([`super::handover`])──
//! ```
//! What else they must know is in their environment, so that the user's arguments need not be understood a second time.

use super::Engine;
use crate::failure::Failure;
use clap::ValueEnum;
use std::{
    ffi::OsString,
    fs::File,
    io::{Read as _, Write as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// What the keeper says on its stdout once the mount is there.
const READY: &[u8] = b"ready\n";

const ROLE: &str = "CLIP_ROLE";
const ARCHIVE: &str = "CLIP_SERVE_ARCHIVE";
const DIR: &str = "CLIP_SERVE_DIR";
const ENGINE: &str = "CLIP_SERVE_ENGINE";

/// What a process does for a mount in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Holds the connection and starts servers.
    Keeper,
    /// Answers the kernel.
    Server,
}

impl Role {
    /// The role of this process; the user's own command has none.
    pub fn of_this_process() -> Option<Self> {
        let role = std::env::var(ROLE).ok()?;
        let roles = [Self::Keeper, Self::Server];
        roles.into_iter().find(|other| other.name() == role)
    }

    /// This command in that role.
    pub fn command(self) -> Command {
        let mut command = Command::new(this_program());
        command
            .args(std::env::args_os().skip(1))
            .env(ROLE, self.name());
        command
    }

    fn name(self) -> &'static str {
        match self {
            Self::Keeper => "keeper",
            Self::Server => "server",
        }
    }
}

/// The program that runs here, also when another version has been installed in its place.
fn this_program() -> PathBuf {
    let named = std::env::current_exe().ok().filter(|path| path.exists());
    named.unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}

/// What to serve where, decided by the command that starts the keeper.
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
    /// The assignment of this process, if it has one.
    pub fn of_this_process() -> Option<Self> {
        let engine = std::env::var(ENGINE).ok()?;
        Some(Self {
            archive: std::env::var_os(ARCHIVE)?.into(),
            dir: std::env::var_os(DIR)?.into(),
            engine: Engine::from_str(&engine, false).ok()?,
        })
    }

    /// Starts a keeper with this assignment, and returns when its server is ready.
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

/// Starts a keeper and waits until its server is ready or has failed. What they complain of until then reaches the
/// user's terminal.
pub fn start(
    environment: impl IntoIterator<Item = (&'static str, OsString)>,
) -> Result<Child, Failure> {
    let mut child = Role::Keeper
        .command()
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::local(format!("cannot start the keeper: {error}")))?;
    let mut said = Vec::new();
    let mut stdout = child.stdout.take().expect("stdout is piped");
    let _ = stdout.read_to_end(&mut said);
    if said == READY {
        return Ok(child);
    }
    // Keeper or server have printed the reason themselves.
    let status = child
        .wait()
        .map_err(|error| Failure::local(format!("cannot wait for the keeper: {error}")))?;
    Err(Failure::said_already(status.code()))
}

/// Tells the command that waits in [`start`], and goes on without it.
pub fn announce_ready() {
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(READY).and_then(|()| stdout.flush());
    if let Ok(null) = null() {
        let _ = nix::unistd::dup2_stdout(&null);
    }
    let_go_of_stderr();
}

/// Lets go of a terminal, and of a pipe whose reader waits for its end. A file is written to for as long as the mount is
/// there.
pub fn let_go_of_stderr() {
    let is_file = |stderr: std::io::Stderr| {
        let kind = nix::sys::stat::fstat(stderr).map(|stat| stat.st_mode);
        kind.is_ok_and(|mode| mode & nix::libc::S_IFMT == nix::libc::S_IFREG)
    };
    if !is_file(std::io::stderr())
        && let Ok(null) = null()
    {
        let _ = nix::unistd::dup2_stderr(&null);
    }
}

/// For a stream that is no longer wanted.
pub fn null() -> std::io::Result<File> {
    File::options().read(true).write(true).open("/dev/null")
}
