//! How the cache took part in a request: one value, rendered as `Cache-Status` (RFC 9211), log and counters.

use http::{HeaderValue, StatusCode};
use smallvec::SmallVec;

use crate::policy::reuse::Why;
use crate::policy::settle::NotStored;
use crate::store::Tier;

/// One request's cache status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheStatus {
    /// What happened.
    pub outcome: Outcome,
    /// Why so, from a closed list.
    pub detail: Option<Detail>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered from the store: `hit; ttl=…`.
    Hit {
        /// Seconds of freshness left; negative when stale (RFC 9211 §2.4).
        ttl: i64,
        /// Where it was.
        tier: Tier,
    },
    /// The upstream was asked: `fwd=…; fwd-status=…; stored; collapsed`.
    Forward {
        /// Why.
        why: Why,
        /// The upstream's status; none when it gave none.
        fwd_status: Option<StatusCode>,
        /// Whether the response was stored, or is being.
        stored: bool,
        /// Whether this request shared another's fetch.
        collapsed: bool,
        /// Whether a 304 let the stored response be served.
        revalidated: bool,
    },
    /// Stored but stale, served because the upstream failed: `hit; ttl=-…; detail=stale-if-error`.
    StaleOnError {
        /// Seconds, negative.
        ttl: i64,
    },
    /// Answered by the proxy itself (an error, `only-if-cached`): `aside; detail=…`.
    Generated,
}

/// Why so: the closed list of `detail=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Detail {
    // bypass reasons
    NoRoute,
    CacheOff,
    Cookie,
    Credentials,
    BypassHeader,
    RequestBody,
    NonAscii,
    Upgrade,
    Uncacheable,
    RedisUnavailable,
    CorruptRecord,
    ServingLimit,
    Purged,
    // hits
    StaleWhileRevalidate,
    StaleIfError,
    MaxStale,
    // not stored
    NotStored(NotStored),
    // answered by the proxy
    OnlyIfCached,
    BadRequest,
    UnknownHost,
    UpstreamConnect,
    UpstreamTimeout,
    UpstreamProtocol,
    Overloaded,
    BodyTooLarge,
    Loop,
}

/// The one word for an outcome: the log's `cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Answered from the store, fresh.
    Hit,
    /// Answered from the store, stale.
    Stale,
    /// Answered from the store after a 304.
    Revalidated,
    /// Looked up and forwarded.
    Miss,
    /// Covered by a cached route, but not looked up.
    Bypass,
    /// Nothing a cache answers: its method, or no cached route.
    Pass,
    /// Answered by the proxy itself, for the upstream could not or the request was refused.
    Error,
}

impl Word {
    /// As the log writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Revalidated => "revalidated",
            Self::Miss => "miss",
            Self::Bypass => "bypass",
            Self::Pass => "pass",
            Self::Error => "error",
        }
    }
}

