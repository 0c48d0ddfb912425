//! Rows of version tables: cells in column order, and what each record says about versions.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Date32Builder, Decimal128Builder, Float64Builder, Int32Builder,
    Int64Builder, RecordBatch, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::SchemaRef;
use finlake_schemas::{Bar, Metrics, keys};

use crate::error::{LakeError, Result};
use crate::tables::{ColType, OPEN_END, Table, TableDef, instant_type};

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
