//! Replay: the topology once more, with fresh stores, over input that was processed before.
//!
//! ```text
//! topics (ledger, ticks, bars) ─┐
//!                               ├─► rerun: the production task, stores in memory ─► rows ─┐
//! bronze.market_ticks ──────────┘                                                        ├─► compare ─► differences
//! silver, gold at pinned snapshots ──────────────────────────────────────────────────────┘        └─► apply: assertions
//! ```
//!
//! What comes out may be kept, too: in a shadow, tables of their own beside the live ones.
//!
//! Whole replays follow the ledger: the same input ranges, the same system times, so that what comes out is what came
//! out then. Ranges are read from Bronze by trade time, widened to whole days (and to the closes that Gold's windows
//! need). `verify` rebuilds the tables from their topics and compares every row of every version.
//!
//! A range has trades only: bars that somebody corrected are set apart (`corrected`).
//!
//! Must never write a live table (a shadow's tables bear a mark) or move a group's offsets: differences go through
//! `market.bars`, so that the live task alone gives out revisions and system times.

pub mod apply;
mod bronze;
mod compare;
mod corrected;
mod keys;
mod live;
mod range;
mod rerun;
pub mod shadow;
mod topics;
pub mod verify;

pub use compare::{Content, Difference, Row, Tally};
pub use keys::Wanted;
pub use range::{Asked, From, range};
pub use rerun::{Rerun, Whole, whole};
