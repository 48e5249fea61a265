//! Mirrors by containerd's hosts.toml: real registries as mirror and upstream, each behind a proxy.

use super::amd64;
use bytes::BytesMut;
use clip_registry::{
    BlobSource, Client, ClientOptions, Credentials, FetchError, ImageSource, ResolvedImage,
};
use clip_testkit::{
    authority::ClientCertificate,
    images,
    layout::{self, Flaw, Layer},
    proxy::{Mood, Proxy, Rule},
    registry::TestRegistry,
};
use futures::TryStreamExt as _;
use std::{path::PathBuf, time::Duration};

struct Scene {
    upstream: Proxy,
    mirror: Proxy,
    registries: [TestRegistry; 2],
    dir: tempfile::TempDir,
    layout: PathBuf,
}

impl Scene {
    /// An image in both registries, and a hosts.toml that names the mirror.
    fn new() -> Scene {
        let scene = Scene::with_mirror(TestRegistry::start().unwrap());
        images::push(&scene.layout, &scene.registries[1], "team/app:1").unwrap();
        scene.configure(&format!("[host.\"http://{}\"]", scene.mirror.address()));
        scene
    }

    /// An image in both registries, which want alice's password.
    fn private() -> Scene {
        let [upstream, mirror] =
            [(); 2].map(|()| TestRegistry::start_with_auth("alice", "secret").unwrap());
        let scene = Scene::between(upstream, mirror);
        for registry in &scene.registries {
            let user = Some(("alice", "secret"));
            images::push_as(&scene.layout, registry, "team/app:1", user).unwrap();
        }
        scene
    }

    /// An image in the upstream registry only.
    fn with_mirror(mirror: TestRegistry) -> Scene {
        let scene = Scene::between(TestRegistry::start().unwrap(), mirror);
        images::push(&scene.layout, &scene.registries[0], "team/app:1").unwrap();
        scene
    }

    /// An image on disk, and two registries.
    fn between(upstream: TestRegistry, mirror: TestRegistry) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let layer = Layer::new().file("noise", layout::noise(2 << 20, 9));
        let layout = layout::write(&dir.path().join("layout"), vec![layer], Flaw::None).unwrap();
        Scene {
            upstream: Proxy::before(upstream.address()).unwrap(),
            mirror: Proxy::before(mirror.address()).unwrap(),
            registries: [upstream, mirror],
            dir,
            layout,
        }
    }

    fn configure(&self, hosts: &str) {
        let dir = self.dir.path().join("hosts").join(self.upstream.address());
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), hosts).unwrap();
    }

    fn client(&self) -> Client {
        self.client_with(Credentials::Anonymous)
    }

    /// A client with a docker configuration that has alice's password for these hosts.
    fn alice_at(&self, hosts: &[&Proxy]) -> Client {
        // base64("alice:secret")
        let login = serde_json::json!({ "auth": "YWxpY2U6c2VjcmV0" });
        let auths = hosts.iter().map(|host| (host.address(), login.clone()));
        let auths: serde_json::Map<_, _> = auths.collect();
        let config = serde_json::json!({ "auths": auths }).to_string();
        self.client_with(Credentials::DockerConfigJson(vec![config]))
    }

    fn client_with(&self, credentials: Credentials) -> Client {
        let options = ClientOptions {
            credentials,
            hosts_dir: Some(self.dir.path().join("hosts")),
            read_timeout: Duration::from_secs(2),
            ..ClientOptions::default()
        };
        Client::new(options).unwrap()
    }

    fn source(&self) -> ImageSource {
        self.source_of("team/app:1")
    }

    fn source_of(&self, image: &str) -> ImageSource {
        let reference = format!("{}/{image}", self.upstream.address());
        reference.parse().unwrap()
    }

    async fn resolve(&self, client: &Client) -> ResolvedImage {
        client.resolve(&self.source(), &amd64()).await.unwrap()
    }

    /// The image under another name, in both registries.
    async fn another(&self, client: &Client) -> ResolvedImage {
        for registry in &self.registries {
            images::push(&self.layout, registry, "team/other:1").unwrap();
        }
        let source = self.source_of("team/other:1");
        client.resolve(&source, &amd64()).await.unwrap()
    }

    fn layer(&self, image: &ResolvedImage) -> Vec<u8> {
        let hex = image.layers[0].digest.hex();
        std::fs::read(self.layout.join("blobs/sha256").join(hex)).unwrap()
    }

    /// Reads the layer's middle and compares it.
    async fn read(&self, client: &Client, image: &ResolvedImage) -> Result<(), FetchError> {
        self.read_from(&client.blobs(image), image).await
    }

    async fn read_from(&self, blobs: &BlobSource, image: &ResolvedImage) -> Result<(), FetchError> {
        let digest = &image.layers[0].digest;
        let stream = blobs.range(digest, 500_000..1_500_000).await?;
        let found: BytesMut = stream.try_collect().await?;
        assert!(
            found == self.layer(image)[500_000..1_500_000],
            "wrong bytes"
        );
        Ok(())
    }
}

