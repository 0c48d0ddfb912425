//! Which rows to read: conditions on columns, exact on rows, and used to skip files and row
//! groups.
//!
//! Pure. A conjunction; a null never satisfies a condition but `is_null`. Integers, dates (days)
//! and instants (µs) compare as i64 over half-open ranges.

use std::ops::Range;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use iceberg::expr::{Predicate, Reference};
use iceberg::spec::{Datum, PrimitiveLiteral};

use crate::error::{LakeError, Result};
use crate::tables::{ColType, Table, TableDef};

const DAY: i64 = 86_400_000_000;

#[derive(Debug, Clone, PartialEq)]
enum Test {
    Texts(Vec<String>),
    Between(i64, i64),
    Flag(bool),
    Null(bool),
}

/// A conjunction of conditions; empty: every row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    tests: Vec<(String, Test)>,
}

impl Filter {
    /// Every row.
    pub fn all() -> Filter {
        Filter::default()
    }

    fn and(mut self, column: &str, test: Test) -> Filter {
        self.tests.push((column.to_string(), test));
        self
    }

    /// Text column equal to `value`.
    pub fn text(self, column: &str, value: &str) -> Filter {
        self.and(column, Test::Texts(vec![value.to_string()]))
    }

    /// Text column equal to one of `values`.
    pub fn one_of(self, column: &str, values: &[&str]) -> Filter {
        let values = values.iter().map(|v| v.to_string()).collect();
        self.and(column, Test::Texts(values))
    }

    /// Number, date (days) or instant (µs) column within the half-open range.
    pub fn between(self, column: &str, range: Range<i64>) -> Filter {
        self.and(column, Test::Between(range.start, range.end))
    }

    /// Boolean column.
    pub fn flag(self, column: &str, value: bool) -> Filter {
        self.and(column, Test::Flag(value))
    }

    /// Column is null (or, with `false`, is not).
    pub fn null(self, column: &str, value: bool) -> Filter {
        self.and(column, Test::Null(value))
    }

    /// One symbol.
    pub fn symbol(self, symbol: &str) -> Filter {
        self.text("symbol", symbol)
    }

    /// One source.
    pub fn source(self, source: &str) -> Filter {
        self.text("source", source)
    }

    /// One bar interval (Silver), such as `1m`.
    pub fn interval(self, interval: &str) -> Filter {
        self.text("bar_interval", interval)
    }

    /// One Kafka partition.
    pub fn partition(self, partition: i32) -> Filter {
        let p = i64::from(partition);
        self.between("kafka_partition", p..p + 1)
    }

    /// Task commits, half-open.
    pub fn commits(self, range: Range<i64>) -> Filter {
        self.between("commit", range)
    }

    /// Kafka offsets, half-open: of the input record (Bronze) or of the output record.
    pub fn offsets(self, range: Range<i64>) -> Filter {
        self.between("kafka_offset", range)
    }

    /// Trade dates (days since 1970), half-open. Bronze has no such column: there it is the UTC
    /// day of `trade_time`, and undecodable records (null) are left out.
    pub fn dates(self, range: Range<i32>) -> Filter {
        self.between("trade_date", i64::from(range.start)..i64::from(range.end))
    }

    /// Rows that are open: what is known now.
    pub fn current(self) -> Filter {
        self.flag("is_current", true)
    }

    /// Rows as known at system time `s` (µs): sys_from ≤ s < sys_to.
    pub fn as_of_system(self, s: i64) -> Filter {
        self.between("sys_from", i64::MIN..s.saturating_add(1))
            .between("sys_to", s.saturating_add(1)..i64::MAX)
    }

    /// The conditions under the columns that the table has.
    pub(crate) fn bind(&self, def: &TableDef) -> Result<Bound> {
        let mut tests = Vec::with_capacity(self.tests.len());
        for (column, test) in &self.tests {
            let (column, test) = match (def.table, column.as_str(), test) {
                (Table::Ticks, "trade_date", Test::Between(a, b)) => (
                    "trade_time",
                    Test::Between(a.saturating_mul(DAY), b.saturating_mul(DAY)),
                ),
                (_, column, test) => (column, test.clone()),
            };
            let ty = def
                .columns
                .iter()
                .find(|c| c.name == column)
                .map(|c| c.ty)
                .ok_or_else(|| {
                    LakeError::Config(format!("{} has no column {column} to filter by", def.table))
                })?;
            let fits = match test {
                Test::Texts(_) => ty == ColType::Str,
                Test::Between(..) => matches!(
                    ty,
                    ColType::Int | ColType::Long | ColType::Date | ColType::Instant
                ),
                Test::Flag(_) => ty == ColType::Bool,
                Test::Null(_) => true,
            };
            if !fits {
                return Err(LakeError::Config(format!(
                    "column {column} of {} cannot be filtered this way",
                    def.table
                )));
            }
            tests.push((column.to_string(), ty, test));
        }
        Ok(Bound { tests })
    }
}

/// A filter bound to a table's columns.
#[derive(Debug, Clone)]
pub(crate) struct Bound {
    tests: Vec<(String, ColType, Test)>,
}

