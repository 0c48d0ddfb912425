//! Our own Avro: the binary form of the fixed records, without serde and without allocation.
//!
//! Bytes of a writer go through a [`plan::Plan`], compiled once per writer schema, into a record;
//! a record goes out field by field as our newest schema lays it out. Schemas themselves are
//! parsed and compared by `apache-avro`, which property tests also hold against this.
//!
//! Must never panic, recurse without bound or allocate more than a small multiple of the bytes in
//! hand, whatever those bytes are.

pub(crate) mod cursor;
pub(crate) mod plan;
pub(crate) mod put;
mod records;
pub(crate) mod slot;

#[cfg(test)]
mod oracle;

pub(crate) use cursor::{Cursor, Fault};
pub(crate) use plan::Plan;
pub(crate) use slot::{Record, Slot};
