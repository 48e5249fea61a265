//! S11: how a volume finds its `ClipImage`, with an apiserver that answers as it is told to.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::routing::get;
use clip_crds::VolumeSource;
use clip_csi_node::resolve::{Cluster, ResolveError, Resolver};
use serde_json::{Value, json};

const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// The `ClipImage`s of namespace `team-a`.
type Images = Arc<Mutex<Vec<Value>>>;

async fn answer(
    State(images): State<Images>,
    uri: Uri,
) -> (StatusCode, [(header::HeaderName, &'static str); 1], String) {
    let images = images.lock().unwrap();
    let (status, body) = match uri
        .path()
        .strip_prefix("/apis/clip.dev/v1alpha1/namespaces/team-a/clipimages")
    {
        Some("") => (200, json!({"metadata": {}, "items": *images})),
        Some(path) => match images
            .iter()
            .find(|image| path[1..] == *image["metadata"]["name"].as_str().unwrap())
        {
            Some(image) => (200, image.clone()),
            None => (404, not_found()),
        },
        None => (404, not_found()),
    };
    let json = [(header::CONTENT_TYPE, "application/json")];
    (
        StatusCode::from_u16(status).unwrap(),
        json,
        body.to_string(),
    )
}

fn not_found() -> Value {
    json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not found"})
}

fn image(name: &str, reference: &str, status: Value) -> Value {
    json!({
        "apiVersion": "clip.dev/v1alpha1",
        "kind": "ClipImage",
        "metadata": {"name": name, "namespace": "team-a", "generation": 1},
        "spec": {"image": reference},
        "status": status,
    })
}

fn indexing() -> Value {
    let ready = json!({
        "type": "Ready", "status": "False", "reason": "Indexing", "lastTransitionTime": "2026-01-01T00:00:00Z",
        "message": "python:3.12 is being indexed by Job clip-index-x for 12s",
    });
    json!({"observedGeneration": 1, "conditions": [ready]})
}

fn indexed() -> Value {
    let artifact = json!({
        "platform": "linux/amd64", "manifestDigest": DIGEST, "digest": DIGEST, "size": 1, "formatVersion": 1,
        "files": 1, "layers": 1, "compressedBytes": 1, "unpackedBytes": 1,
    });
    json!({"observedGeneration": 1, "artifacts": [artifact]})
}

async fn cluster(images: &Images) -> Resolver {
    let router = Router::new()
        .fallback(get(answer))
        .with_state(images.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
    Resolver::Cluster(Cluster::new(client, "linux/amd64".to_owned()))
}

fn named(name: &str) -> VolumeSource {
    VolumeSource::ClipImage(name.to_owned())
}

#[tokio::test]
async fn a_volume_waits_for_its_image_and_gets_it_as_soon_as_it_is_indexed() {
    let images = Images::default();
    images
        .lock()
        .unwrap()
        .push(image("python", "python:3.12", indexing()));
    let resolver = cluster(&images).await;
    let later = images.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        *later.lock().unwrap() = vec![image("python", "python:3.12", indexed())];
    });
    let begun = Instant::now();
    let archive = resolver
        .wait("team-a", &named("python"), Duration::from_secs(30))
        .await
        .unwrap();
    assert_eq!(archive.digest.to_string(), DIGEST);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_volume_whose_patience_ends_says_how_far_its_image_is() {
    let images = Images::default();
    images
        .lock()
        .unwrap()
        .push(image("python", "python:3.12", indexing()));
    let resolver = cluster(&images).await;
    let error = resolver
        .wait("team-a", &named("python"), Duration::from_millis(700))
        .await
        .unwrap_err();
    assert!(matches!(error, ResolveError::NotReady(_)));
    assert_eq!(
        error.to_string(),
        "ClipImage team-a/python is not ready: python:3.12 is being indexed by Job clip-index-x for 12s (Indexing); \
         waited 0 s, and will try again"
    );
}

#[tokio::test]
async fn an_image_by_reference_is_found_under_any_of_its_spellings() {
    let images = Images::default();
    *images.lock().unwrap() = vec![
        image("waiting", "python:3.12", indexing()),
        image("ready", "docker.io/library/python:3.12", indexed()),
    ];
    let resolver = cluster(&images).await;
    let source = VolumeSource::Image("index.docker.io/library/python:3.12".to_owned());
    let archive = resolver.wait("team-a", &source, Duration::ZERO).await;
    assert_eq!(
        archive
            .expect("of two the ready one is taken")
            .digest
            .to_string(),
        DIGEST
    );
}

#[tokio::test]
async fn what_does_not_exist_is_said_at_once_with_the_remedy() {
    let resolver = cluster(&Images::default()).await;
    let patience = Duration::from_secs(60);
    let begun = Instant::now();
    let error = resolver
        .wait("team-a", &named("python"), patience)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("ClipImage team-a/python does not exist: create it"),
        "{error}"
    );
    let source = VolumeSource::Image("python:3.12".to_owned());
    let error = resolver
        .wait("team-a", &source, patience)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("spec: {image: docker.io/library/python:3.12}"),
        "{error}"
    );
    assert!(begun.elapsed() < Duration::from_secs(10));
}
