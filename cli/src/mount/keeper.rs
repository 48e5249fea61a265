//! The process that stays behind with a mount: it holds a copy of the FUSE connection's descriptor, and starts a server
//! whenever the one before has died. So readers of the mount wait for a moment, and no read fails.
//!
//! It must never look at the mount point: that would wait for the very server that it is to start. Whether there still
//! is something to serve, the connection's descriptor says.

use super::{
    background::{self, Role},
    handover::{Handover, Line, ListeningLine},
    serving::EndSignals,
};
use crate::{
    failure::{Failure, PERMANENT},
    umount,
};
use clip_engine::is_connected;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fmt,
    io::{self, Write as _},
    os::fd::AsFd as _,
    path::Path,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};
use tokio::process::{Child, Command};

/// A server that has served for so long did not fail at its start.
const STARTED: Duration = Duration::from_millis(250);
/// Pauses before the next server, when the one before failed at its start: none, then from this, doubling, to `MAX_PAUSE`.
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// A server that says nothing for so long hangs. It is killed, for the next one can do better.
const PATIENCE: Duration = Duration::from_secs(20);
/// So many servers may fail at their start, one after the other. With the pauses between them readers wait for 9 s, then
/// for nobody: an error says more than waiting for ever.
const TRIES: u32 = 10;

/// Runs the keeper of the mount at `dir` until nothing is mounted any more.
pub fn run(dir: &Path) -> Result<(), Failure> {
    // Neither the terminal's Ctrl-C nor its end reaches this process and its servers.
    let _ = nix::unistd::setsid();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::local)?;
    runtime.block_on(async {
        let keeper = Keeper {
            dir,
            signals: EndSignals::catch().map_err(Failure::local)?,
            told_to_end: false,
            handover: None,
            failed_starts: 0,
        };
        keeper.keep().await
    })
}

struct Keeper<'a> {
    dir: &'a Path,
    signals: EndSignals,
    told_to_end: bool,
    /// What the next server goes on with; nothing until the first one serves.
    handover: Option<Handover>,
    /// How many servers failed at their start since the last one that did not.
    failed_starts: u32,
}

/// How the life of a server ended.
#[derive(Debug, Clone, Copy)]
struct Life {
    /// Nothing when it could not even be started.
    status: Option<ExitStatus>,
    served: Duration,
}

/// What a keeper does when a server has ended.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// It was unmounted.
    End,
    /// The server was told to unmount and did not come to it.
    Unmount,
    /// No server can go on.
    GiveUp,
    /// Another server goes on.
    Start,
}

impl Keeper<'_> {
    async fn keep(mut self) -> Result<(), Failure> {
        loop {
            let life = self.attend_server().await;
            let Some(handover) = &self.handover else {
                return Err(life.never_ready());
            };
            self.failed_starts = match life.served < STARTED {
                true => self.failed_starts + 1,
                false => 0,
            };
            let is_connected = is_connected(handover.connection.as_fd());
            match decide(life, is_connected, self.told_to_end, self.failed_starts) {
                Next::End => return Ok(()),
                Next::Unmount => return self.unmount(),
                Next::GiveUp => return Err(self.give_up(life)),
                Next::Start => self.pause(life).await,
            }
            if self.told_to_end {
                return self.unmount();
            }
        }
    }

    /// Starts a server and waits for its end.
    async fn attend_server(&mut self) -> Life {
        let (mut server, line) = match start_server(self.handover.as_ref()) {
            Ok(started) => started,
            Err(error) => {
                say(format_args!("cannot start a server: {error}"));
                return Life {
                    status: None,
                    served: Duration::ZERO,
                };
            }
        };
        let mut is_heard = true;
        let mut serves_since = None;
        loop {
            tokio::select! {
                // First what it said, then that it ended, then that it said nothing.
                biased;
                said = line.receive(), if is_heard => match said {
                    Ok(Some(handover)) => {
                        self.serves(handover);
                        serves_since = Some(Instant::now());
                    }
                    // It is alive.
                    Ok(None) => {}
                    Err(_) => is_heard = false,
                },
                () = self.signals.received() => {
                    self.told_to_end = true;
                    tell_to_end(&server);
                }
                status = server.wait() => {
                    let served = serves_since.map_or(Duration::ZERO, |since| since.elapsed());
                    return Life { status: status.ok(), served };
                }
                () = tokio::time::sleep(PATIENCE), if serves_since.is_some() => {
                    let (dir, seconds) = (self.dir.display(), PATIENCE.as_secs());
                    say(format_args!("the server of {dir} hangs: it was silent for {seconds} s, and is killed"));
                    let _ = server.start_kill();
                }
            }
        }
    }

    /// The first server's readiness is the mount's.
    fn serves(&mut self, handover: Handover) {
        if self.handover.replace(handover).is_none() {
            background::announce_ready();
        }
    }

    /// Without a server or a connection nobody can be kept waiting.
    fn unmount(self) -> Result<(), Failure> {
        drop(self.handover);
        umount::unmount(self.dir, true)
    }

    /// The connection ends with this process.
    fn give_up(&self, life: Life) -> Failure {
        let dir = self.dir.display();
        Failure::local(format!(
            "no server can go on with the mount at {dir} ({}): reads fail from now on; `clip umount {dir}` takes it away",
            life.end()
        ))
    }

    async fn pause(&mut self, life: Life) {
        let (dir, end) = (self.dir.display(), life.end());
        say(format_args!(
            "the server of {dir} ended ({end}); the next one goes on"
        ));
        tokio::select! {
            () = tokio::time::sleep(pause_after(self.failed_starts)) => {}
            () = self.signals.received() => self.told_to_end = true,
        }
    }
}

