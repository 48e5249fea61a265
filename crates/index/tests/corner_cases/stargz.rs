//! stargz (`estargz/testutil`, `metadata/testutil`, `fs/layer/testutil`), SOCI and nydus: the cases
//! that are about trees.

use crate::harness::{Row, check, row, streams};
use crate::raw::{dir, file, hardlink, mark, member, symlink};

const PREFIXES: [&str; 4] = ["", "./", "/", "../"];

#[test]
fn estargz_builds() {
    let long = "long".repeat(60);
    let rows = vec![
        row(
            "longname",
            [vec![file(&long, "1"), file("short", "2")]],
            format!("f {long} \"1\"\nf short \"2\""),
        ),
        row(
            "various_types",
            [vec![
                file("baz.txt", "bazbazbaz"),
                file("foo1.txt", "a"),
                file("bar/foo2.txt", "b"),
                file("foo3.txt", "c"),
                symlink("barlink", "test/bar.txt"),
                dir("test/"),
                dir("dev/"),
                member(b'3', "dev/chardev").device(1, 2),
                member(b'4', "blockdev").device(3, 4),
                member(b'6', "fifo1"),
                file("test/bar.txt", "testbartestbar"),
                file("test2/bar2.txt", "x"),
            ]],
            r#"d bar
               f bar/foo2.txt "b"
               l barlink -> test/bar.txt
               f baz.txt "bazbazbaz"
               b blockdev 3:4
               p fifo1
               f foo1.txt "a"
               f foo3.txt "c"
               d test
               f test/bar.txt "testbartestbar"
               d test2
               f test2/bar2.txt "x""#,
        )
        .peers("S5: dev is the runtime's"),
        row(
            "duplicated_entry",
            [vec![
                dir("d"),
                file("d/f", "first"),
                file("g", "1"),
                file("d/f", "second").mode(0o600),
            ]],
            r#"d d
               f d/f "second" mode=0600
               f g "1""#,
        ),
        row(
            "hardlink",
            [vec![
                file("a", "1"),
                hardlink("b", "a"),
                hardlink("c", "b"),
                dir("d"),
                hardlink("d/e", "c"),
            ]],
            "f a \"1\"
             = b a
             = c a
             d d
             = d/e a",
        ),
        row(
            "root_relative_file",
            [vec![dir("./"), file("./a", "1"), file("./d/../b", "2")]],
            "f a \"1\"\nf b \"2\"",
        ),
        row(
            "root_absolute_file",
            [vec![
                dir("/"),
                file("/a", "1"),
                dir("/d"),
                file("/d/b", "2"),
            ]],
            "f a \"1\"\nd d\nf d/b \"2\"",
        ),
        row(
            "block_char_fifo",
            [vec![
                member(b'4', "b").device(123, 456),
                member(b'3', "c").device(111, 222),
                member(b'6', "p"),
            ]],
            "b b 123:456
             c c 111:222
             p p",
        ),
        row(
            "modes",
            [vec![
                file("bar1", "").mode(0o644 | 0o4000),
                file("bar2", "").mode(0o755 | 0o2000),
                file("bar3", "").mode(0o755 | 0o1000),
                dir("dir1").mode(0o6755),
                dir("dir2").mode(0o7000),
                file("none", "").mode(0),
            ]],
            r#"f bar1 "" mode=4644
               f bar2 "" mode=2755
               f bar3 "" mode=1755
               d dir1 mode=6755
               d dir2 mode=7000
               f none "" mode=0000"#,
        ),
        row(
            "chunked_file",
            [vec![
                dir("foo/"),
                file("foo/big.txt", "This is such a big file".repeat(100)),
                file("x", "1"),
            ]],
            "d foo\nf foo/big.txt 2300 bytes\nf x \"1\"",
        ),
        row(
            "recursive, lossy",
            [vec![
                file("t.tar.gz", "\x1f\u{8b}"),
                file(".no.prefetch.landmark", "x"),
                file("stargz.index.json", "{}"),
            ]],
            r#"f .no.prefetch.landmark "x"
               f stargz.index.json "{}"
               f t.tar.gz "\x1f\xc2\x8b""#,
        )
        .peers("stargz hides its landmark files; runtimes unpack them, and so do we"),
        row(
            "hardlink should be replaced to the destination entry",
            [vec![file("a", "1"), hardlink("b", "a"), file("a", "2")]],
            "f a \"2\"\nf b \"1\"",
        ),
    ];
    check("stargz-build", rows);
}

