//! Which stacks the oracle makes up. Names are few, so that layers collide; what is common in real
//! layers is common here, what is odd is rare but there.

use crate::{
    paths::{is_at_or_below, normalise},
    stack::{
        Attributes, Bytes, Kind, Layer, Member, OPAQUE_MARK, SparseFormat, Stack, WHITEOUT_PREFIX,
    },
};
use proptest::{
    collection::vec, option::weighted, prelude::*, sample::select, strategy::BoxedStrategy,
};

/// What runtimes make themselves, when at the root.
const RUNTIME_NAMES: [&str; 3] = ["proc", "sys", "dev"];

/// Any stack of one to five layers.
pub fn stacks() -> impl Strategy<Value = Stack> {
    let drafts = vec((prop::bool::weighted(0.2), vec(draft(), 0..9)), 1..=5);
    drafts.prop_map(|drafts| {
        let mut earlier = Vec::new();
        let layers = drafts
            .into_iter()
            .map(|(zstd, drafts)| {
                let members = drafts.into_iter().map(|draft| settle(draft, &mut earlier));
                Layer {
                    zstd,
                    members: members.collect(),
                }
            })
            .collect();
        Stack { layers }
    })
}

/// A member whose hard link, if it is one, does not know its target yet.
#[derive(Debug, Clone)]
struct Draft {
    member: Member,
    /// Picks one of the earlier members that can be linked to.
    links_to: Option<prop::sample::Index>,
    /// The link repeats its target's attributes, as all real layers do.
    repeats_attributes: bool,
}

/// Gives a hard link a target that is (probably) there: links to nothing end a comparison early.
/// `earlier` are the members that can be linked to.
fn settle(draft: Draft, earlier: &mut Vec<Member>) -> Member {
    let mut member = draft.member;
    if matches!(member.kind, Kind::Hardlink(_))
        && let Some(index) = draft.links_to
    {
        if earlier.is_empty() {
            member.kind = Kind::File(Bytes(vec![]));
        } else {
            let target = index.get(earlier);
            // A slash at the end would have containerd follow a symbolic link.
            let name = target.name.strip_suffix(b"/").unwrap_or(&target.name);
            member.kind = Kind::Hardlink(Bytes(name.to_vec()));
            if draft.repeats_attributes {
                member.attributes = target.attributes.clone();
            }
        }
    }
    forget_hidden(&member, earlier);
    let is_runtime = |name: &[u8]| RUNTIME_NAMES.iter().any(|dir| dir.as_bytes() == name);
    let is_mark = |name: &[u8]| name.starts_with(WHITEOUT_PREFIX);
    let mut names = member.name.split(|&byte| byte == b'/');
    if !names.any(|name| is_mark(name) || is_runtime(name)) && member.kind != Kind::Directory {
        earlier.push(member.clone());
    }
    member
}

/// Whatever `member` hides or replaces is not there any more, as far as the names tell.
fn forget_hidden(member: &Member, earlier: &mut Vec<Member>) {
    let mut names = normalise(&member.name);
    let hidden = match names.pop() {
        Some(name) if name == OPAQUE_MARK => names.join(&b'/'),
        Some(name) => {
            names.push(name.strip_prefix(WHITEOUT_PREFIX).unwrap_or(name));
            names.join(&b'/')
        }
        None => return,
    };
    if member.kind != Kind::Directory {
        earlier.retain(|other| !is_at_or_below(&normalise(&other.name).join(&b'/'), &hidden));
    }
}

fn draft() -> impl Strategy<Value = Draft> {
    let member = prop_oneof![
        10 => file_member(),
        6 => member(directory_path(), Just(Kind::Directory).boxed()),
        3 => member(leaf_path(), target().prop_map(Kind::Symlink).boxed()),
        1 => member(directory_path(), target().prop_map(Kind::Symlink).boxed()),
        3 => member(leaf_path(), target().prop_map(Kind::Hardlink).boxed()),
        1 => member(leaf_path(), node_kind()),
        3 => marker(),
        1 => root_member(),
    ];
    let link = weighted(0.95, any::<prop::sample::Index>());
    (member, link, prop::bool::weighted(0.85)).prop_map(|(member, links_to, repeats_attributes)| {
        Draft {
            member,
            links_to,
            repeats_attributes,
        }
    })
}

