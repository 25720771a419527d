//! Faults 3 and 4: nothing makes the fetcher knock where it must not. A canary listens on
//! loopback and is never heard of.

use std::sync::Arc;
use std::time::Duration;

use fetch::FailureClass::{BadRedirect, BlockedIp, BlockedScheme, InvalidUrl, TooManyRedirects};
use fetch::{AllowList, FailureClass, FetchConfig, Fetcher};

use crate::server::{Server, answer, moved, ok};
use crate::{Names, class, config, get};

/// Spellings of hosts that no request may be sent to. All but the last block are ways to this
/// machine; the canary's port is added to each.
const HOSTILE: &[&str] = &[
    // IPv4 loopback: dotted, with fewer parts, octal, hexadecimal, one number, mixed.
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127.0.1",
    "127.255.255.254",
    "127.127.127.127",
    "0177.0.0.1",
    "0177.0.0.01",
    "0x7f.0.0.1",
    "0x7f.0x0.0x0.0x1",
    "0x7f.1",
    "0x7f000001",
    "0x7F000001",
    "017700000001",
    "2130706433",
    "127.0x1",
    "00000177.1",
    // The same through the host parser: percent signs, wide and circled digits, ideographic stops.
    "%31%32%37.0.0.1",
    "127%2e0%2e0%2e1",
    "１２７.０.０.１",
    "①②⑦.⓪.⓪.①",
    "127。0。0。1",
    "127\t.0.0.1",
    "127.0.0.\n1",
    // This network, which Linux takes for loopback.
    "0.0.0.0",
    "0",
    "0.1.2.3",
    "0x0",
    // IPv6 loopback and unspecified.
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[0000::0001]",
    "[::]",
    // IPv4 in IPv6: mapped, compatible, NAT64, local NAT64, 6to4, Teredo, ISATAP.
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[0:0:0:0:0:ffff:127.0.0.1]",
    "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::127.0.0.1]",
    "[2002:7f00:1::]",
    "[2001:0:7f00:1::]",
    "[fe80::5efe:127.0.0.1]",
    // Credentials before the host.
    "example.org@127.0.0.1",
    "example.org:80@127.0.0.1",
    // Names: the resolver of these tests says 127.0.0.1 to each.
    "localhost",
    "LOCALHOST",
    "localhost.",
    "rebound.example",
    // Elsewhere in the operator's network, or nowhere.
    "169.254.169.254",
    "0xa9fea9fe",
    "2852039166",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[fe80::1]",
    "[fd00:ec2::254]",
    "[fc00::1]",
    "[fec0::1]",
    "[ff02::1]",
    "[100::1]",
    "[2001:db8::1]",
    "[3fff::1]",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.200",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
];

/// As [`config`], with nothing allowed.
fn closed() -> FetchConfig {
    FetchConfig { allow: AllowList::none(), ..config() }
}

fn loopback_names() -> Arc<Names> {
    let loopback = || vec![vec![[127, 0, 0, 1]]];
    Names::new([("localhost", loopback()), ("localhost.", loopback()), ("rebound.example", loopback())])
}

