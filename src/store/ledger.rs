//! The purge ledger: a time-stamped Bloom filter of fixed size.

/// Whether purged responses are dead or to be validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PurgeKind {
    /// Dead.
    Hard,
    /// To be validated before the next use.
    Soft,
}
