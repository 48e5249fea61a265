//! What went wrong with volumes, told as events of their pods.
//!
//! Kubelet names the pod with each request, and repeats every publish about once a minute, also after a restart of this
//! process. So what went wrong waits here for the next one, and nothing need be known of pods in between. (CSI's volume
//! conditions, once meant for this, left the specification with version 1.13.)

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use clip_crds::{PodInfo, event_note};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::wire::FailedRead;

/// What may go wrong with a volume that is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Its mount died; it was made anew, or kubelet has it made.
    Lost,
    /// A read failed.
    ReadFailed(FailedRead),
}

impl Trouble {
    /// The event's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Trouble::Lost => "VolumeLost",
            Trouble::ReadFailed(_) => "ReadFailed",
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Lost => f.write_str(
                "The mount of the image was lost and has been made anew: containers that ran then get errors from it \
                 (ENOTCONN) and must be restarted; those that start from now on read again",
            ),
            Trouble::ReadFailed(FailedRead {
                image, path, cause, ..
            }) => write!(f, "Reading {path} of {image} failed: {cause}"),
        }
    }
}

/// What has not been told yet, by the volume's target.
#[derive(Debug, Default)]
pub struct Troubles(Mutex<HashMap<PathBuf, Trouble>>);

impl Troubles {
    /// To be told of the volume at `target`: the latest, but nothing outweighs a loss.
    pub fn add(&self, target: &Path, trouble: Trouble) {
        let mut waiting = self.waiting();
        if waiting.get(target) != Some(&Trouble::Lost) {
            waiting.insert(target.to_owned(), trouble);
        }
    }

    /// What is to be told of the volume at `target`; from now on it is.
    pub fn take(&self, target: &Path) -> Option<Trouble> {
        self.waiting().remove(target)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<PathBuf, Trouble>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes events of pods, where there is a cluster.
pub struct PodEvents(Option<Recorder>);

impl PodEvents {
    /// In the cluster.
    pub fn in_cluster(client: Client) -> PodEvents {
        PodEvents(Some(Recorder::new(client, Reporter::from("clip-csi-node"))))
    }

    /// Without a cluster (`--clipimages-from`) the log has to do.
    pub fn nowhere() -> PodEvents {
        PodEvents(None)
    }

    /// Tells the pod's owner. Events are for people: one that cannot be written is logged, and nothing waits for it.
    pub async fn tell(&self, pod: &PodInfo, trouble: &Trouble) {
        tracing::warn!(
            pod = pod.name,
            namespace = pod.namespace,
            reason = trouble.reason(),
            "{trouble}"
        );
        let Some(recorder) = &self.0 else {
            return;
        };
        let event = Event {
            type_: EventType::Warning,
            reason: trouble.reason().into(),
            note: Some(event_note(&trouble.to_string())),
            action: "Read".into(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &reference(pod)).await {
            tracing::warn!(reason = trouble.reason(), %error, "event cannot be written");
        }
    }
}

impl fmt::Debug for PodEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PodEvents")
    }
}

fn reference(pod: &PodInfo) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        uid: pod.uid.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(path: &str) -> Trouble {
        Trouble::ReadFailed(FailedRead {
            archive_digest: clip_registry::Digest::sha256_of(b""),
            image: "r.io/a/b:1".into(),
            path: path.into(),
            cause: "r.io does not answer".into(),
        })
    }

    #[test]
    fn of_failed_reads_the_latest_is_told_and_once() {
        let (troubles, target) = (Troubles::default(), Path::new("/pods/1/mount"));
        troubles.add(target, failed("/a"));
        troubles.add(target, failed("/b"));
        assert_eq!(troubles.take(Path::new("/pods/2/mount")), None);
        let told = troubles.take(target).unwrap();
        assert_eq!(told.reason(), "ReadFailed");
        assert_eq!(
            told.to_string(),
            "Reading /b of r.io/a/b:1 failed: r.io does not answer"
        );
        assert_eq!(troubles.take(target), None);
    }

    #[test]
    fn a_lost_volume_is_said_to_be_lost_whatever_failed_after_it() {
        let (troubles, target) = (Troubles::default(), Path::new("/pods/1/mount"));
        troubles.add(target, failed("/a"));
        troubles.add(target, Trouble::Lost);
        troubles.add(target, failed("/b"));
        assert_eq!(troubles.take(target), Some(Trouble::Lost));
    }
}
