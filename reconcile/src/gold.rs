//! Gold against Silver: every version of a date's row against the daily closes that Silver had at
//! the row's own system time (INV-9), in the same arithmetic, bit for bit.
//!
//! Pure. Gold follows Silver in the same commit, so at one cut there is nothing to wait for: a
//! date with a closed daily bar has its row, or it is MISSING; a version holds for as long as the
//! closes that it sees say the same, or the one that should have followed is MISSING. Risk-free rate
//! and periods of a year are the row's own: what is configured holds for rows to come.

use std::collections::BTreeMap;

use finlake_market::gold::{GoldConfig, GoldValues, values};
use finlake_market::interval::DAY;
use finlake_schemas::{BreakKind, Dec8, Severity, keys};

use crate::findings::{Finding, Findings, Layer, MATERIAL};
use crate::silver::decimal;
use crate::trades::Names;
use crate::versions::{self, Fault, Version};

/// Name of the table that findings bear.
pub const TABLE: &str = "gold.market_metrics";

/// A closed daily bar of Silver: one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close {
    pub symbol: u32,
    /// Days since 1970.
    pub date: i32,
    pub close: i128,
    pub sys_from: i64,
    pub sys_to: i64,
}

/// One row of Gold.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricsRow {
    pub symbol: u32,
    pub date: i32,
    pub metric_id: Option<[u8; 16]>,
    pub close: i128,
    pub observations: i64,
    pub return_1: Option<f64>,
    /// Window length: return, volatility, Sharpe ratio.
    pub windows: Vec<(u16, [Option<f64>; 3])>,
    pub periods: i32,
    pub risk_free: f64,
    pub revision: i32,
    pub valid_from: i64,
    pub valid_to: i64,
    pub sys_from: i64,
    pub sys_to: i64,
    pub is_current: bool,
    pub prev_sys_from: Option<i64>,
    pub commit: i64,
    pub kafka_offset: i64,
}

#[derive(Clone, Copy)]
struct Check<'a> {
    names: &'a Names,
    config: &'a GoldConfig,
    open_end: i64,
}

impl Check<'_> {
    fn finding(
        &self,
        kind: BreakKind,
        symbol: u32,
        date: i32,
        cause: impl Into<String>,
    ) -> Finding {
        let (source, name) = self.names.get(symbol);
        let mut key = Vec::new();
        keys::metrics(source, name, date, &mut key);
        let key = String::from_utf8_lossy(&key).into_owned();
        Finding::new(kind, Layer::Gold, TABLE, key, cause)
            .of(source, name)
            .on(date)
    }
}

/// Compares the rows of Gold with what the closes give. `dates` restricts what is reported, not
/// what is used. Both lists in any order; what lies beyond the cut is left out by the caller, and
/// what was closed beyond it is open.
pub fn compare(
    closes: &mut [Close],
    rows: &mut [MetricsRow],
    names: &Names,
    config: &GoldConfig,
    dates: Option<(i32, i32)>,
    open_end: i64,
    out: &mut Findings,
) {
    let check = Check {
        names,
        config,
        open_end,
    };
    closes.sort_by_key(|c| (c.symbol, c.date, c.sys_from));
    rows.sort_by_key(|r| (r.symbol, r.date, r.sys_from));
    histories(&check, rows, closes, out);
    let wanted = |date: i32| dates.is_none_or(|(from, to)| (from..to).contains(&date));
    if dates.is_none() {
        lone(&check, rows, out);
    }
    let by_symbol: BTreeMap<u32, &[Close]> = closes
        .chunk_by(|a, b| a.symbol == b.symbol)
        .map(|group| (group[0].symbol, group))
        .collect();
    for row in rows.iter().filter(|r| wanted(r.date)) {
        let series = by_symbol.get(&row.symbol).copied().unwrap_or(&[]);
        one_row(&check, row, series, out);
    }
    for c in closes.iter().filter(|c| wanted(c.date)) {
        let current = c.sys_to == open_end;
        let there = |r: &&MetricsRow| r.symbol == c.symbol && r.date == c.date;
        let from = rows.partition_point(|r| (r.symbol, r.date) < (c.symbol, c.date));
        let of_date = rows[from..].iter().take_while(there);
        let (mut any, mut open) = (false, false);
        for row in of_date {
            any = true;
            open |= row.sys_to == open_end;
        }
        // A history that ends before the cut is found as INV-6.
        if current && !open && !any {
            out.push(
                check
                    .finding(BreakKind::Missing, c.symbol, c.date, "row")
                    .expected(format!("close {}", decimal(c.close, 8)))
                    .detail(
                        "Silver has a closed daily bar of this date, Gold has no row; \
                         with a `record` break beside it the table alone lost it, and is to be put right",
                    ),
            );
        }
    }
}

