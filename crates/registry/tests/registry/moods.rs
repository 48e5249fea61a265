//! Each mood of the fault-injecting proxy before a real registry: the bytes asked for, or an error that names the cause.

use super::{amd64, registry_source};
use bytes::BytesMut;
use clip_registry::{BlobSource, Client, ClientOptions, Credentials, Digest, FetchError};
use clip_testkit::{
    images,
    layout::{self, Flaw, Layer},
    proxy::{Mood, Proxy, Rule},
    registry::TestRegistry,
};
use futures::TryStreamExt as _;
use std::{ops::Range, time::Duration};

const BLOB_LEN: usize = 3 << 20;

/// A registry with one image of one layer, behind a proxy, and a client that loses patience soon.
struct Scene {
    proxy: Proxy,
    _registry: TestRegistry,
    blobs: BlobSource,
    layer: Digest,
    content: Vec<u8>,
}

impl Scene {
    async fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let layer = Layer::new().file("noise", layout::noise(BLOB_LEN, 5));
        let layout = layout::write(&dir.path().join("layout"), vec![layer], Flaw::None).unwrap();
        let registry = TestRegistry::start().unwrap();
        images::push(&layout, &registry, "team/app:1").unwrap();
        let proxy = Proxy::before(registry.address()).unwrap();
        let client = Client::new(ClientOptions {
            credentials: Credentials::Anonymous,
            read_timeout: Duration::from_millis(500),
            ..ClientOptions::default()
        })
        .unwrap();
        let source = registry_source(&registry, "team/app:1");
        let image = client.resolve(&source, &amd64()).await.unwrap();
        let layer = image.layers[0].digest.clone();
        let path = layout.join("blobs/sha256").join(layer.hex());
        Scene {
            blobs: BlobSource::open(&client, &proxy.address(), "team/app").unwrap(),
            content: std::fs::read(path).unwrap(),
            proxy,
            _registry: registry,
            layer,
        }
    }

    async fn read(&self, range: Range<usize>) -> Result<(), FetchError> {
        let wanted = range.start as u64..range.end as u64;
        let stream = self.blobs.range(&self.layer, wanted).await?;
        let found: BytesMut = stream.try_collect().await?;
        assert!(
            found == self.content[range.clone()],
            "wrong bytes in {range:?}"
        );
        Ok(())
    }
}

#[tokio::test]
async fn what_passes_or_can_be_helped_gives_the_right_bytes() {
    let scene = Scene::new().await;
    let flaky = |mood, times| vec![Rule::blobs(mood).times(times)];
    let answer = |status, retry_after| Mood::Answer {
        status,
        retry_after,
    };
    let slow_and_cut = vec![
        Rule::always(Mood::Slow(Duration::from_millis(20))),
        Rule::blobs(Mood::Bandwidth(20 << 20)),
        Rule::blobs(Mood::ResetAfter(300_000)).times(3),
    ];
    let drip = Mood::Drip {
        piece: 10_000,
        pause: Duration::from_millis(5),
    };
    let tokens = |status| {
        let good_for = 2;
        Mood::Tokens { good_for, status }
    };
    for rules in [
        vec![Rule::always(Mood::Relay)],
        slow_and_cut,
        vec![Rule::blobs(drip)],
        vec![Rule::blobs(Mood::IgnoreRange)],
        vec![Rule::always(tokens(401))],
        vec![Rule::always(tokens(403))],
        vec![Rule::always(Mood::Redirect { good_for: 2 })],
        flaky(Mood::HangUp, 2),
        flaky(Mood::Silent, 1),
        flaky(Mood::SilentAfter(100_000), 1),
        flaky(Mood::ResetAfter(100_000), 3),
        flaky(answer(503, None), 2),
        flaky(answer(429, Some(1)), 1),
        vec![Rule::blobs(Mood::ResetAfter(250_000)).share(0.3, 7)],
    ] {
        scene.proxy.set_rules(rules.clone());
        for range in [0..100_000, 1_000_000..2_000_000, 5..6, 2_900_000..3_000_000] {
            let read = scene.read(range.clone()).await;
            read.unwrap_or_else(|error| panic!("{rules:?}, {range:?}: {error}"));
        }
    }
}

#[tokio::test]
async fn what_cannot_be_helped_is_an_error_that_names_the_cause() {
    let scene = Scene::new().await;
    let answer = |status| Mood::Answer {
        status,
        retry_after: None,
    };
    for (mood, cause) in [
        (Mood::HangUp, "cannot be reached"),
        (Mood::Silent, "no answer within 0.5 s"),
        (Mood::SilentAfter(0), "no answer within 0.5 s"),
        (Mood::ResetAfter(1000), "reset by peer"),
        (answer(503), "answered 503"),
        (answer(429), "limits the rate"),
        (answer(404), "has no blob"),
        (Mood::OtherRange(7), "the registry answered \"bytes 107-"),
    ] {
        scene.proxy.set(mood);
        let error = scene.read(100..200_000).await.unwrap_err().to_string();
        assert!(error.contains(cause), "{mood:?}: {error}");
        scene.proxy.set(Mood::Relay);
        scene.read(100..200_000).await.unwrap();
    }
}

#[tokio::test]
async fn connections_are_kept_and_used_again() {
    let scene = Scene::new().await;
    for at in 0..20 {
        scene.read(at..at + 1000).await.unwrap();
    }
    assert_eq!(scene.proxy.ranges().len(), 20);
    let connections = scene.proxy.connections();
    assert!(connections <= 2, "{connections} connections");
}