#[tokio::test]
async fn hostile_addresses_are_never_connected_to() {
    let canary = Server::saying(ok(b"reached")).await;
    let fetcher = Fetcher::with_lookup(closed(), loopback_names()).unwrap();
    assert!(HOSTILE.len() >= 60);
    for host in HOSTILE {
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://{host}:{}/", canary.port());
            let failure = fetcher.get(&url).await.unwrap().unwrap_err();
            assert_eq!(failure.class, BlockedIp, "{url}: {}", failure.detail);
        }
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn the_canary_can_be_heard() {
    let canary = Server::saying(ok(b"reached")).await;
    assert_eq!(&get(config(), &canary.url("/")).await.unwrap().body[..], b"reached");
    assert_eq!(canary.connections(), 1, "without the guard, the test above would have seen it");
}

#[tokio::test]
async fn no_redirect_leads_to_a_hostile_address() {
    let canary = Server::saying(ok(b"reached")).await;
    for host in HOSTILE.iter().filter(|host| host.is_ascii() && !host.contains(['\t', '\n'])) {
        let server = Server::saying(moved(&format!("http://{host}:{}/", canary.port()))).await;
        let allow = AllowList::parse(&[format!("127.0.0.1:{}", server.port())]).unwrap();
        let fetcher = Fetcher::with_lookup(FetchConfig { allow, ..config() }, loopback_names()).unwrap();
        let failure = fetcher.get(&server.url("/")).await.unwrap().unwrap_err();
        assert_eq!(failure.class, BlockedIp, "{host}: {}", failure.detail);
        assert_eq!(server.connections(), 1);
    }
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn a_name_bound_anew_is_checked_anew() {
    let server = Server::start_on("127.0.0.2:0", |_, _, mut stream| async move {
        use tokio::io::AsyncWriteExt;
        let _ = stream.write_all(&ok(b"fine")).await;
    })
    .await;
    let canary = Server::start_on(&format!("127.0.0.1:{}", server.port()), |_, _, _| std::future::ready(())).await;
    let names = Names::new([("rebound.example", vec![vec![[127, 0, 0, 2]], vec![[127, 0, 0, 1]]])]);
    let allow = AllowList::parse(&["127.0.0.2:*"]).unwrap();
    let fetcher =
        Fetcher::with_lookup(FetchConfig { allow, dns_ttl: Duration::ZERO, ..config() }, names.clone()).unwrap();
    let url = format!("http://rebound.example:{}/", server.port());
    assert_eq!(&fetcher.get(&url).await.unwrap().unwrap().body[..], b"fine");
    assert_eq!(fetcher.get(&url).await.unwrap().unwrap_err().class, BlockedIp);
    assert_eq!((names.lookups(), canary.connections()), (2, 0));
}

#[tokio::test]
async fn of_mixed_addresses_only_the_permitted_are_tried() {
    let server = Server::start_on("127.0.0.2:0", |_, _, mut stream| async move {
        use tokio::io::AsyncWriteExt;
        let _ = stream.write_all(&ok(b"fine")).await;
    })
    .await;
    let canary = Server::start_on(&format!("127.0.0.1:{}", server.port()), |_, _, _| std::future::ready(())).await;
    let names = Names::new([("mixed.example", vec![vec![[127, 0, 0, 1], [127, 0, 0, 2]]])]);
    let allow = AllowList::parse(&["127.0.0.2:*"]).unwrap();
    let fetcher = Fetcher::with_lookup(FetchConfig { allow, ..config() }, names).unwrap();
    let url = format!("http://mixed.example:{}/", server.port());
    assert_eq!(&fetcher.get(&url).await.unwrap().unwrap().body[..], b"fine");
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn an_address_allowed_on_one_port_is_blocked_on_the_others() {
    let canary = Server::saying(ok(b"reached")).await;
    let server = Server::saying(ok(b"fine")).await;
    let allow = AllowList::parse(&[format!("127.0.0.1:{}", server.port())]).unwrap();
    let fetcher = Fetcher::with_lookup(FetchConfig { allow, ..config() }, loopback_names()).unwrap();
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let url = |port| format!("http://{host}:{port}/");
        let allowed = fetcher.get(&url(server.port())).await.unwrap();
        assert_eq!(&allowed.expect(host).body[..], b"fine");
        assert_eq!(fetcher.get(&url(canary.port())).await.unwrap().unwrap_err().class, BlockedIp, "{host}");
    }
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn only_http_is_spoken() {
    for url in [
        "file:///etc/passwd",
        "gopher://127.0.0.1:70/_x",
        "ftp://example.org/a.jpg",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "dict://127.0.0.1:11211/stat",
    ] {
        assert_eq!(class(config(), url).await, BlockedScheme, "{url}");
        let server = Server::saying(moved(url)).await;
        assert_eq!(class(config(), &server.url("/")).await, BlockedScheme, "a redirect to {url}");
    }
}

#[tokio::test]
async fn what_is_no_url_is_said_to_be_none() {
    for url in
        ["", "   ", "example.org/a.jpg", "//example.org/a.jpg", "http://", "http://:80/", "http://[::1", "http://a b/"]
    {
        assert_eq!(class(config(), url).await, InvalidUrl, "{url:?}");
    }
}

#[tokio::test]
async fn at_most_five_hops_are_followed() {
    // /n redirects to /n-1; /0 is there.
    let server = Server::start(|_, request, mut stream| async move {
        use tokio::io::AsyncWriteExt;
        let hops: u32 = request.split(['/', ' ']).nth(2).unwrap().parse().unwrap();
        let answer = if hops == 0 { ok(b"arrived") } else { moved(&format!("/{}", hops - 1)) };
        let _ = stream.write_all(&answer).await;
    })
    .await;
    let arrived = get(config(), &server.url("/5")).await.unwrap();
    assert_eq!((&arrived.body[..], arrived.final_url), (&b"arrived"[..], server.url("/0")));
    assert_eq!(class(config(), &server.url("/6")).await, TooManyRedirects);
}

#[tokio::test]
async fn a_loop_ends() {
    let server = Server::saying(moved("/again")).await;
    assert_eq!(class(config(), &server.url("/")).await, TooManyRedirects);
    assert_eq!(server.connections(), 6, "the request and five hops");
}

#[tokio::test]
async fn a_redirect_says_where_to() {
    for (headers, expected) in [
        ("", BadRedirect),
        ("Location: http://[broken/\r\n", BadRedirect),
        ("Location: \u{e9}\u{e8}\r\n", FailureClass::TooManyRedirects),
    ] {
        let server = Server::saying(answer("301 Moved Permanently", headers, b"")).await;
        assert_eq!(class(config(), &server.url("/")).await, expected, "{headers:?}");
    }
}

/// The seeds of the fuzz targets `address_filter` and `retry_after`.
#[test]
fn the_fuzz_corpora_are_met_without_a_panic() {
    let read = |target: &str| -> Vec<Vec<u8>> {
        let folder = format!("{}/../../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
    };
    let addresses = read("address_filter");
    let public = addresses
        .iter()
        .filter_map(|text| std::str::from_utf8(text).ok()?.parse().ok())
        .filter(|&a| fetch::is_public(a));
    assert_eq!(public.count(), 2, "two of the seeds are public");
    let waits = read("retry_after");
    assert!(
        waits.iter().filter_map(|value| fetch::parse_retry_after(value, std::time::SystemTime::UNIX_EPOCH)).count()
            >= 6
    );
}
