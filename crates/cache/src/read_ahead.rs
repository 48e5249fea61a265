//! Which spans a reader will probably want next.
//!
//! A *stream* is a reader that goes through a layer in order: one file, or file after file as they lie in the tar. Its
//! window is what is fetched ahead of it. The first step to the next span opens a window of one span; each time the reader
//! gets halfway through what was fetched ahead, the window doubles, but only if it came in order, by the beginning of the
//! span: programs that jump about in a library come to neighbours, too. A read elsewhere begins a stream of its own,
//! without a window; the least recent of [`STREAMS`] makes room. So random reads fetch nothing ahead.

use clip_archive::SeekTable;
use std::ops::Range;

/// Compressed bytes ahead of a reader: 0.3 s of a line with 50 MB/s, so its round trips and one retry do not show.
const WINDOW_MAX: u64 = 16 << 20;
/// Readers of one layer that are told apart. Programs that load libraries jump among few files at a time.
const STREAMS: usize = 16;

/// Bytes of the layer. Who reads in order begins a span with the read that ended the one before, or the next one: the
/// kernel reads 128 KiB at a time from files that are read in order.
const IN_ORDER: u64 = 128 << 10;

/// The streams of one layer and mount, the most recent last.
#[derive(Debug, Default)]
pub struct Streams {
    streams: Vec<Stream>,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    /// The span that was read last.
    at: usize,
    /// End of what was fetched ahead.
    ahead: usize,
    /// The span at which more is fetched.
    mark: usize,
    /// Compressed bytes.
    window: u64,
}

impl Streams {
    /// `spans` are being read, at least one of them for the first time or from the registry: what to fetch ahead.
    /// `into_last` is how far behind the beginning of the last of them the read begins.
    pub fn step(
        &mut self,
        table: &SeekTable,
        spans: &Range<usize>,
        into_last: u64,
    ) -> Option<Range<usize>> {
        let goes_on =
            |stream: &Stream| (stream.at..=stream.ahead.max(stream.at + 1)).contains(&spans.start);
        let known = self.streams.iter().rposition(goes_on);
        let mut stream = match known {
            Some(known) => self.streams.remove(known),
            None => {
                if self.streams.len() == STREAMS {
                    self.streams.remove(0);
                }
                Stream {
                    at: spans.start,
                    ahead: 0,
                    mark: usize::MAX,
                    window: 0,
                }
            }
        };
        let last = spans.end - 1;
        let has_moved = last > stream.at && known.is_some();
        stream.at = stream.at.max(last);
        let in_order = into_last <= IN_ORDER;
        let ahead = has_moved.then(|| stream.widen(table, in_order)).flatten();
        self.streams.push(stream);
        ahead
    }
}

impl Stream {
    fn widen(&mut self, table: &SeekTable, in_order: bool) -> Option<Range<usize>> {
        let next = self.at + 1;
        if self.ahead > next && self.at < self.mark {
            return None;
        }
        let one_span = table.spans.get(next)?.blob_len;
        self.window = match in_order {
            true => (self.window * 2).clamp(one_span, WINDOW_MAX.max(one_span)),
            // Not the end of a stream: somebody else may have read here.
            false => one_span,
        };
        let start = self.ahead.max(next);
        let mut left = self.window;
        let covered = table.spans[next..].iter().take_while(|span| {
            let fits = span.blob_len <= left;
            left = left.saturating_sub(span.blob_len);
            fits
        });
        let end = next + covered.count();
        if end <= start {
            return None;
        }
        (self.ahead, self.mark) = (end, start + (end - start) / 2);
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clip_archive::{Span, SpanHasher, SpanKind};

    const SPAN: u64 = 512 << 10;

    fn table(spans: usize) -> SeekTable {
        let span = |index: usize| Span {
            tar_len: 4 * SPAN,
            blob_offset: index as u64 * SPAN,
            blob_len: SPAN,
            kind: SpanKind::Plain,
            digest: SpanHasher::default().take(),
        };
        SeekTable {
            tar_size: 4 * SPAN * spans as u64,
            spans: (0..spans).map(span).collect(),
            windows: Vec::new(),
        }
    }

    /// What a sequential reader has fetched ahead, step by step.
    fn run_through(table: &SeekTable, from: usize, to: usize) -> Vec<Range<usize>> {
        let mut streams = Streams::default();
        (from..to)
            .filter_map(|span| streams.step(table, &(span..span + 1), 0))
            .collect()
    }

    #[test]
    fn a_window_opens_with_one_span_and_doubles_to_16_mib() {
        let ahead = run_through(&table(400), 10, 200);
        assert_eq!(ahead[0], 12..13, "after two spans in a row");
        let longest = ahead.iter().map(|spans| spans.len()).max().unwrap();
        assert!((16..=32).contains(&longest), "{ahead:?}");
        let gapless = ahead.windows(2).all(|pair| pair[0].end == pair[1].start);
        assert!(gapless, "{ahead:?}");
        let steps = ahead.iter().take_while(|spans| spans.end < 100).count();
        assert!(steps < 12, "{ahead:?}");
    }

    #[test]
    fn who_jumps_from_span_to_span_gets_one_ahead_and_no_more() {
        let (table, mut streams) = (table(400), Streams::default());
        let longest =
            (0..50).filter_map(|span| streams.step(&table, &(span..span + 1), IN_ORDER + 1));
        assert_eq!(longest.map(|ahead| ahead.len()).max(), Some(1));
    }

    #[test]
    fn it_ends_with_the_layer() {
        let ahead = run_through(&table(20), 0, 20);
        assert_eq!(ahead.last().unwrap().end, 20);
    }

    #[test]
    fn random_reads_fetch_nothing_ahead() {
        let (table, mut streams) = (table(1000), Streams::default());
        for read in 0..300 {
            let span = read * 397 % 1000;
            assert_eq!(streams.step(&table, &(span..span + 1), 0), None, "{read}");
        }
    }

    #[test]
    fn the_same_span_again_is_no_step() {
        let (table, mut streams) = (table(100), Streams::default());
        for _ in 0..10 {
            assert_eq!(streams.step(&table, &(7..8), 0), None);
        }
    }

    #[test]
    fn several_readers_of_a_layer_keep_their_windows() {
        let (table, mut streams) = (table(1000), Streams::default());
        let mut ahead = [0, 0];
        for step in 0..100 {
            for (reader, from) in [(0, 0), (1, 500)] {
                let span = from + step;
                if let Some(more) = streams.step(&table, &(span..span + 1), 0) {
                    ahead[reader] = more.end - from;
                }
            }
        }
        assert!(ahead.iter().all(|&ahead| ahead > 110), "{ahead:?}");
    }

    #[test]
    fn a_reader_that_skips_within_its_window_goes_on() {
        let (table, mut streams) = (table(1000), Streams::default());
        let ahead: Vec<_> = (0..200)
            .step_by(2)
            .filter_map(|span| streams.step(&table, &(span..span + 2), 0))
            .collect();
        assert!(ahead.len() > 3 && ahead.last().unwrap().end > 205);
    }
}
