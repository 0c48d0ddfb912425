//! Reconciliation of real tables, written by the lakehouse into a temp dir, clean and damaged.

mod injections;
mod market;
