//! Paths of every shape.

use crate::harness::{check, row};
use crate::raw::{dir, file, hardlink, layer, mark, symlink};
use clip_index::TarWalker;

#[test]
fn s4_paths_are_normalised() {
    let rows = vec![
        row(
            "./",
            [vec![dir("./"), file("./a", "1"), file("./b/./c", "2")]],
            "f a \"1\"\nd b\nf b/c \"2\"",
        ),
        row(
            "/",
            [vec![dir("/"), file("/a", "1"), file("//b//c", "2")]],
            "f a \"1\"\nd b\nf b/c \"2\"",
        ),
        row(
            "..",
            [vec![file("..", "x").size(0).content("")]],
            "refused: layer 0 has an entry for the root that is not a directory",
        )
        .peers("containerd ignores entries for the root"),
        row(
            ".. as a directory",
            [vec![dir(".."), dir("../.."), file("../../a/../b", "1")]],
            "f b \"1\"",
        ),
        row(
            "...",
            [vec![file("...", "1"), file("..a", "2"), file("a..", "3")]],
            "f ... \"1\"\nf ..a \"2\"\nf a.. \"3\"",
        ),
        row(
            "empty, a directory",
            [vec![dir(""), file("a", "1")]],
            "f a \"1\"",
        ),
        row(
            "empty, a file",
            [vec![file("", "1")]],
            "refused: layer 0 has an entry for the root that is not a directory",
        )
        .peers("containerd ignores entries for the root; umoci refuses"),
        row(
            "a trailing slash on a file",
            [vec![file("a/", "1")]],
            "f a \"1\"",
        ),
        row(
            "slashes on a link",
            [vec![dir("d"), symlink("d/l///", "x")]],
            "d d\nl d/l -> x",
        ),
        row(
            "slashes on a hard link's target",
            [vec![file("a", "1"), hardlink("b", "/.//a/")]],
            "f a \"1\"\n= b a",
        )
        .peers("containerd and containers/storage: the same"),
        row(
            "a dot at the end",
            [vec![file("a/b", "1"), dir("a/.").mode(0o700)]],
            "d a mode=0700\nf a/b \"1\"",
        ),
        row(
            "up and down again",
            [vec![file("a/b/../../c/./d", "1")]],
            "d c\nf c/d \"1\"",
        ),
        row(
            "blanks and control characters",
            [vec![
                file(" ", "1"),
                file("a\nb", "2"),
                file("\x01\x7f", "3"),
                file("t\tb", "4"),
            ]],
            "f \\x01\\x7f \"3\"\nf   \"1\"\nf a\\nb \"2\"\nf t\\tb \"4\"",
        ),
        row(
            "not UTF-8",
            [vec![file(b"caf\xe9/\xff", "1"), symlink("l", b"\xfe")]],
            "d caf\\xe9\nf caf\\xe9/\\xff \"1\"\nl l -> \\xfe",
        ),
        row(
            "normal forms of Unicode are not the same",
            [vec![file("\u{e9}", "1"), file("e\u{301}", "2")]],
            "f e\\xcc\\x81 \"2\"\nf \\xc3\\xa9 \"1\"",
        ),
    ];
    check("paths", rows);
}

#[test]
fn s5_only_the_runtimes_directories_are_left_out() {
    let rows = vec![
        row(
            "proc, sys, dev",
            [vec![
                dir("proc"),
                file("sys/kernel/x", "1"),
                file("./dev//null", "2"),
                file("/dev", "3"),
                dir("process"),
                file("usr/dev/null", "4"),
                file("devices", "5"),
                mark("dev/.wh.x"),
            ]],
            "f devices \"5\"\nd process\nd usr\nd usr/dev\nf usr/dev/null \"4\"",
        ).peers("S5: unpackers unpack them; containerd and containers/storage refuse dev as file and directory"),
        row(
            "by dots",
            [vec![file("x/../dev/null", "1"), file("a", "2")]],
            "f a \"2\"",
        ).peers("S5: all three unpack it"),
    ];
    check("paths-runtime", rows);
}

#[test]
fn long_paths_up_to_what_linux_allows() {
    let component = "c".repeat(255);
    let deep = |bytes: usize| {
        let mut path = "d/".repeat(bytes / 2);
        path.truncate(bytes - 1);
        path + "f"
    };
    let too_long = |path: String, what: &str| {
        let shown = match path.len() {
            0..=256 => path,
            _ => path[..256].to_owned() + "…",
        };
        format!("refused: tar entry {shown:?}: {what}")
    };
    let rows = vec![
        row(
            "a component of 255 bytes",
            [vec![file(&component, "1")]],
            format!("f {component} \"1\""),
        ),
        row(
            "a component of 256 bytes",
            [vec![file(component.clone() + "c", "1")]],
            too_long(
                component.clone() + "c",
                "a component of its path is longer than 255 bytes",
            ),
        ),
        row(
            "a whiteout of a name of 255 bytes, which is 4 bytes longer itself",
            [
                vec![file(&component, "1"), file("a", "2")],
                vec![mark(format!(".wh.{component}"))],
            ],
            "f a \"2\"",
        ),
        row(
            "a path of 4,097 bytes",
            [vec![file(deep(4097), "1")]],
            too_long(deep(4097), "its path is longer than 4,096 bytes"),
        ),
        row(
            "long only until it is normalised",
            [vec![file("./".repeat(3000) + "a", "1")]],
            "f a \"1\"",
        )
        .peers("umoci and containers/storage do as here"),
        row(
            "a target of 4,095 bytes",
            [vec![symlink("l", "t".repeat(4095))]],
            format!("l l -> {}", "t".repeat(4095)),
        ),
        row(
            "a target of 4,096 bytes",
            [vec![symlink("l", "t".repeat(4096))]],
            "refused: tar entry \"l\": its link target is longer than 4,095 bytes",
        ),
        row(
            "no target",
            [vec![symlink("l", "")]],
            "refused: tar entry \"l\": it is a symbolic link without a target",
        ),
        row(
            "a hard link's target of 4,097 bytes",
            [vec![hardlink("h", deep(4097))]],
            "refused: tar entry \"h\": its path is longer than 4,096 bytes",
        ),
    ];
    check("paths-long", rows);
}

#[test]
fn a_path_of_4096_bytes_arrives_whole() {
    let path = "d/".repeat(2047) + "ff";
    assert_eq!(path.len(), 4096);
    let mut walker = TarWalker::new();
    walker.push(&layer([file(&path, "1")])).unwrap();
    assert_eq!(walker.finish().unwrap().entries[0].path, path.as_bytes());
}
