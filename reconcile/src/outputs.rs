//! Silver and Gold against their own topics: every version in the table is what the record at its
//! output offset says, and every committed record that the topic still has is a version.
//!
//! Pure. This tells an edited table from a wrong computation: where recomputation finds a drift
//! and the topic says what the table says, the task computed it so; where the topic says
//! otherwise, somebody changed the table. Data flows: `run` hashes rows and records by offset,
//! `bisect` finds the offsets, and here they get their names.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Date32Type, Int64Type, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use finlake_schemas::{BreakKind, Severity, keys};

use crate::bisect::Difference;
use crate::columns::BadColumn;
use crate::findings::{Finding, Findings, Layer, MATERIAL};

/// First parts of the causes of these findings.
pub const CAUSES: [&str; 2] = ["record", "invented"];

/// Columns that later versions change: they are not the record's.
pub const LATER: [&str; 2] = ["sys_to", "is_current"];

/// Which table, which topic, which partition.
#[derive(Debug, Clone, Copy)]
pub struct Of<'a> {
    pub layer: Layer,
    /// Full name of the table.
    pub table: &'a str,
    pub topic: &'a str,
    pub partition: i32,
}

/// A cell for people; `number`: its difference can be measured.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cell {
    column: String,
    text: String,
    number: bool,
}

/// What a row says, or a record as the row that it must become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Natural key, as the topic spells it.
    pub key: String,
    source: String,
    symbol: String,
    /// Days since 1970.
    date: i32,
    /// System time, µs.
    pub sys_from: i64,
    cells: Vec<Cell>,
}

/// Numbers whose difference is a share of their value; a changed number of another column (an
/// offset, a revision) is wrong whatever its size.
fn measured(column: &str, ty: &DataType) -> bool {
    matches!(ty, DataType::Decimal128(..) | DataType::Float64)
        || matches!(column, "trade_count" | "observations")
}

impl Said {
    /// Reads row `at` of a batch of Silver or Gold, over these columns.
    ///
    /// # Errors
    /// [`BadColumn`].
    pub fn of(
        layer: Layer,
        batch: &RecordBatch,
        at: usize,
        columns: &[String],
    ) -> Result<Said, BadColumn> {
        let bad = |name: &str| BadColumn(name.to_owned());
        let text = |name: &str| -> Result<String, BadColumn> {
            let column = batch.column_by_name(name).ok_or_else(|| bad(name))?;
            let texts = column.as_string_opt::<i32>().ok_or_else(|| bad(name))?;
            let text = if texts.is_valid(at) {
                texts.value(at)
            } else {
                ""
            };
            Ok(text.to_owned())
        };
        let time = |name: &str| -> Result<i64, BadColumn> {
            let column = batch.column_by_name(name).ok_or_else(|| bad(name))?;
            let times = column
                .as_primitive_opt::<TimestampMicrosecondType>()
                .ok_or_else(|| bad(name))?;
            Ok(times.value(at))
        };
        let date = batch
            .column_by_name("trade_date")
            .and_then(|c| c.as_primitive_opt::<Date32Type>())
            .ok_or_else(|| bad("trade_date"))?
            .value(at);
        let (source, symbol) = (text("source")?, text("symbol")?);
        let mut key = Vec::new();
        if layer == Layer::Gold {
            keys::metrics(&source, &symbol, date, &mut key);
        } else {
            let interval = text("bar_interval")?;
            keys::bar(&source, &symbol, &interval, time("bar_start")?, &mut key);
        }
        let options = FormatOptions::default().with_null("null");
        let mut cells = Vec::with_capacity(columns.len());
        for name in columns {
            let column = batch.column_by_name(name).ok_or_else(|| bad(name))?;
            let shown = ArrayFormatter::try_new(column, &options).map_err(|_| bad(name))?;
            cells.push(Cell {
                column: name.clone(),
                text: shown.value(at).to_string(),
                number: measured(name, column.data_type()),
            });
        }
        Ok(Said {
            key: String::from_utf8_lossy(&key).into_owned(),
            source,
            symbol,
            date,
            sys_from: time("sys_from")?,
            cells,
        })
    }
}

/// Output offsets of a batch; −1 for null, which no record has.
///
/// # Errors
/// [`BadColumn`].
pub fn offsets(batch: &RecordBatch) -> Result<Vec<i64>, BadColumn> {
    let column = batch
        .column_by_name("kafka_offset")
        .and_then(|c| c.as_primitive_opt::<Int64Type>())
        .ok_or_else(|| BadColumn("kafka_offset".to_owned()))?;
    Ok(column.iter().map(|o| o.unwrap_or(-1)).collect())
}

