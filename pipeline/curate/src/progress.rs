//! Where a run stands: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Counters that the parts of a run raise.
#[derive(Debug, Default)]
pub struct Progress {
    /// Rows of the tables up to the one whose turn it is.
    pub rows: AtomicU64,
    /// Rows that were answered by this process.
    pub answered: AtomicU64,
    /// Samples, those of earlier processes included.
    pub kept: AtomicU64,
    /// Rows that reached the network and are no samples, likewise.
    pub rejected: AtomicU64,
}

/// How often a plain line is written.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    /// Raises a counter.
    pub fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    fn of(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// Shows a [`Progress`] over a known number of rows.
pub struct Display {
    bar: Option<ProgressBar>,
    total_rows: u64,
    started: Instant,
    started_at: Option<u64>,
    last_line: Instant,
}

impl Display {
    /// A bar if standard error is a terminal.
    pub fn new(total_rows: u64) -> Display {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg} ETA {eta}");
            ProgressBar::new(total_rows).with_style(style.expect("a constant template"))
        });
        let now = Instant::now();
        Display { bar, total_rows, started: now, started_at: None, last_line: now }
    }

    /// Shows where things are; called often.
    pub fn update(&mut self, progress: &Progress) {
        let rows = Progress::of(&progress.rows);
        let started_at = *self.started_at.get_or_insert(rows);
        let elapsed = self.started.elapsed().as_secs_f64();
        let message = format!(
            "{} kept, {} rejected, {:.1} answers/s",
            Progress::of(&progress.kept),
            Progress::of(&progress.rejected),
            Progress::of(&progress.answered) as f64 / elapsed.max(0.001),
        );
        if let Some(bar) = &self.bar {
            bar.set_position(rows);
            bar.set_message(message);
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let done = rows.saturating_sub(started_at);
            let left = self.total_rows.saturating_sub(rows);
            let eta = match done {
                0 => "unknown".to_owned(),
                _ => HumanDuration(Duration::from_secs_f64(elapsed * left as f64 / done as f64)).to_string(),
            };
            eprintln!("row {rows} of {}: {message}, ETA {eta}", self.total_rows);
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
