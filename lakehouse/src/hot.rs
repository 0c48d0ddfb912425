//! Hot rows: current rows that are likely to be superseded soon, in memory and in small files.
//!
//! One hot file per Kafka partition and Iceberg partition tuple, replaced whole when touched.
//! What stands here equals what the hot files of the base hold: it is loaded from them at
//! assignment and changed only after a swap has succeeded. `cooling` decides, by the stream's own
//! time, which rows leave for settled files. Never reads settled files.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Date32Type, TimestampMicrosecondType};
use finlake_schemas::keys;

use crate::error::{LakeError, Result};
use crate::index::{Base, Kind};
use crate::lake::HotRule;
use crate::tables::{Table, TableDef};
use crate::writer::FileWriter;

/// Where a hot row stands.
#[derive(Debug, Clone)]
pub struct HotRow {
    /// Its file.
    pub path: Arc<str>,
    /// Row in the file.
    pub row: u32,
    /// System time at which the version began.
    pub sys_from: i64,
}

/// Hot rows of one Kafka partition.
#[derive(Debug, Default)]
pub struct HotPart {
    /// Content of each hot file.
    pub files: BTreeMap<Arc<str>, RecordBatch>,
    rows: HashMap<Box<[u8]>, HotRow>,
    /// Stream time per source: the greatest last-trade time seen in any version (µs).
    pub stream: BTreeMap<String, i64>,
}

impl HotPart {
    /// Reads the hot files of a partition.
    ///
    /// # Errors
    /// `DuplicateOpenRow` if two hot files hold one key; `Storage`, `Parquet`.
    pub async fn load(
        base: &Base,
        partition: i32,
        def: &TableDef,
        files: &FileWriter,
    ) -> Result<HotPart> {
        let mut part = HotPart::default();
        let paths: Vec<Arc<str>> = base
            .files()
            .filter(|f| f.kind == Kind::Hot(partition))
            .map(|f| f.path.clone())
            .collect();
        for path in paths {
            let batch = files.read(&path, None).await?;
            part.insert(def, path, batch)?;
        }
        Ok(part)
    }

    /// Takes a file in.
    ///
    /// # Errors
    /// `DuplicateOpenRow` if a key of it is hot already.
    pub fn insert(&mut self, def: &TableDef, path: Arc<str>, batch: RecordBatch) -> Result<()> {
        let columns = Columns::new(def, &batch)?;
        let mut key = Vec::new();
        for row in 0..batch.num_rows() {
            key.clear();
            columns.key(row, &mut key);
            let at = HotRow {
                path: path.clone(),
                row: row as u32,
                sys_from: columns.sys_from(row),
            };
            if self.rows.insert(key.as_slice().into(), at).is_some() {
                return Err(LakeError::DuplicateOpenRow {
                    table: def.table,
                    key: String::from_utf8_lossy(&key).into_owned(),
                });
            }
            columns.advance(row, &mut self.stream);
        }
        self.files.insert(path, batch);
        Ok(())
    }

    /// Lets a file go.
    ///
    /// # Errors
    /// `Internal` if its columns are not the table's.
    pub fn remove(&mut self, def: &TableDef, path: &str) -> Result<()> {
        let Some(batch) = self.files.remove(path) else {
            return Ok(());
        };
        let columns = Columns::new(def, &batch)?;
        let mut key = Vec::new();
        for row in 0..batch.num_rows() {
            key.clear();
            columns.key(row, &mut key);
            self.rows.remove(key.as_slice());
        }
        Ok(())
    }

    /// The hot row of a key.
    pub fn get(&self, key: &[u8]) -> Option<&HotRow> {
        self.rows.get(key)
    }

    /// Number of hot rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// No hot rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// The columns of a version table that keys and temperature are read from.
pub struct Columns<'a> {
    table: Table,
    id: Option<&'a arrow::array::StringArray>,
    source: &'a arrow::array::StringArray,
    symbol: &'a arrow::array::StringArray,
    interval: Option<&'a arrow::array::StringArray>,
    stage: Option<&'a arrow::array::StringArray>,
    start: Option<&'a arrow::array::TimestampMicrosecondArray>,
    date: &'a arrow::array::Date32Array,
    end: &'a arrow::array::TimestampMicrosecondArray,
    stream: &'a arrow::array::TimestampMicrosecondArray,
    sys_from: &'a arrow::array::TimestampMicrosecondArray,
}

