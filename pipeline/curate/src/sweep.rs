//! Placeholders out of the shards.
//!
//! "This image is no longer available" comes as one content under many URLs. That it does is known only once so
//! many rows have brought it, and its first samples are in shards by then. So after the last row each shard that
//! holds such samples is made anew without them, and a part of the ledger tells the new place of those that stay.
//! A process that is killed between the two finds the shard made anew already, and makes the same of it again. Rows that
//! were turned down as copies of such samples, before it was known what these are, get the same reason by a part of their
//! own.

use std::collections::{BTreeSet, HashMap};

use shards::index::SHARDS;
use shards::{ShardEntry, ShardWriter};

use crate::assemble::Tally;
use crate::error::{Error, Result};
use crate::ledger::{Entry, Ledger, Part};
use crate::reason::{Duplicate, Reason};
use crate::record::{Answer, Rejection, Verdict};
use crate::stop::Stop;
use crate::target::Target;

/// Takes the samples of contents that turned out to be placeholders out of their shards.
///
/// # Errors
/// [`Error::Storage`], [`Error::Store`]; [`Error::Inconsistent`] where a shard does not hold what the ledger says.
pub fn sweep(ledger: &mut Ledger, tally: &mut Tally, target: &Target, stop: &Stop) -> Result<()> {
    let mut affected = BTreeSet::new();
    let mut copies: Option<Part> = None;
    ledger.entries(|_, mut entry| {
        match &entry.verdict {
            _ if !is_placeholder(&entry, tally) => {}
            Verdict::Kept { shard, .. } => drop(affected.insert(*shard)),
            Verdict::Rejected(rejection) if rejection.reason == Reason::Duplicate(Duplicate::Exact) => {
                entry.verdict = placeholder();
                tally.call_copy_placeholder();
                let part = match &mut copies {
                    Some(part) => part,
                    none => none.insert(ledger.begin_replacement()?),
                };
                part.push(&entry)?;
            }
            Verdict::Rejected(_) => {}
        }
        Ok(())
    })?;
    if let Some(copies) = copies {
        ledger.commit(copies, None)?;
    }
    for number in affected {
        stop.check()?;
        let mut entries = Vec::new();
        ledger.entries_of_shard(number, |entry| entries.push(entry))?;
        let shard = make_anew(number, &mut entries, tally, target)?;
        target.store(&shard)?;
        let mut part = ledger.begin_replacement()?;
        entries.iter().try_for_each(|entry| part.push(entry))?;
        ledger.replace(part, number, shard.clone())?;
        target.forget(&shard)?;
    }
    Ok(())
}

fn placeholder() -> Verdict {
    Verdict::Rejected(Rejection::plain(Reason::Duplicate(Duplicate::Placeholder)))
}

fn is_placeholder(entry: &Entry, tally: &Tally) -> bool {
    matches!(&entry.record.answer, Answer::Image(measured) if tally.is_placeholder(measured.sha256))
}

/// Writes the shard without its placeholders, and gives its entries their new verdicts.
fn make_anew(number: u64, entries: &mut [Entry], tally: &mut Tally, target: &Target) -> Result<ShardEntry> {
    let name = format!("{number:06}.tar");
    let dropped: BTreeSet<String> = entries
        .iter()
        .filter(|entry| is_placeholder(entry, tally))
        .map(|e| e.record.candidate.key.to_string())
        .collect();
    let mut writer = ShardWriter::create(target.folder().join(SHARDS), name.clone())?;
    let mut kept_at = HashMap::new();
    for sample in target.open(&name)? {
        let sample = sample?;
        if !dropped.contains(&sample.key) {
            let kept = Verdict::Kept { shard: number, place: writer.count(), offset: Some(writer.offset()) };
            kept_at.insert(sample.key.clone(), kept);
            writer.push(sample)?;
        }
    }
    for entry in entries.iter_mut() {
        let key = entry.record.candidate.key.to_string();
        entry.verdict = if dropped.contains(&key) {
            tally.drop_placeholder();
            placeholder()
        } else {
            let missing =
                || Error::inconsistent(&target.folder().join(SHARDS).join(&name), format!("has no sample {key}"));
            kept_at.remove(&key).ok_or_else(missing)?
        };
    }
    Ok(writer.finish()?)
}
