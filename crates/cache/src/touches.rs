//! [`Touches`]: the order in which the spans of an image are read for the first time.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// A record that is shared by all layers of an image. While it is closed a read pays one load for it, while it is open
/// one more for each span.
#[derive(Debug, Default)]
pub struct Touches {
    open: AtomicBool,
    /// Layer and span.
    order: Mutex<Vec<(u16, u32)>>,
}

/// One layer's part of it.
#[derive(Debug)]
pub(crate) struct LayerTouches {
    image: Arc<Touches>,
    layer: u16,
    /// A bit for each span: whether it is in the record.
    seen: Box<[AtomicU64]>,
}

impl Touches {
    /// Records from now on.
    pub fn begin(&self) {
        self.open.store(true, Ordering::Relaxed);
    }

    /// Records no more; says what was recorded: layer and span, in the order of their first reads.
    pub fn end(&self) -> Vec<(u16, u32)> {
        self.open.store(false, Ordering::Relaxed);
        self.order
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl LayerTouches {
    pub fn new(image: Arc<Touches>, layer: u16, spans: usize) -> Self {
        let words = spans.div_ceil(64);
        Self {
            image,
            layer,
            seen: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// These spans are read now.
    pub fn note(&self, spans: Range<usize>) {
        if !self.image.open.load(Ordering::Relaxed) {
            return;
        }
        for span in spans {
            let (word, bit) = (&self.seen[span / 64], 1 << (span % 64));
            let is_known = |seen: u64| seen & bit != 0;
            if is_known(word.load(Ordering::Relaxed))
                || is_known(word.fetch_or(bit, Ordering::Relaxed))
            {
                continue;
            }
            let mut order = self
                .image
                .order
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            order.push((self.layer, span as u32));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_first_touches_are_recorded_and_only_while_it_is_open() {
        let image = Arc::new(Touches::default());
        let [base, top] = [0, 1].map(|layer| LayerTouches::new(image.clone(), layer, 130));
        base.note(0..2);
        image.begin();
        top.note(128..130);
        base.note(1..3);
        top.note(129..130);
        assert_eq!(image.end(), [(1, 128), (1, 129), (0, 1), (0, 2)]);
        base.note(7..8);
        assert_eq!(image.end().len(), 4);
    }
}
