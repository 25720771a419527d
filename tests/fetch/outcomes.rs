//! What answers come to: faults 6, 7 and 8.

use std::time::{Duration, SystemTime};

use fetch::FailureClass::{
    ClientError, Connect, Dns, Forbidden, Gone, NotFound, OptedOut, RateLimited, ServerError, UnexpectedStatus,
};
use fetch::Fetcher;

use crate::server::{Server, answer, moved, ok};
use crate::{Names, class, config, get};

#[tokio::test]
async fn permanent_failures_are_asked_for_once() {
    for (status, expected) in [
        ("404 Not Found", NotFound),
        ("410 Gone", Gone),
        ("403 Forbidden", Forbidden),
        ("401 Unauthorized", Forbidden),
        ("451 Unavailable For Legal Reasons", Forbidden),
        ("400 Bad Request", ClientError),
        ("206 Partial Content", UnexpectedStatus),
        ("304 Not Modified", UnexpectedStatus),
    ] {
        let server = Server::saying(answer(status, "", b"x")).await;
        let mut config = config();
        config.retry.attempts = 5;
        let failure = get(config, &server.url("/")).await.unwrap_err();
        let code = status[..3].parse().ok();
        assert_eq!((failure.class, failure.status, failure.attempts), (expected, code, 1), "{status}");
        assert_eq!(server.connections(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_looked_up_once() {
    let names = Names::new([]);
    let mut config = config();
    config.retry.attempts = 5;
    let fetcher = Fetcher::with_lookup(config, names.clone()).unwrap();
    let failure = fetcher.get("http://gone.example/a.jpg").await.unwrap().unwrap_err();
    assert_eq!((failure.class, failure.attempts, names.lookups()), (Dns, 1, 1));
}

#[tokio::test]
async fn opted_out_images_are_neither_read_nor_asked_for_again() {
    for tag in ["noai", "noimageai", "noindex", "nofollow, noimageindex", "stepdown-test: noai"] {
        let server = Server::saying(answer("200 OK", &format!("X-Robots-Tag: {tag}\r\n"), b"image")).await;
        let mut config = config();
        config.retry.attempts = 5;
        assert_eq!(class(config.clone(), &server.url("/")).await, OptedOut, "{tag}");
        assert_eq!(server.connections(), 1);
        config.honour_opt_outs = false;
        assert_eq!(&get(config, &server.url("/")).await.unwrap().body[..], b"image", "{tag}");
    }
    let server = Server::saying(answer("200 OK", "X-Robots-Tag: googlebot: noindex\r\n", b"image")).await;
    assert_eq!(&get(config(), &server.url("/")).await.unwrap().body[..], b"image", "others were addressed");
}

#[tokio::test]
async fn passing_failures_are_tried_again_and_counted() {
    let server = Server::saying_in_turn(vec![
        answer("500 Internal Server Error", "", b""),
        answer("408 Request Timeout", "", b""),
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut".to_vec(),
        ok(b"at last"),
    ])
    .await;
    let mut config = config();
    config.retry.attempts = 4;
    let fetched = get(config.clone(), &server.url("/")).await.unwrap();
    assert_eq!((&fetched.body[..], fetched.attempts), (&b"at last"[..], 4));
    config.retry.attempts = 3;

    let server = Server::saying(answer("502 Bad Gateway", "", b"")).await;
    let failure = get(config, &server.url("/")).await.unwrap_err();
    assert_eq!((failure.class, failure.attempts, server.connections()), (ServerError, 3, 3));
}

#[tokio::test]
async fn a_refused_connection_is_tried_again() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let mut config = config();
    config.retry.attempts = 2;
    let failure = get(config, &format!("http://127.0.0.1:{port}/")).await.unwrap_err();
    assert_eq!((failure.class, failure.attempts), (Connect, 2));
}

/// Asks a server that first says `429` with this header, then gives the image.
async fn gap_after(retry_after: &str) -> Duration {
    let server = Server::saying_in_turn(vec![
        answer("429 Too Many Requests", &format!("Retry-After: {retry_after}\r\n"), b""),
        ok(b"image"),
    ])
    .await;
    let mut config = config();
    config.retry.attempts = 2;
    assert_eq!(get(config, &server.url("/")).await.unwrap().attempts, 2);
    server.first_gap()
}

#[tokio::test]
async fn retry_after_in_seconds_is_waited_for() {
    let gap = gap_after("1").await;
    assert!(gap >= Duration::from_secs(1) && gap < Duration::from_secs(2), "{gap:?}");
}

#[tokio::test]
async fn retry_after_as_a_date_is_waited_for() {
    // Dates have whole seconds: two ahead is between one and two.
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(2));
    let gap = gap_after(&date).await;
    assert!(gap >= Duration::from_millis(950) && gap < Duration::from_secs(3), "{gap:?}");
}

#[tokio::test]
async fn retry_after_that_is_garbage_is_backed_off_from() {
    let gap = gap_after("soon").await;
    assert!(gap < Duration::from_millis(500), "{gap:?}");
}

#[tokio::test]
async fn a_held_host_is_asked_by_nobody() {
    let server =
        Server::saying_in_turn(vec![answer("503 Service Unavailable", "Retry-After: 1\r\n", b""), ok(b"image")]).await;
    let mut config = config();
    config.retry.attempts = 2;
    let fetcher = Fetcher::new(config).unwrap();
    let first = fetcher.get(&server.url("/first")).await;
    assert!(first.unwrap().is_ok());
    assert!(server.first_gap() >= Duration::from_secs(1));

    // Now one URL is told to wait, and others come meanwhile.
    let server =
        Server::saying_in_turn(vec![answer("429 Too Many Requests", "Retry-After: 1\r\n", b""), ok(b"image")]).await;
    let told = tokio::spawn({
        let (fetcher, url) = (fetcher.clone(), server.url("/told"));
        async move { fetcher.get(&url).await }
    });
    while server.connections() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let others: Vec<_> = (0..10).map(|i| server.url(&format!("/{i}"))).collect();
    let others = futures::future::join_all(others.iter().map(|url| fetcher.get(url))).await;
    assert!(others.into_iter().all(|other| other.unwrap().is_ok()));
    assert!(told.await.unwrap().unwrap().is_ok());
    assert!(server.first_gap() >= Duration::from_secs(1), "{:?}", server.first_gap());
}

#[tokio::test]
async fn a_hold_longer_than_is_waited_for_ends_the_host_s_urls_without_a_request() {
    for huge in ["3600", "99999999999999999999999"] {
        let server = Server::saying(answer("429 Too Many Requests", &format!("Retry-After: {huge}\r\n"), b"")).await;
        let mut config = config();
        config.retry.attempts = 5;
        let fetcher = Fetcher::new(config).unwrap();
        for path in ["/a", "/b", "/c"] {
            let failure = fetcher.get(&server.url(path)).await.unwrap().unwrap_err();
            assert_eq!(failure.class, RateLimited, "{huge}");
        }
        assert_eq!(server.connections(), 1, "{huge}: none but the first was sent");
    }
}

#[tokio::test]
async fn a_page_at_200_is_bytes_like_any_other() {
    let page = b"<!doctype html><title>gone</title>";
    let server = Server::saying(answer("200 OK", "Content-Type: image/jpeg\r\n", page)).await;
    let fetched = get(config(), &server.url("/a.jpg")).await.unwrap();
    assert_eq!((&fetched.body[..], fetched.content_type.as_deref()), (&page[..], Some("image/jpeg")));
}

#[tokio::test]
async fn requests_say_who_asks_and_nothing_else() {
    let server =
        Server::saying_in_turn(vec![answer("302 Found", "Location: /next\r\nSet-Cookie: a=b\r\n", b""), ok(b"image")])
            .await;
    let url = server.url("/a?b=c#fragment").replace("http://", "http://user:secret@");
    get(config(), &url).await.unwrap();
    for request in server.requests() {
        let request = request.to_ascii_lowercase();
        assert!(request.contains("user-agent: stepdown-test/0.1 (+https://example.org)\r\n"), "{request}");
        assert!(request.contains("accept-encoding: identity\r\n"), "{request}");
        for absent in ["cookie", "authorization", "referer", "fragment", "secret"] {
            assert!(!request.contains(absent), "{absent} in {request}");
        }
    }
    assert!(server.requests()[0].starts_with("GET /a?b=c HTTP/1.1\r\n"));
}

#[tokio::test]
async fn a_redirect_may_change_the_host() {
    let image = Server::saying(ok(b"image")).await;
    let server = Server::saying(moved(&image.url("/there"))).await;
    let fetched = get(config(), &server.url("/here")).await.unwrap();
    assert_eq!(fetched.final_url, image.url("/there"));
}
