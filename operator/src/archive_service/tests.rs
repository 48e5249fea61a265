//! The service against a scripted apiserver: every way to be refused, and that nothing is left behind.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use axum::body::to_bytes;
use clip_archive::{ArchiveWriter, LayerSection, RuntimeDirs, head::Indexer, write::ImageInfo};
use clip_crds::{ClipImage, ClipImageSpec};
use clip_telemetry::metrics::Metrics;
use http::{Method, Request};
use kube::{Client, client::Body as KubeBody};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::{
    access::ServiceAccount,
    controller::{Wakes, waker},
    identity::job_name,
};

mod memory;
mod profiles;
mod sections;

const UPLOAD: &str = "/v1/namespaces/team-a/clipimages/alpine/archive?uid=u1";

/// An apiserver that holds one ClipImage with its Job and pod, and knows some tokens.
#[derive(Clone)]
struct Apiserver(Arc<Mutex<Answers>>);

struct Answers {
    objects: HashMap<String, Value>,
    tokens: HashMap<String, Value>,
    down: bool,
}

fn image() -> ClipImage {
    let spec = ClipImageSpec {
        image: "alpine:3.20".into(),
        ..Default::default()
    };
    let mut image = ClipImage::new("alpine", spec);
    image.metadata.namespace = Some("team-a".into());
    image.metadata.uid = Some("u1".into());
    image
}

fn user(namespace: &str, name: &str, pod: Option<&str>) -> Value {
    let mut user = json!({"username": format!("system:serviceaccount:{namespace}:{name}")});
    if let Some(pod) = pod {
        user["extra"] = json!({
            "authentication.kubernetes.io/pod-name": [pod],
            "authentication.kubernetes.io/pod-uid": [format!("{pod}-uid")],
        });
    }
    user
}

fn owner(kind: &str, name: &str, uid: &str) -> Value {
    json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": uid, "controller": true}])
}

impl Apiserver {
    fn new() -> Self {
        let job = job_name(&image(), 1);
        let pod = |name: &str, owners: Value| json!({"metadata": {"name": name, "uid": format!("{name}-uid"), "ownerReferences": owners}});
        let namespace = "/namespaces/team-a";
        let objects = [
            (
                format!("/apis/clip.dev/v1alpha1{namespace}/clipimages/alpine"),
                json!(image()),
            ),
            (
                format!("/api/v1{namespace}/pods/indexer"),
                pod("indexer", owner("Job", &job, "j1")),
            ),
            (
                format!("/api/v1{namespace}/pods/stranger"),
                pod("stranger", json!([])),
            ),
            (
                format!("/api/v1{namespace}/pods/other"),
                pod("other", owner("Job", "other", "j2")),
            ),
            (
                format!("/apis/batch/v1{namespace}/jobs/{job}"),
                json!({"metadata": {
                    "name": job, "uid": "j1", "annotations": {"clip.dev/attempt": "1"},
                    "ownerReferences": owner("ClipImage", "alpine", "u1"),
                }}),
            ),
            (
                format!("/apis/batch/v1{namespace}/jobs/other"),
                json!({"metadata": {
                    "name": "other", "uid": "j2", "ownerReferences": owner("CronJob", "backup", "c1"),
                }}),
            ),
        ];
        let tokens = [
            ("good", user("team-a", "default", Some("indexer"))),
            ("unbound", user("team-a", "default", None)),
            ("stranger", user("team-a", "default", Some("stranger"))),
            ("other-job", user("team-a", "default", Some("other"))),
            ("gone", user("team-a", "default", Some("gone"))),
            ("elsewhere", user("team-b", "default", Some("indexer"))),
            ("node", user("clip-system", "clip-csi-node", Some("csi"))),
            ("person", json!({"username": "admin"})),
        ];
        Self(Arc::new(Mutex::new(Answers {
            objects: objects.into(),
            tokens: tokens.map(|(token, user)| (token.to_owned(), user)).into(),
            down: false,
        })))
    }

    fn change(&self, change: impl FnOnce(&mut Answers)) {
        change(&mut self.0.lock().expect("the answers"));
    }

    fn change_image(&self, change: impl FnOnce(&mut ClipImage)) {
        let mut changed = image();
        change(&mut changed);
        let path = "/apis/clip.dev/v1alpha1/namespaces/team-a/clipimages/alpine";
        self.change(|answers| drop(answers.objects.insert(path.into(), json!(changed))));
    }

