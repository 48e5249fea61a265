//! Archives of other ClipImages for the sake of a layer.

use super::{memory::layer_with_windows, *};
use crate::store;

const INDEXER: Indexer = Indexer {
    version: 7,
    span_tar_max: 2_097_152,
    span_blob_max: 524_288,
};

/// Asks for layer `number`, for the ClipImage whose Job has the token `good`.
fn path_of(number: u8) -> String {
    path_by(number, "7.2097152.524288")
}

fn path_by(number: u8, indexer: &str) -> String {
    let layer = Digest::of(&[number]);
    format!(
        "/v1/namespaces/team-a/clipimages/alpine/layers/{layer}/archive?uid=u1&indexer={indexer}"
    )
}

fn archive_with(numbers: &[u8]) -> Vec<u8> {
    let layers: Vec<_> = numbers.iter().map(|&n| layer_with_windows(n, 1)).collect();
    archive_by(INDEXER, &layers)
}

/// Stores `archive` as that of the ClipImage `image`.
fn keep(bench: &Bench, image: &str, archive: &[u8]) -> Digest {
    let uid = image.replace('/', "--");
    let digest = store::tests::keep(&bench.store, &uid, archive);
    let record = Record {
        image: image.into(),
        format_version: FORMAT_VERSION,
        ..store::tests::record(&uid, digest, archive.len() as u64)
    };
    bench.store.write_record(&record).expect("written");
    digest
}

async fn get(bench: &Bench, path: &str) -> (u16, Vec<u8>) {
    bench.send(Method::GET, path, Some("good"), vec![]).await
}

const NONE: (u16, Vec<u8>) = (204, vec![]);

#[tokio::test]
async fn a_job_gets_the_smallest_archive_of_its_namespace_that_has_the_layer() {
    let bench = Bench::with(Limits {
        archive_bytes: 1 << 20,
        decoded_bytes: 1 << 20,
    });
    assert_eq!(get(&bench, &path_of(1)).await, NONE);
    keep(&bench, "team-a/large", &archive_with(&[1, 2, 3]));
    assert_eq!(
        get(&bench, &path_of(1)).await,
        (200, archive_with(&[1, 2, 3]))
    );

    keep(&bench, "team-a/smaller", &archive_with(&[0, 1]));
    keep(&bench, "team-a/smallest", &archive_with(&[4]));
    assert_eq!(get(&bench, &path_of(1)).await, (200, archive_with(&[0, 1])));
    assert_eq!(
        get(&bench, &path_of(2)).await,
        (200, archive_with(&[1, 2, 3]))
    );
    assert_eq!(get(&bench, &path_of(5)).await, NONE);

    let own = archive_with(&[5]);
    assert_eq!(bench.put(UPLOAD, Some("good"), own.clone()).await.0, 201);
    assert_eq!(get(&bench, &path_of(5)).await, (200, own));
}

#[tokio::test]
async fn other_namespaces_give_nothing() {
    let bench = Bench::new();
    for image in ["team-b/alpine", "team-a-b/alpine", "team/a", "team-a"] {
        keep(&bench, image, &archive_with(&[1]));
    }
    assert_eq!(get(&bench, &path_of(1)).await, NONE);

    // Not even to somebody who may ask in that namespace for another one.
    let elsewhere = path_of(1).replace("team-a", "team-b");
    for token in ["good", "elsewhere"] {
        let (code, _) = bench
            .send(Method::GET, &elsewhere, Some(token), vec![])
            .await;
        assert!([403, 404].contains(&code), "{token}: {code}");
    }

    keep(&bench, "team-a/alpine", &archive_with(&[1]));
    assert_eq!(get(&bench, &path_of(1)).await.0, 200, "the same archive");
}

#[tokio::test]
async fn sections_that_were_made_otherwise_are_not_given() {
    let bench = Bench::new();
    keep(&bench, "team-a/base", &archive_with(&[1]));
    for indexer in ["8.2097152.524288", "7.2097153.524288", "7.2097152.524287"] {
        assert_eq!(get(&bench, &path_by(1, indexer)).await, NONE, "{indexer}");
    }
    assert_eq!(get(&bench, &path_of(1)).await.0, 200);
}

