//! For tests only: what several crates need to set up a scene.

pub mod registry;
