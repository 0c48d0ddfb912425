//! Input records out of Bronze: what the topic no longer holds, and ranges of trade time.
//!
//! A row that did not decode gives back its bytes; any other is encoded again, which the topology cannot tell from the
//! original.

use std::ops::Range;

use anyhow::{Context, Result};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Decimal128Type, Int32Type, Int64Type, TimestampMicrosecondType};
use finlake_lakehouse::{Filter, Pinned, Scan};
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

struct Columns<'a> {
    batch: &'a RecordBatch,
    price: &'a arrow::array::PrimitiveArray<Decimal128Type>,
    quantity: &'a arrow::array::PrimitiveArray<Decimal128Type>,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self> {
        Ok(Self {
            batch,
            price: column(batch, "price")?,
            quantity: column(batch, "quantity")?,
        })
    }

    fn long(&self, name: &str, i: usize) -> Result<Option<i64>> {
        let c = column::<Int64Type>(self.batch, name)?;
        Ok(c.is_valid(i).then(|| c.value(i)))
    }

    fn instant(&self, name: &str, i: usize) -> Result<Option<i64>> {
        let c = column::<TimestampMicrosecondType>(self.batch, name)?;
        Ok(c.is_valid(i).then(|| c.value(i)))
    }

    fn text(&self, name: &str, i: usize) -> Result<Option<&'a str>> {
        let c = texts(self.batch, name)?;
        Ok(c.is_valid(i).then(|| c.value(i)))
    }

    fn record(&self, i: usize, codec: &Codec) -> Result<Stored> {
        let raw = self
            .batch
            .column_by_name("raw")
            .and_then(|c| c.as_binary_opt::<i32>())
            .context("column raw is not bytes; run `finlake reconcile`")?;
        let maker = self
            .batch
            .column_by_name("buyer_maker")
            .and_then(|c| c.as_boolean_opt())
            .context("column buyer_maker is not boolean; run `finlake reconcile`")?;
        let value = match (self.text("source", i)?, self.text("symbol", i)?) {
            (Some(source), Some(symbol)) => {
                let tick = Tick {
                    source,
                    symbol,
                    trade_id: self.long("trade_id", i)?.unwrap_or(-1),
                    price: Dec8(self.price.value(i)),
                    quantity: Dec8(self.quantity.value(i)),
                    trade_time: self.instant("trade_time", i)?.unwrap_or(i64::MIN),
                    event_time: self.instant("event_time", i)?,
                    buyer_maker: maker.is_valid(i).then(|| maker.value(i)),
                    ingest_time: self.instant("ingest_time", i)?,
                    first_trade_id: self.long("first_trade_id", i)?,
                    last_trade_id: self.long("last_trade_id", i)?,
                };
                let mut bytes = Vec::new();
                codec.encode_tick(&tick, 2, &mut bytes)?;
                Some(bytes)
            }
            _ => raw.is_valid(i).then(|| raw.value(i).to_vec()),
        };
        let number = column::<Int32Type>(self.batch, "kafka_partition")?;
        Ok(Stored {
            partition: number.value(i),
            offset: self.long("kafka_offset", i)?.unwrap_or(-1),
            timestamp_ms: self
                .instant("kafka_timestamp", i)?
                .unwrap_or(-1)
                .div_euclid(1000),
            sys_from: self.instant("sys_from", i)?.unwrap_or(0),
            key: self.text("record_key", i)?.map(|k| k.as_bytes().to_vec()),
            value,
        })
    }
}
