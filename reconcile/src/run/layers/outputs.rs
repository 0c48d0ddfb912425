//! Silver and Gold against their topics, range of output offsets by range, so that memory holds
//! the hashes of one range whatever the table's size.

use std::collections::BTreeSet;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Date32Type, TimestampMicrosecondType};
use finlake_schemas::topics;

use super::*;
use crate::bisect::{self, Side};
use crate::hashes;
use crate::outputs::{self, Of, Outcome, Said};

/// Offsets between two differences that are still looked up by one reading.
const NEAR: i64 = 500;

/// One table and what is wanted of it.
struct Versions<'a> {
    pinned: &'a Pinned,
    of: Of<'a>,
    /// What a record decides, in the order of the definition.
    columns: Vec<String>,
    /// Greatest system time looked at.
    until: i64,
    symbol: Option<&'a str>,
    dates: Option<(i32, i32)>,
}

impl Versions<'_> {
    /// Rows within the scope and the cut, and whether the batch has gone beyond the cut.
    fn wanted(&self, batch: &RecordBatch) -> Result<(Vec<usize>, bool)> {
        let missing = |name: &str| bad(columns::BadColumn(name.to_owned()));
        let column = |name: &str| batch.column_by_name(name).ok_or_else(|| missing(name));
        let system = column("sys_from")?
            .as_primitive_opt::<TimestampMicrosecondType>()
            .ok_or_else(|| missing("sys_from"))?;
        let date = column("trade_date")?
            .as_primitive_opt::<Date32Type>()
            .ok_or_else(|| missing("trade_date"))?;
        let symbol = column("symbol")?
            .as_string_opt::<i32>()
            .ok_or_else(|| missing("symbol"))?;
        let fits = |at: &usize| {
            let day = date.value(*at);
            system.value(*at) <= self.until
                && self.symbol.is_none_or(|s| symbol.value(*at) == s)
                && self
                    .dates
                    .is_none_or(|(from, to)| (from..to).contains(&day))
        };
        let beyond = system.values().iter().any(|s| *s > self.until);
        Ok(((0..batch.num_rows()).filter(fits).collect(), beyond))
    }

    /// Offset and hash of the rows wanted; true if the batch has gone beyond the cut.
    fn hash(&self, batch: &RecordBatch, out: &mut Vec<(i64, u128)>) -> Result<bool> {
        let (wanted, beyond) = self.wanted(batch)?;
        let columns = self.columns.iter().map(String::as_str);
        let hashes = hashes::rows(batch, columns).map_err(bad)?;
        let offsets = outputs::offsets(batch).map_err(bad)?;
        out.extend(wanted.into_iter().map(|at| (offsets[at], hashes[at])));
        Ok(beyond)
    }

    fn said(
        &self,
        batch: &RecordBatch,
        offsets: &BTreeSet<i64>,
        out: &mut BTreeMap<i64, Vec<Said>>,
    ) -> Result<()> {
        let at = outputs::offsets(batch).map_err(bad)?;
        for row in self.wanted(batch)?.0 {
            if offsets.contains(&at[row]) {
                let said = Said::of(self.of.layer, batch, row, &self.columns).map_err(bad)?;
                out.entry(at[row]).or_default().push(said);
            }
        }
        Ok(())
    }

    fn scan(&self, range: Option<(i64, i64)>) -> Scan {
        let mut filter = Filter::all().partition(self.of.partition);
        if let Some(symbol) = self.symbol {
            filter = filter.symbol(symbol);
        }
        if let Some((from, to)) = self.dates {
            filter = filter.dates(from..to);
        }
        if let Some((from, to)) = range {
            filter = filter.offsets(from..to);
        }
        let columns: Vec<&str> = self.columns.iter().map(String::as_str).collect();
        Scan::columns(&columns).filter(filter)
    }
}

