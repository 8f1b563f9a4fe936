//! Which running processes would ask a proxy in the place of IMDS?
//!
//! Of a process's environment only the proxy variables are looked at, and of their values only scheme, host and port are ever
//! shown: they hold user and password.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::Path;

use super::check::{Check, CheckState};
use crate::host::routes::covers;
use crate::imds::endpoint_at;
use crate::record::{Code, Endpoint};

const NAME: &str = "proxy";

/// Variables that HTTP clients read for `http://` addresses, the more specific first.
const PROXIES: [&str; 4] = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];
const EXCEPTIONS: [&str; 2] = ["no_proxy", "NO_PROXY"];
/// Processes that are looked at.
const MAX_PROCESSES: usize = 32_768;
/// Limit of reported groups of similar processes.
const MAX_REPORTED: usize = 32;
/// Processes that are named of each group.
const MAX_NAMED: usize = 8;
/// Of one environment; the kernel's own limit for arguments and environment together is larger, but no proxy is configured beyond.
const MAX_ENVIRONMENT: u64 = 1 << 20;

pub(super) fn checks(endpoints: &[IpAddr]) -> Vec<Check> {
    match scan(Path::new("/proc"), endpoints) {
        Ok(scan) => scan.checks(),
        Err(error) => vec![Check::unread(NAME, format!("/proc: {error}"))],
    }
}

#[derive(Debug, Default)]
struct Scan {
    looked_at: usize,
    refused: usize,
    incomplete: bool,
    /// By what they have in common.
    groups: BTreeMap<Group, Vec<u32>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    comm: String,
    variable: &'static str,
    proxy: String,
    /// Endpoints that the exceptions leave out.
    concerned: Vec<IpAddr>,
}

fn scan(proc: &Path, endpoints: &[IpAddr]) -> io::Result<Scan> {
    let own = std::process::id();
    let mut scan = Scan::default();
    for entry in fs::read_dir(proc)? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == own {
            continue;
        }
        if scan.looked_at == MAX_PROCESSES {
            scan.incomplete = true;
            break;
        }
        let directory = proc.join(pid.to_string());
        let environment = match environment(&directory) {
            Ok(environment) => environment,
            // It has ended in the meantime.
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
                continue;
            }
            Err(_) => {
                scan.refused += 1;
                continue;
            }
        };
        scan.looked_at += 1;
        if let Some((variable, proxy, concerned)) = proxied(&environment, endpoints) {
            let comm = fs::read_to_string(directory.join("comm")).unwrap_or_default();
            let group = Group {
                comm: comm.trim_end().to_owned(),
                variable,
                proxy,
                concerned,
            };
            scan.groups.entry(group).or_default().push(pid);
        }
    }
    Ok(scan)
}

