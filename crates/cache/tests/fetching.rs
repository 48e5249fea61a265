//! How missing spans are fetched: from a real registry, through the fault-injecting proxy, into a real cache.

mod scene;

use clip_cache::{Persistence, ReadError};
use clip_testkit::{
    guard::wait_until,
    proxy::{Mood, Rule},
};
use scene::{PATIENCE, SPAN, Scene};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_read_over_many_spans_is_one_request() {
    let scene = Scene::new(3 << 20);
    let layer = scene.layer();
    scene.read(&layer, 100_000, 1 << 20).await.unwrap();
    assert_eq!(scene.proxy.ranges().len(), 1, "{:?}", scene.proxy.ranges());
    assert!(scene.cache.stats().spans_fetched > 10);
    // What lies around it is missing still, and comes in two requests.
    scene.proxy.forget();
    scene.read(&layer, 0, 2 << 20).await.unwrap();
    assert_eq!(scene.proxy.ranges().len(), 2, "{:?}", scene.proxy.ranges());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_first_span_does_not_wait_for_the_last() {
    let scene = Scene::new(3 << 20);
    let layer = scene.layer();
    // After the first spans of the run the line is silent.
    scene.proxy.set(Mood::SilentAfter(10 * SPAN));
    let (whole, first) = (scene.read(&layer, 0, 2 << 20), async {
        // Joins the run that the other one has started.
        tokio::task::yield_now().await;
        let read = scene.read(&layer, 0, 1000).await;
        scene.proxy.set(Mood::Relay);
        read
    });
    let (whole, first) = tokio::join!(whole, first);
    first.unwrap();
    whole.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_of_one_span_cause_one_fetch() {
    let scene = Scene::new(1 << 20);
    let layer = scene.layer();
    scene.proxy.set(Mood::Slow(Duration::from_millis(300)));
    let reads = (0..64).map(|at| scene.read(&layer, 1000 + at, 100));
    for read in futures::future::join_all(reads).await {
        read.unwrap();
    }
    assert_eq!(scene.proxy.ranges().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequential_reader_finds_nearly_everything_there() {
    let scene = Scene::new(24 << 20);
    let layer = scene.layer();
    for at in (0..layer.size() - 70_000).step_by(64 << 10) {
        scene.read(&layer, at, 64 << 10).await.unwrap();
    }
    let stats = scene.cache.stats();
    assert!(
        stats.read_ahead_used * 10 >= stats.spans_fetched * 8,
        "{stats:?}"
    );
    let requests = scene.proxy.ranges().len();
    assert!(requests < 60, "{requests} requests, {stats:?}");
    assert!(
        scene.proxy.body_bytes() < 26 << 20,
        "nothing is fetched twice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn random_reads_fetch_one_span_each() {
    let scene = Scene::new(24 << 20);
    let layer = scene.layer();
    for read in 0..60 {
        let at = read * 7_919_001 % (layer.size() - 4096);
        scene.read(&layer, at, 4096).await.unwrap();
    }
    let stats = scene.cache.stats();
    assert!(stats.read_ahead_spans <= 4, "{stats:?}");
    assert!(stats.spans_fetched <= 60 * 2, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_beginning_of_a_file_brings_the_rest_of_it_and_nothing_else() {
    let scene = Scene::new(3 << 20);
    let layer = scene.layer();
    let (start, len) = (1 << 20, 500_000);
    layer.know_files([0..start, start..start + len]);
    scene.read(&layer, start, 4096).await.unwrap();
    let mut library = vec![0; len as usize];
    wait_until("the rest to be there", PATIENCE, || {
        layer.read_cached(start, &mut library)
    })
    .unwrap();
    let fetched = scene.proxy.body_bytes();
    assert!(fetched < len + 2 * SPAN, "{fetched}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_read_within_each_of_many_files_fetches_one_span_each() {
    const FILE: u64 = 400_000;
    let scene = Scene::new(24 << 20);
    let layer = scene.layer();
    let files = layer.size() / FILE - 1;
    layer.know_files((0..files).map(|file| file * FILE..(file + 1) * FILE));
    for file in 0..files {
        let file = file * 7_919 % files;
        scene
            .read(&layer, file * FILE + FILE / 2, 4096)
            .await
            .unwrap();
    }
    let stats = scene.cache.stats();
    assert!(stats.read_ahead_spans <= 4, "{stats:?}");
    assert!(stats.spans_fetched <= files * 2, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_read_here_and_there_is_fetched_around_that() {
    let scene = Scene::new(8 << 20);
    let layer = scene.layer();
    layer.know_files(std::iter::once(0..layer.size()));
    for at in [0, 4 << 20] {
        scene.read(&layer, at, 4096).await.unwrap();
    }
    let mut around = vec![0; 3 * SPAN as usize];
    wait_until("what lies around to be there", PATIENCE, || {
        layer.read_cached((4 << 20) - SPAN, &mut around)
    })
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_greet_a_registry_that_hangs_it_is_asked_few_times() {
    let scene = Scene::new(1 << 20);
    scene.proxy.set_rules([Rule::blobs(Mood::Silent)]);
    let greetings: Vec<_> = (0..100)
        .map(|_| {
            let layer = scene.layer();
            tokio::spawn(async move { layer.greet().await })
        })
        .collect();
    wait_until("a greeting", PATIENCE, || {
        !scene.proxy.greetings().is_empty()
    })
    .unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(scene.proxy.greetings().len() <= 4, "as much as read-ahead");
    greetings.iter().for_each(|greeting| greeting.abort());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_list_says_what_is_read_no_file_is_fetched_beside_it() {
    let scene = Scene::new(8 << 20);
    let layer = scene.layer();
    layer.know_files(std::iter::once(0..layer.size()));
    layer.fetch_soon(0..2).await.unwrap();
    let listed = scene.cache.stats().read_ahead_spans;
    for at in [0, 2 << 20, 4 << 20, 6 << 20] {
        scene.read(&layer, at, 100).await.unwrap();
    }
    assert_eq!(scene.cache.stats().read_ahead_spans, listed);
}

/// docs/semantics.md: "A registry that hangs slows no read of another".
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_hangs_slows_no_read_of_another() {
    let (hung, good) = (Scene::new(24 << 20), Scene::new(4 << 20));
    let elsewhere = &hung.proxy;
    let (bad, layer) = (hung.layer_in(&good.cache), good.layer());
    elsewhere.set_rules([Rule::blobs(Mood::Silent)]);
    let waiting: Vec<_> = (0..300)
        .map(|n| {
            let bad = bad.clone();
            tokio::spawn(async move {
                let deadline = Instant::now() + PATIENCE;
                bad.read(n * 70_000, &mut [0; 100], deadline).await
            })
        })
        .collect();
    wait_until("the hung registry to be asked", PATIENCE, || {
        !elsewhere.ranges().is_empty()
    })
    .unwrap();
    for read in 0..50 {
        let at = read * 79_190_003 % (layer.size() - 4096);
        let started = Instant::now();
        good.read(&layer, at, 4096).await.unwrap();
        // Far above what it takes on any machine, far below what the other one costs.
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    assert!(
        elsewhere.ranges().len() <= 16,
        "{}",
        elsewhere.ranges().len()
    );
    assert!(waiting.iter().all(|read| !read.is_finished()));
    elsewhere.set(Mood::Relay);
    for read in waiting {
        read.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_waits_for_any_more_is_not_asked_for() {
    let scene = Scene::new(24 << 20);
    let layer = scene.layer();
    scene.proxy.set_rules([Rule::blobs(Mood::Silent)]);
    let soon = Instant::now() + Duration::from_millis(300);
    let mut bytes = [0; 10];
    let reads = (0..300).map(|n| {
        let layer = layer.clone();
        async move { layer.read(n * 70_000, &mut bytes, soon).await }
    });
    for read in futures::future::join_all(reads).await {
        assert!(matches!(read, Err(ReadError::Timeout(_))), "{read:?}");
    }
    let asked = scene.proxy.ranges().len();
    scene.proxy.set(Mood::Relay);
    scene.read(&layer, 23 << 20, 1000).await.unwrap();
    let later = scene.proxy.ranges().len();
    assert!(later <= 2 * asked + 2, "{asked}, then {later}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_repeats_one_which_waited_in_vain_waits_for_a_moment() {
    let scene = Scene::new(8 << 20);
    let layer = scene.layer();
    scene.proxy.set_rules([Rule::blobs(Mood::Silent)]);
    let limit = Duration::from_secs(4);
    let failed = async |at| {
        let started = Instant::now();
        let error = scene
            .read_within(&layer, at, 1000, limit)
            .await
            .unwrap_err();
        (started.elapsed(), error.to_string())
    };
    let (waited, cause) = failed(1 << 20).await;
    assert!(waited > limit / 2, "{waited:?}");
    for at in [1 << 20, 100_000, 2 << 20] {
        let (waited, same) = failed(at).await;
        assert!(waited < limit / 2, "{waited:?} for a read at {at}");
        assert_eq!(same, cause);
    }
    let (waited, _) = failed(5 << 20).await;
    assert!(waited > limit / 2, "{waited:?} for a read elsewhere");

    scene.proxy.set(Mood::Relay);
    let back = async {
        while scene
            .read_within(&layer, 1 << 20, 1000, limit)
            .await
            .is_err()
        {}
    };
    tokio::time::timeout(PATIENCE, back).await.unwrap();
    scene.proxy.set_rules([Rule::blobs(Mood::Silent)]);
    let (waited, _) = failed(6 << 20).await;
    assert!(
        waited > limit / 2,
        "{waited:?}, with what failed before forgotten"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_ranges_gives_a_layer_once() {
    let scene = Scene::new(6 << 20);
    let layer = scene.layer();
    scene.proxy.set(Mood::IgnoreRange);
    let reads = (0..40).map(|n| scene.read(&layer, n * 5_000_000 % layer.size() / 2, 5000));
    for read in futures::future::join_all(reads).await {
        read.unwrap();
    }
    scene.read(&layer, 5 << 20, 1 << 20).await.unwrap();
    // Before it is known, as many requests have been sent as may be under way; they are given up at their first bytes.
    let asked = scene.proxy.asked();
    let blobs = asked.iter().filter(|asked| asked.path.contains("/blobs/"));
    let (ranges, whole): (Vec<_>, Vec<_>) = blobs.partition(|asked| asked.range.is_some());
    assert!(ranges.len() <= 12, "{} ranges", ranges.len());
    assert_eq!(whole.len(), 1);
    scene.proxy.forget();
    for at in (0..layer.size() - 100_000).step_by(100_000) {
        scene.read(&layer, at, 100_000).await.unwrap();
    }
    assert!(scene.proxy.ranges().is_empty(), "all of it is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefetch_brings_everything_in_few_requests_and_gives_way() {
    let scene = Scene::new(24 << 20);
    let layer = scene.layer();
    scene.proxy.set(Mood::Bandwidth(20 << 20));
    let prefetch = layer.prefetch(0..layer.span_count(), Persistence::ForEver);
    wait_until("the prefetch to begin", PATIENCE, || {
        !scene.proxy.ranges().is_empty()
    })
    .unwrap();
    scene.read(&layer, 23 << 20, 4096).await.unwrap();
    let total = prefetch.total();
    assert!(prefetch.progress().spans < total.spans, "demand was first");
    assert_eq!(total.spans, layer.span_count() as u64);
    prefetch.finished().await.unwrap();
    let requests = scene.proxy.ranges().len();
    assert!(requests <= 24, "{requests} requests");
    scene.proxy.set(Mood::HangUp);
    scene.read(&layer, 0, 20 << 20).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefetch_that_is_dropped_ends_and_one_that_fails_goes_on() {
    let scene = Scene::new(24 << 20);
    let layer = scene.layer();
    scene.proxy.set(Mood::Bandwidth(10 << 20));
    let prefetch = layer.prefetch(0..layer.span_count(), Persistence::ForEver);
    wait_until("the first", PATIENCE, || scene.proxy.body_bytes() > 0).unwrap();
    drop(prefetch);
    wait_until("the end of what was under way", PATIENCE, || {
        let before = scene.proxy.body_bytes();
        std::thread::sleep(Duration::from_millis(300));
        scene.proxy.body_bytes() == before
    })
    .unwrap();
    assert!(scene.proxy.body_bytes() < 24 << 20);
    scene.proxy.set(Mood::HangUp);
    let prefetch = layer.prefetch(0..layer.span_count(), Persistence::ForEver);
    tokio::time::sleep(Duration::from_secs(2)).await;
    scene.proxy.set(Mood::Relay);
    prefetch.finished().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefetch_that_is_to_try_once_ends_when_the_registry_fails_and_keeps_what_it_has() {
    let scene = Scene::new(8 << 20);
    let layer = scene.layer();
    scene.proxy.set(Mood::HangUp);
    let all = || layer.prefetch(0..layer.span_count(), Persistence::Once);
    all().finished().await.unwrap_err();
    let absent = layer.absent_bytes();
    assert_eq!(absent, layer.size());
    scene.proxy.set(Mood::Relay);
    scene.read(&layer, 0, 1 << 20).await.unwrap();
    assert!(layer.absent_bytes() <= absent - (1 << 20) && !layer.is_complete());
    all().finished().await.unwrap();
    assert!(layer.absent_bytes() == 0 && layer.is_complete());
}

#[tokio::test(flavor = "multi_thread")]
async fn first_touches_are_told_once_and_in_order() {
    let scene = Scene::new(2 << 20);
    let layer = scene.layer();
    let seen = Arc::<Mutex<Vec<usize>>>::default();
    scene.read(&layer, 0, 100_000).await.unwrap();
    let told = seen.clone();
    layer.observe_first_touches(Some(Box::new(move |span| told.lock().unwrap().push(span))));
    for at in [1 << 20, 0, 1 << 20, 500_000, 0] {
        scene.read(&layer, at, 1000).await.unwrap();
    }
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(seen[1] == 0 && seen[2] < seen[0], "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_fails_is_counted() {
    let scene = Scene::new(1 << 20);
    let layer = scene.layer();
    let gone = Mood::Answer {
        status: 404,
        retry_after: None,
    };
    scene.proxy.set(gone);
    scene.read(&layer, 0, 1000).await.unwrap_err();
    let stats = scene.cache.stats();
    assert_eq!((stats.misses, stats.reads_failed), (1, 1));
    scene.proxy.set(Mood::Relay);
    scene.read(&layer, 0, 1000).await.unwrap();
    scene.read(&layer, 0, 1000).await.unwrap();
    assert_eq!(scene.cache.stats().reads_failed, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_ends_in_the_right_bytes_or_a_clear_error_in_time() {
    let answer = |status, retry_after| Mood::Answer {
        status,
        retry_after,
    };
    let drip = Mood::Drip {
        piece: 4096,
        pause: Duration::from_millis(2),
    };
    // Each of these for ever: the read fails when its time is up, or works.
    for (mood, cause) in [
        (Mood::HangUp, Some("cannot be reached")),
        (Mood::Silent, Some("")),
        (Mood::SilentAfter(1000), Some("")),
        (Mood::ResetAfter(1000), Some("reset")),
        (answer(503, None), Some("answered 503")),
        (answer(429, None), Some("limits the rate")),
        (answer(429, Some(1)), Some("")),
        (answer(429, Some(3600)), Some("3600 s")),
        (answer(401, None), Some("needs a login")),
        (answer(403, None), Some("not allow")),
        (answer(404, None), Some("no blob")),
        (Mood::Corrupt, Some("")),
        (Mood::OtherRange(3), Some("the registry answered")),
        (Mood::LyingRange(3), Some("")),
        (drip, None),
        (Mood::IgnoreRange, None),
        (
            Mood::Tokens {
                good_for: 1,
                status: 403,
            },
            None,
        ),
        (Mood::Redirect { good_for: 1 }, None),
    ] {
        let scene = Scene::new(1 << 20);
        let layer = scene.layer();
        scene.proxy.set_rules([Rule::blobs(mood)]);
        let started = Instant::now();
        // What is to succeed has all the time of a busy machine.
        let limit = cause.map_or(PATIENCE, |_| Duration::from_secs(3));
        let read = scene.read_within(&layer, 300_000, 200_000, limit);
        match (read.await, cause) {
            (Ok(()), None) => {}
            (Err(error), Some(cause)) => {
                let text = error.to_string();
                assert!(text.contains(cause), "{mood:?}: {text}");
            }
            (result, _) => panic!("{mood:?}: {result:?}"),
        }
        assert!(
            started.elapsed() < limit + Duration::from_secs(12),
            "{mood:?}: {:?}",
            started.elapsed()
        );
        // It mends by itself, with what was cached or learned before.
        scene.proxy.set(Mood::Relay);
        let mended = async { while scene.read(&layer, 0, 900_000).await.is_err() {} };
        let mended = tokio::time::timeout(PATIENCE, mended).await;
        mended.unwrap_or_else(|_| panic!("still broken after {mood:?}"));
    }
}
