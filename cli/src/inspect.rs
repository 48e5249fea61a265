//! `clip inspect FILE`.

use crate::{failure::Failure, units};
use clap::Args;
use clip_archive::{
    Archive, Tree,
    open::Summary,
    tree::{Node, NodeKind},
};
use serde_json::json;
use std::{
    io::{self, Write},
    path::PathBuf,
};

/// Show what an archive holds. Everything is checked on the way; no registry is asked.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The archive.
    file: PathBuf,

    /// List every file, like `ls -lR`.
    #[arg(long, conflicts_with = "layers")]
    tree: bool,

    /// List the layers with their spans and sizes.
    #[arg(long)]
    layers: bool,

    /// Print JSON.
    #[arg(long, conflicts_with = "tree")]
    json: bool,
}

/// Runs the command.
pub fn run(args: InspectArgs) -> Result<(), Failure> {
    let path = args.file.display();
    let bytes = std::fs::read(&args.file)
        .map_err(|error| Failure::local(format!("cannot read {path}: {error}")))?;
    let archive =
        Archive::open(bytes).map_err(|error| Failure::local(format!("{path}: {error}")))?;
    let summary = archive
        .verify()
        .map_err(|error| Failure::local(format!("{path}: {error}")))?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = if args.json {
        print_json(&mut out, &archive, &summary)
    } else if args.tree {
        let tree = archive
            .merge()
            .map_err(|error| Failure::local(format!("{path}: {error}")))?;
        print_tree(&mut out, &tree, 0, &mut Vec::new())
    } else if args.layers {
        print_layers(&mut out, &archive)
    } else {
        print_summary(&mut out, &archive, &summary)
    };
    match written.and_then(|()| out.flush()) {
        // `clip inspect --tree FILE | head` is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::local(format!("cannot write: {error}")))
        }
        _ => Ok(()),
    }
}

fn print_summary(out: &mut impl Write, archive: &Archive, summary: &Summary) -> io::Result<()> {
    let head = archive.head();
    let share = summary.archive_bytes as f64 / summary.image_bytes.max(1) as f64 * 100.0;
    writeln!(out, "image       {}", head.image_name())?;
    writeln!(out, "manifest    {}", head.manifest_digest)?;
    writeln!(out, "platform    {}", head.platform)?;
    writeln!(out, "files       {}", summary.files)?;
    writeln!(out, "layers      {}", summary.layers)?;
    writeln!(
        out,
        "image       {} compressed, {} unpacked",
        units::bytes(summary.image_bytes),
        units::bytes(summary.unpacked_bytes)
    )?;
    writeln!(
        out,
        "archive     {} ({share:.2} % of the image)",
        units::bytes(summary.archive_bytes)
    )?;
    writeln!(out, "seek points {}", summary.seek_points)
}

fn print_layers(out: &mut impl Write, archive: &Archive) -> io::Result<()> {
    for (index, layer) in archive.head().layers.iter().enumerate() {
        let spans = archive.seek_table(index).map_err(io::Error::other)?.spans;
        let largest = spans.iter().map(|span| span.blob_len).max().unwrap_or(0);
        writeln!(out, "layer {index}  {}", layer.digest)?;
        let origin = match diff_ids_are_promised(archive) {
            true => "",
            false => " (computed: the image has no configuration that names it)",
        };
        writeln!(out, "  diffID     {}{origin}", layer.diff_id)?;
        writeln!(out, "  media type {}", layer.media_type)?;
        writeln!(
            out,
            "  size       {} compressed, {} unpacked",
            units::bytes(layer.size),
            units::bytes(layer.tar_size)
        )?;
        writeln!(
            out,
            "  entries    {}, {} in the archive",
            layer.files,
            units::bytes(layer.entries.len)
        )?;
        writeln!(
            out,
            "  spans      {}, the largest needs {}",
            spans.len(),
            units::bytes(largest)
        )?;
        writeln!(
            out,
            "  windows    {} in the archive",
            units::bytes(layer.windows.len)
        )?;
    }
    Ok(())
}

/// Artifacts have no image configuration, so nothing but the blobs' digests vouches for their layers.
fn diff_ids_are_promised(archive: &Archive) -> bool {
    let config: Option<serde_json::Value> = serde_json::from_slice(&archive.head().config).ok();
    config.is_some_and(|config| config["rootfs"]["diff_ids"].is_array())
}

fn print_json(out: &mut impl Write, archive: &Archive, summary: &Summary) -> io::Result<()> {
    let head = archive.head();
    let layers: Vec<_> = head
        .layers
        .iter()
        .map(|layer| {
            json!({
                "digest": layer.digest.to_string(), "diffId": layer.diff_id.to_string(), "mediaType": layer.media_type,
                "size": layer.size, "unpackedSize": layer.tar_size, "entries": layer.files,
                "archiveBytes": {"entries": layer.entries.len, "spans": layer.spans.len, "windows": layer.windows.len},
            })
        })
        .collect();
    let config: serde_json::Value = serde_json::from_slice(&head.config).unwrap_or_default();
    let value = json!({
        "formatVersion": clip_archive::header::FORMAT_VERSION, "storageType": "oci",
        "registry": head.registry, "repository": head.repository, "tag": head.tag,
        "manifestDigest": head.manifest_digest.to_string(), "platform": head.platform,
        "archiveDigest": clip_archive::Digest::of(archive.bytes()).to_string(),
        "files": summary.files, "imageBytes": summary.image_bytes, "unpackedBytes": summary.unpacked_bytes,
        "archiveBytes": summary.archive_bytes, "seekPoints": summary.seek_points,
        "config": config, "layers": layers,
    });
    serde_json::to_writer_pretty(&mut *out, &value)?;
    writeln!(out)
}

fn print_tree(out: &mut impl Write, tree: &Tree, id: u32, path: &mut Vec<u8>) -> io::Result<()> {
    let node = tree.node(id);
    print_node(out, &node, if path.is_empty() { b"/" } else { path })?;
    for (name, child) in tree.children(id) {
        let len = path.len();
        path.push(b'/');
        path.extend_from_slice(name);
        print_tree(out, tree, child, path)?;
        path.truncate(len);
    }
    Ok(())
}

fn print_node(out: &mut impl Write, node: &Node<'_>, path: &[u8]) -> io::Result<()> {
    let (kind, size, detail) = match &node.kind {
        NodeKind::Directory => ('d', String::from("-"), String::new()),
        NodeKind::File { size, .. } => ('-', size.to_string(), String::new()),
        NodeKind::Symlink(target) => ('l', String::from("-"), format!(" -> {}", printable(target))),
        NodeKind::CharDevice { major, minor } => ('c', format!("{major},{minor}"), String::new()),
        NodeKind::BlockDevice { major, minor } => ('b', format!("{major},{minor}"), String::new()),
        NodeKind::Fifo => ('p', String::from("-"), String::new()),
    };
    let xattrs = if node.xattrs.is_empty() { ' ' } else { '+' };
    let attributes = &node.attributes;
    let owner = format!("{}:{}", attributes.uid, attributes.gid);
    writeln!(
        out,
        "{kind}{:04o}{xattrs} {owner:>9} {size:>11} {:>10} {}{detail}",
        attributes.mode,
        attributes.mtime,
        printable(path)
    )
}

/// Control characters would garble the terminal, or worse.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect::<Vec<_>>()
            } else {
                vec![c]
            }
        })
        .collect()
}
