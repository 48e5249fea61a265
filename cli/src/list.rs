//! `clip ls` and `clip cat`: look into an image without mounting it.

use crate::{
    archive_source::{Opened, SourceArgs},
    common::CommonArgs,
    failure::Failure,
    units,
};
use clap::Args;
use clip_archive::erofs::{FileType, Inode};
use clip_fs::{ImageFs, Resolved};
use std::io::{self, Write};

/// List a directory of an image. Fetches nothing but the archive.
#[derive(Debug, Args)]
pub struct LsArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// Directory or file inside the image.
    #[arg(default_value = "/")]
    path: String,

    /// One line per entry with mode, owner, size and time.
    #[arg(short)]
    long: bool,
}

/// Write a file of an image to stdout, fetching only the pieces that hold it.
#[derive(Debug, Args)]
pub struct CatArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// File inside the image. Symbolic links are followed.
    path: String,
}

/// Bytes asked for at a time by `clip cat`.
const CHUNK: usize = 1 << 20;

/// Runs `clip ls`.
pub fn ls(common: &CommonArgs, args: LsArgs) -> Result<(), Failure> {
    let opened = args.source.open(common.verbose)?;
    let image = &*opened.image.fs;
    let inode = find(image, &args.path)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let damaged = |error| Failure::local(format!("the expanded tree is damaged: {error}"));
    let written = if inode.kind == FileType::Directory {
        let mut result = Ok(());
        for entry in image.tree().read_dir(inode.nid, 0).map_err(damaged)? {
            let entry = entry.map_err(damaged)?;
            if entry.name == b"." || entry.name == b".." {
                continue;
            }
            let child = image.tree().inode(entry.nid).map_err(damaged)?;
            result =
                result.and_then(|()| print_entry(&mut out, image, &child, entry.name, args.long));
        }
        result
    } else {
        print_entry(&mut out, image, &inode, args.path.as_bytes(), args.long)
    };
    finish(written.and_then(|()| out.flush()))
}

/// Runs `clip cat`.
pub fn cat(common: &CommonArgs, args: CatArgs) -> Result<(), Failure> {
    let opened = args.source.open(common.verbose)?;
    let inode = find(&opened.image.fs, &args.path)?;
    match inode.kind {
        FileType::Regular => {}
        FileType::Directory => {
            return Err(Failure::local(format!(
                "{} is a directory: list it with `clip ls`",
                args.path
            )));
        }
        _ => {
            return Err(Failure::local(format!(
                "{} is not a regular file",
                args.path
            )));
        }
    }
    let written = copy_out(&opened, &inode)?;
    if common.verbose {
        let fetched = opened.image.fetched();
        let image_bytes: u64 = opened.image.fs.info().unpacked_bytes;
        eprintln!(
            "fetched {} ({} bytes) in {} for a file of {}; the image holds {}",
            units::bytes(fetched.bytes),
            fetched.bytes,
            units::count(fetched.requests, "request"),
            units::bytes(inode.size),
            units::bytes(image_bytes)
        );
    }
    finish(written)
}

fn copy_out(opened: &Opened, inode: &Inode) -> Result<io::Result<()>, Failure> {
    let mut out = io::stdout().lock();
    let mut offset = 0;
    while offset < inode.size {
        let read = opened.image.fs.read(inode.nid, offset, CHUNK);
        let data = opened
            .runtime
            .block_on(read)
            .map_err(|error| Failure::new("ReadFailed", error))?;
        offset += data.len() as u64;
        if let Err(error) = out.write_all(&data) {
            return Ok(Err(error));
        }
    }
    Ok(out.flush())
}

fn find(image: &ImageFs, path: &str) -> Result<Inode, Failure> {
    let resolved = image
        .resolve(path.as_bytes(), true)
        .map_err(|error| Failure::local(format!("the expanded tree is damaged: {error}")))?;
    match resolved {
        Resolved::Found(inode) => Ok(inode),
        Resolved::Missing => Err(Failure::local(format!(
            "{path}: no such file in the image {}",
            image.info().name
        ))),
        Resolved::NotADirectory => Err(Failure::local(format!(
            "{path}: a component of the path is not a directory"
        ))),
        Resolved::Loop => Err(Failure::local(format!("{path}: too many symbolic links"))),
    }
}

fn print_entry(
    out: &mut impl Write,
    image: &ImageFs,
    inode: &Inode,
    name: &[u8],
    long: bool,
) -> io::Result<()> {
    if long {
        let owner = format!("{}:{}", inode.uid, inode.gid);
        write!(
            out,
            "{}{:04o} {:>3} {owner:>9} {:>11} {:>10} ",
            letter(inode.kind),
            inode.mode & 0o7777,
            inode.nlink,
            inode.size,
            inode.mtime
        )?;
    }
    out.write_all(name)?;
    if long && let Ok(target) = image.tree().read_link(inode.nid) {
        out.write_all(b" -> ")?;
        out.write_all(target)?;
    }
    out.write_all(b"\n")
}

fn letter(kind: FileType) -> char {
    match kind {
        FileType::Regular => '-',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::CharDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Fifo => 'p',
    }
}

/// A reader that went away (`| head`) is no failure.
fn finish(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::local(format!("cannot write: {error}")))
        }
        _ => Ok(()),
    }
}
