//! The seal of a record: a checksum, or with a key a proof that who wrote the record has the key.

use subtle::ConstantTimeEq;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// The length of a seal in bytes.
pub(super) const LENGTH: usize = 16;
/// The length of what comes before it.
pub(super) const HEAD: usize = 3;
/// What the key is for, so that the same secret elsewhere is another key.
const CONTEXT: &str = "aside 2026 seal of records in redis";

/// Puts seals on records and checks them.
#[derive(Clone)]
pub struct Seal(Kind);

#[derive(Clone)]
enum Kind {
    /// XXH3: it takes some 500 instructions for a record of 1 KiB, where blake3 takes 11,600, a sixth of a whole hit.
    Checksum,
    /// blake3 with this key.
    Proof(Box<[u8; blake3::KEY_LEN]>),
}

impl Seal {
    /// A checksum: against accidents.
    pub const fn plain() -> Self {
        Self(Kind::Checksum)
    }

    /// A proof of having the secret: against who can write to Redis and has it not.
    pub fn keyed(secret: &str) -> Self {
        Self(Kind::Proof(Box::new(blake3::derive_key(CONTEXT, secret.as_bytes()))))
    }

    /// The seal of a record.
    pub(super) fn of(&self, head: [u8; HEAD], payload: &[u8]) -> [u8; LENGTH] {
        match &self.0 {
            Kind::Checksum => {
                let [magic, version, kind] = head;
                let seed = u32::from_le_bytes([magic, version, kind, 0]);
                xxh3_128_with_seed(payload, seed.into()).to_le_bytes()
            }
            Kind::Proof(key) => {
                let mut seal = [0; LENGTH];
                blake3::Hasher::new_keyed(key).update(&head).update(payload).finalize_xof().fill(&mut seal);
                seal
            }
        }
    }

    /// Whether it is on a record.
    pub(super) fn is_on(&self, found: &[u8], head: [u8; HEAD], payload: &[u8]) -> bool {
        self.of(head, payload).ct_eq(found).into()
    }
}
