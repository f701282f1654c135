//! Buffers that hold their count of references: one allocation, where `Bytes` made of a `Vec` has two.

use bytes::Bytes;

/// What `Bytes` puts before the bytes of an array: its count of references.
const COUNT_BYTES: usize = 8;

/// What `Bytes` allocates beside a longer one: its count of references, where it begins and how long it is.
const SHARED_BYTES: usize = 24;
/// From here on the allocator deals in pages.
const LARGE: usize = 16 << 10;
const PAGE: usize = 4 << 10;

/// The lengths there are, each what is left of a size class of the allocator: an eighth on average more than is needed. Beyond
/// the last one, 32 bytes for the count matter little.
const ROOMS: [Room; 22] = [
    Room::of::<120>(),
    Room::of::<152>(),
    Room::of::<184>(),
    Room::of::<216>(),
    Room::of::<248>(),
    Room::of::<312>(),
    Room::of::<376>(),
    Room::of::<440>(),
    Room::of::<504>(),
    Room::of::<632>(),
    Room::of::<760>(),
    Room::of::<888>(),
    Room::of::<1016>(),
    Room::of::<1272>(),
    Room::of::<1528>(),
    Room::of::<1784>(),
    Room::of::<2040>(),
    Room::of::<2552>(),
    Room::of::<3064>(),
    Room::of::<3576>(),
    Room::of::<4088>(),
    Room::of::<5112>(),
];

struct Room {
    length: usize,
    copied: fn(&[u8]) -> Bytes,
}

/// The bytes in one allocation, where there is room for them. Each hit counts the references of its fields' values: among
/// many responses a count elsewhere is one more miss of the caches.
pub fn buffer(bytes: Vec<u8>) -> Bytes {
    match room(bytes.len()) {
        _ if bytes.is_empty() => Bytes::new(),
        Some(room) => (room.copied)(&bytes),
        None => Bytes::from(bytes),
    }
}

/// What [`buffer`] allocates for so many bytes, in bytes.
pub fn buffer_bytes(length: usize) -> u64 {
    match room(length) {
        _ if length == 0 => 0,
        Some(room) => size_class(room.length + COUNT_BYTES),
        None => shared_bytes(length),
    }
}

/// What so many bytes take whose count of references is beside them.
pub const fn shared_bytes(length: usize) -> u64 {
    size_class(length) + size_class(SHARED_BYTES)
}

/// What the allocator takes for so many bytes (jemalloc's "size classes"): up to 128 in steps of 16, then in four steps for each
/// power of two, from 16 KiB on in pages, and one more by which it moves the beginning.
pub const fn size_class(bytes: usize) -> u64 {
    let step = match bytes {
        0 => return 0,
        1..=128 => 16,
        LARGE.. => PAGE,
        _ => bytes.next_power_of_two() / 8,
    };
    let class = bytes.next_multiple_of(step);
    (if class < LARGE { class } else { class + PAGE }) as u64
}

fn room(length: usize) -> Option<&'static Room> {
    ROOMS.iter().find(|room| length <= room.length)
}

impl Room {
    const fn of<const LENGTH: usize>() -> Self {
        Self { length: LENGTH, copied: copied::<LENGTH> }
    }
}

fn copied<const LENGTH: usize>(bytes: &[u8]) -> Bytes {
    let mut room = [0; LENGTH];
    room[..bytes.len()].copy_from_slice(bytes);
    let mut copied = Bytes::from_owner(room);
    copied.truncate(bytes.len());
    copied
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_of_any_length_holds_what_it_was_made_of() {
        for length in (0..6000).chain([1 << 20]) {
            let bytes: Vec<u8> = (0_u8..=255).cycle().take(length).collect();
            let mut buffer = buffer(bytes.clone());
            let first = buffer.split_to(length / 2);
            assert_eq!([&first[..], &buffer[..]].concat(), bytes);
        }
    }

    #[test]
    fn the_least_room_that_suffices_is_taken() {
        assert!(ROOMS.is_sorted_by(|one, next| one.length < next.length));
        assert!(ROOMS.iter().all(|room| size_class(room.length + COUNT_BYTES) == (room.length + COUNT_BYTES) as u64));
        let check = |length, expected| assert_eq!(buffer_bytes(length), expected, "{length}");
        check(0, 0);
        check(1, 128);
        check(120, 128);
        check(121, 160);
        check(5112, 5120);
        check(5113, 5120 + 32);
    }

    #[test]
    fn size_classes_are_those_of_the_allocator() {
        let check = |bytes, expected| assert_eq!(size_class(bytes), expected, "{bytes}");
        check(0, 0);
        check(1, 16);
        check(100, 112);
        check(128, 128);
        check(129, 160);
        check(1025, 1280);
        check(14 << 10, 14 << 10);
        check((14 << 10) + 1, 20 << 10);
        check(1_000_000, 245 * 4096 + 4096);
    }
}
