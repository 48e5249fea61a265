//! The Go program beside us, `e2e/oracle/unpackers`: unpacks with others' unpackers, and looks.

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// Those that we compare with, in the order of [`Seen::unpacked`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tool {
    Containerd,
    Umoci,
    Storage,
}

impl Tool {
    pub const ALL: [Tool; 3] = [Tool::Containerd, Tool::Umoci, Tool::Storage];

    pub fn name(self) -> &'static str {
        match self {
            Tool::Containerd => "containerd",
            Tool::Umoci => "umoci",
            Tool::Storage => "storage",
        }
    }
}

/// What was seen of one stack.
#[derive(Debug, Deserialize)]
pub struct Seen {
    failed: String,
    /// One for each of [`Tool::ALL`].
    unpacked: Option<Vec<Tree>>,
    /// One for each view asked for.
    views: Option<Vec<Tree>>,
}

/// See `type tree` in `unpackers/main.go`.
#[derive(Debug, Deserialize)]
pub struct Tree {
    pub error: String,
    pub from: i64,
    pub to: i64,
    pub entries: Option<Vec<Found>>,
}

/// See `type entry` in `unpackers/look.go`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Found {
    pub path: String,
    pub kind: String,
    pub mode: u32,
    pub owner: (u32, u32),
    pub size: i64,
    pub mtime: (i64, i64),
    pub rdev: (u32, u32),
    pub nlink: u64,
    pub inode: u64,
    pub target: String,
    pub xattrs: Option<BTreeMap<String, String>>,
    pub content: String,
    pub access: String,
}

#[derive(Serialize)]
struct Request<'a> {
    layers: Vec<String>,
    unpackers: Vec<&'a str>,
    scratch: String,
    views: Vec<String>,
}

/// A running program. It ends when this is dropped.
pub struct Unpackers {
    root: PathBuf,
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Unpackers {
    /// Starts `program`, confined to `root`: every path it is given must lie below.
    pub fn start(program: &Path, root: &Path) -> Result<Self> {
        let mut child = Command::new(program)
            .arg(root)
            // One request at a time; a second thread collects garbage.
            .env("GOMAXPROCS", "2")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("stdout was piped")?);
        Ok(Self {
            root: root.to_owned(),
            child,
            requests,
            answers,
        })
    }

    /// Unpacks `layers` with every tool below the empty directory `scratch`, and looks at `views`.
    pub fn ask(&mut self, layers: &[PathBuf], scratch: &Path, views: &[PathBuf]) -> Result<Seen> {
        let request = Request {
            layers: self.confined(layers)?,
            unpackers: Tool::ALL.map(Tool::name).to_vec(),
            scratch: self.confined(&[scratch.to_owned()])?.remove(0),
            views: self.confined(views)?,
        };
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        self.requests
            .as_mut()
            .context("the program's stdin is open until it is dropped")?
            .write_all(&line)
            .context("the unpackers are gone")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        ensure!(!answer.is_empty(), "the unpackers died");
        let seen: Seen = serde_json::from_str(&answer)?;
        ensure!(seen.failed.is_empty(), "unpackers: {}", seen.failed);
        Ok(seen)
    }

    fn confined(&self, paths: &[PathBuf]) -> Result<Vec<String>> {
        let below = |path: &PathBuf| {
            let inside = path.strip_prefix(&self.root)?;
            Ok(format!(
                "/{}",
                inside.to_str().context("our own paths are text")?
            ))
        };
        paths.iter().map(below).collect()
    }
}

impl Drop for Unpackers {
    fn drop(&mut self) {
        drop(self.requests.take());
        let _ = self.child.wait();
    }
}

impl Seen {
    /// What each tool made.
    pub fn unpacked(&self) -> impl Iterator<Item = (Tool, &Tree)> {
        Tool::ALL.into_iter().zip(self.unpacked.iter().flatten())
    }

    /// What the views show.
    pub fn views(&self) -> &[Tree] {
        self.views.as_deref().unwrap_or_default()
    }
}

impl Tree {
    /// Everything in it, parents first.
    pub fn entries(&self) -> &[Found] {
        self.entries.as_deref().unwrap_or_default()
    }
}
