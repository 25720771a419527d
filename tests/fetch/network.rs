//! Many requests at once, and the network as a whole.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fetch::FailureClass::{ConnectTimeout, DnsUnavailable};
use fetch::{BreakerPolicy, ConfigError, FailureClass, FetchConfig, Fetcher, Lookup};
use futures::future::{BoxFuture, join_all};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::server::{Server, ok, read_head};
use crate::{Names, config};

/// How many requests a server is at, and was at the most.
#[derive(Debug, Default)]
struct InFlight {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// A server that takes 30 ms for each answer.
async fn unhurried() -> (Server, Arc<InFlight>) {
    let in_flight = Arc::new(InFlight::default());
    let counted = in_flight.clone();
    let server = Server::start(move |_, _, mut stream| {
        let counted = counted.clone();
        async move {
            let now = counted.now.fetch_add(1, Ordering::SeqCst) + 1;
            counted.most.fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(30)).await;
            counted.now.fetch_sub(1, Ordering::SeqCst);
            let _ = stream.write_all(&ok(b"image")).await;
        }
    })
    .await;
    (server, in_flight)
}

#[tokio::test]
async fn no_host_sees_more_requests_at_once_than_allowed() {
    let (server, in_flight) = unhurried().await;
    let fetcher = Fetcher::new(FetchConfig { per_host: 3, concurrency: 64, ..config() }).unwrap();
    let urls: Vec<_> = (0..30).map(|i| server.url(&format!("/{i}"))).collect();
    let all = join_all(urls.iter().map(|url| fetcher.get(url))).await;
    assert!(all.into_iter().all(|one| one.unwrap().is_ok()));
    assert_eq!(in_flight.most.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn no_more_requests_are_in_flight_than_allowed() {
    let (server, in_flight) = unhurried().await;
    let names = ["a.example", "b.example", "c.example", "d.example"];
    let lookup = Names::new(names.map(|name| (name, vec![vec![[127, 0, 0, 1]]])));
    let fetcher = Fetcher::with_lookup(FetchConfig { per_host: 8, concurrency: 5, ..config() }, lookup).unwrap();
    let urls: Vec<_> = (0..40).map(|i| format!("http://{}:{}/{i}", names[i % 4], server.port())).collect();
    // A body is in flight until it is dropped, here at once.
    let all = join_all(urls.iter().map(async |url| fetcher.get(url).await.unwrap().is_ok())).await;
    assert!(all.into_iter().all(|is_ok| is_ok));
    assert_eq!(in_flight.most.load(Ordering::SeqCst), 5);

    let one = Fetcher::new(FetchConfig { concurrency: 1, ..config() }).unwrap();
    let (held, url) = (one.get(&server.url("/held")).await.unwrap().unwrap(), server.url("/next"));
    let mut next = Box::pin(one.get(&url));
    let waiting = tokio::time::timeout(Duration::from_millis(200), &mut next).await;
    assert!(waiting.is_err() && server.connections() == 41, "whoever holds a body holds its place");
    drop(held);
    assert!(next.await.unwrap().is_ok());
}

#[tokio::test]
async fn who_waits_for_a_host_takes_nobody_s_place() {
    let silent = Server::start(|_, _, stream| async move {
        let _open = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let (server, _) = unhurried().await;
    let names = Names::new(["slow.example", "fast.example"].map(|name| (name, vec![vec![[127, 0, 0, 1]]])));
    let config = FetchConfig { per_host: 1, concurrency: 2, ..config() };
    let fetcher = Fetcher::with_lookup(config, names).unwrap();
    let slow: Vec<_> = (0..20).map(|i| format!("http://slow.example:{}/{i}", silent.port())).collect();
    let mut slow = Box::pin(join_all(slow.iter().map(|url| fetcher.get(url))));
    let fast = async {
        for i in 0..8 {
            let url = format!("http://fast.example:{}/{i}", server.port());
            assert!(fetcher.get(&url).await.unwrap().is_ok());
        }
    };
    tokio::select! {
        _ = &mut slow => panic!("twenty rows of a silent host came first"),
        () = fast => {}
    }
}

#[tokio::test]
async fn no_request_begins_once_the_fetcher_is_closed() {
    let may_answer = Arc::new(Semaphore::new(0));
    let gate = may_answer.clone();
    let server = Server::start(move |_, _, mut stream| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            let _ = stream.write_all(&ok(b"image")).await;
        }
    })
    .await;
    let fetcher = Fetcher::new(FetchConfig { per_host: 3, concurrency: 2, ..config() }).unwrap();
    let urls: Vec<_> = (0..12).map(|i| server.url(&format!("/{i}"))).collect();
    let answered = AtomicUsize::new(0);
    let all = join_all(urls.iter().map(async |url| {
        assert!(fetcher.get(url).await.unwrap().is_ok());
        answered.fetch_add(1, Ordering::SeqCst);
    }));
    let closed = async {
        while server.requests().len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        fetcher.close();
        may_answer.add_permits(urls.len());
        while answered.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    tokio::select! {
        _ = all => panic!("all were asked for"),
        () = closed => {}
    }
    assert_eq!((answered.load(Ordering::SeqCst), server.connections()), (2, 2));
}

#[tokio::test]
async fn a_name_is_looked_up_once_for_all_that_need_it() {
    let (server, _) = unhurried().await;
    let names = Names::new([("a.example", vec![vec![[127, 0, 0, 1]]])]);
    let fetcher = Fetcher::with_lookup(FetchConfig { per_host: 20, ..config() }, names.clone()).unwrap();
    let urls: Vec<_> = (0..20).map(|i| format!("http://a.example:{}/{i}", server.port())).collect();
    let all = join_all(urls.iter().map(|url| fetcher.get(url))).await;
    assert!(all.into_iter().all(|one| one.unwrap().is_ok()));
    assert_eq!(names.lookups(), 1);
}

/// A name server that can be switched off.
#[derive(Debug)]
struct Switchable(AtomicBool);

impl Lookup for Switchable {
    fn lookup(&self, _: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let up = self.0.load(Ordering::SeqCst);
        Box::pin(async move {
            if up {
                Ok(vec![[127, 0, 0, 1].into()])
            } else {
                Err(io::Error::other("Temporary failure in name resolution"))
            }
        })
    }
}

#[tokio::test]
async fn a_dead_name_server_stops_the_run_and_marks_few() {
    let (server, _) = unhurried().await;
    let names = Arc::new(Switchable(AtomicBool::new(true)));
    let breaker = BreakerPolicy { failures: 10, hosts: 5 };
    let fetcher = Fetcher::with_lookup(FetchConfig { breaker, ..config() }, names.clone()).unwrap();
    let url = |i: usize| format!("http://h{i}.example:{}/", server.port());
    for i in 0..20 {
        assert!(fetcher.get(&url(i)).await.unwrap().is_ok());
    }
    names.0.store(false, Ordering::SeqCst);
    let mut failed = 0;
    let outage = loop {
        match fetcher.get(&url(100 + failed)).await {
            Ok(outcome) => assert_eq!(outcome.unwrap_err().class, DnsUnavailable),
            Err(outage) => break outage,
        }
        failed += 1;
        assert!(failed < 10, "{failed} URLs were marked");
    };
    assert_eq!((outage.what, outage.failures), ("name resolutions", 10));
    names.0.store(true, Ordering::SeqCst);
    assert_eq!(fetcher.get(&url(0)).await, Err(outage), "until another run");
}

/// A port of this machine at which nobody listens.
fn closed_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Linux finds no way to a multicast address by TCP, as it finds none to any address without a network.
#[tokio::test]
async fn a_network_without_a_way_out_is_an_outage_but_not_on_one_host() {
    let breaker = BreakerPolicy { failures: 10, hosts: 5 };
    let fetcher = || {
        let allow = fetch::AllowList::parse(&(1..=9).map(|n| format!("224.0.0.{n}:*")).collect::<Vec<_>>()).unwrap();
        Fetcher::new(FetchConfig { breaker, allow, ..config() }).unwrap()
    };
    let one_host = fetcher();
    for i in 0..30 {
        let outcome = one_host.get(&format!("http://224.0.0.1/{i}")).await;
        assert_eq!(outcome.unwrap().unwrap_err().class, FailureClass::Connect);
    }
    let many = fetcher();
    let mut outage = None;
    for i in 0..10 {
        outage = outage.or(many.get(&format!("http://224.0.0.{}/", 1 + i % 9)).await.err());
    }
    assert_eq!(outage.map(|outage| outage.what), Some("connections"));
}

/// As where rows are asked for again that failed like this before.
#[tokio::test]
async fn hosts_that_are_gone_are_no_outage_however_many() {
    let port = closed_port();
    let breaker = BreakerPolicy { failures: 10, hosts: 5 };
    let names = Arc::new(Switchable(AtomicBool::new(true)));
    let refusing = Fetcher::with_lookup(FetchConfig { breaker, ..config() }, names).unwrap();
    let unknown = Fetcher::with_lookup(FetchConfig { breaker, ..config() }, Names::new([])).unwrap();
    for i in 0..40 {
        let url = format!("http://h{i}.example:{port}/");
        assert_eq!(refusing.get(&url).await.unwrap().unwrap_err().class, FailureClass::Connect);
        assert_eq!(unknown.get(&url).await.unwrap().unwrap_err().class, FailureClass::Dns);
    }
}

/// A server that answers until it is told to be silent: from then on nobody takes its connections, and the kernel drops
/// attempts at more than it holds for it, as a network does that is gone.
struct Fading {
    port: u16,
    silence: Arc<tokio::sync::Notify>,
    serving: tokio::task::JoinHandle<TcpListener>,
}

impl Fading {
    fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let port = listener.local_addr().unwrap().port();
        let silence = Arc::new(tokio::sync::Notify::new());
        let told = silence.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap(),
                    () = told.notified() => return listener,
                };
                read_head(&mut stream).await;
                stream.write_all(&ok(b"image")).await.unwrap();
            }
        });
        Self { port, silence, serving }
    }

    /// Returns what has to be kept for the silence to last.
    async fn fade(self) -> (TcpListener, Vec<TcpStream>) {
        self.silence.notify_one();
        let listener = self.serving.await.unwrap();
        let mut held = Vec::new();
        // One attempt may fail for want of a processor.
        let mut dropped = 0;
        while dropped < 3 {
            match timeout(Duration::from_millis(300), TcpStream::connect(("127.0.0.1", self.port))).await {
                Ok(stream) => held.push(stream.unwrap()),
                Err(_) => dropped += 1,
            }
        }
        (listener, held)
    }
}

