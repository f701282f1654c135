//! Without Redis.

use super::*;
use crate::store::ledger::PurgeKind;

fn world() -> World {
    World::new(&config(8 << 20))
}

fn check(world: &World, ask: &Ask, expected: Result<&str, Missing>) {
    let found = world.local(ask);
    assert_eq!(outcome(&found), expected.map(|it| (it, Tier::Memory, false)));
}

#[test]
fn what_is_stored_is_found_until_it_is_useless() {
    let mut world = world();
    let ask = ask("/a", &[]);
    check(&world, &ask, Err(Missing::Key));
    assert_eq!(world.put(&ask, world.response(&[], "a")), Put::Stored);
    check(&world, &ask, Ok("a"));
    world.now = world.now.plus(Duration::from_secs(120));
    check(&world, &ask, Ok("a"));
    world.now = world.now.plus(Duration::from_millis(1));
    check(&world, &ask, Err(Missing::Key));
    assert_eq!(world.store.stats().objects, 0);
}

#[test]
fn another_material_under_the_same_key_is_a_miss() {
    let world = world();
    let mut ask = ask("/a", &[]);
    world.put(&ask, world.response(&[], "a"));
    ask.address.material = smallvec::SmallVec::from_slice(b"another");
    check(&world, &ask, Err(Missing::Key));
}

#[test]
fn each_variant_is_found_by_its_own_fields_alone() {
    let world = world();
    let [en, de, fr] = ["en", "de", "fr"].map(|language| ask("/a", &[("accept-language", language)]));
    world.put(&en, world.response(&["accept-language"], "hello"));
    check(&world, &de, Err(variant_of(&["accept-language"])));
    world.put(&de, world.response(&["accept-language"], "hallo"));
    check(&world, &en, Ok("hello"));
    check(&world, &de, Ok("hallo"));
    check(&world, &fr, Err(variant_of(&["accept-language"])));
    world.remove(&en);
    check(&world, &en, Err(Missing::Key));
}

#[test]
fn a_key_takes_no_more_variants_than_the_route_allows_but_replaces_them() {
    let world = world();
    let asks = ["a", "b", "c", "d"].map(|value| ask("/", &[("x-a", value)]));
    let put = |nth: usize| world.put(&asks[nth], world.response(&["x-a"], "body"));
    assert_eq!([0, 1, 2, 3, 0].map(put), [Put::Stored, Put::Stored, Put::Stored, Put::TooManyVariants, Put::Stored]);
    check(&world, &asks[3], Err(variant_of(&["x-a"])));
}

#[test]
fn further_selecting_fields_join_those_known() {
    let world = world();
    let one = ask("/", &[("x-a", "1"), ("x-b", "1")]);
    let other = ask("/", &[("x-a", "1"), ("x-b", "2")]);
    world.put(&one, world.response(&["x-b"], "one"));
    world.put(&other, world.response(&["x-a"], "other"));
    check(&world, &one, Err(variant_of(&["x-a", "x-b"])));
    world.put(&one, world.response(&["x-b"], "one again"));
    check(&world, &one, Ok("one again"));
    check(&world, &other, Ok("other"));
}

#[test]
fn a_response_without_vary_replaces_the_variants() {
    let world = world();
    let [en, de] = ["en", "de"].map(|language| ask("/a", &[("accept-language", language)]));
    world.put(&en, world.response(&["accept-language"], "hello"));
    world.put(&de, world.response(&[], "for all"));
    check(&world, &en, Ok("for all"));
}

#[test]
fn ignored_fields_do_not_select() {
    let world = world();
    let [en, de] = ["en", "de"].map(|language| ask("/a", &[("accept-language", language), ("x-a", "1")]));
    world.put(&en, world.response(&["accept-language", "x-a"], "hello"));
    let ignored = [HeaderName::from_static("accept-language")];
    let response = Arc::new(world.response(&["x-a"], "either"));
    world.with(&en, &ignored, |query| world.store.put(WORKER, query, response, LIMITS));
    let found = world.with(&de, &ignored, |query| world.store.get_local(query)).unwrap();
    assert_eq!(outcome(&found), Ok(("either", Tier::Memory, false)));
}

#[tokio::test]
async fn a_purge_of_any_tag_kills_what_was_stored_or_fetched_before() {
    let world = world();
    let ask = ask("/shop/a", &[]);
    let prefix = Tag::prefixes(&ask.target).next().unwrap();
    let tags = [Tag::All, Tag::Route("all".into()), Tag::url(&ask.target), Tag::Surrogate("product:1".into()), prefix];
    for tag in tags {
        world.put(&ask, world.response(&[], "before"));
        let late = world.response(&[], "a fill that began before");
        world.purge(Tag::Surrogate("product:2".into()), PurgeKind::Hard).await;
        check(&world, &ask, Ok("before"));
        assert!(!world.store.is_purged(&late, &world.tags(&ask), world.now));
        world.purge(tag.clone(), PurgeKind::Hard).await;
        check(&world, &ask, Err(Missing::Purged));
        assert!(world.store.is_purged(&late, &world.tags(&ask), world.now), "{tag:?}");
        world.put(&ask, late);
        check(&world, &ask, Err(Missing::Purged));
        world.put(&ask, world.response(&[], "after"));
        check(&world, &ask, Ok("after"));
    }
}

#[tokio::test]
async fn what_is_softly_purged_is_found_to_be_validated() {
    let world = world();
    let ask = ask("/a", &[]);
    world.put(&ask, world.response(&[], "a"));
    world.purge(Tag::All, PurgeKind::Soft).await;
    assert_eq!(outcome(&world.local(&ask)), Ok(("a", Tier::Memory, true)));
    assert_eq!(outcome(&world.local(&ask)), Ok(("a", Tier::Memory, true)));
}

#[test]
fn an_uncacheable_key_is_told_beside_what_is_stored_and_is_stale() {
    let mut world = world();
    let ask = ask("/a", &[]);
    world.store.put_uncacheable(&ask.address, world.now, Duration::from_secs(100));
    check(&world, &ask, Err(Missing::Uncacheable));
    world.put(&ask, world.response(&[], "a"));
    world.store.put_uncacheable(&ask.address, world.now, Duration::from_secs(100));
    let check = |world: &World, expected: bool| match world.local(&ask) {
        Lookup::Found(found) => assert_eq!((&found.response.body[..], found.uncacheable), (&b"a"[..], expected)),
        Lookup::Missing(why) => panic!("{why:?}"),
    };
    check(&world, false);
    world.now = world.now.plus(Duration::from_secs(60));
    check(&world, true);
    world.now = world.now.plus(Duration::from_secs(40));
    check(&world, false);
}

#[test]
fn a_stored_response_owns_its_fields() {
    let world = world();
    let ask = ask("/a", &[]);
    let buffer = Bytes::from(vec![b'v'; 1 << 20]);
    let mut response = world.response(&[], "a");
    let value = HeaderValue::from_maybe_shared(buffer.slice(..10)).unwrap();
    response.fields = [(HeaderName::from_static("x-v"), value)].into_iter().collect();
    world.put(&ask, response);
    assert!(buffer.is_unique(), "the stored response holds on to the buffer");
}

#[test]
fn what_fits_nowhere_is_said_to() {
    let world = World::new(&config(1 << 20));
    let ask = ask("/a", &[]);
    let mut response = world.response(&[], "");
    response.body = Bytes::from(vec![0; 1 << 20]);
    assert_eq!(world.put(&ask, response), Put::NoRoom);
    check(&world, &ask, Err(Missing::Key));
}
