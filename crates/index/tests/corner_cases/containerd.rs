//! containerd: `pkg/archive/tar_test.go` (TestBreakouts, TestApplyTar, TestTarWithXattr) and
//! `issues_test.go`.

use crate::harness::{check, row, streams};
use crate::raw::{Member, dir, file, gnu, hardlink, layer, member, put, symlink};

/// The lower layer of most cases.
fn etc_passwd() -> Vec<Member> {
    vec![dir("/etc/"), file("/etc/passwd", "inside")]
}

#[test]
fn breakouts_through_symbolic_links_stay_inside() {
    let etc = || dir("etc");
    let unbroken = |path| file(path, "unbroken");
    let rows = vec![
        row(
            "SymlinkAbsolute",
            [vec![
                etc(),
                symlink("localetc", "/etc"),
                unbroken("/localetc/unbroken"),
            ]],
            r#"d etc
               f etc/unbroken "unbroken"
               l localetc -> /etc"#,
        ),
        row(
            "SymlinkUpAndOut",
            [vec![
                etc(),
                dir("dummy"),
                symlink("localetc", "/dummy/../etc"),
                unbroken("/localetc/unbroken"),
            ]],
            r#"d dummy
               d etc
               f etc/unbroken "unbroken"
               l localetc -> /dummy/../etc"#,
        ),
        row(
            "SymlinkMultipleAbsolute",
            [vec![
                etc(),
                dir("dummy"),
                symlink("/dummy/etc", "/etc"),
                symlink("localetc", "/dummy/etc"),
                unbroken("/dummy/etc/unbroken"),
            ]],
            r#"d dummy
               l dummy/etc -> /etc
               d etc
               f etc/unbroken "unbroken"
               l localetc -> /dummy/etc"#,
        ),
        row(
            "SymlinkMultipleRelative",
            [vec![
                etc(),
                dir("dummy"),
                symlink("/dummy/etc", "/etc"),
                symlink("localetc", "./dummy/etc"),
                unbroken("/dummy/etc/unbroken"),
            ]],
            r#"d dummy
               l dummy/etc -> /etc
               d etc
               f etc/unbroken "unbroken"
               l localetc -> ./dummy/etc"#,
        ),
        row(
            "SymlinkEmptyFile",
            [vec![
                etc(),
                file("etc/emptied", "notempty"),
                symlink("localetc", "/etc"),
                file("/localetc/emptied", ""),
            ]],
            r#"d etc
               f etc/emptied ""
               l localetc -> /etc"#,
        ),
        row(
            "SymlinkOverridePath",
            [vec![
                dir("foo"),
                dir("foo/tmp"),
                file("foo/tmp/breakout", "012"),
                symlink("foo", "/"),
                file("foo/tmp/breakout", "345"),
                dir("foo"),
                dir("foo/tmp"),
                file("foo/tmp/breakout", "678"),
            ]],
            r#"d foo
               d foo/tmp
               f foo/tmp/breakout "678"
               d tmp
               f tmp/breakout "345""#,
        ),
    ];
    check("containerd-symlinks", rows);
}