fn member(
    path: impl Strategy<Value = Vec<u8>> + 'static,
    kind: BoxedStrategy<Kind>,
) -> BoxedStrategy<Member> {
    (path, kind)
        .prop_flat_map(|(name, kind)| {
            let attributes = attributes(&kind);
            (Just(name), Just(kind), attributes)
        })
        .prop_map(|(name, kind, attributes)| Member {
            name,
            kind,
            attributes,
        })
        .boxed()
}

fn file_member() -> BoxedStrategy<Member> {
    let content = prop_oneof![
        4 => vec(any::<u8>(), 0..40),
        1 => (any::<u8>(), 500..9000usize).prop_map(|(byte, length)| vec![byte; length]),
    ];
    let kind = prop_oneof![
        12 => content.prop_map(|content| Kind::File(Bytes(content))),
        1 => sparse_kind(),
    ];
    member(leaf_path(), kind.boxed())
}

/// A sparse file of up to four runs: as many as the old GNU header holds.
fn sparse_kind() -> impl Strategy<Value = Kind> {
    let blocks = |count| prop_oneof![30 => (0..count).prop_map(|n| n * 512), 1 => 0..count * 512];
    let gaps_and_runs = vec((blocks(9u64), blocks(3), any::<u8>()), 0..=3);
    let format = prop_oneof![
        1 => Just(SparseFormat::OldGnu),
        5 => Just(SparseFormat::Pax01),
        5 => Just(SparseFormat::Pax10),
    ];
    (gaps_and_runs, blocks(4), 0..512u64, format).prop_map(|(gaps_and_runs, tail, rest, format)| {
        let mut at = 0;
        let mut runs = Vec::new();
        for (gap, length, byte) in gaps_and_runs {
            runs.push((at + gap, Bytes(vec![byte; length as usize])));
            at += gap + length;
        }
        // The last piece may end amid a block; behind a hole GNU tar writes an empty one.
        let size = at + tail + rest;
        match tail {
            0 => runs.push((at, Bytes(vec![b'z'; rest as usize]))),
            _ => runs.push((size, Bytes(vec![]))),
        }
        Kind::Sparse { size, runs, format }
    })
}

fn node_kind() -> BoxedStrategy<Kind> {
    let number = || select(vec![0u32, 1, 5, 255, 256, 4095]);
    prop_oneof![
        2 => Just(Kind::Fifo),
        1 => (number(), number()).prop_map(|(major, minor)| Kind::CharDevice(major, minor)),
        1 => (number(), number()).prop_map(|(major, minor)| Kind::BlockDevice(major, minor)),
    ]
    .boxed()
}

