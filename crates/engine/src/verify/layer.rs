//! One layer: its blob is streamed once and looked at twice, as a whole and span by span.

use super::{
    BadSpan, Finding, Status, VerifyProgress,
    spans::{SpanChecker, SpansChecked},
};
use crate::{Archive, SpanLimits};
use bytes::Bytes;
use clip_archive::{Digest, Entry, EntryKind, LayerRef, LayerSection, OpenError};
use clip_index::{FileLayer, LayerContent, LayerError, LayerIndexer, LayerInfo};
use clip_registry::{BlobSource, FetchError};
use futures::StreamExt;
use ring::digest::{Context, SHA256};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    task::{JoinError, spawn_blocking},
};

/// Chunks that the download may be ahead of the slower of the two workers.
const CHUNKS_AHEAD: usize = 8;

/// What was found out about one layer.
#[derive(Debug, Clone)]
pub struct LayerVerified {
    /// Position in the image, the base is 0.
    pub index: usize,
    /// Digest of the blob, as the archive has it.
    pub digest: Digest,
    /// Spans that were decoded from their seek points.
    pub spans_checked: u64,
    /// Those among them that did not give what the archive promises.
    pub bad_spans: Vec<BadSpan>,
    /// What is wrong; nothing if the layer is as the archive says.
    pub findings: Vec<Finding>,
    /// Compressed bytes that were fetched for it; 0 for a layer that occurred before.
    pub bytes_fetched: u64,
    /// From the request to the verdict.
    pub duration: Duration,
}

impl LayerVerified {
    /// The worst of what was found.
    pub fn status(&self) -> Status {
        Status::of(&self.findings)
    }

    pub(super) fn used_again_as(self, index: usize) -> Self {
        if self.index == index {
            return self;
        }
        Self {
            index,
            bytes_fetched: 0,
            duration: Duration::ZERO,
            ..self
        }
    }
}

