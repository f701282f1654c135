//! `/cache-stats`: the figures as JSON, with stable names.

use serde_json::{Map, Value, json};

use super::histogram::Histogram;
use super::metrics::{Counter, RouteCounters, Snapshot};
use super::rfc3339;
use crate::generation::{Generation, Shared};
use crate::store::RedisStats;

/// The page as it is sent: for people and programs.
pub fn text(shared: &Shared) -> bytes::Bytes {
    let mut text = serde_json::to_vec_pretty(&render(shared)).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// Renders the figures of this moment.
pub fn render(shared: &Shared) -> Value {
    let generation = shared.generation.load();
    let store = shared.store.stats();
    let purge = shared.store.purge_stats(shared.clock.now());
    let telemetry = &shared.telemetry;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": rounded(shared.clock.now().since(shared.started_at).as_secs_f64(), 3),
        "totals": figures(&telemetry.totals()),
        "routes": routes(&generation),
        "memory": {
            "objects": store.objects,
            "bytes": store.bytes,
            "max_bytes": store.max_bytes,
            "evictions": store.evictions,
        },
        "redis": store.redis.as_ref().map(redis),
        "purge": {
            "last": purge.last.0,
            "unrecorded": purge.unrecorded,
            "false_rate": rounded(purge.false_rate, 6),
        },
        "upstreams": upstreams(&generation),
        "config": {
            "generation": generation.number,
            "loaded_at": rfc3339::format(generation.loaded_at),
            "last_error": *shared.last_error.load_full(),
        },
        "process": {
            "tasks": shared.tasks_alive(),
            "fills": shared.tasks.len(),
            "tunnels": shared.tunnels.len(),
        },
        "log": { "dropped": telemetry.dropped_lines() },
        "limits": reasons(telemetry.limit_counts()),
        "events": telemetry.event_counts(),
    })
}

/// The counters of a route, or the totals.
fn figures(snapshot: &Snapshot) -> Map<String, Value> {
    let count = |counter| Value::from(snapshot.count(counter));
    [
        ("requests", count(Counter::Requests)),
        ("hits", snapshot.hits().into()),
        ("hits_memory", count(Counter::HitsMemory)),
        ("hits_redis", count(Counter::HitsRedis)),
        ("stale", count(Counter::Stale)),
        ("revalidated", count(Counter::Revalidated)),
        ("misses", count(Counter::Misses)),
        ("collapsed", count(Counter::Collapsed)),
        ("bypassed", count(Counter::Bypassed)),
        ("stored", count(Counter::Stored)),
        ("errors", count(Counter::Errors)),
        ("hit_ratio", rounded(snapshot.hit_ratio(), 4)),
        ("bytes_served", count(Counter::BytesServed)),
        ("upstream_requests", count(Counter::UpstreamRequests)),
        ("upstream_seconds_saved", rounded(snapshot.seconds_saved(), 3)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
    .collect()
}

fn routes(generation: &Generation) -> Map<String, Value> {
    let routes = generation.routes.routes().iter().zip(&generation.counters);
    routes.map(|(route, counters)| (route.name.to_string(), self::route(counters).into())).collect()
}

fn route(counters: &RouteCounters) -> Map<String, Value> {
    let mut figures = figures(&counters.snapshot());
    figures.insert("bypass_reasons".to_owned(), reasons(counters.bypass_reasons()));
    figures.insert("not_stored_reasons".to_owned(), reasons(counters.not_stored_reasons()));
    let latency = json!({ "hit": latency(&counters.hit_latency), "miss": latency(&counters.miss_latency) });
    figures.insert("latency_ms".to_owned(), latency);
    figures
}

fn reasons(counts: impl Iterator<Item = (&'static str, u64)>) -> Value {
    counts.map(|(name, count)| (name.to_owned(), count.into())).collect::<Map<_, _>>().into()
}

/// Null quantiles while nothing was recorded.
fn latency(histogram: &Histogram) -> Value {
    let quantiles = histogram.quantiles([0.5, 0.99]).map(|quantiles| quantiles.map(|millis| rounded(millis, 3)));
    let [p50, p99] = quantiles.unwrap_or_default();
    json!({ "p50": p50, "p99": p99 })
}

fn redis(stats: &RedisStats) -> Value {
    json!({
        "state": stats.state,
        "errors": stats.errors,
        "timeouts": stats.timeouts,
        "breaker": stats.breaker,
        "ledger": stats.ledger,
        "pending_writes": stats.pending_writes,
        "dropped_writes": stats.dropped_writes,
        "corrupt": stats.corrupt,
    })
}

fn upstreams(generation: &Generation) -> Map<String, Value> {
    let upstreams = generation.upstreams.iter();
    upstreams.map(|(name, upstream)| (name.to_string(), json!({ "servers": upstream.stats() }))).collect()
}

fn rounded(value: f64, places: i32) -> Value {
    let scale = 10_f64.powi(places);
    Value::from((value * scale).round() / scale)
}

#[cfg(test)]
mod tests {
    use super::super::metrics::{Kind, TABLE};
    use super::*;

    fn names(kinds: &[Kind]) -> Vec<&'static str> {
        TABLE.iter().filter(|metric| kinds.contains(&metric.kind)).map(|metric| metric.name).collect()
    }

    #[test]
    fn the_figures_are_those_of_the_table_in_its_order() {
        let totals = figures(&Snapshot::default());
        assert_eq!(totals.keys().collect::<Vec<_>>(), names(&[Kind::Counter, Kind::Derived]));
        let of_route = route(&RouteCounters::named("a"));
        let all = names(&[Kind::Counter, Kind::Derived, Kind::ByReason, Kind::Latency]);
        assert_eq!(of_route.keys().collect::<Vec<_>>(), all);
    }

    #[test]
    fn a_route_without_requests_has_no_latency() {
        let latency = route(&RouteCounters::named("a"))["latency_ms"].clone();
        assert_eq!(latency, json!({ "hit": { "p50": null, "p99": null }, "miss": { "p50": null, "p99": null } }));
    }
}
