//! The method PURGE: a client that may purges the URL it names.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::service::{Service, is_forwarded};
use crate::config::ServerConfig;
use crate::generation::Generation;
use crate::proxy::answer::{Answer, Body, Content};
use crate::proxy::ask::Sender;
use crate::purge::{self, ACKNOWLEDGED_WITHIN, Order, Way};
use crate::store::ledger::PurgeKind;
use crate::target::Target;
use crate::telemetry::cache_status::{CacheStatus, Outcome};

const PURGE: &str = "PURGE";
/// `1`: what is purged is validated before its next use rather than forgotten.
const SOFT_PURGE: HeaderName = HeaderName::from_static("soft-purge");

/// Whether a request is for the server to obey: without anybody who may, PURGE is a method like any other.
pub(super) fn is_asked_for(method: &Method, server: &ServerConfig) -> bool {
    !server.purge.is_empty() && method.as_str() == PURGE
}

impl Service {
    /// Obeys or refuses a PURGE.
    pub(super) async fn purge(
        &self,
        request: Request<Incoming>,
        target: &Target,
        generation: &Generation,
    ) -> Response<Body> {
        // Its content, if any, means nothing.
        let (parts, _) = request.into_parts();
        let sender = Sender::new(&self.connection, &generation.server, &parts.headers);
        let (status, content) = if !may_purge(&sender, &parts.headers, &generation.server) {
            (StatusCode::FORBIDDEN, purge::refused("this address may not purge; server.purge.allow names who may"))
        } else if let Some(kind) = kind(&parts.headers) {
            let order = Order::of_url(target, kind, &generation.routes);
            let outcome =
                purge::purge(&self.proxy.shared, Way::PurgeMethod(sender.client), &order, ACKNOWLEDGED_WITHIN).await;
            (outcome.status(), outcome.json())
        } else {
            (StatusCode::BAD_REQUEST, purge::refused("soft-purge is not a flag; expected 1 or 0"))
        };
        self.finish(&Request::from_parts(parts, ()), answer(status, content), generation)
    }
}

/// The peer may, where nobody stands behind it; else whom it names, where it is trusted and does not name a proxy.
fn may_purge(sender: &Sender, fields: &HeaderMap, server: &ServerConfig) -> bool {
    let is_trusted = || server.trusted_proxies.iter().any(|net| net.contains(&sender.client.to_canonical()));
    let asks = if !is_forwarded(fields) {
        Some(sender.peer)
    } else if sender.trusted && !is_trusted() {
        Some(sender.client.to_canonical())
    } else {
        None
    };
    asks.is_some_and(|asks| server.purge.iter().any(|net| net.contains(&asks)))
}

fn kind(fields: &HeaderMap) -> Option<PurgeKind> {
    let mut flags = fields.get_all(SOFT_PURGE).iter().map(HeaderValue::as_bytes);
    match (flags.next(), flags.next()) {
        (None | Some(b"0"), None) => Some(PurgeKind::Hard),
        (Some(b"1"), None) => Some(PurgeKind::Soft),
        (Some(_), None) | (_, Some(_)) => None,
    }
}

fn answer(status: StatusCode, content: Bytes) -> Answer {
    let mut head = Response::new(());
    *head.status_mut() = status;
    head.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    head.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let cache_status = CacheStatus { outcome: Outcome::Generated, detail: None };
    Answer { head, content: Content::Whole(content), cache_status, upstream: None }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::target::Scheme;

    const SERVER: &str = "[upstream.api]\nurl = \"http://a.test\"\n[server]\n\
                          trusted_proxies = [\"10.0.0.0/24\"]\npurge = { allow = [\"10.0.0.0/8\"] }\n";

    fn check(peer: &str, client: &str, fields: &[(&'static str, &'static str)], expected: bool) {
        let (config, _) = crate::config::parse("f", SERVER).unwrap_or_else(|problems| panic!("{problems:#?}"));
        let (peer, client): (IpAddr, IpAddr) = (peer.parse().unwrap(), client.parse().unwrap());
        let sender = Sender {
            peer,
            client,
            trusted: config.server.trusted_proxies.iter().any(|net| net.contains(&peer)),
            scheme: Scheme::Http,
            interim: None,
        };
        let fields =
            fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        assert_eq!(may_purge(&sender, &fields.collect(), &config.server), expected, "{peer} {client}");
    }

    #[test]
    fn who_may_purge_is_the_peer_or_whom_a_trusted_proxy_names() {
        check("10.1.0.1", "10.1.0.1", &[], true);
        check("192.0.2.1", "192.0.2.1", &[], false);
        check("10.1.0.1", "10.1.0.1", &[("x-forwarded-for", "10.1.0.2")], false);
        check("10.1.0.1", "10.1.0.1", &[("via", "1.1 x")], false);
        check("10.0.0.1", "10.0.0.1", &[], true);
        check("10.0.0.1", "10.0.0.1", &[("via", "1.1 x")], false);
        check("10.0.0.1", "10.0.0.2", &[("x-forwarded-for", "10.0.0.2")], false);
        check("10.0.0.1", "10.1.0.2", &[("x-forwarded-for", "10.1.0.2")], true);
        check("10.0.0.1", "203.0.113.9", &[("x-forwarded-for", "203.0.113.9")], false);
    }

    #[test]
    fn the_flag_is_one_or_nought() {
        let check = |flags: &[&'static str], expected| {
            let fields = flags.iter().map(|flag| (SOFT_PURGE, HeaderValue::from_static(flag)));
            assert_eq!(kind(&fields.collect()), expected, "{flags:?}");
        };
        check(&[], Some(PurgeKind::Hard));
        check(&["0"], Some(PurgeKind::Hard));
        check(&["1"], Some(PurgeKind::Soft));
        check(&["true"], None);
        check(&["1", "0"], None);
    }
}
