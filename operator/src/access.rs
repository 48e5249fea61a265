//! Who may put and who may get an archive. Everything is asked of the apiserver; nothing is believed.
//!
//! * An upload comes from a Job: its token names a pod, the pod belongs to a Job, the Job to the ClipImage,
//!   and the Job is the one that the ClipImage's present spec asks for.
//! * A download comes from a node plugin: its token names the configured service account.
//!
//! Tokens are bound to the audience `clip-archives`: they are good for nothing else, and others are not good
//! for this.

use clip_crds::{ARCHIVES_AUDIENCE, ClipImage};
use k8s_openapi::{
    api::{
        authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
        batch::v1::Job,
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ObjectMeta, PostParams},
};

use crate::identity::{ANNOTATION_ATTEMPT, job_name};

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::str::FromStr for ServiceAccount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(Self {
                namespace: namespace.into(),
                name: name.into(),
            }),
            _ => Err(format!(
                "{text:?} is not NAMESPACE:NAME of a service account"
            )),
        }
    }
}

/// Whom a token belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The service account.
    pub account: ServiceAccount,
    /// Name and uid of the pod that the token is bound to.
    pub pod: Option<(String, String)>,
}

/// What an authorised upload is for.
#[derive(Debug)]
pub struct Ticket {
    /// The ClipImage.
    pub image: ClipImage,
    /// Its current Job.
    pub job: String,
}

/// Why a request is refused; the HTTP status is chosen in [`crate::archive_service`].
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// No `Authorization: Bearer`.
    #[error(
        "send a service account token of audience {ARCHIVES_AUDIENCE} as Authorization: Bearer"
    )]
    NoToken,
    /// Forged, expired, or for another audience.
    #[error("the token is not valid for audience {ARCHIVES_AUDIENCE}: {0}")]
    InvalidToken(String),
    /// A token of somebody who may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// The ClipImage is not there.
    #[error("there is no ClipImage {0}")]
    NoSuchImage(String),
    /// The ClipImage changed since the Job was started.
    #[error("{0}")]
    Superseded(String),
    /// The apiserver cannot be asked.
    #[error("the apiserver cannot be asked whether this is allowed: {0}")]
    Unavailable(#[from] kube::Error),
}

/// Asks the apiserver.
#[derive(Clone)]
pub struct Access {
    client: Client,
    node_account: ServiceAccount,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access")
            .field("node_account", &self.node_account)
            .finish_non_exhaustive()
    }
}

impl Access {
    /// `node_account` is the service account of the node plugin.
    pub fn new(client: Client, node_account: ServiceAccount) -> Self {
        Self {
            client,
            node_account,
        }
    }

    /// May this token download archives?
    ///
    /// # Errors
    /// When it may not, or the apiserver cannot be asked.
    pub async fn download(&self, token: &str) -> Result<(), AccessError> {
        let caller = self.review(token).await?;
        if caller.account == self.node_account {
            return Ok(());
        }
        let ServiceAccount { namespace, name } = caller.account;
        Err(AccessError::Forbidden(format!(
            "service account {namespace}/{name} may not download archives; only the node plugin may"
        )))
    }

    /// May this token upload the archive of this ClipImage?
    ///
    /// # Errors
    /// When it may not, or the apiserver cannot be asked.
    pub async fn upload(
        &self,
        token: &str,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
    ) -> Result<Ticket, AccessError> {
        let caller = self.review(token).await?;
        if caller.account.namespace != namespace {
            return Err(AccessError::Forbidden(format!(
                "a service account of namespace {} may not upload for namespace {namespace}",
                caller.account.namespace
            )));
        }
        let image = self.image(namespace, name, uid).await?;
        let pod = self.pod(namespace, caller.pod).await?;
        let job = self.job(namespace, &pod).await?;
        check_current(&job, &image)?;
        Ok(Ticket {
            image,
            job: job.name_any(),
        })
    }