#[test]
fn hard_links_find_their_targets_inside() {
    let base = || vec![dir("etc").mode(0o770), file("/etc/passwd", "inside")];
    let with = |more: Vec<Member>| [base(), more].concat();
    let linked = |link_line: &str, name: &str| {
        format!("d etc mode=0770\nf etc/passwd \"inside\"\n{link_line}\n= {name} etc/passwd")
    };
    let rows = vec![
        row(
            "HardlinkRelative",
            [with(vec![
                dir("breakouts"),
                symlink("breakouts/d1", "../../etc"),
                hardlink("breakouts/mypasswd", "/breakouts/d1/passwd"),
            ])],
            r#"d breakouts
               l breakouts/d1 -> ../../etc
               f breakouts/mypasswd "inside"
               d etc mode=0770
               = etc/passwd breakouts/mypasswd"#,
        ),
        row(
            "HardlinkDownAndOut",
            [with(vec![
                dir("breakouts"),
                dir("downandout"),
                symlink("breakouts/d1", "../downandout/../../etc"),
                hardlink("breakouts/mypasswd", "/breakouts/d1/passwd"),
            ])],
            r#"d breakouts
               l breakouts/d1 -> ../downandout/../../etc
               f breakouts/mypasswd "inside"
               d downandout
               d etc mode=0770
               = etc/passwd breakouts/mypasswd"#,
        ),
        row(
            "HardlinkAbsolute",
            [with(vec![
                symlink("localetc", "/etc"),
                hardlink("localpasswd", "/localetc/passwd"),
            ])],
            linked("l localetc -> /etc", "localpasswd"),
        ),
        row(
            "HardlinkRelativeLong",
            [with(vec![
                symlink("localetc", "../../../../../../../etc"),
                hardlink("localpasswd", "/localetc/passwd"),
            ])],
            linked("l localetc -> ../../../../../../../etc", "localpasswd"),
        ),
        row(
            "HardlinkRelativeUpAndOut",
            [with(vec![
                symlink("localetc", "upandout/../../../etc"),
                hardlink("localpasswd", "/localetc/passwd"),
            ])],
            linked("l localetc -> upandout/../../../etc", "localpasswd"),
        )
        .peers("containerd and umoci follow `..` behind a name that does not exist; containers/storage refuses"),
        row(
            "HardlinkDirectRelative",
            [with(vec![hardlink(
                "localpasswd",
                "../../../../../etc/passwd",
            )])],
            linked("", "localpasswd").replace("\n\n", "\n"),
        ),
        row(
            "HardlinkDirectAbsolute",
            [with(vec![hardlink("localpasswd", "/etc/passwd")])],
            linked("", "localpasswd").replace("\n\n", "\n"),
        ),
        row(
            "SymlinkParentDirectory",
            [with(vec![
                symlink("..", "/etc/"),
                hardlink("localpasswd", "/etc/passwd"),
            ])],
            "refused: layer 0 has an entry for the root that is not a directory",
        )
        .peers("containerd ignores entries for the root; umoci refuses"),
        row(
            "SymlinkEmptyFilename",
            [with(vec![
                symlink("", "/etc/"),
                hardlink("localpasswd", "/etc/passwd"),
            ])],
            "refused: layer 0 has an entry for the root that is not a directory",
        )
        .peers("containerd ignores entries for the root; umoci refuses"),
        row(
            "SymlinkParentRelative",
            [with(vec![
                symlink("localetc/sub/..", "/etc/"),
                hardlink("/localetc/localpasswd", "/etc/passwd"),
            ])],
            r#"d etc mode=0770
               f etc/localpasswd "inside"
               = etc/passwd etc/localpasswd
               l localetc -> /etc/"#,
        ),
        row(
            "SymlinkSlashEnded",
            [with(vec![
                dir("localetc/").mode(0o770),
                hardlink("/localetc/localpasswd", "/etc/passwd"),
            ])],
            r#"d etc mode=0770
               f etc/passwd "inside"
               d localetc mode=0770
               = localetc/localpasswd etc/passwd"#,
        ),
        row(
            "HardlinkSymlinkBeforeCreateTarget",
            [vec![
                dir("etc").mode(0o770),
                symlink("localpasswd", "/etc/passwd"),
                hardlink("localpasswd-dup", "localpasswd"),
                file("/etc/passwd", "after"),
            ]],
            r#"d etc mode=0770
               f etc/passwd "after"
               l localpasswd -> /etc/passwd
               = localpasswd-dup localpasswd"#,
        ),
        row(
            "HardlinkSymlinkRelative",
            [with(vec![
                symlink("passwdlink", "../../../../../etc/passwd"),
                hardlink("localpasswd", "/passwdlink"),
            ])],
            r#"d etc mode=0770
               f etc/passwd "inside"
               l localpasswd -> ../../../../../etc/passwd
               = passwdlink localpasswd"#,
        ),
        row(
            "HardlinkSymlinkAbsolute",
            [with(vec![
                symlink("passwdlink", "/etc/passwd"),
                hardlink("localpasswd", "/passwdlink"),
            ])],
            r#"d etc mode=0770
               f etc/passwd "inside"
               l localpasswd -> /etc/passwd
               = passwdlink localpasswd"#,
        ),
        row(
            "HardlinkSymlinkChmod",
            [vec![
                symlink("/tmp/also", "/tmp/perm400"),
                hardlink("sketchylink", "/tmp/also").mode(0o640),
            ]],
            r#"l sketchylink -> /tmp/perm400
               d tmp
               = tmp/also sketchylink"#,
        ),
    ];
    check("containerd-hardlinks", rows);
}

