//! S7: cache hit, miss, partial read, cache error, fetch error and concurrent reads each behave as promised.

use crate::scene::{PATIENCE, Published, Scene, publish};
use clip_testkit::{
    guard::{Mounted, wait_until},
    images,
    layout::{self, Flaw, Layer},
    proxy::Mood,
};
use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    mount::MsFlags,
};
use std::{
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

const MIB: u64 = 1 << 20;

/// Content that does not compress: a byte of the file is a byte of the blob.
fn blob() -> Vec<u8> {
    layout::noise(MIB as usize, 7)
}

/// An image with one file of 1 MiB in spans of 64 KiB, and the archive `image.clip`.
fn published(scene: &Scene) -> Published {
    let layer = Layer::new().file("blob", blob());
    let layout = layout::write(&scene.dir("layout"), vec![layer], Flaw::None).unwrap();
    let published = publish(&layout);
    scene.ok([
        "index",
        "--max-span",
        "65536",
        &published.reference,
        "image.clip",
    ]);
    published.proxy.forget();
    published
}

#[test]
fn s7_the_last_file_of_a_long_layer_costs_less_than_2_mib() {
    let scene = Scene::new();
    let published = publish(&images::image("big-gzip").unwrap());
    scene.ok(["index", &published.reference, "big.clip"]);
    published.proxy.forget();
    let said = scene.ok(["cat", "--verbose", "big.clip", "/last.txt"]);
    assert_eq!(said.out, "the last file of a long layer\n");
    let (_, rest) = said.err.split_once(" (").unwrap();
    let fetched: u64 = rest.split_once(" bytes)").unwrap().0.parse().unwrap();
    assert!(0 < fetched && fetched < 2 * MIB, "{}", said.err);
    assert_eq!(published.proxy.ranges().len(), 1);
}

#[test]
fn s7_a_hit_asks_nobody_also_in_another_process() {
    let scene = Scene::new();
    let published = published(&scene);
    assert!(scene.ok(["cat", "image.clip", "/blob"]).raw == blob());
    assert!(
        !published.proxy.ranges().is_empty(),
        "the first time is a miss"
    );
    published.proxy.set(Mood::HangUp);
    published.proxy.forget();
    assert!(scene.ok(["cat", "image.clip", "/blob"]).raw == blob());
    assert!(published.proxy.asked().is_empty(), "the second time is not");
}

#[test]
fn s7_a_partial_read_fetches_one_span() {
    let scene = Scene::new();
    let published = published(&scene);
    scene.dir("mnt");
    let server = scene.mount(["image.clip", "mnt"]);
    let file = std::fs::File::open(server.path().join("blob")).unwrap();
    // Or the kernel reads ahead.
    let random = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_RANDOM;
    nix::fcntl::posix_fadvise(&file, 0, 0, random).unwrap();
    let mut piece = [0; 100];
    file.read_exact_at(&mut piece, 500_000).unwrap();
    assert_eq!(piece, blob()[500_000..500_100]);
    let ranges = published.proxy.ranges();
    assert_eq!(ranges.len(), 1, "{ranges:?}");
    file.read_exact_at(&mut piece, MIB - 100).unwrap();
    assert_eq!(piece, blob()[(MIB - 100) as usize..]);
    assert_eq!(
        file.read_at(&mut piece, MIB).unwrap(),
        0,
        "the end is the end"
    );
}

/// docs/semantics.md: "The first reader finds its registry ready".
#[test]
fn s7_the_first_reader_finds_its_registry_ready() {
    let scene = Scene::new();
    let published = published(&scene);
    scene.dir("mnt");
    published.proxy.forget();
    published.proxy.set(Mood::Tokens {
        good_for: 1000,
        status: 401,
    });
    let server = scene.mount(["image.clip", "mnt"]);
    let with_token = || {
        let mut greetings = published.proxy.greetings().into_iter();
        greetings.rfind(|asked| asked.authorization.is_some())
    };
    wait_until("a greeting", PATIENCE, || with_token().is_some()).unwrap();
    // Its answer is on the way.
    std::thread::sleep(Duration::from_millis(500));
    let greeting = with_token().unwrap();
    published.proxy.forget();
    std::fs::read(server.path().join("blob")).unwrap();
    let asked = published.proxy.asked();
    assert_eq!(asked, published.proxy.ranges(), "no token, no refusal");
    assert_eq!(asked[0].connection, greeting.connection);
    drop(server);

    // Something is here: whoever reads it needs no registry.
    published.proxy.forget();
    let server = scene.mount(["image.clip", "mnt"]);
    std::fs::read(server.path().join("blob")).unwrap();
    assert_eq!(published.proxy.asked(), []);
}

#[test]
fn s7_the_beginning_of_a_library_brings_the_rest_of_it() {
    const LIBRARIES: u64 = 20;
    const LEN: u64 = 300_000;
    let scene = Scene::new();
    let layer = (0..LIBRARIES).fold(Layer::new(), |layer, number| {
        layer.file(&format!("{number}.so"), layout::noise(LEN as usize, number))
    });
    let layout = layout::write(&scene.dir("layout"), vec![layer], Flaw::None).unwrap();
    let published = publish(&layout);
    let reference = &published.reference;
    scene.ok(["index", "--max-span", "65536", reference, "image.clip"]);
    scene.dir("mnt");
    published.proxy.forget();
    let server = scene.mount(["image.clip", "mnt"]);
    for number in 0..LIBRARIES {
        let file = std::fs::File::open(server.path().join(format!("{number}.so"))).unwrap();
        // Or the kernel reads ahead.
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).unwrap();
        file.read_exact_at(&mut [0; 100], 0).unwrap();
    }
    // The beginnings alone are a quarter of it. Where files lie is found out beside the first of them.
    wait_until("most of the libraries to be there", PATIENCE, || {
        published.proxy.body_bytes() > LIBRARIES * LEN / 4 * 3
    })
    .unwrap();
}

