//! What the upstream is sent: the client's fields without what must not travel, and the proxy's own.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{CACHE_CONTROL, COOKIE, EXPECT, HOST, PRAGMA, VIA};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};

use super::Interim;
use super::ask::Sender;
use super::rounds::Pseudonym;
use crate::fields::{forwarding, has_any, hop_by_hop, vary};
use crate::key;
use crate::route::{Caching, ForwardFields, Route};
use crate::target::{Authority, Target};
use crate::telemetry::Telemetry;
use crate::telemetry::limits::Limit;
use crate::telemetry::lines;
use crate::upstream::OnInterim;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The fields HTTP itself needs, whatever `forward_headers` lists.
const NEEDED: [&str; 11] = [
    "accept-encoding",
    "cdn-loop",
    "content-encoding",
    "content-length",
    "content-type",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "range",
];

/// The fields that the proxy adds, Host among them.
const OWN_FIELDS_MAX: usize = 6;

/// Text of the longest address, an IPv6 one that ends like one of IPv4.
const ADDRESS_BYTES_MAX: usize = 45;

/// What the cache obeys, though the upstream need not see it.
const OBEYED: [HeaderName; 2] = [CACHE_CONTROL, PRAGMA];

/// Takes from a request that the cache may answer what is not to reach the upstream, so that key, `Vary` and upstream
/// see the same. What the cache itself obeys stays.
pub fn reduce(fields: &mut HeaderMap, sender: &Sender, route: &Route, caching: &Caching, has_content: bool) {
    hop_by_hop::remove_named(fields);
    let is_listed = |name: &HeaderName| match &route.forward_headers {
        ForwardFields::All => false,
        ForwardFields::Only(names) => names.contains(name),
    };
    // Without content the fields that describe it say nothing, but could be answered to.
    let is_of_content = |name: &HeaderName| !has_content && name.as_str().starts_with("content-");
    // In one pass: most requests have none of it.
    forwarding::remove_if(fields, |name| {
        hop_by_hop::is_own(name)
            || (!sender.trusted && forwarding::is_claim(name))
            || ((is_of_content(name) || forwarding::is_ambiguous(name)) && !is_listed(name) && !is_keyed(name, caching))
    });
    keep_keyed_cookies(fields, caching);
    caching.key.reduce(fields);
    vary::reduce_accept_encoding(fields);
    if let ForwardFields::Only(names) = &route.forward_headers {
        keep_only(fields, names, Some(caching), &OBEYED);
    }
}

/// The fields for the upstream. `caching` is given for a request that the cache may answer: [`reduce`] has taken the
/// most of it away.
pub fn fields(
    parts: &Parts,
    target: &Target,
    sender: &Sender,
    route: Option<&Route>,
    caching: Option<&Caching>,
    own: &Pseudonym,
) -> HeaderMap {
    // With room for all that follows: a clone has none to spare, and would grow for each.
    let mut fields = HeaderMap::try_with_capacity(parts.headers.keys_len() + OWN_FIELDS_MAX).unwrap_or_default();
    // The proxy has answered an expectation itself (RFC 9110 §10.1.1), and says by itself whom it asks.
    for (name, value) in parts.headers.iter().filter(|(name, _)| **name != HOST && **name != EXPECT) {
        fields.append(name, value.clone());
    }
    if caching.is_none() {
        hop_by_hop::remove(&mut fields);
        if !sender.trusted {
            forwarding::remove_claims(&mut fields);
        }
    }
    if let Some(ForwardFields::Only(names)) = route.map(|route| &route.forward_headers) {
        keep_only(&mut fields, names, caching, &[]);
    }
    // What is stored for every host must not be made for one.
    let tells_host = caching.is_none_or(|caching| caching.key.host);
    add_own(&mut fields, sender, tells_host.then_some(&*target.authority));
    if let Some(route) = route {
        route.request_headers.apply(&mut fields);
    }
    own.sign(&mut fields);
    fields
}

/// The path and query for the upstream: what was keyed, less the route's `strip_prefix`.
pub fn uri(target: &Target, query: Option<&str>, route: Option<&Route>) -> Uri {
    let path = target.path();
    let strip = route.map_or("", |route| &route.strip_prefix);
    let rest = path.strip_prefix(strip.trim_end_matches('/')).filter(|rest| rest.starts_with('/'));
    let path = if strip.is_empty() { path } else { rest.unwrap_or(if path == strip { "/" } else { path }) };
    let mut text = String::with_capacity(path.len() + query.map_or(0, |query| query.len() + 1));
    text.push_str(path);
    if let Some(query) = query {
        text.push('?');
        text.push_str(query);
    }
    // A normalised target is a valid one; the root stands in should hyper's grammar ever be narrower.
    Uri::try_from(text).unwrap_or_else(|_| Uri::from_static("/"))
}

/// Lets 103 (Early Hints) through to a client that can take it; hyper consumes 100 and the others say nothing.
pub fn on_interim(sender: &Sender, telemetry: &Arc<Telemetry>) -> Option<OnInterim> {
    let Interim { sink, request } = sender.interim.clone()?;
    let telemetry = Arc::clone(telemetry);
    Some(OnInterim::new(move |status, fields| {
        if status == StatusCode::EARLY_HINTS {
            let mut fields = fields.clone();
            hop_by_hop::remove(&mut fields);
            if !sink.send(request, StatusCode::EARLY_HINTS, &fields) {
                telemetry.limited(Limit::Interim);
            }
        }
    }))
}

