//! What the head of an ELF program says of the libraries that it is linked with (elf(5), ld.so(8)).
//!
//! Of a program only its head, its dynamic section and the strings that this names are looked at: what the dynamic loader
//! reads first, too. Programs of 64 bits, of either byte order; others are none to us.

use object::{
    Endianness,
    elf::{
        DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_STRTAB, Dyn64, FileHeader64, PT_DYNAMIC, PT_INTERP,
        PT_LOAD,
    },
    pod::slice_from_all_bytes,
    read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _},
};
use std::ops::Range;

/// Of a head that is longer the rest is not looked at.
pub const HEAD: u64 = 4096;
/// A dynamic section has some dozens of entries of 16 bytes. Of a longer one nothing is read.
const DYNAMIC_MAX: u64 = 64 << 10;

/// The head of a program.
#[derive(Debug)]
pub struct Head {
    endian: Endianness,
    /// Bytes of the file that hold the interpreter's path.
    pub interpreter: Option<Range<u64>>,
    /// Bytes of the file that hold the dynamic section.
    pub dynamic: Range<u64>,
    /// Addresses in memory, and where the bytes of the first one lie in the file.
    loaded: Vec<(Range<u64>, u64)>,
}

/// What a dynamic section names: where in the file its strings begin, each ended by a zero.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Libraries.
    pub needed: Vec<u64>,
    /// Directories to look for them in, with colons between.
    pub run_paths: Vec<u64>,
}

impl Head {
    /// None of what is no program of 64 bits, or linked with nothing.
    pub fn parse(head: &[u8]) -> Option<Self> {
        let header = FileHeader64::<Endianness>::parse(head).ok()?;
        let endian = header.endian().ok()?;
        let segments = header.program_headers(endian, head).ok()?;
        let file = |kind| {
            let mut of_kind = segments
                .iter()
                .filter(|segment| segment.p_type(endian) == kind);
            let segment = of_kind.next()?;
            let start = segment.p_offset(endian);
            Some(start..start.checked_add(segment.p_filesz(endian))?)
        };
        let dynamic =
            file(PT_DYNAMIC).filter(|dynamic| dynamic.end - dynamic.start <= DYNAMIC_MAX)?;
        let loaded = segments
            .iter()
            .filter(|segment| segment.p_type(endian) == PT_LOAD);
        let loaded = loaded.filter_map(|segment| {
            let start = segment.p_vaddr(endian);
            let end = start.checked_add(segment.p_filesz(endian))?;
            Some((start..end, segment.p_offset(endian)))
        });
        Some(Self {
            endian,
            interpreter: file(PT_INTERP),
            dynamic,
            loaded: loaded.collect(),
        })
    }

    /// What the `dynamic` section names.
    pub fn names(&self, dynamic: &[u8]) -> Option<Names> {
        let entries = slice_from_all_bytes::<Dyn64<Endianness>>(dynamic).ok()?;
        let values = |tag: i64| {
            let of_tag = entries
                .iter()
                .filter(move |entry| entry.tag(self.endian) == tag);
            of_tag.map(|entry| entry.val(self.endian))
        };
        let strings = self.in_file(values(DT_STRTAB).next()?)?;
        let at = |offset: u64| strings.checked_add(offset);
        Some(Names {
            needed: values(DT_NEEDED).filter_map(at).collect(),
            run_paths: values(DT_RUNPATH)
                .chain(values(DT_RPATH))
                .filter_map(at)
                .collect(),
        })
    }

    fn in_file(&self, address: u64) -> Option<u64> {
        let (memory, file) = self
            .loaded
            .iter()
            .find(|(memory, _)| memory.contains(&address))?;
        file.checked_add(address - memory.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// The libraries that a whole program names.
    fn needed(program: &[u8]) -> Option<Vec<String>> {
        let bytes = |range: Range<u64>| program.get(range.start as usize..range.end as usize);
        let head = Head::parse(&program[..program.len().min(HEAD as usize)])?;
        let names = head.names(bytes(head.dynamic.clone())?)?;
        let string = |at: &u64| {
            let text = program.get(*at as usize..)?.split(|&b| b == 0).next()?;
            Some(String::from_utf8_lossy(text).into_owned())
        };
        names.needed.iter().map(string).collect()
    }

    /// The same by binutils.
    fn needed_by_readelf(program: &str) -> Vec<String> {
        let said = Command::new("readelf")
            .args(["-dW", program])
            .output()
            .unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let lines = said.lines().filter(|line| line.contains("(NEEDED)"));
        lines
            .map(|line| line.split(['[', ']']).nth(1).unwrap().to_owned())
            .collect()
    }

    #[test]
    fn what_programs_need_is_what_readelf_says() {
        let this = std::env::current_exe().unwrap();
        for program in [
            "/bin/bash",
            "/usr/bin/readelf",
            "/bin/tar",
            this.to_str().unwrap(),
        ] {
            let theirs = needed_by_readelf(program);
            let ours = needed(&std::fs::read(program).unwrap()).unwrap_or_default();
            assert_eq!(ours, theirs, "{program}");
        }
    }

    #[test]
    fn an_interpreter_is_named_by_its_path() {
        let program = std::fs::read("/bin/bash").unwrap();
        let head = Head::parse(&program[..HEAD as usize]).unwrap();
        let at = head.interpreter.unwrap();
        let path = &program[at.start as usize..at.end as usize];
        assert!(
            path.starts_with(b"/lib") && path.ends_with(b"\0"),
            "{path:?}"
        );
    }

    #[test]
    fn damaged_heads_are_no_programs_or_name_something_else() {
        let program = std::fs::read("/bin/bash").unwrap();
        for len in 0..HEAD as usize {
            needed(&program[..len]);
        }
        let mut damaged = program;
        for at in 0..1024 {
            for value in [0, 1, 0x7f, 0xff] {
                let right = std::mem::replace(&mut damaged[at], value);
                needed(&damaged);
                damaged[at] = right;
            }
        }
    }
}
