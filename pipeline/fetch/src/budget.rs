//! How many bytes of bodies may be held at once.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::hosts::Place;

/// What is counted as one.
const UNIT: u64 = 4 << 10;

/// A number of bytes, parts of which are reserved before a body is read and given back when it is dropped.
///
/// A body reserves once, all that it may come to: whoever holds a part never waits for another, so that bodies
/// cannot lock one another out.
#[derive(Debug)]
pub(crate) struct Budget(Arc<Semaphore>);

/// A part of the budget.
#[derive(Debug)]
pub(crate) struct Reserved(OwnedSemaphorePermit);

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        let units = usize::try_from(bytes / UNIT).unwrap_or(usize::MAX);
        Self(Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))))
    }

    /// Waits for its turn and for `bytes`, which must not be more than the whole budget.
    pub(crate) async fn reserve(&self, bytes: u64) -> Reserved {
        let permit = self.0.clone().acquire_many_owned(units(bytes)).await;
        Reserved(permit.expect("the semaphore is never closed"))
    }
}

impl Reserved {
    /// The body, which now holds only what it needs of this, and gives that and `place` back when its last clone is
    /// dropped.
    pub(crate) fn keep(mut self, body: Vec<u8>, place: Place) -> Bytes {
        let surplus = self.0.num_permits().saturating_sub(units(body.len() as u64) as usize);
        drop(self.0.split(surplus));
        Bytes::from_owner(Held { body, _reserved: self, _place: place })
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

struct Held {
    body: Vec<u8>,
    _reserved: Reserved,
    _place: Place,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}
