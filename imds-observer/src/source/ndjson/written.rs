//! Reads exchanges in the very form in which this program writes them, which is how nearly all lines of a trace look.
//!
//! Keys in their order, no space, plain ASCII without escapes. What is of any other form is `None` here and goes through serde, so this
//! may give up at any point, but must never say anything else than serde would. Two things make it worth its lines: nothing is
//! allocated where a spare record is at hand, and of the caller, which is half of a line and the same in all lines of a process, only the
//! bytes are compared.

#![expect(clippy::option_option, reason = "not read here, null, and a value are three things")]

use std::hash::{Hash as _, Hasher as _};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use memchr::memmem::Finder;
use rustc_hash::{FxHashMap, FxHasher};
use serde::Deserialize;

use crate::record::{
    Caller, Connection, Container, Dialect, End, Exchange, ExchangeOutcome, Host, ImdsVersion, Kind, Process, Record,
    Request, Response, SCHEMA, SECOND, Time,
};

/// The value behind a key. A macro, because what a function is given to call isn't put in its place, and these calls are most of the work.
macro_rules! after {
    ($rest:expr, $key:literal, $value:ident) => {{
        $rest.skip($key)?;
        $rest.$value()?
    }};
}

/// The value of a key that older writers left out.
macro_rules! optional {
    ($rest:expr, $key:literal, $value:ident) => {
        match $rest.skip($key) {
            Some(()) => $rest.$value()?,
            None => Default::default(),
        }
    };
}

/// Callers that are found by the first bytes of what is written of them: two for each hash.
const PLACES: usize = 1024;
const FIRST_BYTES: usize = 40;
/// Longest text that is read here.
const MAX_TEXT_BYTES: usize = 1024;
/// Texts of a record that is kept to be filled anew.
const MAX_SPARE_BYTES: usize = 4096;

const CALLER: &[u8; 11] = b",\"process\":";
/// A quote behind a comma ends no text and stands in none, because there it would be escaped: in JSON, this can only be a key.
const BEHIND_CALLER: &[u8; 15] = b",\"connection\":{";
static BEHIND_CALLER_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(BEHIND_CALLER));

/// Callers by what is written of them. Shared by all who read, so that a caller is one and the same for those who get its records.
#[derive(Clone)]
pub(in crate::source) struct Callers {
    known: Arc<Mutex<FxHashMap<Arc<[u8]>, Caller>>>,
    limit: usize,
}

impl Callers {
    /// At most `limit` of them.
    pub(in crate::source) fn new(limit: usize) -> Self {
        Self {
            known: Arc::default(),
            limit,
        }
    }

    fn get(&self, written: &[u8]) -> Option<(Arc<[u8]>, Caller)> {
        let mut callers = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((written, caller)) = callers.get_key_value(written) {
            return Some((written.clone(), caller.clone()));
        }
        let caller = caller(written)?;
        let written: Arc<[u8]> = written.into();
        if callers.len() >= self.limit {
            callers.clear();
        }
        callers.insert(written.clone(), caller.clone());
        Some((written, caller))
    }
}

/// Remembers what comes again and again: callers, the host, the second.
pub(super) struct Written {
    callers: Callers,
    places: Vec<Option<(Arc<[u8]>, Caller)>>,
    host: Option<Host>,
    /// A time as written, up to its second, and what it means.
    second: ([u8; 19], Time),
}

impl Written {
    /// Those that it shares with others.
    pub(super) fn callers(&self) -> Callers {
        self.callers.clone()
    }

