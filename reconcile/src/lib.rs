//! The proof: does the ledger add up, and do the tables hold what the ledger and the layer below
//! say?
//!
//! Everything but `run` and `shape` is pure: comparisons take facts that were handed in and give
//! [`Finding`]s. Must never: write a table, read a clock outside of `run`, decide by the order of
//! a hash table. Data flows: pinned tables, ledger entries and topics → `columns` → comparisons →
//! findings, which the caller prints and sends as breaks.

// So that those who await it do not compile it again (see finlake-lakehouse).
pub(crate) use async_recursion::async_recursion as boxed;

pub mod accuracy;
pub mod asserted;
pub mod bisect;
pub mod books;
pub mod bronze;
mod changes;
pub mod columns;
pub mod counts;
pub mod drift;
pub mod findings;
pub mod gold;
pub mod hashes;
pub mod ledger;
pub mod outputs;
pub mod rules;
pub mod run;
mod same;
pub mod scope;
pub mod shape;
pub mod silver;
pub mod topic;
pub mod trades;
pub mod versions;

pub use books::Books;
pub use changes::{Changes, changes, resolved};
pub use findings::{Finding, Findings, Layer, TOTAL};
pub use ledger::{LedgerAudit, TaskAudit};
pub use run::{Options, Pins, Records, Report, Stretch, Watch};
pub use scope::{Looked, Scope};