/// A finding with the system time of the version it is about.
#[derive(Debug, Clone)]
pub struct Named {
    pub sys_from: i64,
    pub finding: Finding,
}

/// Names one difference. `record` is what the topic says at the offset, `rows` what the table
/// has; one of them at least. `None`: neither could be read again.
pub fn name(
    of: Of<'_>,
    difference: Difference,
    record: Option<&Said>,
    rows: &[Said],
) -> Option<Named> {
    let other = rows
        .iter()
        .find(|r| record.is_none_or(|e| r.cells != e.cells));
    let about = record.or(other).or(rows.first())?;
    let place = format!("{}/{}:{}", of.topic, of.partition, difference.key());
    let finding = |kind, cause: String| {
        Finding::new(kind, of.layer, of.table, about.key.clone(), cause)
            .of(&about.source, &about.symbol)
            .on(about.date)
    };
    let at = about.sys_from;
    let finding = match difference {
        Difference::Missing(_) => finding(BreakKind::Missing, format!("record:{at}"))
            .expected(format!("the version that {place} says"))
            .actual("no row")
            .detail(
                "the topic has the record and the table has no row of it: the sink lost it, or \
                 the table was changed after it was written",
            ),
        Difference::Doubled(_) => finding(BreakKind::Duplicate, format!("record:{at}"))
            .expected(format!("one row for {place}"))
            .actual(format!("{} rows", rows.len()))
            .detail(
                "one record is several rows: a commit was applied twice, or rows were copied; \
                 remove the copy, or rebuild the table",
            ),
        Difference::Extra(_) => finding(BreakKind::Duplicate, format!("invented:{at}"))
            .expected(format!("no row: there is no record at {place}"))
            .actual("a row")
            .detail("the table has a version that no record of the topic made"),
        Difference::Differs(_) => {
            let (record, row) = (record?, other?);
            let differ: Vec<_> = record
                .cells
                .iter()
                .zip(&row.cells)
                .filter(|(a, b)| a.text != b.text)
                .collect();
            let list =
                |f: &dyn Fn(&(&Cell, &Cell)) -> String| differ.iter().map(f).collect::<Vec<_>>();
            let columns = list(&|(a, _)| a.column.clone()).join("+");
            let severity = if differ.iter().all(|(a, b)| share(a, b) <= MATERIAL) {
                Severity::Minor
            } else {
                Severity::Material
            };
            finding(BreakKind::ValueDrift, format!("record:{columns}:{at}"))
                .severity(severity)
                .expected(list(&|(a, _)| format!("{} {}", a.column, a.text)).join(", "))
                .actual(list(&|(_, b)| format!("{} {}", b.column, b.text)).join(", "))
                .detail(format!(
                    "the table does not say what {place} says: it was changed after it was \
                     written. Put the value back, or rebuild the table"
                ))
        }
    };
    Some(Named {
        sys_from: at,
        finding,
    })
}

/// Relative difference of two numbers; infinite where it cannot be measured.
fn share(a: &Cell, b: &Cell) -> f64 {
    let number = |c: &Cell| c.text.parse::<f64>().ok().filter(|_| c.number);
    match (number(a), number(b)) {
        (Some(a), Some(b)) if a != 0.0 => ((b - a) / a).abs(),
        _ => f64::INFINITY,
    }
}

/// The system time that a cause ends with.
pub(crate) fn moment(cause: &str) -> Option<i64> {
    cause.rsplit(':').next()?.parse().ok()
}

/// What one table's comparison with its topic gave.
#[derive(Debug, Default)]
pub struct Outcome {
    pub named: Vec<Named>,
    /// From this system time (µs) on every version was compared.
    pub since: i64,
}

