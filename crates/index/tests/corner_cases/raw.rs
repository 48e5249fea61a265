//! Tar streams byte by byte, right and wrong ones.

/// Modification time of members that do not care; listings leave it out.
pub const MTIME: i64 = 1_000_000_000;

pub type Block = [u8; 512];

/// One member: a header block, PAX records before it, content behind it.
#[derive(Clone)]
pub struct Member {
    pub kind: u8,
    pub path: Vec<u8>,
    link: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
    mtime: i64,
    device: (u32, u32),
    content: Vec<u8>,
    size: Option<u64>,
    records: Vec<(Vec<u8>, Vec<u8>)>,
    edits: Vec<fn(&mut Block)>,
}

pub fn member(kind: u8, path: impl AsRef<[u8]>) -> Member {
    Member {
        kind,
        path: path.as_ref().to_vec(),
        link: vec![],
        mode: 0o644,
        owner: (0, 0),
        mtime: MTIME,
        device: (0, 0),
        content: vec![],
        size: None,
        records: vec![],
        edits: vec![],
    }
}

pub fn file(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Member {
    member(b'0', path).content(content)
}

pub fn dir(path: impl AsRef<[u8]>) -> Member {
    member(b'5', path).mode(0o755)
}

pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
    member(b'2', path).link(target).mode(0o777)
}

pub fn hardlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
    member(b'1', path).link(target)
}

/// An empty file, as whiteouts are.
pub fn mark(path: impl AsRef<[u8]>) -> Member {
    file(path, "")
}

impl Member {
    pub fn content(mut self, content: impl AsRef<[u8]>) -> Self {
        self.content = content.as_ref().to_vec();
        self
    }
    pub fn link(mut self, target: impl AsRef<[u8]>) -> Self {
        self.link = target.as_ref().to_vec();
        self
    }
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = (uid, gid);
        self
    }
    pub fn mtime(mut self, mtime: i64) -> Self {
        self.mtime = mtime;
        self
    }
    pub fn device(mut self, major: u32, minor: u32) -> Self {
        self.device = (major, minor);
        self
    }
    /// What the size field says, whatever the content is.
    pub fn size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }
    pub fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.records
            .push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }
    /// Changes the header block before its checksum is computed.
    pub fn edit(mut self, edit: fn(&mut Block)) -> Self {
        self.edits.push(edit);
        self
    }

    /// The member's blocks.
    pub fn blocks(&self) -> Vec<u8> {
        let mut records = self.records.clone();
        for (key, value) in [("path", &self.path), ("linkpath", &self.link)] {
            if value.len() > 100 {
                records.push((key.into(), value.clone()));
            }
        }
        let mut out = vec![];
        if !records.is_empty() {
            let text: Vec<u8> = records
                .iter()
                .flat_map(|(key, value)| record(key, value))
                .collect();
            out.extend(member(b'x', "pax").content(text).blocks());
        }
        let mut block = [0; 512];
        put(&mut block, 0, &self.path[..self.path.len().min(100)]);
        put_octal(&mut block, 100, 8, self.mode.into());
        put_octal(&mut block, 108, 8, self.owner.0.into());
        put_octal(&mut block, 116, 8, self.owner.1.into());
        let size = self.size.unwrap_or(self.content.len() as u64);
        put_octal(&mut block, 124, 12, size);
        match u64::try_from(self.mtime) {
            Ok(mtime) => put_octal(&mut block, 136, 12, mtime),
            Err(_) => put_base_256(&mut block, 136, 12, self.mtime),
        }
        block[156] = self.kind;
        put(&mut block, 157, &self.link[..self.link.len().min(100)]);
        put(&mut block, 257, b"ustar\x0000");
        put_octal(&mut block, 329, 8, self.device.0.into());
        put_octal(&mut block, 337, 8, self.device.1.into());
        self.edits.iter().for_each(|edit| edit(&mut block));
        seal(&mut block);
        out.extend(block);
        out.extend(padded(&self.content));
        out
    }
}

/// A layer: the members and the end mark.
pub fn layer(members: impl IntoIterator<Item = Member>) -> Vec<u8> {
    let mut stream = open_ended(members);
    stream.extend([0; 1024]);
    stream
}

/// A layer without its end mark.
pub fn open_ended(members: impl IntoIterator<Item = Member>) -> Vec<u8> {
    members
        .into_iter()
        .flat_map(|member| member.blocks())
        .collect()
}

/// A PAX record.
pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    let mut record = format!("{len} ").into_bytes();
    record.extend([key, b"=", value, b"\n"].concat());
    record
}

/// Content as it stands in a stream.
pub fn padded(content: &[u8]) -> Vec<u8> {
    let mut padded = content.to_vec();
    padded.resize(content.len().next_multiple_of(512), 0);
    padded
}

/// Makes the header one of GNU's.
pub fn gnu(block: &mut Block) {
    put(block, 257, b"ustar  \0");
}

/// Makes the header one from before POSIX.
pub fn v7(block: &mut Block) {
    block[257..].fill(0);
}

pub fn put(block: &mut Block, at: usize, bytes: &[u8]) {
    block[at..][..bytes.len()].copy_from_slice(bytes);
}

pub fn put_octal(block: &mut Block, at: usize, len: usize, number: u64) {
    let digits = format!("{number:0width$o}", width = len - 1);
    put(block, at, digits.as_bytes());
    block[at + len - 1] = 0;
}

pub fn put_base_256(block: &mut Block, at: usize, len: usize, number: i64) {
    let fill = if number < 0 { 0xFF } else { 0 };
    block[at..at + len].fill(fill);
    put(block, at + len - 8, &number.to_be_bytes());
    block[at] |= 0x80;
}

/// Writes the checksum.
pub fn seal(block: &mut Block) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    put(block, 148, format!("{sum:06o}\0 ").as_bytes());
}
