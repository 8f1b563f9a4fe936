//! Which traffic control filters sit at an interface?
//!
//! Those of clsact, from before tcx (6.6) and still made by many tools.

use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::firewall::{text, u32_at};
use super::netlink::{Netlink, NetlinkError};

const RTM_GETTFILTER: u16 = 46;
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)` and `_EGRESS`.
const PARENTS: [(&str, u32); 2] = [("clsact ingress", 0xffff_fff2), ("clsact egress", 0xffff_fff3)];
/// `struct tcmsg`.
const HEADER: usize = 20;
/// `TCA_KIND`, `TCA_OPTIONS`, and in those of a BPF filter `TCA_BPF_NAME`.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const BPF_NAME: u16 = 7;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// `clsact ingress`
    pub hook: &'static str,
    /// `bpf`, `flower`, `u32`.
    pub kind: String,
    /// Name of a BPF filter.
    pub name: Option<String>,
    pub handle: u32,
}

/// Filters at an interface of the network namespace that the calling thread is in.
pub fn filters(ifindex: u32) -> Result<Vec<Filter>, NetlinkError> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let mut found = Vec::new();
    for (hook, parent) in PARENTS {
        let mut question = [0; HEADER];
        question[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        question[12..16].copy_from_slice(&parent.to_ne_bytes());
        match netlink.dump(RTM_GETTFILTER, &question) {
            Ok(replies) => found.extend(replies.iter().filter_map(|reply| filter(hook, &reply.payload))),
            // No clsact there, or a kernel without it.
            Err(NetlinkError::Refused(libc::EINVAL | libc::ENOENT | libc::EOPNOTSUPP)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// `None`: a place for filters without one.
fn filter(hook: &'static str, message: &[u8]) -> Option<Filter> {
    let handle = u32_at(message, 8)?;
    let attributes = message.get(HEADER..)?;
    let options = attribute(attributes, OPTIONS)?;
    Some(Filter {
        hook,
        kind: attribute(attributes, KIND).map(text)?,
        name: attribute(options, BPF_NAME).map(text),
        handle,
    })
    .filter(|filter| filter.handle != 0)
}

fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    let found = NlasIterator::new(bytes)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == kind)?;
    let length = usize::from(found.length());
    found.into_inner().get(4..length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_survived(message in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = filter("clsact ingress", &message);
        }
    }
}
