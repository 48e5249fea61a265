//! Which block borders become seek points: the cheapest chain of them in which no span is larger
//! than the limits. A shortest path, found while the borders come in.
//!
//! Each border knows the cheapest chain that ends with it, by the border before it on that chain.
//! A border stays *open*, one that later borders may follow, while a span from it can still be
//! within the limits and no later border is at least as cheap. So the open borders' costs rise in
//! their order, the first is the cheapest to follow, and a new border needs no search. The last
//! border always stays open: a block that is longer than the limits is kept whole.
//!
//! ```text
//!      begun          dead                    open ────────► cheaper to dearer
//!        ●──────┬──────○           ┌────────────●
//!               └──────────●───────┴──────●                ●  ◄─ the last
//!               everything open goes back to this one: decided
//! ```
//!
//! A border that is not open and that no chain needs is forgotten with its window. When all chains
//! go through one border, that one is decided. So what is held is a few spans, as long as the
//! limits are not larger than [`UNDECIDED_MAX`]; beyond, the decision is forced.

use crate::SpanLimits;
use std::collections::VecDeque;

/// Decoded bytes that may be undecided: they are held in memory until it is known whose digest they
/// belong to. Eight default spans; real layers hold two or three, random costs up to five.
pub const UNDECIDED_MAX: u64 = 16 << 20;

/// Borders that may be undecided. With [`Placement::is_worthwhile`] few layers have a tenth.
const BORDERS_MAX: usize = 4096;

/// A place where a span may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Border {
    /// Decoded bytes before it.
    pub tar: u64,
    /// First byte of the blob that its decoder needs.
    pub blob: u64,
    /// The blob's byte where the span before it ends: behind `blob` when both share a byte.
    pub blob_end: u64,
}

/// Finds the cheapest chain. `T` is what comes with a border (its window).
#[derive(Debug)]
pub struct Placement<T> {
    limits: SpanLimits,
    /// From the last decided border on, which is the first. Forgotten ones keep their place.
    nodes: VecDeque<Node<T>>,
    /// Number of the first of `nodes`.
    first: u64,
    /// Numbers of the open ones.
    open: VecDeque<u64>,
    /// Decoded bytes that all future borders are behind.
    reached: u64,
}

#[derive(Debug)]
struct Node<T> {
    border: Border,
    content: Option<T>,
    /// Cost of the cheapest chain up to here, this border included.
    cost: u64,
    /// The border before it on that chain.
    before: u64,
    is_open: bool,
    /// How many living ones come directly behind it on their chains.
    followers: u32,
}

impl<T> Placement<T> {
    /// The first span begins at `start`.
    pub fn new(limits: SpanLimits, start: Border) -> Self {
        let start = Node {
            border: start,
            content: None,
            cost: 0,
            before: 0,
            is_open: true,
            followers: 0,
        };
        Self {
            limits,
            nodes: VecDeque::from([start]),
            first: 0,
            open: VecDeque::from([0]),
            reached: 0,
        }
    }

    /// Whether a border here is far enough behind the one before it to be offered: about a
    /// thousand are enough for a span, however short its blocks. One must never be offered where
    /// no output lies before it.
    pub fn is_worthwhile(&self, border: &Border, before: &Border) -> bool {
        let tar_gap = (self.limits.tar / 512).clamp(1, 1 << 40);
        let blob_gap = (self.limits.blob / 512).clamp(1, 1 << 40);
        border.tar > before.tar
            && (border.tar >= before.tar + tar_gap || border.blob >= before.blob + blob_gap)
    }

    /// Takes the next border, which costs `cost` to begin a span at.
    pub fn offer(&mut self, border: Border, cost: u64, content: T) {
        self.close_unreachable(border.tar, border.blob_end);
        let before = self.open[0];
        let cost = self.node(before).cost + cost;
        self.node_mut(before).followers += 1;
        let number = self.first + self.nodes.len() as u64;
        self.nodes.push_back(Node {
            border,
            content: Some(content),
            cost,
            before,
            is_open: true,
            followers: 0,
        });
        while let Some(&last) = self.open.back()
            && self.node(last).cost >= cost
        {
            self.open.pop_back();
            self.close(last);
        }
        self.open.push_back(number);
    }

