//! Image references, normalised as Docker does: `alpine` means `docker.io/library/alpine:latest`.
//!
//! The grammar is that of <https://github.com/distribution/reference>. A reference that parsed has a lower-case
//! repository, a valid tag and a valid digest, so it can be put into URLs as it is.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// Where an image is to be found: a registry, a repository in it, and a tag or a digest (or both: the digest rules).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    repository: Repository,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A repository in a registry: what blobs belong to and what permissions are given for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    registry: String,
    name: String,
}

/// The registry of references that name none.
pub const DEFAULT_REGISTRY: &str = "docker.io";

impl Reference {
    /// A reference to a tag in `repository`.
    pub fn with_tag(repository: Repository, tag: &str) -> Result<Reference, ReferenceError> {
        check_tag(tag).map_err(|problem| ReferenceError::new(tag, problem))?;
        Ok(Reference {
            repository,
            tag: Some(tag.to_owned()),
            digest: None,
        })
    }

    /// A reference to the manifest with this digest in `repository`.
    pub fn with_digest(repository: Repository, digest: Digest) -> Reference {
        Reference {
            repository,
            tag: None,
            digest: Some(digest),
        }
    }

    /// The registry's host name, with the port if one was given: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        self.repository.registry()
    }

    /// The repository's name in the registry: `library/alpine`.
    pub fn repository(&self) -> &str {
        self.repository.name()
    }

    /// Registry and repository together.
    pub fn in_repository(&self) -> &Repository {
        &self.repository
    }

    /// The tag; `latest` when neither tag nor digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which pins the content and outranks the tag.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What stands behind `/manifests/` in the registry's API: the digest if there is one, else the tag.
    pub(crate) fn selector(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_ref(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }
}

impl Repository {
    /// A repository by its registry and name, as [`Repository::registry`] and [`Repository::name`] return them.
    pub fn new(registry: &str, name: &str) -> Result<Repository, ReferenceError> {
        let text = format!("{registry}/{name}");
        check_registry(registry).map_err(|problem| ReferenceError::new(&text, problem))?;
        check_name(name).map_err(|problem| ReferenceError::new(&text, problem))?;
        Ok(Repository {
            registry: registry.to_owned(),
            name: name.to_owned(),
        })
    }

    /// The repository of the same name at another host, which a URL names (`host[:port]`).
    pub(crate) fn at(&self, host: &str) -> Repository {
        Repository {
            registry: canonical_registry(host).to_owned(),
            name: self.name.clone(),
        }
    }

    /// The registry's host name, with the port if one was given.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's name in the registry.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Why some text is not a [`Reference`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not an image reference: {problem} (examples: alpine, ghcr.io/team/app:1.2, localhost:5000/app@sha256:…)"
)]
pub struct ReferenceError {
    text: String,
    problem: Problem,
}

impl ReferenceError {
    fn new(text: &str, problem: Problem) -> ReferenceError {
        ReferenceError {
            text: text.to_owned(),
            problem,
        }
    }

    pub(crate) fn no_directory(text: &str) -> ReferenceError {
        ReferenceError::new(text, Problem::NoDirectory)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("it is empty")]
    Empty,
    #[error("a reference has no scheme; leave out {0:?}")]
    Scheme(&'static str),
    #[error("the repository must be lower case, {0:?}")]
    UpperCase(String),
    #[error(
        "a repository's parts are made of a-z, 0-9 and single . _ __ - between them, which {0:?} is not"
    )]
    Name(String),
    #[error("the repository is longer than 255 characters")]
    TooLong,
    #[error(
        "a tag is made of up to 128 letters, digits, _ . - and starts with a letter, digit or _, which {0:?} does not"
    )]
    Tag(String),
    #[error("{0:?} is not a registry's host name")]
    Registry(String),
    #[error("64 hexadecimal digits alone say no repository; write REPOSITORY@sha256:…")]
    BareDigest,
    #[error("it lacks a directory; write oci:DIR or oci:DIR:TAG")]
    NoDirectory,
    #[error("{0}")]
    Digest(DigestError),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        parse(text).map_err(|problem| ReferenceError::new(text, problem))
    }
}

fn parse(text: &str) -> Result<Reference, Problem> {
    if text.is_empty() {
        return Err(Problem::Empty);
    }
    for scheme in ["https://", "http://", "docker://"] {
        if text.starts_with(scheme) {
            return Err(Problem::Scheme(scheme));
        }
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse().map_err(Problem::Digest)?)),
        None => (text, None),
    };
    let (rest, tag) = split_tag(rest);
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    if rest.len() == 64 && rest.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Problem::BareDigest);
    }

    let (registry, name) = split_registry(rest);
    check_registry(registry)?;
    let name = match (registry, name.contains('/')) {
        (DEFAULT_REGISTRY, false) => format!("library/{name}"),
        _ => name.to_owned(),
    };
    check_name(&name)?;

    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some("latest".to_owned()),
    };
    Ok(Reference {
        repository: Repository {
            registry: registry.to_owned(),
            name,
        },
        tag,
        digest,
    })
}

