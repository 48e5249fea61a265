//! S11: volumes outlive every process of Clip, with both engines. Readers are in the midst of a fetch when a process dies;
//! they get the right bytes, later.

mod common;

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Output};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clip_testkit::guard::{Mounted, hang};
use clip_testkit::proxy::Mood;
use common::image::part;
use common::{IMAGE, Scene, kill};
use nix::sys::signal::Signal;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

const ENGINES: [&str; 2] = ["fuse", "erofs"];
/// How many parts the image has.
const PARTS: u32 = 8;
const DATA: &[(&str, &str)] = &[("clipImage", IMAGE)];
/// A node with keeper and plugin of this engine.
fn kept(engine: &str) -> Scene {
    let mut scene = Scene::new();
    scene.start_keeper(300);
    scene.arguments = vec![format!("--engine={engine}")];
    scene.start();
    scene
}

/// Programs that read parts of the image. Threads of the test would do so in its name: each process that it starts gets a
/// copy of its open files, and closes them before it begins, for which FUSE may ask the server.
struct Readers(Vec<(u32, JoinHandle<io::Result<Output>>)>);

impl Readers {
    /// Begins to read all parts.
    fn start(target: &Path) -> Readers {
        let read = |number: u32| {
            let mut cat = Command::new("cat");
            cat.arg(target.join(format!("srv/{number}")));
            (number, std::thread::spawn(move || cat.output()))
        };
        Readers((0..PARTS).map(read).collect())
    }

    /// Begins to read what was never read, and returns when the registry was asked for it and has not answered.
    fn waiting(scene: &Scene, target: &Path) -> Readers {
        scene.proxy.set(Mood::Silent);
        scene.proxy.forget();
        let readers = Readers::start(target);
        scene.wait_until("the registry is asked", || !scene.proxy.asked().is_empty());
        assert!(readers.0.iter().any(|(_, reader)| !reader.is_finished()));
        readers
    }

    /// Lets the registry answer; everybody has what they wanted.
    fn have_all(self, scene: &Scene) {
        scene.proxy.set(Mood::Relay);
        scene.wait_until("nobody waits any more", || {
            self.0.iter().all(|(_, reader)| reader.is_finished())
        });
        for (number, reader) in self.0 {
            let read = reader.join().unwrap().unwrap();
            assert!(read.status.success(), "{read:?}");
            assert!(read.stdout == part(number), "wrong bytes in srv/{number}");
        }
    }
}

fn devices(scene: &Scene) -> Vec<String> {
    let mounts = scene.mounts().into_iter();
    mounts.map(|mount| mount.device).collect()
}

#[test]
fn a_killed_server_is_noticed_by_nobody() {
    for engine in ENGINES {
        let mut scene = Scene::new();
        scene.arguments = vec![format!("--engine={engine}")];
        scene.start();
        let (whole, some) = (scene.target("one"), scene.target("two"));
        scene.publish(&whole, DATA).unwrap();
        scene
            .publish(&some, &[("clipImage", IMAGE), ("path", "etc")])
            .unwrap();
        let before = devices(&scene);
        for round in 0..4 {
            let readers = match round {
                0 => Readers::waiting(&scene, &whole),
                _ => Readers::start(&whole),
            };
            let server = scene.serve_pid().unwrap();
            kill(server, Signal::SIGKILL);
            scene.wait_until("another server runs", || {
                scene.serve_pid().is_some_and(|next| next != server)
            });
            readers.have_all(&scene);
        }
        assert_eq!(
            fs::read_to_string(some.join("greeting")).unwrap(),
            "hello\n"
        );
        assert_eq!(devices(&scene), before, "nothing was mounted anew");
        for target in [&whole, &some] {
            scene.unpublish(target).unwrap();
        }
        scene.assert_nothing_left();
    }
}

