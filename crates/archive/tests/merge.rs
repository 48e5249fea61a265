//! S4, S5, S6: laying layers over each other.

use clip_archive::{
    Entry, EntryKind, RuntimeDirs, Segment, Tree, erofs,
    merge::{MergeError, is_runtime_path, merge},
    tree::{Attributes, Node, NodeId, NodeKind},
};

#[test]
fn s4_missing_parents_are_made_with_the_times_of_the_entry_that_implied_them() {
    let tree = build([vec![file("usr/lib/x/y.so").at(77)]]);
    for path in ["usr", "usr/lib", "usr/lib/x"] {
        let dir = node(&tree, path);
        let expected = Attributes {
            mode: 0o755,
            mtime: 77,
            ..Attributes::default()
        };
        assert_eq!(dir.attributes, expected, "{path}");
        assert_eq!(dir.kind, NodeKind::Directory);
    }
}

#[test]
fn s4_a_directory_described_after_its_children_keeps_them() {
    let tree = build([vec![file("opt/a"), dir("opt").mode(0o700)]]);
    assert_eq!(node(&tree, "opt").attributes.mode, 0o700);
    assert_eq!(names(&tree, "opt"), ["a"]);
}

#[test]
fn s5_runtime_paths_are_proc_sys_dev_and_what_is_below_but_no_lookalikes() {
    for path in ["proc", "proc/1/mem", "sys", "dev/null"] {
        assert!(is_runtime_path(path.as_bytes()), "{path}");
    }
    for path in ["process", "usr/dev", "system", "device/x", ""] {
        assert!(!is_runtime_path(path.as_bytes()), "{path}");
    }
}

#[test]
fn s5_empty_runtime_directories_are_made_on_request() {
    let layers = vec![vec![file("etc/hosts")]];
    let tree = merge(layers, vec![0], RuntimeDirs::Empty).unwrap();
    assert_eq!(names(&tree, ""), ["dev", "etc", "proc", "sys"]);
    assert_eq!(node(&tree, "proc").attributes.mode, 0o755);
}

#[test]
fn s6_a_whiteout_hides_lower_layers_only() {
    let tree = build([
        vec![file("a/x"), file("a/y")],
        vec![file("a/x"), whiteout("a/x"), whiteout("a/y")],
    ]);
    assert_eq!(names(&tree, "a"), ["x"]);
}

#[test]
fn s6_a_whiteout_of_nothing_changes_nothing() {
    let tree = build([
        vec![file("a")],
        vec![whiteout("b"), whiteout("c/d"), whiteout("a/b")],
    ]);
    assert_eq!(names(&tree, ""), ["a"]);
}

#[test]
fn s6_an_opaque_mark_empties_the_lower_directory_wherever_it_stands_in_the_tar() {
    for marks_first in [true, false] {
        let mut upper = vec![file("d/new"), opaque("d")];
        if marks_first {
            upper.reverse();
        }
        let tree = build([
            vec![dir("d").mode(0o711), file("d/old"), file("d/sub/deep")],
            upper,
        ]);
        assert_eq!(names(&tree, "d"), ["new"]);
        assert_eq!(
            node(&tree, "d").attributes.mode,
            0o711,
            "the directory itself stays"
        );
    }
}

#[test]
fn s6_an_opaque_mark_at_the_root_hides_everything_below() {
    let tree = build([vec![file("a"), file("b/c")], vec![opaque(""), file("z")]]);
    assert_eq!(names(&tree, ""), ["z"]);
}

#[test]
fn s6_a_directory_replaced_by_a_file_and_back_does_not_resurrect_its_children() {
    let tree = build([
        vec![file("d/ghost")],
        vec![file("d")],
        vec![dir("d"), file("d/new")],
    ]);
    assert_eq!(names(&tree, "d"), ["new"]);
}

