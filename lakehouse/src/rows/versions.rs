//! Rows of version tables: cells in column order, and what each record says about versions.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use finlake_schemas::{Bar, Break, Metrics, keys};

use super::cells::{Cell, Cells, push_row, uuid_text};
use crate::error::{LakeError, Result};
use crate::tables::{OPEN_END, Table, TableDef};

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
    /// An empty builder for Silver, Gold or breaks. `def` is the table's definition
    /// (`Lakehouse::def`).
    ///
    /// # Errors
    /// `Internal` for Bronze.
    pub fn new(def: &TableDef, partition: i32) -> Result<VersionRows> {
        if !def.table.versioned() {
            return Err(LakeError::Internal(format!(
                "{} has no versions",
                def.table
            )));
        }
        let cells = def.columns.iter().map(|c| Cells::new(c.ty)).collect();
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
        push_row(self.table, &mut self.cells, cells)
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

    /// Adds a version of a break found at `offset` of its topic. The record says neither since
    /// when the break is known nor which version it replaces: that is the table's own.
    ///
    /// # Errors
    /// `Internal` if this builder is not that of breaks.
    pub(crate) fn push_break(&mut self, b: &Break, at: &BreakAt, offset: i64) -> Result<()> {
        let id = uuid_text(&mut self.scratch, b.break_id);
        let cells = [
            Cell::Str(&id),
            Cell::Str(b.kind.as_str()),
            Cell::Str(b.severity.as_str()),
            Cell::Str(&b.layer),
            Cell::Str(&b.table),
            Cell::Str(&b.key),
            Cell::Str(&b.cause),
            Cell::Text(b.source.as_deref()),
            Cell::Text(b.symbol.as_deref()),
            Cell::Date(b.trade_date),
            Cell::Str(b.status.as_str()),
            Cell::Text(b.expected.as_deref()),
            Cell::Text(b.actual.as_deref()),
            Cell::Str(&b.detail),
            Cell::Str(&b.found_by),
            Cell::Instant(Some(b.system_time)),
            Cell::Instant(Some(at.valid_from)),
            Cell::Instant(Some(OPEN_END)),
            Cell::Instant(Some(at.sys_from)),
            Cell::Instant(Some(OPEN_END)),
            Cell::Bool(true),
            Cell::Instant(at.prev),
            Cell::Int(self.partition),
            Cell::Long(offset),
        ];
        self.row(&cells)?;
        self.scratch = id;
        keys::breaks(b.break_id, &mut self.keys);
        self.end(at.sys_from, at.prev, false, at.commit);
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

/// Where a version of a break stands in time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BreakAt {
    /// Since when the break is known (µs): the same for all its versions.
    pub valid_from: i64,
    /// System time of this version (µs).
    pub sys_from: i64,
    /// System time of the version it replaces.
    pub prev: Option<i64>,
    /// Number of the batch.
    pub commit: i64,
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
