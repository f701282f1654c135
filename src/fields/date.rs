//! HTTP dates (RFC 9110 §5.6.7), read as leniently as the standard lets a recipient.

use http::HeaderValue;

use crate::clock::Timestamp;

/// The time a field value names: IMF-fixdate, RFC 850 or asctime form; names in any case.
pub fn parse(value: &HeaderValue) -> Option<Timestamp> {
    todo!("{value:?}")
}

/// `time` in IMF-fixdate form.
pub fn format(time: Timestamp) -> HeaderValue {
    todo!("{time:?}")
}
