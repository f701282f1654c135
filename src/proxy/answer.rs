//! An answer on its way to the client: head, body, and the record that is made when it has ended.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, Version};
use http_body::{Body as _, Frame, SizeHint};

use super::fill::FillReader;
use super::reply::ReplyBody;
use crate::clock::Timestamp;
use crate::telemetry::cache_status::{CacheStatus, Detail, Outcome};
use crate::telemetry::metrics::RouteCounters;
use crate::telemetry::{RequestRecord, Telemetry};
use crate::upstream::{ResponseBody, UpstreamError};

/// The name of the field that RFC 9211 defines.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Why an answer's content broke off.
#[derive(Debug)]
pub enum BodyError {
    /// The upstream's content ended too early.
    Truncated,
    /// The upstream's connection failed.
    Upstream(Box<dyn std::error::Error + Send + Sync>),
}

impl std::fmt::Display for BodyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Truncated => f.write_str("the upstream's content ended too early"),
            Self::Upstream(cause) => write!(f, "the upstream's content broke off: {cause}"),
        }
    }
}

impl std::error::Error for BodyError {}

impl From<Box<dyn std::error::Error + Send + Sync>> for BodyError {
    fn from(cause: Box<dyn std::error::Error + Send + Sync>) -> Self {
        Self::Upstream(cause)
    }
}

/// Where an answer's content comes from.
#[derive(Debug)]
pub enum Content {
    /// There is none.
    Empty,
    /// All of it.
    Whole(Bytes),
    /// All of it, in pieces, the last first.
    Pieces(Vec<Bytes>),
    /// A body being received and stored.
    Fill(FillReader),
    /// The upstream's, straight.
    Upstream(Box<ResponseBody>),
}

impl From<ReplyBody> for Content {
    fn from(body: ReplyBody) -> Self {
        match body {
            ReplyBody::Empty => Self::Empty,
            ReplyBody::Whole(bytes) => Self::Whole(bytes),
            ReplyBody::Parts(mut parts) => {
                parts.reverse();
                Self::Pieces(parts)
            }
        }
    }
}

/// An answer before it is sent.
#[derive(Debug)]
pub struct Answer {
    /// Status and fields.
    pub head: Response<()>,
    /// Its content.
    pub content: Content,
    /// How the cache took part.
    pub cache_status: CacheStatus,
    /// How long the upstream took to its head, where it was asked.
    pub upstream: Option<Duration>,
}

impl Answer {
    /// The proxy's own answer: a constant text, for `detail` and status.
    pub fn generated(status: StatusCode, detail: Detail) -> Self {
        Self::with_outcome(status, CacheStatus { outcome: Outcome::Generated, detail: Some(detail) })
    }

    /// The proxy's own answer in place of the upstream's: the one place where its errors become responses.
    pub fn failed(error: UpstreamError, outcome: Outcome) -> Self {
        let (status, detail) = match error {
            UpstreamError::Connect | UpstreamError::NoServer => (StatusCode::BAD_GATEWAY, Detail::UpstreamConnect),
            UpstreamError::ConnectTimeout | UpstreamError::FirstByteTimeout => {
                (StatusCode::GATEWAY_TIMEOUT, Detail::UpstreamTimeout)
            }
            UpstreamError::Protocol => (StatusCode::BAD_GATEWAY, Detail::UpstreamProtocol),
            UpstreamError::RequestBody => (StatusCode::BAD_REQUEST, Detail::BadRequest),
            UpstreamError::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, Detail::Overloaded),
        };
        let mut answer = Self::with_outcome(status, CacheStatus { outcome, detail: Some(detail) });
        if error == UpstreamError::Overloaded {
            answer.head.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        answer
    }

    fn with_outcome(status: StatusCode, cache_status: CacheStatus) -> Self {
        let mut head = Response::new(());
        *head.status_mut() = status;
        head.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        head.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let text = status.canonical_reason().unwrap_or("error").as_bytes();
        let content = Content::Pieces(vec![Bytes::from_static(b"\n"), Bytes::from_static(text)]);
        Self { head, content, cache_status, upstream: None }
    }
}

/// A request from its coming to its record. Nothing is recorded of one whose answer nobody takes ([`Body::taken`]).
#[derive(Debug)]
pub struct Visit(Box<Ending>);

/// What is known of a request when it comes.
#[derive(Debug)]
pub struct Arrival {
    /// When it came.
    pub started: Timestamp,
    /// Who asked.
    pub client: IpAddr,
    /// Its method.
    pub method: Method,
    /// Path and query as received.
    pub target: Box<str>,
    /// Its host.
    pub host: Option<HeaderValue>,
    /// Its version.
    pub version: Version,
    /// The counters of its route.
    pub counters: Arc<RouteCounters>,
}