fn keep_keyed_cookies(fields: &mut HeaderMap, caching: &Caching) {
    if !has_any(fields, &[COOKIE]) {
        return;
    }
    let kept = key::keyed_cookies(fields, &caching.key.cookies);
    fields.remove(COOKIE);
    if let Some(kept) = kept {
        fields.insert(COOKIE, kept);
    }
}

fn keep_only(fields: &mut HeaderMap, names: &[HeaderName], caching: Option<&Caching>, besides: &[HeaderName]) {
    forwarding::remove_if(fields, |name| {
        let is_needed = NEEDED.contains(&name.as_str()) || besides.contains(name);
        !is_needed && !names.contains(name) && !caching.is_some_and(|caching| is_keyed(name, caching))
    });
}

fn is_keyed(name: &HeaderName, caching: &Caching) -> bool {
    caching.key.headers.iter().any(|header| header.name == *name)
        || (*name == COOKIE && !caching.key.cookies.is_empty())
}

fn add_own(fields: &mut HeaderMap, sender: &Sender, host: Option<&Authority>) {
    let mut chain = Vec::with_capacity(ADDRESS_BYTES_MAX);
    // A trusted proxy may have put its own hop on a line of its own: the last line is the one that counts.
    for before in fields.get_all(&FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()) {
        chain.extend_from_slice(before.as_bytes());
        chain.extend_from_slice(b", ");
    }
    lines::address(&mut chain, sender.peer);
    if let Ok(chain) = HeaderValue::try_from(chain) {
        fields.insert(FORWARDED_FOR, chain);
    }
    if !fields.contains_key(&FORWARDED_PROTO) {
        fields.insert(FORWARDED_PROTO, HeaderValue::from_static(sender.scheme.as_str()));
    }
    if let Some(host) = host.filter(|_| !fields.contains_key(&FORWARDED_HOST)) {
        fields.insert(FORWARDED_HOST, host.as_value().clone());
    }
    fields.append(VIA, HeaderValue::from_static("1.1 aside"));
}

/// Who asked: the peer, or whom a trusted peer names in `client_ip_header` or, from the right, `X-Forwarded-For`.
pub fn client_ip(
    fields: &HeaderMap,
    peer: IpAddr,
    header: Option<&HeaderName>,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> IpAddr {
    if !is_trusted(peer) {
        return peer;
    }
    if let Some(header) = header {
        let named = fields.get(header).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        return named.unwrap_or(peer);
    }
    let mut client = peer;
    let lines: Vec<&str> = fields.get_all(&FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
    for hop in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
        let Ok(address) = hop.trim().parse() else { return client };
        client = address;
        if !is_trusted(client) {
            return client;
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Scheme;

    #[test]
    fn only_trusted_hops_are_believed_from_the_right() {
        let check = |peer: &str, chain: &str, expected: &str| {
            let mut fields = HeaderMap::new();
            fields.insert(FORWARDED_FOR, HeaderValue::from_str(chain).unwrap());
            let trusted = |ip: IpAddr| ip.to_string().starts_with("10.");
            let client = client_ip(&fields, peer.parse().unwrap(), None, trusted);
            assert_eq!(client.to_string(), expected, "{peer} with {chain}");
        };
        check("192.0.2.1", "203.0.113.9", "192.0.2.1");
        check("10.0.0.1", "203.0.113.9", "203.0.113.9");
        check("10.0.0.1", "198.51.100.7, 203.0.113.9, 10.0.0.2", "203.0.113.9");
        check("10.0.0.1", "garbage", "10.0.0.1");
        check("10.0.0.1", "203.0.113.9, garbage", "10.0.0.1");
        check("10.0.0.1", "203.0.113.9, 10.0.0.2:443", "10.0.0.1");
    }

    #[test]
    fn the_chain_has_every_line_and_the_peer_last() {
        let mut fields = HeaderMap::new();
        for line in ["203.0.113.9", "198.51.100.7, 10.0.0.2"] {
            fields.append(FORWARDED_FOR, HeaderValue::from_static(line));
        }
        let sender = Sender {
            peer: "10.0.0.1".parse().unwrap(),
            client: "198.51.100.7".parse().unwrap(),
            trusted: true,
            scheme: Scheme::Http,
            interim: None,
        };
        add_own(&mut fields, &sender, Authority::parse("a", Scheme::Http).ok().as_ref());
        let chain: Vec<_> = fields.get_all(&FORWARDED_FOR).iter().collect();
        assert_eq!(chain, ["203.0.113.9, 198.51.100.7, 10.0.0.2, 10.0.0.1"]);
    }

    #[test]
    fn the_query_sent_is_the_query_keyed() {
        let authority = Authority::parse("a.test", Scheme::Http).unwrap();
        let target = Target::new(Scheme::Http, authority, "/v1/x", Some("b=1&utm_source=y")).unwrap();
        assert_eq!(uri(&target, Some("b=1"), None), "/v1/x?b=1");
        assert_eq!(uri(&target, None, None), "/v1/x");
    }
}
