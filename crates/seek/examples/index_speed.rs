//! How fast a gzip layer is indexed, against plain decoding of the same bytes with zlib-rs, and what
//! its seek points cost: `cargo run --release -p clip-seek --example index_speed -- BLOB...`
//!
//! Times are of the processor, the best of several rounds; compare them with one another, not with
//! those of another machine.

use bytes::Bytes;
use clip_archive::SeekTable;
use clip_seek::{
    Compression, SpanIndexer, SpanLimits,
    differential::{gunzip_ours, gunzip_zlib_rs},
};
use std::{error::Error, fs, hint::black_box};

/// As the archive is packed.
const ZSTD_LEVEL: i32 = 12;
const ROUNDS: usize = 5;
/// As pieces come from a registry.
const PIECE_LEN: usize = 64 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    for path in std::env::args().skip(1) {
        let blob = Bytes::from(fs::read(&path)?);
        let table = index(&blob)?;
        report_size(&path, &blob, &table)?;
        report_speed(&blob, &table)?;
    }
    Ok(())
}

fn report_size(path: &str, blob: &[u8], table: &SeekTable) -> Result<(), Box<dyn Error>> {
    let windows = clip_archive::columns::encode_windows(&table.windows);
    let spans = clip_archive::columns::encode_spans(&table.spans);
    let packed = [
        zstd::bulk::compress(&windows, ZSTD_LEVEL)?.len(),
        zstd::bulk::compress(&spans, ZSTD_LEVEL)?.len(),
    ];
    let percent = |bytes: usize| bytes as f64 * 100.0 / blob.len() as f64;
    let largest = |of: fn(&clip_archive::Span) -> u64| table.spans.iter().map(of).max();
    println!("{path}: {} → {} bytes", blob.len(), table.tar_size);
    println!(
        "  {} spans, at most {} bytes decoded, {} compressed",
        table.spans.len(),
        largest(|span| span.tar_len).unwrap_or(0),
        largest(|span| span.blob_len).unwrap_or(0),
    );
    let runs: usize = table.windows.iter().map(|window| window.runs.len()).sum();
    let bytes: usize = table.windows.iter().map(|window| window.bytes.len()).sum();
    println!(
        "  windows {} bytes packed ({:.3} %; {runs} runs, {bytes} bytes), spans {} ({:.3} %)",
        packed[0],
        percent(packed[0]),
        packed[1],
        percent(packed[1]),
    );
    Ok(())
}

fn report_speed(blob: &Bytes, table: &SeekTable) -> Result<(), Box<dyn Error>> {
    let mut best = [f64::MAX; 4];
    for _ in 0..ROUNDS {
        let times = [
            timed(|| gunzip_zlib_rs(blob, false))?,
            timed(|| gunzip_zlib_rs(blob, true))?,
            timed(|| gunzip_ours(blob))?,
            timed(|| index(blob).is_ok())?,
        ];
        for (best, time) in best.iter_mut().zip(times) {
            *best = best.min(time);
        }
    }
    let names = [
        "zlib-rs, checksum",
        "zlib-rs, checksum, stopping at borders",
        "ours, references, stopping at borders",
        "ours, whole: checksum, seek points, span digests",
    ];
    for (name, seconds) in names.iter().zip(best) {
        let speed = table.tar_size as f64 / 1e6 / seconds;
        println!(
            "  {seconds:7.3} s {speed:6.0} MB/s {:5.2} × zlib-rs  {name}",
            seconds / best[0]
        );
    }
    Ok(())
}

fn index(blob: &Bytes) -> Result<SeekTable, Box<dyn Error>> {
    let mut indexer = SpanIndexer::new(Compression::Gzip, SpanLimits::default());
    let mut read = |decoded| drop(black_box(decoded));
    for start in (0..blob.len()).step_by(PIECE_LEN) {
        let piece = blob.slice(start..blob.len().min(start + PIECE_LEN));
        indexer.push(&piece, &mut read)?;
    }
    Ok(indexer.finish(&mut read)?)
}

/// Seconds on a processor.
fn timed<T>(work: impl FnOnce() -> T) -> Result<f64, Box<dyn Error>> {
    let before = processor_seconds()?;
    black_box(work());
    Ok(processor_seconds()? - before)
}

/// Of this thread (proc(5), `/proc/pid/schedstat`).
fn processor_seconds() -> Result<f64, Box<dyn Error>> {
    let stat = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: f64 = stat.split(' ').next().unwrap_or_default().parse()?;
    Ok(nanoseconds / 1e9)
}
