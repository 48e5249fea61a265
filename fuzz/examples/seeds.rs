//! Writes the committed seeds: `cargo run -p clip-fuzz --example seeds`. Small, and each reaches code that chance
//! would take hours to find.

use clip_archive::{Entry, EntryKind, Segment, Span, SpanDigest, SpanKind, Window, columns};
use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    let seeds = archive_open()
        .into_iter()
        .chain(tree_expand())
        .chain(tar_walk()?)
        .chain(seek_resume())
        .chain(manifest())
        .chain(volume_attributes());
    for (target, name, bytes) in seeds {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("seeds")
            .join(target);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(name), bytes)?;
    }
    Ok(())
}

type Seed = (&'static str, &'static str, Vec<u8>);

/// A piece with its length before it, as `Input::piece` reads it.
fn piece(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_le_bytes()[..], bytes].concat()
}

fn archive_open() -> Vec<Seed> {
    let entry = |path: &str, kind| Entry {
        path: path.into(),
        kind,
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime: 3,
        mtime_nsec: 4,
        xattrs: vec![],
    };
    let segments = vec![Segment {
        logical: 0,
        length: 5,
        tar_offset: 512,
    }];
    let entries = columns::encode_entries(&[
        entry("a", EntryKind::Directory),
        entry("a/f", EntryKind::File { size: 5, segments }),
        entry(
            "l",
            EntryKind::Symlink {
                target: b"a".to_vec(),
            },
        ),
        entry(
            "l/h",
            EntryKind::Hardlink {
                target: b"a/f".to_vec(),
            },
        ),
        entry("x", EntryKind::Whiteout),
        entry("a", EntryKind::Opaque),
    ]);
    let kind = SpanKind::GzipBlock {
        skip_bits: 3,
        window: 0,
    };
    let span = |tar_len, blob_offset, kind| Span {
        tar_len,
        blob_offset,
        blob_len: 60,
        kind,
        digest: SpanDigest::of(b"x"),
    };
    let spans = columns::encode_spans(&[span(96, 0, SpanKind::GzipMember), span(31, 59, kind)]);
    let windows = columns::encode_windows(&[Window {
        runs: vec![(7, 2)],
        bytes: vec![1, 2],
    }]);
    let parts = [piece(&entries), piece(&spans), piece(&windows)].concat();
    // One layer: its blob has 119 bytes, its tar 127 (numbers below 128 are themselves).
    let layer = [&[119, 127][..], &parts].concat();
    let two_layers = [&[2, 1][..], &layer, &layer].concat();
    let lies = [&[3, 0, 4, 200, 9][..], &[1], &layer].concat();
    vec![
        ("archive_open", "layers", two_layers),
        ("archive_open", "lies", lies),
        (
            "archive_open",
            "head",
            [&[1][..], &piece(&[0; 40]), &[0; 60]].concat(),
        ),
        ("archive_open", "file", b"\0\x89CLIP\r\n\x1a\n\x03".to_vec()),
    ]
}

fn tree_expand() -> Vec<Seed> {
    // Even: runtime directories, sizes of two tars, then (layer, kind, path, ...) as `entry` reads them.
    let instructions = vec![
        0, 0, 1, 0xa0, 9, 0, 0xa0, 7, 0, // two layers
        0, 0, 1, 0, 0, 0, // layer 0: directory a
        0, 4, 2, 0, 0, 1, 100, 1, 0, 0, 0, // a file a/b
        0, 8, 1, 0, 2, 1, 1, 0, 0, 0, // lib -> ...
        1, 14, 1, 0, 0, 0, // layer 1: whiteout
        1, 9, 1, 0, 4, 2, 0, 0, 1, 0, // a hard link
    ];
    let image = [&[1, 0, 0][..], &[0; 512]].concat();
    vec![
        ("tree_expand", "instructions", instructions),
        ("tree_expand", "image", image),
    ]
}

