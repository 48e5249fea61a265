//! For tests only: what several crates need to set up a scene.
//!
//! * [`registry`]: a real registry; [`authority`]: certificates for its clients; [`proxy`]: what a test puts before it to
//!   count, delay or break.
//! * [`images`]: the real images that `e2e/images/make` makes; [`layout`]: small ones made of a test's own entries.
//! * [`kinds`]: every way in which layers are compressed.
//! * [`tree`]: everything that a directory tree shows, and how two of them differ.
//! * [`runtimes`]: crun on any machine.
//! * [`memory`]: how much of it processes have, and how much they may have.
//! * [`guard`]: processes and mounts that are gone when their guard is dropped, after a panic, too.

pub mod authority;
pub mod guard;
pub mod images;
pub mod kinds;
pub mod layout;
pub mod memory;
pub mod proxy;
pub mod registry;
pub mod runtimes;
pub mod tree;
