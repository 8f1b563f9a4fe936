//! Reduces a compiled object to code, maps, symbols, relocations and types (BTF).
//!
//! Debug information is removed, and with it the line table in `.BTF.ext`, which changes with every comment in the sources. The same code
//! therefore results in the same bytes.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use object::build::elf::{Builder, SectionData};
use object::{Object as _, ObjectSection as _, elf};

/// The object without debug information.
pub(super) fn strip(whole: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut object = Builder::read(whole).context("parse the object")?;
    for section in &mut object.sections {
        let name = section.name.to_string();
        // The loader doesn't need BTF's relocations: in an object from a single input, offsets within a section are final.
        section.delete = name.starts_with(".debug_") || name.starts_with(".rel.debug_") || name.starts_with(".rel.BTF");
        if name == ".BTF.ext"
            && let SectionData::Data(bytes) = &mut section.data
        {
            *bytes = without_lines(bytes)?.into();
        }
    }
    // LLVM writes a single table for the names of symbols and sections, but the builder writes two.
    let names = object.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = elf::SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    object.write(&mut stripped).context("write the object")?;
    Ok(stripped)
}

/// Returns the functions and CO-RE relocations of `.BTF.ext`, with an empty line table between them.
fn without_lines(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    const MAGIC: u32 = 0xeb9f;
    // Magic, version and flags; length of the header; then offset and length of three tables.
    const WORDS: usize = 8;
    let word = |index: usize| {
        bytes
            .get(index * 4..index * 4 + 4)
            .and_then(|word| word.try_into().ok())
            .map(u32::from_le_bytes)
            .context("the header of .BTF.ext is cut off")
    };
    ensure!(word(0)? & 0xffff == MAGIC, "not the magic number of .BTF.ext");
    let header = word(1)?;
    ensure!(header as usize == WORDS * 4, "a header of .BTF.ext of {header} bytes");
    let table = |index: usize| -> anyhow::Result<&[u8]> {
        let from = WORDS * 4 + word(index)? as usize;
        bytes
            .get(from..from + word(index + 1)? as usize)
            .context("a table of .BTF.ext ends behind it")
    };
    let (functions, relocations) = (table(2)?, table(6)?);
    let functions_len = u32::try_from(functions.len())?;
    let words = [
        word(0)?,
        header,
        0,
        functions_len,
        functions_len,
        0,
        functions_len,
        u32::try_from(relocations.len())?,
    ];
    let mut made: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    made.extend_from_slice(functions);
    made.extend_from_slice(relocations);
    Ok(made)
}

/// Sections in which two objects differ, each with its sizes.
pub(super) fn differences(old: &[u8], new: &[u8]) -> anyhow::Result<Vec<String>> {
    let (old, new) = (sections(old)?, sections(new)?);
    let mut found = Vec::new();
    for (name, bytes) in &old {
        match new.get(name) {
            None => found.push(format!("{name} is gone")),
            Some(other) if other != bytes => found.push(format!("{name}: {} bytes, now {}", bytes.len(), other.len())),
            Some(_) => {}
        }
    }
    found.extend(
        new.keys()
            .filter(|name| !old.contains_key(*name))
            .map(|name| format!("{name} is new")),
    );
    if found.is_empty() {
        bail!("two objects with the same sections differ outside them");
    }
    Ok(found)
}

fn sections(object: &[u8]) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let object = object::File::parse(object).context("parse an eBPF object")?;
    object
        .sections()
        .map(|section| Ok((section.name()?.to_owned(), section.data()?.to_vec())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_and_functions_and_relocations_stay() {
        let mut ext = Vec::new();
        for word in [0x0001_eb9f_u32, 32, 0, 4, 4, 8, 12, 4] {
            ext.extend(word.to_le_bytes());
        }
        ext.extend(*b"FUNCLINELINECORE");
        let made = without_lines(&ext).unwrap();
        assert_eq!(&made[32..], b"FUNCCORE");
        assert_eq!(made[20..32], [0, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0]);
        for len in 0..ext.len() {
            assert!(without_lines(&ext[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn what_differs_is_named() {
        let object = std::fs::read(super::super::kept().join("imds-observer.bpf.o")).unwrap();
        let at = object.windows(8).position(|bytes| bytes == b"Dual MIT").unwrap();
        let mut other = object.clone();
        other[at] = b'd';
        assert_eq!(differences(&object, &other).unwrap(), ["license: 13 bytes, now 13"]);
    }
}