/// docs/semantics.md: "Many readers of one piece cause one fetch".
#[test]
fn s7_many_readers_of_one_span_cause_one_fetch() {
    let scene = Scene::new();
    let layer = Layer::new().file("small", layout::noise(4000, 3));
    let layout = layout::write(&scene.dir("layout"), vec![layer], Flaw::None).unwrap();
    let published = publish(&layout);
    scene.ok(["index", &published.reference, "image.clip"]);
    scene.dir("mnt");
    published.proxy.forget();
    published.proxy.set(Mood::Slow(Duration::from_millis(500)));
    let server = scene.mount(["image.clip", "mnt"]);
    let path = server.path().join("small");
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert!(std::fs::read(&path).unwrap() == layout::noise(4000, 3)));
        }
    });
    assert_eq!(published.proxy.ranges().len(), 1);
}

/// docs/semantics.md: "A read waits at most the read timeout".
#[test]
fn s7_a_dead_registry_means_eio_in_time_and_a_log_line_and_it_mends_by_itself() {
    let scene = Scene::new();
    let published = published(&scene);
    scene.dir("mnt");
    let server = scene.mount(["--read-timeout", "3", "image.clip", "mnt"]);
    let path = server.path().join("blob");
    for (mood, cause) in [
        (Mood::HangUp, "cannot be reached"),
        (Mood::Silent, "does not answer"),
    ] {
        published.proxy.set(mood);
        let started = Instant::now();
        let error = std::fs::read(&path).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EIO), "{mood:?}");
        // The kernel asks again when it has failed, with its EROFS more than once; these wait for a moment each.
        let waited = started.elapsed();
        assert!(waited < Duration::from_secs(8), "{waited:?}");
        // Of another cause a read tells that does not follow the first one at once.
        wait_until(cause, PATIENCE, || {
            std::fs::read(&path).is_err() && server.log().contains(cause)
        })
        .unwrap();
        let log = server.log();
        assert!(
            log.contains("team/app") && log.contains("/blob"),
            "image and file: {log}"
        );
        // Names, attributes and what is cached are answered all the same.
        assert_eq!(path.metadata().unwrap().len(), MIB);
    }
    published.proxy.set(Mood::Relay);
    wait_until("recovery", PATIENCE, || std::fs::read(&path).is_ok()).unwrap();
    assert!(std::fs::read(&path).unwrap() == blob());
}

#[test]
fn s7_a_read_waits_for_a_registry_that_comes_back() {
    let scene = Scene::new();
    let published = published(&scene);
    published.proxy.set(Mood::HangUp);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| scene.run(["cat", "image.clip", "/blob"]));
        // Longer than the registry client tries by itself.
        std::thread::sleep(Duration::from_secs(3));
        published.proxy.set(Mood::Relay);
        let said = reader.join().unwrap();
        assert!(said.code == 0 && said.raw == blob(), "{}", said.err);
        assert!(said.err.contains("trying again"), "{}", said.err);
    });
}