/// Columns that `Columns` needs at least.
pub const KEY_COLUMNS: &[&str] = &[
    "break_id",
    "source",
    "symbol",
    "bar_interval",
    "bar_start",
    "bar_end",
    "trade_date",
    "last_trade_time",
    "stage",
    "status",
    "valid_from",
    "sys_from",
    "sys_to",
];

impl<'a> Columns<'a> {
    /// Finds the columns in a batch.
    ///
    /// # Errors
    /// `Internal` if one is missing or of another type.
    pub fn new(def: &TableDef, batch: &'a RecordBatch) -> Result<Columns<'a>> {
        let get = |name: &str| {
            batch
                .column_by_name(name)
                .ok_or_else(|| LakeError::Internal(format!("{} without {name}", def.table)))
        };
        let wrong = |name: &str| LakeError::Internal(format!("{name} has another type"));
        let text = |name: &str| get(name)?.as_string_opt::<i32>().ok_or_else(|| wrong(name));
        let time = |name: &str| {
            get(name)?
                .as_primitive_opt::<TimestampMicrosecondType>()
                .ok_or_else(|| wrong(name))
        };
        let bars = def.table == Table::Ohlcv;
        let breaks = def.table == Table::Breaks;
        Ok(Columns {
            table: def.table,
            id: breaks.then(|| text("break_id")).transpose()?,
            source: text("source")?,
            symbol: text("symbol")?,
            interval: bars.then(|| text("bar_interval")).transpose()?,
            stage: match def.table {
                Table::Ohlcv => Some(text("stage")?),
                Table::Breaks => Some(text("status")?),
                _ => None,
            },
            start: match def.table {
                Table::Ohlcv => Some(time("bar_start")?),
                Table::Breaks => Some(time("valid_from")?),
                _ => None,
            },
            date: get("trade_date")?
                .as_primitive_opt::<Date32Type>()
                .ok_or_else(|| wrong("trade_date"))?,
            end: time(match def.table {
                Table::Ohlcv => "bar_end",
                Table::Breaks => "sys_from",
                _ => "valid_from",
            })?,
            stream: time(match def.table {
                Table::Ohlcv => "last_trade_time",
                Table::Breaks => "sys_from",
                _ => "valid_from",
            })?,
            sys_from: time("sys_from")?,
        })
    }

    /// Appends the natural key of a row.
    pub fn key(&self, row: usize, out: &mut Vec<u8>) {
        let (source, symbol) = (self.source.value(row), self.symbol.value(row));
        if let Some(id) = self.id {
            out.extend_from_slice(id.value(row).as_bytes());
            return;
        }
        match (self.table, self.interval, self.start) {
            (Table::Ohlcv, Some(interval), Some(start)) => {
                keys::bar(source, symbol, interval.value(row), start.value(row), out);
            }
            _ => keys::metrics(source, symbol, self.date.value(row), out),
        }
    }

    /// Symbol of a row.
    pub fn symbol(&self, row: usize) -> &'a str {
        self.symbol.value(row)
    }

    /// The table's time column, as bounds are kept of it.
    pub fn time(&self, row: usize) -> i64 {
        match self.start {
            Some(start) => start.value(row),
            None => i64::from(self.date.value(row)),
        }
    }

    /// System time of a row.
    pub fn sys_from(&self, row: usize) -> i64 {
        self.sys_from.value(row)
    }

    /// Moves the stream time of a row's source.
    pub fn advance(&self, row: usize, stream: &mut BTreeMap<String, i64>) {
        let (source, t) = (self.source.value(row), self.stream.value(row));
        match stream.get_mut(source) {
            Some(at) => *at = (*at).max(t),
            None => {
                stream.insert(source.to_string(), t);
            }
        }
    }

    /// When a row's valid time ends or began (Gold): what its temperature goes by.
    fn end(&self, row: usize) -> i64 {
        self.end.value(row)
    }

