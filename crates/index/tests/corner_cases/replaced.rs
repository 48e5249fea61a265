//! Entries on top of each other: types that change, parents that come late, and entries below
//! symbolic links.

use crate::harness::{check, row};
use crate::raw::{dir, file, hardlink, mark, member, symlink};

#[test]
fn s6_whatever_was_there_before_the_upper_entry_wins() {
    let ghost = || vec![dir("d"), file("d/ghost", "1"), file("d/s/ghost", "1")];
    let rows = vec![
        row(
            "a directory, a file, a directory",
            [
                ghost(),
                vec![file("d", "2")],
                vec![dir("d"), file("d/new", "3")],
            ],
            "d d\nf d/new \"3\"",
        ),
        row(
            "a directory, a link, a directory",
            [
                ghost(),
                vec![symlink("d", "e")],
                vec![dir("d"), file("d/new", "3")],
            ],
            "d d\nf d/new \"3\"",
        ),
        row(
            "a directory, a file, an entry below it",
            [ghost(), vec![file("d", "2")], vec![file("d/new", "3")]],
            "d d\nf d/new \"3\"",
        )
        .peers("containerd and containers/storage refuse: not a directory"),
        row(
            "back and forth in one layer",
            [vec![
                dir("d"),
                file("d/a", "1"),
                file("d", "2"),
                dir("d"),
                file("d/b", "3"),
            ]],
            "d d\nf d/b \"3\"",
        ),
        row(
            "a file over a directory",
            [ghost(), vec![file("d", "2")]],
            "f d \"2\"",
        ),
        row(
            "a hard link over a directory",
            [ghost(), vec![file("f", "2"), hardlink("d", "f")]],
            "f d \"2\"\n= f d",
        ),
        row(
            "a device over a file",
            [vec![file("x", "1")], vec![member(b'3', "x").device(1, 3)]],
            "c x 1:3",
        ),
        row(
            "a fifo over a link",
            [vec![symlink("x", "y")], vec![member(b'6', "x")]],
            "p x",
        ),
        row(
            "a link over a fifo over a device",
            [vec![
                member(b'4', "x").device(8, 0),
                member(b'6', "x"),
                symlink("x", "y"),
            ]],
            "l x -> y",
        ),
        row(
            "a directory over a directory",
            [
                vec![dir("d").mode(0o700).owner(1, 2), file("d/a", "1")],
                vec![dir("d").mode(0o711)],
            ],
            "d d mode=0711\nf d/a \"1\"",
        ),
        row(
            "the same file twice",
            [vec![
                file("f", "1").mode(0o600),
                file("f", "22").mode(0o640),
            ]],
            "f f \"22\" mode=0640",
        ),
        row(
            "a file over one name of a hard link",
            [
                vec![file("a", "1"), hardlink("b", "a")],
                vec![file("a", "2")],
            ],
            "f a \"2\"\nf b \"1\"",
        ),
        row(
            "a case is not another case",
            [vec![file("A", "1"), file("a", "2")]],
            "f A \"1\"\nf a \"2\"",
        ),
    ];
    check("replaced-types", rows);
}

#[test]
fn s4_parents_may_come_late_or_never() {
    let rows = vec![
        row(
            "after their children",
            [vec![
                file("a/b/c", "1"),
                dir("a/b").mode(0o700),
                dir("a").mode(0o711).owner(5, 6),
            ]],
            "d a mode=0711 owner=5:6\nd a/b mode=0700\nf a/b/c \"1\"",
        ),
        row(
            "the root last",
            [vec![file("a", "1"), dir("./").mode(0o700)]],
            "d  mode=0700\nf a \"1\"",
        )
        .peers("containerd ignores entries for the root"),
        row(
            "times of the entry that implied them",
            [vec![file("a/b/c", "1").mtime(77)]],
            "d a t=77.000000000\nd a/b t=77.000000000\nf a/b/c \"1\" t=77.000000000",
        )
        .peers("unpackers leave the time of unpacking"),
        row(
            "a parent keeps its time when a layer above adds to it",
            [
                vec![dir("./"), dir("d").mtime(5)],
                vec![file("d/f", "1").mtime(9)],
            ],
            "d d t=5.000000000\nf d/f \"1\" t=9.000000000",
        )
        .peers("umoci does so, too; containerd and containers/storage leave the time of unpacking"),
        row(
            "below a directory that only a whiteout names",
            [vec![mark("a/b/.wh.c"), file("a/d", "1")]],
            "d a\nf a/d \"1\"",
        )
        .peers("containerd and containers/storage make a/b"),
    ];
    check("replaced-parents", rows);
}

