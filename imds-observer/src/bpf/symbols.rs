//! Names for kernel addresses, from `/proc/kallsyms`.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek as _};
use std::sync::Arc;

/// The kernel's symbol table, read when a name is wanted.
///
/// It has some 200,000 entries (20 MB once parsed) and packets are dropped in a handful of places: a look-up reads it through,
/// about 50 ms each, and callers keep what they were told. The file is opened once, because the kernel decides by the rights
/// at that moment whether it shows addresses.
#[derive(Default)]
pub struct Symbols {
    table: Option<File>,
}

impl Symbols {
    pub fn open() -> Self {
        let table = File::open("/proc/kallsyms").ok();
        let shows = table.as_ref().is_some_and(|file| shows_addresses(BufReader::new(file)));
        Self {
            table: table.filter(|_| shows),
        }
    }

    /// The kernel shows no addresses (`kptr_restrict`, or CAP_SYSLOG is missing).
    pub fn is_empty(&self) -> bool {
        self.table.is_none()
    }

    /// The function that holds `address`.
    pub fn name(&mut self, address: u64) -> Option<Arc<str>> {
        let table = self.table.as_mut()?;
        table.rewind().ok()?;
        nearest(BufReader::with_capacity(1 << 16, table), address)
    }
}

/// Address and name of a function's line: `ffffffff81000000 T ip_rcv [module]`.
fn function(line: &str) -> Option<(u64, &str)> {
    let mut fields = line.split_ascii_whitespace();
    let address = u64::from_str_radix(fields.next()?, 16).ok()?;
    matches!(fields.next()?, "t" | "T").then_some(())?;
    Some((address, fields.next()?))
}

fn shows_addresses(lines: impl BufRead) -> bool {
    // The first functions are enough: either all are zero or, but for some per-CPU symbols, none.
    lines
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| Some(function(&line)?.0))
        .take(1000)
        .any(|address| address != 0)
}

/// The function that starts closest below `address`. Compilers split functions: a suffix such as `.isra.0` or `.cold` is left out.
fn nearest(mut lines: impl BufRead, address: u64) -> Option<Arc<str>> {
    let mut best: Option<(u64, String)> = None;
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        if let Some((start, name)) = function(&line)
            && start != 0
            && start <= address
            && best.as_ref().is_none_or(|(before, _)| start > *before)
        {
            best = Some((start, name.to_owned()));
        }
        line.clear();
    }
    let (_, name) = best?;
    let plain = name
        .split('.')
        .next()
        .filter(|plain| !plain.is_empty())
        .unwrap_or(&name);
    Some(Arc::from(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str =
        "ffffffff81000100 T ip_forward.part.0\nffffffff81000000 T ip_rcv\nffffffff81000080 d data\nbroken\n";

    #[test]
    fn names_the_function_that_holds_an_address() {
        assert_eq!(
            nearest(TABLE.as_bytes(), 0xffff_ffff_8100_00ff).as_deref(),
            Some("ip_rcv")
        );
        assert_eq!(
            nearest(TABLE.as_bytes(), 0xffff_ffff_8100_0150).as_deref(),
            Some("ip_forward")
        );
        assert_eq!(nearest(TABLE.as_bytes(), 1), None);
    }

    #[test]
    fn hidden_addresses_are_told_apart() {
        assert!(shows_addresses(TABLE.as_bytes()));
        assert!(!shows_addresses(
            "0000000000000000 T ip_rcv\n0000000000000000 T ip_forward\n".as_bytes()
        ));
    }
}
