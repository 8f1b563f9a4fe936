//! Names for kernel addresses, from `/proc/kallsyms`.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek as _};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

/// The kernel's symbol table, read when a name is wanted.
///
/// It has some 200,000 entries (20 MB once parsed) and packets are dropped in a handful of places: a look-up reads it through,
/// about 50 ms each, and callers keep the result. The file is opened once, because the kernel decides by the privileges
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

/// A function's name, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Known(Arc<str>),
    /// The table has none, or can't be read.
    None,
    /// It is being looked up.
    Soon,
}

/// The thread that reads the table, by its questions and answers.
struct Thread {
    questions: SyncSender<u64>,
    answers: Receiver<(u64, Option<Arc<str>>)>,
}

/// Names that are looked up by a thread of its own: reading the table takes longer than the ring buffer may wait.
pub(super) struct Naming {
    /// Until the first question: threads are started once privileges are dropped, so that they inherit what is left.
    symbols: Option<Symbols>,
    thread: Option<Thread>,
    known: HashMap<u64, Option<Arc<str>>>,
    asked: HashSet<u64>,
}

/// Kernel functions that free packets: some hundred. More than this is no kernel of ours.
const MAX_LOCATIONS: usize = 4096;
/// Addresses that wait to be looked up; one more is asked for when it is seen again.
const MAX_ASKED: usize = 256;

impl Naming {
    pub(super) fn new(symbols: Symbols) -> Self {
        Self {
            symbols: Some(symbols).filter(|symbols| !symbols.is_empty()),
            thread: None,
            known: HashMap::new(),
            asked: HashSet::new(),
        }
    }

    /// The name of the function at `address`.
    pub(super) fn name(&mut self, address: u64) -> Name {
        if let Some(name) = self.known.get(&address) {
            return name.clone().map_or(Name::None, Name::Known);
        }
        if let Some(symbols) = self.symbols.take() {
            self.thread = aside(symbols)
                .inspect_err(|error| tracing::warn!("start the thread that reads /proc/kallsyms: {error}"))
                .ok();
        }
        let Some(thread) = &self.thread else {
            return Name::None;
        };
        if self.asked.contains(&address) {
            return Name::Soon;
        }
        if self.asked.len() >= MAX_ASKED || thread.questions.try_send(address).is_err() {
            return Name::None;
        }
        self.asked.insert(address);
        Name::Soon
    }

    /// Takes the answers that are there; whether there were any. `patience`: waits so long for one.
    pub(super) fn answers(&mut self, patience: Duration) -> bool {
        let Some(Thread { answers, .. }) = self.thread.as_ref().filter(|_| !self.asked.is_empty()) else {
            return false;
        };
        let first = if patience.is_zero() {
            answers.try_recv().ok()
        } else {
            answers.recv_timeout(patience).ok()
        };
        let mut came = false;
        for (address, name) in first.into_iter().chain(answers.try_iter()) {
            if self.known.len() >= MAX_LOCATIONS {
                self.known.clear();
            }
            self.asked.remove(&address);
            self.known.insert(address, name);
            came = true;
        }
        came
    }
}

fn aside(mut symbols: Symbols) -> io::Result<Thread> {
    let (questions, asked) = sync_channel(MAX_ASKED);
    let (given, answers) = channel();
    thread::Builder::new().name("kallsyms".to_owned()).spawn(move || {
        for address in asked {
            if given.send((address, symbols.name(address))).is_err() {
                break;
            }
        }
    })?;
    Ok(Thread { questions, answers })
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
    fn names_come_later_and_are_kept() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, TABLE.as_bytes()).unwrap();
        let mut naming = Naming::new(Symbols { table: Some(file) });
        let address = 0xffff_ffff_8100_00ff;
        assert_eq!(naming.name(address), Name::Soon);
        assert_eq!(naming.name(address), Name::Soon, "asked once");
        while !naming.answers(Duration::from_secs(10)) {}
        assert_eq!(naming.name(address), Name::Known(Arc::from("ip_rcv")));
        assert!(!naming.answers(Duration::from_secs(10)), "nothing is open");
        // A flood of addresses: what can't be asked now has no name now.
        for address in 0..10_000 {
            naming.name(address);
            assert!(naming.asked.len() <= MAX_ASKED && naming.known.len() <= MAX_LOCATIONS);
        }
        let mut hidden = Naming::new(Symbols::default());
        assert_eq!(hidden.name(address), Name::None);
    }

    #[test]
    fn hidden_addresses_are_distinguished() {
        assert!(shows_addresses(TABLE.as_bytes()));
        assert!(!shows_addresses(
            "0000000000000000 T ip_rcv\n0000000000000000 T ip_forward\n".as_bytes()
        ));
    }
}
