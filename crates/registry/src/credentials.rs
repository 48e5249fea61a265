//! Which credential a registry gets.
//!
//! Sources are docker configuration files, with their helpers, and the content of `kubernetes.io/dockerconfigjson`
//! secrets. The keys under `auths` are matched as kubelet does: `*.example.com` matches a host with as many parts,
//! `example.com/team` only images below that path, the longest key wins. Decoding and running helpers is
//! `docker_credential`'s work.

use std::path::{Path, PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde_json::{Map, Value};

use crate::error::{CredentialError, CredentialOrigin};
use crate::reference::{DEFAULT_REGISTRY, Repository};

/// Where to look for a user name and password, or a token.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// Nowhere.
    Anonymous,
    /// A docker configuration file. `None` is `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`, which need not
    /// exist; a file that is named must.
    DockerConfig(Option<PathBuf>),
    /// The contents of `kubernetes.io/dockerconfigjson` secrets; of equally good matches the first counts.
    DockerConfigJson(Vec<String>),
    /// For every registry.
    Basic {
        /// The user name.
        username: String,
        /// The password.
        password: String,
    },
}

impl Default for Credentials {
    fn default() -> Credentials {
        Credentials::DockerConfig(None)
    }
}

/// What to show a registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Login {
    Password { username: String, password: String },
    IdentityToken(String),
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login(…)")
    }
}

/// Docker configurations, parsed, in the order in which they count.
#[derive(Debug)]
pub(crate) struct CredentialStore {
    given: Option<Login>,
    configs: Vec<Config>,
}

#[derive(Debug, Clone)]
struct Config {
    origin: CredentialOrigin,
    json: Map<String, Value>,
}

/// The key of Docker Hub in docker's configuration.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

impl CredentialStore {
    pub(crate) fn new(credentials: &Credentials) -> Result<CredentialStore, CredentialError> {
        let mut store = CredentialStore {
            given: None,
            configs: Vec::new(),
        };
        match credentials {
            Credentials::Anonymous => {}
            Credentials::Basic { username, password } => {
                store.given = Some(Login::Password {
                    username: username.clone(),
                    password: password.clone(),
                });
            }
            Credentials::DockerConfig(Some(path)) => store.configs.push(Config::read(path)?),
            Credentials::DockerConfig(None) => {
                let path = default_path().filter(|path| path.exists());
                store
                    .configs
                    .extend(path.map(|path| Config::read(&path)).transpose()?);
            }
            Credentials::DockerConfigJson(contents) => {
                for content in contents {
                    store
                        .configs
                        .push(Config::parse(CredentialOrigin::Secret, content.as_bytes())?);
                }
            }
        }
        Ok(store)
    }

    /// The credential for a repository. Runs a helper if the configuration names one.
    pub(crate) async fn find(
        &self,
        repository: &Repository,
    ) -> Result<Option<(Login, CredentialOrigin)>, CredentialError> {
        if let Some(login) = &self.given {
            return Ok(Some((login.clone(), CredentialOrigin::Given)));
        }
        let matches = self
            .configs
            .iter()
            .filter_map(|config| Some((config, config.best_key(repository)?)));
        // Of equally long keys the first counts, so compare from behind: max_by_key returns the last.
        let best = matches.rev().max_by_key(|(_, key)| strip_scheme(key).len());
        if let Some((config, key)) = best {
            if let Some(login) = decode(
                config.only(&key),
                key.clone(),
                &config.origin,
                repository.registry(),
            )
            .await?
            {
                return Ok(Some((login, config.origin.clone())));
            }
        }
        for config in self.configs.iter().filter(|config| config.has_helpers()) {
            let key = server_key(repository.registry());
            let found = decode(
                config.helpers_only(),
                key,
                &config.origin,
                repository.registry(),
            )
            .await?;
            if let Some(login) = found {
                return Ok(Some((login, config.origin.clone())));
            }
        }
        Ok(None)
    }
}

impl Config {
    fn read(path: &Path) -> Result<Config, CredentialError> {
        let origin = CredentialOrigin::File(path.to_owned());
        let content = std::fs::read(path).map_err(|e| config_error(&origin, e.to_string()))?;
        Config::parse(origin, &content)
    }

    fn parse(origin: CredentialOrigin, content: &[u8]) -> Result<Config, CredentialError> {
        let json: Map<String, Value> = serde_json::from_slice(content).map_err(|e| {
            config_error(
                &origin,
                format!(
                    "it must be a JSON object like {{\"auths\": {{…}}}}: line {}",
                    e.line()
                ),
            )
        })?;
        Ok(Config { origin, json })
    }

    /// The longest key under `auths` that matches and holds something.
    fn best_key(&self, repository: &Repository) -> Option<String> {
        let auths = self.json.get("auths")?.as_object()?;
        auths
            .iter()
            .filter(|(key, auth)| key_matches(key, repository) && holds_something(auth))
            .map(|(key, _)| key.clone())
            .max_by_key(|key| strip_scheme(key).len())
    }

    /// The configuration reduced to one entry, so that no other can be taken for it.
    fn only(&self, key: &str) -> Value {
        serde_json::json!({ "auths": { key: self.json["auths"][key] } })
    }

    fn has_helpers(&self) -> bool {
        self.json.contains_key("credsStore") || self.json.contains_key("credHelpers")
    }

    fn helpers_only(&self) -> Value {
        let mut json = self.json.clone();
        json.remove("auths");
        Value::Object(json)
    }
}

