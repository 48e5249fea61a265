//! Credentials of a mount that is open: they change, come late, are wrong, and nobody's volume is mounted anew for it.

mod common;

use std::io;
use std::path::Path;
use std::process::Command;
use std::thread;

use common::image::part;
use common::{Scene, kill};
use nix::libc::EIO;
use nix::sys::signal::Signal;

const USER: &str = "alice";
const FIRST: &str = "first-s3cret";
const SECOND: &str = "second-s3cret";

/// Reads one part of the image. Of two that are not neighbours none brings the other into the cache.
fn read(target: &Path, number: u32) -> io::Result<()> {
    let content = std::fs::read(target.join(format!("srv/{number}")))?;
    assert!(content == part(number), "srv/{number} has other bytes");
    Ok(())
}

fn is_refused(target: &Path, number: u32) -> bool {
    read(target, number).is_err_and(|error| error.raw_os_error() == Some(EIO))
}

/// A running node with the image mounted at the target `one`, with the password that is right.
fn mounted() -> Scene {
    let mut scene = Scene::private(USER, FIRST);
    scene.start();
    let one = scene.target("one");
    scene.publish_with(&one, USER, FIRST).unwrap();
    read(&one, 0).unwrap();
    scene
}

fn kill_server(scene: &Scene) {
    let dead = scene.serve_pid().unwrap();
    kill(dead, Signal::SIGKILL);
    scene.wait_until("another server runs", || {
        scene.serve_pid().is_some_and(|next| next != dead)
    });
}

/// What was read is answered by the kernel even on a dead mount, so its device is what tells.
fn wait_mounted_anew(scene: &Scene, dead: &str) {
    scene.wait_until("the volume is mounted anew", || {
        scene
            .volumes()
            .first()
            .is_some_and(|volume| volume.device != dead)
    });
}

fn device(scene: &Scene) -> String {
    let volumes = scene.volumes();
    assert_eq!(volumes.len(), 1, "{volumes:?}");
    volumes[0].device.clone()
}

/// docs/semantics.md: "New credentials reach a mount that is open".
#[test]
fn a_republish_with_a_new_secret_lets_an_open_mount_read_again() {
    let scene = mounted();
    let one = scene.target("one");
    let before = scene.mounts();
    scene.registry.change_password(USER, SECOND).unwrap();
    assert!(is_refused(&one, 2), "the old password is no good any more");
    read(&one, 0).expect("what is cached needs none");

    scene.publish_with(&one, USER, SECOND).unwrap();
    scene.wait_until("new credentials arrive", || read(&one, 2).is_ok());
    assert_eq!(scene.mounts(), before, "nothing was mounted anew");
}

#[test]
fn a_second_pod_brings_new_credentials_for_the_first() {
    let scene = mounted();
    let (one, two) = (scene.target("one"), scene.target("two"));
    scene.registry.change_password(USER, SECOND).unwrap();
    assert!(is_refused(&one, 2));
    scene.publish_with(&two, USER, SECOND).unwrap();
    read(&two, 2).unwrap();
    read(&one, 4).unwrap();
}

#[test]
fn a_pod_with_a_wrong_secret_takes_nothing_away_from_the_others() {
    let scene = mounted();
    let (one, two) = (scene.target("one"), scene.target("two"));
    scene.publish_with(&two, USER, "wrong").unwrap();
    read(&one, 2).unwrap();
    scene.publish_with(&one, USER, FIRST).unwrap();
    scene.publish_with(&two, USER, "wrong again").unwrap();
    read(&two, 4).unwrap();
}

#[test]
fn a_secret_that_cannot_be_read_is_refused_and_the_old_one_stays() {
    let scene = mounted();
    let (one, two) = (scene.target("one"), scene.target("two"));
    let error = scene
        .publish_with_secret(&two, "no JSON".into())
        .unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error:?}");
    assert!(error.message().contains("the pull secret"), "{error:?}");
    assert!(!two.exists());
    scene
        .publish_with_secret(&one, "no JSON".into())
        .expect("a running pod's volume must not fail");
    kill_server(&scene);
    read(&one, 2).unwrap();
}

#[test]
fn a_republish_with_the_same_secret_asks_the_registry_nothing_and_keeps_the_login() {
    let scene = mounted();
    let one = scene.target("one");
    scene.proxy.forget();
    for _ in 0..5 {
        scene.publish_with(&one, USER, FIRST).unwrap();
    }
    assert_eq!(scene.proxy.asked(), []);
    read(&one, 2).unwrap();
    let asked = scene.proxy.asked();
    // Without the login that it has already, the client would ask without and be told 401 first.
    assert!(
        !asked.is_empty() && asked.iter().all(|asked| asked.authorization.is_some()),
        "{asked:#?}"
    );
}

#[test]
fn a_server_that_starts_again_has_the_credentials_at_once() {
    let scene = mounted();
    let one = scene.target("one");
    kill_server(&scene);
    read(&one, 2).unwrap();
}

#[test]
fn after_a_restart_of_the_plugin_a_read_waits_for_the_next_publish() {
    let mut scene = mounted();
    let one = scene.target("one");
    let dead = device(&scene);
    scene.stop(Signal::SIGKILL);
    scene.proxy.forget();
    scene.start();
    wait_mounted_anew(&scene, &dead);

    let target = one.clone();
    let reader = thread::spawn(move || read(&target, 2));
    scene.wait_until("the registry refused it twice", || {
        scene.proxy.asked().len() >= 2
    });
    assert!(!reader.is_finished(), "it waits");
    let before = scene.mounts();
    scene.publish_with(&one, USER, FIRST).unwrap();
    reader.join().unwrap().unwrap();
    assert_eq!(scene.mounts(), before);
}

#[test]
fn no_secret_is_written_to_disk_or_into_the_log() {
    let scene = mounted();
    let one = scene.target("one");
    scene.registry.change_password(USER, SECOND).unwrap();
    assert!(is_refused(&one, 2));
    scene.publish_with(&one, USER, SECOND).unwrap();
    scene.wait_until("new credentials arrive", || read(&one, 2).is_ok());
    scene
        .publish_with_secret(&one, format!("no JSON: {SECOND}"))
        .unwrap();
    scene.wait_until("it is refused", || {
        scene
            .read_log()
            .contains("its volume goes on with the old ones")
    });
    assert!(scene.read_log().contains("credentials renewed"));
    let found = Command::new("grep")
        .args(["--recursive", "--files-with-matches", "s3cret"])
        .args([scene.path("state"), scene.path("log")])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    assert_eq!(
        found.status.code(),
        Some(1),
        "grep looked and found nothing"
    );
}
