//! What others made: the tar files with which Go tests its `archive/tar`, and real images.

use crate::{
    Passed,
    rules::{Excuse, Rule, Scope},
    run::{Scene, lines},
    stack::{Attributes, Bytes, Kind, Layer, Member, OPAQUE_MARK, Stack},
    unpackers::Tool,
    views::Blob,
};
use anyhow::{Context as _, Result, bail};
use clip_archive::{Entry, EntryKind};
use clip_testkit::images;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Images of `e2e/images/recipes` that are no larger than memory allows to unpack three times.
const IMAGES: [&str; 5] = [
    "busybox",
    "alpine-like",
    "debian-min",
    "python-app",
    "packages",
];
const BLOCK_BYTES: usize = 512;

/// Every tar file of Go's own tests as an image of one layer.
pub fn go_testdata(scene: &Scene) -> Passed {
    let printed = Command::new("go").args(["env", "GOROOT"]).output()?;
    let root = PathBuf::from(String::from_utf8(printed.stdout)?.trim());
    let dir = root.join("src/archive/tar/testdata");
    let mut files: Vec<PathBuf> = fs::read_dir(&dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|kind| kind == "tar"));
    files.sort();
    let mut place = scene.place()?;
    let mut passed = true;
    for file in &files {
        let tar = fs::read(file)?;
        let blob = Blob {
            bytes: tar.clone(),
            tar: tar.clone(),
        };
        let verdict = place
            .compare_blobs(&[blob], |entries| {
                [excuses_of_headers(&tar), excuses_of_entries(entries)].concat()
            })
            .with_context(|| file.display().to_string())?;
        if !verdict.differences.is_empty() {
            passed = false;
            println!("{}:\n{}", file.display(), lines(&verdict));
        }
    }
    println!("tar files of Go's own tests: {}", files.len());
    Ok(passed)
}

/// Real images, layer by layer.
pub fn images(scene: &Scene) -> Passed {
    let mut passed = true;
    for name in IMAGES {
        let blobs = read_layout(&images::image(name)?)?;
        let verdict = scene.place()?.compare_blobs(&blobs, excuses_of_entries)?;
        println!(
            "image {name}: {} layers, {} paths compared",
            blobs.len(),
            verdict.paths
        );
        if !verdict.differences.is_empty() {
            passed = false;
            println!("{}", lines(&verdict));
        }
    }
    Ok(passed)
}

/// The layers of the one image in an OCI layout, base first.
fn read_layout(dir: &Path) -> Result<Vec<Blob>> {
    let json = |path: PathBuf| -> Result<serde_json::Value> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    };
    let blob_path = |descriptor: &serde_json::Value| -> Result<PathBuf> {
        let digest = descriptor["digest"].as_str().context("a digest")?;
        Ok(dir.join("blobs").join(digest.replace(':', "/")))
    };
    let index = json(dir.join("index.json"))?;
    let manifest = json(blob_path(&index["manifests"][0])?)?;
    let layers = manifest["layers"].as_array().context("a list of layers")?;
    layers
        .iter()
        .map(|layer| {
            let path = blob_path(layer)?;
            let bytes = fs::read(&path)?;
            let tar = decompress(&path, &bytes)?;
            Ok(Blob { bytes, tar })
        })
        .collect()
}

/// With others' decoders.
fn decompress(path: &Path, bytes: &[u8]) -> Result<Vec<u8>> {
    let program = match bytes {
        [0x1f, 0x8b, ..] => "gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        _ => return Ok(bytes.to_vec()),
    };
    let output = Command::new(program).arg("-dc").arg(path).output()?;
    if !output.status.success() {
        bail!("{program} -dc {} failed", path.display());
    }
    Ok(output.stdout)
}

/// Which rules apply because of headers that our entries do not tell of any more.
fn excuses_of_headers(tar: &[u8]) -> Vec<Excuse> {
    let refusal = |rule, tools: &[Tool]| {
        let excuse = |&tool| Excuse {
            rule,
            tool,
            scope: Scope::Refusal,
        };
        tools.iter().map(excuse).collect::<Vec<_>>()
    };
    let headers = tar
        .chunks_exact(BLOCK_BYTES)
        .filter(|block| block[257..262] == *b"ustar");
    headers
        .flat_map(|header| match header[156] {
            b'S' => refusal(Rule::OldGnuSparse, &Tool::ALL),
            b'g' => refusal(Rule::GlobalRecords, &[Tool::Umoci]),
            _ => vec![],
        })
        .collect()
}

/// Which rules apply to an image that we did not make up: its entries as we read them are replayed.
fn excuses_of_entries(layers: &[Vec<Entry>]) -> Vec<Excuse> {
    let layer = |entries: &Vec<Entry>| Layer {
        zstd: false,
        members: entries.iter().map(member).collect(),
    };
    crate::model::excuses(&Stack {
        layers: layers.iter().map(layer).collect(),
    })
}

fn member(entry: &Entry) -> Member {
    let bytes = |bytes: &Vec<u8>| Bytes(bytes.clone());
    let mut name = entry.path.clone();
    let kind = match &entry.kind {
        EntryKind::File { .. } => Kind::File(Bytes(vec![])),
        EntryKind::Directory => Kind::Directory,
        EntryKind::Symlink { target } => Kind::Symlink(bytes(target)),
        EntryKind::Hardlink { target } => Kind::Hardlink(bytes(target)),
        EntryKind::CharDevice { major, minor } => Kind::CharDevice(*major, *minor),
        EntryKind::BlockDevice { major, minor } => Kind::BlockDevice(*major, *minor),
        EntryKind::Fifo => Kind::Fifo,
        EntryKind::Whiteout => {
            let last = name.iter().rposition(|&byte| byte == b'/');
            let at = last.map_or(0, |slash| slash + 1);
            name.splice(at..at, *b".wh.");
            Kind::File(Bytes(vec![]))
        }
        EntryKind::Opaque => {
            if !name.is_empty() {
                name.push(b'/');
            }
            name.extend_from_slice(OPAQUE_MARK);
            Kind::File(Bytes(vec![]))
        }
    };
    let xattrs = entry.xattrs.iter().map(|xattr| {
        let name = String::from_utf8_lossy(&xattr.name).into_owned();
        (name, bytes(&xattr.value))
    });
    Member {
        name,
        kind,
        attributes: Attributes {
            mode: u32::from(entry.mode),
            uid: entry.uid,
            gid: entry.gid,
            mtime: (entry.mtime, entry.mtime_nsec),
            xattrs: xattrs.collect(),
        },
    }
}
