//! umoci: `oci/layer/tar_extract_test.go`, and the images of its bats tests.

use crate::harness::{Row, check, row};
use crate::raw::{Member, dir, file, hardlink, mark, member, symlink};

const ESCAPES: [(&str, &str); 5] = [
    ("RootPrefix", "/"),
    ("GarbagePrefix1", "/../"),
    (
        "GarbagePrefix2",
        "/../../../../../../../../../../../../../../../",
    ),
    (
        "GarbagePrefix3",
        "/./.././.././.././.././.././.././.././.././../",
    ),
    ("DotDotPrefix", ".."),
];

#[test]
fn paths_and_links_never_leave_the_root() {
    let mut rows: Vec<Row> = [
        ("SanitiseScoping/GarbagePrefix", "/.."),
        ("SanitiseScoping/DotDotPrefix", ".."),
    ]
    .map(|(name, prefix)| {
        row(
            name,
            [vec![file(format!("{prefix}/file"), "1")]],
            "f file \"1\"",
        )
    })
    .into();
    rows.extend(ESCAPES.map(|(name, prefix)| {
        row(
            name,
            [vec![symlink("link", prefix)], vec![file("link/file", "1")]],
            format!("f file \"1\"\nl link -> {prefix}"),
        )
    }));
    check("umoci-scoping", rows);
}

#[test]
fn s4_parents_are_made_also_where_a_file_is_in_the_way() {
    let rows = vec![
        row(
            "UnpackEntryNonDirParent",
            [vec![file("nondir", "1"), file("nondir/foo/bar/baz", "2")]],
            r#"d nondir
               d nondir/foo
               d nondir/foo/bar
               f nondir/foo/bar/baz "2""#,
        )
        .peers("containerd and containers/storage refuse: not a directory"),
        row(
            "UnpackEntryParentDir",
            [vec![file("a/b/c/file", "creating parentdirs")]],
            r#"d a
               d a/b
               d a/b/c
               f a/b/c/file "creating parentdirs""#,
        ),
    ];
    check("umoci-parents", rows);
}

#[test]
fn s6_whiteouts_hide_files_and_directories() {
    let cases = [
        ("FileInRoot", "", "rootpath", false),
        ("HiddenFileInRoot", "", ".hiddenroot", false),
        ("FileInSubdir", "some/path/", "file", false),
        ("HiddenFileInSubdir", "another/path/", ".hiddenfile", false),
        ("DirInRoot", "", "rootpath", true),
        ("HiddenDirInRoot", "", ".hiddenroot", true),
        ("DirInSubdir", "some/path/", "dir", true),
        ("HiddenDirInSubdir", "another/path/", ".hiddendir", true),
    ];
    let mut rows: Vec<Row> = cases
        .map(|(case, parent, name, is_dir)| {
            let lower = match is_dir {
                false => vec![file(format!("{parent}{name}"), "some value")],
                true => vec![
                    dir(format!("{parent}{name}")),
                    file(format!("{parent}{name}/file1"), "some value"),
                    file(format!("{parent}{name}/.subdir/file3"), "some value"),
                ],
            };
            let left = match parent {
                "" => "",
                "some/path/" => "d some\nd some/path",
                _ => "d another\nd another/path",
            };
            row(
                case,
                [lower, vec![mark(format!("{parent}.wh.{name}"))]],
                left,
            )
        })
        .into();
    rows.push(
        row(
            "EmptyWhiteoutName-Root",
            [vec![file("a", "1")], vec![mark(".wh.")]],
            r#"refused: tar entry ".wh.": it is a whiteout of no file"#,
        )
        .peers("umoci takes it for an opaque mark"),
    );
    rows.push(
        row(
            "EmptyWhiteoutName",
            [vec![file("d/a", "1")], vec![mark("d/.wh.")]],
            r#"refused: tar entry "d/.wh.": it is a whiteout of no file"#,
        )
        .peers("umoci takes it for an opaque mark, containers/storage removes its directory"),
    );
    check("umoci-whiteout", rows);
}

