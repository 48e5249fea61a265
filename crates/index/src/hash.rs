//! SHA-256 over a stream. From ring: on processors without SHA instructions half again as fast as
//! the pure Rust implementation, and hashing is what indexing spends most of its time on there.

use clip_archive::Digest;
use ring::digest::{Context, SHA256};

/// A running SHA-256.
#[derive(Clone)]
pub struct Sha256(Context);

impl Sha256 {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    /// Appends bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of what was appended so far.
    pub fn digest(&self) -> Digest {
        let digest = self.0.clone().finish();
        let bytes = digest.as_ref().try_into().expect("SHA-256 has 32 bytes");
        Digest::from_bytes(bytes)
    }
}

impl std::fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sha256(…)")
    }
}
