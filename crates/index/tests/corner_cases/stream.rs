//! Where streams end: right, early, late.

use crate::harness::{check, streams};
use crate::raw::{file, layer, member, open_ended, padded};

fn ends_at(at: usize) -> String {
    format!(
        "refused: the tar stream ends in the middle, after {at} bytes; build and push the layer again"
    )
}

#[test]
fn ends_of_streams() {
    let members = || open_ended([file("a", "1"), file("b", vec![b'x'; 700])]);
    let with = |tail: Vec<u8>| [members(), tail].concat();
    let tree = "f a \"1\"\nf b 700 bytes";
    let rows = vec![
        streams("two empty blocks", [with(vec![0; 1024])], tree),
        streams("many empty blocks", [with(vec![0; 10_240])], tree),
        streams("garbage behind the end", [with([vec![0; 1024], b"garbage".to_vec()].concat())], tree),
        streams("another tar behind the end", [with([vec![0; 1024], layer([file("c", "1")])].concat())], tree),
        streams("no end mark", [members()], tree),
        streams("one empty block", [with(vec![0; 512])], tree),
        streams("no padding behind the last file", [open_ended([file("a", "1"), file("b", vec![b'x'; 700])])[..1024 + 512 + 700].to_vec()], tree),
        streams("half an empty block", [with(vec![0; 100])], ends_at(members().len() + 100)),
        streams("one and a half", [with(vec![0; 700])], ends_at(members().len() + 700)),
        streams("an empty block in the middle", [[open_ended([file("a", "1")]), vec![0; 512], layer([file("b", "2")])].concat()],
            "refused: the tar stream is damaged at byte 1536: an empty block stands alone, two would be the end; build and push the layer again")
            .peers("GNU tar goes on after a warning"),
        streams("cut in a header", [members()[..1200].to_vec()], ends_at(1200)),
        streams("cut in a file", [members()[..1800].to_vec()], ends_at(1800)),
        streams("cut before a file", [members()[..1536].to_vec()], ends_at(1536)),
        streams("cut in a PAX header", [open_ended([file("a", "1").pax("comment", "x".repeat(600))])[..1024].to_vec()], ends_at(1024)),
        streams("nothing behind a PAX header", [open_ended([member(b'x', "x").content("13 comment=x\n")])], ""),
        streams("an end mark behind a PAX header", [layer([member(b'x', "x").content("13 comment=x\n")])], ""),
        streams("one byte", [vec![0]], ends_at(1)),
        streams("nothing", [vec![]], ""),
    ];
    check("stream", rows);
}

#[test]
fn content_is_never_mistaken_for_headers() {
    let inner = layer([file("inner", "1")]);
    let rows = vec![
        streams(
            "a tar in a tar",
            [layer([file("t.tar", &inner), file("z", "1")])],
            format!("f t.tar {} bytes\nf z \"1\"", inner.len()),
        ),
        streams(
            "zeros in a file",
            [layer([file("zeros", vec![0; 5000]), file("z", "1")])],
            "f z \"1\"\nf zeros 5000 bytes",
        ),
        streams(
            "a size of whole blocks",
            [layer([file("a", padded(b"1")), file("z", "1")])],
            "f a 512 bytes\nf z \"1\"",
        ),
    ];
    check("stream-content", rows);
}
