//! `report.html`: a run at a glance, in one file without scripts or links.

use std::path::Path;

use crate::error::Result;
use crate::ledger::Ledger;
use crate::recipe::Recipe;
use crate::run::Totals;

/// The file's name in `RUN/curated`.
pub const REPORT: &str = "report.html";

/// Publishes the report.
///
/// # Errors
/// [`Error::Storage`](crate::error::Error::Storage).
pub fn publish(ledger: &Ledger, recipe: &Recipe, totals: &Totals, folder: &Path) -> Result<()> {
    let _ = (ledger, recipe, totals, folder);
    Ok(())
}
