//! Bars that somebody corrected through `market.bars`. A range is replayed from trades alone, so of these bars, and of the
//! metrics that follow from their closes, it says nothing: they are set apart.
//!
//! Which assertions were refused is in no table: one that cannot have been applied, by what Silver holds of its bar, does
//! not count. What replays themselves sent is no correction.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::{Context, Result};
use arrow::array::{Array, AsArray, BooleanArray, PrimitiveArray, RecordBatch, StringArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use finlake_lakehouse::{Filter, Pinned, Scan};
use finlake_market::interval::DAY;
use finlake_schemas::keys;
use futures::TryStreamExt;

use super::apply::ORIGIN;
use super::compare::Rows;
use super::keys::symbol_of;
use super::live::{column, texts};

/// What a record of `market.bars` asserted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asserted {
    offset: i64,
    /// `sys_from` of the version that it replaces; none: there was no bar.
    expected: Option<i64>,
    retracted: bool,
}

/// What Silver holds of a version of a bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    sys_from: i64,
    prev: Option<i64>,
    current: bool,
    /// Position of `market.bars` that it reflects, exclusive.
    bars_offset: i64,
}

impl Asserted {
    /// Whether the task may have applied it.
    fn may_hold(self, versions: &[Version]) -> bool {
        let next = versions.iter().find(|v| v.prev == self.expected);
        let took = |v: &Version| v.bars_offset > self.offset;
        match (next, self.expected) {
            (Some(next), Some(_)) => took(next),
            // A bar that was taken back may come again, without a predecessor.
            (_, None) => versions.iter().any(|v| v.prev.is_none() && took(v)),
            (None, Some(at)) => {
                let closed = |v: &Version| v.sys_from == at && !v.current;
                self.retracted && versions.iter().any(closed)
            }
        }
    }
}

/// The corrected bars of some days.
#[derive(Debug, Default)]
pub(super) struct Corrected {
    bars: BTreeSet<Vec<u8>>,
    /// Days whose metrics may follow from a corrected close, by `source:symbol:`.
    metrics: BTreeMap<Vec<u8>, Vec<Range<i32>>>,
}

impl Corrected {
    /// Reads the corrections of bars that begin on these days.
    ///
    /// # Errors
    /// Storage; a column of another type.
    pub async fn find(bars: &Pinned, silver: &Pinned, days: &Range<i32>) -> Result<Corrected> {
        let asserted = assertions(bars, days).await?;
        if asserted.is_empty() {
            return Ok(Corrected::default());
        }
        let mut versions: BTreeMap<Vec<u8>, Vec<Version>> = BTreeMap::new();
        let wanted = [
            "source",
            "symbol",
            "bar_interval",
            "bar_start",
            "sys_from",
            "prev_sys_from",
            "is_current",
            "bars_offset",
        ];
        let named: BTreeSet<&str> = asserted.keys().filter_map(|key| symbol_of(key)).collect();
        let named: Vec<&str> = named.into_iter().collect();
        let filter = Filter::all().dates(days.clone()).one_of("symbol", &named);
        let scan = Scan::columns(&wanted).filter(filter);
        let mut batches = silver.scan(&scan).await?;
        while let Some(found) = batches.try_next().await? {
            add_versions(&found.batch, &asserted, &mut versions)?;
        }
        let applied = asserted.into_iter().filter(|(key, all)| {
            let versions = versions.get(key).map_or(&[][..], Vec::as_slice);
            all.iter().any(|a| a.may_hold(versions))
        });
        Ok(Corrected {
            bars: applied.map(|(key, _)| key).collect(),
            metrics: BTreeMap::new(),
        })
    }

    /// Notes whose metrics follow from corrected closes of this interval: a close is in the windows of its own day and of
    /// the `longest` next ones that there are closes of, on either side.
    pub fn follow(&mut self, daily: &str, longest: usize, sides: [&BTreeSet<(Vec<u8>, i32)>; 2]) {
        for (instrument, day) in self.bars.iter().filter_map(|key| close_of(key, daily)) {
            let reach = |closes: &BTreeSet<(Vec<u8>, i32)>| {
                let from = (instrument.clone(), day)..=(instrument.clone(), i32::MAX);
                // A corrected day may have no close any more: then the windows reach one day further.
                closes.range(from).nth(longest + 1).map(|(_, day)| *day)
            };
            // Not so many closes: every day from this one on.
            let ends = sides.map(|closes| reach(closes).unwrap_or(i32::MAX));
            let days = day..ends[0].max(ends[1]);
            self.metrics.entry(instrument).or_default().push(days);
        }
    }

