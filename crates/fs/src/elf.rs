//! What the head of an ELF program says of how it begins, and of the libraries that it is linked with (elf(5), ld.so(8)).
//!
//! Of a program only its head, its dynamic section and the strings that this names are looked at: what the dynamic loader
//! reads first, too. Programs of 64 bits, of either byte order; others are none to us.

use object::{
    Endianness,
    elf::{
        DT_GNU_HASH, DT_INIT, DT_INIT_ARRAY, DT_INIT_ARRAYSZ, DT_JMPREL, DT_NEEDED, DT_PLTRELSZ,
        DT_RELA, DT_RELASZ, DT_RELR, DT_RELRSZ, DT_RPATH, DT_RUNPATH, DT_STRTAB, DT_SYMTAB,
        DT_VERNEED, DT_VERSYM, Dyn64, FileHeader64, PF_W, PT_DYNAMIC, PT_INTERP, PT_LOAD,
        ProgramHeader64,
    },
    pod::slice_from_all_bytes,
    read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _},
};
use std::ops::Range;

/// Of a head that is longer the rest is not looked at.
pub const HEAD: u64 = 4096;
/// A dynamic section has some dozens of entries of 16 bytes. Of a longer one nothing is read.
const DYNAMIC_MAX: u64 = 64 << 10;
/// What the kernel reads of a file for one page fault, at least.
const BLOCK: u64 = 4096;
/// Tables of the dynamic section that the loader reads from end to end, and their sizes.
const TABLES_WITH_SIZE: [(i64, i64); 4] = [
    (DT_RELA, DT_RELASZ),
    (DT_RELR, DT_RELRSZ),
    (DT_JMPREL, DT_PLTRELSZ),
    (DT_INIT_ARRAY, DT_INIT_ARRAYSZ),
];
/// Those of which it reads parts, the beginning among them.
const TABLES: [i64; 6] = [
    DT_INIT,
    DT_SYMTAB,
    DT_STRTAB,
    DT_GNU_HASH,
    DT_VERSYM,
    DT_VERNEED,
];

/// The head of a program.
#[derive(Debug)]
pub struct Head {
    endian: Endianness,
    /// Bytes of the file that hold the interpreter's path.
    pub interpreter: Option<Range<u64>>,
    /// Bytes of the file that hold the dynamic section; none of a program that is linked with nothing.
    pub dynamic: Option<Range<u64>>,
    /// Bytes of the file that running it begins with: the first instruction, and what is written to, which the loader
    /// relocates.
    pub begins_with: Vec<Range<u64>>,
    /// Bytes of the file that can be read by page fault. What lies behind, up to the table of sections, is for debuggers.
    pub mapped: Range<u64>,
    /// Where the table of sections ends, which is the last of a file to which nothing was appended.
    pub sections_end: u64,
    /// Addresses in memory, and where the bytes of the first one lie in the file.
    loaded: Vec<(Range<u64>, u64)>,
}

/// What a dynamic section names. Strings by where in the file they begin; each is ended by a zero.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// Libraries.
    pub needed: Vec<u64>,
    /// Directories to look for them in, with colons between.
    pub run_paths: Vec<u64>,
    /// Bytes of the file that the loader reads before the program runs: relocations, initialisers, and the beginnings of
    /// the tables of symbols.
    pub tables: Vec<Range<u64>>,
}

impl Head {
    /// None of what is no program of 64 bits.
    pub fn parse(head: &[u8]) -> Option<Self> {
        let header = FileHeader64::<Endianness>::parse(head).ok()?;
        let endian = header.endian().ok()?;
        let segments = header.program_headers(endian, head).ok()?;
        let of_kind = |kind| {
            let segments = segments.iter();
            segments.filter(move |segment| segment.p_type(endian) == kind)
        };
        let in_file = |segment: &ProgramHeader64<Endianness>| {
            let start = segment.p_offset(endian);
            Some(start..start.checked_add(segment.p_filesz(endian))?)
        };
        let first = |kind| of_kind(kind).find_map(in_file);
        let loaded = of_kind(PT_LOAD).filter_map(|segment| {
            let start = segment.p_vaddr(endian);
            let end = start.checked_add(segment.p_filesz(endian))?;
            Some((start..end, segment.p_offset(endian)))
        });
        let is_written = |segment: &&ProgramHeader64<_>| segment.p_flags(endian) & PF_W != 0;
        let mut parsed = Self {
            endian,
            interpreter: first(PT_INTERP),
            dynamic: first(PT_DYNAMIC).filter(|at| at.end - at.start <= DYNAMIC_MAX),
            begins_with: Vec::new(),
            mapped: 0..of_kind(PT_LOAD)
                .filter_map(in_file)
                .map(|bytes| bytes.end)
                .max()?,
            sections_end: header.e_shoff(endian).saturating_add(
                u64::from(header.e_shnum(endian)) * u64::from(header.e_shentsize(endian)),
            ),
            loaded: loaded.collect(),
        };
        parsed
            .begins_with
            .extend(parsed.block(header.e_entry(endian)));
        let written = of_kind(PT_LOAD).filter(is_written);
        parsed.begins_with.extend(written.filter_map(in_file));
        Some(parsed)
    }