    fn client(&self) -> Client {
        let answers = self.clone();
        let service = tower::service_fn(move |request: Request<KubeBody>| {
            let answers = answers.clone();
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect_bytes().await.expect("a body");
                let (code, answer) = answers.answer(&path, &body);
                let body = KubeBody::from(serde_json::to_vec(&answer).expect("JSON"));
                Ok::<_, Infallible>(
                    http::Response::builder()
                        .status(code)
                        .body(body)
                        .expect("a response"),
                )
            }
        });
        Client::new(service, "default")
    }

    fn answer(&self, path: &str, body: &[u8]) -> (u16, Value) {
        let answers = self.0.lock().expect("the answers");
        let status = |code: u16, reason: &str| {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure",
                "message": "scripted", "reason": reason, "code": code,
            });
            (code, status)
        };
        if answers.down {
            return status(503, "ServiceUnavailable");
        }
        if path == "/apis/authentication.k8s.io/v1/tokenreviews" {
            let mut review: Value = serde_json::from_slice(body).expect("a TokenReview");
            let user = review["spec"]["token"]
                .as_str()
                .and_then(|token| answers.tokens.get(token));
            review["status"] = match user {
                Some(user) => {
                    json!({"authenticated": true, "audiences": review["spec"]["audiences"], "user": user})
                }
                None => json!({"authenticated": false, "error": "token has expired"}),
            };
            return (201, review);
        }
        answers
            .objects
            .get(path)
            .map_or_else(|| status(404, "NotFound"), |object| (200, object.clone()))
    }
}

struct Bench {
    apiserver: Apiserver,
    service: Arc<ArchiveService>,
    store: Store,
    wakes: Wakes,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self::with(Limits {
            archive_bytes: 10_000,
            decoded_bytes: 1 << 20,
        })
    }

    fn with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path()).expect("opened");
        let apiserver = Apiserver::new();
        let node = ServiceAccount {
            namespace: "clip-system".into(),
            name: "clip-csi-node".into(),
        };
        let (waker, wakes) = waker();
        let measures = Measures::new(&mut Metrics::default());
        let access = Access::new(apiserver.client(), node);
        let platform = "linux/amd64".to_owned();
        let service = ArchiveService::new(access, store.clone(), waker, measures, limits, platform);
        Self {
            apiserver,
            service: Arc::new(service),
            store,
            wakes,
            dir,
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: impl Into<Body>,
    ) -> (u16, Vec<u8>) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let request = request.body(body.into()).expect("a request");
        let response = self
            .service
            .clone()
            .router()
            .oneshot(request)
            .await
            .expect("an answer");
        let code = response.status().as_u16();
        (
            code,
            to_bytes(response.into_body(), usize::MAX)
                .await
                .expect("a body")
                .to_vec(),
        )
    }

    async fn put(&self, path: &str, token: Option<&str>, body: impl Into<Body>) -> (u16, Value) {
        let (code, answer) = self.send(Method::PUT, path, token, body).await;
        (code, serde_json::from_slice(&answer).expect("JSON"))
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.dir.path()).expect("listed").count()
    }
}

fn archive() -> Vec<u8> {
    archive_of(&[])
}

fn archive_of(layers: &[LayerSection]) -> Vec<u8> {
    archive_by(Indexer::default(), layers)
}

fn archive_by(indexer: Indexer, layers: &[LayerSection]) -> Vec<u8> {
    let mut writer = ArchiveWriter::new();
    for layer in layers {
        writer.add_layer(layer);
    }
    writer.finish(ImageInfo {
        registry: "docker.io".into(),
        repository: "library/alpine".into(),
        tag: Some("3.20".into()),
        manifest_digest: Digest::of(b"manifest"),
        platform: "linux/amd64".into(),
        config: b"{}".to_vec(),
        runtime_dirs: RuntimeDirs::Omit,
        indexer,
    })
}

#[tokio::test]
async fn a_job_uploads_the_controller_wakes_and_a_node_downloads() {
    let mut bench = Bench::new();
    let digest = Digest::of(&archive()).to_string();
    let (code, answer) = bench.put(UPLOAD, Some("good"), archive()).await;
    assert_eq!(
        (code, answer),
        (201, json!({"digest": digest, "size": archive().len()}))
    );

    let record = bench.store.record("u1").expect("a record");
    assert!(bench.store.holds(&record));
    assert_eq!(
        (record.digest.as_str(), record.image.as_str()),
        (digest.as_str(), "team-a/alpine")
    );
    assert_eq!(record.manifest_digest, Digest::of(b"manifest").to_string());
    let woken = bench.wakes.try_recv().expect("woken");
    assert_eq!(
        (woken.namespace.as_deref(), woken.name.as_str()),
        (Some("team-a"), "alpine")
    );

    let path = format!("/v1/archives/{digest}");
    assert_eq!(
        bench.send(Method::GET, &path, Some("node"), vec![]).await,
        (200, archive())
    );
}

#[tokio::test]
async fn an_upload_repeated_after_a_lost_answer_changes_nothing() {
    let bench = Bench::new();
    for _ in 0..2 {
        assert_eq!(bench.put(UPLOAD, Some("good"), archive()).await.0, 201);
        assert_eq!(bench.files(), 2);
    }
}

