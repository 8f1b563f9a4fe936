//! Why a connection to IMDS didn't come to be, from what the kernel showed.

/// `reason@location`, as far as both are known.
pub(super) fn place_of(reason: Option<&str>, location: Option<&str>) -> String {
    format!("{}@{}", reason.unwrap_or("?"), location.unwrap_or("?"))
}

/// The kernel freed a packet because its TTL was used up. Before 5.17 there is only the function.
pub(super) fn is_ttl_drop(reason: Option<&str>, location: Option<&str>) -> bool {
    let forwarding = matches!(location, Some("ip_forward" | "ip6_forward"));
    match reason {
        Some("IP_INHDR") => forwarding || location.is_none(),
        Some("NOT_SPECIFIED") | None => forwarding,
        Some(_) => false,
    }
}
