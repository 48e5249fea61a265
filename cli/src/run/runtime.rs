//! An OCI runtime that runs one container to its end.

use crate::{bundle::BundleDir, failure::Failure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io::IsTerminal as _,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};
use tokio::{
    process::{Child, Command},
    signal::unix::{self, SignalKind},
    sync::mpsc,
};

/// Beside the PATH: root's shells have them there, others do not.
const ADMIN_DIRS: [&str; 2] = ["/usr/sbin", "/sbin"];
/// What ends a process unless it says otherwise, and comes from outside.
const PASSED_ON: [Signal; 6] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// The program.
#[derive(Debug)]
pub struct Runtime(PathBuf);

impl Runtime {
    /// The runtime that the user means: a path, or a name to look for.
    pub fn find(wanted: &str) -> Result<Self, Failure> {
        let found = match wanted.contains('/') {
            true => Some(PathBuf::from(wanted)).filter(|path| path.is_file()),
            false => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let dirs = std::env::split_paths(&path).chain(ADMIN_DIRS.map(PathBuf::from));
                dirs.map(|dir| dir.join(wanted)).find(|path| path.is_file())
            }
        };
        found.map(Self).ok_or_else(|| {
            let remedy = match wanted {
                "runc" | "crun" => format!("install the package {wanted}"),
                "runsc" => "install gVisor".to_owned(),
                _ => "install it, or the package runc or crun".to_owned(),
            };
            Failure::local(format!(
                "no container runtime {wanted}: {remedy}, or name another with --runtime"
            ))
        })
    }
}

/// Signals to this process, in their order.
#[derive(Debug)]
pub struct Signals(mpsc::UnboundedReceiver<Signal>);

impl Signals {
    /// From now on they wait here. Inside a tokio runtime only.
    pub fn catch() -> Result<Self, Failure> {
        let (sender, receiver) = mpsc::unbounded_channel();
        for signal in PASSED_ON {
            let mut stream = unix::signal(SignalKind::from_raw(signal as i32))
                .map_err(|error| Failure::local(format!("cannot catch {signal}: {error}")))?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() && sender.send(signal).is_ok() {}
            });
        }
        Ok(Self(receiver))
    }

    async fn next(&mut self) -> Signal {
        match self.0.recv().await {
            Some(signal) => signal,
            // Its senders live as long as the process.
            None => std::future::pending().await,
        }
    }
}

/// A container of one bundle.
#[derive(Debug)]
pub struct Container<'a> {
    runtime: Runtime,
    bundle: &'a BundleDir,
    /// The runtime's own notes on it, in the bundle: they go with it.
    state: PathBuf,
    name: String,
}

impl<'a> Container<'a> {
    /// Named after its directory, which is unique on the machine.
    pub fn new(runtime: Runtime, bundle: &'a BundleDir) -> Self {
        let name = bundle.path().file_name().unwrap_or_default();
        Self {
            runtime,
            bundle,
            state: bundle.inner("runtime"),
            name: name.to_string_lossy().into_owned(),
        }
    }

    /// Runs it to its end, with this process's stdio; its exit code. Nothing of it is left but what it wrote.
    pub async fn run(&self, mut signals: Signals) -> Result<u8, Failure> {
        let mut child = self.start()?;
        let ended = self.wait(&mut child, &mut signals).await;
        if is_in_use(&self.state) {
            let _ = self.command(["delete", "--force"]).output().await;
        }
        ended.map(code_of).map_err(|error| {
            let program = self.runtime.0.display();
            Failure::local(format!("cannot wait for {program}: {error}"))
        })
    }

    fn start(&self) -> Result<Child, Failure> {
        let mut command = Command::new(&self.runtime.0);
        command.arg("--root").arg(&self.state);
        command.arg("run").arg("--bundle").arg(self.bundle.path());
        command.arg(&self.name);
        // Ctrl-C goes to everybody in front of a terminal, and the runtime would pass on what we pass on once more. With
        // the terminal as its stdin the runtime must be in front, but there keys are no signals.
        if !std::io::stdin().is_terminal() {
            command.process_group(0);
        }
        command.spawn().map_err(|error| {
            let program = self.runtime.0.display();
            Failure::local(format!("cannot run {program}: {error}"))
        })
    }

    /// Passes signals on until it ends. The runtime itself passes them on to the container.
    async fn wait(&self, child: &mut Child, signals: &mut Signals) -> std::io::Result<ExitStatus> {
        let mut asked = false;
        loop {
            let signal = tokio::select! {
                ended = child.wait() => return ended,
                signal = signals.next() => signal,
            };
            let asks = matches!(signal, Signal::SIGINT | Signal::SIGTERM);
            if asks && asked {
                self.kill(child).await;
            } else if let Some(pid) = child.id() {
                let _ = kill(Pid::from_raw(pid as i32), signal);
            }
            asked |= asks;
        }
    }

    /// The first process of a container ignores what it does not handle, but not this.
    async fn kill(&self, child: &mut Child) {
        let killed = self.command(["kill"]).arg("KILL").output().await;
        // There may be no container yet.
        if !killed.is_ok_and(|output| output.status.success()) {
            let _ = child.start_kill();
        }
    }

    /// A command of the runtime on this container.
    fn command<const N: usize>(&self, words: [&str; N]) -> Command {
        let mut command = Command::new(&self.runtime.0);
        command.arg("--root").arg(&self.state).args(words);
        command.arg(&self.name).stdin(Stdio::null());
        command
    }
}

fn is_in_use(state: &Path) -> bool {
    std::fs::read_dir(state).is_ok_and(|mut entries| entries.next().is_some())
}

/// As shells say it.
fn code_of(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| Some(128 + status.signal()?))
        .unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
