//! Requests in which the cache takes no part: sent on and answered, streaming both ways.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::header::{CONNECTION, RANGE, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::answer::{Answer, Content};
use super::ask::{self, Ask, Bypass};
use super::client_body::{ClientBody, ContentTrouble};
use super::posted::{Posted, Sent};
use super::{Head, Incomer, Proxy, fetch, forward, invalidate, serve};
use crate::fields::range;
use crate::generation::Generation;
use crate::key::{Address, BodyRule, UnkeyedBody};
use crate::policy::reuse::Why;
use crate::route::{Caching, Matched, Route};
use crate::target::Target;
use crate::telemetry::cache_status::{CacheStatus, Detail, Outcome};
use crate::telemetry::limits::Limit;
use crate::upstream::{CallOptions, RequestBody, ResponseBody, Upstream, UpstreamError};

/// A request on its way past the cache.
pub struct Passing {
    /// The configuration it sees to its end.
    pub generation: Arc<Generation>,
    /// Its route.
    pub matched: Option<Matched>,
    /// Its head.
    pub head: Head,
    content: ClientBody,
    bypass: Bypass,
}

impl Passing {
    /// What `incomer` becomes when the cache takes no part.
    pub fn new(generation: &Arc<Generation>, matched: Option<Matched>, incomer: Incomer, bypass: Bypass) -> Self {
        let Incomer { head, content } = incomer;
        let bytes_max = matched.as_ref().map_or(u64::MAX, |matched| matched.route.request_body_max);
        let content = ClientBody::new(content, bytes_max, &generation.server.limits);
        Self { generation: Arc::clone(generation), matched, head, content, bypass }
    }

    fn route(&self) -> Option<&Arc<Route>> {
        self.matched.as_ref().map(|matched| &matched.route)
    }
}

/// The place in the store of a request that the cache may answer, whose fields are reduced to what the upstream may see:
/// what the key is made of is what is sent.
pub(super) fn address(
    route: &Route,
    caching: &Caching,
    head: &mut Head,
    content: &[u8],
) -> Result<Address, UnkeyedBody> {
    let Head { target, sender, parts } = head;
    forward::reduce(&mut parts.headers, sender, route, caching, !content.is_empty());
    let claims = sender.claims(&parts.headers);
    caching.key.address(&parts.method, target, &parts.headers, &claims, content)
}

impl Proxy {
    /// RFC 9110 §14.2 lets a `Range` be ignored: one that names too many is.
    pub(super) fn bound_ranges(&self, generation: &Generation, fields: &mut HeaderMap) {
        if range::names_more_than(generation.server.limits.ranges, fields) {
            fields.remove(RANGE);
            self.shared.telemetry.limited(Limit::Ranges);
        }
    }

    /// The request as one that the cache may answer.
    pub(super) fn ask(
        self: &Arc<Self>,
        generation: &Arc<Generation>,
        matched: Matched,
        head: Head,
        address: Address,
        content: Bytes,
    ) -> Ask {
        let Matched { route, index, params } = matched;
        let Head { target, sender, parts } = head;
        Ask {
            proxy: Arc::clone(self),
            generation: Arc::clone(generation),
            counters: Arc::clone(&generation.counters[index]),
            query: route.caching.as_ref().and_then(|caching| caching.key.query(target.query())),
            route,
            params,
            target,
            parts,
            content,
            address,
            sender,
        }
    }