/// Whether every request to the host came without a password.
fn was_shown_nothing(host: &Proxy) -> bool {
    let asked = host.asked();
    !asked.is_empty() && asked.iter().all(|a| a.authorization.is_none())
}

/// Requests that name `repository`.
fn asked_for(proxy: &Proxy, repository: &str) -> usize {
    let asked = proxy.asked();
    let path = format!("/v2/{repository}/");
    asked.iter().filter(|a| a.path.starts_with(&path)).count()
}

fn answer(status: u16) -> Mood {
    Mood::Answer {
        status,
        retry_after: None,
    }
}

#[tokio::test]
async fn a_mirror_gives_everything_and_learns_whose_mirror_it_is() {
    let scene = Scene::new();
    let client = scene.client();
    let image = scene.resolve(&client).await;
    scene.read(&client, &image).await.unwrap();
    let asked = scene.mirror.asked();
    let ns = format!("ns={}", scene.upstream.address().replace(':', "%3A"));
    assert!(
        asked.len() >= 3 && asked.iter().all(|asked| asked.path.contains(&ns)),
        "{asked:?}"
    );
    assert!(
        scene.upstream.asked().is_empty(),
        "{:?}",
        scene.upstream.asked()
    );
    // And it gives it when the registry itself is gone.
    scene.upstream.set(Mood::HangUp);
    let client = scene.client();
    let image = scene.resolve(&client).await;
    scene.read(&client, &image).await.unwrap();
}

#[tokio::test]
async fn only_the_registry_itself_is_asked_for_tags_and_rights_where_it_says_so() {
    let scene = Scene::new();
    scene.configure(&format!(
        "[host.\"http://{}\"]\ncapabilities = [\"pull\"]",
        scene.mirror.address()
    ));
    let client = scene.client();
    let image = scene.resolve(&client).await;
    scene.read(&client, &image).await.unwrap();
    let tags = |proxy: &Proxy| {
        let asked = proxy.asked();
        let tags = asked
            .iter()
            .filter(|asked| asked.path.contains("/manifests/1"));
        tags.count()
    };
    assert_eq!((tags(&scene.mirror), tags(&scene.upstream)), (0, 1));
    assert!(scene.upstream.ranges().is_empty() && !scene.mirror.ranges().is_empty());
    scene.configure(&format!("[host.\"http://{}\"]", scene.mirror.address()));
    scene.mirror.forget();
    let ImageSource::Registry(reference) = scene.source() else {
        panic!()
    };
    scene.client().head_manifest(&reference).await.unwrap();
    assert!(scene.mirror.asked().is_empty(), "HEAD asks for a right");
}

#[tokio::test]
async fn whatever_a_mirror_does_the_registry_gives_the_bytes() {
    for mood in [
        Mood::HangUp,
        Mood::Silent,
        Mood::SilentAfter(200_000),
        Mood::ResetAfter(200_000),
        answer(404),
        answer(401),
        answer(429),
        answer(500),
        Mood::OtherRange(5),
        Mood::IgnoreRange,
    ] {
        let scene = Scene::new();
        scene.mirror.set_rules([Rule::blobs(mood)]);
        let client = scene.client();
        let image = scene.resolve(&client).await;
        for read in 0..3 {
            let read_once = scene.read(&client, &image).await;
            // Other bytes than asked for are an error at first; who asks again, asks the registry.
            if !(mood == Mood::OtherRange(5) && read == 0) {
                read_once.unwrap_or_else(|error| panic!("{mood:?}: {error}"));
            }
        }
        let asked = scene.mirror.ranges().len();
        match mood {
            Mood::IgnoreRange | Mood::Answer { status: 404, .. } => {
                assert_eq!(asked, 3, "{mood:?}")
            }
            // Some fail at the configuration already.
            _ => assert!(asked <= 1, "it rests: {mood:?}"),
        }
    }
}

