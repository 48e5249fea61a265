//! The corner cases of layer formats: one table, by where the cases come from.
//!
//! A row is a stack of layers, written byte by byte, and what a mount of it must show: a listing, or
//! the reason for which it is refused. Names are those of the projects' own tests where they have
//! one. `peers` says where unpackers differ; `docs/semantics.md` says why we do what we do.
//!
//! With `CLIP_CORNER_CASES=DIR` each row's layers and listing are written to
//! `DIR/SUITE/ROW/{0.tar,1.tar,…,tree}`, for other unpackers to be run on.

mod containerd;
mod containerd_diff;
mod containers_storage;
mod go_testdata;
mod hardlinks;
mod harness;
mod headers;
mod paths;
mod pax;
mod raw;
mod replaced;
mod sparse;
mod stargz;
mod stream;
mod umoci;
mod whiteouts;
