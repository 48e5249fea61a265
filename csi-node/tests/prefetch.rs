//! S8: what a start reads is recorded, and fetched ahead of the next one; a whole image, where a pod asks for it.

mod common;

use std::fs;
use std::path::PathBuf;

use clip_archive::StartProfile;
use clip_testkit::proxy::Mood;
use common::image::{big, part};
use common::{IMAGE, Scene};
use nix::sys::signal::Signal;

fn profile_named(scene: &Scene, extension: &str) -> Option<PathBuf> {
    let folder = fs::read_dir(scene.path("state/profiles")).ok()?;
    let mut paths = folder.map(|entry| entry.unwrap().path());
    paths.find(|path| path.extension().is_some_and(|found| found == extension))
}

/// The node as it was before it had read anything.
fn forget_content(scene: &mut Scene) {
    scene.stop(Signal::SIGTERM);
    fs::remove_dir_all(scene.path("state/layers")).unwrap();
    scene.start();
    scene.proxy.forget();
}

/// Waits until nothing more is fetched.
fn wait_for_quiet(scene: &Scene) {
    scene.wait_until("something is fetched, and then no more", || {
        let before = scene.proxy.ranges().len();
        // A busy machine may take a while between two requests.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        before > 0 && scene.proxy.ranges().len() == before
    });
    scene.proxy.forget();
}

#[test]
fn what_one_start_reads_is_there_before_the_next_one_reads_it() {
    let mut scene = Scene::new();
    // EROFS reads on behind the end of a file; whether that is still recorded is a matter of luck.
    scene.arguments = vec!["--engine=fuse".to_owned()];
    scene.start();
    let target = scene.target("first");
    let data = [("clipImage", IMAGE)];
    scene.publish(&target, &data).unwrap();
    scene.wait_until("the registry is greeted before anybody reads", || {
        !scene.proxy.greetings().is_empty()
    });
    assert_eq!(fs::read(target.join("srv/3")).unwrap(), part(3));
    scene.unpublish(&target).unwrap();
    scene.wait_until("the start is written down", || {
        profile_named(&scene, "recorded").is_some()
    });
    let recorded = profile_named(&scene, "recorded").unwrap();
    let profile = StartProfile::parse(&fs::read(&recorded).unwrap()).unwrap();
    assert!(!profile.touches().is_empty());

    // As the archive service hands it to another node.
    fs::rename(&recorded, recorded.with_extension("profile")).unwrap();
    forget_content(&mut scene);
    let target = scene.target("second");
    scene.publish(&target, &data).unwrap();
    wait_for_quiet(&scene);
    // What is behind it may be asked for: somebody reads in order.
    scene.proxy.set(Mood::HangUp);
    assert_eq!(fs::read(target.join("srv/3")).unwrap(), part(3));
    scene.proxy.set(Mood::Relay);
    scene.unpublish(&target).unwrap();

    // Unless the pod says otherwise.
    forget_content(&mut scene);
    let target = scene.target("third");
    scene
        .publish(&target, &[("clipImage", IMAGE), ("prefetch", "None")])
        .unwrap();
    assert_eq!(fs::read(target.join("srv/5")).unwrap(), part(5));
    let before = scene.proxy.ranges().len();
    assert_eq!(fs::read(target.join("srv/3")).unwrap(), part(3));
    assert!(scene.proxy.ranges().len() > before, "it was not there");
    assert_eq!(scene.proxy.greetings(), []);
    scene.unpublish(&target).unwrap();
    scene.assert_nothing_left();
}

#[test]
fn a_pod_that_asks_for_all_needs_no_registry_afterwards() {
    let scene = Scene::running();
    // The first pod did not ask for it.
    let modest = scene.target("modest");
    scene.publish(&modest, &[("clipImage", IMAGE)]).unwrap();
    let target = scene.target("greedy");
    scene
        .publish(&target, &[("clipImage", IMAGE), ("prefetch", "All")])
        .unwrap();
    wait_for_quiet(&scene);
    scene.proxy.set(Mood::HangUp);
    assert_eq!(fs::read(modest.join("usr/lib/big")).unwrap(), big());
    for number in 0..8 {
        let path = target.join(format!("srv/{number}"));
        assert_eq!(fs::read(path).unwrap(), part(number));
    }
    scene.unpublish(&target).unwrap();
    scene.unpublish(&modest).unwrap();
    scene.assert_nothing_left();
}
