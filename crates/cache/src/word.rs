//! The state of a span in one 32-bit word, and the only ways in which it may change.
//!
//! ```text
//!            publish: the bytes are written and checked
//!   Absent g ──────────────────────────────► Present g
//!      ▲  │                                    │    │ distrust: the machine was restarted,
//!      │  │ condemn                    condemn │    ▼ or the data file is another
//!      │  ▼                                    │  Unverified g ──► Present g (publish)
//!   Evicting g+1 ◄────────────────────────────┴────┘ condemn
//!      │  the hole is punched, then                     forget: Present, Unverified g ──► Absent g+1
//!      └──► Absent g+1 (release)
//! ```
//!
//! Any number of processes map the words, and no lock is held while a span is read or filled. Why a
//! hole is never taken for data:
//!
//! 1. *Only right bytes are written.* What is written at a span's place was compared with its digest
//!    before, so fillers never disturb each other or a reader.
//! 2. *Bytes are taken away only while the word says Evicting*, and only by the one who holds the
//!    evictor's lock. It is the one who condemned the span, or finds it condemned by a predecessor that
//!    was killed (the kernel releases a dead process' lock): with the lock in hand, nobody else can be
//!    between condemning and punching.
//! 3. *A span leaves Present for good when it is condemned or forgotten*: the generation grows, so the
//!    same word is never seen again (2^30 generations later, while one read or fill waits, apart).
//! 4. Hence a **filler** that saw Absent g, then wrote, then replaced exactly this word by Present g knows
//!    that no hole was punched in between: that would have taken the word through Evicting g+1. One that
//!    fails begins again, or keeps its bytes in memory. Evicting cannot be published at all, so a filler
//!    never waits for an evictor, dead or alive.
//! 5. And a **reader** that saw Present g, then read, then saw the same word knows that the bytes were there
//!    all the time.
//!
//! Forgetting needs no lock, for it takes no byte away: whoever finds a span's bytes unreadable or wrong may
//! do it. A word left at Evicting by a kill only means that the span is not kept until the next evictor comes.
//!
//! The tests below try every interleaving, weak memory included (loom).

use std::sync::atomic::{AtomicU32, Ordering, fence};

/// What is known about a span's bytes in the data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanState {
    /// Nothing.
    Absent,
    /// Written and checked since the machine was started.
    Present,
    /// Written and checked once, but the machine was started or the data file changed since.
    Unverified,
    /// Being taken away.
    Evicting,
}

const STATE_BITS: u32 = 2;

/// A state and its generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word(u32);

impl Word {
    /// The word as it lies in the table. Every value is one.
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// For the table.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// The state.
    pub fn state(self) -> SpanState {
        match self.0 & 3 {
            0 => SpanState::Absent,
            1 => SpanState::Present,
            2 => SpanState::Unverified,
            _ => SpanState::Evicting,
        }
    }

    /// Whether the span may be read at once.
    pub fn is_present(self) -> bool {
        self.state() == SpanState::Present
    }

    /// Whether there is something to read or to verify.
    pub fn has_bytes(self) -> bool {
        matches!(self.state(), SpanState::Present | SpanState::Unverified)
    }

    /// The word in the table of a new life of the machine or of another data file.
    pub fn distrusted(self) -> Self {
        match self.state() {
            SpanState::Present => self.with(SpanState::Unverified),
            _ => self,
        }
    }

    fn with(self, state: SpanState) -> Self {
        let state = match state {
            SpanState::Absent => 0,
            SpanState::Present => 1,
            SpanState::Unverified => 2,
            SpanState::Evicting => 3,
        };
        Self(self.0 >> STATE_BITS << STATE_BITS | state)
    }

    fn next(self, state: SpanState) -> Self {
        Self(self.0.wrapping_add(1 << STATE_BITS)).with(state)
    }
}

