//! The rows of Silver and Gold at a pinned snapshot, current or as once known, and single columns of a batch by name.

use std::ops::Range;

use anyhow::{Context, Result};
use arrow::array::{Array, AsArray, PrimitiveArray, RecordBatch, StringArray};
use arrow::datatypes::{
    ArrowPrimitiveType, Date32Type, Decimal128Type, Float64Type, Int32Type, Int64Type,
    TimestampMicrosecondType,
};
use finlake_lakehouse::{Filter, Pinned, Scan};
use finlake_schemas::{BarContent, Dec8, Dec16, keys};
use futures::TryStreamExt;

use super::compare::{Content, Row, Rows};

/// A column by name and type.
pub fn column<'a, T: ArrowPrimitiveType>(
    batch: &'a RecordBatch,
    name: &str,
) -> Result<&'a PrimitiveArray<T>> {
    batch
        .column_by_name(name)
        .and_then(|c| c.as_primitive_opt::<T>())
        .with_context(|| format!("column {name} is not of its type; run `finlake reconcile`"))
}

/// A text column by name.
pub fn texts<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a StringArray> {
    batch
        .column_by_name(name)
        .and_then(|c| c.as_string_opt::<i32>())
        .with_context(|| format!("column {name} is not text; run `finlake reconcile`"))
}

const BARS: [&str; 20] = [
    "source",
    "symbol",
    "bar_interval",
    "bar_start",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "quote_volume",
    "trade_count",
    "taker_buy_base",
    "taker_buy_quote",
    "first_trade_time",
    "first_trade_id",
    "last_trade_time",
    "last_trade_id",
    "stage",
    "sys_from",
    "revision",
];

/// Which rows of a version table.
#[derive(Debug, Clone, Default)]
pub struct Which {
    /// Trade dates, days since 1970.
    pub dates: Option<Range<i32>>,
    /// As known at this system time, µs; none: the current ones.
    pub known: Option<i64>,
    /// Kafka partitions; none: all.
    pub partitions: Option<Vec<i32>>,
}

impl Which {
    /// What to ask for, one after the other.
    fn filters(&self) -> Vec<Filter> {
        let mut filter = match self.known {
            Some(at) => Filter::all().as_of_system(at),
            None => Filter::all().current(),
        };
        if let Some(dates) = &self.dates {
            filter = filter.dates(dates.clone());
        }
        match &self.partitions {
            Some(all) => all.iter().map(|p| filter.clone().partition(*p)).collect(),
            None => vec![filter],
        }
    }
}

/// Bars made from trades.
pub async fn bars(pinned: &Pinned, which: &Which) -> Result<Rows> {
    let mut rows = Rows::new();
    for filter in which.filters() {
        let filter = filter.text("origin", "trades").flag("retracted", false);
        let mut batches = pinned.scan(&Scan::columns(&BARS).filter(filter)).await?;
        while let Some(found) = batches.try_next().await? {
            add_bars(&found.batch, &mut rows)?;
        }
    }
    Ok(rows)
}

