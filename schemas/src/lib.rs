//! The nouns of FinLake: record types, their Avro schemas, exact decimals, record keys, topic
//! names, and the codec between bytes in Kafka and borrowed Rust structs.
//!
//! Bytes come in from Kafka (`Codec::decode_*`) and go out to Kafka (`Codec::encode_*`); the only
//! I/O in this crate is the schema registry client in [`registry`], which never runs on the path
//! of a record. This crate must never convert a price or a quantity to floating point on its own,
//! never panic on bytes that came from outside, and knows nothing about how records are processed.

pub mod codec;
pub mod decimal;
pub mod dlq;
pub mod hash;
pub mod keys;
pub mod records;
pub mod registry;
pub mod schema;
pub mod topics;

mod avro;

pub use codec::{BarsInput, Codec, DecodeError, EncodeError, Resolved, schema_id};
pub use decimal::{Dec8, Dec16, DecimalError};
pub use hash::{Sum128, hash128};
pub use records::{
    ActionKind, Assertion, Bar, BarContent, Basis, Break, BreakKind, BreakStatus, CorporateAction,
    InputRange, Kline, LedgerEntry, Metrics, Origin, OutputCount, Severity, Stage, Tick, VendorBar,
    WindowMetrics,
};
pub use registry::{RegistryConfig, RegistryError, Subject, Unreachable};
pub use schema::Kind;
