//! Bodies compressed in a real Redis, and what is made of frames that nobody here wrote.

use super::redis::{attached, check, connected, flush, redis_config, state, stats, until};
use super::server::Server;
use super::*;
use crate::store::codec::compression::{Coding, StoredBody};
use crate::store::codec::{self, Detached};
use crate::store::redis::RedisConfig;

/// What a record takes beside a body, at most, in these tests.
const OVERHEAD_MAX: usize = 400;

/// A store without a memory tier, its Redis configuration changed.
async fn connected_with(server: &Server, change: impl FnOnce(&mut RedisConfig)) -> World {
    let mut config = redis_config(format!("redis://127.0.0.1:{}", server.port));
    change(&mut config);
    let world = attached(0, config);
    until("connecting", || state(&world) == "up").await;
    world
}

/// Text of which a frame takes a good half at most: of a short one only what is there twice is coded.
fn digits(length: usize) -> String {
    let mut random = fastrand::Rng::with_seed(5);
    let drawn = if length < 4 << 10 { length.div_ceil(2) } else { length };
    let text: String = (0..drawn).map(|_| char::from(b'0' + random.u8(..10))).collect();
    text.repeat(2)[..length].to_owned()
}

async fn put_and_flush(world: &World, ask: &Ask, response: StoredResponse) {
    assert_eq!(world.put(ask, response), Put::Stored);
    flush(world).await;
}

#[tokio::test]
async fn text_is_stored_smaller_and_comes_back_as_it_was() {
    let server = Server::start(&[]);
    let (writer, reader) = (connected(&server, 0).await, connected(&server, 64 << 20).await);
    // Small; compressed off the worker; decompressed off the worker too.
    for (nth, length) in [1 << 10, 100_000, (256 << 10) + 1, (2 << 20) - 400_000].into_iter().enumerate() {
        let (ask, body) = (ask(&format!("/{nth}"), &[]), digits(length));
        put_and_flush(&writer, &ask, writer.response(&[], &body)).await;
        let keys = server.keys();
        assert_eq!(keys.len(), 1, "{length}");
        let stored = server.value(&keys[0]).len();
        assert!(stored < length * 6 / 10 + OVERHEAD_MAX, "{stored} of {length}");
        check(&writer, &ask, Ok((&body, Tier::Redis))).await;
        check(&reader, &ask, Ok((&body, Tier::Redis))).await;
        let in_memory = length <= 1 << 20;
        check(&reader, &ask, Ok((&body, if in_memory { Tier::Memory } else { Tier::Redis }))).await;
        assert!(!in_memory || reader.store.stats().bytes > length as u64, "memory holds what is ready to serve");
        server.command(&format!("DEL {}", keys[0]));
    }
}

#[tokio::test]
async fn what_would_not_shrink_is_stored_as_it_is() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let text = "text ".repeat(1000);
    let mut noise = vec![0; 100_000];
    fastrand::Rng::with_seed(6).fill(&mut noise);
    let coded = |name: &'static str, value: &'static str| {
        let fields = [(HeaderName::from_static(name), HeaderValue::from_static(value))].into_iter().collect();
        StoredResponse { fields, ..world.response(&[], &text) }
    };
    let mut random = world.response(&[], "");
    random.body = Bytes::from(noise);
    let short = world.response(&[], &text[..1023]);
    for response in [short, random, coded("content-encoding", "gzip"), coded("content-type", "image/png")] {
        let (ask, body) = (ask("/a", &[]), response.body.clone());
        put_and_flush(&world, &ask, response).await;
        let stored = server.value(&server.keys()[0]);
        assert!(stored.ends_with(&body), "{} of {}", stored.len(), body.len());
        let Lookup::Found(found) = world.get(&ask).await else { panic!("expected a response") };
        assert!(found.response.body == body && found.tier == Tier::Redis);
    }
}

#[tokio::test]
async fn either_setting_reads_what_the_other_wrote() {
    let server = Server::start(&[]);
    let (on, off) = (connected(&server, 0).await, connected_with(&server, |config| config.compress = false).await);
    let (ask, body) = (ask("/a", &[]), digits(50_000));
    for (writer, reader, is_compressed) in [(&on, &off, true), (&off, &on, false)] {
        put_and_flush(writer, &ask, writer.response(&[], &body)).await;
        assert_eq!(server.value(&server.keys()[0]).len() < body.len(), is_compressed);
        check(reader, &ask, Ok((&body, Tier::Redis))).await;
    }
}