impl Visit {
    /// Begins now.
    pub fn new(arrival: Arrival, telemetry: &Arc<Telemetry>) -> Self {
        let Arrival { started, client, method, target, host, version, counters } = arrival;
        let record = RequestRecord {
            started,
            duration: Duration::ZERO,
            until_head: Duration::ZERO,
            client,
            method,
            target,
            host,
            version,
            status: StatusCode::OK,
            bytes_served: 0,
            aborted: true,
            counters,
            cache_status: CacheStatus { outcome: Outcome::Generated, detail: None },
            upstream: None,
        };
        let telemetry = Arc::clone(telemetry);
        Self(Box::new(Ending {
            record,
            begun: Instant::now(),
            ended: None,
            ends_with_head: false,
            is_taken: false,
            telemetry,
        }))
    }

    /// The response for the server: the record is made when its content ends or is dropped.
    pub fn finish(self, answer: Answer, with_cache_status: bool) -> Response<Body> {
        let Self(mut ending) = self;
        let Answer { mut head, content, cache_status, upstream } = answer;
        if with_cache_status {
            head.headers_mut().append(CACHE_STATUS, cache_status.to_value());
        }
        let mut body = Body { content, ending: None };
        // What is there whole leaves with its head, but for HTTP/2's windows: one look at the clock tells of both.
        let is_whole = matches!(body.content, Content::Empty | Content::Whole(_));
        ending.ends_with_head = is_whole && ending.record.version != Version::HTTP_2;
        if !ending.ends_with_head {
            ending.record.until_head = ending.begun.elapsed();
        }
        let record = &mut ending.record;
        record.status = head.status();
        record.cache_status = cache_status;
        record.upstream = upstream;
        // hyper never reads the content of an answer to HEAD.
        record.aborted = !body.is_end_stream();
        body.ending = Some(ending);
        head.map(|()| body)
    }
}

/// The duty to record a request; discharged when dropped.
#[derive(Debug)]
struct Ending {
    record: RequestRecord,
    begun: Instant,
    /// Where whoever drops it has looked at the clock already.
    ended: Option<Instant>,
    /// Whether the head leaves no earlier than the end.
    ends_with_head: bool,
    /// Whether somebody has taken the answer, so that its end is to be told.
    is_taken: bool,
    telemetry: Arc<Telemetry>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.is_taken {
            self.record.duration = self.ended.unwrap_or_else(Instant::now).saturating_duration_since(self.begun);
            if self.ends_with_head {
                self.record.until_head = self.record.duration;
            }
            self.telemetry.record(&self.record);
        }
    }
}

/// The content of an answer, for hyper.
#[derive(Debug)]
pub struct Body {
    content: Content,
    ending: Option<Box<Ending>>,
}

impl Body {
    /// Content of which nothing is recorded.
    pub const fn unrecorded(bytes: Bytes) -> Self {
        Self { content: Content::Whole(bytes), ending: None }
    }

    /// The answer is on its way to the client: from now on its end is recorded.
    pub fn taken(&mut self) {
        if let Some(ending) = &mut self.ending {
            ending.is_taken = true;
        }
    }

    /// It ends now.
    pub fn end(&mut self, now: Instant) {
        if let Some(mut ending) = self.ending.take() {
            ending.ended = Some(now);
        }
    }

    fn poll_content(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.content {
            Content::Empty => Poll::Ready(None),
            Content::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Content::Pieces(pieces) => Poll::Ready(pieces.pop().map(|piece| Ok(Frame::data(piece)))),
            Content::Fill(reader) => reader.poll(context),
            Content::Upstream(body) => Pin::new(body.as_mut()).poll_frame(context).map_err(BodyError::from),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = self.poll_content(context);
        let at_end = self.is_end_stream();
        if let Some(ending) = &mut self.ending {
            if let Poll::Ready(Some(Ok(frame))) = &polled {
                ending.record.bytes_served += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            if at_end || matches!(polled, Poll::Ready(None)) {
                ending.record.aborted = false;
            }
        }
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.ending = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Empty => true,
            Content::Whole(bytes) => bytes.is_empty(),
            Content::Pieces(pieces) => pieces.is_empty(),
            Content::Fill(reader) => reader.remaining() == Some(0),
            Content::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty => SizeHint::with_exact(0),
            Content::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Pieces(pieces) => SizeHint::with_exact(pieces.iter().map(|piece| piece.len() as u64).sum()),
            Content::Fill(reader) => reader.remaining().map_or_else(SizeHint::default, SizeHint::with_exact),
            Content::Upstream(body) => body.size_hint(),
        }
    }
}
