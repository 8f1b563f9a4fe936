//! What can the observer see on this kernel, and what blocks this host from IMDS?
//!
//! One question a file. Each only reads: files, netlink, the state of BPF hooks. None sends a packet or changes anything, and
//! one that can't be answered leaves the others alone.

mod agents;
mod capabilities;
mod cards;
mod cgroups;
mod check;
mod firewall;
mod hooks;
mod kernel;
mod limits;
mod neighbours;
mod proxies;
mod routes;

use std::net::IpAddr;
use std::path::PathBuf;

use nix::sys::utsname::uname;
use serde::Serialize;

pub use check::{Check, CheckState};

use crate::bpf::cgroup2_mount;
use crate::host::{Uplink, Uplinks};
use crate::imds::beyond_this_host;

/// Options of the checks.
#[derive(Clone, Debug, Default)]
pub struct DoctorOptions {
    pub endpoints: Vec<IpAddr>,
    /// Uplinks; empty: those that route to the endpoints.
    pub interfaces: Vec<String>,
    /// Where programs would be attached; `None`: the root of cgroup2.
    pub cgroup: Option<PathBuf>,
}

/// NAT rules of this host that send requests for the endpoints elsewhere. `None`: the rules can't be read.
pub fn redirections(endpoints: &[IpAddr]) -> Option<Vec<String>> {
    firewall::redirections(endpoints)
}

/// All checks of one host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub version: &'static str,
    pub kernel: Option<String>,
    pub endpoints: Vec<String>,
    pub interfaces: Vec<String>,
    pub checks: Vec<Check>,
}

impl Report {
    /// Looks at the host and network namespace that this runs in.
    pub fn of_this_host(options: &DoctorOptions) -> Self {
        let release = uname().ok().map(|name| name.release().to_string_lossy().into_owned());
        let cgroup = options.cgroup.clone().or_else(cgroup2_mount);
        let mut checks = Vec::new();
        let uplinks = uplinks(options, &mut checks);
        // First what clients meet, in the order in which they meet it; then what the observer needs.
        let beyond = beyond_this_host(&options.endpoints);
        checks.extend(proxies::checks(&options.endpoints));
        checks.extend(firewall::checks(&beyond));
        checks.extend(routes::checks(&beyond));
        checks.extend(neighbours::checks(&beyond));
        checks.extend(agents::checks(&options.endpoints));
        checks.extend(hooks::checks(&uplinks, cgroup.as_deref()));
        checks.extend(cards::checks(&uplinks));
        checks.extend(kernel::checks(release.as_deref()));
        checks.extend(limits::checks(release.as_deref().and_then(kernel::version)));
        checks.extend(cgroups::checks(options.cgroup.as_deref()));
        checks.extend(capabilities::checks());
        Self {
            version: env!("CARGO_PKG_VERSION"),
            kernel: release,
            endpoints: options.endpoints.iter().map(ToString::to_string).collect(),
            interfaces: uplinks.into_iter().map(|uplink| uplink.name).collect(),
            checks,
        }
    }

    pub fn count(&self, state: CheckState) -> usize {
        self.checks.iter().filter(|check| check.state == state).count()
    }
}

fn uplinks(options: &DoctorOptions, checks: &mut Vec<Check>) -> Vec<Uplink> {
    let name = "uplinks";
    if !options.interfaces.is_empty() {
        let mut found = Vec::new();
        for interface in &options.interfaces {
            match nix::net::if_::if_nametoindex(interface.as_str()) {
                Ok(ifindex) => found.push(Uplink {
                    ifindex,
                    name: interface.clone(),
                }),
                Err(error) => checks.push(Check::unread(name, error.desc()).about(interface)),
            }
        }
        return found;
    }
    let beyond = beyond_this_host(&options.endpoints);
    if beyond.is_empty() {
        return Vec::new();
    }
    match Uplinks::discover(&beyond) {
        Ok(found) if found.is_empty() => {
            checks.push(
                Check::new(name, CheckState::Missing, "no interface has a route to the endpoints")
                    .blinding("TTLs on arrival, lost responses and the packet quota, until an uplink appears")
                    .remedied("See the check `route`, or name an interface with --interface.", []),
            );
            found
        }
        Ok(found) => {
            let names: Vec<&str> = found.iter().map(|uplink| uplink.name.as_str()).collect();
            checks.push(Check::ok(name, names.join(", ")));
            found
        }
        Err(error) => {
            checks.push(Check::unread(name, error));
            Vec::new()
        }
    }
}
