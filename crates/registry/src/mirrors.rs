//! Which hosts are asked for a registry's content: mirrors first, then the registry itself.
//!
//! Mirrors only give out what is checked by its digest anyway, and tags where they may (`resolve`). `HEAD` and pushes go to
//! the registry itself: whether somebody may read an image is for it to say, not for a mirror.
//!
//! A mirror that does not answer, or breaks off, rests, each time longer; one that refuses rests for that repository
//! (`rest.rs`). One that has not the blob is passed over this time. What turns out to be wrong only later, by a digest, may
//! as well be the archive's fault: then it is the reader that passes over all mirrors for a while, not everybody
//! ([`BlobSource::distrust_mirrors`](crate::BlobSource::distrust_mirrors)). Whatever a mirror does, the registry itself is
//! asked in the end.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use reqwest::Url;
use reqwest::header::HeaderMap;

use crate::error::{ClientError, RequestError};
use crate::hosts_toml::{self, HostEntry};
use crate::http::{Http, authority};
use crate::options::ClientOptions;
use crate::reference::Repository;
use crate::rest::Rests;

/// Changes of a `hosts.toml`, or of a certificate that it names, hold after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// A mirror is near: who does not answer by then is slower than the registry itself.
const MIRROR_CONNECT: Duration = Duration::from_secs(3);
const MIRROR_READ: Duration = Duration::from_secs(10);

/// The hosts of all registries.
#[derive(Debug)]
pub(crate) struct Mirrors {
    dir: Option<PathBuf>,
    options: ClientOptions,
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Debug)]
struct Known {
    looked: Instant,
    files: Files,
    hosts: Arc<Hosts>,
}

/// What a registry's hosts come from: its `hosts.toml` and the certificates that this names, and when each was changed. None
/// at all if there is no such file.
#[derive(Debug, Default)]
struct Files(Vec<(PathBuf, Option<SystemTime>)>);

/// The hosts of one registry.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    pub mirrors: Vec<Arc<Host>>,
    pub server: Option<Arc<Host>>,
}

/// A host that was configured.
#[derive(Debug)]
pub(crate) struct Host {
    pub api: Url,
    pub http: Http,
    pub headers: HeaderMap,
    pub pull: bool,
    pub resolve: bool,
    rests: Rests,
}

impl Mirrors {
    pub(crate) fn new(options: &ClientOptions) -> Mirrors {
        Mirrors {
            dir: options.hosts_dir.clone(),
            options: options.clone(),
            known: Mutex::default(),
        }
    }

    /// The hosts of `registry` as its `hosts.toml` says now; none if there is no such file.
    pub(crate) fn of(&self, registry: &str) -> Option<Arc<Hosts>> {
        let dir = self.dir.as_deref()?;
        let mut known = lock(&self.known);
        if let Some(known) = known.get_mut(registry) {
            if known.looked.elapsed() < LOOK_AGAIN {
                return Some(known.hosts.clone());
            }
            known.looked = Instant::now();
            let file = hosts_toml::path_for(dir, registry);
            if known.files.first() == file.as_deref() && known.files.are_unchanged() {
                return Some(known.hosts.clone());
            }
        }
        let mut files = Files::default();
        let hosts = match hosts_toml::path_for(dir, registry) {
            Some(path) => self.load(&path, &mut files).unwrap_or_else(|problem| {
                tracing::error!(path = %path.display(), problem, "not used: asking {registry} itself");
                Hosts::default()
            }),
            None => Hosts::default(),
        };
        let hosts = Arc::new(hosts);
        let entry = Known {
            looked: Instant::now(),
            files,
            hosts: hosts.clone(),
        };
        known.insert(registry.to_owned(), entry);
        Some(hosts)
    }

    /// Notes in `files` what it reads, before it does.
    fn load(&self, path: &Path, files: &mut Files) -> Result<Hosts, String> {
        files.note(path);
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        let parsed = hosts_toml::parse(&text, dir)?;
        let named = parsed.mirrors.iter().chain(&parsed.server);
        named
            .flat_map(HostEntry::files)
            .for_each(|path| files.note(path));
        let mirror = |entry| self.host(entry, MIRROR_CONNECT, MIRROR_READ);
        let mirrors = parsed.mirrors.into_iter().map(mirror);
        let (connect, read) = (self.options.connect_timeout, self.options.read_timeout);
        let server = parsed.server.map(|entry| self.host(entry, connect, read));
        Ok(Hosts {
            mirrors: mirrors
                .collect::<Result<_, _>>()
                .map_err(|e| e.to_string())?,
            server: server.transpose().map_err(|e| e.to_string())?,
        })
    }