impl CacheStatus {
    /// The `Cache-Status` field value, beginning with `aside`.
    pub fn to_value(self) -> HeaderValue {
        let mut text = SmallVec::<[u8; 96]>::new();
        self.write(&mut |part| text.extend_from_slice(part));
        HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("aside"))
    }

    /// Writes the field value to `out`, part by part: parameters in the order of RFC 9211 §2; every value is a token or a number.
    pub fn write(self, out: &mut dyn FnMut(&[u8])) {
        out(b"aside");
        match self.outcome {
            Outcome::Hit { ttl, tier: Tier::Memory | Tier::Redis } | Outcome::StaleOnError { ttl } => {
                write_hit(out, ttl)
            }
            Outcome::Forward { why, fwd_status, stored, collapsed, revalidated: _ } => {
                out(b"; fwd=");
                out(fwd(why).as_bytes());
                if let Some(status) = fwd_status {
                    out(b"; fwd-status=");
                    out(status.as_str().as_bytes());
                }
                if stored {
                    out(b"; stored");
                }
                if collapsed {
                    out(b"; collapsed");
                }
            }
            Outcome::Generated => {}
        }
        let detail = match self.outcome {
            Outcome::StaleOnError { .. } => Some(Detail::StaleIfError),
            Outcome::Hit { .. } | Outcome::Forward { .. } | Outcome::Generated => self.detail,
        };
        if let Some(detail) = detail {
            out(b"; detail=");
            out(detail.as_str().as_bytes());
        }
    }

    /// The one word for it.
    pub const fn word(self) -> Word {
        match self.outcome {
            Outcome::Forward { .. } if self.is_failure() => Word::Error,
            Outcome::Hit { ttl, .. } if ttl < 0 || self.is_served_stale() => Word::Stale,
            Outcome::Hit { .. } => Word::Hit,
            Outcome::StaleOnError { .. } => Word::Stale,
            Outcome::Forward { revalidated: true, .. } => Word::Revalidated,
            Outcome::Forward { why: Why::Method, .. } => Word::Pass,
            Outcome::Forward { why: Why::Bypass, .. } => match self.detail {
                Some(Detail::NoRoute | Detail::CacheOff) => Word::Pass,
                Some(_) | None => Word::Bypass,
            },
            Outcome::Forward {
                why: Why::UriMiss | Why::VaryMiss | Why::Miss | Why::Request | Why::Stale | Why::Partial,
                ..
            } => Word::Miss,
            Outcome::Generated => Word::Error,
        }
    }

    /// Whether the upstream was to be asked and gave no response.
    const fn is_failure(self) -> bool {
        use Detail::{BadRequest, BodyTooLarge, Loop, Overloaded, UpstreamConnect, UpstreamProtocol, UpstreamTimeout};
        matches!(
            self.detail,
            Some(UpstreamConnect | UpstreamTimeout | UpstreamProtocol | Overloaded | BadRequest | BodyTooLarge | Loop)
        )
    }

    const fn is_served_stale(self) -> bool {
        matches!(self.detail, Some(Detail::StaleWhileRevalidate | Detail::StaleIfError | Detail::MaxStale))
    }
}

fn write_hit(out: &mut dyn FnMut(&[u8]), ttl: i64) {
    out(b"; hit; ttl=");
    out(itoa::Buffer::new().format(ttl).as_bytes());
}

/// The `fwd` parameter (RFC 9211 §2.2).
const fn fwd(why: Why) -> &'static str {
    match why {
        Why::Bypass => "bypass",
        Why::Method => "method",
        Why::UriMiss => "uri-miss",
        Why::VaryMiss => "vary-miss",
        Why::Miss => "miss",
        Why::Request => "request",
        Why::Stale => "stale",
        Why::Partial => "partial",
    }
}

impl Detail {
    /// Every detail but the reasons not to store, in the order of its counter.
    pub const PLAIN: [Self; 25] = [
        Self::NoRoute,
        Self::CacheOff,
        Self::Cookie,
        Self::Credentials,
        Self::BypassHeader,
        Self::RequestBody,
        Self::NonAscii,
        Self::Upgrade,
        Self::Uncacheable,
        Self::RedisUnavailable,
        Self::CorruptRecord,
        Self::ServingLimit,
        Self::Purged,
        Self::StaleWhileRevalidate,
        Self::StaleIfError,
        Self::MaxStale,
        Self::OnlyIfCached,
        Self::BadRequest,
        Self::UnknownHost,
        Self::UpstreamConnect,
        Self::UpstreamTimeout,
        Self::UpstreamProtocol,
        Self::Overloaded,
        Self::BodyTooLarge,
        Self::Loop,
    ];

