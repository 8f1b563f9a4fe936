//! Any bytes as what the kernel answers when it is asked about this host: for the fuzz targets.

use super::{firewall, netlink};

/// Netlink messages, rules of nftables and of iptables.
pub fn fuzz_kernel_answers(bytes: &[u8]) {
    netlink::read_any(bytes);
    firewall::read_any(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            super::fuzz_kernel_answers(&bytes);
        }
    }
}
