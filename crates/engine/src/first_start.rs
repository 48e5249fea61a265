//! What can be done for an image's first start before anybody reads.

use crate::open_image::OpenedImage;
use clip_bundle::Command;
use clip_cache::LayerReader;
use std::{cmp::Reverse, time::Duration};
use tokio::{runtime::Handle, time::timeout};

/// So many connections a start makes use of before long.
const LAYERS_MAX: usize = 4;
/// A registry that takes longer is none to wait for. While others are greeted, it may be as long until it is this one's
/// turn; then somebody has read already.
const PATIENCE: Duration = Duration::from_secs(10);

impl OpenedImage {
    /// Makes use, in the background, of the time until a container of this image runs. Nobody is told when something fails:
    /// whoever reads will be.
    pub fn prepare_first_start(&self, runtime: &Handle) {
        let layers = self.fs.layers().iter();
        greet_registry(
            layers.filter(|layer| layer.is_untouched()).collect(),
            runtime,
        );
        let (image, runtime) = (self.clone(), runtime.clone());
        runtime
            .clone()
            .spawn_blocking(move || image.expect_command(&runtime));
    }

    /// Fetches what the image's command begins with, unless it is here.
    fn expect_command(&self, runtime: &Handle) {
        match Command::of(&self.config) {
            Ok(Command { words, dirs }) => {
                let dirs = dirs.into_iter().map(String::into_bytes).collect();
                self.fs.expect(words.join(" ").as_bytes(), dirs, runtime);
            }
            Err(error) => tracing::debug!(%error, "nothing to run is known"),
        }
    }
}

/// Asks for one byte of each of `layers`, of the largest if there are many. The first reader then waits for no handshake,
/// token or redirect.
fn greet_registry(mut layers: Vec<&LayerReader>, runtime: &Handle) {
    layers.sort_by_key(|layer| Reverse(layer.size()));
    for layer in layers.into_iter().take(LAYERS_MAX) {
        let layer = layer.clone();
        runtime.spawn(async move {
            match timeout(PATIENCE, layer.greet()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "cannot greet the registry"),
                Err(_) => tracing::debug!(?layer, "the registry does not greet back"),
            }
        });
    }
}
