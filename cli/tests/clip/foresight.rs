//! What a command, a program or a package names is there before it is asked for.

use crate::scene::{PATIENCE, Published, Scene, publish};
use clip_testkit::{
    guard::{run, wait_until},
    layout::{self, Flaw, Layer},
    proxy::Mood,
};
use serde_json::{Value, json};
use std::{os::unix::fs::FileExt, path::Path, process::Command, time::Duration};
use tar::EntryType;

/// Far more than a request brings beside what it is for.
const APART: usize = 9 << 20;

/// A file by its path.
type File = (String, Vec<u8>);

/// A layer with `files` far from each other.
fn spread(files: &[File]) -> Layer {
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
    published_with(scene, layer, json!({}))
}

/// The same, of which a container runs what `config` says.
fn published_with(scene: &Scene, layer: Layer, config: Value) -> Published {
    let base = layout::write(&scene.dir("base"), vec![Layer::new()], Flaw::None).unwrap();
    let layout = layout::on_top(&scene.dir("layout"), &base, layer, config).unwrap();
    let published = publish(&layout);
    scene.ok(["index", &published.reference, "image.clip"]);
    scene.dir("mnt");
    published.proxy.forget();
    published
}

fn read_head(file: &Path) {
    let mut head = [0; 4096];
    let file = std::fs::File::open(file).unwrap();
    file.read_at(&mut head, 0).unwrap();
}

/// A file of this machine.
fn of_this_machine(path: &str) -> File {
    (path.to_owned(), std::fs::read(path).unwrap())
}

fn assert_there(root: &Path, files: &[File]) {
    for (path, content) in files {
        let found = std::fs::read(root.join(path.trim_start_matches('/')));
        assert!(found.is_ok_and(|found| found == *content), "{path}");
    }
}

fn assert_not_there(root: &Path, paths: &[&str]) {
    for path in paths {
        std::fs::read(root.join(path)).expect_err(path);
    }
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
    let mut files = vec![of_this_machine(program)];
    files.extend(libraries.iter().map(|path| of_this_machine(path)));
    files.push(of_this_machine("/bin/true"));

    let scene = Scene::new();
    let published = published(&scene, spread(&files));
    let server = scene.mount(["--read-timeout", "2", "image.clip", "mnt"]);
    read_head(&server.path().join("bin/bash"));
    wait_for_quiet(&published);
    published.proxy.set(Mood::HangUp);
    assert_there(server.path(), &files[1..=libraries.len()]);
    // Not linked with it.
    assert_not_there(server.path(), &["bin/true", "noise/1"]);
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
    // Read, or run by way of a link, beside which nothing lies.
    for command in [json!([]), json!(["program"])] {
        let scene = Scene::new();
        let layer = spread(&files).link("usr/bin/program", "/opt/bin/program");
        let published = published_with(&scene, layer, json!({ "Cmd": command }));
        let server = scene.mount(["--read-timeout", "2", "image.clip", "mnt"]);
        if command == json!([]) {
            read_head(&server.path().join("opt/bin/program"));
        }
        wait_for_quiet(&published);
        published.proxy.set(Mood::HangUp);
        assert_there(server.path(), &files[..3]);
        assert_not_there(server.path(), &[&files[3].0]);
    }
}

/// docs/semantics.md: "What a container runs first is on its way before the container is".
#[test]
fn s7_what_a_container_runs_first_is_on_its_way_before_the_container_is() {
    let program = "/usr/bin/bash";
    let mut files = vec![
        (
            "/opt/tools/start".to_owned(),
            b"#!/usr/bin/env bash\ncat $1\n".to_vec(),
        ),
        ("/srv/text".to_owned(), b"what it is started with".to_vec()),
        of_this_machine("/usr/bin/env"),
        of_this_machine(program),
    ];
    let libraries = linked_with(program);
    files.extend(libraries.iter().map(|path| of_this_machine(path)));
    let expected = files.len();
    files.push(of_this_machine("/bin/true"));
    let config = json!({
        "Entrypoint": ["start"], "Cmd": ["--", "text", "true enough"], "WorkingDir": "/srv",
        "Env": ["PATH=/opt/tools:/nowhere:/usr/bin"],
    });
    let scene = Scene::new();
    let published = published_with(&scene, spread(&files), config);

    let server = scene.mount(["--read-timeout", "2", "image.clip", "mnt"]);
    wait_for_quiet(&published);
    published.proxy.set(Mood::HangUp);
    assert_there(server.path(), &files[..expected]);
    assert_not_there(server.path(), &["bin/true", "noise/1"]);
    drop(server);

    // It was started on this node before.
    published.proxy.set(Mood::Relay);
    published.proxy.forget();
    let server = scene.mount(["image.clip", "mnt"]);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(published.proxy.ranges(), []);
    drop(server);
}

