//! One look at one ClipImage: observe, decide, act.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use clip_crds::{ClipImage, ClipImageStatus};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
    runtime::controller::Action,
};
use serde_json::json;

use crate::{
    decide::{Decision, Rules, Step, decide},
    error::ReconcileError,
    events::Events,
    identity::MANAGER,
    job::{JobSettings, indexing_job},
    measure::Measures,
    observe::{Sources, observe},
};

/// Pause after an error. Errors are those of the apiserver or the disk, not of images.
const RETRY: Duration = Duration::from_secs(5);

/// What a reconciliation needs.
#[derive(Debug)]
pub struct Context {
    /// Where to look.
    pub sources: Sources,
    /// Where to say what happened.
    pub events: Events,
    /// What Jobs have in common.
    pub jobs: JobSettings,
    /// What holds for all images.
    pub rules: Rules,
    /// What is counted.
    pub measures: Measures,
    /// Statuses that were written but have not come back through the watch.
    pub written: Written,
}

/// Brings one ClipImage a step on.
///
/// # Errors
/// The step that failed; everything is tried again.
pub async fn reconcile(
    cached: Arc<ClipImage>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let started = Instant::now();
    let result = look(&cached, &context).await;
    context
        .measures
        .reconciled(started.elapsed(), result.is_ok());
    result
}

/// What to do after an error.
pub fn retry(image: Arc<ClipImage>, error: &ReconcileError, _: Arc<Context>) -> Action {
    tracing::warn!(namespace = image.namespace(), name = image.name_any(), %error, "reconciling failed; trying again");
    Action::requeue(RETRY)
}

async fn look(cached: &ClipImage, context: &Context) -> Result<Action, ReconcileError> {
    if cached.metadata.deletion_timestamp.is_some() {
        // Jobs go with their owner; the archive goes when the collector no longer sees the object.
        return Ok(Action::await_change());
    }
    let image = context.written.newest(cached);
    let observed = observe(&image, &context.sources).await?;
    let decision = decide(&image, &observed, &context.rules);
    for step in &decision.steps {
        act(step, &image, context).await?;
    }
    write_status(&image, &decision, context).await?;
    for notice in &decision.notices {
        tracing::info!(
            namespace = image.namespace(),
            name = image.name_any(),
            job = notice.job,
            "{}: {}",
            notice.reason,
            notice.message
        );
        context.measures.noticed(notice);
        context.events.publish(&image, notice).await;
    }
    Ok(Action::requeue(decision.look_again))
}

async fn act(step: &Step, image: &ClipImage, context: &Context) -> Result<(), ReconcileError> {
    let jobs = Api::<Job>::namespaced(
        context.sources.client.clone(),
        &image.namespace().unwrap_or_default(),
    );
    match step {
        Step::CreateJob { attempt } => {
            let job = indexing_job(image, *attempt, &context.jobs);
            let name = job.name_any();
            match jobs
                .patch(
                    &name,
                    &PatchParams::apply(MANAGER).force(),
                    &Patch::Apply(&job),
                )
                .await
            {
                Ok(_) => Ok(()),
                // It exists, made by an operator with other settings, and a Job's template cannot change.
                Err(kube::Error::Api(status))
                    if status.code == 422 && exists(&jobs, &name).await =>
                {
                    Ok(())
                }
                Err(source) => Err(ReconcileError::CreateJob { job: name, source }),
            }
        }
        Step::DeleteJob(name) => match jobs.delete(name, &DeleteParams::background()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(source) => Err(ReconcileError::DeleteJob {
                job: name.clone(),
                source,
            }),
        },
        Step::WriteRecord(record) => context
            .sources
            .store
            .write_record(record)
            .map_err(ReconcileError::WriteRecord),
    }
}

async fn exists(jobs: &Api<Job>, name: &str) -> bool {
    matches!(jobs.get_opt(name).await, Ok(Some(_)))
}

async fn write_status(
    image: &ClipImage,
    decision: &Decision,
    context: &Context,
) -> Result<(), ReconcileError> {
    if image.status.as_ref() == Some(&decision.status) {
        return Ok(());
    }
    let api = Api::<ClipImage>::namespaced(
        context.sources.client.clone(),
        &image.namespace().unwrap_or_default(),
    );
    let name = image.name_any();
    // The uid keeps the status of a deleted object from landing on one of the same name.
    let patch = json!({
        "apiVersion": ClipImage::api_version(&()),
        "kind": ClipImage::kind(&()),
        "metadata": { "name": name, "uid": image.uid() },
        "status": decision.status,
    });
    match api
        .patch_status(
            &name,
            &PatchParams::apply(MANAGER).force(),
            &Patch::Apply(&patch),
        )
        .await
    {
        Ok(_) => {
            context.written.remember(image, decision.status.clone());
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(source) => Err(ReconcileError::WriteStatus(source)),
    }
}

/// Statuses that were written but have not come back through the watch: a Job's event is often faster, and the
/// decision would be taken, and announced, once more. The operator is the only writer of the status.
#[derive(Debug, Default)]
pub struct Written(Mutex<HashMap<String, (ClipImageStatus, Instant)>>);

/// A watch is behind for milliseconds. A status that differs for longer was changed by somebody else.
const WATCH_LAG: Duration = Duration::from_secs(10);

impl Written {
    /// The cached object with the status that was written last.
    fn newest(&self, cached: &ClipImage) -> ClipImage {
        let mut image = cached.clone();
        let uid = image.uid().unwrap_or_default();
        let mut written = self.0.lock().expect("no holder panics");
        match written.get(&uid) {
            Some((status, at))
                if image.status.as_ref() != Some(status) && at.elapsed() < WATCH_LAG =>
            {
                image.status = Some(status.clone());
            }
            Some(_) => drop(written.remove(&uid)),
            None => {}
        }
        image
    }

    fn remember(&self, image: &ClipImage, status: ClipImageStatus) {
        let uid = image.uid().unwrap_or_default();
        self.0
            .lock()
            .expect("no holder panics")
            .insert(uid, (status, Instant::now()));
    }

    /// Forgets objects that no longer exist.
    pub fn retain(&self, live: impl Fn(&str) -> bool) {
        self.0
            .lock()
            .expect("no holder panics")
            .retain(|uid, _| live(uid));
    }
}
