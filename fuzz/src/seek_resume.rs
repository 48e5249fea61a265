//! Random access into layers. Arbitrary blobs index or are refused; what was indexed decodes span by span to the same
//! bytes; spans and windows that lie give an error or other bytes, which the digest finds out.
//!
//! The first byte: the low half chooses how the rest becomes a blob, the high half how the blob is pushed.

use crate::input::Input;
use bytes::Bytes;
use clip_archive::{SeekTable, Span, SpanDigest, SpanKind, Window, section::WINDOW_LEN};
use clip_seek::{Compression, SpanDecoder, SpanIndexer, SpanLimits};
use flate2::{Crc, Decompress, FlushCompress, FlushDecompress, Status};

/// Many spans out of few bytes.
const LIMITS: SpanLimits = SpanLimits {
    tar: 4096,
    blob: 1024,
};
/// Decoded bytes per input: a fuzzer must not spend its time on bombs.
const DECODED_MAX: usize = 1 << 20;

/// The target.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let choice = input.byte();
    let piece = [1, 7, 512, 1 << 20][usize::from(choice >> 6)];
    match choice % 6 {
        0 => drop(index_and_check(input.rest(), piece)),
        1 => drop(index_and_check(&gzip_of_raw_deflate(input.rest()), piece)),
        2 => {
            let (blob, content) = compressed(&mut input);
            let (_, decoded) = index_and_check(&blob, piece).expect("a sound layer is indexed");
            assert!(decoded == content, "decoded to other bytes");
        }
        3 => lies(&mut input, piece),
        4 => made_up(&mut input),
        _ => drop(index_and_check(&zstd_of_blocks(&mut input), piece)),
    }
}

/// Indexes `blob`; then every span must decode alone to what the indexer saw.
fn index_and_check(blob: &[u8], piece: usize) -> Option<(SeekTable, Vec<u8>)> {
    let mut indexer = SpanIndexer::new(Compression::sniff(blob), LIMITS);
    let mut decoded = Vec::new();
    for bytes in blob.chunks(piece) {
        let mut take = |bytes: Bytes| decoded.extend_from_slice(&bytes);
        indexer
            .push(&Bytes::copy_from_slice(bytes), &mut take)
            .ok()?;
        if decoded.len() > DECODED_MAX {
            return None;
        }
    }
    let mut take = |bytes: Bytes| decoded.extend_from_slice(&bytes);
    let table = indexer.finish(&mut take).ok()?;
    table
        .check_spans(blob.len() as u64, Some(table.windows.len()))
        .expect("what the indexer makes, opening accepts");
    assert!(table.windows.iter().all(Window::is_well_formed));
    assert_eq!(table.tar_size, decoded.len() as u64);
    let mut at = 0;
    for span in &table.spans {
        let expected = &decoded[at..at + span.tar_len as usize];
        let found = decode(blob, span, &table.windows, piece).expect("an indexed span decodes");
        assert!(found == expected, "{span:?} decodes to other bytes");
        assert_eq!(span.digest, SpanDigest::of(expected));
        at += expected.len();
    }
    Some((table, decoded))
}

fn decode(blob: &[u8], span: &Span, windows: &[Window], piece: usize) -> Result<Vec<u8>, String> {
    let window = match span.kind {
        SpanKind::GzipBlock { window, .. } => windows.get(window as usize),
        _ => None,
    };
    let mut decoder = SpanDecoder::new(span, window);
    let range = span.blob_offset as usize..(span.blob_offset + span.blob_len) as usize;
    let mut out = Vec::new();
    for bytes in blob[range].chunks(piece) {
        let mut take = |bytes: &[u8]| out.extend_from_slice(bytes);
        let pushed = decoder.push(bytes, &mut take);
        assert!(out.len() as u64 <= span.tar_len, "more than the span holds");
        pushed.map_err(|error| error.to_string())?;
        if out.len() > DECODED_MAX {
            return Err("enough".to_owned());
        }
    }
    decoder.finish().map_err(|error| error.to_string())?;
    assert_eq!(out.len() as u64, span.tar_len);
    Ok(out)
}

