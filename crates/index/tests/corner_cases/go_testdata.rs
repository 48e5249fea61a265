//! Go's own `archive/tar/testdata`: what its reader says beside what the tar walk says. Go is asked
//! each time (`gotar/main.go`), so a newer Go is compared as it is.

use clip_archive::{Entry, EntryKind, Segment};
use clip_index::TarWalker;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, process};

/// Files of which we say something else than Go, and why. All others must be read alike.
const OTHERWISE: &[(&str, &str)] = &[
    (
        "gnu-incremental.tar",
        "its tar entry type is one that no runtime unpacks",
    ),
    (
        "sparse-formats.tar",
        "pieces that are not whole 512-byte blocks",
    ),
];

/// docs/semantics.md: "Tar headers are read as Go's `archive/tar` reads them".
#[test]
fn gos_own_test_files_are_read_as_go_reads_them() {
    let folder = Folder::new();
    let go = ask_go(&folder.0);
    assert!(
        go.len() >= 40,
        "Go's test files are not where they were: {:?}",
        go.keys()
    );
    let mut wrong = String::new();
    for (name, go_says) in &go {
        let we_say = walk(&fs::read(folder.0.join(name)).unwrap());
        let otherwise = OTHERWISE.iter().find(|(file, _)| file == name);
        let is_right = match (otherwise, &we_say) {
            (Some((_, reason)), Err(error)) => go_says.is_ok() && error.contains(reason),
            (Some(_), Ok(_)) => false,
            (None, Ok(members)) => go_says.as_ref() == Ok(members),
            (None, Err(_)) => go_says.is_err(),
        };
        if !is_right {
            let _ = write!(
                wrong,
                "\n== {name}\n-- Go says\n{go_says:#?}\n-- we say\n{we_say:#?}\n"
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Each file's members as lines, or why it cannot be read.
type Said = Result<Vec<String>, String>;

fn ask_go(out: &Path) -> BTreeMap<String, Said> {
    let run = |command: &mut Command| {
        let output = command
            .output()
            .expect("Go is needed for this test: install it (go.dev/dl)");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaint}");
        String::from_utf8(output.stdout).unwrap()
    };
    let goroot = run(Command::new("go").args(["env", "GOROOT"]));
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corner_cases/gotar/main.go");
    let said = run(Command::new("go")
        .arg("run")
        .arg(program)
        .arg(Path::new(goroot.trim()).join("src/archive/tar/testdata"))
        .arg(out));
    let mut files = BTreeMap::new();
    let mut current: Option<(String, Vec<String>)> = None;
    for line in said.lines() {
        match line.split_once(' ') {
            Some(("file", name)) => current = Some((name.to_owned(), vec![])),
            Some(("error", why)) => {
                let (name, _) = current.take().unwrap();
                files.insert(name, Err(why.to_owned()));
            }
            None => {
                let (name, members) = current.take().unwrap();
                files.insert(name, Ok(members));
            }
            Some(_) => current.as_mut().unwrap().1.push(line.to_owned()),
        }
    }
    files
}

fn walk(stream: &[u8]) -> Said {
    let mut walker = TarWalker::new();
    walker.push(stream).map_err(|error| error.to_string())?;
    let walked = walker.finish().map_err(|error| error.to_string())?;
    Ok(walked
        .entries
        .iter()
        .map(|entry| line(entry, stream))
        .collect())
}

/// The line that `gotar/main.go` prints for the same member.
fn line(entry: &Entry, stream: &[u8]) -> String {
    let (kind, detail) = match &entry.kind {
        EntryKind::File { size, segments } => (
            '0',
            format!(" {size} {:016x}", checksum(*size, segments, stream)),
        ),
        EntryKind::Hardlink { target } => ('1', format!(" {}", hex(target))),
        EntryKind::Symlink { target } => ('2', format!(" {}", hex(target))),
        EntryKind::CharDevice { major, minor } => ('3', format!(" {major}:{minor}")),
        EntryKind::BlockDevice { major, minor } => ('4', format!(" {major}:{minor}")),
        EntryKind::Directory => ('5', String::new()),
        EntryKind::Fifo => ('6', String::new()),
        EntryKind::Whiteout | EntryKind::Opaque => ('w', String::new()),
    };
    let mut line = format!(
        "{kind} {} {:o} {}:{} {}.{:09}{detail}",
        hex(&entry.path),
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime,
        entry.mtime_nsec
    );
    for xattr in &entry.xattrs {
        let _ = write!(line, " {}={}", hex(&xattr.name), hex(&xattr.value));
    }
    line
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// FNV-1a of the content, and of nothing when it is larger than the Go program looks at.
fn checksum(size: u64, segments: &[Segment], stream: &[u8]) -> u64 {
    const CONTENT_MAX: u64 = 1 << 20;
    let mut content = vec![];
    if size <= CONTENT_MAX {
        content.resize(size as usize, 0);
        for segment in segments {
            let from = &stream[segment.tar_offset as usize..][..segment.length as usize];
            content[segment.logical as usize..][..from.len()].copy_from_slice(from);
        }
    }
    content
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum: u64, &byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

/// A folder of this test's own, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = env::temp_dir().join(format!("clip-gotar-{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
