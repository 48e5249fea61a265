//! S11: what goes wrong with a volume reaches its pod, when kubelet asks the next time.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::routing::post;
use clip_crds::PodInfo;
use clip_csi_node::troubles::{PodEvents, Trouble};
use clip_testkit::proxy::Mood;
use common::{IMAGE, Scene};
use nix::sys::signal::Signal;
use serde_json::Value;

const DATA: &[(&str, &str)] = &[("clipImage", IMAGE)];

/// How often the log says that a pod was told of `reason`.
fn told(scene: &Scene, reason: &str) -> usize {
    let log = scene.read_log();
    let marks = [
        format!("reason=\"{reason}\""),
        "namespace=\"team-a\"".into(),
    ];
    log.lines()
        .filter(|line| marks.iter().all(|mark| line.contains(mark)))
        .count()
}

/// Lets kubelet repeat its publish until the pod was told so often.
fn publish_until_told(scene: &Scene, target: &Path, reason: &str, times: usize) {
    scene.wait_until("the pod is told", || {
        scene.publish(target, DATA).unwrap();
        told(scene, reason) == times
    });
}

/// docs/semantics.md: "the pod is told the latest in an event".
#[test]
fn a_pod_is_told_of_a_file_that_cannot_be_read_and_why() {
    let mut scene = Scene::new();
    // With EROFS the kernel asks again and again before it gives up.
    scene.arguments = vec!["--engine=fuse".to_owned()];
    scene.start();
    let target = scene.target("one");
    scene.publish(&target, DATA).unwrap();
    scene.proxy.set(Mood::Answer {
        status: 403,
        retry_after: None,
    });
    let read = Command::new("cat").arg(target.join("srv/3")).output();
    assert!(!read.unwrap().status.success());

    publish_until_told(&scene, &target, "ReadFailed", 1);
    let log = scene.read_log();
    let line = log
        .lines()
        .find(|line| line.contains("ReadFailed"))
        .unwrap();
    let message = format!(
        "Reading /srv/3 of {}/{IMAGE}:1 failed: ",
        scene.proxy.address()
    );
    assert!(line.contains(&message), "{line}");
    assert!(line.contains("without a login"), "{line}");

    // Nothing failed since.
    for _ in 0..3 {
        scene.publish(&target, DATA).unwrap();
    }
    assert_eq!(told(&scene, "ReadFailed"), 1);
    scene.unpublish(&target).unwrap();
}

#[test]
fn a_pod_is_told_that_its_volume_was_lost() {
    let mut scene = Scene::running();
    let (mended, cleared) = (scene.target("one"), scene.target("two"));
    scene.publish(&mended, DATA).unwrap();
    scene.stop(Signal::SIGKILL);
    scene.start();
    publish_until_told(&scene, &mended, "VolumeLost", 1);

    // What cannot be mended from the node's disk, kubelet has mounted.
    scene.publish(&cleared, DATA).unwrap();
    assert_eq!(told(&scene, "VolumeLost"), 1, "this one is new");
    scene.stop(Signal::SIGKILL);
    fs::remove_dir_all(scene.path("state")).unwrap();
    scene.start();
    publish_until_told(&scene, &cleared, "VolumeLost", 2);
    for target in [&mended, &cleared] {
        scene.unpublish(target).unwrap();
    }
    scene.assert_nothing_left();
}

/// What an API server was sent: where to, and the object.
type Sent = Arc<Mutex<Vec<(String, Value)>>>;

async fn take(State(sent): State<Sent>, uri: Uri, body: String) -> (StatusCode, String) {
    let event = serde_json::from_str(&body).unwrap();
    sent.lock().unwrap().push((uri.path().to_owned(), event));
    (StatusCode::CREATED, body)
}

#[tokio::test]
async fn the_event_is_one_of_the_pod() {
    let sent = Sent::default();
    let router = Router::new().fallback(post(take)).with_state(sent.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();

    let pod = PodInfo {
        name: Some("web-0".into()),
        namespace: Some("team-a".into()),
        uid: Some("1234".into()),
        ..PodInfo::default()
    };
    PodEvents::in_cluster(client)
        .tell(&pod, &Trouble::Lost)
        .await;

    let sent = sent.lock().unwrap();
    let [(path, event)] = &sent[..] else {
        panic!("{sent:?}")
    };
    assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/team-a/events");
    assert_eq!(event["regarding"]["kind"], "Pod");
    assert_eq!(event["regarding"]["name"], "web-0");
    assert_eq!(event["regarding"]["uid"], "1234");
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["reason"], "VolumeLost");
    assert_eq!(event["note"], Trouble::Lost.to_string());
}
