//! S8: one cache for every process of the node, safe against kills and against processes that are lied to.

use crate::scene::{Scene, Server, publish};
use clip_testkit::{
    layout::{self, Flaw, Layer},
    proxy::{Mood, Proxy},
};
use std::time::Duration;

const FILES: u64 = 24;
const FILE_LEN: usize = 200_000;

fn content(file: u64) -> Vec<u8> {
    layout::noise(FILE_LEN, file + 1)
}

fn layer() -> Layer {
    (0..FILES).fold(Layer::new(), |layer, file| {
        layer.file(&format!("file-{file}"), content(file))
    })
}

/// What a reader could not read when all went well.
const NOTHING: [u64; 0] = [];

/// Reads all files from `first` on; says which could not be read. Wrong bytes end the test.
fn read_all(server: &Server, first: u64) -> Vec<u64> {
    let mut failed = Vec::new();
    for file in (0..FILES).map(|file| (file * 7 + first) % FILES) {
        match std::fs::read(server.path().join(format!("file-{file}"))) {
            Ok(bytes) => assert!(bytes == content(file), "file-{file} has wrong bytes"),
            Err(_) => failed.push(file),
        }
    }
    failed
}

fn mounts(scene: &Scene, archives: [&str; 2]) -> [Server; 2] {
    let mount = |archive, dir: &str| scene.mount([archive, dir]);
    [mount(archives[0], "a"), mount(archives[1], "b")]
}

#[test]
fn s8_two_processes_share_one_cache_and_a_killed_one_spoils_nothing() {
    let scene = Scene::new();
    let layout = layout::write(&scene.dir("layout"), vec![layer()], Flaw::None).unwrap();
    let published = publish(&layout);
    scene.ok([
        "index",
        "--max-span",
        "65536",
        &published.reference,
        "image.clip",
    ]);
    published.proxy.set(Mood::Slow(Duration::from_millis(15)));
    scene.dir("a");
    scene.dir("b");
    for round in 0..3 {
        if round > 0 {
            std::fs::remove_dir_all(scene.state().join("layers")).unwrap();
        }
        let [mut a, b] = mounts(&scene, ["image.clip", "image.clip"]);
        std::thread::scope(|scope| {
            let readers: Vec<_> = [0, 5]
                .map(|first| {
                    scope.spawn({
                        let b = &b;
                        move || read_all(b, first)
                    })
                })
                .into();
            let pid = nix::unistd::Pid::from_raw(a.pid() as i32);
            // Reads of the killed one fail; none may give wrong bytes.
            scope.spawn({
                let a = &a;
                move || read_all(a, 3)
            });
            std::thread::sleep(Duration::from_millis(150 + 200 * round));
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
            for reader in readers {
                assert_eq!(
                    reader.join().unwrap(),
                    NOTHING,
                    "the survivor's reads succeed"
                );
            }
        });
        a.wait();
        drop((a, b));
        let again = scene.mount(["image.clip", "a"]);
        assert_eq!(read_all(&again, 0), NOTHING);
    }
    // All of it is there now, once: nobody needs to be asked.
    published.proxy.forget();
    let again = scene.mount(["image.clip", "a"]);
    assert_eq!(read_all(&again, 0), NOTHING);
    assert!(published.proxy.ranges().is_empty());
    assert_eq!(
        std::fs::read_dir(scene.state().join("layers"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn s8_a_process_that_is_fed_wrong_bytes_spoils_nothing_for_others() {
    let scene = Scene::new();
    let layout = layout::write(&scene.dir("layout"), vec![layer()], Flaw::None).unwrap();
    let honest = publish(&layout);
    let lying = Proxy::before(honest.registry.address()).unwrap();
    let lied_to = format!("{}/team/app:1", lying.address());
    scene.ok([
        "index",
        "--max-span",
        "65536",
        &honest.reference,
        "honest.clip",
    ]);
    scene.ok(["index", "--max-span", "65536", &lied_to, "lying.clip"]);
    lying.set(Mood::Corrupt);
    honest.proxy.set(Mood::Slow(Duration::from_millis(5)));
    scene.dir("a");
    scene.dir("b");
    let [a, b] = mounts(&scene, ["honest.clip", "lying.clip"]);
    std::thread::scope(|scope| {
        scope.spawn(|| read_all(&b, 0));
        scope.spawn(|| read_all(&b, 11));
        assert_eq!(read_all(&a, 0), NOTHING);
    });
    assert_eq!(read_all(&a, 1), NOTHING);
    // What the honest process has fetched serves the other one, too: the layer is the same.
    assert_eq!(read_all(&b, 0), NOTHING);
}
