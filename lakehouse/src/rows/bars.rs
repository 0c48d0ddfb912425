//! Rows of `bronze.market_bars`: one per record of `market.bars`, its bytes kept always.

use std::sync::Arc;

use arrow::array::RecordBatch;
use finlake_schemas::{BarsInput, Dec8};

use super::RecordAt;
use super::cells::{Cell, Cells, push_row, uuid_text};
use crate::error::Result;
use crate::tables::{OPEN_END, Table, TableDef};

const DAY: i64 = 86_400_000_000;

/// Input records of one Kafka partition of `market.bars`, in offset order.
pub struct BarsRows {
    topic: String,
    partition: i32,
    schema: arrow::datatypes::SchemaRef,
    cells: Vec<Cells>,
    rows: usize,
    scratch: String,
}

impl std::fmt::Debug for BarsRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BarsRows({} rows)", self.rows)
    }
}

/// What the columns say of a record; all null where it did not decode.
#[derive(Debug, Default)]
struct Said<'a> {
    kind: Option<&'a str>,
    source: Option<&'a str>,
    symbol: Option<&'a str>,
    date: Option<i32>,
    interval: Option<&'a str>,
    start: Option<i64>,
    end: Option<i64>,
    prices: [Option<Dec8>; 5],
    basis: Option<&'a str>,
    basis_at: Option<i32>,
    action: Option<&'a str>,
    /// To, from, amount.
    ratios: [Option<Dec8>; 3],
    currency: Option<&'a str>,
    assertion: Option<[u8; 16]>,
    expected_sys_from: Option<i64>,
    expected_revision: Option<i32>,
    retracted: Option<bool>,
    origin: Option<&'a str>,
    reason: Option<&'a str>,
    ingest: Option<i64>,
    valid_from: Option<i64>,
}

impl<'a> Said<'a> {
    fn of(record: &BarsInput<'a>) -> Said<'a> {
        match record {
            BarsInput::Vendor(b) => Said {
                kind: Some("vendor_bar"),
                source: Some(b.source),
                symbol: Some(b.symbol),
                date: Some(b.trade_date),
                interval: Some(b.bar_interval),
                start: Some(b.bar_start),
                end: Some(b.bar_end),
                prices: [b.open, b.high, b.low, b.close, b.volume].map(Some),
                basis: Some(b.basis.as_str()),
                basis_at: b.basis_at,
                ingest: b.ingest_time,
                valid_from: Some(b.bar_start),
                ..Said::default()
            },
            BarsInput::Action(a) => Said {
                kind: Some("corporate_action"),
                source: Some(a.source),
                symbol: Some(a.symbol),
                date: Some(a.ex_date),
                action: Some(a.kind.as_str()),
                ratios: [a.ratio_to, a.ratio_from, a.amount].map(Some),
                currency: a.currency,
                retracted: Some(a.retracted),
                ingest: a.ingest_time,
                valid_from: Some(i64::from(a.ex_date).saturating_mul(DAY)),
                ..Said::default()
            },
            BarsInput::Assertion(a) => {
                let c = &a.content;
                Said {
                    kind: Some("assertion"),
                    source: Some(a.source),
                    symbol: Some(a.symbol),
                    date: i32::try_from(a.bar_start.div_euclid(DAY)).ok(),
                    interval: Some(a.bar_interval),
                    start: Some(a.bar_start),
                    prices: [c.open, c.high, c.low, c.close, c.volume].map(Some),
                    assertion: Some(a.assertion_id),
                    expected_sys_from: a.expected_sys_from,
                    expected_revision: a.expected_revision,
                    retracted: Some(a.retracted),
                    origin: Some(a.origin),
                    reason: Some(a.reason),
                    ingest: Some(a.sent_at),
                    valid_from: Some(a.bar_start),
                    ..Said::default()
                }
            }
        }
    }
}

/// An instant that a timestamp column of every engine can hold.
fn representable(t: Option<i64>) -> Option<i64> {
    t.filter(|t| (0..OPEN_END).contains(t))
}

impl BarsRows {
    /// An empty builder. `def` is the table's definition (`Lakehouse::def(Table::Bars)`).
    pub fn new(def: &TableDef, topic: &str, partition: i32) -> BarsRows {
        BarsRows {
            topic: topic.to_string(),
            partition,
            schema: def.arrow_schema(),
            cells: def.columns.iter().map(|c| Cells::new(c.ty)).collect(),
            rows: 0,
            scratch: String::new(),
        }
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// No rows.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Adds a record; `record` is `None` if it did not decode. `raw` are its bytes, kept in
    /// either case (`None`: a tombstone).
    ///
    /// # Errors
    /// `Internal` (a defect: another table's definition).
    pub fn push(
        &mut self,
        at: &RecordAt<'_>,
        record: Option<&BarsInput<'_>>,
        raw: Option<&[u8]>,
    ) -> Result<()> {
        let said = record.map(Said::of).unwrap_or_default();
        let key = at.key.map(String::from_utf8_lossy);
        let id = said.assertion.map(|id| uuid_text(&mut self.scratch, id));
        let dec = |d: Option<Dec8>| Cell::DecOrNull(d.filter(|d| d.in_range()).map(|d| d.0));
        let time = |t: Option<i64>| Cell::Instant(representable(t));
        let [open, high, low, close, volume] = said.prices;
        let [to, from, amount] = said.ratios;
        let valid_from = representable(said.valid_from).unwrap_or(at.timestamp);
        let cells = [
            Cell::Str(&self.topic),
            Cell::Int(self.partition),
            Cell::Long(at.offset),
            Cell::Instant(Some(at.timestamp)),
            Cell::Long(at.commit),
            Cell::Text(key.as_deref()),
            Cell::IntOrNull(at.schema_id.map(|id| id as i32)),
            Cell::Bytes(raw),
            Cell::Text(said.kind),
            Cell::Text(said.source),
            Cell::Text(said.symbol),
            Cell::Date(said.date),
            Cell::Text(said.interval),
            time(said.start),
            time(said.end),
            dec(open),
            dec(high),
            dec(low),
            dec(close),
            dec(volume),
            Cell::Text(said.basis),
            Cell::Date(said.basis_at),
            Cell::Text(said.action),
            dec(to),
            dec(from),
            dec(amount),
            Cell::Text(said.currency),
            Cell::Text(id.as_deref()),
            time(said.expected_sys_from),
            Cell::IntOrNull(said.expected_revision),
            Cell::BoolOrNull(said.retracted),
            Cell::Text(said.origin),
            Cell::Text(said.reason),
            time(said.ingest),
            Cell::Instant(Some(valid_from)),
            Cell::Instant(Some(OPEN_END)),
            Cell::Instant(Some(at.sys_from)),
            Cell::Instant(Some(OPEN_END)),
            Cell::Bool(true),
        ];
        push_row(Table::Bars, &mut self.cells, &cells)?;
        self.rows += 1;
        Ok(())
    }

    /// The rows as a batch, in column order.
    ///
    /// # Errors
    /// `Arrow` (a defect).
    pub fn finish(mut self) -> Result<RecordBatch> {
        let arrays = self.cells.iter_mut().map(Cells::finish).collect();
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), arrays)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Array, AsArray};
    use finlake_schemas::{Basis, VendorBar};