/// A gzip member around `raw`, as far as `raw` is deflate; header and trailer are right.
fn gzip_of_raw_deflate(raw: &[u8]) -> Vec<u8> {
    let mut out = vec![0; DECODED_MAX];
    let mut inflate = Decompress::new(false);
    let status = inflate.decompress(raw, &mut out, FlushDecompress::Finish);
    let (used, len) = (inflate.total_in() as usize, inflate.total_out() as usize);
    let mut crc = Crc::new();
    crc.update(&out[..len]);
    let mut blob = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    blob.extend_from_slice(&raw[..used]);
    if matches!(status, Ok(Status::StreamEnd)) {
        blob.extend_from_slice(&crc.sum().to_le_bytes());
        blob.extend_from_slice(&(len as u32).to_le_bytes());
        // What follows the member: padding, garbage, another member.
        blob.extend_from_slice(&raw[used..]);
    }
    blob
}

/// A sound blob of any kind, and its content.
fn compressed(input: &mut Input<'_>) -> (Vec<u8>, Vec<u8>) {
    let (kind, level, flush_every) = (input.byte(), input.byte(), input.short());
    let content = content(input);
    let piece = usize::from(flush_every).max(64);
    let mut blob = Vec::new();
    match kind % 5 {
        0 if Compression::sniff(&content) == Compression::Plain => blob.clone_from(&content),
        1 => {
            for frame in content.chunks(piece) {
                let level = i32::from(level % 4) + 1;
                blob.extend(zstd::bulk::compress(frame, level).expect("in memory"));
            }
        }
        2 => {
            for member in content.chunks(piece) {
                gzip_member(&mut blob, member, level, usize::MAX);
            }
        }
        _ => gzip_member(&mut blob, &content, level, piece),
    }
    if blob.is_empty() {
        gzip_member(&mut blob, &content, level, usize::MAX);
    }
    (blob, content)
}

/// Text with repetitions near and far: bytes from the input, then pieces of what came before.
fn content(input: &mut Input<'_>) -> Vec<u8> {
    let mut content = Vec::new();
    while !input.is_empty() && content.len() < 64 << 10 {
        match input.byte() {
            literal @ 0..0x40 => content.extend_from_slice(input.take(1 + usize::from(literal))),
            copy @ 0x40..0xf0 => {
                let distance = 1 + usize::from(input.short()) % WINDOW_LEN;
                let start = content.len().saturating_sub(distance);
                let len = usize::from(copy) * 16;
                for at in (start..)
                    .take(len)
                    .take_while(|_| start < content.len())
                    .collect::<Vec<_>>()
                {
                    content.push(content[at]);
                }
            }
            noise => {
                let mut state = u32::from(input.short()) | 1;
                content.extend((0..usize::from(noise) * 8).map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                }));
            }
        }
    }
    content
}