    /// Nobody corrected anything.
    pub fn is_empty(&self) -> bool {
        self.bars.is_empty()
    }

    /// Whether this bar was corrected.
    pub fn has_bar(&self, key: &[u8]) -> bool {
        self.bars.contains(key)
    }

    /// Whether these metrics may follow from a corrected bar.
    pub fn has_metrics(&self, key: &[u8]) -> bool {
        let Some(at) = key.iter().rposition(|b| *b == b':') else {
            return false;
        };
        let (instrument, date) = key.split_at(at + 1);
        let date = std::str::from_utf8(date).unwrap_or_default();
        // Dates as the keys spell them are in order as texts.
        let within = |days: &Range<i32>| {
            keys::iso_date(days.start).as_str() <= date
                && (days.end == i32::MAX || date < keys::iso_date(days.end).as_str())
        };
        self.metrics
            .get(instrument)
            .is_some_and(|all| all.iter().any(within))
    }
}

/// `source:symbol:` and day of a bar, if it is of this interval.
fn close_of(key: &[u8], daily: &str) -> Option<(Vec<u8>, i32)> {
    let text = std::str::from_utf8(key).ok()?;
    let (rest, start) = text.rsplit_once(':')?;
    let instrument = rest.strip_suffix(daily)?;
    let start: i64 = start.parse().ok()?;
    let day = i32::try_from(start.div_euclid(DAY)).ok()?;
    (instrument.ends_with(':')).then(|| (instrument.as_bytes().to_vec(), day))
}

/// The daily closes among bars: `source:symbol:` and day.
pub(super) fn closes(bars: [&Rows; 2], daily: &str) -> BTreeSet<(Vec<u8>, i32)> {
    let keys = bars.into_iter().flat_map(BTreeMap::keys);
    keys.filter_map(|key| close_of(key, daily)).collect()
}

/// The columns that name a bar, in either table.
struct Named<'a> {
    source: &'a StringArray,
    symbol: &'a StringArray,
    interval: &'a StringArray,
    start: &'a PrimitiveArray<TimestampMicrosecondType>,
}

impl<'a> Named<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self> {
        Ok(Self {
            source: texts(batch, "source")?,
            symbol: texts(batch, "symbol")?,
            interval: texts(batch, "bar_interval")?,
            start: column(batch, "bar_start")?,
        })
    }

    fn key(&self, i: usize) -> Vec<u8> {
        let mut key = Vec::with_capacity(48);
        let (source, symbol) = (self.source.value(i), self.symbol.value(i));
        let interval = self.interval.value(i);
        keys::bar(source, symbol, interval, self.start.value(i), &mut key);
        key
    }
}

async fn assertions(bars: &Pinned, days: &Range<i32>) -> Result<BTreeMap<Vec<u8>, Vec<Asserted>>> {
    let wanted = [
        "source",
        "symbol",
        "bar_interval",
        "bar_start",
        "kafka_offset",
        "expected_sys_from",
        "retracted",
        "origin",
    ];
    let filter = Filter::all()
        .text("record_kind", "assertion")
        .null("bar_start", false)
        .dates(days.clone());
    let mut batches = bars.scan(&Scan::columns(&wanted).filter(filter)).await?;
    let mut found: BTreeMap<Vec<u8>, Vec<Asserted>> = BTreeMap::new();
    while let Some(next) = batches.try_next().await? {
        let b = &next.batch;
        let named = Named::of(b)?;
        let (origin, offset) = (texts(b, "origin")?, column::<Int64Type>(b, "kafka_offset")?);
        let expected = column::<TimestampMicrosecondType>(b, "expected_sys_from")?;
        let retracted = flag(b, "retracted")?;
        for i in (0..b.num_rows()).filter(|i| origin.value(*i) != ORIGIN) {
            found.entry(named.key(i)).or_default().push(Asserted {
                offset: offset.value(i),
                expected: expected.is_valid(i).then(|| expected.value(i)),
                retracted: retracted.is_valid(i) && retracted.value(i),
            });
        }
    }
    Ok(found)
}

fn flag<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a BooleanArray> {
    let found = batch.column_by_name(name);
    found
        .and_then(|c| c.as_boolean_opt())
        .with_context(|| format!("column {name} is not boolean; run `finlake reconcile`"))
}