/// A fetcher to which ten requests without an answer are suspicious, and all names this machine's.
fn suspicious() -> Fetcher {
    let breaker = BreakerPolicy { failures: 10, hosts: 5 };
    let names = Arc::new(Switchable(AtomicBool::new(true)));
    Fetcher::with_lookup(FetchConfig { breaker, ..config() }, names).unwrap()
}

/// Ten hosts at a port, all at once.
async fn ten(fetcher: &Fetcher, port: u16) -> Vec<Result<FailureClass, fetch::Outage>> {
    let outcomes = join_all((0..10).map(|i| {
        let fetcher = fetcher.clone();
        async move { fetcher.get(&format!("http://h{i}.example:{port}/")).await }
    }));
    outcomes.await.into_iter().map(|outcome| outcome.map(|outcome| outcome.unwrap_err().class)).collect()
}

#[tokio::test]
async fn a_network_that_falls_silent_is_an_outage() {
    let fetcher = suspicious();
    let server = Fading::start();
    let port = server.port;
    assert!(fetcher.get(&format!("http://h0.example:{port}/")).await.unwrap().is_ok());
    let _silence = server.fade().await;
    let outcomes = ten(&fetcher, port).await;
    let outage = outcomes.into_iter().find_map(Result::err).expect("an outage");
    assert_eq!((outage.what, outage.failures, outage.hosts), ("requests", 10, 5));
    assert_eq!(fetcher.get("http://h0.example/").await, Err(outage));
}