/// Joins what the topic says to what recomputation found: one row is one break, and a drift says
/// whether the table or the task is wrong. What nobody else found is added.
pub fn join(layer: Layer, topic: &str, outcome: Outcome, out: &mut Findings) {
    let mut by_key: BTreeMap<(BreakKind, String), Vec<Named>> = BTreeMap::new();
    for n in outcome.named {
        let at = (n.finding.kind, n.finding.key.clone());
        by_key.entry(at).or_default().push(n);
    }
    out.amend(|f| {
        if f.layer != layer {
            return;
        }
        let at = moment(&f.cause);
        let fits = |n: &mut Named| at == Some(n.sys_from) || (at.is_none() && f.cause == "row");
        let list = by_key.get_mut(&(f.kind, f.key.clone()));
        // A bar that is not there lacks all its versions.
        let here: Vec<Named> = list.map_or(Vec::new(), |list| list.extract_if(.., fits).collect());
        f.also.extend(here.iter().map(|n| n.finding.cause.clone()));
        match here.into_iter().next() {
            Some(n) => {
                let (says, has) = (n.finding.expected, n.finding.actual);
                f.detail.push_str(&format!(
                    ". The table differs from {topic} (there: {}; in the table: {}): it was \
                     changed after it was written, or the sink did not take the record",
                    says.unwrap_or_default(),
                    has.unwrap_or_default(),
                ));
            }
            None if f.kind == BreakKind::ValueDrift && at.is_some_and(|t| t >= outcome.since) => {
                f.detail.push_str(&format!(
                    ". {topic} says the same as the table: it was computed so, and not edited"
                ));
            }
            None => {}
        }
    });
    for n in by_key.into_values().flatten() {
        out.push(n.finding);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: Of<'_> = Of {
        layer: Layer::Silver,
        table: "silver.market_ohlcv",
        topic: "market.ohlcv",
        partition: 3,
    };

    fn said(close: &str, stage: &str) -> Said {
        let cell = |column: &str, text: &str, number| Cell {
            column: column.into(),
            text: text.into(),
            number,
        };
        Said {
            key: "s:X:1m:0".into(),
            source: "s".into(),
            symbol: "X".into(),
            date: 0,
            sys_from: 70,
            cells: vec![cell("close", close, true), cell("stage", stage, false)],
        }
    }

    fn named(difference: Difference, record: Option<Said>, rows: &[Said]) -> Finding {
        name(OF, difference, record.as_ref(), rows).unwrap().finding
    }

    #[test]
    fn differences_are_named_by_key_column_and_version() {
        let e = || Some(said("10000", "closed"));
        let f = named(Difference::Differs(7), e(), &[said("10002", "closed")]);
        assert_eq!(
            (f.kind, f.severity),
            (BreakKind::ValueDrift, Severity::Material)
        );
        assert_eq!(f.cause, "record:close:70");
        assert!(f.detail.contains("market.ohlcv/3:7"), "{}", f.detail);
        let f = named(Difference::Differs(7), e(), &[said("10000.5", "closed")]);
        assert_eq!(f.severity, Severity::Minor);
        let f = named(Difference::Differs(7), e(), &[said("10000", "forming")]);
        assert_eq!(
            (f.severity, f.cause.as_str()),
            (Severity::Material, "record:stage:70")
        );
        let f = named(Difference::Missing(7), e(), &[]);
        assert_eq!(
            (f.kind, f.cause.as_str()),
            (BreakKind::Missing, "record:70")
        );
        let row = said("10000", "closed");
        let f = named(Difference::Doubled(7), e(), &[row.clone(), row.clone()]);
        assert_eq!(
            (f.kind, f.cause.as_str()),
            (BreakKind::Duplicate, "record:70")
        );
        let f = named(Difference::Extra(7), None, &[row]);
        assert_eq!(
            (f.kind, f.cause.as_str()),
            (BreakKind::Duplicate, "invented:70")
        );
        assert!(name(OF, Difference::Extra(7), None, &[]).is_none());
    }

    #[test]
    fn a_drift_says_whether_it_was_edited_or_computed() {
        let drift = |key: &str, at: i64| {
            Finding::new(
                BreakKind::ValueDrift,
                Layer::Silver,
                "t",
                key,
                format!("close:{at}"),
            )
        };
        let differs = name(
            OF,
            Difference::Differs(7),
            Some(&said("1", "closed")),
            &[said("2", "closed")],
        );
        let mut out = Findings::default();
        for f in [
            drift("s:X:1m:0", 70),
            drift("other", 70),
            drift("other", 10),
        ] {
            out.push(f);
        }
        let outcome = Outcome {
            named: differs.into_iter().collect(),
            since: 50,
        };
        join(Layer::Silver, "market.ohlcv", outcome, &mut out);
        let details: Vec<&str> = out.list().iter().map(|f| f.detail.as_str()).collect();
        assert_eq!(details.len(), 3, "one row, one break");
        assert!(details[0].contains("changed after it was written"));
        assert!(details[1].contains("computed so"));
        assert_eq!(details[2], "", "older than what the topic retains");
    }
}
