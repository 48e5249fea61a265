//! S7: eight readers through a real mount while the registry does everything wrong that it can, by turns and at random.
//!
//! `CLIP_SOAK_SECONDS` says how long: a minute by default, which `make test` spends with each engine; 1200 in
//! `make nightly`.
//!
//! Tests begin in the order of their names, and this one takes its time: it must not be the last.

use crate::scene::{PATIENCE, Scene, publish};
use clip_testkit::{
    guard::wait_until,
    layout::{self, Flaw, Layer},
    memory::MemoryGroup,
    proxy::{Mood, Rule},
};
use std::{
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

const READERS: u64 = 8;
const FILES: u64 = 60;
/// Spans of 64 KiB: every file has several, and each layer hundreds.
const FILE_LEN: usize = 700_000;
const IMAGE_LEN: u64 = FILES * FILE_LEN as u64;
/// One set of faults.
const SPELL: Duration = Duration::from_millis(700);
/// After so many spells the cache is taken away, so that there is something to fetch.
const SPELLS_PER_CACHE: u64 = 5;
/// A quarter of the image, where little room is given.
const CACHE_MAX: u64 = 10 << 20;
const MEMORY_MAX: u64 = 128 << 20;
/// Of the server, beside the page cache; it grows while layers and connections are opened, not with the bytes read.
const GROWTH_MAX_KIB: u64 = 64 << 10;

fn content(file: u64) -> Vec<u8> {
    layout::noise(FILE_LEN, file + 1)
}

#[test]
fn s7_eight_readers_under_random_faults_never_see_a_wrong_byte() {
    let seconds = std::env::var("CLIP_SOAK_SECONDS");
    let seconds = seconds.map_or(60, |text| text.parse().unwrap());
    let scene = Scene::new();
    let layers = (0..3).map(|layer| {
        let files = (0..FILES).filter(|file| file % 3 == layer);
        files.fold(Layer::new(), |layer, file| {
            layer.file(&format!("file-{file}"), content(file))
        })
    });
    let layout = layout::write(&scene.dir("layout"), layers.collect(), Flaw::None).unwrap();
    let published = publish(&layout);
    let reference = &published.reference;
    scene.ok(["index", "--max-span", "65536", reference, "image.clip"]);
    scene.dir("mnt");
    let end = Instant::now() + Duration::from_secs(seconds);
    let (done, reads, errors) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mut dice = fastrand::Rng::with_seed(seconds);
    // By turns with all the memory and cache there is, and with little of either.
    for is_short in [false, true].into_iter().cycle() {
        if Instant::now() > end {
            break;
        }
        // Nothing of an earlier server is left: every byte is fetched again.
        let _ = std::fs::remove_dir_all(scene.state().join("layers"));
        let group = MemoryGroup::new(scene.dir.path().file_name().unwrap()).unwrap();
        if is_short {
            group.limit(MEMORY_MAX).unwrap();
        }
        let cache_max = if is_short { CACHE_MAX } else { u64::MAX };
        let server = scene.mount([
            "--read-timeout=2",
            &format!("--cache-max={cache_max}"),
            "image.clip",
            "mnt",
        ]);
        group.add(server.pid()).unwrap();
        let before = resident_kib(server.pid());
        done.store(false, Ordering::SeqCst);
        std::thread::scope(|scope| {
            for reader in 0..READERS {
                let (dir, done, reads, errors) = (server.path(), &done, &reads, &errors);
                let seed = dice.u64(..) ^ reader;
                scope.spawn(move || {
                    let mut dice = fastrand::Rng::with_seed(seed);
                    while !done.load(Ordering::SeqCst) {
                        match read_somewhere(dir, &mut dice) {
                            Ok(()) => reads.fetch_add(1, Ordering::SeqCst),
                            Err(()) => errors.fetch_add(1, Ordering::SeqCst),
                        };
                    }
                });
            }
            for _ in 0..SPELLS_PER_CACHE {
                published.proxy.set_rules(faults(&mut dice));
                std::thread::sleep(SPELL);
            }
            published.proxy.set(Mood::Relay);
            done.store(true, Ordering::SeqCst);
        });
        // It mends by itself, and then every byte is right.
        for file in 0..FILES {
            let path = server.path().join(format!("file-{file}"));
            wait_until("recovery", PATIENCE, || std::fs::read(&path).is_ok()).unwrap();
            assert!(
                std::fs::read(&path).unwrap() == content(file),
                "file-{file}"
            );
        }
        let grown = resident_kib(server.pid()).saturating_sub(before);
        assert!(grown < GROWTH_MAX_KIB, "the server grew by {grown} KiB");
        match is_short {
            true => wait_until("eviction", PATIENCE, || on_disk(&scene) <= CACHE_MAX).unwrap(),
            false => assert!(on_disk(&scene) >= IMAGE_LEN, "{} bytes", on_disk(&scene)),
        }
    }
    let (reads, errors) = (reads.into_inner(), errors.into_inner());
    println!("{reads} reads were right, {errors} failed in time");
    assert!(reads > 100, "{reads} reads, {errors} errors");
}

/// Reads a piece of some file: right bytes or EIO, within the read timeout and what the kernel adds.
fn read_somewhere(dir: &Path, dice: &mut fastrand::Rng) -> Result<(), ()> {
    let file = dice.u64(..FILES);
    let path = dir.join(format!("file-{file}"));
    let at = dice.usize(..FILE_LEN);
    let mut found = vec![0; dice.usize(1..200_000).min(FILE_LEN - at)];
    let started = Instant::now();
    let read = std::fs::File::open(path)
        .unwrap()
        .read_exact_at(&mut found, at as u64);
    // Read-ahead and the page itself may both wait for their time.
    assert!(
        started.elapsed() < Duration::from_secs(30),
        "{:?}",
        started.elapsed()
    );
    match read {
        Ok(()) => {
            assert!(
                found == content(file)[at..at + found.len()],
                "file-{file} at {at}"
            );
            Ok(())
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(nix::libc::EIO), "{error}");
            Err(())
        }
    }
}

