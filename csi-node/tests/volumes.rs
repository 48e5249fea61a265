//! S11: volumes on real mounts, through the plugin's own socket, with the real processes.

mod common;

use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

use clip_csi_node::csi::registration::InfoRequest;
use clip_csi_node::csi::registration::registration_client::RegistrationClient;
use clip_engine::mount_points;
use clip_testkit::guard::hang;
use common::image::big;
use common::{IMAGE, Scene, kill, publish_request};
use nix::sys::signal::Signal;
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use tonic::Code;

/// `volumeAttributes` of a pod.
type Attributes<'a> = &'a [(&'a str, &'a str)];

const DATA: Attributes<'_> = &[("clipImage", IMAGE)];

fn greeting(target: &Path) -> io::Result<String> {
    fs::read_to_string(target.join("etc/greeting"))
}

#[test]
fn a_pod_sees_the_image_read_only_and_unpublish_leaves_nothing() {
    let scene = Scene::running();
    let target = scene.target("one");
    scene.publish(&target, DATA).unwrap();
    assert_eq!(greeting(&target).unwrap(), "hello\n");
    assert_eq!(fs::read(target.join("usr/lib/big")).unwrap(), big());
    let flags = statvfs(&target).unwrap().f_flag;
    assert!(flags.contains(
        StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV
    ));
    assert!(
        !target.join("blobs").exists(),
        "the pod sees the image alone"
    );

    scene.unpublish(&target).unwrap();
    assert!(!target.exists());
    scene.assert_nothing_left();
    scene
        .unpublish(&target)
        .expect("a second unpublish is fine");
    scene
        .unpublish(Path::new("/no/such/folder/mount"))
        .expect("an unknown volume is fine");
}

#[test]
fn pods_share_one_mount_and_the_last_one_takes_it_away() {
    let scene = Scene::running();
    let targets = ["one", "two", "three"].map(|pod| scene.target(pod));
    for target in &targets {
        scene.publish(target, DATA).unwrap();
    }
    let volumes = scene.volumes();
    assert_eq!(volumes.len(), 3);
    assert!(
        volumes
            .iter()
            .all(|mount| mount.device == volumes[0].device)
    );
    scene.unpublish(&targets[0]).unwrap();
    scene.unpublish(&targets[1]).unwrap();
    assert_eq!(greeting(&targets[2]).unwrap(), "hello\n");
    scene.unpublish(&targets[2]).unwrap();
    scene.assert_nothing_left();
}

#[test]
fn many_pods_at_once_get_the_same_image() {
    let scene = Scene::running();
    let targets: Vec<_> = (0..20)
        .map(|pod| scene.target(&format!("pod-{pod}")))
        .collect();
    scene.run(async {
        let node = scene.node().await.unwrap();
        let publishes = targets.iter().map(|target| {
            let (mut node, request) = (node.clone(), publish_request(target, DATA));
            async move { node.node_publish_volume(request).await }
        });
        futures::future::try_join_all(publishes).await.unwrap();
    });
    assert_eq!(scene.volumes().len(), 20);
    for target in &targets {
        assert_eq!(greeting(target).unwrap(), "hello\n");
        scene.unpublish(target).unwrap();
    }
    scene.assert_nothing_left();
}

#[test]
fn a_repeated_publish_changes_nothing_and_another_volume_is_refused() {
    let scene = Scene::running();
    let target = scene.target("one");
    scene.publish(&target, DATA).unwrap();
    let before = scene.mounts();
    scene
        .publish(&target, DATA)
        .expect("kubelet repeats a publish");
    assert_eq!(scene.mounts(), before);
    let error = scene
        .publish(&target, &[("clipImage", IMAGE), ("path", "etc")])
        .unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists, "{error:?}");
    assert_eq!(scene.mounts(), before);
}

#[test]
fn a_repeated_publish_succeeds_even_when_the_archive_is_gone() {
    let scene = Scene::running();
    let target = scene.target("one");
    scene.publish(&target, DATA).unwrap();
    fs::remove_file(scene.path("archives/data.clip")).unwrap();
    scene
        .publish(&target, DATA)
        .expect("a running pod's volume must not fail");
    assert_eq!(greeting(&target).unwrap(), "hello\n");
}

#[test]
fn a_pod_may_see_one_folder_of_the_image_and_no_link_leads_out_of_it() {
    let scene = Scene::running();
    let target = scene.target("one");
    scene
        .publish(&target, &[("clipImage", IMAGE), ("path", "usr/lib")])
        .unwrap();
    assert_eq!(fs::read(target.join("big")).unwrap(), big());
    scene.unpublish(&target).unwrap();
    // The link points to /etc: the image's, never the node's.
    scene
        .publish(&target, &[("clipImage", IMAGE), ("path", "escape")])
        .unwrap();
    assert_eq!(
        fs::read_to_string(target.join("greeting")).unwrap(),
        "hello\n"
    );
    assert!(!target.join("passwd").exists());
}