/// As at the end of a run, when only they are left.
#[tokio::test]
async fn silent_hosts_are_no_outage_while_others_can_be_reached() {
    let fetcher = suspicious();
    let (answering, _) = unhurried().await;
    let silent = Fading::start();
    for port in [silent.port, answering.port()] {
        assert!(fetcher.get(&format!("http://h0.example:{port}/")).await.unwrap().is_ok());
    }
    let port = silent.port;
    let _silence = silent.fade().await;
    for _ in 0..3 {
        assert!(ten(&fetcher, port).await.into_iter().all(|outcome| outcome == Ok(ConnectTimeout)));
    }
}

/// As where rows are asked for again whose hosts were silent before.
#[tokio::test]
async fn silent_hosts_are_no_outage_where_nobody_answered_yet() {
    let fetcher = suspicious();
    let silent = Fading::start();
    let port = silent.port;
    let _silence = silent.fade().await;
    for _ in 0..3 {
        assert!(ten(&fetcher, port).await.into_iter().all(|outcome| outcome == Ok(ConnectTimeout)));
    }
}

/// A name server that is silent, behind a resolver that gives up later than a connection does.
#[derive(Debug)]
struct SlowToGiveUp;

impl Lookup for SlowToGiveUp {
    fn lookup(&self, _: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(600)).await;
            Err(io::Error::other("Temporary failure in name resolution"))
        })
    }
}