/// A place where a word lies. The one in use is the mapped `AtomicU32`; loom has its own.
pub trait Cell {
    /// Loads; what was written before the word was set is visible afterwards.
    fn load_acquire(&self) -> u32;
    /// Replaces `from` by `to` (acquire and release), unless the word is another.
    fn replace(&self, from: u32, to: u32) -> bool;
    /// Keeps reads and writes before it from what comes after it, in both directions.
    fn fence();
}

impl Cell for AtomicU32 {
    fn load_acquire(&self) -> u32 {
        self.load(Ordering::Acquire)
    }

    fn replace(&self, from: u32, to: u32) -> bool {
        self.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    fn fence() {
        fence(Ordering::AcqRel);
    }
}

/// The word now.
pub fn look<C: Cell>(cell: &C) -> Word {
    Word(cell.load_acquire())
}

/// Whether the word is still `seen`. What was read since it was seen was then read in that state.
pub fn is_unchanged<C: Cell>(cell: &C, seen: Word) -> bool {
    C::fence();
    look(cell) == seen
}

/// Says that the bytes are there: they were found right, or written, after `seen` was seen.
pub fn publish<C: Cell>(cell: &C, seen: Word) -> bool {
    matches!(seen.state(), SpanState::Absent | SpanState::Unverified)
        && cell.replace(seen.0, seen.with(SpanState::Present).0)
}

/// Takes the span for the evictor, which holds its lock. Bytes may be taken away after this.
pub fn condemn<C: Cell>(cell: &C, seen: Word) -> bool {
    let condemned = seen.state() != SpanState::Evicting
        && cell.replace(seen.0, seen.next(SpanState::Evicting).0);
    C::fence();
    condemned
}

/// Ends what [`condemn`] began, here or in a process that was killed. Only for who holds the evictor's lock.
pub fn release<C: Cell>(cell: &C) {
    let word = look(cell);
    if word.state() == SpanState::Evicting {
        // Nobody else may change it.
        cell.replace(word.0, word.with(SpanState::Absent).0);
    }
}

/// Says that the bytes are not what they should be.
pub fn forget<C: Cell>(cell: &C, seen: Word) -> bool {
    seen.has_bytes() && cell.replace(seen.0, seen.next(SpanState::Absent).0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use loom::{
        sync::{Arc, Mutex},
        thread,
    };

    impl Cell for loom::sync::atomic::AtomicU32 {
        fn load_acquire(&self) -> u32 {
            self.load(Ordering::Acquire)
        }

        fn replace(&self, from: u32, to: u32) -> bool {
            self.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        }

        fn fence() {
            loom::sync::atomic::fence(Ordering::AcqRel);
        }
    }

    const HOLE: u32 = 0;
    const RIGHT: u32 = 1;

    /// A span: its word, its bytes (no ordering of their own), the evictor's lock.
    struct Span {
        word: loom::sync::atomic::AtomicU32,
        bytes: loom::sync::atomic::AtomicU32,
        evictor: Mutex<()>,
    }

    impl Span {
        fn new(state: SpanState, bytes: u32) -> Arc<Self> {
            Arc::new(Self {
                word: loom::sync::atomic::AtomicU32::new(Word(0).with(state).0),
                bytes: loom::sync::atomic::AtomicU32::new(bytes),
                evictor: Mutex::new(()),
            })
        }

        fn read(&self) {
            let seen = look(&self.word);
            if seen.is_present() {
                let bytes = self.bytes.load(Ordering::Relaxed);
                if is_unchanged(&self.word, seen) {
                    assert_eq!(bytes, RIGHT, "a hole was taken for data");
                }
            }
        }

        fn fill(&self) {
            let seen = look(&self.word);
            // Also when it is being evicted: publishing must refuse it.
            if !seen.is_present() {
                self.bytes.store(RIGHT, Ordering::Relaxed);
                publish(&self.word, seen);
            }
        }

        fn verify(&self) {
            let seen = look(&self.word);
            if seen.state() == SpanState::Unverified {
                match self.bytes.load(Ordering::Relaxed) {
                    RIGHT => publish(&self.word, seen),
                    _ => forget(&self.word, seen),
                };
            }
        }

        fn evict(&self) {
            let _lock = self.evictor.lock().unwrap();
            let seen = look(&self.word);
            if seen.state() == SpanState::Evicting || condemn(&self.word, seen) {
                self.bytes.store(HOLE, Ordering::Relaxed);
                release(&self.word);
            }
        }

        /// Killed before or after the hole was punched. The lock goes, the word stays.
        fn evict_and_die(&self, punched: bool) {
            let _lock = self.evictor.lock().unwrap();
            if condemn(&self.word, look(&self.word)) && punched {
                self.bytes.store(HOLE, Ordering::Relaxed);
            }
        }
    }

    /// Runs these at once, in every possible order.
    fn explore(state: SpanState, bytes: u32, all: &'static [fn(&Span)]) {
        let mut model = loom::model::Builder::new();
        // Every order of two threads; of more, all with so many switches forced upon one.
        model.preemption_bound = Some(3);
        model.check(move || {
            let span = Span::new(state, bytes);
            let threads: Vec<_> = all[1..]
                .iter()
                .map(|act| {
                    let span = span.clone();
                    thread::spawn(move || act(&span))
                })
                .collect();
            all[0](&span);
            threads
                .into_iter()
                .for_each(|thread| thread.join().unwrap());
            span.read();
        });
    }

    #[test]
    fn a_reader_never_takes_a_hole_for_data_whoever_fills_and_evicts() {
        explore(
            SpanState::Present,
            RIGHT,
            &[Span::read, Span::evict, Span::fill],
        );
        explore(
            SpanState::Absent,
            HOLE,
            &[Span::read, Span::fill, Span::evict],
        );
    }

    #[test]
    fn fillers_and_evictors_in_any_order_leave_no_hole_that_is_called_present() {
        explore(
            SpanState::Absent,
            HOLE,
            &[Span::fill, Span::fill, Span::evict],
        );
        explore(
            SpanState::Present,
            RIGHT,
            &[Span::fill, |span| {
                span.evict();
                span.evict();
            }],
        );
    }

    #[test]
    fn an_evictor_killed_at_any_moment_blocks_nothing() {
        let dies_early: fn(&Span) = |span| span.evict_and_die(false);
        let dies_late: fn(&Span) = |span| span.evict_and_die(true);
        explore(
            SpanState::Present,
            RIGHT,
            &[Span::read, |span| span.evict_and_die(false), Span::fill],
        );
        explore(
            SpanState::Present,
            RIGHT,
            &[Span::read, |span| span.evict_and_die(true), Span::fill],
        );
        for dies in [dies_early, dies_late] {
            loom::model(move || {
                let span = Span::new(SpanState::Present, RIGHT);
                dies(&span);
                span.fill();
                assert!(
                    !look(&span.word).has_bytes(),
                    "what is condemned cannot be filled"
                );
                span.evict();
                span.fill();
                assert!(look(&span.word).is_present(), "the next evictor frees it");
                span.read();
            });
        }
    }

    #[test]
    fn what_is_left_of_an_earlier_life_is_never_believed_unread() {
        explore(
            SpanState::Unverified,
            HOLE,
            &[Span::verify, Span::fill, Span::read],
        );
        explore(
            SpanState::Unverified,
            RIGHT,
            &[Span::verify, Span::evict, Span::read],
        );
    }

    #[test]
    fn a_word_is_never_the_same_again_after_its_bytes_went() {
        let present = Word(0).with(SpanState::Present);
        let cell = AtomicU32::new(present.bits());
        assert!(condemn(&cell, present));
        release(&cell);
        let absent = look(&cell);
        assert!(publish(&cell, absent) && look(&cell).is_present());
        assert!(!is_unchanged(&cell, present));
        assert!(forget(&cell, look(&cell)) && !publish(&cell, absent));
    }
}
