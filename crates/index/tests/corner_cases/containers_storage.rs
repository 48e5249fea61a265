//! containers/storage: `pkg/archive/{archive,diff,changes}_test.go`. It runs in
//! a chroot and follows links as the kernel does; what `peers` says of it was seen there.

use crate::harness::{check, row};
use crate::raw::{Member, dir, file, gnu, hardlink, mark, member, put, symlink};

fn files(paths: &[&str]) -> Vec<Member> {
    let one = |path: &&str| match path.ends_with('/') {
        true => dir(path).mode(0o700),
        false => mark(path).mode(0o600),
    };
    paths.iter().map(one).collect()
}

fn listing(paths: &[&str]) -> String {
    let one = |path: &&str| match path.strip_suffix('/') {
        Some(path) => format!("d {path} mode=0700"),
        None => format!("f {path} \"\" mode=0600"),
    };
    paths.iter().map(one).collect::<Vec<_>>().join("\n")
}

#[test]
fn s6_the_layers_of_apply_layer_whiteouts() {
    let base = [
        ".baz",
        "bar/",
        "bar/bax",
        "bar/bay/",
        "baz",
        "foo/",
        "foo/.abc",
        "foo/.bcd/",
        "foo/.bcd/a",
        "foo/cde/",
        "foo/cde/def",
        "foo/cde/efg",
        "foo/fgh",
        "foobar",
    ];
    let second = [
        ".bay",
        ".wh.baz",
        "foo/",
        "foo/.bce",
        "foo/.wh..wh..opq",
        "foo/cde/",
        "foo/cde/efg",
    ];
    let third = [
        ".bay",
        ".wh..baz",
        ".wh.foobar",
        "foo/",
        "foo/.abc",
        "foo/.wh.cde",
        "bar/",
    ];
    let fourth = [".abc", ".wh..wh..opq", "foobar"];
    let [base, second, third, fourth] = [&base[..], &second, &third, &fourth].map(files);
    let layers = |upto: usize| -> [Vec<Member>; 4] {
        let all = [base.clone(), second.clone(), third.clone(), fourth.clone()];
        let mut left = upto;
        all.map(|layer| {
            let keep = left > 0;
            left = left.saturating_sub(1);
            if keep { layer } else { vec![] }
        })
    };
    let rows = vec![
        row(
            "ApplyLayerWhiteouts 1",
            layers(1),
            listing(&[
                ".baz",
                "bar/",
                "bar/bax",
                "bar/bay/",
                "baz",
                "foo/",
                "foo/.abc",
                "foo/.bcd/",
                "foo/.bcd/a",
                "foo/cde/",
                "foo/cde/def",
                "foo/cde/efg",
                "foo/fgh",
                "foobar",
            ]),
        ),
        row(
            "ApplyLayerWhiteouts 2",
            layers(2),
            listing(&[
                ".bay",
                ".baz",
                "bar/",
                "bar/bax",
                "bar/bay/",
                "foo/",
                "foo/.bce",
                "foo/cde/",
                "foo/cde/efg",
                "foobar",
            ]),
        ),
        row(
            "ApplyLayerWhiteouts 3",
            layers(3),
            listing(&[
                ".bay", "bar/", "bar/bax", "bar/bay/", "foo/", "foo/.abc", "foo/.bce",
            ]),
        ),
        row(
            "ApplyLayerWhiteouts 4",
            layers(4),
            listing(&[".abc", "foobar"]),
        ),
    ];
    check("storage-whiteouts", rows);
}

#[test]
fn names_and_links_that_lead_out_stay_inside_or_are_refused() {
    let missing = |path: &str, target: &str| {
        format!(
            "refused: layer 0: {path:?} is a hard link to {target:?}, which does not exist in this layer or below"
        )
    };
    let rows = vec![
        row(
            "ApplyLayerInvalidFilenames ../",
            [vec![file("../victim/dotdot", "")]],
            "d victim\nf victim/dotdot \"\"",
        ),
        row(
            "ApplyLayerInvalidFilenames /../",
            [vec![file("/../victim/slash-dotdot", "")]],
            "d victim\nf victim/slash-dotdot \"\"",
        ),
        row(
            "ApplyLayerInvalidHardlink ../",
            [vec![hardlink("dotdot", "../victim/hello")]],
            missing("dotdot", "victim/hello"),
        ),
        row(
            "ApplyLayerInvalidHardlink /../",
            [vec![hardlink("slash-dotdot", "/../victim/hello")]],
            missing("slash-dotdot", "victim/hello"),
        ),
        row(
            "ApplyLayerInvalidHardlink, writing",
            [vec![
                hardlink("loophole-victim", "../victim"),
                file("loophole-victim/file", ""),
            ]],
            missing("loophole-victim", "victim"),
        ),
        row(
            "ApplyLayerInvalidHardlink, reading by a link",
            [vec![
                hardlink("loophole-victim", "../victim"),
                symlink("symlink", "loophole-victim/hello"),
            ]],
            missing("loophole-victim", "victim"),
        ),
        row(
            "ApplyLayerInvalidHardlink, reading by a hard link",
            [vec![
                hardlink("loophole-victim", "../victim"),
                hardlink("hardlink", "loophole-victim/hello"),
            ]],
            missing("loophole-victim", "victim"),
        ),
        row(
            "ApplyLayerInvalidHardlink, removing",
            [vec![
                hardlink("loophole-victim", "../victim"),
                file("loophole-victim", ""),
            ]],
            missing("loophole-victim", "victim"),
        ),
        row(
            "ApplyLayerInvalidSymlink ../",
            [vec![symlink("dotdot", "../victim/hello")]],
            "l dotdot -> ../victim/hello",
        ),
        row(
            "ApplyLayerInvalidSymlink /../",
            [vec![symlink("slash-dotdot", "/../victim/hello")]],
            "l slash-dotdot -> /../victim/hello",
        ),
        row(
            "ApplyLayerInvalidSymlink, writing",
            [vec![
                symlink("loophole-victim", "../victim"),
                file("loophole-victim/file", ""),
            ]],
            "l loophole-victim -> ../victim\nd victim\nf victim/file \"\"",
        )
        .peers("containers/storage refuses to follow a link to nothing; containerd and umoci make its target"),
        row(
            "ApplyLayerInvalidSymlink, reading by a link",
            [vec![
                symlink("loophole-victim", "../victim"),
                symlink("symlink", "loophole-victim/hello"),
            ]],
            "l loophole-victim -> ../victim\nl symlink -> loophole-victim/hello",
        ),
        row(
            "ApplyLayerInvalidSymlink, reading by a hard link",
            [vec![
                symlink("loophole-victim", "../victim"),
                hardlink("hardlink", "loophole-victim/hello"),
            ]],
            missing("hardlink", "loophole-victim/hello"),
        ),
        row(
            "ApplyLayerInvalidSymlink, removing",
            [vec![
                symlink("loophole-victim", "../victim"),
                file("loophole-victim", ""),
            ]],
            "f loophole-victim \"\"",
        ),
    ];
    check("storage-breakouts", rows);
}

