//! What hyper calls with each request: checks, the proxy, refusals and `/cache-stats`.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, COOKIE, HOST, VIA};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::{Frame, Incoming, SizeHint};

use super::activity::InFlight;
use super::purging;
use super::request::{self, FirstHost, Refusal};
use super::socket::Notes;
use super::vouched::Vouched;
use crate::fields::has_any;
use crate::generation::{Generation, Shared};
use crate::proxy::answer::{Answer, Arrival, Body, Content, Visit};
use crate::proxy::{Connection, Handled, Interim, Proxy};
use crate::target::Target;
use crate::telemetry::cache_status::{CacheStatus, Detail, Outcome};
use crate::telemetry::stats;

/// Fields that say that somebody stands between the peer and us, so that the peer's address does not tell who asks.
const FORWARDED: [&str; 2] = ["forwarded", "x-real-ip"];
const FORWARDED_PREFIX: &str = "x-forwarded-";
/// What 405 offers instead of CONNECT (RFC 9110 §15.5.6); the routes and their upstreams may allow less.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// The most content that an HTTP/2 stream holds at one time: it shows how fast its client takes it.
const PIECE_BYTES: usize = 64 << 10;

/// One connection's service.
pub struct Service {
    /// The worker's view of the proxy.
    pub proxy: Arc<Proxy>,
    /// The connection.
    pub connection: Connection,
    /// Which hosts TLS has vouched for, where the client named one.
    pub vouched: Option<Vouched>,
    /// What it and the socket tell each other.
    pub notes: Notes,
    /// The host of its first request.
    pub first_host: FirstHost,
}

/// The answer to a request, for hyper. One that hyper does not take, as its connection ends, is not recorded.
pub struct Answering {
    handled: Option<Handled>,
    service: Arc<Service>,
    in_flight: Option<InFlight>,
}

impl Future for Answering {
    type Output = Result<Response<Tracked>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(Handled::Later(response)) = &mut self.handled {
            let response = ready!(response.as_mut().poll(context));
            self.service.notes.interim.close();
            self.handled = Some(Handled::Now(response));
        }
        let (Some(Handled::Now(response)), Some(in_flight)) = (self.handled.take(), self.in_flight.take()) else {
            unreachable!("polled after its end");
        };
        Poll::Ready(Ok(self.service.hand_over(response, in_flight)))
    }
}

impl Service {
    /// Answers a request: at once, where nothing has to be waited for. Interim heads are taken until the answer's head is
    /// there.
    pub fn call(self: Arc<Self>, request: Request<Incoming>) -> Answering {
        let version = request.version();
        let in_flight = self.notes.activity.begin(version == Version::HTTP_2);
        let generation = self.proxy.shared.generation.load_full();
        let handled = if version != Version::HTTP_2 && self.notes.verdict.next_is_ambiguous() {
            Handled::Now(self.refuse(&request, Refusal::Framing, &generation))
        } else {
            self.answer(request, generation)
        };
        Answering { handled: Some(handled), service: self, in_flight: Some(in_flight) }
    }

