//! Reading blobs: whole, or any range of bytes, from a registry or a layout.
//!
//! A range is one GET. A registry that redirects blobs to a store of its own is asked once per blob; after that the
//! store is asked directly, until its address fails or is five minutes old. A transfer that breaks off goes on where
//! it stopped. `Authorization` never goes to another host than the registry.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, Stream, StreamExt as _, TryStreamExt as _};
use reqwest::Url;

use crate::client::Client;
use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::error::{ClientError, FetchError};
use crate::recently::Recently;
use crate::reference::{ReferenceError, Repository};
use crate::renewal::Clients;
use crate::resolve::ResolvedImage;
use crate::source::LAYOUT_REGISTRY;
use crate::{layout, transfer};

/// How long a source that got wrong content asks no mirror. All tries of a read, which are seconds apart, then go past
/// them, and a mirror that flips bits costs each image one fetch in this time.
const DISTRUST: Duration = Duration::from_secs(60);

/// The blobs of one repository or layout. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct BlobSource {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub place: Place,
    /// The manifest that names the addresses of foreign layers.
    pub manifest: Option<Digest>,
    pub requests: AtomicU64,
    pub bytes: AtomicU64,
    /// A range was answered with the whole blob.
    whole_blobs: Recently,
    /// What came was not what the archive promises.
    wrong_content: Recently,
}

#[derive(Debug)]
pub(crate) enum Place {
    Registry(Clients, Repository),
    Layout(PathBuf),
}

/// What reading has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchStats {
    /// Requests for bytes, repeated and resumed ones included; of a layout, files opened.
    pub requests: u64,
    /// Bytes that arrived, whether asked for or not.
    pub bytes: u64,
}

