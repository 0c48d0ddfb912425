//! The numbered invariants of the system, checked where they could break.
//!
//! A debug build panics at the spot; a release build counts the violation (see
//! `violations`), so that production never dies of a check, nor hides it.

use std::sync::atomic::{AtomicU64, Ordering};

/// An invariant; the number is its id everywhere: code, tests, documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Inv {
    /// A bar's content is a function of the set of accepted trades.
    BarIsFunctionOfTrades = 1,
    /// At most one row per (key, valid instant, system instant).
    OneRowPerInstant = 2,
    /// from < to on both axes.
    HalfOpen = 3,
    /// A closed row never changes.
    ClosedIsFinal = 4,
    /// An as-of query at or below the stable frontier never changes.
    StableFrontier = 5,
    /// Every sys_to is the sys_from of the next version, or a retraction.
    SysChain = 6,
    /// Rebuilding a table from its topic gives the same rows.
    Rebuild = 7,
    /// Every row traces to one (topic, partition, offset).
    Traceable = 8,
    /// Gold as of s depends only on Silver as of s.
    GoldFollowsSilver = 9,
    /// The store is never ahead of Kafka.
    StoreNotAhead = 10,
    /// records = accepted + duplicates + rejected.
    CountsBalance = 11,
    /// Commit numbers and input positions are contiguous.
    Contiguous = 12,
    /// Records of a commit equal its ledger entry in count and hash.
    LedgerMatches = 13,
}

const COUNT: usize = 14;
static VIOLATIONS: [AtomicU64; COUNT] = [const { AtomicU64::new(0) }; COUNT];

/// Check `holds`; otherwise panic (debug assertions) or count and log (release).
#[inline]
pub fn check(inv: Inv, holds: bool, what: impl FnOnce() -> String) {
    if !holds {
        violated(inv, &what());
    }
}

#[cold]
fn violated(inv: Inv, what: &str) {
    VIOLATIONS[inv as usize].fetch_add(1, Ordering::Relaxed);
    tracing::error!(invariant = inv as u8, "INV-{} violated: {what}", inv as u8);
    debug_assert!(false, "INV-{} ({inv:?}) violated: {what}", inv as u8);
}

/// Violations counted in this process, as (invariant id, count), non-zero only.
pub fn violations() -> Vec<(u8, u64)> {
    (1..COUNT)
        .map(|id| (id as u8, VIOLATIONS[id].load(Ordering::Relaxed)))
        .filter(|(_, n)| *n > 0)
        .collect()
}
