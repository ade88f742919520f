//! As much of ELF (x86-64) as images need: sections of modules, and programs without their sections.

/// Kinds of segments.
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
/// The kinds of files that can be executed.
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;

/// A file in memory that begins as an ELF file of 64 bits does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Elf<'a> {
    bytes: &'a [u8],
}

impl<'a> Elf<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        // Class 64, little endian.
        bytes.starts_with(b"\x7fELF\x02\x01").then_some(Self { bytes })
    }

    /// The content of a section.
    pub(super) fn section(&self, name: &str) -> Option<&'a [u8]> {
        let names = self.header(usize::from(self.u16(0x3e)?))?;
        (0..usize::from(self.u16(0x3c)?)).find_map(|index| {
            let section = self.header(index)?;
            let start = names.start + usize::try_from(section.name).ok()?;
            let found = self.bytes.get(start..)?.split(|byte| *byte == 0).next()?;
            let end = section.start.checked_add(section.size)?;
            (found == name.as_bytes()).then(|| self.bytes.get(section.start..end)).flatten()
        })
    }

    /// What a kernel module says of itself: pairs of key and value.
    pub(super) fn module_info(&self) -> Option<impl Iterator<Item = (&'a str, &'a str)>> {
        let section = self.section(".modinfo")?;
        let texts = section.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
        Some(texts.filter_map(|text| text.split_once('=')))
    }

    /// A static program without what is only for people: sections, symbols, lines of source. `None` if
    /// it is none, or needs a loader or libraries.
    pub(super) fn bare_program(&self) -> Option<Vec<u8>> {
        if !matches!(self.u16(0x10)?, ET_EXEC | ET_DYN) {
            return None;
        }
        let (table, size) = (usize::try_from(self.u64(0x20)?).ok()?, usize::from(self.u16(0x36)?));
        let mut end = 0;
        for index in 0..usize::from(self.u16(0x38)?) {
            let at = table.checked_add(index * size)?;
            match self.u32(at)? {
                PT_INTERP => return None,
                PT_LOAD => {
                    let (start, size) = (self.u64(at.checked_add(8)?)?, self.u64(at.checked_add(32)?)?);
                    end = end.max(usize::try_from(start.checked_add(size)?).ok()?);
                }
                _ => {}
            }
        }
        let mut program = self.bytes.get(..end)?.to_vec();
        // Where the sections are, and how many: the kernel asks for neither.
        program.get_mut(0x28..0x30)?.fill(0);
        program.get_mut(0x3c..0x40)?.fill(0);
        Some(program)
    }

    fn header(&self, index: usize) -> Option<Section> {
        let table = usize::try_from(self.u64(0x28)?).ok()?;
        let at = table.checked_add(index * usize::from(self.u16(0x3a)?))?;
        Some(Section {
            name: self.u32(at)?,
            start: usize::try_from(self.u64(at.checked_add(0x18)?)?).ok()?,
            size: usize::try_from(self.u64(at.checked_add(0x20)?)?).ok()?,
        })
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
    }
    fn u32(&self, at: usize) -> Option<u32> {
        self.bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }
    fn u64(&self, at: usize) -> Option<u64> {
        self.bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }
}

struct Section {
    /// Where its name is among the names.
    name: u32,
    start: usize,
    size: usize,
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

    use super::*;

    #[test]
    fn what_is_no_elf_file_is_none() {
        assert!(Elf::parse(b"#!/bin/sh\n").is_none());
        assert!(Elf::parse(b"\x7fELF\x01\x01\x01").is_none(), "32 bits");
    }

    #[test]
    fn every_cut_of_a_program_is_read_without_a_panic() {
        let own = fs::read("/proc/self/exe").unwrap();
        for length in (6..4096).chain([own.len() / 2]) {
            let elf = Elf::parse(&own[..length]).unwrap();
            let _nothing = (elf.section(".modinfo"), elf.bare_program());
        }
    }

    #[test]
    fn a_section_is_found_by_its_name() {
        let own = fs::read("/proc/self/exe").unwrap();
        let elf = Elf::parse(&own).unwrap();
        let interpreter = elf.section(".interp").unwrap();
        assert!(interpreter.starts_with(b"/lib"), "{interpreter:?}");
        assert!(elf.section(".no-such-section").is_none());
        assert!(elf.bare_program().is_none(), "this test is no static program");
    }

    #[test]
    fn a_bare_program_is_smaller_and_runs() {
        let dir = tempfile::tempdir().unwrap();
        let (source, whole, bare) =
            (dir.path().join("p.c"), dir.path().join("whole"), dir.path().join("bare"));
        fs::write(&source, "int main(void) { return 42; }").unwrap();
        let compiled =
            Command::new("cc").args(["-static", "-g", "-o"]).arg(&whole).arg(&source).status().unwrap();
        assert!(compiled.success());
        let bytes = fs::read(&whole).unwrap();
        let program = Elf::parse(&bytes).unwrap().bare_program().unwrap();
        assert!(program.len() < bytes.len());
        fs::write(&bare, program).unwrap();
        fs::set_permissions(&bare, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(Command::new(&bare).status().unwrap().code(), Some(42));
    }
}
