//! What else of a file will be wanted, once a part of it was read.
//!
//! Programs and libraries are read by page fault: the beginning, then the end, where the linker's tables are, then here
//! and there in between, and most of it before long. By the layer's order alone each of these reads is a jump, and each
//! jump a round trip. Who knows where files begin and end need not wait for them one by one:
//!
//! * A read of a file's beginning brings all of it, if that is no more than [`WHOLE_MAX`].
//! * Of a longer file, each read of another span brings the spans nearest to it: what was fetched ahead and not read
//!   stays within twice the spans that were read, and within [`UNREAD_MAX`]. The first read brings nothing more.
//!
//! A layer of which a list says what is read next is left to the list.
//!
//! So a single read in the middle of a file fetches nothing ahead, and neither do reads of many files that lie in one
//! span each: with them an image's small files cost what they did.

use clip_archive::SeekTable;
use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
};

/// Compressed bytes. Most libraries are shorter; it is 40 ms of a line with 50 MB/s, two of its round trips.
pub const WHOLE_MAX: u64 = 2 << 20;
/// Compressed bytes of one file that nobody has asked for yet: as much as a reader in order has fetched ahead.
const UNREAD_MAX: u64 = 16 << 20;
/// For each span that was read, so many more: a start reads about half of a large program. With three or more the line
/// carries more that nobody reads, and what readers wait for comes later (simulated).
const PER_SPAN_READ: usize = 2;
/// Spans that are looked at around a read: a quarter of a gigabyte, compressed, so that a read in a huge file that is here
/// already costs no more than one in a program.
const REACH: usize = 512;
/// Who reads a file from its beginning may do so with the block around it.
const BLOCK: u64 = 4096;

/// The files of one layer that lie in more than one span, as one mount reads them.
#[derive(Debug)]
pub struct LongFiles {
    /// By position.
    files: Vec<LongFile>,
    /// Of those that were read: few.
    progress: HashMap<usize, Progress>,
}

/// Small: a node has hundreds of mounts, with hundreds of these each.
#[derive(Debug)]
struct LongFile {
    /// Bytes of the layer.
    content: Range<u64>,
    spans: Range<u32>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Spans that were read for the file's sake.
    read: BTreeSet<usize>,
    /// Spans that were fetched ahead for it, and not read yet when somebody last looked.
    unread: BTreeSet<usize>,
}

/// What the cache knows of a span that might be fetched ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It is neither here nor on its way.
    Missing,
    /// It was fetched ahead, and nobody has read it yet.
    Unread,
    /// Nothing needs to be done for it.
    Done,
}

impl LongFiles {
    /// Of files with these `contents` in a layer, those that lie in more than one span. `spans_of` tells the spans of some
    /// bytes.
    pub fn new(
        contents: impl IntoIterator<Item = Range<u64>>,
        spans_of: impl Fn(&Range<u64>) -> Range<usize>,
    ) -> Self {
        let file = |content: Range<u64>| {
            let spans = spans_of(&content);
            LongFile {
                content,
                spans: spans.start as u32..spans.end as u32,
            }
        };
        let is_long = |file: &LongFile| file.spans.len() > 1;
        let mut files: Vec<_> = contents.into_iter().map(file).filter(is_long).collect();
        files.sort_unstable_by_key(|file| file.content.start);
        // Hard links.
        files.dedup_by_key(|file| file.content.start);
        files.shrink_to_fit();
        Self {
            files,
            progress: HashMap::new(),
        }
    }

    /// Nobody will read the file that begins where `used` does behind its end, which lies in `spans`.
    pub fn shorten(&mut self, used: &Range<u64>, spans: Range<usize>) {
        let at = (self.files).binary_search_by_key(&used.start, |file| file.content.start);
        if let Ok(at) = at {
            let file = &mut self.files[at];
            file.content.end = file.content.end.min(used.end);
            file.spans.end = file.spans.end.min(spans.end as u32);
        }
    }

    /// `bytes` of the layer, which lie in `spans`, are being read, some of these for the first time or from the registry:
    /// what to fetch ahead.
    pub fn step(
        &mut self,
        table: &SeekTable,
        spans: &Range<usize>,
        bytes: &Range<u64>,
        known: impl Fn(usize) -> Known,
    ) -> Vec<Range<usize>> {
        let Some(at) = self.at(bytes) else {
            return Vec::new();
        };
        let (file, progress) = (&self.files[at], self.progress.entry(at).or_default());
        let goes_on = progress.note(file, spans);
        let is_missing = |&span: &usize| known(span) == Known::Missing;
        match bytes.start <= file.content.start && file.blob_len(table) <= WHOLE_MAX {
            true => rows(file.spans().filter(is_missing)),
            false if goes_on => rows(progress.nearest(file, table, spans.end - 1, known)),
            false => Vec::new(),
        }
    }

