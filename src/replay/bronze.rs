//! Input records out of Bronze: what the topic no longer holds, and ranges of trade time.
//!
//! A row that did not decode gives back its bytes; any other is encoded again, which the topology cannot tell from the
//! original.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result};
use arrow::array::{
    Array, AsArray, BinaryArray, BooleanArray, PrimitiveArray, RecordBatch, StringArray,
};
use arrow::datatypes::{
    ArrowPrimitiveType, Decimal128Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use finlake_lakehouse::{Filter, LAST_DAY, Pinned, Scan};
use finlake_schemas::{Codec, Dec8, Tick};

use super::live::{column, texts};

/// A record of `market.ticks`.
pub struct Stored {
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: i64,
    /// System time of the commit that took it, µs.
    pub sys_from: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
}

const COLUMNS: [&str; 17] = [
    "kafka_partition",
    "kafka_offset",
    "kafka_timestamp",
    "sys_from",
    "record_key",
    "raw",
    "source",
    "symbol",
    "trade_id",
    "price",
    "quantity",
    "trade_time",
    "event_time",
    "buyer_maker",
    "ingest_time",
    "first_trade_id",
    "last_trade_id",
];

/// Records of one partition at these offsets, in order.
pub async fn offsets(
    pinned: &Pinned,
    codec: &Codec,
    partition: i32,
    range: Range<i64>,
) -> Result<Vec<Stored>> {
    let filter = Filter::all().partition(partition).offsets(range);
    read(pinned, codec, filter).await
}

/// Records whose trade was made on these UTC days, in order of partition and offset.
pub async fn days(
    pinned: &Pinned,
    codec: &Codec,
    partition: i32,
    days: Range<i32>,
) -> Result<Vec<Stored>> {
    let filter = Filter::all().partition(partition).dates(days);
    read(pinned, codec, filter).await
}

/// What a record says, if it decodes.
fn trade<'a>(codec: &Codec, record: &'a Stored) -> Option<Tick<'a>> {
    codec.decode_tick(record.value.as_deref()?).ok()
}

/// Adds the records on other days that bear an id of these and came before one of them: of an id the first counts, and
/// which one that is the topology decides, not we.
pub async fn earlier_of_same_id(
    pinned: &Pinned,
    codec: &Codec,
    partition: i32,
    days: Range<i32>,
    records: &mut Vec<Stored>,
) -> Result<()> {
    let mut ids: BTreeMap<(&str, &str), BTreeMap<i64, i64>> = BTreeMap::new();
    for record in records.iter() {
        if let Some(tick) = trade(codec, record).filter(|t| t.trade_id >= 0) {
            let of = ids.entry((tick.source, tick.symbol)).or_default();
            let newest = of.entry(tick.trade_id).or_default();
            *newest = (*newest).max(record.offset);
        }
    }
    let mut found = Vec::new();
    for ((source, symbol), ids) in &ids {
        let (Some((&first, _)), Some((&last, _))) = (ids.first_key_value(), ids.last_key_value())
        else {
            continue;
        };
        let newest = ids.values().copied().max().unwrap_or(0);
        for others in [0..days.start.max(0), days.end..LAST_DAY] {
            let filter = Filter::all()
                .partition(partition)
                .source(source)
                .symbol(symbol);
            let filter = filter
                .between("trade_id", first..last.saturating_add(1))
                .offsets(0..newest)
                .dates(others);
            let all = read(pinned, codec, filter).await?;
            found.extend(all.into_iter().filter(|r| {
                let newest = trade(codec, r).and_then(|tick| ids.get(&tick.trade_id));
                newest.is_some_and(|newest| r.offset < *newest)
            }));
        }
    }
    records.extend(found);
    records.sort_unstable_by_key(|r| (r.partition, r.offset));
    Ok(())
}

/// The least trade time (µs) at or after an offset of a partition, of trades at all.
pub async fn earliest(pinned: &Pinned, partition: i32, from: i64) -> Result<Option<i64>> {
    let filter = Filter::all()
        .partition(partition)
        .offsets(from..i64::MAX)
        .null("trade_time", false);
    let batch = pinned
        .collect(&Scan::columns(&["trade_time"]).filter(filter))
        .await?;
    let times = column::<TimestampMicrosecondType>(&batch, "trade_time")?;
    Ok(times.values().iter().copied().filter(|t| *t > 0).min())
}