    /// The same of a request with content, once that is read where it is keyed. What cannot be keyed passes; what could
    /// not be read is refused there.
    pub(super) async fn read(
        self: &Arc<Self>,
        generation: &Arc<Generation>,
        matched: Matched,
        incomer: Incomer,
    ) -> Result<Ask, Box<Passing>> {
        let bypass = Bypass { why: Why::Bypass, detail: Some(Detail::RequestBody) };
        let mut passing = Passing::new(generation, Some(matched.clone()), incomer, bypass);
        let Some(caching) = &matched.route.caching else { return Err(Box::new(passing)) };
        let content = match caching.key.body {
            BodyRule::None => Some(Bytes::new()),
            BodyRule::Raw | BodyRule::Json => passing.content.buffer(caching.key.body_max).await.unwrap_or(None),
        };
        let Some(content) = content else { return Err(Box::new(passing)) };
        // What cannot be keyed passes as it came.
        let original = passing.head.parts.headers.clone();
        match address(&matched.route, caching, &mut passing.head, &content) {
            Ok(address) => Ok(self.ask(generation, matched, passing.head, address, content)),
            Err(_unkeyed) => {
                passing.content.put_back(content);
                passing.head.parts.headers = original;
                Err(Box::new(passing))
            }
        }
    }

    /// Sends the request on and answers with what comes back. An unsafe one invalidates before its answer leaves.
    pub async fn pass(self: &Arc<Self>, passing: Passing) -> Answer {
        let route = passing.route().cloned();
        let Some(name) = route.as_ref().map(|route| &route.upstream).or(passing.generation.server.fallback.as_ref())
        else {
            return Answer::generated(StatusCode::NOT_FOUND, Detail::NoRoute);
        };
        let Some(upstream) = passing.generation.upstreams.find(name).cloned() else {
            return Answer::failed(UpstreamError::NoServer, serve::forwarded(passing.bypass.why, None, false));
        };
        if passing.content.is_too_large() {
            return Answer::generated(StatusCode::PAYLOAD_TOO_LARGE, Detail::BodyTooLarge);
        }
        if let Some(trouble) = passing.content.trouble().seen() {
            return self.refused(trouble);
        }
        let options = CallOptions {
            first_byte_timeout: route.as_ref().and_then(|route| route.first_byte_timeout),
            client_host: Some(passing.head.target.authority.as_value().clone()),
            interim_max: Some(passing.generation.server.limits.interim),
            on_interim: forward::on_interim(&passing.head.sender, &self.shared.telemetry),
        };
        let begun = std::time::Instant::now();
        let name = Arc::clone(name);
        let mut answer = self.send(passing, name, &upstream, &options).await;
        answer.upstream = Some(begun.elapsed());
        answer
    }

