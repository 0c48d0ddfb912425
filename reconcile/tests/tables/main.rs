//! Reconciliation of real tables, written by the lakehouse into a temp dir, clean and damaged.

mod accuracy;
mod folders;
mod injections;
mod market;
mod midnight;
mod outputs;
mod scope;
mod stamps;
mod topic;
