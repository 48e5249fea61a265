//! A layer in a real registry behind the proxy, and a cache of it.

use bytes::Bytes;
use clip_archive::Digest;
use clip_cache::{CacheLimits, LayerReader, LayerSpec, ReadError, SpanCache};
use clip_registry::{BlobSource, Client, ClientOptions, Credentials};
use clip_seek::{Compression, SpanIndexer, SpanLimits};
use clip_testkit::{
    images,
    layout::{self, Flaw, Layer},
    proxy::Proxy,
    registry::TestRegistry,
};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Compressed bytes of a span, nearly.
pub const SPAN: u64 = 64 << 10;
/// Long enough for a busy machine; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Scene {
    pub proxy: Proxy,
    pub cache: SpanCache,
    _registry: TestRegistry,
    _dir: tempfile::TempDir,
    blob: Bytes,
    tar: Vec<u8>,
}

impl Scene {
    /// A gzip layer of `len` bytes that do not compress: a byte of the tar is about a byte of the blob.
    pub fn new(len: usize) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let layer = Layer::new().file("noise", layout::noise(len, len as u64));
        let layout = layout::write(&dir.path().join("layout"), vec![layer], Flaw::None).unwrap();
        let registry = TestRegistry::start().unwrap();
        images::push(&layout, &registry, "team/app:1").unwrap();
        let blobs = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
        let blobs = blobs.map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
        let blob = Bytes::from(blobs.max_by_key(Vec::len).unwrap());
        let mut tar = Vec::new();
        let mut indexer = SpanIndexer::new(Compression::Gzip, limits());
        let mut keep = |bytes: Bytes| tar.extend_from_slice(&bytes);
        indexer.push(&blob, &mut keep).unwrap();
        indexer.finish(&mut keep).unwrap();
        Scene {
            proxy: Proxy::before(registry.address()).unwrap(),
            cache: SpanCache::open(
                dir.path().join("cache"),
                CacheLimits::default(),
                Handle::current(),
            )
            .unwrap(),
            _registry: registry,
            _dir: dir,
            blob,
            tar,
        }
    }

    /// The layer as one more image reads it.
    pub fn layer(&self) -> LayerReader {
        self.layer_in(&self.cache)
    }

    /// The same in another cache.
    pub fn layer_in(&self, cache: &SpanCache) -> LayerReader {
        let options = ClientOptions {
            credentials: Credentials::Anonymous,
            read_timeout: Duration::from_secs(2),
            ..ClientOptions::default()
        };
        let client = Client::new(options).unwrap();
        let source = BlobSource::open(&client, &self.proxy.address(), "team/app").unwrap();
        let mut indexer = SpanIndexer::new(Compression::Gzip, limits());
        indexer.push(&self.blob, &mut |_| {}).unwrap();
        let mut table = indexer.finish(&mut |_| {}).unwrap();
        let windows = std::mem::take(&mut table.windows);
        let spec = LayerSpec {
            section_digest: Digest::of(&self.blob[..1000]),
            blob_digest: Digest::of(&self.blob),
            table,
            windows: Box::new(move || Ok(windows.clone())),
        };
        cache.layer(spec, source).unwrap()
    }

    pub async fn read(&self, layer: &LayerReader, at: u64, len: usize) -> Result<(), ReadError> {
        self.read_within(layer, at, len, PATIENCE).await
    }

    /// Reads, and compares what it reads.
    pub async fn read_within(
        &self,
        layer: &LayerReader,
        at: u64,
        len: usize,
        limit: Duration,
    ) -> Result<(), ReadError> {
        let mut found = vec![0; len];
        layer.read(at, &mut found, Instant::now() + limit).await?;
        let at = at as usize;
        assert!(found == self.tar[at..at + len], "wrong bytes at {at}");
        Ok(())
    }
}

fn limits() -> SpanLimits {
    SpanLimits {
        tar: SPAN,
        blob: SPAN,
    }
}
