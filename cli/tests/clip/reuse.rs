//! A layer that an earlier archive describes is not downloaded again, and the result is the same.

use crate::scene::Scene;
use clip_testkit::{
    images,
    layout::{self, Flaw, Layer},
    proxy::Proxy,
    registry::TestRegistry,
};
use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// Two versions of an image, `team/app:1` and `:2`, which have all but the top layer in common. The layers have 3 MiB,
/// 1 MiB and 64 KiB.
struct Versions {
    registry: TestRegistry,
    proxy: Proxy,
}

impl Versions {
    fn publish(scene: &Scene) -> Versions {
        let registry = TestRegistry::start().unwrap();
        for (tag, seed) in [("1", 1), ("2", 2)] {
            let base = Layer::new()
                .dir("usr")
                .file("usr/base", layout::noise(3 << 20, 8))
                .file("dev/null", b"left out");
            let middle = Layer::new().file("usr/middle", layout::noise(1 << 20, 9));
            let top = Layer::new().file("app", layout::noise(64 << 10, seed));
            let layers = vec![base, middle, top];
            let dir = scene.dir(&format!("layout-{tag}"));
            let image = layout::write(&dir, layers, Flaw::None).unwrap();
            images::push(&image, &registry, &format!("team/app:{tag}")).unwrap();
        }
        let proxy = Proxy::before(registry.address()).unwrap();
        Versions { registry, proxy }
    }

    fn image(&self, tag: &str) -> String {
        format!("{}/team/app:{tag}", self.proxy.address())
    }

    /// Indexes a version with these further arguments: how many blobs were downloaded, and what was said.
    fn index(&self, scene: &Scene, tag: &str, arguments: &[&str]) -> (usize, String) {
        self.run(scene, &[&[self.image(tag).as_str()], arguments].concat())
    }

    /// The same for all images that the arguments name.
    fn run(&self, scene: &Scene, arguments: &[&str]) -> (usize, String) {
        self.proxy.forget();
        let said = scene.ok([&["index"], arguments].concat());
        (self.blobs("/team/app/"), said.err)
    }

    /// How many blobs of `repository` were downloaded.
    fn blobs(&self, repository: &str) -> usize {
        let is_blob = |asked: &&clip_testkit::proxy::Asked| {
            let (method, path) = (&asked.method, &asked.path);
            method == "GET" && path.contains("/blobs/") && path.contains(repository)
        };
        self.proxy.asked().iter().filter(is_blob).count()
    }
}

const CONFIGURATION: usize = 1;

#[test]
fn a_rebuild_costs_its_top_layer() {
    let scene = Scene::new();
    let versions = Versions::publish(&scene);
    let read = |name: &str| std::fs::read(scene.path(name)).unwrap();
    assert_eq!(
        versions.index(&scene, "1", &["image.clip"]).0,
        CONFIGURATION + 3
    );

    let replace = ["--reuse", "image.clip", "image.clip"];
    let (blobs, said) = versions.index(&scene, "2", &replace);
    assert_eq!(blobs, CONFIGURATION + 1, "{said}");
    assert!(
        said.contains("Reused 2 layers from earlier archives: 4.2 MB not downloaded"),
        "{said}"
    );
    let (blobs, said) = versions.index(&scene, "2", &["fresh.clip"]);
    assert_eq!(blobs, CONFIGURATION + 3, "{said}");
    assert!(read("image.clip") == read("fresh.clip"), "not the same");

    let all = ["--reuse", "image.clip", "again.clip"];
    assert_eq!(versions.index(&scene, "2", &all).0, CONFIGURATION);
    assert!(read("again.clip") == read("fresh.clip"), "not the same");

    // The name that the archive gives to its image is the new one.
    let renamed = format!("{}/team/app:2", versions.registry.address());
    let inspected = scene.ok(["inspect", "again.clip"]);
    assert!(!inspected.out.contains(&renamed), "asked through the proxy");
    assert!(inspected.out.contains("/team/app:2"), "{inspected:?}");
}

