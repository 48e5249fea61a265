//! FUSE (`linux/fuse.h`, fuse(4)) for trees that are read only and never change.
//!
//! * A [`Filesystem`] says what is in the tree; nothing but a read may wait.
//! * A [`Connection`] is a descriptor of `/dev/fuse` and the filesystem that is asked over it. It begins with the kernel's
//!   INIT, or goes on where a server that is gone has ended.
//! * A [`Dispatcher`] answers on any number of connections with a few threads.
//!
//! The kernel keeps everything that it was told: after one cold pass a walk, a stat or an open sends no message. Nothing
//! is kept here between two requests, so the next server needs the descriptor and the same tree, no more.
//!
//! The kernel tells of any signal to whoever waits (INTERRUPT), such as the one with which Go's runtime preempts its
//! threads, and a read of a file must not fail for that. Who is killed while the page cache is filled does not wait for
//! the answer. Who reads past it does ([`Reply::signalled`]).

mod answer;
mod connection;
mod dir_list;
mod dispatcher;
mod filesystem;
mod reply;
mod request;
mod wire;

pub use answer::READ_LEN_MAX;
pub use connection::Connection;
pub use dir_list::DirList;
pub use dispatcher::{Dispatcher, Ended};
pub use filesystem::{Attributes, Filesystem, ROOT, Statistics, Traits};
pub use reply::Reply;
