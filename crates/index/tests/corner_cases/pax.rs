//! PAX records: local and global, attributes, times, sizes, and broken ones.

use crate::harness::{check, row, streams};
use crate::raw::{
    Member, dir, file, gnu, hardlink, layer, member, open_ended, padded, record, symlink,
};

fn header(kind: u8, records: &[(&str, &str)]) -> Member {
    let text: Vec<u8> = records
        .iter()
        .flat_map(|(key, value)| record(key.as_bytes(), value.as_bytes()))
        .collect();
    member(kind, "header").content(text)
}

#[test]
fn records_win_over_the_header() {
    let rows = vec![
        row(
            "path and linkpath",
            [vec![
                file("x", "1").pax("path", "a/b"),
                symlink("y", "z").pax("linkpath", "t").pax("path", "l"),
            ]],
            "d a\nf a/b \"1\"\nl l -> t",
        ),
        row(
            "an empty value takes a record back",
            [vec![
                file("x", "1")
                    .pax("path", "a")
                    .pax("path", "")
                    .pax("uid", ""),
            ]],
            "f x \"1\"",
        ),
        row(
            "the later of two records",
            [vec![file("x", "1").pax("path", "a").pax("path", "b")]],
            "f b \"1\"",
        ),
        row(
            "the later of two headers",
            [vec![
                header(b'x', &[("path", "a"), ("uid", "7")]),
                header(b'x', &[("path", "b")]),
                file("x", "1"),
            ]],
            "f b \"1\"",
        ),
        row(
            "owners",
            [vec![
                file("x", "1").pax("uid", "4000000000").pax("gid", "65536"),
            ]],
            "f x \"1\" owner=4000000000:65536",
        ),
        row(
            "names of owners say nothing",
            [vec![
                file("x", "1").pax("uname", "root").pax("gname", "\u{fc}"),
            ]],
            "f x \"1\"",
        ),
        row(
            "size",
            [vec![
                file("x", "12345").size(0).pax("size", "5"),
                file("y", "2"),
            ]],
            "f x \"12345\"\nf y \"2\"",
        ),
        row(
            "nanoseconds",
            [vec![file("x", "1").pax("mtime", "1000000000.123456789")]],
            "f x \"1\" t=1000000000.123456789",
        ),
        row(
            "more digits than nanoseconds",
            [vec![file("x", "1").pax("mtime", "1000000000.1234567899")]],
            "f x \"1\" t=1000000000.123456789",
        ),
        row(
            "fewer digits",
            [vec![file("x", "1").pax("mtime", "1000000000.5")]],
            "f x \"1\" t=1000000000.500000000",
        ),
        row(
            "before 1970",
            [vec![
                file("x", "1").pax("mtime", "-1.25"),
                file("y", "1").mtime(-5),
            ]],
            "f x \"1\" t=-2.750000000\nf y \"1\" t=-5.000000000",
        )
        .peers("umoci does so, too; containerd and containers/storage make it 1970"),
        row(
            "access and change times are left out",
            [vec![file("x", "1").pax("atime", "5").pax("ctime", "6.5")]],
            "f x \"1\"",
        ),
        row(
            "hdrcharset=BINARY",
            [vec![
                file("x", "1")
                    .pax("hdrcharset", "BINARY")
                    .pax("path", b"caf\xe9"),
            ]],
            "f caf\\xe9 \"1\"",
        ),
        row(
            "GNU long names win over records",
            [vec![
                header(b'x', &[("path", "pax")]),
                member(b'L', "././@LongLink").edit(gnu).content("gnu\0"),
                file("x", "1"),
            ]],
            "f gnu \"1\"",
        ),
        row(
            "comments and vendor records",
            [vec![
                file("x", "1").pax("comment", "c").pax("VENDOR.key", "v"),
            ]],
            "f x \"1\"",
        ),
        row(
            "on a directory and a hard link",
            [vec![
                dir("x").pax("path", "d"),
                file("f", "1"),
                hardlink("h", "x").pax("linkpath", "f"),
            ]],
            "d d\nf f \"1\"\n= h f",
        ),
    ];
    check("pax", rows);
}

#[test]
fn global_headers_say_nothing() {
    let rows = vec![
        row(
            "global then local",
            [vec![
                header(b'g', &[("path", "g"), ("uid", "5"), ("mtime", "7")]),
                file("x", "1").pax("gid", "6"),
            ]],
            "f x \"1\" owner=0:6",
        )
        .peers("containerd and containers/storage ignore global headers, umoci refuses them"),
        row(
            "a global header drops the local one before it",
            [vec![
                header(b'x', &[("path", "a")]),
                header(b'g', &[("comment", "c")]),
                file("x", "1"),
            ]],
            "f x \"1\"",
        )
        .peers("umoci refuses global headers"),
        row(
            "a global header's name is none",
            [vec![file("header", "1"), header(b'g', &[("comment", "c")])]],
            "f header \"1\"",
        )
        .peers("containerd and containers/storage remove the file of that name"),
        row(
            "broken",
            [vec![member(b'g', "g").content("5 a\n")]],
            "refused: the tar stream is damaged at byte 512: its PAX header is malformed; build and push the layer again",
        ),
    ];
    check("pax-global", rows);
}