#[test]
fn sections_that_were_made_otherwise_or_are_damaged_are_made_anew() {
    let scene = Scene::new();
    let versions = Versions::publish(&scene);
    versions.index(&scene, "1", &["image.clip"]);
    let other = [
        "--max-span",
        "131072",
        "--reuse",
        "image.clip",
        "other.clip",
    ];
    assert_eq!(versions.index(&scene, "1", &other).0, CONFIGURATION + 3);

    let mut damaged = std::fs::read(scene.path("image.clip")).unwrap();
    let sections = damaged.len() - 20;
    damaged[sections..].fill(0);
    std::fs::write(scene.path("damaged.clip"), damaged).unwrap();
    let reuse = ["--reuse", "damaged.clip", "mended.clip"];
    let (blobs, said) = versions.index(&scene, "1", &reuse);
    assert_eq!(blobs, CONFIGURATION + 1, "{said}");
    let read = |name: &str| std::fs::read(scene.path(name)).unwrap();
    assert!(read("mended.clip") == read("image.clip"), "not the same");
}

#[test]
fn an_archive_that_was_published_for_another_image_is_found_by_its_layers() {
    let scene = Scene::new();
    let versions = Versions::publish(&scene);
    let archives = format!("{}/team/archives", versions.proxy.address());
    let publish = ["--publish", &archives];
    let reuse = [&publish[..], &["--reuse-from", &archives]].concat();
    let read = |name: &str| std::fs::read(scene.path(name)).unwrap();

    // Nothing was published yet, and that is no reason to say anything.
    let (blobs, said) = versions.index(&scene, "1", &[&reuse[..], &["1.clip"]].concat());
    assert_eq!(blobs, CONFIGURATION + 3, "{said}");
    assert!(!said.contains("reused"), "{said}");

    let (blobs, said) = versions.index(&scene, "2", &[&reuse[..], &["2.clip"]].concat());
    assert_eq!(blobs, CONFIGURATION + 1, "{said}");
    // One archive, though two layers were looked for.
    assert_eq!(versions.blobs("/team/archives/"), 1, "{said}");
    versions.index(&scene, "2", &["fresh.clip"]);
    assert!(read("2.clip") == read("fresh.clip"), "not the same");

    // What is made otherwise has other tags.
    let other = ["--max-span", "131072", "other.clip"];
    let (blobs, said) = versions.index(&scene, "1", &[&reuse[..], &other].concat());
    assert_eq!(blobs, CONFIGURATION + 3, "{said}");

    // A registry that refuses costs the reuse, not the index.
    let nowhere = ["--reuse-from", "127.0.0.1:1/team/archives", "fresh.clip"];
    let (blobs, said) = versions.index(&scene, "2", &nowhere);
    assert_eq!(blobs, CONFIGURATION + 3, "{said}");
    assert!(said.contains("nothing can be reused from here"), "{said}");
}

#[test]
fn what_has_an_archives_tag_but_is_none_is_passed_over_and_replaced() {
    let scene = Scene::new();
    let versions = Versions::publish(&scene);
    let archives = format!("{}/team/archives", versions.proxy.address());
    let reuse = ["--publish", &archives, "--reuse-from", &archives];
    versions.index(&scene, "1", &reuse);
    let storage = versions.registry.storage();
    let tags = storage.join("docker/registry/v2/repositories/team/archives/_manifests/tags");
    let tags = std::fs::read_dir(tags).unwrap();
    let tags = tags.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let of_layers: Vec<_> = tags.filter(|tag| tag.starts_with("clip-layer-")).collect();
    assert_eq!(
        of_layers.len(),
        2,
        "the smallest layer is not worth one: {of_layers:?}"
    );
    for tag in of_layers {
        let reference = format!("team/archives:{tag}");
        images::push(&scene.path("layout-1"), &versions.registry, &reference).unwrap();
    }
    let (blobs, said) = versions.index(&scene, "2", &reuse);
    assert_eq!(blobs, CONFIGURATION + 3, "{said}");
    assert!(said.contains("nothing can be reused from here"), "{said}");
    let (blobs, said) = versions.index(&scene, "1", &reuse);
    assert_eq!(blobs, CONFIGURATION + 1, "{said}");
}