/// Checks layer `index`.
pub(super) async fn verify_layer(
    archive: &Arc<Archive>,
    index: usize,
    blobs: &BlobSource,
    progress: Arc<dyn VerifyProgress>,
) -> LayerVerified {
    let started = Instant::now();
    let layer = &archive.head().layers[index];
    let mut verified = LayerVerified {
        index,
        digest: layer.digest,
        spans_checked: 0,
        bad_spans: Vec::new(),
        findings: Vec::new(),
        bytes_fetched: 0,
        duration: Duration::ZERO,
    };
    let checker = match SpanChecker::new(archive, index) {
        Ok(checker) => checker,
        Err(error) => {
            verified.findings.push(Finding::Archive(error.to_string()));
            return verified;
        }
    };
    let info = match archive.entries(index) {
        Ok(entries) => info_of(layer, &entries),
        Err(error) => {
            verified.findings.push(Finding::Archive(error.to_string()));
            return verified;
        }
    };
    let (to_walker, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let walker = spawn_blocking(move || walk(info, chunks));
    let (to_checker, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let advanced = move |bytes| progress.advanced(index, bytes);
    let checker = spawn_blocking(move || check(checker, chunks, advanced));
    let workers = [to_walker, to_checker];
    let fetched = fetch(blobs, layer, workers, &mut verified.bytes_fetched).await;
    match (walker.await, checker.await) {
        (Ok(walked), Ok(checked)) => verified.judge(archive, fetched, walked, checked),
        (Err(died), _) | (_, Err(died)) => verified.findings.push(cut_short(&died)),
    }
    verified.duration = started.elapsed();
    verified
}

/// Hands the blob to both workers. One that has stopped is left alone: its result says why.
async fn fetch(
    blobs: &BlobSource,
    layer: &LayerRef,
    workers: [Sender<Bytes>; 2],
    fetched: &mut u64,
) -> Result<(), FetchError> {
    let digest = clip_registry::Digest::from_sha256(*layer.digest.as_bytes());
    let mut blob = blobs.stream(&digest).await?;
    while let Some(chunk) = blob.next().await {
        let chunk = chunk?;
        *fetched += chunk.len() as u64;
        for worker in &workers {
            let _ = worker.send(chunk.clone()).await;
        }
        if *fetched > layer.size {
            // Whatever else comes, this is not the blob.
            break;
        }
    }
    Ok(())
}

/// The layer as a whole: indexes it anew.
fn walk(info: LayerInfo, mut chunks: Receiver<Bytes>) -> Result<LayerSection, LayerError> {
    let mut indexer = LayerIndexer::new(info, SpanLimits::default());
    while let Some(chunk) = chunks.blocking_recv() {
        indexer.push(chunk)?;
    }
    Ok(indexer.finish()?.section)
}

/// What came, and what its spans decoded to.
struct Checked {
    digest: Digest,
    bytes: u64,
    spans: SpansChecked,
}

fn check(mut checker: SpanChecker, mut chunks: Receiver<Bytes>, advanced: impl Fn(u64)) -> Checked {
    let mut hash = Context::new(&SHA256);
    let mut bytes = 0;
    while let Some(chunk) = chunks.blocking_recv() {
        hash.update(&chunk);
        bytes += chunk.len() as u64;
        checker.push(&chunk);
        advanced(chunk.len() as u64);
    }
    let digest = hash.finish().as_ref().try_into();
    Checked {
        digest: Digest::from_bytes(digest.expect("SHA-256 has 32 bytes")),
        bytes,
        spans: checker.finish(),
    }
}

impl LayerVerified {
    /// Draws the conclusions. Who is wrong follows from the blob's digest: if it is the manifest's,
    /// then whatever does not fit is the archive's fault.
    fn judge(
        &mut self,
        archive: &Archive,
        fetched: Result<(), FetchError>,
        walked: Result<LayerSection, LayerError>,
        checked: Checked,
    ) {
        if let Err(error) = fetched {
            // Spans that were cut off are not bad.
            self.findings.push(error.into());
            return;
        }
        let layer = &archive.head().layers[self.index];
        self.spans_checked = checked.spans.checked;
        self.bad_spans = checked.spans.bad;
        if checked.digest != layer.digest || checked.bytes != layer.size {
            let found = match checked.bytes > layer.size {
                true => format!("sends more than its {} bytes", layer.size),
                false => format!(
                    "sends {} bytes with digest {}",
                    checked.bytes, checked.digest
                ),
            };
            self.findings.push(Finding::Image(format!(
                "the registry, or something before it, {found} for {}",
                layer.digest
            )));
            return;
        }
        if !self.bad_spans.is_empty() {
            self.findings.push(Finding::Archive(format!(
                "spans that do not decode to what the archive promises: {} of {}",
                self.bad_spans.len(),
                self.spans_checked
            )));
        }
        let whole = match (walked, archive.entries(self.index)) {
            (Ok(section), Ok(entries)) => compare(layer, &entries, &section),
            (Err(LayerError::DiffId { found, .. }), _) => Some(format!(
                "the layer's diffID is {found}, the archive says {}",
                layer.diff_id
            )),
            (Err(error), _) => Some(error.to_string()),
            (_, Err(error)) => Some(OpenError::to_string(&error)),
        };
        self.findings.extend(whole.map(Finding::Archive));
    }
}

/// What the archive says of the layer, and what indexing it anew gives. The diffID was compared on
/// the way, and spans may be cut elsewhere: `clip index --max-span`.
fn compare(layer: &LayerRef, ours: &[Entry], theirs: &LayerSection) -> Option<String> {
    if layer.tar_size != theirs.seek.tar_size {
        return Some(format!(
            "the layer unpacks to {} bytes, the archive says {}",
            theirs.seek.tar_size, layer.tar_size
        ));
    }
    if ours == theirs.entries {
        return None;
    }
    let same = ours.iter().zip(&theirs.entries).take_while(|(a, b)| a == b);
    let at = same.count();
    let path = ours
        .get(at)
        .or(theirs.entries.get(at))
        .map(|entry| &entry.path);
    Some(format!(
        "entries in the layer: {}, in the archive: {}; the first that differs is {:?}",
        theirs.entries.len(),
        ours.len(),
        String::from_utf8_lossy(path.map_or(&[], Vec::as_slice))
    ))
}

fn info_of(layer: &LayerRef, entries: &[Entry]) -> LayerInfo {
    LayerInfo {
        digest: layer.digest,
        diff_id: Some(layer.diff_id),
        size: layer.size,
        media_type: layer.media_type.clone(),
        content: content_of(layer, entries),
    }
}

/// Content at position 0, where a tar has a header, is a file that is a layer of its own.
fn content_of(layer: &LayerRef, entries: &[Entry]) -> LayerContent {
    match entries {
        [
            Entry {
                path,
                kind: EntryKind::File { size, segments },
                mode,
                mtime,
                mtime_nsec,
                ..
            },
        ] if *size == layer.size && segments.iter().all(|segment| segment.tar_offset == 0) => {
            LayerContent::File(FileLayer {
                path: path.clone(),
                mode: *mode,
                mtime: *mtime,
                mtime_nsec: *mtime_nsec,
            })
        }
        _ => LayerContent::Tar { top: None },
    }
}

fn cut_short(died: &JoinError) -> Finding {
    Finding::Unavailable {
        reason: "InternalError",
        permanent: true,
        message: format!("verifying was cut short: {died}; this is a defect in clip"),
    }
}