    async fn review(&self, token: &str) -> Result<Caller, AccessError> {
        let review = TokenReview {
            metadata: ObjectMeta::default(),
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(vec![ARCHIVES_AUDIENCE.to_owned()]),
            },
            status: None,
        };
        let answer = Api::<TokenReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await?;
        let status = answer.status.unwrap_or_default();
        let audiences = status.audiences.unwrap_or_default();
        if status.authenticated != Some(true)
            || !audiences
                .iter()
                .any(|audience| audience == ARCHIVES_AUDIENCE)
        {
            let why = status.error.filter(|why| !why.is_empty());
            return Err(AccessError::InvalidToken(
                why.unwrap_or_else(|| "it was not recognised".into()),
            ));
        }
        caller(status.user.unwrap_or_default())
    }

    async fn image(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
    ) -> Result<ClipImage, AccessError> {
        let images = Api::<ClipImage>::namespaced(self.client.clone(), namespace);
        let found = images.get_opt(name).await?;
        let image = found.ok_or_else(|| AccessError::NoSuchImage(format!("{namespace}/{name}")))?;
        if uid.is_some_and(|uid| image.uid().as_deref() != Some(uid)) {
            return Err(AccessError::Superseded(format!(
                "ClipImage {namespace}/{name} was deleted and made anew since this Job was started"
            )));
        }
        Ok(image)
    }

    async fn pod(
        &self,
        namespace: &str,
        bound: Option<(String, String)>,
    ) -> Result<Pod, AccessError> {
        let unbound = || AccessError::Forbidden("the token is not bound to a pod".into());
        let (name, uid) = bound.ok_or_else(unbound)?;
        let pod = Api::<Pod>::namespaced(self.client.clone(), namespace)
            .get_opt(&name)
            .await?;
        let same = pod.filter(|pod| pod.uid().as_deref() == Some(uid.as_str()));
        same.ok_or_else(|| AccessError::Forbidden(format!("pod {name} of the token is gone")))
    }

    async fn job(&self, namespace: &str, pod: &Pod) -> Result<Job, AccessError> {
        let stranger = || {
            AccessError::Forbidden(format!(
                "pod {} does not belong to an indexing Job",
                pod.name_any()
            ))
        };
        let owner = controller_of(pod.meta())
            .filter(|owner| owner.kind == "Job")
            .ok_or_else(stranger)?;
        let job = Api::<Job>::namespaced(self.client.clone(), namespace)
            .get_opt(&owner.name)
            .await?;
        job.filter(|job| job.uid().as_deref() == Some(owner.uid.as_str()))
            .ok_or_else(stranger)
    }
}

/// A Job is current when its name is the one that the ClipImage's present spec gives it.
fn check_current(job: &Job, image: &ClipImage) -> Result<(), AccessError> {
    let (job_name_found, image_name) = (job.name_any(), image.name_any());
    let owned = controller_of(job.meta())
        .is_some_and(|owner| Some(&owner.uid) == image.metadata.uid.as_ref());
    if !owned {
        return Err(AccessError::Forbidden(format!(
            "Job {job_name_found} does not belong to ClipImage {image_name}"
        )));
    }
    let attempt = job
        .annotations()
        .get(ANNOTATION_ATTEMPT)
        .and_then(|attempt| attempt.parse().ok());
    if attempt.map(|attempt| job_name(image, attempt)) != Some(job_name_found.clone()) {
        return Err(AccessError::Superseded(format!(
            "ClipImage {image_name} was changed since Job {job_name_found} was started"
        )));
    }
    Ok(())
}

fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

/// `system:serviceaccount:NAMESPACE:NAME`, and the pod from the claims that the apiserver adds (KEP-1205, 4193).
fn caller(user: UserInfo) -> Result<Caller, AccessError> {
    let username = user.username.unwrap_or_default();
    let account = username
        .strip_prefix("system:serviceaccount:")
        .and_then(|account| account.parse().ok());
    let account = account
        .ok_or_else(|| AccessError::Forbidden(format!("{username} is not a service account")))?;
    let extra = user.extra.unwrap_or_default();
    let claim = |name: &str| {
        extra
            .get(&format!("authentication.kubernetes.io/{name}"))?
            .first()
            .cloned()
    };
    Ok(Caller {
        account,
        pod: claim("pod-name").zip(claim("pod-uid")),
    })
}