#[tokio::test]
async fn a_resolver_that_gives_up_after_the_connection_did_is_an_outage_too() {
    let breaker = BreakerPolicy { failures: 10, hosts: 5 };
    let fetcher = Fetcher::with_lookup(FetchConfig { breaker, ..config() }, Arc::new(SlowToGiveUp)).unwrap();
    let outcomes = join_all((0..10).map(|i| {
        let fetcher = fetcher.clone();
        async move { fetcher.get(&format!("http://h{i}.example/")).await }
    }));
    assert!(outcomes.await.into_iter().all(|outcome| outcome.unwrap().unwrap_err().class == ConnectTimeout));
    tokio::time::sleep(Duration::from_millis(600)).await;
    let outage = fetcher.get("http://another.example/").await.unwrap_err();
    assert_eq!((outage.what, outage.failures), ("name resolutions", 10));
}

/// A name server that never answers.
#[derive(Debug)]
struct Silent;

impl Lookup for Silent {
    fn lookup(&self, _: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_silent_name_server_is_a_connect_timeout() {
    let fetcher = Fetcher::with_lookup(config(), Arc::new(Silent)).unwrap();
    let failure = fetcher.get("http://a.example/").await.unwrap().unwrap_err();
    assert_eq!(failure.class, ConnectTimeout, "{failure}");
}

#[test]
fn a_configuration_that_cannot_work_is_refused() {
    for (change, field) in [
        ((|c| c.concurrency = 0) as fn(&mut FetchConfig), "concurrency"),
        (|c| c.per_host = 0, "per_host"),
        (|c| c.retry.attempts = 0, "retry.attempts"),
        (|c| c.timeouts.total = Duration::ZERO, "timeouts.total"),
    ] {
        let mut config = config();
        change(&mut config);
        assert!(matches!(Fetcher::new(config), Err(ConfigError::Zero(name)) if name == field), "{field}");
    }
    for agent in ["", " leading", "two\nlines", "(only a comment)", "caf\u{e9}/1"] {
        let config = FetchConfig { user_agent: agent.into(), ..config() };
        assert!(matches!(Fetcher::new(config), Err(ConfigError::UserAgent(_))), "{agent:?}");
    }
    for entry in ["127.0.0.1", "localhost:80", "127.0.0.1:0", "127.0.0.1:99999", "::1:80", "*:80", "10.0.0.0/8:80"] {
        assert!(matches!(fetch::AllowList::parse(&[entry]), Err(ConfigError::Allow(_))), "{entry}");
    }
}

#[test]
fn the_names_of_failure_classes_are_those_that_serde_writes() {
    for class in FailureClass::ALL {
        assert_eq!(serde_json::to_string(&class).unwrap(), format!("\"{}\"", class.name()));
    }
    let mut names = FailureClass::ALL.map(FailureClass::name);
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
}
