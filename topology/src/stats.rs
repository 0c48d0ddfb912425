//! What a commit took and gave, per task: the numbers a ledger entry is made of.

use crate::Micros;

/// A counter of the topology, from `TopologyBuilder::counter`; counted per
/// commit (visible in [`CommitStats`]) and summed as a metric once committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Counter(pub(crate) u16);

/// One commit of one task. `inputs` are in source order, `outputs` in sink
/// order (counted sinks only), `counters` in declaration order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitStats {
    /// 1, 2, 3, … without a hole, per task (INV-12).
    pub commit: i64,
    /// System time of the commit: max(now, previous + 1).
    pub system_time: Micros,
    /// What was read.
    pub inputs: Vec<InputStats>,
    /// What was produced to counted sinks.
    pub outputs: Vec<OutputStats>,
    /// Values of the counters since the last commit, indexed by `Counter`.
    pub counters: Vec<i64>,
    /// No input position moved.
    pub heartbeat: bool,
    /// The last entry of a graceful stop.
    pub last: bool,
}

impl CommitStats {
    /// What `counter` has counted in this commit.
    pub fn counter(&self, counter: Counter) -> i64 {
        self.counters
            .get(usize::from(counter.0))
            .copied()
            .unwrap_or(0)
    }
}

/// One input topic within one commit. end − start = records + skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputStats {
    /// Topic name.
    pub topic: String,
    /// Position before, inclusive.
    pub start: i64,
    /// Position after, exclusive.
    pub end: i64,
    /// Records read in [start, end).
    pub records: i64,
    /// Wrapping sum of xxh3_128(key ‖ value) over those records.
    pub hash: u128,
    /// Records whose processing ended in `Failure::Reject`.
    pub rejected: i64,
    /// Offsets in [start, end) that hold no record (markers, compaction).
    pub skipped: i64,
}

/// One counted sink within one commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputStats {
    /// Topic name.
    pub topic: String,
    /// Records produced.
    pub count: i64,
    /// Wrapping sum of xxh3_128(key ‖ value) over them.
    pub hash: u128,
}
