//! One transfer of a blob from a registry: open, read, and when it breaks off, open again where it stopped.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};

use crate::answer::status_error;
use crate::blob::{BlobSource, Place};
use crate::client::{Answer, Client, Request};
use crate::digest::Digest;
use crate::error::FetchError;
use crate::http::{TransportError, authority, innermost};
use crate::mirrors::Host;
use crate::reference::Repository;
use crate::renewal::Clients;
use crate::retry::Backoff;

/// After this many bytes a transfer has earned a new set of tries: a long blob over a bad line still arrives, and a
/// line that yields nothing still ends.
const PROGRESS: u64 = 256 * 1024;

/// Starts to read from `start` to `end`, or to the blob's end.
pub(crate) async fn start(
    source: BlobSource,
    digest: Digest,
    start: u64,
    end: Option<u64>,
) -> Result<impl Stream<Item = Result<Bytes, FetchError>> + Send + 'static, FetchError> {
    let mut transfer = Transfer {
        source,
        digest,
        next: start,
        end,
        body: None,
        backoff: Backoff::new(),
        earned: 0,
    };
    transfer.body = Some(transfer.open().await?);
    Ok(stream::try_unfold(transfer, |mut transfer| async move {
        let chunk = transfer.chunk().await?;
        Ok(chunk.map(|chunk| (chunk, transfer)))
    }))
}

struct Transfer {
    source: BlobSource,
    digest: Digest,
    /// The next byte to give out.
    next: u64,
    /// Where to stop, once that is known.
    end: Option<u64>,
    body: Option<Body>,
    backoff: Backoff,
    /// Bytes given out since the last interruption.
    earned: u64,
}

struct Body {
    response: Response,
    /// The mirror that sends it.
    mirror: Option<Arc<Host>>,
    /// Bytes before the range that a registry sends which does not do ranges.
    skip: u64,
}

