//! What is fetched before anybody reads it: what earlier starts read first, then perhaps all the rest.

use crate::{open_image::OpenedImage, pace::Pace};
use clip_archive::{Digest, StartProfile};
use clip_cache::{FillError, LayerReader};
use futures::{StreamExt, TryStreamExt, stream};
use std::{collections::HashMap, ops::Range, sync::Arc};
use tokio::{runtime::Handle, task::JoinHandle};

/// Rows begun at once. Twice the requests that the cache lets read-ahead have: while some are on their way the next ones
/// queue, and no row waits for the slowest before it.
const AT_ONCE: usize = 8;
/// The order of a profile is kept from one stage to the next; within a stage neighbours travel together. So many compressed
/// bytes has the first stage, and each further one twice as many, up to the last: what is needed first comes first, and
/// later few large requests are worth more than the order.
const FIRST_STAGE: u64 = 1 << 20;
const LAST_STAGE: u64 = 16 << 20;

/// Neighbouring spans of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    layer: usize,
    spans: Range<usize>,
}

/// Fetching in the background; ends when dropped.
#[derive(Debug)]
pub struct FetchAhead(JoinHandle<()>);

impl OpenedImage {
    /// Compressed bytes of those spans of `profile` that this image has, in the cache or not.
    pub fn profiled_bytes(&self, profile: &StartProfile) -> u64 {
        let places = self.places(profile);
        let layers = self.fs.layers();
        let bytes = |(layer, span): (usize, usize)| layers[layer].span_bytes(span);
        places.into_iter().map(bytes).sum()
    }

    /// Fetches what `profile` names and is missing: beside what readers wait for, and behind it where both wait.
    /// `progress` is told the compressed bytes of what is there now.
    ///
    /// # Errors
    /// When a span cannot be had; the others may have been.
    pub async fn fetch_profile(
        &self,
        profile: &StartProfile,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Arc<FillError>> {
        let layers = self.fs.layers();
        stream::iter(rows(&self.places(profile), layers))
            .map(|row| async move {
                let layer = &layers[row.layer];
                layer.fetch_soon(row.spans.clone()).await?;
                progress(row.spans.map(|span| layer.span_bytes(span)).sum());
                Ok(())
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// Fetches `profile`, and everything else if there is a pace for it, in the background.
    pub fn fetch_ahead(
        &self,
        profile: StartProfile,
        rest: Option<Arc<Pace>>,
        runtime: &Handle,
    ) -> FetchAhead {
        let image = self.clone();
        FetchAhead(runtime.spawn(async move {
            let name = &image.fs.info().name;
            let fetched = image.fetch_profile(&profile, &|_| {}).await;
            match &fetched {
                Ok(()) => tracing::debug!(image = name, "the profiled start is there"),
                Err(error) => tracing::warn!(image = name, %error, "cannot fetch the start ahead"),
            }
            if let Some(pace) = rest {
                match image.fetch_rest(&pace).await {
                    Ok(()) => tracing::info!(image = name, "the whole image is there"),
                    Err(error) => {
                        tracing::warn!(image = name, %error, "cannot fetch the whole image")
                    }
                }
            }
        }))
    }

    /// Layer and span of each touch that is one of this image's, in order.
    fn places(&self, profile: &StartProfile) -> Vec<(usize, usize)> {
        let layers = self.fs.layers();
        let sections = self.sections.iter().enumerate();
        let by_section: HashMap<&Digest, usize> =
            sections.map(|(at, digest)| (digest, at)).collect();
        let place = |touch: &clip_archive::profile::Touch| {
            let layer = *by_section.get(&touch.section)?;
            let span = touch.span as usize;
            (span < layers[layer].span_count()).then_some((layer, span))
        };
        profile.touches().iter().filter_map(place).collect()
    }
}

impl Drop for FetchAhead {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What to ask for, in order: see [`FIRST_STAGE`].
fn rows(places: &[(usize, usize)], layers: &[LayerReader]) -> Vec<Row> {
    let bytes = |&(layer, span): &(usize, usize)| layers[layer].span_bytes(span);
    in_stages(places, bytes)
        .into_iter()
        .flat_map(neighbours)
        .collect()
}

fn in_stages(
    places: &[(usize, usize)],
    bytes: impl Fn(&(usize, usize)) -> u64,
) -> Vec<Vec<(usize, usize)>> {
    let mut stages = vec![Vec::new()];
    let (mut filled, mut stage) = (0, FIRST_STAGE);
    for place in places {
        if filled >= stage {
            stages.push(Vec::new());
            filled = 0;
            stage = (stage * 2).min(LAST_STAGE);
        }
        filled += bytes(place);
        stages.last_mut().expect("never empty").push(*place);
    }
    stages
}

/// Neighbours as rows; a row comes where its first place was.
fn neighbours(stage: Vec<(usize, usize)>) -> Vec<Row> {
    let rank: HashMap<(usize, usize), usize> = stage.iter().copied().zip(0..).collect();
    let mut sorted = stage;
    sorted.sort_unstable();
    let mut rows: Vec<(usize, Row)> = Vec::new();
    for (layer, span) in sorted {
        let rank = rank[&(layer, span)];
        match rows.last_mut() {
            Some((earliest, row)) if row.layer == layer && row.spans.end == span => {
                row.spans.end += 1;
                *earliest = rank.min(*earliest);
            }
            _ => rows.push((
                rank,
                Row {
                    layer,
                    spans: span..span + 1,
                },
            )),
        }
    }
    rows.sort_unstable_by_key(|(earliest, _)| *earliest);
    rows.into_iter().map(|(_, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_keep_the_order_and_grow() {
        let places: Vec<_> = (0..100).map(|span| (0, 99 - span)).collect();
        let stages = in_stages(&places, |_| 512 << 10);
        assert_eq!(stages.concat(), places);
        let sizes: Vec<usize> = stages.iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 4, 8, 16, 32, 32, 6]);
    }

    #[test]
    fn neighbours_travel_together_as_early_as_the_first_of_them() {
        let row = |layer, spans| Row { layer, spans };
        let stage = vec![(1, 7), (0, 3), (1, 9), (0, 2), (1, 8), (0, 9)];
        assert_eq!(
            neighbours(stage),
            [row(1, 7..10), row(0, 2..4), row(0, 9..10)]
        );
        assert_eq!(neighbours(vec![]), []);
    }
}