impl Life {
    /// Why there is no mount.
    fn never_ready(&self) -> Failure {
        match self.status.and_then(|status| status.code()) {
            Some(code) => Failure::said_already(Some(code)),
            None => Failure::local(format!(
                "the server ended before the mount was ready ({})",
                self.end()
            )),
        }
    }

    fn end(&self) -> String {
        match self.status {
            Some(status) => status.to_string(),
            None => "it was not started".to_owned(),
        }
    }
}

/// What is to be done after `life`.
fn decide(life: Life, is_connected: bool, told_to_end: bool, failed_starts: u32) -> Next {
    let code = life.status.and_then(|status| status.code());
    match code {
        // It ends in order only when the kernel has nothing more to ask.
        Some(0) => Next::End,
        _ if !is_connected => Next::End,
        _ if told_to_end => Next::Unmount,
        Some(code) if code == i32::from(PERMANENT) => Next::GiveUp,
        _ if failed_starts >= TRIES => Next::GiveUp,
        _ => Next::Start,
    }
}

fn pause_after(failed_starts: u32) -> Duration {
    match failed_starts {
        0 | 1 => Duration::ZERO,
        several => MIN_PAUSE
            .saturating_mul(1 << (several - 2).min(16))
            .min(MAX_PAUSE),
    }
}

fn start_server(handover: Option<&Handover>) -> io::Result<(Child, ListeningLine)> {
    let (line, stdin) = Line::new()?;
    line.send(handover)?;
    let line = line.listen()?;
    let mut command = Command::from(Role::Server.command());
    let server = command.stdin(stdin).stdout(Stdio::null()).spawn()?;
    Ok((server, line))
}

/// The server unmounts, as it would without a keeper.
fn tell_to_end(server: &Child) {
    if let Some(pid) = server.id() {
        let _ = kill(Pid::from_raw(pid as i32), Signal::SIGTERM);
    }
}

/// To the file that the user may have given as stderr. A disk that is full must not end the keeper.
fn say(message: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "clip: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;

    fn life(status: i32) -> Life {
        Life {
            status: Some(ExitStatus::from_raw(status)),
            served: Duration::ZERO,
        }
    }

    #[test]
    fn what_follows_a_server_depends_on_how_it_ended() {
        let unstarted = Life {
            status: None,
            served: Duration::ZERO,
        };
        let code = |code: i32| life(code << 8);
        let killed = life(9);
        let terminated = life(15);
        // End, still connected, told to end, failed starts.
        let table = [
            (code(0), false, false, 0, Next::End),
            (code(0), true, true, 0, Next::End),
            (killed, false, false, 1, Next::End),
            (killed, true, false, 1, Next::Start),
            (code(1), true, false, 1, Next::Start),
            (unstarted, true, false, 1, Next::Start),
            (killed, true, false, TRIES, Next::GiveUp),
            (unstarted, true, false, TRIES, Next::GiveUp),
            (code(42), true, false, 1, Next::GiveUp),
            (terminated, true, true, 1, Next::Unmount),
            (terminated, false, true, 1, Next::End),
        ];
        for (life, connected, told, failed, expected) in table {
            let case = format!("{life:?}, {connected}, {told}, {failed}");
            assert_eq!(decide(life, connected, told, failed), expected, "{case}");
        }
    }

    #[test]
    fn the_first_failure_costs_no_time_and_the_pauses_grow_to_a_bound() {
        let pauses: Vec<u128> = (0..TRIES)
            .map(|failed| pause_after(failed).as_millis())
            .collect();
        assert_eq!(pauses, [0, 0, 50, 100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(pause_after(u32::MAX), MAX_PAUSE);
    }
}
