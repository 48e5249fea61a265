//! Sparse files: old GNU, PAX 0.0, 0.1 and 1.0.

use crate::harness::{Row, check, row, streams};
use crate::raw::{Block, Member, file, gnu, layer, member, padded, put, put_octal, seal};

/// Two pieces on borders of blocks, 512 bytes each, in a file of 3,072: `....A.B...` in blocks.
fn pieces() -> Vec<u8> {
    [[b'A'; 512], [b'B'; 512]].concat()
}

fn pax_00() -> Member {
    file("f", pieces())
        .pax("GNU.sparse.size", "3072")
        .pax("GNU.sparse.numblocks", "2")
        .pax("GNU.sparse.offset", "1024")
        .pax("GNU.sparse.numbytes", "512")
        .pax("GNU.sparse.offset", "2048")
        .pax("GNU.sparse.numbytes", "512")
}

fn pax_01(map: &str, pieces: &str, size: &str, content: &[u8]) -> Member {
    file("GNUSparseFile.0/f", content)
        .pax("GNU.sparse.size", size)
        .pax("GNU.sparse.numblocks", pieces)
        .pax("GNU.sparse.name", "f")
        .pax("GNU.sparse.map", map)
}

fn pax_10(map: &str, size: &str, content: &[u8]) -> Member {
    file(
        "GNUSparseFile.0/f",
        [padded(map.as_bytes()), content.to_vec()].concat(),
    )
    .pax("GNU.sparse.major", "1")
    .pax("GNU.sparse.minor", "0")
    .pax("GNU.sparse.name", "f")
    .pax("GNU.sparse.realsize", size)
}

fn old_gnu(block: &mut Block) {
    gnu(block);
    put_octal(block, 386, 12, 1024);
    put_octal(block, 398, 12, 512);
    put_octal(block, 410, 12, 2048);
    put_octal(block, 422, 12, 512);
    put_octal(block, 483, 12, 3072);
}

/// docs/semantics.md: "Sparse files of every format".
#[test]
fn s6_every_sparse_format_gives_the_same_file() {
    let tree = "f f 3072 bytes\nf z \"1\"";
    let after = || file("z", "1");
    let rows = vec![
        row(
            "old GNU",
            [vec![
                member(b'S', "f").edit(old_gnu).content(pieces()),
                after(),
            ]],
            tree,
        )
        .peers("all three refuse type S, which Docker never writes"),
        row("PAX 0.0", [vec![pax_00(), after()]], tree),
        row(
            "PAX 0.1",
            [vec![
                pax_01("1024,512,2048,512", "2", "3072", &pieces()),
                after(),
            ]],
            tree,
        ),
        row(
            "PAX 1.0",
            [vec![
                pax_10("2\n1024\n512\n2048\n512\n", "3072", &pieces()),
                after(),
            ]],
            tree,
        ),
        row(
            "only a hole",
            [vec![pax_10("0\n", "1048576", b""), after()]],
            "f f 1048576 bytes\nf z \"1\"",
        ),
        row(
            "a hole, and a mark of the end",
            [vec![pax_10("1\n1048576\n0\n", "1048576", b""), after()]],
            "f f 1048576 bytes\nf z \"1\"",
        ),
        row(
            "no hole",
            [vec![pax_10("1\n0\n1024\n", "1024", &pieces()), after()]],
            "f f 1024 bytes\nf z \"1\"",
        ),
        row(
            "an unknown version is no sparse file",
            [vec![
                file("f", "1")
                    .pax("GNU.sparse.major", "2")
                    .pax("GNU.sparse.minor", "0"),
            ]],
            "f f \"1\"",
        ),
        row(
            "pieces that touch",
            [vec![
                pax_01("0,512,512,512", "2", "1024", &pieces()),
                after(),
            ]],
            "f f 1024 bytes\nf z \"1\"",
        ),
    ];
    check("sparse", rows);
}

#[test]
fn old_gnu_maps_go_on_in_further_blocks() {
    let numbers = |at: usize, block: &mut Block, first: u64, count: usize| {
        for i in 0..count {
            let piece = (first + i as u64) * 1024;
            put_octal(block, at + 24 * i, 12, piece);
            put_octal(block, at + 24 * i + 12, 12, 512);
        }
    };
    let count = 4 + 21 + 3;
    let mut header: Block = member(b'S', "f").blocks()[..512].try_into().unwrap();
    gnu(&mut header);
    numbers(386, &mut header, 0, 4);
    header[482] = 1;
    put_octal(&mut header, 124, 12, count as u64 * 512);
    put_octal(&mut header, 483, 12, count as u64 * 1024);
    seal(&mut header);
    let mut second = [0; 512];
    numbers(0, &mut second, 4, 21);
    second[504] = 1;
    let mut third = [0; 512];
    numbers(0, &mut third, 25, 3);
    put(&mut third, 505, b"tail");
    let content = vec![b'x'; count * 512];
    let stream = [
        header.to_vec(),
        second.to_vec(),
        third.to_vec(),
        content,
        layer([file("z", "1")]),
    ]
    .concat();
    check(
        "sparse-old",
        vec![
            streams(
                "28 pieces",
                [stream],
                format!("f f {} bytes\nf z \"1\"", count * 1024),
            )
            .peers("all three refuse type S"),
        ],
    );
}