#[test]
fn a_killed_plugin_is_noticed_by_nobody() {
    for engine in ENGINES {
        let mut scene = kept(engine);
        let target = scene.target("one");
        scene.publish(&target, DATA).unwrap();
        let sub_path = scene.path("kubelet/pods/one/volume-subpaths/data/app/0");
        fs::create_dir_all(&sub_path).unwrap();
        mount_bind(target.join("srv"), &sub_path).unwrap();
        let before = devices(&scene);
        for round in 0..3 {
            let readers = match round {
                0 => Readers::waiting(&scene, &target),
                _ => Readers::start(&target),
            };
            scene.stop(Signal::SIGKILL);
            scene.start();
            readers.have_all(&scene);
        }
        assert!(fs::read(sub_path.join("7")).unwrap() == part(7));
        scene.wait_until("its size is known again", || {
            scene
                .stats(&target)
                .is_ok_and(|stats| stats.usage[0].used >= 1 << 20)
        });
        assert_eq!(devices(&scene), before, "nothing was mounted anew");
        rustix::mount::unmount(&sub_path, rustix::mount::UnmountFlags::empty()).unwrap();
        scene.unpublish(&target).unwrap();
        scene.assert_nothing_left();
    }
}

#[test]
fn an_upgrade_is_noticed_by_nobody() {
    for engine in ENGINES {
        let mut scene = kept(engine);
        let target = scene.target("one");
        scene.publish(&target, DATA).unwrap();
        let before = devices(&scene);
        scene.stand_by();
        let readers = Readers::waiting(&scene, &target);
        scene.replace(Signal::SIGTERM);
        scene.stand_by();
        scene.replace(Signal::SIGKILL);
        readers.have_all(&scene);
        assert_eq!(devices(&scene), before, "nothing was mounted anew");
        scene.unpublish(&target).unwrap();
        scene.assert_nothing_left();
    }
}

#[test]
fn a_plugin_that_stands_by_ends_when_it_is_told_to() {
    let mut scene = kept("auto");
    scene.stand_by();
    assert!(scene.stop_other(Signal::SIGTERM).success());
    scene.publish(&scene.target("one"), DATA).unwrap();
}

#[test]
fn a_new_keeper_is_given_everything() {
    let mut scene = kept("auto");
    let target = scene.target("one");
    scene.publish(&target, DATA).unwrap();
    let before = devices(&scene);
    let held = |scene: &Scene| scene.read_log().matches("held by the keeper").count();
    let so_far = held(&scene);
    scene.start_keeper(300);
    scene.wait_until("the new keeper has it", || held(&scene) > so_far);
    let readers = Readers::waiting(&scene, &target);
    scene.stop(Signal::SIGKILL);
    scene.start();
    readers.have_all(&scene);
    assert_eq!(devices(&scene), before);
    // What is unpublished is let go of.
    scene.unpublish(&target).unwrap();
    scene.assert_nothing_left();
    let descriptors = format!("/proc/{}/fd", scene.keeper_pid());
    scene.wait_until("the keeper holds nothing", || {
        fs::read_dir(&descriptors)
            .unwrap()
            .flatten()
            .all(|fd| fs::read_link(fd.path()).is_ok_and(|file| file != Path::new("/dev/fuse")))
    });
}

/// Pods have process numbers of their own, so the keeper cannot know its client by one.
#[test]
fn a_client_in_another_pod_is_answered() {
    let scene = kept("auto");
    let check = Command::new("unshare")
        .args([
            "--pid",
            "--fork",
            env!("CARGO_BIN_EXE_clip-keeper"),
            "--check",
        ])
        .arg(format!("--socket={}", scene.keeper_socket().display()))
        .output()
        .unwrap();
    assert!(check.status.success(), "{check:?}");
}

