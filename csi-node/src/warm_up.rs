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

/// What is known from one round to the next.
struct Round {
    wishes: watch::Receiver<Wishes>,
    queue: Queue,
    /// The archives that the server was told to keep.
    kept: BTreeSet<Digest>,
    /// Which life of the server that was.
    generation: u64,
}

impl WarmUp {
    /// Has what is wished for on this node, for ever.
    pub async fn keep_up(&self, wishes: watch::Receiver<Wishes>) {
        let mut round = Round {
            wishes,
            queue: Queue::default(),
            kept: BTreeSet::new(),
            generation: 0,
        };
        loop {
            let Ok(running) = self.serve.generation().await else {
                tokio::time::sleep(SERVER_PAUSE).await;
                continue;
            };
            round.look_at_server(running);
            let wanted = round.wishes.borrow_and_update().clone();
            self.let_go(&mut round.kept, &wanted).await;
            round.queue.update(&wanted, now());
            self.metrics.warm_ups(|state| round.queue.count(state));
            match round.queue.next(now()) {
                Next::Now(image) => self.turn(&mut round, &image, &wanted[&image]).await,
                Next::At(due) => {
                    let due = tokio::time::sleep_until(due);
                    tokio::select! { () = due => {}, () = self.news(&mut round) => {} }
                }
                Next::Never => self.news(&mut round).await,
            }
        }
    }

    /// Warms up one image, unless it is not wished for any more before that is done.
    async fn turn(&self, round: &mut Round, image: &ImageId, wish: &Wish) {
        let archive = &wish.archive.digest;
        round.kept.insert(archive.clone());
        let attempt = tokio::select! {
            attempt = self.attempt(image, wish) => attempt,
            () = not_wished(&mut round.wishes, image, archive) => {
                tracing::info!(%image, %archive, "not to be warmed up any more");
                return;
            }
        };
        if let Attempt::Warm { fetched_bytes, .. } = attempt {
            self.metrics.warm_up_fetched.inc_by(fetched_bytes);
        }
        if round.queue.record(image, &attempt, now()) {
            self.events.tell(image, wish, &attempt).await;
        }
    }

    /// Returns when something else is wished for, or another server runs.
    async fn news(&self, round: &mut Round) {
        tokio::select! {
            () = changed(&mut round.wishes) => {}
            _ = self.serve.later_than(round.generation) => {}
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

impl Round {
    /// Another life of the server keeps nothing.
    fn look_at_server(&mut self, running: u64) {
        if running != self.generation {
            self.generation = running;
            self.kept.clear();
            self.queue.look_again(now());
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
