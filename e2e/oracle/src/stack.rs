//! A stack of layers as the oracle thinks of it: what goes into the tars, and how people read it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The layers of one image, base first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    pub layers: Vec<Layer>,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Whether the blob is compressed with zstd; else it is the tar itself.
    pub zstd: bool,
    pub members: Vec<Member>,
}

/// One tar member. Whiteouts and opaque marks are members whose names say so, as in a real layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// As written in the header.
    #[serde(with = "escaped")]
    pub name: Vec<u8>,
    pub kind: Kind,
    pub attributes: Attributes,
}

/// What an inode has, beside its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// In the order of the PAX records.
    pub xattrs: Vec<(String, Bytes)>,
}

/// Any bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(#[serde(with = "escaped")] pub Vec<u8>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    File(Bytes),
    Sparse {
        size: u64,
        /// Runs of data, in order, without overlap.
        runs: Vec<(u64, Bytes)>,
        format: SparseFormat,
    },
    Directory,
    Symlink(Bytes),
    Hardlink(Bytes),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// How GNU tar may write a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SparseFormat {
    /// Type `S`, the map in the header.
    OldGnu,
    /// PAX, the map in a record.
    Pax01,
    /// PAX, the map before the data.
    Pax10,
}

/// Prefix of a whiteout's name (OCI image-spec, layer.md, "Whiteouts").
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Name of an opaque mark.
pub const OPAQUE_MARK: &[u8] = b".wh..wh..opq";

impl Attributes {
    /// 0644 or 0755, owner root, a second in 2020.
    pub fn plain(mode: u32) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            mtime: (1_600_000_000, 0),
            xattrs: vec![],
        }
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, layer) in self.layers.iter().enumerate() {
            let blob = if layer.zstd { "zstd" } else { "tar" };
            writeln!(f, "layer {index} ({blob})")?;
            for member in &layer.members {
                writeln!(f, "  {member}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = escape(&self.name);
        match &self.kind {
            Kind::File(content) => write!(f, "file {name:?}, {} bytes", content.0.len())?,
            Kind::Sparse { size, runs, format } => write!(
                f,
                "sparse file {name:?} ({format:?}), {size} bytes, {} runs",
                runs.len()
            )?,
            Kind::Directory => write!(f, "directory {name:?}")?,
            Kind::Symlink(target) => write!(f, "symlink {name:?} -> {target:?}")?,
            Kind::Hardlink(target) => write!(f, "hard link {name:?} = {target:?}")?,
            Kind::CharDevice(major, minor) => write!(f, "char device {name:?} {major}:{minor}")?,
            Kind::BlockDevice(major, minor) => write!(f, "block device {name:?} {major}:{minor}")?,
            Kind::Fifo => write!(f, "fifo {name:?}")?,
        }
        let Attributes {
            mode,
            uid,
            gid,
            mtime: (seconds, nanos),
            xattrs,
        } = &self.attributes;
        write!(f, ", {mode:04o} {uid}:{gid} @{seconds}.{nanos:09}")?;
        for (name, value) in xattrs {
            write!(f, " {name}={value:?}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", escape(&self.0))
    }
}

/// Bytes that are no printable ASCII, and the backslash, as `\xHH`; as `unpackers` writes them.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b' '..=b'~' if byte != b'\\' => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out
}

/// The bytes that [`escape`] wrote; `None` if it did not write this.
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'\\' {
            out.push(byte);
            rest = after;
            continue;
        }
        let digits = after.strip_prefix(b"x")?.get(..2)?;
        out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = &after[3..];
    }
    Some(out)
}

/// Bytes in JSON: a text that people can read.
mod escaped {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::escape(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        super::unescape(&text).ok_or_else(|| D::Error::custom("a backslash without xHH"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_bytes_are_read_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unescape(&escape(&all)), Some(all));
        assert_eq!(unescape("\\n"), None);
    }
}
