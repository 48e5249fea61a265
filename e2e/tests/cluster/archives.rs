//! Archives come and go: lost ones are made again, changed ones replace others, unneeded ones vanish, and no pod that
//! reads notices.

use serde_json::{Value, json};

use crate::kube::{Namespace, REGISTRY, condition, eventually, kubectl, node};
use crate::node::ARCHIVES;

/// Reads one file after the other for ever, and ends at the first failure.
const READ_ON: &str = "while :; do for f in /image/bin/*; do head -c 1 $f >/dev/null || exit 1; sleep 0.01; done; echo round; done";

#[test]
fn s11_an_archive_that_the_operator_lost_is_made_again_and_no_pod_notices() {
    let ns = indexed("lost", "alpine-like");
    ns.pod("reader", json!({"clipImage": "app"}), READ_ON);
    ns.wait_log("reader", "round");
    let before = created(&ns);
    // Its folder is an emptyDir, which goes with the pod.
    replace_operator();
    eventually("the image is indexed again", || {
        let image = ns.get_clip_image("app");
        match condition(&image, "Ready") {
            (status, ..) if status == "True" && created(&ns) != before => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let restarts = restarts(&ns, "reader");
    assert_eq!(restarts, 0, "the reading pod was disturbed");
    let events = ns.wait_event_of("app", "ArchiveLost");
    assert!(events.contains("made again"), "{events}");
}

#[test]
fn s11_a_pushed_archive_is_read_from_the_registry_while_the_operator_is_away() {
    let ns = Namespace::new("pushed");
    let image = format!("{REGISTRY}/demo/alpine-like");
    // Spans of another size: an archive that no other story has brought to this node.
    ns.clip_image(
        "app",
        json!({
            "image": format!("{image}:1"),
            "index": {"maxSpan": "1Mi"},
            "publish": {"type": "Registry", "registry": {}},
        }),
    );
    let artifact = ns.wait_ready("app")["status"]["artifacts"][0].clone();
    let place = location(&artifact, &format!("{image}@sha256:"));
    let manifest = inspect(&place);
    assert_eq!(manifest["artifactType"], "application/vnd.clip.archive.v1");
    assert_eq!(manifest["subject"]["digest"], artifact["manifestDigest"]);
    assert_eq!(manifest["layers"][0]["digest"], artifact["digest"]);
    let message = condition(&ns.get_clip_image("app"), "Published").2;
    assert!(message.contains(&place), "{message}");

    let scale = |replicas: &str| {
        let deployment = [
            "-n",
            "clip-system",
            "scale",
            "deployment/clip-operator",
            replicas,
        ];
        kubectl(&deployment).unwrap();
    };
    scale("--replicas=0");
    eventually("the operator is gone", || {
        let pods = [
            "-n",
            "clip-system",
            "get",
            "pods",
            "-o",
            "name",
            "-l",
            "app.kubernetes.io/component=operator",
        ];
        let pods = kubectl(&pods)?;
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    });
    let hex = artifact["digest"].as_str().unwrap().replace("sha256:", "");
    node(&["rm", "-f", &format!("{ARCHIVES}/{hex}.clip")]).unwrap();
    ns.pod("reader", json!({"clipImage": "app"}), READ_ON);
    ns.wait_log("reader", "round");
    scale("--replicas=1");
    operator_is_ready();
}

#[test]
fn s11_another_image_gets_another_archive_and_a_pod_in_use_keeps_its_own() {
    let ns = indexed("changed", "alpine-like");
    ns.pod("reader", json!({"clipImage": "app"}), READ_ON);
    ns.wait_log("reader", "round");
    let old = digest(&ns);
    ns.clip_image(
        "app",
        json!({"image": format!("{REGISTRY}/demo/busybox:1")}),
    );
    eventually("the other image is ready", || {
        let image = ns.get_clip_image("app");
        let ready = condition(&image, "Ready").0 == "True";
        match ready && digest(&ns) != old {
            true => Ok(()),
            false => Err(format!("{:#}", image["status"])),
        }
    });
    ns.pod(
        "new",
        json!({"clipImage": "app"}),
        "find /image | wc -l; echo counted; sleep 100000",
    );
    ns.wait_log("new", "counted");
    assert_eq!(restarts(&ns, "reader"), 0);
}

#[test]
fn s11_an_annotation_has_the_image_indexed_again_now() {
    let ns = indexed("again", "busybox");
    let before = created(&ns);
    ns.kubectl(&["annotate", "clipimage", "app", "clip.dev/requestedAt=today"])
        .unwrap();
    eventually("the request was acted on", || {
        let image = ns.get_clip_image("app");
        let handled = image["status"]["lastHandledRequestedAt"] == "today";
        let ready = condition(&image, "Ready").0 == "True";
        match handled && ready && created(&ns) != before {
            true => Ok(()),
            false => Err(format!("{:#}", image["status"])),
        }
    });
}

#[test]
fn s11_a_suspended_image_starts_no_job_and_stays_mountable() {
    let ns = indexed("suspended", "busybox");
    let before = jobs(&ns);
    ns.kubectl(&[
        "patch",
        "clipimage",
        "app",
        "--type=merge",
        "-p",
        r#"{"spec":{"suspend":true}}"#,
    ])
    .unwrap();
    ns.kubectl(&["annotate", "clipimage", "app", "clip.dev/requestedAt=now"])
        .unwrap();
    ns.wait_reason("app", "Suspended");
    ns.pod(
        "reader",
        json!({"clipImage": "app"}),
        "ls /image/bin/busybox; sleep 100000",
    );
    ns.wait_log("reader", "/image/bin/busybox");
    let after = jobs(&ns);
    assert!(
        after.iter().all(|job| before.contains(job)),
        "{before:?} became {after:?}"
    );
}

#[test]
fn s11_a_deleted_clipimages_archive_is_removed_from_the_archive_service() {
    let ns = Namespace::new("removed");
    // An archive of this story alone: others share theirs.
    ns.clip_image(
        "app",
        json!({"image": format!("{REGISTRY}/demo/busybox:1"), "index": {"maxSpan": "65Ki"}}),
    );
    ns.wait_ready("app");
    let archive = digest(&ns);
    ns.kubectl(&["delete", "clipimage", "app", "--timeout=60s"])
        .unwrap();
    eventually("the operator removes the archive", || {
        let log = kubectl(&["-n", "clip-system", "logs", "deployment/clip-operator"])?;
        let said = |line: &&str| line.contains("removed an archive") && line.contains(&archive);
        log.lines().find(said).map(drop).ok_or(log.clone())
    });
    // The cluster's garbage collector goes at its own pace.
    eventually("its Job is gone", || match jobs(&ns) {
        jobs if jobs.is_empty() => Ok(()),
        jobs => Err(format!("{jobs:?}")),
    });
}

#[test]
fn s11_layers_that_the_namespace_has_indexed_are_not_downloaded_again() {
    let ns = indexed("reused", "busybox");
    let said = |ns: &Namespace, before: &[String]| {
        let new = jobs(ns).into_iter().find(|job| !before.contains(job));
        ns.kubectl(&["logs", &new.expect("another Job")]).unwrap()
    };
    assert!(!said(&ns, &[]).contains("Reused"));

    let before = jobs(&ns);
    let image = json!({"image": format!("{REGISTRY}/demo/busybox:1")});
    ns.clip_image("other", image);
    ns.wait_ready("other");
    let log = said(&ns, &before);
    assert!(
        log.contains("Reused 1 layer from earlier archives"),
        "{log}"
    );

    let elsewhere = indexed("reused-not", "busybox");
    let log = said(&elsewhere, &[]);
    assert!(!log.contains("Reused"), "of another namespace: {log}");
}

/// A namespace with ClipImage `app` of a test image, ready.
fn indexed(story: &str, image: &str) -> Namespace {
    let ns = Namespace::new(story);
    ns.clip_image(
        "app",
        json!({"image": format!("{REGISTRY}/demo/{image}:1")}),
    );
    ns.wait_ready("app");
    ns
}

fn created(ns: &Namespace) -> String {
    ns.get_clip_image("app")["status"]["artifacts"][0]["createdTime"].to_string()
}

fn digest(ns: &Namespace) -> String {
    let digest = &ns.get_clip_image("app")["status"]["artifacts"][0]["digest"];
    digest.as_str().unwrap_or_default().to_owned()
}

fn jobs(ns: &Namespace) -> Vec<String> {
    let jobs = ns.kubectl(&["get", "jobs", "-o", "name"]).unwrap();
    jobs.lines().map(str::to_owned).collect()
}

fn restarts(ns: &Namespace, pod: &str) -> u64 {
    let count = [
        "get",
        "pod",
        pod,
        "-o",
        "jsonpath={.status.containerStatuses[0].restartCount}",
    ];
    ns.kubectl(&count).unwrap().parse().unwrap()
}

fn location(artifact: &Value, prefix: &str) -> String {
    let places = artifact["locations"].as_array().unwrap();
    let mut places = places.iter().filter_map(Value::as_str);
    let place = places.find(|place| place.starts_with(prefix));
    place
        .unwrap_or_else(|| panic!("no {prefix} in {artifact:#}"))
        .to_owned()
}

fn inspect(place: &str) -> Value {
    let raw = [
        "skopeo",
        "inspect",
        "--raw",
        "--tls-verify=false",
        &format!("docker://{place}"),
    ];
    serde_json::from_str(&node(&raw).unwrap()).unwrap()
}

fn replace_operator() {
    let delete = [
        "-n",
        "clip-system",
        "delete",
        "pod",
        "-l",
        "app.kubernetes.io/component=operator",
        "--timeout=60s",
    ];
    kubectl(&delete).unwrap();
    operator_is_ready();
}

fn operator_is_ready() {
    let status = [
        "-n",
        "clip-system",
        "rollout",
        "status",
        "deployment/clip-operator",
        "--timeout=90s",
    ];
    kubectl(&status).unwrap();
}
