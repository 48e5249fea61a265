//! Writes a layer as a tar: ustar headers, PAX records for what does not fit, GNU long names where
//! a member's name calls for them, sparse files in the three formats of GNU tar.
//!
//! Own code, because the oracle must be able to write what no well-behaved writer would.

use crate::stack::{Attributes, Kind, Layer, Member, SparseFormat};

const BLOCK: usize = 512;
const NAME: usize = 100;

/// The layer's uncompressed tar.
pub fn tar(layer: &Layer) -> Vec<u8> {
    let mut out = Vec::new();
    for member in &layer.members {
        append(&mut out, member);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    out
}

fn append(out: &mut Vec<u8>, member: &Member) {
    let mut pax = Pax::default();
    let mut header = Header::new(&member.attributes, &mut pax);
    let (kind, data) = body(member, &mut header, &mut pax);
    header.0[156] = kind;
    let name = match &member.kind {
        Kind::Sparse { format, .. } if *format != SparseFormat::OldGnu => {
            pax.add("GNU.sparse.name", &member.name);
            b"GNUSparseFile.0/x"
        }
        _ => member.name.as_slice(),
    };
    header.name(out, name, &mut pax);
    if let Kind::Symlink(target) | Kind::Hardlink(target) = &member.kind {
        header.target(&target.0, &mut pax);
    }
    header.number(124, 12, data.len() as u64);
    pax.append(out);
    header.append(out);
    append_padded(out, &data);
}

/// The type and what follows the header.
fn body(member: &Member, header: &mut Header, pax: &mut Pax) -> (u8, Vec<u8>) {
    match &member.kind {
        Kind::File(content) => (b'0', content.0.clone()),
        Kind::Sparse { size, runs, format } => {
            let data = runs.iter().flat_map(|(_, run)| run.0.iter().copied());
            match format {
                SparseFormat::OldGnu => {
                    header.0[257..265].copy_from_slice(b"ustar  \0");
                    for (index, (offset, run)) in runs.iter().enumerate() {
                        header.number(386 + 24 * index, 12, *offset);
                        header.number(398 + 24 * index, 12, run.0.len() as u64);
                    }
                    header.number(483, 12, *size);
                    (b'S', data.collect())
                }
                SparseFormat::Pax01 => {
                    let map: Vec<String> = runs
                        .iter()
                        .map(|(offset, run)| format!("{offset},{}", run.0.len()))
                        .collect();
                    pax.add("GNU.sparse.size", size.to_string().as_bytes());
                    pax.add("GNU.sparse.numblocks", runs.len().to_string().as_bytes());
                    pax.add("GNU.sparse.map", map.join(",").as_bytes());
                    (b'0', data.collect())
                }
                SparseFormat::Pax10 => {
                    pax.add("GNU.sparse.major", b"1");
                    pax.add("GNU.sparse.minor", b"0");
                    pax.add("GNU.sparse.realsize", size.to_string().as_bytes());
                    let mut map = format!("{}\n", runs.len()).into_bytes();
                    for (offset, run) in runs {
                        map.extend(format!("{offset}\n{}\n", run.0.len()).into_bytes());
                    }
                    map.resize(map.len().next_multiple_of(BLOCK), 0);
                    map.extend(data);
                    (b'0', map)
                }
            }
        }
        Kind::Directory => (b'5', vec![]),
        Kind::Symlink(_) => (b'2', vec![]),
        Kind::Hardlink(_) => (b'1', vec![]),
        Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
            header.number(329, 8, u64::from(*major));
            header.number(337, 8, u64::from(*minor));
            let is_char = matches!(member.kind, Kind::CharDevice(..));
            (if is_char { b'3' } else { b'4' }, vec![])
        }
        Kind::Fifo => (b'6', vec![]),
    }
}

struct Header([u8; BLOCK]);

