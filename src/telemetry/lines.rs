//! Log lines: how a request or an event looks as text and as JSON.

use std::borrow::Cow;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use http::Version;
use serde_json::{Map, Value};

use super::events::Event;
use super::{Format, Level, RequestRecord, rfc3339};
use crate::clock::Timestamp;

/// Appends the access log line of a request, newline included.
pub(super) fn access(out: &mut Vec<u8>, format: Format, record: &RequestRecord) {
    match format {
        Format::Text => access_text(out, record),
        Format::Json => access_json(out, record),
    }
    out.push(b'\n');
}

/// Appends the line of an event, newline included.
pub(super) fn event(out: &mut Vec<u8>, format: Format, time: Timestamp, event: &Event) {
    match format {
        Format::Text => event_text(out, time, event),
        Format::Json => event_json(out, time, event),
    }
    out.push(b'\n');
}

fn host(record: &RequestRecord) -> Cow<'_, str> {
    record.host.as_ref().map_or(Cow::Borrowed(""), |host| String::from_utf8_lossy(host.as_bytes()))
}

/// `time client method host target version status bytes duration cache route upstream "cache-status"`; `-` for nothing.
fn access_text(out: &mut Vec<u8>, record: &RequestRecord) {
    rfc3339::write(out, record.started);
    out.push(b' ');
    address(out, record.client);
    out.push(b' ');
    escape(out, record.method.as_str());
    out.push(b' ');
    escape(out, or_dash(&host(record)));
    out.push(b' ');
    escape(out, or_dash(&record.target));
    out.push(b' ');
    version(out, record.version);
    out.push(b' ');
    out.extend_from_slice(record.status.as_str().as_bytes());
    out.push(b' ');
    number(out, record.bytes_served);
    out.push(b' ');
    millis(out, record.duration);
    out.extend_from_slice(b"ms ");
    out.extend_from_slice(record.cache_status.word().as_str().as_bytes());
    out.push(b' ');
    escape(out, record.counters.route().map_or("-", or_dash));
    out.push(b' ');
    match record.upstream {
        Some(upstream) => {
            millis(out, upstream);
            out.extend_from_slice(b"ms");
        }
        None => out.push(b'-'),
    }
    out.extend_from_slice(b" \"");
    record.cache_status.write(&mut |part| out.extend_from_slice(part));
    out.push(b'"');
    if record.aborted {
        out.extend_from_slice(b" aborted");
    }
}

fn access_json(out: &mut Vec<u8>, record: &RequestRecord) {
    out.extend_from_slice(b"{\"time\":\"");
    rfc3339::write(out, record.started);
    out.extend_from_slice(b"\",\"client\":\"");
    address(out, record.client);
    string(out, "\",\"method\":\"", record.method.as_str());
    string(out, ",\"host\":\"", &host(record));
    string(out, ",\"path\":\"", &record.target);
    out.extend_from_slice(b",\"version\":\"");
    version(out, record.version);
    out.extend_from_slice(b"\",\"status\":");
    out.extend_from_slice(record.status.as_str().as_bytes());
    out.extend_from_slice(b",\"bytes\":");
    number(out, record.bytes_served);
    out.extend_from_slice(b",\"duration_ms\":");
    millis(out, record.duration);
    match record.counters.route() {
        Some(route) => string(out, ",\"route\":\"", route),
        None => out.extend_from_slice(b",\"route\":null"),
    }
    string(out, ",\"cache\":\"", record.cache_status.word().as_str());
    out.extend_from_slice(b",\"cache_status\":\"");
    record.cache_status.write(&mut |part| out.extend_from_slice(part));
    out.extend_from_slice(b"\",\"upstream_ms\":");
    match record.upstream {
        Some(upstream) => millis(out, upstream),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(if record.aborted { b",\"aborted\":true}" } else { b",\"aborted\":false}" });
}

fn event_text(out: &mut Vec<u8>, time: Timestamp, event: &Event) {
    rfc3339::write(out, time);
    let _ = write!(out, " {} {}", event.level().as_str(), event.message());
    for (name, value) in event.fields() {
        match value {
            Value::String(text) => string(out, &format!(" {name}=\""), &text),
            value => {
                let _ = write!(out, " {name}={value}");
            }
        }
    }
}

fn event_json(out: &mut Vec<u8>, time: Timestamp, event: &Event) {
    let mut line = Map::new();
    line.insert("time".to_owned(), rfc3339::format(time).into());
    line.insert("level".to_owned(), event.level().as_str().into());
    line.insert("event".to_owned(), event.name().into());
    line.insert("message".to_owned(), event.message().into());
    line.extend(event.fields().into_iter().map(|(name, value)| (name.to_owned(), value)));
    let _ = write!(out, "{}", Value::Object(line));
}

impl Level {
    /// As the log writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

const fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// An address; of IPv4, which is nearly every one here, without the formatter, which takes ten times as long.
pub fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            let [first, rest @ ..] = address.octets();
            number(out, first.into());
            for octet in rest {
                out.push(b'.');
                number(out, octet.into());
            }
        }
        IpAddr::V6(address) => {
            let _ = write!(out, "{address}");
        }
    }
}

