//! What a start reads first is written down.

use crate::scene::{PATIENCE, Published, Said, Scene, publish};
use clip_testkit::{
    guard::wait_until,
    layout::{self, Flaw, Layer},
    proxy::Mood,
};
use std::{
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

/// An archive of two layers whose files have spans of their own.
fn image(scene: &Scene) {
    let base = Layer::new()
        .file("a", layout::noise(3 << 20, 1))
        .file("b", layout::noise(3 << 20, 2));
    let top = Layer::new().file("c", layout::noise(64 << 10, 3));
    let layout = layout::write(&scene.dir("layout"), vec![base, top], Flaw::None).unwrap();
    scene.index_layout(&layout, "image.clip");
}

fn record(scene: &Scene, options: &[&str], command: &[&str]) -> Said {
    let head = ["profile", "record"].iter().chain(options);
    let files = ["image.clip", "start.profile", "--"].iter();
    scene.run(
        head.chain(files)
            .chain(command)
            .copied()
            .collect::<Vec<_>>(),
    )
}

/// Layers in the order of their first touch, and how many spans of each.
fn shown(scene: &Scene) -> Vec<(u64, u64)> {
    let said = scene.ok(["profile", "show", "--json", "start.profile", "image.clip"]);
    let json: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let sections = json["sections"].as_array().unwrap().iter();
    sections
        .map(|section| {
            (
                section["layer"].as_u64().unwrap(),
                section["spans"].as_u64().unwrap(),
            )
        })
        .collect()
}

#[test]
fn a_start_is_recorded_in_its_order_and_with_others() {
    let scene = Scene::new();
    image(&scene);
    let said = record(
        &scene,
        &[],
        &["sh", "-euc", "head -c 1 $0/c; head -c 1 $0/a", "{}"],
    );
    assert_eq!(said.code, 0, "{said:?}");
    let first = shown(&scene);
    assert_eq!(first[0], (1, 1), "the top layer was read first");
    assert_eq!(first[1].0, 0);
    assert!(first[1].1 < 5, "not the whole base: {first:?}");

    let again = record(&scene, &[], &["cat", "{}/a"]);
    assert_eq!(again.code, 1);
    assert!(again.err.contains("add --merge"), "{again:?}");
    let merged = record(&scene, &["--merge"], &["cat", "{}/a"]);
    assert_eq!(merged.code, 0, "{merged:?}");
    assert!(shown(&scene)[0].1 > first[1].1, "what the second read, too");
    assert_eq!(
        scene.left_behind(),
        ["image.clip", "layout", "start.profile", "state"]
    );
}

#[test]
fn a_command_that_fails_or_reads_nothing_makes_no_profile() {
    let scene = Scene::new();
    image(&scene);
    for (command, word) in [
        (vec!["sh", "-c", "cat $0/a; exit 3", "{}"], "exit status: 3"),
        (vec!["true"], "read nothing of the image"),
        (vec!["no-such-program"], "cannot run no-such-program"),
    ] {
        let said = record(&scene, &[], &command);
        assert_eq!(said.code, 1, "{said:?}");
        assert!(said.err.contains(word), "{said:?}");
        assert!(!scene.path("start.profile").exists());
    }
    std::fs::write(scene.path("start.profile"), "{}").unwrap();
    let said = record(&scene, &["--merge"], &["cat", "{}/a"]);
    assert!(
        said.err
            .contains("start.profile: it is not a start profile"),
        "{said:?}"
    );
}

#[test]
fn a_server_that_never_ends_is_asked_to() {
    let scene = Scene::new();
    image(&scene);
    let forever = ["sh", "-euc", "head -c 1 $0/c; exec sleep 1000", "{}"];
    let said = record(&scene, &["--seconds", "1"], &forever);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(shown(&scene), [(1, 1)]);
}

/// The requests for blobs that reach the registry when the file `a` is read from a fresh mount with these options.
fn requests_of_a_read(scene: &Scene, published: &Published, options: &[&str]) -> usize {
    let mount = [&["--state-dir", "fresh"], options, &["image.clip", "mnt"]].concat();
    let server = scene.mount(mount);
    if options.is_empty() {
        published.proxy.forget();
    } else {
        // Fetched ahead, by nobody's read.
        wait_until("the start is there", PATIENCE, || {
            let before = published.proxy.ranges().len();
            // A busy machine may take a while between two requests.
            std::thread::sleep(Duration::from_millis(1500));
            before > 0 && published.proxy.ranges().len() == before
        })
        .unwrap();
        published.proxy.forget();
    }
    // One byte: whoever reads on has more fetched ahead of him.
    let mut first = [0];
    let file = std::fs::File::open(server.path().join("a")).unwrap();
    file.read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first[0], layout::noise(3 << 20, 1)[0]);
    drop(server);
    std::fs::remove_dir_all(scene.path("fresh")).unwrap();
    published.proxy.ranges().len()
}

#[test]
fn what_was_recorded_is_there_before_it_is_read() {
    let scene = Scene::new();
    let layer = Layer::new()
        .file("a", layout::noise(3 << 20, 1))
        .file("b", layout::noise(9 << 20, 2));
    let layout = layout::write(&scene.dir("layout"), vec![layer], Flaw::None).unwrap();
    let published = publish(&layout);
    scene.ok(["index", &published.reference, "image.clip"]);
    scene.dir("mnt");
    assert_eq!(record(&scene, &[], &["head", "-c", "1", "{}/a"]).code, 0);

    assert!(requests_of_a_read(&scene, &published, &[]) > 0);
    let replayed = ["--profile", "start.profile"];
    assert_eq!(requests_of_a_read(&scene, &published, &replayed), 0);

    scene.ok([
        "profile",
        "apply",
        "--state-dir",
        "fresh",
        "image.clip",
        "start.profile",
    ]);
    assert_eq!(requests_of_a_read(&scene, &published, &[]), 0, "applied");
}

#[test]
fn an_image_is_completed_no_faster_than_it_may_and_then_needs_no_registry() {
    let scene = Scene::new();
    let layer = Layer::new().file("a", layout::noise(30 << 20, 1));
    let layout = layout::write(&scene.dir("layout"), vec![layer], Flaw::None).unwrap();
    let published = publish(&layout);
    scene.ok(["index", &published.reference, "image.clip"]);
    let begun = Instant::now();
    scene.ok([
        "profile",
        "apply",
        "--all",
        "--complete-rate=20Mi",
        "image.clip",
    ]);
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(1500), "{took:?}");
    published.proxy.set(Mood::HangUp);
    let said = scene.ok(["cat", "image.clip", "/a"]);
    assert!(said.raw == layout::noise(30 << 20, 1));
}
