//! The endpoints' addresses as the kernel programs compare them.

use std::net::IpAddr;

use imds_observer_common::{Endpoints, MAX_ENDPOINTS};

use super::error::KernelError;

pub(super) fn endpoints(addresses: &[IpAddr]) -> Result<Endpoints, KernelError> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for address in addresses {
        match address {
            IpAddr::V4(address) => v4.push(address.octets()),
            IpAddr::V6(address) => v6.push(address.octets()),
        }
    }
    let (v4, v4_count, v4_far_count) = slots(v4, &[169, 254], "IPv4")?;
    let (v6, v6_count, v6_far_count) = slots(v6, &[0xfd, 0, 0x0e, 0xc2], "IPv6")?;
    Ok(Endpoints {
        v4,
        v6,
        v4_count,
        v6_count,
        v4_far_count,
        v6_far_count,
    })
}

/// Returns the addresses with those outside this prefix first, their number, and the number of those outside.
fn slots<T: AsRef<[u8]> + Copy + Default>(
    mut addresses: Vec<T>,
    near: &[u8],
    family: &'static str,
) -> Result<([T; MAX_ENDPOINTS], u32, u32), KernelError> {
    if addresses.len() > MAX_ENDPOINTS {
        return Err(KernelError::TooManyEndpoints { family });
    }
    let is_near = |address: &T| address.as_ref().starts_with(near);
    addresses.sort_by_key(is_near);
    let far = addresses.iter().filter(|address| !is_near(address)).count();
    let first = addresses.first().copied().unwrap_or_default();
    Ok((
        std::array::from_fn(|index| addresses.get(index).copied().unwrap_or(first)),
        addresses.len() as u32,
        far as u32,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_beyond_the_usual_ranges_stand_first() {
        let addresses =
            ["169.254.169.254", "10.0.0.1", "fd00:ec2::254", "169.254.1.1"].map(|text| text.parse().unwrap());
        let found = endpoints(&addresses).unwrap();
        assert_eq!((found.v4_count, found.v4_far_count), (3, 1));
        assert_eq!(found.v4[0], [10, 0, 0, 1]);
        assert_eq!(found.v4[1], [169, 254, 169, 254]);
        assert_eq!((found.v6_count, found.v6_far_count), (1, 0));
        assert_eq!(found.v6[3], found.v6[0]);
        let many = ["10.0.0.1"; MAX_ENDPOINTS + 1].map(|text| text.parse().unwrap());
        assert!(endpoints(&many).is_err());
    }
}