/// docs/semantics.md: "Bytes come from the image's original layers".
#[test]
fn s7_wrong_bytes_from_the_registry_are_refused_and_not_kept() {
    let scene = Scene::new();
    let published = published(&scene);
    published.proxy.set(Mood::Corrupt);
    let said = scene.run(["cat", "image.clip", "/blob"]);
    assert_eq!(said.code, 1, "{}", said.err);
    assert!(
        blob().starts_with(&said.raw),
        "what came out before is right"
    );
    published.proxy.set(Mood::Relay);
    assert!(scene.ok(["cat", "image.clip", "/blob"]).raw == blob());
}

/// docs/semantics.md: "After a restart of the machine cached pieces are checked again".
#[test]
fn s7_a_damaged_cache_is_noticed_when_it_is_opened() {
    let scene = Scene::new();
    let _published = published(&scene);
    let layer = |scene: &Scene| {
        let mut layers = std::fs::read_dir(scene.state().join("layers")).unwrap();
        layers.next().unwrap().unwrap().path()
    };
    let damages: [fn(&Path); 5] = [
        |layer| std::fs::remove_file(layer.join("data")).unwrap(),
        |layer| std::fs::write(layer.join("data"), "cut").unwrap(),
        |layer| std::fs::write(layer.join("states"), "garbage").unwrap(),
        |layer| std::fs::remove_file(layer.join("states")).unwrap(),
        |layer| {
            // Another file in its place, with the right length and wrong bytes.
            std::fs::write(layer.join("other"), vec![7; MIB as usize + 2048]).unwrap();
            let len = layer.join("data").metadata().unwrap().len();
            let other = std::fs::File::options()
                .write(true)
                .open(layer.join("other"))
                .unwrap();
            other.set_len(len).unwrap();
            std::fs::rename(layer.join("other"), layer.join("data")).unwrap();
        },
    ];
    for (at, damage) in damages.iter().enumerate() {
        assert!(
            scene.ok(["cat", "image.clip", "/blob"]).raw == blob(),
            "before damage {at}"
        );
        damage(&layer(&scene));
        assert!(
            scene.ok(["cat", "image.clip", "/blob"]).raw == blob(),
            "after damage {at}"
        );
    }
}

#[test]
fn a_tree_of_which_a_power_cut_or_a_bad_disk_left_something_else_is_made_again() {
    let scene = Scene::new();
    let _published = published(&scene);
    assert!(scene.ok(["cat", "image.clip", "/blob"]).raw == blob());
    let mut trees = std::fs::read_dir(scene.state().join("trees")).unwrap();
    let tree = trees.next().unwrap().unwrap().path();
    let intact = std::fs::read(&tree).unwrap();
    let mut flipped = intact.clone();
    flipped[1500] ^= 1;
    let mut without_its_last_page = intact.clone();
    let last_page = intact.len() - 4096;
    without_its_last_page[last_page..].fill(0);
    for left in [
        flipped,
        without_its_last_page,
        intact[..last_page].to_vec(),
        vec![0; intact.len()],
        vec![],
    ] {
        std::fs::write(&tree, left).unwrap();
        assert!(scene.ok(["cat", "image.clip", "/blob"]).raw == blob());
        assert!(std::fs::read(&tree).unwrap() == intact);
    }
}

#[test]
fn s7_writes_that_were_lost_in_a_power_cut_are_noticed() {
    let scene = Scene::new();
    let published = published(&scene);
    assert!(scene.ok(["cat", "image.clip", "/blob"]).raw == blob());
    let list = list_cached(&scene, scene.state().to_str().unwrap());
    let layer = Path::new(list["layers"][0]["dir"].as_str().unwrap());
    let open = |name| std::fs::File::options().write(true).open(layer.join(name));
    // The table reached the disk; some of a span's bytes did not. Then the machine is started again.
    let data = open("data").unwrap();
    data.write_all_at(&vec![0; 20_000], 200_000).unwrap();
    open("states").unwrap().write_all_at(&[7; 16], 16).unwrap();
    published.proxy.forget();
    assert!(scene.ok(["cat", "image.clip", "/blob"]).raw == blob());
    let asked = published.proxy.ranges().len();
    assert!(
        (1..=2).contains(&asked),
        "{asked}: the rest was found intact"
    );
    published.proxy.forget();
    assert!(scene.ok(["cat", "image.clip", "/blob"]).raw == blob());
    assert!(published.proxy.ranges().is_empty());
}

