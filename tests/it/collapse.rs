//! One fetch for many requests.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;

use crate::world::load::until_up;
use crate::world::proxy::{one_route, one_route_with_redis};
use crate::world::redis::Redis;
use crate::world::{Origin, Proxy, client, get, reply};

/// The upstream is slow, so that all requests come while the first is being fetched.
const SLOW: Duration = Duration::from_millis(200);

fn slow_origin(fields: &'static [(&'static str, &'static str)]) -> Origin {
    Origin::start(move |seen| async move {
        // This is the upstream's slowness itself.
        tokio::time::sleep(SLOW).await;
        let language = seen.fields.get("accept-language").map(|it| it.to_str().unwrap().to_owned());
        reply(200, fields, &format!("{} {}", seen.nth, language.unwrap_or_default()))
    })
}

#[tokio::test]
async fn many_requests_on_a_cold_key_are_one_fetch() {
    let origin = slow_origin(&[("cache-control", "max-age=60")]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let (client, url) = (client(), proxy.url("/cold"));
    let answers = join_all((0..200).map(|_| get(&client, &url))).await;
    assert!(answers.iter().all(|answer| answer.body == "0 "), "{answers:?}");
    assert_eq!(origin.count("/cold"), 1);
    let collapsed = answers.iter().filter(|answer| answer.cache_status.contains("; collapsed")).count();
    let hits = answers.iter().filter(|answer| answer.cache_status.contains("; hit")).count();
    assert_eq!(collapsed + hits, 199, "all but the leader shared its fetch");
}

#[tokio::test]
async fn the_fetch_outlives_the_client_that_caused_it() {
    let origin = slow_origin(&[("cache-control", "max-age=60")]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let url = proxy.url("/cold");
    let first = tokio::time::timeout(Duration::from_millis(50), get(&client(), &url)).await;
    assert!(first.is_err(), "the first client leaves before the answer");
    let client = client();
    let answers = join_all((0..200).map(|_| get(&client, &url))).await;
    assert!(answers.iter().all(|answer| answer.body == "0 "));
    assert_eq!(origin.count("/cold"), 1);
}

#[tokio::test]
async fn nobody_gets_anothers_language() {
    let origin = slow_origin(&[("cache-control", "max-age=60"), ("vary", "accept-language")]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let (client, url) = (client(), proxy.url("/cold"));
    let answers = join_all((0..200).map(|nth| {
        let language = if nth % 2 == 0 { "en" } else { "de" };
        let request = client.get(&url).header("accept-language", language);
        async move { (language, request.send().await.unwrap().text().await.unwrap()) }
    }))
    .await;
    for (language, body) in answers {
        assert!(body.ends_with(language), "asked for {language}, got {body}");
    }
    assert_eq!(origin.count("/cold"), 2);
}

#[tokio::test]
async fn what_cannot_be_shared_does_not_queue() {
    let origin = slow_origin(&[("cache-control", "no-store")]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let (client, url) = (client(), proxy.url("/private"));
    let begun = tokio::time::Instant::now();
    let answers = join_all((0..20).map(|_| get(&client, &url))).await;
    assert_eq!(origin.count("/private"), 20);
    let mut bodies: Vec<_> = answers.into_iter().map(|answer| answer.body).collect();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), 20, "each got its own");
    // Twenty in a row would be 4 s; this is a bound on serialisation, not a measurement.
    assert!(begun.elapsed() < SLOW * 10);
}

#[tokio::test]
async fn a_failed_fetch_fails_all_that_waited_with_one_request() {
    let origin = Origin::start(|_| async {
        tokio::time::sleep(SLOW).await;
        std::future::pending::<()>().await;
        reply(200, &[], "")
    });
    let proxy = Proxy::start(&one_route(&origin.url(), "ttl = \"1m\"\nfirst_byte_timeout = \"300ms\""));
    let (client, url) = (client(), proxy.url("/dead"));
    let answers = join_all((0..20).map(|_| get(&client, &url))).await;
    assert!(answers.iter().all(|answer| answer.status == 504), "{answers:?}");
    assert_eq!(origin.count("/dead"), 1);
}

#[tokio::test]
async fn a_client_that_lets_nobody_store_does_not_lead() {
    let origin = slow_origin(&[("cache-control", "max-age=60")]);
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let (client, url) = (client(), proxy.url("/cold"));
    let alone =
        async { client.get(&url).header("cache-control", "no-store").send().await.unwrap().text().await.unwrap() };
    let herd = async {
        while origin.count("/cold") == 0 {
            tokio::task::yield_now().await;
        }
        join_all((0..30).map(|_| get(&client, &url))).await
    };
    let (_, answers) = tokio::join!(alone, herd);
    assert!(answers.iter().all(|answer| answer.body == "1 "), "{answers:?}");
    assert_eq!(origin.count("/cold"), 2, "its own, and one for all the others");
}

#[tokio::test]
async fn an_error_in_whose_place_something_stale_may_be_used_answers_all_who_wait() {
    let origin = Origin::start(|seen| async move {
        // This is the upstream's slowness itself.
        tokio::time::sleep(SLOW).await;
        let fields = [("cache-control", "max-age=60, stale-if-error=600")];
        if seen.nth == 0 { reply(200, &fields, "good") } else { reply(503, &[], "bad") }
    });
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let (client, url) = (client(), proxy.url("/a"));
    get(&client, &url).await;
    proxy.clock.advance(Duration::from_secs(61));
    let answers = join_all((0..30).map(|_| get(&client, &url))).await;
    assert!(answers.iter().all(|answer| answer.body == "good"), "{answers:?}");
    assert_eq!(origin.count("/a"), 2);
}

#[tokio::test]
async fn an_answer_to_one_request_hides_from_nobody_what_is_stored() {
    let origin = Origin::start(|seen| async move {
        let fields = [("cache-control", "max-age=60, stale-if-error=600")];
        match seen.nth {
            0 => reply(200, &fields, "good"),
            _ if seen.fields.contains_key("x-large") => reply(431, &[], "too large"),
            _ if seen.fields.contains_key("x-private") => reply(200, &[("cache-control", "private")], "private"),
            _ => reply(503, &[], "bad"),
        }
    });
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let (client, url) = (client(), proxy.url("/a"));
    get(&client, &url).await;
    proxy.clock.advance(Duration::from_secs(61));
    for field in ["x-large", "x-private"] {
        let own = client.get(&url).header(field, "1").send().await.unwrap();
        assert_ne!(own.text().await.unwrap(), "good", "{field}");
        let answer = get(&client, &url).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "good"), "after {field}: {answer:?}");
    }
}

#[tokio::test]
async fn what_only_redis_keeps_is_fetched_once_whenever_requests_come() {
    let (origin, redis) = (Origin::counting(&[("cache-control", "max-age=60")]), Redis::start());
    let config = one_route_with_redis(&origin.url(), &redis.url(), "");
    let proxy = Proxy::start(&format!("{config}\n[memory]\nmax_size = \"0\""));
    until_up(&proxy).await;
    let (client, nth) = (client(), AtomicUsize::new(0));
    // Each key is young for 160 requests: some look it up just as the first answer is being stored.
    let requests = async || loop {
        let nth = nth.fetch_add(1, Ordering::Relaxed);
        if nth >= 8000 {
            break;
        }
        get(&client, &proxy.url(&format!("/young/{}", nth / 40 + fastrand::usize(..4)))).await;
    };
    join_all((0..48).map(|_| requests())).await;
    let fetched: Vec<String> = origin.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(fetched.len(), fetched.iter().collect::<HashSet<_>>().len(), "each once");
}