fn add_bars(b: &RecordBatch, rows: &mut Rows) -> Result<()> {
    let (source, symbol, interval) = (
        texts(b, "source")?,
        texts(b, "symbol")?,
        texts(b, "bar_interval")?,
    );
    let start = column::<TimestampMicrosecondType>(b, "bar_start")?;
    let decimal = |name| column::<Decimal128Type>(b, name);
    let (open, high, low) = (decimal("open")?, decimal("high")?, decimal("low")?);
    let (close, volume, quote) = (
        decimal("close")?,
        decimal("volume")?,
        decimal("quote_volume")?,
    );
    let (base, taker) = (decimal("taker_buy_base")?, decimal("taker_buy_quote")?);
    let long = |name| column::<Int64Type>(b, name);
    let (count, first_id, last_id) = (
        long("trade_count")?,
        long("first_trade_id")?,
        long("last_trade_id")?,
    );
    let instant = |name| column::<TimestampMicrosecondType>(b, name);
    let (first, last) = (instant("first_trade_time")?, instant("last_trade_time")?);
    let (stage, sys_from) = (texts(b, "stage")?, instant("sys_from")?);
    let revision = column::<Int32Type>(b, "revision")?;
    for i in 0..b.num_rows() {
        let mut key = Vec::with_capacity(48);
        keys::bar(
            source.value(i),
            symbol.value(i),
            interval.value(i),
            start.value(i),
            &mut key,
        );
        let content = BarContent {
            open: Dec8(open.value(i)),
            high: Dec8(high.value(i)),
            low: Dec8(low.value(i)),
            close: Dec8(close.value(i)),
            volume: Dec8(volume.value(i)),
            quote_volume: Dec16(quote.value(i)),
            trade_count: count.value(i),
            taker_buy_base: Dec8(base.value(i)),
            taker_buy_quote: Dec16(taker.value(i)),
            first_trade_time: first.value(i),
            first_trade_id: first_id.value(i),
            last_trade_time: last.value(i),
            last_trade_id: last_id.value(i),
        };
        let row = Row {
            content: Content::Bar(Box::new(content)),
            closed: stage.value(i) == "closed",
            sys_from: sys_from.value(i),
            revision: revision.value(i),
        };
        anyhow::ensure!(
            rows.insert(key, row).is_none(),
            "silver.market_ohlcv has two current rows of one key; run `finlake reconcile --layer silver`"
        );
    }
    Ok(())
}

/// Gold rows; `windows` as configured.
pub async fn metrics(pinned: &Pinned, windows: &[i32], which: &Which) -> Result<Rows> {
    let mut statistics = vec!["return_1".to_owned()];
    for n in windows {
        // A window of one return shares the fixed column.
        statistics.push(format!("return_{n}"));
        statistics.push(format!("volatility_{n}"));
        statistics.push(format!("sharpe_{n}"));
    }
    let mut names = vec![
        "source",
        "symbol",
        "trade_date",
        "close",
        "sys_from",
        "revision",
    ];
    names.extend(statistics.iter().map(String::as_str));
    names.sort_unstable();
    names.dedup();
    let mut rows = Rows::new();
    for filter in which.filters() {
        let scan = Scan::columns(&names).filter(filter.flag("retracted", false));
        let mut batches = pinned.scan(&scan).await?;
        while let Some(found) = batches.try_next().await? {
            add_metrics(&found.batch, &statistics, &mut rows)?;
        }
    }
    Ok(rows)
}

fn add_metrics(b: &RecordBatch, statistics: &[String], rows: &mut Rows) -> Result<()> {
    let (source, symbol) = (texts(b, "source")?, texts(b, "symbol")?);
    let date = column::<Date32Type>(b, "trade_date")?;
    let close = column::<Decimal128Type>(b, "close")?;
    let sys_from = column::<TimestampMicrosecondType>(b, "sys_from")?;
    let revision = column::<Int32Type>(b, "revision")?;
    let columns: Vec<_> = statistics
        .iter()
        .map(|name| column::<Float64Type>(b, name))
        .collect::<Result<_>>()?;
    for i in 0..b.num_rows() {
        let mut key = Vec::with_capacity(40);
        keys::metrics(source.value(i), symbol.value(i), date.value(i), &mut key);
        let values = columns.iter();
        let row = Row {
            content: Content::Metrics {
                close: close.value(i),
                statistics: values.map(|c| c.is_valid(i).then(|| c.value(i))).collect(),
            },
            closed: true,
            sys_from: sys_from.value(i),
            revision: revision.value(i),
        };
        anyhow::ensure!(
            rows.insert(key, row).is_none(),
            "gold.market_metrics has two current rows of one key; run `finlake reconcile --layer gold`"
        );
    }
    Ok(())
}