impl Transfer {
    /// The next bytes; `None` at the end.
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            if self.end == Some(self.next) {
                return Ok(None);
            }
            let mut body = match self.body.take() {
                Some(body) => body,
                None => self.open().await?,
            };
            let patience = self.read_timeout(&body);
            match next_chunk(&mut body.response, patience).await {
                Ok(Some(chunk)) => {
                    self.source.count_bytes(chunk.len());
                    let wanted = self.wanted(&mut body, chunk);
                    self.advance(wanted.len() as u64);
                    if self.end == Some(self.next)
                        && let Some(mirror) = &body.mirror
                        && let Place::Registry(_, repository) = &self.source.inner.place
                    {
                        mirror.is_well(repository);
                    }
                    self.body = Some(body);
                    if !wanted.is_empty() {
                        return Ok(Some(wanted));
                    }
                }
                // A body of unknown length ends where it ends; hyper reports one that is cut off.
                Ok(None) if self.end.is_none() => return Ok(None),
                Ok(None) => self.pause(body, "the body ended early".to_owned()).await?,
                Err(cause) => self.pause(body, cause).await?,
            }
        }
    }

    /// The part of `chunk` that was asked for.
    fn wanted(&self, body: &mut Body, mut chunk: Bytes) -> Bytes {
        let skipped = body.skip.min(chunk.len() as u64);
        body.skip -= skipped;
        let mut wanted = chunk.split_off(skipped as usize);
        if let Some(end) = self.end {
            wanted.truncate((end - self.next).min(wanted.len() as u64) as usize);
        }
        wanted
    }

    fn advance(&mut self, bytes: u64) {
        self.next += bytes;
        self.earned += bytes;
        if self.earned >= PROGRESS {
            self.earned = 0;
            self.backoff = Backoff::new();
        }
    }

    /// After `body` broke off. Instead of a mirror another host is asked at once.
    async fn pause(&mut self, body: Body, cause: String) -> Result<(), FetchError> {
        if let Some(mirror) = body.mirror {
            mirror.rest(&cause);
            return Ok(());
        }
        self.earned = 0;
        tracing::debug!(digest = %self.digest, at = self.next, cause, "a transfer broke off");
        if self.backoff.wait(None).await {
            return Ok(());
        }
        let (repository, digest, at) = (self.source.to_string(), self.digest.clone(), self.next);
        Err(FetchError::Interrupted {
            repository,
            digest,
            at,
            cause,
        })
    }

    fn read_timeout(&self, body: &Body) -> Duration {
        match (&body.mirror, &self.source.inner.place) {
            (Some(mirror), _) => mirror.http.read_timeout,
            (None, Place::Registry(clients, _)) => clients.current().inner.http.read_timeout,
            (None, Place::Layout(_)) => Duration::MAX,
        }
    }

    /// Asks for the bytes from `next` on, and checks that it is these that come.
    async fn open(&mut self) -> Result<Body, FetchError> {
        let Place::Registry(clients, repository) = &self.source.inner.place else {
            unreachable!("layouts are read by layout.rs");
        };
        let (client, answer) = self.request_accepted(clients, repository).await?;
        let Answer {
            response, mirror, ..
        } = answer;
        let length = header(&response, CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        match response.status() {
            StatusCode::OK => {
                let is_more = self
                    .end
                    .is_some_and(|end| length.is_none_or(|length| length > end));
                if self.next > 0 || is_more {
                    self.source.got_whole_blob();
                }
                if let Err(error) = self.set_total(length) {
                    return self.open_elsewhere(mirror, error).await;
                }
                Ok(Body {
                    response,
                    mirror,
                    skip: self.next,
                })
            }
            StatusCode::PARTIAL_CONTENT => {
                let text = header(&response, CONTENT_RANGE).unwrap_or_default();
                match parse_content_range(text) {
                    Some((first, _, total)) if first == self.next => {
                        if let Err(error) = self.set_total(total) {
                            return self.open_elsewhere(mirror, error).await;
                        }
                        Ok(Body {
                            response,
                            mirror,
                            skip: 0,
                        })
                    }
                    _ => {
                        let answer = text.to_owned();
                        if let Some(mirror) = mirror {
                            // Whoever tries again asks another host.
                            mirror.rest(&format!("it sent {answer:?} for other bytes"));
                        }
                        Err(FetchError::WrongRange {
                            repository: self.source.to_string(),
                            digest: self.digest.clone(),
                            range: self.range(),
                            answer,
                        })
                    }
                }
            }
            StatusCode::NOT_FOUND => Err(FetchError::NotFound {
                repository: self.source.to_string(),
                digest: self.digest.clone(),
            }),
            StatusCode::RANGE_NOT_SATISFIABLE => Err(self.out_of_range()),
            _ => Err(
                status_error(&client.inner.http, &self.source.to_string(), response)
                    .await
                    .into(),
            ),
        }
    }

    /// After a host has said that the blob is too short. A mirror may have a part of it only, or the archive may promise too
    /// much: the registry itself shall say it.
    async fn open_elsewhere(
        &mut self,
        mirror: Option<Arc<Host>>,
        error: FetchError,
    ) -> Result<Body, FetchError> {
        if mirror.is_none() {
            return Err(error);
        }
        self.source.distrust_mirrors();
        Box::pin(self.open()).await
    }

    /// Learns the blob's length.
    fn set_total(&mut self, total: Option<u64>) -> Result<(), FetchError> {
        match (self.end, total) {
            (Some(end), Some(total)) if total < end => Err(self.out_of_range()),
            (None, total) => {
                self.end = total;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn out_of_range(&self) -> FetchError {
        FetchError::OutOfRange {
            repository: self.source.to_string(),
            digest: self.digest.clone(),
            range: self.range(),
        }
    }

    fn range(&self) -> std::ops::Range<u64> {
        self.next..self.end.unwrap_or(u64::MAX)
    }

    /// Sends the request with the newest credentials; when they are refused, with those that were good last.
    async fn request_accepted(
        &self,
        clients: &Clients,
        repository: &Repository,
    ) -> Result<(Client, Answer), FetchError> {
        let mut client = clients.current();
        let mut answer = self.request(&client, repository).await;
        if let Err(FetchError::Request(error)) = &answer
            && error.is_refusal()
            && let Some(other) = clients.instead_of(&client)
        {
            tracing::warn!(%error, "refused; trying the other credentials");
            let second = self.request(&other, repository).await;
            if !is_refusal(&second) {
                (client, answer) = (other, second);
            }
        }
        match answer {
            Ok(answer) => {
                // A mirror's answer says nothing of what the registry thinks of these credentials.
                if answer.response.status().is_success() && answer.mirror.is_none() {
                    clients.accepted(&client);
                }
                Ok((client, answer))
            }
            Err(FetchError::Request(error)) if error.is_refusal() => Err(clients.refused(error)),
            Err(error) => Err(error),
        }
    }

    /// Sends the request: to where the blob was redirected last time, else to the registry.
    async fn request(
        &self,
        client: &Client,
        repository: &Repository,
    ) -> Result<Answer, FetchError> {
        let range = match (self.next, self.end) {
            (0, None) => None,
            (next, None) => Some(format!("bytes={next}-")),
            (next, Some(end)) => Some(format!("bytes={next}-{}", end - 1)),
        };
        let range = range.and_then(|text| HeaderValue::from_str(&text).ok());

        let redirects = &client.inner.redirects;
        if let Some(url) = redirects.get(repository, &self.digest) {
            let mut request = reqwest::Request::new(Method::GET, url);
            request
                .headers_mut()
                .extend(range.clone().map(|value| (RANGE, value)));
            self.source.count_request();
            match client.inner.http.send(request).await {
                Ok(response) if response.status().is_success() => {
                    return Ok(Answer::directly(response));
                }
                _ => redirects.forget(repository, &self.digest),
            }
        }

        let mut request = Request::get(repository, format!("blobs/{}", self.digest));
        request
            .headers
            .extend(range.clone().map(|value| (RANGE, value)));
        request.past_mirrors = self.source.distrusts_mirrors();
        self.source.count_request();
        let answer = client.send(&request).await?;
        if answer.response.status() == StatusCode::NOT_FOUND
            && let Some(found) = self.foreign(client, repository, range.as_ref()).await?
        {
            return Ok(Answer::directly(found));
        }
        if let Some(url) = answer
            .redirected_to
            .as_ref()
            .filter(|_| answer.response.status().is_success())
        {
            redirects.put(repository, &self.digest, url.clone());
        }
        Ok(answer)
    }

    /// The answer of another place that the manifest names for this blob, if it names one.
    async fn foreign(
        &self,
        client: &Client,
        repository: &Repository,
        range: Option<&HeaderValue>,
    ) -> Result<Option<Response>, FetchError> {
        let Some(manifest) = &self.source.inner.manifest else {
            return Ok(None);
        };
        let addresses = client
            .foreign_addresses(repository, manifest, &self.digest)
            .await;
        if addresses.is_empty() {
            return Ok(None);
        }
        self.source.count_request();
        match client.fetch_foreign(&addresses, range).await {
            Ok((response, url)) => {
                // From now on like a redirect: asked directly.
                client.inner.redirects.put(repository, &self.digest, url);
                Ok(Some(response))
            }
            Err(error) => Err(FetchError::Foreign {
                repository: self.source.to_string(),
                digest: self.digest.clone(),
                address: error.address,
                cause: error.cause,
                is_permanent: error.is_permanent,
            }),
        }
    }
}

fn is_refusal(answer: &Result<Answer, FetchError>) -> bool {
    matches!(answer, Err(FetchError::Request(error)) if error.is_refusal())
}

async fn next_chunk(response: &mut Response, patience: Duration) -> Result<Option<Bytes>, String> {
    match tokio::time::timeout(patience, response.chunk()).await {
        Ok(Ok(chunk)) => Ok(chunk),
        Ok(Err(error)) => Err(innermost(&error)),
        Err(_) => Err(TransportError::timed_out(authority(response.url()), patience).cause),
    }
}

fn header(response: &Response, name: reqwest::header::HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}

/// `bytes FIRST-LAST/TOTAL`, where TOTAL may be `*`.
fn parse_content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((
        first.trim().parse().ok()?,
        last.trim().parse().ok()?,
        total.trim().parse().ok(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_read_with_and_without_a_total() {
        assert_eq!(
            parse_content_range("bytes 5-9/100"),
            Some((5, 9, Some(100)))
        );
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5, 9, None)));
        assert_eq!(parse_content_range("bytes */100"), None);
        assert_eq!(parse_content_range("items 5-9/100"), None);
    }
}
