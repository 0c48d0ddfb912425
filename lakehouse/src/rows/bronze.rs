//! Bronze rows: one per input record, text dictionary-encoded, columns filled directly.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, BooleanArray, BooleanBuilder, Decimal128Array, DictionaryArray,
    Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{Field, Int32Type, Schema};
use finlake_schemas::Tick;

use crate::error::Result;
use crate::tables::{ColType, OPEN_END, TableDef, instant_type};

/// Where a Bronze record stands.
#[derive(Debug, Clone, Copy)]
pub struct RecordAt<'a> {
    /// Kafka offset.
    pub offset: i64,
    /// Kafka timestamp, µs.
    pub timestamp: i64,
    /// Record key as received.
    pub key: Option<&'a [u8]>,
    /// Schema id of the wire format, if the value has one.
    pub schema_id: Option<u32>,
    /// Number of the ledger entry whose input range holds the record.
    pub commit: i64,
    /// System time of that entry (µs).
    pub sys_from: i64,
}

/// Text with few distinct values, as dictionary keys.
#[derive(Debug, Default)]
struct Texts {
    keys: Vec<Option<i32>>,
    values: Vec<String>,
    known: HashMap<String, i32>,
}

impl Texts {
    fn id(&mut self, text: &str) -> i32 {
        if let Some(Some(last)) = self.keys.last()
            && self.values[*last as usize] == text
        {
            return *last;
        }
        if let Some(id) = self.known.get(text) {
            return *id;
        }
        let id = self.values.len() as i32;
        self.values.push(text.to_string());
        self.known.insert(text.to_string(), id);
        id
    }

    fn push(&mut self, text: Option<&str>) {
        let id = text.map(|t| self.id(t));
        self.keys.push(id);
    }

    fn finish(&self) -> Result<ArrayRef> {
        let keys: Int32Array = self.keys.iter().copied().collect();
        let values = Arc::new(StringArray::from_iter_values(&self.values));
        Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(
            keys, values,
        )?))
    }
}

/// A number column with its nulls.
#[derive(Debug, Default)]
struct Numbers<T> {
    values: Vec<T>,
    valid: Vec<bool>,
}

impl<T: Default + Copy> Numbers<T> {
    #[inline]
    fn push(&mut self, v: Option<T>) {
        self.values.push(v.unwrap_or_default());
        self.valid.push(v.is_some());
    }

    fn finish(&mut self) -> (Vec<T>, Option<NullBuffer>) {
        let valid = std::mem::take(&mut self.valid);
        let nulls = valid.iter().any(|v| !v).then(|| NullBuffer::from(valid));
        (std::mem::take(&mut self.values), nulls)
    }
}

/// Bronze rows of one Kafka partition, in offset order.
#[derive(Debug)]
pub struct BronzeRows {
    topic: String,
    partition: i32,
    offsets: Vec<i64>,
    timestamps: Vec<i64>,
    commits: Vec<i64>,
    record_keys: Texts,
    schema_ids: Numbers<i32>,
    raw: BinaryBuilder,
    sources: Texts,
    symbols: Texts,
    trade_ids: Numbers<i64>,
    prices: Numbers<i128>,
    quantities: Numbers<i128>,
    trade_times: Numbers<i64>,
    event_times: Numbers<i64>,
    buyer_makers: BooleanBuilder,
    ingest_times: Numbers<i64>,
    first_ids: Numbers<i64>,
    last_ids: Numbers<i64>,
    valid_from: Vec<i64>,
    sys_from: Vec<i64>,
}

/// Whether the columns say all that a record says: else Bronze keeps its bytes.
pub fn fits_columns(tick: &Tick<'_>) -> bool {
    let time = |t: Option<i64>| t.is_none_or(|t| representable(t).is_some());
    representable(tick.trade_time).is_some()
        && time(tick.event_time)
        && time(tick.ingest_time)
        && tick.price.in_range()
        && tick.quantity.in_range()
}

/// An instant that a timestamp column of every engine can hold.
pub fn representable(t: i64) -> Option<i64> {
    (0..OPEN_END).contains(&t).then_some(t)
}

impl BronzeRows {
    /// An empty builder.
    pub fn new(topic: &str, partition: i32) -> BronzeRows {
        BronzeRows {
            topic: topic.to_string(),
            partition,
            offsets: Vec::new(),
            timestamps: Vec::new(),
            commits: Vec::new(),
            record_keys: Texts::default(),
            schema_ids: Numbers::default(),
            raw: BinaryBuilder::new(),
            sources: Texts::default(),
            symbols: Texts::default(),
            trade_ids: Numbers::default(),
            prices: Numbers::default(),
            quantities: Numbers::default(),
            trade_times: Numbers::default(),
            event_times: Numbers::default(),
            buyer_makers: BooleanBuilder::new(),
            ingest_times: Numbers::default(),
            first_ids: Numbers::default(),
            last_ids: Numbers::default(),
            valid_from: Vec::new(),
            sys_from: Vec::new(),
        }
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// No rows.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    fn place(&mut self, at: &RecordAt<'_>, valid_from: i64) {
        self.offsets.push(at.offset);
        self.timestamps.push(at.timestamp);
        self.commits.push(at.commit);
        match at.key {
            None => self.record_keys.push(None),
            // A key that is no text is shown with replacement characters; the offset tells which
            // record it was.
            Some(k) => self.record_keys.push(Some(&String::from_utf8_lossy(k))),
        }
        self.schema_ids.push(at.schema_id.map(|id| id as i32));
        self.valid_from.push(valid_from);
        self.sys_from.push(at.sys_from);
    }

