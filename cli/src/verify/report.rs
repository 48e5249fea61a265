//! What `clip verify` says: lines for people, one object for programs. `docs/user-guide.md`
//! describes the object.

use crate::{failure::Failure, units};
use clip_archive::{Archive, Head, open::Summary};
use clip_engine::{
    BadSpan, CacheAudit, CacheVerified, CachedTree, DamagedSpan, Finding, LayerVerified,
    SpanDamage, SpanProblem, Status, Verified, VerifyOptions,
};
use serde_json::{Value, json};
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Bad spans of a layer that are listed for people; programs get all.
const SPANS_SHOWN: usize = 3;

/// What was looked at.
pub enum What {
    /// The archive could not be read, or what was asked for makes no sense.
    Unavailable(Failure),
    /// The archive contradicts itself.
    Damaged(String),
    /// Archive and image.
    Image {
        archive: Arc<Archive>,
        summary: Summary,
        options: VerifyOptions,
        verified: Verified,
    },
    /// Archive and cache.
    Cache {
        archive: Arc<Archive>,
        dir: PathBuf,
        verified: CacheVerified,
    },
}

/// The outcome, which decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    AsItShouldBe,
    Unavailable { permanent: bool },
    Differs,
    Corrupt,
}

/// The result of one run.
pub struct Report {
    file: String,
    what: What,
}

impl Report {
    pub fn new(file: &Path, what: What) -> Self {
        Self {
            file: file.display().to_string(),
            what,
        }
    }

    pub fn found(&self) -> Found {
        match &self.what {
            What::Unavailable(failure) => Found::Unavailable {
                permanent: failure.permanent,
            },
            What::Damaged(_) => Found::Differs,
            What::Image { verified, .. } => match verified.status() {
                Status::Ok => Found::AsItShouldBe,
                Status::Differs => Found::Differs,
                Status::Unavailable => Found::Unavailable {
                    permanent: obstacle(verified).is_some_and(|(_, permanent, _)| permanent),
                },
            },
            What::Cache { verified, .. } if verified.is_intact() => Found::AsItShouldBe,
            What::Cache { .. } => Found::Corrupt,
        }
    }

    /// The outcome in a sentence that says what to do.
    pub fn verdict(&self) -> String {
        let file = &self.file;
        match &self.what {
            What::Unavailable(failure) => failure.message.clone(),
            What::Damaged(message) => message.clone(),
            What::Image {
                archive,
                options,
                verified,
                ..
            } => self.verdict_on_image(archive.head(), options, verified),
            What::Cache { dir, verified, .. } if verified.is_intact() => {
                format!("what {} holds of {file} is intact", dir.display())
            }
            What::Cache { dir, .. } => format!(
                "the cache holds wrong bytes: have them fetched again with `clip cache verify --state-dir {} {file}`",
                dir.display()
            ),
        }
    }

    fn verdict_on_image(&self, head: &Head, options: &VerifyOptions, found: &Verified) -> String {
        let (file, image) = (&self.file, head.image_name());
        let is_archive = |finding: &Finding| matches!(finding, Finding::Archive(_));
        match found.status() {
            Status::Ok if options.quick => format!(
                "{file} is consistent, and {image} has the manifest that it names; no layer was compared"
            ),
            Status::Ok if options.layers.is_some() => {
                format!("{file} fits these layers of {image}; no other was compared")
            }
            Status::Ok => format!("{file} is the archive of {image}"),
            Status::Differs if found.findings().any(is_archive) => format!(
                "{file} does not fit its image: index again with `clip index {} {file}`",
                pinned_name(head)
            ),
            Status::Differs => format!(
                "{image} is not what its digests say: try again; if it stays so, the registry or a mirror is damaged, push the image again"
            ),
            Status::Unavailable => {
                let why = obstacle(found).map_or("", |(_, _, message)| message);
                format!("{file} could not be compared with its image: {why}")
            }
        }
    }

