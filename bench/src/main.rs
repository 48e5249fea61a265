//! `make bench`: what Clip costs and gains, beside its peers and the machine's own limits, all from
//! one run.
//!
//! A bench is one file that returns [`Row`]s. Figures are ratios or counts wherever possible: these
//! machines are noisy. A peer that cannot be had is a row that says so, never a gap.

mod archive_size;
mod cold_read;
mod cold_walk;
mod containerd;
mod full;
mod index;
mod lazy_peer;
mod many_files;
mod mounted;
mod node_plugin;
mod nydus;
mod peers;
mod place;
mod programs;
mod publish;
mod published;
mod rebuild;
mod relay;
mod restart;
mod rows;
mod run;
mod shared;
mod soci;
mod spans;
mod start;
mod taken;
mod warm;
mod world;

use anyhow::{Context, Result, bail};
use clap::Parser;
use rows::Row;
use std::path::PathBuf;
use world::World;

/// Run the benches.
#[derive(Debug, Parser)]
struct Args {
    /// Only this one.
    #[arg(long)]
    name: Option<String>,
    /// Of archive-size, index, start, shared and full: only cases with this in their names, such as `numpy` or
    /// `debian-min`.
    #[arg(long)]
    case: Option<String>,
    /// Write all rows to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Run here, in the place that was made for it.
    #[arg(long, hide = true)]
    inside: bool,
    /// Be one of the programs that notice a restart.
    #[arg(long, hide = true, requires = "tree")]
    notice: Option<String>,
    #[arg(long, hide = true)]
    tree: Option<PathBuf>,
    #[arg(long, hide = true, default_value_t = 0)]
    seed: u64,
}

type Bench = fn(&World) -> Result<Vec<Row>>;
const BENCHES: [(&str, Bench); 11] = [
    ("archive-size", archive_size::run),
    ("index", index::run),
    ("many-files", many_files::run),
    ("cold-read", cold_read::run),
    ("cold-walk", cold_walk::run),
    ("start", start::run),
    ("shared", shared::run),
    ("full", full::run),
    ("warm", warm::run),
    ("publish", publish::run),
    ("restart", restart::run),
];

fn main() -> Result<()> {
    let args = Args::parse();
    if let (Some(kind), Some(tree)) = (&args.notice, &args.tree) {
        return restart::notice(kind, tree, args.seed);
    }
    let wanted = |name: &str| args.name.as_deref().is_none_or(|only| only == name);
    if !BENCHES.iter().any(|(name, _)| wanted(name)) {
        let names: Vec<_> = BENCHES.iter().map(|(name, _)| *name).collect();
        bail!(
            "no bench {:?}: there are {}",
            args.name.unwrap_or_default(),
            names.join(", ")
        );
    }
    if args.inside {
        place::arrange()?;
    } else if rustix::process::geteuid().is_root() {
        let status = place::run_in_new("--inside")?;
        std::process::exit(status.code().unwrap_or(1));
    }
    rows::progress("making what is missing of the images, and pushing them");
    let world = World::prepare(args.case)?;
    let mut all = Vec::new();
    for (name, bench) in BENCHES.into_iter().filter(|(name, _)| wanted(name)) {
        eprintln!("== {name}");
        let rows = bench(&world).with_context(|| format!("bench {name}"))?;
        rows::print(&rows);
        all.extend(rows);
    }
    if let Some(path) = args.json {
        let report = serde_json::json!({ "machine": world.machine(), "versions": world.versions(), "rows": all });
        std::fs::write(&path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| path.display().to_string())?;
    }
    match all.iter().filter(|row| row.ok == Some(false)).count() {
        0 => Ok(()),
        missed => bail!("{missed} targets missed"),
    }
}
