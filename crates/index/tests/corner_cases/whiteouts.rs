//! Whiteouts and opaque marks: in every order, at the root, of nothing, and malformed.

use crate::harness::{check, row};
use crate::raw::{Member, dir, file, hardlink, mark, member, symlink};

fn tree() -> Vec<Member> {
    vec![
        dir("d").mode(0o711),
        file("d/old", "1"),
        file("d/s/old", "2"),
        file("f", "3"),
    ]
}

/// docs/semantics.md: "Whiteouts and opaque marks hide lower layers only".
#[test]
fn s6_marks_apply_to_lower_layers_wherever_they_stand() {
    let rows = vec![
        row(
            "whiteout first, entry of that name after it",
            [tree(), vec![mark(".wh.f"), file("f", "new")]],
            "d d mode=0711\nf d/old \"1\"\nd d/s\nf d/s/old \"2\"\nf f \"new\"",
        ),
        row(
            "entry first, whiteout of that name after it",
            [tree(), vec![file("f", "new"), mark(".wh.f")]],
            "d d mode=0711\nf d/old \"1\"\nd d/s\nf d/s/old \"2\"\nf f \"new\"",
        )
        .peers("umoci keeps the entry, too; containerd and containers/storage remove it"),
        row(
            "whiteout and opaque mark of one directory",
            [
                tree(),
                vec![
                    mark(".wh.d"),
                    dir("d"),
                    mark("d/.wh..wh..opq"),
                    file("d/new", "n"),
                ],
            ],
            "d d\nf d/new \"n\"\nf f \"3\"",
        ),
        row(
            "opaque mark before the directory",
            [
                tree(),
                vec![mark("d/.wh..wh..opq"), dir("d"), file("d/new", "n")],
            ],
            "d d\nf d/new \"n\"\nf f \"3\"",
        ),
        row(
            "opaque mark between entries",
            [
                tree(),
                vec![
                    dir("d"),
                    file("d/a", "a"),
                    mark("d/.wh..wh..opq"),
                    file("d/b", "b"),
                ],
            ],
            "d d\nf d/a \"a\"\nf d/b \"b\"\nf f \"3\"",
        ),
        row(
            "opaque mark last, implied directories",
            [tree(), vec![file("d/s/new", "n"), mark("d/.wh..wh..opq")]],
            "d d mode=0711\nd d/s\nf d/s/new \"n\"\nf f \"3\"",
        )
        .peers("containerd and containers/storage lose d/s/new; umoci keeps it"),
        row(
            "opaque mark of a directory that is kept",
            [tree(), vec![mark("d/.wh..wh..opq")]],
            "d d mode=0711\nf f \"3\"",
        ),
        row(
            "opaque mark in a subdirectory",
            [tree(), vec![mark("d/s/.wh..wh..opq"), file("d/s/new", "n")]],
            "d d mode=0711\nf d/old \"1\"\nd d/s\nf d/s/new \"n\"\nf f \"3\"",
        ),
        row(
            "whiteout of a directory, its content anew",
            [tree(), vec![mark(".wh.d"), file("d/new", "n")]],
            "d d\nf d/new \"n\"\nf f \"3\"",
        ),
        row(
            "its content anew, then the whiteout",
            [tree(), vec![file("d/new", "n"), mark(".wh.d")]],
            "d d\nf d/new \"n\"\nf f \"3\"",
        )
        .peers("umoci keeps d/new below the old d; containerd and containers/storage remove d"),
        row(
            "two layers of marks",
            [
                tree(),
                vec![mark("d/.wh.old")],
                vec![mark("d/s/.wh.old")],
                vec![mark(".wh.f")],
            ],
            "d d mode=0711\nd d/s",
        ),
        row(
            "a file comes back",
            [tree(), vec![mark(".wh.f")], vec![file("f", "back")]],
            "d d mode=0711\nf d/old \"1\"\nd d/s\nf d/s/old \"2\"\nf f \"back\"",
        ),
    ];
    check("whiteouts-order", rows);
}

