//! Rows by the host of their URL.

use std::cmp::Reverse;
use std::collections::HashMap;

const OTHERS: &str = "(other hosts)";

/// A tally for each host. Those met after the first `bound` share one, so that memory is bounded.
#[derive(Debug)]
pub struct Hosts<T> {
    bound: usize,
    tallies: HashMap<String, T>,
}

impl<T: Default> Hosts<T> {
    /// No hosts yet.
    pub fn new(bound: usize) -> Self {
        Self { bound, tallies: HashMap::new() }
    }

    /// Adds to the tally of a host.
    pub fn add(&mut self, host: &str, add: impl FnOnce(&mut T)) {
        if let Some(tally) = self.tallies.get_mut(host) {
            add(tally);
        } else {
            let name = if self.tallies.len() < self.bound { host } else { OTHERS };
            add(self.tallies.entry(name.to_owned()).or_default());
        }
    }

    /// The number of hosts.
    pub fn count(&self) -> usize {
        self.tallies.len()
    }

    /// Those whose tallies hold most rows, the largest first.
    pub fn largest(&self, most: usize, rows: impl Fn(&T) -> u64) -> Vec<(&str, &T)> {
        let mut hosts: Vec<_> = self.tallies.iter().map(|(host, tally)| (host.as_str(), tally)).collect();
        hosts.sort_unstable_by_key(|&(host, tally)| (Reverse(rows(tally)), host));
        hosts.truncate(most);
        hosts
    }
}
