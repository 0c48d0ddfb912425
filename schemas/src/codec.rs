//! Kafka bytes to records and back: Confluent wire format (a zero byte, the schema id as four
//! bytes big-endian, the Avro datum) and decoding by the writer's schema.
//!
//! Decoding takes no lock, allocates nothing for a trade, and never panics, whatever the bytes.
//! The only call that talks to the registry is [`Codec::resolve`], which a thread makes for ids it
//! does not know before it hands a batch on.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustc_hash::FxHashSet;
use thiserror::Error;

use crate::avro::{Fault, Plan, Record, Slot as _};
use crate::records::{
    Assertion, Bar, Break, CorporateAction, Kline, LedgerEntry, Metrics, Tick, VendorBar,
};
use crate::registry::{Fetched, Registry, RegistryConfig, RegistryError, Subject, Unreachable};
use crate::schema::{KINDS, Kind, Unreadable, Writer};

#[cfg(test)]
mod tests;

/// Bytes before the datum.
pub const HEADER: usize = 5;

/// Unknown ids remembered; a flood of invented ids costs registry calls beyond this, not memory.
const MAX_UNKNOWN: usize = 65_536;

/// The schema id of a Confluent-framed value; `None` if it is not one.
#[inline]
pub fn schema_id(value: &[u8]) -> Option<u32> {
    match value {
        [0, a, b, c, d, ..] => Some(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

/// Why a value could not be decoded. [`DecodeError::class`] is its dead-letter class.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Not a zero byte and four bytes of schema id.
    #[error("not in the registry's wire format; produce with an Avro serializer that uses it")]
    NotFramed,
    /// No schema of that id is loaded; call `resolve` first.
    #[error("schema id {id} is not known to the registry")]
    UnknownSchema { id: u32 },
    /// The schema exists and is not one that this topic can hold.
    #[error("schema id {id} cannot be read here: {why}")]
    WrongSchema { id: u32, why: String },
    /// Not a datum of its schema: truncated, trailing bytes, bad text, …
    #[error("not a datum of schema id {id}: {why}")]
    Malformed { id: u32, why: String },
    /// A decimal beyond 38 digits.
    #[error("{field} has more than 38 digits")]
    Overflow { field: &'static str },
}

impl DecodeError {
    /// Dead-letter class, see [`crate::dlq`].
    pub fn class(&self) -> &'static str {
        match self {
            DecodeError::NotFramed | DecodeError::Malformed { .. } => crate::dlq::MALFORMED,
            DecodeError::UnknownSchema { .. } | DecodeError::WrongSchema { .. } => {
                crate::dlq::UNKNOWN_SCHEMA
            }
            DecodeError::Overflow { .. } => crate::dlq::OVERFLOW,
        }
    }
}

/// Why a record could not be encoded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// The codec was connected without a subject for this kind.
    #[error(
        "no schema of {kind:?} version {version} is registered; connect the codec with its subject"
    )]
    NotRegistered { kind: Kind, version: u8 },
    /// The value does not fit its schema.
    #[error("cannot encode: {0}")]
    Value(String),
}

/// What is now known of a schema id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolved {
    /// Loaded: decoding will use it, or say why it cannot.
    Known,
    /// The registry does not have it: records with it are poison.
    Unknown,
}

/// The writer schemas, looked up by id without a lock: slots are filled once, in order, and never
/// change. A topic has a handful of schemas, the common ones first, so a scan beats hashing.
#[derive(Default)]
struct Slots {
    slots: [OnceLock<Slot>; 32],
    more: OnceLock<Box<Slots>>,
}

struct Slot {
    id: u32,
    writer: Result<Writer, Unreadable>,
}

impl Slots {
    #[inline]
    fn find(&self, id: u32) -> Option<&Slot> {
        for slot in &self.slots {
            match slot.get() {
                Some(slot) if slot.id == id => return Some(slot),
                Some(_) => {}
                None => return None,
            }
        }
        self.more.get()?.find(id)
    }

    /// Only under the codec's growth lock; an id that stands already is left as it is.
    fn insert(&self, slot: Slot) {
        let mut slot = slot;
        for free in &self.slots {
            match free.set(slot) {
                Ok(()) => return,
                Err(back) => slot = back,
            }
        }
        self.more.get_or_init(Box::default).insert(slot);
    }
}

