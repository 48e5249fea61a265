//! Whether a key of docker's configuration means a repository.

use crate::reference::{Repository, canonical_registry};

pub(crate) fn strip_scheme(key: &str) -> &str {
    key.strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key)
}

/// Host and path as kubelet matches them; with or without a scheme and the API version that docker writes.
pub(crate) fn key_matches(key: &str, repository: &Repository) -> bool {
    let key = strip_scheme(key).trim_end_matches('/');
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let below = |path: &str| {
        repository
            .name()
            .strip_prefix(path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    host_matches(canonical_registry(host), repository.registry())
        && (matches!(path, "" | "v1" | "v2") || below(path))
}

/// Part by part between the dots, with `*` for any run of characters inside a part; ports must be equal.
fn host_matches(pattern: &str, registry: &str) -> bool {
    let split_port = |text: &str| match text.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => {
            (host.to_owned(), port.to_owned())
        }
        _ => (text.to_owned(), String::new()),
    };
    let (pattern, pattern_port) = split_port(pattern);
    let (host, port) = split_port(registry);
    let (patterns, parts): (Vec<_>, Vec<_>) =
        (pattern.split('.').collect(), host.split('.').collect());
    pattern_port == port
        && patterns.len() == parts.len()
        && patterns
            .iter()
            .zip(&parts)
            .all(|(pattern, part)| part_matches(pattern, part))
}

fn part_matches(pattern: &str, part: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == part,
        Some((prefix, rest)) => part.strip_prefix(prefix).is_some_and(|tail| {
            (0..=tail.len()).any(|i| tail.is_char_boundary(i) && part_matches(rest, &tail[i..]))
        }),
    }
}
