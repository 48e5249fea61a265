//! Archives as artifacts: pushed, fetched, found by their subject.

use super::client;
use bytes::Bytes;
use clip_registry::{
    ArtifactError, ArtifactLayer, Credentials, Descriptor, OCI_MANIFEST, Reference, Repository,
    fetch_artifact, push_artifact, referrers,
};
use clip_testkit::registry::TestRegistry;

#[tokio::test]
async fn an_artifact_comes_back_as_it_was_pushed_and_is_found_by_its_subject() {
    const TYPE: &str = "application/vnd.example.archive";
    for (registry, credentials) in [
        (TestRegistry::start().unwrap(), Credentials::Anonymous),
        (
            TestRegistry::start_with_auth("bob", "builder").unwrap(),
            Credentials::Basic {
                username: "bob".to_owned(),
                password: "builder".to_owned(),
            },
        ),
    ] {
        let client = client(credentials);
        let repository = Repository::new(registry.address(), "team/app").unwrap();
        let subject = Descriptor::of(OCI_MANIFEST, b"the image's manifest");
        let layers: Vec<_> = [b"head".as_slice(), &[42; 100_000]]
            .into_iter()
            .map(|content| ArtifactLayer {
                media_type: "application/vnd.example.section".to_owned(),
                content: Bytes::copy_from_slice(content),
                annotations: [
                    ("b".to_owned(), "2".to_owned()),
                    ("a".to_owned(), "1".to_owned()),
                ]
                .into(),
            })
            .collect();
        let push = |tag| {
            push_artifact(
                &client,
                &repository,
                TYPE,
                Some(subject.clone()),
                tag,
                layers.clone(),
            )
        };
        let digest = push(None).await.unwrap().digest;
        assert_eq!(
            push(Some("archive")).await.unwrap().digest,
            digest,
            "the same bytes each time"
        );

        let found = referrers(&client, &repository, &subject.digest, TYPE)
            .await
            .unwrap();
        assert_eq!(
            found.iter().map(|d| &d.digest).collect::<Vec<_>>(),
            [&digest]
        );
        assert_eq!(
            referrers(&client, &repository, &digest, TYPE)
                .await
                .unwrap(),
            []
        );
        assert_eq!(
            referrers(&client, &repository, &subject.digest, "other")
                .await
                .unwrap(),
            []
        );

        for reference in [
            Reference::with_digest(repository.clone(), digest.clone()),
            Reference::with_tag(repository.clone(), "archive").unwrap(),
        ] {
            let artifact = fetch_artifact(&client, &reference, TYPE, 1 << 20)
                .await
                .unwrap();
            assert_eq!(artifact.digest, digest);
            assert_eq!(artifact.manifest.subject.as_ref(), Some(&subject));
            for ((descriptor, content), pushed) in artifact.layers.iter().zip(&layers) {
                assert_eq!(
                    (content, &descriptor.annotations),
                    (&pushed.content, &pushed.annotations)
                );
            }
            let error = fetch_artifact(&client, &reference, TYPE, 1000)
                .await
                .unwrap_err();
            assert!(matches!(error, ArtifactError::TooLarge { .. }), "{error}");
            let error = fetch_artifact(&client, &reference, "other", 1 << 20)
                .await
                .unwrap_err();
            assert_eq!(error.reason(), "UnsupportedMediaType");
        }
    }
}
