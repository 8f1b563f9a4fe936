//! Which firewall rules stop requests to the endpoints, or the answers, and whose?

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::path::PathBuf;

use super::check::{Check, CheckState};
use super::routes::interface;
use crate::bpf::cgroup2_mount;
use crate::bpf::occupied::{CgroupHook, cgroup_occupants};
use crate::host::firewall::packet::Packet;
use crate::host::firewall::walk::{Condition, Outcome, Stop, walk};
use crate::host::firewall::{Engine, Family, FirewallError, Hook, Ruleset, legacy, nft};
use crate::host::routes::{Routed, Routing};
use crate::record::Code;

const NAME: &str = "firewall";
/// Rules that a finding names.
const MAX_REDIRECTIONS: usize = 8;

/// A way through this host.
struct Way {
    what: &'static str,
    hooks: &'static [Hook],
    /// Whether these are packets that this host forwards, for example for pods.
    forwarded: bool,
    response: bool,
}

const WAYS: [Way; 4] = [
    Way {
        what: "requests of this host",
        hooks: &[Hook::Output, Hook::Postrouting],
        forwarded: false,
        response: false,
    },
    Way {
        what: "responses to this host",
        hooks: &[Hook::Prerouting, Hook::Input],
        forwarded: false,
        response: true,
    },
    Way {
        what: "requests that this host forwards (from pods)",
        hooks: &[Hook::Prerouting, Hook::Forward, Hook::Postrouting],
        forwarded: true,
        response: false,
    },
    Way {
        what: "responses that this host forwards (to pods)",
        hooks: &[Hook::Prerouting, Hook::Forward, Hook::Postrouting],
        forwarded: true,
        response: true,
    },
];

pub(super) fn checks(endpoints: &[IpAddr]) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut ruleset = Ruleset::default();
    let mut engines = Vec::new();
    if nftables_present() {
        match nft::read() {
            Ok(rules) => {
                engines.push("nftables");
                ruleset.extend(rules);
            }
            Err(error) if nft::absent(&error) => engines.push("nftables"),
            Err(error) => checks.push(unread(&error).about("nftables")),
        }
    } else {
        engines.push("nftables");
    }
    match legacy::read() {
        Ok(rules) => {
            engines.push("legacy iptables");
            ruleset.extend(rules);
        }
        Err(error) => checks.push(unread(&error).about("legacy iptables")),
    }
    if engines.is_empty() {
        return checks;
    }
    // Rules that were not read don't prove that none blocks.
    let all_read = checks.is_empty();
    let mut cgroups = Cgroups {
        root: cgroup2_mount(),
        paths: None,
    };
    for endpoint in endpoints {
        let (stops, chains, given_up) = stops(&ruleset, *endpoint, &mut cgroups);
        if stops.is_empty() && all_read {
            let found = format!(
                "no rule blocks requests or responses ({chains} chains of {} checked)",
                engines.join(" and ")
            );
            checks.push(Check::ok(NAME, found).about(endpoint));
        }
        checks.extend(stops);
        if given_up {
            checks.push(Check::unread(NAME, "too many rules; some were not evaluated").about(endpoint));
        }
    }
    if ruleset.left_out > 0 {
        let found = format!("{} chains at bridges or devices were not evaluated", ruleset.left_out);
        checks.push(Check::new(NAME, CheckState::Unknown, found));
    }
    checks
}

/// NAT rules that send requests for the endpoints elsewhere, each with the command that shows it. `None`: the rules can't be read.
pub(super) fn redirections(endpoints: &[IpAddr]) -> Option<Vec<String>> {
    let mut ruleset = Ruleset::default();
    let mut read = false;
    if nftables_present() {
        match nft::read() {
            Ok(rules) => {
                ruleset.extend(rules);
                read = true;
            }
            Err(error) => read = nft::absent(&error),
        }
    }
    if let Ok(rules) = legacy::read() {
        ruleset.extend(rules);
        read = true;
    }
    if !read {
        return None;
    }
    let mut cgroups = Cgroups {
        root: cgroup2_mount(),
        paths: None,
    };
    let mut found = Vec::new();
    for endpoint in endpoints {
        let (checks, ..) = stops(&ruleset, *endpoint, &mut cgroups);
        let redirections = checks
            .into_iter()
            // The same rule translates the responses back.
            .filter(|check| check.code == Some(Code::RedirectedLocally) && !check.found.contains(" responses "));
        for rule in redirections.map(|check| check.found) {
            if found.len() < MAX_REDIRECTIONS && !found.contains(&rule) {
                found.push(rule);
            }
        }
    }
    Some(found)
}

fn unread(error: &FirewallError) -> Check {
    let check = Check::unread(NAME, error);
    if matches!(error.errno(), Some(libc::EPERM | libc::EACCES)) {
        return check.remedied("Run with CAP_NET_ADMIN.", []);
    }
    check
}

/// Asking a kernel that has nftables as a module that isn't loaded would load it. Its symbols are there only with it.
fn nftables_present() -> bool {
    let Ok(symbols) = File::open("/proc/kallsyms") else {
        return true;
    };
    let mut symbols = BufReader::with_capacity(1 << 16, symbols);
    let mut line = Vec::new();
    while matches!(symbols.read_until(b'\n', &mut line), Ok(read) if read > 0) {
        if memchr::memmem::find(&line, b"nft_do_chain").is_some() {
            return true;
        }
        line.clear();
    }
    false
}

fn forwards(v6: bool) -> bool {
    let path = if v6 {
        "/proc/sys/net/ipv6/conf/all/forwarding"
    } else {
        "/proc/sys/net/ipv4/ip_forward"
    };
    fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
}

