//! Which addresses may be reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::ConfigError;

/// Non-public addresses that may be reached, each on one port or on all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowList(Vec<(IpAddr, Option<u16>)>);

impl AllowList {
    /// Nothing but public addresses.
    #[must_use]
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// Reads entries `ADDRESS:PORT` and `ADDRESS:*`, IPv6 addresses in brackets.
    ///
    /// # Errors
    /// [`ConfigError::Allow`] with the first entry that is neither.
    pub fn parse<S: AsRef<str>>(entries: &[S]) -> Result<Self, ConfigError> {
        let entry = |entry: &str| {
            let (address, port) = entry.rsplit_once(':')?;
            let address = match address.strip_prefix('[') {
                Some(address) => IpAddr::V6(address.strip_suffix(']')?.parse().ok()?),
                None => IpAddr::V4(address.parse().ok()?),
            };
            let port = if port == "*" { None } else { Some(port.parse().ok().filter(|&port| port != 0)?) };
            Some((address.to_canonical(), port))
        };
        let refused = |text: &str| ConfigError::Allow(text.to_owned());
        entries.iter().map(|e| entry(e.as_ref()).ok_or_else(|| refused(e.as_ref()))).collect::<Result<_, _>>().map(Self)
    }

    /// Whether `address` may be connected to: it is public, or listed with this port.
    #[must_use]
    pub fn permits(&self, address: SocketAddr) -> bool {
        self.permits_on(address.ip(), Some(address.port()))
    }

    /// Whether `address` may be connected to on `port`, or, without one, on every port.
    pub(crate) fn permits_on(&self, address: IpAddr, port: Option<u16>) -> bool {
        let address = address.to_canonical();
        let listed = |&(entry, on): &(IpAddr, Option<u16>)| entry == address && (on.is_none() || on == port);
        is_public(address) || self.0.iter().any(listed)
    }

    /// The ports that entries name.
    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> {
        self.0.iter().filter_map(|&(_, port)| port)
    }
}

/// Whether an address belongs to the public internet. IPv6 addresses through which an IPv4
/// address is reached (IPv4-mapped, NAT64's well-known prefix) are as public as that one; the
/// obsolete tunnels (IPv4-compatible, 6to4, Teredo) never are.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// By the IANA IPv4 special-purpose registry: whatever is not globally reachable is not public.
fn is_public_v4(address: Ipv4Addr) -> bool {
    !matches!(
        address.octets(),
        [0 | 10 | 127 | 224..=255, ..]      // this network, private, loopback, multicast, reserved
            | [100, 64..=127, ..]           // carrier-grade NAT
            | [169, 254, ..]                // link-local, and clouds' metadata services
            | [172, 16..=31, ..]            // private
            | [192, 0, 0 | 2, _]            // protocol assignments, documentation
            | [192, 88, 99, _]              // 6to4 relays
            | [192, 168, ..]                // private
            | [198, 18 | 19, ..]            // benchmarking
            | [198, 51, 100, _]             // documentation
            | [203, 0, 113, _] // documentation
    )
}

/// By the IANA IPv6 registries: of global unicast, 2000::/3, what is no special purpose.
fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(mapped) = address.to_ipv4_mapped() {
        return is_public_v4(mapped);
    }
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            is_public_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
        }
        [0x2001, 0..=0x1ff, ..]             // protocol assignments: Teredo, benchmarking, ORCHID
            | [0x2001, 0xdb8, ..]           // documentation
            | [0x2002, ..]                  // 6to4
            | [0x3fff, 0..=0xfff, ..]       // documentation
            => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}