/// Rules change now and then, for all rows to come. A row whose own no row before or after it bears, nor
/// the configuration, was not made by them.
fn lone(check: &Check<'_>, rows: &[MetricsRow], out: &mut Findings) {
    let rules = |r: &MetricsRow| (r.periods, r.risk_free.to_bits());
    let configured = (
        i32::from(check.config.periods),
        check.config.risk_free.to_bits(),
    );
    let mut order: Vec<&MetricsRow> = rows.iter().collect();
    order.sort_by_key(|r| r.sys_from);
    for (n, row) in order.iter().enumerate() {
        let beside = [n.checked_sub(1), n.checked_add(1)];
        let mut beside = beside.into_iter().flatten().filter_map(|n| order.get(n));
        if rules(row) == configured || beside.any(|r| rules(r) == rules(row)) {
            continue;
        }
        let cause = format!("periods+risk_free:{}", row.sys_from);
        out.push(
            check
                .finding(BreakKind::ValueDrift, row.symbol, row.date, cause)
                .expected("the rate and periods of the rows made before or after it")
                .actual(format!(
                    "risk_free {}, periods {}",
                    row.risk_free, row.periods
                ))
                .detail(
                    "no row beside it was made by these: they were changed after they were written",
                ),
        );
    }
}

fn histories(check: &Check<'_>, rows: &[MetricsRow], closes: &[Close], out: &mut Findings) {
    let mut key = 0;
    let mut list = Vec::with_capacity(rows.len());
    for (n, row) in rows.iter().enumerate() {
        if n > 0 && (rows[n - 1].symbol, rows[n - 1].date) != (row.symbol, row.date) {
            key += 1;
        }
        list.push(Version {
            key,
            sys_from: row.sys_from,
            sys_to: row.sys_to,
            valid_from: row.valid_from,
            valid_to: row.valid_to,
            is_current: row.is_current,
            prev_sys_from: row.prev_sys_from,
            revision: row.revision,
            row: n as u32,
        });
    }
    for fault in versions::check(list, check.open_end) {
        let finding = |kind, n: u32, cause: String| {
            let row = &rows[n as usize];
            check.finding(kind, row.symbol, row.date, cause)
        };
        out.push(match fault {
            Fault::Overlap(a, b) => {
                let (first, second) = (&rows[a as usize], &rows[b as usize]);
                finding(BreakKind::Duplicate, b, format!("INV-2:{}", second.sys_from))
                    .actual(format!(
                        "output offsets {} and {}",
                        first.kafka_offset, second.kafka_offset
                    ))
                    .detail("two rows of one date hold at the same time; see DUPLICATE in docs/reconcile.md")
            }
            Fault::Revision(n, expected) => {
                let row = &rows[n as usize];
                if row.prev_sys_from.is_none() {
                    continue; // a date that was taken back before its first row here
                }
                finding(BreakKind::ValueDrift, n, format!("revision:{}", row.sys_from))
                    .expected(format!("revision {expected}"))
                    .actual(format!("revision {}", row.revision))
                    .detail("each version's revision is one more than that of the version it replaces")
            }
            Fault::Backward(n) | Fault::Flag(n) => {
                let cause = format!("INV-3:{}", rows[n as usize].sys_from);
                finding(BreakKind::ValueDrift, n, cause)
                    .detail("the row's times contradict each other; FinLake cannot have written it")
            }
            Fault::Unfollowed(n) => {
                let row = &rows[n as usize];
                let of = |c: &Close| (c.symbol, c.date);
                let from = closes.partition_point(|c| of(c) < (row.symbol, row.date));
                let mut there = closes[from..]
                    .iter()
                    .take_while(|c| of(c) == (row.symbol, row.date));
                if !there.any(|c| c.sys_from <= row.sys_to && row.sys_to < c.sys_to) {
                    continue; // the close was retracted, and the date with it
                }
                let cause = format!("INV-6:{}", row.sys_to);
                finding(BreakKind::Missing, n, cause).detail(
                    "a version was closed and none follows: the one that followed is lost, \
                     unless the date was retracted",
                )
            }
            Fault::Orphan(n) => {
                let cause = format!("INV-6:prev:{}", rows[n as usize].sys_from);
                finding(BreakKind::Missing, n, cause)
                    .detail("an older version is lost from the table; as-of answers changed")
            }
        });
    }
}

