//! S9: what the command says, to a person at a terminal, to a log, to a program.

use crate::{
    scene::{CLIP, Scene, publish, said},
    transcript::Transcript,
};
use clip_testkit::{
    images,
    layout::{self, Flaw, Layer},
    proxy::Mood,
};
use expect_test::expect_file;
use std::{process::Command, time::Duration};

#[test]
fn s9_indexing_inspecting_and_reading_say_what_they_did() {
    let scene = Scene::new();
    let layer = Layer::new()
        .file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
        .file("proc/self", "x")
        .dir("dev");
    layout::write(&scene.dir("layout"), vec![layer], Flaw::None).unwrap();
    let mut t = Transcript::new(&scene);
    t.heading("without and with --verbose");
    assert_eq!(t.run("index oci:layout:latest image.clip"), 0);
    assert_eq!(t.run("index --verbose oci:layout:latest image.clip"), 0);
    t.heading("CLIP_VERBOSE=1 is --verbose");
    let with_env = |value: &str| {
        let mut index = scene.clip(["index", "oci:layout:latest", "image.clip"]);
        said(index.env("CLIP_VERBOSE", value).output().unwrap()).err
    };
    t.note("index oci:layout:latest image.clip", &with_env("1"));
    assert!(with_env("1").contains("Left out runtime path /proc/self"));
    assert!(
        !with_env("0").contains("Left out runtime path"),
        "CLIP_VERBOSE=0 is not"
    );
    t.heading("looking into it");
    for words in [
        "inspect image.clip",
        "inspect --layers image.clip",
        "inspect --tree image.clip",
        "ls image.clip",
        "ls -l image.clip /etc",
        "cat --verbose image.clip /etc/passwd",
        "cat --verbose image.clip /etc/passwd",
    ] {
        assert_eq!(t.run(words), 0, "{}", t.text);
    }
    expect_file!["../golden/talk.txt"].assert_eq(&t.text);
}

#[test]
fn s9_json_is_one_object_on_stdout_and_in_the_termination_log() {
    let scene = Scene::new();
    let layout = images::image("busybox").unwrap();
    let source = format!("oci:{}:latest", layout.display());
    let said = scene.ok([
        "index",
        "--json",
        "--termination-log",
        "log",
        &source,
        "image.clip",
    ]);
    let printed: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let logged: serde_json::Value =
        serde_json::from_slice(&std::fs::read(scene.path("log")).unwrap()).unwrap();
    assert_eq!(printed, logged);
    let archive = std::fs::read(scene.path("image.clip")).unwrap();
    assert_eq!(printed["reason"], "Indexed");
    assert_eq!(printed["archiveDigest"], layout::digest_of(&archive));
    assert_eq!(printed["numbers"]["archiveBytes"], archive.len());
    assert_eq!(printed["numbers"]["layers"], 1);
    assert!(printed["numbers"]["files"].as_u64().unwrap() > 200);

    let said = scene.run([
        "index",
        "--json",
        "--termination-log",
        "log",
        "oci:nowhere",
        "x.clip",
    ]);
    assert_eq!((said.code, said.out.as_str()), (42, ""));
    let logged: serde_json::Value =
        serde_json::from_slice(&std::fs::read(scene.path("log")).unwrap()).unwrap();
    assert_eq!(logged["reason"], "InvalidLayout");
    assert!(said.err.contains(logged["message"].as_str().unwrap()));
}

#[test]
fn s9_progress_is_lines_in_a_log_and_bars_on_a_terminal() {
    let scene = Scene::new();
    let layer = Layer::new().file("blob", layout::noise(3 << 20, 1));
    let layout = layout::write(&scene.dir("layout"), vec![layer], Flaw::None).unwrap();
    let published = publish(&layout);
    published.proxy.set(Mood::Slow(Duration::from_millis(1200)));
    let said_to_a_log = scene.ok(["index", &published.reference, "image.clip"]).err;
    let lines: Vec<&str> = said_to_a_log.lines().collect();
    assert!(
        lines[0].starts_with("1 layer, 3.1 MB, sha256:"),
        "{said_to_a_log}"
    );
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("indexed ") && line.ends_with(" of 3.1 MB")),
        "{said_to_a_log}"
    );
    assert!(
        !said_to_a_log.contains('\u{1b}') && !said_to_a_log.contains('\r'),
        "{said_to_a_log:?}"
    );

    let command = format!("{CLIP} index {} image.clip", published.reference);
    let mut script = Command::new("script");
    script
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .current_dir(scene.dir.path())
        .env("TERM", "xterm")
        .env("HOME", scene.path("home"));
    let terminal = said(script.output().unwrap());
    assert_eq!(terminal.code, 0, "{}", terminal.out);
    assert!(
        terminal.out.contains('\u{1b}'),
        "bars move: {:?}",
        terminal.out
    );
    assert!(terminal.out.contains(" of 3.15 MB"), "{:?}", terminal.out);
    assert!(
        !terminal.out.contains("\nindexed "),
        "no lines: {:?}",
        terminal.out
    );
    assert!(
        terminal
            .out
            .contains("Successfully indexed image with 1 files"),
        "{:?}",
        terminal.out
    );
}