#[test]
fn s6_marks_at_the_root_and_of_nothing() {
    let rows = vec![
        row(
            "opaque root",
            [tree(), vec![mark(".wh..wh..opq"), file("z", "1")]],
            "f z \"1\"",
        ),
        row(
            "opaque root, mark last",
            [tree(), vec![file("z", "1"), mark(".wh..wh..opq")]],
            "f z \"1\"",
        ),
        row(
            "opaque root, written ./",
            [
                tree(),
                vec![dir("./"), mark("./.wh..wh..opq"), file("./z", "1")],
            ],
            "f z \"1\"",
        ),
        row(
            "opaque root of the first layer",
            [vec![mark(".wh..wh..opq"), file("z", "1")]],
            "f z \"1\"",
        ),
        row(
            "a whiteout of nothing",
            [vec![file("a", "1")], vec![mark(".wh.b")]],
            "f a \"1\"",
        ),
        row(
            "a whiteout below nothing",
            [vec![file("a", "1")], vec![mark("c/d/.wh.e")]],
            "f a \"1\"",
        )
        .peers("containerd and containers/storage make c/d"),
        row(
            "a whiteout below a file",
            [vec![file("a", "1")], vec![mark("a/.wh.b")]],
            "f a \"1\"",
        )
        .peers("containerd and containers/storage refuse: not a directory"),
        row(
            "an opaque mark of nothing",
            [vec![file("a", "1")], vec![mark("c/.wh..wh..opq")]],
            "f a \"1\"",
        )
        .peers("containerd and containers/storage make c"),
        row(
            "an opaque mark below a file",
            [vec![file("a", "1")], vec![mark("a/.wh..wh..opq")]],
            "f a \"1\"",
        )
        .peers("containerd and containers/storage refuse; umoci removes nothing"),
        row(
            "a whiteout in the first layer",
            [vec![file("a", "1"), mark(".wh.b")]],
            "f a \"1\"",
        ),
        row(
            "a whiteout in the first layer of its own entry",
            [vec![file("a", "1"), mark(".wh.a")]],
            "f a \"1\"",
        )
        .peers("umoci keeps it, too; containerd and containers/storage remove it"),
        row(
            "a whiteout of a link takes the link",
            [
                vec![dir("d"), file("d/f", "1"), symlink("l", "d")],
                vec![mark(".wh.l")],
            ],
            "d d\nf d/f \"1\"",
        ),
        row(
            "a whiteout of the runtime's directories",
            [
                vec![file("a", "1")],
                vec![mark(".wh.dev"), mark(".wh.proc"), mark("dev/.wh.null")],
            ],
            "f a \"1\"",
        )
        .peers("containerd and containers/storage make dev"),
        row(
            "a whiteout by a loop",
            [vec![symlink("a", "a")], vec![mark("a/.wh.b")]],
            "refused: layer 1: the parents of \"a/b\" are a loop of symbolic links",
        ),
    ];
    check("whiteouts-edges", rows);
}

#[test]
fn marks_of_odd_shape() {
    let below = || {
        vec![
            file("d/a", "1"),
            file("d/.wh", "2"),
            dir("e"),
            file("e/x", "3"),
        ]
    };
    let rest = "d d\nf d/.wh \"2\"\nf d/a \"1\"\nd e";
    let rows = vec![
        row("a whiteout that is a directory", [below(), vec![dir("d/.wh.a")]], "d d\nf d/.wh \"2\"\nd e\nf e/x \"3\""),
        row("a whiteout with content", [below(), vec![file("d/.wh.a", "content")]], "d d\nf d/.wh \"2\"\nd e\nf e/x \"3\""),
        row("a whiteout that is a link", [below(), vec![symlink("d/.wh.a", "x")]], "d d\nf d/.wh \"2\"\nd e\nf e/x \"3\""),
        row("a whiteout that is a hard link", [below(), vec![hardlink("d/.wh.a", "nothing")]], "d d\nf d/.wh \"2\"\nd e\nf e/x \"3\""),
        row("a whiteout that is a device", [below(), vec![member(b'3', "d/.wh.a")]], "d d\nf d/.wh \"2\"\nd e\nf e/x \"3\""),
        row("an opaque mark that is a directory", [below(), vec![dir("e/.wh..wh..opq/")]], rest),
        row("an opaque mark with content", [below(), vec![file("e/.wh..wh..opq", "y")]], rest),
        row("files of AUFS", [below(), vec![mark(".wh..wh.aufs"), dir(".wh..wh.orph"), mark("d/.wh..wh.foo"), mark("e/.wh..wh..opq")]], rest),
        row("almost whiteouts", [vec![file(".wh", "1"), file("wh.a", "2"), file(".whx", "3"), file("x.wh.a", "4")]],
            "f .wh \"1\"\nf .whx \"3\"\nf wh.a \"2\"\nf x.wh.a \"4\""),
        row("a character device 0:0 is one", [vec![file("a", "1")], vec![member(b'3', "a").device(0, 0).mode(0)]],
            "c a 0:0 mode=0000")
            .peers("to overlayfs it is a whiteout: a tree with one must not be an overlay's lower layer unchecked"),
        row("a long whiteout", [vec![file("n".repeat(251), "1"), file("b", "2")], vec![mark(format!(".wh.{}", "n".repeat(251)))]], "f b \"2\""),
    ];
    check("whiteouts-shapes", rows);
}