#[test]
fn s6_a_directory_that_is_replaced_between_two_of_its_entries_begins_anew() {
    let in_the_way = [
        file("a"),
        file("a/b"),
        symlink("a/b", "../elsewhere"),
        hardlink("a/b", "linked"),
    ];
    for in_the_way in in_the_way {
        let is_link = matches!(in_the_way.kind, EntryKind::Symlink { .. });
        let second = if is_link { "elsewhere" } else { "a/b" };
        let tree = build([vec![
            file("linked"),
            dir("elsewhere"),
            file("a/b/first"),
            in_the_way,
            file("a/b/second"),
        ]]);
        assert_eq!(names(&tree, second), ["second"]);
    }
    let tree = build([
        vec![file("a/b/lower")],
        vec![file("a/b/first"), whiteout("a"), file("a/b/second")],
    ]);
    assert_eq!(names(&tree, "a/b"), ["first", "second"]);
    let tree = build([
        vec![file("a/b/lower")],
        vec![
            hardlink("a/b/link", "a/b/lower"),
            opaque("a"),
            file("a/b/second"),
        ],
    ]);
    assert_eq!(names(&tree, "a/b"), ["link", "second"]);
}

#[test]
fn s6_entries_below_a_lower_symlink_go_where_it_points() {
    let tree = build([
        vec![symlink("lib", "usr/lib"), dir("usr/lib")],
        vec![file("lib/x")],
    ]);
    assert_eq!(names(&tree, "usr/lib"), ["x"]);
    assert!(matches!(node(&tree, "lib").kind, NodeKind::Symlink(_)));
}

#[test]
fn s6_symlinks_never_lead_out_of_the_image() {
    let tree = build([vec![symlink("out", "../../../etc"), file("out/passwd")]]);
    assert_eq!(names(&tree, "etc"), ["passwd"]);
}

#[test]
fn s6_a_loop_of_symlinks_is_refused() {
    let layers = vec![vec![symlink("a", "b"), symlink("b", "a"), file("a/x")]];
    assert!(matches!(
        merge(layers, vec![0], RuntimeDirs::Omit),
        Err(MergeError::Loop { .. })
    ));
}

#[test]
fn s6_hard_links_share_one_inode_across_layers_and_to_later_entries() {
    let tree = build([
        vec![file("a")],
        vec![hardlink("b", "a"), hardlink("d", "c"), file("c")],
    ]);
    assert_eq!(tree.lookup(b"a"), tree.lookup(b"b"));
    assert_eq!(tree.lookup(b"c"), tree.lookup(b"d"));
    assert_ne!(tree.lookup(b"a"), tree.lookup(b"c"));
}

#[test]
fn s6_a_hard_link_to_a_symlink_is_that_symlink() {
    let tree = build([vec![symlink("s", "target"), hardlink("h", "s")]]);
    assert_eq!(tree.lookup(b"s"), tree.lookup(b"h"));
    assert_eq!(node(&tree, "h").kind, NodeKind::Symlink(b"target"));
}

#[test]
fn s6_a_hard_link_survives_the_removal_of_its_first_name() {
    let tree = build([vec![file("a"), hardlink("b", "a")], vec![whiteout("a")]]);
    assert_eq!(names(&tree, ""), ["b"]);
}