#[test]
fn s4_metadata_readers_under_every_prefix() {
    let rows: Vec<Row> = PREFIXES
        .into_iter()
        .flat_map(|prefix| {
            let at = move |path: &str| format!("{prefix}{path}");
            [
                row("empty", [vec![]], ""),
                row("files", [vec![file(at("foo"), "f"), dir(at("bar/")), file(at("bar/baz.txt"), "b"), file(at("xxx.txt"), "xxx"), file(at("y.txt"), "")]],
                    "d bar\nf bar/baz.txt \"b\"\nf foo \"f\"\nf xxx.txt \"xxx\"\nf y.txt \"\""),
                row("dirs", [vec![dir(at("foo/")), dir(at("foo/dir1/")), dir(at("bar/baz/")), dir(at("bar/"))]],
                    "d bar\nd bar/baz\nd foo\nd foo/dir1"),
                row("hardlinks", [vec![file(at("foo"), "f"), hardlink(at("foolink"), at("foo")), dir(at("bar/")), hardlink(at("bar/foolink1"), at("foo")), hardlink(at("bar/1/foolink1"), at("foolink"))]],
                    "d bar\nd bar/1\nf bar/1/foolink1 \"f\"\n= bar/foolink1 bar/1/foolink1\n= foo bar/1/foolink1\n= foolink bar/1/foolink1"),
                row("slashes", [vec![file(at("bar/../bar///////////////////foo"), "1")]], "d bar\nf bar/foo \"1\""),
                row("cdev, bdev, fifo", [vec![member(b'3', at("c")).device(1, 2), member(b'4', at("b")).device(3, 4), member(b'6', at("p"))]],
                    "b b 3:4\nc c 1:2\np p"),
                row("several_files_in_chunk", [vec![dir(at("foo/")), file(at("foo/foo1"), "1"), file(at("foo2"), "22"), file(at("foo3"), "")]],
                    "d foo\nf foo/foo1 \"1\"\nf foo2 \"22\"\nf foo3 \"\""),
            ]
        })
        .collect();
    check("stargz-metadata", rows);
}

#[test]
fn nodes_of_a_layer() {
    let below = || {
        vec![
            dir("foo"),
            file("foo/bar.txt", "1"),
            file("foo/.hidden", "2"),
        ]
    };
    let rows = vec![
        row(
            "1_whiteout_with_sibling",
            [
                below(),
                vec![
                    dir("foo"),
                    mark("foo/.wh.foo.txt"),
                    file("foo/bar.txt", "3"),
                ],
            ],
            "d foo\nf foo/.hidden \"2\"\nf foo/bar.txt \"3\"",
        ),
        row(
            "1_whiteout_with_duplicated_name",
            [
                below(),
                vec![file("foo/bar.txt", "test"), mark("foo/.wh.bar.txt")],
            ],
            "d foo\nf foo/.hidden \"2\"\nf foo/bar.txt \"test\"",
        )
        .peers("containerd and containers/storage hide it, umoci and stargz show it"),
        row(
            "1_opaque",
            [below(), vec![dir("foo"), mark("foo/.wh..wh..opq")]],
            "d foo",
        ),
        row(
            "1_opaque_with_sibling",
            [
                below(),
                vec![
                    dir("foo"),
                    mark("foo/.wh..wh..opq"),
                    file("foo/baz.txt", "test"),
                ],
            ],
            "d foo\nf foo/baz.txt \"test\"",
        ),
        row(
            "1_opaque_with_xattr",
            [
                below(),
                vec![
                    dir("foo").pax("SCHILY.xattr.user.foo", "bar"),
                    mark("foo/.wh..wh..opq"),
                ],
            ],
            "d foo user.foo=\"bar\"",
        ),
        row(
            "prefetch_landmark",
            [vec![
                file(".prefetch.landmark", "test"),
                dir("foo"),
                file("foo/.prefetch.landmark", "test"),
            ]],
            "f .prefetch.landmark \"test\"\nd foo\nf foo/.prefetch.landmark \"test\"",
        )
        .peers("stargz hides the one in the root"),
        row(
            "no_prefetch_landmark",
            [vec![file(".no.prefetch.landmark", "test")]],
            "f .no.prefetch.landmark \"test\"",
        )
        .peers("stargz hides it"),
        row(
            "state_file",
            [vec![file("test", "test")]],
            "f test \"test\"",
        )
        .peers("stargz adds a state directory of its own; we add nothing"),
        row(
            "file_suid",
            [vec![file("test", "test").mode(0o4644)]],
            "f test \"test\" mode=4644",
        ),
        row(
            "dir_sgid",
            [vec![dir("test").mode(0o2755)]],
            "d test mode=2755",
        ),
        row(
            "file_sticky",
            [vec![file("test", "test").mode(0o1644)]],
            "f test \"test\" mode=1644",
        ),
        row(
            "symlink_size",
            [vec![symlink("test", "target")]],
            "l test -> target",
        ),
        row(
            "dir_dots",
            [vec![
                dir("test"),
                dir("test/.."),
                dir("test/."),
                dir("test/..."),
            ]],
            "d test\nd test/...",
        ),
    ];
    check("stargz-layer", rows);
}

