//! Reads the lines of exchanges, which are nearly all lines of a trace.
//!
//! Keys in any order, best in that of [`Exchange`]; a key may be absent where serde has a default for it; one space may follow a colon or a
//! comma; texts are plain ASCII without escapes. A line of any other form is `None` here and goes through serde. So this reader may return
//! `None` at any point, but never another record than serde would. Two things make it fast: it allocates nothing where a spare record is at
//! hand, and it compares the bytes of a process that it has read before instead of parsing them again.

#![expect(clippy::option_option, reason = "absent, null and a value are three things")]

use std::hash::{Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};

use rustc_hash::FxHasher;

use crate::memo::Memo;
use crate::record::{
    Body, Connection, Container, Dialect, End, Endpoint, Exchange, ExchangeOutcome, Host, IcmpCode, ImdsVersion,
    Process, ProcessMemo, Record, Request, Response, SCHEMA, SECOND, Time,
};
use crate::redact;

/// Reads an object: one variable for each key, `None` if it is absent. Returns `None` from the function for an unknown key, a key that
/// comes twice, and any other form.
///
/// Each pass over the keys reads all that come in this order, so an object in that order takes one pass. A macro, because the compiler
/// doesn't inline closures here, and these calls are most of the work.
macro_rules! members {
    ($rest:ident { $($name:ident: $key:literal => $value:expr,)* }) => {
        $(let mut $name = None;)*
        $rest.skip(b"{")?;
        if $rest.skip(b"}").is_none() {
            'members: loop {
                let before = $rest.0.len();
                $(if $rest.key($key) {
                    if $name.is_some() {
                        return None;
                    }
                    $name = Some($value?);
                    if $rest.ends()? {
                        break 'members;
                    }
                })*
                if $rest.0.len() == before {
                    return None;
                }
            }
        }
    };
}

/// Slots for recently read texts: two for each hash.
const SLOTS: usize = 1024;
/// Bytes of a text that choose its slot.
const FIRST_BYTES: usize = 40;
/// Longest text that is read here.
const MAX_TEXT_BYTES: usize = 1024;
/// Longest text of a spare record.
const MAX_SPARE_BYTES: usize = 4096;

/// Processes and containers by their JSON. Shared by all readers, so that each is one `Arc` in all records.
#[derive(Clone)]
pub(in crate::source) struct Callers {
    processes: Known<Process>,
    containers: Known<Container>,
}

type Known<T> = Arc<Mutex<Memo<Arc<T>>>>;

impl Callers {
    /// At most `limit` of each.
    pub(in crate::source) fn new(limit: usize) -> Self {
        Self {
            processes: Arc::new(Mutex::new(Memo::new(limit))),
            containers: Arc::new(Mutex::new(Memo::new(limit))),
        }
    }
}

/// Objects that all readers know, and those that this one has read last, found by the first bytes of their texts.
struct Recent<T> {
    known: Known<T>,
    slots: Vec<Slot<T>>,
}

type Slot<T> = Option<(Arc<[u8]>, Arc<T>)>;

impl<T> Recent<T> {
    fn new(known: Known<T>) -> Self {
        Self {
            known,
            slots: std::iter::repeat_with(|| None).take(SLOTS).collect(),
        }
    }

    fn slot(text: &[u8]) -> Option<usize> {
        let mut hasher = FxHasher::default();
        text.first_chunk::<FIRST_BYTES>()?.hash(&mut hasher);
        Some(hasher.finish() as usize % (SLOTS / 2) * 2)
    }

    /// The place of the value whose text `rest` begins with. The text is a complete object, so no other object begins with it.
    #[inline(always)]
    fn skip(&self, rest: &mut Rest<'_>, slot: usize) -> Option<usize> {
        [slot, slot + 1].into_iter().find(|place| {
            let Some(Some((text, _))) = self.slots.get(*place) else {
                return false;
            };
            match rest.0.strip_prefix(&**text) {
                Some(behind) => {
                    rest.0 = behind;
                    true
                }
                None => false,
            }
        })
    }

    /// The entry read last moves to the second slot and evicts the one there.
    fn put(&mut self, slot: usize, text: Arc<[u8]>, value: Arc<T>) -> Option<usize> {
        self.slots.swap(slot, slot + 1);
        *self.slots.get_mut(slot)? = Some((text, value));
        Some(slot)
    }

    /// The place of the object that the line goes on with, or null. `pass` passes over a new one, `build` makes it of what `pass` has seen
    /// and its text.
    #[inline(always)]
    fn place<'a, P>(
        &mut self,
        rest: &mut Rest<'a>,
        pass: impl FnOnce(&mut Rest<'a>) -> Option<P>,
        build: impl FnOnce(P, &[u8]) -> Option<T>,
    ) -> Option<Option<usize>> {
        if rest.skip(b"null").is_some() {
            return Some(None);
        }
        let slot = Self::slot(rest.0)?;
        match self.skip(rest, slot) {
            Some(place) => Some(Some(place)),
            None => self.read(rest, slot, pass, build).map(Some),
        }
    }

    #[inline(never)]
    fn read<'a, P>(
        &mut self,
        rest: &mut Rest<'a>,
        slot: usize,
        pass: impl FnOnce(&mut Rest<'a>) -> Option<P>,
        build: impl FnOnce(P, &[u8]) -> Option<T>,
    ) -> Option<usize> {
        let whole = rest.0;
        let passed = pass(rest)?;
        let text = &whole[..whole.len() - rest.0.len()];
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().get(text).map(|(text, value)| (text.clone(), value.clone()));
        let (text, value) = match known {
            Some(known) => known,
            None => {
                let value = Arc::new(build(passed, text)?);
                let mut known = lock();
                let (text, value) = known.insert(text, value);
                (text, value.clone())
            }
        };
        self.put(slot, text, value)
    }

