//! What `kubectl describe clipimage` shows under Events.

use clip_crds::{ClipImage, clip_image::Failure, condition::reason, event_note};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource, ResourceExt,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use crate::identity::MANAGER;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whether something went wrong.
    pub warning: bool,
    /// One word: IndexStarted, IndexSucceeded, IndexFailed, ArchivePublished, ArchiveLost.
    pub reason: &'static str,
    /// What was being done: Index, Publish.
    pub action: &'static str,
    /// The Job that it is about.
    pub job: Option<String>,
    /// One sentence.
    pub message: String,
}

impl Notice {
    /// Something went as it should.
    pub fn normal(
        reason: &'static str,
        action: &'static str,
        job: Option<String>,
        message: String,
    ) -> Self {
        Self {
            warning: false,
            reason,
            action,
            job,
            message,
        }
    }

    /// A Job failed, or its archive was lost.
    pub fn failed(job: String, failure: &Failure) -> Self {
        let lost = failure.reason == reason::ARCHIVE_LOST;
        let (reason, message) = if lost {
            (
                "ArchiveLost",
                format!("{}; it is made again", failure.message),
            )
        } else {
            (
                "IndexFailed",
                format!("{}: {}", failure.reason, failure.message),
            )
        };
        Self {
            warning: true,
            reason,
            action: "Index",
            job: Some(job),
            message,
        }
    }
}

/// Publishes notices. The Job is the event's second object, so that the same failure of two Jobs gives two
/// events and the failures of one Job are counted.
#[derive(Clone)]
pub struct Events(Recorder);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl Events {
    /// Reports as `clip-operator`.
    pub fn new(client: Client) -> Self {
        Self(Recorder::new(client, Reporter::from(MANAGER)))
    }

    /// Events are for people: one that cannot be written is logged, and nothing else waits for it.
    pub async fn publish(&self, image: &ClipImage, notice: &Notice) {
        let job = notice.job.clone().map(|name| ObjectReference {
            api_version: Some("batch/v1".into()),
            kind: Some("Job".into()),
            name: Some(name),
            namespace: image.namespace(),
            ..Default::default()
        });
        let event = Event {
            type_: if notice.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: notice.reason.into(),
            note: Some(event_note(&notice.message)),
            action: notice.action.into(),
            secondary: job,
        };
        if let Err(error) = self.0.publish(&event, &image.object_ref(&())).await {
            tracing::warn!(reason = notice.reason, %error, "event cannot be written");
        }
    }
}