impl Header {
    fn new(attributes: &Attributes, pax: &mut Pax) -> Self {
        let mut header = Self([0; BLOCK]);
        header.0[257..265].copy_from_slice(b"ustar\x0000");
        header.number(100, 8, u64::from(attributes.mode));
        for (at, name, id) in [(108, "uid", attributes.uid), (116, "gid", attributes.gid)] {
            match id < 1 << 21 {
                true => header.number(at, 8, u64::from(id)),
                false => pax.add(name, id.to_string().as_bytes()),
            }
        }
        match attributes.mtime {
            (seconds @ 0..0o77777777777, 0) => header.number(136, 12, seconds as u64),
            mtime => pax.add("mtime", decimal(mtime).as_bytes()),
        }
        for (name, value) in &attributes.xattrs {
            pax.add(&format!("SCHILY.xattr.{name}"), &value.0);
        }
        header
    }

    /// Long names go into a PAX record, or, where they are not UTF-8, into a GNU long name.
    fn name(&mut self, out: &mut Vec<u8>, name: &[u8], pax: &mut Pax) {
        match (name.len() <= NAME, std::str::from_utf8(name)) {
            (true, _) => {}
            (false, Ok(_)) => pax.add("path", name),
            (false, Err(_)) => {
                let mut long = Self([0; BLOCK]);
                long.0[257..265].copy_from_slice(b"ustar  \0");
                long.0[156] = b'L';
                long.bytes(0, b"././@LongLink");
                long.number(124, 12, name.len() as u64 + 1);
                long.append(out);
                append_padded(out, &[name, b"\0"].concat());
            }
        }
        self.bytes(0, &name[..name.len().min(NAME)]);
    }

    fn target(&mut self, target: &[u8], pax: &mut Pax) {
        if target.len() > NAME {
            pax.add("linkpath", target);
        }
        self.bytes(157, &target[..target.len().min(NAME)]);
    }

    /// Octal, zero-filled, with a NUL at the end.
    fn number(&mut self, at: usize, width: usize, value: u64) {
        let digits = format!("{value:0>width$o}\0", width = width - 1);
        self.bytes(at, digits.as_bytes());
    }

    fn bytes(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn append(mut self, out: &mut Vec<u8>) {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|&byte| u32::from(byte)).sum();
        self.bytes(148, format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&self.0);
    }
}

/// Records of an extended header.
#[derive(Default)]
struct Pax(Vec<u8>);

impl Pax {
    /// `LENGTH NAME=VALUE\n`, where the length counts its own digits.
    fn add(&mut self, name: &str, value: &[u8]) {
        let rest = name.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        self.0.extend(format!("{length} {name}=").into_bytes());
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    fn append(self, out: &mut Vec<u8>) {
        if self.0.is_empty() {
            return;
        }
        let mut header = Header([0; BLOCK]);
        header.bytes(257, b"ustar\x0000");
        header.bytes(0, b"PaxHeaders/x");
        header.0[156] = b'x';
        header.number(124, 12, self.0.len() as u64);
        header.append(out);
        append_padded(out, &self.0);
    }
}

/// Seconds with a fraction; the nanoseconds count forwards also before 1970.
fn decimal((seconds, nanos): (i64, u32)) -> String {
    match (seconds, nanos) {
        (seconds, 0) => seconds.to_string(),
        (0.., nanos) => format!("{seconds}.{nanos:09}"),
        (seconds, nanos) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
    }
}

fn append_padded(out: &mut Vec<u8>, data: &[u8]) {
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_are_written_as_negative_decimals() {
        assert_eq!(decimal((-2, 750_000_000)), "-1.250000000");
        assert_eq!(decimal((-1, 750_000_000)), "-0.250000000");
        assert_eq!(decimal((5, 1)), "5.000000001");
    }

    #[test]
    fn a_pax_record_counts_its_own_length() {
        for length in [80, 90, 91, 92, 93, 988, 989, 990, 991] {
            let mut pax = Pax::default();
            pax.add("path", &vec![b'n'; length]);
            let text = String::from_utf8(pax.0).unwrap();
            let (counted, _) = text.split_once(' ').unwrap();
            assert_eq!(counted.parse::<usize>().unwrap(), text.len());
        }
    }
}