    fn at(&self, place: Option<usize>) -> Option<&Arc<T>> {
        self.slots.get(place?)?.as_ref().map(|(_, value)| value)
    }
}

/// One thread's reader. Remembers what lines have in common: processes, the host, the second.
pub(super) struct Written {
    processes: Recent<Process>,
    containers: Recent<Container>,
    parts: ProcessMemo,
    host: Option<Host>,
    times: Times,
    started: Times,
}

/// The last time, up to its second, as text and as number.
struct Times {
    second: [u8; 19],
    time: Time,
}

impl Written {
    /// Callers that this reader shares with others.
    pub(super) fn callers(&self) -> Callers {
        Callers {
            processes: self.processes.known.clone(),
            containers: self.containers.known.clone(),
        }
    }

    pub(super) fn new(callers: Callers) -> Self {
        let times = || Times {
            second: [0; 19],
            time: Time(0),
        };
        Self {
            processes: Recent::new(callers.processes),
            containers: Recent::new(callers.containers),
            parts: ProcessMemo::default(),
            host: None,
            times: times(),
            started: times(),
        }
    }
}

impl Default for Written {
    fn default() -> Self {
        Self::new(Callers::new(crate::source::Limits::default().callers))
    }
}

impl Written {
    /// The exchange that the line holds, in the memory of a spare record if there is one.
    pub(super) fn exchange(&mut self, line: &[u8], spares: &mut Vec<Arc<Record>>) -> Option<Arc<Record>> {
        let (record, length) = self.first_exchange(line, spares)?;
        (length == line.len()).then_some(record)
    }

    /// The exchange that the first line holds, and its length: so its end need not be searched for, which takes longer than reading a part
    /// of it. The caller checks that a line ends there.
    pub(super) fn first_exchange(
        &mut self,
        lines: &[u8],
        spares: &mut Vec<Arc<Record>>,
    ) -> Option<(Arc<Record>, usize)> {
        let mut rest = Rest(lines);
        members!(rest {
            record: b"\"record\":" => rest.skip(b"\"exchange\""),
            schema: b"\"schema\":" => rest.small::<u32>().filter(|schema| *schema == SCHEMA),
            time: b"\"time\":" => self.times.read(&mut rest),
            host: b"\"host\":" => rest.quoted(),
            process: b"\"process\":" => self.processes.place(
                &mut rest,
                |rest| read_process(rest, &mut self.started),
                |parsed, _| parsed.build(&mut self.parts),
            ),
            container: b"\"container\":" => self.containers.place(
                &mut rest,
                read_container,
                |(), text| serde_json::from_slice(text).ok(),
            ),
            connection: b"\"connection\":" => read_connection(&mut rest),
            request: b"\"request\":" => read_request(&mut rest),
            response: b"\"response\":" => read_response(&mut rest),
            outcome: b"\"outcome\":" => read_outcome(&mut rest),
            latency_ns: b"\"latency_ns\":" => rest.nullable_number::<u64>(),
            waited_ns: b"\"waited_ns\":" => rest.nullable_number::<u64>(),
            connect_ns: b"\"connect_ns\":" => rest.nullable_number::<u64>(),
            closed_by: b"\"closed_by\":" => read_closed_by(&mut rest),
        });
        record?;
        schema?;
        let length = lines.len() - rest.0.len();
        let line = Line {
            time: time?,
            connection: connection?,
            request: request?,
            response: response.flatten(),
            outcome: outcome?,
            latency_ns: latency_ns.flatten(),
            waited_ns: waited_ns.flatten(),
            connect_ns: connect_ns.flatten(),
            closed_by: closed_by.flatten(),
        };
        let caller = (
            self.processes.at(process.flatten()),
            self.containers.at(container.flatten()),
        );
        let host = host?;
        let host = match &self.host {
            Some(known) if **known == *host => known,
            _ => self.host.insert(host.into()),
        };
        let mut record = spares.pop().unwrap_or_else(|| Arc::new(blank(host)));
        // One that is still read is not reused.
        if Arc::get_mut(&mut record).is_none_or(|record| line.fill(record, host, caller).is_none()) {
            let mut new = blank(host);
            line.fill(&mut new, host, caller);
            record = Arc::new(new);
        }
        Some((record, length))
    }
}

impl Times {
    /// A time whose text up to the second is that of the time before needs its fraction only.
    fn read(&mut self, rest: &mut Rest<'_>) -> Option<Time> {
        rest.skip(b"\"")?;
        let (second, behind) = rest.0.split_first_chunk::<19>()?;
        let (fraction, behind) = behind.split_first_chunk::<12>()?;
        let [b'.', digits @ .., b'Z', b'"'] = fraction else {
            return None;
        };
        rest.0 = behind;
        let mut ns = 0;
        for digit in digits {
            if !digit.is_ascii_digit() {
                return None;
            }
            ns = ns * 10 + u64::from(digit - b'0');
        }
        if self.second != *second {
            let time: Time = format!("{}Z", std::str::from_utf8(second).ok()?).parse().ok()?;
            // Times before 1970 and leap seconds are not the sum of their parts.
            if time.0 < SECOND || second[17..] > b"59"[..] {
                return None;
            }
            *self = Self { second: *second, time };
        }
        Some(self.time.plus_ns(ns))
    }
}