fn environment(process: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(process.join("environ"))?
        .take(MAX_ENVIRONMENT)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Scan {
    fn checks(self) -> Vec<Check> {
        let mut checks = Vec::new();
        let more = self.groups.len().saturating_sub(MAX_REPORTED);
        for (group, pids) in self.groups.iter().take(MAX_REPORTED) {
            checks.push(group.check(pids));
        }
        if more > 0 {
            checks.push(Check::new(
                NAME,
                CheckState::Note,
                format!("{more} more groups of processes have such a proxy"),
            ));
        }
        if checks.is_empty() {
            let found = format!("none of {} processes has a proxy set for IMDS", self.looked_at);
            checks.push(Check::ok(NAME, found));
        }
        if self.refused > 0 || self.incomplete {
            let why = if self.incomplete {
                format!("more than {MAX_PROCESSES} processes: some were not checked")
            } else {
                format!(
                    "{} of {} process environments are not readable (needs CAP_SYS_PTRACE)",
                    self.refused,
                    self.refused + self.looked_at
                )
            };
            checks.push(Check::unread(NAME, why));
        }
        checks
    }
}

impl Group {
    fn check(&self, pids: &[u32]) -> Check {
        let named: Vec<String> = pids.iter().take(MAX_NAMED).map(ToString::to_string).collect();
        let more = match pids.len().saturating_sub(MAX_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let concerned: Vec<String> = self.concerned.iter().map(ToString::to_string).collect();
        let v4 = self.concerned.iter().any(IpAddr::is_ipv4);
        let found = format!(
            "{}={} without {} in no_proxy, in the environment of {} (pid {}{more})",
            self.variable,
            self.proxy,
            concerned.join(" and "),
            self.comm,
            named.join(", "),
        );
        // Few clients ask over IPv6.
        let state = if v4 { CheckState::Fault } else { CheckState::Note };
        let exceptions: Vec<String> = self
            .concerned
            .iter()
            .map(|endpoint| {
                if endpoint.is_ipv6() {
                    format!("[{endpoint}]")
                } else {
                    endpoint.to_string()
                }
            })
            .collect();
        let of_agents = self.concerned.iter().all(|endpoint| endpoint_at(*endpoint).is_agent());
        Check::new(NAME, if of_agents { CheckState::Fault } else { state }, found)
            .about(&self.comm)
            .meaning(if of_agents {
                "requests for the credentials of this pod or task go to the proxy, which can't reach the agent of this host. SDKs that bypass proxies for these addresses are not affected"
            } else {
                "requests for tokens and credentials go to the proxy, which returns its own credentials or none; IMDS answers a PUT with X-Forwarded-For with 403. SDKs that bypass proxies for IMDS are not affected"
            })
            .remedied(
                "Exclude the endpoints from the proxy in the environment of the process.",
                [format!("export no_proxy=\"$no_proxy,{}\"", exceptions.join(","))],
            )
            .reported_as(if of_agents {
                Code::ContainerCredentialsFailed
            } else {
                Code::ProxiedRequest
            })
    }
}

/// The variable that counts, what may be shown of its value, and the endpoints that go through it.
fn proxied(environment: &[u8], endpoints: &[IpAddr]) -> Option<(&'static str, String, Vec<IpAddr>)> {
    let value = |name: &str| {
        environment
            .split(|byte| *byte == 0)
            .filter_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
            .map(String::from_utf8_lossy)
            .find(|value| !value.trim().is_empty())
    };
    let (variable, proxy) = PROXIES.iter().find_map(|name| Some((*name, value(name)?)))?;
    let exceptions: Vec<_> = EXCEPTIONS.iter().filter_map(|name| value(name)).collect();
    let excepted = |endpoint: &IpAddr| exceptions.iter().any(|list| excepts(list, *endpoint));
    let concerned: Vec<IpAddr> = endpoints
        .iter()
        .copied()
        .filter(|endpoint| asks(*endpoint, &value) && !excepted(endpoint))
        .collect();
    (!concerned.is_empty()).then(|| (variable, shown(&proxy), concerned))
}

/// Whether a process with this environment asks the endpoint: an agent only if the environment names it.
fn asks<'a>(endpoint: IpAddr, value: &impl Fn(&str) -> Option<Cow<'a, str>>) -> bool {
    match endpoint_at(endpoint) {
        Endpoint::EksPodIdentity => {
            value("AWS_CONTAINER_CREDENTIALS_FULL_URI").is_some_and(|uri| uri.contains(&endpoint.to_string()))
        }
        Endpoint::Ecs => value("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").is_some(),
        Endpoint::Imds | Endpoint::Other => true,
    }
}

/// Whether a list of exceptions holds this address: by itself, with brackets or port, within a network, or everything.
fn excepts(list: &str, endpoint: IpAddr) -> bool {
    list.split([',', ' ']).map(str::trim).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let Some((prefix, len)) = entry.split_once('/') {
            return match (prefix.parse::<IpAddr>(), len.parse::<u8>()) {
                (Ok(prefix), Ok(len)) => covers(prefix, len, endpoint),
                _ => false,
            };
        }
        let host = match entry.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            // A port is for IPv4 only: IPv6 without brackets is all colons.
            None if entry.matches(':').count() == 1 => entry.split(':').next().unwrap_or_default(),
            None => entry,
        };
        host.parse::<IpAddr>().is_ok_and(|address| address == endpoint)
    })
}

