//! `POST /purge`: an order in JSON, obeyed and answered.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};

use super::json;
use crate::generation::Shared;
use crate::purge::{self, ACKNOWLEDGED_WITHIN, ORDER_BYTES_MAX, Order, Refusal, Way};

/// How long an order may take to arrive.
const CONTENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Obeys the order that an admitted request from `peer` carries.
pub(super) async fn answer<B>(shared: &Shared, request: Request<B>, peer: IpAddr) -> Response<Full<Bytes>>
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    if let Err((status, why)) = check(request.headers()) {
        return json(status, purge::refused(why));
    }
    let content = match content(request.into_body()).await {
        Ok(content) => content,
        Err((status, why)) => return json(status, purge::refused(&why)),
    };
    let order = match Order::parse(&content, &shared.generation.load().routes) {
        Ok(order) => order,
        Err(refusal) => return json(refusal.status(), purge::refused(&refusal.to_string())),
    };
    let outcome = purge::purge(shared, Way::Admin(peer), &order, ACKNOWLEDGED_WITHIN).await;
    json(outcome.status(), outcome.json())
}

/// Another site's page can have a browser on this machine send a form, but not JSON without asking first.
fn check(fields: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
    let mut types = fields.get_all(CONTENT_TYPE).iter();
    let only = types.next().filter(|_| types.next().is_none()).and_then(|value| value.to_str().ok());
    let essence = only.map(|text| text.split(';').next().unwrap_or_default().trim());
    if essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected content-type: application/json"))
}

async fn content<B>(body: B) -> Result<Bytes, (StatusCode, String)>
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    let collected = tokio::time::timeout(CONTENT_TIMEOUT, Limited::new(body, ORDER_BYTES_MAX).collect()).await;
    match collected {
        Ok(Ok(content)) => Ok(content.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err((Refusal::TooLarge.status(), Refusal::TooLarge.to_string()))
        }
        Ok(Err(_)) => Err((StatusCode::BAD_REQUEST, "the order did not arrive whole".to_owned())),
        Err(_) => Err((StatusCode::REQUEST_TIMEOUT, "the order did not arrive in time".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn only_json_may_order() {
        let check = |fields: &[(HeaderName, &'static str)], expected: Option<u16>| {
            let map: HeaderMap =
                fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
            let status = check(&map).err().map(|(status, _)| status.as_u16());
            assert_eq!(status, expected, "{fields:?}");
        };
        let json = (CONTENT_TYPE, "application/json");
        check(std::slice::from_ref(&json), None);
        check(&[(CONTENT_TYPE, "Application/JSON; charset=utf-8")], None);
        for text in
            ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "text/plain;application/json"]
        {
            check(&[(CONTENT_TYPE, text)], Some(415));
        }
        check(&[], Some(415));
        check(&[json.clone(), json], Some(415));
    }
}
