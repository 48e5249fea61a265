//! What a run counts, so that a comparison that compares nothing cannot pass unnoticed.

use crate::{
    judge::{Compared, Verdict},
    rules::Rule,
    unpackers::Tool,
};
use std::{collections::BTreeMap, fmt};

/// Of all stacks, so many must be compared with each tool at least in part...
const COMPARED_WITH_EACH_MIN: f64 = 0.4;
/// ... and so many with at least one tool, every path.
const COMPARED_WHOLE_MIN: f64 = 0.5;
/// Too few stacks say nothing about shares.
const STACKS_FOR_SHARES: u64 = 200;

/// Sums over many stacks.
#[derive(Debug, Default)]
pub struct Tally {
    pub stacks: u64,
    pub paths: u64,
    pub failures: u64,
    whole_with_some: u64,
    compared: BTreeMap<(Tool, Compared), u64>,
    rules: BTreeMap<(Rule, Tool), u64>,
}

impl Tally {
    pub fn add(&mut self, verdict: &Verdict) {
        self.stacks += 1;
        self.paths += verdict.paths as u64;
        self.failures += u64::from(!verdict.differences.is_empty());
        let whole = |compared: &Compared| *compared == Compared::Whole;
        self.whole_with_some += u64::from(verdict.compared.values().any(whole));
        for (tool, compared) in &verdict.compared {
            *self.compared.entry((*tool, *compared)).or_default() += 1;
        }
        for used in &verdict.rules_used {
            *self.rules.entry(*used).or_default() += 1;
        }
    }

    /// Why this run proves too little, if it does.
    pub fn too_empty(&self) -> Option<String> {
        if self.stacks < STACKS_FOR_SHARES {
            return None;
        }
        let whole = self.whole_with_some as f64 / self.stacks as f64;
        if whole < COMPARED_WHOLE_MIN {
            return Some(format!(
                "only {:.0}% of the stacks were compared whole with some unpacker: rules or generator are too lax",
                whole * 100.0
            ));
        }
        Tool::ALL.into_iter().find_map(|tool| {
            let share = self.share(tool, &[Compared::Whole, Compared::Partly]);
            (share < COMPARED_WITH_EACH_MIN).then(|| {
                format!(
                    "only {:.0}% of the stacks were compared with {}: rules or generator are too lax",
                    share * 100.0,
                    tool.name()
                )
            })
        })
    }

    fn share(&self, tool: Tool, kinds: &[Compared]) -> f64 {
        let count: u64 = kinds
            .iter()
            .filter_map(|kind| self.compared.get(&(tool, *kind)))
            .sum();
        count as f64 / self.stacks.max(1) as f64
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} stacks, {} paths compared, {} whole with some unpacker, {} failures",
            self.stacks, self.paths, self.whole_with_some, self.failures
        )?;
        for tool in Tool::ALL {
            let percent = |kind| self.share(tool, &[kind]) * 100.0;
            writeln!(
                f,
                "  {:<10} whole {:4.1}%, in part {:4.1}%, it refused {:4.1}%, we refused {:4.1}%",
                tool.name(),
                percent(Compared::Whole),
                percent(Compared::Partly),
                percent(Compared::ToolRefused),
                percent(Compared::WeRefused),
            )?;
        }
        let mut rules: BTreeMap<Rule, Vec<String>> = BTreeMap::new();
        for ((rule, tool), count) in &self.rules {
            let used = format!("{} {count}", tool.name());
            rules.entry(*rule).or_default().push(used);
        }
        for (rule, used) in rules {
            writeln!(f, "  {rule:?}: {} ({})", used.join(", "), rule.why())?;
        }
        Ok(())
    }
}
