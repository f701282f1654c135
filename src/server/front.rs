//! A strict reader in front of hyper: it follows HTTP/1 requests and finds the framing that hyper hides.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use memchr::memchr;

/// The longest line that is put together when it comes in pieces; hyper gives up on a head long before.
const LINE_MAX: usize = 256 << 10;
/// How an HTTP/2 connection begins (RFC 9113 §3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0";

/// What the reader tells the service of one connection.
#[derive(Debug, Default)]
pub struct Verdict {
    /// The number of the head whose framing is ambiguous, from 1; 0: none so far. Nothing after it is read.
    ambiguous: AtomicU64,
    /// How many heads hyper has handed out.
    handed_out: AtomicU64,
    /// Whether the connection has become a tunnel.
    is_tunnel: AtomicBool,
}

impl Verdict {
    /// hyper hands out the next head: whether its framing is ambiguous.
    pub fn next_is_ambiguous(&self) -> bool {
        let number = self.handed_out.fetch_add(1, Relaxed) + 1;
        self.ambiguous.load(Relaxed) == number
    }

    /// Which head's framing is ambiguous, from 1; none so far.
    pub fn ambiguous(&self) -> Option<u64> {
        Some(self.ambiguous.load(Relaxed)).filter(|number| *number > 0)
    }

    /// From here on bytes are no requests.
    pub fn becomes_tunnel(&self) {
        self.is_tunnel.store(true, Relaxed);
    }

    /// Whether bytes are no requests any more.
    pub fn is_tunnel(&self) -> bool {
        self.is_tunnel.load(Relaxed)
    }
}

/// Where in a connection's requests the next byte is.
///
/// hyper takes away Content-Length where there is Transfer-Encoding, makes one field of several that are equal, and takes
/// a bare LF for a line's end. Each is what request smuggling is made of, and none can be seen in what hyper hands out
/// (RFC 9112 §2.2, §6.1, §6.3). A head with one of them is marked, and the service refuses it. What hyper refuses itself
/// is left to hyper: the reader only must not lose its way in what hyper accepts.
#[derive(Debug)]
pub struct Front {
    place: Place,
    /// A line whose end has not come.
    line: Vec<u8>,
    /// Heads that have begun.
    heads: u64,
    framing: Framing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Between requests, or in a request line.
    RequestLine,
    Fields,
    /// In content that has so many bytes left.
    Content(u64),
    ChunkSize,
    /// In a chunk that has so many bytes left, its CRLF included.
    Chunk(u64),
    Trailers,
    /// After what ends the connection.
    Unfollowed,
    Http2,
}

/// What a head's fields say of its content.
#[derive(Clone, Copy, Debug, Default)]
struct Framing {
    lengths: u8,
    codings: u8,
    /// None where it is no plain number.
    length: Option<u64>,
    is_chunked: bool,
}

impl Default for Front {
    fn default() -> Self {
        Self { place: Place::RequestLine, line: Vec::new(), heads: 0, framing: Framing::default() }
    }
}

impl Front {
    /// Reads what came from the client, before hyper does.
    pub fn read(&mut self, mut bytes: &[u8], verdict: &Verdict) {
        while !bytes.is_empty() && !matches!(self.place, Place::Unfollowed | Place::Http2) {
            match self.place {
                Place::Content(left) => {
                    let taken = left.min(bytes.len() as u64);
                    self.place = if taken == left { Place::RequestLine } else { Place::Content(left - taken) };
                    bytes = &bytes[taken as usize..];
                }
                Place::Chunk(left) => {
                    let taken = left.min(bytes.len() as u64);
                    self.place = if taken == left { Place::ChunkSize } else { Place::Chunk(left - taken) };
                    bytes = &bytes[taken as usize..];
                }
                Place::RequestLine
                | Place::Fields
                | Place::ChunkSize
                | Place::Trailers
                | Place::Unfollowed
                | Place::Http2 => {
                    let Some(end) = memchr(b'\n', bytes) else {
                        return self.keep(bytes);
                    };
                    self.line_ended(&bytes[..end], verdict);
                    bytes = &bytes[end + 1..];
                }
            }
        }
    }

