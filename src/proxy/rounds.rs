//! Requests that come round again: each leaves with this process' name in `CDN-Loop` (RFC 8586), and is refused with it.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::fields::has_any;

/// Unlike Via it is nobody's to remove: not a route's `request_headers`, not another proxy's.
const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

/// This process' own name among proxies: drawn at random, so that several in a row are no loop.
#[derive(Debug)]
pub struct Pseudonym(HeaderValue);

impl Pseudonym {
    /// A name that no other process has.
    pub fn random() -> Self {
        let name = format!("aside-{:016x}", fastrand::u64(..));
        Self(HeaderValue::try_from(name).unwrap_or_else(|_| HeaderValue::from_static("aside")))
    }

    /// Adds it to the fields of a request that leaves.
    pub fn sign(&self, fields: &mut HeaderMap) {
        fields.append(CDN_LOOP, self.0.clone());
    }

    /// Whether a request has left with it before.
    pub fn has_signed(&self, fields: &HeaderMap) -> bool {
        has_any(fields, &[CDN_LOOP])
            && fields.get_all(CDN_LOOP).iter().any(|line| {
                let mut names = line.as_bytes().split(|byte| *byte == b',');
                names.any(|info| {
                    info.split(|byte| *byte == b';').next().is_some_and(|id| id.trim_ascii() == self.0.as_bytes())
                })
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_name_is_found() {
        let (own, other) = (Pseudonym::random(), Pseudonym::random());
        let mut fields = HeaderMap::new();
        assert!(!own.has_signed(&fields));
        other.sign(&mut fields);
        assert!(!own.has_signed(&fields), "a chain is no loop");
        own.sign(&mut fields);
        assert!(own.has_signed(&fields) && other.has_signed(&fields));
        let check = |line: &str, expected| {
            let mut fields = HeaderMap::new();
            fields.insert(CDN_LOOP, HeaderValue::try_from(line).unwrap());
            assert_eq!(own.has_signed(&fields), expected, "{line}");
        };
        let name = own.0.to_str().unwrap();
        check(&format!("a.test , {name} ;v=1;x=\"y\", b"), true);
        check(&format!("{name}0"), false);
        check(&format!("a; b={name}"), false);
        check(",;, ", false);
    }
}