/// Some faults at a time, each for a share of the requests for blobs; sometimes an outage.
fn faults(dice: &mut fastrand::Rng) -> Vec<Rule> {
    let answer = |status, retry_after| Mood::Answer {
        status,
        retry_after,
    };
    let kinds = [
        Mood::Slow(Duration::from_millis(100)),
        Mood::Bandwidth(8 << 20),
        Mood::Drip {
            piece: 8192,
            pause: Duration::from_millis(2),
        },
        Mood::Silent,
        Mood::SilentAfter(30_000),
        Mood::HangUp,
        Mood::ResetAfter(50_000),
        answer(503, None),
        answer(429, Some(1)),
        answer(401, None),
        answer(403, None),
        Mood::Corrupt,
        Mood::OtherRange(11),
        Mood::LyingRange(11),
        Mood::IgnoreRange,
        Mood::Redirect { good_for: 3 },
    ];
    if dice.f64() < 0.1 {
        return vec![Rule::always(Mood::HangUp)];
    }
    (0..dice.usize(1..4))
        .map(|_| {
            let kind = kinds[dice.usize(..kinds.len())];
            Rule::blobs(kind).share(0.05 + 0.4 * dice.f64(), dice.u64(..))
        })
        .collect()
}

/// What the cache has of all layers.
fn on_disk(scene: &Scene) -> u64 {
    let layers = std::fs::read_dir(scene.state().join("layers")).unwrap();
    let data = layers.map(|layer| layer.unwrap().path().join("data"));
    data.map(|data| 512 * data.metadata().unwrap().blocks())
        .sum()
}

/// Memory of a process in KiB that is not the page cache's.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.unwrap().parse().unwrap()
}
