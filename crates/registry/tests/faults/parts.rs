//! Large blobs that come as several requests at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::{Asked, FaultServer, Reply};
use bytes::{Bytes, BytesMut};
use clip_registry::{BlobSource, Client, ClientOptions, Digest, FetchError};
use clip_testkit::{layout, registry::TestRegistry};
use futures::TryStreamExt as _;

const PART: usize = 2 << 20;
/// Ten parts, the last of them short.
const SIZE: usize = 10 * PART - 12_345;
const CONNECTIONS: usize = 4;

fn blobs(address: &str) -> BlobSource {
    let client = Client::new(ClientOptions {
        read_timeout: Duration::from_secs(30),
        ..ClientOptions::default()
    });
    BlobSource::open(&client.unwrap(), address, "team/app").unwrap()
}

async fn read(blobs: &BlobSource, content: &[u8]) -> Result<Bytes, FetchError> {
    let (digest, size) = (Digest::sha256_of(content), content.len() as u64);
    let stream = blobs.stream_in_parts(&digest, size, CONNECTIONS).await?;
    let all: BytesMut = stream.try_collect().await?;
    Ok(all.freeze())
}

fn gets(server: &FaultServer) -> Vec<Asked> {
    let asked = server.asked().into_iter();
    asked.filter(|asked| asked.method == "GET").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_blob_is_read_over_several_connections_each_byte_once() {
    let content = Arc::new(layout::noise(SIZE, 1));
    let (served, now, most) = (
        content.clone(),
        AtomicUsize::new(0),
        Arc::new(AtomicUsize::new(0)),
    );
    let seen = most.clone();
    let server = FaultServer::start(move |_, asked| {
        seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        // Long enough that the other connections come; they are counted, not timed.
        std::thread::sleep(Duration::from_millis(100));
        now.fetch_sub(1, Ordering::SeqCst);
        Reply::ranged(asked, &served)
    });
    let blobs = blobs(&server.address());
    assert!(read(&blobs, &content).await.unwrap() == content[..]);
    let mut ranges: Vec<_> = gets(&server).iter().filter_map(Asked::range).collect();
    ranges.sort();
    let expected = (0..10).map(|part| (part * PART, Some((SIZE - 1).min(part * PART + PART - 1))));
    assert_eq!(ranges, expected.collect::<Vec<_>>());
    assert_eq!(blobs.stats().bytes, SIZE as u64);
    let most = most.load(Ordering::SeqCst);
    assert!((2..=CONNECTIONS).contains(&most), "{most} at once");
}

#[tokio::test]
async fn a_registry_that_sends_whole_blobs_is_asked_for_them() {
    let content = Arc::new(layout::noise(SIZE, 2));
    let served = content.clone();
    let server = FaultServer::start(move |_, _| Reply::ok(served.as_slice()));
    let blobs = blobs(&server.address());
    for requests in [2, 3] {
        assert!(read(&blobs, &content).await.unwrap() == content[..]);
        assert_eq!(gets(&server).len(), requests, "it is tried once");
    }
}

#[tokio::test]
async fn a_part_that_breaks_off_goes_on_where_it_stopped() {
    let content = Arc::new(layout::noise(SIZE, 3));
    let served = content.clone();
    let server = FaultServer::start(move |number, asked| {
        let reply = Reply::ranged(asked, &served);
        match number % 3 {
            1 => reply.cut_after(PART / 3),
            _ => reply,
        }
    });
    assert!(read(&blobs(&server.address()), &content).await.unwrap() == content[..]);
}

#[tokio::test]
async fn a_part_that_is_refused_ends_the_blob_with_its_error() {
    let content = Arc::new(layout::noise(SIZE, 4));
    let served = content.clone();
    let server = FaultServer::start(move |_, asked| match asked.range() {
        Some((first, _)) if first >= 5 * PART => Reply::new(404),
        _ => Reply::ranged(asked, &served),
    });
    let error = read(&blobs(&server.address()), &content).await.unwrap_err();
    assert!(matches!(error, FetchError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn a_small_blob_is_one_request() {
    let content = Arc::new(layout::noise(3 * PART, 5));
    let served = content.clone();
    let server = FaultServer::start(move |_, asked| Reply::ranged(asked, &served));
    assert!(read(&blobs(&server.address()), &content).await.unwrap() == content[..]);
    assert_eq!(gets(&server).len(), 1);
}

#[tokio::test]
async fn a_real_registry_gives_the_same_bytes() {
    let registry = TestRegistry::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let layer = layout::Layer::new().file("noise", layout::noise(SIZE, 6));
    let image = layout::write(dir.path(), vec![layer], layout::Flaw::None).unwrap();
    clip_testkit::images::push(&image, &registry, "team/app:1").unwrap();
    let blob = std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap();
    let largest = blob.map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    let content = largest.max_by_key(Vec::len).unwrap();
    let blobs = blobs(registry.address());
    assert!(read(&blobs, &content).await.unwrap() == content);
    assert_eq!(blobs.stats().requests, content.len().div_ceil(PART) as u64);
}