    async fn send(
        self: &Arc<Self>,
        passing: Passing,
        name: Arc<str>,
        upstream: &Upstream,
        options: &CallOptions,
    ) -> Answer {
        let Passing { generation, matched, head: Head { target, sender, mut parts }, content, bypass } = passing;
        let route = matched.as_ref().map(|matched| &*matched.route);
        let upgrade = take_upgrade(route, &mut parts);
        let protocol = upgrade.as_ref().map(|(_, protocol)| protocol.clone());
        let trouble = content.trouble();
        let fields = forward::fields(&parts, &target, &sender, route, None, &self.shared.pseudonym);
        let request = outgoing(&parts, fields, &target, route, protocol, content);
        let sent = (parts.method == Method::POST).then(|| Sent::of(&request));
        let synced = self.shared.store.synced();
        let request_time = self.shared.clock.now();
        let response = match upstream.fetch(self.worker.0, request, options, None).await {
            Ok(response) => response,
            Err(error) => return self.failed(error, trouble.seen(), bypass.why),
        };
        let (head, body) = response.into_parts();
        let storable = sent.and_then(|sent| {
            let (generation, target, sender, parts) = (&generation, &target, &sender, &parts);
            let posted = Posted { generation, upstream: &name, target, sender, parts, sent, synced, request_time };
            posted.storable(self, &head, fetch::framing(&head, &body))
        });
        let response = Response::from_parts(head, body);
        let valid_at = storable.as_ref().map_or(synced, |storable| storable.valid_at);
        let stands = invalidate::after(self, &generation, matched.as_ref(), &target, &parts, &response, valid_at).await;
        let outcome = serve::forwarded(bypass.why, Some(response.status()), false);
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return match storable.zip(stands) {
                Some((storable, synced)) => storable.store(response, synced, bypass.why).await,
                None => serve::passed(response, outcome, bypass.detail),
            };
        }
        match upgrade {
            Some((client, _)) => self.tunnel(client, response, outcome, generation.server.limits.idle_timeout),
            // Nobody asked for it (RFC 9110 §15.2.2).
            None => Answer::failed(UpstreamError::Protocol, outcome),
        }
    }

    /// Joins client and upstream once both have switched protocols; drain waits for the tunnel within its time. Once one
    /// side has ended, the other may take `limits.idle_timeout` to do so.
    fn tunnel(
        &self,
        client: OnUpgrade,
        mut response: Response<ResponseBody>,
        outcome: Outcome,
        farewell: Duration,
    ) -> Answer {
        let upstream = hyper::upgrade::on(&mut response);
        self.shared.tunnels.spawn(async move {
            let (Ok(client), Ok(upstream)) = (client.await, upstream.await) else { return };
            let (from_client, to_client) = tokio::io::split(TokioIo::new(client));
            let (from_upstream, to_upstream) = tokio::io::split(TokioIo::new(upstream));
            let (up, down) = (pin!(one_way(from_client, to_upstream)), pin!(one_way(from_upstream, to_client)));
            match select(up, down).await {
                Either::Left(((), down)) => drop(tokio::time::timeout(farewell, down).await),
                Either::Right(((), up)) => drop(tokio::time::timeout(farewell, up).await),
            }
        });
        let cache_status = CacheStatus { outcome, detail: Some(Detail::Upgrade) };
        Answer { head: response.map(drop), content: Content::Empty, cache_status, upstream: None }
    }

    /// The answer when the upstream gave none: the client's own trouble first.
    fn failed(&self, error: UpstreamError, trouble: Option<ContentTrouble>, why: Why) -> Answer {
        let failed = || Answer::failed(error, serve::forwarded(why, None, false));
        trouble.map_or_else(failed, |trouble| self.refused(trouble))
    }

    /// The answer to content that could not be taken.
    fn refused(&self, trouble: ContentTrouble) -> Answer {
        if let Some(limit) = trouble.limit() {
            self.shared.telemetry.limited(limit);
        }
        match trouble {
            ContentTrouble::TooLarge => Answer::generated(StatusCode::PAYLOAD_TOO_LARGE, Detail::BodyTooLarge),
            ContentTrouble::Idle | ContentTrouble::Slow => {
                Answer::generated(StatusCode::REQUEST_TIMEOUT, Detail::BadRequest)
            }
            ContentTrouble::Broken => Answer::generated(StatusCode::BAD_REQUEST, Detail::BadRequest),
        }
    }
}

/// Passes on what is read until there is no more; there is nobody to tell of an error.
async fn one_way(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

/// The client's side of an upgrade that the route lets pass, and to what.
fn take_upgrade(route: Option<&Route>, parts: &mut Parts) -> Option<(OnUpgrade, HeaderValue)> {
    let client = parts.extensions.remove::<OnUpgrade>().filter(|_| parts.version == http::Version::HTTP_11)?;
    let protocol = ask::upgrade(route?, &parts.headers)?;
    Some((client, HeaderValue::from_str(protocol).ok()?))
}

fn outgoing(
    parts: &Parts,
    mut fields: HeaderMap,
    target: &Target,
    route: Option<&Route>,
    protocol: Option<HeaderValue>,
    content: ClientBody,
) -> Request<RequestBody> {
    if let Some(protocol) = protocol {
        fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        fields.insert(UPGRADE, protocol);
    }
    let mut request = Request::new(RequestBody::new(content.map_err(Into::into)));
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = forward::uri(target, target.query(), route);
    *request.headers_mut() = fields;
    request
}
