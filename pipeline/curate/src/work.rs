//! Candidates to answers: many requests in flight on the network's threads, pixels on all cores, every answer
//! into the journal.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use fetch::{Fetched, Fetcher};
use tokio::sync::{mpsc as feed, oneshot};
use tokio::task::{JoinError, JoinSet};

use crate::error::Error;
use crate::journal::{Journal, Location};
use crate::measure::measure;
use crate::reason::Reason;
use crate::recipe::Recipe;
use crate::record::{Answer, Record, Rejection};
use crate::row::{Candidate, RowId};
use crate::stop::Stop;

/// Rows taken up for each request that may be in flight. Most of them wait for their host's turn, which may be long in
/// coming, and must not keep the rows of other hosts waiting; each takes some kilobytes.
const ROWS_PER_REQUEST: usize = 64;

/// How often a wait looks whether the run is to stop.
pub const STOP_POLL: Duration = Duration::from_millis(50);

/// What every answer needs.
#[derive(Clone)]
pub struct Worker {
    /// The network.
    pub fetcher: Fetcher,
    /// The rules.
    pub recipe: Arc<Recipe>,
    /// Where answers go.
    pub journal: Arc<Journal>,
    /// Who is told where an answer lies.
    pub answered: mpsc::Sender<(RowId, Location)>,
    /// Why to stop.
    pub stop: Stop,
}

impl Worker {
    /// Works until the candidates end or the run is to stop. Of the candidates in flight at a stop, some are
    /// answered and the others are asked for again by the next run.
    ///
    /// The fetcher bounds the requests, a row's from its request until its image is measured, and what bodies take.
    pub async fn run(self, mut candidates: feed::Receiver<Candidate>) {
        let most = self.recipe.fetch.concurrency.saturating_mul(ROWS_PER_REQUEST);
        let mut taken_up = JoinSet::new();
        let mut poll = tokio::time::interval(STOP_POLL);
        loop {
            tokio::select! {
                candidate = candidates.recv(), if taken_up.len() < most => match candidate {
                    Some(candidate) => drop(taken_up.spawn(self.clone().answer(candidate))),
                    None => break,
                },
                Some(joined) = taken_up.join_next() => self.look_at(joined),
                _ = poll.tick() => if self.stop.is_raised() { break },
            }
        }
        while !self.stop.is_raised() {
            tokio::select! {
                joined = taken_up.join_next() => match joined {
                    Some(joined) => self.look_at(joined),
                    None => return,
                },
                _ = poll.tick() => {}
            }
        }
        self.fetcher.close();
    }

    /// A row whose request panicked has no answer, and no run may end without it.
    fn look_at(&self, joined: Result<(), JoinError>) {
        if let Err(error) = joined {
            self.stop.raise(Error::Panicked(error.to_string()));
        }
    }

    async fn answer(self, candidate: Candidate) {
        let fetched = match self.fetcher.get(&candidate.url).await {
            Ok(fetched) => fetched,
            Err(outage) => return self.stop.raise(outage.into()),
        };
        let (finished, wait) = oneshot::channel();
        rayon::spawn(move || {
            self.measure_and_store(candidate, fetched);
            // Nobody waits any more where the run is stopping.
            let _ = finished.send(());
        });
        // An error means that the pixel thread is gone, and the process with it.
        let _ = wait.await;
    }

    fn measure_and_store(self, candidate: Candidate, fetched: Result<Fetched, fetch::Failure>) {
        let (answer, file) = match &fetched {
            Err(failure) => (Answer::None(failed(failure)), None),
            // A panic costs this image; what the closure borrows is not used by half afterwards.
            Ok(fetched) => catch_unwind(AssertUnwindSafe(|| measure(&fetched.body, &self.recipe)))
                .unwrap_or_else(|_| (Answer::None(panicked()), None)),
        };
        let key = candidate.key;
        match self.journal.append(&Record { candidate, answer }, file.as_ref()) {
            // Nobody listens any more where the run is stopping; the answer is in the journal all the same.
            Ok(location) => drop(self.answered.send((key, location))),
            Err(error) => self.stop.raise(error),
        }
    }
}

fn failed(failure: &fetch::Failure) -> Rejection {
    let status = failure.status.map_or(String::new(), |s| format!("status {s}, "));
    Rejection { reason: Reason::Fetch(failure.class), detail: format!("{status}{}", failure.detail) }
}

fn panicked() -> Rejection {
    Rejection { reason: Reason::Decode("decoder_panic"), detail: "measuring the image panicked".into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::DOCUMENT;

    #[test]
    fn a_request_that_panics_stops_the_run_with_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let text = "[fetch]\nuser_agent = \"test/1.0 (+https://example.org)\"\n\
                    [[source]]\nkind = \"laion\"\npaths = [\"/t\"]\n";
        std::fs::write(folder.path().join(DOCUMENT), text).unwrap();
        let recipe = Arc::new(Recipe::read(folder.path(), folder.path()).unwrap());
        let (journal, _) = Journal::open(&folder.path().join("answers"), None).unwrap();
        let worker = Worker {
            fetcher: recipe.fetch.fetcher().unwrap(),
            recipe,
            journal: Arc::new(journal),
            answered: mpsc::channel().0,
            stop: Stop::default(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let joined = runtime.block_on(async { tokio::spawn(async { panic!("of a test") }).await });
        worker.look_at(joined);
        let error = worker.stop.check().unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("of a test"), "{error}");
    }
}