/// Takes `:tag` off the end. A colon before the last slash belongs to a port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag)),
        _ => (text, None),
    }
}

/// Takes the registry off the front. The first part is one if it could not be a repository's:
/// it has a dot, a colon or a capital, or is `localhost`.
fn split_registry(text: &str) -> (&str, &str) {
    let Some((first, rest)) = text.split_once('/') else {
        return (DEFAULT_REGISTRY, text);
    };
    let is_host = first.contains(['.', ':'])
        || first == "localhost"
        || first.bytes().any(|b| b.is_ascii_uppercase());
    match is_host {
        true => (canonical_registry(first), rest),
        false => (DEFAULT_REGISTRY, text),
    }
}

/// The name by which a host is known: Docker Hub has several.
pub(crate) fn canonical_registry(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        host => host,
    }
}

fn check_registry(registry: &str) -> Result<(), Problem> {
    let wrong = || Problem::Registry(registry.to_owned());
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    };
    if let Some(port) = port {
        port.parse::<u16>().map_err(|_| wrong())?;
    }
    if let Some(address) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        return address
            .parse::<std::net::Ipv6Addr>()
            .map(|_| ())
            .map_err(|_| wrong());
    }
    let good_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.split('.').all(good_label) {
        Ok(())
    } else {
        Err(wrong())
    }
}

fn check_name(name: &str) -> Result<(), Problem> {
    if name.len() > 255 {
        return Err(Problem::TooLong);
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(Problem::UpperCase(name.to_lowercase()));
    }
    match name.split('/').find(|part| !is_name_part(part)) {
        Some(part) => Err(Problem::Name(part.to_owned())),
        None => Ok(()),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_name_part(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let separators_are_good = part
        .split(|c: char| c.is_ascii() && alphanumeric(c as u8))
        .all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|b| b == b'-'));
    match part.as_bytes() {
        [] => false,
        [first, .., last] => alphanumeric(*first) && alphanumeric(*last) && separators_are_good,
        [only] => alphanumeric(*only),
    }
}

pub(crate) fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

fn check_tag(tag: &str) -> Result<(), Problem> {
    if is_tag(tag) {
        Ok(())
    } else {
        Err(Problem::Tag(tag.to_owned()))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_mean_what_docker_means_by_them() {
        for (text, full) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("team/app", "docker.io/team/app:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            (
                "index.docker.io/library/alpine",
                "docker.io/library/alpine:latest",
            ),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("[::1]:5000/app:v1", "[::1]:5000/app:v1"),
            ("[::1]/app", "[::1]/app:latest"),
            ("127.0.0.1:5000/a/b/c:v1", "127.0.0.1:5000/a/b/c:v1"),
            ("ghcr.io/a--b/c__d/e.f", "ghcr.io/a--b/c__d/e.f:latest"),
        ] {
            let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(reference.to_string(), full);
            assert_eq!(full.parse(), Ok(reference), "{full} parses to itself");
        }
    }

    #[test]
    fn a_digest_replaces_the_default_tag_but_not_a_given_one() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let pinned: Reference = format!("alpine@{digest}").parse().unwrap();
        assert_eq!((pinned.tag(), pinned.selector()), (None, digest.as_str()));
        let both: Reference = format!("alpine:3.20@{digest}").parse().unwrap();
        assert_eq!(
            (both.tag(), both.selector()),
            (Some("3.20"), digest.as_str())
        );
    }

    #[test]
    fn an_error_says_what_is_wrong_and_gives_an_example() {
        for (text, part) in [
            ("", "it is empty"),
            ("Alpine", "must be lower case, \"library/alpine\""),
            ("ghcr.io/Team/app", "must be lower case, \"team/app\""),
            ("https://ghcr.io/team/app", "leave out \"https://\""),
            ("alpine:", "a tag is made of"),
            ("alpine:-1", "a tag is made of"),
            ("a//b", "which \"\" is not"),
            ("a/../b", "which \"..\" is not"),
            ("a._b", "which \"a._b\" is not"),
            ("a b", "which \"a b\" is not"),
            ("bad_host.io:x/app", "not a registry's host name"),
            ("[zz]:5000/app", "not a registry's host name"),
            ("alpine@sha256:12", "64 hexadecimal digits"),
            (&"ab".repeat(32), "write REPOSITORY@sha256:"),
            (&"a/".repeat(130), "longer than 255"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(error.contains("examples: alpine"), "{error}");
        }
    }
}
