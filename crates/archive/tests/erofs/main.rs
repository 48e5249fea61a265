//! EROFS images, judged four times: by our reader, by another project's reader, by the kernel, and
//! by `fsck.erofs`. Each judge lists everything it sees ([`view::Seen`]); all lists must be equal.

mod fsck;
mod hostile;
mod kernel;
mod limits;
mod other_reader;
mod our_reader;
mod trees;
mod view;
