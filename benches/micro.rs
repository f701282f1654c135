//! What each step of a request costs by itself.
#![allow(clippy::unwrap_used, reason = "a benchmark whose values do not fit has nothing to measure")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use aside::clock::Timestamp;
use aside::fields::vary::SelectingFields;
use aside::key::{Address, Tag};
use aside::policy::reuse::{Why, decide};
use aside::proxy::reply::from_stored;
use aside::route::{Caching, ConfiguredTags, Params, RouteTable};
use aside::store::codec::compression::StoredBody;
use aside::store::codec::{Seal, decode, encode_response};
use aside::store::ledger::{Ledger, PurgeKind};
use aside::store::slot::placed;
use aside::stored::{Freshness, Place, Provenance, StaleUse, StoredResponse};
use aside::target::{Authority, Scheme, Target};
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, request};

/// Some seconds after all that is stored came.
const NOW: Timestamp = Timestamp::from_secs(1_767_225_660);
/// The greatest body that is read.
const BODY_MAX: u64 = 1 << 20;
/// As `purge.slots` is by default.
const SLOTS: u32 = 1 << 20;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    route_table(&mut criterion);
    key(&mut criterion);
    reuse(&mut criterion);
    reply(&mut criterion);
    ledger(&mut criterion);
    codec(&mut criterion);
    criterion.final_summary();
}

fn route_table(criterion: &mut Criterion) {
    let target = target();
    for count in [1, 10_000] {
        let table = table(count);
        criterion.bench_function(&format!("route/find among {count}"), |bencher| {
            bencher.iter(|| black_box(&table).find(black_box(&target), &Method::GET).unwrap().index);
        });
    }
}

fn key(criterion: &mut Criterion) {
    let (table, target, request) = (table(1), target(), request());
    let rules = &caching(&table).key;
    criterion.bench_function("key/address", |bencher| {
        bencher.iter(|| rules.address(&Method::GET, black_box(&target), &request.headers, &[], b"").unwrap().key);
    });
}

fn reuse(criterion: &mut Criterion) {
    let (table, request, stored) = (table(1), request(), Arc::new(stored(1 << 10)));
    let rules = &caching(&table).rules;
    criterion.bench_function("reuse/decide, fresh", |bencher| {
        bencher.iter(|| decide(black_box(&request), Some(Arc::clone(&stored)), false, Why::UriMiss, rules, NOW));
    });
}

fn reply(criterion: &mut Criterion) {
    let (request, stored) = (request(), stored(1 << 10));
    criterion.bench_function("reply/from a stored response", |bencher| {
        bencher.iter(|| from_stored(black_box(&request), black_box(&stored), NOW));
    });
}

fn ledger(criterion: &mut Criterion) {
    let (table, target, params) = (table(1), target(), Params::default());
    let tags = ConfiguredTags { route: &table.routes()[0], params: &params, target: &target };
    let ledger = Ledger::new(SLOTS, None);
    let synced = ledger.synced();
    let provenance = Provenance { synced_to: synced.to, epoch: synced.epoch, own: synced.own, tags: Box::default() };
    let mut judge = |name: &str, checked: Option<&AtomicU64>| {
        criterion.bench_function(&format!("ledger/judge, {name}"), |bencher| {
            bencher.iter(|| {
                let never = AtomicU64::new(0);
                ledger.judge(black_box(&provenance), NOW, checked.unwrap_or(&never), &tags, NOW)
            });
        });
    };
    judge("nothing purged since the fetch", None);
    ledger.purge_alone(&[Tag::url(&another_target())], PurgeKind::Hard, NOW);
    judge("another URL purged since the fetch", None);
    judge("the same, judged before", Some(&AtomicU64::new(0)));
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    for kib in [1, 16] {
        let held = placed(&address(), stored(kib << 10));
        let (body, epoch) = (StoredBody::identity(held.body.clone()), held.provenance.epoch);
        let encode = || encode_response(black_box(&held), epoch, &body, None, &Seal::plain());
        let record = Bytes::from(encode());
        group.throughput(Throughput::Bytes(kib as u64 * 1024));
        group.bench_function(format!("encode {kib} KiB"), |bencher| bencher.iter(encode));
        group.bench_function(format!("decode {kib} KiB"), |bencher| {
            bencher.iter_batched(
                || record.clone(),
                |record| decode(&record, BODY_MAX, &Seal::plain()).unwrap(),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// As many routes as told, the asked one in their middle.
fn table(count: usize) -> RouteTable {
    let mut text = "[upstream.api]\nurl = \"http://127.0.0.1:1\"\n".to_owned();
    for at in 0..count {
        let shop = if at == count / 2 { "asked".to_owned() } else { format!("shop{at}") };
        text += &format!("[[route]]\npath = \"/{shop}/products/{{id}}\"\nttl = \"5m\"\n");
    }
    let (config, _) = aside::config::parse("bench.toml", &text).unwrap();
    RouteTable::new(config.routes).unwrap()
}

fn caching(table: &RouteTable) -> &Caching {
    table.routes()[0].caching.as_ref().unwrap()
}

fn target() -> Target {
    let authority = Authority::parse("api.example.com", Scheme::Http).unwrap();
    Target::new(Scheme::Http, authority, "/asked/products/42", Some("page=3&size=20")).unwrap()
}

fn another_target() -> Target {
    let authority = Authority::parse("api.example.com", Scheme::Http).unwrap();
    Target::new(Scheme::Http, authority, "/asked/products/43", None).unwrap()
}

fn address() -> Address {
    caching(&table(1)).key.address(&Method::GET, &target(), &HeaderMap::new(), &[], b"").unwrap()
}

/// A browser's.
fn request() -> request::Parts {
    let fields = [
        ("host", "api.example.com"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0"),
        ("accept", "application/json, text/plain, */*"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("accept-language", "en-US,en;q=0.9,de;q=0.8"),
        ("referer", "https://shop.example.com/"),
        ("sec-fetch-mode", "cors"),
    ];
    let request = Request::get("http://api.example.com/asked/products/42?page=3&size=20");
    let request = fields.into_iter().fold(request, |request, (name, value)| request.header(name, value));
    request.body(()).unwrap().into_parts().0
}

/// A fresh response as it is stored, with a body of so many bytes.
fn stored(length: usize) -> StoredResponse {
    let came = Timestamp::from_secs(1_767_225_600);
    let text = [
        ("date", "Thu, 01 Jan 2026 00:00:00 GMT"),
        ("content-type", "application/json"),
        ("cache-control", "public, max-age=3600"),
        ("etag", "\"33a64df5\""),
        ("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT"),
    ];
    let fields = text.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let stale_use = StaleUse::Within { while_revalidate: Duration::ZERO, if_error: Duration::ZERO, max_stale: true };
    let (lifetime, keep) = (Duration::from_secs(3600), Duration::from_secs(60));
    StoredResponse {
        place: Place::default(),
        status: StatusCode::OK,
        fields: fields.into_iter().collect(),
        request_time: came,
        response_time: came,
        freshness: Freshness { lifetime, initial_age: Duration::ZERO, stale_use, keep },
        selecting: SelectingFields::Names(Box::default()),
        part: None,
        provenance: Provenance::default(),
        body: (b'a'..=b'z').cycle().take(length).collect(),
    }
}