    /// Lines for people: one for the archive, one for the manifest, one for each layer.
    pub fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        match &self.what {
            What::Unavailable(_) | What::Damaged(_) => {}
            What::Image {
                archive,
                summary,
                verified,
                ..
            } => write_image(out, archive.head(), summary, verified)?,
            What::Cache {
                archive, verified, ..
            } => write_cache(out, archive, verified)?,
        }
        match self.found() {
            Found::AsItShouldBe => writeln!(out, "{}", self.verdict()),
            // The failure goes to stderr, as that of any command.
            _ => Ok(()),
        }
    }

    /// One object for programs.
    pub fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        let mut object = json!({
            "status": match self.found() {
                Found::AsItShouldBe => "ok",
                Found::Unavailable { .. } => "unavailable",
                Found::Differs => "differs",
                Found::Corrupt => "corrupt",
            },
            "reason": self.reason(),
            "message": self.verdict(),
            "file": self.file,
        });
        if let What::Image { archive, .. } | What::Cache { archive, .. } = &self.what {
            let head = archive.head();
            object["archiveDigest"] = json!(clip_archive::Digest::of(archive.bytes()).to_string());
            object["image"] = json!(head.image_name());
            object["manifestDigest"] = json!(head.manifest_digest.to_string());
        }
        match &self.what {
            What::Unavailable(_) | What::Damaged(_) => {}
            What::Image { verified, .. } => {
                let tag = verified.tag_moved_to.map(|digest| digest.to_string());
                object["tagMovedTo"] = json!(tag);
                object["findings"] = verified.manifest.iter().map(finding_json).collect();
                object["layers"] = verified.layers.iter().map(layer_json).collect();
            }
            What::Cache {
                archive,
                dir,
                verified,
            } => {
                object["cache"] = json!(dir);
                object["tree"] = tree_json(&verified.tree);
                let layers = verified.layers.iter();
                object["layers"] = layers
                    .map(|(index, audit)| cached_layer_json(archive, *index, audit))
                    .collect();
            }
        }
        serde_json::to_writer_pretty(&mut *out, &object)?;
        writeln!(out)
    }

    /// CamelCase name of the cause.
    fn reason(&self) -> &'static str {
        match (&self.what, self.found()) {
            (_, Found::AsItShouldBe) => "Verified",
            (What::Unavailable(failure), _) => failure.reason,
            (What::Damaged(_), _) => "ArchiveDamaged",
            (What::Cache { .. }, _) => "CacheCorrupt",
            (What::Image { verified, .. }, _) => {
                let is_archive = |finding: &Finding| matches!(finding, Finding::Archive(_));
                match obstacle(verified) {
                    Some((reason, ..)) if verified.status() == Status::Unavailable => reason,
                    _ if verified.findings().any(is_archive) => "ArchiveMismatch",
                    _ => "DigestMismatch",
                }
            }
        }
    }
}

/// Why the image could not be looked at: a cause that may go away before one that does not.
fn obstacle(verified: &Verified) -> Option<(&'static str, bool, &str)> {
    let obstacles = verified.findings().filter_map(|finding| match finding {
        Finding::Unavailable {
            reason,
            permanent,
            message,
        } => Some((*reason, *permanent, message.as_str())),
        _ => None,
    });
    obstacles.min_by_key(|(_, permanent, _)| *permanent)
}

/// The image by its digest, so that indexing again gives the same one. A layout has only tags.
fn pinned_name(head: &Head) -> String {
    match head.registry.as_str() {
        clip_engine::registry::LAYOUT_REGISTRY => head.image_name(),
        registry => format!("{registry}/{}@{}", head.repository, head.manifest_digest),
    }
}

fn write_image(
    out: &mut impl Write,
    head: &Head,
    summary: &Summary,
    verified: &Verified,
) -> io::Result<()> {
    writeln!(
        out,
        "archive   ok: {}, {}, {}",
        units::count(summary.files, "file"),
        units::count(summary.layers, "layer"),
        units::count(summary.seek_points, "seek point")
    )?;
    let status = Status::of(&verified.manifest);
    writeln!(out, "manifest  {}: {}", word(status), head.manifest_digest)?;
    write_findings(out, &verified.manifest)?;
    if let Some(digest) = verified.tag_moved_to {
        writeln!(
            out,
            "          {} is {digest} by now: index again to have that",
            head.image_name()
        )?;
    }
    for layer in &verified.layers {
        writeln!(
            out,
            "layer {:<3} {}: {}, {}, {} in {}",
            layer.index,
            word(layer.status()),
            layer.digest,
            units::count(layer.spans_checked, "span"),
            units::bytes(layer.bytes_fetched),
            units::seconds(layer.duration)
        )?;
        write_findings(out, &layer.findings)?;
        for bad in layer.bad_spans.iter().take(SPANS_SHOWN) {
            writeln!(
                out,
                "          span {}, bytes {} to {} of the unpacked layer: {}; expected {}",
                bad.span, bad.tar.start, bad.tar.end, bad.problem, bad.expected
            )?;
        }
        write_rest(out, layer.bad_spans.len())?;
    }
    Ok(())
}

