//! Rows by the host of their URL.

use std::cmp::Reverse;
use std::collections::HashMap;

/// Hosts that are counted one by one. Those met later are counted together, so that memory is bounded.
const MOST: usize = 1 << 20;
const OTHERS: &str = "(other hosts)";

/// How many rows each host has.
#[derive(Debug, Default)]
pub struct Hosts(HashMap<String, u64>);

impl Hosts {
    /// Adds a row.
    pub fn add(&mut self, host: &str) {
        if let Some(rows) = self.0.get_mut(host) {
            *rows += 1;
        } else {
            let name = if self.0.len() < MOST { host } else { OTHERS };
            *self.0.entry(name.to_owned()).or_default() += 1;
        }
    }

    /// The number of hosts.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Those with most rows, the largest first.
    pub fn largest(&self, most: usize) -> Vec<(&str, u64)> {
        let mut hosts: Vec<_> = self.0.iter().map(|(host, rows)| (host.as_str(), *rows)).collect();
        hosts.sort_unstable_by_key(|&(host, rows)| (Reverse(rows), host));
        hosts.truncate(most);
        hosts
    }
}
