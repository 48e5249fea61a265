//! containerd's registry host configuration: `DIR/HOST/hosts.toml`, for example of a mirror of Docker Hub:
//!
//! ```toml
//! server = "https://registry-1.docker.io"
//!
//! [host."http://mirror.internal:5000"]
//!   capabilities = ["pull", "resolve"]
//! ```
//!
//! <https://github.com/containerd/containerd/blob/main/docs/hosts.md>. A folder is looked for as `HOST:PORT`, `HOST_PORT_`
//! and `_default`. Understood are `server`, and for it and each host `capabilities`, `ca`, `client`, `skip_verify`,
//! `override_path`, `header` and `dial_timeout`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml_edit::{DocumentMut, Item, TableLike};

use crate::client_certificates::KeyPair;
use crate::http::is_loopback;

/// What a `hosts.toml` says.
#[derive(Debug)]
pub(crate) struct HostsToml {
    /// In the order in which they are to be asked.
    pub mirrors: Vec<HostEntry>,
    /// In place of the registry itself.
    pub server: Option<HostEntry>,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostEntry {
    /// The root of its API, with `/` at the end: `https://HOST/v2/`.
    pub api: Url,
    /// Blobs, and manifests by digest.
    pub pull: bool,
    /// Manifests by tag.
    pub resolve: bool,
    pub ca: Vec<PathBuf>,
    pub client: Vec<KeyPair>,
    pub skip_verify: bool,
    pub headers: HeaderMap,
    pub dial_timeout: Option<Duration>,
}

/// The file for `registry`, if there is one.
pub(crate) fn path_for(dir: &Path, registry: &str) -> Option<PathBuf> {
    // A colon is not allowed in names on Windows, so containerd takes this, too.
    let without_colon = registry
        .rsplit_once(':')
        .map(|(host, port)| format!("{host}_{port}_"));
    [
        Some(registry.to_owned()),
        without_colon,
        Some("_default".to_owned()),
    ]
    .into_iter()
    .flatten()
    .map(|name| dir.join(name).join("hosts.toml"))
    .find(|path| path.is_file())
}

/// Parses `text`; relative paths in it begin at `dir`. The error says what cannot be understood.
pub(crate) fn parse(text: &str, dir: &Path) -> Result<HostsToml, String> {
    let document: DocumentMut = text
        .parse()
        .map_err(|e: toml_edit::TomlError| e.to_string())?;
    let server = match document.get("server") {
        None => None,
        Some(server) => {
            let address = server.as_str().ok_or("`server` is no string")?;
            Some(entry(address, document.as_table(), dir)?)
        }
    };
    let mut mirrors = Vec::new();
    if let Some(hosts) = document.get("host").and_then(Item::as_table_like) {
        for (address, host) in hosts.iter() {
            let table = host
                .as_table_like()
                .ok_or_else(|| format!("host {address:?} is no table"))?;
            mirrors.push(entry(address, table, dir)?);
        }
    }
    Ok(HostsToml { mirrors, server })
}

fn entry(address: &str, table: &dyn TableLike, dir: &Path) -> Result<HostEntry, String> {
    let capabilities = strings(table, "capabilities")?;
    let can = |what: &str| capabilities.is_empty() || capabilities.iter().any(|c| c == what);
    let paths = strings(table, "ca")?;
    Ok(HostEntry {
        api: api(address, is_set(table, "override_path")?)?,
        pull: can("pull"),
        resolve: can("resolve"),
        ca: paths.iter().map(|path| dir.join(path)).collect(),
        client: client(table, dir)?,
        skip_verify: is_set(table, "skip_verify")?,
        headers: headers(table)?,
        dial_timeout: dial_timeout(table)?,
    })
}

/// A path, an array of paths, or an array of pairs of paths. One path is that of certificate and key together, also when
/// it stands in an array with others, or in a pair with nothing.
fn client(table: &dyn TableLike, dir: &Path) -> Result<Vec<KeyPair>, String> {
    let wrong = || {
        "`client` is no path, no array of paths and no array of pairs [\"CERT\", \"KEY\"]"
            .to_owned()
    };
    let pair = |certificate: &str, key: &str| KeyPair {
        certificate: dir.join(certificate),
        key: dir.join(if key.is_empty() { certificate } else { key }),
    };
    let Some(item) = table.get("client") else {
        return Ok(Vec::new());
    };
    if let Some(path) = item.as_str() {
        return Ok(vec![pair(path, "")]);
    }
    let entries = item.as_array().ok_or_else(wrong)?.iter();
    let pairs = entries.map(|entry| match entry.as_array() {
        None => Some(pair(entry.as_str()?, "")),
        Some(two) if two.len() == 2 => Some(pair(two.get(0)?.as_str()?, two.get(1)?.as_str()?)),
        Some(_) => None,
    });
    pairs.collect::<Option<_>>().ok_or_else(wrong)
}

impl HostEntry {
    /// The files that it names.
    pub(crate) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let pairs = self.client.iter();
        self.ca
            .iter()
            .chain(pairs.flat_map(|pair| [&pair.certificate, &pair.key]))
    }
}

