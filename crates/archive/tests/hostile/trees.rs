//! Trees that cost more than they look: links that multiply, directories that nobody names, names by the million.

use crate::{
    MIB, empty_file, entry, framing::RawLayer, hardlink, open, peak, refusal, symlink, within,
};
use clip_archive::{Archive, Entry, EntryKind, Tree, columns, erofs, limits, merge};
use std::time::Duration;

const A_WHILE: Duration = Duration::from_secs(60);

fn archive_of(layers: &[Vec<Entry>]) -> Archive {
    let raw = |entries: &Vec<Entry>| RawLayer {
        entries: columns::encode_entries(entries),
        ..RawLayer::default()
    };
    let raw: Vec<RawLayer> = layers.iter().map(raw).collect();
    open(&raw).unwrap()
}

fn merged(layers: &[Vec<Entry>]) -> Tree {
    archive_of(layers).merge().unwrap()
}

#[test]
fn forty_links_with_targets_of_two_thousand_names_do_not_multiply_by_the_entries() {
    let round_trip = "d/../".repeat(815);
    let mut entries = vec![entry("d", EntryKind::Directory)];
    for link in 0..39 {
        entries.push(symlink(
            format!("l{link}"),
            format!("{round_trip}l{}", link + 1),
        ));
    }
    entries.push(symlink("l39", "d"));
    let few = merged(&[[entries.clone(), vec![empty_file("l0/x")]].concat()]);
    assert!(few.lookup(b"d/x").is_some(), "once is allowed");
    entries.extend((0..100_000).map(|n| empty_file(format!("l0/{n}"))));
    let archive = archive_of(&[entries]);
    let refusal = within(A_WHILE, || refusal(archive.merge()));
    assert!(
        refusal.contains("symbolic links send the image's entries through"),
        "{refusal}"
    );
}

#[test]
fn links_in_circles_are_a_loop_not_a_hang() {
    let circle = vec![symlink("a", "b/x"), symlink("b", "a/x"), empty_file("a/f")];
    assert!(refusal(archive_of(&[circle]).merge()).contains("loop of symbolic links"));
    let itself = vec![symlink("a", "a/a/a/a/a/a"), empty_file("a/f")];
    assert!(refusal(archive_of(&[itself]).merge()).contains("loop of symbolic links"));
}

#[test]
fn directories_that_only_long_paths_imply_count_as_entries_do() {
    let deep = "/d".repeat(2040);
    let paths = (0..limits::ENTRIES_MAX / 2000).map(|n| format!("{n}{deep}"));
    let entries: Vec<Entry> = paths.map(empty_file).collect();
    let (refusal, peak) = peak::of(|| {
        within(A_WHILE, || {
            refusal(merge(vec![entries], vec![0], Default::default()))
        })
    });
    assert!(
        refusal.contains("more than 2097152 files and directories"),
        "{refusal}"
    );
    assert!(peak < 1300 * MIB, "{} MiB", peak / MIB);
}

#[test]
fn names_that_only_link_targets_have_count_as_text_does() {
    // Each pair makes a directory whose name is a link's target, and replaces what it lies in.
    let mut entries = vec![symlink("l", [&b"t/"[..], &[b'x'; 4000]].concat())];
    for _ in 0..limits::TREE_TEXT_MAX / 4000 + 2 {
        entries.push(empty_file("l/x"));
        entries.push(entry("t", EntryKind::Fifo));
    }
    let refusal = within(A_WHILE, || {
        refusal(merge(vec![entries], vec![0], Default::default()))
    });
    assert!(
        refusal.contains("names and link targets have more than 536870912 bytes"),
        "{refusal}"
    );
}

#[test]
fn a_tree_deeper_than_any_path_can_name_is_merged_written_and_read() {
    let deep = vec![b"d".as_slice(); 2000].join(&b'/');
    let mut layers = vec![vec![entry(deep.clone(), EntryKind::Directory)]];
    // Each layer goes on where a link into the depth ends.
    for level in 0..4 {
        let link = format!("l{level}");
        let from = match level {
            0 => deep.clone(),
            _ => [format!("l{}/", level - 1).as_bytes(), &deep].concat(),
        };
        layers.push(vec![
            symlink(link.clone(), from),
            entry(
                [link.as_bytes(), b"/", &deep].concat(),
                EntryKind::Directory,
            ),
        ]);
    }
    let tree = merged(&layers);
    assert!(tree.node_count() > 10_000, "{} nodes", tree.node_count());
    let bytes = erofs::write(&tree).unwrap();
    let image = erofs::Image::open(&bytes).unwrap();
    let mut at = image.root();
    let mut depth = 0;
    while let Some(next) = image.lookup(at, b"d").unwrap() {
        (at, depth) = (next, depth + 1);
    }
    assert_eq!(depth, 10_000);
}