    /// Adds a record that decoded. `raw` are its bytes: they are kept only if one of its times
    /// lies outside what a timestamp column holds, since the column is null then.
    pub fn push_tick(&mut self, at: &RecordAt<'_>, tick: &Tick<'_>, raw: &[u8]) {
        let trade_time = representable(tick.trade_time);
        let time = |t: Option<i64>| t.and_then(representable);
        self.place(at, trade_time.unwrap_or(at.timestamp));
        if fits_columns(tick) {
            self.raw.append_null();
        } else {
            self.raw.append_value(raw);
        }
        self.sources.push(Some(tick.source));
        self.symbols.push(Some(tick.symbol));
        self.trade_ids.push(Some(tick.trade_id));
        self.prices
            .push(tick.price.in_range().then_some(tick.price.0));
        self.quantities
            .push(tick.quantity.in_range().then_some(tick.quantity.0));
        self.trade_times.push(trade_time);
        self.event_times.push(time(tick.event_time));
        self.buyer_makers.append_option(tick.buyer_maker);
        self.ingest_times.push(time(tick.ingest_time));
        self.first_ids.push(tick.first_trade_id);
        self.last_ids.push(tick.last_trade_id);
    }

    /// Adds a record that did not decode; its bytes are kept.
    pub fn push_raw(&mut self, at: &RecordAt<'_>, raw: &[u8]) {
        self.place(at, at.timestamp);
        self.raw.append_value(raw);
        self.sources.push(None);
        self.symbols.push(None);
        self.trade_ids.push(None);
        self.prices.push(None);
        self.quantities.push(None);
        self.trade_times.push(None);
        self.event_times.push(None);
        self.buyer_makers.append_null();
        self.ingest_times.push(None);
        self.first_ids.push(None);
        self.last_ids.push(None);
    }

    /// The rows as a batch, in column order; text as dictionaries.
    ///
    /// # Errors
    /// `Arrow`, `Internal` (defects).
    pub fn finish(mut self, def: &TableDef) -> Result<RecordBatch> {
        let n = self.offsets.len();
        let constant = |text: &str| -> Result<ArrayRef> {
            let keys = Int32Array::from(vec![0; n]);
            let values = Arc::new(StringArray::from_iter_values([text]));
            Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(
                keys, values,
            )?))
        };
        let instant = |values: Vec<i64>, nulls| -> ArrayRef {
            Arc::new(
                TimestampMicrosecondArray::new(values.into(), nulls).with_data_type(instant_type()),
            )
        };
        let long = |c: &mut Numbers<i64>| -> ArrayRef {
            let (v, nulls) = c.finish();
            Arc::new(Int64Array::new(v.into(), nulls))
        };
        let time = |c: &mut Numbers<i64>| -> ArrayRef {
            let (v, nulls) = c.finish();
            instant(v, nulls)
        };
        let dec8 = |c: &mut Numbers<i128>| -> ArrayRef {
            let (v, nulls) = c.finish();
            Arc::new(Decimal128Array::new(v.into(), nulls).with_data_type(ColType::Dec8.arrow()))
        };
        let (ids, id_nulls) = self.schema_ids.finish();
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("kafka_topic", constant(&self.topic)?),
            (
                "kafka_partition",
                Arc::new(Int32Array::from(vec![self.partition; n])),
            ),
            ("kafka_offset", Arc::new(Int64Array::from(self.offsets))),
            ("kafka_timestamp", instant(self.timestamps, None)),
            ("commit", Arc::new(Int64Array::from(self.commits))),
            ("record_key", self.record_keys.finish()?),
            ("schema_id", Arc::new(Int32Array::new(ids.into(), id_nulls))),
            ("raw", Arc::new(self.raw.finish())),
            ("source", self.sources.finish()?),
            ("symbol", self.symbols.finish()?),
            ("trade_id", long(&mut self.trade_ids)),
            ("price", dec8(&mut self.prices)),
            ("quantity", dec8(&mut self.quantities)),
            ("trade_time", time(&mut self.trade_times)),
            ("event_time", time(&mut self.event_times)),
            ("buyer_maker", Arc::new(self.buyer_makers.finish())),
            ("ingest_time", time(&mut self.ingest_times)),
            ("first_trade_id", long(&mut self.first_ids)),
            ("last_trade_id", long(&mut self.last_ids)),
            ("valid_from", instant(self.valid_from, None)),
            ("valid_to", instant(vec![OPEN_END; n], None)),
            ("sys_from", instant(self.sys_from, None)),
            ("sys_to", instant(vec![OPEN_END; n], None)),
            ("is_current", Arc::new(BooleanArray::from(vec![true; n]))),
        ];
        let fields: Vec<Field> = columns
            .iter()
            .zip(&def.columns)
            .map(|((name, array), c)| Field::new(*name, array.data_type().clone(), !c.required))
            .collect();
        let arrays = columns.into_iter().map(|(_, a)| a).collect();
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
    }
}