#[tokio::test]
async fn who_may_not_upload_is_told_why_and_leaves_nothing() {
    let bench = Bench::new();
    for (token, code, reason) in [
        (None, 401, "Unauthorized"),
        (Some("forged"), 401, "Unauthorized"),
        (Some("person"), 403, "Forbidden"),
        (Some("elsewhere"), 403, "Forbidden"),
        (Some("unbound"), 403, "Forbidden"),
        (Some("gone"), 403, "Forbidden"),
        (Some("stranger"), 403, "Forbidden"),
        (Some("other-job"), 403, "Forbidden"),
        (Some("node"), 403, "Forbidden"),
    ] {
        let (answered, problem) = bench.put(UPLOAD, token, archive()).await;
        assert_eq!(
            (answered, problem["reason"].as_str()),
            (code, Some(reason)),
            "{token:?}: {problem}"
        );
        assert!(
            problem["message"]
                .as_str()
                .is_some_and(|message| message.len() > 20),
            "{problem}"
        );
    }
    let other = UPLOAD.replace("alpine", "missing");
    assert_eq!(bench.put(&other, Some("good"), archive()).await.0, 404);
    assert_eq!(bench.files(), 0);
}

#[tokio::test]
async fn a_job_of_an_older_spec_or_of_a_deleted_clipimage_is_superseded() {
    let bench = Bench::new();
    bench
        .apiserver
        .change_image(|image| image.spec.image = "alpine:3.21".into());
    assert_eq!(bench.put(UPLOAD, Some("good"), archive()).await.0, 409);
    bench
        .apiserver
        .change_image(|image| image.metadata.uid = Some("u2".into()));
    assert_eq!(bench.put(UPLOAD, Some("good"), archive()).await.0, 409);
    assert_eq!(bench.files(), 0);
}

#[tokio::test]
async fn what_is_not_a_whole_archive_is_refused_and_leaves_nothing() {
    let bench = Bench::new();
    let mut truncated = archive();
    truncated.truncate(truncated.len() - 1);
    for (body, code, reason) in [
        (vec![], 422, "InvalidArchive"),
        (b"<html>".to_vec(), 422, "InvalidArchive"),
        (truncated, 422, "InvalidArchive"),
        (vec![0; 10_001], 413, "TooLarge"),
    ] {
        let (answered, problem) = bench.put(UPLOAD, Some("good"), body).await;
        assert_eq!(
            (answered, problem["reason"].as_str()),
            (code, Some(reason)),
            "{problem}"
        );
    }
    assert_eq!(bench.files(), 0);
}

#[tokio::test]
async fn while_the_apiserver_is_away_the_job_is_told_to_come_again() {
    let bench = Bench::new();
    bench.apiserver.change(|answers| answers.down = true);
    let (code, problem) = bench.put(UPLOAD, Some("good"), archive()).await;
    assert_eq!(
        (code, problem["reason"].as_str()),
        (503, Some("Unavailable"))
    );
}

#[tokio::test]
async fn only_the_node_plugin_may_download() {
    let bench = Bench::new();
    bench.put(UPLOAD, Some("good"), archive()).await;
    let path = format!("/v1/archives/{}", Digest::of(&archive()));
    let missing = format!("/v1/archives/{}", Digest::of(b"missing"));
    for (path, token, expected) in [
        (path.as_str(), None, 401),
        (&path, Some("forged"), 401),
        (&path, Some("good"), 403),
        (&missing, Some("node"), 404),
        ("/v1/archives/..%2F..%2Fetc%2Fpasswd", Some("node"), 400),
    ] {
        assert_eq!(
            bench.send(Method::GET, path, token, vec![]).await.0,
            expected,
            "{path} {token:?}"
        );
    }
}

#[tokio::test]
async fn the_job_that_may_upload_gets_the_archive_that_it_replaces() {
    let bench = Bench::new();
    let get = |token| bench.send(Method::GET, UPLOAD, token, vec![]);
    assert_eq!(get(Some("good")).await, (204, vec![]));
    bench.put(UPLOAD, Some("good"), archive()).await;
    assert_eq!(get(Some("good")).await, (200, archive()));

    for (token, code) in [
        (None, 401),
        (Some("forged"), 401),
        (Some("elsewhere"), 403),
        (Some("unbound"), 403),
        (Some("other-job"), 403),
        (Some("node"), 403),
    ] {
        assert_eq!(get(token).await.0, code, "{token:?}");
    }

    let digest = Digest::of(&archive());
    bench.store.remove_archive(digest).expect("removed");
    assert_eq!(get(Some("good")).await.0, 404, "lost from the disk");
}

#[tokio::test]
async fn a_clipimage_that_was_made_anew_gets_nothing_of_its_predecessor() {
    let bench = Bench::new();
    bench.put(UPLOAD, Some("good"), archive()).await;
    bench
        .apiserver
        .change_image(|image| image.metadata.uid = Some("u2".into()));
    let get = bench.send(Method::GET, UPLOAD, Some("good"), vec![]).await;
    assert_eq!(get.0, 409);
}
