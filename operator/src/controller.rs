//! What is watched, and what runs when something changes.
//!
//! ClipImages of all namespaces; Jobs and pods that carry our label; uploads that the archive service accepted.
//! Each leads to a look at one ClipImage. Only one operator runs at a time (Deployment strategy Recreate); if
//! two ever overlap, deterministic names and server-side apply make them write the same.

use std::{
    collections::HashSet,
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use clip_crds::{ClipImage, condition::READY};
use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        Controller, WatchStreamExt,
        reflector::{self, ObjectRef},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    collect::Collector,
    identity::{LABEL_IMAGE, LABEL_MANAGED_BY, MANAGER},
    reconcile::{Context, reconcile, retry},
};

/// How many ClipImages are looked at at the same time: enough to hide the apiserver's latency.
const CONCURRENCY: u16 = 8;
/// How often waste is looked for.
const COLLECT_EVERY: Duration = Duration::from_secs(10);

/// Wakes the controller for one ClipImage.
#[derive(Debug, Clone)]
pub struct Waker(mpsc::UnboundedSender<ObjectRef<ClipImage>>);

/// The other end of a [`Waker`].
pub type Wakes = mpsc::UnboundedReceiver<ObjectRef<ClipImage>>;

/// A waker and what it wakes.
pub fn waker() -> (Waker, Wakes) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Waker(sender), receiver)
}

impl Waker {
    /// Has the ClipImage looked at soon.
    pub fn wake(&self, namespace: &str, name: &str) {
        // Without a receiver the process is ending.
        let _ = self.0.send(ObjectRef::new(name).within(namespace));
    }
}

/// Our Jobs or pods, kept up to date by a task of `tasks`; each change wakes its ClipImage.
pub fn watch_ours<K>(
    client: Client,
    waker: Waker,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> reflector::Store<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let config = watcher::Config::default().labels(&format!("{LABEL_MANAGED_BY}={MANAGER}"));
    let (store, writer) = reflector::store();
    let changes = watcher(Api::<K>::all(client), config)
        .default_backoff()
        .modify(|object| object.managed_fields_mut().clear())
        .reflect(writer)
        .touched_objects();
    tasks.spawn(async move {
        let mut changes = std::pin::pin!(changes);
        while let Some(change) = changes.next().await {
            match change {
                Ok(object) => wake_image_of(&object, &waker),
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch interrupted; resuming")
                }
            }
        }
        anyhow::bail!("the watch of {} ended", K::kind(&()))
    });
    store
}

fn wake_image_of<K: Resource<DynamicType = ()>>(object: &K, waker: &Waker) {
    if let (Some(namespace), Some(name)) = (object.namespace(), object.labels().get(LABEL_IMAGE)) {
        waker.wake(&namespace, name);
    }
}

/// Runs until `shutdown`; calls `ready` once all caches are filled.
pub async fn run(
    context: Arc<Context>,
    (waker, wakes): (Waker, Wakes),
    grace: Duration,
    ready: impl FnOnce(),
    shutdown: impl Future<Output = ()> + Send + Sync + 'static,
) -> anyhow::Result<()> {
    context.sources.jobs.wait_until_ready().await?;
    context.sources.pods.wait_until_ready().await?;

    let api = Api::<ClipImage>::all(context.sources.client.clone());
    let controller = Controller::new(api, watcher::Config::default().any_semantic())
        .with_config(kube::runtime::controller::Config::default().concurrency(CONCURRENCY))
        .reconcile_on(receive(wakes))
        .graceful_shutdown_on(shutdown);
    let images = controller.store();
    let run = controller
        .run(reconcile, retry, context.clone())
        .for_each(|_| async {});
    let run = std::pin::pin!(run);
    let collect = async {
        if images.wait_until_ready().await.is_ok() {
            ready();
            collect_for_ever(&context, &waker, &images, grace).await;
        }
    };
    tokio::select! {
        () = run => Ok(()),
        () = collect => Ok(()),
    }
}

async fn collect_for_ever(
    context: &Context,
    waker: &Waker,
    images: &reflector::Store<ClipImage>,
    grace: Duration,
) {
    let mut collector = Collector::new(grace);
    loop {
        let state = images.state();
        let living: HashSet<String> = state.iter().filter_map(|image| image.uid()).collect();
        context.written.retain(|uid| living.contains(uid));
        let ready = state.iter().filter(|image| is_ready(image)).count();
        context.measures.images(ready, state.len() - ready);
        match collector.collect(
            &context.sources.store,
            |uid| living.contains(uid),
            Instant::now(),
        ) {
            Ok(archives) => {
                let bytes = archives.iter().map(|archive| archive.size).sum();
                context.measures.archives(archives.len(), bytes);
                let there = archives
                    .iter()
                    .map(|archive| archive.digest.to_string())
                    .collect();
                wake_bereft(&state, &there, waker);
            }
            Err(error) => tracing::warn!(%error, "cannot tidy the archive folder; trying again"),
        }
        tokio::time::sleep(COLLECT_EVERY).await;
    }
}

/// Looks at images whose archive vanished behind our back, so that it is made again now and not when a pod needs it.
fn wake_bereft(images: &[Arc<ClipImage>], there: &HashSet<String>, waker: &Waker) {
    for image in images {
        let offered = image.status.iter().flat_map(|status| &status.artifacts);
        if offered
            .into_iter()
            .any(|artifact| !there.contains(&artifact.digest))
        {
            waker.wake(&image.namespace().unwrap_or_default(), &image.name_any());
        }
    }
}

fn is_ready(image: &ClipImage) -> bool {
    let conditions = image
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    conditions
        .iter()
        .any(|condition| condition.type_ == READY && condition.status == "True")
}

fn receive(mut wakes: Wakes) -> impl Stream<Item = ObjectRef<ClipImage>> + Send + 'static {
    stream::poll_fn(move |context| wakes.poll_recv(context))
}

/// The two stores of a [`Context`].
pub fn watch_jobs_and_pods(
    client: &Client,
    waker: &Waker,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> (reflector::Store<Job>, reflector::Store<Pod>) {
    (
        watch_ours(client.clone(), waker.clone(), tasks),
        watch_ours(client.clone(), waker.clone(), tasks),
    )
}
