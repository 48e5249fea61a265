//! S11: where a node gets its archives: the archive service, then registries, each archive once and never a wrong one.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::routing::get;
use clip_crds::Prefetch;
use clip_csi_node::archive_sources::{FetchError, Sources};
use clip_csi_node::archives::Archives;
use clip_csi_node::profiles::ProfileFiles;
use clip_csi_node::resolve::{ArchiveRef, Place};
use clip_csi_node::wire::Secret;
use clip_registry::{
    ArtifactLayer, Client, ClientOptions, Credentials, Digest, Reference, Repository, push_artifact,
};
use clip_testkit::registry::TestRegistry;

const CONTENT: &[u8] = b"the bytes of an archive";
const ARTIFACT_TYPE: &str = "application/vnd.clip.archive.v1";
const LAYER_TYPE: &str = "application/vnd.clip.archive.v1.clip";

/// Status and body.
type Answer = (u16, Vec<u8>);

/// An archive service that answers as it is told to.
#[derive(Clone, Default)]
struct Service {
    requests: Arc<AtomicUsize>,
    /// The last one is repeated.
    answers: Arc<Mutex<Vec<Answer>>>,
    /// `Authorization` and path of the last request.
    seen: Arc<Mutex<(String, String)>>,
    /// The start profile, which has an address and a count of its own.
    profile: Arc<Mutex<Option<Vec<u8>>>>,
    profiles_put: Arc<AtomicUsize>,
}

async fn get_profile(State(service): State<Service>) -> (StatusCode, Vec<u8>) {
    match service.profile.lock().unwrap().clone() {
        Some(json) => (StatusCode::OK, json),
        None => (StatusCode::NOT_FOUND, vec![]),
    }
}

async fn put_profile(State(service): State<Service>, body: axum::body::Bytes) -> StatusCode {
    *service.profile.lock().unwrap() = Some(body.to_vec());
    // The first answer is lost.
    match service.profiles_put.fetch_add(1, Ordering::SeqCst) {
        0 => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::NO_CONTENT,
    }
}

async fn answer(
    State(service): State<Service>,
    uri: Uri,
    headers: HeaderMap,
) -> (StatusCode, Vec<u8>) {
    service.requests.fetch_add(1, Ordering::SeqCst);
    let authorization = headers
        .get("authorization")
        .map_or("", |value| value.to_str().unwrap());
    *service.seen.lock().unwrap() = (authorization.to_owned(), uri.path().to_owned());
    // Long enough for all pods of a test to ask meanwhile.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut answers = service.answers.lock().unwrap();
    let (status, body) = if answers.len() > 1 {
        answers.remove(0)
    } else {
        answers[0].clone()
    };
    (StatusCode::from_u16(status).unwrap(), body)
}

impl Service {
    async fn start(answers: &[(u16, &[u8])]) -> (Service, String) {
        let service = Service::default();
        *service.answers.lock().unwrap() = answers
            .iter()
            .map(|(status, body)| (*status, body.to_vec()))
            .collect();
        let router = Router::new()
            .route(
                "/v1/archives/{digest}/profile",
                get(get_profile).put(put_profile),
            )
            .fallback(get(answer))
            .with_state(service.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (service, url)
    }

    fn count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn options() -> ClientOptions {
    ClientOptions {
        credentials: Credentials::Anonymous,
        ..ClientOptions::default()
    }
}

fn archives(folder: &Path, url: Option<String>) -> Archives {
    let token = folder.join("token");
    std::fs::write(&token, "let-me-in\n").unwrap();
    Archives::new(
        folder.join("archives"),
        ProfileFiles::open(folder).unwrap(),
        Sources::new(url, Some(token), options()).unwrap(),
    )
    .unwrap()
}

fn wanted(places: Vec<Place>) -> ArchiveRef {
    ArchiveRef {
        digest: Digest::sha256_of(CONTENT),
        size: None,
        places,
        prefetch: Prefetch::default(),
    }
}

fn assert_empty(folder: &Path) {
    assert_eq!(
        std::fs::read_dir(folder.join("archives")).unwrap().count(),
        0,
        "something is left"
    );
}

#[tokio::test]
async fn an_archive_is_fetched_with_the_nodes_token_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (service, url) = Service::start(&[(200, CONTENT)]).await;
    let archives = archives(folder.path(), Some(url));
    let archive = archives.ensure(&wanted(vec![]), None).await.unwrap();
    assert_eq!(std::fs::read(&archive.file).unwrap(), CONTENT);
    let (authorization, path) = service.seen.lock().unwrap().clone();
    assert_eq!(authorization, "Bearer let-me-in");
    assert_eq!(path, format!("/v1/archives/{}", archive.digest));
    archives.ensure(&wanted(vec![]), None).await.unwrap();
    assert_eq!(service.count(), 1, "what is on disk is not asked for");
}

#[tokio::test]
async fn what_one_node_records_comes_with_the_archive_to_the_next() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (service, url) = Service::start(&[(200, CONTENT)]).await;
    let [first, second] = [0, 1].map(|n: usize| archives(folders[n].path(), Some(url.clone())));
    let [ours, theirs] = [0, 1].map(|n: usize| ProfileFiles::open(folders[n].path()).unwrap());
    let archive = first.ensure(&wanted(vec![]), None).await.unwrap().digest;
    assert!(!ours.published(&archive).exists(), "nobody has recorded it");