#[test]
fn directories_and_symbolic_links_replace_each_other() {
    let rows = vec![
        row(
            "SymlinkOverrideDirectory",
            [
                [etc_passwd(), vec![dir("/localetc/")]].concat(),
                vec![
                    symlink("localetc", "/etc"),
                    hardlink("/localetc/localpasswd", "/etc/passwd"),
                ],
            ],
            r#"d etc
               f etc/localpasswd "inside"
               = etc/passwd etc/localpasswd
               l localetc -> /etc"#,
        ),
        row(
            "SymlinkOverrideDirectoryRelative",
            [
                [etc_passwd(), vec![dir("/localetc/")]].concat(),
                vec![
                    symlink("localetc", "../../etc"),
                    hardlink("/localetc/localpasswd", "/etc/passwd"),
                ],
            ],
            r#"d etc
               f etc/localpasswd "inside"
               = etc/passwd etc/localpasswd
               l localetc -> ../../etc"#,
        ),
        row(
            "DirectoryOverrideSymlink",
            [
                [etc_passwd(), vec![symlink("localetc", "/etc")]].concat(),
                vec![
                    dir("/localetc/"),
                    hardlink("/localetc/localpasswd", "/etc/passwd"),
                ],
            ],
            r#"d etc
               f etc/passwd "inside"
               d localetc
               = localetc/localpasswd etc/passwd"#,
        ),
        row(
            "DirectoryOverrideSymlinkAndHardlink",
            [
                [
                    etc_passwd(),
                    vec![
                        symlink("localetc", "etc"),
                        hardlink("/localetc/localpasswd", "/etc/passwd"),
                    ],
                ]
                .concat(),
                vec![
                    dir("/localetc/"),
                    file("/localetc/localpasswd", "different"),
                ],
            ],
            r#"d etc
               f etc/localpasswd "inside"
               = etc/passwd etc/localpasswd
               d localetc
               f localetc/localpasswd "different""#,
        ),
    ];
    check("containerd-overrides", rows);
}

/// docs/semantics.md: "Every parent directory exists".
#[test]
fn s4_directories_are_created_without_entries_for_their_parents() {
    let rows = vec![row(
        "DirectoryCreation",
        [
            vec![dir("/etc/")],
            vec![
                dir("/etc/subdir"),
                dir("/etc/subdir2/"),
                dir("/etc/subdir2/more"),
                dir("/other/noparent-1/1"),
                dir("/other/noparent-2/2/"),
            ],
        ],
        "d etc
         d etc/subdir
         d etc/subdir2
         d etc/subdir2/more
         d other
         d other/noparent-1
         d other/noparent-1/1
         d other/noparent-2
         d other/noparent-2/2",
    )];
    check("containerd-apply", rows);
}

#[test]
fn extended_attributes_are_kept() {
    let rows = vec![
        row(
            "WithXattrsUser",
            [vec![
                file("f", "1").pax("SCHILY.xattr.user.key", "value\0\x01"),
            ]],
            r#"f f "1" user.key="value\x00\x01""#,
        ),
        row(
            "WithXattrSelinux",
            [vec![
                file("f", "1").pax("SCHILY.xattr.security.selinux", "unconfined_u"),
            ]],
            r#"f f "1" security.selinux="unconfined_u""#,
        )
        .peers("umoci and containers/storage leave SELinux labels to the host"),
    ];
    check("containerd-xattrs", rows);
}

#[test]
fn the_prefix_that_old_go_wrote_into_gnu_headers_is_read() {
    let old_go = member(b'0', "foo").size(6).edit(|block| {
        gnu(block);
        put(block, 345, &[b'a'; 97]);
    });
    let mut stream = old_go.blocks();
    stream.extend(crate::raw::padded(b"foobar"));
    let dir_name = "a".repeat(97);
    let rows = vec![
        streams(
            "TestPrefixHeaderReadable",
            [stream],
            format!("d {dir_name}\nf {dir_name}/foo \"foobar\""),
        ),
        streams(
            "GNU times are no prefix",
            [layer([file("foo", "1").edit(|block| {
                gnu(block);
                put(block, 345, b"07346545000\x0007346545000\0");
            })])],
            "f foo \"1\"",
        ),
        streams(
            "what is neither time nor ASCII is no prefix",
            [layer([file("foo", "1").edit(|block| {
                gnu(block);
                put(block, 345, b"b\xFFd");
            })])],
            "f foo \"1\"",
        ),
    ];
    check("containerd-issues", rows);
}
