//! Makes a failing stack small: leaves out layers and members, then simplifies what is left, as long
//! as it still fails. (proptest's own shrinking cannot take a member out of the middle of a stack whose
//! members depend on each other.)

use crate::stack::{Attributes, Bytes, Kind, Stack};
use anyhow::Result;
use std::time::{Duration, Instant};

/// Enough for some thousand tries.
const TIME_MAX: Duration = Duration::from_secs(60);

/// The smallest stack found for which `fails` still says yes, starting from `stack`, which does.
pub fn shrink(mut stack: Stack, mut fails: impl FnMut(&Stack) -> Result<bool>) -> Result<Stack> {
    let until = Instant::now() + TIME_MAX;
    'smaller: loop {
        for step in steps(&stack) {
            if Instant::now() > until {
                return Ok(stack);
            }
            let smaller = step.taken(&stack);
            if fails(&smaller)? {
                stack = smaller;
                continue 'smaller;
            }
        }
        return Ok(stack);
    }
}

/// A way to make a stack simpler. Numbers are those of the layer and of the member in it.
enum Step {
    WithoutLayer(usize),
    WithoutMember(usize, usize),
    Kind(usize, usize, Kind),
    Attributes(usize, usize, Attributes),
    Uncompressed(usize),
}

/// All of them, the greatest first.
fn steps(stack: &Stack) -> Vec<Step> {
    let (mut layers, mut without, mut simpler) = (vec![], vec![], vec![]);
    for (layer, found) in stack.layers.iter().enumerate() {
        if stack.layers.len() > 1 {
            layers.push(Step::WithoutLayer(layer));
        }
        if found.zstd {
            simpler.push(Step::Uncompressed(layer));
        }
        for (at, member) in found.members.iter().enumerate() {
            without.push(Step::WithoutMember(layer, at));
            let kind = simpler_kind(&member.kind);
            simpler.extend(kind.map(|kind| Step::Kind(layer, at, kind)));
            let attributes = simpler_attributes(&member.attributes).into_iter();
            simpler.extend(attributes.map(|simple| Step::Attributes(layer, at, simple)));
        }
    }
    layers.into_iter().chain(without).chain(simpler).collect()
}

impl Step {
    fn taken(self, stack: &Stack) -> Stack {
        let mut stack = stack.clone();
        let layers = &mut stack.layers;
        match self {
            Step::WithoutLayer(layer) => drop(layers.remove(layer)),
            Step::WithoutMember(layer, at) => drop(layers[layer].members.remove(at)),
            Step::Kind(layer, at, kind) => layers[layer].members[at].kind = kind,
            Step::Attributes(layer, at, simple) => layers[layer].members[at].attributes = simple,
            Step::Uncompressed(layer) => layers[layer].zstd = false,
        }
        stack
    }
}

fn simpler_kind(kind: &Kind) -> Option<Kind> {
    match kind {
        Kind::File(content) if !content.0.is_empty() => Some(Kind::File(Bytes(vec![]))),
        Kind::Sparse { .. } | Kind::CharDevice(..) | Kind::BlockDevice(..) | Kind::Fifo => {
            Some(Kind::File(Bytes(vec![])))
        }
        _ => None,
    }
}

/// Each with one field as plain as it can be.
fn simpler_attributes(old: &Attributes) -> Vec<Attributes> {
    let plain = Attributes::plain(if old.mode & 0o111 == 0 { 0o644 } else { 0o755 });
    let mut simpler = vec![
        plain.clone(),
        Attributes {
            mode: plain.mode,
            ..old.clone()
        },
        Attributes {
            uid: 0,
            ..old.clone()
        },
        Attributes {
            gid: 0,
            ..old.clone()
        },
        Attributes {
            mtime: plain.mtime,
            ..old.clone()
        },
    ];
    for at in 0..old.xattrs.len() {
        let mut fewer = old.clone();
        fewer.xattrs.remove(at);
        simpler.push(fewer);
    }
    simpler.retain(|attributes| attributes != old);
    simpler
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::{Layer, Member};

    #[test]
    fn only_what_the_failure_needs_is_left() {
        let member = |name: &str| Member {
            name: name.as_bytes().to_vec(),
            kind: Kind::File(Bytes(vec![1])),
            attributes: Attributes::plain(0o600),
        };
        let layer = |names: &[&str]| Layer {
            zstd: true,
            members: names.iter().map(|name| member(name)).collect(),
        };
        let stack = Stack {
            layers: vec![layer(&["a", "b"]), layer(&[]), layer(&["c", "d"])],
        };
        let has = |stack: &Stack, name: &str| {
            let mut members = stack.layers.iter().flat_map(|layer| &layer.members);
            members.any(|member| member.name == name.as_bytes())
        };
        let small = shrink(stack, |stack| Ok(has(stack, "b") && has(stack, "c"))).unwrap();
        assert_eq!(small.layers.len(), 2);
        let members: Vec<_> = small
            .layers
            .iter()
            .flat_map(|layer| &layer.members)
            .collect();
        assert_eq!(members.len(), 2);
        assert!(
            members
                .iter()
                .all(|member| member.kind == Kind::File(Bytes(vec![])))
        );
        assert_eq!(members[0].attributes, Attributes::plain(0o644));
    }
}
