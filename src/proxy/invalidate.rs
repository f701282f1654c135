//! What an unsafe request makes invalid, done before its answer leaves (RFC 9111 §4.4).

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, Method, Response, Uri};

use super::Proxy;
use crate::fields::surrogate;
use crate::generation::Generation;
use crate::key::Tag;
use crate::policy::invalidate as policy;
use crate::purge::{Order, purge_after};
use crate::route::Matched;
use crate::store::ledger::{PurgeKind, Synced};
use crate::target::Target;

/// How long the answer to an unsafe request waits for Redis to record what it invalidates.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(50);

/// Invalidates what the response to an unsafe request says has changed: its own target, `Location` and
/// `Content-Location` of the same origin, the `invalidates` of its route and of that of the target's GET, which may know
/// no other method, and `Cache-Group-Invalidation` (RFC 9875 §3).
///
/// Returns where the ledger stands then for the response itself, which was valid when it stood at `valid_at`: what the
/// request invalidates does not count against it, but everything else does that may have come since.
pub async fn after<B: Sync>(
    proxy: &Proxy,
    generation: &Generation,
    matched: Option<&Matched>,
    target: &Target,
    request: &Parts,
    response: &Response<B>,
    valid_at: Synced,
) -> Option<Synced> {
    if !policy::invalidates(&request.method, response.status()) {
        return Some(valid_at);
    }
    let origin = format!("{}://{}", target.scheme.as_str(), target.authority);
    let mut tags: Vec<Tag> =
        surrogate::invalidated_groups(response.headers(), &origin).into_iter().map(Tag::Surrogate).collect();
    let own = matched.map(|matched| (&*matched.route, &matched.params));
    let of_get = generation.routes.find(target, &Method::GET);
    let of_get = of_get.as_ref().map(|found| (&**found.route, &found.params));
    let of_get = of_get.filter(|(route, _)| own.is_none_or(|(own, _)| !std::ptr::eq(*route, own)));
    for (route, params) in own.into_iter().chain(of_get) {
        let templates = route.caching.iter().flat_map(|caching| &caching.invalidates);
        tags.extend(templates.map(|template| Tag::Surrogate(template.expand(params, target.path()))));
    }
    let further = further_targets(&origin, target, response.headers());
    for target in std::iter::once(target).chain(&further) {
        tags.extend(generation.routes.url_tags(target));
    }
    if tags.is_empty() {
        return Some(valid_at);
    }
    purge_after(&proxy.shared, valid_at, &Order { tags, kind: PurgeKind::Hard }, ACKNOWLEDGED_WITHIN).await
}

fn further_targets(origin: &str, target: &Target, fields: &HeaderMap) -> Vec<Target> {
    let own = target
        .query()
        .map_or_else(|| format!("{origin}{}", target.path()), |query| format!("{origin}{}?{query}", target.path()));
    let Ok(own) = Uri::try_from(own) else { return Vec::new() };
    policy::further_targets(&own, fields)
        .iter()
        .filter_map(|uri| Target::new(target.scheme, Arc::clone(&target.authority), uri.path(), uri.query()).ok())
        .collect()
}