    /// Its name in Cache-Status, log and `/cache-stats`: kebab-case, a token of RFC 8941.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoRoute => "no-route",
            Self::CacheOff => "cache-off",
            Self::Cookie => "cookie",
            Self::Credentials => "credentials",
            Self::BypassHeader => "bypass-header",
            Self::RequestBody => "request-body",
            Self::NonAscii => "non-ascii",
            Self::Upgrade => "upgrade",
            Self::Uncacheable => "uncacheable",
            Self::RedisUnavailable => "redis-unavailable",
            Self::CorruptRecord => "corrupt-record",
            Self::ServingLimit => "serving-limit",
            Self::Purged => "purged",
            Self::StaleWhileRevalidate => "stale-while-revalidate",
            Self::StaleIfError => "stale-if-error",
            Self::MaxStale => "max-stale",
            Self::NotStored(reason) => reason.as_str(),
            Self::OnlyIfCached => "only-if-cached",
            Self::BadRequest => "bad-request",
            Self::UnknownHost => "unknown-host",
            Self::UpstreamConnect => "upstream-connect",
            Self::UpstreamTimeout => "upstream-timeout",
            Self::UpstreamProtocol => "upstream-protocol",
            Self::Overloaded => "overloaded",
            Self::BodyTooLarge => "body-too-large",
            Self::Loop => "loop",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIT: Outcome = Outcome::Hit { ttl: 42, tier: Tier::Memory };

    const fn forward(why: Why, status: Option<StatusCode>) -> Outcome {
        Outcome::Forward { why, fwd_status: status, stored: false, collapsed: false, revalidated: false }
    }

    #[track_caller]
    fn check(outcome: Outcome, detail: Option<Detail>, text: &str, word: Word) {
        let status = CacheStatus { outcome, detail };
        assert_eq!(status.to_value(), text);
        assert_eq!(status.word(), word);
    }

    #[test]
    fn a_status_is_rendered_as_rfc_9211_says() {
        let ok = Some(StatusCode::OK);
        check(HIT, None, "aside; hit; ttl=42", Word::Hit);
        check(
            Outcome::Hit { ttl: -5, tier: Tier::Redis },
            Some(Detail::StaleWhileRevalidate),
            "aside; hit; ttl=-5; detail=stale-while-revalidate",
            Word::Stale,
        );
        check(
            Outcome::StaleOnError { ttl: -3 },
            Some(Detail::UpstreamConnect),
            "aside; hit; ttl=-3; detail=stale-if-error",
            Word::Stale,
        );
        check(
            Outcome::Forward { why: Why::UriMiss, fwd_status: ok, stored: true, collapsed: true, revalidated: false },
            None,
            "aside; fwd=uri-miss; fwd-status=200; stored; collapsed",
            Word::Miss,
        );
        check(
            forward(Why::Miss, ok),
            Some(Detail::NotStored(NotStored::ResponseNoStore)),
            "aside; fwd=miss; fwd-status=200; detail=no-store",
            Word::Miss,
        );
        check(
            Outcome::Forward {
                why: Why::Stale,
                fwd_status: Some(StatusCode::NOT_MODIFIED),
                stored: false,
                collapsed: false,
                revalidated: true,
            },
            None,
            "aside; fwd=stale; fwd-status=304",
            Word::Revalidated,
        );
        check(
            forward(Why::UriMiss, None),
            Some(Detail::UpstreamConnect),
            "aside; fwd=uri-miss; detail=upstream-connect",
            Word::Error,
        );
        check(Outcome::Generated, Some(Detail::OnlyIfCached), "aside; detail=only-if-cached", Word::Error);
    }

    #[test]
    fn what_is_not_looked_up_is_a_bypass_on_a_cached_route_and_a_pass_elsewhere() {
        check(forward(Why::Method, None), None, "aside; fwd=method", Word::Pass);
        check(forward(Why::Bypass, None), Some(Detail::Cookie), "aside; fwd=bypass; detail=cookie", Word::Bypass);
        check(forward(Why::Bypass, None), Some(Detail::NoRoute), "aside; fwd=bypass; detail=no-route", Word::Pass);
    }

    #[test]
    fn every_detail_is_a_token_and_no_two_are_the_same() {
        let all = Detail::PLAIN.into_iter().chain(NotStored::ALL.into_iter().map(Detail::NotStored));
        let names: Vec<_> = all.map(Detail::as_str).collect();
        for name in &names {
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{name}");
        }
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }
}