fn tar_walk() -> io::Result<Vec<Seed>> {
    let mut plain = tar::Builder::new(Vec::new());
    for (name, kind, link) in [
        ("etc/", tar::EntryType::Directory, None),
        ("etc/passwd", tar::EntryType::Regular, None),
        ("etc/.wh.shadow", tar::EntryType::Regular, None),
        ("etc/.wh..wh..opq", tar::EntryType::Regular, None),
        ("bin/sh", tar::EntryType::Symlink, Some("dash")),
        ("bin/bash", tar::EntryType::Link, Some("etc/passwd")),
        ("dev/null", tar::EntryType::Char, None),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_path(name)?;
        header.set_entry_type(kind);
        header.set_mode(0o755);
        let content: &[u8] = match kind {
            tar::EntryType::Regular => b"content",
            _ => b"",
        };
        header.set_size(content.len() as u64);
        if let Some(link) = link {
            header.set_link_name(link)?;
        }
        header.set_cksum();
        plain.append(&header, content)?;
    }
    let plain = plain.into_inner()?;
    let member = |kind: u8, name: &str, content: &[u8]| -> io::Result<Vec<u8>> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name)?;
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(content.len() as u64);
        header.set_cksum();
        let padding = content.len().next_multiple_of(512) - content.len();
        Ok([header.as_bytes(), content, &vec![0; padding]].concat())
    };
    let pax = |records: &[(&str, &str)]| {
        let record = |(key, value): &(&str, &str)| {
            let rest = format!(" {key}={value}\n");
            let mut len = rest.len() + 1;
            while len != rest.len() + len.to_string().len() {
                len += 1;
            }
            format!("{len}{rest}")
        };
        records.iter().map(record).collect::<String>()
    };
    let records = pax(&[
        ("path", "long/name"),
        ("mtime", "-1.5"),
        ("SCHILY.xattr.user.a", "1"),
        ("uid", "70000"),
    ]);
    let pax_member = [
        member(b'x', "pax", records.as_bytes())?,
        member(b'0', "short", b"x")?,
    ]
    .concat();
    let sparse_records = pax(&[
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "sparse"),
        ("GNU.sparse.realsize", "4096"),
    ]);
    let map = [&b"1\n1024\n512\n"[..], &[0; 501], &[b'd'; 512]].concat();
    let sparse = [
        member(b'x', "pax", sparse_records.as_bytes())?,
        member(b'0', "GNUSparseFile.0/sparse", &map)?,
    ]
    .concat();
    let old_sparse_records = pax(&[
        ("GNU.sparse.size", "4096"),
        ("GNU.sparse.numblocks", "1"),
        ("GNU.sparse.map", "512,512"),
    ]);
    let old_sparse = [
        member(b'x', "pax", old_sparse_records.as_bytes())?,
        member(b'0', "sparse", &[b'd'; 512])?,
    ]
    .concat();
    let long_names = [
        member(b'L', "././@LongLink", &[b'n'; 150])?,
        member(b'K', "././@LongLink", &[b't'; 150])?,
        member(b'2', "short", b"")?,
        member(b'g', "global", pax(&[("comment", "x")]).as_bytes())?,
        member(b'0', "last", b"")?,
    ]
    .concat();
    let framed = |stream: &[u8]| [&[1, 2, 99, 0, 0, 2][..], stream].concat();
    Ok(vec![
        ("tar_walk", "plain", framed(&plain)),
        ("tar_walk", "pax", framed(&pax_member)),
        ("tar_walk", "sparse-1.0", framed(&sparse)),
        ("tar_walk", "sparse-0.1", framed(&old_sparse)),
        ("tar_walk", "long-names", framed(&long_names)),
    ])
}

fn seek_resume() -> Vec<Seed> {
    // Content: literals, copies, noise (see `content`).
    let mut content = b"\x20thirty-three bytes of some text..".to_vec();
    for at in 0..40u8 {
        content.extend_from_slice(&[0x60 + at, at * 5, at % 9, 0xf0 + at % 8, at, 7]);
    }
    let compressed = |choice: u8, kind: u8, flush: u16| {
        let flush = flush.to_le_bytes();
        [&[choice, kind, 6][..], &flush, &content].concat()
    };
    let raw_deflate = [&[1, 0x4b, 0x4c, 0x4c, 0x4c, 4, 0][..], &[0; 9]].concat();
    vec![
        ("seek_resume", "gzip-blocks", compressed(2, 3, 900)),
        ("seek_resume", "gzip-members", compressed(2 | 0x40, 2, 3000)),
        ("seek_resume", "zstd-frames", compressed(0x80 | 2, 1, 2000)),
        ("seek_resume", "plain", compressed(2, 0, 0)),
        (
            "seek_resume",
            "lies",
            [
                &[3, 2, 0, 1, 7, 3, 0, 9, 9, 6, 0, 3][..],
                &compressed(3, 3, 900)[1..],
            ]
            .concat(),
        ),
        ("seek_resume", "raw-deflate", raw_deflate),
        (
            "seek_resume",
            "made-up",
            vec![
                4, 1, 1, 0, 0, 4, 0, 2, 0, 1, 1, 2, 2, 3, 0, 50, 0, 20, 0x4b, 0x4c,
            ],
        ),
        (
            "seek_resume",
            "zstd-blocks",
            vec![5, 0, 0, 3, 0, b'a', b'b', b'c', 1, 9, 0, b'z'],
        ),
    ]
}

fn manifest() -> Vec<Seed> {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let descriptor = format!(
        r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":2,"annotations":null,"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}}"#
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"artifactType":"x/y","config":{descriptor},"layers":[{descriptor}],"subject":{descriptor}}}"#
    );
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{descriptor},{descriptor}]}}"#);
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#
    );
    let docker = "team.example:5000/app\n{\"auths\":{\"*.example:5000\":{\"auth\":\"eDp5\"},\"https://index.docker.io/v1/\":{}},\"credHelpers\":{\"h.example\":\"x\"}}";
    let seed = |name, choice: u8, text: &str| {
        ("manifest", name, [&[choice][..], text.as_bytes()].concat())
    };
    vec![
        seed("manifest", 0, &format!("\n{manifest}")),
        seed(
            "index",
            0,
            &format!("application/vnd.oci.image.index.v1+json; x\n{index}"),
        ),
        seed("configuration", 1, &config),
        seed(
            "reference",
            2,
            &format!("r.example:5000/a/b_c:tag@{digest}"),
        ),
        seed("reference-ipv6", 2, "[::1]:5000/a"),
        seed("platform", 2, "linux/arm/v7"),
        seed("layout", 2, "oci:dir:tag"),
        seed(
            "challenge",
            3,
            "Basic realm=\"x\"\nBearer realm=\"https://a.example/t\",service=\"s\",scope=\"repository:a\\\"b:pull\"",
        ),
        seed("token", 4, r#"{"token":"abc","expires_in":60}"#),
        seed("docker-config", 5, docker),
        seed("repository", 6, "r.example a/b"),
    ]
}

fn volume_attributes() -> Vec<Seed> {
    let seed = |name, text: &str| ("volume_attributes", name, text.as_bytes().to_vec());
    vec![
        seed(
            "image",
            "0=python:3.12\n2=/usr//lib/./python3/\n3=pod\n4=ns\n7=true",
        ),
        seed("clip-image", "1=python\n4=default"),
        seed("misspelt", "clipimage=x"),
        seed("both", "0=a\n1=b\n2=../x"),
    ]
}
