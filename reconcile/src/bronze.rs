//! Bronze against the ledger, against itself and against the topic.
//!
//! Pure. Every position of the input is a row or is accounted for as skipped; a position stands
//! once; the task did with the rows of each commit what validation and dedup say; the ids of a
//! feed have no gaps; and where the topic still has the records, they say the same.

use std::collections::BTreeMap;

use finlake_schemas::{BreakKind, LedgerEntry, topics};

use crate::bisect::{self, Difference, Side};
use crate::books::Books;
use crate::columns::Stamps;
use crate::findings::{Finding, Findings, Layer};
use crate::trades::{Counted, Names, SameId, Seen};

/// Name of the table that findings bear.
pub const TABLE: &str = "bronze.market_ticks";

fn finding(kind: BreakKind, key: impl Into<String>, cause: impl Into<String>) -> Finding {
    Finding::new(kind, Layer::Bronze, TABLE, key, cause)
}

fn range(partition: i32, from: i64, to: i64) -> String {
    format!("{}/{partition}:{from}..{to}", topics::TICKS)
}

/// Offsets that stand more than once.
pub fn doubled(partition: i32, offsets: &[i64], out: &mut Findings) {
    for (from, to) in bisect::ranges(offsets.iter().copied(), 0) {
        out.push(
            finding(BreakKind::Duplicate, range(partition, from, to), "offset")
                .expected("one row per input offset")
                .actual(format!("{} offsets stand twice", to - from))
                .detail(
                    "a commit was applied twice, or rows were copied; Silver is not harmed, since \
                     dedup works on the topic. Rebuild the table, or delete the copies",
                ),
        );
    }
}

/// Rows that do not bear what the sink stamps on every row.
pub fn stamps(stamps: Stamps, books: Option<&Books>, out: &mut Findings) {
    if stamps.more {
        out.cut_off();
    }
    for ((p, column), mut offsets) in stamps.wrong {
        let partition = i32::try_from(p).unwrap_or(i32::MAX);
        offsets.sort_unstable();
        for (from, to) in bisect::ranges(offsets, 0) {
            let key = range(partition, from, to);
            out.push(
                finding(BreakKind::ValueDrift, key, format!("stamp:{column}"))
                    .expected(match column {
                        "sys_from" => "the system time of the ledger's entry",
                        "valid_from" => "the trade's time, or the record's where it has none",
                        "is_current" => "true: rows of Bronze never end",
                        "kafka_topic" => topics::TICKS,
                        _ => "the open end: rows of Bronze never end",
                    })
                    .detail(format!(
                        "{column} is not what the sink writes: the table was changed after it was \
                         written. Put it back, or rebuild the table from the topic"
                    )),
            );
        }
    }
    let mut schemas: Vec<_> = stamps.schemas.into_iter().collect();
    schemas.sort_unstable();
    for (p, commit, id) in schemas {
        let partition = i32::try_from(p).unwrap_or(i32::MAX);
        let line = books.and_then(|b| b.line(partition, commit));
        let Some(line) = line.filter(|line| !line.schema_ids.contains(&id)) else {
            continue;
        };
        let key = format!("{partition}:{commit}");
        out.push(
            finding(BreakKind::ValueDrift, key, format!("stamp:schema_id:{id}"))
                .expected(format!("one of {:?}", line.schema_ids))
                .actual(format!("rows with {id}"))
                .detail(
                    "the ledger has not met this schema in this commit: schema_id was changed \
                     after it was written",
                ),
        );
    }
}

/// Ids with two contents.
pub fn two_contents(partition: i32, ids: &[SameId], names: &Names, out: &mut Findings) {
    for same in ids {
        let (source, symbol) = names.get(same.symbol);
        let key = format!("{source}:{symbol}:{}", same.id);
        out.push(
            finding(
                BreakKind::Duplicate,
                key,
                format!("contents:{}", same.other),
            )
            .of(source, symbol)
            .expected(format!("as offset {}", same.first))
            .actual(format!("offset {} says something else", same.other))
            .detail(format!(
                "{}/{partition}: two records bear one trade id and differ in price, quantity, \
                     time or size; the first counts. Ask the feed which one is right",
                topics::TICKS
            )),
        );
    }
}

