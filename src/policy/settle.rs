//! What becomes of a response from the upstream (RFC 9111 §3, §4.3.3 to §4.3.5).

use std::sync::Arc;

use http::request::Parts as RequestParts;
use http::response::Parts as ResponseParts;

use super::Rules;
use crate::clock::Timestamp;
use crate::stored::StoredResponse;

/// A request sent to the upstream and the head that came back.
#[derive(Debug)]
pub struct Exchange<'a> {
    /// The client's request (its own conditions and range, not those sent to the upstream).
    pub request: &'a RequestParts,
    /// Whether the upstream was asked with the stored response's validators.
    pub conditional: super::validate::Conditional,
    /// The head received.
    pub response: &'a ResponseParts,
    /// When the request was sent.
    pub request_time: Timestamp,
    /// When the head was received.
    pub response_time: Timestamp,
    /// How the body's end is known.
    pub framing: Framing,
    /// A number in 0..1, drawn by the caller, for `ttl_jitter`.
    pub jitter: f64,
}

/// How the end of a response's body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By `Content-Length`.
    Length(u64),
    /// By chunked coding or an HTTP/2 stream's end.
    Delimited,
    /// By the connection's end: truncation cannot be told, so it is never stored.
    Close,
}

/// What becomes of the response.
#[derive(Debug)]
pub enum Settlement {
    /// Stream it to the client and store it: all but body and provenance is filled in.
    Store(Box<StoredResponse>),
    /// 304: the stored response with updated fields, freshness and times; serve that, store that.
    Freshen(Arc<StoredResponse>),
    /// A part that completes the stored part: the two combined, once the body is there (RFC 9111 §3.4).
    Combine(Box<StoredResponse>),
    /// The upstream failed (5xx) and the stored response may be used (stale-if-error).
    UseStale(Arc<StoredResponse>),
    /// A 304 or 206 that does not fit what is stored: ask again without conditions.
    Refetch,
    /// Pass it on and do not store it.
    Pass(NotStored),
}

/// Why a response is not stored: a closed list, for Cache-Status details, log and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each variant is its own sentence")]
pub enum NotStored {
    RequestMethod,
    RequestNoStore,
    ResponseNoStore,
    Private,
    Authorization,
    SetCookie,
    VaryAny,
    StatusNotCacheable,
    NoFreshness,
    NotUnderstood,
    Partial,
    Unsolicited,
    CloseDelimited,
    TooLarge,
    TooManyTags,
    TooManyVariants,
    Truncated,
    FillingLimit,
}

impl NotStored {
    /// Every reason, in the order of its counter.
    pub const ALL: [Self; 18] = [
        Self::RequestMethod,
        Self::RequestNoStore,
        Self::ResponseNoStore,
        Self::Private,
        Self::Authorization,
        Self::SetCookie,
        Self::VaryAny,
        Self::StatusNotCacheable,
        Self::NoFreshness,
        Self::NotUnderstood,
        Self::Partial,
        Self::Unsolicited,
        Self::CloseDelimited,
        Self::TooLarge,
        Self::TooManyTags,
        Self::TooManyVariants,
        Self::Truncated,
        Self::FillingLimit,
    ];

    /// Its name in Cache-Status, log and `/cache-stats`: kebab-case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RequestMethod => "request-method",
            Self::RequestNoStore => "request-no-store",
            Self::ResponseNoStore => "no-store",
            Self::Private => "private",
            Self::Authorization => "authorization",
            Self::SetCookie => "set-cookie",
            Self::VaryAny => "vary-any",
            Self::StatusNotCacheable => "status",
            Self::NoFreshness => "no-freshness",
            Self::NotUnderstood => "not-understood",
            Self::Partial => "partial",
            Self::Unsolicited => "unsolicited",
            Self::CloseDelimited => "close-delimited",
            Self::TooLarge => "too-large",
            Self::TooManyTags => "too-many-tags",
            Self::TooManyVariants => "too-many-variants",
            Self::Truncated => "truncated",
            Self::FillingLimit => "filling-limit",
        }
    }

    /// Whether it tells of the resource, so that hit-for-miss is set; a client's own `no-store` and
    /// trouble in transit do not.
    pub const fn is_of_resource(self) -> bool {
        !matches!(self, Self::RequestMethod | Self::RequestNoStore | Self::Truncated | Self::FillingLimit)
    }
}

/// Settles a response against what was stored.
pub fn settle(exchange: &Exchange<'_>, stored: Option<&Arc<StoredResponse>>, rules: &Rules) -> Settlement {
    todo!("{exchange:?} {stored:?} {rules:?}")
}

/// A stored GET response updated by a HEAD answer, or nothing when the answer shows it outdated (RFC 9111 §4.3.5):
/// then it is to be invalidated.
pub fn updated_by_head(exchange: &Exchange<'_>, stored: &StoredResponse, rules: &Rules) -> Option<StoredResponse> {
    todo!("{exchange:?} {stored:?} {rules:?}")
}

/// Two parts of one representation as one stored response, once `new` has its body: they overlap or touch and share
/// a strong validator (RFC 9111 §3.4). None: keep `new` alone.
pub fn combine(stored: &StoredResponse, new: &StoredResponse) -> Option<StoredResponse> {
    todo!("{stored:?} {new:?}")
}