#[test]
fn the_other_unpacking_tests() {
    let long = format!("{}/end", "subdir/".repeat(13) + "d");
    let long_listing = (1..=13)
        .map(|depth| format!("d {}", "subdir/".repeat(depth).trim_end_matches('/')))
        .chain([
            format!("d {}d", "subdir/".repeat(13)),
            format!("f {long} \"1\""),
        ])
        .collect::<Vec<_>>()
        .join("\n");
    let rows = vec![
        row(
            "TypeXGlobalHeaderDoesNotFail",
            [vec![member(b'g', "pax_global_header").content("20 comment=a commit\n"), file("f", "1")]],
            "f f \"1\"",
        )
        .peers("umoci refuses global headers"),
        row(
            "UntarUstarGnuConflict",
            [vec![file(&long, "1").edit(|block| {
                gnu(block);
                put(block, 345, b"07346545000\0");
            })]],
            long_listing,
        ),
        row(
            "UntarHardlinkToSymlink",
            [vec![
                file("symlink1", "").mode(0o600),
                symlink("symlink2", "regfile"),
                file("regfile", ""),
                hardlink("hardlink", "symlink2"),
            ]],
            r#"l hardlink -> regfile
               f regfile ""
               f symlink1 "" mode=0600
               = symlink2 hardlink"#,
        ),
        row(
            "HardLinkOrder",
            [
                vec![file("file1", "1"), file("file2", "2"), file("file3", "3")],
                vec![
                    hardlink("bbb", "file1"),
                    hardlink("zzz", "file1"),
                    hardlink("aaa", "file1"),
                ],
            ],
            r#"f aaa "1"
               = bbb aaa
               = file1 aaa
               f file2 "2"
               f file3 "3"
               = zzz aaa"#,
        ),
        row(
            "ChangesWithChangesGH13590",
            [
                vec![dir("dir1"), dir("dir1/dir2"), dir("dir1/dir2/dir3"), file("dir1/dir2/dir3/file.txt", "hello")],
                vec![dir("dir1"), dir("dir1/dir2"), dir("dir1/dir2/dir3"), file("dir1/dir2/dir3/file1.txt", "bye")],
            ],
            r#"d dir1
               d dir1/dir2
               d dir1/dir2/dir3
               f dir1/dir2/dir3/file.txt "hello"
               f dir1/dir2/dir3/file1.txt "bye""#,
        ),
        row(
            "NestedOverlayWhiteouts",
            [
                vec![dir("foo"), file("foo/bar", "1"), dir("foo/sub"), file("foo/sub/x", "2")],
                vec![dir("foo"), mark("foo/.wh..wh..opq"), dir("foo/sub"), mark("foo/sub/.wh..wh..opq"), file("foo/sub/y", "3")],
            ],
            r#"d foo
               d foo/sub
               f foo/sub/y "3""#,
        ),
        row(
            "overlay128LayerRead",
            [vec![file("a/f", "1")], vec![file("b/f", "2")], vec![mark("a/.wh.f"), file("c/f", "3")]],
            r#"d a
               d b
               f b/f "2"
               d c
               f c/f "3""#,
        ),
        row(
            "AUFS hard links",
            [vec![
                dir(".wh..wh.plnk"),
                file(".wh..wh.plnk/44.7", "1"),
                hardlink("f", ".wh..wh.plnk/44.7"),
            ]],
            r#"d .wh..wh.plnk
               f .wh..wh.plnk/44.7 "1"
               = f .wh..wh.plnk/44.7"#,
        )
        .peers("containers/storage leaves the folder out and keeps the file; containerd and umoci do as here"),
        row(
            "DoHardLink, chunked",
            [vec![file("d/f", "1"), hardlink("e/g", "d/f"), hardlink("h", "e/g")]],
            r#"d d
               f d/f "1"
               d e
               = e/g d/f
               = h d/f"#,
        ),
    ];
    check("storage-archive", rows);
}
