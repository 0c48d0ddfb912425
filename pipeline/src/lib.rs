//! FinLake's topology: what happens to a trade between `market.ticks` and the tables' topics.
//!
//! ```text
//! market.ticks ─► decode ─► dedup ─┬─► ohlcv ─► gold ─► ledger ─► finlake.ledger
//! market.bars ──► correct ─────────┘     │        └─► market.metrics
//!                                        └─► market.ohlcv, market.ohlcv.live
//! decode, correct, ohlcv ─► market.ticks.dlq (rejected)
//! ```
//!
//! Every processor is synchronous and keeps what it must not lose in its stores; what it holds in
//! memory beyond them is a cache that `reset` drops. Nothing here reads a clock, does I/O, or lets
//! the order of arrival, of a hash table or of commits reach the content of a bar [INV-1].

mod config;
mod correct;
mod decode;
mod dedup;
mod gold;
mod ledger;
mod ohlcv;
mod table;

use std::sync::Arc;

use finlake_market::{Correction, Trade};
use finlake_schemas::{Bar, Codec, topics};
use finlake_topology::{Domain, Record, SinkOptions, TopicIdx, Topology, TopologyBuilder};

use config::Plan;
pub use config::{Emit, Faults, PipelineConfig, PipelineError};
pub use table::Probe;

/// The inputs, in the order of their declaration.
pub(crate) const TICKS: TopicIdx = TopicIdx(0);
pub(crate) const BARS: TopicIdx = TopicIdx(1);

/// The message family of the topology.
pub enum Market {}

impl Domain for Market {
    type Msg<'a> = Msg<'a>;

    fn source(_: Record<'_>) -> Msg<'_> {
        Msg::Raw
    }
}

/// What the nodes hand on, small enough for two registers: it passes through six calls per trade.
/// A node passes on what it does not know.
#[derive(Clone, Copy)]
pub enum Msg<'a> {
    /// The input record in hand, see `Context::record`.
    Raw,
    /// A valid trade; below `dedup` also one that was not seen before.
    Trade(&'a Observed<'a>),
    /// A sound correction of a bar.
    Correction(&'a Corrected<'a>),
    /// A bar version that this commit sends to Silver.
    Version(&'a Bar<'a>),
    /// Writer schemas met since the last commit, ascending.
    Schemas(&'a Vec<u32>),
    /// Stream time of a source (µs) at this commit, in order of source.
    StreamTime(&'a (&'a str, i64)),
}

/// A validated trade.
pub struct Observed<'a> {
    pub trade: Trade,
    /// The record's key, which is `source:symbol` as text.
    pub key: Probe<'a>,
    /// Length of the source in it.
    pub source_len: usize,
}

/// A correction with the symbol it is for.
pub struct Corrected<'a> {
    pub correction: Correction,
    /// The record's key, which is `source:symbol` as text.
    pub key: Probe<'a>,
    /// Length of the source in it.
    pub source_len: usize,
}

/// The whole topology.
pub fn build(
    config: &PipelineConfig,
    codec: Arc<Codec>,
) -> Result<Topology<Market>, PipelineError> {
    let plan = Arc::new(Plan::new(config, codec)?);
    let mut t = TopologyBuilder::<Market>::new();

    let ticks = t.source(topics::TICKS);
    let bars = t.source(topics::BARS);
    t.dlq(topics::DLQ);
    let silver = t.sink(topics::OHLCV, SinkOptions::counted());
    let metrics = t.sink(topics::METRICS, SinkOptions::counted());
    let live = t.sink(topics::LIVE, SinkOptions::plain());
    let entries = t.sink(topics::LEDGER, SinkOptions::plain());

    let counts = ledger::Counts {
        accepted: t.counter("accepted", "Trades accepted"),
        duplicates: t.counter("duplicates", "Trades whose id was seen before"),
        corrections: t.counter("corrections", "Closed bars emitted again"),
        asserted: t.counter(
            "asserted",
            "Corrections from market.bars that changed a bar",
        ),
        held: t.counter("held", "Corrections from market.bars that held already"),
        bars_retracted: t.counter("bars_retracted", "Bar versions that take a row back"),
        metrics_retracted: t.counter("metrics_retracted", "Metrics versions that take a row back"),
    };

    let node = t.process("decode", &[ticks]);
    let trades = node.with({
        let plan = plan.clone();
        move || decode::Decode::new(plan.clone())
    });
    // What changes with every commit shares a store: each changelog is one more partition of the
    // transaction, which the broker enlists, verifies and marks on its own.
    let node = t.process("dedup", &[trades]).stores(&["bars"]);
    let fresh = node.with(move || dedup::Dedup::new(counts));
    let node = t.process("correct", &[bars]);
    let corrections = node.with({
        let plan = plan.clone();
        move || correct::Correct::new(plan.clone())
    });
    let node = t.process("ohlcv", &[fresh, corrections]).stores(&["bars"]);
    let versions = node.sinks(&[silver, live]).with({
        let plan = plan.clone();
        move || ohlcv::Bars::new(plan.clone(), counts, silver, live)
    });
    let node = t.process("gold", &[versions]).stores(&["days"]);
    let days = node.sinks(&[metrics]).with({
        let plan = plan.clone();
        move || gold::Gold::new(plan.clone(), counts, metrics)
    });
    let node = t.process("ledger", &[days]).stores(&["bars"]);
    node.sinks(&[entries])
        .with(move || ledger::Ledger::new(plan.clone(), counts, entries));

    Ok(t.build()?)
}
