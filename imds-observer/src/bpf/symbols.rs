//! Names for kernel addresses, from `/proc/kallsyms`.

use std::io::BufReader;
use std::sync::Arc;

/// Functions of the core kernel and its modules, by address.
#[derive(Default)]
pub struct Symbols {
    sorted: Vec<(u64, Arc<str>)>,
}

impl Symbols {
    /// Empty where the kernel shows no addresses (`kptr_restrict`, or CAP_SYSLOG is missing).
    pub fn read() -> Self {
        let Ok(file) = std::fs::File::open("/proc/kallsyms") else {
            return Self::default();
        };
        Self::parse(BufReader::new(file))
    }

    fn parse(mut lines: impl std::io::BufRead) -> Self {
        let mut sorted = Vec::new();
        let mut line = String::new();
        while let Ok(1..) = {
            line.clear();
            lines.read_line(&mut line)
        } {
            let mut fields = line.split_ascii_whitespace();
            let (Some(address), Some(kind), Some(name)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            if !matches!(kind, "t" | "T") {
                continue;
            }
            if let Ok(address @ 1..) = u64::from_str_radix(address, 16) {
                sorted.push((address, Arc::from(name)));
            }
        }
        sorted.sort_by_key(|(address, _)| *address);
        Self { sorted }
    }

    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// The function that holds `address`. Compilers split functions: a suffix such as `.isra.0` or `.cold` is left out.
    pub fn name(&self, address: u64) -> Option<Arc<str>> {
        let after = self.sorted.partition_point(|(start, _)| *start <= address);
        let (_, name) = self.sorted.get(after.checked_sub(1)?)?;
        Some(match name.split_once('.') {
            Some((plain, _)) if !plain.is_empty() => Arc::from(plain),
            _ => Arc::clone(name),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_function_that_holds_an_address() {
        let text = "ffffffff81000100 T ip_forward.part.0\nffffffff81000000 T ip_rcv\nffffffff81000080 d data\nbroken\n";
        let symbols = Symbols::parse(text.as_bytes());
        assert_eq!(symbols.name(0xffff_ffff_8100_00ff).as_deref(), Some("ip_rcv"));
        assert_eq!(symbols.name(0xffff_ffff_8100_0150).as_deref(), Some("ip_forward"));
        assert_eq!(symbols.name(1), None);
    }

    #[test]
    fn hidden_addresses_give_none() {
        assert!(Symbols::parse("0000000000000000 T ip_rcv\n".as_bytes()).is_empty());
    }
}