    /// The file that is being read. The kernel reads blocks, which may begin with the end of the file before: the first
    /// block's last byte belongs to the file that is meant.
    fn at(&self, bytes: &Range<u64>) -> Option<usize> {
        let meant = bytes.end.min(bytes.start + BLOCK).checked_sub(1)?;
        let begins_before = |file: &LongFile| file.content.start <= meant;
        let at = self.files.partition_point(begins_before).checked_sub(1)?;
        (meant < self.files[at].content.end).then_some(at)
    }
}

impl Progress {
    /// `spans` are being read. Whether others of `file` were before, and these were not.
    fn note(&mut self, file: &LongFile, spans: &Range<usize>) -> bool {
        let before = self.read.len();
        let within = |span: &usize| file.spans().contains(span);
        self.read.extend(spans.clone().filter(within));
        (1..self.read.len()).contains(&before)
    }

    /// The missing spans of `file` nearest to `to`, as many as may be fetched ahead now, in the layer's order.
    fn nearest(
        &mut self,
        file: &LongFile,
        table: &SeekTable,
        to: usize,
        known: impl Fn(usize) -> Known,
    ) -> BTreeSet<usize> {
        let len = |&span: &usize| table.spans[span].blob_len;
        self.unread.retain(|&span| known(span) == Known::Unread);
        let places = (PER_SPAN_READ * self.read.len()).saturating_sub(self.unread.len());
        let mut left = UNREAD_MAX.saturating_sub(self.unread.iter().map(len).sum());
        let fits = |span: &usize| {
            let fits = len(span) <= left;
            left = left.saturating_sub(len(span));
            fits
        };
        let around = file.outwards(to).take(REACH);
        let missing = around.filter(|&span| known(span) == Known::Missing);
        let nearest: BTreeSet<_> = missing.take(places).take_while(fits).collect();
        self.unread.extend(&nearest);
        nearest
    }
}

impl LongFile {
    fn spans(&self) -> Range<usize> {
        self.spans.start as usize..self.spans.end as usize
    }

    fn blob_len(&self, table: &SeekTable) -> u64 {
        let spans = &table.spans[self.spans()];
        spans.iter().map(|span| span.blob_len).sum()
    }

    /// The file's other spans by their distance to `from`, of two that are as far the later one first.
    fn outwards(&self, from: usize) -> impl Iterator<Item = usize> {
        let spans = self.spans();
        (1..=spans.len())
            .flat_map(move |distance| [Some(from + distance), from.checked_sub(distance)])
            .flatten()
            .filter(move |span| spans.contains(span))
    }
}

