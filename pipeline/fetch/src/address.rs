//! Which addresses may be reached.

use std::net::{IpAddr, SocketAddr};

use crate::ConfigError;

/// Non-public addresses that may be reached, each with one port or with all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowList(Vec<(IpAddr, Option<u16>)>);

impl AllowList {
    /// Nothing but public addresses.
    #[must_use]
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// Reads entries `ADDRESS:PORT` and `ADDRESS:*`.
    ///
    /// # Errors
    /// [`ConfigError::Allow`] with the first entry that is neither.
    pub fn parse<S: AsRef<str>>(entries: &[S]) -> Result<Self, ConfigError> {
        unimplemented!("{}", entries.len())
    }

    /// Whether `address` may be connected to: it is public or listed.
    #[must_use]
    pub fn permits(&self, address: SocketAddr) -> bool {
        unimplemented!("{address}")
    }
}

/// Whether an address belongs to the public internet, seen through every form in which IPv6
/// embeds an IPv4 address.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    unimplemented!("{address}")
}
