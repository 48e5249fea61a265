//! Which images this node is to have whole: those whose `ClipImage` says so, for nodes with this one's labels.
//!
//! All `ClipImage`s are watched, for that is cheaper than asking for them again and again; of those that do not ask for a
//! warm-up nothing is kept.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context;
use clip_crds::ClipImage;
use clip_registry::Digest;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;

use crate::folder::Folder;
use crate::resolve::{ArchiveRef, Verdict, judge};

/// How soon labels that the node gets or loses count.
const LABELS_EVERY: Duration = Duration::from_secs(60);
/// How long the answer to a question for them may take.
const LABELS_LIMIT: Duration = Duration::from_secs(10);
/// How often a folder is looked at.
const FOLDER_EVERY: Duration = Duration::from_secs(2);

/// The name of a `ClipImage`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId {
    /// Its namespace; empty in a folder.
    pub namespace: String,
    /// Its name in there.
    pub name: String,
}

/// An image that this node is to have whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Its archive.
    pub archive: ArchiveRef,
    /// The names of secrets with which it may be pulled; in a folder, files.
    pub pull_secrets: Vec<String>,
    /// The `ClipImage`'s uid, for its events.
    pub uid: Option<String>,
}

/// All of them.
pub type Wishes = BTreeMap<ImageId, Wish>;

/// Who says which they are.
#[derive(Debug)]
pub enum Source {
    /// `ClipImage`s.
    Cluster(Cluster),
    /// A folder (`--clipimages-from`).
    Folder(Folder),
}

/// The `ClipImage`s of a cluster, and this node in it.
pub struct Cluster {
    client: Client,
    platform: String,
    node_name: String,
}

impl Source {
    /// Keeps `told` up to date, for ever.
    pub async fn watch(&self, told: &watch::Sender<Wishes>) {
        match self {
            Source::Cluster(cluster) => cluster.watch(told).await,
            Source::Folder(folder) => loop {
                tell(told, folder.wishes().await);
                tokio::time::sleep(FOLDER_EVERY).await;
            },
        }
    }
}

impl Cluster {
    /// Asks through `client`, for the node of this name, whose platform is such as `linux/amd64`.
    pub fn new(client: Client, platform: String, node_name: String) -> Cluster {
        Cluster {
            client,
            platform,
            node_name,
        }
    }

    async fn watch(&self, told: &watch::Sender<Wishes>) {
        let api = Api::<ClipImage>::all(self.client.clone());
        let mut changes = pin!(watcher(api, watcher::Config::default()).default_backoff());
        let mut known = Known::default();
        let mut labels = None;
        let mut labels_are_due = tokio::time::interval(LABELS_EVERY);
        loop {
            let went_by_labels = known.go_by_labels();
            tokio::select! {
                change = changes.next() => match change {
                    Some(Ok(change)) => known.take(change, &self.platform),
                    Some(Err(error)) => {
                        tracing::warn!(%error, "the watch of ClipImages is interrupted; what is warmed up stays as it is");
                    }
                    None => return tracing::error!("the watch of ClipImages ended"),
                },
                _ = labels_are_due.tick() => labels = self.newer_labels(&known, labels).await,
            }
            if known.go_by_labels() && !went_by_labels {
                labels_are_due.reset_immediately();
            }
            if let Some(images) = &known.images {
                tell(told, chosen(images, labels.as_ref()));
            }
        }
    }

    /// This node's labels, if some image goes by them. Without an answer those known before stand.
    async fn newer_labels(&self, known: &Known, before: Option<Labels>) -> Option<Labels> {
        if !known.go_by_labels() {
            return before;
        }
        match self.labels().await {
            Ok(labels) => Some(labels),
            Err(error) => {
                tracing::warn!(
                    node = self.node_name,
                    "cannot ask for this node's labels: {error:#}"
                );
                before
            }
        }
    }

