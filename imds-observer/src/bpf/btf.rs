//! Field offsets and enum names out of this kernel's type information (BTF).
//!
//! A reader of our own: aya keeps its parsed types to itself, the crates that offer them are either copyleft or build the
//! whole type graph, and the observer must be up within 300 ms. This one makes one pass and looks at what it is asked for.

use std::collections::HashMap;

use thiserror::Error;

/// The bytes are no BTF that we can read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    #[error("not BTF: the magic number is {0:#06x}")]
    Magic(u16),
    #[error("truncated at byte {0}")]
    Truncated(usize),
    #[error("type {id} has the unknown kind {kind}")]
    Kind { id: u32, kind: u32 },
}

const MAGIC: u16 = 0xeb9f;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC_PROTO: u32 = 13;
const TYPE_TAG: u32 = 18;

/// Deeper nesting of anonymous structs than any kernel has.
const MAX_DEPTH: u32 = 8;

/// A view of BTF bytes in this machine's byte order.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Byte offset of each type; ids start at 1.
    at: Vec<u32>,
    /// Struct, union, enum and typedef by name; the first wins.
    by_name: HashMap<&'a [u8], u32>,
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let word = bytes.get(at..at + 4).ok_or(BtfError::Truncated(at))?;
    Ok(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
}

impl<'a> Btf<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let magic = bytes.get(..2).ok_or(BtfError::Truncated(0))?;
        let magic = u16::from_ne_bytes([magic[0], magic[1]]);
        if magic != MAGIC {
            return Err(BtfError::Magic(magic));
        }
        let section = |offset: usize, len: usize| -> Result<&'a [u8], BtfError> {
            let start = u32_at(bytes, 4)? as usize + u32_at(bytes, offset)? as usize;
            let len = u32_at(bytes, len)? as usize;
            bytes
                .get(start..start.saturating_add(len))
                .ok_or(BtfError::Truncated(start))
        };
        let mut btf = Self {
            types: section(8, 12)?,
            strings: section(16, 20)?,
            at: vec![0],
            by_name: HashMap::new(),
        };
        let mut at = 0;
        while at < btf.types.len() {
            let (name, info) = (u32_at(btf.types, at)?, u32_at(btf.types, at + 4)?);
            let (kind, members) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
            let id = btf.at.len() as u32;
            if matches!(kind, STRUCT | UNION | ENUM | TYPEDEF) && name != 0 {
                btf.by_name.entry(btf.string(name)).or_insert(id);
            }
            btf.at.push(at as u32);
            at += 12
                + match kind {
                    1 | 14 | 17 => 4,
                    ARRAY => 12,
                    STRUCT | UNION | 15 | 19 => members * 12,
                    ENUM | FUNC_PROTO => members * 8,
                    PTR | 7..=12 | 16 | TYPE_TAG => 0,
                    kind => return Err(BtfError::Kind { id, kind }),
                };
        }
        Ok(btf)
    }

    fn string(&self, at: u32) -> &'a [u8] {
        let rest = self.strings.get(at as usize..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// (kind, members, size or referred type, byte offset of what follows).
    fn head(&self, id: u32) -> Option<(u32, usize, u32, usize)> {
        let at = *self.at.get(id as usize)? as usize;
        let info = u32_at(self.types, at + 4).ok()?;
        Some((
            (info >> 24) & 0x1f,
            (info & 0xffff) as usize,
            u32_at(self.types, at + 8).ok()?,
            at + 12,
        ))
    }

    /// Through typedefs and qualifiers.
    fn plain(&self, mut id: u32) -> Option<u32> {
        for _ in 0..MAX_DEPTH * 4 {
            let (kind, _, target, _) = self.head(id)?;
            if !matches!(kind, TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG) {
                return Some(id);
            }
            id = target;
        }
        None
    }

    /// (bit offset, type) of a member, looked for in anonymous members too.
    fn member(&self, id: u32, name: &[u8], depth: u32) -> Option<(u32, u32)> {
        let id = self.plain(id)?;
        let (kind, members, _, at) = self.head(id)?;
        if depth > MAX_DEPTH || !matches!(kind, STRUCT | UNION) {
            return None;
        }
        for index in 0..members {
            let at = at + index * 12;
            let (member, target) = (u32_at(self.types, at).ok()?, u32_at(self.types, at + 4).ok()?);
            // The upper byte is a bit field's size where the struct has bit fields.
            let bits = u32_at(self.types, at + 8).ok()? & 0x00ff_ffff;
            if member != 0 {
                if self.string(member) == name {
                    return Some((bits, target));
                }
            } else if let Some((inner, target)) = self.member(target, name, depth + 1) {
                return Some((bits + inner, target));
            }
        }
        None
    }

    /// Byte offset of `a.b.c` in a struct. Names are of members, through anonymous and nested structs, not through pointers.
    pub fn offset(&self, structure: &str, path: &str) -> Option<u32> {
        let mut id = *self.by_name.get(structure.as_bytes())?;
        let mut bits = 0;
        for name in path.split('.') {
            let (offset, target) = self.member(id, name.as_bytes(), 0)?;
            bits += offset;
            id = target;
        }
        Some(bits / 8)
    }

    /// Bytes of a struct.
    pub fn size(&self, structure: &str) -> Option<u32> {
        let (kind, _, size, _) = self.head(*self.by_name.get(structure.as_bytes())?)?;
        matches!(kind, STRUCT | UNION).then_some(size)
    }

    /// Names and values of an enum.
    pub fn enumeration(&self, name: &str) -> Vec<(&'a str, u32)> {
        let Some((ENUM, members, _, at)) = self.by_name.get(name.as_bytes()).and_then(|id| self.head(*id)) else {
            return Vec::new();
        };
        (0..members)
            .filter_map(|index| {
                let name = self.string(u32_at(self.types, at + index * 8).ok()?);
                Some((
                    std::str::from_utf8(name).ok()?,
                    u32_at(self.types, at + index * 8 + 4).ok()?,
                ))
            })
            .collect()
    }

    /// Parameters of the function that a typedef'd pointer points to (`btf_trace_NAME` for tracepoints, with one more up front).
    pub fn parameters(&self, typedef: &str) -> Option<usize> {
        let (kind, _, target, _) = self.head(self.plain(*self.by_name.get(typedef.as_bytes())?)?)?;
        if kind != PTR {
            return None;
        }
        let (kind, members, ..) = self.head(self.plain(target)?)?;
        (kind == FUNC_PROTO).then_some(members)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Header, then types and strings.
    fn bytes(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        let len = types.len() as u32 * 4;
        for word in [24, 0, len, len, strings.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn finds_fields_through_anonymous_and_nested_structs() {
        // struct outer { u32 a; union { u32 b; struct inner in; }; }; struct inner { u32 x; u32 y; };
        let strings = b"\0outer\0a\0b\0in\0inner\0x\0y\0";
        let types = [
            1,
            4 << 24 | 2,
            16,
            /* a */ 7,
            0,
            0,
            /* anonymous */ 0,
            2,
            32, // 1: outer
            0,
            5 << 24 | 2,
            8,
            /* b */ 9,
            0,
            0,
            /* in */ 11,
            3,
            0, // 2: the union
            14,
            4 << 24 | 2,
            8,
            /* x */ 20,
            0,
            0,
            /* y */ 22,
            0,
            32, // 3: inner
        ];
        let bytes = bytes(&types, strings);
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.offset("outer", "a"), Some(0));
        assert_eq!(btf.offset("outer", "b"), Some(4));
        assert_eq!(btf.offset("outer", "in.y"), Some(8));
        assert_eq!(btf.offset("outer", "y"), None);
        assert_eq!(btf.size("inner"), Some(8));
    }

    proptest! {
        #[test]
        fn never_panics(types in proptest::collection::vec(any::<u32>(), 0..64), strings in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(btf) = Btf::parse(&bytes(&types, &strings)) {
                let names: Vec<_> = btf.by_name.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
                for name in names {
                    btf.offset(&name, "a.b");
                    btf.enumeration(&name);
                    btf.parameters(&name);
                }
            }
        }

        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = Btf::parse(&bytes);
        }
    }
}