/// A process whose texts are still in the line.
struct LineProcess<'a> {
    pid: u32,
    tid: Option<u32>,
    namespace_pid: Option<u32>,
    comm: &'a str,
    exe: Option<&'a str>,
    /// An array of texts.
    cmdline: Option<&'a [u8]>,
    uid: Option<u32>,
    start_time: Option<Time>,
    /// An array of objects.
    ancestors: &'a [u8],
    cgroup: Option<&'a str>,
    netns: Option<u32>,
}

fn read_process<'a>(rest: &mut Rest<'a>, started: &mut Times) -> Option<LineProcess<'a>> {
    members!(rest {
        pid: b"\"pid\":" => rest.small(),
        tid: b"\"tid\":" => rest.nullable_number(),
        namespace_pid: b"\"namespace_pid\":" => rest.nullable_number(),
        comm: b"\"comm\":" => rest.quoted(),
        exe: b"\"exe\":" => rest.nullable_text(),
        cmdline: b"\"cmdline\":" => nullable_texts(rest),
        uid: b"\"uid\":" => rest.nullable_number(),
        start_time: b"\"start_time\":" => nullable_time(rest, started),
        ancestors: b"\"ancestors\":" => read_ancestors(rest),
        cgroup: b"\"cgroup\":" => rest.nullable_text(),
        netns: b"\"netns\":" => rest.nullable_number(),
    });
    Some(LineProcess {
        pid: pid?,
        tid: tid.flatten(),
        namespace_pid: namespace_pid.flatten(),
        comm: comm?,
        exe: exe.flatten(),
        cmdline: cmdline.flatten(),
        uid: uid.flatten(),
        start_time: start_time.flatten(),
        ancestors: ancestors?,
        cgroup: cgroup.flatten(),
        netns: netns.flatten(),
    })
}

impl LineProcess<'_> {
    fn build(&self, memo: &mut ProcessMemo) -> Option<Process> {
        Some(Process {
            pid: self.pid,
            tid: self.tid,
            namespace_pid: self.namespace_pid,
            comm: memo.text(self.comm),
            exe: self.exe.map(|exe| memo.text(exe)),
            cmdline: match self.cmdline {
                Some(arguments) => memo.command_line(self.exe, arguments)?,
                None => None,
            },
            uid: self.uid,
            start_time: self.start_time,
            ancestors: memo.ancestors(self.ancestors)?,
            cgroup: self.cgroup.map(|cgroup| memo.text(cgroup)),
            netns: self.netns,
        })
    }
}

fn nullable_time(rest: &mut Rest<'_>, times: &mut Times) -> Option<Option<Time>> {
    if rest.skip(b"null").is_some() {
        return Some(None);
    }
    times.read(rest).map(Some)
}

/// An array of plain texts, unread.
fn nullable_texts<'a>(rest: &mut Rest<'a>) -> Option<Option<&'a [u8]>> {
    if rest.skip(b"null").is_some() {
        return Some(None);
    }
    rest.array(|rest| rest.quoted().map(drop)).map(Some)
}

/// An array of ancestors, unread.
fn read_ancestors<'a>(rest: &mut Rest<'a>) -> Option<&'a [u8]> {
    rest.array(|rest| {
        members!(rest {
            pid: b"\"pid\":" => rest.small::<u32>(),
            comm: b"\"comm\":" => rest.quoted(),
        });
        pid.and(comm).map(drop)
    })
}

/// Passes over a container.
fn read_container(rest: &mut Rest<'_>) -> Option<()> {
    members!(rest {
        id: b"\"id\":" => rest.quoted(),
        runtime: b"\"runtime\":" => rest.nullable_text(),
        name: b"\"name\":" => rest.nullable_text(),
        image: b"\"image\":" => rest.nullable_text(),
        pod: b"\"pod\":" => read_pod(rest),
    });
    let _ = (runtime, name, image, pod);
    id.map(drop)
}

fn read_pod(rest: &mut Rest<'_>) -> Option<()> {
    if rest.skip(b"null").is_some() {
        return Some(());
    }
    members!(rest {
        namespace: b"\"namespace\":" => rest.nullable_text(),
        name: b"\"name\":" => rest.nullable_text(),
        uid: b"\"uid\":" => rest.nullable_text(),
    });
    let _ = (namespace, name, uid);
    Some(())
}

/// Position of the first byte that ends a text, or that plain text doesn't have: quotes, backslashes, control characters, all but ASCII.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn first_special(block: &[u8; 16]) -> Option<usize> {
    use std::arch::x86_64::{
        _mm_cmpeq_epi8, _mm_cmplt_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8,
    };
    // SAFETY: each x86_64 has SSE2, and the load is of the block's 16 bytes, however they lie.
    let special = unsafe {
        let bytes = _mm_loadu_si128(block.as_ptr().cast());
        let quotes = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'"'.cast_signed()));
        let backslashes = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\'.cast_signed()));
        // As signed numbers, what isn't ASCII is less than any control character.
        let others = _mm_cmplt_epi8(bytes, _mm_set1_epi8(0x20));
        _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quotes, backslashes), others))
    };
    (special != 0).then(|| special.trailing_zeros() as usize)
}