#[tokio::test]
async fn a_large_body_is_a_frame_of_its_own_named_by_its_digest() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let (ask, body) = (ask("/large", &[]), digits(3 << 20));
    put_and_flush(&world, &ask, world.response(&[], &body)).await;
    let keys = server.keys();
    assert_eq!(keys.len(), 2);
    let frame = server.value(&keys[1]);
    assert!((1 << 20..2 << 20).contains(&frame.len()), "{}", frame.len());
    assert!(keys[1].ends_with(&format!("}}:b:{}", blake3::hash(&frame).to_hex())), "{}", keys[1]);
    check(&world, &ask, Ok((&body, Tier::Redis))).await;
    server.command(&format!("SETRANGE {} 1000 XXXX", keys[1]));
    check(&world, &ask, Err(Missing::Corrupt)).await;
    flush(&world).await;
    assert_eq!((server.keys(), stats(&world).corrupt), (keys[1..].to_vec(), 1));
}

#[tokio::test]
async fn a_block_or_frame_that_is_not_what_its_record_says_is_a_miss_deleted_and_counted() {
    check_hostile(2000, |length| Coding::Lz4 { length }).await;
    check_hostile(3000, |length| Coding::Zstd { length }).await;
}

async fn check_hostile(length: usize, coding: fn(u64) -> Coding) {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let (ask, body) = (ask("/a", &[]), digits(length));
    put_and_flush(&world, &ask, world.response(&[], &body)).await;
    let key = server.keys().remove(0);
    let compressed = StoredBody::compressed(body.clone().into());
    let length = length as u64;
    assert_eq!(compressed.coding, coding(length));
    let bytes = compressed.bytes;
    let declared = |bytes: &[u8], length| StoredBody { bytes: Bytes::copy_from_slice(bytes), coding: coding(length) };
    let slot = slot::placed(&ask.address, world.response(&[], &body));
    let epoch = world.store.synced().epoch;
    let hostile = [
        declared(&bytes, length - 1),
        declared(&bytes, length + 1),
        declared(&bytes[..bytes.len() - 1], length),
        declared(b"nothing that was compressed", length),
        declared(b"", length),
        declared(&bytes, 3),
    ];
    let mut corrupt = 0;
    for stored in hostile {
        let detached = Detached::of(&stored.bytes);
        for detached in [None, Some(&detached)] {
            server.set(&key, &codec::encode_response(&slot, epoch, &stored, detached, &Seal::plain()));
            if let Some(detached) = detached {
                let digest = blake3::Hash::from_bytes(detached.digest).to_hex();
                server.set(&format!("{key}:b:{digest}"), &stored.bytes);
            }
            check(&world, &ask, Err(Missing::Corrupt)).await;
            flush(&world).await;
            corrupt += 1;
            assert_eq!((stats(&world).corrupt, server.keys().contains(&key)), (corrupt, false), "{stored:?}");
        }
    }
    server.set(&key, &codec::encode_response(&slot, epoch, &declared(&bytes, length), None, &Seal::plain()));
    check(&world, &ask, Ok((&body, Tier::Redis))).await;
}

#[tokio::test]
async fn a_changed_byte_of_a_compressed_record_is_a_miss_deleted_and_counted() {
    let server = Server::start(&[]);
    let world = connected(&server, 0).await;
    let (ask, body) = (ask("/a", &[]), digits(2000));
    put_and_flush(&world, &ask, world.response(&[], &body)).await;
    let key = server.keys().remove(0);
    let mut record = server.value(&key);
    let last = record.len() - 1;
    record[last] ^= 1;
    server.set(&key, &record);
    check(&world, &ask, Err(Missing::Corrupt)).await;
    flush(&world).await;
    assert_eq!((server.keys().len(), stats(&world).corrupt), (0, 1));
}

#[tokio::test]
async fn a_body_declared_longer_than_the_bound_is_a_miss_and_left_to_who_takes_it() {
    let server = Server::start(&[]);
    let (large, small) =
        (connected(&server, 0).await, connected_with(&server, |config| config.max_object = 9999).await);
    let (ask, body) = (ask("/a", &[]), "0123456789".repeat(1000));
    put_and_flush(&large, &ask, large.response(&[], &body)).await;
    let key = server.keys().remove(0);
    assert!(server.value(&key).len() < 1000, "what is stored is within the bound");
    check(&small, &ask, Err(Missing::Key)).await;
    check(&large, &ask, Ok((&body, Tier::Redis))).await;
    let slot = slot::placed(&ask.address, large.response(&[], &body));
    let stored = StoredBody { coding: Coding::Zstd { length: u64::MAX }, ..StoredBody::compressed(body.into()) };
    for detached in [None, Some(&Detached::of(&stored.bytes))] {
        server.set(&key, &codec::encode_response(&slot, large.store.synced().epoch, &stored, detached, &Seal::plain()));
        check(&large, &ask, Err(Missing::Key)).await;
    }
    assert_eq!((stats(&large).corrupt, stats(&small).corrupt), (0, 0));
}
