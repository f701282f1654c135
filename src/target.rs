//! A request's target, normalised once for match, key and upstream (RFC 3986 §6.2.2).

/// The scheme of the listener a request came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// With TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// 80 or 443.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A host and port: lower case, no trailing dot, no default port, no user information.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    host: Box<str>,
    port: Option<u16>,
}

/// Why a target is refused with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadTarget {
    /// The host is missing, empty or not a valid host.
    Host,
    /// The path is not valid: bad percent-encoding, encoded NUL, encoded slash or backslash within a dot segment.
    Path,
}

impl Authority {
    /// Parses and normalises `host[:port]`; the port is dropped where it is the scheme's default.
    pub fn parse(text: &str, scheme: Scheme) -> Result<Self, BadTarget> {
        todo!("{text} {scheme:?}")
    }

    /// The host, lower case; IPv6 in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port where it is not the scheme's default.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

impl std::fmt::Display for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

/// A normalised request target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The listener's scheme.
    pub scheme: Scheme,
    /// Host and port.
    pub authority: Authority,
    path: Box<str>,
    query: Option<Box<str>>,
}

impl Target {
    /// Normalises: unreserved octets decoded, percent-encodings in upper case, dot segments removed,
    /// an empty path is `/`. `%2F`, `%00` and the like stay encoded; bytes that must be encoded are.
    pub fn new(scheme: Scheme, authority: Authority, path: &str, query: Option<&str>) -> Result<Self, BadTarget> {
        todo!("{scheme:?} {authority:?} {path} {query:?}")
    }

    /// The normalised path, beginning with `/`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The query as received, without `?`.
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }
}