#[test]
fn several_images_share_what_they_share() {
    let scene = Scene::new();
    let versions = Versions::publish(&scene);
    let dir = scene.dir("archives");
    let dir = dir.to_str().unwrap();
    let (first, second) = (versions.image("1"), versions.image("2"));
    let both = ["--dir", dir, &first, &second, &first];
    let (blobs, said) = versions.run(&scene, &both);
    assert_eq!(blobs, 2 * CONFIGURATION + 4, "{said}");
    assert!(
        said.contains("[2/2] "),
        "an image named twice is indexed once: {said}"
    );
    let read = |name: &str| std::fs::read(scene.path(name)).unwrap();
    for tag in ["1", "2"] {
        versions.index(&scene, tag, &["fresh.clip"]);
        let shared = read(&format!("archives/team_app_{tag}.clip"));
        assert!(shared == read("fresh.clip"), "not the same");
    }

    // Again, it costs nothing; nor does it elsewhere, if the directory is named.
    assert_eq!(versions.run(&scene, &both).0, 2 * CONFIGURATION);
    std::fs::write(scene.path("archives/no.clip"), "no archive").unwrap();
    let (blobs, said) = versions.index(&scene, "2", &["--reuse", dir, "elsewhere.clip"]);
    assert_eq!(blobs, CONFIGURATION, "{said}");
    assert!(
        said.contains("no.clip") && said.contains("passed over"),
        "{said}"
    );

    // One that is not there keeps none of the others from being indexed.
    let none = versions.image("none");
    std::fs::remove_file(scene.path("archives/team_app_2.clip")).unwrap();
    let said = scene.run(["index", "--json", "--dir", dir, &none, &second]);
    assert_eq!(said.code, 42, "{said:?}");
    assert!(
        said.err.contains(&format!("1 of 2 images failed: {none}")),
        "{said:?}"
    );
    assert_eq!(said.out.lines().count(), 1, "{said:?}");
    assert!(scene.path("archives/team_app_2.clip").exists());
    let dead = "127.0.0.1:1/team/app:1";
    let said = scene.run(["index", "--dir", dir, &none, dead]);
    assert_eq!(said.code, 1, "one of them may be there later: {said:?}");
}

#[test]
fn images_and_files_are_told_apart() {
    let scene = Scene::new();
    scene.dir("archives");
    let wrong = |arguments: &[&str], code: i32, problem: &str| {
        let said = scene.run([&["index"], arguments].concat());
        assert_eq!(said.code, code, "{arguments:?}: {said:?}");
        assert!(said.err.contains(problem), "{arguments:?}: {said:?}");
    };
    wrong(&["alpine"], 2, "clip index alpine image.clip");
    wrong(&["alpine", "debian", "a.clip"], 2, "--dir");
    wrong(&["alpine", "archives"], 1, "--dir archives");
    wrong(&["--dir", "none", "alpine"], 1, "mkdir -p none");
    wrong(
        &["--dir", "archives", "a.example/x:1", "b.example/x:1"],
        1,
        "would both be archives/x_1.clip",
    );
    wrong(
        &[
            "--dir",
            "archives",
            "--upload",
            "http://x",
            "--token-file",
            "t",
            "alpine",
        ],
        2,
        "--upload",
    );
    for flag in ["--publish", "--reuse-from"] {
        let problem = format!("{flag}: a.example/x:1 is more than a repository: say a.example/x");
        wrong(&[flag, "a.example/x:1", "alpine", "a.clip"], 42, &problem);
    }
}

