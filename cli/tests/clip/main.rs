//! The real `clip` program on real images, registries and mounts, as root. Tests name the row of the product's promises
//! that they check (S1 to S10).

mod abuse;
mod archive;
mod artifacts;
mod bundles;
mod cache;
mod containers;
mod differential;
mod engines;
mod errors;
mod eviction;
mod foresight;
mod judges;
mod kills;
mod kinds;
mod outlive;
mod profile;
mod promises;
mod reads;
mod reuse;
mod runs;
mod scene;
mod sharing;
mod talk;
mod transcript;
mod users;
mod verify;
mod verify_cache;
mod warm;
