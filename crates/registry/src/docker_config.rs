//! One docker configuration: `auths`, `credHelpers` and `credsStore`.

use std::path::{Path, PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde_json::{Map, Value};

use crate::credentials::Login;
use crate::error::{CredentialError, CredentialOrigin};
use crate::key_match::{key_matches, strip_scheme};
use crate::reference::{DEFAULT_REGISTRY, Repository};

/// Parsed, and known by where it came from.
#[derive(Clone)]
pub(crate) struct DockerConfig {
    pub origin: CredentialOrigin,
    json: Map<String, Value>,
}

/// Without the secrets: clients are printed into logs.
impl std::fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DockerConfig({})", self.origin)
    }
}

/// The key of Docker Hub in docker's configuration.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

impl DockerConfig {
    pub(crate) fn read(path: &Path) -> Result<DockerConfig, CredentialError> {
        let origin = CredentialOrigin::File(path.to_owned());
        let content = std::fs::read(path).map_err(|e| config_error(&origin, e.to_string()))?;
        DockerConfig::parse(origin, &content)
    }

    pub(crate) fn parse(
        origin: CredentialOrigin,
        content: &[u8],
    ) -> Result<DockerConfig, CredentialError> {
        let json: Map<String, Value> = serde_json::from_slice(content).map_err(|e| {
            config_error(
                &origin,
                format!(
                    "it must be a JSON object like {{\"auths\": {{…}}}}: line {}",
                    e.line()
                ),
            )
        })?;
        Ok(DockerConfig { origin, json })
    }

    /// The longest key under `auths` that matches and holds something.
    pub(crate) fn best_key(&self, repository: &Repository) -> Option<String> {
        let auths = self.json.get("auths")?.as_object()?;
        auths
            .iter()
            .filter(|(key, auth)| key_matches(key, repository) && holds_something(auth))
            .map(|(key, _)| key.clone())
            .max_by_key(|key| strip_scheme(key).len())
    }

    /// The key under `credHelpers` that names this registry.
    pub(crate) fn helper_key(&self, repository: &Repository) -> Option<String> {
        let helpers = self.json.get("credHelpers")?.as_object()?;
        let mut keys = helpers.keys();
        keys.find(|key| key_matches(key, repository)).cloned()
    }

    /// Whether a helper keeps the credentials of all registries.
    pub(crate) fn has_store(&self) -> bool {
        self.json.contains_key("credsStore")
    }

    /// The configuration with one entry under `auths` and nothing else, so that no other can be taken for it.
    pub(crate) fn only(&self, key: &str) -> DockerConfig {
        let entry = self.json["auths"][key].clone();
        self.with("auths", serde_json::json!({ key: entry }))
    }

    /// The configuration with one of its parts.
    pub(crate) fn reduced(&self, part: &str) -> DockerConfig {
        self.with(part, self.json.get(part).cloned().unwrap_or_default())
    }

    fn with(&self, part: &str, value: Value) -> DockerConfig {
        DockerConfig {
            origin: self.origin.clone(),
            json: Map::from_iter([(part.to_owned(), value)]),
        }
    }

    /// What the configuration holds under `key`, or what a helper says to it.
    pub(crate) async fn login(
        &self,
        key: String,
        registry: &str,
    ) -> Result<Option<Login>, CredentialError> {
        let json = Value::Object(self.json.clone()).to_string();
        let lookup = move || docker_credential::get_credential_from_reader(json.as_bytes(), &key);
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
            origin: place(&self.origin),
            cause,
        })
    }
}

/// Docker's own configuration file.
pub(crate) fn default_path() -> Option<PathBuf> {
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

/// What docker calls a registry when it asks a helper.
pub(crate) fn server_key(registry: &str) -> String {
    if registry == DEFAULT_REGISTRY {
        DOCKER_HUB_KEY.to_owned()
    } else {
        registry.to_owned()
    }
}
