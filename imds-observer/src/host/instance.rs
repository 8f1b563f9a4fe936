//! Facts about this host for the detectors' remedies, read without asking IMDS.

use std::fs;
use std::path::Path;

use nix::time::{ClockId, clock_gettime};

use super::owner::owner;
use super::routes::{Hop, Routing};
use crate::host_facts::HostFacts;
use crate::record::{Dialect, Host, NetworkTool, Time};

/// On Nitro instances, firmware provides the instance's ID here.
const ASSET_TAG: &str = "/sys/devices/virtual/dmi/id/board_asset_tag";

/// Reads facts of this host; missing facts stay unknown. `root`: where its root directory is, as in a container.
pub fn facts(name: Host, root: &Path) -> HostFacts {
    let route = default_route();
    HostFacts {
        name,
        instance_id: instance_id(),
        boot_time: boot_time(),
        gateway: route
            .as_ref()
            .and_then(|(hop, _)| hop.gateway)
            .map(|gateway| gateway.to_string()),
        netns: netns(),
        uplink: route.map(|(_, interface)| interface),
        nat_rules: None,
        cloud: cloud(Path::new(FIRMWARE)),
        network_tool: network_tool(root),
        node_owner: owner(Path::new("/proc"), root),
    }
}

/// Where a default route leads, and through which interface; IPv4 first, as remedies are about that endpoint.
fn default_route() -> Option<(Hop, String)> {
    let mut routing = Routing::open().ok()?;
    let hop = [false, true]
        .into_iter()
        .find_map(|v6| routing.default_route(v6).ok().flatten())?;
    let name = nix::net::if_::if_indextoname(hop.ifindex).ok()?;
    Some((hop, name.to_string_lossy().into_owned()))
}

/// This instance's ID; `None` if the firmware provides none.
pub fn instance_id() -> Option<String> {
    fs::read_to_string(ASSET_TAG).ok().and_then(|tag| instance_id_in(&tag))
}

/// The tool that configures the network, recognized by its files. Netplan comes first, because it writes the configuration of the others.
fn network_tool(root: &Path) -> Option<NetworkTool> {
    let holds = |directory: &str, matching: fn(&str) -> bool| {
        fs::read_dir(root.join(directory)).is_ok_and(|entries| {
            entries
                .filter_map(Result::ok)
                .any(|entry| entry.file_name().to_str().is_some_and(matching))
        })
    };
    if holds("etc/netplan", |name| {
        Path::new(name).extension().is_some_and(|extension| extension == "yaml")
    }) {
        Some(NetworkTool::Netplan)
    } else if root.join("run/NetworkManager").is_dir() {
        Some(NetworkTool::NetworkManager)
    } else if holds("run/systemd/netif/links", |_| true) {
        Some(NetworkTool::SystemdNetworkd)
    } else if holds("etc/sysconfig/network-scripts", |name| {
        name.starts_with("ifcfg-") && name != "ifcfg-lo"
    }) {
        Some(NetworkTool::Ifcfg)
    } else if root.join("etc/network/interfaces").is_file() {
        Some(NetworkTool::Ifupdown)
    } else {
        None
    }
}

/// Where firmware names the machine's maker.
const FIRMWARE: &str = "/sys/class/dmi/id";

/// The cloud that the firmware names; `Unknown`: another maker. `None`: it names none, as in a microVM.
///
/// The names are those by which cloud-init's `ds-identify` recognizes a cloud.
fn cloud(firmware: &Path) -> Option<Dialect> {
    let field = |name: &str| fs::read_to_string(firmware.join(name)).unwrap_or_default();
    let [vendor, product, chassis, bios, uuid] = [
        "sys_vendor",
        "product_name",
        "chassis_asset_tag",
        "bios_version",
        "product_uuid",
    ]
    .map(field);
    let [vendor, product, chassis] = [vendor.trim(), product.trim(), chassis.trim()];
    if vendor.is_empty() && product.is_empty() {
        return None;
    }
    Some(match (vendor, product, chassis) {
        ("Amazon EC2", ..) => Dialect::Aws,
        // Instances on Xen.
        _ if bios.contains("amazon") || vendor == "Xen" && uuid.to_ascii_lowercase().starts_with("ec2") => Dialect::Aws,
        (_, "Google Compute Engine", _) => Dialect::Gcp,
        (.., "7783-7084-3265-9085-8269-3286-77") => Dialect::Azure,
        (.., "OracleCloud.com") => Dialect::Oracle,
        (.., "HUAWEICLOUD" | "OpenTelekomCloud") => Dialect::Huawei,
        (_, "OpenStack Nova" | "OpenStack Compute", _)
        | (.., "OpenStack Nova" | "OpenStack Compute" | "SAP CCloud VM") => Dialect::Openstack,
        (_, "Alibaba Cloud ECS", _) => Dialect::Alibaba,
        ("DigitalOcean" | "UpCloud", ..) => Dialect::Digitalocean,
        ("Hetzner", ..) => Dialect::Hetzner,
        ("Scaleway", ..) => Dialect::Scaleway,
        _ => Dialect::Unknown,
    })
}

