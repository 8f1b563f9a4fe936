//! Which address is the VPC resolver? Its packets share the link-local quota, and no packet shows it.

use std::net::IpAddr;
#[cfg(live)]
use std::{fs, net::Ipv4Addr, path::Path, sync::Arc};

#[cfg(live)]
use crate::record::VpcResolver;

/// The VPC resolver has the base address of the VPC + 2, and a VPC begins at a multiple of 256 unless it is smaller than that. 172.17.0.2 is the
/// first container of Docker's bridge, and a VPC with these addresses is advised against.
pub(super) fn may_be_resolver(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => match address.octets() {
            [172, 17, 0, 2] => false,
            [10, _, _, 2] | [172, 16..=31, _, 2] | [192, 168, _, 2] | [100, 64..=127, _, 2] => true,
            _ => false,
        },
        IpAddr::V6(_) => false,
    }
}

/// Files that name a host's resolvers. The first may name a stub resolver at a loopback address only; the others then name those behind it.
#[cfg(live)]
const FILES: [&str; 3] = [
    "etc/resolv.conf",
    "run/systemd/resolve/resolv.conf",
    "run/NetworkManager/no-stub-resolv.conf",
];

/// The VPC resolver that the host below `root` is configured with, if it is beyond the link-local addresses.
#[cfg(live)]
pub fn configured_resolver(root: &Path) -> Option<(Ipv4Addr, Arc<VpcResolver>)> {
    // A container without the host's files has those that its runtime copied from the host.
    let directories = [root, Path::new("/")];
    let count = if root == Path::new("/") { 1 } else { 2 };
    directories[..count].iter().find_map(|directory| {
        FILES.iter().find_map(|file| {
            let text = fs::read_to_string(directory.join(file)).ok()?;
            let address = nameserver(&text)?;
            let resolver = VpcResolver {
                address: address.to_string(),
                assumed_from: format!("a nameserver of /{file} whose private IPv4 address ends in .2"),
            };
            Some((address, Arc::new(resolver)))
        })
    })
}

/// The first nameserver that may be a VPC's.
#[cfg(live)]
fn nameserver(resolv_conf: &str) -> Option<Ipv4Addr> {
    resolv_conf.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address: Ipv4Addr = words
            .next()
            .filter(|word| *word == "nameserver")
            .and(words.next())?
            .parse()
            .ok()?;
        may_be_resolver(address.into()).then_some(address)
    })
}

#[cfg(all(test, live))]
mod tests {
    use super::*;

    #[test]
    fn the_vpc_resolver_is_found_among_nameservers() {
        let found = |text: &str| nameserver(text).map(|address| address.to_string());
        assert_eq!(
            found("# by dhclient\nsearch ec2.internal\nnameserver 10.28.0.2\n"),
            Some("10.28.0.2".into())
        );
        assert_eq!(found("nameserver 127.0.0.53\noptions edns0\n"), None, "a stub");
        assert_eq!(found("nameserver 10.100.0.10\n"), None, "a cluster's service");
        assert_eq!(
            found("nameserver fd00:ec2::253\nnameserver 172.31.0.2"),
            Some("172.31.0.2".into())
        );
        assert_eq!(found("nameserver\nnameserver x\n#nameserver 10.0.0.2\n"), None);
    }

    #[test]
    fn behind_a_stub_the_upstream_file_is_read() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("etc/resolv.conf", "nameserver 127.0.0.53\n");
        write("run/systemd/resolve/resolv.conf", "nameserver 172.31.0.2\n");
        let (address, resolver) = configured_resolver(root.path()).unwrap();
        assert_eq!(address, Ipv4Addr::new(172, 31, 0, 2));
        assert_eq!(resolver.address, "172.31.0.2");
        assert!(resolver.assumed_from.contains("/run/systemd/resolve/resolv.conf"));
    }
}
