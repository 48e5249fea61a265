//! Every image, exactly: what our two views show against what containerd, umoci and containers/storage
//! unpack from the same layers. Driven by generated stacks of layers, by stacks that once failed, by
//! Go's own tar files, and by real images.
//!
//! ```text
//! generate.rs ─► stack ─┬─ tar_write.rs ─► tars ─► unpackers/ (Go): three trees ─┐
//!                       │                   └────► views.rs: FUSE, EROFS ─────────┼─► judge.rs
//!                       └─ model.rs ─► excuses by the rules of rules.rs ──────────┘
//! ```
//!
//! Everything happens on a tmpfs in a mount namespace of its own, so nothing is left behind, however
//! the run ends. Needs root and Linux 6.12.

mod case;
mod corpus;
mod generate;
mod judge;
mod model;
mod paths;
mod rules;
mod run;
mod shrink;
mod stack;
mod tally;
mod tar_write;
mod unpackers;
mod views;

use anyhow::Result;
use clap::Parser;
use std::{path::PathBuf, process::ExitCode};

/// Compare what Clip shows with what three unpackers make of the same layers.
#[derive(Debug, Clone, Parser)]
struct Args {
    /// How many stacks to make up.
    #[arg(long, default_value_t = 20_000)]
    stacks: u64,
    /// Stop making up stacks after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// The number of the first stack; stack N is the same in every run. By default taken from the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// Try this one stack alone, a JSON file as a failure writes it.
    #[arg(long, value_name = "FILE")]
    case: Option<PathBuf>,
    /// How many stacks at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Stop after so many failures.
    #[arg(long, default_value_t = 1)]
    failures: usize,
    /// Only made-up stacks: no kept cases, no tar files of Go's, no real images.
    #[arg(long)]
    only_stacks: bool,
    /// Leave out the real images.
    #[arg(long)]
    no_images: bool,
    /// The built program e2e/oracle/unpackers.
    #[arg(long)]
    unpackers: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run::run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("oracle: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether there was no difference.
type Passed = Result<bool>;
