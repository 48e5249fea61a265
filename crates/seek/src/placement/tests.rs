//! Against the plain way: all chains over all borders, once all are known.

use super::*;
use proptest::prelude::*;

const START: Border = Border {
    tar: 0,
    blob: 0,
    blob_end: 0,
};

/// Blocks of these sizes (decoded, compressed) one behind the other, with the costs of beginning a
/// span behind each; the last block ends the stream.
fn borders(blocks: &[(u64, u64, u64)]) -> (Vec<(Border, u64)>, Border) {
    let mut at = START;
    let mut borders: Vec<_> = blocks
        .iter()
        .map(|&(tar, blob, cost)| {
            at = Border {
                tar: at.tar + tar,
                blob: at.blob + blob,
                blob_end: at.blob + blob + 1,
            };
            (at, cost)
        })
        .collect();
    let end = borders.pop().map_or(START, |(end, _)| end);
    (borders, end)
}

/// The chosen chain, and the most that was undecided at any time: decoded bytes, and borders held.
fn place(limits: SpanLimits, borders: &[(Border, u64)], end: Border) -> (Vec<usize>, u64, usize) {
    let mut placement = Placement::new(limits, START);
    let mut chosen = Vec::new();
    let (mut undecided_max, mut held_max) = (0, 0);
    for (index, &(border, cost)) in borders.iter().enumerate() {
        placement.offer(border, cost, index);
        placement.advance(border.tar, border.blob_end);
        while let Some((border, index)) = placement.next_decided() {
            assert_eq!(border, borders[index].0);
            chosen.push(index);
        }
        undecided_max = undecided_max.max(border.tar - placement.undecided_from());
        held_max = held_max.max(placement.nodes.len());
    }
    placement.finish(end.tar, end.blob_end);
    while let Some((_, index)) = placement.next_decided() {
        chosen.push(index);
    }
    (chosen, undecided_max, held_max)
}

fn fits(limits: SpanLimits, from: Border, to: Border) -> bool {
    to.tar - from.tar <= limits.tar && to.blob_end - from.blob <= limits.blob
}

/// The least that any chain costs.
fn cheapest(limits: SpanLimits, borders: &[(Border, u64)], end: Border) -> u64 {
    let mut all = vec![(START, 0)];
    all.extend_from_slice(borders);
    all.push((end, 0));
    let mut costs = vec![0];
    for to in 1..all.len() {
        let reachable =
            (0..to).filter(|&from| from + 1 == to || fits(limits, all[from].0, all[to].0));
        let before = reachable.map(|from| costs[from]).min();
        costs.push(before.unwrap_or_default() + all[to].1);
    }
    costs.pop().unwrap_or_default()
}

fn check_spans_fit(limits: SpanLimits, chosen: &[usize], borders: &[(Border, u64)], end: Border) {
    // Numbered from 1, as a span's blocks are those between its ends.
    let ends = chosen.iter().map(|&index| (index + 1, borders[index].0));
    let mut before = (0, START);
    for (number, border) in ends.chain([(borders.len() + 1, end)]) {
        assert!(number > before.0, "not in order");
        assert!(
            number == before.0 + 1 || fits(limits, before.1, border),
            "a span of several blocks is larger than the limits"
        );
        before = (number, border);
    }
}

proptest! {
    #[test]
    fn no_chain_within_the_limits_is_cheaper(
        blocks in prop::collection::vec((1u64..60, 1u64..40, 0u64..9), 1..120),
        tar in 1u64..400,
        blob in 1u64..200,
    ) {
        let limits = SpanLimits { tar, blob };
        let (borders, end) = borders(&blocks);
        let (chosen, _, _) = place(limits, &borders, end);
        let cost: u64 = chosen.iter().map(|&index| borders[index].1).sum();
        prop_assert_eq!(cost, cheapest(limits, &borders, end));
        check_spans_fit(limits, &chosen, &borders, end);
    }

    #[test]
    fn little_is_undecided_however_large_the_limits(
        blocks in prop::collection::vec((1u64..9 << 20, 1u64..2 << 20, 1u64..5000), 1..400),
        tar_shift in 16u32..32,
        blob_shift in 16u32..32,
    ) {
        let limits = SpanLimits { tar: 1 << tar_shift, blob: 1 << blob_shift };
        let (borders, end) = borders(&blocks);
        let (chosen, undecided, held) = place(limits, &borders, end);
        check_spans_fit(limits, &chosen, &borders, end);
        prop_assert!(undecided <= UNDECIDED_MAX, "{} bytes undecided", undecided);
        prop_assert!(held <= BORDERS_MAX);
    }
}

#[test]
fn a_layer_of_20_gb_holds_few_borders_and_few_spans() {
    let mut state = 1u64;
    let blocks: Vec<(u64, u64, u64)> = (0..220_000)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let tar = 20_000 + state % 160_000;
            (tar, tar / 3, 60 + (state >> 32) % 4000)
        })
        .collect();
    let (borders, end) = borders(&blocks);
    assert!(end.tar > 20_000_000_000);
    let limits = SpanLimits::default();
    let (chosen, undecided, held) = place(limits, &borders, end);
    check_spans_fit(limits, &chosen, &borders, end);
    let cost: u64 = chosen.iter().map(|&index| borders[index].1).sum();
    assert!(undecided < 8 * limits.tar, "{undecided} bytes undecided");
    assert!(held < 300, "{held} borders held");
    // Nothing was given up for it: a window that costs 60 to 4,060 costs few hundred where chosen.
    assert!(cost / (chosen.len() as u64) < 600, "{cost}");
}

#[test]
fn a_block_longer_than_the_limits_stays_whole() {
    let limits = SpanLimits { tar: 10, blob: 10 };
    let (borders, end) = borders(&[(5, 5, 1), (50, 30, 1), (5, 5, 1), (2, 2, 1)]);
    let (chosen, _, _) = place(limits, &borders, end);
    assert_eq!(chosen, [0, 1]);
}

#[test]
fn a_span_with_a_large_limit_is_not_cut_early_for_want_of_memory() {
    let limits = SpanLimits {
        tar: 64 << 20,
        blob: 64 << 20,
    };
    let blocks = vec![(100_000, 30_000, 50); 6000];
    let (borders, end) = borders(&blocks);
    let (chosen, undecided, _) = place(limits, &borders, end);
    assert!(undecided <= UNDECIDED_MAX);
    // 572 MiB: nine spans of 64 MiB at best.
    assert!(chosen.len() <= 12, "{} seek points", chosen.len());
}