fn version(out: &mut Vec<u8>, version: Version) {
    match version {
        Version::HTTP_11 => out.extend_from_slice(b"HTTP/1.1"),
        Version::HTTP_2 => out.extend_from_slice(b"HTTP/2.0"),
        other => {
            let _ = write!(out, "{other:?}");
        }
    }
}

/// Milliseconds with three places.
fn millis(out: &mut Vec<u8>, duration: Duration) {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    number(out, micros / 1000);
    let digit = |place| b'0' + u8::try_from(micros / place % 10).unwrap_or(0);
    out.extend_from_slice(&[b'.', digit(100), digit(10), digit(1)]);
}

/// `before`, which opens the quotes, then the text escaped, then the closing quote.
fn string(out: &mut Vec<u8>, before: &str, text: &str) {
    out.extend_from_slice(before.as_bytes());
    escape(out, text);
    out.push(b'"');
}

/// What needs no escape in ASCII, looked up: every line is read through byte by byte.
static AS_IT_IS: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = b' ';
    while byte <= b'~' {
        table[byte as usize] = byte != b'"' && byte != b'\\';
        byte += 1;
    }
    table
};

/// As a JSON string escapes: what a client sends can neither end a line nor leave its quotes. DEL and the C1 controls
/// are escaped as well, for a terminal may obey them.
fn escape(out: &mut Vec<u8>, text: &str) {
    if text.bytes().all(|byte| AS_IT_IS[usize::from(byte)]) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    for char in text.chars() {
        match char {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            char if char.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(char));
            }
            char => out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Method, StatusCode};

    use super::super::UNROUTED;
    use super::super::cache_status::{CacheStatus, Detail, Outcome};
    use super::super::metrics::RouteCounters;
    use super::*;
    use crate::store::Tier;

    fn record() -> RequestRecord {
        RequestRecord {
            started: Timestamp::from_millis(1_772_323_200_001),
            duration: Duration::from_micros(420),
            until_head: Duration::from_micros(400),
            client: [192, 0, 2, 1].into(),
            method: Method::GET,
            target: "/v1/x?a=1".into(),
            host: Some(HeaderValue::from_static("api.test")),
            version: Version::HTTP_11,
            status: StatusCode::OK,
            bytes_served: 1234,
            aborted: false,
            counters: RouteCounters::named("products").into(),
            cache_status: CacheStatus { outcome: Outcome::Hit { ttl: 42, tier: Tier::Memory }, detail: None },
            upstream: None,
        }
    }

    #[track_caller]
    fn check(format: Format, record: &RequestRecord, expected: &str) {
        let mut out = Vec::new();
        access(&mut out, format, record);
        assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}\n"));
    }

    #[test]
    fn a_request_is_one_line_of_text() {
        check(
            Format::Text,
            &record(),
            "2026-03-01T00:00:00.001Z 192.0.2.1 GET api.test /v1/x?a=1 HTTP/1.1 200 1234 0.420ms hit products - \
             \"aside; hit; ttl=42\"",
        );
        let odd = RequestRecord {
            host: None,
            counters: RouteCounters::named(UNROUTED).into(),
            aborted: true,
            upstream: Some(Duration::from_millis(12)),
            cache_status: CacheStatus { outcome: Outcome::Generated, detail: Some(Detail::BadRequest) },
            ..record()
        };
        check(
            Format::Text,
            &odd,
            "2026-03-01T00:00:00.001Z 192.0.2.1 GET - /v1/x?a=1 HTTP/1.1 200 1234 0.420ms error - 12.000ms \
             \"aside; detail=bad-request\" aborted",
        );
    }

    #[test]
    fn a_request_is_one_json_object() {
        check(
            Format::Json,
            &record(),
            r#"{"time":"2026-03-01T00:00:00.001Z","client":"192.0.2.1","method":"GET","host":"api.test","path":"/v1/x?a=1","version":"HTTP/1.1","status":200,"bytes":1234,"duration_ms":0.420,"route":"products","cache":"hit","cache_status":"aside; hit; ttl=42","upstream_ms":null,"aborted":false}"#,
        );
    }

    #[test]
    fn nothing_a_client_sends_ends_a_line_or_leaves_its_quotes() {
        let hostile = "/\"\\\n\r\u{1b}[31m\u{7f}\u{9b}é";
        let mut out = b"{".to_vec();
        string(&mut out, "\"path\":\"", hostile);
        out.push(b'}');
        assert!(!out.contains(&b'\n'));
        let line: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(line["path"], hostile);
        let expected = r#"{"path":"/\"\\\u000a\u000d\u001b[31m\u007f\u009bé"}"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        // What a head can have of it reaches no line as it is.
        let host = HeaderValue::from_bytes(b"a\"\xc2\x9b").unwrap();
        let mut out = Vec::new();
        access(&mut out, Format::Text, &RequestRecord { host: Some(host), target: "/\"".into(), ..record() });
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains(r#" a\"\u009b /\" "#), "{text}");
    }

    #[test]
    fn an_event_is_one_line_in_both_formats() {
        let refused = Event::ReloadRefused { problems: vec!["a:1: \"x\"".into(), "b".into()] };
        let check = |format, what: &Event, expected: &str| {
            let mut out = Vec::new();
            event(&mut out, format, Timestamp::from_millis(1), what);
            assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}\n"));
        };
        check(
            Format::Text,
            &refused,
            r#"1970-01-01T00:00:00.001Z error configuration refused, the running one stays problems=["a:1: \"x\"","b"]"#,
        );
        check(
            Format::Json,
            &Event::RedisDown { reason: "refused".into() },
            r#"{"time":"1970-01-01T00:00:00.001Z","level":"warn","event":"redis_down","message":"redis is down, going on without it","reason":"refused"}"#,
        );
        check(
            Format::Text,
            &Event::Purged {
                way: "admin",
                by: Some([127, 0, 0, 1].into()),
                everything: true,
                kind: "soft",
                tags: "tag a, all".into(),
                number: 17,
                unacknowledged: Some("redis is away".into()),
                took: Duration::from_micros(420),
            },
            r#"1970-01-01T00:00:00.001Z warn purged everything way="admin" by="127.0.0.1" kind="soft" tags="tag a, all" number=17 acknowledged=false reason="redis is away" took_ms=0.42"#,
        );
        check(
            Format::Text,
            &Event::RedisDown { reason: "a\nb".into() },
            r#"1970-01-01T00:00:00.001Z warn redis is down, going on without it reason="a\u000ab""#,
        );
    }
}
