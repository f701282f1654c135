//! The bounds on what one client, answer or key may use, and how often each was met.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::cache_status::Detail;
use crate::policy::settle::NotStored;

macro_rules! limits {
    ($($variant:ident $name:literal $help:literal,)*) => {
        /// A bound that was met. Named like the configuration's key for it, where it has one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Limit { $(#[doc = $help] $variant),* }

        impl Limit {
            /// Every limit, in the order of `/cache-stats`.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// Its name in `/cache-stats`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// What is counted.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help),* }
            }
        }
    };
}

limits! {
    Connections "connections" "how often accepting waited, for there were server.limits.connections",
    ConnectionsPerAddress "connections_per_address" "connections closed at once, for their address had enough",
    Descriptors "descriptors" "how often accepting paused, for the process was out of file descriptors or memory",
    HeaderSize "header_size" "requests refused for the bytes of their head",
    HeaderCount "header_count" "requests refused for the number of their fields",
    UriLength "uri_length" "requests refused for the length of their target",
    HeaderTimeout "header_timeout" "connections closed before a request's head, or the TLS handshake, was complete",
    IdleTimeout "idle_timeout" "connections closed that had no request, or whose client took nothing of its answer",
    BodyIdleTimeout "body_idle_timeout" "requests given up, for nothing came of their content",
    BodyRateMin "body_rate_min" "requests given up, for their content came too slowly",
    AnswerRateMin "answer_rate_min" "connections closed, for their client took its answers too slowly",
    RequestBodyMax "request_body_max" "requests refused for the length of their content",
    Http2Resets "http2_resets" "HTTP/2 connections closed for streams reset or refused, or frames in excess",
    Interim "interim" "requests whose upstream sent too many interim responses (1xx), and those dropped for a client that had enough",
    Ranges "ranges" "requests whose Range named too many ranges and was ignored",
    Waiters "waiters" "requests that did not wait behind a fetch, for server.limits.waiters did",
    CollapseWaiters "collapse_waiters" "requests that did not wait behind a fetch, for enough of its key did",
    MaxPending "max_pending" "requests refused, for enough waited for room at their upstream",
    Tags "tags" "responses not stored, for they had too many tags or too long ones",
    MaxVariants "max_variants" "responses not stored, for their key had enough variants",
    MaxObject "max_object" "responses not stored, for they were too large",
    MaxServing "max_serving" "hits not used, for enough large ones were on their way to clients",
    MaxFilling "max_filling" "responses not stored, for enough was being stored",
}

impl Limit {
    /// The limit for which a response was not stored.
    pub(super) const fn of_not_stored(reason: NotStored) -> Option<Self> {
        match reason {
            NotStored::TooManyTags => Some(Self::Tags),
            NotStored::TooManyVariants => Some(Self::MaxVariants),
            NotStored::TooLarge => Some(Self::MaxObject),
            NotStored::FillingLimit => Some(Self::MaxFilling),
            _ => None,
        }
    }

    /// The limit for which a request was answered as it was.
    pub(super) const fn of(detail: Detail) -> Option<Self> {
        match detail {
            Detail::NotStored(reason) => Self::of_not_stored(reason),
            Detail::BodyTooLarge => Some(Self::RequestBodyMax),
            _ => None,
        }
    }
}

/// How often each limit was met since the start.
#[derive(Debug)]
pub(super) struct Counts([AtomicU64; Limit::ALL.len()]);

impl Default for Counts {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Counts {
    pub(super) fn add(&self, limit: Limit) {
        self.0[limit as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Limit::ALL.into_iter().map(|limit| (limit.name(), self.0[limit as usize].load(Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_has_a_place_and_a_name_of_its_own() {
        let counts = Counts::default();
        for limit in Limit::ALL {
            counts.add(limit);
            assert!(!limit.help().is_empty());
        }
        assert!(counts.all().all(|(_, count)| count == 1));
        let names: std::collections::BTreeSet<_> = counts.all().map(|(name, _)| name).collect();
        assert_eq!(names.len(), Limit::ALL.len());
    }
}
