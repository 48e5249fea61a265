//! Images that this node has whole although no pod uses them: what `spec.warmUp` of a `ClipImage` asks for.
//!
//! ```text
//!  wishes (which images, for this node) ─► queue (whose turn?) ─► archives (on disk) ─► clip-serve (fetch all)
//!                                                └───────────────◄── outcome ──► events, metrics
//! ```
//! One image after the other, in a task of its own: no publish waits for it. Which archives clip-serve keeps is forgotten
//! with the server that keeps them, and found out again by asking the next one for all of them.

pub mod events;
pub mod pull_secrets;
pub mod queue;
pub mod wishes;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use clip_registry::Digest;
use tokio::sync::watch;

use crate::archives::Archives;
use crate::metrics::NodeMetrics;
use crate::serve_process::{ServeError, ServeProcess};
use crate::wire::{Command, Login, NotWarm, NotWarmKind, Reason, Warmth};
use events::ImageEvents;
use pull_secrets::PullSecrets;
use queue::{Attempt, Next, Queue};
use wishes::{ImageId, Wish, Wishes};

/// How often the server is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long to wait for a server that does not start.
const SERVER_PAUSE: Duration = Duration::from_secs(1);

/// Warms up images.
#[derive(Debug)]
pub struct WarmUp {
    /// Who fetches their content.
    pub serve: ServeProcess,
    /// Their archives.
    pub archives: Archives,
    /// What registries may be shown for them.
    pub pull_secrets: PullSecrets,
    /// Tells what came of it.
    pub events: ImageEvents,
    /// Counts it.
    pub metrics: NodeMetrics,
}

impl WarmUp {
    /// Has what is wished for on this node, for ever.
    pub async fn keep_up(&self, mut wishes: watch::Receiver<Wishes>) {
        let mut queue = Queue::default();
        let (mut generation, mut kept) = (0, BTreeSet::new());
        loop {
            let Ok(running) = self.serve.generation().await else {
                tokio::time::sleep(SERVER_PAUSE).await;
                continue;
            };
            if running != generation {
                generation = running;
                kept.clear();
                queue.look_again(now());
            }
            let wanted = wishes.borrow_and_update().clone();
            self.let_go(&mut kept, &wanted).await;
            queue.update(&wanted, now());
            self.metrics.warm_ups(|state| queue.count(state));
            match queue.next(now()) {
                Next::Now(image) => {
                    self.turn(&image, &wanted[&image], &mut queue, &mut kept, &mut wishes)
                        .await;
                }
                next => self.wait(next, generation, &mut wishes).await,
            }
        }
    }

    /// Warms up one image, unless it is not wished for any more before that is done.
    async fn turn(
        &self,
        image: &ImageId,
        wish: &Wish,
        queue: &mut Queue,
        kept: &mut BTreeSet<Digest>,
        wishes: &mut watch::Receiver<Wishes>,
    ) {
        let archive = &wish.archive.digest;
        kept.insert(archive.clone());
        let attempt = tokio::select! {
            attempt = self.attempt(image, wish) => attempt,
            () = not_wished(wishes, image, archive) => {
                tracing::info!(%image, %archive, "not to be warmed up any more");
                return;
            }
        };
        if let Attempt::Warm { fetched_bytes, .. } = attempt {
            self.metrics.warm_up_fetched.inc_by(fetched_bytes);
        }
        if queue.record(image, &attempt, now()) {
            self.events.tell(image, wish, &attempt).await;
        }
    }

    /// Until it is time, something else is wished for, or another server runs.
    async fn wait(&self, next: Next, generation: u64, wishes: &mut watch::Receiver<Wishes>) {
        let due = async {
            match next {
                Next::At(due) => tokio::time::sleep_until(due).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = changed(wishes) => {}
            _ = self.serve.later_than(generation) => {}
        }
    }

    async fn attempt(&self, image: &ImageId, wish: &Wish) -> Attempt {
        let (begun, known) = (Instant::now(), self.pull_secrets.login(image, wish).await);
        match self.warm_up(wish, known.login).await {
            Ok(Warmth::Warm { fetched_bytes }) => Attempt::Warm {
                fetched_bytes,
                took: begun.elapsed(),
            },
            Ok(Warmth::Failed(NotWarm { kind, message })) => Attempt::Failed {
                kind,
                message: match kind {
                    NotWarmKind::Refused => message + &known.hint,
                    _ => message,
                },
            },
            Ok(Warmth::UnderWay {}) | Err(Failure::Interrupted) => Attempt::Interrupted,
            Err(Failure::Cause(message)) => Attempt::Failed {
                kind: NotWarmKind::Other,
                message,
            },
        }
    }

    /// The steps, until nothing more is under way.
    async fn warm_up(&self, wish: &Wish, login: Login) -> Result<Warmth, Failure> {
        let credentials = match &login {
            Login::DockerConfigJson(secret) => Some(secret.clone()),
            Login::Anonymous | Login::ToCome => None,
        };
        let archive = self
            .archives
            .ensure(&wish.archive, credentials.as_ref())
            .await
            .map_err(|error| Failure::Cause(error.to_string()))?;
        let command = Command::WarmUp {
            archive: archive.file.clone(),
            archive_digest: archive.digest.clone(),
            login,
        };
        let begun = self.serve.ask(command).await;
        if let Err(ServeError::Refused(refusal)) = &begun
            && refusal.reason == Reason::ArchiveInvalid
        {
            self.archives.remove_if_changed(&archive).await;
        }
        begun?;
        loop {
            match self.serve.warmth(archive.digest.clone()).await? {
                Warmth::UnderWay {} => tokio::time::sleep(ASK_EVERY).await,
                ended => return Ok(ended),
            }
        }
    }

    /// Has the server let go of what is not wished for any more.
    async fn let_go(&self, kept: &mut BTreeSet<Digest>, wanted: &Wishes) {
        let wanted: BTreeSet<&Digest> = wanted.values().map(|wish| &wish.archive.digest).collect();
        let unwanted = kept.extract_if(.., |archive| !wanted.contains(archive));
        for archive_digest in unwanted.collect::<Vec<_>>() {
            let command = Command::CoolDown { archive_digest };
            if let Err(error) = self.serve.ask(command).await {
                // A server that is gone keeps nothing.
                tracing::debug!(%error, "cannot let go of what was warmed up");
            }
        }
    }
}

/// Why an image is not warm without the server saying so.
enum Failure {
    /// The server ended: that is nobody's news.
    Interrupted,
    /// For people.
    Cause(String),
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Failure {
        match error {
            ServeError::Down => Failure::Interrupted,
            // Another life of it, which was told nothing yet.
            ServeError::Refused(refusal) if refusal.reason == Reason::NotServed => {
                Failure::Interrupted
            }
            error => Failure::Cause(error.to_string()),
        }
    }
}

/// Returns when the image, with this archive, is not among the wishes any more.
async fn not_wished(wishes: &mut watch::Receiver<Wishes>, image: &ImageId, archive: &Digest) {
    let is_gone = |wishes: &Wishes| {
        let wish = wishes.get(image);
        wish.is_none_or(|wish| wish.archive.digest != *archive)
    };
    if wishes.wait_for(is_gone).await.is_err() {
        std::future::pending().await
    }
}

/// Returns when something else is wished for; never when nobody is left who says so.
async fn changed(wishes: &mut watch::Receiver<Wishes>) {
    if wishes.changed().await.is_err() {
        std::future::pending().await
    }
}

fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}
