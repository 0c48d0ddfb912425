//! The proof: does the ledger add up, and do the tables hold what the ledger and the layer below
//! say?
//!
//! Pure comparisons (`findings`, `ledger`, `counts`, `bisect`, `versions`, `trades`, `silver`,
//! `gold`, `bronze`, `rules`, `drift`) take facts that were handed in and give findings; only
//! `columns` and `run` know Arrow and the lakehouse. Must never: write a table, read a clock,
//! decide by the order of a hash table. Data flows: pinned tables, ledger entries and topics →
//! columns → comparison → [`Finding`]s, which the caller prints and sends as breaks.

pub mod bisect;
pub mod bronze;
pub mod counts;
pub mod drift;
pub mod findings;
pub mod gold;
pub mod ledger;
pub mod rules;
pub mod silver;
pub mod trades;
pub mod versions;

pub use findings::{Finding, Findings, Layer};
pub use ledger::{LedgerAudit, TaskAudit};