/// The closes known at a system time up to a date, oldest first, at most `count`; whether the date
/// has one; and the first date on which they depend. A bar that stands twice is one close: Silver
/// says that it is doubled, and nothing in Gold is wrong.
fn known(series: &[Close], date: i32, at: i64, count: usize) -> (Vec<Dec8>, bool, i32) {
    let end = series.partition_point(|c| c.date <= date);
    let mut closes = Vec::with_capacity(count);
    let (mut this_date, mut taken) = (false, None);
    let mut first = i32::MIN;
    for c in series[..end].iter().rev() {
        if c.sys_from <= at && at < c.sys_to && taken.replace(c.date) != Some(c.date) {
            this_date |= c.date == date;
            closes.push(Dec8(c.close));
            if closes.len() == count {
                first = c.date;
                break;
            }
        }
    }
    closes.reverse();
    (closes, this_date, first)
}

/// When the closes of these dates first change after `at` and before `until`.
fn next_change(series: &[Close], dates: (i32, i32), at: i64, until: i64) -> Option<i64> {
    let from = series.partition_point(|c| c.date < dates.0);
    let to = series.partition_point(|c| c.date <= dates.1);
    let times = series[from..to].iter().flat_map(|c| [c.sys_from, c.sys_to]);
    times.filter(|t| at < *t && *t < until).min()
}

/// A version must end when the closes that it sees begin to say something else.
fn outlived(check: &Check<'_>, row: &MetricsRow, series: &[Close], first: i32) -> Option<Finding> {
    let count = check.config.reach() + 1;
    let (mut at, mut first) = (row.sys_from, first);
    loop {
        at = next_change(series, (first, row.date), at, row.sys_to)?;
        let (closes, there, depends) = known(series, row.date, at, count);
        first = depends;
        let close = closes.last().map_or(0, |c| c.0);
        let differs = match there {
            true => differences(row, close, &values(&closes, check.config)),
            false => Vec::new(),
        };
        if there && differs.is_empty() {
            continue;
        }
        let join = |f: fn(&Differs) -> String| differs.iter().map(f).collect::<Vec<_>>().join(", ");
        let f = check.finding(
            BreakKind::Missing,
            row.symbol,
            row.date,
            format!("version:{at}"),
        );
        let f = match there {
            true => f
                .expected(join(|d| format!("{} {}", d.name, d.expected)))
                .actual(join(|d| format!("{} {}", d.name, d.actual))),
            false => f
                .expected("no row: the daily bar was taken back")
                .actual(format!("close {}", decimal(row.close, 8))),
        };
        return Some(f.detail(format!(
            "a daily close that the version of system time {} sees was changed at {at}, and no \
             version followed: the correction was not carried to this date; `finlake replay` over \
             the corrected day and those after it shows what is due",
            row.sys_from
        )));
    }
}