    async fn labels(&self) -> anyhow::Result<Labels> {
        let nodes = Api::<Node>::all(self.client.clone());
        let node = tokio::time::timeout(LABELS_LIMIT, nodes.get_metadata(&self.node_name));
        let node = node.await.context("no answer")??;
        Ok(node.metadata.labels.unwrap_or_default())
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("node_name", &self.node_name)
            .finish_non_exhaustive()
    }
}

type Labels = BTreeMap<String, String>;

/// A `ClipImage` that is to be warmed up, on nodes with these labels.
#[derive(Clone, Debug, PartialEq)]
struct Request {
    node_selector: Labels,
    wish: Wish,
}

type Requests = BTreeMap<ImageId, Request>;

/// The requests of all `ClipImage`s.
#[derive(Debug, Default)]
struct Known {
    /// None until all were listed once.
    images: Option<Requests>,
    /// Those of a list that is still coming.
    coming: Requests,
}

impl Known {
    fn take(&mut self, change: Event<ClipImage>, platform: &str) {
        match change {
            Event::Init => self.coming.clear(),
            Event::InitApply(image) => note(&mut self.coming, &image, platform),
            Event::InitDone => self.images = Some(std::mem::take(&mut self.coming)),
            Event::Apply(image) => {
                if let Some(images) = &mut self.images {
                    note(images, &image, platform);
                }
            }
            Event::Delete(image) => {
                if let Some(images) = &mut self.images {
                    images.remove(&id_of(&image));
                }
            }
        }
    }

    fn go_by_labels(&self) -> bool {
        let mut requests = self.images.iter().flat_map(BTreeMap::values);
        requests.any(|request| !request.node_selector.is_empty())
    }
}

fn note(requests: &mut Requests, image: &ClipImage, platform: &str) {
    match request_of(image, platform) {
        Some(request) => requests.insert(id_of(image), request),
        None => requests.remove(&id_of(image)),
    };
}

/// What a `ClipImage` asks for, if it can be had already.
fn request_of(image: &ClipImage, platform: &str) -> Option<Request> {
    let warm_up = image.spec.warm_up.as_ref()?;
    let Ok(Verdict::Ready(archive)) = judge(image, platform) else {
        return None;
    };
    let secrets = image.spec.pull_secrets.iter();
    Some(Request {
        node_selector: warm_up.node_selector.clone(),
        wish: Wish {
            archive,
            pull_secrets: secrets.map(|secret| secret.name.clone()).collect(),
            uid: image.uid(),
        },
    })
}

/// The images that are for a node with these labels. While they are not known, only those for every node.
fn chosen(requests: &Requests, labels: Option<&Labels>) -> Wishes {
    let has =
        |(key, value): (&String, &String)| labels.and_then(|labels| labels.get(key)) == Some(value);
    let chosen = requests
        .iter()
        .filter(|(_, request)| request.node_selector.iter().all(has));
    chosen
        .map(|(id, request)| (id.clone(), request.wish.clone()))
        .collect()
}

fn id_of(image: &ClipImage) -> ImageId {
    ImageId {
        namespace: image.namespace().unwrap_or_default(),
        name: image.name_any(),
    }
}

fn tell(told: &watch::Sender<Wishes>, wishes: Wishes) {
    told.send_if_modified(|before| {
        let changed = *before != wishes;
        *before = wishes;
        changed
    });
}

