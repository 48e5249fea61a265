//! The main job: an image nobody has pulled is read by pods.

use crate::kube::{Namespace, REGISTRY, clip_mounts, eventually, repository};
use serde_json::{Value, json};

#[test]
fn s11_the_examples_work_as_they_stand() {
    let ns = Namespace::new("examples");
    let example =
        |name: &str| std::fs::read_to_string(repository().join("examples").join(name)).unwrap();
    ns.apply_text(&example("clipimage.yaml"));
    let image = ns.wait_ready("python-app");
    let artifact = &image["status"]["artifacts"][0];
    assert!(artifact["files"].as_u64().unwrap() > 10_000, "{artifact}");
    assert!(
        artifact["size"].as_u64().unwrap() * 50 < artifact["compressedBytes"].as_u64().unwrap(),
        "{artifact}"
    );
    assert!(
        image["status"]["source"]["digest"]
            .as_str()
            .unwrap()
            .starts_with("sha256:")
    );
    let table = ns.kubectl(&["get", "clipimages"]).unwrap();
    for column in [
        "NAME", "IMAGE", "READY", "REASON", "FILES", "SIZE", "ARCHIVE", "True",
    ] {
        assert!(table.contains(column), "{table}");
    }
    ns.apply_text(&example("pod.yaml"));
    let log = ns.wait_log("reader", "computes");
    assert!(
        log.contains("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\""),
        "{log}"
    );
    assert!(log.contains("numpy"), "{log}");
}

#[test]
fn s11_pods_share_one_connection_and_leave_nothing_behind() {
    let ns = Namespace::new("share");
    ns.clip_image(
        "debian",
        json!({"image": format!("{REGISTRY}/demo/debian-min:1")}),
    );
    ns.wait_ready("debian");
    let script = "sha256sum /image/bin/bash; stat -c %a /image/usr/bin/passwd; sleep 100000";
    ns.pod("by-name", json!({"clipImage": "debian"}), script);
    ns.pod(
        "by-image",
        json!({"image": format!("{REGISTRY}/demo/debian-min:1")}),
        script,
    );
    ns.pod(
        "part",
        json!({"clipImage": "debian", "path": "/usr/bin"}),
        "sha256sum /image/bash; echo done; sleep 100000",
    );
    let by_name = ns.wait_log("by-name", "4755");
    let by_image = ns.wait_log("by-image", "4755");
    let part = ns.wait_log("part", "done");
    assert_eq!(by_name, by_image);
    assert_eq!(
        by_name.split(' ').next(),
        part.split(' ').next(),
        "the same content through `path`"
    );

    let mounts = clip_mounts();
    // Whoever serves the tree, the kernel or clip-serve.
    for (what, mark) in [("connection", " - fuse.clip "), ("tree", "/pods/")] {
        let devices: std::collections::BTreeSet<_> = mounts
            .iter()
            .filter(|line| line.contains(mark))
            .filter_map(|line| line.split(' ').nth(2))
            .collect();
        assert_eq!(
            devices.len(),
            1,
            "one {what} for three pods:\n{}",
            mounts.join("\n")
        );
    }
    assert!(
        mounts.iter().filter(|line| line.contains("/pods/")).count() >= 3,
        "{}",
        mounts.join("\n")
    );

    ns.kubectl(&["delete", "pod", "--all", "--timeout=60s"])
        .unwrap();
    eventually("all mounts gone", || match clip_mounts() {
        mounts if mounts.is_empty() => Ok(()),
        mounts => Err(mounts.join("\n")),
    });
}

#[test]
fn s11_volumes_are_read_only_and_without_setuid_or_devices() {
    let ns = Namespace::new("readonly");
    ns.clip_image(
        "debian",
        json!({"image": format!("{REGISTRY}/demo/debian-min:1")}),
    );
    ns.wait_ready("debian");
    let script = "touch /image/x 2>&1; echo end; sleep 100000";
    ns.pod("writer", json!({"clipImage": "debian"}), script);
    let log = ns.wait_log("writer", "end");
    assert!(log.contains("Read-only file system"), "{log}");
    let mounts = clip_mounts();
    let of_pod = mounts.iter().find(|line| line.contains("/pods/")).unwrap();
    assert!(of_pod.contains("ro,nosuid,nodev"), "{of_pod}");
}

#[test]
fn s11_a_pod_that_comes_first_waits_and_its_events_say_for_what() {
    let ns = Namespace::new("early");
    ns.clip_image(
        "debian",
        json!({"image": format!("{REGISTRY}/demo/debian-min:1"), "suspend": true}),
    );
    ns.pod(
        "early",
        json!({"clipImage": "debian"}),
        "echo here; sleep 100000",
    );
    let events = ns.wait_event("FailedMount");
    assert!(
        events.contains("debian") && events.contains("suspend"),
        "{events}"
    );
    ns.kubectl(&[
        "patch",
        "clipimage",
        "debian",
        "--type=merge",
        "-p",
        r#"{"spec":{"suspend":false}}"#,
    ])
    .unwrap();
    ns.wait_log("early", "here");
}

#[test]
fn s11_a_deleted_clipimage_leaves_no_job_and_no_archive() {
    let ns = Namespace::new("deleted");
    ns.clip_image(
        "app",
        json!({"image": format!("{REGISTRY}/demo/alpine-like:1")}),
    );
    let digest = ns.wait_ready("app")["status"]["artifacts"][0]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    ns.kubectl(&["delete", "clipimage", "app", "--timeout=60s"])
        .unwrap();
    eventually("no Job left", || {
        match ns.kubectl(&["get", "jobs", "-o", "name"])? {
            jobs if jobs.is_empty() => Ok(()),
            jobs => Err(jobs),
        }
    });
    assert!(digest.starts_with("sha256:"));
}

/// One row of `crds/tests/cel-cases.yaml`.
#[derive(serde::Deserialize)]
struct Case {
    case: String,
    spec: Value,
    #[serde(default)]
    old: Option<Value>,
    #[serde(default)]
    name: Option<String>,
    expect: String,
}

#[test]
fn s11_the_api_server_accepts_and_refuses_what_the_cases_say() {
    let ns = Namespace::new("cel");
    let text = std::fs::read_to_string(repository().join("crds/tests/cel-cases.yaml")).unwrap();
    let cases: Vec<Case> = serde_yaml::from_str(&text).unwrap();
    assert!(cases.len() >= 15, "{} cases", cases.len());
    for case in cases {
        let object = |spec: &Value| {
            let name = case.name.as_deref().unwrap_or("a");
            json!({"apiVersion": "clip.dev/v1alpha1", "kind": "ClipImage", "metadata": {"name": name}, "spec": spec})
        };
        if let Some(old) = &case.old {
            ns.apply(&object(old));
        }
        let answer = ns.try_apply(&object(&case.spec));
        match (&answer, case.expect.as_str()) {
            (Ok(_), "") => {}
            (Err(complaint), expected) if !expected.is_empty() && complaint.contains(expected) => {}
            _ => panic!("{}: expected {:?}, got {answer:?}", case.case, case.expect),
        }
        if case.old.is_some() {
            ns.kubectl(&["delete", "clipimages", "--all", "--timeout=60s"])
                .unwrap();
        }
    }
}