impl Run<'_> {
    /// Compares a table with its topic, as far as the topic is retained.
    pub async fn outputs(&mut self, pinned: &Pinned, layer: Layer) -> Result<()> {
        let Some(records) = self.records else {
            return Ok(());
        };
        let table = pinned.table().to_string();
        let topic = match layer {
            Layer::Gold => topics::METRICS,
            _ => topics::OHLCV,
        };
        let names = pinned.def().columns.iter().map(|c| c.name.clone());
        let columns: Vec<String> = names
            .filter(|c| !outputs::LATER.contains(&c.as_str()))
            .collect();
        let mut outcome = Outcome {
            named: Vec::new(),
            since: i64::MIN,
        };
        let mut older = 0;
        for (&partition, position) in &pinned.watermarks().positions {
            let versions = Versions {
                pinned,
                of: Of {
                    layer,
                    table: &table,
                    topic,
                    partition,
                },
                columns: columns.clone(),
                until: position
                    .frontier
                    .min(self.options.as_of.unwrap_or(i64::MAX)),
                symbol: self.options.symbol.as_deref(),
                dates: self.options.dates,
            };
            match self.partition(&versions, records, &mut outcome).await? {
                Ok(n) => older += n,
                Err(why) => {
                    self.report.unchecked.push(why);
                    outcome.since = i64::MAX;
                }
            }
        }
        self.report
            .looked
            .written_since
            .insert(layer, outcome.since);
        if older > 0 {
            self.report.notes.push(format!(
                "{older} rows of {table} are older than what {topic} retains: they were not \
                 compared with it"
            ));
        }
        outputs::join(layer, topic, outcome, &mut self.report.findings);
        Ok(())
    }

    /// Compares one partition; gives the rows that are older than the topic's log start.
    async fn partition(
        &mut self,
        versions: &Versions<'_>,
        records: &dyn Records,
        outcome: &mut Outcome,
    ) -> Result<std::result::Result<u64, String>> {
        let (table, partition) = (versions.pinned.table(), versions.of.partition);
        let (mut from, mut older) = (i64::MIN, 0);
        let most = records.at_a_time();
        loop {
            let mut expected = Vec::new();
            let mut ended = true;
            let mut first_system = None;
            let stretch = records.written(table, partition, (from, i64::MAX), &mut |batch| {
                if let (None, Some(system)) = (first_system, batch.column_by_name("sys_from"))
                    && let Some(times) = system.as_primitive_opt::<TimestampMicrosecondType>()
                {
                    first_system = times.values().first().copied();
                }
                let beyond = versions.hash(batch, &mut expected);
                let beyond = beyond.map_err(|e| e.to_string())?;
                ended = beyond || expected.len() < most;
                Ok(!beyond && expected.len() < most)
            });
            let stretch = match stretch {
                Ok(stretch) => stretch,
                Err(why) => return Ok(Err(why)),
            };
            let to = if ended { i64::MAX } else { stretch.next };
            // A single range needs no bounds: rows without an offset are then read too.
            let range = (from, to) != (i64::MIN, i64::MAX);
            let scan = versions.scan(range.then_some((from, to)));
            let mut actual = Vec::new();
            let mut batches = versions.pinned.scan(&scan).await?;
            while let Some(b) = batches.try_next().await? {
                versions.hash(&b.batch, &mut actual)?;
                self.watch.rows("versions", b.batch.num_rows() as u64, 0);
            }
            let began = Instant::now();
            let all = actual.len();
            actual.retain(|r| r.0 < 0 || r.0 >= stretch.first);
            older += (all - actual.len()) as u64;
            if from == i64::MIN && stretch.first > 0 {
                // Whether the table had rows of what the topic no longer has cannot be told by its rows.
                let since = first_system.unwrap_or(i64::MAX);
                outcome.since = outcome.since.max(since);
            }
            let limit = self.options.limit.max(1);
            let (expected, actual) = (Side::new(expected), Side::new(actual));
            let (found, more) = bisect::differences(&expected, &actual, limit);
            if more {
                self.report.findings.cut_off();
            }
            self.report.compared += began.elapsed();
            if !found.is_empty() {
                match self.look_up(versions, records, &found).await? {
                    Ok(named) => outcome.named.extend(named),
                    Err(why) => return Ok(Err(why)),
                }
            }
            if ended {
                return Ok(Ok(older));
            }
            from = stretch.next;
        }
    }

    /// Reads both sides again where they differ, and names the differences.
    async fn look_up(
        &self,
        versions: &Versions<'_>,
        records: &dyn Records,
        found: &[bisect::Difference],
    ) -> Result<std::result::Result<Vec<outputs::Named>, String>> {
        let offsets: BTreeSet<i64> = found.iter().map(|d| d.key()).collect();
        let (mut said, mut rows) = (BTreeMap::new(), BTreeMap::new());
        let table = versions.pinned.table();
        for range in bisect::ranges(offsets.iter().copied(), NEAR) {
            if range.1 > 0 {
                let partition = versions.of.partition;
                let read = records.written(table, partition, range, &mut |batch| {
                    let taken = versions.said(batch, &offsets, &mut said);
                    taken.map_err(|e| e.to_string())?;
                    Ok(true)
                });
                if let Err(why) = read {
                    return Ok(Err(why));
                }
            }
            let bounds = (range.0 >= 0).then_some(range);
            let mut batches = versions.pinned.scan(&versions.scan(bounds)).await?;
            while let Some(b) = batches.try_next().await? {
                versions.said(&b.batch, &offsets, &mut rows)?;
            }
        }
        let named = found.iter().filter_map(|d| {
            let record = said.get(&d.key()).and_then(|s: &Vec<Said>| s.first());
            let rows = rows.get(&d.key()).map_or(&[][..], Vec::as_slice);
            outputs::name(versions.of, *d, record, rows)
        });
        Ok(Ok(named.collect()))
    }
}
