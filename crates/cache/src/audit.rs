//! [`audit`]: reads again what the cache says it has of a layer, and compares.
//!
//! Changes nothing and locks nothing, so it may run beside mounts that use and fill the same files.
//! A span that does not have its digest counts as damaged only if its state says "present" both
//! before and after it was read, twice: whoever takes a span away clears its state first, whoever
//! fills one sets its state last.

use crate::{
    layer_files::{DATA, STATES},
    states::SpanStatesSeen,
    word::{self, SpanState},
};
use clip_archive::{Digest, SeekTable, SpanDigest, SpanHasher};
use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};
use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Read at a time.
const PIECE_LEN: usize = 256 << 10;

/// What the cache has of one layer.
#[derive(Debug, Clone)]
pub struct CacheAudit {
    /// The layer's directory, whether it is there or not.
    pub dir: PathBuf,
    /// Spans that are marked present; all were read.
    pub present: u64,
    /// Spans that are there but that the cache itself checks before it uses them. Not read.
    pub unverified: u64,
    /// Spans among the present that are not there, or other bytes.
    pub damaged: Vec<DamagedSpan>,
    /// Bytes that were read.
    pub bytes_read: u64,
}

/// A span that is marked present and is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedSpan {
    /// Which span of the layer.
    pub span: usize,
    /// Its bytes in the uncompressed layer, which is the data file.
    pub range: Range<u64>,
    /// The digest that the archive promises.
    pub expected: SpanDigest,
    /// What is there.
    pub damage: SpanDamage,
}

/// What there is instead of a span's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpanDamage {
    /// A hole, or the end of the file.
    Missing,
    /// Bytes with this digest.
    Corrupt(SpanDigest),
}

/// Reads all spans of a layer that the cache in `dir` marks present and compares them with their
/// digests. Tells `advanced` how many bytes it has read. A layer that is not cached has no spans.
pub fn audit(
    dir: &Path,
    section_digest: &Digest,
    table: &SeekTable,
    advanced: &mut dyn FnMut(u64),
) -> io::Result<CacheAudit> {
    let mut audit = CacheAudit {
        dir: dir.join("layers").join(section_digest.hex()),
        present: 0,
        unverified: 0,
        damaged: Vec::new(),
        bytes_read: 0,
    };
    let data = match File::open(audit.dir.join(DATA)) {
        // The cache makes it anew and trusts no state that spoke of another.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(audit),
        opened => opened?,
    };
    let path = audit.dir.join(STATES);
    let states = match SpanStatesSeen::open(&path, false)? {
        Some(states) if states.ends().len() == table.spans.len() => states,
        // The cache begins anew.
        _ => return Ok(audit),
    };
    let trusted = states.is_trusted(data.metadata()?.ino())?;
    let mut start = 0;
    for (index, span) in table.spans.iter().enumerate() {
        let range = start..start + span.tar_len;
        start = range.end;
        let seen = states.look(index)?;
        match seen.state() {
            SpanState::Present if trusted => {}
            SpanState::Absent | SpanState::Evicting => continue,
            SpanState::Present | SpanState::Unverified => {
                audit.unverified += 1;
                continue;
            }
        }
        let found = look_twice(&data, &range, &span.digest, || {
            Ok(states.look(index)? == seen)
        })?;
        let damage = match found {
            Look::Gone => continue,
            Look::Intact => None,
            Look::Damaged(damage) => Some(damage),
        };
        audit.present += 1;
        audit.bytes_read += span.tar_len;
        advanced(span.tar_len);
        audit.damaged.extend(damage.map(|damage| DamagedSpan {
            span: index,
            range,
            expected: span.digest,
            damage,
        }));
    }
    Ok(audit)
}

/// Has the damaged spans fetched again when they are needed. Safe beside mounts that use them; what was right again in the
/// meantime is fetched once more.
pub fn forget_damaged(audit: &CacheAudit) -> io::Result<()> {
    if audit.damaged.is_empty() {
        return Ok(());
    }
    let Some(states) = SpanStatesSeen::open(&audit.dir.join(STATES), true)? else {
        return Ok(());
    };
    let words = states.words()?;
    for damaged in &audit.damaged {
        // Another process may have been quicker.
        word::forget(words.cell(damaged.span), states.look(damaged.span)?);
    }
    Ok(())
}

enum Look {
    Intact,
    /// Somebody took it away meanwhile.
    Gone,
    Damaged(SpanDamage),
}

fn look_twice(
    data: &File,
    range: &Range<u64>,
    expected: &SpanDigest,
    still_present: impl Fn() -> io::Result<bool>,
) -> io::Result<Look> {
    for _ in 0..2 {
        if digest_of(data, range)? == Some(*expected) {
            return Ok(Look::Intact);
        }
        if !still_present()? {
            return Ok(Look::Gone);
        }
    }
    // A hole reads as zeros: what it is matters to people alone.
    let found = match has_hole(data, range)? {
        true => None,
        false => digest_of(data, range)?,
    };
    Ok(Look::Damaged(
        found.map_or(SpanDamage::Missing, SpanDamage::Corrupt),
    ))
}

/// The digest of what is there; none if the file ends before.
fn digest_of(data: &File, range: &Range<u64>) -> io::Result<Option<SpanDigest>> {
    let mut hasher = SpanHasher::default();
    let mut buf = vec![0; PIECE_LEN];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(PIECE_LEN as u64) as usize;
        match data.read_exact_at(&mut buf[..len], at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        hasher.update(&buf[..len]);
        at += len as u64;
    }
    Ok(Some(hasher.take()))
}

fn has_hole(data: &File, range: &Range<u64>) -> io::Result<bool> {
    match lseek(data, range.start as i64, Whence::SeekHole) {
        // Behind the end of the file.
        Err(Errno::ENXIO) => Ok(true),
        hole => Ok((hole? as u64) < range.end),
    }
}