impl Bound {
    /// Columns it reads.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.tests.iter().map(|(c, ..)| c.as_str())
    }

    /// For skipping files: keeps every file that may hold a row.
    pub fn predicate(&self) -> Option<Predicate> {
        self.tests
            .iter()
            .filter_map(|(column, ty, test)| {
                let c = Reference::new(column);
                let datum = |v: i64| match ty {
                    ColType::Int => i32::try_from(v).ok().map(Datum::int),
                    ColType::Date => i32::try_from(v).ok().map(Datum::date),
                    ColType::Instant => Some(Datum::timestamptz_micros(v)),
                    _ => Some(Datum::long(v)),
                };
                match test {
                    Test::Texts(values) if values.len() == 1 => {
                        Some(c.equal_to(Datum::string(values.first()?)))
                    }
                    Test::Texts(values) => Some(c.is_in(values.iter().map(Datum::string))),
                    Test::Between(from, to) => {
                        let low = datum(*from).filter(|_| *from != i64::MIN);
                        let high = datum(*to).filter(|_| *to != i64::MAX);
                        let low = low.map(|d| c.clone().greater_than_or_equal_to(d));
                        let high = high.map(|d| c.less_than(d));
                        match (low, high) {
                            (Some(a), Some(b)) => Some(a.and(b)),
                            (a, b) => a.or(b),
                        }
                    }
                    Test::Flag(v) => Some(c.equal_to(Datum::bool(*v))),
                    Test::Null(true) => Some(c.is_null()),
                    Test::Null(false) => Some(c.is_not_null()),
                }
            })
            .reduce(Predicate::and)
    }

    /// Whether a row group may hold a row. `bounds` gives a column's least and greatest value.
    pub fn may_hold(&self, bounds: impl Fn(&str, ColType) -> Option<(Datum, Datum)>) -> bool {
        self.tests.iter().all(|(column, ty, test)| {
            let Some((low, high)) = bounds(column, *ty) else {
                return true;
            };
            match test {
                Test::Texts(values) => match (low.literal(), high.literal()) {
                    (PrimitiveLiteral::String(a), PrimitiveLiteral::String(b)) => {
                        values.iter().any(|v| a <= v && v <= b)
                    }
                    _ => true,
                },
                Test::Between(from, to) => match (number(&low), number(&high)) {
                    (Some(a), Some(b)) => a < *to && *from <= b,
                    _ => true,
                },
                Test::Flag(_) | Test::Null(_) => true,
            }
        })
    }

    /// Rows of a batch that satisfy it; `None`: all of them.
    pub fn rows(&self, batch: &RecordBatch) -> Result<Option<BooleanArray>> {
        let mut kept: Option<BooleanBuffer> = None;
        for (column, _, test) in &self.tests {
            let array = batch
                .column_by_name(column)
                .ok_or_else(|| LakeError::Internal(format!("{column} was not read")))?;
            let hits = hits(array.as_ref(), test)?;
            kept = Some(match kept {
                None => hits,
                Some(k) => &k & &hits,
            });
        }
        Ok(kept
            .filter(|k| k.count_set_bits() < k.len())
            .map(|k| BooleanArray::new(k, None)))
    }
}

fn number(d: &Datum) -> Option<i64> {
    match d.literal() {
        PrimitiveLiteral::Int(v) => Some(i64::from(*v)),
        PrimitiveLiteral::Long(v) => Some(*v),
        _ => None,
    }
}

fn hits(array: &dyn Array, test: &Test) -> Result<BooleanBuffer> {
    let n = array.len();
    let valid = |i: usize| array.is_valid(i);
    Ok(match test {
        Test::Null(wanted) => BooleanBuffer::collect_bool(n, |i| valid(i) != *wanted),
        Test::Flag(wanted) => {
            let a = array.as_boolean();
            BooleanBuffer::collect_bool(n, |i| valid(i) && a.value(i) == *wanted)
        }
        Test::Texts(values) => {
            let is = |t: &str| values.iter().any(|v| v == t);
            if let Some(d) = array.as_dictionary_opt::<Int32Type>() {
                let texts = d.values().as_string::<i32>();
                let good: Vec<bool> = texts.iter().map(|t| t.is_some_and(is)).collect();
                let keys = d.keys();
                BooleanBuffer::collect_bool(n, |i| keys.is_valid(i) && good[keys.value(i) as usize])
            } else {
                let a = array.as_string::<i32>();
                BooleanBuffer::collect_bool(n, |i| valid(i) && is(a.value(i)))
            }
        }
        Test::Between(from, to) => {
            let longs = match array.data_type() {
                DataType::Int64 => None,
                DataType::Int32 | DataType::Date32 => {
                    let ints = cast(array, &DataType::Int32)?;
                    Some(cast(&ints, &DataType::Int64)?)
                }
                _ => Some(cast(array, &DataType::Int64)?),
            };
            let a = match &longs {
                Some(l) => l.as_primitive::<Int64Type>(),
                None => array.as_primitive::<Int64Type>(),
            };
            let v = a.values();
            BooleanBuffer::collect_bool(n, |i| valid(i) && *from <= v[i] && v[i] < *to)
        }
    })
}
