//! Hostile tar streams: what a header claims costs no memory, and nothing makes the walk slower than linear.

use clip_index::{TarError, TarWalker};
use std::time::{Duration, Instant};
use tar::{EntryType, Header};

#[path = "../../archive/tests/hostile/peak.rs"]
mod peak;

const MIB: usize = 1 << 20;

fn header(kind: u8, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_path("name").unwrap();
    header.set_entry_type(EntryType::new(kind));
    header.set_size(size);
    header.set_cksum();
    header
}

/// Pushes `bytes` `times` times; the first error, and the most memory taken meanwhile.
fn push(bytes: &[u8], times: usize) -> (Option<TarError>, usize) {
    let mut walker = TarWalker::new();
    let started = Instant::now();
    let result = peak::of(|| (0..times).find_map(|_| walker.push(bytes).err()));
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "{:?}",
        started.elapsed()
    );
    result
}

#[test]
fn names_and_records_that_claim_gigabytes_are_refused_at_their_header() {
    for kind in [b'x', b'g', b'L', b'K'] {
        for size in [(1 << 20) + 1, 1 << 32, 0o77777777777] {
            let (error, peak) = push(header(kind, size).as_bytes(), 1);
            let error = error.expect("refused").to_string();
            assert!(error.contains("larger than 1 MiB"), "{error}");
            assert!(peak < MIB, "{peak} bytes");
        }
    }
}

#[test]
fn headers_about_a_member_that_never_comes_take_flat_memory_and_linear_time() {
    let record = b"30 SCHILY.xattr.user.a=value12\n";
    let mut member = header(b'x', record.len() as u64).as_bytes().to_vec();
    member.extend_from_slice(record);
    member.resize(1024, 0);
    let mut name = header(b'L', 100).as_bytes().to_vec();
    name.extend_from_slice(&[b'n'; 100]);
    name.resize(1024, 0);
    for endless in [member, name] {
        let (_, peak) = push(&endless, 50_000);
        assert!(peak < MIB, "{peak} bytes");
    }
}

#[test]
fn files_that_claim_more_than_the_stream_holds_are_cut_short_not_waited_for() {
    let mut walker = TarWalker::new();
    let mut huge = header(b'0', 0);
    // Base-256, the largest positive number.
    huge.as_old_mut().size = [0xff; 12];
    huge.as_old_mut().size[0] = 0x80;
    huge.set_cksum();
    let result = walker
        .push(huge.as_bytes())
        .and_then(|()| walker.finish().map(drop));
    assert!(result.is_err());
    let mut walker = TarWalker::new();
    walker.push(header(b'0', 0o77777777777).as_bytes()).unwrap();
    assert!(matches!(
        walker.finish(),
        Err(TarError::Truncated { at: 512 })
    ));
}

#[test]
fn a_sparse_map_of_millions_of_pieces_is_refused() {
    // Old GNU: each block holds 21 pieces and says that more follow.
    let mut file = header(b'S', 512);
    file.as_gnu_mut().unwrap().set_is_extended(true);
    file.set_cksum();
    let mut more = [b'0'; 512];
    more[504] = 1;
    for piece in more[..504].chunks_exact_mut(12) {
        piece.copy_from_slice(b"00000000000\0");
    }
    let mut walker = TarWalker::new();
    walker.push(file.as_bytes()).unwrap();
    let (error, peak) = peak::of(|| (0..1_000_000).find_map(|_| walker.push(&more).err()));
    let error = error.expect("refused").to_string();
    assert!(error.contains("sparse map is longer than 1 MiB"), "{error}");
    assert!(peak < 4 * MIB, "{peak} bytes");
}

#[test]
fn a_million_entries_cost_what_they_say() {
    const ENTRIES: usize = 100_000;
    let (error, peak) = push(header(b'0', 0).as_bytes(), ENTRIES);
    assert!(error.is_none());
    println!("bytes an entry while indexing: {}", peak / ENTRIES);
    assert!(peak / ENTRIES < 500, "{} bytes an entry", peak / ENTRIES);
}