/// The same, eight bytes at a time.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn first_special(block: &[u8; 16]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES * 0x80;
    // The high bit of each byte that is less than `limit`, if none has it set already. A byte that is less borrows from the next,
    // so behind the first one there may be false ones.
    let less = |word: u64, limit: u64| word.wrapping_sub(ONES * limit);
    let special = |word: u64| {
        let quote = less(word ^ (ONES * u64::from(b'"')), 1);
        let backslash = less(word ^ (ONES * u64::from(b'\\')), 1);
        (quote | backslash | less(word, 0x20) | word) & HIGH
    };
    let (words, _) = block.as_chunks::<8>();
    words.iter().enumerate().find_map(|(index, word)| {
        let special = special(u64::from_le_bytes(*word));
        (special != 0).then(|| index * 8 + special.trailing_zeros() as usize / 8)
    })
}

/// The rest of a line.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    /// Skips what must be here.
    #[inline(always)]
    fn skip<const N: usize>(&mut self, expected: &[u8; N]) -> Option<()> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        (first == expected).then(|| self.0 = rest)
    }

    /// Passes over a key with its colon.
    #[inline(always)]
    fn key<const N: usize>(&mut self, key: &[u8; N]) -> bool {
        if self.skip(key).is_none() {
            return false;
        }
        self.space();
        true
    }

    #[inline(always)]
    fn space(&mut self) {
        if let Some((b' ', rest)) = self.0.split_first() {
            self.0 = rest;
        }
    }

    /// Behind a member: false if another one follows, true at the object's end.
    #[inline(always)]
    fn ends(&mut self) -> Option<bool> {
        let (next, rest) = self.0.split_first()?;
        self.0 = rest;
        match next {
            b',' => {
                self.space();
                Some(false)
            }
            b'}' => Some(true),
            _ => None,
        }
    }

    /// The bytes of an array, whose elements `element` passes over.
    fn array(&mut self, mut element: impl FnMut(&mut Self) -> Option<()>) -> Option<&'a [u8]> {
        let whole = self.0;
        self.skip(b"[")?;
        if self.skip(b"]").is_none() {
            loop {
                element(self)?;
                if self.skip(b"]").is_some() {
                    break;
                }
                self.skip(b",")?;
                self.space();
            }
        }
        Some(&whole[..whole.len() - self.0.len()])
    }

    #[inline(always)]
    fn quoted(&mut self) -> Option<&'a str> {
        self.skip(b"\"")?;
        self.text()
    }

    /// Up to the closing quote, the opening one is passed already: plain ASCII, sixteen bytes at a time.
    #[inline(always)]
    fn text(&mut self) -> Option<&'a str> {
        let mut at = 0;
        while at <= MAX_TEXT_BYTES {
            let left = self.0.get(at..)?;
            let Some(block) = left.first_chunk() else {
                return self.last_text();
            };
            if let Some(first) = first_special(block) {
                let (text, rest) = self.0.split_at(at + first);
                self.0 = rest.strip_prefix(b"\"")?;
                // SAFETY: bytes above 0x7f are special, and no special byte is before the end: the text is ASCII.
                return Some(unsafe { std::str::from_utf8_unchecked(text) });
            }
            at += block.len();
        }
        None
    }

    /// The same, where fewer than sixteen bytes follow the text's start or its last whole block.
    #[cold]
    fn last_text(&mut self) -> Option<&'a str> {
        let end = self
            .0
            .iter()
            .position(|byte| !matches!(byte, b' '..=b'~') || matches!(byte, b'"' | b'\\'))?;
        let (text, rest) = self.0.split_at(end);
        self.0 = rest.strip_prefix(b"\"")?;
        std::str::from_utf8(text).ok()
    }

    #[inline(always)]
    fn nullable_text(&mut self) -> Option<Option<&'a str>> {
        if self.skip(b"null").is_some() {
            return Some(None);
        }
        self.quoted().map(Some)
    }

    /// As JSON writes whole numbers: no sign, no leading zero.
    #[inline(always)]
    fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        let mut digits = 0;
        while let Some(digit @ b'0'..=b'9') = self.0.get(digits) {
            number = number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
            digits += 1;
        }
        // Any number of 19 digits fits.
        let plain = digits == 1 || (2..20).contains(&digits) && self.0.first() != Some(&b'0');
        self.0 = &self.0[digits..];
        plain.then_some(number)
    }

    #[inline(always)]
    fn small<T: TryFrom<u64>>(&mut self) -> Option<T> {
        T::try_from(self.number()?).ok()
    }

    #[inline(always)]
    fn nullable_number<T: TryFrom<u64>>(&mut self) -> Option<Option<T>> {
        if self.skip(b"null").is_some() {
            return Some(None);
        }
        self.small().map(Some)
    }

    #[inline(always)]
    fn boolean(&mut self) -> Option<bool> {
        if self.skip(b"true").is_some() {
            return Some(true);
        }
        self.skip(b"false").map(|()| false)
    }

    #[inline(always)]
    fn nullable_boolean(&mut self) -> Option<Option<bool>> {
        if self.skip(b"null").is_some() {
            return Some(None);
        }
        self.boolean().map(Some)
    }
}

/// An exchange whose texts still borrow from the line.
struct Line<'a> {
    time: Time,
    connection: LineConnection<'a>,
    request: LineRequest<'a>,
    response: Option<LineResponse<'a>>,
    outcome: ExchangeOutcome,
    latency_ns: Option<u64>,
    waited_ns: Option<u64>,
    connect_ns: Option<u64>,
    closed_by: Option<End>,
}

struct LineConnection<'a> {
    id: &'a str,
    local: Option<&'a str>,
    remote: &'a str,
    exchange: u32,
    interface: Option<&'a str>,
    cgroup: Option<&'a str>,
    netns: Option<u32>,
    redirected_to: Option<&'a str>,
}

