//! `curate --plan`: what a run would do, told from the tables alone.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::thread;

use crate::counts::Counts;
use crate::error::Result;
use crate::hosts::Hosts;
use crate::recipe::{Recipe, Store};
use crate::scan::{Unusable, scan};
use crate::stop::Stop;
use crate::tables::Tables;

/// What the estimates assume. They are printed with the estimates.
struct Assumptions {
    /// Share of the requested rows that become samples, years after the tables were made.
    yielding: f64,
    /// Bytes of a photograph's JPEG for each pixel.
    bytes_per_pixel: f64,
    /// From request to last byte, failed requests included.
    seconds_per_request: f64,
    /// Images of 2 megapixels that one core decodes and measures in a second.
    images_per_core_second: f64,
}

const ASSUMED: Assumptions =
    Assumptions { yielding: 0.5, bytes_per_pixel: 0.25, seconds_per_request: 1.5, images_per_core_second: 40.0 };

/// Hosts that are listed.
const HOSTS: usize = 15;
/// Hosts that are counted one by one.
const COUNTED_HOSTS: usize = 1 << 20;

/// What the tables came to.
#[derive(Debug)]
pub struct Plan {
    /// Rows of all tables.
    pub rows: u64,
    /// Those that their table rules out, by reason.
    pub reasons: Counts,
    /// Those that would be requested.
    pub requests: u64,
    /// Of the number columns that a filter looks at, by source and name.
    pub unusable: BTreeMap<(u16, String), Unusable>,
    hosts: Hosts<u64>,
    claimed_pixels: f64,
    claimed_sizes: u64,
    recipe: Recipe,
}

/// Reads and filters all tables.
///
/// # Errors
/// As a run, before its first request.
pub fn plan(recipe: &Recipe, stop: &Stop) -> Result<Plan> {
    let tables = Tables::open(recipe)?;
    let mut plan = Plan {
        rows: 0,
        reasons: Counts::default(),
        requests: 0,
        unusable: BTreeMap::new(),
        hosts: Hosts::new(COUNTED_HOSTS),
        claimed_pixels: 0.0,
        claimed_sizes: 0,
        recipe: recipe.clone(),
    };
    scan(&tables, &recipe.captions, |batch| {
        plan.rows += batch.rows;
        plan.reasons.add_all(&batch.rejected);
        plan.requests += batch.candidates.len() as u64;
        for (column, found) in batch.unusable {
            let all = plan.unusable.entry(column).or_default();
            all.null += found.null;
            all.not_finite += found.not_finite;
        }
        for candidate in &batch.candidates {
            plan.hosts.add(&candidate.host(), |rows| *rows += 1);
            if let Some(size) = candidate.claimed {
                plan.claimed_pixels += f64::from(size.width) * f64::from(size.height);
                plan.claimed_sizes += 1;
            }
        }
        if stop.is_raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    stop.check()?;
    Ok(plan)
}

impl Plan {
    fn bytes_per_image(&self) -> f64 {
        let pixels = match (self.recipe.image.store, self.claimed_sizes) {
            (Store::SquareJpeg { side, .. }, _) => f64::from(side).powi(2),
            (Store::Original, 0) => 2e6,
            (Store::Original, sizes) => self.claimed_pixels / sizes as f64,
        };
        pixels * ASSUMED.bytes_per_pixel
    }

    /// The longest of: all requests at the recipe's concurrency, the largest host at its own, all decodes.
    fn hours(&self, cores: usize) -> f64 {
        let fetch = &self.recipe.fetch;
        let largest = self.hosts.largest(1, |rows| *rows).first().map_or(0, |(_, rows)| **rows);
        let network = self.requests as f64 * ASSUMED.seconds_per_request / fetch.concurrency as f64;
        let one_host = largest as f64 * ASSUMED.seconds_per_request / fetch.per_host as f64;
        let pixels = self.requests as f64 / (ASSUMED.images_per_core_second * cores as f64);
        network.max(one_host).max(pixels) / 3600.0
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |n: u64| 100.0 * n as f64 / self.rows.max(1) as f64;
        let mut left = self.rows;
        writeln!(f, "{:>14}          rows", self.rows)?;
        for (reason, rows) in self.reasons.iter() {
            left -= rows;
            writeln!(f, "{rows:>14} {:>7.3}%  {reason}, {left} left", share(rows))?;
        }
        writeln!(
            f,
            "{:>14} {:>7.3}%  to be requested, of {} hosts",
            self.requests,
            share(self.requests),
            self.hosts.count()
        )?;
        for (host, &rows) in self.hosts.largest(HOSTS, |rows| *rows) {
            writeln!(f, "{rows:>14} {:>7.3}%  {host}", 100.0 * rows as f64 / self.requests.max(1) as f64)?;
        }
        for ((source, column), Unusable { null, not_finite }) in &self.unusable {
            writeln!(
                f,
                "{null:>14} {:>7.3}%  null in {column} of source {source}, {not_finite} NaN or infinite",
                share(*null)
            )?;
        }
        let images = self.requests as f64 * ASSUMED.yielding;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        writeln!(
            f,
            "expected: about {images:.0} samples, {:.1} GB, {:.1} hours on {cores} cores, if {:.0} % of the requests \
             yield a sample, a JPEG takes {} bytes for each claimed pixel, a request {} s, and a core decodes {} images a second",
            images * self.bytes_per_image() / 1e9,
            self.hours(cores),
            100.0 * ASSUMED.yielding,
            ASSUMED.bytes_per_pixel,
            ASSUMED.seconds_per_request,
            ASSUMED.images_per_core_second,
        )
    }
}