#[test]
fn names_links_and_marks_by_the_hundred_thousand_take_linear_time() {
    const MANY: usize = 200_000;
    let same_name = (0..MANY).map(|_| empty_file("x")).collect();
    let tree = within(A_WHILE, || merged(&[same_name]));
    assert_eq!(tree.node_count(), 2);

    let mut links = vec![empty_file("x")];
    links.extend((0..MANY).map(|n| hardlink(format!("l{n}"), "x")));
    let tree = within(A_WHILE, || merged(&[links]));
    assert_eq!((tree.node_count(), tree.name_count()), (2, MANY as u64 + 1));

    let files: Vec<Entry> = (0..MANY).map(|n| empty_file(format!("d/{n}"))).collect();
    let marks = (0..MANY).map(|_| entry("d", EntryKind::Opaque));
    let marks: Vec<Entry> = marks.chain([empty_file("d/new")]).collect();
    let tree = within(A_WHILE, || merged(&[files.clone(), marks]));
    assert_eq!(tree.name_count(), 2);

    let whiteouts = (0..MANY).map(|n| entry(format!("d/{n}"), EntryKind::Whiteout));
    let tree = within(A_WHILE, || merged(&[files, whiteouts.collect()]));
    assert_eq!(tree.name_count(), 1);

    // A directory and a file of one name in turn: each replaces the other, with all that is below.
    let turns = (0..MANY).map(|n| match n % 2 {
        0 => entry("t", EntryKind::Fifo),
        _ => empty_file("t/x"),
    });
    let tree = within(A_WHILE, || merged(&[turns.collect()]));
    assert_eq!(tree.name_count(), 2);
}

#[test]
fn a_chain_of_hard_links_to_later_links_is_refused_not_squared() {
    let mut chain: Vec<Entry> = (0..100_000)
        .map(|n| hardlink(format!("l{n}"), format!("l{}", n + 1)))
        .collect();
    chain.push(empty_file("l100000"));
    let archive = archive_of(&[chain]);
    // 40 rounds resolve 40 links: more is no layer that any tool has made.
    let refusal = within(A_WHILE, || refusal(archive.merge()));
    assert!(
        refusal.contains("does not exist in this layer or below"),
        "{refusal}"
    );
}

#[test]
fn what_a_mount_could_not_show_is_refused_with_its_path() {
    for (bad, problem) in [
        (symlink("l", vec![b'x'; 4096]), "longer than 4,095 bytes"),
        (
            hardlink("", "x"),
            "entry for the root that is not a directory",
        ),
        (hardlink("l", "a/../b"), "not normalised"),
        (
            hardlink("l", vec![b"d".as_slice(); 3000].join(&b'/')),
            "longer than 4,096 bytes",
        ),
        (empty_file("a//b"), "not normalised"),
        (empty_file("/a"), "not normalised"),
        (empty_file(vec![b'n'; 256]), "longer than 255 bytes"),
        (
            empty_file(vec![b"d".as_slice(); 3000].join(&b'/')),
            "longer than 4,096 bytes",
        ),
    ] {
        let refusal = refusal(archive_of(&[vec![bad]]).merge());
        assert!(refusal.contains(problem), "{refusal}");
    }
}

/// The figures that `docs/format.md` gives.
#[test]
fn an_entry_costs_some_hundred_bytes_from_the_archive_to_the_mount() {
    const ENTRIES: usize = 100_000;
    let path = |n: usize| format!("usr/lib/python3/site-packages/pkg{}/file{n}.py", n / 50);
    let entries: Vec<Entry> = (0..ENTRIES).map(|n| empty_file(path(n))).collect();
    let archive = archive_of(&[entries]);
    let (tree, open) = peak::of(|| archive.merge().unwrap());
    let (image, expand) = peak::of(|| erofs::write(&tree).unwrap());
    assert_eq!(tree.name_count(), ENTRIES as u64 + 2004);
    let each = |bytes: usize| bytes / ENTRIES;
    let figures = (each(open), each(expand), each(image.len()));
    println!(
        "bytes an entry: open and merge {}, expand {}, image {}",
        figures.0, figures.1, figures.2
    );
    assert!(
        figures.0 < 700 && figures.1 < 300 && figures.2 < 150,
        "{figures:?}"
    );
}
