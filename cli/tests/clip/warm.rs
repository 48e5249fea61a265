//! Once the kernel knows a tree, nobody is asked any more: a walk over it sends no message to the server.

use crate::scene::{Scene, Server};
use clip_testkit::images;
use std::{os::unix::fs::MetadataExt, path::Path, time::Duration};

#[test]
fn s8_a_warm_walk_sends_no_message() {
    let scene = Scene::new();
    let archive = scene.index_layout(&images::image("alpine-like").unwrap(), "image.clip");
    let dir = scene.dir("mnt");
    let server = scene.mount([&archive, &dir]);
    let cold_from = messages(&server);
    let cold = walk(server.path());
    assert!(cold.files > 500, "{cold:?}");
    assert!(messages(&server) > cold_from, "the cold walk is seen");
    // Now and then the kernel takes a page back that nobody used for a while, and asks for it again.
    let walks: Vec<_> = (0..5)
        .map(|_| {
            let before = messages_at_rest(&server);
            assert_eq!(walk(server.path()), cold);
            messages_at_rest(&server) - before
        })
        .collect();
    assert!(walks.contains(&0), "messages of warm walks: {walks:?}");
}

/// What a walk saw.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    files: u64,
    bytes: u64,
    link_bytes: usize,
    missing: u64,
}

/// Lists, looks at, follows, opens and reads everything, and asks for a name that does not exist in every directory.
fn walk(root: &Path) -> Seen {
    let mut seen = Seen::default();
    let mut to_visit = vec![root.to_owned()];
    while let Some(dir) = to_visit.pop() {
        seen.missing += u64::from(!dir.join("no such file").exists());
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            seen.files += 1;
            if metadata.is_dir() {
                to_visit.push(path);
            } else if metadata.is_symlink() {
                seen.link_bytes += path.read_link().unwrap().as_os_str().len();
            } else {
                assert_eq!(std::fs::read(&path).unwrap().len() as u64, metadata.size());
                seen.bytes += metadata.size();
            }
        }
    }
    seen
}

/// When the server has looked for more after its last answer.
fn messages_at_rest(server: &Server) -> u64 {
    loop {
        let before = messages(server);
        std::thread::sleep(Duration::from_millis(100));
        if messages(server) == before {
            return before;
        }
    }
}

/// Each message costs the server a read(2), which the kernel counts (proc_pid_io(5)).
fn messages(server: &Server) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", server.pid())).unwrap();
    let reads = io
        .lines()
        .find_map(|line| line.strip_prefix("syscr: "))
        .unwrap();
    reads.parse().unwrap()
}
