//! containerd: `pkg/archive/tar_test.go` (TestBreakouts, TestApplyTar, TestDiffTar, TestTarWithXattr),
//! `issues_test.go`, and the FSSuite of `continuity/fs/fstest`.

use crate::harness::{check, row, streams};
use crate::raw::{Member, dir, file, gnu, hardlink, layer, mark, member, put, symlink};

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
        .peers("all three follow `..` behind a name that does not exist, as here"),
        row(
            "HardlinkDirectRelative",
            [with(vec![hardlink(
                "localpasswd",
                "../../../../../etc/passwd",
            )])],
            linked("", "localpasswd").replace("\n\n", "\n"),
        )
        .peers("containers/storage refuses: breakout"),
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
        )
        .peers("containers/storage refuses such a link: breakout"),
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

#[test]
fn whiteouts_hide_what_they_name_and_nothing_else() {
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
            [etc_passwd(), vec![mark(".wh...")]],
            nothing(".wh..."),
        )
        .peers("umoci and containers/storage would remove the root's parent"),
        row(
            "WhiteoutParent",
            [etc_passwd(), vec![mark("etc/.wh...")]],
            nothing("etc/.wh..."),
        )
        .peers("umoci and containers/storage empty the image"),
        row(
            "WhiteoutRoot",
            [etc_passwd(), vec![mark(".wh..")]],
            nothing(".wh.."),
        )
        .peers("umoci and containers/storage empty the image"),
        row(
            "WhiteoutCurrentDirectory",
            [etc_passwd(), vec![mark("etc/.wh..")]],
            nothing("etc/.wh.."),
        )
        .peers("umoci and containers/storage remove etc"),
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
                [etc_passwd(), vec![file("/etc/shadow", "root:secret")]].concat(),
                vec![mark("etc/.wh..wh..opq"), file("etc/group", "all groups")],
            ],
            r#"d etc
               f etc/group "all groups""#,
        ),
        row(
            "WhiteoutOpaqueOutOfOrder",
            [
                etc_passwd(),
                vec![file("etc/group", "all groups"), mark("etc/.wh..wh..opq")],
            ],
            r#"d etc
               f etc/group "all groups""#,
        ),
        row(
            "RepeatedOpaqueWhiteout",
            [
                etc_passwd(),
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

/// What containerd's diff writes for these changes, applied on what was there before.
#[test]
fn layers_of_containerds_diff_apply() {
    let rows = vec![
        row(
            "ParentInclusion",
            [
                vec![dir("d1/"), dir("d2/").mode(0o770)],
                vec![
                    dir("d1/"),
                    dir("d1/d/").mode(0o700),
                    dir("d2/").mode(0o770),
                    file("d2/f", "ok"),
                ],
            ],
            r#"d d1
               d d1/d mode=0700
               d d2 mode=0770
               f d2/f "ok""#,
        ),
        row(
            "HardlinkParentInclusion",
            [
                vec![
                    dir("d1/"),
                    file("d1/f1", "link me"),
                    dir("d3/"),
                    dir("d4/"),
                    file("d4/f1", "link me"),
                    dir("d5/"),
                    file("d5/f1", "link me"),
                    dir("d6/"),
                    hardlink("d6/l1", "d1/f1"),
                    hardlink("d6/l2", "d5/f1"),
                ],
                vec![
                    dir("d2/"),
                    file("d2/l1", "link me"),
                    dir("d1/"),
                    hardlink("d1/f1", "d2/l1"),
                    dir("d3/"),
                    file("d3/l1", "link me"),
                    dir("d4/"),
                    hardlink("d4/f1", "d3/l1"),
                    dir("d6/"),
                    mark("d6/.wh.l1"),
                    mark("d6/.wh.l2"),
                ],
            ],
            r#"d d1
               f d1/f1 "link me"
               d d2
               = d2/l1 d1/f1
               d d3
               f d3/l1 "link me"
               d d4
               = d4/f1 d3/l1
               d d5
               f d5/f1 "link me"
               d d6"#,
        ),
        row(
            "UpdateDirectoryPermission",
            [
                vec![dir("d1/"), dir("d2/").mode(0o770)],
                vec![
                    dir("d1/").mode(0o777),
                    dir("d1/d/").mode(0o700),
                    dir("d2/").mode(0o770),
                    file("d2/f", "ok"),
                ],
            ],
            r#"d d1 mode=0777
               d d1/d mode=0700
               d d2 mode=0770
               f d2/f "ok""#,
        ),
        row(
            "HardlinkUpdatedParent",
            [
                vec![
                    dir("d1/"),
                    file("d1/f1", "1"),
                    dir("d2/"),
                    hardlink("d2/f1", "d1/f1"),
                ],
                vec![
                    dir("d1/").mode(0o711),
                    dir("d2/"),
                    hardlink("d2/f2", "d1/f1"),
                ],
            ],
            r#"d d1 mode=0711
               f d1/f1 "1"
               d d2
               = d2/f1 d1/f1
               = d2/f2 d1/f1"#,
        ),
        row(
            "WhiteoutIncludesParents",
            [
                vec![
                    dir("d1/"),
                    file("d1/f1", "1"),
                    dir("d2/"),
                    dir("d2/s/"),
                    file("d2/s/f", ""),
                ],
                vec![
                    dir("d1/"),
                    mark("d1/.wh.f1"),
                    dir("d2/"),
                    dir("d2/s/"),
                    mark("d2/s/.wh.f"),
                ],
            ],
            "d d1
             d d2
             d d2/s",
        ),
        row(
            "WhiteoutParentRemoval",
            [
                vec![
                    dir("d1/"),
                    file("d1/f1", "1"),
                    file("d1/f2", "2"),
                    dir("d2/"),
                ],
                vec![mark(".wh.d1"), mark(".wh.d2")],
            ],
            "",
        ),
        row(
            "IgnoreSockets",
            [vec![file("f2", "content")]],
            "f f2 \"content\"",
        )
        .peers("no tar holds a socket"),
    ];
    check("containerd-diff", rows);
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

/// Each change as a layer of its own.
#[test]
fn the_filesystem_suite_of_continuity_applies() {
    let base = || {
        vec![
            dir("etc/"),
            file("etc/hosts", "127.0.0.1 localhost"),
            hardlink("etc/hosts.allow", "etc/hosts"),
            dir("usr/"),
            dir("usr/local/"),
            dir("usr/local/lib/"),
            file("usr/local/lib/libnothing.so", "\0\0").mode(0o755),
            symlink("usr/local/lib/libnothing.so.2", "libnothing.so"),
            dir("home/"),
            dir("home/derek/").mode(0o700),
        ]
    };
    let lib = "d usr
               d usr/local
               d usr/local/lib
               f usr/local/lib/libnothing.so \"\\x00\\x00\" mode=0755
               l usr/local/lib/libnothing.so.2 -> libnothing.so";
    let modified = || file("etc/hosts", "127.0.0.1 localhost.localdomain");
    let rows = vec![
        row(
            "Basic",
            [
                base(),
                vec![
                    modified(),
                    file("etc/fstab", "1").mode(0o600),
                    file("etc/badfile", "").mode(0o666),
                    file("home/derek/.zshrc", "ZSH").mode(0o640),
                ],
                vec![
                    mark("etc/.wh.badfile"),
                    mark("home/.wh.derek"),
                    dir("home/notderek/").mode(0o700),
                    file("home/notderek/.zshrc", "ZSH").mode(0o640),
                ],
                vec![mark(".wh.usr"), mark("etc/.wh.hosts.allow")],
                vec![
                    dir("home/"),
                    mark("home/.wh.notderek"),
                    dir("home/derek/").mode(0o700),
                    file("home/derek/.bashrc", "bash").mode(0o640),
                    hardlink("etc/hosts.allow", "etc/hosts"),
                ],
            ],
            r#"d etc
               f etc/fstab "1" mode=0600
               f etc/hosts "127.0.0.1 localhost.localdomain"
               = etc/hosts.allow etc/hosts
               d home
               d home/derek mode=0700
               f home/derek/.bashrc "bash" mode=0640"#,
        ),
        row(
            "Deletion",
            [
                vec![
                    dir("test/"),
                    dir("test/somedir/"),
                    dir("lib/").mode(0o700),
                    mark("lib/hidden"),
                ],
                vec![
                    mark("test/a"),
                    mark("test/b"),
                    dir("test/otherdir/"),
                    mark("test/otherdir/.empty"),
                    dir("lib/").mode(0o700),
                    mark("lib/.wh.hidden"),
                    mark("lib/not-hidden"),
                ],
                vec![
                    mark("test/.wh.a"),
                    mark("test/.wh.b"),
                    mark("test/.wh.otherdir"),
                    mark("lib/newfile"),
                ],
            ],
            r#"d lib mode=0700
               f lib/newfile ""
               f lib/not-hidden ""
               d test
               d test/somedir"#,
        ),
        row(
            "Update",
            [
                vec![
                    dir("d1/"),
                    dir("d2/").mode(0o700),
                    file("d1/f1", "something..."),
                    file("d1/f2", "else..."),
                    file("d1/f3", "entirely..."),
                ],
                vec![
                    dir("d1/"),
                    file("d1/f1", "file content of a different length").mode(0o664),
                    file("d1/f2", "else...").mode(0o766),
                    file("d1/f3", "updated content").mode(0o664),
                    dir("d2/").mode(0o777),
                ],
            ],
            r#"d d1
               f d1/f1 "file content of a different length" mode=0664
               f d1/f2 "else..." mode=0766
               f d1/f3 "updated content" mode=0664
               d d2 mode=0777"#,
        ),
        row(
            "DirectoryPermission",
            [
                vec![
                    dir("d1/").mode(0o700),
                    dir("d2/").mode(0o751),
                    dir("d3/").mode(0o777),
                ],
                vec![
                    file("d1/f", "i"),
                    dir("d1/d/").mode(0o700),
                    file("d1/d/f", "i"),
                    file("d2/f", "i"),
                    file("d3/f", "i"),
                ],
            ],
            r#"d d1 mode=0700
               d d1/d mode=0700
               f d1/d/f "i"
               f d1/f "i"
               d d2 mode=0751
               f d2/f "i"
               d d3 mode=0777
               f d3/f "i""#,
        ),
        row(
            "ParentDirectoryPermission",
            [
                vec![
                    dir("d1/").mode(0o700),
                    dir("d1/a/").mode(0o700),
                    dir("d1/a/b/").mode(0o751),
                    dir("d1/a/b/c/"),
                    file("d1/a/b/f", "content1"),
                ],
                vec![file("d1/a/b/f", "content2"), dir("d1/a/b/c/").mode(0o751)],
            ],
            r#"d d1 mode=0700
               d d1/a mode=0700
               d d1/a/b mode=0751
               d d1/a/b/c mode=0751
               f d1/a/b/f "content2""#,
        ),
        row(
            "HardlinkUnmodified",
            [
                base(),
                vec![modified()],
                vec![hardlink("etc/hosts.deny", "etc/hosts")],
            ],
            format!(
                r#"d etc
                   f etc/hosts "127.0.0.1 localhost.localdomain"
                   f etc/hosts.allow "127.0.0.1 localhost"
                   = etc/hosts.deny etc/hosts
                   d home
                   d home/derek mode=0700
                   {lib}"#
            ),
        ),
        row(
            "HardlinkBeforeUnmodified",
            [
                base(),
                vec![modified()],
                vec![hardlink("etc/before-hosts", "etc/hosts")],
            ],
            format!(
                r#"d etc
                   f etc/before-hosts "127.0.0.1 localhost.localdomain"
                   = etc/hosts etc/before-hosts
                   f etc/hosts.allow "127.0.0.1 localhost"
                   d home
                   d home/derek mode=0700
                   {lib}"#
            ),
        ),
        row(
            "HardlinkBeforeModified",
            [
                base(),
                vec![modified()],
                vec![
                    file("etc/before-hosts", "127.0.0.1 localhost"),
                    hardlink("etc/hosts", "etc/before-hosts"),
                ],
            ],
            format!(
                r#"d etc
                   f etc/before-hosts "127.0.0.1 localhost"
                   = etc/hosts etc/before-hosts
                   f etc/hosts.allow "127.0.0.1 localhost"
                   d home
                   d home/derek mode=0700
                   {lib}"#
            ),
        ),
    ];
    check("containerd-fssuite", rows);
}
