//! What SOCI indexes of an image.

use crate::{lazy_peer::LazyPeer, rows::Row, spans::Spans};
use anyhow::{Result, ensure};
use serde::Deserialize;
use std::path::Path;

/// An image's layers and their ztocs, as the program in `bench/peers/soci` describes them. Sizes are in bytes.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Indexed {
    layers: u64,
    indexed: u64,
    small: u64,
    /// Of all ztocs.
    pub ztoc_bytes: u64,
    spans: u64,
    decoded_bytes: u64,
    longest_decoded: u64,
    longest_fetched: u64,
}

impl Indexed {
    /// Of an image that `peer` has converted. An image without a layer that SOCI indexes is an error.
    pub fn of(peer: &LazyPeer, converted: &Path) -> Result<Self> {
        let indexed: Self = peer.describe(converted)?;
        ensure!(
            indexed.indexed > 0,
            "it indexes none of the layers: {}",
            indexed.left_out()
        );
        Ok(indexed)
    }

    /// How far apart the seek points are.
    pub fn spans(&self) -> Spans {
        Spans {
            mean_decoded: self.decoded_bytes as f64 / self.spans as f64,
            longest_decoded: self.longest_decoded,
            longest_fetched: self.longest_fetched,
        }
    }

    /// Says with rows about SOCI which layers they do not cover.
    pub fn note(&self, rows: Vec<Row>) -> Vec<Row> {
        if self.layers == self.indexed {
            return rows;
        }
        let note = format!("layers left out: {}", self.left_out());
        rows.into_iter().map(|row| row.with_note(&note)).collect()
    }

    fn left_out(&self) -> String {
        let foreign = self.layers - self.indexed - self.small;
        let kinds = [
            (self.small, "of less than 10 MiB"),
            (foreign, "in a format that it cannot seek in"),
        ];
        let kinds = kinds
            .iter()
            .filter(|(layers, _)| *layers > 0)
            .map(|(layers, kind)| format!("{layers} {kind}"));
        kinds.collect::<Vec<_>>().join(" and ")
    }
}
