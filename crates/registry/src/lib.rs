//! Images and where they live: references, manifests, credentials, byte ranges, artifacts.
//!
//! [`Client::resolve`] turns `alpine` and a [`Platform`] into a manifest, a configuration and layers, all checked
//! against their digests. A [`BlobSource`] then reads the layers' bytes, whole or any range. [`push_artifact`] and
//! [`fetch_artifact`] publish and fetch archives. Everything goes through one client with one authentication flow
//! (`client.rs`, `auth.rs`).
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use clip_registry::{Client, ClientOptions, ImageSource, Platform};
//!
//! let client = Client::new(ClientOptions::default())?;
//! let source: ImageSource = "python:3.12".parse()?;
//! let image = client.resolve(&source, &Platform::host()).await?;
//! let tail = client.blobs(&image).range(&image.layers[0].digest, 0..4096).await?;
//! # Ok(())
//! # }
//! ```

mod answer;
mod artifact;
mod auth;
mod blob;
mod client;
mod client_certificates;
mod credentials;
mod digest;
mod docker_config;
mod documents;
mod error;
mod foreign;
mod hosts_toml;
mod http;
mod key_match;
mod layout;
mod manifest;
mod mirrors;
mod options;
mod parts;
mod platform;
mod push;
mod recently;
mod reference;
mod renewal;
mod resolve;
mod rest;
mod retry;
mod source;
mod token;
mod transfer;
#[doc(hidden)]
pub mod untrusted;

pub use artifact::{
    Artifact, ArtifactError, ArtifactLayer, PushedArtifact, fetch_artifact, push_artifact,
    referrers,
};
pub use blob::{BlobSource, BlobStream, FetchStats};
pub use client::Client;
pub use credentials::Credentials;
pub use digest::{Digest, DigestError};
pub use documents::RawManifest;
pub use error::{
    ClientError, CredentialError, CredentialOrigin, FetchError, PushError, RequestError,
    ResolveError,
};
pub use manifest::{
    DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, EMPTY_JSON, Index, Manifest, OCI_INDEX, OCI_MANIFEST,
};
pub use options::{ClientOptions, PlainHttp};
pub use platform::{Platform, PlatformError};
pub use reference::{DEFAULT_REGISTRY, Reference, ReferenceError, Repository};
pub use resolve::{LayerDescriptor, ResolvedImage};
pub use source::{ImageSource, LAYOUT_REGISTRY};
