//! Row builders: records of the topics → Arrow columns, without an allocation per row.
//!
//! One builder per Kafka partition and table. Bronze takes every input record, decodable or not;
//! Silver and Gold take the output records. Values are stored as they came: nothing is validated
//! or recomputed here. Data flows: the consumer pushes, `sink::TableSink::commit` finishes.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, BooleanArray, BooleanBuilder, Date32Builder, Decimal128Array,
    Decimal128Builder, DictionaryArray, Float64Builder, Int32Array, Int32Builder, Int64Array,
    Int64Builder, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
    TimestampMicrosecondBuilder,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{Field, Int32Type, Schema, SchemaRef};
use finlake_schemas::{Bar, Metrics, Tick, keys};

use crate::error::{LakeError, Result};
use crate::tables::{ColType, OPEN_END, Table, TableDef, instant_type};

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

/// An instant that a timestamp column of every engine can hold.
fn representable(t: i64) -> Option<i64> {
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
        let lossless = trade_time.is_some()
            && time(tick.event_time) == tick.event_time
            && time(tick.ingest_time) == tick.ingest_time
            && tick.price.in_range()
            && tick.quantity.in_range();
        self.place(at, trade_time.unwrap_or(at.timestamp));
        if lossless {
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

enum Cells {
    Str(StringBuilder),
    Int(Int32Builder),
    Long(Int64Builder),
    Bool(BooleanBuilder),
    Double(Float64Builder),
    Dec(Decimal128Builder),
    Instant(TimestampMicrosecondBuilder),
    Date(Date32Builder),
}

impl Cells {
    fn new(ty: ColType) -> Result<Cells> {
        Ok(match ty {
            ColType::Str => Cells::Str(StringBuilder::new()),
            ColType::Int => Cells::Int(Int32Builder::new()),
            ColType::Long => Cells::Long(Int64Builder::new()),
            ColType::Bool => Cells::Bool(BooleanBuilder::new()),
            ColType::Double => Cells::Double(Float64Builder::new()),
            ColType::Dec8 | ColType::Dec16 => {
                Cells::Dec(Decimal128Builder::new().with_data_type(ty.arrow()))
            }
            ColType::Instant => {
                Cells::Instant(TimestampMicrosecondBuilder::new().with_data_type(instant_type()))
            }
            ColType::Date => Cells::Date(Date32Builder::new()),
            ColType::Bytes => {
                return Err(LakeError::Internal("no version table has bytes".into()));
            }
        })
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Cells::Str(b) => Arc::new(b.finish()),
            Cells::Int(b) => Arc::new(b.finish()),
            Cells::Long(b) => Arc::new(b.finish()),
            Cells::Bool(b) => Arc::new(b.finish()),
            Cells::Double(b) => Arc::new(b.finish()),
            Cells::Dec(b) => Arc::new(b.finish()),
            Cells::Instant(b) => Arc::new(b.finish()),
            Cells::Date(b) => Arc::new(b.finish()),
        }
    }
}

/// One cell to be appended.
enum Cell<'a> {
    Str(&'a str),
    Int(i32),
    Long(i64),
    Bool(bool),
    Double(Option<f64>),
    Dec(i128),
    Instant(Option<i64>),
    Date(Option<i32>),
}

/// What a record of a version table is about, beside its cells.
#[derive(Debug, Clone, Copy)]
pub struct VersionMeta {
    key_end: usize,
    /// System time.
    pub sys_from: i64,
    /// Version it replaces.
    pub prev: Option<i64>,
    /// A retraction.
    pub retracted: bool,
    /// Task commit.
    pub commit: i64,
}

/// Output records of one Kafka partition of a version table, in offset order.
pub struct VersionRows {
    table: Table,
    partition: i32,
    schema: SchemaRef,
    cells: Vec<Cells>,
    windows: Vec<i32>,
    keys: Vec<u8>,
    meta: Vec<VersionMeta>,
    scratch: String,
}

impl std::fmt::Debug for VersionRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VersionRows({}, {} rows)", self.table, self.meta.len())
    }
}