fn write_cache(out: &mut impl Write, archive: &Archive, found: &CacheVerified) -> io::Result<()> {
    match &found.tree {
        CachedTree::Absent => writeln!(out, "tree      not cached")?,
        CachedTree::Intact => writeln!(out, "tree      ok")?,
        CachedTree::Corrupt(path) => writeln!(out, "tree      corrupt: {}", path.display())?,
    }
    for (index, layer) in &found.layers {
        let unverified = match layer.unverified {
            0 => String::new(),
            count => format!(", {count} more to be checked before their next use"),
        };
        writeln!(
            out,
            "layer {index:<3} {}: {}, {} cached, {} read{unverified}",
            if layer.damaged.is_empty() {
                "ok"
            } else {
                "corrupt"
            },
            archive.head().layers[*index].digest,
            units::count(layer.present, "span"),
            units::bytes(layer.bytes_read)
        )?;
        if !layer.damaged.is_empty() {
            writeln!(
                out,
                "          {} missing, {} with other bytes, in {}",
                missing(layer),
                layer.damaged.len() - missing(layer),
                layer.dir.display()
            )?;
        }
        for bad in layer.damaged.iter().take(SPANS_SHOWN) {
            let found = match &bad.damage {
                SpanDamage::Missing => String::from("nothing there"),
                SpanDamage::Corrupt(digest) => format!("digest {digest}"),
            };
            writeln!(
                out,
                "          span {}, bytes {} to {}: {found}; expected {}",
                bad.span, bad.range.start, bad.range.end, bad.expected
            )?;
        }
        write_rest(out, layer.damaged.len())?;
    }
    Ok(())
}

fn write_findings(out: &mut impl Write, findings: &[Finding]) -> io::Result<()> {
    findings
        .iter()
        .try_for_each(|finding| writeln!(out, "          {}", finding.message()))
}

fn write_rest(out: &mut impl Write, bad_spans: usize) -> io::Result<()> {
    match bad_spans.saturating_sub(SPANS_SHOWN) {
        0 => Ok(()),
        rest => writeln!(
            out,
            "          and {}",
            units::count(rest as u64, "more span")
        ),
    }
}

fn missing(layer: &CacheAudit) -> usize {
    let is_missing = |bad: &&DamagedSpan| bad.damage == SpanDamage::Missing;
    layer.damaged.iter().filter(is_missing).count()
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Unavailable => "unavailable",
        Status::Differs => "differs",
    }
}

fn finding_json(finding: &Finding) -> Value {
    let kind = match finding {
        Finding::Archive(_) => "archive",
        Finding::Image(_) => "image",
        Finding::Unavailable { .. } => "unavailable",
    };
    json!({ "kind": kind, "message": finding.message() })
}

fn layer_json(layer: &LayerVerified) -> Value {
    let findings: Vec<_> = layer.findings.iter().map(finding_json).collect();
    let bad: Vec<_> = layer.bad_spans.iter().map(bad_span_json).collect();
    json!({
        "index": layer.index, "digest": layer.digest.to_string(), "status": word(layer.status()),
        "spansChecked": layer.spans_checked, "spansBad": bad, "findings": findings,
        "bytesFetched": layer.bytes_fetched, "durationMs": layer.duration.as_millis() as u64,
    })
}

fn bad_span_json(bad: &BadSpan) -> Value {
    let found = match &bad.problem {
        SpanProblem::Digest(found) => Some(found.to_string()),
        _ => None,
    };
    json!({
        "span": bad.span,
        "unpackedOffset": bad.tar.start, "unpackedLength": bad.tar.end - bad.tar.start,
        "blobOffset": bad.blob.start, "blobLength": bad.blob.end - bad.blob.start,
        "expected": bad.expected.to_string(), "found": found, "problem": bad.problem.to_string(),
    })
}

fn tree_json(tree: &CachedTree) -> Value {
    match tree {
        CachedTree::Absent => json!({ "status": "absent" }),
        CachedTree::Intact => json!({ "status": "ok" }),
        CachedTree::Corrupt(path) => json!({ "status": "corrupt", "path": path }),
    }
}

fn cached_layer_json(archive: &Archive, index: usize, layer: &CacheAudit) -> Value {
    let bad = layer.damaged.iter().map(|bad| {
        let found = match &bad.damage {
            SpanDamage::Missing => None,
            SpanDamage::Corrupt(digest) => Some(digest.to_string()),
        };
        json!({
            "span": bad.span,
            "unpackedOffset": bad.range.start, "unpackedLength": bad.range.end - bad.range.start,
            "expected": bad.expected.to_string(), "found": found,
        })
    });
    json!({
        "index": index, "digest": archive.head().layers[index].digest.to_string(),
        "status": if layer.damaged.is_empty() { "ok" } else { "corrupt" }, "path": layer.dir,
        "spansPresent": layer.present, "spansUnverified": layer.unverified,
        "spansMissing": missing(layer), "spansCorrupt": layer.damaged.len() - missing(layer),
        "spansBad": bad.collect::<Vec<_>>(), "bytesRead": layer.bytes_read,
    })
}
