//! What a fetcher does with servers that stall, lie, flood, redirect and refuse: each fault of the
//! table in the reliability notes that a URL can meet, played by a server on loopback.

mod addresses;
mod limits;
mod network;
mod outcomes;
mod server;
mod tls;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fetch::{AllowList, Failure, FailureClass, FetchConfig, Fetched, Fetcher, Lookup};
use futures::future::BoxFuture;

/// Limits short enough for a test, with loopback allowed and one try.
fn config() -> FetchConfig {
    let mut config = FetchConfig::standard("stepdown-test/0.1 (+https://example.org)");
    config.allow = AllowList::parse(&["127.0.0.1:*"]).unwrap();
    config.timeouts.connect = Duration::from_millis(300);
    config.timeouts.first_byte = Duration::from_millis(400);
    config.timeouts.read = Duration::from_millis(200);
    config.timeouts.total = Duration::from_millis(1500);
    config.bytes.max_body = 1 << 20;
    config.bytes.min_speed = 0;
    config.retry.attempts = 1;
    config.retry.base = Duration::from_millis(20);
    config.retry.retry_after_cap = Duration::from_secs(5);
    config
}

/// Fetches one URL with these settings; the network is up.
async fn get(config: FetchConfig, url: &str) -> Result<Fetched, Failure> {
    Fetcher::new(config).unwrap().get(url).await.expect("no outage")
}

/// The class that fetching one URL ends in.
async fn class(config: FetchConfig, url: &str) -> FailureClass {
    get(config, url).await.expect_err("a failure").class
}

/// Names that resolve as a test says; each lookup takes the next answer, the last one stays.
#[derive(Debug, Default)]
struct Names {
    answers: HashMap<&'static str, Mutex<Vec<Vec<IpAddr>>>>,
    lookups: AtomicUsize,
}

impl Names {
    fn new<const N: usize>(names: [(&'static str, Vec<Vec<[u8; 4]>>); N]) -> Arc<Self> {
        let addresses = |answers: Vec<Vec<[u8; 4]>>| {
            let answer = |octets: Vec<[u8; 4]>| octets.into_iter().map(|o| IpAddr::V4(Ipv4Addr::from(o))).collect();
            Mutex::new(answers.into_iter().map(answer).collect())
        };
        let answers = names.into_iter().map(|(name, answers)| (name, addresses(answers))).collect();
        Arc::new(Self { answers, lookups: AtomicUsize::new(0) })
    }

    fn lookups(&self) -> usize {
        self.lookups.load(Ordering::SeqCst)
    }
}

impl Lookup for Names {
    fn lookup(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        self.lookups.fetch_add(1, Ordering::SeqCst);
        let answer = match self.answers.get(host.as_str()) {
            None => Err(io::Error::new(io::ErrorKind::NotFound, "no such name")),
            Some(answers) => {
                let mut answers = answers.lock().unwrap();
                Ok(if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() })
            }
        };
        Box::pin(async move {
            // Long enough for those that ask at the same time to meet.
            tokio::time::sleep(Duration::from_millis(20)).await;
            answer
        })
    }
}