/// Scheme, host and port of a proxy, without user, password, path and the rest.
fn shown(proxy: &str) -> String {
    const MAX: usize = 100;
    const SCHEMES: [&str; 6] = ["http", "https", "socks4", "socks4a", "socks5", "socks5h"];
    // Without a scheme, what is before :// is a part of user or password.
    let (scheme, rest) = proxy
        .split_once("://")
        .filter(|(scheme, _)| SCHEMES.contains(scheme))
        .unwrap_or(("", proxy));
    // Whatever is before the last @ may be a password, slashes or not.
    let authority = rest.rsplit_once('@').map_or(rest, |(_, authority)| authority);
    let host = authority.split(['/', '?', '#']).next().unwrap_or_default().trim();
    let plain = |text: &str| {
        text.len() <= MAX
            && text
                .chars()
                .all(|character| character.is_ascii_alphanumeric() || "-._:[]".contains(character))
    };
    // If the host is missing, the port may be a password.
    let port = host.rsplit_once(']').map_or(host, |(_, after)| after);
    let port_is_number = port
        .split_once(':')
        .is_none_or(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    if host.is_empty() || !plain(host) || !port_is_number {
        return "(value not shown)".to_owned();
    }
    if scheme.is_empty() {
        host.to_owned()
    } else {
        format!("{scheme}://{host}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imds::DEFAULT_ENDPOINTS;
    use proptest::prelude::*;

    #[test]
    fn credentials_of_a_proxy_are_never_shown() {
        for (value, expected) in [
            ("http://proxy.internal:3128", "http://proxy.internal:3128"),
            ("http://user:hunter2@proxy:3128/", "http://proxy:3128"),
            ("user:hunter2@proxy:3128", "proxy:3128"),
            ("http://user:hunt/er2@proxy", "http://proxy"),
            ("http://user:hunt@er2@proxy", "http://proxy"),
            ("http://proxy/?password=hunter2", "http://proxy"),
            ("http://[fd00::1]:80", "http://[fd00::1]:80"),
            ("http://user:hunter2@", "(value not shown)"),
            ("hunter2 secret", "(value not shown)"),
            ("user:hunter2://@proxy", "proxy"),
            ("user:hunter2://x", "(value not shown)"),
            ("http://user:hunter2", "(value not shown)"),
        ] {
            assert_eq!(shown(value), expected);
        }
    }

    #[test]
    fn exceptions_are_understood_as_clients_do() {
        let v4 = DEFAULT_ENDPOINTS[0];
        let v6 = DEFAULT_ENDPOINTS[1];
        for list in [
            "*",
            "a,169.254.169.254",
            "169.254.169.254:80",
            "169.254.0.0/16",
            "x 169.254.169.254",
        ] {
            assert!(excepts(list, v4), "{list}");
        }
        for list in [
            "",
            "localhost,127.0.0.1",
            "169.254.169.25",
            "10.0.0.0/8",
            "169.254.169.254.example.com",
        ] {
            assert!(!excepts(list, v4), "{list}");
        }
        for list in [
            "fd00:ec2::254",
            "[fd00:ec2::254]",
            "[fd00:ec2::254]:80",
            "fd00:ec2::/32",
        ] {
            assert!(excepts(list, v6) && !excepts(list, v4), "{list}");
        }
    }

    #[test]
    fn the_environment_is_read_as_the_kernel_shows_it() {
        let found = |environment: &[u8]| proxied(environment, &DEFAULT_ENDPOINTS);
        let pod = b"http_proxy=http://p:1\0no_proxy=169.254.169.254,fd00:ec2::254\0AWS_CONTAINER_CREDENTIALS_FULL_URI=http://169.254.170.23/v1/credentials\0";
        assert_eq!(found(pod).unwrap().2, ["169.254.170.23".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            found(&pod[..60]),
            None,
            "a process without the agent's address doesn't ask it"
        );
        assert_eq!(found(b"PATH=/bin\0xhttp_proxy=http://p\0"), None);
        assert_eq!(found(b"http_proxy=\0"), None);
        assert_eq!(found(b"https_proxy=http://p:1\0"), None, "not for http");
        let (variable, proxy, concerned) = found(b"HTTP_PROXY=http://u:secret@p:1\0NO_PROXY=fd00:ec2::254\0").unwrap();
        assert_eq!((variable, proxy.as_str()), ("HTTP_PROXY", "http://p:1"));
        assert_eq!(concerned, [DEFAULT_ENDPOINTS[0]]);
        assert_eq!(found(b"http_proxy=p:1\0no_proxy=169.254.169.254,fd00:ec2::254\0"), None);
    }

    proptest! {
        #[test]
        fn no_password_is_shown(user in "[a-z]{1,8}", password in "[ -~]{1,20}", host in "[a-z]{1,12}") {
            // It may contain anything, including a slash or an @.
            let text = shown(&format!("http://{user}:{password}@{host}:3128/"));
            prop_assert_eq!(text, format!("http://{host}:3128"));
        }

        #[test]
        fn any_environment_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = proxied(&bytes, &DEFAULT_ENDPOINTS);
        }
    }
}