/// Gaps in the ids of a feed: trades that never arrived. `rejected` ids did arrive, ascending;
/// beyond the `settled` id of an instrument a gap may still fill; `around` are ids that stand next to
/// those looked at, on other dates: what lies between two of them is another run's. Returns missing
/// ids and ids in all.
pub fn gaps(
    seen: &Seen,
    around: &Seen,
    rejected: &BTreeMap<u32, Vec<i64>>,
    settled: &BTreeMap<u32, i64>,
    names: &Names,
    date: Option<i32>,
    out: &mut Findings,
) -> (i128, i128) {
    let (mut missing, mut all) = (0, 0);
    for id in 0..names.len() {
        // Instruments are numbered with 32 bits.
        let symbol = id as u32;
        let known = rejected.get(&symbol).map_or(&[][..], Vec::as_slice);
        let settled = settled.get(&symbol).copied().unwrap_or(i64::MIN);
        let own = seen.runs(symbol);
        let (Some(first), Some(last)) = (own.first(), own.last()) else {
            continue;
        };
        all += i128::from(last.1) - i128::from(first.0) + 1;
        let mut both = Seen::default();
        both.absorb(0, around.runs(symbol));
        both.absorb(0, own);
        for pair in both.runs(0).windows(2) {
            if !holds(own, pair[0].1) && !holds(own, pair[1].0) {
                // It may have been this run's before trades came that are not of its dates.
                out.undecided(
                    "trade-id",
                    gap_name(symbol, pair[0].1 + 1, pair[1].0, names),
                );
                continue;
            }
            let mut from = pair[0].1 + 1;
            let to = pair[1].0;
            let due = to <= settled;
            let mut between = |from, to| {
                if due {
                    let lost = i128::from(gap(symbol, from, to, names, date, out));
                    missing += lost;
                    // Of those between the first and the last the distance tells.
                    if to <= first.0 || from > last.1 {
                        all += lost;
                    }
                } else if from < to {
                    // It may have been found before the newest trades came.
                    out.undecided("trade-id", gap_name(symbol, from, to, names));
                }
            };
            // A refused record arrived: it is in Bronze and in the dead-letter topic.
            let start = known.partition_point(|id| *id < from);
            for id in known[start..].iter().take_while(|id| **id < to) {
                between(from, *id);
                from = id + 1;
            }
            between(from, to);
        }
    }
    (missing, all)
}

/// Whether an id lies in one of these runs, ends included, ascending.
fn holds(runs: &[(i64, i64)], id: i64) -> bool {
    let at = runs.partition_point(|r| r.1 < id);
    runs.get(at).is_some_and(|r| r.0 <= id)
}

fn gap_name(symbol: u32, from: i64, to: i64, names: &Names) -> String {
    let (source, name) = names.get(symbol);
    format!("{source}:{name}:{from}..{to}")
}

fn gap(
    symbol: u32,
    from: i64,
    to: i64,
    names: &Names,
    date: Option<i32>,
    out: &mut Findings,
) -> i64 {
    if from >= to {
        return 0;
    }
    let (source, name) = names.get(symbol);
    let mut f = Finding::new(
        BreakKind::Missing,
        Layer::Feed,
        topics::TICKS,
        gap_name(symbol, from, to, names),
        "trade-id",
    )
    .of(source, name)
    .expected(format!("{} trade ids", to - from))
    .detail(
        "the exchange gave out these ids and no record with them arrived: a gap of the feed, \
             not of FinLake. Fetch the trades again (`finlake ingest file`); they count as late",
    );
    f.trade_date = date;
    out.push(f);
    to - from
}

/// What the ledger says of one commit's input, and what Bronze has of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub start: i64,
    pub end: i64,
    pub records: i64,
    pub accepted: i64,
    pub duplicates: i64,
    pub rejected: i64,
}

impl Taken {
    /// Of an entry; `None` if it has no such input.
    pub fn of(entry: &LedgerEntry) -> Option<Taken> {
        let i = entry.inputs.iter().find(|i| i.topic == topics::TICKS)?;
        Some(Taken {
            start: i.start,
            end: i.end,
            records: i.records,
            accepted: i.accepted,
            duplicates: i.duplicates,
            rejected: i.rejected,
        })
    }
}