/// A whiteout or an opaque mark.
fn marker() -> BoxedStrategy<Member> {
    let hidden = prop_oneof![leaf_path(), directory_path()].prop_map(|path| {
        let (parent, name) = split(&path);
        let name = if name.is_empty() {
            b"a".as_slice()
        } else {
            name
        };
        [parent, b".wh.", name].concat()
    });
    let opaque = prop_oneof![4 => directory_path(), 1 => Just(vec![])].prop_map(|mut path| {
        if !path.is_empty() && !path.ends_with(b"/") {
            path.push(b'/');
        }
        [path.as_slice(), OPAQUE_MARK].concat()
    });
    let odd = (
        directory_path(),
        select(vec![".wh..wh.aufs", ".wh..wh.plnk", ".wh...a"]),
    )
        .prop_map(|(mut path, name)| {
            if !path.ends_with(b"/") {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            path
        });
    prop_oneof![12 => hidden, 6 => opaque, 1 => odd]
        .prop_map(|name| Member {
            name,
            kind: Kind::File(Bytes(vec![])),
            attributes: Attributes::plain(0o644),
        })
        .boxed()
}

fn root_member() -> BoxedStrategy<Member> {
    let name = select(vec!["./", "/", "."]).prop_map(|name| name.as_bytes().to_vec());
    member(name, Just(Kind::Directory).boxed())
}

fn directory_path() -> impl Strategy<Value = Vec<u8>> {
    let slash = prop_oneof![3 => Just("/"), 1 => Just("")];
    (vec(directory_name(), 1..=3), decoration(), slash).prop_map(|(names, decoration, slash)| {
        [decoration.as_bytes(), &names.join(&b'/'), slash.as_bytes()].concat()
    })
}

fn leaf_path() -> impl Strategy<Value = Vec<u8>> {
    (vec(directory_name(), 0..=2), leaf_name(), decoration()).prop_map(
        |(mut names, leaf, decoration)| {
            names.push(leaf);
            [decoration.as_bytes(), &names.join(&b'/')].concat()
        },
    )
}

/// What stands before a path without changing where it leads.
fn decoration() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        20 => Just(""),
        6 => Just("./"),
        2 => Just("/"),
        1 => Just(".//"),
        1 => Just("x/../"),
    ]
}

fn directory_name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        30 => select(vec!["a", "b", "c"]).prop_map(|name| name.as_bytes().to_vec()),
        1 => select(RUNTIME_NAMES.to_vec()).prop_map(|name| name.as_bytes().to_vec()),
        2 => odd_name(),
    ]
}

fn leaf_name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        30 => select(vec!["f", "g", "h"]).prop_map(|name| name.as_bytes().to_vec()),
        2 => select(vec!["a", "b", "c"]).prop_map(|name| name.as_bytes().to_vec()),
        3 => odd_name(),
    ]
}

fn odd_name() -> impl Strategy<Value = Vec<u8>> {
    select(vec![
        "grüße".as_bytes().to_vec(),
        b"\xff\xfe".to_vec(),
        b"a\nb \\".to_vec(),
        b"...".to_vec(),
        b".wx.a".to_vec(),
        vec![b'n'; 120],
        vec![b'n'; 255],
        [vec![b'm'; 118], vec![0xe9; 30]].concat(),
    ])
}

/// Where links point.
fn target() -> impl Strategy<Value = Bytes> {
    let path = prop_oneof![
        6 => directory_path(),
        6 => leaf_path(),
        2 => directory_path().prop_map(|path| [b"/".as_slice(), &path].concat()),
        2 => leaf_path().prop_map(|path| [b"../".as_slice(), &path].concat()),
        1 => directory_path().prop_map(|path| [b"../../../../".as_slice(), &path].concat()),
        1 => Just(b".".to_vec()),
        1 => Just(b"..".to_vec()),
        1 => Just(b"/".to_vec()),
    ];
    path.prop_map(Bytes)
}

fn attributes(kind: &Kind) -> BoxedStrategy<Attributes> {
    let mode = prop_oneof![
        4 => select(vec![0o644u32, 0o755, 0o600, 0o700]),
        2 => select(vec![0o4755u32, 0o2755, 0o6711, 0o1777, 0o750, 0o640]),
        1 => 0..0o10000u32,
    ];
    let id =
        || prop_oneof![4 => Just(0u32), 2 => Just(1000), 1 => Just(2000), 1 => Just(4_000_000)];
    let seconds = prop_oneof![
        30 => 0..1_700_000_000i64,
        2 => 4_000_000_000..9_000_000_000i64,
        1 => -2_000_000_000..0i64,
    ];
    let nanos = prop_oneof![Just(0u32), 0..1_000_000_000u32];
    let has_user_xattrs = matches!(
        kind,
        Kind::File(_) | Kind::Sparse { .. } | Kind::Directory | Kind::Hardlink(_)
    );
    let is_file = matches!(kind, Kind::File(_));
    let is_directory = matches!(kind, Kind::Directory);
    (mode, id(), id(), (seconds, nanos))
        .prop_flat_map(move |(mode, uid, gid, mtime)| {
            let xattrs = match has_user_xattrs {
                true => xattrs(mode, is_file, is_directory).boxed(),
                false => Just(vec![]).boxed(),
            };
            xattrs.prop_map(move |xattrs| Attributes {
                mode,
                uid,
                gid,
                mtime,
                xattrs,
            })
        })
        .boxed()
}