    #[test]
    fn every_record_is_a_row_and_keeps_its_bytes() {
        let def = TableDef::new(Table::Bars, None, &[]);
        let mut rows = BarsRows::new(&def, "market.bars", 3);
        let at = |offset| RecordAt {
            offset,
            timestamp: 5_000,
            key: Some(b"yahoo:NVDA"),
            schema_id: Some(6),
            commit: 1,
            sys_from: 9,
        };
        let one = Dec8(100_000_000);
        let bar = VendorBar {
            source: "yahoo",
            symbol: "NVDA",
            bar_interval: "1d",
            bar_start: DAY,
            bar_end: 2 * DAY,
            trade_date: 1,
            open: one,
            high: one,
            low: one,
            close: one,
            volume: one,
            basis: Basis::AsQuoted,
            basis_at: None,
            ingest_time: None,
        };
        rows.push(&at(0), Some(&BarsInput::Vendor(bar)), Some(b"raw"))
            .unwrap();
        rows.push(&at(1), None, Some(b"junk")).unwrap();
        rows.push(&at(2), None, None).unwrap();
        let batch = rows.finish().unwrap();
        assert_eq!(batch.num_rows(), 3);
        let text = |c: &str, i: usize| {
            let a = batch.column_by_name(c).unwrap().as_string::<i32>().clone();
            a.is_valid(i).then(|| a.value(i).to_string())
        };
        assert_eq!(text("record_kind", 0).as_deref(), Some("vendor_bar"));
        assert_eq!(text("symbol", 0).as_deref(), Some("NVDA"));
        assert_eq!(text("record_kind", 1), None);
        let raw = batch.column_by_name("raw").unwrap().as_binary::<i32>();
        assert_eq!(
            (raw.value(0), raw.value(1), raw.is_null(2)),
            (&b"raw"[..], &b"junk"[..], true)
        );
        let valid = batch.column_by_name("valid_from").unwrap();
        let valid = valid.as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
        assert_eq!((valid.value(0), valid.value(1)), (DAY, 5_000));
    }
}