/// Other makers write other things into the tag.
fn instance_id_in(tag: &str) -> Option<String> {
    let tag = tag.trim();
    let digits = tag.strip_prefix("i-")?;
    let hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    (matches!(digits.len(), 8 | 17) && hexadecimal).then(|| tag.to_owned())
}

fn netns() -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self/ns/net")
        .ok()
        .and_then(|netns| u32::try_from(netns.ino()).ok())
}

fn boot_time() -> Option<Time> {
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
    Some(Time::now().minus_ns(std::time::Duration::from(since_boot).as_nanos() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tool_leaves_names_it() {
        for (file, expected) in [
            ("etc/netplan/50-cloud-init.yaml", Some(NetworkTool::Netplan)),
            (
                "run/NetworkManager/no-stub-resolv.conf",
                Some(NetworkTool::NetworkManager),
            ),
            ("run/systemd/netif/links/2", Some(NetworkTool::SystemdNetworkd)),
            ("etc/sysconfig/network-scripts/ifcfg-eth0", Some(NetworkTool::Ifcfg)),
            ("etc/sysconfig/network-scripts/ifcfg-lo", None),
            ("etc/network/interfaces", Some(NetworkTool::Ifupdown)),
            ("etc/netplan/README", None),
        ] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
            assert_eq!(network_tool(root.path()), expected, "{file}");
        }
    }

    #[test]
    fn firmware_names_the_cloud() {
        for (fields, expected) in [
            (
                &[("sys_vendor", "Amazon EC2"), ("product_name", "m5.large")][..],
                Some(Dialect::Aws),
            ),
            (
                &[("sys_vendor", "Xen"), ("product_uuid", "EC2E1916-9099")],
                Some(Dialect::Aws),
            ),
            (
                &[("sys_vendor", "Xen"), ("product_uuid", "00000000")],
                Some(Dialect::Unknown),
            ),
            (
                &[("sys_vendor", "Google"), ("product_name", "Google Compute Engine")],
                Some(Dialect::Gcp),
            ),
            (
                &[
                    ("sys_vendor", "Microsoft Corporation"),
                    ("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77"),
                ],
                Some(Dialect::Azure),
            ),
            (&[("sys_vendor", "Microsoft Corporation")], Some(Dialect::Unknown)),
            (
                &[
                    ("sys_vendor", "OpenStack Foundation"),
                    ("product_name", "OpenStack Nova"),
                ],
                Some(Dialect::Openstack),
            ),
            (
                &[
                    ("sys_vendor", "OpenStack Foundation"),
                    ("chassis_asset_tag", "HUAWEICLOUD"),
                ],
                Some(Dialect::Huawei),
            ),
            (
                &[("sys_vendor", "QEMU"), ("chassis_asset_tag", "OracleCloud.com")],
                Some(Dialect::Oracle),
            ),
            (
                &[("sys_vendor", "QEMU"), ("product_name", "Standard PC")],
                Some(Dialect::Unknown),
            ),
            (&[], None),
        ] {
            let firmware = tempfile::tempdir().unwrap();
            for (name, value) in fields {
                fs::write(firmware.path().join(name), format!("{value}\n")).unwrap();
            }
            assert_eq!(cloud(firmware.path()), expected, "{fields:?}");
        }
    }

    #[test]
    fn only_an_instance_id_is_one() {
        assert_eq!(
            instance_id_in("i-0123456789abcdef0\n").as_deref(),
            Some("i-0123456789abcdef0")
        );
        for other in ["", "i-", "i-xyz", "Not Specified", "i-0123456789abcdef0; rm"] {
            assert_eq!(instance_id_in(other), None, "{other}");
        }
    }
}