#[tokio::test]
async fn a_mirror_that_refuses_one_image_goes_on_giving_the_others() {
    for status in [401, 403] {
        let scene = Scene::new();
        let rule = Rule::always(answer(status)).below("/v2/team/app/");
        scene.mirror.set_rules([rule]);
        let client = scene.client();
        let refused = scene.resolve(&client).await;
        let other = scene.another(&client).await;
        for _ in 0..2 {
            scene.read(&client, &refused).await.unwrap();
            scene.read(&client, &other).await.unwrap();
        }
        let asked = asked_for(&scene.mirror, "team/app");
        assert_eq!(asked, 1, "{status}: it rests for this one");
        assert_eq!(
            scene.mirror.ranges().len(),
            2,
            "{status}: not for the other"
        );
        assert_eq!(asked_for(&scene.upstream, "team/other"), 0, "{status}");
    }
}

#[tokio::test]
async fn a_mirror_that_fails_rests_for_all_images() {
    for mood in [answer(429), answer(500), Mood::HangUp] {
        let scene = Scene::new();
        scene
            .mirror
            .set_rules([Rule::always(mood).below("/v2/team/app/")]);
        let client = scene.client();
        let failed = scene.resolve(&client).await;
        let other = scene.another(&client).await;
        scene.read(&client, &failed).await.unwrap();
        scene.read(&client, &other).await.unwrap();
        assert_eq!(asked_for(&scene.mirror, "team/other"), 0, "{mood:?}");
    }
}

#[tokio::test]
async fn who_got_wrong_content_passes_over_mirrors_and_others_do_not() {
    let scene = Scene::new();
    let client = scene.client();
    let image = scene.resolve(&client).await;
    let (deceived, other) = (client.blobs(&image), client.blobs(&image));
    deceived.distrust_mirrors();
    for read in 1..=2 {
        scene.read_from(&deceived.clone(), &image).await.unwrap();
        assert_eq!(scene.upstream.ranges().len(), read);
        assert!(scene.mirror.ranges().is_empty());
    }
    scene.read_from(&other, &image).await.unwrap();
    assert_eq!(scene.mirror.ranges().len(), 1);
}

#[tokio::test]
async fn who_wants_more_than_a_blob_has_gets_it_from_nobody_and_harms_no_mirror() {
    let scene = Scene::new();
    let client = scene.client();
    let image = scene.resolve(&client).await;
    let (digest, length) = (&image.layers[0].digest, scene.layer(&image).len() as u64);
    let beyond = client.blobs(&image).range(digest, 0..length + 1).await;
    assert!(
        matches!(beyond, Err(FetchError::OutOfRange { .. })),
        "{beyond:?}"
    );
    assert_eq!(scene.upstream.ranges().len(), 1, "it has the last word");
    scene.read(&client, &image).await.unwrap();
    assert_eq!(
        scene.upstream.ranges().len(),
        1,
        "the mirror is asked again"
    );
}

#[tokio::test]
async fn a_mirror_that_is_not_there_costs_one_attempt() {
    let scene = Scene::new();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    scene.configure(&format!(
        "[host.\"http://{address}\"]\n[host.\"http://{}\"]",
        scene.mirror.address()
    ));
    let client = scene.client();
    let image = scene.resolve(&client).await;
    scene.read(&client, &image).await.unwrap();
    assert_eq!(scene.mirror.ranges().len(), 1, "the next one");
    assert!(scene.upstream.asked().is_empty());
}

#[tokio::test]
async fn a_mirror_with_a_certificate_of_its_own_needs_its_authority_or_no_check() {
    let tls = TestRegistry::start_with_tls().unwrap();
    let address = tls.address().to_owned();
    let ca = tls.ca_certificate().unwrap().display().to_string();
    let scene = Scene::with_mirror(tls);
    images::push(&scene.layout, &scene.registries[1], "team/app:1").unwrap();
    for (options, is_used) in [
        (format!("ca = {ca:?}"), true),
        ("skip_verify = true".to_owned(), true),
        (String::new(), false),
    ] {
        scene.upstream.forget();
        scene.configure(&format!("[host.\"https://{address}\"]\n{options}"));
        let client = scene.client();
        let image = scene.resolve(&client).await;
        scene.read(&client, &image).await.unwrap();
        assert_eq!(scene.upstream.asked().is_empty(), is_used, "{options}");
    }
}

