//! The Clip operator. The way of a change:
//!
//! ```text
//! controller ── what is watched ──► reconcile ──► observe   look at Jobs, pods, the archive's record
//!     ▲                                       ├─► decide    what to do and say (pure)
//!     │ wake                                  └─► act       Job, status, events
//! archive_service ◄── PUT archive ── Job           store    the folder that both use
//!       └── GET archive ──► nodes                  collect  what nobody needs goes
//! ```

pub mod access;
pub mod archive_service;
pub mod args;
pub mod certificates;
pub mod collect;
pub mod controller;
pub mod decide;
pub mod error;
pub mod events;
pub mod identity;
pub mod job;
pub mod jobs;
pub mod mapped;
pub mod measure;
pub mod observe;
pub mod reconcile;
pub mod remedy;
pub mod status;
pub mod store;
pub mod text;