fn one_row(check: &Check<'_>, row: &MetricsRow, series: &[Close], out: &mut Findings) {
    let config = GoldConfig {
        periods: u16::try_from(row.periods).unwrap_or(0),
        risk_free: row.risk_free,
        ..check.config.clone()
    };
    let check = &Check {
        config: &config,
        ..*check
    };
    let (closes, there, first) = known(series, row.date, row.sys_from, check.config.reach() + 1);
    if !there {
        out.push(
            check
                .finding(
                    BreakKind::ValueDrift,
                    row.symbol,
                    row.date,
                    format!("close:{}", row.sys_from),
                )
                .expected("no closed daily bar, no row")
                .actual(format!("close {}", decimal(row.close, 8)))
                .detail(
                    "Gold has a row for a date of which Silver had no closed daily bar at the \
                     row's system time: reconcile Silver first",
                ),
        );
        return;
    }
    let wanted = values(&closes, check.config);
    let close = closes.last().map_or(0, |c| c.0);
    let differs = differences(row, close, &wanted);
    if !differs.is_empty() {
        let worst = differs.iter().fold(0.0f64, |w, d| w.max(d.relative));
        let severity = if worst > MATERIAL {
            Severity::Material
        } else {
            Severity::Minor
        };
        let join = |f: fn(&Differs) -> String| differs.iter().map(f).collect::<Vec<_>>().join(", ");
        let names: Vec<&str> = differs.iter().map(|d| d.name.as_str()).collect();
        out.push(
            check
                .finding(
                    BreakKind::ValueDrift,
                    row.symbol,
                    row.date,
                    format!("{}:{}", names.join("+"), row.sys_from),
                )
                .severity(severity)
                .expected(join(|d| format!("{} {}", d.name, d.expected)))
                .actual(join(|d| format!("{} {}", d.name, d.actual)))
                .detail(format!(
                    "the version of system time {} is not what the {} daily closes known then \
                     give; largest difference {:.6} %",
                    row.sys_from,
                    closes.len(),
                    worst * 100.0
                )),
        );
    } else if let Some(finding) = outlived(check, row, series, first) {
        out.push(finding);
    }
    let (source, name) = check.names.get(row.symbol);
    let labels = [
        (
            "valid_from",
            row.valid_from != (i64::from(row.date) + 1) * DAY,
        ),
        ("valid_to", row.valid_to != check.open_end),
        (
            "metric_id",
            row.metric_id != Some(keys::metrics_id(source, name, row.date)),
        ),
    ];
    for (label, _) in labels.iter().filter(|(_, wrong)| *wrong) {
        out.push(
            check
                .finding(
                    BreakKind::ValueDrift,
                    row.symbol,
                    row.date,
                    format!("{label}:{}", row.sys_from),
                )
                .detail(format!("{label} does not follow from the row's key")),
        );
    }
}

struct Differs {
    name: String,
    expected: String,
    actual: String,
    relative: f64,
}

