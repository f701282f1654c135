//! Upstreams that break off, lie about lengths, or never end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncWriteExt;

use crate::world::proxy::{one_route, one_route_with_redis};
use crate::world::{Proxy, RawOrigin, Redis, client, get};

async fn check_not_stored(answer: &'static [u8], client_sees_an_error: bool) {
    let origin = RawOrigin::writing(answer);
    let redis = Redis::start();
    let proxy =
        Proxy::start(&one_route_with_redis(&origin.url(), &redis.url(), "ttl = \"1m\"\nstale_if_error = \"0s\""));
    let client = client();
    for fetches in 1..=2 {
        let response = client.get(proxy.url("/a")).send().await;
        let body = match response {
            Ok(response) => response.bytes().await,
            Err(error) => Err(error),
        };
        assert_eq!(body.is_err(), client_sees_an_error, "{body:?}");
        assert_eq!(origin.count(), fetches, "nothing was stored");
    }
    let stats = proxy.stats().await;
    assert_eq!(stats["memory"]["objects"], 0, "{stats:#}");
    let keys = redis.command("KEYS aside:r:*").unwrap();
    assert!(keys.starts_with("*0"), "{keys}");
}

#[tokio::test]
async fn a_body_shorter_than_its_content_length_is_an_error_and_not_stored() {
    check_not_stored(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this", true).await;
}

#[tokio::test]
async fn a_chunked_body_without_its_end_is_an_error_and_not_stored() {
    check_not_stored(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", true).await;
}

#[tokio::test]
async fn a_body_that_only_the_close_delimits_is_passed_and_not_stored() {
    check_not_stored(b"HTTP/1.1 200 OK\r\n\r\nall of it?", false).await;
}

#[tokio::test]
async fn only_what_was_stored_is_counted_so_and_why_not_the_rest() {
    let origin = RawOrigin::start(|mut stream, head| async move {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let chunked = |size: usize, end: &str| {
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{size:x}\r\n{}{end}", "x".repeat(size))
        };
        let answer = match path.as_str() {
            "/large" => chunked(5000, "\r\n0\r\n\r\n"),
            "/cut" => chunked(10, "\r\n"),
            "/varies" => "HTTP/1.1 200 OK\r\nvary: x-a\r\ncontent-length: 1\r\n\r\nv".to_owned(),
            _ => chunked(10, "\r\n0\r\n\r\n"),
        };
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    });
    let route = "ttl = \"1m\"\nmax_object = \"1 KiB\"\nvary = { max_variants = 2 }";
    let proxy = Proxy::start(&one_route(&origin.url(), route));
    let client = client();
    for path in ["/whole", "/large", "/cut"] {
        let _ = client.get(proxy.url(path)).send().await.unwrap().bytes().await;
    }
    for (value, told) in [("1", "stored"), ("2", "stored"), ("3", "detail=too-many-variants")] {
        let response = client.get(proxy.url("/varies")).header("x-a", value).send().await.unwrap();
        let cache_status = crate::world::field(&response, "cache-status");
        assert!(cache_status.contains(told), "{value}: {cache_status}");
    }
    let stats = proxy.stats().await;
    let route = &stats["routes"]["all"];
    assert_eq!((&route["stored"], &stats["memory"]["objects"]), (&3.into(), &3.into()), "{stats:#}");
    let reasons = serde_json::json!({ "too-large": 1, "too-many-variants": 1, "truncated": 1 });
    assert_eq!(route["not_stored_reasons"], reasons);
}

#[tokio::test]
async fn a_large_body_streams_through_a_cached_route_with_flat_memory() {
    const CHUNK: usize = 1 << 20;
    const CHUNKS: usize = 512;
    let origin = RawOrigin::start(|mut stream, _head| async move {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", CHUNK * CHUNKS);
        let chunk = vec![b'x'; CHUNK];
        let _ = stream.write_all(head.as_bytes()).await;
        for _ in 0..CHUNKS {
            if stream.write_all(&chunk).await.is_err() {
                return;
            }
        }
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "ttl = \"1m\""));
    let before = resident_bytes();
    let mut response = client().get(proxy.url("/large")).send().await.unwrap();
    let (mut total, mut peak) = (0, 0);
    while let Some(chunk) = response.chunk().await.unwrap() {
        total += chunk.len();
        peak = peak.max(resident_bytes());
    }
    assert_eq!(total, CHUNK * CHUNKS);
    assert!(peak < before + 100 * (1 << 20), "{before} bytes before, {peak} at the peak");
}

#[tokio::test]
async fn an_endless_chunked_body_is_handed_over_to_its_client() {
    let origin = RawOrigin::start(|mut stream, _head| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let chunk = [b"10000\r\n".as_slice(), &vec![b'x'; 0x10000], b"\r\n"].concat();
        while stream.write_all(&chunk).await.is_ok() {}
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "ttl = \"1m\"\nmax_object = \"1 MiB\""));
    let mut response = client().get(proxy.url("/endless")).send().await.unwrap();
    let mut total = 0;
    while total < 64 << 20 {
        total += response.chunk().await.unwrap().expect("it goes on").len();
    }
    drop(response);
    let stats = proxy.stats().await;
    assert_eq!(stats["memory"]["objects"], 0);
}

#[tokio::test]
async fn a_103_reaches_a_client_that_can_take_it_and_confuses_nobody() {
    let early = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n\
                  HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncache-control: max-age=60\r\n\r\nok";
    let origin = RawOrigin::writing(early);
    let proxy = Arc::new(Proxy::start(&one_route(&origin.url(), "")));
    let raw =
        crate::protocols::raw_exchange(proxy.address, "GET /a HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n")
            .await;
    assert!(raw.starts_with("HTTP/1.1 103 Early Hints\r\n"), "{raw}");
    assert!(raw.contains("link: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\n"), "{raw}");
    assert!(raw.ends_with("\r\n\r\nok"), "{raw}");
    assert_eq!(get(&client(), &proxy.url("/a")).await.body, "ok");
}

#[tokio::test]
async fn a_103_of_a_revalidation_behind_an_answer_reaches_no_other_request() {
    let (other, asked) = tokio::sync::watch::channel(false);
    let (release, released) = tokio::sync::watch::channel(false);
    let mut asked_for_other = asked.clone();
    let other = Arc::new(other);
    let fetches = Arc::new(AtomicUsize::new(0));
    let origin = RawOrigin::start(move |mut stream, head| {
        let (other, mut asked, mut released) = (Arc::clone(&other), asked.clone(), released.clone());
        let fetches = Arc::clone(&fetches);
        async move {
            let fields = "cache-control: max-age=10, stale-while-revalidate=60\r\nconnection: close";
            let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n{fields}\r\n\r\n");
            if head.starts_with("GET /other ") {
                other.send_replace(true);
                released.wait_for(|it| *it).await.unwrap();
                answer.push('o');
            } else if fetches.fetch_add(1, Ordering::Relaxed) == 0 {
                answer.push('1');
            } else {
                asked.wait_for(|it| *it).await.unwrap();
                answer = format!("HTTP/1.1 103 Early Hints\r\nlink: </of-another.css>\r\n\r\n{answer}2");
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let client = client();
    assert_eq!(get(&client, &proxy.url("/a")).await.body, "1");
    proxy.clock.advance(std::time::Duration::from_secs(20));
    let host = format!("host: {}\r\n", proxy.address);
    let requests = format!("GET /a HTTP/1.1\r\n{host}\r\nGET /other HTTP/1.1\r\n{host}connection: close\r\n\r\n");
    let revalidated = async {
        // By then the first of the requests has begun the revalidation.
        asked_for_other.wait_for(|it| *it).await.unwrap();
        while get(&client, &proxy.url("/a")).await.body != "2" {
            tokio::task::yield_now().await;
        }
        release.send(true).unwrap();
    };
    let (answers, ()) = tokio::join!(crate::protocols::raw_exchange(proxy.address, &requests), revalidated);
    assert!(answers.ends_with("\r\n\r\no"), "{answers}");
    assert!(!answers.contains("HTTP/1.1 103 "), "{answers}");
}

pub fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("linux");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("pages") * 4096
}
