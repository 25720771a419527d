//! Why a run ends before its last row: the first cause that was raised.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};

/// A flag that every part of a run looks at, with the first error that raised it. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    raised: Arc<AtomicBool>,
    cause: Arc<Mutex<Option<Error>>>,
}

impl Stop {
    /// One that SIGINT and SIGTERM raise. A second signal ends the process at once: the journal bears it.
    ///
    /// # Errors
    /// [`std::io::Error`] where the system takes no handler.
    pub fn on_signals() -> std::io::Result<Stop> {
        Ok(Stop { raised: console::stop_on_signals()?, cause: Arc::default() })
    }

    /// Whether to stop.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// Stops because of `error`, unless something else came first.
    pub fn raise(&self, error: Error) {
        let mut cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
        cause.get_or_insert(error);
        self.raised.store(true, Ordering::Relaxed);
    }

    /// The cause, once it is raised: an error, or else a signal.
    ///
    /// # Errors
    /// That cause.
    pub fn check(&self) -> Result<()> {
        if !self.is_raised() {
            return Ok(());
        }
        let cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(cause.unwrap_or(Error::Interrupted))
    }
}
