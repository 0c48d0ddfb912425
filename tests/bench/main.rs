//! Benchmarks on Apache Kafka, as programs that anyone can repeat: `./test --bench`. Each prints its rows of
//! BENCHMARKS.md: what was measured, the target, the figure, and where the target is a ratio the limit measured
//! beside it in the same run.
//!
//! All tests below `benches` are benchmarks: they assert that nothing was lost, never a time. What is also a check
//! of correctness stands beside them and belongs to `./test --chaos`.
//!
//! Sizes are set by environment variables, for a quick look: BENCH_TRADES, BENCH_SECONDS.

#[path = "../harness/mod.rs"]
mod harness;
#[allow(dead_code)]
#[path = "../e2e/oracle.rs"]
mod oracle;
#[allow(dead_code)]
#[path = "../e2e/rows.rs"]
mod rows;

mod bare;
mod benches;
mod feed;
mod large;
mod live;
mod meter;
mod two_sinks;
mod world;
