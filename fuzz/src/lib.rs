//! What each fuzzer does with its bytes: one module per target, each with `run(bytes)`.
//!
//! `run` returns for any bytes. A panic, an endless loop, or memory without bound is a finding, and so is
//! a broken promise that `run` asserts: what was indexed decodes to the same bytes, what was written is read back.
//!
//! The bodies live here, apart from libFuzzer (`libfuzzer/`), so that an ordinary `cargo test` replays every
//! seed and every past finding (`tests/replay.rs`).

pub mod archive_open;
mod erofs_walk;
mod framing;
mod input;
pub mod manifest;
pub mod seek_resume;
pub mod tar_walk;
pub mod tree_expand;
pub mod volume_attributes;

/// A target: its name and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All targets, by the names under which `fuzz/run` knows them.
pub const TARGETS: [Target; 6] = [
    ("archive_open", archive_open::run),
    ("tree_expand", tree_expand::run),
    ("tar_walk", tar_walk::run),
    ("seek_resume", seek_resume::run),
    ("manifest", manifest::run),
    ("volume_attributes", volume_attributes::run),
];
