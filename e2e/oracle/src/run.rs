//! The run: kept cases first, then Go's tars and the real images, then as many stacks as asked for.

use crate::{
    Args, Passed, case::Place, corpus, generate::stacks, judge::Verdict, shrink::shrink,
    stack::Stack, tally::Tally,
};
use anyhow::{Context as _, Result};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::runtime::Runtime;

/// Stacks that failed once, kept as they were shrunk.
const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cases");
/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// Lines of one failure that are printed.
const LINES_MAX: usize = 30;

/// Does everything that `args` ask for.
pub fn run(args: &Args) -> Passed {
    let root = scratch_in_memory()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let scene = Scene {
        program: args.unpackers.clone(),
        root,
        runtime,
        places: AtomicU64::new(0),
    };
    if let Some(file) = &args.case {
        return scene.try_case(file);
    }
    let mut passed = true;
    if !args.only_stacks {
        passed &= scene.try_kept_cases()?;
        passed &= corpus::go_testdata(&scene)?;
    }
    if !args.only_stacks && !args.no_images {
        passed &= corpus::images(&scene)?;
    }
    Ok(scene.make_up_stacks(args)? && passed)
}

/// What all comparisons share.
pub struct Scene {
    program: PathBuf,
    root: PathBuf,
    runtime: Runtime,
    places: AtomicU64,
}

impl Scene {
    /// A place of its own, empty.
    pub fn place(&self) -> Result<Place> {
        let number = self.places.fetch_add(1, Ordering::Relaxed);
        Place::new(
            &self.program,
            &self.root,
            &format!("p{number}"),
            self.runtime.handle().clone(),
        )
    }

    fn try_case(&self, file: &Path) -> Passed {
        let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let stack: Stack = serde_json::from_slice(&text)?;
        let verdict = compare(&mut self.place()?, &stack)?;
        if !verdict.differences.is_empty() {
            println!("{}:\n{stack}{}", file.display(), lines(&verdict));
        }
        Ok(verdict.differences.is_empty())
    }

    fn try_kept_cases(&self) -> Passed {
        let mut files: Vec<_> = fs::read_dir(CASES)
            .with_context(|| format!("cannot read {CASES}"))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>>>()?;
        files.retain(|path| path.extension().is_some_and(|kind| kind == "json"));
        files.sort();
        let mut passed = true;
        for file in &files {
            passed &= self.try_case(file)?;
        }
        println!("kept cases: {}", files.len());
        Ok(passed)
    }

    fn make_up_stacks(&self, args: &Args) -> Passed {
        let first = args.seed.unwrap_or_else(seed_from_clock);
        let progress = Progress {
            started: Instant::now(),
            seconds: args.seconds,
            first,
            end: first.saturating_add(args.stacks),
            next: AtomicU64::new(first),
            failures_max: args.failures as u64,
            tally: Mutex::default(),
        };
        println!("making up stacks from --seed {first} on");
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..args.jobs)
                .map(|_| scope.spawn(|| self.work(&progress)))
                .collect();
            let mut next_line = PROGRESS_EVERY;
            while !workers.iter().all(|worker| worker.is_finished()) {
                std::thread::sleep(Duration::from_millis(100));
                if progress.started.elapsed() > next_line {
                    progress.print();
                    next_line += PROGRESS_EVERY;
                }
            }
            workers.into_iter().try_for_each(|worker| {
                let done = worker.join();
                done.unwrap_or_else(|_| Err(anyhow::anyhow!("a worker panicked")))
            })
        })?;
        progress.print();
        let tally = progress.tally();
        println!("{tally}");
        if let Some(reason) = tally.too_empty() {
            println!("{reason}");
            return Ok(false);
        }
        Ok(tally.failures == 0)
    }

    fn work(&self, progress: &Progress) -> Result<()> {
        let mut place = self.place()?;
        while let Some(seed) = progress.take() {
            let stack = make_up(seed)?;
            let verdict = self.compare_in(&mut place, &stack)?;
            progress.tally().add(&verdict);
            if verdict.differences.is_empty() {
                continue;
            }
            let (stack, verdict) = self.shrink(&mut place, stack)?;
            println!(
                "\n--seed {seed} --stacks 1 shows a difference; made small:\n{stack}{}\nkept in {}\n",
                lines(&verdict),
                keep(seed, &stack)?.display()
            );
        }
        Ok(())
    }

    /// What cannot be compared is a difference, too; the place is made anew then.
    fn compare_in(&self, place: &mut Place, stack: &Stack) -> Result<Verdict> {
        compare(place, stack).or_else(|error| {
            *place = self.place()?;
            let differences = vec![format!("{error:#}")];
            Ok(Verdict {
                differences,
                ..Verdict::default()
            })
        })
    }

    fn shrink(&self, place: &mut Place, stack: Stack) -> Result<(Stack, Verdict)> {
        let small = shrink(stack, |smaller| {
            Ok(!self.compare_in(place, smaller)?.differences.is_empty())
        })?;
        let verdict = self.compare_in(place, &small)?;
        Ok((small, verdict))
    }
}

