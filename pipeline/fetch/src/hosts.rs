//! Whose turn it is: requests in flight, over all and per host, and hosts that asked us to wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Idle hosts are looked for and forgotten when there are so many, or twice as many as were not idle the last time.
const MANY: usize = 4096;
/// No Retry-After is believed beyond this.
const LONGEST_HOLD: Duration = Duration::from_secs(24 * 3600);

/// The gates of all hosts and the one for the whole machine.
#[derive(Debug)]
pub(crate) struct Hosts {
    per_host: usize,
    /// Longest hold that a request waits for.
    patience: Duration,
    machine: Arc<Semaphore>,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    hosts: HashMap<String, Arc<Host>>,
    /// How many are enough to look for idle ones.
    many: usize,
}

#[derive(Debug)]
struct Host {
    turns: Arc<Semaphore>,
    held_until: Mutex<Option<Instant>>,
}

/// Leave to make one request; gives it back when dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _host: OwnedSemaphorePermit,
    machine: Place,
}

/// One of the machine's requests in flight.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Turn {
    /// The request is over as far as the host is concerned, and what it brought is still in flight here.
    pub(crate) fn leave_host(self) -> Place {
        self.machine
    }
}

/// The host asked for a longer wait than is waited.
#[derive(Debug)]
pub(crate) struct HeldTooLong(pub(crate) Duration);

impl Hosts {
    pub(crate) fn new(concurrency: usize, per_host: usize, patience: Duration) -> Self {
        let known = Mutex::new(Known { hosts: HashMap::new(), many: MANY });
        Self { per_host, patience, machine: Arc::new(Semaphore::new(concurrency)), known }
    }

    /// Waits for a turn, for ever once the gates are closed. Nobody who waits for a host takes up room on the machine.
    pub(crate) async fn enter(&self, name: &str) -> Result<Turn, HeldTooLong> {
        let host = self.host(name);
        let host_turn = host.turns.clone().acquire_owned().await.expect("a host's semaphore is never closed");
        loop {
            host.wait(self.patience).await?;
            let Ok(machine_turn) = self.machine.clone().acquire_owned().await else {
                return std::future::pending().await;
            };
            // While this one waited for the machine, another's answer may have held the host.
            if host.hold().is_none() {
                return Ok(Turn { _host: host_turn, machine: Place { _permit: machine_turn } });
            }
        }
    }

    /// Gives out no turn from now on.
    pub(crate) fn close(&self) {
        self.machine.close();
    }

    /// Lets nobody ask the host again for `duration`.
    pub(crate) fn hold(&self, name: &str, duration: Duration) {
        let until = Instant::now() + duration.min(LONGEST_HOLD);
        let host = self.host(name);
        let mut held_until = host.held_until.lock().unwrap_or_else(PoisonError::into_inner);
        *held_until = Some(held_until.map_or(until, |before| before.max(until)));
    }

    fn host(&self, name: &str) -> Arc<Host> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { hosts, many } = &mut *known;
        if hosts.len() >= *many && !hosts.contains_key(name) {
            hosts.retain(|_, host| Arc::strong_count(host) > 1 || host.hold().is_some());
            *many = MANY.max(2 * hosts.len());
        }
        let new = || Arc::new(Host { turns: Arc::new(Semaphore::new(self.per_host)), held_until: Mutex::default() });
        hosts.entry(name.to_owned()).or_insert_with(new).clone()
    }
}

impl Host {
    /// The time until which the host is held, if that is still to come.
    fn hold(&self) -> Option<Instant> {
        let held_until = *self.held_until.lock().unwrap_or_else(PoisonError::into_inner);
        held_until.filter(|&until| until > Instant::now())
    }

    /// Waits until the host is held no more; a hold may be prolonged meanwhile.
    async fn wait(&self, patience: Duration) -> Result<(), HeldTooLong> {
        while let Some(until) = self.hold() {
            let remaining = until - Instant::now();
            if remaining > patience {
                return Err(HeldTooLong(remaining));
            }
            tokio::time::sleep_until(until).await;
        }
        Ok(())
    }
}
