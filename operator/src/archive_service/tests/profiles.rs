//! Start profiles through the service.

use clip_archive::{StartProfile, profile::Touch};

use super::*;

fn touches(spans: &[u32]) -> Vec<Touch> {
    let section = Digest::of(b"section");
    spans.iter().map(|&span| Touch { section, span }).collect()
}

fn start(spans: &[u32]) -> Vec<u8> {
    StartProfile::new(touches(spans)).to_json()
}

async fn bench_with_archive() -> (Bench, String) {
    let bench = Bench::new();
    assert_eq!(bench.put(UPLOAD, Some("good"), archive()).await.0, 201);
    let path = format!("/v1/archives/{}/profile", Digest::of(&archive()));
    (bench, path)
}

#[tokio::test]
async fn what_nodes_record_is_merged_and_goes_with_its_archive() {
    let (bench, path) = bench_with_archive().await;
    let get = || bench.send(Method::GET, &path, Some("node"), vec![]);
    assert_eq!(get().await.0, 404);
    for spans in [[1, 2], [3, 2]] {
        let put = bench.send(Method::PUT, &path, Some("node"), start(&spans));
        assert_eq!(put.await, (204, vec![]));
    }
    let (code, json) = get().await;
    let profile = StartProfile::parse(&json).expect("a profile");
    assert_eq!((code, profile.starts()), (200, 2));
    assert_eq!(profile.touches(), touches(&[2, 1, 3]));

    for _ in 0..30 {
        bench
            .send(Method::PUT, &path, Some("node"), start(&[9]))
            .await;
    }
    let profile = StartProfile::parse(&get().await.1).expect("a profile");
    assert_eq!(profile.starts(), 16, "does not grow for ever");

    bench
        .store
        .remove_archive(Digest::of(&archive()))
        .expect("removed");
    assert_eq!(get().await.0, 404);
    assert_eq!(bench.files(), 1, "the record alone is left");
}

#[tokio::test]
async fn only_nodes_may_and_only_with_a_profile_of_what_is_there() {
    let (bench, path) = bench_with_archive().await;
    let unknown = format!("/v1/archives/{}/profile", Digest::of(b"other"));
    let long = vec![b' '; clip_archive::profile::PROFILE_BYTES_MAX + 1];
    for (path, token, body, code) in [
        (&path, None, start(&[1]), 401),
        (&path, Some("good"), start(&[1]), 403),
        (&path, Some("node"), b"{}".to_vec(), 422),
        (&path, Some("node"), long, 422),
        (&unknown, Some("node"), start(&[1]), 404),
        (
            &"/v1/archives/x/profile".to_owned(),
            Some("node"),
            start(&[1]),
            400,
        ),
    ] {
        let answer = bench.send(Method::PUT, path, token, body).await;
        assert_eq!(answer.0, code, "{path} {token:?} {answer:?}");
    }
    assert_eq!(
        bench.send(Method::GET, &path, Some("good"), vec![]).await.0,
        403
    );
    assert_eq!(bench.files(), 2, "archive and record");
}