/// The root of the API. Without a scheme it is HTTPS, but on this machine.
fn api(address: &str, override_path: bool) -> Result<Url, String> {
    let full = match address.contains("://") {
        true => address.to_owned(),
        false if is_loopback(address) => format!("http://{address}"),
        false => format!("https://{address}"),
    };
    let mut url = Url::parse(&full).map_err(|e| format!("{address:?}: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(format!("{address:?} is no http:// or https:// address"));
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&match override_path || path.ends_with("/v2") {
        true => format!("{path}/"),
        false => format!("{path}/v2/"),
    });
    Ok(url)
}

fn is_set(table: &dyn TableLike, key: &str) -> Result<bool, String> {
    match table.get(key) {
        None => Ok(false),
        Some(value) => value
            .as_bool()
            .ok_or_else(|| format!("`{key}` is neither true nor false")),
    }
}

/// A string, or an array of strings; nothing is none.
fn strings(table: &dyn TableLike, key: &str) -> Result<Vec<String>, String> {
    table.get(key).map_or(Ok(Vec::new()), |item| {
        texts(item).ok_or_else(|| format!("`{key}` is no string and no array of strings"))
    })
}

fn texts(item: &Item) -> Option<Vec<String>> {
    if let Some(text) = item.as_str() {
        return Some(vec![text.to_owned()]);
    }
    let values = item.as_array()?.iter();
    values
        .map(|value| value.as_str().map(str::to_owned))
        .collect()
}

fn headers(table: &dyn TableLike) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let entries = table.get("header").and_then(Item::as_table_like);
    for (name, item) in entries.into_iter().flat_map(TableLike::iter) {
        let wrong = || format!("header {name:?} is none");
        let values = texts(item).ok_or_else(wrong)?;
        let key: HeaderName = name.parse().map_err(|_| wrong())?;
        for value in values {
            let mut value = HeaderValue::from_str(&value).map_err(|_| wrong())?;
            // Often a credential.
            value.set_sensitive(true);
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}

/// Go's notation: `3s`, `500ms`.
fn dial_timeout(table: &dyn TableLike) -> Result<Option<Duration>, String> {
    let Some(item) = table.get("dial_timeout") else {
        return Ok(None);
    };
    let wrong = || "`dial_timeout` is no time such as \"3s\" or \"500ms\"".to_owned();
    let text = item.as_str().ok_or_else(wrong)?;
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s').ok_or_else(wrong)?, 1.0),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * unit)
        .map(Some)
        .map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> HostsToml {
        parse(text, Path::new("/etc/hosts.d/docker.io")).unwrap()
    }

    #[test]
    fn hosts_keep_their_order_and_their_words() {
        let text = r#"
            server = "https://registry-1.docker.io"
            [host."https://z.internal:5000"]
              capabilities = ["pull"]
              ca = "z.pem"
              dial_timeout = "500ms"
              [host."https://z.internal:5000".header]
                x-token = ["a", "b"]
            [host."http://a.internal/prefix"]
              skip_verify = true
            [host."b.internal/api/x"]
              override_path = true
            [host."localhost:5001"]
        "#;
        let hosts = parsed(text);
        let apis: Vec<_> = hosts.mirrors.iter().map(|host| host.api.as_str()).collect();
        assert_eq!(
            apis,
            [
                "https://z.internal:5000/v2/",
                "http://a.internal/prefix/v2/",
                "https://b.internal/api/x/",
                "http://localhost:5001/v2/",
            ]
        );
        let [z, a, ..] = &hosts.mirrors[..] else {
            panic!()
        };
        assert!(z.pull && !z.resolve && a.pull && a.resolve && a.skip_verify);
        assert_eq!(z.ca, [Path::new("/etc/hosts.d/docker.io/z.pem")]);
        assert_eq!(z.headers.get_all("x-token").iter().count(), 2);
        assert_eq!(z.dial_timeout, Some(Duration::from_millis(500)));
        let server = hosts.server.unwrap();
        assert_eq!(server.api.as_str(), "https://registry-1.docker.io/v2/");
    }

    #[test]
    fn client_certificates_are_files_or_pairs_of_files() {
        for (written, pairs) in [
            (r#""a.pem""#, vec![("a.pem", "a.pem")]),
            (
                r#"["a.pem", "b.pem"]"#,
                vec![("a.pem", "a.pem"), ("b.pem", "b.pem")],
            ),
            (
                r#"[["a.cert", "a.key"], ["b.pem", ""], "c.pem"]"#,
                vec![("a.cert", "a.key"), ("b.pem", "b.pem"), ("c.pem", "c.pem")],
            ),
            (r#"["/etc/a.pem"]"#, vec![("/etc/a.pem", "/etc/a.pem")]),
            ("[]", vec![]),
        ] {
            let hosts = parsed(&format!("[host.\"x\"]\nclient = {written}"));
            let dir = Path::new("/etc/hosts.d/docker.io");
            let expected = pairs.into_iter().map(|(certificate, key)| KeyPair {
                certificate: dir.join(certificate),
                key: dir.join(key),
            });
            let expected: Vec<_> = expected.collect();
            assert_eq!(hosts.mirrors[0].client, expected, "{written}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, named) in [
            ("server = 7", "server"),
            ("[host.\"ftp://x\"]", "ftp://x"),
            ("[host.\"x\"]\nskip_verify = \"yes\"", "skip_verify"),
            ("[host.\"x\"]\ncapabilities = 3", "capabilities"),
            ("[host.\"x\"]\ndial_timeout = \"soon\"", "dial_timeout"),
            ("[host.\"x\"]\nclient = 1", "client"),
            ("[host.\"x\"]\nclient = [[\"a\"]]", "client"),
            ("[host.\"x\"]\nclient = [[\"a\", \"b\", \"c\"]]", "client"),
            ("[host", "TOML"),
        ] {
            let error = parse(text, Path::new("/")).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn a_folder_is_found_by_all_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("hosts.toml"), "").unwrap();
        };
        let found = |registry: &str| {
            let path = path_for(dir.path(), registry)?;
            Some(path.parent()?.file_name()?.to_str()?.to_owned())
        };
        assert_eq!(found("a:5000"), None);
        for name in ["_default", "a_5000_", "a:5000"] {
            make(name);
            assert_eq!(found("a:5000").as_deref(), Some(name));
        }
        assert_eq!(found("b").as_deref(), Some("_default"));
    }
}