    /// How many heads have begun.
    pub const fn heads(&self) -> u64 {
        self.heads
    }

    /// Whether the client may be within an HTTP/1 request: there may be more to come that nobody has asked for.
    pub fn is_within_request(&self) -> bool {
        match self.place {
            Place::RequestLine => !self.line.is_empty(),
            Place::Http2 => false,
            Place::Fields | Place::Content(_) | Place::ChunkSize | Place::Chunk(_) | Place::Trailers => true,
            Place::Unfollowed => true,
        }
    }

    fn keep(&mut self, piece: &[u8]) {
        if self.line.len() + piece.len() > LINE_MAX {
            self.line = Vec::new();
            self.place = Place::Unfollowed;
        } else {
            self.line.extend_from_slice(piece);
        }
    }

    fn line_ended(&mut self, end: &[u8], verdict: &Verdict) {
        if self.line.is_empty() {
            return self.line(end, verdict);
        }
        self.keep(end);
        let mut line = std::mem::take(&mut self.line);
        self.line(&line, verdict);
        line.clear();
        self.line = line;
    }

    /// A line without its LF.
    fn line(&mut self, line: &[u8], verdict: &Verdict) {
        let ended = line.strip_suffix(b"\r");
        match self.place {
            Place::RequestLine => {
                if ended == Some(b"") {
                    // RFC 9112 §2.2: an empty line before the request line is ignored.
                    return;
                }
                self.heads += 1;
                self.framing = Framing::default();
                self.place = if ended == Some(HTTP2) && self.heads == 1 { Place::Http2 } else { Place::Fields };
                if ended.is_none() {
                    self.mark(verdict);
                }
            }
            Place::Fields => match ended {
                Some(b"") => self.head_ended(verdict),
                Some(field) => self.framing.field(field),
                None => self.mark(verdict),
            },
            Place::ChunkSize => match ended.and_then(chunk_size) {
                Some(0) => self.place = Place::Trailers,
                // With its CRLF.
                Some(size) => self.place = size.checked_add(2).map_or(Place::Unfollowed, Place::Chunk),
                None => self.lose(verdict),
            },
            Place::Trailers => match ended {
                Some(b"") => self.place = Place::RequestLine,
                Some(_) => {}
                None => self.lose(verdict),
            },
            Place::Content(_) | Place::Chunk(_) | Place::Unfollowed | Place::Http2 => {}
        }
    }

    fn head_ended(&mut self, verdict: &Verdict) {
        self.place = match self.framing {
            Framing { lengths: 0, codings: 0, .. } | Framing { lengths: 1, codings: 0, length: Some(0), .. } => {
                Place::RequestLine
            }
            Framing { lengths: 1, codings: 0, length: Some(length), .. } => Place::Content(length),
            Framing { lengths: 0, codings: 1, is_chunked: true, .. } => Place::ChunkSize,
            Framing { .. } => return self.mark(verdict),
        };
    }

    /// Content whose end is in doubt. hyper refuses it too; if it did not, the head that it takes for the next is refused.
    fn lose(&mut self, verdict: &Verdict) {
        self.heads += 1;
        self.mark(verdict);
    }

    /// The head in hand is ambiguous: it is the last one.
    fn mark(&mut self, verdict: &Verdict) {
        verdict.ambiguous.store(self.heads, Relaxed);
        self.place = Place::Unfollowed;
    }
}

impl Framing {
    fn field(&mut self, field: &[u8]) {
        const LENGTH: &[u8] = b"content-length";
        const CODING: &[u8] = b"transfer-encoding";
        match field.first() {
            Some(b'c' | b'C') => {
                if let Some(value) = value_of(field, LENGTH) {
                    self.lengths = self.lengths.saturating_add(1);
                    self.length = number(value, 10);
                }
            }
            Some(b't' | b'T') => {
                if let Some(value) = value_of(field, CODING) {
                    self.codings = self.codings.saturating_add(1);
                    self.is_chunked = value.eq_ignore_ascii_case(b"chunked");
                }
            }
            _ => {}
        }
    }
}

