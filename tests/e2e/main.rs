//! End to end: the program as users run it, on recorded and generated markets, on the embedded broker and on Apache
//! Kafka, checked against published klines and against an independent batch recomputation.

#[path = "../harness/mod.rs"]
mod harness;

mod asof;
mod breaks;
mod capture;
mod clean;
mod config_change;
mod corrections;
mod exact;
mod faults;
mod java;
mod oracle;
mod planted;
mod readers;
mod reconcile;
mod replay;
mod rows;
mod shadow;
mod standby;
mod turns;
