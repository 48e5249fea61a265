//! Which images a node is to have whole, and with which secrets, with an apiserver that answers as it is told to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use clip_csi_node::warm_up::pull_secrets::PullSecrets;
use clip_csi_node::warm_up::wishes::{Cluster, ImageId, Source, Wish, Wishes};
use clip_csi_node::wire::{Login, Secret};
use clip_registry::Digest;
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

const IMAGES: &str = "/apis/clip.dev/v1alpha1/clipimages";
/// `{"auths":{"r.io":{"auth":"eDp5"}}}`
const LOGIN: &str = "eyJhdXRocyI6eyJyLmlvIjp7ImF1dGgiOiJlRHA1In19fQ==";

/// What the apiserver has, and the changes that it tells to who watches first.
#[derive(Clone, Default)]
struct Server {
    objects: Arc<Mutex<BTreeMap<String, Value>>>,
    changes: Arc<Mutex<Option<mpsc::UnboundedReceiver<Value>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

async fn answer(State(server): State<Server>, uri: Uri) -> Response {
    server.asked.lock().unwrap().push(uri.path().to_owned());
    if uri
        .query()
        .is_some_and(|query| query.contains("watch=true"))
    {
        let changes = server.changes.lock().unwrap().take();
        let told = stream::unfold(changes, |changes| async {
            let mut changes = changes?;
            let line = format!("{}\n", changes.recv().await?);
            Some((Ok::<_, std::io::Error>(line), Some(changes)))
        });
        return Body::from_stream(told.chain(stream::pending())).into_response();
    }
    let found = server.objects.lock().unwrap().get(uri.path()).cloned();
    match found {
        Some(object) => object.to_string().into_response(),
        None => {
            let status =
                json!({"kind": "Status", "status": "Failure", "code": 404, "message": "m"});
            (StatusCode::NOT_FOUND, status.to_string()).into_response()
        }
    }
}

impl Server {
    fn put(&self, path: &str, object: Value) {
        self.objects.lock().unwrap().insert(path.to_owned(), object);
    }

    async fn client(&self) -> kube::Client {
        let router = Router::new().fallback(get(answer)).with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap()
    }
}

fn image(name: &str, warm_up: Value) -> Value {
    let digest = Digest::sha256_of(name.as_bytes());
    let artifact = json!({
        "platform": "linux/amd64", "manifestDigest": digest, "digest": digest, "size": 1, "formatVersion": 1,
        "files": 1, "layers": 1, "compressedBytes": 1, "unpackedBytes": 1,
    });
    json!({
        "apiVersion": "clip.dev/v1alpha1",
        "kind": "ClipImage",
        "metadata": {"name": name, "namespace": "team-a", "generation": 1, "resourceVersion": "5"},
        "spec": {"image": "r.io/a/b:1", "warmUp": warm_up},
        "status": {"observedGeneration": 1, "artifacts": [artifact]},
    })
}

async fn wait_for(wishes: &mut watch::Receiver<Wishes>, names: &[&str]) {
    let are_those = |wishes: &Wishes| {
        wishes
            .keys()
            .map(|id| id.name.as_str())
            .eq(names.iter().copied())
    };
    let wait = wishes.wait_for(are_those);
    let found = tokio::time::timeout(Duration::from_secs(30), wait).await;
    found.expect("the wishes become those").unwrap();
}

#[tokio::test]
async fn a_node_wishes_for_what_is_meant_for_its_labels_and_follows_changes() {
    let server = Server::default();
    let (tell, changes) = mpsc::unbounded_channel();
    *server.changes.lock().unwrap() = Some(changes);
    let on_gpus = json!({"nodeSelector": {"gpu": "yes"}});
    let items = [
        image("everywhere", json!({})),
        image("gpus", on_gpus),
        image("elsewhere", json!({"nodeSelector": {"gpu": "no"}})),
        image("nowhere", Value::Null),
    ];
    server.put(
        IMAGES,
        json!({"metadata": {"resourceVersion": "5"}, "items": items}),
    );
    let labels = json!({"gpu": "yes", "kubernetes.io/os": "linux"});
    let node = json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": {"name": "node-a", "labels": labels},
    });
    server.put("/api/v1/nodes/node-a", node);

    let cluster = Cluster::new(server.client().await, "linux/amd64".into(), "node-a".into());
    let (told, mut wishes) = watch::channel(Wishes::new());
    tokio::spawn(async move { Source::Cluster(cluster).watch(&told).await });
    wait_for(&mut wishes, &["everywhere", "gpus"]).await;
    tell.send(json!({"type": "DELETED", "object": image("gpus", Value::Null)}))
        .unwrap();
    wait_for(&mut wishes, &["everywhere"]).await;
    tell.send(json!({"type": "MODIFIED", "object": image("nowhere", json!({}))}))
        .unwrap();
    wait_for(&mut wishes, &["everywhere", "nowhere"]).await;
}

#[tokio::test]
async fn only_secrets_that_an_admin_named_are_asked_for() {
    let server = Server::default();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "regcred", "namespace": "team-a"},
        "data": {".dockerconfigjson": LOGIN},
    });
    server.put("/api/v1/namespaces/team-a/secrets/regcred", secret);
    let permitted = ["team-a/regcred", "team-b/other"].map(|id| id.parse().unwrap());
    let secrets = PullSecrets::Cluster(server.client().await, permitted.into());
    let image = ImageId {
        namespace: "team-a".into(),
        name: "app".into(),
    };
    let mut wish = Wish::of_archive(Digest::sha256_of(b""));
    wish.pull_secrets = vec!["other".into(), "regcred".into()];
    let known = secrets.login(&image, &wish).await;
    let config = r#"{"auths":{"r.io":{"auth":"eDp5"}}}"#;
    assert_eq!(
        known.login,
        Login::DockerConfigJson(Secret(config.to_owned()))
    );
    assert!(known.hint.contains("team-a/other"), "{}", known.hint);
    let asked = server.asked.lock().unwrap().clone();
    assert_eq!(asked, ["/api/v1/namespaces/team-a/secrets/regcred"]);

    wish.pull_secrets.clear();
    let known = secrets.login(&image, &wish).await;
    assert_eq!((known.login, known.hint), (Login::Anonymous, String::new()));
}
