//! containerd: the layers that its diff writes (`pkg/archive/tar_test.go`, TestDiffTar), and the
//! FSSuite of `continuity/fs/fstest`.

use crate::harness::{check, row};
use crate::raw::{dir, file, hardlink, mark, symlink};

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