#[test]
fn every_refusal_names_the_remedy_and_leaves_nothing_behind() {
    let scene = Scene::running();
    fs::write(
        scene.path("archives/cut.clip"),
        &fs::read(scene.path("archives/data.clip")).unwrap()[..300],
    )
    .unwrap();
    fs::write(scene.path("archives/none.clip"), "this is no archive").unwrap();
    let cases: [(Attributes<'_>, Code, &str); 6] = [
        (
            &[("clipImage", IMAGE), ("pth", "usr")],
            Code::InvalidArgument,
            "did you mean path?",
        ),
        (
            &[("clipImage", "nope")],
            Code::NotFound,
            "make it with `clip index",
        ),
        (
            &[("image", "alpine")],
            Code::NotFound,
            "only the volume attribute clipImage",
        ),
        (
            &[("clipImage", IMAGE), ("path", "usr/nope")],
            Code::InvalidArgument,
            "has no folder \"usr/nope\"",
        ),
        (&[("clipImage", "cut")], Code::FailedPrecondition, "clip"),
        (&[("clipImage", "none")], Code::FailedPrecondition, "clip"),
    ];
    for (attributes, code, words) in cases {
        let target = scene.target("one");
        let error = scene.publish(&target, attributes).unwrap_err();
        assert_eq!(error.code(), code, "{attributes:?}: {error:?}");
        assert!(error.message().contains(words), "{attributes:?}: {error:?}");
        assert!(!target.exists(), "{attributes:?}");
        scene.assert_nothing_left();
    }
}

#[test]
fn an_archive_that_was_damaged_on_the_nodes_disk_is_fetched_again() {
    let scene = Scene::running();
    let target = scene.target("one");
    scene.publish(&target, DATA).unwrap();
    scene.unpublish(&target).unwrap();
    let archive = fs::read_dir(scene.path("state/archives"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    fs::write(&archive, "damaged").unwrap();
    assert_eq!(
        scene.publish(&target, DATA).unwrap_err().code(),
        Code::FailedPrecondition
    );
    scene
        .publish(&target, DATA)
        .expect("the second try has a fresh one");
    assert_eq!(greeting(&target).unwrap(), "hello\n");
}

#[test]
fn somebody_elses_mount_is_neither_covered_nor_taken_away() {
    let scene = Scene::running();
    let target = scene.target("one");
    fs::create_dir(&target).unwrap();
    mount("none", &target, "tmpfs", MountFlags::empty(), None).unwrap();
    for error in [
        scene.publish(&target, DATA).unwrap_err(),
        scene.unpublish(&target).unwrap_err(),
    ] {
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(
            error.message().contains("not Clip's (type tmpfs)"),
            "{error:?}"
        );
    }
    assert_eq!(
        mount_points::stacked_at(&mount_points::all().unwrap(), &target).count(),
        1
    );
    unmount(&target, UnmountFlags::empty()).unwrap();
    scene.publish(&target, DATA).unwrap();
}

#[test]
fn statistics_come_from_memory_and_only_for_published_volumes() {
    let scene = Scene::running();
    let target = scene.target("one");
    assert_eq!(scene.stats(&target).unwrap_err().code(), Code::NotFound);
    scene.publish(&target, DATA).unwrap();
    // A server that is stopped answers nobody; statistics must not wait for it.
    let serve = scene.serve_pid().unwrap();
    hang(serve).unwrap();
    let usage = scene.stats(&target).unwrap().usage;
    kill(serve, Signal::SIGCONT);
    assert!(usage[0].used >= 1 << 20, "bytes: {usage:?}");
    assert!(usage[1].used >= 5, "files: {usage:?}");
    assert!(scene.stats(&scene.target("other")).is_err());
}

#[test]
fn a_volume_can_be_unpublished_while_its_server_is_dead_or_stopped() {
    let scene = Scene::running();
    let target = scene.target("one");
    scene.publish(&target, DATA).unwrap();
    let serve = scene.serve_pid().unwrap();
    hang(serve).unwrap();
    let begun = Instant::now();
    scene.unpublish(&target).unwrap();
    assert!(begun.elapsed().as_secs() < 5, "it waited for the server");
    kill(serve, Signal::SIGKILL);
    scene.assert_nothing_left();
    scene
        .publish(&target, DATA)
        .expect("the next server is there");
    assert_eq!(greeting(&target).unwrap(), "hello\n");
}

#[test]
fn a_server_that_hangs_holds_up_no_request_for_ever() {
    let mut scene = Scene::new();
    // With the kernel's EROFS this needs no server.
    scene.arguments = vec!["--engine=fuse".to_owned()];
    scene.start();
    let (first, second) = (scene.target("one"), scene.target("two"));
    scene.publish(&first, DATA).unwrap();
    let serve = scene.serve_pid().unwrap();
    hang(serve).unwrap();
    let begun = Instant::now();
    // Nobody has looked up this folder yet, so the kernel has to ask.
    let error = scene
        .publish(&second, &[("clipImage", IMAGE), ("path", "usr/lib")])
        .unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error:?}");
    assert!(begun.elapsed().as_secs() < 20);
    assert!(!second.exists());
    scene
        .unpublish(&first)
        .expect("the other volume can be taken away");
    kill(serve, Signal::SIGCONT);
    scene
        .publish(&second, DATA)
        .expect("the server answers again");
    assert_eq!(greeting(&second).unwrap(), "hello\n");
}

#[test]
fn without_a_keeper_volumes_die_with_the_plugin_and_the_next_one_mends_them() {
    let mut scene = Scene::running();
    let (whole, part) = (scene.target("one"), scene.target("two"));
    scene.publish(&whole, DATA).unwrap();
    scene
        .publish(&part, &[("clipImage", IMAGE), ("path", "etc")])
        .unwrap();
    let serve = scene.serve_pid().unwrap();
    scene.stop(Signal::SIGKILL);
    scene.wait_until("clip-serve ends with it", || {
        !Path::new(&format!("/proc/{serve}")).exists()
    });
    // What the kernel has not cached.
    let error = fs::read(whole.join("srv/0")).unwrap_err().raw_os_error();
    let promised = [nix::libc::ENOTCONN, nix::libc::ECONNABORTED, nix::libc::EIO];
    assert!(promised.contains(&error.unwrap()), "{error:?}");

    scene.start();
    scene.wait_until("the volumes are alive again", || {
        fs::read(whole.join("srv/0")).is_ok() && fs::read_to_string(part.join("greeting")).is_ok()
    });
    let volumes = scene.volumes();
    assert_eq!(volumes.len(), 2, "no dead mount lies below: {volumes:?}");
    assert!(
        volumes
            .iter()
            .all(|mount| mount.device == volumes[0].device)
    );
    scene
        .publish(&whole, DATA)
        .expect("kubelet publishes again after a restart");
    assert!(scene.stats(&part).is_ok());
    for target in [&whole, &part] {
        scene.unpublish(target).unwrap();
    }
    scene.assert_nothing_left();
}

#[test]
fn a_volume_whose_archive_was_lost_is_cleared_away_and_can_be_unpublished() {
    let mut scene = Scene::running();
    let target = scene.target("one");
    scene.publish(&target, DATA).unwrap();
    scene.stop(Signal::SIGKILL);
    fs::remove_dir_all(scene.path("state")).unwrap();
    scene.start();
    scene.assert_nothing_left();
    scene
        .publish(&target, DATA)
        .expect("kubelet publishes it again");
    assert_eq!(greeting(&target).unwrap(), "hello\n");
    scene.unpublish(&target).unwrap();
    scene.assert_nothing_left();
}

#[test]
fn killed_again_and_again_nothing_piles_up() {
    let mut scene = Scene::running();
    let target = scene.target("one");
    scene.publish(&target, DATA).unwrap();
    for _ in 0..3 {
        scene.stop(Signal::SIGKILL);
        scene.start();
    }
    scene.wait_until("the volume is alive again", || {
        fs::read(target.join("srv/0")).is_ok() && scene.volumes().len() == 1
    });
    scene.unpublish(&target).unwrap();
    scene.assert_nothing_left();
}

#[test]
fn told_to_stop_the_plugin_ends_at_once_and_takes_its_registration_away() {
    let mut scene = Scene::running();
    scene.publish(&scene.target("one"), DATA).unwrap();
    let begun = Instant::now();
    assert!(scene.stop(Signal::SIGTERM).success());
    assert!(begun.elapsed().as_secs() < 8);
    assert!(
        !scene
            .path("kubelet/plugins_registry/kubelet@csi.clip.dev-reg.sock")
            .exists()
    );
}

#[test]
fn kubelet_is_told_where_the_driver_is() {
    let scene = Scene::running();
    let info = scene.run(async {
        let channel = scene
            .channel("kubelet/plugins_registry/kubelet@csi.clip.dev-reg.sock")
            .await
            .unwrap();
        RegistrationClient::new(channel)
            .get_info(InfoRequest {})
            .await
            .unwrap()
            .into_inner()
    });
    assert_eq!(
        (info.r#type.as_str(), info.name.as_str()),
        ("CSIPlugin", "csi.clip.dev")
    );
    assert_eq!(
        info.endpoint,
        scene
            .path("kubelet/plugins/csi.clip.dev/csi.sock")
            .to_str()
            .unwrap()
    );
    assert_eq!(info.supported_versions, ["1.0.0"]);
}

#[test]
fn what_kubelet_bound_of_a_volume_does_not_stay_behind_dead() {
    let mut scene = Scene::running();
    let target = scene.target("one");
    scene.publish(&target, DATA).unwrap();
    // As kubelet does it for `subPath: etc`.
    let sub_path = scene.path("kubelet/pods/one/volume-subpaths/data/app/0");
    fs::create_dir_all(&sub_path).unwrap();
    mount_bind(target.join("etc"), &sub_path).unwrap();
    scene.stop(Signal::SIGKILL);
    scene.start();
    scene.wait_until("the volume is alive again", || {
        fs::read(target.join("srv/0")).is_ok()
    });
    scene.wait_until("the dead bind is gone", || scene.volumes().len() == 1);
}