fn value_of<'a>(field: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (found, rest) = field.split_at_checked(name.len())?;
    let value = rest.strip_prefix(b":")?;
    found.eq_ignore_ascii_case(name).then(|| trim(value))
}

/// Without optional white space (RFC 9110 §5.6.3).
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// RFC 9112 §7.1: hexadecimal digits, then nothing or extensions.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let (size, rest) = line.split_at(digits);
    if !matches!(trim(rest).first(), None | Some(b';')) {
        return None;
    }
    number(size, 16)
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    text.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u64::from_str_radix(text, radix).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of the heads in `bytes` is ambiguous (0: none), and how many there are.
    fn read(bytes: &[u8], piece: usize) -> (u64, u64) {
        let (mut front, verdict) = (Front::default(), Verdict::default());
        bytes.chunks(piece).for_each(|piece| front.read(piece, &verdict));
        (verdict.ambiguous().unwrap_or(0), front.heads())
    }

    /// The same whatever pieces it comes in.
    #[track_caller]
    fn check(text: &str, ambiguous: u64, heads: u64) {
        for piece in [1, 2, 3, 7, text.len().max(1)] {
            assert_eq!(read(text.as_bytes(), piece), (ambiguous, heads), "{text:?} in pieces of {piece}");
        }
    }

    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    #[test]
    fn heads_follow_each_other_and_content() {
        check("", 0, 0);
        check(GET, 0, 1);
        check(&GET.repeat(3), 0, 3);
        check(&format!("\r\n{GET}\r\n{GET}"), 0, 2);
        check(&format!("POST / HTTP/1.1\r\nContent-Length: \t{} \r\n\r\n{GET}{GET}", GET.len()), 0, 2);
        check(&format!("POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n{GET}"), 0, 2);
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding:\tChunked\r\n\r\n";
        check(&format!("{chunked}3;x=\"y\"\r\n\n\n\n\r\nA \r\n0123456789\r\n0\r\n\r\n{GET}"), 0, 2);
        check(&format!("{chunked}0\r\na: b\r\nc: d\r\n\r\n{GET}"), 0, 2);
    }

    #[test]
    fn what_hyper_hides_marks_its_head() {
        let both = "POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n";
        check(both, 1, 1);
        check(&format!("{GET}{both}{GET}"), 2, 2);
        check("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n", 1, 1);
        check("POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n", 1, 1);
        check("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n", 1, 1);
        check("POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n", 1, 1);
        check("POST / HTTP/1.1\r\ncontent-length: 1_0\r\n\r\n", 1, 1);
        check("GET / HTTP/1.1\nhost: a\r\n\r\n", 1, 1);
        check("GET / HTTP/1.1\r\nhost: a\n\r\n", 1, 1);
        check("GET / HTTP/1.1\r\nhost: a\r\n\n", 1, 1);
        check(&format!("\n{GET}"), 1, 1);
    }

    #[test]
    fn after_chunks_that_are_not_plain_no_head_is_trusted() {
        for content in
            ["x\r\n", "\r\n", "0x1\r\n", "+1\r\n", "1\n", "1 x\r\n", "fffffffffffffffff\r\n", "0\r\na: b\n\r\n"]
        {
            check(&format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{content}{GET}"), 2, 2);
        }
    }

    #[test]
    fn http2_is_not_followed() {
        check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\n\n", 0, 1);
    }

    #[test]
    fn a_line_without_end_is_not_kept_for_ever() {
        let (mut front, verdict) = (Front::default(), Verdict::default());
        for _ in 0..100 {
            front.read(&[b'x'; 8192], &verdict);
        }
        assert_eq!((front.place, front.line.len()), (Place::Unfollowed, 0));
    }

    #[test]
    fn hyper_hands_out_heads_in_their_order() {
        let verdict = Verdict::default();
        verdict.ambiguous.store(2, Relaxed);
        assert!(!verdict.next_is_ambiguous());
        assert!(verdict.next_is_ambiguous());
    }
}