    pub(super) fn new(callers: Callers) -> Self {
        Self {
            callers,
            places: std::iter::repeat_with(|| None).take(PLACES).collect(),
            host: None,
            second: ([0; 19], Time(0)),
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

    /// The exchange that the first line holds, and its length: so its end need not be looked for, which takes longer than reading a part of it.
    /// What follows it must be seen to be that end.
    pub(super) fn first_exchange(
        &mut self,
        lines: &[u8],
        spares: &mut Vec<Arc<Record>>,
    ) -> Option<(Arc<Record>, usize)> {
        let mut rest = Rest(lines);
        rest.skip(b"{\"record\":\"exchange\",\"schema\":1,\"time\":\"")?;
        let time = self.time(&mut rest)?;
        rest.skip(b",\"host\":\"")?;
        let host = rest.text()?;
        rest.skip(CALLER)?;
        let place = self.caller(&mut rest)?;
        let line = Line {
            time,
            connection: connection(&mut rest)?,
            request: request(&mut rest)?,
            response: response(&mut rest)?,
            outcome: outcome(&mut rest)?,
            latency_ns: after!(rest, b",\"latency_ns\":", nullable_number),
            waited_ns: optional!(rest, b",\"waited_ns\":", nullable_number),
            connect_ns: optional!(rest, b",\"connect_ns\":", nullable_number),
            closed_by: match optional!(rest, b",\"closed_by\":", nullable_text) {
                Some(end) => Some(end_of(end)?),
                None => None,
            },
        };
        rest.skip(b"}")?;
        let length = lines.len() - rest.0.len();
        let host = match &self.host {
            Some(known) if **known == *host => known,
            _ => self.host.insert(host.into()),
        };
        let (_, caller) = self.places.get(place)?.as_ref()?;
        let mut record = spares.pop().unwrap_or_else(|| Arc::new(Record::Exchange(blank(host))));
        // One that somebody still reads is no spare.
        match Arc::get_mut(&mut record) {
            Some(Record::Exchange(exchange)) => line.fill(exchange, host, caller),
            _ => {
                let mut exchange = blank(host);
                line.fill(&mut exchange, host, caller);
                record = Arc::new(Record::Exchange(exchange));
            }
        }
        Some((record, length))
    }

    /// A time whose text up to the second is that of the line before needs its fraction only.
    fn time(&mut self, rest: &mut Rest<'_>) -> Option<Time> {
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
        if self.second.0 != *second {
            let time: Time = format!("{}Z", std::str::from_utf8(second).ok()?).parse().ok()?;
            // Times before 1970 and leap seconds are not the sum of their parts.
            if time.0 < SECOND || second[17..] > b"59"[..] {
                return None;
            }
            self.second = (*second, time);
        }
        Some(self.second.1.plus_ns(ns))
    }

    /// Where in `places` the caller stands that the line goes on with.
    fn caller(&mut self, rest: &mut Rest<'_>) -> Option<usize> {
        let mut hasher = FxHasher::default();
        rest.0.first_chunk::<FIRST_BYTES>()?.hash(&mut hasher);
        let place = hasher.finish() as usize % (PLACES / 2) * 2;
        for place in [place, place + 1] {
            if let Some((written, _)) = self.places.get(place)?
                && let Some(behind) = rest.0.strip_prefix(&**written)
                && behind.starts_with(BEHIND_CALLER)
            {
                rest.0 = behind;
                return Some(place);
            }
        }
        // Not beyond this line.
        let line = memchr::memchr(b'\n', rest.0).map_or(rest.0, |end| &rest.0[..end]);
        let (written, behind) = rest.0.split_at(BEHIND_CALLER_FINDER.find(line)?);
        let known = self.callers.get(written)?;
        // The one that was found last moves over, and pushes out the one before.
        self.places.swap(place, place + 1);
        *self.places.get_mut(place)? = Some(known);
        rest.0 = behind;
        Some(place)
    }
}

/// The caller in what is written between `"process":` and the connection.
fn caller(written: &[u8]) -> Option<Caller> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Part {
        process: Option<Arc<Process>>,
        container: Option<Arc<Container>>,
    }
    let object = [b"{\"process\":", written, b"}"].concat();
    let Part { process, container } = serde_json::from_slice(&object).ok()?;
    Some(Caller { process, container })
}

/// Where the first byte stands that ends a text, or that plain text doesn't have: quotes, backslashes, control characters, all but ASCII.
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

/// What is left of a line.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    /// Passes over what must stand here.
    #[inline(always)]
    fn skip<const N: usize>(&mut self, expected: &[u8; N]) -> Option<()> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        (first == expected).then(|| self.0 = rest)
    }

    /// Up to the closing quote, the opening one is passed already: plain ASCII, sixteen bytes at a time.
    #[inline(always)]
    fn text(&mut self) -> Option<&'a str> {
        let mut at = 0;
        while at <= MAX_TEXT_BYTES {
            let block = self.0.get(at..)?.first_chunk()?;
            if let Some(first) = first_special(block) {
                let (text, rest) = self.0.split_at(at + first);
                self.0 = rest.strip_prefix(b"\"")?;
                // SAFETY: bytes above 0x7f are special, and no special byte stands before the end: the text is ASCII.
                return Some(unsafe { std::str::from_utf8_unchecked(text) });
            }
            at += block.len();
        }
        None
    }

    #[inline(always)]
    fn nullable_text(&mut self) -> Option<Option<&'a str>> {
        if self.skip(b"null").is_some() {
            return Some(None);
        }
        self.skip(b"\"")?;
        self.text().map(Some)
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

