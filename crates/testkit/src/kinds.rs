//! Every way in which a layer's tar is compressed in the wild, by the programs that do it: GNU gzip, zlib, pigz, ISA-L,
//! bgzip, Go, estargz, zstd; and what the reference decoders (`gzip`, `zstd`) make of it.
//!
//! A program that is missing is an error that names its Debian package: no kind is ever skipped.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::layout::{Layer, noise};

/// One way to compress a layer.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Its name, for messages and paths.
    pub name: &'static str,
    /// What its first bytes are to be recognised as.
    pub format: Format,
    /// Whether there are places in it from which decoding can start again.
    pub has_seek_points: bool,
    recipe: Recipe,
}

/// The formats of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// Not compressed.
    Plain,
}

#[derive(Debug, Clone, Copy)]
enum Recipe {
    /// A program that reads the tar and writes the blob.
    Command(&'static [&'static str]),
    /// `kinds/gzip.py`.
    Python(&'static str),
    /// `layermaker`, a Go program.
    Go(&'static [&'static str]),
    /// Frames of so many bytes of content each, with a skippable frame before each if wanted.
    ZstdFrames { piece: usize, skippable: bool },
    /// The tar itself.
    Plain,
}

impl Format {
    /// The OCI media type of such a layer.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Format::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            Format::Plain => "application/vnd.oci.image.layer.v1.tar",
        }
    }

    /// What the reference decoder makes of a blob.
    pub fn decode(self, blob: &[u8]) -> Result<Vec<u8>> {
        match self {
            Format::Gzip => pipe(&["gzip", "-dc"], blob),
            Format::Zstd => pipe(&["zstd", "-dcq", "--long=31"], blob),
            Format::Plain => Ok(blob.to_vec()),
        }
    }
}

impl Kind {
    /// Compresses a tar. (eStargz makes a new tar: the same entries and some of its own.)
    pub fn compress(&self, tar: &[u8]) -> Result<Vec<u8>> {
        match self.recipe {
            Recipe::Command(command) => pipe(command, tar),
            Recipe::Python(kind) => {
                let script = include_str!("kinds/gzip.py");
                pipe(&["python3", "-c", script, kind], tar)
            }
            Recipe::Go(args) => pipe_in(
                &Path::new(env!("CARGO_MANIFEST_DIR")).join("layermaker"),
                &[&["go", "run", "."], args].concat(),
                tar,
            ),
            Recipe::ZstdFrames { piece, skippable } => zstd_frames(tar, piece, skippable),
            Recipe::Plain => Ok(tar.to_vec()),
        }
        .with_context(|| format!("making the layer kind {}", self.name))
    }
}

const fn gzip(name: &'static str, recipe: Recipe) -> Kind {
    Kind {
        name,
        format: Format::Gzip,
        has_seek_points: true,
        recipe,
    }
}

const fn zstd(name: &'static str, recipe: Recipe, has_seek_points: bool) -> Kind {
    Kind {
        name,
        format: Format::Zstd,
        has_seek_points,
        recipe,
    }
}