#[test]
fn soci_integration_trees() {
    let rows = vec![
        row(
            "RootFolderPermission",
            [vec![dir("./").mode(0o711).owner(3, 4), file("./f", "1")]],
            "d  mode=0711 owner=3:4\nf f \"1\"",
        )
        .peers("containerd ignores entries for the root; umoci and containers/storage apply them"),
        row(
            "FullLayerRead, RunWithIdMap",
            [vec![file("f", "1").owner(100_000, 65_534)]],
            "f f \"1\" owner=100000:65534",
        ),
        row("ztoc of an empty layer", [vec![]], ""),
    ];
    check("soci", rows);
}

/// The members of `all-entry-type.tar` as its maker, GNU tar or bsdtar, writes them.
#[test]
fn nydus_textures_and_smoke_layers() {
    let apple = || file("._test", "\0\x05\x16\x07");
    let types = || {
        vec![
            dir("test/"),
            file("test/a", "1"),
            hardlink("test/b", "test/a"),
            symlink("test/c", "a"),
            member(b'6', "test/pipe"),
            member(b'3', "test/char").device(100, 1),
            member(b'4', "test/block").device(100, 2),
        ]
    };
    let listing = "d test
                   f test/a \"1\"
                   = test/b test/a
                   b test/block 100:2
                   l test/c -> a
                   c test/char 100:1
                   p test/pipe";
    let holed = vec![b'x'; 4096];
    let rows = vec![
        row("all-entry-type", [types()], listing),
        row(
            "all-entry-type-macos",
            [[vec![apple()], types()].concat()],
            format!("f ._test \"\\x00\\x05\\x16\\x07\"\n{listing}"),
        ),
        streams("empty", [vec![0; 10_240]], ""),
        streams("empty, zero bytes", [vec![]], ""),
        row(
            "zran-zero-file",
            [vec![file("zero", vec![0; 100_000])]],
            "f zero 100000 bytes",
        ),
        row(
            "large/holed file",
            [vec![
                file("holed", &holed)
                    .pax("GNU.sparse.major", "1")
                    .pax("GNU.sparse.minor", "0")
                    .pax("GNU.sparse.name", "holed")
                    .pax("GNU.sparse.realsize", "1048576")
                    .content([crate::raw::padded(b"1\n524288\n4096\n"), holed.clone()].concat()),
            ]],
            "f holed 1048576 bytes",
        ),
        row(
            "special",
            [vec![
                file("with space", "1"),
                file("-dash", "2"),
                file("back\\slash", "3"),
                file("*?[", "4"),
            ]],
            r#"f *?[ "4"
               f -dash "2"
               f back\\slash "3"
               f with space "1""#,
        ),
        row(
            "xattr",
            [vec![
                file("f", "1")
                    .pax("SCHILY.xattr.user.key1", "value1")
                    .pax("SCHILY.xattr.trusted.key2", "value2"),
            ]],
            r#"f f "1" trusted.key2="value2" user.key1="value1""#,
        )
        .peers("containerd leaves trusted attributes out; umoci and containers/storage set them"),
        row(
            "whiteout",
            [
                vec![file("a/f", "1"), file("b", "2")],
                vec![mark("a/.wh.f"), mark(".wh.b")],
            ],
            "d a",
        ),
        row(
            "opaque",
            [
                vec![file("a/f", "1"), file("a/s/g", "2")],
                vec![dir("a"), mark("a/.wh..wh..opq"), file("a/n", "3")],
            ],
            "d a\nf a/n \"3\"",
        ),
        row(
            "hard-linked symlinks do not coalesce",
            [vec![
                symlink("a", "x"),
                hardlink("b", "a"),
                symlink("c", "x"),
                hardlink("d", "c"),
            ]],
            "l a -> x\n= b a\nl c -> x\n= d c",
        ),
    ];
    check("nydus", rows);
}