/// An exchange whose texts still stand in the line.
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
}

struct LineResponse<'a> {
    status: Option<u16>,
    ttl: Option<u8>,
    delivered: Option<bool>,
    server: Option<&'a str>,
    retransmits: u32,
    via_proxy: Option<bool>,
    icmp: Option<&'a str>,
    length: Option<u64>,
}

#[inline(always)]
fn connection<'a>(rest: &mut Rest<'a>) -> Option<LineConnection<'a>> {
    rest.skip(BEHIND_CALLER)?;
    let connection = LineConnection {
        id: after!(rest, b"\"id\":\"", text),
        local: after!(rest, b",\"local\":", nullable_text),
        remote: after!(rest, b",\"remote\":\"", text),
        exchange: after!(rest, b",\"exchange\":", small),
        interface: optional!(rest, b",\"interface\":", nullable_text),
        cgroup: optional!(rest, b",\"cgroup\":", nullable_text),
        netns: optional!(rest, b",\"netns\":", nullable_number),
        redirected_to: optional!(rest, b",\"redirected_to\":", nullable_text),
    };
    rest.skip(b"}").map(|()| connection)
}

#[inline(always)]
fn request<'a>(rest: &mut Rest<'a>) -> Option<LineRequest<'a>> {
    rest.skip(b",\"request\":{")?;
    let request = LineRequest {
        method: after!(rest, b"\"method\":", nullable_text),
        path: after!(rest, b",\"path\":", nullable_text),
        dialect: dialect(after!(rest, b",\"dialect\":\"", text))?,
        imds_version: match after!(rest, b",\"imds_version\":", nullable_text) {
            Some(name) => Some(imds_version(name)?),
            None => None,
        },
        token: after!(rest, b",\"token\":", nullable_text),
        token_ttl_s: after!(rest, b",\"token_ttl_s\":", nullable_number),
        user_agent: after!(rest, b",\"user_agent\":", nullable_text),
        ttl: after!(rest, b",\"ttl\":", nullable_number),
        forwarded: after!(rest, b",\"forwarded\":", boolean),
        retransmits: optional!(rest, b",\"retransmits\":", small),
        ttl_on_wire: optional!(rest, b",\"ttl_on_wire\":", nullable_boolean),
        hops: optional!(rest, b",\"hops\":", nullable_number),
    };
    rest.skip(b"}").map(|()| request)
}

#[inline(always)]
fn response<'a>(rest: &mut Rest<'a>) -> Option<Option<LineResponse<'a>>> {
    rest.skip(b",\"response\":")?;
    if rest.skip(b"null").is_some() {
        return Some(None);
    }
    let response = LineResponse {
        status: after!(rest, b"{\"status\":", nullable_number),
        ttl: after!(rest, b",\"ttl\":", nullable_number),
        delivered: after!(rest, b",\"delivered\":", nullable_boolean),
        server: after!(rest, b",\"server\":", nullable_text),
        retransmits: optional!(rest, b",\"retransmits\":", small),
        icmp: optional!(rest, b",\"icmp\":", nullable_text),
        via_proxy: optional!(rest, b",\"via_proxy\":", nullable_boolean),
        length: optional!(rest, b",\"length\":", nullable_number),
    };
    rest.skip(b"}").map(|()| Some(response))
}

