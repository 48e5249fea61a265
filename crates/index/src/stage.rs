//! Work on a stream of bytes that is done beside the decoder: on a thread of its own, or right here.

use bytes::Bytes;
use std::{
    panic::resume_unwind,
    sync::mpsc::{SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

/// Pieces that may wait for a thread. Enough that neither side waits for the other to wake up; at
/// most half a megabyte each, so that memory stays small.
const PIECES_AHEAD: usize = 8;

/// What is done with the bytes.
pub trait Work: Send + Sized + 'static {
    /// Why it ends early.
    type Error: Send + 'static;

    /// Takes the next bytes. After an error it gets no more.
    fn take(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
}

/// Some work, and where it is done.
#[derive(Debug)]
pub enum Stage<W: Work> {
    /// By whoever pushes.
    Here(W),
    /// On a thread, which ends with the channel.
    Beside(SyncSender<Bytes>, JoinHandle<Result<W, W::Error>>),
    /// Nowhere any more.
    Ended,
}

impl<W: Work> Stage<W> {
    /// Starts a thread if `beside`.
    pub fn new(mut work: W, beside: bool) -> Self {
        if !beside {
            return Self::Here(work);
        }
        let (sender, pieces) = sync_channel::<Bytes>(PIECES_AHEAD);
        let thread = thread::spawn(move || {
            for piece in pieces {
                work.take(&piece)?;
            }
            Ok(work)
        });
        Self::Beside(sender, thread)
    }

    /// Hands bytes to the work, waiting while too many others wait already. Its error comes from
    /// this or a later call, or from [`Self::finish`].
    pub fn push(&mut self, bytes: Bytes) -> Result<(), W::Error> {
        match self {
            Self::Here(work) => work.take(&bytes),
            Self::Beside(pieces, _) => match pieces.send(bytes) {
                Ok(()) => Ok(()),
                // The thread has ended, and says why.
                Err(_) => self.finish().map(drop),
            },
            Self::Ended => Ok(()),
        }
    }

    /// Gives the work back when it has taken all bytes; only once.
    pub fn finish(&mut self) -> Result<W, W::Error> {
        match std::mem::replace(self, Self::Ended) {
            Self::Here(work) => Ok(work),
            Self::Beside(pieces, thread) => {
                drop(pieces);
                thread.join().unwrap_or_else(|panic| resume_unwind(panic))
            }
            Self::Ended => unreachable!("work is finished once"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds up until it meets a zero.
    #[derive(Debug, Default)]
    struct Sum(u64);

    impl Work for Sum {
        type Error = &'static str;

        fn take(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
            for &byte in bytes {
                match byte {
                    0 => return Err("a zero"),
                    255 => panic!("255"),
                    _ => self.0 += u64::from(byte),
                }
            }
            Ok(())
        }
    }

    #[test]
    fn a_thread_takes_what_it_would_have_taken_here() {
        for beside in [false, true] {
            let mut stage = Stage::new(Sum::default(), beside);
            for byte in 1..=200 {
                stage.push(Bytes::copy_from_slice(&[byte])).unwrap();
            }
            assert_eq!(stage.finish().unwrap().0, 200 * 201 / 2);
        }
    }

    #[test]
    fn an_error_is_told_once_and_ends_the_work() {
        for beside in [false, true] {
            let mut stage = Stage::new(Sum::default(), beside);
            let mut errors = (0..1000).filter_map(|_| stage.push(Bytes::from_static(&[0])).err());
            assert_eq!(errors.next(), Some("a zero"));
        }
    }

    #[test]
    #[should_panic = "255"]
    fn a_panic_beside_is_a_panic_here() {
        let mut stage = Stage::new(Sum::default(), true);
        stage.push(Bytes::from_static(&[255])).unwrap();
        let _ = stage.finish();
    }
}
