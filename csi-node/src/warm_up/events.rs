//! What came of warming up an image, told as events of its `ClipImage`.

use std::fmt;

use bytesize::ByteSize;
use clip_crds::{ClipImage, event_note};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};

use super::queue::Attempt;
use super::wishes::{ImageId, Wish};

/// Writes events of `ClipImage`s, where there is a cluster.
pub struct ImageEvents {
    recorder: Option<Recorder>,
    node_name: String,
}

impl ImageEvents {
    /// In the cluster, from the node of this name.
    pub fn in_cluster(client: Client, node_name: String) -> ImageEvents {
        let reporter = Reporter {
            controller: "clip-csi-node".into(),
            instance: Some(node_name.clone()),
        };
        ImageEvents {
            recorder: Some(Recorder::new(client, reporter)),
            node_name,
        }
    }

    /// Without a cluster (`--clipimages-from`) the log has to do.
    pub fn nowhere(node_name: String) -> ImageEvents {
        ImageEvents {
            recorder: None,
            node_name,
        }
    }

    /// Tells the image's owner. Events are for people: one that cannot be written is logged, and nothing else waits for it.
    pub async fn tell(&self, image: &ImageId, wish: &Wish, attempt: &Attempt) {
        let Some(news) = news(attempt, &self.node_name) else {
            return;
        };
        match news.type_ {
            EventType::Normal => tracing::info!(%image, "{}: {}", news.reason, news.note),
            EventType::Warning => tracing::warn!(%image, "{}: {}", news.reason, news.note),
        }
        let Some(recorder) = &self.recorder else {
            return;
        };
        let event = Event {
            type_: news.type_,
            reason: news.reason.into(),
            note: Some(event_note(&news.note)),
            action: "WarmUp".into(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &reference(image, wish)).await {
            tracing::warn!(%image, reason = news.reason, %error, "event cannot be written");
        }
    }
}

impl fmt::Debug for ImageEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageEvents")
            .field("node_name", &self.node_name)
            .finish_non_exhaustive()
    }
}

struct News {
    type_: EventType,
    reason: &'static str,
    note: String,
}

/// What is said of an attempt; nothing of one that the server's end interrupted.
fn news(attempt: &Attempt, node: &str) -> Option<News> {
    match attempt {
        Attempt::Warm {
            fetched_bytes: 0, ..
        } => Some(News {
            type_: EventType::Normal,
            reason: "WarmedUp",
            note: format!("The whole image was on {node} already"),
        }),
        Attempt::Warm {
            fetched_bytes,
            took,
        } => Some(News {
            type_: EventType::Normal,
            reason: "WarmedUp",
            note: format!(
                "{} in {:.0} s on {node}",
                ByteSize(*fetched_bytes).display().si(),
                took.as_secs_f64().max(1.0)
            ),
        }),
        Attempt::Failed { message, .. } => Some(News {
            type_: EventType::Warning,
            reason: "WarmUpFailed",
            note: format!("On {node}: {message}"),
        }),
        Attempt::Interrupted => None,
    }
}

fn reference(image: &ImageId, wish: &Wish) -> ObjectReference {
    ObjectReference {
        api_version: Some(ClipImage::api_version(&()).into()),
        kind: Some(ClipImage::kind(&()).into()),
        name: Some(image.name.clone()),
        namespace: Some(image.namespace.clone()),
        uid: wish.uid.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wire::NotWarmKind;

    fn note(attempt: &Attempt) -> Option<String> {
        let news = news(attempt, "node-a")?;
        Some(format!("{}: {}", news.reason, news.note))
    }

    #[test]
    fn the_event_says_how_much_came_in_which_time_and_where_or_why_not() {
        let warm = |fetched_bytes| Attempt::Warm {
            fetched_bytes,
            took: Duration::from_millis(31_200),
        };
        let failed = Attempt::Failed {
            kind: NotWarmKind::Other,
            message: "r.io does not answer".into(),
        };
        let said = [warm(1_200_000_000), warm(0), failed, Attempt::Interrupted];
        assert_eq!(
            said.map(|attempt| note(&attempt)),
            [
                Some("WarmedUp: 1.2 GB in 31 s on node-a".to_owned()),
                Some("WarmedUp: The whole image was on node-a already".to_owned()),
                Some("WarmUpFailed: On node-a: r.io does not answer".to_owned()),
                None
            ]
        );
    }
}
