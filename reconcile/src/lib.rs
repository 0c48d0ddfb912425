//! Audit of the ledger and reconciliation of the tables: pure comparisons, thin readers.
