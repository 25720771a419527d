//! Whatever a URL parser makes of a host, an address of the operator's network is never public.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fetch::{AllowList, is_public};
use libfuzzer_sys::fuzz_target;

/// An independent reading of what must never be reached, by standard-library predicates.
fn is_inside(address: Ipv4Addr) -> bool {
    address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_multicast()
        || address.is_unspecified()
        || address.is_documentation()
}

/// The IPv4 address that lies in each place where IPv6 has ever embedded one.
fn embedded(address: Ipv6Addr) -> [Option<Ipv4Addr>; 3] {
    let s = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    [
        address.to_ipv4(),
        (s[0] == 0x64 && s[1] == 0xff9b).then(|| v4(s[6], s[7])),
        (s[0] == 0x2002).then(|| v4(s[1], s[2])),
    ]
}

fuzz_target!(|bytes: &[u8]| {
    let address = match bytes {
        [a, b, c, d] => IpAddr::from([*a, *b, *c, *d]),
        [octets @ ..] if octets.len() == 16 => IpAddr::from(<[u8; 16]>::try_from(octets).expect("16 octets")),
        text => match std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()) {
            Some(address) => address,
            None => {
                // As an entry of the allow list: read or refused.
                let entry = String::from_utf8_lossy(text);
                let _ = AllowList::parse(&[entry.as_ref()]);
                return;
            }
        },
    };
    let inside = match address {
        IpAddr::V4(address) => is_inside(address),
        IpAddr::V6(address) => {
            address.is_loopback()
                || address.is_unspecified()
                || address.is_multicast()
                || address.is_unique_local()
                || address.is_unicast_link_local()
                || embedded(address).into_iter().flatten().any(is_inside)
        }
    };
    assert!(!(inside && is_public(address)), "{address} is public");
    assert_eq!(AllowList::none().permits(SocketAddr::new(address, 80)), is_public(address));
});
