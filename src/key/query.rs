//! The query as keyed: which parameters count, and in which order.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use smallvec::SmallVec;

use super::QueryRule;

/// The parameters that only tell where a visitor came from, for [`QueryRule::Deny`].
pub const TRACKING: &[&str] = &[
    "utm_*", "gclid", "gclsrc", "dclid", "gbraid", "wbraid", "fbclid", "msclkid", "yclid", "twclid", "ttclid",
    "igshid", "mc_cid", "mc_eid", "_ga", "_gl", "_hsenc", "_hsmi",
];

/// A parameter with its name percent-decoded.
type Parameter<'q> = (Cow<'q, [u8]>, &'q str);

impl QueryRule {
    fn keeps(&self, name: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Allow(names) => names.iter().any(|allowed| allowed.as_bytes() == name),
            Self::Deny(names) => !names.iter().any(|denied| denies(denied, name)),
        }
    }

    /// The parameters of `query` that count, sorted stably by name if `sort`; none if no parameter is left.
    /// Only `&` separates; a query that nothing is done to stays as it is.
    pub(super) fn apply<'q>(&self, query: Option<&'q str>, sort: bool) -> Option<Cow<'q, str>> {
        let query = query?;
        if *self == Self::None {
            return None;
        }
        let all = query.split('&').filter(|pair| !pair.is_empty());
        let mut kept: SmallVec<[Parameter<'q>; 8]> =
            all.map(|pair| (name_of(pair), pair)).filter(|(name, _)| self.keeps(name)).collect();
        let sorted = !sort || kept.is_sorted_by(|a, b| a.0 <= b.0);
        if !sorted {
            kept.sort_by(|a, b| a.0.cmp(&b.0));
        }
        let length = (kept.iter().map(|(_, pair)| pair.len() + 1).sum::<usize>()).saturating_sub(1);
        if sorted && length == query.len() {
            return Some(Cow::Borrowed(query));
        }
        (!kept.is_empty()).then(|| Cow::Owned(joined(&kept, length)))
    }
}

/// Whether the entry `denied` names the parameter; `*` at its end matches the rest.
fn denies(denied: &str, name: &[u8]) -> bool {
    match denied.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix.as_bytes()),
        None => denied.as_bytes() == name,
    }
}

fn name_of(pair: &str) -> Cow<'_, [u8]> {
    let name = pair.split_once('=').map_or(pair, |(name, _)| name);
    percent_decode_str(name).into()
}

fn joined(kept: &[Parameter<'_>], length: usize) -> String {
    let mut out = String::with_capacity(length);
    for (_, pair) in kept {
        if !out.is_empty() {
            out.push('&');
        }
        out.push_str(pair);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Box<[Box<str>]> {
        list.iter().map(|name| Box::from(*name)).collect()
    }

    fn check(rule: &QueryRule, sort: bool, query: &str, expected: Option<&str>) {
        assert_eq!(rule.apply(Some(query), sort).as_deref(), expected, "{rule:?} {query:?}");
    }

    #[test]
    fn all_keeps_the_query_and_sorts_it_stably_if_asked() {
        check(&QueryRule::All, false, "b=1&a=2&b=0", Some("b=1&a=2&b=0"));
        check(&QueryRule::All, true, "b=1&a=2&b=0", Some("a=2&b=1&b=0"));
        check(&QueryRule::All, true, "%62=1&a=2", Some("a=2&%62=1"));
        check(&QueryRule::All, true, "b;a=1&a", Some("a&b;a=1"));
        check(&QueryRule::All, true, "", Some(""));
        assert_eq!(QueryRule::All.apply(None, true), None);
    }

    #[test]
    fn only_allowed_parameters_are_left() {
        let allow = QueryRule::Allow(names(&["id", "page"]));
        check(&allow, false, "x=1&id=2&&page", Some("id=2&page"));
        check(&allow, false, "%69d=2&ID=3", Some("%69d=2"));
        check(&allow, false, "x;id=2", None);
        check(&QueryRule::None, false, "id=2", None);
    }

    #[test]
    fn denied_parameters_are_left_out() {
        let deny = QueryRule::Deny(names(TRACKING));
        check(&deny, false, "utm_source=a&id=1&gclid=3&utm%5Fx=1", Some("id=1"));
        check(&deny, false, "gclid=3", None);
        check(&deny, false, "gclidx=3&UTM_a=1", Some("gclidx=3&UTM_a=1"));
    }
}