    /// The answer's head is there, and hyper takes it.
    fn hand_over(&self, response: Response<Body>, in_flight: InFlight) -> Response<Tracked> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.notes.verdict.becomes_tunnel();
        }
        // From now on it can be asked for.
        in_flight.handed_over();
        response.map(|mut body| {
            body.taken();
            Tracked { body, rest: Bytes::new(), in_flight }
        })
    }

    fn answer(self: &Arc<Self>, mut request: Request<Incoming>, generation: Arc<Generation>) -> Handled {
        let checked = request::check(&request, self.connection.scheme, &generation.server, &self.first_host);
        let refused = match checked {
            Ok(request::Accepted::Proxied(target)) if self.is_misdirected(&target, &generation) => Refusal::UnknownHost,
            Ok(request::Accepted::Proxied(target)) => {
                if self.asks_for_stats(&request, &target, &generation) {
                    return Handled::Now(stats_page(&self.proxy.shared));
                }
                if purging::is_asked_for(request.method(), &generation.server) {
                    let this = Arc::clone(self);
                    return Handled::Later(Box::pin(async move { this.purge(request, &target, &generation).await }));
                }
                join_cookies(request.headers_mut());
                let takes_interim = request.version() == Version::HTTP_11;
                let queue = &self.notes.interim;
                let interim = || takes_interim.then(|| Interim { sink: Arc::clone(queue) as _, request: queue.open() });
                return self.proxy.handle(&self.connection, generation, target, request, interim);
            }
            Ok(request::Accepted::ServerOptions) => return Handled::Now(self.server_options(&request, &generation)),
            Err(refusal) => refusal,
        };
        Handled::Now(self.refuse(&request, refused, &generation))
    }

    /// RFC 9110 §7.4: a host that the connection's certificate is not valid for, unless a gateway of ours asks.
    fn is_misdirected(&self, target: &Target, generation: &Generation) -> bool {
        let Some(vouched) = &self.vouched else { return false };
        let peer = self.connection.peer.ip().to_canonical();
        !vouched.covers(target.authority.host())
            && !generation.server.trusted_proxies.iter().any(|net| net.contains(&peer))
    }

    fn refuse(&self, request: &Request<Incoming>, refusal: Refusal, generation: &Generation) -> Response<Body> {
        if let Some(limit) = refusal.limit() {
            self.proxy.shared.telemetry.limited(limit);
        }
        let mut answer = Answer::generated(refusal.status(), refusal.detail());
        let fields = answer.head.headers_mut();
        if refusal.closes() && request.version() != Version::HTTP_2 {
            fields.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if refusal == Refusal::Connect {
            fields.insert(ALLOW, METHODS);
        }
        self.finish(request, answer, generation)
    }

    /// hyper answers by itself, and without content, a head that it cannot read; it is told of like any other refusal.
    pub fn told_by_hyper(&self, error: &(dyn Error + 'static)) -> String {
        let refused = error.downcast_ref::<hyper::Error>().filter(|error| error.is_parse());
        if let Some(error) = refused {
            let status = match error.is_parse_too_large() {
                false => StatusCode::BAD_REQUEST,
                true if error.to_string().starts_with("URI") => StatusCode::URI_TOO_LONG,
                true => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            };
            let mut answer = Answer::generated(status, Detail::BadRequest);
            answer.content = Content::Empty;
            let generation = self.proxy.shared.generation.load_full();
            let unread = Method::from_bytes(b"-").unwrap_or_default();
            let told = self.visit(unread, "".into(), None, Version::HTTP_11, &generation).finish(answer, false);
            told.into_body().taken();
        }
        error.to_string()
    }

    fn server_options(&self, request: &Request<Incoming>, generation: &Generation) -> Response<Body> {
        let mut head = Response::new(());
        *head.status_mut() = StatusCode::NO_CONTENT;
        head.headers_mut().insert(ALLOW, METHODS);
        let cache_status = CacheStatus { outcome: Outcome::Generated, detail: None };
        self.finish(request, Answer { head, content: Content::Empty, cache_status, upstream: None }, generation)
    }

    /// What never reaches a route is counted with what no route matches.
    pub(super) fn finish<B>(&self, request: &Request<B>, answer: Answer, generation: &Generation) -> Response<Body> {
        let uri = request.uri();
        let target = uri.path_and_query().map_or("", PathAndQuery::as_str).into();
        // What the request is for is what its target says (RFC 9112 §3.2.2, RFC 9113 §8.3.1), as far as it does.
        let authority = uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        let host = authority.or_else(|| request.headers().get(HOST).cloned());
        let visit = self.visit(request.method().clone(), target, host, request.version(), generation);
        visit.finish(answer, generation.server.cache_status)
    }

    fn visit(
        &self,
        method: Method,
        target: Box<str>,
        host: Option<HeaderValue>,
        version: Version,
        generation: &Generation,
    ) -> Visit {
        let arrival = Arrival {
            started: self.proxy.shared.clock.now(),
            client: self.connection.peer.ip().to_canonical(),
            method,
            target,
            host,
            version,
            counters: Arc::clone(&generation.unrouted),
        };
        Visit::new(arrival, &self.proxy.shared.telemetry)
    }

    fn asks_for_stats(&self, request: &Request<Incoming>, target: &Target, generation: &Generation) -> bool {
        let stats = &generation.server.stats;
        let peer = self.connection.peer.ip().to_canonical();
        *target.path() == *stats.path
            && matches!(*request.method(), Method::GET | Method::HEAD)
            && stats.allow.iter().any(|net| net.contains(&peer))
            && !is_forwarded(request.headers())
    }
}

/// Whether the request says that it comes from somebody else than the peer.
pub(super) fn is_forwarded(fields: &HeaderMap) -> bool {
    let says_so = |name: &str| name == VIA || FORWARDED.contains(&name) || name.starts_with(FORWARDED_PREFIX);
    fields.keys().any(|name| says_so(name.as_str()))
}

/// Asking for the figures is not counted: not by route, nor in the log.
fn stats_page(shared: &Shared) -> Response<Body> {
    let mut response = Response::new(Body::unrecorded(stats::text(shared)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// HTTP/2 may split `Cookie` (RFC 9113 §8.2.3); key and upstream see one field.
fn join_cookies(fields: &mut HeaderMap) {
    if !has_any(fields, &[COOKIE]) {
        return;
    }
    let mut cookies = fields.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for cookie in std::iter::once(second).chain(cookies) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        fields.insert(COOKIE, joined);
    }
}

impl Drop for Tracked {
    /// One look at the clock for both ends.
    fn drop(&mut self) {
        let now = Instant::now();
        self.body.end(now);
        self.in_flight.end(now);
    }
}

/// An answer's content that keeps its request in flight until it has ended, and tells who is waited for.
#[derive(Debug)]
pub struct Tracked {
    body: Body,
    /// What is left of a piece of content; HTTP/2 only.
    rest: Bytes,
    in_flight: InFlight,
}

impl http_body::Body for Tracked {
    type Data = <Body as http_body::Body>::Data;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(self.next_piece())));
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match polled {
            Poll::Pending => {
                self.in_flight.waits_for_content();
                Poll::Pending
            }
            Poll::Ready(Some(Ok(frame))) if self.in_flight.is_http2() => match frame.into_data() {
                Ok(data) => {
                    self.rest = data;
                    Poll::Ready(Some(Ok(self.next_piece())))
                }
                Err(trailers) => {
                    self.in_flight.handed_over();
                    Poll::Ready(Some(Ok(trailers)))
                }
            },
            Poll::Ready(frame) => {
                self.in_flight.handed_over();
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        body.upper().into_iter().for_each(|upper| hint.set_upper(upper + rest));
        hint
    }
}

impl Tracked {
    /// Hands over a piece of what is left.
    fn next_piece(&mut self) -> Frame<Bytes> {
        self.in_flight.handed_over();
        let length = self.rest.len().min(PIECE_BYTES);
        Frame::data(self.rest.split_to(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_cookies_are_joined_in_their_order() {
        let check = |cookies: &[&str], expected: &[&str]| {
            let cookies = cookies.iter().map(|cookie| (COOKIE, HeaderValue::from_str(cookie).unwrap()));
            let mut fields: HeaderMap = cookies.collect();
            join_cookies(&mut fields);
            assert_eq!(fields.get_all(COOKIE).iter().collect::<Vec<_>>(), expected);
        };
        check(&[], &[]);
        check(&["a=1"], &["a=1"]);
        check(&["a=1", "b=2; c=3", "d=4"], &["a=1; b=2; c=3; d=4"]);
    }

    #[test]
    fn any_forwarding_field_hides_the_figures() {
        for name in ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"] {
            let fields = HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static("x"))]);
            assert!(is_forwarded(&fields), "{name}");
        }
        assert!(!is_forwarded(&HeaderMap::from_iter([(HOST, HeaderValue::from_static("x"))])));
    }
}
