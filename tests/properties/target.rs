//! Targets: the normal form is its own, and what the upstream is sent has the key it is stored under.

use aside::key::{BodyRule, KeyRules, QueryRule, TRACKING, Tag};
use aside::target::{Authority, Scheme, Target};
use http::{HeaderMap, Method, Uri};

/// The first line is a Host, the rest a request target in origin form.
pub fn check(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (host, text) = (&data[..at], data.get(at + 1..).unwrap_or_default());
    let authority = std::str::from_utf8(host).ok().and_then(check_authority);
    let authority = authority.unwrap_or_else(|| Authority::parse("a.example", Scheme::Http).unwrap());
    let Ok(uri) = Uri::try_from(text) else { return };
    let Ok(target) = Target::new(Scheme::Http, authority.clone(), uri.path(), uri.query()) else { return };
    check_path(target.path());
    let again = Target::new(Scheme::Http, authority, target.path(), target.query());
    assert_eq!(again.as_ref(), Ok(&target));
    let names = ["a", "utm_source"].map(Box::from);
    let rules =
        [QueryRule::All, QueryRule::None, QueryRule::Allow(names.clone().into()), QueryRule::Deny(names.into())];
    let tracking = QueryRule::Deny(TRACKING.iter().map(|name| Box::from(*name)).collect());
    for query in rules.into_iter().chain([tracking]) {
        for sort_query in [false, true] {
            check_key(&target, &key_rules(query.clone(), sort_query));
        }
    }
}

fn check_authority(text: &str) -> Option<Authority> {
    for scheme in [Scheme::Http, Scheme::Https] {
        let Ok(authority) = Authority::parse(text, scheme) else { continue };
        assert_eq!(Authority::parse(&authority.to_string(), scheme).as_ref(), Ok(&authority));
        assert_ne!(authority.port(), Some(scheme.default_port()));
        assert!(!authority.host().bytes().any(|byte| byte.is_ascii_uppercase() || b"@/?#\\ %".contains(&byte)));
    }
    Authority::parse(text, Scheme::Http).ok()
}

/// Neither it, nor what a server makes of it that decodes it once more, leads upwards.
fn check_path(path: &str) {
    assert!(path.starts_with('/'));
    assert!(path.bytes().all(|byte| byte.is_ascii_graphic() && !b"\\?#\"<>".contains(&byte)), "{path}");
    let decoded = path.replace("%2F", "/").replace("%5C", "/");
    assert!(!decoded.split('/').any(|segment| segment == "." || segment == ".."), "{path}");
}

fn check_key(target: &Target, rules: &KeyRules) {
    let address =
        |target: &Target| rules.address(&Method::GET, target, &HeaderMap::new(), &[], b"").expect("no body to key");
    let query = rules.query(target.query());
    assert_eq!(rules.query(query.as_deref()), query, "the query as keyed is its own");
    let sent = query.as_ref().map_or_else(|| target.path().to_owned(), |query| format!("{}?{query}", target.path()));
    let sent: Uri = sent.try_into().expect("a valid target");
    let seen = Target::new(target.scheme, target.authority.clone(), sent.path(), sent.query()).expect("a valid target");
    assert_eq!((seen.path(), seen.query()), (target.path(), query.as_deref()), "sent as keyed");
    assert_eq!(address(&seen), address(target));
    assert_eq!(Tag::keyed_url(&seen, rules).hash(), Tag::keyed_url(target, rules).hash());
    let uri = target.to_uri().expect("a valid target");
    assert_eq!((uri.path(), uri.query()), (target.path(), target.query()));
}

fn key_rules(query: QueryRule, sort_query: bool) -> KeyRules {
    KeyRules {
        route: "route".into(),
        query,
        sort_query,
        host: true,
        headers: Box::default(),
        cookies: Box::default(),
        body: BodyRule::None,
        body_max: 0,
    }
}