/// Names of cgroups by id, read when the first is asked for.
struct Cgroups {
    root: Option<PathBuf>,
    paths: Option<HashMap<u64, String>>,
}

impl Cgroups {
    fn path(&mut self, id: u64) -> Option<String> {
        let root = self.root.as_deref();
        let paths = self.paths.get_or_insert_with(|| {
            root.and_then(|root| cgroup_occupants(root, Some(root), &CgroupHook::ALL).ok())
                .map(|found| found.paths)
                .unwrap_or_default()
        });
        paths.get(&id).cloned()
    }
}

fn stops(ruleset: &Ruleset, endpoint: IpAddr, cgroups: &mut Cgroups) -> (Vec<Check>, usize, bool) {
    let hop = match Routing::open().and_then(|mut routing| routing.route_to(endpoint)) {
        Ok(Routed::Through(hop)) => Some(hop),
        _ => None,
    };
    let uplink = hop.as_ref().map(|hop| (interface(hop.ifindex), hop.ifindex));
    let source = hop.as_ref().and_then(|hop| hop.source);
    let nobody = Some((String::new(), 0));
    let forwards = forwards(endpoint.is_ipv6());
    let (mut checks, mut chains, mut given_up) = (Vec::new(), 0, false);
    for way in WAYS.iter().filter(|way| forwards || !way.forwarded) {
        let (iif, oif) = match (way.response, way.forwarded) {
            (false, false) => (nobody.clone(), uplink.clone()),
            (false, true) => (None, uplink.clone()),
            (true, false) => (uplink.clone(), nobody.clone()),
            (true, true) => (uplink.clone(), None),
        };
        let packet = Packet {
            endpoint,
            client: source.filter(|_| !way.forwarded),
            response: way.response,
            iif,
            oif,
            local: !way.forwarded && !way.response,
        };
        let walked = walk(ruleset, way.hooks, &packet);
        chains += walked.chains;
        given_up |= walked.given_up;
        for stop in walked.stops {
            let check = check(&stop, way, cgroups).about(&endpoint);
            // A rule of PREROUTING is met by both kinds of answers.
            if !checks.iter().any(|known: &Check| known.found == check.found) {
                checks.push(check);
            }
        }
    }
    (checks, chains, given_up)
}

fn check(stop: &Stop, way: &Way, cgroups: &mut Cgroups) -> Check {
    let texts = |conditions: &[Condition], joined: &str, cgroups: &mut Cgroups| {
        conditions
            .iter()
            .map(|condition| match condition.cgroup.and_then(|id| cgroups.path(id)) {
                Some(path) if condition.text.contains("not ") => format!("all cgroups except {path}"),
                Some(path) => format!("cgroup {path}"),
                None => condition.text.clone(),
            })
            .collect::<Vec<_>>()
            .join(joined)
    };
    let done = match &stop.outcome {
        Outcome::Dropped => "drops".to_owned(),
        Outcome::Rejected => "rejects".to_owned(),
        Outcome::Redirected(how) => format!("redirects ({how})"),
        Outcome::Queued => "queues to a user-space program".to_owned(),
    };
    let mut found = format!("{stop} {done} {}", way.what);
    if !stop.conditions.is_empty() {
        found = format!("{found}, for {}", texts(&stop.conditions, " and ", cgroups));
    }
    if !stop.unless.is_empty() {
        found = format!("{found}, except for {}", texts(&stop.unless, " or ", cgroups));
    }
    let reported = stop
        .conditions
        .iter()
        .chain(&stop.unless)
        .all(|condition| condition.reported);
    let state = match stop.outcome {
        Outcome::Queued => CheckState::Unknown,
        Outcome::Redirected(_) => CheckState::Note,
        _ if !reported => CheckState::Unknown,
        // A default of "nothing is forwarded" with exceptions: the usual setup of a container engine.
        _ if way.forwarded && !stop.unless.is_empty() => CheckState::Note,
        _ => CheckState::Fault,
    };
    let check = Check::new(NAME, state, found);
    if let Outcome::Redirected(_) = stop.outcome {
        return check
            .meaning("a metadata proxy or another program answers instead of IMDS")
            .remedied(
                "No action is needed if a metadata proxy is intended (kiam, kube2iam); otherwise delete the rule.",
                [show(stop)],
            )
            .reported_as(Code::RedirectedLocally);
    }
    let means = match stop.outcome {
        Outcome::Rejected => "clients fail at once with \"connection refused\" or \"no route to host\"",
        Outcome::Queued => "that program decides whether packets pass; while it isn't running they are dropped",
        _ => "clients wait for their timeout, then retry or fail",
    };
    check
        .meaning(means)
        .remedied(
            "Delete the rule, or accept packets to the endpoint in an earlier rule. No action is needed if the rule blocks IMDS on purpose.",
            [show(stop)],
        )
        .reported_as(Code::BlockedByFirewall)
}

/// The command that shows the rule.
fn show(stop: &Stop) -> String {
    let table = &stop.chain.table;
    match (table.engine, table.family) {
        (Engine::Nft, family) => format!("nft -a list chain {family} {} {}", table.name, stop.chain.name),
        (Engine::Legacy, Family::V6) => format!(
            "ip6tables-legacy -t {} -L {} -nv --line-numbers",
            table.name, stop.chain.name
        ),
        (Engine::Legacy, _) => format!(
            "iptables-legacy -t {} -L {} -nv --line-numbers",
            table.name, stop.chain.name
        ),
    }
}