#[tokio::test]
async fn who_may_not_upload_gets_no_archive_for_a_layer_either() {
    let bench = Bench::new();
    keep(&bench, "team-a/base", &archive_with(&[1]));
    let path = path_of(1);
    for (path, token, code) in [
        (&path, None, 401),
        (&path, Some("forged"), 401),
        (&path, Some("person"), 403),
        (&path, Some("elsewhere"), 403),
        (&path, Some("unbound"), 403),
        (&path, Some("gone"), 403),
        (&path, Some("stranger"), 403),
        (&path, Some("other-job"), 403),
        (&path, Some("node"), 403),
        (&path.replace("alpine", "missing"), Some("good"), 404),
        (&path.replace("u1", "u2"), Some("good"), 409),
        (&path.replace("sha256:", ""), Some("good"), 400),
        (&path_by(1, "7.1"), Some("good"), 400),
        (&path.replace("&indexer=", "&"), Some("good"), 400),
    ] {
        let answer = bench.send(Method::GET, path, token, vec![]).await;
        assert_eq!(answer.0, code, "{path} {token:?}");
        let problem: Value = serde_json::from_slice(&answer.1).expect("a problem");
        assert!(problem["reason"].is_string(), "{problem}");
    }
    bench
        .apiserver
        .change_image(|image| image.spec.image = "alpine:3.21".into());
    assert_eq!(get(&bench, &path).await.0, 409);
}

#[tokio::test]
async fn an_archive_that_is_gone_or_damaged_is_passed_over() {
    let bench = Bench::new();
    let (small, middle, large) = (&[1][..], &[1, 2][..], &[1, 2, 3][..]);
    let kept = [("small", small), ("middle", middle), ("large", large)];
    let [small_file, middle_file, _] = kept.map(|(name, layers)| {
        let digest = keep(&bench, &format!("team-a/{name}"), &archive_with(layers));
        bench.store.archive_path(digest)
    });

    // Before its head was ever read, and after that.
    let damaged = [
        &archive_with(small)[..60],
        &vec![0; archive_with(small).len() - 60],
    ]
    .concat();
    std::fs::write(&small_file, damaged).expect("written");
    assert_eq!(get(&bench, &path_of(1)).await, (200, archive_with(middle)));
    std::fs::write(&middle_file, &archive_with(middle)[..100]).expect("written");
    assert_eq!(get(&bench, &path_of(1)).await, (200, archive_with(large)));
    std::fs::remove_file(&middle_file).expect("removed");
    assert_eq!(get(&bench, &path_of(1)).await, (200, archive_with(large)));

    std::fs::write(&small_file, archive_with(small)).expect("written");
    assert_eq!(get(&bench, &path_of(1)).await, (200, archive_with(small)));
}

#[tokio::test]
async fn an_archive_goes_with_the_last_record_that_names_it() {
    let bench = Bench::new();
    for name in ["base", "twin"] {
        keep(&bench, &format!("team-a/{name}"), &archive_with(&[1]));
    }
    let remove = |uid| bench.store.remove_record(uid).expect("removed");
    assert_eq!(get(&bench, &path_of(1)).await.0, 200);
    remove("team-a--base");
    assert_eq!(get(&bench, &path_of(1)).await.0, 200);
    remove("team-a--twin");
    assert_eq!(
        get(&bench, &path_of(1)).await,
        NONE,
        "its file is still there"
    );

    // Another one in its place.
    keep(&bench, "team-a/base", &archive_with(&[1]));
    assert_eq!(get(&bench, &path_of(1)).await.0, 200);
    keep(&bench, "team-a/base", &archive_with(&[2]));
    assert_eq!(get(&bench, &path_of(1)).await, NONE);
    assert_eq!(get(&bench, &path_of(2)).await.0, 200);
}