async fn decode(
    json: Value,
    server: String,
    origin: &CredentialOrigin,
    registry: &str,
) -> Result<Option<Login>, CredentialError> {
    let lookup =
        move || docker_credential::get_credential_from_reader(json.to_string().as_bytes(), &server);
    // A helper is a process that may ask a cloud's API.
    let found = tokio::task::spawn_blocking(lookup).await;
    let cause = match found {
        Ok(Ok(DockerCredential::UsernamePassword(username, password))) => {
            return Ok(Some(Login::Password { username, password }));
        }
        Ok(Ok(DockerCredential::IdentityToken(token))) => {
            return Ok(Some(Login::IdentityToken(token)));
        }
        Ok(Err(CredentialRetrievalError::NoCredentialConfigured)) => return Ok(None),
        // This is how a helper says that it has none.
        Ok(Err(CredentialRetrievalError::HelperFailure { stdout, stderr, .. }))
            if format!("{stdout}{stderr}").contains("credentials not found") =>
        {
            return Ok(None);
        }
        Ok(Err(error)) => error.to_string().trim().replace('\n', " "),
        Err(error) => error.to_string(),
    };
    Err(CredentialError::Helper {
        registry: registry.to_owned(),
        origin: place(origin),
        cause,
    })
}

fn default_path() -> Option<PathBuf> {
    let dir = std::env::var_os("DOCKER_CONFIG")
        .filter(|d| !d.is_empty())
        .map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker"));
    Some(dir.or_else(home)?.join("config.json"))
}

fn config_error(origin: &CredentialOrigin, cause: String) -> CredentialError {
    CredentialError::Config {
        origin: place(origin),
        cause,
    }
}

fn place(origin: &CredentialOrigin) -> String {
    match origin {
        CredentialOrigin::File(path) => path.display().to_string(),
        _ => "the pull secret".to_owned(),
    }
}

/// `docker login` leaves an empty entry when a helper keeps the secret.
fn holds_something(auth: &Value) -> bool {
    ["auth", "username", "identitytoken"].iter().any(|field| {
        auth.get(field)
            .and_then(Value::as_str)
            .is_some_and(|text| !text.is_empty())
    })
}

fn server_key(registry: &str) -> String {
    if registry == DEFAULT_REGISTRY {
        DOCKER_HUB_KEY.to_owned()
    } else {
        registry.to_owned()
    }
}

fn strip_scheme(key: &str) -> &str {
    key.strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key)
}

fn key_matches(key: &str, repository: &Repository) -> bool {
    let key = strip_scheme(key).trim_end_matches('/');
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        host => host,
    };
    let below = |path: &str| {
        repository
            .name()
            .strip_prefix(path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    host_matches(host, repository.registry()) && (matches!(path, "" | "v1" | "v2") || below(path))
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn user_for(configs: &[&str], image: &str) -> Option<String> {
        let contents = configs.iter().map(|c| (*c).to_owned()).collect();
        let store = CredentialStore::new(&Credentials::DockerConfigJson(contents)).unwrap();
        let reference: crate::Reference = image.parse().unwrap();
        match store.find(reference.in_repository()).await.unwrap()?.0 {
            Login::Password { username, .. } => Some(username),
            Login::IdentityToken(token) => Some(format!("token {token}")),
        }
    }

    #[tokio::test]
    async fn the_longest_key_that_matches_wins() {
        let config = r#"{"auths": {
            "ghcr.io": {"username": "host", "password": "x"},
            "ghcr.io/team": {"username": "team", "password": "x"},
            "*.dkr.example.com": {"username": "glob", "password": "x"},
            "https://index.docker.io/v1/": {"auth": "aHViOng="},
            "localhost:5000": {"identitytoken": "abc"}
        }}"#;
        for (image, user) in [
            ("ghcr.io/other/app", Some("host")),
            ("ghcr.io/team/app", Some("team")),
            ("ghcr.io/teamster/app", Some("host")),
            ("a.dkr.example.com/app", Some("glob")),
            ("a.b.dkr.example.com/app", None),
            ("alpine", Some("hub")),
            ("localhost:5000/app", Some("token abc")),
            ("localhost:5001/app", None),
        ] {
            assert_eq!(user_for(&[config], image).await.as_deref(), user, "{image}");
        }
    }

    #[tokio::test]
    async fn of_several_secrets_the_first_of_equally_good_ones_counts() {
        let first = r#"{"auths": {"ghcr.io": {"username": "first", "password": "x"}}}"#;
        let second = r#"{"auths": {"ghcr.io": {"username": "second", "password": "x"},
                                   "ghcr.io/team": {"username": "team", "password": "x"}}}"#;
        assert_eq!(
            user_for(&[first, second], "ghcr.io/other/app")
                .await
                .as_deref(),
            Some("first")
        );
        assert_eq!(
            user_for(&[first, second], "ghcr.io/team/app")
                .await
                .as_deref(),
            Some("team")
        );
    }

    #[test]
    fn a_secret_that_is_not_json_is_refused_without_showing_it() {
        let credentials = Credentials::DockerConfigJson(vec!["hunter2".to_owned()]);
        let error = CredentialStore::new(&credentials).unwrap_err().to_string();
        assert!(
            error.contains("the pull secret") && !error.contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn a_named_configuration_must_exist() {
        let credentials = Credentials::DockerConfig(Some("/nonexistent/config.json".into()));
        let error = CredentialStore::new(&credentials).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/config.json"), "{error}");
    }
}