/// Changes options of a mounted tmpfs.
fn remount(disk: &Mounted, flags: MsFlags, data: Option<&str>) {
    nix::mount::mount(
        None::<&str>,
        disk.path(),
        None::<&str>,
        MsFlags::MS_REMOUNT | flags,
        data,
    )
    .unwrap();
}

/// docs/semantics.md: "A full or read-only disk fails no read".
#[test]
fn s7_a_disk_that_takes_nothing_fails_no_read_and_is_used_again_when_it_does() {
    let scene = Scene::new();
    let published = published(&scene);
    let disk = Mounted::mount("tmpfs", &scene.dir("small-disk"), "size=300k").unwrap();
    let state = disk.path().join("state").display().to_string();
    assert!(
        scene
            .ok(["cat", "--state-dir", &state, "image.clip", "/blob"])
            .raw
            == blob()
    );

    scene.dir("mnt");
    // The kernel mounts no EROFS on a file of tmpfs.
    let server = scene.mount([
        "--engine",
        "fuse",
        "--state-dir",
        &state,
        "image.clip",
        "mnt",
    ]);
    let read = || {
        let file = std::fs::File::open(server.path().join("blob")).unwrap();
        // Ask the server, not the kernel.
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut &file, &mut bytes).unwrap();
        assert!(bytes == blob());
    };
    (0..3).for_each(|_| read());
    server.wait_for_log("takes nothing");
    let complaints = server.log().matches("takes nothing").count();
    assert_eq!(complaints, 1, "not for every read: {}", server.log());

    remount(&disk, MsFlags::empty(), Some("size=8m"));
    wait_until("the disk is used again", PATIENCE, || {
        published.proxy.forget();
        read();
        published.proxy.ranges().is_empty()
            && list_cached(&scene, &state)["layers"][0]["cachedBytes"].as_u64() > Some(MIB)
    })
    .unwrap();
    drop(server);

    remount(&disk, MsFlags::MS_RDONLY, None);
    assert!(
        scene
            .ok(["cat", "--state-dir", &state, "image.clip", "/blob"])
            .raw
            == blob()
    );
    // Without a place for the tree there is nothing to show.
    let other = disk.path().join("other").display().to_string();
    let said = scene.run(["cat", "--state-dir", &other, "image.clip", "/blob"]);
    assert_eq!(said.code, 1, "{}", said.err);
    assert!(said.err.contains("Read-only file system"), "{}", said.err);
    assert!(said.err.contains("--state-dir"), "the remedy: {}", said.err);
}

fn list_cached(scene: &Scene, state: &str) -> serde_json::Value {
    let said = scene.ok(["cache", "ls", "--json", "--state-dir", state]);
    serde_json::from_str(&said.out).unwrap()
}

#[test]
fn s7_a_flipped_bit_anywhere_in_an_archive_never_gives_wrong_bytes() {
    let scene = Scene::new();
    let _published = published(&scene);
    let good = std::fs::read(scene.path("image.clip")).unwrap();
    for step in 0..40 {
        let at = step * good.len() / 40;
        let mut bad = good.clone();
        bad[at] ^= 1 << (step % 8);
        std::fs::write(scene.path("bad.clip"), bad).unwrap();
        let said = scene.run(["cat", "--read-timeout", "2", "bad.clip", "/blob"]);
        assert!([0, 1].contains(&said.code), "byte {at}: {said:?}");
        match said.code {
            0 => assert!(said.raw == blob(), "byte {at}: wrong content"),
            _ => assert!(blob().starts_with(&said.raw), "byte {at}: wrong content"),
        }
    }
    for len in [0, 10, 53, 54, 60, good.len() / 2, good.len() - 1] {
        std::fs::write(scene.path("bad.clip"), &good[..len]).unwrap();
        assert_eq!(
            scene.run(["cat", "bad.clip", "/blob"]).code,
            1,
            "{len} bytes"
        );
    }
}
