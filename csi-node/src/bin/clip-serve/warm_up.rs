//! Images that are to be on this node whole, although perhaps no pod reads them.
//!
//! Each is opened as for a mount, which expands its tree, too, and fetched below every reader. Then it is closed: what
//! stays is a lock on each of its layers, so that nothing of it counts as unused and goes first when the cache shrinks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use clip_csi_node::wire::{NotWarm, NotWarmKind, Reason, Refusal, Warmth};
use clip_engine::{CompleteError, KeptInUse, Node, OpenedImage, Pace};
use clip_registry::Digest;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::served::{self, Wanted};

/// All of them, by their archives.
#[derive(Debug, Default)]
pub struct WarmUps(Mutex<HashMap<Digest, WarmUp>>);

/// One of them; what is under way ends when it is dropped.
#[derive(Debug)]
struct WarmUp {
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

/// How far it is, and what keeps it there.
#[derive(Debug)]
struct State {
    warmth: Warmth,
    _kept: Option<KeptInUse>,
}

impl WarmUps {
    /// Opens the archive and begins to fetch what is missing of its image, in place of what was begun for it before.
    pub fn begin(
        &self,
        node: &Node,
        wanted: Wanted,
        pace: &Arc<Pace>,
        runtime: &Handle,
    ) -> Result<(), Refusal> {
        let image = served::open(node, &wanted.archive, wanted.login)?;
        let state = Arc::new(Mutex::new(State {
            warmth: Warmth::UnderWay {},
            // While it is open, that is enough.
            _kept: None,
        }));
        let task = runtime.spawn(carry_out(image, pace.clone(), state.clone()));
        self.all().insert(wanted.digest, WarmUp { state, task });
        Ok(())
    }

    /// How far an archive is.
    pub fn warmth(&self, archive: &Digest) -> Result<Warmth, Refusal> {
        let all = self.all();
        let found = all.get(archive).ok_or_else(|| Refusal {
            reason: Reason::NotServed,
            message: format!("archive {archive} is not being warmed up"),
        })?;
        Ok(lock(&found.state).warmth.clone())
    }

    /// Ends what is under way, and lets the layers go.
    pub fn end(&self, archive: &Digest) {
        self.all().remove(archive);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Digest, WarmUp>> {
        lock(&self.0)
    }
}

impl Drop for WarmUp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry_out(image: OpenedImage, pace: Arc<Pace>, state: Arc<Mutex<State>>) {
    let name = image.fs.info().name.clone();
    let warmed = image.warm_up(&pace).await;
    let fetched_bytes = image.fetched().bytes;
    *lock(&state) = match warmed {
        Ok(()) => {
            tracing::info!(image = name, fetched_bytes, "the whole image is there");
            State {
                warmth: Warmth::Warm { fetched_bytes },
                _kept: Some(image.keep_in_use()),
            }
        }
        Err(error) => State {
            warmth: Warmth::Failed(not_warm(&error)),
            _kept: None,
        },
    };
}

fn not_warm(error: &CompleteError) -> NotWarm {
    let kind = match error {
        CompleteError::NoRoom { .. } | CompleteError::Gone => NotWarmKind::NoRoom,
        error if error.is_refusal() => NotWarmKind::Refused,
        _ => NotWarmKind::Other,
    };
    NotWarm {
        kind,
        message: error.to_string(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
