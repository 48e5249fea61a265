//! The client against a real registry (Debian's docker-registry) and images that skopeo pushed.

mod access;
mod artifacts;
mod images;
mod layout;
mod mirrors;
mod moods;

use bytes::{Bytes, BytesMut};
use clip_registry::{
    BlobSource, Client, ClientOptions, Credentials, Digest, ImageSource, Platform,
};
use clip_testkit::registry::TestRegistry;
use futures::TryStreamExt as _;

fn client(credentials: Credentials) -> Client {
    Client::new(ClientOptions {
        credentials,
        ..ClientOptions::default()
    })
    .unwrap()
}

fn registry_source(registry: &TestRegistry, image: &str) -> ImageSource {
    format!("{}/{image}", registry.address()).parse().unwrap()
}

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

async fn read(blobs: &BlobSource, digest: &Digest, range: std::ops::Range<u64>) -> Bytes {
    let stream = blobs.range(digest, range).await.unwrap();
    stream.try_collect::<BytesMut>().await.unwrap().freeze()
}
