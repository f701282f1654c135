//! stub
use crate::clock::Timestamp;
use crate::stored::StoredResponse;
use bytes::Bytes;
use http::request::Parts;
/// body
#[derive(Debug)]
pub enum ReplyBody {
    /// e
    Empty,
    /// w
    Whole(Bytes),
    /// p
    Parts(Vec<Bytes>),
}
/// stub
pub fn from_stored(request: &Parts, stored: &StoredResponse, now: Timestamp) -> (http::Response<()>, ReplyBody) {
    todo!("{request:?}{stored:?}{now:?}")
}