#[test]
fn s6_a_hard_link_to_nothing_or_to_a_directory_is_refused() {
    for entries in [
        vec![hardlink("b", "missing")],
        vec![dir("d"), hardlink("b", "d")],
    ] {
        let refused = merge(vec![entries], vec![0], RuntimeDirs::Omit);
        assert!(
            matches!(refused, Err(MergeError::Hardlink { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn s6_a_hard_link_finds_a_target_that_a_later_mark_hides() {
    for mark in [whiteout("d"), whiteout("d/a"), opaque("d")] {
        let lower = vec![file("d/a")];
        let tree = build([lower.clone(), vec![hardlink("b", "d/a"), mark.clone()]]);
        assert!(tree.lookup(b"b").is_some(), "{mark:?}");
        assert!(tree.lookup(b"d/a").is_none(), "{mark:?}");
        let refused = merge(
            vec![lower, vec![mark, hardlink("b", "d/a")]],
            vec![0; 2],
            RuntimeDirs::Omit,
        );
        assert!(
            matches!(refused, Err(MergeError::Hardlink { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn s6_a_long_chain_of_links_to_later_entries_is_refused_quickly() {
    let chain = (0..20_000).map(|i| hardlink(&format!("l{i:05}"), &format!("l{:05}", i + 1)));
    let mut entries: Vec<Entry> = chain.collect();
    entries.push(file("l20000"));
    let refused = merge(vec![entries], vec![1 << 20], RuntimeDirs::Omit);
    assert!(
        matches!(refused, Err(MergeError::Hardlink { .. })),
        "{refused:?}"
    );
}

#[test]
fn s5_runtime_directories_stay_empty_also_behind_links() {
    let layers = vec![vec![symlink("a", "/dev"), file("a/null")]];
    let tree = merge(layers, vec![1 << 20], RuntimeDirs::Empty).unwrap();
    assert_eq!(names(&tree, "dev"), [""; 0]);
}

/// docs/semantics.md: "A later entry of the same path wins".
#[test]
fn s6_a_later_entry_of_the_same_path_wins() {
    let tree = build([vec![file("a").mode(0o600), file("a").mode(0o640)]]);
    assert_eq!(node(&tree, "a").attributes.mode, 0o640);
}

#[test]
fn every_mode_bit_owner_and_nanosecond_is_kept() {
    let tree = build([vec![Entry {
        mode: 0o7755,
        uid: 4_000_000_000,
        gid: 12,
        mtime: -5,
        mtime_nsec: 999_999_999,
        ..file("s")
    }]]);
    let expected = Attributes {
        mode: 0o7755,
        uid: 4_000_000_000,
        gid: 12,
        mtime: -5,
        mtime_nsec: 999_999_999,
    };
    assert_eq!(node(&tree, "s").attributes, expected);
}

#[test]
fn the_same_tree_built_in_another_order_is_equal() {
    let forwards = build([vec![file("a/b"), file("c"), dir("a")]]);
    let backwards = build([vec![file("c"), dir("a"), file("a/b")]]);
    assert_eq!(erofs::write(&forwards), erofs::write(&backwards));
}

trait With {
    fn at(self, mtime: i64) -> Self;
    fn mode(self, mode: u16) -> Self;
}

impl With for Entry {
    fn at(self, mtime: i64) -> Self {
        Self { mtime, ..self }
    }
    fn mode(self, mode: u16) -> Self {
        Self { mode, ..self }
    }
}

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: 0,
        mtime_nsec: 0,
        xattrs: vec![],
    }
}

fn file(path: &str) -> Entry {
    entry(
        path,
        EntryKind::File {
            size: 1,
            segments: vec![Segment {
                logical: 0,
                length: 1,
                tar_offset: 512,
            }],
        },
    )
}

fn dir(path: &str) -> Entry {
    entry(path, EntryKind::Directory)
}

fn symlink(path: &str, target: &str) -> Entry {
    entry(
        path,
        EntryKind::Symlink {
            target: target.into(),
        },
    )
}

fn hardlink(path: &str, target: &str) -> Entry {
    entry(
        path,
        EntryKind::Hardlink {
            target: target.into(),
        },
    )
}

fn whiteout(path: &str) -> Entry {
    entry(path, EntryKind::Whiteout)
}

fn opaque(path: &str) -> Entry {
    entry(path, EntryKind::Opaque)
}

fn build<const N: usize>(layers: [Vec<Entry>; N]) -> Tree {
    merge(layers.to_vec(), vec![1 << 20; N], RuntimeDirs::Omit).unwrap()
}

fn id(tree: &Tree, path: &str) -> NodeId {
    tree.lookup(path.as_bytes())
        .unwrap_or_else(|| panic!("{path} is missing"))
}

fn node<'a>(tree: &'a Tree, path: &str) -> Node<'a> {
    tree.node(id(tree, path))
}

fn names(tree: &Tree, path: &str) -> Vec<String> {
    assert_eq!(node(tree, path).kind, NodeKind::Directory);
    tree.children(id(tree, path))
        .map(|(name, _)| String::from_utf8_lossy(name).into_owned())
        .collect()
}
