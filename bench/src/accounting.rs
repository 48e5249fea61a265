//! What the memory controller of control groups counts for processes: their own memory, and the kernel's on their behalf
//! (cgroups(7); version 1 or 2).

use crate::place;
use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A control group of this run's.
#[derive(Debug)]
pub struct Accounting {
    dir: PathBuf,
    version: Version,
}

#[derive(Debug, Clone, Copy)]
enum Version {
    One,
    Two,
}

/// Bytes.
#[derive(Debug, Clone, Copy)]
pub struct Counted {
    /// Of no file.
    pub anonymous: f64,
    /// The kernel's: filesystems, directory entries, page tables, sockets.
    pub kernel: f64,
}

impl Accounting {
    /// A group in which nobody is yet.
    ///
    /// # Errors
    /// There is no memory controller here.
    pub fn new(name: &str) -> Result<Self> {
        let group = place::group(name);
        let group = group.strip_prefix("/")?;
        let (root, version) = controller()?;
        let dir = root.join(group);
        if let (Version::Two, Some(parent)) = (version, dir.parent()) {
            std::fs::create_dir_all(parent)?;
            std::fs::write(parent.join("cgroup.subtree_control"), "+memory")?;
        }
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir, version })
    }

    /// `command` started in the group, with what it starts.
    pub fn within(&self, command: &Command) -> Command {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.dir.join("cgroup.procs"))
            .arg(command.get_program())
            .args(command.get_args());
        shell
    }

    /// What is in memory now.
    pub fn counted(&self) -> Result<Counted> {
        let stat = std::fs::read_to_string(self.dir.join("memory.stat"))?;
        let line = |key: &str| -> Result<f64> {
            let value = stat
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
            let value = value.with_context(|| format!("memory.stat has no {key}"))?;
            Ok(value.parse()?)
        };
        let counted = match self.version {
            Version::One => Counted {
                anonymous: line("rss")?,
                kernel: std::fs::read_to_string(self.dir.join("memory.kmem.usage_in_bytes"))?
                    .trim()
                    .parse()?,
            },
            Version::Two => Counted {
                anonymous: line("anon")?,
                kernel: line("kernel")?,
            },
        };
        Ok(counted)
    }
}

/// Where the controller's groups are.
fn controller() -> Result<(&'static Path, Version)> {
    let one = Path::new("/sys/fs/cgroup/memory");
    let two = Path::new("/sys/fs/cgroup");
    if one.join("memory.kmem.usage_in_bytes").exists() {
        return Ok((one, Version::One));
    }
    let controllers = std::fs::read_to_string(two.join("cgroup.controllers")).unwrap_or_default();
    match controllers.split_whitespace().any(|name| name == "memory") {
        true => Ok((two, Version::Two)),
        false => bail!("no memory controller at {}", two.display()),
    }
}