    std::fs::write(ours.to_record(&archive).unwrap(), "recorded").unwrap();
    for tries in 1..4 {
        first.send_profiles().await;
        let sent = service.profiles_put.load(Ordering::SeqCst);
        assert_eq!(
            sent,
            tries.min(2),
            "until it was accepted, and then no more"
        );
    }
    assert_eq!(ours.to_record(&archive), None);

    second.ensure(&wanted(vec![]), None).await.unwrap();
    let published = std::fs::read(theirs.published(&archive)).unwrap();
    assert_eq!(published, b"recorded");
}

#[tokio::test]
async fn a_restart_forgets_the_profiles_of_archives_that_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (_service, url) = Service::start(&[(200, CONTENT)]).await;
    let before = archives(folder.path(), Some(url.clone()));
    let profiles = ProfileFiles::open(folder.path()).unwrap();
    let archive = before.ensure(&wanted(vec![]), None).await.unwrap();
    std::fs::write(profiles.to_record(&archive.digest).unwrap(), "recorded").unwrap();
    profiles.mark_sent(&archive.digest).unwrap();
    archives(folder.path(), Some(url.clone()));
    assert_eq!(profiles.to_record(&archive.digest), None, "it is there");
    std::fs::remove_file(&archive.file).unwrap();
    archives(folder.path(), Some(url));
    assert!(profiles.to_record(&archive.digest).is_some());
}

#[tokio::test]
async fn many_pods_cause_one_request() {
    let folder = tempfile::tempdir().unwrap();
    let (service, url) = Service::start(&[(200, CONTENT)]).await;
    let archives = archives(folder.path(), Some(url));
    let wanted = wanted(vec![]);
    let pods = (0..20).map(|_| archives.ensure(&wanted, None));
    futures::future::try_join_all(pods).await.unwrap();
    assert_eq!(service.count(), 1);
}

#[tokio::test]
async fn a_fetch_goes_on_when_the_pod_has_lost_patience() {
    let folder = tempfile::tempdir().unwrap();
    let (service, url) = Service::start(&[(200, CONTENT)]).await;
    let archives = archives(folder.path(), Some(url));
    let wanted = wanted(vec![]);
    let impatient =
        tokio::time::timeout(Duration::from_millis(10), archives.ensure(&wanted, None)).await;
    assert!(impatient.is_err());
    archives.ensure(&wanted, None).await.unwrap();
    assert_eq!(service.count(), 1);
}

#[tokio::test]
async fn wrong_bytes_are_asked_for_again_and_never_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (service, url) = Service::start(&[(200, b"cut"), (503, b""), (200, CONTENT)]).await;
    let good = archives(folder.path(), Some(url))
        .ensure(&wanted(vec![]), None)
        .await
        .unwrap();
    assert_eq!(std::fs::read(&good.file).unwrap(), CONTENT);
    assert_eq!(service.count(), 3);

    let folder = tempfile::tempdir().unwrap();
    let (_, url) = Service::start(&[(200, b"always wrong")]).await;
    let error = archives(folder.path(), Some(url))
        .ensure(&wanted(vec![]), None)
        .await
        .unwrap_err();
    assert!(
        matches!(*error, FetchError::Digest { size: 12, .. }),
        "{error}"
    );
    assert_empty(folder.path());
}