/// Positions that the ledger counts as records and Bronze does not have. Without the topic the
/// markers in a commit that lost rows cannot be told from them, and are named too. `offsets`: runs of the
/// offsets in the table, ends included; `rows`: rows by commit, each offset once; `exact`: the
/// offsets at which the topic has records in a range, if it still has them.
pub fn lost(
    partition: i32,
    ledger: &BTreeMap<i64, Taken>,
    rows: &BTreeMap<i64, i64>,
    offsets: &[(i64, i64)],
    exact: &dyn Fn(i64, i64) -> Option<Vec<i64>>,
    out: &mut Findings,
) {
    let mut holes: Vec<(i64, i64)> = Vec::new();
    for (commit, taken) in ledger {
        let there = rows.get(commit).copied().unwrap_or(0);
        let missing = taken.records - there;
        if missing < 0 {
            out.push(
                finding(
                    BreakKind::Duplicate,
                    format!("{partition}:{commit}"),
                    "INV-13:rows",
                )
                .expected(format!("{} rows", taken.records))
                .actual(format!("{there} rows"))
                .detail("Bronze has rows of this commit that the ledger does not count"),
            );
        }
        if missing <= 0 {
            continue;
        }
        let mut absent = absent(offsets, taken.start, taken.end);
        if let Some(records) = exact(taken.start, taken.end) {
            let lost = records.into_iter().filter(|o| covers(&absent, *o));
            let mut lost: Vec<i64> = lost.collect();
            lost.sort_unstable();
            absent = bisect::ranges(lost, 0);
        }
        holes.extend(absent);
    }
    let mut merged: Vec<(i64, i64)> = Vec::new();
    for (from, to) in holes {
        match merged.last_mut() {
            Some(last) if last.1 >= from => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    for (from, to) in merged {
        out.push(
            finding(BreakKind::Missing, range(partition, from, to), "position")
                .expected(format!("up to {} rows", to - from))
                .actual("none")
                .detail(
                    "the ledger counts records at these offsets and Bronze has no row of them \
                     (a single offset may be a transaction marker where the topic could not be \
                     asked); \
                     Silver is right if `reconcile --layer silver` finds nothing else. Rebuild \
                     the table from the topic while it is retained",
                ),
        );
    }
}

/// Whether an offset lies in one of these half-open ranges, ascending.
fn covers(ranges: &[(i64, i64)], offset: i64) -> bool {
    let at = ranges.partition_point(|r| r.1 <= offset);
    ranges.get(at).is_some_and(|r| r.0 <= offset)
}

/// What of `[start, end)` no run covers, half-open.
fn absent(runs: &[(i64, i64)], start: i64, end: i64) -> Vec<(i64, i64)> {
    let mut out = Vec::new();
    let mut at = start;
    let first = runs.partition_point(|r| r.1 < start);
    for (from, to) in &runs[first..] {
        if *from >= end {
            break;
        }
        if *from > at {
            out.push((at, *from));
        }
        at = at.max(to + 1);
    }
    if at < end {
        out.push((at, end));
    }
    out
}

/// What the task did with each commit's rows against what validation and dedup of Bronze give.
pub fn outcomes(
    partition: i32,
    ledger: &BTreeMap<i64, Taken>,
    counted: &BTreeMap<i64, Counted>,
    out: &mut Findings,
) {
    for (commit, taken) in ledger {
        let c = counted.get(commit).copied().unwrap_or_default();
        if c.records != taken.records {
            // Found as lost or doubled.
            out.undecided("accepted", format!("{partition}:{commit}"));
            continue;
        }
        let (e, a) = (
            (c.accepted, c.duplicates, c.rejected),
            (taken.accepted, taken.duplicates, taken.rejected),
        );
        if e == a {
            continue;
        }
        let kind = if a.0 > e.0 {
            BreakKind::Duplicate
        } else {
            BreakKind::Missing
        };
        let show = |(a, d, r)| format!("accepted {a}, duplicates {d}, rejected {r}");
        out.push(
            finding(kind, format!("{partition}:{commit}"), "accepted")
                .expected(show(e))
                .actual(show(a))
                .detail(match kind {
                    BreakKind::Duplicate => {
                        "a trade was accepted twice: the dedup state was lost or ran behind; the \
                         bars of its minute hold it twice. `finlake replay` over the range"
                    }
                    _ => {
                        "valid new trades were not accepted: the dedup state ran ahead of Kafka; \
                         they are missing from their bars. `finlake replay` over the range"
                    }
                }),
        );
    }
}

/// The rows of Bronze against the records of the topic, by offset and content hash.
pub fn topic(partition: i32, expected: &Side, actual: &Side, out: &mut Findings) {
    let (differences, more) = bisect::differences(expected, actual, 10_000);
    if more {
        out.cut_off();
    }
    let keys = |what: fn(&Difference) -> bool| {
        let keys = differences.iter().filter(|d| what(d)).map(|d| d.key());
        bisect::ranges(keys, 0)
    };
    for (from, to) in keys(|d| matches!(d, Difference::Missing(_))) {
        out.push(
            finding(BreakKind::Missing, range(partition, from, to), "position")
                .expected(format!("{} rows", to - from))
                .actual("none")
                .detail("the topic has these records and Bronze does not; rebuild the table"),
        );
    }
    for (from, to) in keys(|d| matches!(d, Difference::Doubled(_))) {
        doubled(partition, &(from..to).collect::<Vec<_>>(), out);
    }
    for (from, to) in keys(|d| matches!(d, Difference::Extra(_))) {
        out.push(
            finding(BreakKind::Duplicate, range(partition, from, to), "invented")
                .expected("no record at these offsets")
                .actual(format!("{} rows", to - from))
                .detail("Bronze has rows for offsets at which the topic has no record"),
        );
    }
    for (from, to) in keys(|d| matches!(d, Difference::Differs(_))) {
        out.push(
            finding(BreakKind::ValueDrift, range(partition, from, to), "content")
                .expected("what the topic says")
                .detail(
                    "Bronze does not say what the record in the topic says; `finlake query` shows \
                     the rows, rebuild the table",
                ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(out: &Findings) -> Vec<(BreakKind, &str, &str)> {
        out.list()
            .iter()
            .map(|f| (f.kind, f.key.as_str(), f.cause.as_str()))
            .collect()
    }

    #[test]
    fn gaps_next_to_a_date_are_its_own_and_those_beyond_are_not() {
        let mut names = Names::default();
        names.id("s", "X");
        let ids = |runs: &[(i64, i64)]| {
            let mut seen = Seen::default();
            seen.absorb(0, runs);
            seen
        };
        let found = |own: &[(i64, i64)], around: &[(i64, i64)], rejected: &[i64]| {
            let (own, around) = (ids(own), ids(around));
            let rejected = BTreeMap::from([(0, rejected.to_vec())]);
            let settled = BTreeMap::from([(0, i64::MAX)]);
            let mut out = Findings::default();
            let n = gaps(&own, &around, &rejected, &settled, &names, None, &mut out);
            let keys = out.list().iter().map(|f| f.key.clone());
            (n, keys.collect::<Vec<_>>())
        };
        let nothing: [&str; 0] = [];
        // Before and after it, and none of its own; what lies between other dates is theirs.
        let (n, keys) = found(&[(10, 20)], &[(1, 3), (5, 7), (23, 30), (35, 40)], &[]);
        assert_eq!(keys, ["s:X:8..10", "s:X:21..23"]);
        assert_eq!(n, (4, 15));
        assert_eq!(found(&[(10, 20)], &[], &[]), ((0, 11), vec![]));
        // One that belongs to the day before by its time, and one that was refused there.
        assert_eq!(found(&[(10, 20)], &[(1, 8)], &[9]).1, nothing);
        let (n, keys) = found(&[(10, 14), (17, 20)], &[(15, 15)], &[]);
        assert_eq!((n, keys), ((1, 11), vec!["s:X:16..17".to_owned()]));
        // All ids that there are.
        let (n, _) = found(&[(0, 0), (i64::MAX, i64::MAX)], &[], &[]);
        let all = i128::from(i64::MAX) + 1;
        assert_eq!(n, (all - 2, all));
    }

    fn taken(start: i64, end: i64, skipped: i64) -> Taken {
        let records = end - start - skipped;
        Taken {
            start,
            end,
            records,
            accepted: records,
            duplicates: 0,
            rejected: 0,
        }
    }

    #[test]
    fn lost_offsets_are_told_from_markers() {
        let ledger = BTreeMap::from([
            (1, taken(0, 11, 1)),
            (2, taken(11, 22, 1)),
            (3, taken(22, 30, 0)),
        ]);
        let mut out = Findings::default();
        let rows = BTreeMap::from([(1, 10), (2, 10), (3, 8)]);
        lost(
            0,
            &ledger,
            &rows,
            &[(0, 9), (11, 20), (22, 29)],
            &|_, _| None,
            &mut out,
        );
        assert!(out.is_empty());
        // 7..=9 of commit 1 and 11..=14 of commit 2 are gone; 10 and 21 are markers.
        let rows = BTreeMap::from([(1, 7), (2, 6), (3, 8)]);
        lost(
            0,
            &ledger,
            &rows,
            &[(0, 6), (15, 20), (22, 29)],
            &|_, _| None,
            &mut out,
        );
        let whole = (BreakKind::Missing, "market.ticks/0:7..15", "position");
        let marker = (BreakKind::Missing, "market.ticks/0:21..22", "position");
        assert_eq!(keys(&out), [whole, marker], "nobody tells the marker apart");
        let mut out = Findings::default();
        let topic = |from, to| Some((from..to).filter(|o| ![10, 21].contains(o)).collect());
        lost(
            0,
            &ledger,
            &rows,
            &[(0, 6), (15, 20), (22, 29)],
            &topic,
            &mut out,
        );
        let first = (BreakKind::Missing, "market.ticks/0:7..10", "position");
        let second = (BreakKind::Missing, "market.ticks/0:11..15", "position");
        assert_eq!(keys(&out), [first, second]);
        let mut out = Findings::default();
        lost(
            0,
            &ledger,
            &BTreeMap::from([(1, 10), (2, 10), (3, 9)]),
            &[(0, 9), (11, 20), (22, 29)],
            &|_, _| None,
            &mut out,
        );
        assert_eq!(keys(&out), [(BreakKind::Duplicate, "0:3", "INV-13:rows")]);
    }

    #[test]
    fn outcomes_name_what_dedup_did_wrong() {
        let ledger = BTreeMap::from([(1, taken(0, 10, 0)), (2, taken(10, 20, 0))]);
        let c = |accepted, duplicates| Counted {
            records: 10,
            accepted,
            duplicates,
            rejected: 0,
        };
        let mut out = Findings::default();
        outcomes(
            0,
            &ledger,
            &BTreeMap::from([(1, c(10, 0)), (2, c(10, 0))]),
            &mut out,
        );
        assert!(out.is_empty());
        outcomes(
            0,
            &ledger,
            &BTreeMap::from([(1, c(9, 1)), (2, c(10, 0))]),
            &mut out,
        );
        assert_eq!(keys(&out), [(BreakKind::Duplicate, "0:1", "accepted")]);
    }

    #[test]
    fn the_topic_decides() {
        let records: Vec<(i64, u128)> = (0..50).map(|k| (k, k as u128 * 77 + 1)).collect();
        let mut rows = records.clone();
        rows.retain(|(k, _)| !(10..13).contains(k));
        rows[0].1 += 1;
        let copy = rows[30];
        rows.push(copy);
        rows.push((99, 1));
        let mut out = Findings::default();
        topic(2, &Side::new(records), &Side::new(rows), &mut out);
        assert_eq!(
            keys(&out),
            [
                (BreakKind::Missing, "market.ticks/2:10..13", "position"),
                (BreakKind::Duplicate, "market.ticks/2:33..34", "offset"),
                (BreakKind::Duplicate, "market.ticks/2:99..100", "invented"),
                (BreakKind::ValueDrift, "market.ticks/2:0..1", "content"),
            ]
        );
    }
}