#[test]
fn keeper_and_plugin_both_dead_is_an_error_and_mends() {
    for engine in ENGINES {
        let mut scene = kept(engine);
        let target = scene.target("one");
        scene.publish(&target, DATA).unwrap();
        scene.stop_keeper();
        scene.stop(Signal::SIGKILL);
        let mut error = None;
        scene.wait_until("readers get an error", || {
            error = fs::read(target.join("srv/0"))
                .err()
                .and_then(|e| e.raw_os_error());
            error.is_some()
        });
        // ECONNABORTED: it was just waiting for an answer.
        let promised = [nix::libc::ENOTCONN, nix::libc::ECONNABORTED, nix::libc::EIO];
        assert!(promised.contains(&error.unwrap()), "{error:?}");
        scene.start_keeper(300);
        scene.start();
        scene.wait_until("the volume is alive again", || {
            fs::read(target.join("srv/0")).is_ok_and(|content| content == part(0))
        });
        scene.unpublish(&target).unwrap();
        scene.assert_nothing_left();
    }
}

#[test]
fn after_a_reboot_the_node_is_as_it_was() {
    for engine in ENGINES {
        let mut scene = kept(engine);
        let (same, gone) = (scene.target("one"), scene.target("two"));
        for target in [&same, &gone] {
            scene.publish(target, DATA).unwrap();
        }
        assert!(fs::read(same.join("srv/0")).unwrap() == part(0));
        scene.stop_keeper();
        scene.stop(Signal::SIGKILL);
        // Processes and mounts are gone; kubelet's folders and ours, sockets and archives are still there.
        for mount in scene.mounts().iter().rev() {
            unmount(&mount.path, UnmountFlags::DETACH).unwrap();
        }
        scene.start_keeper(300);
        scene.start();
        // Kubelet begins its pods anew, and clears away those that were deleted meanwhile.
        scene.publish(&same, DATA).unwrap();
        scene.unpublish(&gone).unwrap();
        assert!(fs::read(same.join("srv/0")).unwrap() == part(0));
        assert!(!gone.exists());
        scene.unpublish(&same).unwrap();
        scene.assert_nothing_left();
    }
}

#[test]
fn a_full_disk_keeps_no_server_from_going_on() {
    for engine in ENGINES {
        let mut scene = Scene::new();
        let state = scene.path("state");
        let _disk = small_disk(&scene, &state);
        scene.start_keeper(300);
        scene.arguments = vec![format!("--engine={engine}")];
        scene.start();
        let target = scene.target("one");
        scene.publish(&target, DATA).unwrap();
        fill(&state.join("full"));

        let server = scene.serve_pid().unwrap();
        kill(server, Signal::SIGKILL);
        Readers::start(&target).have_all(&scene);
        scene.stop(Signal::SIGKILL);
        scene.start();
        Readers::start(&target).have_all(&scene);
        scene.unpublish(&target).unwrap();
        scene.assert_nothing_left();
        scene.stop(Signal::SIGKILL);
    }
}

/// A disk of 64 MiB. EROFS mounts no file of a tmpfs.
fn small_disk(scene: &Scene, at: &Path) -> Mounted {
    fs::create_dir(at).unwrap();
    let script = "truncate -s 64M \"$0\" && mkfs.ext4 -q \"$0\" && mount -o loop \"$0\" \"$1\"";
    let made = Command::new("sh")
        .args(["-c", script])
        .args([&scene.path("disk"), at])
        .status();
    assert!(made.unwrap().success());
    Mounted::at(at)
}