#[test]
fn the_archive_that_is_replaced_in_the_archive_service_is_reused() {
    let scene = Scene::new();
    let versions = Versions::publish(&scene);
    std::fs::write(scene.path("token"), "secret").unwrap();
    let service = Service::start();
    let upload = ["--upload", &service.url, "--token-file", "token"];
    let index = |tag: &str, more: &[&str]| versions.index(&scene, tag, &[&upload, more].concat());
    let reuse = ["--reuse-uploaded"];

    // Before the first there is none, and whatever the service says instead is no reason not to index.
    let (blobs, said) = index("1", &reuse);
    assert_eq!(blobs, CONFIGURATION + 3, "{said}");
    assert!(!said.contains("cannot be reused"), "{said}");
    let first = service.archive().expect("uploaded");

    let (blobs, said) = index("2", &reuse);
    assert_eq!(blobs, CONFIGURATION + 1, "{said}");
    let second = service.archive();
    assert_eq!(index("2", &[]).0, CONFIGURATION + 3);
    assert!(second == service.archive(), "not the same as a fresh one");

    service.keep(b"no archive");
    let (blobs, said) = index("1", &reuse);
    assert_eq!(blobs, CONFIGURATION + 3, "{said}");
    assert!(said.contains("cannot be reused"), "{said}");
    assert_eq!(service.archive(), Some(first.clone()));

    // What the service has of other images is found by layer, when there is no archive of this one.
    service.keep_of_another(&first);
    let (blobs, said) = index("2", &reuse);
    assert_eq!(blobs, CONFIGURATION + 1, "{said}");
    assert!(service.archive() == second, "not the same as a fresh one");
}

/// Keeps one archive, as the operator's archive service does for each ClipImage, and perhaps one of another image.
struct Service {
    url: String,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    archive: Option<Vec<u8>>,
    of_another: Option<Vec<u8>>,
}

impl Service {
    fn start() -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/archive?uid=1", listener.local_addr().unwrap());
        let kept = Arc::<Mutex<Kept>>::default();
        let shared = kept.clone();
        thread::spawn(move || {
            for connection in listener.incoming() {
                answer(connection.unwrap(), &mut shared.lock().unwrap()).unwrap();
            }
        });
        Service { url, kept }
    }

    fn archive(&self) -> Option<Vec<u8>> {
        self.kept.lock().unwrap().archive.clone()
    }

    fn keep(&self, bytes: &[u8]) {
        self.kept.lock().unwrap().archive = Some(bytes.to_vec());
    }

    fn keep_of_another(&self, bytes: &[u8]) {
        *self.kept.lock().unwrap() = Kept {
            archive: None,
            of_another: Some(bytes.to_vec()),
        };
    }
}

/// One request of a connection that then closes.
fn answer(mut connection: TcpStream, kept: &mut Kept) -> io::Result<()> {
    let mut request = BufReader::new(connection.try_clone()?);
    let (mut head, mut line) = (String::new(), String::new());
    while request.read_line(&mut line)? > 2 {
        head.push_str(&std::mem::take(&mut line).to_lowercase());
    }
    assert!(head.contains("authorization: bearer secret\r\n"), "{head}");
    let length = head.split("content-length: ").nth(1);
    let length = length.and_then(|rest| rest.lines().next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    request.read_exact(&mut body)?;
    let found = match head.starts_with("get /layers/sha256:") {
        true => &kept.of_another,
        false => &kept.archive,
    };
    let (status, body) = match found {
        _ if head.starts_with("put ") => {
            kept.archive = Some(body);
            ("201 Created", &[][..])
        }
        Some(archive) => ("200 OK", archive.as_slice()),
        None => ("204 No Content", &[][..]),
    };
    let len = body.len();
    write!(
        connection,
        "HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n"
    )?;
    connection.write_all(body)
}

#[test]
fn what_is_named_must_be_an_archive() {
    let scene = Scene::new();
    let versions = Versions::publish(&scene);
    std::fs::write(scene.path("no.clip"), "no archive").unwrap();
    let reference = format!("{}/team/app:1", versions.proxy.address());
    let said = scene.run(["index", "--reuse", "no.clip", &reference, "out.clip"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("--reuse no.clip: "), "{said:?}");
    for (named, problem) in [
        ("none.clip", "No such file"),
        ("/dev/zero", "not a regular file"),
    ] {
        let said = scene.run(["index", "--reuse", named, &reference, "out.clip"]);
        assert!(
            said.err.contains(&format!("--reuse {named}: {problem}")),
            "{said:?}"
        );
    }
    assert!(!scene.path("out.clip").exists());
}