/// docs/semantics.md: "An entry below a lower layer's symbolic link goes where the link points".
#[test]
fn s6_entries_below_a_lower_link_go_where_it_points() {
    let usr = |target: &str| vec![dir("usr"), dir("usr/lib"), symlink("lib", target)];
    let followed = |target: &str| format!("l lib -> {target}\nd usr\nd usr/lib\nf usr/lib/x \"1\"");
    let loops = "refused: layer 1: the parents of \"a/x\" are a loop of symbolic links";
    let overlay = "containerd on overlayfs makes a real directory instead: it unpacks a layer without those below";
    let rows = vec![
        row(
            "relative",
            [usr("usr/lib"), vec![file("lib/x", "1")]],
            followed("usr/lib"),
        )
        .peers(overlay),
        row(
            "absolute",
            [usr("/usr/lib"), vec![file("lib/x", "1")]],
            followed("/usr/lib"),
        )
        .peers(overlay),
        row(
            "up and out",
            [usr("../../../usr/lib"), vec![file("lib/x", "1")]],
            followed("../../../usr/lib"),
        )
        .peers(overlay),
        row(
            "in the same layer",
            [[usr("usr/lib"), vec![file("lib/x", "1")]].concat()],
            followed("usr/lib"),
        ),
        row(
            "dangling",
            [vec![symlink("a", "b/c")], vec![file("a/x", "1")]],
            "l a -> b/c\nd b\nd b/c\nf b/c/x \"1\"",
        )
        .peers("containers/storage refuses: no such file"),
        row(
            "a link to a link",
            [
                vec![symlink("a", "b"), symlink("b", "c"), dir("c")],
                vec![file("a/x", "1")],
            ],
            "l a -> b\nl b -> c\nd c\nf c/x \"1\"",
        ),
        row(
            "a link to a file",
            [
                vec![symlink("a", "f"), file("f", "1")],
                vec![file("a/x", "2")],
            ],
            "l a -> f\nd f\nf f/x \"2\"",
        )
        .peers("containerd and containers/storage refuse: not a directory"),
        row(
            "a loop",
            [
                vec![symlink("a", "b"), symlink("b", "a")],
                vec![file("a/x", "1")],
            ],
            loops,
        )
        .peers("umoci and containers/storage refuse, too; containerd ends at the root"),
        row(
            "a link to itself",
            [vec![symlink("a", "a")], vec![file("a/x", "1")]],
            loops,
        ),
        row(
            "a link to its own directory",
            [
                vec![dir("d"), symlink("d/self", ".")],
                vec![file("d/self/self/x", "1")],
            ],
            "d d\nl d/self -> .\nf d/x \"1\"",
        ),
        row(
            "the root by a link",
            [vec![symlink("a", "/")], vec![file("a/x", "1")]],
            "l a -> /\nf x \"1\"",
        ),
        row(
            "into the runtime's directories",
            [
                vec![symlink("a", "dev"), symlink("b", "/proc/x")],
                vec![file("a/null", "1"), file("b/y", "2")],
            ],
            "l a -> dev\nl b -> /proc/x",
        )
        .peers("S5: dev and proc are the runtime's"),
        row(
            "a whiteout below a link",
            [
                vec![
                    dir("usr/lib"),
                    file("usr/lib/x", "1"),
                    symlink("lib", "usr/lib"),
                ],
                vec![mark("lib/.wh.x")],
            ],
            "l lib -> usr/lib\nd usr\nd usr/lib",
        ),
        row(
            "an opaque mark below a link",
            [
                vec![
                    dir("usr/lib"),
                    file("usr/lib/x", "1"),
                    symlink("lib", "usr/lib"),
                ],
                vec![mark("lib/.wh..wh..opq"), file("lib/y", "2")],
            ],
            "l lib -> usr/lib\nd usr\nd usr/lib\nf usr/lib/y \"2\"",
        )
        .peers("containers/storage does not follow the link"),
        row(
            "a hard link's target below a link",
            [
                vec![
                    dir("usr/lib"),
                    file("usr/lib/x", "1"),
                    symlink("lib", "usr/lib"),
                ],
                vec![hardlink("y", "lib/x")],
            ],
            "l lib -> usr/lib\nd usr\nd usr/lib\nf usr/lib/x \"1\"\n= y usr/lib/x",
        ),
        row(
            "a directory entry replaces the link itself",
            [usr("usr/lib"), vec![dir("lib"), file("lib/x", "1")]],
            "d lib\nf lib/x \"1\"\nd usr\nd usr/lib",
        ),
        row(
            "dots behind a link are taken by the letter",
            [
                vec![dir("a/b"), symlink("l", "a/b")],
                vec![file("l/../x", "1")],
            ],
            "d a\nd a/b\nl l -> a/b\nf x \"1\"",
        ),
    ];
    check("replaced-links", rows);
}
