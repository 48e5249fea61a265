//! Control groups of the memory controller: what it counts for processes, their own memory and the kernel's on their
//! behalf, and how much they may have (cgroups(7); version 1 or 2).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// A control group. Removed when dropped, if all its processes have ended.
#[derive(Debug)]
pub struct MemoryGroup {
    dir: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Bytes.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// Of no file.
    pub anonymous: f64,
    /// The kernel's: filesystems, directory entries, page tables, threads, sockets.
    pub kernel: f64,
}

impl MemoryGroup {
    /// A group in which nobody is yet, at this path below the controller's root.
    ///
    /// # Errors
    /// There is no memory controller here.
    pub fn new(path: impl AsRef<Path>) -> Result<MemoryGroup> {
        let (root, version) = controller()?;
        let dir = root.join(path);
        let mut parent = dir.parent().context("a group has a parent")?;
        std::fs::create_dir_all(&dir)?;
        while version == Version::Two && parent.starts_with(root) {
            std::fs::write(parent.join("cgroup.subtree_control"), "+memory")?;
            parent = parent.parent().context("the root has a parent")?;
        }
        Ok(MemoryGroup { dir, version })
    }

    /// At most so many bytes from now on, pages of files and the kernel's included.
    pub fn limit(&self, bytes: u64) -> Result<()> {
        let file = match self.version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        };
        Ok(std::fs::write(self.dir.join(file), bytes.to_string())?)
    }

    /// `program` begun in the group, so that nothing of it is counted elsewhere. Arguments may follow.
    pub fn begin(&self, program: impl AsRef<OsStr>) -> Command {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.dir.join("cgroup.procs"))
            .arg(program);
        shell
    }

    /// Takes a process in. What it has in memory already stays where it was counted; what it starts from now on is in the
    /// group, too.
    pub fn add(&self, pid: u32) -> Result<()> {
        let file = self.dir.join("cgroup.procs");
        std::fs::write(file, pid.to_string()).context("cannot enter the control group")
    }

    /// Whether a process is in the group.
    pub fn has(&self, pid: u32) -> Result<bool> {
        let processes = std::fs::read_to_string(self.dir.join("cgroup.procs"))?;
        Ok(processes.lines().any(|line| line == pid.to_string()))
    }

    /// What is in memory now.
    pub fn counted(&self) -> Result<Counted> {
        let stat = std::fs::read_to_string(self.dir.join("memory.stat"))?;
        let line = |key: &str| -> Result<f64> {
            let value = |line: &str| Some(line.strip_prefix(key)?.strip_prefix(' ')?.to_owned());
            let value = stat.lines().find_map(value);
            Ok(value
                .with_context(|| format!("memory.stat has no {key}"))?
                .parse()?)
        };
        Ok(match self.version {
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
        })
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.dir);
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
