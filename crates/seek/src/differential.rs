//! Our decoder against zlib-rs, for tests and fuzzing: the same bytes, the same borders, the same
//! verdict. The node resumes with zlib-rs, so where the two disagreed, a layer that was indexed
//! could not be read.

use crate::{
    Compression, DecodeError, SpanDecoder, SpanIndexer, SpanLimits,
    deflate::{Inflater, Output, Stop, UNIT_LEN_MAX},
    inflate::{self, Inflate, Wrapper},
    member::Header,
};
use bytes::Bytes;
use clip_archive::{SeekTable, SpanDigest, SpanKind, section::WINDOW_LEN};

/// What a decoder makes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It ends after so many bytes.
    Complete(usize),
    /// It ends in the middle.
    Truncated,
    /// It is invalid.
    Corrupt,
}

/// All that a decoder says about a stream.
#[derive(Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Whether it is one.
    pub verdict: Verdict,
    /// The bytes decoded, or decoded before the mistake.
    pub bytes: Vec<u8>,
    /// What is wrong with it.
    pub problem: Option<String>,
    /// Each block border but the last: decoded bytes before it, and bits of the stream before it.
    pub borders: Vec<(u64, u64)>,
}

impl std::fmt::Debug for Decoded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoded")
            .field("verdict", &self.verdict)
            .field("bytes", &SpanDigest::of(&self.bytes))
            .field("len", &self.bytes.len())
            .field("problem", &self.problem)
            .field("borders", &self.borders)
            .finish()
    }
}

/// Decodes a raw deflate stream with both decoders; what they say.
///
/// # Panics
/// When they differ. zlib keeps the last bytes before a mistake to itself, so these may be more.
pub fn check_deflate(stream: &[u8], piece: usize) -> Decoded {
    let (ours, zlib) = (inflate_ours(stream, piece), inflate_zlib(stream));
    let bytes_agree = match zlib.verdict {
        Verdict::Corrupt => ours.bytes.starts_with(&zlib.bytes),
        _ => ours.bytes == zlib.bytes,
    };
    assert!(
        bytes_agree && (ours.verdict, &ours.borders) == (zlib.verdict, &zlib.borders),
        "{piece} bytes at a time: ours {ours:?}, zlib {zlib:?}"
    );
    ours
}

/// Decodes a raw deflate stream with our decoder, given `piece` (at least 1) bytes at a time.
fn inflate_ours(stream: &[u8], piece: usize) -> Decoded {
    let mut inflater = Inflater::new();
    let mut output = Output::new();
    output.begin_stream();
    let (mut bytes, mut borders) = (Vec::new(), Vec::new());
    let mut problem = None;
    let mut taken = WINDOW_LEN;
    let (mut at, mut end) = (0, 0);
    let verdict = loop {
        let progress = inflater.run(&stream[at..end], &mut output);
        bytes.extend_from_slice(&output.filled()[taken..]);
        taken = output.at();
        let progress = match progress {
            Ok(progress) => progress,
            Err(corrupt) => {
                problem = Some(corrupt.to_string());
                break Verdict::Corrupt;
            }
        };
        at += progress.consumed;
        match progress.stop {
            Stop::NeedInput if end == stream.len() => break Verdict::Truncated,
            Stop::NeedInput => {
                assert!(end - at < UNIT_LEN_MAX, "{} bytes left over", end - at);
                end = (end + piece).min(stream.len());
            }
            Stop::OutputFull => {
                output.turn_over(Output::new_buffer());
                taken = WINDOW_LEN;
            }
            Stop::Border => {
                let bits = at as u64 * 8 - u64::from(progress.unused_bits);
                borders.push((bytes.len() as u64, bits));
            }
            Stop::End => break Verdict::Complete(at),
        }
    };
    Decoded {
        verdict,
        bytes,
        problem,
        borders,
    }
}

/// The same with zlib-rs.
fn inflate_zlib(stream: &[u8]) -> Decoded {
    let mut inflate = Inflate::new(Wrapper::Raw);
    let (mut bytes, mut borders) = (Vec::new(), Vec::new());
    let mut out = vec![0; 64 << 10];
    let mut at = 0;
    let verdict = loop {
        let Ok(step) = inflate.step(&stream[at..], &mut out, true) else {
            break Verdict::Corrupt;
        };
        at += step.consumed;
        bytes.extend_from_slice(&out[..step.produced]);
        match step.stop {
            inflate::Stop::End => break Verdict::Complete(at),
            inflate::Stop::Border { unused_bits } => {
                borders.push((bytes.len() as u64, at as u64 * 8 - u64::from(unused_bits)));
            }
            inflate::Stop::Buffers if step.consumed == 0 && step.produced == 0 => {
                break Verdict::Truncated;
            }
            inflate::Stop::Buffers => {}
        }
    };
    Decoded {
        verdict,
        bytes,
        problem: None,
        borders,
    }
}

