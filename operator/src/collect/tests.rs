//! Nothing goes that is needed, and nothing goes at first sight.

use super::*;
use crate::store::tests::keep;

const GRACE: Duration = Duration::from_secs(60);

#[test]
fn an_archive_goes_with_the_last_clipimage_that_needs_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opened");
    let shared = keep(&store, "u1", b"shared");
    keep(&store, "u2", b"shared");
    let own = keep(&store, "u3", b"own");
    let mut collector = Collector::new(GRACE);
    let mut now = Instant::now();
    let mut after_grace = |living: &[&str]| {
        let mut kept = Vec::new();
        for pause in [GRACE, GRACE] {
            now += pause;
            kept = collector
                .collect(&store, |uid| living.contains(&uid), now)
                .expect("collected");
        }
        (
            kept.len(),
            kept.iter().map(|archive| archive.size).sum::<u64>(),
        )
    };

    assert_eq!(after_grace(&["u1", "u2", "u3"]), (2, 9));
    assert_eq!(after_grace(&["u2", "u3"]).0, 2, "u2 needs what u1 had");
    assert!(store.record("u1").is_none() && store.archive_path(shared).exists());
    assert_eq!(after_grace(&["u3"]), (1, 3));
    assert!(!store.archive_path(shared).exists() && store.archive_path(own).exists());
}

#[test]
fn what_is_needed_again_within_the_grace_period_stays_for_another_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opened");
    let old = keep(&store, "u1", b"old");
    keep(&store, "u1", b"new");
    let mut collector = Collector::new(GRACE);
    let start = Instant::now();
    let mut collect = |seconds| {
        let now = start + Duration::from_secs(seconds);
        collector
            .collect(&store, |_| true, now)
            .expect("collected")
            .len()
    };
    assert_eq!([collect(0), collect(59)], [2, 2]);
    keep(&store, "u2", b"old");
    assert_eq!(collect(60), 2);
    store.remove_record("u2").expect("removed");
    assert_eq!([collect(61), collect(120)], [2, 2], "its time begins anew");
    assert_eq!(collect(121), 1);
    assert!(!store.archive_path(old).exists());
}