impl VersionRows {
    /// An empty builder for Silver or Gold. `def` is the table's definition
    /// (`Lakehouse::def`).
    ///
    /// # Errors
    /// `Internal` for Bronze.
    pub fn new(def: &TableDef, partition: i32) -> Result<VersionRows> {
        let cells = def
            .columns
            .iter()
            .map(|c| Cells::new(c.ty))
            .collect::<Result<_>>()?;
        let windows = def
            .columns
            .iter()
            .filter_map(|c| c.name.strip_prefix("volatility_")?.parse().ok())
            .collect();
        Ok(VersionRows {
            table: def.table,
            partition,
            schema: def.arrow_schema(),
            cells,
            windows,
            keys: Vec::new(),
            meta: Vec::new(),
            scratch: String::new(),
        })
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        self.meta.len()
    }

    /// No rows.
    pub fn is_empty(&self) -> bool {
        self.meta.is_empty()
    }

    fn row(&mut self, cells: &[Cell<'_>]) -> Result<()> {
        if cells.len() != self.cells.len() {
            return Err(LakeError::Internal(format!(
                "{} cells for the {} columns of {}",
                cells.len(),
                self.cells.len(),
                self.table
            )));
        }
        for (i, (column, cell)) in self.cells.iter_mut().zip(cells).enumerate() {
            match (column, cell) {
                (Cells::Str(b), Cell::Str(v)) => b.append_value(v),
                (Cells::Int(b), Cell::Int(v)) => b.append_value(*v),
                (Cells::Long(b), Cell::Long(v)) => b.append_value(*v),
                (Cells::Bool(b), Cell::Bool(v)) => b.append_value(*v),
                (Cells::Double(b), Cell::Double(v)) => b.append_option(*v),
                (Cells::Dec(b), Cell::Dec(v)) => b.append_value(*v),
                (Cells::Instant(b), Cell::Instant(v)) => b.append_option(*v),
                (Cells::Date(b), Cell::Date(v)) => b.append_option(*v),
                _ => {
                    return Err(LakeError::Internal(format!(
                        "column {i} of {} has another type",
                        self.table
                    )));
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, sys_from: i64, prev: Option<i64>, retracted: bool, commit: i64) {
        self.meta.push(VersionMeta {
            key_end: self.keys.len(),
            sys_from,
            prev,
            retracted,
            commit,
        });
    }

    /// Adds a bar record found at `offset` of the Silver topic.
    ///
    /// # Errors
    /// `Internal` if this builder is not Silver's.
    pub fn push_bar(&mut self, bar: &Bar<'_>, offset: i64) -> Result<()> {
        let id = uuid_text(&mut self.scratch, bar.tick_id);
        let cells = [
            Cell::Str(&id),
            Cell::Str(bar.source),
            Cell::Str(bar.symbol),
            Cell::Str(bar.bar_interval),
            Cell::Instant(Some(bar.bar_start)),
            Cell::Instant(Some(bar.bar_end)),
            Cell::Date(Some(bar.trade_date)),
            Cell::Dec(bar.open.0),
            Cell::Dec(bar.high.0),
            Cell::Dec(bar.low.0),
            Cell::Dec(bar.close.0),
            Cell::Dec(bar.volume.0),
            Cell::Dec(bar.quote_volume.0),
            Cell::Long(bar.trade_count),
            Cell::Dec(bar.taker_buy_base.0),
            Cell::Dec(bar.taker_buy_quote.0),
            Cell::Dec(bar.vwap.0),
            Cell::Instant(Some(bar.first_trade_time)),
            Cell::Long(bar.first_trade_id),
            Cell::Instant(Some(bar.last_trade_time)),
            Cell::Long(bar.last_trade_id),
            Cell::Str(bar.stage.as_str()),
            Cell::Int(bar.revision),
            Cell::Str(bar.origin.as_str()),
            Cell::Str(bar.basis.as_str()),
            Cell::Date(bar.basis_at),
            Cell::Bool(bar.retracted),
            // A bar is valid from its start.
            Cell::Instant(Some(bar.bar_start)),
            Cell::Instant(Some(OPEN_END)),
            Cell::Instant(Some(bar.sys_from)),
            Cell::Instant(Some(OPEN_END)),
            Cell::Bool(true),
            Cell::Instant(bar.prev_sys_from),
            Cell::Long(bar.commit),
            Cell::Long(bar.ticks_offset),
            Cell::Long(bar.bars_offset),
            Cell::Int(self.partition),
            Cell::Long(offset),
        ];
        self.row(&cells)?;
        self.scratch = id;
        keys::bar(
            bar.source,
            bar.symbol,
            bar.bar_interval,
            bar.bar_start,
            &mut self.keys,
        );
        self.end(bar.sys_from, bar.prev_sys_from, bar.retracted, bar.commit);
        Ok(())
    }

    /// Adds a metrics record found at `offset` of the Gold topic.
    ///
    /// # Errors
    /// `Internal` if this builder is not Gold's.
    pub fn push_metrics(&mut self, m: &Metrics<'_>, offset: i64) -> Result<()> {
        let id = uuid_text(&mut self.scratch, m.metric_id);
        let window = |n: i32| m.windows.iter().find(|w| w.n == n);
        let mut cells = vec![
            Cell::Str(&id),
            Cell::Str(m.source),
            Cell::Str(m.symbol),
            Cell::Date(Some(m.trade_date)),
            Cell::Dec(m.close.0),
            Cell::Long(m.observations),
            Cell::Double(m.return_1),
            Cell::Int(m.periods),
            Cell::Double(Some(m.risk_free)),
            Cell::Int(m.revision),
            Cell::Bool(m.retracted),
            Cell::Instant(Some(m.valid_from)),
            Cell::Instant(Some(OPEN_END)),
            Cell::Instant(Some(m.sys_from)),
            Cell::Instant(Some(OPEN_END)),
            Cell::Bool(true),
            Cell::Instant(m.prev_sys_from),
            Cell::Long(m.commit),
            Cell::Long(m.ticks_offset),
            Cell::Long(m.bars_offset),
            Cell::Int(self.partition),
            Cell::Long(offset),
        ];
        let windows = std::mem::take(&mut self.windows);
        for &n in &windows {
            // A window of length 1 shares the fixed return_1 column.
            if n != 1 {
                cells.push(Cell::Double(window(n).and_then(|w| w.ret)));
            }
            cells.push(Cell::Double(window(n).and_then(|w| w.volatility)));
            cells.push(Cell::Double(window(n).and_then(|w| w.sharpe)));
        }
        self.windows = windows;
        self.row(&cells)?;
        drop(cells);
        self.scratch = id;
        keys::metrics(m.source, m.symbol, m.trade_date, &mut self.keys);
        self.end(m.sys_from, m.prev_sys_from, m.retracted, m.commit);
        Ok(())
    }

    /// The records as columns.
    ///
    /// # Errors
    /// `Arrow` (a defect).
    pub fn finish(mut self) -> Result<Versions> {
        let arrays = self.cells.iter_mut().map(Cells::finish).collect();
        Ok(Versions {
            batch: RecordBatch::try_new(self.schema, arrays)?,
            keys: self.keys,
            meta: self.meta,
        })
    }
}

/// Finished records of a version table.
#[derive(Debug)]
pub struct Versions {
    /// One row per record, retractions included; all open.
    pub batch: RecordBatch,
    keys: Vec<u8>,
    /// One per row.
    pub meta: Vec<VersionMeta>,
}

impl Versions {
    /// Natural key of a row.
    pub fn key(&self, i: usize) -> &[u8] {
        let start = i.checked_sub(1).map_or(0, |p| self.meta[p].key_end);
        &self.keys[start..self.meta[i].key_end]
    }
}

fn uuid_text(scratch: &mut String, id: [u8; 16]) -> String {
    let mut out = std::mem::take(scratch);
    out.clear();
    let mut buffer = uuid::Uuid::encode_buffer();
    out.push_str(
        uuid::Uuid::from_bytes(id)
            .hyphenated()
            .encode_lower(&mut buffer),
    );
    out
}