/// All of them.
pub const KINDS: &[Kind] = &[
    gzip("gnu-gzip-1", Recipe::Command(&["gzip", "-n1"])),
    gzip("gnu-gzip-6", Recipe::Command(&["gzip", "-n6"])),
    gzip("gnu-gzip-9", Recipe::Command(&["gzip", "-n9"])),
    gzip("pigz", Recipe::Command(&["pigz", "-cp4"])),
    gzip("pigz-one-thread", Recipe::Command(&["pigz", "-cp1"])),
    gzip("pigz-independent", Recipe::Command(&["pigz", "-cip4"])),
    gzip("pigz-rsyncable", Recipe::Command(&["pigz", "-cRp4"])),
    // All of it one deflate block.
    Kind {
        has_seek_points: false,
        ..gzip("igzip-0", Recipe::Command(&["igzip", "-0c"]))
    },
    gzip("igzip-1", Recipe::Command(&["igzip", "-1c"])),
    gzip("igzip-3", Recipe::Command(&["igzip", "-3c"])),
    gzip("bgzip", Recipe::Command(&["bgzip", "-c"])),
    gzip("zlib-1", Recipe::Python("level-1")),
    gzip("zlib-9", Recipe::Python("level-9")),
    gzip("stored", Recipe::Python("stored")),
    gzip("huffman-only", Recipe::Python("huffman-only")),
    gzip("run-length", Recipe::Python("run-length")),
    gzip("fixed-codes", Recipe::Python("fixed-codes")),
    gzip("small-blocks", Recipe::Python("small-blocks")),
    gzip("sync-flush", Recipe::Python("sync-flush")),
    gzip("full-flush", Recipe::Python("full-flush")),
    gzip("all-header-fields", Recipe::Python("all-header-fields")),
    gzip("largest-extra-field", Recipe::Python("largest-extra-field")),
    gzip(
        "largest-extra-fields-between",
        Recipe::Python("largest-extra-fields-between"),
    ),
    gzip("two-members", Recipe::Python("two-members")),
    gzip("empty-members", Recipe::Python("empty-members")),
    gzip("zero-padding", Recipe::Python("zero-padding")),
    gzip("go-gzip", Recipe::Go(&["gzip", "-1"])),
    gzip("go-gzip-1", Recipe::Go(&["gzip", "1"])),
    gzip("go-gzip-9", Recipe::Go(&["gzip", "9"])),
    gzip("go-gzip-huffman-only", Recipe::Go(&["gzip", "-2"])),
    gzip("go-gzip-stored", Recipe::Go(&["gzip", "0"])),
    gzip("estargz", Recipe::Go(&["estargz", "0"])),
    gzip("estargz-large-members", Recipe::Go(&["estargz", "300000"])),
    zstd("zstd", Recipe::Command(&["zstd", "-cq3"]), false),
    zstd("zstd-19", Recipe::Command(&["zstd", "-cq19"]), false),
    zstd("zstd-threads", Recipe::Command(&["zstd", "-cqT4"]), false),
    zstd(
        "zstd-long-27",
        Recipe::Command(&["zstd", "-cq3", "--long=27"]),
        false,
    ),
    zstd(
        "zstd-no-check",
        Recipe::Command(&["zstd", "-cq3", "--no-check"]),
        false,
    ),
    zstd("pzstd", Recipe::Command(&["pzstd", "-cqp4"]), false),
    zstd(
        "zstd-frames",
        Recipe::ZstdFrames {
            piece: 512 << 10,
            skippable: false,
        },
        true,
    ),
    zstd(
        "zstd-skippable-frames",
        Recipe::ZstdFrames {
            piece: 700_001,
            skippable: true,
        },
        true,
    ),
    zstd("go-zstd", Recipe::Go(&["zstd"]), false),
    zstd("zstd-chunked", Recipe::Go(&["zstdchunked"]), true),
    Kind {
        name: "plain",
        format: Format::Plain,
        has_seek_points: true,
        recipe: Recipe::Plain,
    },
];

/// A tar of the files of [`sample_files`].
pub fn sample_tar(top: &str, scale: usize) -> Vec<u8> {
    let dirs = Layer::new().dir(top).dir(&format!("{top}/small"));
    sample_files(top, scale)
        .into_iter()
        .fold(dirs, |layer, (path, content)| layer.file(&path, content))
        .tar()
}

/// Files below `top`, about `scale` MB: text, noise, zeros, many small files, one without content. Paths and contents.
pub fn sample_files(top: &str, scale: usize) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![
        (format!("{top}/text"), text(450_001 * scale, 1)),
        (format!("{top}/noise"), noise(150_000 * scale, 2)),
        (format!("{top}/zeros"), vec![0; 300_000 * scale]),
        (format!("{top}/empty"), vec![]),
    ];
    files.extend((0..20 * scale).map(|n| (format!("{top}/small/{n}"), text(n * 37, n as u64))));
    files.push((format!("{top}/last"), text(50_003 * scale, 3)));
    files
}

/// Words of a small vocabulary: compresses about as well as source code.
pub fn text(len: usize, seed: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 16);
    for number in noise(len, seed).chunks(2) {
        let number = number.iter().fold(0, |n, &byte| n << 8 | u32::from(byte));
        out.extend_from_slice(format!("{:x} ", number % 3000 * 7919).as_bytes());
        if out.len() >= len {
            break;
        }
    }
    out.truncate(len);
    out
}

/// Runs a command with `input` on its standard input; its output.
pub fn pipe(command: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    pipe_in(Path::new("."), command, input)
}

fn pipe_in(dir: &Path, command: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| {
            format!(
                "cannot start {}; install it: apt-get install gzip pigz isal tabix zstd python3 (Go from go.dev)",
                command[0]
            )
        })?;
    let mut stdin = child.stdin.take().context("stdin was piped")?;
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{} failed", command[0]);
        Ok(output.stdout)
    })
}

fn zstd_frames(tar: &[u8], piece: usize, skippable: bool) -> Result<Vec<u8>> {
    let mut blob = Vec::new();
    for piece in tar.chunks(piece) {
        if skippable {
            blob.extend_from_slice(&skippable_frame(&[0xA5; 3000]));
        }
        blob.extend_from_slice(&pipe(&["zstd", "-cq3"], piece)?);
    }
    if skippable {
        blob.extend_from_slice(&skippable_frame(&[]));
    }
    Ok(blob)
}

/// A frame that decoders pass over (RFC 8878, section 3.1.2).
pub fn skippable_frame(content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x50, 0x2A, 0x4D, 0x18];
    frame.extend_from_slice(&(content.len() as u32).to_le_bytes());
    frame.extend_from_slice(content);
    frame
}