/// Indexes a gzip blob, given `piece` bytes at a time, and judges the outcome by zlib-rs: the same
/// verdict, the same bytes, and each span decodes alone to its digest.
///
/// # Panics
/// When something differs.
pub fn check_gzip(blob: &[u8], limits: SpanLimits, piece: usize) -> Verdict {
    let (expected_verdict, expected) = gunzip_zlib(blob);
    let mut decoded = Vec::new();
    let outcome = index(blob, limits, piece, &mut decoded);
    let verdict = match &outcome {
        Ok(_) => Verdict::Complete(blob.len()),
        Err(DecodeError::Truncated { .. }) => Verdict::Truncated,
        Err(_) => Verdict::Corrupt,
    };
    assert_eq!(verdict, expected_verdict, "{outcome:?}");
    if let Ok(table) = outcome {
        assert!(decoded == expected, "decoded bytes differ");
        check_spans(&table, blob, &expected);
    }
    verdict
}

/// Decodes a gzip member with our decoder, and does nothing with the output; its length.
pub fn gunzip_ours(blob: &[u8]) -> u64 {
    let mut header = Header::new();
    let mut at = header.push(blob).expect("a gzip member");
    let mut inflater = Inflater::new();
    let mut output = Output::new();
    output.begin_stream();
    let (mut spare, mut len) = (Output::new_buffer(), 0);
    loop {
        let progress = inflater
            .run(&blob[at..], &mut output)
            .expect("a valid member");
        at += progress.consumed;
        match progress.stop {
            Stop::Border => output.begin_border(),
            Stop::OutputFull => {
                len += (output.at() - WINDOW_LEN) as u64;
                spare = output.turn_over(spare);
            }
            Stop::NeedInput | Stop::End => return len + (output.at() - WINDOW_LEN) as u64,
        }
    }
}

/// The same with zlib-rs, which also checks the checksum; stopping `at_borders` or not.
pub fn gunzip_zlib_rs(blob: &[u8], at_borders: bool) -> u64 {
    let mut inflate = Inflate::new(Wrapper::Gzip);
    let mut out = vec![0; 256 << 10];
    let (mut at, mut filled, mut len) = (0, 0, 0);
    loop {
        let step = inflate
            .step(&blob[at..], &mut out[filled..], at_borders)
            .unwrap_or_else(|_| panic!("damaged at {at}"));
        at += step.consumed;
        filled += step.produced;
        len += step.produced as u64;
        if filled == out.len() {
            filled = 0;
        }
        if step.stop == inflate::Stop::End {
            return len;
        }
    }
}

fn index(
    blob: &[u8],
    limits: SpanLimits,
    piece: usize,
    decoded: &mut Vec<u8>,
) -> Result<SeekTable, DecodeError> {
    let mut indexer = SpanIndexer::new(Compression::Gzip, limits);
    for piece in blob.chunks(piece) {
        let piece = Bytes::copy_from_slice(piece);
        indexer.push(&piece, &mut |bytes| decoded.extend_from_slice(&bytes))?;
    }
    indexer.finish(&mut |bytes| decoded.extend_from_slice(&bytes))
}

/// Members one behind the other, and zeros behind the last.
fn gunzip_zlib(blob: &[u8]) -> (Verdict, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut out = vec![0; 64 << 10];
    let mut at = 0;
    while at == 0 || blob.get(at).is_some_and(|&byte| byte != 0) {
        let mut inflate = Inflate::new(Wrapper::Gzip);
        loop {
            let Ok(step) = inflate.step(&blob[at..], &mut out, false) else {
                return (Verdict::Corrupt, bytes);
            };
            at += step.consumed;
            bytes.extend_from_slice(&out[..step.produced]);
            match step.stop {
                inflate::Stop::End => break,
                _ if step.consumed == 0 && step.produced == 0 => {
                    return (Verdict::Truncated, bytes);
                }
                _ => {}
            }
        }
    }
    match blob[at..].iter().all(|&byte| byte == 0) {
        true => (Verdict::Complete(blob.len()), bytes),
        false => (Verdict::Corrupt, bytes),
    }
}

fn check_spans(table: &SeekTable, blob: &[u8], tar: &[u8]) {
    let checked = table.check_spans(blob.len() as u64, Some(table.windows.len()));
    assert_eq!(checked, Ok(()));
    let mut at = 0;
    for (index, span) in table.spans.iter().enumerate() {
        let window = match span.kind {
            SpanKind::GzipBlock { window, .. } => Some(&table.windows[window as usize]),
            _ => None,
        };
        assert!(window.is_none_or(clip_archive::Window::is_well_formed));
        let mut decoder = SpanDecoder::new(span, window);
        let mut decoded = Vec::new();
        let bytes = &blob[span.blob_offset as usize..][..span.blob_len as usize];
        let outcome = decoder.push(bytes, &mut |bytes| decoded.extend_from_slice(bytes));
        assert_eq!(outcome, Ok(()), "span {index} {span:?}");
        let expected = &tar[at..at + span.tar_len as usize];
        assert!(decoded == expected, "span {index} {span:?} differs");
        assert_eq!(span.digest, SpanDigest::of(expected), "span {index}");
        at += expected.len();
    }
}
