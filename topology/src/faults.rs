//! Faults that tests plant into a task, to see that somebody notices. Handed in through
//! [`TaskConfig`](crate::task::TaskConfig) by code alone: no setting and no command reaches them.

/// What is to go wrong; nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The store takes a commit's batch before the Kafka transaction is even begun: whatever
    /// becomes of that, the store is ahead (breaks INV-10).
    pub store_before_transaction: bool,
    /// What processors wrote since the last commit stays in the store when the transaction is
    /// aborted, while the input is read again.
    pub overlay_after_abort: bool,
    /// The input range of this commit is counted into the next one's ledger entry once more
    /// (breaks INV-12).
    pub range_twice: Option<i64>,
}