struct LineRequest<'a> {
    method: Option<&'a str>,
    path: Option<&'a str>,
    dialect: Dialect,
    imds_version: Option<ImdsVersion>,
    token: Option<&'a str>,
    token_ttl_s: Option<u32>,
    user_agent: Option<&'a str>,
    ttl: Option<u8>,
    forwarded: bool,
    retransmits: u32,
    ttl_on_wire: Option<bool>,
    hops: Option<u8>,
    endpoint: Option<Endpoint>,
    trace_id: Option<&'a str>,
}

struct LineResponse<'a> {
    status: Option<u16>,
    ttl: Option<u8>,
    delivered: Option<bool>,
    server: Option<&'a str>,
    retransmits: u32,
    via_proxy: Option<bool>,
    icmp: Option<IcmpCode>,
    length: Option<u64>,
}

#[inline(always)]
fn read_connection<'a>(rest: &mut Rest<'a>) -> Option<LineConnection<'a>> {
    members!(rest {
        id: b"\"id\":" => rest.quoted(),
        local: b"\"local\":" => rest.nullable_text(),
        remote: b"\"remote\":" => rest.quoted(),
        exchange: b"\"exchange\":" => rest.small(),
        interface: b"\"interface\":" => rest.nullable_text(),
        cgroup: b"\"cgroup\":" => rest.nullable_text(),
        netns: b"\"netns\":" => rest.nullable_number(),
        redirected_to: b"\"redirected_to\":" => rest.nullable_text(),
    });
    Some(LineConnection {
        id: id?,
        local: local.flatten(),
        remote: remote?,
        exchange: exchange?,
        interface: interface.flatten(),
        cgroup: cgroup.flatten(),
        netns: netns.flatten(),
        redirected_to: redirected_to.flatten(),
    })
}

#[inline(always)]
fn read_request<'a>(rest: &mut Rest<'a>) -> Option<LineRequest<'a>> {
    members!(rest {
        method: b"\"method\":" => rest.nullable_text(),
        path: b"\"path\":" => rest.nullable_text(),
        dialect: b"\"dialect\":" => rest.quoted().and_then(dialect_of),
        imds_version: b"\"imds_version\":" => nullable(rest.nullable_text()?, version_of),
        token: b"\"token\":" => rest.nullable_text(),
        token_ttl_s: b"\"token_ttl_s\":" => rest.nullable_number(),
        user_agent: b"\"user_agent\":" => rest.nullable_text(),
        ttl: b"\"ttl\":" => rest.nullable_number(),
        forwarded: b"\"forwarded\":" => rest.boolean(),
        retransmits: b"\"retransmits\":" => rest.small(),
        ttl_on_wire: b"\"ttl_on_wire\":" => rest.nullable_boolean(),
        hops: b"\"hops\":" => rest.nullable_number(),
        endpoint: b"\"endpoint\":" => nullable(rest.nullable_text()?, endpoint_of),
        trace_id: b"\"trace_id\":" => rest.nullable_text(),
    });
    Some(LineRequest {
        method: method.flatten(),
        // An id of a task is replaced while reading, which is serde's part.
        path: path.flatten().map_or(Some(None), |path| {
            redact::recorded_path(path).is_none().then_some(Some(path))
        })?,
        dialect: dialect?,
        imds_version: imds_version.flatten(),
        token: token.flatten(),
        token_ttl_s: token_ttl_s.flatten(),
        user_agent: user_agent.flatten(),
        ttl: ttl.flatten(),
        forwarded: forwarded?,
        retransmits: retransmits.unwrap_or_default(),
        ttl_on_wire: ttl_on_wire.flatten(),
        hops: hops.flatten(),
        endpoint: endpoint.flatten(),
        trace_id: trace_id.flatten(),
    })
}

#[inline(always)]
fn read_response<'a>(rest: &mut Rest<'a>) -> Option<Option<LineResponse<'a>>> {
    if rest.skip(b"null").is_some() {
        return Some(None);
    }
    members!(rest {
        status: b"\"status\":" => rest.nullable_number(),
        ttl: b"\"ttl\":" => rest.nullable_number(),
        delivered: b"\"delivered\":" => rest.nullable_boolean(),
        server: b"\"server\":" => rest.nullable_text(),
        retransmits: b"\"retransmits\":" => rest.small(),
        icmp: b"\"icmp\":" => nullable(rest.nullable_text()?, |icmp| icmp.parse().ok()),
        via_proxy: b"\"via_proxy\":" => rest.nullable_boolean(),
        length: b"\"length\":" => rest.nullable_number(),
    });
    Some(Some(LineResponse {
        status: status.flatten(),
        ttl: ttl.flatten(),
        delivered: delivered.flatten(),
        server: server.flatten(),
        retransmits: retransmits.unwrap_or_default(),
        via_proxy: via_proxy.flatten(),
        icmp: icmp.flatten(),
        length: length.flatten(),
    }))
}

/// `Some(None)`: null. `None`: a name that isn't known.
#[inline(always)]
fn nullable<T>(name: Option<&str>, of: fn(&str) -> Option<T>) -> Option<Option<T>> {
    match name {
        Some(name) => of(name).map(Some),
        None => Some(None),
    }
}

fn read_closed_by(rest: &mut Rest<'_>) -> Option<Option<End>> {
    nullable(rest.nullable_text()?, end_of)
}

fn end_of(name: &str) -> Option<End> {
    match name {
        "client" => Some(End::Client),
        "server" => Some(End::Server),
        _ => None,
    }
}

