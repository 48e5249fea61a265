//! `clip verify --cache`: what is cached is compared with the archive, beside mounts that use it.

use crate::{
    scene::{Scene, said},
    transcript::Transcript,
    verify::{CORRUPT, FITS, LATER, archive, flip, json, published, text},
};
use clip_testkit::{guard::run, proxy::Mood};
use expect_test::expect_file;
use std::{path::Path, process::Command, time::Duration};

/// What may happen to a layer's directory, by name.
type Damage = (&'static str, fn(&Path));

const DAMAGES: [Damage; 3] = [
    ("a flipped bit", |layer| flip(&layer.join("data"), 100_000)),
    ("a hole", |layer| {
        let punch = ["--punch-hole", "--offset", "131072", "--length", "8192"];
        run(Command::new("fallocate")
            .args(punch)
            .arg(layer.join("data")))
        .unwrap();
    }),
    ("cut short", |layer| {
        let data = std::fs::File::options()
            .write(true)
            .open(layer.join("data"))
            .unwrap();
        data.set_len(300_000).unwrap();
    }),
];

#[test]
fn a_cache_is_compared_without_asking_anybody() {
    let scene = Scene::new();
    let published = published(&scene);
    let mut t = Transcript::new(&scene);
    t.call(published.proxy.address(), "127.0.0.1:5000");
    let sections = archive(&scene).head().layers.clone();
    for section in sections.iter().map(|layer| layer.section_digest().hex()) {
        t.call(section, "SECTION");
    }
    t.heading("no cache, one with a little of the image, one with all of it");
    t.fail(LATER, "verify --cache image.clip");
    t.fail(LATER, "verify --cache=layout image.clip");
    scene.ok(["cat", "image.clip", "/etc/passwd"]);
    published.proxy.forget();
    assert_eq!(t.run("verify --cache image.clip"), FITS, "{}", t.text);
    scene.ok(["cat", "image.clip", "/text"]);
    published.proxy.set(Mood::HangUp);
    published.proxy.forget();
    assert_eq!(t.run("verify --cache image.clip"), FITS, "{}", t.text);
    let state = scene.state().display().to_string();
    assert_eq!(
        t.run(&format!("verify --cache={state} --layer 0 image.clip")),
        FITS,
        "{}",
        t.text
    );
    assert!(published.proxy.asked().is_empty());
    published.proxy.set(Mood::Relay);

    let layer = scene
        .state()
        .join("layers")
        .join(sections[0].section_digest().hex());
    for (name, damage) in DAMAGES {
        t.heading(name);
        damage(&layer);
        t.fail(CORRUPT, "verify --cache image.clip");
        // The remedy is what the last line says.
        assert_eq!(scene.run(["cache", "verify", "image.clip"]).code, CORRUPT);
        assert!(scene.ok(["cat", "image.clip", "/text"]).raw == text(1));
        assert_eq!(scene.run(["verify", "--cache", "image.clip"]).code, FITS);
    }
    t.heading("the expanded tree");
    let tree = std::fs::read_dir(scene.state().join("trees"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    flip(&tree.path(), 1500);
    t.call(tree.file_name().into_string().unwrap(), "TREE.erofs");
    t.fail(CORRUPT, "verify --cache image.clip");
    assert_eq!(scene.run(["cache", "verify", "image.clip"]).code, CORRUPT);
    assert!(!tree.path().exists(), "it is made anew");
    t.heading("states that the cache does not trust: it looks for itself before their next use");
    std::fs::write(
        layer.join("copy"),
        std::fs::read(layer.join("data")).unwrap(),
    )
    .unwrap();
    flip(&layer.join("copy"), 100_000);
    std::fs::rename(layer.join("copy"), layer.join("data")).unwrap();
    assert_eq!(t.run("verify --cache image.clip"), FITS, "{}", t.text);
    assert!(scene.ok(["cat", "image.clip", "/text"]).raw == text(1));
    expect_file!["../golden/verify-cache.txt"].assert_eq(&t.text);
}

#[test]
fn a_cache_in_use_is_never_called_corrupt() {
    let scene = Scene::new();
    let published = published(&scene);
    scene.dir("mnt");
    published.proxy.set(Mood::Slow(Duration::from_millis(20)));
    let server = scene.mount(["image.clip", "mnt"]);
    let file = server.path().join("text");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| assert!(std::fs::read(&file).unwrap() == text(1)));
        let mut rounds = 0;
        while !reader.is_finished() || rounds == 0 {
            let said = said(
                scene
                    .clip(["verify", "--cache", "image.clip"])
                    .output()
                    .unwrap(),
            );
            assert_eq!(said.code, FITS, "{said:?}");
            rounds += 1;
        }
    });
    let said = scene.ok(["verify", "--json", "--cache", "image.clip"]);
    let spans = archive(&scene).seek_table(0).unwrap().spans.len();
    assert_eq!(json(&said)["layers"][0]["spansPresent"], spans);
    // What was read while the check ran is still served.
    assert!(std::fs::read(&file).unwrap() == text(1));
}
