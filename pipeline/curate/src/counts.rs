//! Rows by what became of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::reason::Reason;

/// How many rows were not kept, by reason. Reasons without rows are absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Counts(BTreeMap<Reason, u64>);

impl Counts {
    /// Adds `rows` under `reason`.
    pub fn add(&mut self, reason: Reason, rows: u64) {
        if rows > 0 {
            *self.0.entry(reason).or_default() += rows;
        }
    }

    /// Takes `rows` that were counted under `reason` back.
    pub fn remove(&mut self, reason: Reason, rows: u64) {
        if let Some(counted) = self.0.get_mut(&reason) {
            *counted = counted.saturating_sub(rows);
            if *counted == 0 {
                self.0.remove(&reason);
            }
        }
    }

    /// Adds all of `other`.
    pub fn add_all(&mut self, other: &Counts) {
        other.iter().for_each(|(reason, rows)| self.add(reason, rows));
    }

    /// The rows under `reason`.
    pub fn of(&self, reason: Reason) -> u64 {
        self.0.get(&reason).copied().unwrap_or_default()
    }

    /// All rows.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// In the order of the stages.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        self.0.iter().map(|(reason, rows)| (*reason, *rows))
    }
}