fn differences(row: &MetricsRow, close: i128, wanted: &GoldValues) -> Vec<Differs> {
    let mut out = Vec::new();
    if row.close != close {
        out.push(Differs {
            name: "close".into(),
            expected: decimal(close, 8),
            actual: decimal(row.close, 8),
            relative: crate::silver::relative(close, row.close),
        });
    }
    let whole = i64::from(wanted.observations);
    if whole != row.observations {
        out.push(Differs {
            name: "observations".into(),
            expected: whole.to_string(),
            actual: row.observations.to_string(),
            relative: f64::INFINITY,
        });
    }
    // No configuration has them, so the row cannot have been computed by them.
    if !(1..=366).contains(&row.periods) || !(-0.5..=1.0).contains(&row.risk_free) {
        out.push(Differs {
            name: "periods".into(),
            expected: "1 to 366 periods, and a risk-free rate from -0.5 to 1".into(),
            actual: format!("{} and {}", row.periods, row.risk_free),
            relative: f64::INFINITY,
        });
    }
    let mut float = |name: String, e: Option<f64>, a: Option<f64>| {
        // By their bits: the same closes in the same arithmetic give the same double.
        if e.map(f64::to_bits) == a.map(f64::to_bits) {
            return;
        }
        let relative = match (e, a) {
            (Some(e), Some(a)) if e != 0.0 => ((a - e) / e).abs(),
            _ => f64::INFINITY,
        };
        let show = |v: Option<f64>| v.map_or("null".to_owned(), |v| v.to_string());
        out.push(Differs {
            name,
            expected: show(e),
            actual: show(a),
            relative,
        });
    };
    float("return_1".into(), wanted.return_1, row.return_1);
    for w in &wanted.windows {
        let of = row
            .windows
            .iter()
            .find(|(n, _)| *n == w.n)
            .map_or([None; 3], |(_, v)| *v);
        float(format!("return_{}", w.n), w.ret, of[0]);
        float(format!("volatility_{}", w.n), w.volatility, of[1]);
        float(format!("sharpe_{}", w.n), w.sharpe, of[2]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: i64 = i64::MAX;

    /// Thirty-five days of closes and the rows they give; day 10 was corrected once.
    fn sample() -> (Names, GoldConfig, Vec<Close>, Vec<MetricsRow>) {
        let mut names = Names::default();
        let symbol = names.id("s", "X");
        let config = GoldConfig {
            windows: vec![5, 30],
            ..GoldConfig::default()
        };
        let mut closes = Vec::new();
        for date in 0..35 {
            let close = (100 + i128::from(date * date % 7)) * 100_000_000;
            let sys_from = 1_000 + i64::from(date) * 10;
            closes.push(Close {
                symbol,
                date,
                close,
                sys_from,
                sys_to: END,
            });
        }
        closes[10].sys_to = 5_000;
        closes.push(Close {
            symbol,
            date: 10,
            close: 1_234_567_890_123,
            sys_from: 5_000,
            sys_to: END,
        });
        let mut rows: Vec<MetricsRow> = Vec::new();
        let emit = |date: i32, at: i64, closes: &[Close], rows: &mut Vec<MetricsRow>| {
            let mut series = closes.to_vec();
            series.sort_by_key(|c| (c.symbol, c.date, c.sys_from));
            let (window, there, _) = known(&series, date, at, config.reach() + 1);
            assert!(there);
            let v = values(&window, &config);
            let prev = rows.iter_mut().rfind(|r| r.date == date);
            let prev_revision = prev.as_ref().map_or(0, |p| p.revision + 1);
            let prev_sys_from = prev.map(|p| {
                p.sys_to = at;
                p.is_current = false;
                p.sys_from
            });
            rows.push(MetricsRow {
                symbol,
                date,
                metric_id: Some(keys::metrics_id("s", "X", date)),
                close: window.last().unwrap().0,
                observations: v.observations.into(),
                return_1: v.return_1,
                windows: v
                    .windows
                    .iter()
                    .map(|w| (w.n, [w.ret, w.volatility, w.sharpe]))
                    .collect(),
                periods: 365,
                risk_free: 0.0,
                revision: prev_revision,
                valid_from: (i64::from(date) + 1) * DAY,
                valid_to: END,
                sys_from: at,
                sys_to: END,
                is_current: true,
                prev_sys_from,
                commit: 1,
                kafka_offset: at,
            });
        };
        for date in 0..35 {
            emit(date, 1_000 + i64::from(date) * 10, &closes, &mut rows);
        }
        for date in 10..35 {
            emit(date, 5_000, &closes, &mut rows);
        }
        (names, config, closes, rows)
    }

    fn run(
        change: impl FnOnce(&mut Vec<Close>, &mut Vec<MetricsRow>),
    ) -> Vec<(BreakKind, Severity, String, String)> {
        let (names, config, mut closes, mut rows) = sample();
        change(&mut closes, &mut rows);
        let mut out = Findings::default();
        compare(&mut closes, &mut rows, &names, &config, None, END, &mut out);
        out.list()
            .iter()
            .map(|f| (f.kind, f.severity, f.key.clone(), f.cause.clone()))
            .collect()
    }

    #[test]
    fn every_version_follows_from_what_was_known() {
        assert_eq!(run(|_, _| {}), []);
    }

    #[test]
    fn a_daily_bar_that_stands_twice_is_no_fault_of_gold() {
        assert_eq!(run(|closes, _| closes.extend_from_within(8..12)), []);
    }

    #[test]
    fn faults_are_found_where_they_are() {
        let found = run(|_, rows| {
            rows.retain(|r| r.date != 20);
        });
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].0, found[0].2.as_str(), found[0].3.as_str()),
            (BreakKind::Missing, "s:X:1970-01-21", "row")
        );
        let found = run(|_, rows| {
            let twice = rows[40].clone();
            rows.push(twice);
        });
        assert_eq!((found.len(), found[0].0), (1, BreakKind::Duplicate));
        let found =
            run(|_, rows| rows[30].windows[0].1[1] = rows[30].windows[0].1[1].map(|v| v * 1.00005));
        assert_eq!(
            (found.len(), found[0].0, found[0].1),
            (1, BreakKind::ValueDrift, Severity::Minor)
        );
        assert!(found[0].3.starts_with("volatility_5:"), "{found:?}");
        let found = run(|_, rows| rows[30].close += rows[30].close / 5_000);
        assert_eq!((found.len(), found[0].1), (1, Severity::Material));
        // Rates of which nothing depends: two closes give no deviation.
        let found = run(|_, rows| rows[1].risk_free = 0.5);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].3.starts_with("periods+risk_free:"), "{found:?}");
        // All rows from a moment on were made by others.
        let found = run(|_, rows| {
            for row in rows.iter_mut().filter(|r| r.sys_from <= 1_040) {
                row.risk_free = 0.5;
            }
        });
        assert_eq!(found, []);
        // A close changed in Silver shows in every row that sees it, its own first.
        let found = run(|closes, _| closes[34].close += 1);
        assert_eq!(
            found.len(),
            2,
            "the version of its day and the correction of day 10: {found:?}"
        );
        let found = run(|closes, rows| {
            rows.retain(|r| r.date < 20);
            closes.retain(|c| c.date < 20);
        });
        assert_eq!(found, []);
    }

    /// The correction of day 10 changes what five returns say up to day 15; those of thirty need more days.
    #[test]
    fn a_correction_that_is_not_carried_on_is_found() {
        let drop_version = |rows: &mut Vec<MetricsRow>, date: i32| {
            rows.retain(|r| r.date != date || r.sys_from != 5_000);
            for row in rows.iter_mut().filter(|r| r.date == date) {
                (row.sys_to, row.is_current) = (END, true);
            }
        };
        let found = run(|_, rows| drop_version(rows, 20));
        assert_eq!(found, [], "its windows do not see day 10");
        let found = run(|_, rows| drop_version(rows, 13));
        let one = |date: &str| {
            let (key, cause) = (format!("s:X:{date}"), "version:5000".to_owned());
            vec![(BreakKind::Missing, Severity::Material, key, cause)]
        };
        assert_eq!(found, one("1970-01-14"));
        // Later versions come too late: the one that was due is missed all the same.
        let found = run(|_, rows| {
            for row in rows.iter_mut().filter(|r| r.date == 13) {
                match row.sys_from {
                    5_000 => (row.sys_from, row.kafka_offset) = (6_000, 6_000),
                    _ => row.sys_to = 6_000,
                }
            }
        });
        assert_eq!(found, one("1970-01-14"));
        // A day that was taken back takes its row with it.
        let found = run(|closes, _| {
            let last = closes.iter_mut().find(|c| c.date == 34);
            last.unwrap().sys_to = 7_000;
        });
        assert_eq!(
            found,
            [(
                BreakKind::Missing,
                Severity::Material,
                "s:X:1970-02-04".to_owned(),
                "version:7000".to_owned()
            )]
        );
        // A change to the same value is none.
        let found = run(|closes, _| {
            let again = closes.iter_mut().find(|c| c.date == 15).unwrap();
            again.sys_to = 8_000;
            let again = Close {
                sys_from: 8_000,
                sys_to: END,
                ..*again
            };
            closes.push(again);
        });
        assert_eq!(found, []);
    }
}
