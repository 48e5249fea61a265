//! How the client behaves when a registry, or what stands before it, does not.

mod common;
#[path = "faults/parts.rs"]
mod parts;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use clip_registry::{
    BlobSource, BlobStream, Client, ClientOptions, Credentials, Digest, FetchError, ImageSource,
    Platform, Reference, ResolveError,
};
use common::{Asked, FaultServer, Reply};
use futures::TryStreamExt as _;

fn client(credentials: Credentials) -> Client {
    let options = ClientOptions {
        credentials,
        read_timeout: Duration::from_secs(5),
        ..ClientOptions::default()
    };
    Client::new(options).unwrap()
}

fn anonymous() -> Client {
    client(Credentials::Anonymous)
}

fn alice() -> Client {
    let (username, password) = ("alice".to_owned(), "secret".to_owned());
    client(Credentials::Basic { username, password })
}

/// base64("alice:secret")
const ALICE: &str = "Basic YWxpY2U6c2VjcmV0";

fn blobs(client: &Client, server: &FaultServer) -> BlobSource {
    BlobSource::open(client, &server.address(), "team/app").unwrap()
}

fn reference(server: &FaultServer, tag: &str) -> Reference {
    format!("{}/team/app:{tag}", server.address())
        .parse()
        .unwrap()
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

async fn all(stream: BlobStream) -> Result<Bytes, FetchError> {
    let all: BytesMut = stream.try_collect().await?;
    Ok(all.freeze())
}

/// A challenge for a token that the same server gives out at `/token`.
fn challenge(status: u16, asked: &Asked) -> Reply {
    let host = &asked.headers["host"];
    let value = format!(
        "Bearer realm=\"http://{host}/token\",service=\"test\",scope=\"repository:team/app:pull\""
    );
    Reply::new(status).with("WWW-Authenticate", value)
}

fn token(text: &str, expires_in: u64) -> Reply {
    Reply::ok(format!(
        "{{\"token\": \"{text}\", \"expires_in\": {expires_in}}}"
    ))
}

fn is_token(asked: &Asked) -> bool {
    asked.path.starts_with("/token")
}

#[tokio::test]
async fn a_token_is_fetched_once_and_used_until_it_expires() {
    let server = FaultServer::start(|_, asked| match asked.authorization() {
        _ if is_token(asked) => token("good", 3600),
        Some("Bearer good") => Reply::ok("blob"),
        _ => challenge(401, asked),
    });
    let blobs = blobs(&alice(), &server);
    for _ in 0..3 {
        let read = all(blobs.stream(&Digest::sha256_of(b"blob")).await.unwrap());
        assert_eq!(read.await.unwrap(), "blob");
    }
    let asked = server.asked();
    assert_eq!(asked.iter().filter(|a| is_token(a)).count(), 1);
    assert_eq!(asked.len(), 5, "401, token, and three blobs");
    let token = &asked[1];
    assert_eq!(token.authorization(), Some(ALICE));
    assert!(token.path.contains("service=test"), "{}", token.path);
    assert!(
        token.path.contains("scope=repository%3Ateam%2Fapp%3Apull"),
        "{}",
        token.path
    );
}

#[tokio::test]
async fn a_token_about_to_expire_is_renewed_before_it_is_used() {
    let given = AtomicUsize::new(0);
    let server = FaultServer::start(move |_, asked| match asked.authorization() {
        _ if is_token(asked) => token(&format!("t{}", given.fetch_add(1, Ordering::SeqCst)), 5),
        Some(_) => Reply::ok("blob"),
        None => challenge(401, asked),
    });
    let blobs = blobs(&anonymous(), &server);
    for _ in 0..2 {
        all(blobs.stream(&Digest::sha256_of(b"blob")).await.unwrap())
            .await
            .unwrap();
    }
    let seen: Vec<_> = server
        .asked()
        .iter()
        .filter(|a| !is_token(a))
        .map(|a| a.authorization().map(str::to_owned))
        .collect();
    let bearer = |text: &str| Some(format!("Bearer {text}"));
    assert_eq!(seen, [None, bearer("t0"), bearer("t1")]);
}

#[tokio::test]
async fn a_token_revoked_early_is_renewed_on_401_and_on_403() {
    for status in [401, 403] {
        let given = AtomicUsize::new(0);
        let server = FaultServer::start(move |number, asked| {
            let expected = format!("Bearer t{}", if number < 4 { 0 } else { 1 });
            match asked.authorization() {
                _ if is_token(asked) => {
                    token(&format!("t{}", given.fetch_add(1, Ordering::SeqCst)), 3600)
                }
                Some(text) if text == expected => Reply::ok("blob"),
                // Some registries forget the challenge when they say 403.
                Some(_) if status == 403 => Reply::new(403),
                _ => challenge(401, asked),
            }
        });
        let blobs = blobs(&alice(), &server);
        for _ in 0..3 {
            let read = all(blobs.stream(&Digest::sha256_of(b"blob")).await.unwrap());
            assert_eq!(read.await.unwrap(), "blob", "{status}");
        }
    }
}

#[tokio::test]
async fn many_readers_that_meet_a_challenge_fetch_one_token() {
    let server = FaultServer::start(|_, asked| match asked.authorization() {
        _ if is_token(asked) => token("good", 3600),
        Some("Bearer good") => Reply::ok("blob"),
        _ => challenge(401, asked),
    });
    let blobs = blobs(&alice(), &server);
    let digest = Digest::sha256_of(b"blob");
    let reads = (0..8).map(|_| async { all(blobs.stream(&digest).await?).await });
    futures::future::try_join_all(reads).await.unwrap();
    assert_eq!(server.asked().iter().filter(|a| is_token(a)).count(), 1);
}

#[tokio::test]
async fn refused_credentials_are_named_and_permanent() {
    let server = FaultServer::start(|_, asked| match is_token(asked) {
        true => Reply::new(401),
        false => challenge(401, asked),
    });
    let error = alice()
        .head_manifest(&reference(&server, "v1"))
        .await
        .unwrap_err();
    assert_eq!(
        (error.reason(), error.is_permanent()),
        ("Unauthorized", true)
    );
    let text = error.to_string();
    assert!(
        text.contains("refused the given user name and password"),
        "{text}"
    );
    assert!(
        text.contains("pull secret") && text.contains("team/app"),
        "{text}"
    );
}

#[tokio::test]
async fn good_credentials_without_permission_are_forbidden() {
    let server = FaultServer::start(|_, asked| match asked.authorization() {
        Some(ALICE) => Reply {
            status: 403,
            ..Reply::ok(r#"{"errors":[{"code":"DENIED","message":"not for you"}]}"#)
        },
        _ => Reply::new(401).with("WWW-Authenticate", "Basic realm=\"test\""),
    });
    let error = alice()
        .fetch_manifest(&reference(&server, "v1"))
        .await
        .unwrap_err();
    assert_eq!((error.reason(), error.is_permanent()), ("Forbidden", true));
    assert!(error.to_string().contains("not for you"), "{error}");
}

#[tokio::test]
async fn an_anonymous_token_that_opens_nothing_means_not_found_or_login() {
    let server = FaultServer::start(|_, asked| match is_token(asked) {
        true => token("anonymous", 300),
        false => challenge(401, asked),
    });
    let error = anonymous()
        .fetch_manifest(&reference(&server, "v1"))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "ImageNotFound");
    assert!(error.to_string().contains("or needs a login"), "{error}");
}

#[tokio::test]
async fn a_range_that_is_answered_with_everything_is_not_read_to_the_end() {
    let whole = content(32 << 20);
    let answer = whole.clone();
    let server = FaultServer::start(move |_, _| Reply::ok(answer.clone()));
    let blobs = blobs(&anonymous(), &server);
    let read = blobs
        .range(&Digest::sha256_of(b"x"), 100_000..200_000)
        .await
        .unwrap();
    assert_eq!(all(read).await.unwrap(), whole[100_000..200_000]);
    let bytes = blobs.stats().bytes;
    assert!(
        (200_000..2_000_000).contains(&bytes),
        "{bytes} bytes were read"
    );
}

#[tokio::test]
async fn a_transfer_that_breaks_off_goes_on_where_it_stopped() {
    let whole = content(300_000);
    let answer = whole.clone();
    let server = FaultServer::start(move |number, asked| {
        let reply = Reply::ranged(asked, &answer);
        if number % 4 == 3 {
            reply
        } else {
            reply.cut_after(70_000)
        }
    });
    let blobs = blobs(&anonymous(), &server);
    let digest = Digest::sha256_of(&whole);
    let read = all(blobs.stream(&digest).await.unwrap()).await.unwrap();
    assert_eq!(Digest::sha256_of(&read), digest);
    let ranges: Vec<_> = server.asked().iter().map(Asked::range).collect();
    assert_eq!(ranges[0], None);
    assert!(ranges[1..].iter().all(Option::is_some), "{ranges:?}");

    let part = all(blobs.range(&digest, 10..250_000).await.unwrap())
        .await
        .unwrap();
    assert_eq!(part, whole[10..250_000]);
}

#[tokio::test]
async fn a_transfer_that_always_breaks_off_ends_with_an_error() {
    let server = FaultServer::start(|_, asked| match asked.range() {
        Some((0, _)) => Reply::ranged(asked, &content(1000)).cut_after(10),
        _ => Reply::ranged(asked, &content(1000)).cut_after(0),
    });
    let blobs = blobs(&anonymous(), &server);
    let read = blobs
        .range(&Digest::sha256_of(b"x"), 0..1000)
        .await
        .unwrap();
    let error = all(read).await.unwrap_err();
    assert!(
        matches!(error, FetchError::Interrupted { at: 10, .. }),
        "{error}"
    );
    assert!(!error.is_permanent());
}

#[tokio::test]
async fn a_transfer_that_stalls_is_broken_off_and_resumed() {
    let stalled = AtomicUsize::new(0);
    let server = FaultServer::start(move |_, asked| {
        let reply = Reply::ranged(asked, &content(1000));
        if stalled.fetch_add(1, Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_secs(3));
        }
        reply
    });
    let options = ClientOptions {
        credentials: Credentials::Anonymous,
        read_timeout: Duration::from_millis(300),
        ..ClientOptions::default()
    };
    let client = Client::new(options).unwrap();
    let start = Instant::now();
    let read = blobs(&client, &server)
        .range(&Digest::sha256_of(b"x"), 0..1000)
        .await
        .unwrap();
    assert_eq!(all(read).await.unwrap(), content(1000));
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_redirect_to_another_host_gets_no_authorization_and_is_remembered() {
    let expired = std::sync::Arc::new(AtomicUsize::new(0));
    let is_expired = expired.clone();
    let store = FaultServer::start(move |_, asked| {
        match is_expired.load(Ordering::SeqCst) == 1 && asked.path.ends_with("sig=0") {
            true => Reply::new(403),
            false => Reply::ranged(asked, &content(1000)),
        }
    });
    let to = store.address();
    let signed = AtomicUsize::new(0);
    let registry = FaultServer::start(move |_, asked| match asked.authorization() {
        Some(ALICE) => {
            let sig = signed.fetch_add(1, Ordering::SeqCst);
            Reply::new(307).with("Location", format!("http://{to}/store?sig={sig}"))
        }
        _ => Reply::new(401).with("WWW-Authenticate", "Basic realm=\"test\""),
    });
    let blobs = blobs(&alice(), &registry);
    let digest = Digest::sha256_of(b"x");
    for at in [0..10, 500..1000, 3..4] {
        let part = all(blobs.range(&digest, at.clone()).await.unwrap())
            .await
            .unwrap();
        assert_eq!(part, content(1000)[at.start as usize..at.end as usize]);
    }
    assert_eq!(
        registry.asked().len(),
        2,
        "401 and one redirect for three ranges"
    );
    assert_eq!(store.asked().len(), 3);
    assert!(
        store
            .asked()
            .iter()
            .all(|asked| asked.authorization().is_none())
    );

    expired.store(1, Ordering::SeqCst);
    all(blobs.range(&digest, 0..10).await.unwrap())
        .await
        .unwrap();
    assert_eq!(
        registry.asked().len(),
        3,
        "the address had expired: a new one"
    );
    assert_eq!(store.asked().last().unwrap().path, "/store?sig=1");
}

#[tokio::test]
async fn too_many_requests_are_followed_by_the_pause_asked_for() {
    let server = FaultServer::start(|number, _| match number {
        0 => Reply::new(429).with("Retry-After", "1"),
        _ => Reply::ok("blob"),
    });
    let start = Instant::now();
    let read = blobs(&anonymous(), &server)
        .stream(&Digest::sha256_of(b"blob"))
        .await
        .unwrap();
    assert_eq!(all(read).await.unwrap(), "blob");
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_pause_of_an_hour_is_left_to_the_caller() {
    let server = FaultServer::start(|_, _| Reply::new(429).with("Retry-After", "3600"));
    let error = anonymous()
        .fetch_manifest(&reference(&server, "v1"))
        .await
        .unwrap_err();
    assert_eq!(server.asked().len(), 1);
    assert_eq!(
        (error.reason(), error.is_permanent()),
        ("RateLimited", false)
    );
    assert!(error.to_string().contains("3600 s"), "{error}");
}

#[tokio::test]
async fn a_server_error_is_tried_again() {
    let server = FaultServer::start(|number, _| match number {
        0 | 1 => Reply::new(503),
        _ => Reply::ok("blob"),
    });
    let read = blobs(&anonymous(), &server)
        .stream(&Digest::sha256_of(b"blob"))
        .await
        .unwrap();
    assert_eq!(all(read).await.unwrap(), "blob");
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn bytes_from_another_place_than_asked_for_are_refused() {
    let server = FaultServer::start(|_, _| {
        Reply {
            status: 206,
            ..Reply::ok("0123456789")
        }
        .with("Content-Range", "bytes 0-9/100")
    });
    let blobs = blobs(&anonymous(), &server);
    let error = blobs
        .range(&Digest::sha256_of(b"x"), 5..15)
        .await
        .unwrap_err();
    assert!(matches!(error, FetchError::WrongRange { .. }), "{error}");
}

#[tokio::test]
async fn a_range_beyond_the_end_is_an_error_whatever_the_registry_does() {
    let ranged = FaultServer::start(|_, asked| Reply::ranged(asked, &content(100)));
    let whole = FaultServer::start(|_, _| Reply::ok(content(100)));
    for server in [ranged, whole] {
        let blobs = blobs(&anonymous(), &server);
        for range in [90..110, 200..300] {
            let error = blobs
                .range(&Digest::sha256_of(b"x"), range)
                .await
                .unwrap_err();
            assert!(matches!(error, FetchError::OutOfRange { .. }), "{error}");
            assert!(error.is_permanent());
        }
    }
}

#[tokio::test]
async fn wrong_content_is_refused_by_its_digest() {
    let manifest = br#"{"schemaVersion":2,"config":{},"layers":[]}"#;
    let server = FaultServer::start(|_, asked| match asked.path.contains("manifests") {
        true => Reply::ok(manifest.as_slice()),
        false => Reply::ok("something else"),
    });
    let expected = Digest::sha256_of(b"another manifest");
    let pinned = format!("{}/team/app@{expected}", server.address())
        .parse()
        .unwrap();
    let error = anonymous().fetch_manifest(&pinned).await.unwrap_err();
    assert_eq!(
        (error.reason(), error.is_permanent()),
        ("DigestMismatch", true)
    );
    assert!(error.to_string().contains(expected.as_ref()), "{error}");

    let blobs = blobs(&anonymous(), &server);
    let error = blobs
        .read_all(&Digest::sha256_of(b"blob"), 1000)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "DigestMismatch");
    let error = blobs
        .read_all(&Digest::sha256_of(b"something else"), 5)
        .await
        .unwrap_err();
    assert!(matches!(error, FetchError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_manifest_of_before_2016_is_refused_by_its_media_type() {
    let schema_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let server = FaultServer::start(move |_, _| {
        Reply::ok(r#"{"schemaVersion":1}"#).with("Content-Type", schema_1)
    });
    let source = ImageSource::Registry(reference(&server, "old"));
    let error = anonymous()
        .resolve(&source, &Platform::host())
        .await
        .unwrap_err();
    assert_eq!(
        (error.reason(), error.is_permanent()),
        ("UnsupportedMediaType", true)
    );
    assert!(
        error.to_string().contains("push the image again"),
        "{error}"
    );
}

#[tokio::test]
async fn a_manifest_larger_than_any_real_one_is_refused() {
    let server = FaultServer::start(|_, _| Reply::ok(vec![b' '; 5 << 20]));
    let error = anonymous()
        .fetch_manifest(&reference(&server, "v1"))
        .await
        .unwrap_err();
    assert!(matches!(error, ResolveError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn an_index_that_refers_to_itself_ends() {
    // It cannot contain its own digest, but a server can pretend that any digest is a tag's.
    let server = FaultServer::start(|_, _| {
        let digest = Digest::sha256_of(b"x");
        let index = "application/vnd.oci.image.index.v1+json";
        Reply::ok(format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{index}","digest":"{digest}","size":9}}]}}"#
        ))
        .with("Content-Type", index)
    });
    let source = ImageSource::Registry(reference(&server, "v1"));
    let error = anonymous()
        .resolve(&source, &Platform::host())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "DigestMismatch");
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_unreachable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let reference = format!("{address}/app").parse().unwrap();
    let error = anonymous().fetch_manifest(&reference).await.unwrap_err();
    assert_eq!(
        (error.reason(), error.is_permanent()),
        ("RegistryUnreachable", false)
    );
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_password_is_not_sent_to_a_token_service_without_encryption() {
    let server = FaultServer::start(|_, _| {
        let realm = "Bearer realm=\"http://198.51.100.1/token\"";
        Reply::new(401).with("WWW-Authenticate", realm)
    });
    let error = alice()
        .fetch_manifest(&reference(&server, "v1"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("without encryption"), "{error}");
    assert!(error.is_permanent());
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let server = FaultServer::start(|_, asked| match asked.authorization() {
        _ if is_token(asked) => Reply::ok(r#"{"access_token": "good"}"#),
        Some("Bearer good") => Reply::ok("blob"),
        _ => challenge(401, asked),
    });
    let auths = format!(
        r#"{{"auths":{{"{}":{{"identitytoken":"id"}}}}}}"#,
        server.address()
    );
    let client = client(Credentials::DockerConfigJson(vec![auths]));
    let read = blobs(&client, &server)
        .stream(&Digest::sha256_of(b"blob"))
        .await
        .unwrap();
    assert_eq!(all(read).await.unwrap(), "blob");
    let asked = server.asked();
    let exchange = asked.iter().find(|asked| is_token(asked)).unwrap();
    let form = String::from_utf8(exchange.body.clone()).unwrap();
    assert_eq!(exchange.method, "POST");
    assert!(
        form.contains("refresh_token=id") && form.contains("grant_type=refresh_token"),
        "{form}"
    );
}

#[tokio::test]
async fn readers_that_wait_for_a_dead_token_service_get_one_answer() {
    let server = FaultServer::start(|_, asked| match is_token(asked) {
        true => Reply::new(503),
        false => challenge(401, asked),
    });
    let client = anonymous();
    let blobs = blobs(&client, &server);
    let digest = Digest::sha256_of(b"blob");
    let start = Instant::now();
    let reads = (0..16).map(|_| blobs.stream(&digest));
    for result in futures::future::join_all(reads).await {
        assert_eq!(result.unwrap_err().reason(), "RegistryUnreachable");
    }
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
}
