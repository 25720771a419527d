//! `curate`: rows of LAION, COYO and DataComp to checked image shards.
//!
//! ```text
//! tables -> scan -> work (fetch, measure) -> journal -> assemble -> shards + ledger -> samples, report, index
//!           rows    any order                on disk    order of the rows
//! ```
//!
//! * [`recipe`]: what `data.toml` says, validated.
//! * [`store`]: files of this machine and objects of S3, Google Cloud Storage, Azure and web servers.
//! * [`tables`], [`table`], [`chunks`], [`scan`]: parquet files, their columns recognised, their rows filtered.
//! * [`work`], [`measure`], [`caption`]: a row to an answer.
//! * [`journal`], [`ledger`], [`assemble`], [`duplicates`], [`sweep`]: answers to shards, exactly, across kills.
//! * [`target`]: where the shards lie, here or in a store.
//! * [`run`]: the order of it all; [`plan`]: what it would do, told from the tables alone;
//!   [`refilter`]: the same over the answers of a finished run.
//!
//! Every row of every table ends with one verdict: it is a sample, or it has a [`reason::Reason`]. A row that
//! fails is data; an [`error::Error`] stops the run, and the same command goes on from there.
#![forbid(unsafe_code)]

pub mod assemble;
pub mod caption;
pub mod chunks;
pub mod counts;
pub mod duplicates;
pub mod error;
pub mod folder;
pub mod hosts;
pub mod journal;
pub mod ledger;
pub mod measure;
pub mod plan;
pub mod progress;
pub mod reason;
pub mod recipe;
pub mod record;
pub mod refilter;
pub mod report;
pub mod row;
pub mod run;
pub mod samples;
pub mod scan;
pub mod score;
pub mod stop;
pub mod store;
pub mod sweep;
pub mod table;
pub mod tables;
pub mod target;
pub mod work;
