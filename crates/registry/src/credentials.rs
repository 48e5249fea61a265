//! Which credential a registry gets.
//!
//! Sources are docker configuration files, with their helpers, and the content of `kubernetes.io/dockerconfigjson`
//! secrets. The keys under `auths` are matched as kubelet does: `*.example.com` matches a host with as many parts,
//! `example.com/team` only images below that path, the longest key wins. Decoding and running helpers is
//! `docker_credential`'s work.

use std::path::PathBuf;

use crate::docker_config::{DockerConfig, default_path, server_key};
use crate::error::{CredentialError, CredentialOrigin};
use crate::key_match::strip_scheme;
use crate::reference::Repository;

/// Where to look for a user name and password, or a token.
#[derive(Clone)]
pub enum Credentials {
    /// Nowhere.
    Anonymous,
    /// A docker configuration file. `None` is `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`, which need not
    /// exist; a file that is named must.
    DockerConfig(Option<PathBuf>),
    /// The contents of `kubernetes.io/dockerconfigjson` secrets; of equally good matches the first counts. Helpers that
    /// they name are not run.
    DockerConfigJson(Vec<String>),
    /// For every registry, and every host that is asked in its place.
    Basic {
        /// The user name.
        username: String,
        /// The password.
        password: String,
    },
}

impl Credentials {
    /// Whether they can be read. Asks no registry, and runs no helper.
    pub fn check(&self) -> Result<(), CredentialError> {
        CredentialStore::new(self).map(drop)
    }
}

impl Default for Credentials {
    fn default() -> Credentials {
        Credentials::DockerConfig(None)
    }
}

/// Without the secrets: options are printed into logs.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Credentials::Anonymous => f.write_str("Anonymous"),
            Credentials::DockerConfig(path) => f.debug_tuple("DockerConfig").field(path).finish(),
            Credentials::DockerConfigJson(contents) => {
                write!(f, "DockerConfigJson({} secrets)", contents.len())
            }
            Credentials::Basic { username, .. } => write!(f, "Basic({username}, …)"),
        }
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
    configs: Vec<DockerConfig>,
}

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
            Credentials::DockerConfig(Some(path)) => store.configs.push(DockerConfig::read(path)?),
            Credentials::DockerConfig(None) => {
                let path = default_path().filter(|path| path.exists());
                store
                    .configs
                    .extend(path.map(|path| DockerConfig::read(&path)).transpose()?);
            }
            Credentials::DockerConfigJson(contents) => {
                for content in contents {
                    let config = DockerConfig::parse(CredentialOrigin::Secret, content.as_bytes())?;
                    // Who may write a secret may not thereby run programs: helpers count in files alone.
                    store.configs.push(config.reduced("auths"));
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
        for (config, key) in self.candidates(repository) {
            if let Some(login) = config.login(key, repository.registry()).await? {
                return Ok(Some((login, config.origin)));
            }
        }
        Ok(None)
    }

    /// Where to look, and by which name, in docker's order: a helper for this very registry, the entry that matches
    /// best, the store for everything.
    fn candidates(&self, repository: &Repository) -> Vec<(DockerConfig, String)> {
        let helpers = self.configs.iter().filter_map(|config| {
            let key = config.helper_key(repository)?;
            Some((config.reduced("credHelpers"), key))
        });
        let entries = self
            .configs
            .iter()
            .filter_map(|config| Some((config, config.best_key(repository)?)));
        // Of equally long keys the first counts; `max_by_key` returns the last, so it goes from behind.
        let entry = entries
            .rev()
            .max_by_key(|(_, key)| strip_scheme(key).len())
            .map(|(config, key)| (config.only(&key), key));
        let stores = self
            .configs
            .iter()
            .filter(|config| config.has_store())
            .map(|config| {
                (
                    config.reduced("credsStore"),
                    server_key(repository.registry()),
                )
            });
        helpers.chain(entry).chain(stores).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    async fn user_for(configs: &[&str], image: &str) -> Option<String> {
        let contents = configs.iter().map(|c| (*c).to_owned()).collect();
        let store = CredentialStore::new(&Credentials::DockerConfigJson(contents)).unwrap();
        user_in(&store, image).await
    }

    async fn user_in(store: &CredentialStore, image: &str) -> Option<String> {
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

    /// The helper must be found in `PATH`, which a test cannot change for itself: it runs itself again.
    #[tokio::test]
    async fn a_helper_is_asked_before_the_entries_and_a_store_after_them() {
        const AGAIN: &str = "CLIP_TEST_WITH_HELPERS";
        const NAME: &str =
            "credentials::tests::a_helper_is_asked_before_the_entries_and_a_store_after_them";
        if std::env::var_os(AGAIN).is_none() {
            let dir = tempfile::tempdir().unwrap();
            add_helper(
                dir.path(),
                "one",
                r#"{"Username":"from-helper","Secret":"x"}"#,
                0,
            );
            add_helper(
                dir.path(),
                "none",
                "credentials not found in native keychain",
                1,
            );
            add_helper(dir.path(), "broken", "no cloud today", 1);
            let path = format!(
                "{}:{}",
                dir.path().display(),
                std::env::var("PATH").unwrap()
            );
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", NAME])
                .env(AGAIN, "1")
                .env("PATH", path)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && text.contains("1 passed"),
                "{text}"
            );
            return;
        }
        let config = r#"{"credsStore": "none", "credHelpers": {"ghcr.io": "one", "bad.io": "broken"},
            "auths": {
                "ghcr.io": {"username": "from-entry", "password": "x"},
                "quay.io": {"username": "from-entry", "password": "x"}
            }}"#;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), config).unwrap();
        let credentials = Credentials::DockerConfig(Some(file.path().to_owned()));
        let store = CredentialStore::new(&credentials).unwrap();
        let user = async |image| user_in(&store, image).await;
        assert_eq!(user("ghcr.io/app").await.as_deref(), Some("from-helper"));
        assert_eq!(user("quay.io/app").await.as_deref(), Some("from-entry"));
        assert_eq!(user("alpine").await, None);

        let in_a_secret = user_for(&[config], "ghcr.io/app").await;
        assert_eq!(
            in_a_secret.as_deref(),
            Some("from-entry"),
            "secrets run nothing"
        );

        let reference: crate::Reference = "bad.io/app".parse().unwrap();
        let error = store.find(reference.in_repository()).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("bad.io") && text.contains("no cloud today"),
            "{text}"
        );
    }

    fn add_helper(dir: &Path, name: &str, says: &str, code: i32) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = dir.join(format!("docker-credential-{name}"));
        let script = format!("#!/bin/sh\ncat >/dev/null\necho '{says}'\nexit {code}\n");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_secret_that_is_not_json_is_refused_without_showing_it() {
        let credentials = Credentials::DockerConfigJson(vec!["hunter2".to_owned()]);
        let error = credentials.check().unwrap_err().to_string();
        assert!(
            error.contains("the pull secret") && !error.contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn what_is_printed_for_debugging_holds_no_secret() {
        let json = r#"{"auths": {"ghcr.io": {"username": "u", "password": "hunter2"}}}"#;
        for credentials in [
            Credentials::DockerConfigJson(vec![json.to_owned()]),
            Credentials::Basic {
                username: "u".to_owned(),
                password: "hunter2".to_owned(),
            },
        ] {
            let store = CredentialStore::new(&credentials).unwrap();
            let text = format!("{credentials:?} {store:?}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn a_named_configuration_must_exist() {
        let credentials = Credentials::DockerConfig(Some("/nonexistent/config.json".into()));
        let error = CredentialStore::new(&credentials).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/config.json"), "{error}");
    }
}