    /// The stream has come to decoded byte `tar` and blob byte `blob`; no border before these will
    /// be offered.
    pub fn advance(&mut self, tar: u64, blob: u64) {
        self.close_unreachable(tar, blob);
        self.reached = tar;
    }

    /// The next border on the cheapest chain, once it is certain (or there is no room to wait).
    pub fn next_decided(&mut self) -> Option<(Border, T)> {
        loop {
            let begun = &self.nodes[0];
            if !begun.is_open && begun.followers == 1 {
                let second = self.second()?;
                self.nodes.drain(..second);
                self.first += second as u64;
                let decided = &mut self.nodes[0];
                return Some((decided.border, decided.content.take()?));
            }
            let undecided = self.reached.saturating_sub(self.undecided_from());
            if undecided <= UNDECIDED_MAX && self.nodes.len() <= BORDERS_MAX {
                return None;
            }
            self.give_up_some();
        }
    }

    /// Decoded bytes before this one belong to spans that began at decided borders, once
    /// [`Self::next_decided`] has no more of them.
    pub fn undecided_from(&self) -> u64 {
        match self.second() {
            Some(second) => self.nodes[second].border.tar,
            None => self.reached,
        }
    }

    /// The stream ends at decoded byte `tar` and blob byte `blob`: all can be decided now. Output
    /// must lie behind the last border.
    pub fn finish(&mut self, tar: u64, blob: u64) {
        self.close_unreachable(tar, blob);
        let cheapest = self.open[0];
        self.close_all_but(|number| number == cheapest);
    }

    /// Closes borders from which a span to here would be larger than the limits.
    fn close_unreachable(&mut self, tar: u64, blob: u64) {
        while self.open.len() > 1 {
            let border = self.node(self.open[0]).border;
            let SpanLimits {
                tar: tar_max,
                blob: blob_max,
            } = self.limits;
            if tar - border.tar <= tar_max && blob - border.blob <= blob_max {
                return;
            }
            if let Some(unreachable) = self.open.pop_front() {
                self.close(unreachable);
            }
        }
    }

    /// Closes all open borders that are not `kept`.
    fn close_all_but(&mut self, kept: impl Fn(u64) -> bool) {
        let open = std::mem::take(&mut self.open);
        for number in open {
            match kept(number) {
                true => self.open.push_back(number),
                false => self.close(number),
            }
        }
    }

    /// No border will follow `number` any more, which has left `open`. What no chain needs is
    /// forgotten.
    fn close(&mut self, mut number: u64) {
        self.node_mut(number).is_open = false;
        while number != self.first && !self.node(number).is_needed() {
            let node = self.node_mut(number);
            node.content = None;
            number = node.before;
            self.node_mut(number).followers -= 1;
        }
    }

    /// Makes less undecided than could be: the cheapest chain may be lost. The latest border is
    /// kept in any case, as the next one may be too far from the others.
    fn give_up_some(&mut self) {
        let (first, cheapest) = (self.first, self.open[0]);
        let Some(&latest) = self.open.back() else {
            return;
        };
        if cheapest != first {
            // Decides for the latest border's chain.
            let branch = self.branch(latest);
            let open = self.open.iter().copied();
            let kept: Vec<u64> = open
                .filter(|&number| self.branch(number) == branch)
                .collect();
            self.close_all_but(|number| kept.contains(&number));
        } else if self.open.len() > 2 {
            // The span that has begun can still grow: gives up its early ends.
            self.close_all_but(|number| number == first || number == latest);
        } else {
            self.close_all_but(|number| number == latest);
        }
    }

    /// The first border behind the one that has begun, on the chain to `number`.
    fn branch(&self, mut number: u64) -> u64 {
        while number != self.first && self.node(number).before != self.first {
            number = self.node(number).before;
        }
        number
    }

    /// The first needed border behind the one that has begun.
    fn second(&self) -> Option<usize> {
        let needed = self.nodes.iter().skip(1).position(Node::is_needed)?;
        Some(needed + 1)
    }

    fn node(&self, number: u64) -> &Node<T> {
        &self.nodes[(number - self.first) as usize]
    }

    fn node_mut(&mut self, number: u64) -> &mut Node<T> {
        &mut self.nodes[(number - self.first) as usize]
    }
}

impl<T> Node<T> {
    fn is_needed(&self) -> bool {
        self.is_open || self.followers > 0
    }
}

#[cfg(test)]
mod tests;