/// Takes all that is left of a disk.
fn fill(file: &Path) {
    let mut file = fs::File::create(file).unwrap();
    let error = io::copy(&mut io::repeat(7), &mut file).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn the_keepers_patience_has_an_end() {
    let mut scene = Scene::new();
    scene.start_keeper(6);
    scene.start();
    let target = scene.target("one");
    scene.publish(&target, DATA).unwrap();
    // While the server is well nothing happens, however long that is.
    std::thread::sleep(Duration::from_secs(8));
    assert!(fs::read(target.join("srv/0")).unwrap() == part(0));
    let held = scene.read_log();
    assert!(!held.contains("no server for too long"), "{held}");

    scene.stop(Signal::SIGKILL);
    let (begun, late) = (Instant::now(), target.join("srv/7"));
    fs::read(late).expect_err("nobody serves it");
    assert!(begun.elapsed() < Duration::from_secs(20));
    scene.start();
    scene.wait_until("the volume is alive again", || {
        fs::read(target.join("srv/7")).is_ok_and(|content| content == part(7))
    });
}

#[test]
fn a_server_that_hangs_is_replaced() {
    let scene = kept("auto");
    let target = scene.target("one");
    scene.publish(&target, DATA).unwrap();
    let server = scene.serve_pid().unwrap();
    hang(server).unwrap();
    let begun = Instant::now();
    assert!(fs::read(target.join("srv/0")).unwrap() == part(0));
    assert_ne!(scene.serve_pid(), Some(server));
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[test]
fn credentials_outlive_the_plugin() {
    let mut scene = Scene::private("user", "word");
    scene.start_keeper(300);
    scene.start();
    let target = scene.target("one");
    scene.publish_with(&target, "user", "word").unwrap();
    scene.stop(Signal::SIGKILL);
    scene.start();
    // Kubelet has not published it again, and nobody waits until it does.
    let begun = Instant::now();
    assert!(fs::read(target.join("srv/0")).unwrap() == part(0));
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn only_what_the_engine_says_is_mounted() {
    for (engine, types) in [
        ("fuse", &["fuse.clip", "fuse.clip"][..]),
        ("erofs", &["fuse.clip", "erofs", "erofs"][..]),
        ("auto", &["fuse.clip", "erofs", "erofs"][..]),
    ] {
        let scene = kept(engine);
        scene.publish(&scene.target("one"), DATA).unwrap();
        let found: Vec<_> = scene
            .mounts()
            .into_iter()
            .map(|mount| mount.fs_type)
            .collect();
        assert_eq!(found, types, "{engine}");
    }
}

/// Killed while it waited for itself, it could not end.
#[test]
fn the_server_cannot_see_what_it_serves() {
    for engine in ENGINES {
        let mut scene = kept(engine);
        let target = scene.target("one");
        let seen_by = |pid: u32, path: &Path| {
            let path = path.strip_prefix("/").unwrap();
            Path::new(&format!("/proc/{pid}/root")).join(path).exists()
        };
        scene.publish(&target, DATA).unwrap();
        let look = |scene: &Scene| {
            let server = scene.serve_pid().unwrap();
            for mount in scene.mounts() {
                assert!(seen_by(scene.pid(), &mount.path), "{mount:?}");
                assert!(!seen_by(server, &mount.path), "{mount:?}");
            }
            assert!(seen_by(server, &scene.path("state/trees")));
        };
        look(&scene);
        // Nor what was there before it.
        kill(scene.serve_pid().unwrap(), Signal::SIGKILL);
        assert!(fs::read(target.join("srv/0")).unwrap() == part(0));
        look(&scene);
        scene.stop(Signal::SIGKILL);
        scene.start();
        assert!(fs::read(target.join("srv/7")).unwrap() == part(7));
        look(&scene);
        // Its view holds nothing back.
        scene.unpublish(&target).unwrap();
        scene.assert_nothing_left();
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", scene.serve_pid().unwrap()));
        // Others of this machine's may be there.
        let here = scene.path("");
        let held = |line: &str| line.contains("clip:") && line.contains(here.to_str().unwrap());
        assert!(!mounts.unwrap().lines().any(held));
    }
}

#[test]
fn open_files_are_limited_by_the_hard_limit_alone() {
    let scene = kept("auto");
    scene.publish(&scene.target("one"), DATA).unwrap();
    for pid in [scene.pid(), scene.serve_pid().unwrap(), scene.keeper_pid()] {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let words: Vec<&str> = line.unwrap().split_whitespace().collect();
        assert_eq!(words[3], words[4], "{limits}");
        assert_ne!(words[3], "1024", "{limits}");
    }
}
