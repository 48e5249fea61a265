//! Header blocks: v7, ustar, star, GNU; numbers; types.

use crate::harness::{check, row, streams};
use crate::raw::{
    dir, file, gnu, hardlink, layer, member, padded, put, put_base_256, put_octal, symlink, v7,
};

#[test]
fn every_format_is_read() {
    let long_name = "n".repeat(200);
    let long_link = "t".repeat(200);
    let rows = vec![
        row(
            "v7",
            [vec![
                file("f", "1").edit(v7),
                symlink("l", "t").edit(v7),
                hardlink("h", "f").edit(v7),
            ]],
            "f f \"1\"\n= h f\nl l -> t",
        ),
        row(
            "v7 has no prefix",
            [vec![file("f", "1").edit(|b| {
                v7(b);
                put(b, 345, b"prefix");
            })]],
            "f f \"1\"",
        ),
        row(
            "old files and directories",
            [vec![
                member(0, "f").content("1"),
                member(0, "d/").mode(0o755),
                member(0, "d/g").edit(v7),
            ]],
            "d d\nf d/g \"\"\nf f \"1\"",
        ),
        row(
            "an old directory with a size",
            [vec![member(0, "d/").mode(0o755).size(512), file("f", "1")]],
            "d d\nf f \"1\"",
        ),
        row(
            "a slash makes no directory of a POSIX file",
            [vec![file("f/", "1")]],
            "f f \"1\"",
        )
        .peers("GNU tar makes a directory"),
        row(
            "ustar prefix",
            [vec![file("f", "1").edit(|b| put(b, 345, b"a/b"))]],
            "d a\nd a/b\nf a/b/f \"1\"",
        ),
        row(
            "ustar prefix and a PAX path",
            [vec![
                file("f", "1")
                    .edit(|b| put(b, 345, b"a/b"))
                    .pax("path", "g"),
            ]],
            "f g \"1\"",
        ),
        row(
            "ustar fields without NUL",
            [vec![
                file("n".repeat(100), "1").edit(|b| put(b, 345, &[b'p'; 155])),
            ]],
            format!("d {0}\nf {0}/{1} \"1\"", "p".repeat(155), "n".repeat(100)),
        ),
        row(
            "ustar without a version",
            [vec![file("f", "1").edit(|b| {
                put(b, 263, b"\0\0");
                put(b, 345, b"p");
            })]],
            "d p\nf p/f \"1\"",
        ),
        row(
            "star",
            [vec![file("f", "1").edit(|b| {
                put(b, 345, b"p");
                put(b, 476, b"07346545000\x0007346545000\0");
                put(b, 508, b"tar\0");
            })]],
            "d p\nf p/f \"1\"",
        ),
        row(
            "star with times that are none",
            [vec![file("f", "1").edit(|b| {
                put(b, 476, b"letters");
                put(b, 508, b"tar\0");
            })]],
            "refused: the tar stream is damaged at byte 0: a number in its header is not octal; build and push the layer again",
        ),
        row(
            "GNU magic of another version is v7",
            [vec![file("f", "1").edit(|b| {
                put(b, 257, b"ustar 00");
                put(b, 345, b"p");
            })]],
            "f f \"1\"",
        ),
        row(
            "GNU long names",
            [vec![
                member(b'L', "././@LongLink")
                    .edit(gnu)
                    .content(long_name.clone() + "\0"),
                file("cut", "1").edit(gnu),
                member(b'K', "././@LongLink")
                    .edit(gnu)
                    .content(long_link.clone() + "\0"),
                member(b'L', "././@LongLink")
                    .edit(gnu)
                    .content("z".repeat(150)),
                symlink("cut", "cut").edit(gnu),
            ]],
            format!("f {long_name} \"1\"\nl {} -> {long_link}", "z".repeat(150)),
        ),
        row(
            "the later of two long names",
            [vec![
                member(b'L', "x").edit(gnu).content("one\0"),
                member(b'L', "x").edit(gnu).content("two\0"),
                file("cut", "1").edit(gnu),
            ]],
            "f two \"1\"",
        ),
        row(
            "a long name ends at its NUL",
            [vec![
                member(b'L', "x").edit(gnu).content("one\0two"),
                file("cut", "1").edit(gnu),
            ]],
            "f one \"1\"",
        ),
        row(
            "an empty long name is none",
            [vec![
                member(b'L', "x").edit(gnu),
                file("kept", "1").edit(gnu),
            ]],
            "f kept \"1\"",
        ),
        row(
            "names of other bytes than ASCII",
            [vec![file(b"\xe9", "1").edit(gnu), file(b"\xea", "2")]],
            "f \\xe9 \"1\"\nf \\xea \"2\"",
        ),
    ];
    check("headers-formats", rows);
}

