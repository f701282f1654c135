//! A request that the cache may answer: everything a fetch needs, so that the fetch outlives its client.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{COOKIE, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName};

use super::{Connection, Interim, Proxy, forward};
use crate::clock::Timestamp;
use crate::config::ServerConfig;
use crate::fields::{forwarding, has_any, surrogate};
use crate::generation::Generation;
use crate::key::{self, Address, BodyRule};
use crate::policy::Admission;
use crate::policy::reuse::Why;
use crate::policy::settle::NotStored;
use crate::route::{Caching, ConfiguredTags, Cookies, Params, Route};
use crate::store::Query;
use crate::store::ledger::Synced;
use crate::stored::{Provenance, StoredResponse};
use crate::target::{Scheme, Target};
use crate::telemetry::cache_status::Detail;
use crate::telemetry::metrics::RouteCounters;

/// Who sent a request.
#[derive(Clone, Debug)]
pub struct Sender {
    /// The connection's peer.
    pub peer: IpAddr,
    /// The peer, or whom a trusted proxy names.
    pub client: IpAddr,
    /// Whether the peer is a trusted proxy.
    pub trusted: bool,
    /// The listener's scheme.
    pub scheme: Scheme,
    /// Where interim responses go.
    pub interim: Option<Interim>,
}

impl Sender {
    /// Reads who sent the request.
    pub fn new(connection: &Connection, server: &ServerConfig, fields: &HeaderMap) -> Self {
        let is_trusted = |ip: IpAddr| server.trusted_proxies.iter().any(|net| net.contains(&ip.to_canonical()));
        let peer = connection.peer.ip().to_canonical();
        let trusted = is_trusted(peer);
        let client = match trusted {
            true => forward::client_ip(fields, peer, server.client_ip_header.as_ref(), is_trusted),
            false => peer,
        };
        Self { peer, client, trusted, scheme: connection.scheme, interim: None }
    }

    /// What a trusted proxy says of the request, which the upstream is told and may answer by.
    pub fn claims<'f>(&self, fields: &'f HeaderMap) -> Vec<(&'f HeaderName, Vec<u8>)> {
        if self.trusted { forwarding::claims(fields) } else { Vec::new() }
    }
}

/// A request that the cache may answer.
pub struct Ask {
    /// The worker's view of the proxy.
    pub proxy: Arc<Proxy>,
    /// The configuration it sees to its end.
    pub generation: Arc<Generation>,
    /// Its route.
    pub route: Arc<Route>,
    /// The counters of its route.
    pub counters: Arc<RouteCounters>,
    /// The route's parameters.
    pub params: Params,
    /// Its target.
    pub target: Target,
    /// The query as keyed and sent.
    pub query: Option<String>,
    /// Its head.
    pub parts: Parts,
    /// Its content, where that is keyed.
    pub content: Bytes,
    /// Its place in the store.
    pub address: Address,
    /// Who sent it.
    pub sender: Sender,
}

impl Ask {
    /// How its route caches.
    pub fn caching(&self) -> &Caching {
        // An `Ask` is made from a route that caches, and in no other way.
        self.route.caching.as_ref().expect("the route of an ask caches")
    }

    /// The fields that the upstream is sent, before conditions.
    pub fn fields(&self) -> HeaderMap {
        let own = &self.proxy.shared.pseudonym;
        forward::fields(&self.parts, &self.target, &self.sender, Some(&self.route), Some(self.caching()), own)
    }