    /// What the bytes of the dynamic section name.
    pub fn dynamic(&self, section: &[u8]) -> Option<Dynamic> {
        let entries = slice_from_all_bytes::<Dyn64<Endianness>>(section).ok()?;
        let values = |tag: i64| {
            let of_tag = entries
                .iter()
                .filter(move |entry| entry.tag(self.endian) == tag);
            of_tag.map(|entry| entry.val(self.endian))
        };
        let value = |tag| values(tag).next();
        let strings = self.in_file(value(DT_STRTAB)?)?;
        let at = |offset: u64| strings.checked_add(offset);
        let whole = TABLES_WITH_SIZE.into_iter().filter_map(|(table, size)| {
            let start = self.in_file(value(table)?)?;
            Some(start..start.checked_add(value(size)?)?)
        });
        let beginnings = TABLES
            .into_iter()
            .filter_map(|table| self.block(value(table)?));
        Some(Dynamic {
            needed: values(DT_NEEDED).filter_map(at).collect(),
            run_paths: values(DT_RUNPATH)
                .chain(values(DT_RPATH))
                .filter_map(at)
                .collect(),
            tables: whole.chain(beginnings).collect(),
        })
    }

    /// The bytes of the file around what is at this address in memory.
    fn block(&self, address: u64) -> Option<Range<u64>> {
        let at = self.in_file(address)?;
        Some(at..at.checked_add(BLOCK)?)
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
        let names = head.dynamic(bytes(head.dynamic.clone()?)?)?;
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

    /// Where a section lies in its file, says binutils.
    fn section_by_readelf(program: &str, name: &str) -> Range<u64> {
        let said = Command::new("readelf").args(["-SW", program]).output();
        let said = String::from_utf8(said.unwrap().stdout).unwrap();
        let name = format!(" {name} ");
        let line = said.lines().find(|line| line.contains(&name)).unwrap();
        let numbers = line.split(&name).nth(1).unwrap().split_whitespace();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        // Type, address, offset, size.
        let [offset, size] = numbers.skip(2).take(2).map(number).collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        offset..offset + size
    }

    #[test]
    fn a_program_begins_with_what_readelf_says() {
        let path = "/bin/bash";
        let program = std::fs::read(path).unwrap();
        let head = Head::parse(&program[..HEAD as usize]).unwrap();
        let section = head.dynamic.clone().unwrap();
        let dynamic = &program[section.start as usize..section.end as usize];
        let tables = head.dynamic(dynamic).unwrap().tables;
        let section = |name| section_by_readelf(path, name);
        for name in [".rela.dyn", ".init_array"] {
            assert!(tables.contains(&section(name)), "{name}: {tables:x?}");
        }
        for name in [".dynsym", ".dynstr", ".gnu.hash", ".gnu.version", ".init"] {
            let start = section(name).start;
            assert!(
                tables.contains(&(start..start + BLOCK)),
                "{name}: {tables:x?}"
            );
        }
        let text = section(".text");
        let [first, written] = &head.begins_with[..] else {
            panic!("{head:x?}");
        };
        assert!(text.contains(&first.start), "{head:x?}");
        let data = section(".data");
        assert!(written.contains(&data.start) && data.end <= written.end);
        assert_eq!(head.sections_end, program.len() as u64);
        assert!(head.mapped.end >= data.end && head.mapped.end <= section(".shstrtab").start);
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