    fn host(
        &self,
        entry: HostEntry,
        connect: Duration,
        read: Duration,
    ) -> Result<Arc<Host>, ClientError> {
        let mut options = self.options.clone();
        options.ca_certificates.extend(entry.ca);
        options.connect_timeout = entry.dial_timeout.unwrap_or(connect);
        options.read_timeout = options.read_timeout.min(read);
        let http = Http::for_host(&options, &entry.client, entry.skip_verify)?;
        Ok(Arc::new(Host {
            api: entry.api,
            http,
            headers: entry.headers,
            pull: entry.pull,
            resolve: entry.resolve,
            rests: Rests::default(),
        }))
    }
}

impl Files {
    fn note(&mut self, path: &Path) {
        self.0.push((path.to_owned(), changed(path)));
    }

    fn first(&self) -> Option<&Path> {
        self.0.first().map(|(path, _)| path.as_path())
    }

    fn are_unchanged(&self) -> bool {
        self.0.iter().all(|(path, then)| changed(path) == *then)
    }
}

/// None if it cannot be read.
fn changed(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|meta| meta.modified()).ok()
}

impl Host {
    /// The same repository there. Credentials and tokens are looked up by its name, so that a host is shown what is kept
    /// for it, and never what is kept for the registry in whose place it is asked.
    pub(crate) fn repository(&self, original: &Repository) -> Repository {
        repository_at(&self.api, original)
    }

    /// Whether it is not to be asked for `repository` now.
    pub(crate) fn rests_for(&self, repository: &Repository) -> bool {
        self.rests.hold_for(repository.name(), Instant::now())
    }

    /// It is in no state to answer: not asked for a while.
    pub(crate) fn rest(&self, cause: &str) {
        if let Some(rest) = self.rests.begin(Instant::now()) {
            tracing::warn!(mirror = %authority(&self.api), cause, "not asked for {} s", rest.as_secs());
        }
    }

    /// It gave no useful answer to a request for `repository`.
    pub(crate) fn failed(&self, repository: &Repository, error: &RequestError) {
        if !error.is_about_access() {
            return self.rest(&error.to_string());
        }
        if let Some(rest) = self.rests.begin_for(repository.name(), Instant::now()) {
            tracing::warn!(mirror = %authority(&self.api), %error, "not asked for {} for {} s", repository.name(), rest.as_secs());
        }
    }

    /// It gave all of what it was asked for in `repository`.
    pub(crate) fn is_well(&self, repository: &Repository) {
        self.rests.shorten(repository.name());
    }
}

fn repository_at(api: &Url, original: &Repository) -> Repository {
    let there = original.at(&authority(api));
    // The registry itself may be written with the port that goes without saying.
    let registry = Url::parse(&format!("{}://{}", api.scheme(), original.registry()));
    match registry {
        Ok(registry) if authority(&registry) == there.registry() => original.clone(),
        _ => there,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_known_by_its_own_name() {
        for (host, registry, name) in [
            ("https://registry-1.docker.io", "docker.io", "docker.io"),
            ("https://registry-1.docker.io", "quay.io", "docker.io"),
            ("https://mirror.internal", "docker.io", "mirror.internal"),
            ("http://quay.io:5000", "quay.io", "quay.io:5000"),
            ("https://quay.io", "quay.io:443", "quay.io:443"),
            ("https://quay.io:443", "quay.io", "quay.io"),
            ("http://my_mirror:5000", "quay.io", "my_mirror:5000"),
            ("http://[::1]:5000", "quay.io", "[::1]:5000"),
        ] {
            let original = Repository::new(registry, "team/app").unwrap();
            let there = repository_at(&host.parse().unwrap(), &original);
            assert_eq!((there.registry(), there.name()), (name, "team/app"));
        }
    }
    #[test]
    fn a_certificate_that_is_replaced_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let [toml, absent, pem] =
            ["hosts.toml", "ca.pem", "me.pem"].map(|name| dir.path().join(name));
        let text = "[host.\"https://a\"]\nca = \"ca.pem\"\nclient = \"me.pem\"";
        std::fs::write(&toml, text).unwrap();
        std::fs::write(&pem, "").unwrap();
        let mut files = Files::default();
        // They cannot be used, which is no reason not to look at them again.
        let problem = Mirrors::new(&ClientOptions::default()).load(&toml, &mut files);
        assert!(problem.unwrap_err().contains("ca.pem"));
        assert_eq!(files.first(), Some(&*toml));
        assert!(files.are_unchanged());
        let new = std::fs::File::create(&pem).unwrap();
        new.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(!files.are_unchanged());
        let mut files = Files::default();
        files.note(&absent);
        std::fs::write(&absent, "").unwrap();
        assert!(!files.are_unchanged(), "it was made");
    }
}
