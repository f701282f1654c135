//! Why an upstream gave no response: what callers act on, with the cause kept for the log.

use std::error::Error;
use std::fmt::{self, Write};
use std::io;

/// Why the upstream gave no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamError {
    /// No connection: refused, unreachable, name not found, TLS failed.
    Connect,
    /// No connection in time.
    ConnectTimeout,
    /// No head in time.
    FirstByteTimeout,
    /// The connection broke, or what came was not HTTP.
    Protocol,
    /// The request's own body failed (the client left or exceeded a limit).
    RequestBody,
    /// `max_concurrent` and `max_pending` are reached, or the wait was too long.
    Overloaded,
    /// Every server is ejected.
    NoServer,
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "no connection",
            Self::ConnectTimeout => "no connection in time",
            Self::FirstByteTimeout => "no response head in time",
            Self::Protocol => "the connection broke, or what came was not HTTP",
            Self::RequestBody => "the request's content failed",
            Self::Overloaded => "too many requests at one time",
            Self::NoServer => "every server is ejected",
        })
    }
}

impl Error for UpstreamError {}

/// One attempt's failure.
#[derive(Debug)]
pub(super) struct Failure {
    /// What callers are told.
    pub error: UpstreamError,
    /// What the log is told.
    pub cause: String,
    /// Whether surely no byte of the request was written, so that another server may be tried.
    pub unsent: bool,
    /// Whether the connection broke before there was a head.
    pub broke: bool,
}

impl Failure {
    /// A failure after the request was, or may have been, written.
    pub fn sent(error: UpstreamError, cause: impl Into<String>) -> Self {
        Self { error, cause: cause.into(), unsent: false, broke: false }
    }

    /// There is no connection.
    pub fn unconnected(error: &io::Error) -> Self {
        let is_late = error.kind() == io::ErrorKind::TimedOut;
        let told = if is_late { UpstreamError::ConnectTimeout } else { UpstreamError::Connect };
        Self { error: told, cause: chain(error), unsent: true, broke: false }
    }

    /// What a connection reports. `unsent`: it gave the request back; `body_failed`: the request's own content did.
    pub fn exchanging(error: &hyper::Error, unsent: bool, body_failed: bool) -> Self {
        let cause = chain(error);
        if body_failed {
            return Self::sent(UpstreamError::RequestBody, cause);
        }
        Self { error: UpstreamError::Protocol, cause, unsent, broke: broke(error) }
    }

    /// Whether the server is to blame, which is what ejects it.
    pub const fn blames_server(&self) -> bool {
        match self.error {
            UpstreamError::Connect
            | UpstreamError::ConnectTimeout
            | UpstreamError::FirstByteTimeout
            | UpstreamError::Protocol => true,
            UpstreamError::RequestBody | UpstreamError::Overloaded | UpstreamError::NoServer => false,
        }
    }
}

/// An error and what caused it, outermost first.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for link in links(error) {
        let separator = if text.is_empty() { "" } else { ": " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{link}");
    }
    text
}

fn links<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |link: &&'a (dyn Error + 'static)| (*link).source())
}

fn broke(error: &(dyn Error + 'static)) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let is_break = |kind| matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof);
    links(error).any(|link| {
        link.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message)
            || link.downcast_ref::<std::io::Error>().is_some_and(|error| is_break(error.kind()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_of_causes_reads_outermost_first() {
        let inner = std::io::Error::other("refused");
        let outer = std::io::Error::new(std::io::ErrorKind::TimedOut, Wrapped(inner));
        assert_eq!(chain(&outer), "while connecting: refused");
    }

    #[derive(Debug)]
    struct Wrapped(std::io::Error);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("while connecting")
        }
    }

    impl Error for Wrapped {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }
}
