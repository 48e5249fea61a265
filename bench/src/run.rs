//! Running commands and taking their time.

use anyhow::{Context, Result, bail};
use std::{
    io::{Read as _, Seek as _},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Short commands run again for so long.
const RUN_FOR: Duration = Duration::from_secs(2);

/// What a command took.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// By the clock.
    pub wall: Duration,
    /// Processor time, user and system, of the command and its children.
    pub cpu: Duration,
    /// Most memory of one of these processes, in bytes.
    pub peak: u64,
}

/// Runs `command` to its end; its output is shown only when it fails.
pub fn timed(command: &mut Command) -> Result<Cost> {
    let mut output = tempfile::tempfile()?;
    let started = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()
        .with_context(|| format!("{command:?}"))?;
    let (status, usage) = wait(child.id() as libc::pid_t)?;
    let wall = started.elapsed();
    if status != 0 {
        let mut said = String::new();
        output.rewind()?;
        output.read_to_string(&mut said)?;
        bail!("{command:?} failed (wait status {status}): {}", said.trim());
    }
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64)
    };
    Ok(Cost {
        wall,
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        peak: usage.ru_maxrss as u64 * 1024,
    })
}

/// The cheapest of a few runs, of more when they are short: whatever else the machine does only adds.
pub fn best_of(runs: usize, mut command: impl FnMut() -> Command) -> Result<Cost> {
    let begun = Instant::now();
    let mut best = timed(&mut command())?;
    let mut done = 1;
    while done < runs || begun.elapsed() < RUN_FOR {
        done += 1;
        let cost = timed(&mut command())?;
        best.wall = best.wall.min(cost.wall);
        best.cpu = best.cpu.min(cost.cpu);
        best.peak = best.peak.max(cost.peak);
    }
    Ok(best)
}

/// Waits for a child and gets what it and its children used (wait4(2)), which the standard library does not tell.
#[allow(unsafe_code)]
fn wait(child: libc::pid_t) -> Result<(libc::c_int, libc::rusage)> {
    let mut status = 0;
    // SAFETY: rusage is plain numbers, for which zeros are valid; wait4 writes to both for as long as it runs.
    let (waited, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let waited = libc::wait4(child, &mut status, 0, &mut usage);
        (waited, usage)
    };
    match waited == child {
        true => Ok((status, usage)),
        false => Err(std::io::Error::last_os_error()).context("cannot wait for a command"),
    }
}
