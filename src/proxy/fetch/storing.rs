//! What becomes of a response that may be stored.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};

use super::{Fetch, Fetched, share};
use crate::fields::vary::SelectingFields;
use crate::fields::{forwarding, hop_by_hop};
use crate::policy::settle::{self, Exchange, Framing, HeadUpdate, NotStored};
use crate::proxy::fill::{Bound, Fill, News, Received, Room};
use crate::store::{Put, PutLimits};
use crate::stored::{Provenance, StoredResponse};
use crate::upstream::{ResponseBody, UpstreamError};

impl Fetch {
    /// Receives what is to be stored, stores it, and lets others read along.
    pub(super) async fn store(
        &mut self,
        head: StoredResponse,
        framing: Framing,
        parts: http::response::Parts,
        body: ResponseBody,
    ) {
        let status = parts.status;
        let (head, room) = match self.admit(head, framing) {
            Ok(admitted) => admitted,
            Err(reason) => return self.pass(Response::from_parts(parts, body), reason),
        };
        let length = match framing {
            Framing::Length(length) => Some(length),
            Framing::Delimited | Framing::Close => None,
        };
        let variant = share::variant_key(&self.ask, &head);
        let mut received = parts.headers;
        hop_by_hop::remove(&mut received);
        let fill = Arc::new(Fill::new(Arc::new(head), length, variant));
        if length.is_some() {
            self.publish(News::Streaming(Arc::clone(&fill)));
        }
        self.report(Fetched::Fill(Arc::clone(&fill), received), Some(status));
        match fill.receive(body, room, self.ask.caching().max_object).await {
            Received::Whole(whole, room) => {
                let stored = self.put_received(&fill.head, whole);
                let is_counted = self.ask.proxy.shared.store.memory_admits(stored.body.len());
                fill.complete(stored, Some(room).filter(|_| !is_counted));
            }
            Received::Broken => {
                self.not_stored(NotStored::Truncated);
                self.publish(News::Failed(UpstreamError::Protocol));
                fill.break_off();
            }
            Received::TooLarge(bound) => {
                match bound {
                    Bound::Object => {
                        self.not_stored(NotStored::TooLarge);
                        self.remember_uncacheable();
                    }
                    Bound::Filling => self.not_stored(NotStored::FillingLimit),
                }
                self.publish(News::NotShared);
            }
        }
    }

    /// The head with its provenance, and room for the body; or why it is not stored.
    fn admit(&self, mut head: StoredResponse, framing: Framing) -> Result<(StoredResponse, Room), NotStored> {
        head.selecting = head.selecting.without(&self.ask.caching().vary_ignore);
        if matches!(&head.selecting, SelectingFields::Names(names) if names.iter().any(forwarding::is_address)) {
            return Err(NotStored::VaryAny);
        }
        head.provenance = self.provenance(&head)?;
        let expected = match framing {
            Framing::Length(length) if length > self.ask.caching().max_object => return Err(NotStored::TooLarge),
            Framing::Length(length) => length,
            Framing::Delimited | Framing::Close => 0,
        };
        let tags = self.ask.tags();
        let query = self.ask.store_query(&tags, self.ask.now());
        if !self.ask.proxy.shared.store.admits_variant(&query, &head.selecting, self.limits()) {
            return Err(NotStored::TooManyVariants);
        }
        let room = self.ask.proxy.shared.filling.reserve(expected).ok_or(NotStored::FillingLimit)?;
        Ok((head, room))
    }

    fn provenance(&self, head: &StoredResponse) -> Result<Provenance, NotStored> {
        self.ask.provenance(head, self.synced)
    }

    /// Stores the freshened response.
    pub(super) fn freshen(&mut self, freshened: &Arc<StoredResponse>, status: StatusCode) {
        let mut freshened = StoredResponse::clone(freshened);
        // Over the tag limits the provenance of before stays, and with it every purge since.
        if let Ok(provenance) = self.provenance(&freshened) {
            freshened.provenance = provenance;
        }
        let freshened = Arc::new(freshened);
        self.put(&freshened);
        self.report(Fetched::Stored(freshened), Some(status));
    }

    /// Receives the rest of a stored part and stores the whole.
    pub(super) async fn combine(
        &mut self,
        mut part: StoredResponse,
        stored: Option<Arc<StoredResponse>>,
        status: StatusCode,
        body: ResponseBody,
    ) {
        let expected = part.part.map_or(0, |range| range.last - range.first + 1);
        let fits = expected <= self.ask.caching().max_object;
        let room = fits.then(|| self.ask.proxy.shared.filling.reserve(expected)).flatten();
        let (Some(room), Some(stored), Ok(provenance)) = (room, stored, self.provenance(&part)) else {
            return Box::pin(self.refetch()).await;
        };
        part.provenance = provenance;
        let fill = Fill::new(Arc::new(part.clone()), None, self.ask.address.key);
        let Received::Whole(rest, _) = fill.receive(body, room, expected).await else {
            return self.fail(UpstreamError::Protocol);
        };
        part.body = rest;
        match settle::combine(&stored, &part) {
            Some(whole) => {
                let whole = Arc::new(whole);
                self.put(&whole);
                self.report(Fetched::Stored(whole), Some(status));
            }
            None => Box::pin(self.refetch()).await,
        }
    }

    /// What the answer to a HEAD tells of what is stored.
    pub(super) fn update_by_head(&self, exchange: &Exchange<'_>, stored: Option<&StoredResponse>) {
        let Some(stored) = stored else { return };
        match settle::updated_by_head(exchange, stored, &self.ask.caching().rules) {
            HeadUpdate::Updated(updated) => self.put(&updated),
            HeadUpdate::Outdated => self.forget(),
            HeadUpdate::Unrelated => {}
        }
    }

    /// The updated fields forbid to store what was validated.
    pub(super) fn serve_once(&mut self, freshened: Arc<StoredResponse>, reason: NotStored, status: StatusCode) {
        self.forget();
        self.publish(News::NotShared);
        self.report(Fetched::Once(freshened, reason), Some(status));
    }

    fn forget(&self) {
        let tags = self.ask.tags();
        let query = self.ask.store_query(&tags, self.ask.now());
        self.ask.proxy.shared.store.remove(self.ask.proxy.worker, &query);
    }

    fn put(&self, stored: &StoredResponse) {
        self.put_received(stored, stored.body.clone());
    }

    /// Stores a head with the content that has come since; it is the response as it is stored.
    fn put_received(&self, head: &StoredResponse, body: Bytes) -> Arc<StoredResponse> {
        let tags = self.ask.tags();
        let query = self.ask.store_query(&tags, self.ask.now());
        let shared = &self.ask.proxy.shared;
        let (put, stored) = shared.store.put_received(self.ask.proxy.worker, &query, head, body, self.limits());
        match (put, &self.lead) {
            (Put::Stored, lead) => {
                shared.telemetry.record_stored(&self.ask.counters);
                if let Some(lead) = lead {
                    lead.stored(&self.ask, &query);
                }
            }
            (Put::TooManyVariants, _) => {
                self.not_stored(NotStored::TooManyVariants);
                self.publish(News::NotShared);
            }
            (Put::NoRoom, _) => {
                self.not_stored(NotStored::TooLarge);
                self.publish(News::NotShared);
            }
        }
        stored
    }

    fn limits(&self) -> PutLimits {
        PutLimits { max_variants: self.ask.caching().max_variants }
    }

    /// That is known only after the head has left, which could not tell it.
    fn not_stored(&self, reason: NotStored) {
        self.ask.proxy.shared.telemetry.record_not_stored(&self.ask.counters, reason);
    }
}
