//! What the tar walk makes of streams that real builders write, and of streams that nobody should.

use clip_archive::EntryKind;
use clip_index::{TarError, TarWalker};
use clip_testkit::layout::Layer;
use tar::EntryType;

type Seen = (String, &'static str);

fn walk(stream: &[u8], piece: usize) -> Result<(Vec<Seen>, Vec<String>), TarError> {
    let mut walker = TarWalker::new();
    for bytes in stream.chunks(piece) {
        walker.push(bytes)?;
    }
    let walked = walker.finish()?;
    let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let seen = walked.entries.iter().map(|entry| {
        let kind = match entry.kind {
            EntryKind::File { .. } => "file",
            EntryKind::Directory => "directory",
            EntryKind::Symlink { .. } => "link",
            EntryKind::Hardlink { .. } => "hard link",
            EntryKind::Whiteout => "whiteout",
            EntryKind::Opaque => "opaque",
            _ => "special",
        };
        (text(&entry.path), kind)
    });
    let left_out = walked.runtime_paths.iter().map(|path| text(path));
    Ok((seen.collect(), left_out.collect()))
}

fn names(layer: Layer) -> Vec<Seen> {
    walk(&layer.tar(), usize::MAX).unwrap().0
}

fn seen(path: &str, kind: &'static str) -> Seen {
    (path.to_owned(), kind)
}

#[test]
fn s6_whiteouts_and_opaque_marks_are_recognised_and_the_own_files_of_aufs_ignored() {
    let layer = Layer::new()
        .file("etc/.wh.passwd", "")
        .file("usr/.wh..wh..opq", "")
        .file(".wh..wh..opq", "")
        .file(".wh..wh.aufs", "")
        .dir(".wh..wh.plnk")
        .file("etc/.whatever", "");
    assert_eq!(
        names(layer),
        [
            seen("etc/passwd", "whiteout"),
            seen("usr", "opaque"),
            seen("", "opaque"),
            seen("etc/.whatever", "file"),
        ]
    );
}

#[test]
fn s5_only_the_runtime_directories_at_the_top_are_left_out() {
    let layer = Layer::new()
        .dir("proc")
        .file("sys/kernel/x", "x")
        .file("dev/.wh.null", "")
        .dir("process")
        .file("usr/dev/null", "x")
        .file("devices", "x");
    let (entries, left_out) = walk(&layer.tar(), usize::MAX).unwrap();
    assert_eq!(
        entries,
        [
            seen("process", "directory"),
            seen("usr/dev/null", "file"),
            seen("devices", "file"),
        ]
    );
    assert_eq!(left_out.len(), 3, "{left_out:?}");
}

#[test]
fn paths_are_normalised() {
    let layer = Layer::new().dir("./").file("./a//b/./c", "x").dir("d/");
    assert_eq!(
        names(layer),
        [
            seen("", "directory"),
            seen("a/b/c", "file"),
            seen("d", "directory"),
        ]
    );
}

#[test]
fn names_longer_than_a_header_holds_arrive_whole() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(250));
    assert_eq!(names(Layer::new().file(&long, "x")), [seen(&long, "file")]);
}

#[test]
fn s3_the_pieces_in_which_a_stream_arrives_change_nothing() {
    let layer = || {
        Layer::new()
            .dir("a")
            .file("a/file", [7; 3000])
            .file(&"n".repeat(180), "x")
            .entry(EntryType::Fifo, "fifo", 0o600, &[])
            .tar()
    };
    let whole = walk(&layer(), usize::MAX).unwrap();
    for piece in [1, 7, 511, 512, 513, 4096] {
        assert_eq!(walk(&layer(), piece).unwrap(), whole, "pieces of {piece}");
    }
}

#[test]
fn a_stream_without_its_end_mark_is_accepted_and_one_that_is_cut_is_not() {
    let whole = Layer::new().file("file", [1; 2000]).tar();
    let without_end = whole.len() - 1024;
    assert!(walk(&whole[..without_end], usize::MAX).is_ok());
    // Behind the last byte of the file only padding is missing, which is accepted, too.
    assert!(walk(&whole[..without_end - 1], usize::MAX).is_ok());
    for len in [100, 511, 513, 1500, 512 + 1999] {
        assert!(
            matches!(
                walk(&whole[..len], usize::MAX),
                Err(TarError::Truncated { .. })
            ),
            "{len} bytes"
        );
    }
}

#[test]
fn garbage_is_an_error_and_never_a_panic() {
    let good = Layer::new().file("file", [1; 600]).dir("dir").tar();
    for at in (0..good.len()).step_by(3) {
        let mut bad = good.clone();
        bad[at] ^= 0xFF;
        let _ = walk(&bad, usize::MAX);
    }
    assert!(walk(&vec![b'x'; 4096], usize::MAX).is_err());
}
