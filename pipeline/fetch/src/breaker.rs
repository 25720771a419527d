//! Tells a dead network from dead hosts.

use std::collections::HashSet;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::{BreakerPolicy, Outage};

/// What can collapse as a whole.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Layer {
    Resolution,
    Connection,
    /// Servers that say nothing at all.
    Answer,
}

/// Counts failures in a row for each layer, and stays open once one of them was long enough. Who counts takes care that
/// a failure is one of our side: rows that are asked for again after they failed are expected to fail again.
#[derive(Debug)]
pub(crate) struct Breaker {
    policy: BreakerPolicy,
    resolution: Mutex<Streak>,
    connection: Mutex<Streak>,
    answer: Mutex<Streak>,
    outage: OnceLock<Outage>,
}

#[derive(Debug, Default)]
struct Streak {
    failures: u32,
    hosts: HashSet<String>,
}

impl Breaker {
    pub(crate) fn new(policy: BreakerPolicy) -> Self {
        Self {
            policy,
            resolution: Mutex::default(),
            connection: Mutex::default(),
            answer: Mutex::default(),
            outage: OnceLock::new(),
        }
    }

    /// # Errors
    /// The outage, once there is one.
    pub(crate) fn check(&self) -> Result<(), Outage> {
        self.outage.get().map_or(Ok(()), |outage| Err(outage.clone()))
    }

    pub(crate) fn succeeded(&self, layer: Layer) {
        *self.streak(layer) = Streak::default();
    }

    /// Counts a failure. Enough of them are an outage.
    pub(crate) fn failed(&self, layer: Layer, host: &str) {
        if let Some(outage) = self.suspect(layer, host) {
            self.open(outage);
        }
    }

    /// Counts a failure that may be the host's own. Returns what enough of them would be: an outage, if no witness says
    /// otherwise.
    pub(crate) fn suspect(&self, layer: Layer, host: &str) -> Option<Outage> {
        let mut streak = self.streak(layer);
        streak.failures = streak.failures.saturating_add(1);
        // As many hosts as the policy asks for are enough to remember.
        if streak.hosts.len() < self.policy.hosts as usize {
            streak.hosts.insert(host.to_owned());
        }
        drop(streak);
        self.suspicion(layer)
    }

    /// The same, without another failure.
    pub(crate) fn suspicion(&self, layer: Layer) -> Option<Outage> {
        if self.policy.failures == 0 {
            return None;
        }
        let streak = self.streak(layer);
        let (failures, hosts) = (streak.failures, streak.hosts.len() as u32);
        let what = match layer {
            Layer::Resolution => "name resolutions",
            Layer::Connection => "connections",
            Layer::Answer => "requests",
        };
        (failures >= self.policy.failures && hosts >= self.policy.hosts).then_some(Outage { what, failures, hosts })
    }

    /// Lets no request through from now on.
    pub(crate) fn open(&self, outage: Outage) {
        self.outage.get_or_init(|| outage);
    }

    fn streak(&self, layer: Layer) -> std::sync::MutexGuard<'_, Streak> {
        let streak = match layer {
            Layer::Resolution => &self.resolution,
            Layer::Connection => &self.connection,
            Layer::Answer => &self.answer,
        };
        streak.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trips_on_many_failures_of_many_hosts_and_stays() {
        let breaker = Breaker::new(BreakerPolicy { failures: 5, hosts: 3 });
        for i in 0..50 {
            breaker.failed(Layer::Resolution, ["a", "b"][i % 2]);
        }
        assert!(breaker.check().is_ok(), "two dead hosts are no outage");
        breaker.failed(Layer::Resolution, "c");
        let outage = breaker.check().unwrap_err();
        assert_eq!(outage.what, "name resolutions");
        breaker.succeeded(Layer::Resolution);
        assert_eq!(breaker.check(), Err(outage), "a run that stopped is not started again by luck");
    }

    #[test]
    fn a_suspicion_is_no_outage_yet() {
        let breaker = Breaker::new(BreakerPolicy { failures: 2, hosts: 2 });
        assert_eq!(breaker.suspect(Layer::Answer, "a"), None);
        let suspected = breaker.suspect(Layer::Answer, "b").unwrap();
        assert_eq!((suspected.what, suspected.failures, suspected.hosts), ("requests", 2, 2));
        assert!(breaker.check().is_ok());
        breaker.succeeded(Layer::Answer);
        assert_eq!(breaker.suspect(Layer::Answer, "c"), None);
    }

    #[test]
    fn one_success_starts_the_count_again() {
        let breaker = Breaker::new(BreakerPolicy { failures: 3, hosts: 1 });
        for i in 0..30 {
            breaker.failed(Layer::Connection, &i.to_string());
            if i % 2 == 1 {
                breaker.succeeded(Layer::Connection);
            }
        }
        assert!(breaker.check().is_ok());
    }

    #[test]
    fn zero_turns_it_off() {
        let breaker = Breaker::new(BreakerPolicy { failures: 0, hosts: 0 });
        for i in 0..1000 {
            breaker.failed(Layer::Connection, &i.to_string());
        }
        assert!(breaker.check().is_ok());
    }
}