fn end_of(name: &str) -> Option<End> {
    match name {
        "client" => Some(End::Client),
        "server" => Some(End::Server),
        _ => None,
    }
}

fn outcome(rest: &mut Rest<'_>) -> Option<ExchangeOutcome> {
    use ExchangeOutcome::{Answered, Closed, Lost, Open, Reset, Unanswered};
    rest.skip(b",\"outcome\":\"")?;
    if rest.skip(b"answered\"").is_some() {
        return Some(Answered);
    }
    match rest.text()? {
        "lost" => Some(Lost),
        "unanswered" => Some(Unanswered),
        "reset" => Some(Reset),
        "closed" => Some(Closed),
        "open" => Some(Open),
        _ => None,
    }
}

#[inline(always)]
fn imds_version(name: &str) -> Option<ImdsVersion> {
    Some(match name.as_bytes() {
        b"v2" => ImdsVersion::V2,
        b"v1" => ImdsVersion::V1,
        b"token" => ImdsVersion::Token,
        b"other" => ImdsVersion::Other,
        _ => return None,
    })
}

fn dialect(name: &str) -> Option<Dialect> {
    Some(match name {
        "aws" => Dialect::Aws,
        "gcp" => Dialect::Gcp,
        "azure" => Dialect::Azure,
        "oracle" => Dialect::Oracle,
        "openstack" => Dialect::Openstack,
        "alibaba" => Dialect::Alibaba,
        "digitalocean" => Dialect::Digitalocean,
        "hetzner" => Dialect::Hetzner,
        "unknown" => Dialect::Unknown,
        _ => return None,
    })
}

impl Line<'_> {
    /// Writes over every field.
    fn fill(&self, exchange: &mut Exchange, new_host: &Host, caller: &Caller) {
        let Exchange {
            record: _,
            schema: _,
            time,
            host,
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
        share(process, caller.process.as_ref());
        share(container, caller.container.as_ref());
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
        put_nullable(icmp, self.icmp);
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

/// Leaves the count of references alone where it is the same already: other threads have it in their caches.
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
fn blank(host: &Host) -> Exchange {
    Exchange {
        record: Kind::Exchange,
        schema: SCHEMA,
        time: Time(0),
        host: host.clone(),
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
        },
        response: None,
        outcome: ExchangeOutcome::Open,
        latency_ns: None,
        waited_ns: None,
        connect_ns: None,
        closed_by: None,
    }
}

/// Whether a record may be kept to be filled anew: it would not hold on to much memory.
pub(super) fn is_spare(record: &Record) -> bool {
    let Record::Exchange(exchange) = record else {
        return false;
    };
    let Exchange {
        connection, request, ..
    } = exchange;
    let optional = |text: &Option<String>| text.as_ref().map_or(0, String::capacity);
    let of_response = |text: fn(&Response) -> &Option<String>| {
        exchange
            .response
            .as_ref()
            .map_or(0, |response| optional(text(response)))
    };
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
        of_response(|response| &response.server),
        of_response(|response| &response.icmp),
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

    /// Never says anything else than serde; gives whether it said something.
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

    fn exchanges() -> impl Strategy<Value = Exchange> {
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
            prop::sample::select(vec![Dialect::Aws, Dialect::Gcp, Dialect::Openstack, Dialect::Unknown]),
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
            nullable(text()),
        ));
        let times = (
            0..2_000_000_000_000_000_000_u64,
            nullable(any::<u64>()),
            nullable(any::<u64>()),
            nullable(prop::sample::select(vec![End::Client, End::Server])),
        );
        (nullable(process()), connection, request, response, times, text()).prop_map(
            |(process, connection, request, response, times, host)| {
                let mut exchange = blank(&host.as_str().into());
                exchange.time = Time(times.0);
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
                exchange.response = response.map(|(status, ttl, delivered, server, retransmits, icmp)| Response {
                    status,
                    ttl,
                    delivered,
                    server,
                    retransmits,
                    via_proxy: None,
                    icmp,
                    length: status.map(u64::from),
                });
                exchange
            },
        )
    }

    proptest! {
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
