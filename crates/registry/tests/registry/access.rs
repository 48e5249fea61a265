//! Credentials, and registries that speak TLS where none is expected, or the other way round.

use super::{amd64, client, read, registry_source};
use crate::layout::Layout;
use bytes::Bytes;
use clip_registry::{
    BlobSource, Client, ClientOptions, Credentials, PlainHttp, Reference, Repository,
};
use clip_testkit::registry::TestRegistry;
use serde_json::json;

#[tokio::test]
async fn a_private_registry_opens_to_the_right_credentials_only() {
    let registry = TestRegistry::start_with_auth("alice", "secret").unwrap();
    let layout = Layout::new("linux/amd64");
    layout.push(&registry, "app:v1", Some("alice:secret"));
    let source = registry_source(&registry, "app:v1");
    let basic = |password: &str| Credentials::Basic {
        username: "alice".to_owned(),
        password: password.to_owned(),
    };
    // base64("alice:secret")
    let auth =
        json!({ "auths": { registry.address(): { "auth": "YWxpY2U6c2VjcmV0" } } }).to_string();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &auth).unwrap();

    for good in [
        basic("secret"),
        Credentials::DockerConfig(Some(file.path().to_owned())),
        Credentials::DockerConfigJson(vec!["{}".to_owned(), auth.clone()]),
    ] {
        let client = client(good);
        let image = client.resolve(&source, &amd64()).await.unwrap();
        let blobs = client.blobs(&image);
        assert_eq!(
            read(&blobs, &image.layers[0].digest, 0..10).await,
            layout.layers[0][..10]
        );
    }
    // However well another client is doing over the same connections.
    let client = client(basic("secret"));
    client.resolve(&source, &amd64()).await.unwrap();
    for (bad, part) in [
        (basic("wrong"), "refused the given user name and password"),
        (Credentials::Anonymous, "add credentials for 127.0.0.1"),
        (
            Credentials::DockerConfigJson(vec!["{}".to_owned()]),
            "or the pull secret",
        ),
    ] {
        let error = client
            .with_credentials(&bad)
            .unwrap()
            .resolve(&source, &amd64())
            .await
            .unwrap_err();
        assert_eq!(
            (error.reason(), error.is_permanent()),
            ("Unauthorized", true)
        );
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_loopback_registry_that_speaks_tls_is_found_out() {
    let registry = TestRegistry::start_with_tls().unwrap();
    let options = ClientOptions {
        credentials: Credentials::Anonymous,
        ca_certificates: vec![registry.ca_certificate().unwrap().to_owned()],
        ..ClientOptions::default()
    };
    let client = Client::new(options).unwrap();
    let repository = Repository::new(registry.address(), "app").unwrap();
    let digest = client
        .push_blob(&repository, Bytes::from_static(b"hello"))
        .await
        .unwrap();
    let blobs = BlobSource::open(&client, registry.address(), "app").unwrap();
    assert_eq!(blobs.read_all(&digest, 100).await.unwrap(), "hello");

    let distrustful = self::client(Credentials::Anonymous);
    let error = distrustful
        .push_blob(&repository, Bytes::from_static(b"hello"))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "RegistryUnreachable");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test]
async fn a_registry_without_tls_behind_a_name_that_wants_it_is_pointed_out() {
    let registry = TestRegistry::start().unwrap();
    // This reaches the loopback too, but is not one of its names, so TLS is what is tried.
    let host = registry.address().replace("127.0.0.1", "0.0.0.0");
    let reference: Reference = format!("{host}/app").parse().unwrap();
    let error = client(Credentials::Anonymous)
        .fetch_manifest(&reference)
        .await
        .unwrap_err();
    assert_eq!(
        (error.reason(), error.is_permanent()),
        ("RegistryUnreachable", true)
    );
    assert!(error.to_string().contains("--plain-http"), "{error}");

    for plain_http in [PlainHttp::Hosts(vec![host.clone()]), PlainHttp::All] {
        let options = ClientOptions {
            plain_http,
            credentials: Credentials::Anonymous,
            ..ClientOptions::default()
        };
        let error = Client::new(options)
            .unwrap()
            .fetch_manifest(&reference)
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "ImageNotFound");
    }
}
