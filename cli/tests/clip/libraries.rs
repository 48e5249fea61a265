//! What a program is linked with comes with it.

use crate::scene::{PATIENCE, Published, Scene, publish};
use clip_testkit::{
    guard::{run, wait_until},
    layout::{self, Flaw, Layer},
    proxy::Mood,
};
use std::{fs::File, os::unix::fs::FileExt, path::Path, process::Command, time::Duration};
use tar::EntryType;

/// Far more than a request brings beside what it is for.
const APART: usize = 9 << 20;

/// A layer with `files` far from each other.
fn spread(files: &[(String, Vec<u8>)]) -> Layer {
    let noise = |seed| layout::noise(APART, seed);
    let first = Layer::new().file("noise/first", noise(0));
    (1..)
        .zip(files)
        .fold(first, |layer, (seed, (path, content))| {
            let path = path.trim_start_matches('/');
            let layer = layer.entry(EntryType::Regular, path, 0o755, content);
            layer.file(&format!("noise/{seed}"), noise(seed))
        })
}

fn published(scene: &Scene, layer: Layer) -> Published {
    let layout = layout::write(&scene.dir("layout"), vec![layer], Flaw::None).unwrap();
    let published = publish(&layout);
    scene.ok(["index", &published.reference, "image.clip"]);
    scene.dir("mnt");
    published
}

fn read_head(file: &Path) {
    let mut head = [0; 4096];
    let file = File::open(file).unwrap();
    file.read_exact_at(&mut head, 0).unwrap();
}

/// Until nobody asks the registry any more.
fn wait_for_quiet(published: &Published) {
    let asked = || published.proxy.ranges().len();
    wait_until("what is fetched ahead to be there", PATIENCE, || {
        let before = asked();
        // A busy machine may take a while between two requests.
        std::thread::sleep(Duration::from_millis(1500));
        before > 0 && asked() == before
    })
    .unwrap();
}

/// What ldd(1) of this machine says that `program` is linked with, by path.
fn linked_with(program: &str) -> Vec<String> {
    let said = run(Command::new("ldd").arg(program)).unwrap();
    let paths = said.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(str::to_owned).collect()
}

#[test]
fn the_libraries_of_a_program_are_there_before_its_loader_asks() {
    let program = "/bin/bash";
    let libraries = linked_with(program);
    assert!(libraries.len() >= 3, "{libraries:?}");
    let read = |path: &str| (path.to_owned(), std::fs::read(path).unwrap());
    let mut files = vec![read(program)];
    files.extend(libraries.iter().map(|path| read(path)));
    files.push(read("/bin/true"));

    let scene = Scene::new();
    let published = published(&scene, spread(&files));
    let server = scene.mount(["--read-timeout", "2", "image.clip", "mnt"]);
    read_head(&server.path().join("bin/bash"));
    wait_for_quiet(&published);
    published.proxy.set(Mood::HangUp);
    for (path, content) in &files[1..=libraries.len()] {
        let found = std::fs::read(server.path().join(&path[1..])).unwrap();
        assert!(found == *content, "{path}");
    }
    assert!(
        std::fs::read(server.path().join("bin/true")).is_err(),
        "not linked with it"
    );
    assert!(std::fs::read(server.path().join("noise/1")).is_err());
}

/// Makes `out` of one line of C.
fn compile(dir: &Path, code: &str, out: &str, options: &[&str]) -> Vec<u8> {
    std::fs::write(dir.join("code.c"), code).unwrap();
    let mut cc = Command::new("cc");
    cc.current_dir(dir)
        .args(["-o", out, "code.c"])
        .args(options);
    run(&mut cc).unwrap();
    std::fs::read(dir.join(out)).unwrap()
}

#[test]
fn libraries_are_found_beside_the_program_as_it_says_and_so_are_theirs() {
    let scene = Scene::new();
    let dir = scene.dir("made");
    let inner = compile(
        &dir,
        "int inner(void) { return 7; }",
        "libinner.so",
        &["-shared"],
    );
    let outer = compile(
        &dir,
        "int inner(void); int outer(void) { return inner(); }",
        "libouter.so",
        &["-shared", "-L.", "-linner", "-Wl,-rpath,$ORIGIN/deeper"],
    );
    let program = compile(
        &dir,
        "int outer(void); int main(void) { return outer(); }",
        "program",
        &[
            "-L.",
            "-louter",
            "-Wl,-rpath-link,.",
            "-Wl,-rpath,/nowhere:${ORIGIN}/../lib",
        ],
    );
    let other = compile(
        &dir,
        "int other(void) { return 1; }",
        "libother.so",
        &["-shared"],
    );
    let files = [
        ("opt/bin/program", program),
        ("opt/lib/libouter.so", outer),
        ("opt/lib/deeper/libinner.so", inner),
        ("opt/lib/libother.so", other),
    ];
    let files = files.map(|(path, content)| (path.to_owned(), content));
    let published = published(
        &scene,
        spread(&files).link("usr/bin/program", "/opt/bin/program"),
    );
    let server = scene.mount(["--read-timeout", "2", "image.clip", "mnt"]);
    read_head(&server.path().join("opt/bin/program"));
    wait_for_quiet(&published);
    published.proxy.set(Mood::HangUp);
    for (path, content) in &files[..3] {
        assert!(
            std::fs::read(server.path().join(path)).unwrap() == *content,
            "{path}"
        );
    }
    assert!(std::fs::read(server.path().join(&files[3].0)).is_err());
}