fn compare(place: &mut Place, stack: &Stack) -> Result<Verdict> {
    place.compare(stack)
}

/// The first lines of what differs.
pub fn lines(verdict: &Verdict) -> String {
    let differences = &verdict.differences;
    let mut text = differences[..differences.len().min(LINES_MAX)].join("\n");
    if differences.len() > LINES_MAX {
        text.push_str(&format!("\n... and {} more", differences.len() - LINES_MAX));
    }
    text
}

/// Stack number `seed`, the same in every run.
fn make_up(seed: u64) -> Result<Stack> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let tree = stacks().new_tree(&mut runner);
    let tree = tree.map_err(|reason| anyhow::anyhow!("cannot make up stack {seed}: {reason}"))?;
    Ok(tree.current())
}

/// Writes a failing stack where it can be tried again, and added to the kept cases.
fn keep(seed: u64, stack: &Stack) -> Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("clip-oracle-{seed}.json"));
    fs::write(&path, serde_json::to_vec_pretty(stack)?)?;
    Ok(path)
}

fn seed_from_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // Short enough to be typed.
    now.map_or(0, |now| now.as_secs() % 1_000_000_000 * 1000)
}

/// Hands out seeds until there is enough.
struct Progress {
    started: Instant,
    seconds: Option<u64>,
    first: u64,
    end: u64,
    next: AtomicU64,
    failures_max: u64,
    tally: Mutex<Tally>,
}

impl Progress {
    fn take(&self) -> Option<u64> {
        let late = self
            .seconds
            .is_some_and(|seconds| self.started.elapsed().as_secs() >= seconds);
        if late || self.tally().failures >= self.failures_max {
            return None;
        }
        let seed = self.next.fetch_add(1, Ordering::Relaxed);
        (seed < self.end).then_some(seed)
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn print(&self) {
        let (stacks, failures) = {
            let tally = self.tally();
            (tally.stacks, tally.failures)
        };
        let rate = stacks as f64 / self.started.elapsed().as_secs_f64();
        println!(
            "{stacks} of {} stacks, {rate:.0} a second, {failures} with a difference",
            self.end - self.first
        );
    }
}

/// A directory in memory, in a mount namespace of this process' own: gone with the process, however it ends.
///
/// ```text
/// DIR/p0/...    archives, tars, views: a ramfs, since EROFS refuses to be mounted from a tmpfs
/// DIR/ram/p0/   what is unpacked: a tmpfs, which has extended attributes of all kinds
/// DIR/tmp/      for unpackers that use temporary files
/// ```
fn scratch_in_memory() -> Result<PathBuf> {
    // Nobody else sees what is mounted over it.
    let dir = PathBuf::from("/mnt");
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace needs root")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let in_memory = |kind, path: &Path, options| {
        let mounted = mount(
            Some("oracle"),
            path,
            Some(kind),
            MsFlags::empty(),
            Some(options),
        );
        mounted.with_context(|| format!("cannot mount {kind} at {}", path.display()))
    };
    in_memory("ramfs", &dir, "mode=0755")?;
    for name in ["ram", "tmp"] {
        fs::create_dir(dir.join(name))?;
    }
    // Big enough for a large image; a sparse file of 60 GB is refused by unpackers.
    in_memory("tmpfs", &dir.join("ram"), "mode=0755,size=2g")?;
    Ok(dir)
}
