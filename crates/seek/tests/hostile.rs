//! Hostile layers: bombs and streams without end take time by their length, and no memory.

use bytes::Bytes;
use clip_seek::{Compression, DecodeError, SpanIndexer, SpanLimits};
use flate2::{Compression as Level, write::GzEncoder};
use std::io::Write;

#[path = "../../archive/tests/hostile/peak.rs"]
mod peak;

const MIB: usize = 1 << 20;

/// Pushes `head` once and `repeated` `times` times; the decoded length, and the most memory taken meanwhile.
fn push(head: &[u8], repeated: &[u8], times: usize) -> (Result<u64, DecodeError>, usize) {
    let mut indexer = SpanIndexer::new(Compression::sniff(head), SpanLimits::default());
    let mut decoded = 0;
    let mut count = |bytes: Bytes| decoded += bytes.len() as u64;
    let (head, repeated) = (
        Bytes::copy_from_slice(head),
        Bytes::copy_from_slice(repeated),
    );
    let (result, peak) = peak::of(|| {
        indexer.push(&head, &mut count)?;
        (0..times).try_for_each(|_| indexer.push(&repeated, &mut count))?;
        // Some have no end; what was decoded of them counts.
        let _ = indexer.finish(&mut count);
        Ok(())
    });
    (result.map(|()| decoded), peak)
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::best());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_gzip_bomb_is_decoded_in_flat_memory() {
    let bomb = gzip(&vec![0; 64 * MIB]);
    assert!(bomb.len() < MIB / 10);
    let (decoded, peak) = push(&bomb, &[], 0);
    assert_eq!(decoded, Ok(64 * MIB as u64));
    assert!(peak < 2 * MIB, "{peak} bytes");
}

#[test]
fn a_zstd_bomb_is_decoded_in_flat_memory() {
    // A frame header with a window of 128 KiB, then blocks of 128 KiB of one byte (RFC 8878, section 3.1.1.2.2).
    let head = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];
    let block = (1u32 << 1 | (128 << 10) << 3).to_le_bytes();
    let (decoded, peak) = push(&head, &[block[0], block[1], block[2], b'x'], 1000);
    assert_eq!(decoded, Ok(1000 * (128 << 10)));
    assert!(peak < 2 * MIB, "{peak} bytes");
}

#[test]
fn a_gzip_header_without_end_takes_no_memory() {
    let header_with_name = [0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 255];
    let (decoded, peak) = push(&header_with_name, &[b'n'; 4096], 4096);
    assert_eq!(decoded, Ok(0));
    assert!(peak < 2 * MIB, "{peak} bytes");
}

#[test]
fn deflate_blocks_without_output_take_no_memory_behind_a_seek_point() {
    // Enough noise to make the next border a seek point; then stored blocks of no bytes, which never tell what of the
    // window is used.
    let mut state = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(2 * MIB)
    .collect();
    let mut head = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    for stored in noise.chunks(1 << 15) {
        let len = stored.len() as u16;
        head.push(0);
        head.extend_from_slice(&len.to_le_bytes());
        head.extend_from_slice(&(!len).to_le_bytes());
        head.extend_from_slice(stored);
    }
    let empty_blocks = [0, 0, 0, 0xff, 0xff].repeat(1000);
    let (decoded, peak) = push(&head, &empty_blocks, 4000);
    assert_eq!(decoded, Ok(2 * MIB as u64));
    assert!(
        peak < 3 * MIB,
        "{peak} bytes for {} of nothing",
        empty_blocks.len() * 4000
    );
}

#[test]
fn members_without_content_take_no_memory() {
    let nothing = gzip(b"").repeat(100);
    let (decoded, peak) = push(&nothing, &nothing, 1000);
    assert_eq!(decoded, Ok(0));
    assert!(peak < 2 * MIB, "{peak} bytes");
}
