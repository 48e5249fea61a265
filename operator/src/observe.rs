//! Looking at the world: the Jobs of a ClipImage, why their pods do not start, and the archive's record.
//!
//! Jobs and pods come from watches that hold only ours, in memory; the record from the disk. Only a Job that
//! should run and does not costs a request.

use std::sync::Arc;

use clip_crds::ClipImage;
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{Event, Pod},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
    jiff::Timestamp,
};
use kube::{Api, Client, Resource, ResourceExt, api::ListParams, runtime::reflector};

use crate::{
    decide::Observed,
    error::ReconcileError,
    jobs::{self, JobState, JobView},
    store::Store,
};

/// A pod that has not started its container after this long has a story to tell.
const PATIENCE_SECONDS: i64 = 10;

/// Where to look.
#[derive(Clone)]
pub struct Sources {
    /// For events.
    pub client: Client,
    /// The folder of the archive service.
    pub store: Store,
    /// Our Jobs.
    pub jobs: reflector::Store<Job>,
    /// Their pods.
    pub pods: reflector::Store<Pod>,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sources")
    }
}

/// Looks.
///
/// # Errors
/// When the apiserver does not tell why a Job does not start.
pub async fn observe(image: &ClipImage, sources: &Sources) -> Result<Observed, ReconcileError> {
    let now = Timestamp::now();
    let uid = image.uid().unwrap_or_default();
    let mut views = Vec::new();
    for job in owned_by(&uid, &sources.jobs.state()) {
        let job_uid = job.uid().unwrap_or_default();
        let all_pods = sources.pods.state();
        let pods = owned_by(&job_uid, &all_pods);
        let mut view = jobs::view(&job, &pods.iter().map(|pod| &**pod).collect::<Vec<_>>());
        explain(&mut view, &job, &pods, now, &sources.client).await?;
        views.push(view);
    }
    let record = sources
        .store
        .record(&uid)
        .filter(|record| sources.store.holds(record));
    Ok(Observed {
        jobs: views,
        record,
        now,
    })
}

/// The objects whose controller has this uid.
fn owned_by<K: Resource>(uid: &str, objects: &[Arc<K>]) -> Vec<Arc<K>> {
    let is_owner = |owner: &OwnerReference| owner.uid == uid && owner.controller == Some(true);
    objects
        .iter()
        .filter(|object| {
            object
                .meta()
                .owner_references
                .iter()
                .flatten()
                .any(is_owner)
        })
        .cloned()
        .collect()
}

/// Missing secrets and refused pods appear only as events, of the pod and of the Job.
async fn explain(
    view: &mut JobView,
    job: &Job,
    pods: &[Arc<Pod>],
    now: Timestamp,
    client: &Client,
) -> Result<(), ReconcileError> {
    let JobState::Active {
        blocked: blocked @ None,
        ..
    } = &mut view.state
    else {
        return Ok(());
    };
    let newest = pods.iter().max_by_key(|pod| pod.creation_timestamp());
    let (meta, why) = match newest {
        Some(pod) if phase(pod) == Some("Pending") => (&pod.metadata, "FailedMount"),
        Some(_) => return Ok(()),
        None => (&job.metadata, "FailedCreate"),
    };
    let age = meta
        .creation_timestamp
        .as_ref()
        .map_or(0, |created| now.duration_since(created.0).as_secs());
    if age < PATIENCE_SECONDS {
        return Ok(());
    }
    *blocked = newest_event(meta.namespace.as_deref(), meta.uid.as_deref(), why, client).await?;
    Ok(())
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

async fn newest_event(
    namespace: Option<&str>,
    uid: Option<&str>,
    why: &str,
    client: &Client,
) -> Result<Option<String>, ReconcileError> {
    let (Some(namespace), Some(uid)) = (namespace, uid) else {
        return Ok(None);
    };
    let api = Api::<Event>::namespaced(client.clone(), namespace);
    let fields = format!("involvedObject.uid={uid},reason={why}");
    let events = api
        .list(&ListParams::default().fields(&fields))
        .await
        .map_err(|source| ReconcileError::ListEvents {
            object: uid.to_owned(),
            source,
        })?;
    let newest = events
        .items
        .into_iter()
        .max_by_key(|event| event.last_timestamp.clone());
    Ok(newest.and_then(|event| event.message))
}