/// EROFS maps whole blocks: see `docs/semantics.md`.
#[test]
fn pieces_off_the_borders_of_blocks_are_refused_by_name() {
    let refused = "refused: tar entry \"f\": it is sparse with pieces that are not whole 512-byte \
                   blocks, which a mount cannot show: build the layer without sparse files (tar \
                   without --sparse)";
    let rows: Vec<Row> = vec![
        row(
            "one byte in the middle",
            [vec![pax_10("1\n5\n1\n", "10", b"x")]],
            refused,
        )
        .peers("all three unpack it"),
        row(
            "every other byte",
            [vec![pax_01("1,1,3,1,5,1", "3", "7", b"abc")]],
            refused,
        )
        .peers("all three unpack it"),
        row(
            "a piece longer than a block",
            [vec![pax_10(
                "2\n100\n600\n1000\n3\n",
                "1003",
                &[&[b'y'; 600][..], b"end"].concat(),
            )]],
            refused,
        )
        .peers("all three unpack it"),
        row(
            "whole blocks behind an odd piece",
            [vec![pax_10(
                "2\n0\n700\n1024\n1024\n",
                "4096",
                &vec![b'z'; 1724],
            )]],
            refused,
        )
        .peers("all three unpack it"),
        row(
            "an odd piece at the end",
            [vec![pax_10("1\n512\n3\n", "515", b"end")]],
            "f f 515 bytes",
        ),
    ];
    check("sparse-unaligned", rows);
}

#[test]
fn broken_maps_are_refused() {
    let entry = |problem: &str| format!("refused: tar entry \"f\": {problem}");
    let malformed = &entry("its sparse map is malformed");
    let outside = &entry("the pieces of its sparse map overlap or lie outside the file");
    let rows = vec![
        row(
            "overlap",
            [vec![pax_01("0,512,256,512", "2", "3072", &pieces())]],
            outside,
        ),
        row(
            "out of order",
            [vec![pax_01("1024,512,0,512", "2", "3072", &pieces())]],
            outside,
        ),
        row(
            "beyond the file",
            [vec![pax_01("0,512,2600,512", "2", "3072", &pieces())]],
            outside,
        ),
        row(
            "beyond 63 bits",
            [vec![pax_01(
                "9223372036854775807,512,0,512",
                "2",
                "3072",
                &pieces(),
            )]],
            outside,
        ),
        row(
            "negative",
            [vec![pax_01("-1,512,0,512", "2", "3072", &pieces())]],
            malformed,
        ),
        row(
            "more than the tar holds",
            [vec![pax_01("0,512,1024,1024", "2", "3072", &pieces())]],
            entry("its sparse map has more bytes than the tar holds for it"),
        ),
        row(
            "less than the tar holds",
            [vec![pax_01("0,512", "1", "3072", &pieces())]],
            entry("the tar holds more bytes for it than its sparse map has"),
        ),
        row(
            "a number too few",
            [vec![pax_01("0,512,1024", "2", "3072", &pieces())]],
            malformed,
        ),
        row(
            "a wrong count",
            [vec![pax_01("0,512,1024,512", "3", "3072", &pieces())]],
            malformed,
        ),
        row(
            "no count",
            [vec![
                file("f", pieces())
                    .pax("GNU.sparse.map", "0,512,1024,512")
                    .pax("GNU.sparse.size", "3072"),
            ]],
            malformed,
        ),
        row(
            "letters",
            [vec![pax_10("2\n0\nx\n", "3072", &pieces())]],
            malformed,
        ),
        row(
            "a negative count",
            [vec![pax_10("-1\n", "3072", &pieces())]],
            malformed,
        ),
        row(
            "a count beyond the content",
            [vec![pax_10("9999\n0\n512\n", "3072", &pieces())]],
            entry("its sparse map is longer than its content"),
        ),
        row(
            "a size that is none",
            [vec![pax_10("1\n0\n512\n", "x", &pieces())]],
            entry("a number in its PAX header is not one"),
        ),
        row(
            "offset twice",
            [vec![
                file("f", "")
                    .pax("GNU.sparse.offset", "1")
                    .pax("GNU.sparse.offset", "2"),
            ]],
            "refused: the tar stream is damaged at byte 512: its PAX header is malformed; build and push the layer again",
        ),
        row(
            "a sparse directory",
            [vec![
                member(b'5', "f")
                    .pax("GNU.sparse.map", "0,512")
                    .pax("GNU.sparse.numblocks", "1")
                    .pax("GNU.sparse.size", "512"),
            ]],
            entry("it is sparse, but not a file"),
        ),
        row(
            "old GNU in a ustar header",
            [vec![member(b'S', "f").content(pieces())]],
            entry("it is a sparse file of another format than GNU's"),
        ),
    ];
    check("sparse-broken", rows);
}
