//! Headers and error classes of the dead-letter topic. The value of a dead letter is the original
//! bytes; everything said about it stands in headers, all text.

/// One of the classes below.
pub const ERROR_CLASS: &str = "finlake.error.class";
/// What was wrong, for a person.
pub const ERROR_MESSAGE: &str = "finlake.error.message";
/// Topic the record was read from.
pub const TOPIC: &str = "finlake.topic";
/// Partition the record was read from, decimal.
pub const PARTITION: &str = "finlake.partition";
/// Offset the record was read from, decimal.
pub const OFFSET: &str = "finlake.offset";
/// Application that rejected it.
pub const APP_ID: &str = "finlake.app.id";

/// Undecodable or truncated.
pub const MALFORMED: &str = "malformed";
/// The registry does not know the schema id, or the schema is not one of this topic's.
pub const UNKNOWN_SCHEMA: &str = "unknown_schema";
/// The record's key is not `source:symbol`.
pub const BAD_KEY: &str = "bad_key";
/// Decodable, but no possible trade.
pub const INVALID: &str = "invalid";
/// A decimal of more than 38 digits, or a sum or product that would be.
pub const OVERFLOW: &str = "overflow";
/// Traded too far after the record's Kafka timestamp.
pub const FUTURE: &str = "future";
/// Prefix of `too_late:<interval>`: accepted for other intervals.
pub const TOO_LATE: &str = "too_late";
/// An assertion whose expected version is no longer the newest.
pub const STALE_ASSERTION: &str = "stale_assertion";

/// Sound, but of a sort that this version does not process yet.
pub const UNSUPPORTED: &str = "unsupported";

/// The class of a trade that came too late for one interval, e.g. `too_late:1m`.
pub fn too_late(interval: &str) -> String {
    format!("{TOO_LATE}:{interval}")
}
