//! With what a registry is asked for an image that no pod uses.
//!
//! A pod's volume brings its credentials along, from kubelet. Here nobody does, and this plugin may read no secrets but those
//! that an admin names for it: of an image's pull secrets these are used, and without any the registry is asked
//! anonymously.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::api::core::v1::Secret as KubeSecret;
use kube::{Api, Client};
use serde_json::{Map, Value};

use super::wishes::{ImageId, Wish};
use crate::wire::{Login, Secret};

/// The key under which a `kubernetes.io/dockerconfigjson` secret keeps its content.
const DOCKER_CONFIG_KEY: &str = ".dockerconfigjson";

/// The name of a secret that may be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretId {
    namespace: String,
    name: String,
}

/// The secrets that may be read.
pub enum PullSecrets {
    /// These, of a cluster.
    Cluster(Client, BTreeSet<SecretId>),
    /// Files: without a cluster (`--clipimages-from`).
    Files,
}

/// What is known for an image.
#[derive(Debug)]
pub struct Known {
    /// To be shown to its registry.
    pub login: Login,
    /// What to say if the registry refuses that; may be empty.
    pub hint: String,
}

impl PullSecrets {
    /// What there is for an image. A secret that cannot be read is logged, and left out.
    pub async fn login(&self, image: &ImageId, wish: &Wish) -> Known {
        let (mut configs, mut not_permitted) = (Vec::new(), Vec::new());
        for name in &wish.pull_secrets {
            match self.read(image, name).await {
                Ok(Some(config)) => configs.push(config),
                Ok(None) => not_permitted.push(format!("{}/{name}", image.namespace)),
                Err(error) => {
                    tracing::warn!(%image, secret = name, %error, "the pull secret is not used");
                }
            }
        }
        Known {
            login: merged(&configs).map_or(Login::Anonymous, Login::DockerConfigJson),
            hint: hint(&not_permitted),
        }
    }

    /// The docker configuration in a secret; none if it may not be read.
    async fn read(&self, image: &ImageId, name: &str) -> anyhow::Result<Option<String>> {
        let (client, permitted) = match self {
            PullSecrets::Files => return Ok(Some(tokio::fs::read_to_string(name).await?)),
            PullSecrets::Cluster(client, permitted) => (client, permitted),
        };
        let id = SecretId {
            namespace: image.namespace.clone(),
            name: name.to_owned(),
        };
        if !permitted.contains(&id) {
            return Ok(None);
        }
        let secrets: Api<KubeSecret> = Api::namespaced(client.clone(), &image.namespace);
        let content = secrets.get(name).await?.data.unwrap_or_default();
        let config = content
            .get(DOCKER_CONFIG_KEY)
            .ok_or_else(|| anyhow::anyhow!("it has no {DOCKER_CONFIG_KEY}"))?;
        Ok(Some(String::from_utf8(config.0.clone())?))
    }
}

impl fmt::Debug for PullSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PullSecrets")
    }
}

impl FromStr for SecretId {
    type Err = String;

    fn from_str(text: &str) -> Result<SecretId, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(SecretId {
                namespace: namespace.into(),
                name: name.into(),
            }),
            _ => Err(format!("{text:?} is no secret: write NAMESPACE/NAME")),
        }
    }
}

fn hint(not_permitted: &[String]) -> String {
    match not_permitted {
        [] => String::new(),
        secrets => format!(
            "; nodes may not read the pull secret {}: name it in the chart's value csiNode.warmUp.pullSecrets",
            secrets.join(", ")
        ),
    }
}

/// One docker configuration out of several. Of two entries for one registry the first counts.
fn merged(configs: &[String]) -> Option<Secret> {
    let mut auths = Map::new();
    for config in configs {
        let Ok(Value::Object(mut config)) = serde_json::from_str(config) else {
            tracing::warn!("a pull secret is no docker configuration, and is not used");
            continue;
        };
        if let Some(Value::Object(entries)) = config.remove("auths") {
            for (host, entry) in entries {
                auths.entry(host).or_insert(entry);
            }
        }
    }
    let config = serde_json::json!({"auths": &auths});
    (!auths.is_empty()).then(|| Secret(config.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_pull_secrets_each_gives_the_registries_it_knows() {
        let configs = [
            r#"{"auths": {"a.io": {"auth": "MQ=="}}}"#,
            "no configuration",
            r#"{"auths": {"a.io": {"auth": "Mg=="}, "b.io": {"auth": "Mw=="}}}"#,
        ];
        let Secret(config) = merged(&configs.map(str::to_owned)).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        let auth = |host: &str| config["auths"][host]["auth"].clone();
        assert_eq!((auth("a.io"), auth("b.io")), ("MQ==".into(), "Mw==".into()));
        assert_eq!(merged(&["{}".to_owned()]), None);
    }

    #[test]
    fn a_secret_has_a_namespace_and_a_name() {
        assert!("team-a/regcred".parse::<SecretId>().is_ok());
        for text in ["regcred", "/regcred", "team-a/", ""] {
            assert!(text.parse::<SecretId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_refusal_says_which_secret_nobody_let_the_nodes_read() {
        assert_eq!(hint(&[]), "");
        let hint = hint(&["team-a/regcred".to_owned()]);
        assert!(hint.contains("team-a/regcred") && hint.contains("csiNode.warmUp.pullSecrets"));
    }
}