#[tokio::test]
async fn a_clear_no_is_reported_at_once_with_what_to_do() {
    for (status, advice) in [(404, "is being made again"), (401, "service-account token")] {
        let folder = tempfile::tempdir().unwrap();
        let (service, url) = Service::start(&[(status, b"")]).await;
        let error = archives(folder.path(), Some(url))
            .ensure(&wanted(vec![]), None)
            .await
            .unwrap_err();
        assert!(error.to_string().contains(advice), "{error}");
        assert_eq!(service.count(), 1);
        assert_empty(folder.path());
    }
    let folder = tempfile::tempdir().unwrap();
    let error = archives(folder.path(), None)
        .ensure(&wanted(vec![]), None)
        .await
        .unwrap_err();
    assert!(matches!(*error, FetchError::NoPlace(_)), "{error}");
}

#[tokio::test]
async fn what_the_service_lost_is_fetched_from_a_registry() {
    let registry = TestRegistry::start().unwrap();
    let client = Client::new(options()).unwrap();
    let repository = Repository::new(registry.address(), "team/archives").unwrap();
    let layer = ArtifactLayer {
        media_type: LAYER_TYPE.into(),
        content: CONTENT.into(),
        ..ArtifactLayer::default()
    };
    let push = |kind: &'static str| {
        push_artifact(&client, &repository, kind, None, None, vec![layer.clone()])
    };
    let place = |digest| {
        vec![Place::Registry(Reference::with_digest(
            repository.clone(),
            digest,
        ))]
    };
    let archive = place(push(ARTIFACT_TYPE).await.unwrap().digest);
    let other = place(push("application/vnd.example").await.unwrap().digest);

    let folder = tempfile::tempdir().unwrap();
    let (_, url) = Service::start(&[(404, b"")]).await;
    let fetched = archives(folder.path(), Some(url))
        .ensure(&wanted(archive), None)
        .await
        .unwrap();
    assert_eq!(std::fs::read(&fetched.file).unwrap(), CONTENT);

    let folder = tempfile::tempdir().unwrap();
    let error = archives(folder.path(), None)
        .ensure(&wanted(other), None)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("is not a Clip archive: its type is application/vnd.example"),
        "{error}"
    );
    assert_empty(folder.path());
}

#[tokio::test]
async fn who_waits_for_a_fetch_that_is_refused_tries_with_credentials_of_its_own() {
    let registry = TestRegistry::start_with_auth("user", "password").unwrap();
    let credentials = Credentials::Basic {
        username: "user".into(),
        password: "password".into(),
    };
    let client = Client::new(ClientOptions {
        credentials,
        ..options()
    })
    .unwrap();
    let repository = Repository::new(registry.address(), "team/archives").unwrap();
    let layer = ArtifactLayer {
        media_type: LAYER_TYPE.into(),
        content: CONTENT.into(),
        ..ArtifactLayer::default()
    };
    let pushed = push_artifact(&client, &repository, ARTIFACT_TYPE, None, None, vec![layer]);
    let place = Reference::with_digest(repository.clone(), pushed.await.unwrap().digest);
    let wanted = wanted(vec![Place::Registry(place)]);
    let login = serde_json::json!({"username": "user", "password": "password"});
    let config = serde_json::json!({"auths": {registry.address(): login}});
    let secret = Secret(config.to_string());

    let folder = tempfile::tempdir().unwrap();
    let archives = archives(folder.path(), None);
    let (warm_up, pod) = tokio::join!(
        archives.ensure(&wanted, None),
        archives.ensure(&wanted, Some(&secret))
    );
    let refused = warm_up.unwrap_err().to_string();
    assert!(refused.contains("needs a login"), "{refused}");
    assert_eq!(std::fs::read(&pod.unwrap().file).unwrap(), CONTENT);
}

#[tokio::test]
async fn what_a_killed_plugin_left_unfinished_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("archives")).unwrap();
    std::fs::write(folder.path().join("archives/.unfinished-x"), "half").unwrap();
    let archives = archives(folder.path(), None);
    assert_empty(folder.path());
    archives.check_writable().unwrap();
    assert_empty(folder.path());
}