#[test]
fn every_way_to_write_numbers_is_read() {
    let rows = vec![
        row(
            "base 256",
            [vec![file("f", "12345").edit(|b| {
                put_base_256(b, 108, 8, 100_000);
                put_base_256(b, 116, 8, 2_097_152);
                put_base_256(b, 124, 12, 5);
                put_base_256(b, 136, 12, 5_000_000_000);
            })]],
            "f f \"12345\" owner=100000:2097152 t=5000000000.000000000",
        )
        .peers("ext4 ends in 2446"),
        row(
            "negative base 256",
            [vec![file("f", "1").edit(|b| put_base_256(b, 136, 12, -1))]],
            "f f \"1\" t=-1.000000000",
        )
        .peers("containerd and containers/storage make it 1970"),
        row(
            "spaces and no NUL",
            [vec![file("f", "1").edit(|b| {
                put(b, 100, b"    644 ");
                put(b, 108, b"     12\0");
            })]],
            "f f \"1\" owner=10:0",
        ),
        row(
            "empty numbers are zero",
            [vec![member(b'5', "d").edit(|b| {
                b[100..136].fill(0);
                b[329..345].fill(b' ');
            })]],
            "d d mode=0000",
        ),
        row(
            "digits beyond octal",
            [vec![file("f", "1").edit(|b| put(b, 108, b"0000009\0"))]],
            "refused: the tar stream is damaged at byte 0: a number in its header is not octal; build and push the layer again",
        ),
        row(
            "base 256 beyond 64 bits",
            [vec![file("f", "1").edit(|b| {
                b[136..148].fill(0xFF);
                b[136] = 0x80;
            })]],
            "refused: the tar stream is damaged at byte 0: a number in its header does not fit in 64 bits; build and push the layer again",
        ),
        row(
            "a negative size",
            [vec![file("f", "1").edit(|b| put_base_256(b, 124, 12, -1))]],
            "refused: the tar stream is damaged at byte 0: a size is negative; build and push the layer again",
        ),
        row(
            "type bits in the mode",
            [vec![
                file("f", "1").mode(0o100_755),
                dir("d").mode(0o41_777),
            ]],
            "d d mode=1777\nf f \"1\" mode=0755",
        ),
        row(
            "a checksum of signed bytes",
            [vec![file(b"\xe9\xe9", "1")]],
            "f \\xe9\\xe9 \"1\"",
        ),
        streams(
            "a huge size of little content",
            [[
                file("f", "")
                    .edit(|b| put_base_256(b, 124, 12, 1 << 40))
                    .blocks(),
                vec![1; 4096],
            ]
            .concat()],
            "refused: the tar stream ends in the middle, after 4608 bytes; build and push the layer again",
        ),
        streams(
            "the largest size",
            [[
                file("f", "").pax("size", i64::MAX.to_string()).blocks(),
                vec![1; 4096],
            ]
            .concat()],
            "refused: the tar stream ends in the middle, after 5632 bytes; build and push the layer again",
        ),
    ];
    check("headers-numbers", rows);
}

#[test]
fn signed_checksums_of_old_tars_are_accepted() {
    let mut stream = layer([file(b"\xe9", "1")]);
    let block: &mut crate::raw::Block = (&mut stream[..512]).try_into().unwrap();
    block[148..156].fill(b' ');
    let sum: i64 = block.iter().map(|&byte| i64::from(byte as i8)).sum();
    put(block, 148, format!("{sum:06o}\0 ").as_bytes());
    check(
        "headers-checksum",
        vec![streams("signed", [stream], "f \\xe9 \"1\"")],
    );
}

#[test]
fn types() {
    let unknown = "refused: tar entry \"x\": its tar entry type is one that no runtime unpacks";
    let rows = vec![
        row("contiguous files are files", [vec![member(b'7', "x").content("1")]], "f x \"1\"")
            .peers("all three refuse; POSIX says: treat it as a file"),
        row("V, a volume label", [vec![member(b'V', "x").edit(gnu)]], unknown),
        row("M, the rest of a file", [vec![member(b'M', "x").edit(gnu).content("1")]], unknown),
        row("D, a GNU directory with its names", [vec![member(b'D', "x").edit(gnu).content("Yf\0")]], unknown),
        row("X, Solaris' header", [vec![member(b'X', "x")]], unknown),
        row("a vendor's type", [vec![member(b'Q', "x")]], unknown),
        row("content of links, directories and devices", [vec![
                dir("d").size(1024),
                symlink("l", "t").size(99),
                member(b'3', "c").size(5).device(1, 3),
                member(b'6', "p").size(7),
                file("f", "1"),
            ]],
            "c c 1:3\nd d\nf f \"1\"\nl l -> t\np p"),
        row("the largest device numbers", [vec![member(b'3', "c").device(4095, 1_048_575)]], "c c 4095:1048575"),
        row("a major number beyond Linux", [vec![member(b'3', "c").device(4096, 1)]],
            "refused: tar entry \"c\": its device number is not one of Linux (major below 2¹², minor below 2²⁰)")
            .peers("mknod(2) cuts it"),
        row("a negative device number", [vec![member(b'4', "b").edit(|b| put_base_256(b, 337, 8, -1))]],
            "refused: tar entry \"b\": its device number is not one of Linux (major below 2¹², minor below 2²⁰)").peers("containerd refuses, umoci and containers/storage cut it"),
    ];
    check("headers-types", rows);
}

#[test]
fn damaged_headers_are_refused_where_they_are() {
    let damaged = |at: u64, problem: &str| {
        format!(
            "refused: the tar stream is damaged at byte {at}: {problem}; build and push the layer again"
        )
    };
    let mut bad_sum = layer([file("a", "1"), file("b", "2")]);
    bad_sum[1024] ^= 1;
    let rows = vec![
        streams(
            "a wrong checksum",
            [bad_sum],
            damaged(1024, "what should be a header has a wrong checksum"),
        ),
        streams(
            "no tar at all",
            [padded(&[b'x'; 2000])],
            damaged(0, "what should be a header has a wrong checksum"),
        ),
        streams(
            "an octal checksum that is none",
            [layer([file("a", "1").edit(|b| put_octal(b, 329, 8, 0))])
                .into_iter()
                .enumerate()
                .map(|(at, byte)| if at == 150 { b'x' } else { byte })
                .collect()],
            damaged(0, "what should be a header has a wrong checksum"),
        ),
    ];
    check("headers-damaged", rows);
}