async fn read(pinned: &Pinned, codec: &Codec, filter: Filter) -> Result<Vec<Stored>> {
    let batch = pinned
        .collect(&Scan::columns(&COLUMNS).filter(filter))
        .await?;
    let mut records = Vec::with_capacity(batch.num_rows());
    let columns = Columns::of(&batch)?;
    for i in 0..batch.num_rows() {
        records.push(columns.record(i, codec)?);
    }
    records.sort_unstable_by_key(|r| (r.partition, r.offset));
    Ok(records)
}

/// The columns by type, looked up once per batch.
struct Columns<'a> {
    partition: &'a PrimitiveArray<Int32Type>,
    offset: &'a PrimitiveArray<Int64Type>,
    timestamp: &'a PrimitiveArray<TimestampMicrosecondType>,
    sys_from: &'a PrimitiveArray<TimestampMicrosecondType>,
    key: &'a StringArray,
    raw: &'a BinaryArray,
    source: &'a StringArray,
    symbol: &'a StringArray,
    trade_id: &'a PrimitiveArray<Int64Type>,
    price: &'a PrimitiveArray<Decimal128Type>,
    quantity: &'a PrimitiveArray<Decimal128Type>,
    trade_time: &'a PrimitiveArray<TimestampMicrosecondType>,
    event_time: &'a PrimitiveArray<TimestampMicrosecondType>,
    maker: &'a BooleanArray,
    ingest_time: &'a PrimitiveArray<TimestampMicrosecondType>,
    first_trade_id: &'a PrimitiveArray<Int64Type>,
    last_trade_id: &'a PrimitiveArray<Int64Type>,
}

/// A cell, or nothing.
fn cell<T: ArrowPrimitiveType>(column: &PrimitiveArray<T>, i: usize) -> Option<T::Native> {
    column.is_valid(i).then(|| column.value(i))
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self> {
        let raw = batch.column_by_name("raw");
        let maker = batch.column_by_name("buyer_maker");
        Ok(Self {
            partition: column(batch, "kafka_partition")?,
            offset: column(batch, "kafka_offset")?,
            timestamp: column(batch, "kafka_timestamp")?,
            sys_from: column(batch, "sys_from")?,
            key: texts(batch, "record_key")?,
            raw: raw
                .and_then(|c| c.as_binary_opt::<i32>())
                .context("column raw is not bytes; run `finlake reconcile`")?,
            source: texts(batch, "source")?,
            symbol: texts(batch, "symbol")?,
            trade_id: column(batch, "trade_id")?,
            price: column(batch, "price")?,
            quantity: column(batch, "quantity")?,
            trade_time: column(batch, "trade_time")?,
            event_time: column(batch, "event_time")?,
            maker: maker
                .and_then(|c| c.as_boolean_opt())
                .context("column buyer_maker is not boolean; run `finlake reconcile`")?,
            ingest_time: column(batch, "ingest_time")?,
            first_trade_id: column(batch, "first_trade_id")?,
            last_trade_id: column(batch, "last_trade_id")?,
        })
    }

    fn record(&self, i: usize, codec: &Codec) -> Result<Stored> {
        let value = if self.source.is_valid(i) && self.symbol.is_valid(i) {
            let tick = Tick {
                source: self.source.value(i),
                symbol: self.symbol.value(i),
                trade_id: cell(self.trade_id, i).unwrap_or(-1),
                price: Dec8(self.price.value(i)),
                quantity: Dec8(self.quantity.value(i)),
                trade_time: cell(self.trade_time, i).unwrap_or(i64::MIN),
                event_time: cell(self.event_time, i),
                buyer_maker: self.maker.is_valid(i).then(|| self.maker.value(i)),
                ingest_time: cell(self.ingest_time, i),
                first_trade_id: cell(self.first_trade_id, i),
                last_trade_id: cell(self.last_trade_id, i),
            };
            let mut bytes = Vec::new();
            codec.encode_tick(&tick, 2, &mut bytes)?;
            Some(bytes)
        } else {
            self.raw.is_valid(i).then(|| self.raw.value(i).to_vec())
        };
        let key = self.key.is_valid(i).then(|| self.key.value(i));
        Ok(Stored {
            partition: self.partition.value(i),
            offset: cell(self.offset, i).unwrap_or(-1),
            timestamp_ms: cell(self.timestamp, i).unwrap_or(-1).div_euclid(1000),
            sys_from: cell(self.sys_from, i).unwrap_or(0),
            key: key.map(|k| k.as_bytes().to_vec()),
            value,
        })
    }
}