fn gzip_member(blob: &mut Vec<u8>, content: &[u8], level: u8, flush_every: usize) {
    let level = flate2::Compression::new(u32::from(level) % 10);
    let mut deflate = flate2::Compress::new(level, false);
    blob.extend_from_slice(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
    let room = |out: &mut Vec<u8>, len: usize| out.reserve(len + len / 8 + 1024);
    for piece in content.chunks(flush_every) {
        room(blob, piece.len());
        deflate
            .compress_vec(piece, blob, FlushCompress::Sync)
            .expect("in memory");
    }
    loop {
        room(blob, 1024);
        let status = deflate.compress_vec(&[], blob, FlushCompress::Finish);
        if matches!(status, Ok(Status::StreamEnd)) {
            break;
        }
    }
    let mut crc = Crc::new();
    crc.update(content);
    blob.extend_from_slice(&crc.sum().to_le_bytes());
    blob.extend_from_slice(&(content.len() as u32).to_le_bytes());
}

/// A sound layer whose table is then falsified.
fn lies(input: &mut Input<'_>, piece: usize) {
    let changes: Vec<[u64; 3]> = (0..1 + input.byte() % 6)
        .map(|_| {
            [
                u64::from(input.byte()),
                u64::from(input.byte()),
                input.number(),
            ]
        })
        .collect();
    let (blob, _) = compressed(input);
    let Some((mut table, _)) = index_and_check(&blob, piece) else {
        return;
    };
    for [what, which, number] in changes {
        falsify(&mut table, what, which as usize, number);
    }
    try_every_span(&table, &blob, piece);
}

fn falsify(table: &mut SeekTable, what: u64, which: usize, number: u64) {
    let (spans, windows) = (table.spans.len(), table.windows.len());
    let Some(span) = table.spans.get_mut(which % spans.max(1)) else {
        return;
    };
    match what % 8 {
        0 => span.tar_len = number,
        1 => span.blob_offset = number,
        2 => span.blob_len = number,
        3 => {
            span.kind = SpanKind::GzipBlock {
                skip_bits: number as u8 % 8,
                window: (number >> 8) as u32,
            }
        }
        4 => {
            span.kind = match number % 3 {
                0 => SpanKind::Plain,
                1 => SpanKind::GzipMember,
                _ => SpanKind::ZstdFrame,
            }
        }
        kind => {
            let Some(window) = table.windows.get_mut(which % windows.max(1)) else {
                return;
            };
            match kind {
                5 => window.runs.push((number as u16, (number >> 16) as u16)),
                6 => window.bytes.truncate(number as usize),
                _ => window
                    .bytes
                    .iter_mut()
                    .for_each(|byte| *byte ^= number as u8),
            }
        }
    }
}

/// Spans out of nothing over bytes out of nothing.
fn made_up(input: &mut Input<'_>) {
    let mut table = SeekTable::default();
    for _ in 0..input.byte() % 4 {
        let window = Window {
            runs: (0..input.byte() % 4)
                .map(|_| (input.short(), input.short()))
                .collect(),
            bytes: input.piece().to_vec(),
        };
        table.windows.push(window);
    }
    for _ in 0..1 + input.byte() % 4 {
        let kind = match input.byte() % 4 {
            0 => SpanKind::Plain,
            1 => SpanKind::GzipMember,
            2 => SpanKind::GzipBlock {
                skip_bits: input.byte(),
                window: input.byte().into(),
            },
            _ => SpanKind::ZstdFrame,
        };
        table.spans.push(Span {
            tar_len: input.number(),
            blob_offset: input.number(),
            blob_len: input.number(),
            kind,
            digest: SpanDigest::of(b""),
        });
    }
    try_every_span(&table, input.rest(), 512);
}

/// As a node would: what opening refuses is never decoded; the rest gives bytes or an error.
fn try_every_span(table: &SeekTable, blob: &[u8], piece: usize) {
    if table.windows.iter().any(|window| !window.is_well_formed()) {
        return;
    }
    for span in &table.spans {
        let alone = SeekTable {
            tar_size: span.tar_len,
            spans: vec![span.clone()],
            windows: vec![],
        };
        let checked = alone.check_spans(blob.len() as u64, Some(table.windows.len()));
        if checked.is_ok() {
            let _ = decode(blob, span, &table.windows, piece);
        }
    }
}

/// A zstd frame whose header is right and whose blocks are the input's.
fn zstd_of_blocks(input: &mut Input<'_>) -> Vec<u8> {
    let window = input.byte();
    let mut blob = vec![0x28, 0xb5, 0x2f, 0xfd, 0, window];
    while !input.is_empty() {
        let (kind, data) = (u32::from(input.byte()) % 3, input.piece());
        let is_last = u32::from(input.is_empty());
        let header = is_last | kind << 1 | (data.len() as u32) << 3;
        blob.extend_from_slice(&header.to_le_bytes()[..3]);
        // A block of one repeated byte stores it once.
        let stored = if kind == 1 {
            &data[..data.len().min(1)]
        } else {
            data
        };
        blob.extend_from_slice(stored);
    }
    blob
}
