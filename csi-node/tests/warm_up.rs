//! Images that are whole on the node although no pod uses them.

mod common;

use std::fs;
use std::path::Path;

use clip_testkit::proxy::Mood;
use common::image::{big, part};
use common::{IMAGE, Scene, kill};
use nix::sys::signal::Signal;

/// Asks for the scene's image to be warmed up; `secret` stands for its pull secret.
fn wish(scene: &Scene, secret: &str) {
    fs::write(scene.path("archives/data.warm-up"), secret).unwrap();
}

fn wait_for_log(scene: &Scene, what: &str, times: usize) {
    scene.wait_until(what, || scene.read_log().matches(what).count() >= times);
}

/// All that the image has, byte for byte.
fn read_all(target: &Path) {
    assert_eq!(
        fs::read_to_string(target.join("etc/greeting")).unwrap(),
        "hello\n"
    );
    assert_eq!(fs::read(target.join("usr/lib/big")).unwrap(), big());
    for number in 0..8 {
        let file = target.join(format!("srv/{number}"));
        assert_eq!(fs::read(file).unwrap(), part(number));
    }
}

/// docs/semantics.md: "A first pod on a node that was warmed up needs no registry".
#[test]
fn a_first_pod_reads_everything_of_a_warm_image_when_the_registry_is_gone() {
    let mut scene = Scene::new();
    wish(&scene, "");
    scene.start();
    wait_for_log(&scene, "WarmedUp: ", 1);
    scene.proxy.forget();
    scene.proxy.set(Mood::HangUp);

    let target = scene.target("first");
    scene.publish(&target, &[("clipImage", IMAGE)]).unwrap();
    read_all(&target);
    assert!(scene.proxy.asked().is_empty(), "{:?}", scene.proxy.asked());
    scene.unpublish(&target).unwrap();

    // The next life of the plugin finds it all there, and its server's next life, too.
    scene.stop(Signal::SIGTERM);
    scene.start();
    wait_for_log(&scene, "The whole image was on here already", 1);
    wait_for_log(&scene, "the whole image is there", 2);
    kill(scene.serve_pid().unwrap(), Signal::SIGKILL);
    wait_for_log(&scene, "the whole image is there", 3);
    assert!(scene.proxy.asked().is_empty(), "{:?}", scene.proxy.asked());
    scene.assert_nothing_left();
}

#[test]
fn a_warm_up_is_tried_again_while_the_registry_fails_and_holds_up_no_pod() {
    let scene = Scene::running();
    scene.proxy.set(Mood::HangUp);
    wish(&scene, "");
    let target = scene.target("first");
    scene.publish(&target, &[("clipImage", IMAGE)]).unwrap();
    wait_for_log(&scene, "WarmUpFailed: On here: ", 1);
    assert_eq!(
        fs::read_dir(&target).unwrap().count(),
        4,
        "the tree is there"
    );
    scene.proxy.set(Mood::Relay);
    wait_for_log(&scene, "WarmedUp: ", 1);
    scene.proxy.set(Mood::HangUp);
    read_all(&target);
    scene.unpublish(&target).unwrap();
    scene.assert_nothing_left();
}

/// docs/semantics.md: "What the cache has no room for is not fetched in advance".
#[test]
fn an_image_larger_than_the_cache_is_refused_before_anything_of_it_is_fetched() {
    let mut scene = Scene::new();
    scene.arguments = vec!["--cache-max=2Mi".to_owned()];
    wish(&scene, "");
    scene.start();
    wait_for_log(&scene, "WarmUpFailed: On here: the cache has no room", 1);
    assert!(scene.proxy.ranges().is_empty());

    // A pod may say what it wants: it reads what it needs, and the rest is not fetched for it either.
    let target = scene.target("greedy");
    scene
        .publish(&target, &[("clipImage", IMAGE), ("prefetch", "All")])
        .unwrap();
    wait_for_log(&scene, "cannot fetch the whole image", 1);
    assert!(scene.proxy.ranges().is_empty());
    assert_eq!(fs::read(target.join("srv/3")).unwrap(), part(3));
    scene.unpublish(&target).unwrap();
}

#[test]
fn a_private_image_is_warmed_up_with_its_pull_secret() {
    let mut scene = Scene::private("user", "password");
    wish(&scene, "");
    scene.start();
    wait_for_log(&scene, "WarmUpFailed: ", 1);
    assert!(scene.read_log().contains("needs a login"));
    let login = serde_json::json!({"username": "user", "password": "password"});
    let config = serde_json::json!({"auths": {scene.proxy.address(): login}});
    wish(&scene, &config.to_string());
    wait_for_log(&scene, "WarmedUp: ", 1);
    assert!(
        !scene.read_log().contains("password"),
        "a secret is in the log"
    );
}

#[test]
fn what_is_no_longer_wished_for_is_not_fetched_any_further() {
    let scene = Scene::running();
    // Half a minute for the whole image.
    scene.proxy.set(Mood::Bandwidth(200_000));
    scene.proxy.forget();
    wish(&scene, "");
    scene.wait_until("it is being fetched", || !scene.proxy.ranges().is_empty());
    fs::remove_file(scene.path("archives/data.warm-up")).unwrap();
    wait_for_log(&scene, "not to be warmed up any more", 1);
    scene.proxy.set(Mood::Relay);
    scene.wait_until("what was under way ends", || {
        let before = scene.proxy.body_bytes();
        std::thread::sleep(std::time::Duration::from_millis(700));
        scene.proxy.body_bytes() == before
    });
    scene.proxy.forget();
    let target = scene.target("first");
    scene.publish(&target, &[("clipImage", IMAGE)]).unwrap();
    read_all(&target);
    assert!(!scene.proxy.ranges().is_empty(), "it was not all there");
    scene.unpublish(&target).unwrap();
    assert!(!scene.read_log().contains("WarmedUp"));
}
