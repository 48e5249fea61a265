//! Every seed and every past finding, replayed without a fuzzer.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// What libFuzzer calls a hang takes 10 s under its sanitizer; without one, a tenth of that is far too long.
const SLOW: Duration = Duration::from_secs(5);

#[test]
fn no_seed_and_no_past_finding_panics_or_hangs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (target, run) in clip_fuzz::TARGETS {
        let seeds = files(&root.join("seeds").join(target));
        assert!(!seeds.is_empty(), "{target} has no seeds");
        for path in seeds
            .into_iter()
            .chain(files(&root.join("regressions").join(target)))
        {
            let bytes = fs::read(&path).unwrap();
            eprintln!("{}", path.display()); // the last one shown is the one that failed
            let started = Instant::now();
            run(&bytes);
            assert!(
                started.elapsed() < SLOW,
                "{} took {:?}",
                path.display(),
                started.elapsed()
            );
        }
    }
}

#[test]
fn every_target_has_a_libfuzzer_program_and_is_run_by_the_script() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = fs::read_to_string(root.join("run")).unwrap();
    let names: Vec<&str> = clip_fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
    assert!(script.contains(&format!("targets=({})", names.join(" "))));
    let manifest = fs::read_to_string(root.join("libfuzzer/Cargo.toml")).unwrap();
    for name in names {
        assert!(
            manifest.contains(&format!("fuzz_targets/{name}.rs")),
            "{name}"
        );
    }
}

/// No input at all, and each byte alone: what a fuzzer tries first.
#[test]
fn the_shortest_inputs_are_no_problem() {
    for (_, run) in clip_fuzz::TARGETS {
        run(&[]);
        (0..=u8::MAX).for_each(|byte| run(&[byte]));
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.file_name().is_none_or(|name| name != ".gitkeep"));
    files.sort();
    files
}