    /// Whether a row is likely to be superseded soon.
    pub fn is_hot(&self, row: usize, stream: &BTreeMap<String, i64>, rule: &HotRule) -> bool {
        let finished = self
            .stage
            .is_none_or(|s| matches!(s.value(row), "closed" | "resolved"));
        let patience = if finished {
            rule.closed_for
        } else {
            rule.unfinished_for
        };
        let now = stream
            .get(self.source.value(row))
            .copied()
            .unwrap_or(i64::MIN);
        self.end(row)
            .saturating_add(i64::try_from(patience.as_micros()).unwrap_or(i64::MAX))
            > now
    }
}

/// A candidate for leaving the hot files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Whether the rule calls the row hot.
    pub hot: bool,
    /// End of its valid time: the order in which an overfull store cools.
    pub end: i64,
    /// System time of the version.
    pub sys_from: i64,
}

impl Columns<'_> {
    /// A row as a candidate.
    pub fn candidate(
        &self,
        row: usize,
        stream: &BTreeMap<String, i64>,
        rule: &HotRule,
    ) -> Candidate {
        Candidate {
            hot: self.is_hot(row, stream, rule),
            end: self.end(row),
            sys_from: self.sys_from(row),
        }
    }
}

/// Which of the open rows of a Kafka partition cool now, true = leaves. Cold rows wait until
/// `rule.batch` of them have gathered or one is overdue, so that settled files are written in
/// bulk; when there are more than `rule.max_rows`, the oldest leave whatever the rule says.
pub fn cooling(rows: &[Candidate], now: i64, rule: &HotRule) -> Vec<bool> {
    let cold = rows.iter().filter(|r| !r.hot).count();
    let patience = i64::try_from(rule.patience.as_micros()).unwrap_or(i64::MAX);
    let overdue = rows
        .iter()
        .any(|r| !r.hot && r.sys_from.saturating_add(patience) <= now);
    let flush = cold >= rule.batch || overdue || rows.len() > rule.max_rows;
    let mut out: Vec<bool> = rows.iter().map(|r| flush && !r.hot).collect();
    let mut excess =
        (rows.len() - out.iter().filter(|c| **c).count()).saturating_sub(rule.max_rows);
    if excess > 0 {
        let mut order: Vec<usize> = (0..rows.len()).filter(|i| !out[*i]).collect();
        order.sort_by_key(|i| (rows[*i].end, rows[*i].sys_from, *i));
        for i in order {
            if excess == 0 {
                break;
            }
            out[i] = true;
            excess -= 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn rule() -> HotRule {
        HotRule {
            max_rows: 10,
            batch: 4,
            patience: Duration::from_micros(100),
            ..HotRule::default()
        }
    }

    fn cold(sys_from: i64) -> Candidate {
        Candidate {
            hot: false,
            end: sys_from,
            sys_from,
        }
    }

    #[test]
    fn cold_rows_wait_for_a_batch_or_their_patience() {
        let few = [cold(950), cold(951)];
        assert_eq!(cooling(&few, 1000, &rule()), [false, false]);
        assert_eq!(cooling(&few, 1050, &rule()), [true, true]);
        let many = [cold(950), cold(951), cold(952), cold(953)];
        assert_eq!(cooling(&many, 1000, &rule()), [true; 4]);
    }

    proptest! {
        #[test]
        fn the_store_is_bounded(
            rows in prop::collection::vec((any::<bool>(), 0i64..2_000, 0i64..1_000), 0..60),
        ) {
            let rows: Vec<Candidate> = rows
                .iter()
                .map(|(hot, end, sys_from)| Candidate { hot: *hot, end: *end, sys_from: *sys_from })
                .collect();
            let gone = cooling(&rows, 1_000, &rule());
            let left = gone.iter().filter(|g| !**g).count();
            prop_assert!(left <= 10);
            // No hot row leaves while there is room.
            if gone.iter().zip(&rows).any(|(g, r)| *g && r.hot) {
                prop_assert_eq!(left, 10);
                prop_assert!(gone.iter().zip(&rows).all(|(g, r)| *g || r.hot));
            }
        }
    }
}