#[test]
fn extended_attributes_of_every_namespace() {
    let acl = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff";
    let rows = vec![
        row("SCHILY.xattr", [vec![file("x", "1").pax("SCHILY.xattr.user.b", "2").pax("SCHILY.xattr.user.a", "1")]],
            r#"f x "1" user.a="1" user.b="2""#),
        row("LIBARCHIVE.xattr is not read", [vec![file("x", "1").pax("LIBARCHIVE.xattr.user.a", "MQ==")]], "f x \"1\"")
            .peers("no unpacker reads it; bsdtar writes both spellings"),
        row("empty value", [vec![file("x", "1").pax("SCHILY.xattr.user.a", "")]], r#"f x "1" user.a="""#)
            .peers("umoci drops attributes without a value"),
        row("value with NUL, newline and equals sign", [vec![file("x", "1").pax("SCHILY.xattr.user.a", b"a=b\n\0c")]],
            r#"f x "1" user.a="a=b\n\x00c""#),
        row("ACLs", [vec![dir("x").pax("SCHILY.xattr.system.posix_acl_default", acl)]],
            format!("d x system.posix_acl_default=\"{}\"", acl.escape_ascii()))
            .peers("an ACL that Linux cannot parse fails the unpackers; we hand it on"),
        row("a capability", [vec![file("x", "1").pax("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0")]],
            format!("f x \"1\" security.capability=\"{}\"", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".escape_ascii())),
        row("user attributes of links and devices", [vec![
                symlink("l", "t").pax("SCHILY.xattr.user.a", "1").pax("SCHILY.xattr.trusted.b", "2"),
                member(b'6', "p").pax("SCHILY.xattr.user.a", "1"),
            ]],
            "l l -> t trusted.b=\"2\"\np p")
            .peers("Linux has none; containerd warns and leaves them out, umoci and containers/storage refuse"),
        row("an unknown namespace", [vec![file("x", "1").pax("SCHILY.xattr.com.apple.quarantine", "q").pax("SCHILY.xattr.user.a", "1")]],
            r#"f x "1" user.a="1""#),
        row("the last header counts", [vec![file("x", "1").pax("SCHILY.xattr.user.a", "1"), file("x", "2").pax("SCHILY.xattr.user.b", "2")]],
            r#"f x "2" user.b="2""#),
    ];
    check("pax-xattrs", rows);
}

#[test]
fn broken_records_are_refused() {
    let broken = |text: &str| {
        let mut stream = open_ended([member(b'x', "x").content(text)]);
        stream.extend(layer([file("f", "1")]));
        stream
    };
    let malformed = "refused: the tar stream is damaged at byte 512: its PAX header is malformed; build and push the layer again";
    let entry = |problem: &str| format!("refused: tar entry \"f\": {problem}");
    let rows = vec![
        streams("no length", [broken("path=a\n")], malformed),
        streams("too long a length", [broken("99 path=a\n")], malformed),
        streams("too short a length", [broken("8 path=a\n")], malformed),
        streams("no newline", [broken("10 path=aa")], malformed),
        streams("no key", [broken("5 =a\n")], malformed),
        streams("no equals sign", [broken("7 path\n")], malformed),
        streams("NUL in a path", [broken("11 path=a\0b\n")], malformed),
        streams("NUL in a key", [broken("8 a\0b=c\n")], malformed),
        streams("padding inside", [broken("10 path=a\n\0\0\0")], malformed),
        row(
            "size is no number",
            [vec![file("f", "1").pax("size", "1x")]],
            entry("a number in its PAX header is not one"),
        ),
        row(
            "negative size",
            [vec![file("f", "1").pax("size", "-1")]],
            entry("its size is negative"),
        ),
        row(
            "size beyond 63 bits",
            [vec![file("f", "1").pax("size", "9223372036854775808")]],
            entry("a number in its PAX header is not one"),
        ),
        row(
            "mtime is no time",
            [vec![file("f", "1").pax("mtime", "12:00")]],
            entry("the time in its PAX header is not one"),
        ),
        row(
            "atime is no time",
            [vec![file("f", "1").pax("atime", "1.x")]],
            entry("the time in its PAX header is not one"),
        ),
        row(
            "owner beyond 32 bits",
            [vec![file("f", "1").pax("uid", "4294967296")]],
            entry("its user number is not one of Linux (0 to 2³² - 2)"),
        )
        .peers("containerd and umoci cut it to 32 bits"),
        row(
            "owner -1",
            [vec![file("f", "1").pax("gid", "-1")]],
            entry("its group number is not one of Linux (0 to 2³² - 2)"),
        )
        .peers("to chown it means: leave as it is, so unpackers leave root"),
        streams(
            "larger than 1 MiB",
            [{
                let mut stream = open_ended([member(b'x', "x").size((1 << 20) + 1)]);
                stream.extend(padded(&record(b"path", &[b'a'; 1 << 20])));
                stream
            }],
            "refused: the tar stream is damaged at byte 0: a PAX header or long name is larger than 1 MiB; build and push the layer again",
        ),
    ];
    check("pax-broken", rows);
}