fn read_outcome(rest: &mut Rest<'_>) -> Option<ExchangeOutcome> {
    use ExchangeOutcome::{Answered, Closed, Lost, Open, Reset, Unanswered};
    if rest.skip(b"\"answered\"").is_some() {
        return Some(Answered);
    }
    match rest.quoted()? {
        "lost" => Some(Lost),
        "unanswered" => Some(Unanswered),
        "reset" => Some(Reset),
        "closed" => Some(Closed),
        "open" => Some(Open),
        _ => None,
    }
}

#[inline(always)]
fn version_of(name: &str) -> Option<ImdsVersion> {
    Some(match name.as_bytes() {
        b"v2" => ImdsVersion::V2,
        b"v1" => ImdsVersion::V1,
        b"token" => ImdsVersion::Token,
        b"other" => ImdsVersion::Other,
        _ => return None,
    })
}

fn dialect_of(name: &str) -> Option<Dialect> {
    match name {
        "aws" => Some(Dialect::Aws),
        _ => Dialect::of_name(name),
    }
}

fn endpoint_of(name: &str) -> Option<Endpoint> {
    match name {
        "imds" => Some(Endpoint::Imds),
        _ => Endpoint::of_name(name),
    }
}

impl Line<'_> {
    /// Writes over every field. `None`: it is no exchange.
    fn fill(
        &self,
        record: &mut Record,
        new_host: &Host,
        caller: (Option<&Arc<Process>>, Option<&Arc<Container>>),
    ) -> Option<()> {
        let Record {
            time,
            host,
            body: Body::Exchange(exchange),
        } = record
        else {
            return None;
        };
        let Exchange {
            process,
            container,
            connection,
            request,
            response,
            outcome,
            latency_ns,
            waited_ns,
            connect_ns,
            closed_by,
        } = exchange;
        *time = self.time;
        if !Arc::ptr_eq(host, new_host) {
            *host = new_host.clone();
        }
        share(process, caller.0);
        share(container, caller.1);
        self.connection.fill(connection);
        self.request.fill(request);
        match (response, &self.response) {
            (Some(response), Some(line)) => line.fill(response),
            (response, line) => {
                *response = line.as_ref().map(|line| {
                    let mut response = BLANK_RESPONSE;
                    line.fill(&mut response);
                    response
                });
            }
        }
        *outcome = self.outcome;
        *latency_ns = self.latency_ns;
        *waited_ns = self.waited_ns;
        *connect_ns = self.connect_ns;
        *closed_by = self.closed_by;
        Some(())
    }
}

impl LineConnection<'_> {
    fn fill(&self, connection: &mut Connection) {
        let Connection {
            id,
            local,
            remote,
            exchange,
            interface,
            cgroup,
            netns,
            redirected_to,
        } = connection;
        put(id, self.id);
        put_nullable(local, self.local);
        put(remote, self.remote);
        *exchange = self.exchange;
        put_nullable(interface, self.interface);
        put_nullable(cgroup, self.cgroup);
        *netns = self.netns;
        put_nullable(redirected_to, self.redirected_to);
    }
}

impl LineRequest<'_> {
    fn fill(&self, request: &mut Request) {
        let Request {
            method,
            path,
            dialect,
            imds_version,
            token,
            token_ttl_s,
            user_agent,
            ttl,
            forwarded,
            retransmits,
            ttl_on_wire,
            hops,
            endpoint,
            trace_id,
        } = request;
        put_nullable(method, self.method);
        put_nullable(path, self.path);
        *dialect = self.dialect;
        *imds_version = self.imds_version;
        put_nullable(token, self.token);
        *token_ttl_s = self.token_ttl_s;
        put_nullable(user_agent, self.user_agent);
        *ttl = self.ttl;
        *forwarded = self.forwarded;
        *retransmits = self.retransmits;
        *ttl_on_wire = self.ttl_on_wire;
        *hops = self.hops;
        *endpoint = self.endpoint;
        put_nullable(trace_id, self.trace_id);
    }
}

impl LineResponse<'_> {
    fn fill(&self, response: &mut Response) {
        let Response {
            status,
            ttl,
            delivered,
            server,
            retransmits,
            via_proxy,
            icmp,
            length,
        } = response;
        *status = self.status;
        *ttl = self.ttl;
        *delivered = self.delivered;
        put_nullable(server, self.server);
        *retransmits = self.retransmits;
        *via_proxy = self.via_proxy;
        *length = self.length;
        *icmp = self.icmp;
    }
}

fn put(text: &mut String, new: &str) {
    text.clear();
    text.push_str(new);
}

fn put_nullable(text: &mut Option<String>, new: Option<&str>) {
    match (text, new) {
        (Some(text), Some(new)) => put(text, new),
        (text, new) => *text = new.map(str::to_owned),
    }
}

/// Leaves the reference count alone where the value is the same already: other threads have it in their caches.
fn share<T>(shared: &mut Option<Arc<T>>, new: Option<&Arc<T>>) {
    match (&shared, new) {
        (Some(old), Some(new)) if Arc::ptr_eq(old, new) => {}
        _ => *shared = new.cloned(),
    }
}

const BLANK_RESPONSE: Response = Response {
    status: None,
    ttl: None,
    delivered: None,
    server: None,
    retransmits: 0,
    via_proxy: None,
    length: None,
    icmp: None,
};

