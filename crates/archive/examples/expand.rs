//! How long archives take to become trees, and what comes out: for each archive a line with the digest of its EROFS
//! image, by which two versions of this code can be compared.
//!
//! `cargo run --release -p clip-archive --example expand -- ARCHIVE... [--rounds N]`

use clip_archive::{Archive, Digest, erofs};
use std::time::{Duration, Instant};

fn main() {
    let mut rounds = 1;
    let mut archives = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => {
                let number = arguments.next().and_then(|number| number.parse().ok());
                rounds = number.expect("a number of rounds");
            }
            _ => archives.push(argument),
        }
    }
    for path in archives {
        let bytes = std::fs::read(&path).expect("an archive");
        let mut results: Vec<_> = (0..rounds.max(1)).map(|_| expand(&bytes)).collect();
        results.sort_by_key(|(merged, written, _)| *merged + *written);
        let (merged, written, image) = &results[results.len() / 2];
        println!("{image} {path}: merged in {merged:.1?}, written in {written:.1?}");
    }
}

/// The time until the layers are merged, the time until the image is written, and the image's digest.
fn expand(bytes: &[u8]) -> (Duration, Duration, String) {
    let start = Instant::now();
    let merged = Archive::open(bytes).and_then(|archive| archive.merge());
    let tree = match merged {
        Ok(tree) => tree,
        Err(error) => return (start.elapsed(), Duration::ZERO, error.to_string()),
    };
    let (merged, start) = (start.elapsed(), Instant::now());
    let image = erofs::write(&tree);
    let written = start.elapsed();
    let image = image.map_or_else(
        |error| error.to_string(),
        |image| Digest::of(&image).to_string(),
    );
    (merged, written, image)
}