fn xattrs(
    mode: u32,
    is_file: bool,
    is_directory: bool,
) -> impl Strategy<Value = Vec<(String, Bytes)>> {
    let user = (
        select(vec!["user.note", "user.other"]),
        prop_oneof![9 => vec(any::<u8>(), 1..20), 1 => Just(vec![])],
    );
    let capability = (Just("security.capability"), select(capabilities()));
    let trusted = (Just("trusted.note"), vec(any::<u8>(), 1..5));
    let access = (0..8u16, any::<u16>())
        .prop_map(move |(user, group)| ("system.posix_acl_access", acl(mode, user, group)));
    let default = (0..8u16, any::<u16>())
        .prop_map(move |(user, group)| ("system.posix_acl_default", acl(0o750, user, group)));
    (
        weighted(0.15, user),
        weighted(0.08, capability),
        weighted(0.02, trusted),
        weighted(0.08, access),
        weighted(0.03, default),
    )
        .prop_map(move |(user, capability, trusted, access, default)| {
            // Where Linux allows them.
            let capability = capability.filter(|_| is_file);
            let access = access.filter(|_| is_file || is_directory);
            let default = default.filter(|_| is_directory);
            [user, capability, trusted, access, default]
                .into_iter()
                .flatten()
                .map(|(name, value)| (name.to_owned(), Bytes(value)))
                .collect()
        })
}

/// `struct vfs_cap_data` of revision 2 (linux/capability.h): cap_net_raw, effective or not.
fn capabilities() -> Vec<Vec<u8>> {
    [1u32, 0]
        .map(|effective| {
            let words = [0x0200_0000 | effective, 1 << 13, 0, 0, 0];
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        })
        .to_vec()
}

/// An access control list as in linux/posix_acl_xattr.h that names user 3000 and group 2000 and
/// agrees with `mode`, as every list that was ever read from a filesystem does.
fn acl(mode: u32, user: u16, group: u16) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let bits = |shift: u32| (mode >> shift & 7) as u16;
    let entries: [(u16, u16, u32); 6] = [
        (0x01, bits(6), NOBODY),
        (0x02, user, 3000),
        (0x04, group & 7, NOBODY),
        (0x08, group >> 3 & 7, 2000),
        (0x10, bits(3), NOBODY),
        (0x20, bits(0), NOBODY),
    ];
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&permissions.to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
    }
    out
}

/// The parent with its slash, and the last name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    path.split_at(
        path.iter()
            .rposition(|&byte| byte == b'/')
            .map_or(0, |slash| slash + 1),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{strategy::ValueTree as _, test_runner::TestRunner};

    #[test]
    fn stacks_hold_every_kind_of_member() {
        let mut runner = TestRunner::deterministic();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..300 {
            let stack = stacks().new_tree(&mut runner).unwrap().current();
            for member in stack.layers.iter().flat_map(|layer| &layer.members) {
                seen.insert(format!("{:?}", std::mem::discriminant(&member.kind)));
            }
        }
        assert_eq!(seen.len(), 8, "{seen:?}");
    }

    #[test]
    fn a_path_is_split_before_its_last_name() {
        assert_eq!(split(b"a/b/"), (&b"a/"[..], &b"b"[..]));
        assert_eq!(split(b"a"), (&b""[..], &b"a"[..]));
    }
}
