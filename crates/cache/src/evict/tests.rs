//! Evicting from real layer files: what goes first, how much, and what a killed or broken layer does to the others.

use super::*;
use crate::{layer_files::LayerFiles, states::SpanStates};
use std::os::unix::fs::FileExt;

const SPAN: u64 = 1 << 20;
const SPANS: usize = 8;

/// A cache with layers of eight spans of 1 MiB.
struct Cache(tempfile::TempDir);

impl Cache {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("layers")).unwrap();
        Self(dir)
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.0.path().join("layers").join(name)
    }

    /// Opens a layer; spans are filled, as used at these times.
    fn layer(&self, name: &str, used: &[(usize, u32)]) -> LayerFiles {
        let ends: Vec<u64> = (1..=SPANS as u64).map(|n| n * SPAN).collect();
        let files = LayerFiles::open(&self.dir(name), &ends).unwrap();
        for &(span, used) in used {
            write(&files, span);
            assert!(word::publish(
                files.states.cell(span),
                files.states.look(span)
            ));
            files.states.touch(span, used);
        }
        files.states.share_used().unwrap();
        files
    }

    fn evictor(&self) -> Evictor {
        Evictor::try_lock(self.0.path()).unwrap().unwrap()
    }

    fn free(&self, wanted: u64) -> Freed {
        self.evictor().free(wanted).unwrap()
    }

    fn disk_bytes(&self, name: &str) -> u64 {
        disk_bytes(&self.dir(name)).unwrap()
    }
}

fn write(files: &LayerFiles, span: usize) {
    let bytes = vec![span as u8 + 1; SPAN as usize];
    files.data.write_all_at(&bytes, span as u64 * SPAN).unwrap();
}

fn present(states: &SpanStates) -> Vec<usize> {
    (0..SPANS)
        .filter(|&span| states.look(span).is_present())
        .collect()
}

fn long_ago() -> u32 {
    states::now() - 10 * IDLE
}

#[test]
fn the_longest_unused_spans_go_and_no_more_than_is_needed() {
    let cache = Cache::new();
    let now = states::now();
    let a = cache.layer("a", &[(0, now - 5), (1, now - 50), (2, now)]);
    let b = cache.layer("b", &[(3, now - 40), (4, now - 1)]);
    let before = cache.disk_bytes("a") + cache.disk_bytes("b");
    let freed = cache.free(2 * SPAN);
    assert_eq!(
        (present(&a.states), present(&b.states)),
        (vec![0, 2], vec![4])
    );
    assert_eq!((freed.spans, freed.layers), (2, 0));
    let after = cache.disk_bytes("a") + cache.disk_bytes("b");
    assert_eq!(freed.bytes, before - after);
    assert!(freed.bytes.abs_diff(2 * SPAN) <= 2 * EDGES, "{freed:?}");
    let mut bytes = vec![7; SPAN as usize];
    a.data.read_exact_at(&mut bytes, SPAN).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0), "a hole");
    a.data.read_exact_at(&mut bytes, 2 * SPAN).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 3), "the neighbour's bytes");
    // Of spans that were used at the same time only as many as it takes.
    let c = cache.layer("c", &[(0, now - 99), (1, now - 99), (2, now - 99)]);
    assert_eq!(cache.free(SPAN).spans, 1);
    assert_eq!(present(&c.states).len(), 2);
}

#[test]
fn layers_that_nobody_has_open_for_long_go_first_and_leave_nothing() {
    let cache = Cache::new();
    drop(cache.layer("idle", &[(0, long_ago() + 9), (1, long_ago() + 9)]));
    let open = cache.layer("open", &[(0, long_ago())]);
    drop(cache.layer("recent", &[(0, states::now() - IDLE / 2)]));
    let freed = cache.free(2 * SPAN);
    assert_eq!((freed.spans, freed.layers), (2, 1));
    assert!(!cache.dir("idle").exists());
    assert_eq!(present(&open.states), [0], "older, but open");
    // What is open is not removed, even when it is empty.
    assert_eq!(cache.free(SPAN).spans, 1);
    assert!(present(&open.states).is_empty());
    assert!(cache.dir("open").exists() && cache.dir("recent").exists());
    assert_eq!(cache.evictor().remove_unused().unwrap().layers, 1);
    assert!(cache.dir("open").exists() && !cache.dir("recent").exists());
}