/// Neighbours as rows.
fn rows(spans: impl IntoIterator<Item = usize>) -> Vec<Range<usize>> {
    let mut rows = Vec::<Range<usize>>::new();
    for span in spans {
        match rows.last_mut() {
            Some(row) if row.end == span => row.end += 1,
            _ => rows.push(span..span + 1),
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use clip_archive::{Span, SpanHasher, SpanKind};

    const SPAN: u64 = 512 << 10;
    const NOTHING: [usize; 0] = [];

    /// A layer, what of it is here, and how it is read: each span has [`SPAN`] bytes, compressed or not.
    struct Scene {
        table: SeekTable,
        files: LongFiles,
        known: Vec<Known>,
    }

    impl Scene {
        fn new(contents: &[Range<u64>]) -> Self {
            let spans = 400;
            let span = |index: usize| Span {
                tar_len: SPAN,
                blob_offset: index as u64 * SPAN,
                blob_len: SPAN,
                kind: SpanKind::Plain,
                digest: SpanHasher::default().take(),
            };
            Self {
                table: SeekTable {
                    tar_size: SPAN * spans as u64,
                    spans: (0..spans).map(span).collect(),
                    windows: Vec::new(),
                },
                files: LongFiles::new(contents.iter().cloned(), spans_of),
                known: vec![Known::Missing; spans],
            }
        }

        fn of_one_file(content: Range<u64>) -> Self {
            Self::new(std::slice::from_ref(&content))
        }

        /// Reads a block at byte `at`; which spans that has fetched ahead.
        fn read(&mut self, at: u64) -> Vec<usize> {
            let bytes = at..at + BLOCK;
            let spans = spans_of(&bytes);
            self.known[spans.clone()].fill(Known::Done);
            let known = |span: usize| self.known[span];
            let rows = self.files.step(&self.table, &spans, &bytes, known);
            let ahead: Vec<usize> = rows.into_iter().flatten().collect();
            for &span in &ahead {
                assert_eq!(self.known[span], Known::Missing);
                self.known[span] = Known::Unread;
            }
            ahead
        }

        fn unread(&self) -> usize {
            let unread = self.known.iter().filter(|&&known| known == Known::Unread);
            unread.count()
        }
    }

    fn spans_of(bytes: &Range<u64>) -> Range<usize> {
        (bytes.start / SPAN) as usize..bytes.end.div_ceil(SPAN) as usize
    }

    #[test]
    fn the_beginning_of_a_library_brings_all_of_it() {
        // It begins within a block, behind the end of another file.
        let mut scene = Scene::new(&[3 * SPAN - 512..6 * SPAN, 6 * SPAN + 512..7 * SPAN]);
        assert_eq!(scene.read(3 * SPAN - BLOCK), [3, 4, 5]);
        assert_eq!(scene.read(3 * SPAN - BLOCK), NOTHING, "it is on its way");
    }

    #[test]
    fn the_beginning_of_a_program_brings_nothing_but_its_second_span_does() {
        let mut scene = Scene::of_one_file(10 * SPAN..110 * SPAN);
        assert_eq!(scene.read(10 * SPAN), NOTHING);
        assert_eq!(
            scene.read(10 * SPAN + BLOCK),
            NOTHING,
            "the same span again"
        );
        assert_eq!(scene.read(109 * SPAN), [105, 106, 107, 108]);
        assert_eq!(scene.read(50 * SPAN), [49, 51]);
    }

    #[test]
    fn one_read_in_the_middle_of_a_file_brings_nothing() {
        let mut scene = Scene::new(&[0..3 * SPAN, 3 * SPAN..100 * SPAN]);
        assert_eq!(scene.read(SPAN + BLOCK), NOTHING);
        assert_eq!(scene.read(40 * SPAN), NOTHING);
        let mut scene = Scene::of_one_file(0..100 * SPAN);
        assert_eq!(scene.read(40 * SPAN - BLOCK / 2), NOTHING, "of two spans");
    }

    #[test]
    fn files_within_a_span_bring_nothing() {
        let small: Vec<_> = (0..400).map(|at| at * SPAN..at * SPAN + SPAN / 2).collect();
        let mut scene = Scene::new(&small);
        let ahead: Vec<_> = (100..140).flat_map(|at| scene.read(at * SPAN)).collect();
        assert_eq!(ahead, NOTHING);
        assert!(scene.files.files.is_empty());
    }

    #[test]
    fn what_nobody_reads_stays_within_twice_what_was_read_and_16_mib() {
        let mut scene = Scene::of_one_file(0..400 * SPAN);
        for (turn, span) in (0..400).step_by(20).enumerate() {
            scene.read(span * SPAN + SPAN / 2);
            let read = turn + 1;
            assert!(scene.unread() <= PER_SPAN_READ * read, "after {read} reads");
            assert!(scene.unread() as u64 * SPAN <= UNREAD_MAX);
        }
        assert_eq!(scene.unread() as u64 * SPAN, UNREAD_MAX);
    }

    #[test]
    fn reading_what_was_fetched_ahead_makes_room_for_more() {
        let mut scene = Scene::of_one_file(0..100 * SPAN);
        let mut ahead = Vec::new();
        for span in [50, 60] {
            ahead = scene.read(span * SPAN);
        }
        assert_eq!(ahead, [58, 59, 61, 62]);
        assert_eq!(scene.read(61 * SPAN), [63, 64, 65]);
    }

    #[test]
    fn nothing_leads_to_where_nobody_reads() {
        let mut scene = Scene::new(&[0..10 * SPAN, 10 * SPAN..110 * SPAN]);
        let used = 10 * SPAN..50 * SPAN + BLOCK;
        scene.files.shorten(&used, spans_of(&used));
        // Of no file that is known.
        scene.files.shorten(&(7..8), 0..1);
        scene.read(20 * SPAN);
        assert_eq!(scene.read(50 * SPAN), [46, 47, 48, 49]);
        assert_eq!(scene.read(60 * SPAN), NOTHING);
    }

    #[test]
    fn nothing_leads_beyond_the_file() {
        let mut scene = Scene::of_one_file(5 * SPAN..13 * SPAN);
        scene.read(6 * SPAN);
        let mut ahead = scene.read(12 * SPAN);
        ahead.extend(scene.read(5 * SPAN));
        ahead.sort_unstable();
        assert_eq!(ahead, [7, 8, 9, 10, 11]);
        assert_eq!(scene.read(20 * SPAN), NOTHING);
    }
}
