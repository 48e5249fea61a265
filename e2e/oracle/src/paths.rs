//! Paths as the unpackers take them: bytes, from the root, without a slash in front.

/// What a container runtime mounts over.
const RUNTIME_DIRS: [&[u8]; 3] = [b"proc", b"sys", b"dev"];

/// A path from the root; the root is the empty one.
pub type Path = Vec<u8>;

/// The components of a path inside the root: no empty ones, no `.`, and `..` resolved.
pub fn normalise(path: &[u8]) -> Vec<&[u8]> {
    let mut names = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            _ => names.push(name),
        }
    }
    names
}

/// Whether `..` would lead out of the directory that `path` is relative to.
pub fn leaves_the_root(path: &[u8]) -> bool {
    let mut depth = 0;
    let step = |name: &[u8]| match name {
        b"" | b"." => 0,
        b".." => -1,
        _ => 1,
    };
    let mut steps = path.split(|&byte| byte == b'/').map(step);
    !path.starts_with(b"/")
        && steps.any(|step| {
            depth += step;
            depth < 0
        })
}

/// Whether this is `/proc`, `/sys` or `/dev`, or below.
pub fn is_runtime(names: &[&[u8]]) -> bool {
    names
        .first()
        .is_some_and(|name| RUNTIME_DIRS.contains(name))
}

pub fn split(path: &[u8]) -> Vec<&[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty())
        .collect()
}

pub fn join(parent: &[u8], name: &[u8]) -> Path {
    match parent {
        b"" => name.to_vec(),
        _ => [parent, b"/", name].concat(),
    }
}

/// Whether `path` is `top` or lies below.
pub fn is_at_or_below(path: &[u8], top: &[u8]) -> bool {
    top.is_empty()
        || path
            .strip_prefix(top)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}