#[test]
fn a_package_comes_with_what_it_depends_on_and_an_application_does_not() {
    let file = |path: &str, content: &str| (path.to_owned(), content.as_bytes().to_vec());
    let files = [
        file(
            "app/node_modules/a/package.json",
            r#"{"main": "lib/main", "dependencies": {"@s/b": "1", "missing": "2"}}"#,
        ),
        file("app/node_modules/a/lib/main.js", "require('@s/b')"),
        file(
            "app/node_modules/@s/b/package.json",
            r#"{"exports": {".": {"import": "./b.mjs", "require": "./b.cjs"}}, "dependencies": {"a": "1"}}"#,
        ),
        file("app/node_modules/@s/b/b.cjs", "module.exports = 7"),
        file("app/node_modules/@s/b/b.mjs", "export default 7"),
        file("app/node_modules/c/package.json", "{}"),
        file(
            "app/package.json",
            r#"{"dependencies": {"a": "1", "c": "1"}}"#,
        ),
    ];
    let scene = Scene::new();
    let published = published(&scene, spread(&files));
    let server = scene.mount(["--read-timeout", "2", "image.clip", "mnt"]);
    read_head(&server.path().join(&files[6].0));
    wait_for_quiet(&published);
    let of_the_application = published.proxy.ranges().len();
    assert_eq!(of_the_application, 1, "nothing but itself");
    read_head(&server.path().join(&files[0].0));
    wait_for_quiet(&published);
    published.proxy.set(Mood::HangUp);
    assert_there(server.path(), &files[..4]);
    assert_not_there(server.path(), &[&files[4].0, &files[5].0]);
}

#[test]
fn a_made_up_command_does_not_have_its_image_downloaded() {
    const MIB: usize = 1 << 20;
    let names: Vec<_> = (0..100).map(|number| format!("part-{number}")).collect();
    let layer = names
        .iter()
        .zip(0..)
        .fold(Layer::new(), |layer, (name, seed)| {
            layer.file(name, layout::noise(MIB, seed))
        });
    let scene = Scene::new();
    let published = published_with(&scene, layer, json!({ "Cmd": names }));
    let _server = scene.mount(["image.clip", "mnt"]);
    wait_for_quiet(&published);
    let fetched = published.proxy.body_bytes() as usize / MIB;
    assert!((32..=70).contains(&fetched), "{fetched} MiB");
}

#[test]
fn a_made_up_command_is_not_looked_up_for_ever() {
    let mut words: Vec<_> = (0..400).map(|number| format!("nothing-{number}")).collect();
    words.push("part".to_owned());
    let dirs: Vec<_> = (0..200)
        .map(|number| format!("/nowhere-{number}"))
        .collect();
    let layer = || Layer::new().file("part", "there");
    let is_fetched = |words: &[String], dirs: &[String]| {
        let scene = Scene::new();
        let path = format!("PATH={}", dirs.join(":"));
        let published = published_with(&scene, layer(), json!({ "Cmd": words, "Env": [path] }));
        let _server = scene.mount(["image.clip", "mnt"]);
        std::thread::sleep(Duration::from_secs(2));
        !published.proxy.ranges().is_empty()
    };
    assert!(is_fetched(&words, &dirs[..10]));
    assert!(!is_fetched(&words, &dirs));
}