/// Decodes by the writer's schema and encodes with ours. Shared by all threads.
pub struct Codec {
    writers: Slots,
    growth: Mutex<FxHashSet<u32>>,
    /// Id of each of our own schemas, by kind and version.
    own_ids: BTreeMap<(Kind, u8), u32>,
    tick_ids: [Option<u32>; 2],
    /// Id of each kind's newest schema, by kind.
    newest: [Option<u32>; KINDS.len()],
    registry: Option<Registry>,
}

/// A record of `market.bars`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarsInput<'a> {
    Vendor(VendorBar<'a>),
    Action(CorporateAction<'a>),
    Assertion(Assertion<'a>),
}

/// The number of fields of a trade of version 1 and of version 2.
const TICK_V1: usize = 6;
const TICK_V2: usize = 11;

impl Codec {
    /// A codec without a registry: our own schemas under fixed ids (tick v1 = 1, v2 = 2, bar = 3,
    /// metrics = 4, ledger = 5, vendor bar = 6, corporate action = 7, assertion = 8, break = 9, kline = 10),
    /// every other id unknown. For tests and benchmarks.
    pub fn offline() -> Codec {
        Codec::offline_with(&[])
    }

    /// As [`Codec::offline`], with further writer schemas under ids of the caller's choice.
    pub fn offline_with(others: &[(u32, &str)]) -> Codec {
        let mut ids = BTreeMap::new();
        let mut next = 0;
        for kind in KINDS {
            for version in 1..=kind.versions().len() {
                next += 1;
                ids.insert((kind, version as u8), next);
            }
        }
        let codec = Codec::new(ids, None);
        for (id, json) in others {
            codec.learn(*id, json);
        }
        codec
    }

    /// Asks the registry whether our schemas are compatible with what it has, registers those it
    /// lacks, and loads all of them. Blocks the calling thread; from asynchronous code use
    /// [`Codec::connect_async`].
    ///
    /// # Errors
    /// See [`RegistryError`]; an incompatible schema stops here, before anything has started.
    pub fn connect(config: RegistryConfig, subjects: &[Subject]) -> Result<Codec, RegistryError> {
        let (registry, ids) = Registry::connect(config, subjects)?;
        Ok(Codec::new(ids, Some(registry)))
    }

    /// A codec for looking at what is there: nothing is checked for compatibility, nothing is
    /// registered, and of our own schemas only those that are registered can be written. With it,
    /// the newest registered schema of each subject that has one. Blocks.
    ///
    /// # Errors
    /// [`RegistryError::Unreachable`], [`RegistryError::Config`].
    pub fn connect_reading(
        config: RegistryConfig,
        subjects: &[Subject],
    ) -> Result<(Codec, BTreeMap<String, String>), RegistryError> {
        let (registry, ids, newest) = Registry::survey(config, subjects)?;
        Ok((Codec::new(ids, Some(registry)), newest))
    }

    /// [`Codec::connect`] for asynchronous callers.
    pub async fn connect_async(
        config: RegistryConfig,
        subjects: &[Subject],
    ) -> Result<Codec, RegistryError> {
        let (registry, ids) = Registry::connect_async(config, subjects).await?;
        Ok(Codec::new(ids, Some(registry)))
    }

    fn new(own_ids: BTreeMap<(Kind, u8), u32>, registry: Option<Registry>) -> Codec {
        let codec = Codec {
            writers: Slots::default(),
            growth: Mutex::default(),
            tick_ids: [1, 2].map(|version| own_ids.get(&(Kind::Tick, version)).copied()),
            newest: KINDS.map(|kind| own_ids.get(&(kind, kind.versions().len() as u8)).copied()),
            registry,
            own_ids: own_ids.clone(),
        };
        // Newest tick first: it is what a lookup meets nearly always.
        let mut order: Vec<_> = own_ids.into_iter().collect();
        order.sort_by_key(|((kind, version), _)| (*kind, std::cmp::Reverse(*version)));
        for ((kind, version), id) in order {
            codec.learn(id, kind.versions()[usize::from(version) - 1]);
        }
        codec
    }

    fn learn(&self, id: u32, json: &str) {
        let writer = Writer::new(id, json);
        let mut unknown = self.growth.lock().unwrap_or_else(PoisonError::into_inner);
        unknown.remove(&id);
        if self.writers.find(id).is_none() {
            self.writers.insert(Slot { id, writer });
        }
    }

    /// The registry's id of our own schema.
    pub fn own_id(&self, kind: Kind, version: u8) -> Option<u32> {
        self.own_ids.get(&(kind, version)).copied()
    }

    /// Whether decoding a record with this schema id needs no further question to the registry:
    /// the schema is loaded, or is known not to exist. Takes no lock for a loaded schema.
    #[inline]
    pub fn knows(&self, id: u32) -> bool {
        self.writers.find(id).is_some() || self.known_unknown(id)
    }

    #[cold]
    fn known_unknown(&self, id: u32) -> bool {
        self.growth
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&id)
    }

    /// Asks the registry for a schema id, unless it was asked before. Blocks.
    ///
    /// # Errors
    /// [`Unreachable`] if the registry gave no answer that settles it: wait and ask again, and
    /// never dead-letter the record for it.
    pub fn resolve(&self, id: u32) -> Result<Resolved, Unreachable> {
        if self.writers.find(id).is_some() {
            return Ok(Resolved::Known);
        }
        if self.known_unknown(id) {
            return Ok(Resolved::Unknown);
        }
        let fetched = match &self.registry {
            Some(registry) => registry.fetch(id)?,
            None => Fetched::Unknown,
        };
        match fetched {
            Fetched::Schema(json) => {
                self.learn(id, &json);
                Ok(Resolved::Known)
            }
            Fetched::Unknown => {
                let mut unknown = self.growth.lock().unwrap_or_else(PoisonError::into_inner);
                if unknown.len() >= MAX_UNKNOWN {
                    unknown.clear();
                }
                unknown.insert(id);
                Ok(Resolved::Unknown)
            }
        }
    }

    /// Decodes a trade of any readable schema, v1 and v2 mixed as they come.
    ///
    /// # Errors
    /// See [`DecodeError`]; the record belongs in the dead-letter topic.
    #[inline]
    pub fn decode_tick<'a>(&self, value: &'a [u8]) -> Result<Tick<'a>, DecodeError> {
        let (writer, datum) = self.writer(value, Kind::Tick)?;
        match &writer.plan {
            // A constant number of fields leaves one straight line of code.
            Plan::Own(TICK_V1) => Plan::Own(TICK_V1).decode(datum, writer.id),
            Plan::Own(TICK_V2) => Plan::Own(TICK_V2).decode(datum, writer.id),
            plan => decode_slowly(plan, datum, writer.id),
        }
    }

    /// Decodes a bar.
    pub fn decode_bar<'a>(&self, value: &'a [u8]) -> Result<Bar<'a>, DecodeError> {
        self.decode(value, Kind::Bar)
    }

    /// Decodes a metrics record.
    pub fn decode_metrics<'a>(&self, value: &'a [u8]) -> Result<Metrics<'a>, DecodeError> {
        self.decode(value, Kind::Metrics)
    }

    /// Decodes a ledger entry.
    pub fn decode_ledger(&self, value: &[u8]) -> Result<LedgerEntry, DecodeError> {
        self.decode(value, Kind::Ledger)
    }

    /// Decodes a break.
    pub fn decode_break(&self, value: &[u8]) -> Result<Break, DecodeError> {
        self.decode(value, Kind::Break)
    }

    /// Decodes a bar of the exchange's own.
    pub fn decode_kline<'a>(&self, value: &'a [u8]) -> Result<Kline<'a>, DecodeError> {
        self.decode(value, Kind::Kline)
    }

    /// Decodes a correction.
    pub fn decode_assertion<'a>(&self, value: &'a [u8]) -> Result<Assertion<'a>, DecodeError> {
        self.decode(value, Kind::Assertion)
    }

    /// Decodes whatever `market.bars` holds; the schema id says which it is.
    pub fn decode_bars_input<'a>(&self, value: &'a [u8]) -> Result<BarsInput<'a>, DecodeError> {
        let id = schema_id(value).ok_or(DecodeError::NotFramed)?;
        let kind = match self.writers.find(id).map(|slot| &slot.writer) {
            Some(Ok(writer)) => writer.kind,
            // `decode` says which of the two it is.
            None | Some(Err(_)) => Kind::Assertion,
        };
        match kind {
            Kind::VendorBar => self.decode(value, kind).map(BarsInput::Vendor),
            Kind::Action => self.decode(value, kind).map(BarsInput::Action),
            Kind::Assertion => self.decode(value, kind).map(BarsInput::Assertion),
            other => Err(DecodeError::WrongSchema {
                id,
                why: format!(
                    "it describes a {other:?}; this topic takes vendor bars, corporate actions \
                     and assertions"
                ),
            }),
        }
    }

    fn decode<'a, T: Record<'a>>(&self, value: &'a [u8], kind: Kind) -> Result<T, DecodeError> {
        let (writer, datum) = self.writer(value, kind)?;
        writer.plan.decode(datum, writer.id)
    }

    #[inline]
    fn writer<'a>(&self, value: &'a [u8], kind: Kind) -> Result<(&Writer, &'a [u8]), DecodeError> {
        let id = schema_id(value).ok_or(DecodeError::NotFramed)?;
        let slot = self
            .writers
            .find(id)
            .ok_or(DecodeError::UnknownSchema { id })?;
        match &slot.writer {
            Ok(writer) if writer.kind == kind => Ok((writer, &value[HEADER..])),
            Ok(writer) => Err(DecodeError::WrongSchema {
                id,
                why: format!("it describes a {:?}, not a {kind:?}", writer.kind),
            }),
            Err(Unreadable(why)) => Err(DecodeError::WrongSchema {
                id,
                why: why.clone(),
            }),
        }
    }

    /// Appends a framed trade in schema version 1 (the options are left out) or 2.
    ///
    /// # Errors
    /// See [`EncodeError`]; nothing is appended then.
    #[inline]
    pub fn encode_tick(
        &self,
        tick: &Tick<'_>,
        version: u8,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let id = match version {
            1 => self.tick_ids[0],
            2 => self.tick_ids[1],
            _ => None,
        };
        let id = id.ok_or(EncodeError::NotRegistered {
            kind: Kind::Tick,
            version,
        })?;
        if version == 1 {
            return put(id, out, |out| {
                tick.source.put(out)?;
                tick.symbol.put(out)?;
                tick.trade_id.put(out)?;
                tick.price.put(out).map_err(|fault| fault.at("price"))?;
                tick.quantity
                    .put(out)
                    .map_err(|fault| fault.at("quantity"))?;
                tick.trade_time.put(out)
            });
        }
        put(id, out, |out| tick.put(out))
    }

    /// Appends a framed bar.
    pub fn encode_bar(&self, bar: &Bar<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.encode(bar, Kind::Bar, out)
    }

    /// Appends a framed metrics record.
    pub fn encode_metrics(
        &self,
        metrics: &Metrics<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        self.encode(metrics, Kind::Metrics, out)
    }

    /// Appends a framed ledger entry.
    pub fn encode_ledger(&self, entry: &LedgerEntry, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.encode(entry, Kind::Ledger, out)
    }

    /// Appends a framed vendor bar.
    pub fn encode_vendor_bar(
        &self,
        bar: &VendorBar<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        self.encode(bar, Kind::VendorBar, out)
    }

    /// Appends a framed corporate action.
    pub fn encode_action(
        &self,
        action: &CorporateAction<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        self.encode(action, Kind::Action, out)
    }

    /// Appends a framed correction.
    pub fn encode_assertion(
        &self,
        assertion: &Assertion<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        self.encode(assertion, Kind::Assertion, out)
    }

    /// Appends a framed kline.
    pub fn encode_kline(&self, kline: &Kline<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.encode(kline, Kind::Kline, out)
    }

    /// Appends a framed break.
    pub fn encode_break(&self, found: &Break, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.encode(found, Kind::Break, out)
    }

    #[inline]
    fn encode<'a, T: Record<'a>>(
        &self,
        value: &T,
        kind: Kind,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let id = self.newest[kind as usize].ok_or(EncodeError::NotRegistered {
            kind,
            version: kind.versions().len() as u8,
        })?;
        put(id, out, |out| value.put(out))
    }
}

/// Out of line, so that the common ways stay small.
#[cold]
#[inline(never)]
fn decode_slowly<'a, T: Record<'a>>(
    plan: &Plan,
    datum: &'a [u8],
    id: u32,
) -> Result<T, DecodeError> {
    plan.decode(datum, id)
}

/// Appends header and datum, or nothing.
#[inline(always)]
fn put(
    id: u32,
    out: &mut Vec<u8>,
    datum: impl FnOnce(&mut Vec<u8>) -> Result<(), Fault>,
) -> Result<(), EncodeError> {
    let start = out.len();
    // A trade never grows the buffer again, a bar hardly ever.
    out.reserve(256);
    put_header(id, out);
    match datum(out) {
        Ok(()) => Ok(()),
        Err(fault) => {
            out.truncate(start);
            Err(EncodeError::Value(match fault {
                Fault::Overflow(field) => format!("{field} exceeds 38 digits"),
                Fault::Bad(why) => why.to_owned(),
            }))
        }
    }
}

#[inline]
fn put_header(id: u32, out: &mut Vec<u8>) {
    let [a, b, c, d] = id.to_be_bytes();
    out.extend_from_slice(&[0, a, b, c, d]);
}
