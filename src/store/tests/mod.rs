//! The store as the proxy uses it.

mod compression;
mod local;
mod lock;
mod overtaken;
mod purges;
mod redis;
mod server;
mod together;
mod traps;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::redis::{RedisConfig, Seal};
use super::*;
use crate::clock::Clock;
use crate::fields::vary::SelectingFields;
use crate::route::{FieldEdits, ForwardFields, Params, Route};
use crate::stored::{Freshness, Place, Provenance, StaleUse};
use crate::target::{Authority, Scheme, Target};
use crate::telemetry::{AccessLog, Format, Level, LogConfig};

const WORKER: WorkerId = WorkerId(0);
const LIMITS: PutLimits = PutLimits { max_variants: 3 };

/// A store and a moment.
struct World {
    store: Store,
    route: Route,
    now: Timestamp,
}

/// One request: its path and its fields.
struct Ask {
    address: Address,
    fields: HeaderMap,
    target: Target,
    params: Params,
}

fn config(memory_max_size: u64) -> StoreConfig {
    StoreConfig {
        memory_max_size,
        memory_max_object: 1 << 20,
        unsynced_residence: Duration::from_secs(3600),
        purge_slots: 1 << 20,
        redis: None,
    }
}

impl World {
    fn new(config: &StoreConfig) -> Self {
        let log = LogConfig { level: Level::Error, format: Format::Text, access: AccessLog::Off };
        let telemetry = Telemetry::new(log, Clock::System).unwrap();
        Self {
            store: Store::new(config, 1, Clock::System, Arc::new(telemetry)),
            route: route(),
            now: Clock::System.now(),
        }
    }

    /// With `accept-language` and nothing ignored.
    fn put(&self, ask: &Ask, response: StoredResponse) -> Put {
        self.with(ask, &[], |query| self.store.put(WORKER, query, Arc::new(response), LIMITS))
    }

    /// What is found in this process.
    fn local(&self, ask: &Ask) -> Lookup {
        self.with(ask, &[], |query| self.store.get_local(query)).expect("no redis to be asked")
    }

    async fn get(&self, ask: &Ask) -> Lookup {
        let tags = self.tags(ask);
        self.store.get(WORKER, &self.query(ask, &[], &tags)).await
    }

    fn remove(&self, ask: &Ask) {
        self.with(ask, &[], |query| self.store.remove(WORKER, query));
    }

    async fn purge(&self, tag: Tag, kind: ledger::PurgeKind) {
        let purged = self.store.purge(&[tag], kind, self.now, Duration::from_secs(5)).await;
        assert_eq!(purged.acknowledged, Ok(()));
    }

    fn with<T>(&self, ask: &Ask, vary_ignore: &[HeaderName], run: impl FnOnce(&Query<'_>) -> T) -> T {
        let tags = self.tags(ask);
        run(&self.query(ask, vary_ignore, &tags))
    }

    fn tags<'a>(&'a self, ask: &'a Ask) -> ConfiguredTags<'a> {
        ConfiguredTags { route: &self.route, params: &ask.params, target: &ask.target }
    }

    fn query<'a>(&self, ask: &'a Ask, vary_ignore: &'a [HeaderName], tags: &'a ConfiguredTags<'a>) -> Query<'a> {
        Query { address: &ask.address, request: &ask.fields, vary_ignore, tags, now: self.now }
    }

    /// A response as a fetch that begins now stores it: fresh for a minute, kept for another.
    fn response(&self, vary: &[&'static str], body: &str) -> StoredResponse {
        let Synced { to, epoch, own } = self.store.synced();
        let fields = [(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))].into_iter().collect();
        StoredResponse {
            place: Place::default(),
            status: StatusCode::OK,
            fields,
            request_time: self.now,
            response_time: self.now,
            freshness: Freshness {
                lifetime: Duration::from_secs(60),
                initial_age: Duration::ZERO,
                stale_use: StaleUse::Never,
                keep: Duration::from_secs(60),
            },
            selecting: SelectingFields::Names(vary.iter().copied().map(HeaderName::from_static).collect()),
            part: None,
            provenance: Provenance { synced_to: to, epoch, own, tags: Box::new(["product:1".into()]) },
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }
}

/// A request for `path`, with these fields.
fn ask(path: &str, fields: &[(&'static str, &'static str)]) -> Ask {
    let authority = Authority::parse("example.com", Scheme::Http).unwrap();
    let fields = fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    Ask {
        address: Address { key: crate::key::CacheKey::of(path.as_bytes()), material: path.as_bytes().into() },
        fields: fields.collect(),
        target: Target::new(Scheme::Http, authority, path, None).unwrap(),
        params: Params::default(),
    }
}

fn route() -> Route {
    Route {
        name: "all".into(),
        host: None,
        path: "/{*rest}".into(),
        methods: Box::default(),
        upstream: "api".into(),
        strip_prefix: "".into(),
        request_headers: FieldEdits::default(),
        response_headers: FieldEdits::default(),
        forward_headers: ForwardFields::All,
        request_body_max: 0,
        first_byte_timeout: None,
        upgrade: Box::default(),
        caching: None,
    }
}

/// The body found, with its tier and whether it must be validated; or why nothing was.
fn outcome(lookup: &Lookup) -> Result<(&str, Tier, bool), Missing> {
    match lookup {
        Lookup::Found(found) => {
            Ok((std::str::from_utf8(&found.response.body).unwrap(), found.tier, found.must_validate))
        }
        Lookup::Missing(why) => Err(why.clone()),
    }
}

fn variant_of(names: &[&'static str]) -> Missing {
    Missing::Variant(names.iter().copied().map(HeaderName::from_static).collect())
}