/// A member of the lower or of the upper layer.
fn lower(members: Vec<Member>) -> Vec<Member> {
    [vec![dir("test-subdir")], members].concat()
}

/// umoci puts the mark last; here it stands once last, once first.
fn opaque_rows(
    name: [&'static str; 2],
    below: Vec<Member>,
    above: Vec<Member>,
    tree: &str,
) -> [Row; 2] {
    let opaque = vec![mark("test-subdir/.wh..wh..opq")];
    [
        row(
            name[0],
            [
                lower(below.clone()),
                [above.clone(), opaque.clone()].concat(),
            ],
            tree,
        ),
        row(name[1], [lower(below), [opaque, above].concat()], tree),
    ]
}

#[test]
fn s6_opaque_marks_keep_what_their_own_layer_has() {
    let at = |path: &str| format!("test-subdir/{path}");
    let f = |path: &str| file(at(path), path);
    let l = |path: &str, target: &str| symlink(at(path), target);
    let d = |path: &str| dir(at(path));
    let far = "../../../../../../../../../../../../etc/shadow";
    let mut rows = vec![];
    rows.extend(opaque_rows(
        ["EmptyDir", "EmptyDir, mark first"],
        vec![],
        vec![],
        "d test-subdir",
    ));
    let fifo = member(b'6', at("fifo"));
    rows.extend(opaque_rows(
        ["OneLevel", "OneLevel, mark first"],
        vec![f("file"), fifo.clone()],
        vec![l("link", ".."), l("badlink", "./nothing")],
        "d test-subdir
         l test-subdir/badlink -> ./nothing
         l test-subdir/link -> ..",
    ));
    rows.extend(opaque_rows(
        ["OneLevelNoUpper", "OneLevelNoUpper, mark first"],
        vec![f("file"), l("link", ".."), l("badlink", "./nothing"), fifo],
        vec![],
        "d test-subdir",
    ));
    rows.extend(opaque_rows(
        ["TwoLevel", "TwoLevel, mark first"],
        vec![
            l("link", ".."),
            l("badlink", "./nothing"),
            l("dir/link", "../badlink"),
            l("dir/verybadlink2", far),
        ],
        vec![
            f("file"),
            d("dir"),
            f("dir/file"),
            l("dir/verybadlink", far),
        ],
        &format!(
            "d test-subdir
             d test-subdir/dir
             f test-subdir/dir/file \"dir/file\"
             l test-subdir/dir/verybadlink -> {far}
             f test-subdir/file \"file\""
        ),
    ));
    rows.extend(opaque_rows(
        ["TwoLevelNoUpper", "TwoLevelNoUpper, mark first"],
        vec![
            f("file"),
            l("link", ".."),
            d("dir"),
            f("dir/file"),
            l("dir/verybadlink", far),
        ],
        vec![],
        "d test-subdir",
    ));
    rows.extend(opaque_rows(
        ["MultiLevel", "MultiLevel, mark first"],
        vec![
            l("level1_link", ".."),
            f("level1a/level2_file"),
            d("level1a/level2a"),
            f("level1a/level2a/level3_fileA"),
            f("level1a/level2a/level3_fileB"),
            f("level1a/level2b/level3_fileB"),
            d("level1a/level2b/level3"),
            d("level1a/level2b/level3/level4"),
            d("level1b"),
            f("level1b/level2_fileA"),
            d("level1b/level2"),
            f("level1b/level2/level3_file"),
        ],
        vec![
            f("level1_file"),
            d("level1a"),
            l("level1a/level2_link", "../../../"),
            d("level1a/level2b"),
            f("level1a/level2b/level3_fileA"),
            f("level1a/level2b/level3_fileA"),
        ],
        r#"d test-subdir
           f test-subdir/level1_file "level1_file"
           d test-subdir/level1a
           l test-subdir/level1a/level2_link -> ../../../
           d test-subdir/level1a/level2b
           f test-subdir/level1a/level2b/level3_fileA "level1a/level2b/level3_fileA""#,
    ));
    rows.extend(opaque_rows(
        ["MultiLevelNoUpper", "MultiLevelNoUpper, mark first"],
        vec![
            f("level1_file"),
            d("level1a"),
            f("level1a/level2_file"),
            d("level1a/level2a"),
            f("level1a/level2a/level3_fileA"),
            d("level1b/level2"),
            f("level1b/level2/level3_file"),
        ],
        vec![],
        "d test-subdir",
    ));
    rows.extend(
        opaque_rows(
            ["MissingUpperAncestor", "MissingUpperAncestor, mark first"],
            vec![
                d("some"),
                d("some/dir"),
                d("another"),
                d("another/dir"),
                f("another/dir/somewhere"),
            ],
            vec![f("some/dir/somewhere")],
            r#"d test-subdir
           d test-subdir/some
           d test-subdir/some/dir
           f test-subdir/some/dir/somewhere "some/dir/somewhere""#,
        )
        .map(|row| {
            row.peers("containerd and containers/storage lose the file when the mark comes last")
        }),
    );
    rows.extend(
        opaque_rows(
            ["UpperWhiteout", "UpperWhiteout, mark first"],
            vec![f("fileC")],
            vec![
                f(".wh.fileB"),
                f("fileA"),
                f("fileB"),
                f(".wh.fileA"),
                f(".wh.fileC"),
            ],
            r#"d test-subdir
           f test-subdir/fileA "fileA"
           f test-subdir/fileB "fileB""#,
        )
        .map(|row| {
            row.peers("containerd and containers/storage let .wh.fileA hide fileA of its own layer")
        }),
    );
    rows.extend(
        opaque_rows(
            ["UpperDirWhiteout", "UpperDirWhiteout, mark first"],
            vec![
                f("file"),
                l("dir1/link", "../badlink"),
                l("dir1/verybadlink2", far),
                l("dir2/link", "../badlink"),
            ],
            vec![
                f(".wh.dir2"),
                d("dir1"),
                f("dir1/file"),
                l("dir1/verybadlink", far),
                f(".wh.dir1"),
                d("dir2"),
                f("dir2/file"),
            ],
            &format!(
                "d test-subdir
             d test-subdir/dir1
             f test-subdir/dir1/file \"dir1/file\"
             l test-subdir/dir1/verybadlink -> {far}
             d test-subdir/dir2
             f test-subdir/dir2/file \"dir2/file\""
            ),
        )
        .map(|row| {
            row.peers("containerd and containers/storage let .wh.dir1 hide dir1 of its own layer")
        }),
    );
    check("umoci-opaque", rows);
}

/// docs/semantics.md: "A hard link is its target's inode".
#[test]
fn s6_hard_links_share_their_inode_and_take_nothing_from_their_own_header() {
    let rows = vec![
        row(
            "UnpackHardlink",
            [vec![
                file("regular", "some content we won't check"),
                hardlink("hard link", "/regular")
                    .owner(1337, 2020)
                    .mode(0o600),
                symlink("link", "../../../regular"),
                hardlink("hard link to symlink", "../../../link").owner(1337, 2020),
            ]],
            r#"f hard link "some content we won\'t check"
           l hard link to symlink -> ../../../regular
           = link hard link to symlink
           = regular hard link"#,
        )
        .peers("containerd and containers/storage give the inode the link's owner, mode and times"),
    ];
    check("umoci-hardlink", rows);
}

#[test]
fn a_directory_over_a_link_to_a_directory_replaces_it() {
    let below = |target: &str| vec![dir("dir"), file("dir/f", "1"), symlink("link", target)];
    let replaced = "d dir\nf dir/f \"1\"\nd link\nf link/new \"2\"";
    let rows = ["dir", "../dir", "/dir", "nowhere", "link"].map(|target| {
        row(
            match target {
                "dir" => "IsDirlink/relative",
                "../dir" => "IsDirlink/up",
                "/dir" => "IsDirlink/absolute",
                "nowhere" => "IsDirlink/dangling",
                _ => "IsDirlink/loop",
            },
            [below(target), vec![dir("link"), file("link/new", "2")]],
            replaced,
        )
        .peers("umoci with --keep-dirlinks keeps the link; nobody does without")
    });
    check("umoci-dirlink", rows.into());
}

/// On-disk forms are the runtime's business, but the layers they are made of mean this.
#[test]
fn s6_layers_for_overlayfs_mean_the_same_tree() {
    let old = || vec![dir("dir"), file("dir/old", "1"), file("file", "1")];
    let rows = vec![
        row(
            "OverlayfsRootfs_Whiteout",
            [old(), vec![mark(".wh.file")]],
            "d dir\nf dir/old \"1\"",
        ),
        row(
            "OverlayfsRootfs_OpaqueWhiteout",
            [old(), vec![dir("dir"), mark("dir/.wh..wh..opq")]],
            "d dir\nf file \"1\"",
        ),
        row(
            "OverlayfsRootfs_Whiteout_MissingDirs",
            [
                old(),
                vec![mark("dir1/dir2/.wh.foo"), mark("dir3/.wh..wh..opq")],
            ],
            "d dir\nf dir/old \"1\"\nf file \"1\"",
        )
        .peers("containerd and containers/storage make the directories that hold the marks"),
        row(
            "OverlayfsRootfs_Whiteout_Nested",
            [
                old(),
                vec![
                    mark("dir/.wh.old"),
                    mark("dir/.wh..wh..opq"),
                    mark(".wh.dir"),
                    mark("dir/.wh.x"),
                ],
            ],
            "f file \"1\"",
        )
        .peers("containerd and containers/storage make dir anew for the last mark"),
        row(
            "OverlayfsRootfs_OpaqueWhiteoutConvert",
            [old(), vec![mark(".wh.dir"), file("dir/new", "2")]],
            "d dir\nf dir/new \"2\"\nf file \"1\"",
        ),
        row(
            "overlay attributes are kept",
            [vec![dir("d").pax("SCHILY.xattr.user.overlay.opaque", "y")]],
            r#"d d user.overlay.opaque="y""#,
        ),
    ];
    check("umoci-overlayfs", rows);
}

#[test]
fn the_images_of_the_bats_tests() {
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let rows = vec![
        row(
            "setuid",
            [vec![
                file("su", "").mode(0o4755),
                file("tty", "").mode(0o2755),
                dir("tmp").mode(0o1777),
            ]],
            r#"f su "" mode=4755
               d tmp mode=1777
               f tty "" mode=2755"#,
        ),
        row(
            "setcap",
            [vec![
                file("ping", "")
                    .mode(0o755)
                    .pax("SCHILY.xattr.security.capability", capability),
            ]],
            format!(
                "f ping \"\" mode=0755 security.capability=\"{}\"",
                capability.escape_ascii()
            ),
        ),
        row(
            "mknod",
            [vec![
                member(b'3', "null").device(1, 3).mode(0o666),
                member(b'4', "disk").device(8, 300).mode(0o660).owner(0, 6),
                member(b'6', "pipe"),
            ]],
            "b disk 8:300 mode=0660 owner=0:6
             c null 1:3 mode=0666
             p pipe",
        ),
        row(
            "unicode",
            [vec![file("\u{418}\u{43c}\u{44f}/\u{1f600}", "1")]],
            r#"d \xd0\x98\xd0\xbc\xd1\x8f
               f \xd0\x98\xd0\xbc\xd1\x8f/\xf0\x9f\x98\x80 "1""#,
        ),
        row(
            "xattrs",
            [
                vec![
                    dir("d")
                        .pax("SCHILY.xattr.user.a", "1")
                        .pax("SCHILY.xattr.user.b", "2"),
                ],
                vec![dir("d").pax("SCHILY.xattr.user.a", "3")],
            ],
            r#"d d user.a="3""#,
        )
        .peers("containerd and containers/storage keep user.b of the lower layer"),
    ];
    check("umoci-bats", rows);
}