#[tokio::test]
async fn a_mirror_that_wants_a_certificate_is_shown_the_one_that_it_trusts() {
    let tls = TestRegistry::start_with_client_certificates().unwrap();
    let address = tls.address().to_owned();
    let ca = tls.ca_certificate().unwrap().to_owned();
    let ours = tls.client_certificate().unwrap().clone();
    let scene = Scene::with_mirror(tls);
    images::push(&scene.layout, &scene.registries[1], "team/app:1").unwrap();
    let strangers = ClientCertificate::make(scene.dir.path(), "strangers").unwrap();
    let (both, others) = (&ours.both, &strangers.both);
    for (client, is_used) in [
        (format!("client = {both:?}"), true),
        (format!("client = [{both:?}]"), true),
        (
            format!("client = [[{:?}, {:?}]]", ours.certificate, ours.key),
            true,
        ),
        (format!("client = [[{both:?}, \"\"]]"), true),
        (format!("client = [{others:?}, {both:?}]"), true),
        (format!("client = {others:?}"), false),
        (String::new(), false),
        // The certificate alone is of no use, and neither is the file then.
        (format!("client = {:?}", ours.certificate), false),
    ] {
        scene.upstream.forget();
        scene.configure(&format!(
            "[host.\"https://{address}\"]\nca = {ca:?}\n{client}"
        ));
        let reader = scene.client();
        let image = scene.resolve(&reader).await;
        scene.read(&reader, &image).await.unwrap();
        assert_eq!(scene.upstream.asked().is_empty(), is_used, "{client}");
    }
}

#[tokio::test]
async fn a_mirror_is_shown_no_credentials_but_its_own() {
    let scene = Scene::private();
    scene.configure(&format!("[host.\"http://{}\"]", scene.mirror.address()));
    let client = scene.alice_at(&[&scene.upstream]);
    let image = scene.resolve(&client).await;
    scene.read(&client, &image).await.unwrap();
    assert!(was_shown_nothing(&scene.mirror));
    scene.upstream.forget();
    let client = scene.alice_at(&[&scene.upstream, &scene.mirror]);
    let image = scene.resolve(&client).await;
    scene.read(&client, &image).await.unwrap();
    assert!(scene.upstream.asked().is_empty(), "the mirror has it all");
}

#[tokio::test]
async fn a_server_is_shown_no_credentials_but_its_own() {
    let scene = Scene::private();
    scene.configure(&format!("server = \"http://{}\"", scene.mirror.address()));
    let client = scene.alice_at(&[&scene.upstream]);
    let refused = client.resolve(&scene.source(), &amd64()).await.unwrap_err();
    let (message, server) = (refused.to_string(), scene.mirror.address());
    assert!(
        refused.reason() == "Unauthorized"
            && message.contains(&format!("add credentials for {server}")),
        "{message}"
    );
    assert!(was_shown_nothing(&scene.mirror));
    let client = scene.alice_at(&[&scene.mirror]);
    let image = scene.resolve(&client).await;
    scene.read(&client, &image).await.unwrap();
    assert!(scene.upstream.asked().is_empty());
}

#[tokio::test]
async fn the_registry_itself_may_be_named_as_its_server() {
    let scene = Scene::private();
    scene.configure(&format!("server = \"http://{}\"", scene.upstream.address()));
    let client = scene.alice_at(&[&scene.upstream]);
    let image = scene.resolve(&client).await;
    scene.read(&client, &image).await.unwrap();
    let asked = scene.upstream.asked();
    assert!(asked.iter().all(|a| !a.path.contains("ns=")), "{asked:?}");
}

#[tokio::test]
async fn a_server_stands_for_the_registry_and_a_broken_file_for_nothing() {
    let scene = Scene::new();
    scene.configure(&format!("server = \"http://{}\"", scene.mirror.address()));
    let client = scene.client();
    let image = scene.resolve(&client).await;
    scene.read(&client, &image).await.unwrap();
    let asked = scene.mirror.asked();
    assert!(scene.upstream.asked().is_empty() && !asked.is_empty());
    assert!(asked.iter().all(|a| a.path.contains("ns=")), "{asked:?}");
    scene.mirror.forget();
    scene.configure("server = [");
    let client = scene.client();
    let image = scene.resolve(&client).await;
    scene.read(&client, &image).await.unwrap();
    assert!(scene.mirror.asked().is_empty());
}