impl Wish {
    /// One for an image that everybody may pull.
    pub fn of_archive(digest: Digest) -> Wish {
        Wish {
            archive: ArchiveRef {
                digest,
                size: None,
                places: Vec::new(),
                prefetch: clip_crds::Prefetch::default(),
            },
            pull_secrets: Vec::new(),
            uid: None,
        }
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const PLATFORM: &str = "linux/amd64";

    fn image(name: &str, warm_up: Value, archive: &str) -> ClipImage {
        let digest = Digest::sha256_of(archive.as_bytes());
        let artifact = json!({
            "platform": PLATFORM, "manifestDigest": digest, "digest": digest, "size": 1, "formatVersion": 1,
            "files": 1, "layers": 1, "compressedBytes": 1, "unpackedBytes": 1,
        });
        let image = json!({
            "apiVersion": "clip.dev/v1alpha1", "kind": "ClipImage",
            "metadata": {"name": name, "namespace": "team-a", "generation": 1, "uid": "u"},
            "spec": {"image": "python:3.12", "warmUp": warm_up, "pullSecrets": [{"name": "regcred"}]},
            "status": {"observedGeneration": 1, "artifacts": [artifact]},
        });
        serde_json::from_value(image).unwrap()
    }

    fn everywhere() -> Value {
        json!({})
    }

    fn names(wishes: &Wishes) -> Vec<&str> {
        wishes.keys().map(|id| id.name.as_str()).collect()
    }

    fn listed(images: Vec<ClipImage>) -> Known {
        let mut known = Known::default();
        known.take(Event::Init, PLATFORM);
        for image in images {
            known.take(Event::InitApply(image), PLATFORM);
        }
        known.take(Event::InitDone, PLATFORM);
        known
    }

    fn wishes_of(known: &Known) -> Wishes {
        chosen(known.images.as_ref().unwrap(), None)
    }

    #[test]
    fn an_image_that_is_ready_and_asks_for_it_is_wished_for_with_its_secrets() {
        let request = request_of(&image("a", everywhere(), "1"), PLATFORM).unwrap();
        assert_eq!(request.wish.archive.digest, Digest::sha256_of(b"1"));
        assert_eq!(request.wish.pull_secrets, ["regcred"]);
        assert_eq!(request_of(&image("a", Value::Null, "1"), PLATFORM), None);
        let mut unready = image("a", everywhere(), "1");
        unready.status.as_mut().unwrap().artifacts.clear();
        assert_eq!(request_of(&unready, PLATFORM), None);
    }

    #[test]
    fn an_image_is_for_the_nodes_that_have_all_labels_it_names() {
        let gpu = json!({"nodeSelector": {"gpu": "yes", "zone": "a"}});
        let known = listed(vec![
            image("all", everywhere(), "1"),
            image("gpu", gpu, "2"),
        ]);
        assert!(known.go_by_labels());
        let on = |labels: &[(&str, &str)]| {
            let labels = labels.iter();
            let labels = labels.map(|(key, value)| (key.to_string(), value.to_string()));
            let wishes = chosen(known.images.as_ref().unwrap(), Some(&labels.collect()));
            wishes.into_keys().map(|id| id.name).collect::<Vec<_>>()
        };
        assert_eq!(
            on(&[("gpu", "yes"), ("zone", "a"), ("x", "y")]),
            ["all", "gpu"]
        );
        assert_eq!(on(&[("gpu", "no"), ("zone", "a")]), ["all"]);
        assert_eq!(on(&[("gpu", "yes")]), ["all"]);
        assert_eq!(
            names(&wishes_of(&known)),
            ["all"],
            "labels are not known yet"
        );
    }

    #[test]
    fn a_wish_goes_with_its_image_and_with_the_field_that_asked_for_it() {
        let mut known = listed(vec![
            image("a", everywhere(), "1"),
            image("b", everywhere(), "2"),
        ]);
        known.take(Event::Delete(image("a", everywhere(), "1")), PLATFORM);
        assert_eq!(names(&wishes_of(&known)), ["b"]);
        known.take(Event::Apply(image("b", Value::Null, "2")), PLATFORM);
        assert!(wishes_of(&known).is_empty());
    }

    #[test]
    fn while_a_list_is_coming_the_last_one_stands() {
        let mut known = listed(vec![image("a", everywhere(), "1")]);
        known.take(Event::Init, PLATFORM);
        known.take(Event::InitApply(image("b", everywhere(), "2")), PLATFORM);
        assert_eq!(names(&wishes_of(&known)), ["a"]);
        known.take(Event::InitDone, PLATFORM);
        assert_eq!(names(&wishes_of(&known)), ["b"]);
    }
}
