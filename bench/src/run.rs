//! Running commands and taking their time.

use anyhow::{Context, Result, bail};
use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// What a command took.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// By the clock.
    pub wall: Duration,
    /// Processor time, user and system, of the command and its children.
    pub cpu: Duration,
}

/// Runs `command` to its end; its output is shown only when it fails.
pub fn timed(command: &mut Command) -> Result<Cost> {
    let before = children_cpu();
    let started = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))?;
    let cost = Cost {
        wall: started.elapsed(),
        cpu: children_cpu().saturating_sub(before),
    };
    if !output.status.success() {
        bail!(
            "{command:?} failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(cost)
}

/// Processor time of all children that have ended (getrusage(2)).
#[allow(unsafe_code)]
fn children_cpu() -> Duration {
    // SAFETY: rusage is plain numbers, for which zeros are valid, and getrusage fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64)
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}
