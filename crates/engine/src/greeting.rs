//! Getting to know the registry of an image before anybody reads.

use crate::open_image::OpenedImage;
use std::{cmp::Reverse, time::Duration};
use tokio::{runtime::Handle, time::timeout};

/// So many connections a start makes use of before long.
const LAYERS_MAX: usize = 4;
/// A registry that takes longer is none to wait for. While others are greeted, it may be as long until it is this one's
/// turn; then somebody has read already.
const PATIENCE: Duration = Duration::from_secs(10);

impl OpenedImage {
    /// Asks, in the background, for one byte of each layer of which nothing is here yet, of the largest if there are many.
    /// The first reader, which comes when the container starts, then waits for no handshake, token or redirect. Nobody is
    /// told when it fails: whoever reads will be.
    pub fn greet_registry(&self, runtime: &Handle) {
        let layers = self.fs.layers().iter();
        let mut layers: Vec<_> = layers.filter(|layer| layer.is_untouched()).collect();
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
}
