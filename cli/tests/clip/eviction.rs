//! S8: a bounded cache, shared by processes that all evict: never a hole as data, whoever is killed.

use crate::scene::{PATIENCE, Scene, Server, publish};
use clip_testkit::{
    guard::wait_until,
    layout::{self, Flaw, Layer},
};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::{
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

const MIB: u64 = 1 << 20;
const BLOB: u64 = 8 * MIB;

fn blob() -> Vec<u8> {
    layout::noise(BLOB as usize, 3)
}

/// A registry with an image that has one file of 8 MiB, in spans of 64 KiB, and its archive.
fn published(scene: &Scene) -> crate::scene::Published {
    let layer = Layer::new().file("blob", blob());
    let layout = layout::write(&scene.dir("layout"), vec![layer], Flaw::None).unwrap();
    let published = publish(&layout);
    let reference = &published.reference;
    scene.ok(["index", "--max-span", "65536", reference, "image.clip"]);
    published
}

/// With FUSE, so that a reader can make the kernel forget what it has read: of EROFS' devices it cannot.
fn mount(scene: &Scene, max: &str, dir: &str) -> Server {
    scene.mount(["--engine", "fuse", "--cache-max", max, "image.clip", dir])
}

/// The one layer that is cached.
fn layer(scene: &Scene) -> PathBuf {
    let mut layers = std::fs::read_dir(scene.state().join("layers")).unwrap();
    layers.next().unwrap().unwrap().path()
}

fn on_disk(layer: &Path) -> u64 {
    512 * layer.join("data").metadata().unwrap().blocks()
}

/// Reads random ranges, of the server and not of the kernel's page cache, until `enough`. Wrong bytes end the test; the
/// number of reads that failed is returned.
fn read_randomly(server: &Path, expected: &[u8], seed: u64, enough: impl Fn(u64) -> bool) -> u64 {
    let mut random = layout::noise(1 << 16, seed)
        .chunks_exact(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
        .collect::<Vec<_>>()
        .into_iter()
        .cycle();
    let (mut reads, mut failed) = (0, 0);
    while !enough(reads) {
        reads += 1;
        let offset = random.next().unwrap() % BLOB;
        let len = (1 + random.next().unwrap() % (200 << 10)).min(BLOB - offset) as usize;
        let mut bytes = vec![0; len];
        let read = File::open(server.join("blob")).and_then(|file| {
            let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
            file.read_exact_at(&mut bytes, offset)
        });
        match read {
            Ok(()) => assert!(
                bytes == expected[offset as usize..][..len],
                "wrong bytes at {offset}, {len} long"
            ),
            Err(_) => failed += 1,
        }
    }
    failed
}

/// docs/semantics.md: "The cache is bounded, and a piece that is taken away is never read as a hole".
#[test]
fn s8_two_processes_under_eviction_pressure_never_see_a_hole_as_data() {
    let scene = Scene::new();
    let published = published(&scene);
    let expected = blob();
    scene.dir("a");
    scene.dir("b");
    // A quarter of what is read fits.
    let [a, b] = ["a", "b"].map(|dir| mount(&scene, "2Mi", dir));
    let layer = layer(&scene);
    published.proxy.forget();
    std::thread::scope(|scope| {
        for (seed, server) in [&a, &b, &a, &b].into_iter().enumerate() {
            let expected = &expected;
            scope.spawn(move || {
                let failed = read_randomly(server.path(), expected, seed as u64, |n| n == 400);
                assert_eq!(failed, 0);
            });
        }
    });
    let spans = BLOB / 65536;
    let fetches = published.proxy.ranges().len() as u64;
    assert!(
        fetches > 4 * spans,
        "{fetches} fetches: nothing was evicted"
    );
    wait_until("the budget is kept", PATIENCE, || {
        on_disk(&layer) <= 2 * MIB
    })
    .unwrap();
}

#[test]
fn s8_an_evicting_process_that_is_killed_blocks_and_spoils_nothing() {
    let scene = Scene::new();
    let _published = published(&scene);
    let expected = blob();
    scene.dir("a");
    scene.dir("b");
    let survivor = mount(&scene, "2Mi", "b");
    let layer = layer(&scene);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = [1, 2]
            .map(|seed| {
                let (survivor, expected, over) = (&survivor, &expected, &over);
                scope.spawn(move || {
                    read_randomly(survivor.path(), expected, seed, |_| {
                        over.load(Ordering::Relaxed)
                    })
                })
            })
            .into();
        for round in 0..6 {
            // Its own budget is tighter, so it evicts most of the time.
            let mut killed = mount(&scene, "1Mi", "a");
            let begun = Instant::now();
            let life = Duration::from_millis(100 + 70 * round);
            read_randomly(killed.path(), &expected, 10 + round, |_| {
                begun.elapsed() > life
            });
            killed.kill();
        }
        over.store(true, Ordering::Relaxed);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 0, "the survivor's reads succeed");
        }
    });
    // What the killed ones left half done is ended, and everything can be kept again.
    drop(survivor);
    let server = mount(&scene, "100Mi", "b");
    wait_until("all of it is kept", PATIENCE, || {
        let file = File::open(server.path().join("blob")).unwrap();
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        let mut bytes = vec![0; BLOB as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == expected);
        on_disk(&layer) >= BLOB
    })
    .unwrap();
    let said = scene.ok(["cache", "verify", "image.clip"]);
    assert!(said.out.contains("1 layer"), "{said:?}");
}

#[test]
fn s8_an_evictor_that_hangs_holds_up_no_read() {
    let scene = Scene::new();
    let _published = published(&scene);
    scene.dir("mnt");
    let server = mount(&scene, "1Mi", "mnt");
    // As a stopped process would.
    let hung = File::open(scene.state().join("layers")).unwrap();
    hung.lock().unwrap();
    assert!(std::fs::read(server.path().join("blob")).unwrap() == blob());
    let layer = layer(&scene);
    assert!(on_disk(&layer) > MIB, "nobody may evict");
    drop(hung);
    wait_until("the budget is kept", PATIENCE, || on_disk(&layer) <= MIB).unwrap();
}