/// To be filled.
fn blank(host: &Host) -> Record {
    let exchange = Exchange {
        process: None,
        container: None,
        connection: Connection {
            id: String::new(),
            local: None,
            remote: String::new(),
            exchange: 0,
            interface: None,
            cgroup: None,
            netns: None,
            redirected_to: None,
        },
        request: Request {
            method: None,
            path: None,
            dialect: Dialect::Unknown,
            imds_version: None,
            token: None,
            token_ttl_s: None,
            user_agent: None,
            ttl: None,
            forwarded: false,
            retransmits: 0,
            ttl_on_wire: None,
            hops: None,
            endpoint: None,
            trace_id: None,
        },
        response: None,
        outcome: ExchangeOutcome::Open,
        latency_ns: None,
        waited_ns: None,
        connect_ns: None,
        closed_by: None,
    };
    Record {
        time: Time(0),
        host: host.clone(),
        body: Body::Exchange(exchange),
    }
}

/// Whether a record may be kept and reused: it would not hold on to much memory.
pub(super) fn is_spare(record: &Record) -> bool {
    let Body::Exchange(exchange) = &record.body else {
        return false;
    };
    let Exchange {
        connection, request, ..
    } = exchange;
    let optional = |text: &Option<String>| text.as_ref().map_or(0, String::capacity);
    let response = exchange.response.as_ref();
    [
        connection.id.capacity(),
        optional(&connection.local),
        connection.remote.capacity(),
        optional(&connection.interface),
        optional(&connection.cgroup),
        optional(&connection.redirected_to),
        optional(&request.method),
        optional(&request.path),
        optional(&request.token),
        optional(&request.user_agent),
        optional(&request.trace_id),
        response.map_or(0, |response| optional(&response.server)),
    ]
    .iter()
    .sum::<usize>()
        <= MAX_SPARE_BYTES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::parse;
    use super::*;

    fn traces() -> Vec<String> {
        ["healthy-botocore", "lost-token-pod", "tight-loop"]
            .iter()
            .flat_map(|name| {
                let path = format!("{}/tests/traces/{name}.ndjson", env!("CARGO_MANIFEST_DIR"));
                let text = std::fs::read_to_string(path).unwrap();
                text.lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect()
    }

    /// Never gives another result than serde; returns whether it gave one.
    fn same(written: &mut Written, spares: &mut Vec<Arc<Record>>, line: &str) -> bool {
        let Some(fast) = written.exchange(line.as_bytes(), spares) else {
            return false;
        };
        assert_eq!(parse(line.as_bytes()).as_ref(), Ok(&*fast), "{line}");
        spares.push(fast);
        true
    }

    #[test]
    fn what_this_program_writes_is_read_here() {
        let (mut written, mut spares) = (Written::default(), Vec::new());
        let mut exchanges = 0;
        for line in traces() {
            let read = same(&mut written, &mut spares, &line);
            assert_eq!(read, line.starts_with("{\"record\":\"exchange\""), "{line}");
            exchanges += u32::from(read);
        }
        assert!(exchanges > 50);
        assert_eq!(spares.len(), 1);
    }

    #[test]
    fn a_record_that_is_still_read_is_left_alone() {
        let lines: Vec<String> = traces()
            .into_iter()
            .filter(|line| line.contains("\"exchange\","))
            .collect();
        let mut written = Written::default();
        let first = written.exchange(lines[0].as_bytes(), &mut Vec::new()).unwrap();
        let before = (*first).clone();
        let second = written.exchange(lines[1].as_bytes(), &mut vec![first.clone()]).unwrap();
        assert_eq!(*first, before);
        assert_ne!(*second, before);
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            8 => "[ -~]{0,40}",
            1 => "\\PC{0,8}",
            1 => ".{0,8}",
            1 => Just("x".repeat(1500)),
            1 => Just(r#"x","connection":{"id":"#.to_owned()),
        ]
    }

    fn nullable<T: std::fmt::Debug + Clone + 'static>(
        value: impl Strategy<Value = T> + 'static,
    ) -> BoxedStrategy<Option<T>> {
        prop::option::weighted(0.7, value).boxed()
    }

    fn process() -> impl Strategy<Value = Process> {
        (
            1..4_u32,
            nullable(any::<u32>()),
            text(),
            nullable(text()),
            nullable(prop::collection::vec(text(), 0..3)),
        )
            .prop_map(|(pid, tid, comm, exe, cmdline)| Process {
                pid,
                tid,
                namespace_pid: None,
                comm,
                exe,
                cmdline,
                uid: Some(0),
                start_time: Some(Time(1_700_000_000_123_456_789)),
                ancestors: Vec::new(),
                cgroup: None,
                netns: None,
            })
    }

    fn exchanges() -> impl Strategy<Value = Record> {
        let connection = (
            text(),
            nullable(text()),
            text(),
            any::<u32>(),
            nullable(text()),
            nullable(any::<u32>()),
            nullable(text()),
        );
        let request = (
            nullable(text()),
            nullable(text()),
            prop::sample::select(Dialect::ALL.to_vec()),
            nullable(prop::sample::select(ImdsVersion::ALL.to_vec())),
            nullable(text()),
            nullable(any::<u32>()),
            nullable(any::<u8>()),
            any::<bool>(),
            nullable(any::<bool>()),
        );
        let response = nullable((
            nullable(any::<u16>()),
            nullable(any::<u8>()),
            nullable(any::<bool>()),
            nullable(text()),
            any::<u32>(),
            nullable(any::<(u8, u8)>()),
        ));
        let times = (
            0..2_000_000_000_000_000_000_u64,
            nullable(any::<u64>()),
            nullable(any::<u64>()),
            nullable(prop::sample::select(vec![End::Client, End::Server])),
        );
        (nullable(process()), connection, request, response, times, text()).prop_map(
            |(process, connection, request, response, times, host)| {
                let mut record = blank(&host.as_str().into());
                record.time = Time(times.0);
                let Body::Exchange(exchange) = &mut record.body else {
                    unreachable!()
                };
                exchange.process = process.map(Arc::new);
                exchange.latency_ns = times.1;
                exchange.waited_ns = times.2;
                exchange.closed_by = times.3;
                (
                    exchange.connection.id,
                    exchange.connection.local,
                    exchange.connection.remote,
                    exchange.connection.exchange,
                    exchange.connection.cgroup,
                    exchange.connection.netns,
                    exchange.connection.redirected_to,
                ) = connection;
                (
                    exchange.request.method,
                    exchange.request.path,
                    exchange.request.dialect,
                    exchange.request.imds_version,
                    exchange.request.token,
                    exchange.request.token_ttl_s,
                    exchange.request.ttl,
                    exchange.request.forwarded,
                    exchange.request.ttl_on_wire,
                ) = request;
                exchange.request.endpoint = Endpoint::ALL.get(exchange.connection.exchange as usize % 5).copied();
                exchange.response = response.map(|(status, ttl, delivered, server, retransmits, icmp)| Response {
                    status,
                    ttl,
                    delivered,
                    server,
                    retransmits,
                    via_proxy: None,
                    icmp: icmp.map(|(kind, code)| IcmpCode { kind, code }),
                    length: status.map(u64::from),
                });
                record
            },
        )
    }

    /// The members of all objects in another order, and without those that are null.
    fn rearranged(value: &serde_json::Value, seed: u64) -> String {
        let Some(members) = value.as_object() else {
            return match value.as_array() {
                Some(elements) => {
                    let elements: Vec<_> = elements.iter().map(|element| rearranged(element, seed)).collect();
                    format!("[{}]", elements.join(", "))
                }
                None => value.to_string(),
            };
        };
        let mut members: Vec<_> = members.iter().filter(|(_, value)| !value.is_null()).collect();
        members.sort_by_key(|(name, _)| hash_of(name, seed));
        let members: Vec<_> = members
            .into_iter()
            .map(|(name, value)| format!("\"{name}\": {}", rearranged(value, seed)))
            .collect();
        format!("{{{}}}", members.join(", "))
    }

    fn hash_of(name: &str, seed: u64) -> u64 {
        let mut hasher = FxHasher::default();
        (name, seed).hash(&mut hasher);
        hasher.finish()
    }

    #[test]
    fn any_order_of_keys_is_read_here() {
        let (mut written, mut spares) = (Written::default(), Vec::new());
        for line in traces()
            .iter()
            .filter(|line| line.starts_with("{\"record\":\"exchange\""))
        {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            for seed in 0..20 {
                let line = rearranged(&value, seed);
                assert!(same(&mut written, &mut spares, &line), "{line}");
            }
        }
    }

    #[test]
    fn unknown_and_repeated_keys_are_left_to_serde() {
        let line = traces()
            .into_iter()
            .find(|line| line.contains("\"exchange\","))
            .unwrap();
        let mut written = Written::default();
        for (key, with) in [
            ("\"host\":", "\"unknown\":1,\"host\":"),
            ("\"host\":", "\"host\":\"a\",\"host\":"),
            ("\"pid\":", "\"unknown\":1,\"pid\":"),
            ("\"pid\":", "\"pid\":1,\"pid\":"),
            ("\"method\":", "\"method\":null,\"method\":"),
            ("\"schema\":1", "\"schema\":2"),
        ] {
            let changed = line.replacen(key, with, 1);
            assert_ne!(changed, line);
            assert!(
                written.exchange(changed.as_bytes(), &mut Vec::new()).is_none(),
                "{changed}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_rearranged_is_read_as_serde_reads_it(exchanges in prop::collection::vec(exchanges(), 1..4), seed: u64) {
            let (mut written, mut spares) = (Written::default(), Vec::new());
            for exchange in exchanges {
                let line = rearranged(&serde_json::to_value(&exchange).unwrap(), seed);
                for _ in 0..2 {
                    same(&mut written, &mut spares, &line);
                }
            }
        }

        #[test]
        fn what_is_written_is_read_as_serde_reads_it(exchanges in prop::collection::vec(exchanges(), 1..8)) {
            let (mut written, mut spares) = (Written::default(), Vec::new());
            for exchange in exchanges {
                let line = serde_json::to_string(&exchange).unwrap();
                for _ in 0..2 {
                    same(&mut written, &mut spares, &line);
                }
            }
        }

        /// Bytes of a real line are cut out, doubled or changed: whatever is still read is read alike.
        #[test]
        fn what_is_changed_is_read_as_serde_reads_it(
            line in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), 0..4_usize, "[ -~]{0,3}|\"|,|\\}|0|null|[0-9]{18,21}|\u{e9}"), 1..4),
        ) {
            let lines = traces();
            let original = line.get(&lines).clone();
            let mut line = original.clone();
            let (mut written, mut spares) = (Written::default(), Vec::new());
            same(&mut written, &mut spares, &original);
            for (at, length, instead) in changes {
                let at = at.index(line.len() + 1);
                let end = (at + length).min(line.len());
                if line.is_char_boundary(at) && line.is_char_boundary(end) {
                    line.replace_range(at..end, &instead);
                }
                same(&mut written, &mut spares, &line);
            }
        }
    }
}
