//! Hard links: to links, to later entries, across layers, to nothing.

use crate::harness::{check, row};
use crate::raw::{dir, file, hardlink, mark, member, symlink};

fn missing(layer: usize, path: &str, target: &str) -> String {
    format!(
        "refused: layer {layer}: {path:?} is a hard link to {target:?}, which does not exist in this layer or below"
    )
}

#[test]
fn s6_hard_links_share_one_inode() {
    let rows = vec![
        row(
            "to a link of it",
            [vec![file("a", "1"), hardlink("b", "a"), hardlink("c", "b")]],
            "f a \"1\"\n= b a\n= c a",
        ),
        row(
            "to a lower layer's file",
            [vec![file("a", "1")], vec![hardlink("b", "a")]],
            "f a \"1\"\n= b a",
        ),
        row(
            "through three layers",
            [
                vec![file("a", "1")],
                vec![hardlink("b", "a")],
                vec![hardlink("c", "b")],
            ],
            "f a \"1\"\n= b a\n= c a",
        ),
        row(
            "to a symbolic link",
            [vec![symlink("s", "nowhere"), hardlink("h", "s")]],
            "l h -> nowhere\n= s h",
        ),
        row(
            "to a symbolic link below",
            [vec![symlink("s", "nowhere")], vec![hardlink("h", "s")]],
            "l h -> nowhere\n= s h",
        ),
        row(
            "to a device and a fifo",
            [vec![
                member(b'3', "c").device(1, 3),
                member(b'6', "p"),
                hardlink("c2", "c"),
                hardlink("p2", "p"),
            ]],
            "c c 1:3\n= c2 c\np p\n= p2 p",
        ),
        row(
            "with content, as pax writes them",
            [vec![file("a", "1"), hardlink("b", "a").size(0)]],
            "f a \"1\"\n= b a",
        ),
        row(
            "with a size but no content",
            [vec![
                file("a", "12345"),
                hardlink("b", "a").size(5),
                file("c", "3"),
            ]],
            "f a \"12345\"\n= b a\nf c \"3\"",
        ),
        row(
            "to later entries",
            [vec![hardlink("b", "a"), hardlink("c", "b"), file("a", "1")]],
            "f a \"1\"\n= b a\n= c a",
        )
        .peers("all three refuse"),
        row(
            "to a later entry that a lower layer has, too",
            [
                vec![file("a", "1")],
                vec![hardlink("b", "a"), file("a", "2")],
            ],
            "f a \"2\"\nf b \"1\"",
        ),
        row(
            "over another name of it",
            [vec![file("a", "1"), hardlink("b", "a"), hardlink("a", "b")]],
            "f a \"1\"\n= b a",
        ),
        row(
            "over another file",
            [
                vec![file("a", "1"), file("b", "2")],
                vec![hardlink("b", "a")],
            ],
            "f a \"1\"\n= b a",
        ),
        row(
            "its attributes are its target's",
            [vec![
                file("a", "1").mode(0o600),
                hardlink("b", "a").mode(0o777).owner(7, 7).mtime(5),
            ]],
            "f a \"1\" mode=0600\n= b a",
        )
        .peers("umoci does so, too; containerd and containers/storage apply the link's"),
        row(
            "the first name goes",
            [
                vec![file("a", "1"), hardlink("b", "a")],
                vec![mark(".wh.a")],
            ],
            "f b \"1\"",
        ),
        row(
            "the first name is replaced",
            [vec![file("a", "1"), hardlink("b", "a")], vec![dir("a")]],
            "d a\nf b \"1\"",
        ),
    ];
    check("hardlinks", rows);
}

#[test]
fn s6_hard_links_to_what_is_not_there_are_refused() {
    let rows = vec![
        row(
            "to nothing",
            [vec![hardlink("b", "a")]],
            missing(0, "b", "a"),
        ),
        row(
            "to itself",
            [vec![hardlink("a", "a")]],
            missing(0, "a", "a"),
        ),
        row(
            "over itself",
            [vec![file("a", "1"), hardlink("a", "a")]],
            "refused: layer 0: \"a\" is a hard link to \"a\", which is itself",
        ),
        row(
            "over itself by another path",
            [vec![
                dir("d"),
                symlink("l", "d"),
                file("d/a", "1"),
                hardlink("l/a", "d/a"),
            ]],
            "refused: layer 0: \"l/a\" is a hard link to \"d/a\", which is itself",
        ),
        row(
            "in a circle",
            [vec![hardlink("a", "b"), hardlink("b", "a")]],
            missing(0, "a", "b"),
        ),
        row(
            "to a directory",
            [vec![dir("d"), hardlink("b", "d")]],
            "refused: layer 0: \"b\" is a hard link to \"d\", which is a directory",
        ),
        row(
            "to the root",
            [vec![hardlink("b", "")]],
            "refused: layer 0: \"b\" is a hard link to \"\", which is a directory",
        ),
        row(
            "at the root",
            [vec![file("a", "1"), hardlink("./", "a")]],
            "refused: layer 0 has an entry for the root that is not a directory",
        )
        .peers("containerd ignores it, umoci refuses"),
        row(
            "below a file",
            [vec![file("a", "1"), hardlink("b", "a/x")]],
            missing(0, "b", "a/x"),
        ),
        row(
            "to a whiteouted file",
            [
                vec![file("a", "1")],
                vec![mark(".wh.a"), hardlink("b", "a")],
            ],
            missing(1, "b", "a"),
        ),
        row(
            "to what an opaque mark hides",
            [
                vec![file("d/a", "1")],
                vec![mark("d/.wh..wh..opq"), hardlink("b", "d/a")],
            ],
            missing(1, "b", "d/a"),
        ),
        row(
            "into the runtime's directories",
            [vec![
                member(b'3', "dev/null").device(1, 3),
                hardlink("null", "dev/null"),
            ]],
            missing(0, "null", "dev/null"),
        )
        .peers("S5: dev is the runtime's"),
        row(
            "to a file whose whiteout comes later",
            [
                vec![file("a", "1")],
                vec![hardlink("b", "a"), mark(".wh.a")],
            ],
            "f b \"1\"",
        ),
        row(
            "to a file below a directory whose whiteout comes later",
            [
                vec![file("d/a", "1")],
                vec![hardlink("b", "d/a"), mark(".wh.d")],
            ],
            "f b \"1\"",
        ),
        row(
            "to a file whose opaque mark comes later",
            [
                vec![file("d/a", "1")],
                vec![hardlink("b", "d/a"), mark("d/.wh..wh..opq")],
            ],
            "f b \"1\"\nd d",
        ),
    ];
    check("hardlinks-refused", rows);
}