    /// The tags that derive from configuration and URL.
    pub fn tags(&self) -> ConfiguredTags<'_> {
        ConfiguredTags { route: &self.route, params: &self.params, target: &self.target }
    }

    /// What the store is asked.
    pub fn store_query<'a>(&'a self, tags: &'a ConfiguredTags<'a>, now: Timestamp) -> Query<'a> {
        let vary_ignore = &self.caching().vary_ignore;
        Query { address: &self.address, request: &self.parts.headers, vary_ignore, tags, now }
    }

    /// What its response is stored with, where the ledger stands at `synced` for it.
    pub fn provenance(&self, head: &StoredResponse, synced: Synced) -> Result<Provenance, NotStored> {
        let has_tags = head.fields.iter().any(|(name, _)| surrogate::TAGGING.contains(name));
        let tags = if has_tags {
            let origin = format_args!("{}://{}", self.target.scheme.as_str(), self.target.authority);
            surrogate::tags(&head.fields.to_map(), origin, self.generation.server.limits.tags)
                .map_err(|_| NotStored::TooManyTags)?
        } else {
            Box::default()
        };
        let Synced { to, epoch, own } = synced;
        Ok(Provenance { synced_to: to, epoch, own, tags })
    }

    /// The present.
    pub fn now(&self) -> Timestamp {
        self.proxy.shared.clock.now()
    }

    /// Counts it among the requests for its key, where its route's admission depends on that.
    pub fn count(&self) {
        if self.caching().rules.admission == Admission::Second {
            self.proxy.shared.asked.count(&self.address.key, self.now());
        }
    }

    /// Whether its key was asked for before, where its route's admission depends on that.
    pub fn is_asked_again(&self) -> bool {
        self.caching().rules.admission == Admission::First || self.proxy.shared.asked.is_asked_again(&self.address.key)
    }

    /// How long it may wait behind others, in all.
    pub fn collapse_wait(&self) -> Duration {
        self.caching().collapse_wait
    }
}

/// Why the cache takes no part in a request of a caching route; none: it does. `has_content` tells of a body.
pub fn bypass_reason(route: &Route, caching: &Caching, parts: &Parts, has_content: bool) -> Option<Bypass> {
    let fields = &parts.headers;
    let because = |detail| Some(Bypass { why: Why::Bypass, detail: Some(detail) });
    if !route.upgrade.is_empty() && upgrade(route, fields).is_some() {
        return because(Detail::Upgrade);
    }
    let keys_content = caching.key.body != BodyRule::None;
    let is_answerable = match parts.method.as_str() {
        "GET" | "HEAD" => true,
        "POST" | "QUERY" => keys_content,
        _ => false,
    };
    if !is_answerable {
        return Some(Bypass { why: Why::Method, detail: None });
    }
    if has_content && !keys_content {
        return because(Detail::RequestBody);
    }
    if !caching.bypass.is_empty() && has_any(fields, &caching.bypass) {
        return because(Detail::BypassHeader);
    }
    let is_keyed =
        |name: &HeaderName| caching.key.headers.iter().any(|header| header.name == *name && header.choices.is_none());
    if fields.keys().any(|name| caching.credential_headers.contains(name) && !is_keyed(name)) {
        return because(Detail::Credentials);
    }
    // RFC 9110 §5.5 leaves their meaning open, so that servers differ: what comes of them is for their sender alone.
    if fields.iter().any(|(name, value)| *name != COOKIE && !value.as_bytes().is_ascii()) {
        return because(Detail::NonAscii);
    }
    if caching.cookies == Cookies::Bypass
        && has_any(fields, &[COOKIE])
        && key::has_unkeyed_cookie(fields, &caching.key.cookies)
    {
        return because(Detail::Cookie);
    }
    None
}

/// The first of the protocols that the request would have in place of HTTP/1.1 and that its route lets pass.
pub fn upgrade<'f>(route: &Route, fields: &'f HeaderMap) -> Option<&'f str> {
    let asked = fields.get(UPGRADE)?.to_str().ok()?;
    asked
        .split(',')
        .map(str::trim)
        .find(|token| route.upgrade.iter().any(|allowed| token.eq_ignore_ascii_case(allowed)))
}

/// Why a request passes the cache by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bypass {
    /// The `fwd` parameter.
    pub why: Why,
    /// The `detail` parameter.
    pub detail: Option<Detail>,
}