#[test]
fn the_work_of_an_evictor_that_was_killed_is_ended() {
    let cache = Cache::new();
    let files = cache.layer("a", &[(0, 1), (1, 1)]);
    assert!(word::condemn(files.states.cell(1), files.states.look(1)));
    assert!(!word::publish(files.states.cell(1), files.states.look(1)));
    let before = cache.disk_bytes("a");
    assert_eq!(cache.free(0).spans, 0);
    assert_eq!(files.states.look(1).state(), SpanState::Absent);
    assert!(
        cache.disk_bytes("a") <= before - SPAN + EDGES,
        "its bytes are gone"
    );
    assert_eq!(present(&files.states), [0]);
}

#[test]
fn bytes_that_are_no_spans_are_found_and_a_fill_under_way_is_told() {
    let cache = Cache::new();
    let files = cache.layer("a", &[(0, states::now())]);
    let seen = files.states.look(7);
    (1..8).for_each(|span| write(&files, span));
    assert!(cache.disk_bytes("a") >= 8 * SPAN);
    let freed = cache.free(SPAN);
    assert!(freed.bytes > 6 * SPAN && freed.spans == 0, "{freed:?}");
    assert_eq!(present(&files.states), [0]);
    assert!(
        !word::publish(files.states.cell(7), seen),
        "must be written again"
    );
}

#[test]
fn there_is_one_evictor_and_a_dead_one_is_none() {
    let cache = Cache::new();
    let first = cache.evictor();
    assert!(Evictor::try_lock(cache.0.path()).unwrap().is_none());
    drop(first);
    assert!(Evictor::try_lock(cache.0.path()).unwrap().is_some());
}

#[test]
fn what_cannot_be_understood_goes_when_nobody_uses_it() {
    let cache = Cache::new();
    drop(cache.layer("damaged", &[(0, states::now())]));
    std::fs::write(cache.dir("damaged").join(STATES), "garbage").unwrap();
    drop(cache.layer("a.0.gone", &[(0, states::now())]));
    let used = cache.layer("b.0.gone", &[(0, states::now())]);
    assert_eq!(cache.free(0).layers, 2);
    assert_eq!(present(&used.states), [0]);
    assert!(cache.dir("b.0.gone").exists());
}

#[test]
fn a_layer_that_the_disk_refuses_does_not_hold_up_the_others() {
    let cache = Cache::new();
    let now = states::now();
    // Before, between and behind the good ones, in whatever order the directory is read.
    for broken in ["0", "m", "z"] {
        cache.layer(broken, &[(0, long_ago())]);
        let data = cache.dir(broken).join(DATA);
        std::fs::remove_file(&data).unwrap();
        std::fs::create_dir(&data).unwrap();
    }
    let a = cache.layer("a", &[(0, now - 5), (1, now - 50)]);
    let b = cache.layer("b", &[(3, now - 40)]);
    cache.evictor().disk_bytes().unwrap();
    let freed = cache.free(5 * SPAN);
    assert_eq!((present(&a.states), present(&b.states)), (vec![], vec![]));
    assert_eq!(freed.spans, 3);
    // What cannot be mended is said when nothing else is left to be taken.
    assert!(cache.evictor().free(SPAN).is_err());
}

#[test]
fn only_a_layer_that_nobody_uses_any_more_yields_its_bytes() {
    let cache = Cache::new();
    let spans = [(0, long_ago()), (1, long_ago())];
    let open = cache.layer("open", &spans);
    drop(cache.layer("recent", &[(0, long_ago()), (1, states::now())]));
    drop(cache.layer("idle", &spans));
    let kept = open.keep_in_use().unwrap();
    drop(open);
    let idle = |name| idle_bytes(&cache.dir(name)).unwrap();
    assert_eq!((idle("open"), idle("recent"), idle("gone")), (0, 0, 0));
    assert_eq!(idle("idle"), cache.disk_bytes("idle"));
    drop(kept);
    assert_eq!(idle("open"), cache.disk_bytes("open"));
}
