//! A read-only filesystem over an opened archive.
//!
//! * [`ImageFs`] is the filesystem itself: attributes, lookups, directories and content by node.
//!   It knows nothing of FUSE; tests and `clip cat` call it directly.
//! * [`connection`] makes FUSE connections, [`datagram`] passes them to other processes.
//! * [`Session`] mounts an [`ImageFs`] and serves it; [`begin`] and [`resume`] are for mounts of other processes'. The
//!   protocol is [`clip_fuse`]'s, `fuse.rs` translates.
//! * [`KernelMount`] puts the kernel's EROFS over such a connection.
//! * [`mount_points`] reads the kernel's mount table; a mounted tree is never touched to learn
//!   about it, because a touch on a dead or slow mount can block.
//!
//! The tree lies in a memory-mapped EROFS image, so a mount parses nothing. Node numbers are EROFS
//! node numbers: a server needs no state beside the connection.

pub mod connection;
mod contents;
pub mod datagram;
mod elf;
mod failed_reads;
mod foresight;
mod fuse;
mod image_fs;
mod kernel_mount;
mod mapped;
pub mod mount_points;
mod named_files;
mod nodes;
mod package;
pub mod read_ahead;
mod resolve;
mod session;

pub use image_fs::{ImageFs, ImageFsError, ImageInfo};
pub use kernel_mount::{KernelMount, carries_overlay};
pub use mapped::Mapped;
pub use nodes::Layout;
pub use resolve::Resolved;
pub use session::{MountOptions, Session, begin, is_connected, resume};