fn add_versions(
    b: &RecordBatch,
    asserted: &BTreeMap<Vec<u8>, Vec<Asserted>>,
    versions: &mut BTreeMap<Vec<u8>, Vec<Version>>,
) -> Result<()> {
    let named = Named::of(b)?;
    let instant = |name| column::<TimestampMicrosecondType>(b, name);
    let (from, prev) = (instant("sys_from")?, instant("prev_sys_from")?);
    let (current, bars_offset) = (
        flag(b, "is_current")?,
        column::<Int64Type>(b, "bars_offset")?,
    );
    for i in 0..b.num_rows() {
        let key = named.key(i);
        if asserted.contains_key(&key) {
            versions.entry(key).or_default().push(Version {
                sys_from: from.value(i),
                prev: prev.is_valid(i).then(|| prev.value(i)),
                current: current.value(i),
                bars_offset: bars_offset.value(i),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(sys_from: i64, prev: Option<i64>, current: bool, bars_offset: i64) -> Version {
        Version {
            sys_from,
            prev,
            current,
            bars_offset,
        }
    }

    fn asserted(expected: Option<i64>, retracted: bool) -> Asserted {
        Asserted {
            offset: 7,
            expected,
            retracted,
        }
    }

    #[test]
    fn an_assertion_counts_unless_it_was_evidently_refused() {
        let applied = [version(10, None, false, 0), version(20, Some(10), true, 8)];
        assert!(asserted(Some(10), false).may_hold(&applied));
        // About a version that never was, and about one that is still there.
        assert!(!asserted(Some(9), false).may_hold(&applied));
        assert!(!asserted(Some(20), false).may_hold(&applied));
        // A late trade was first: what replaced the version had not seen the assertion.
        let late = [version(10, None, false, 0), version(20, Some(10), true, 7)];
        assert!(!asserted(Some(10), false).may_hold(&late));
        // Taken back: closed, and nothing follows.
        let gone = [version(10, None, false, 0)];
        assert!(asserted(Some(10), true).may_hold(&gone));
        assert!(!asserted(Some(10), false).may_hold(&gone));
        assert!(!asserted(Some(10), true).may_hold(&[version(10, None, true, 0)]));
        // A bar that only the assertion knew, and one that trades had made before.
        assert!(asserted(None, false).may_hold(&[version(10, None, true, 8)]));
        assert!(!asserted(None, false).may_hold(&[version(10, None, true, 3)]));
        assert!(!asserted(None, false).may_hold(&[]));
    }

    #[test]
    fn metrics_follow_for_as_long_as_a_window_holds_the_close() {
        let bar = |interval: &str, day: i64| format!("x:A:{interval}:{}", day * DAY).into_bytes();
        let mut corrected = Corrected {
            bars: BTreeSet::from([bar("1d", 10), bar("1m", 90)]),
            ..Corrected::default()
        };
        // Every other day has a close; on the other side every day from 12 on.
        let closes = |days: &mut dyn Iterator<Item = i32>| -> BTreeSet<(Vec<u8>, i32)> {
            days.map(|day| (b"x:A:".to_vec(), day)).collect()
        };
        let (wide, close) = (
            closes(&mut (0..50).step_by(2)),
            closes(&mut (12..50).chain([10])),
        );
        corrected.follow("1d", 3, [&wide, &close]);
        let follows = |day: i32| {
            let key = format!("x:A:{}", keys::iso_date(day));
            corrected.has_metrics(key.as_bytes())
        };
        // Of a window of three returns 10, 12, 14 and 16 hold it.
        let days: Vec<i32> = (0..100).filter(|day| follows(*day)).collect();
        assert_eq!(days, (10..18).collect::<Vec<_>>());
        assert!(!corrected.has_metrics(b"x:AB:1970-01-11"));
        assert!(corrected.has_bar(&bar("1m", 90)) && !corrected.has_bar(&bar("1m", 10)));
    }

    #[test]
    fn closes_are_read_off_keys() {
        let close = (b"x:A:".to_vec(), 2);
        assert_eq!(close_of(b"x:A:1d:172800000000", "1d"), Some(close));
        assert_eq!(close_of(b"x:A:11d:172800000000", "1d"), None);
        assert_eq!(close_of(b"x:A:1m:172800000000", "1d"), None);
    }
}