/// Bytes as they arrive. Ends after the last byte asked for; after an error nothing follows.
pub struct BlobStream(BoxStream<'static, Result<Bytes, FetchError>>);

impl Client {
    /// The blobs of an image that was resolved.
    pub fn blobs(&self, image: &ResolvedImage) -> BlobSource {
        // Both were valid when the image was resolved, so this takes the direct way.
        match Repository::new(&image.registry, &image.repository) {
            Ok(repository) if !image.is_from_layout() => BlobSource::at(
                Place::Registry(Clients::new(self.clone()), repository),
                Some(image.manifest_digest.clone()),
            ),
            _ => BlobSource::layout(PathBuf::from(&image.repository)),
        }
    }
}

impl BlobSource {
    /// The blobs of a registry and repository as an archive's head names them.
    pub fn open(
        client: &Client,
        registry: &str,
        repository: &str,
    ) -> Result<BlobSource, ReferenceError> {
        if registry == LAYOUT_REGISTRY {
            return Ok(BlobSource::layout(PathBuf::from(repository)));
        }
        Ok(BlobSource::registry(
            client,
            Repository::new(registry, repository)?,
        ))
    }

    /// The same for an image's layers: those that its registry does not store are looked for where `manifest`, the
    /// image's own, says they are.
    pub fn open_image(
        client: &Client,
        registry: &str,
        repository: &str,
        manifest: Digest,
    ) -> Result<BlobSource, ReferenceError> {
        if registry == LAYOUT_REGISTRY {
            return Ok(BlobSource::layout(PathBuf::from(repository)));
        }
        let repository = Repository::new(registry, repository)?;
        let place = Place::Registry(Clients::new(client.clone()), repository);
        Ok(BlobSource::at(place, Some(manifest)))
    }

    pub(crate) fn registry(client: &Client, repository: Repository) -> BlobSource {
        let place = Place::Registry(Clients::new(client.clone()), repository);
        BlobSource::at(place, None)
    }

    pub(crate) fn layout(dir: PathBuf) -> BlobSource {
        BlobSource::at(Place::Layout(dir), None)
    }

    fn at(place: Place, manifest: Option<Digest>) -> BlobSource {
        let inner = Inner {
            place,
            manifest,
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            whole_blobs: Recently::default(),
            wrong_content: Recently::default(),
        };
        BlobSource {
            inner: Arc::new(inner),
        }
    }

    /// A whole blob, from its beginning. What arrives is not checked against the digest: who reads it all can do that
    /// on the way.
    pub async fn stream(&self, digest: &Digest) -> Result<BlobStream, FetchError> {
        self.read(digest, 0, None).await
    }

    /// The bytes `range` of a blob, all of them or an error.
    pub async fn range(
        &self,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<BlobStream, FetchError> {
        if range.is_empty() {
            return Ok(BlobStream(stream::empty().boxed()));
        }
        self.read(digest, range.start, Some(range.end)).await
    }

    /// Asks for one byte of a blob, for readers that are to come: they find a connection, a token, and the address to which
    /// the registry redirects them, which is ten round trips with some. Of a layout nothing is asked.
    ///
    /// # Errors
    /// As a read's.
    pub async fn greet(&self, digest: &Digest) -> Result<(), FetchError> {
        if let Place::Layout(_) = self.inner.place {
            return Ok(());
        }
        let mut stream = self.range(digest, 0..1).await?;
        while stream.try_next().await?.is_some() {}
        Ok(())
    }

    /// A whole blob in memory, checked against its digest. It must not be longer than `limit` bytes.
    pub async fn read_all(&self, digest: &Digest, limit: usize) -> Result<Bytes, FetchError> {
        let mut stream = self.stream(digest).await?;
        let mut content = BytesMut::new();
        while let Some(chunk) = stream.try_next().await? {
            if content.len() + chunk.len() > limit {
                return Err(FetchError::TooLarge {
                    repository: self.to_string(),
                    digest: digest.clone(),
                    limit,
                });
            }
            content.extend_from_slice(&chunk);
        }
        let actual = Digest::sha256_of(&content);
        if actual != *digest {
            return Err(FetchError::DigestMismatch {
                repository: self.to_string(),
                digest: digest.clone(),
                actual,
            });
        }
        Ok(content.freeze())
    }

    /// Reads with these credentials from the next request on, in all clones. Those that the registry accepted last stay
    /// in reserve, for the case that it refuses the new ones. A layout needs none.
    ///
    /// # Errors
    /// When they cannot be read; nothing changes then.
    pub fn renew_credentials(&self, credentials: &Credentials) -> Result<(), ClientError> {
        match &self.inner.place {
            Place::Registry(clients, _) => clients.renew(credentials),
            Place::Layout(_) => Ok(()),
        }
    }

    /// Says that credentials are still to come: until [`renew_credentials`](Self::renew_credentials), a refusal is an
    /// error that goes away ([`FetchError::CredentialsToCome`]).
    pub fn expect_credentials(&self) {
        if let Place::Registry(clients, _) = &self.inner.place {
            clients.expect_renewal();
        }
    }

    /// What came was not the blob's content. This source and its clones ask no mirror for a while: the registry itself shall
    /// say it again. Others go on asking mirrors, for it may as well be the archive that promises the wrong content.
    pub fn distrust_mirrors(&self) {
        let Place::Registry(clients, repository) = &self.inner.place else {
            return;
        };
        let hosts = clients.current().inner.mirrors.of(repository.registry());
        if hosts.is_none_or(|hosts| hosts.mirrors.is_empty()) {
            return;
        }
        if !self.distrusts_mirrors() {
            tracing::warn!(%repository, "wrong content: no mirror is asked for it for {} s", DISTRUST.as_secs());
        }
        self.inner.wrong_content.note(Instant::now());
    }

    pub(crate) fn distrusts_mirrors(&self) -> bool {
        self.inner
            .wrong_content
            .was_within(DISTRUST, Instant::now())
    }

    /// Whether ranges are answered with whole blobs here: then reading a blob once from its beginning is cheaper than any
    /// two ranges. Known from the first such answer on; forgotten after ten minutes, as it may be a proxy's doing.
    pub fn sends_whole_blobs(&self) -> bool {
        const MEMORY: Duration = Duration::from_secs(600);

        self.inner.whole_blobs.was_within(MEMORY, Instant::now())
    }

    pub(crate) fn got_whole_blob(&self) {
        self.inner.whole_blobs.note(Instant::now());
    }

    /// What this source and its clones have cost so far.
    pub fn stats(&self) -> FetchStats {
        FetchStats {
            requests: self.inner.requests.load(Ordering::Relaxed),
            bytes: self.inner.bytes.load(Ordering::Relaxed),
        }
    }

    /// Registry and repository as they are written into an archive's head.
    pub fn location(&self) -> (String, String) {
        match &self.inner.place {
            Place::Registry(_, repository) => (
                repository.registry().to_owned(),
                repository.name().to_owned(),
            ),
            Place::Layout(dir) => (LAYOUT_REGISTRY.to_owned(), dir.display().to_string()),
        }
    }

    async fn read(
        &self,
        digest: &Digest,
        start: u64,
        end: Option<u64>,
    ) -> Result<BlobStream, FetchError> {
        let stream = match &self.inner.place {
            Place::Registry(..) => transfer::start(self.clone(), digest.clone(), start, end)
                .await?
                .boxed(),
            Place::Layout(dir) => layout::read(self.clone(), dir, digest, start, end)
                .await?
                .boxed(),
        };
        Ok(BlobStream(stream))
    }

    pub(crate) fn count_request(&self) {
        self.inner.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_bytes(&self, bytes: usize) {
        self.inner.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl std::fmt::Display for BlobSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.inner.place {
            Place::Registry(_, repository) => repository.fmt(f),
            Place::Layout(dir) => write!(f, "{LAYOUT_REGISTRY} {}", dir.display()),
        }
    }
}

impl BlobStream {
    pub(crate) fn new(
        chunks: impl Stream<Item = Result<Bytes, FetchError>> + Send + 'static,
    ) -> Self {
        Self(chunks.boxed())
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes, FetchError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

impl std::fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BlobStream")
    }
}

/// Where blobs were redirected to.
#[derive(Debug, Default)]
pub(crate) struct RedirectCache {
    known: Mutex<HashMap<(Repository, Digest), (Url, Instant)>>,
}

impl RedirectCache {
    /// Signed addresses are good for 10 minutes or more at the registries in use; half of that leaves time to read.
    const LIFETIME: Duration = Duration::from_secs(300);

    pub(crate) fn get(&self, repository: &Repository, digest: &Digest) -> Option<Url> {
        let known = self.lock();
        let (url, since) = known.get(&(repository.clone(), digest.clone()))?;
        (since.elapsed() < Self::LIFETIME).then(|| url.clone())
    }

    pub(crate) fn put(&self, repository: &Repository, digest: &Digest, url: Url) {
        let mut known = self.lock();
        known.retain(|_, (_, since)| since.elapsed() < Self::LIFETIME);
        known.insert((repository.clone(), digest.clone()), (url, Instant::now()));
    }

    pub(crate) fn forget(&self, repository: &Repository, digest: &Digest) {
        self.lock().remove(&(repository.clone(), digest.clone()));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(Repository, Digest), (Url, Instant)>> {
        self.known
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
