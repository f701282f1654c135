//! The seal of a record: a checksum, or with a key a proof that who wrote the record has the key.

use subtle::ConstantTimeEq;

/// The length of a seal in bytes.
pub(super) const LENGTH: usize = 16;
/// What the key is for, so that the same secret elsewhere is another key.
const CONTEXT: &str = "aside 2026 seal of records in redis";

/// Puts seals on records and checks them.
#[derive(Clone)]
pub struct Seal(blake3::Hasher);

impl Seal {
    /// A checksum: against accidents.
    pub fn plain() -> Self {
        Self(blake3::Hasher::new())
    }

    /// A proof of having the secret: against who can write to Redis and has it not.
    pub fn keyed(secret: &str) -> Self {
        Self(blake3::Hasher::new_keyed(&blake3::derive_key(CONTEXT, secret.as_bytes())))
    }

    /// The seal of a record.
    pub(super) fn of(&self, head: &[u8], payload: &[u8]) -> [u8; LENGTH] {
        let mut hasher = self.0.clone();
        hasher.update(head).update(payload);
        let mut seal = [0; LENGTH];
        hasher.finalize_xof().fill(&mut seal);
        seal
    }

    /// Whether it is on a record.
    pub(super) fn is_on(&self, found: &[u8], head: &[u8], payload: &[u8]) -> bool {
        self.of(head, payload).ct_eq(found).into()
    }
}