/// containerd's TestBreakouts and TestRepeatedOpaqueWhiteout.
#[test]
fn s6_containerds_whiteouts_hide_what_they_name_and_nothing_else() {
    let nothing = |path: &str| format!("refused: tar entry {path:?}: it is a whiteout of no file");
    let users = || {
        vec![
            dir("/etc/"),
            file("/etc/passwd", "all users"),
            file("/etc/whitedout", "ahhhh whiteout"),
            symlink("localetc", "/etc"),
        ]
    };
    let rows = vec![
        row(
            "WhiteoutRootParent",
            [
                vec![dir("/etc/"), file("/etc/passwd", "inside")],
                vec![mark(".wh...")],
            ],
            nothing(".wh..."),
        ),
        row(
            "WhiteoutParent",
            [
                vec![dir("/etc/"), file("/etc/passwd", "inside")],
                vec![mark("etc/.wh...")],
            ],
            nothing("etc/.wh..."),
        ),
        row(
            "WhiteoutRoot",
            [
                vec![dir("/etc/"), file("/etc/passwd", "inside")],
                vec![mark(".wh..")],
            ],
            nothing(".wh.."),
        ),
        row(
            "WhiteoutCurrentDirectory",
            [
                vec![dir("/etc/"), file("/etc/passwd", "inside")],
                vec![mark("etc/.wh..")],
            ],
            nothing("etc/.wh.."),
        )
        .peers("containers/storage removes etc"),
        row(
            "WhiteoutSymlink",
            [users(), vec![mark(".wh.localetc")]],
            r#"d etc
               f etc/passwd "all users"
               f etc/whitedout "ahhhh whiteout""#,
        ),
        row(
            "WhiteoutSymlinkPath",
            [users(), vec![mark("localetc/.wh.whitedout")]],
            r#"d etc
               f etc/passwd "all users"
               l localetc -> /etc"#,
        ),
        row(
            "WhiteoutDirectoryName",
            [users(), vec![file(".wh.etc/somefile", "non-empty")]],
            r#"d .wh.etc
               f .wh.etc/somefile "non-empty"
               d etc
               f etc/passwd "all users"
               f etc/whitedout "ahhhh whiteout"
               l localetc -> /etc"#,
        ),
        row(
            "WhiteoutDeadSymlinkParent",
            [
                vec![
                    dir("/etc/"),
                    file("/etc/passwd", "all users"),
                    symlink("localetc", "/dne"),
                ],
                vec![mark("localetc/.wh.etc")],
            ],
            r#"d etc
               f etc/passwd "all users"
               l localetc -> /dne"#,
        )
        .peers("containerd makes the directory dne"),
        row(
            "WhiteoutRelativePath",
            [users(), vec![mark("dne/../.wh.etc")]],
            "l localetc -> /etc",
        ),
        row(
            "WhiteoutOpaque",
            [
                [
                    vec![dir("/etc/"), file("/etc/passwd", "inside")],
                    vec![file("/etc/shadow", "root:secret")],
                ]
                .concat(),
                vec![mark("etc/.wh..wh..opq"), file("etc/group", "all groups")],
            ],
            r#"d etc
               f etc/group "all groups""#,
        ),
        row(
            "WhiteoutOpaqueOutOfOrder",
            [
                vec![dir("/etc/"), file("/etc/passwd", "inside")],
                vec![file("etc/group", "all groups"), mark("etc/.wh..wh..opq")],
            ],
            r#"d etc
               f etc/group "all groups""#,
        ),
        row(
            "RepeatedOpaqueWhiteout",
            [
                vec![dir("/etc/"), file("/etc/passwd", "inside")],
                vec![
                    mark("etc/.wh..wh..opq"),
                    file("etc/a", "a"),
                    mark("etc/.wh..wh..opq"),
                    file("etc/b", "b"),
                ],
            ],
            r#"d etc
               f etc/a "a"
               f etc/b "b""#,
        ),
    ];
    check("containerd-whiteouts", rows);
}
