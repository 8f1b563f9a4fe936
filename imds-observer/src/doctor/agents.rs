//! Are the credential agents of this host set up: EKS Pod Identity, ECS? A host without any sign of them has no check of this kind.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::Path;

use super::check::{Check, CheckState};
use super::firewall;
use crate::host::routes::{Routed, Routing};
use crate::imds::endpoint_at;
use crate::record::{Code, Endpoint};

/// Link that the Pod Identity Agent makes, with its addresses.
const POD_IDENTITY_LINK: &str = "pod-id-link0";
const POD_IDENTITY: &str = "pod-identity-agent";
const ECS: &str = "ecs-agent";
/// CheckState and configuration of the ECS agent.
const ECS_SIGNS: [&str; 2] = ["/var/lib/ecs", "/etc/ecs"];
/// Port of the ECS agent to which its NAT rules lead.
const ECS_PORT: u16 = 51679;
/// `TCP_LISTEN` in `/proc/net/tcp`.
const LISTEN: &str = "0A";

pub(super) fn checks(endpoints: &[IpAddr]) -> Vec<Check> {
    let of = |endpoint: Endpoint| -> Vec<IpAddr> {
        let wanted = |address: &&IpAddr| endpoint_at(**address) == endpoint;
        endpoints.iter().filter(wanted).copied().collect()
    };
    let listeners = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let mut checks = Vec::new();
    let pod_identity = of(Endpoint::EksPodIdentity);
    if !pod_identity.is_empty() && nix::net::if_::if_nametoindex(POD_IDENTITY_LINK).is_ok() {
        let address = pod_identity.iter().find(|address| address.is_ipv4());
        checks.push(self::pod_identity(
            address.is_none_or(|address| is_local(*address)),
            listens(&listeners, SocketAddrV4::new(Ipv4Addr::new(169, 254, 170, 23), 80)),
        ));
    }
    let ecs = of(Endpoint::Ecs);
    if !ecs.is_empty() && ECS_SIGNS.iter().any(|sign| Path::new(sign).exists()) {
        let listens = listens(&listeners, SocketAddrV4::new(Ipv4Addr::LOCALHOST, ECS_PORT));
        checks.push(self::ecs(firewall::redirections(&ecs), listens));
    }
    checks
}

fn is_local(address: IpAddr) -> bool {
    Routing::open()
        .and_then(|mut routing| routing.route_to(address))
        .is_ok_and(|routed| matches!(routed, Routed::Local))
}

/// Whether a socket listens at this address, or at all addresses, as `/proc/net/tcp` lists it.
fn listens(table: &str, at: SocketAddrV4) -> bool {
    let hex = |ip: Ipv4Addr| format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), at.port());
    let wanted = [hex(*at.ip()), hex(Ipv4Addr::UNSPECIFIED)];
    table.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        fields
            .next()
            .is_some_and(|local| wanted.iter().any(|wanted| wanted == local))
            && fields.nth(1) == Some(LISTEN)
    })
}

fn pod_identity(has_address: bool, listens: bool) -> Check {
    let fault = |found: String| {
        Check::new(POD_IDENTITY, CheckState::Fault, found)
            .about(POD_IDENTITY_LINK)
            .meaning("pods with a Pod Identity association get no credentials on this node")
            .remedied(
                "Check the agent's log, and restart its pod on this node. It creates the link and its addresses when it starts.",
                [
                    "kubectl -n kube-system logs -l app.kubernetes.io/name=eks-pod-identity-agent --tail=50".to_owned(),
                    format!("ip addr show dev {POD_IDENTITY_LINK}"),
                ],
            )
            .reported_as(Code::ContainerCredentialsFailed)
    };
    match (has_address, listens) {
        (false, _) => fault("the link exists, and 169.254.170.23 is not an address of this host".to_owned()),
        (true, false) => fault("the link has the agent's address, and nothing listens on port 80 there".to_owned()),
        (true, true) => Check::ok(POD_IDENTITY, "the agent listens on 169.254.170.23 port 80").about(POD_IDENTITY_LINK),
    }
}

/// `rules`: NAT rules for the endpoint; `None`: they can't be read.
fn ecs(rules: Option<Vec<String>>, listens: bool) -> Check {
    let agent = if listens { "listens" } else { "doesn't listen" };
    let Some(rules) = rules else {
        return Check::unread(ECS, "the NAT rules can't be read (needs CAP_NET_ADMIN)");
    };
    let to_agent = rules.iter().any(|rule| rule.contains(&ECS_PORT.to_string()));
    let fault = |found: String| {
        Check::new(ECS, CheckState::Fault, found)
            .meaning("tasks on this instance get no credentials and no task metadata")
            .remedied(
                "Restart the ECS agent: ecs-init creates the rules when it starts the agent. A firewall manager that reloads its rules deletes them.",
                [
                    "systemctl restart ecs".to_owned(),
                    "iptables-save -t nat | grep -n 169.254.170.2".to_owned(),
                ],
            )
            .reported_as(Code::ContainerCredentialsFailed)
    };
    match (to_agent, listens) {
        (true, true) => Check::ok(
            ECS,
            format!("a NAT rule redirects 169.254.170.2 to port {ECS_PORT}, where the agent listens"),
        ),
        (true, false) => fault(format!(
            "a NAT rule redirects 169.254.170.2 to port {ECS_PORT}, where no program listens"
        )),
        (false, _) => fault(format!(
            "no NAT rule redirects 169.254.170.2 to port {ECS_PORT}; the agent {agent} there"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read_from_the_kernels_table() {
        let table = "  sl  local_address rem_address   st\n   0: 17AAFEA9:0050 00000000:0000 0A 00000000:00000000\n   1: 0100007F:C9DF 0100007F:9C40 01 00000000:00000000\n";
        assert!(listens(table, "169.254.170.23:80".parse().unwrap()));
        assert!(!listens(table, "169.254.170.23:81".parse().unwrap()));
        assert!(
            !listens(table, "127.0.0.1:51679".parse().unwrap()),
            "a connection is no listener"
        );
        let any = "   0: 00000000:C9DF 00000000:0000 0A\n";
        assert!(listens(any, "127.0.0.1:51679".parse().unwrap()));
    }

    #[test]
    fn an_agent_needs_its_address_and_its_listener() {
        assert_eq!(pod_identity(true, true).state, CheckState::Ok);
        assert_eq!(pod_identity(true, false).state, CheckState::Fault);
        assert_eq!(pod_identity(false, true).state, CheckState::Fault);
        let rule = || {
            Some(vec![
                "ip nat OUTPUT redirects (redirect to 51679) requests of this host".to_owned(),
            ])
        };
        assert_eq!(ecs(rule(), true).state, CheckState::Ok);
        assert_eq!(ecs(rule(), false).state, CheckState::Fault);
        assert_eq!(ecs(Some(Vec::new()), true).state, CheckState::Fault);
        assert_eq!(ecs(None, true).state, CheckState::Unknown);
    }
}
