//! Silver against Bronze: every version of every bar against the trades it says it reflects.
//!
//! Pure. What must be there and is not is MISSING; what stands twice is DUPLICATE; any inequality
//! of a value is VALUE_DRIFT, material beyond 0.01 %. A bar that is still forming may lag behind
//! its trades, and a correction may wait its turn (at most `correct_every`): neither is a break.

use std::collections::BTreeMap;
use std::sync::Arc;

use finlake_market::Ohlcv;
use finlake_schemas::{BreakKind, Severity, Stage, keys};

use crate::asserted::{Assertions, Followed};
use crate::books::Made;
use crate::findings::{Finding, Findings, Layer, MATERIAL, VALUES};
use crate::trades::{BarKey, Expected, Names, Rules};
use crate::versions::{self, Fault, Version};

/// Name of the table that findings bear.
pub const TABLE: &str = "silver.market_ohlcv";

/// One row of Silver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BarRow {
    pub key: BarKey,
    pub bar_end: i64,
    pub trade_date: i32,
    /// The surrogate id as text.
    pub tick_id: Option<[u8; 16]>,
    pub content: Ohlcv,
    pub vwap: i128,
    pub stage: Option<Stage>,
    /// Made from trades; a vendor's bar is not compared with them.
    pub from_trades: bool,
    pub revision: i32,
    pub valid_from: i64,
    pub valid_to: i64,
    pub sys_from: i64,
    pub sys_to: i64,
    pub is_current: bool,
    pub prev_sys_from: Option<i64>,
    pub commit: i64,
    pub ticks_offset: i64,
    pub bars_offset: i64,
    pub kafka_offset: i64,
}

#[cfg(test)]
impl BarRow {
    /// The closed bar of a minute, for tests.
    pub(crate) fn sample(symbol: u32, start: i64) -> BarRow {
        use finlake_market::interval::MINUTE;
        use finlake_market::{Point, Trade};
        use finlake_schemas::{Dec8, Dec16};

        let price = Dec8(10_000_000_000);
        BarRow {
            key: BarKey {
                symbol,
                interval: 0,
                start,
            },
            bar_end: start + MINUTE,
            trade_date: 0,
            tick_id: None,
            content: Ohlcv::of(&Trade {
                at: Point { time: start, id: 1 },
                price,
                quantity: price,
                quote: Dec16(0),
                taker_buy: false,
                trades: 100_000,
            }),
            vwap: 0,
            stage: Some(Stage::Closed),
            from_trades: true,
            revision: 0,
            valid_from: start,
            valid_to: i64::MAX,
            sys_from: 1,
            sys_to: i64::MAX,
            is_current: true,
            prev_sys_from: None,
            commit: 1,
            ticks_offset: 1,
            bars_offset: 0,
            kafka_offset: 1,
        }
    }
}

/// The moment of the stream at which the layers are compared, of one partition.
#[derive(Debug, Clone, Default)]
pub struct Moment {
    /// Commit number and its system time (µs): rows beyond it are not looked at.
    pub commit: i64,
    pub system_time: i64,
    /// Stream time by source, µs.
    pub stream_times: BTreeMap<String, i64>,
    /// The task stopped gracefully at this commit: every bar stands in the table as it is.
    pub settled: bool,
    /// Corrections may wait this long (µs), commit interval and a margin included.
    pub patience: i64,
    /// System time of commits, for how long a trade has waited.
    pub commit_times: BTreeMap<i64, i64>,
    /// What was asserted of bars, and the commit up to which Bronze holds that.
    pub asserted: Arc<Assertions>,
    pub asserted_until: i64,
    /// By interval, as they are configured: the commits in which its bars were made. Nothing for an
    /// interval: all of them.
    pub made: Arc<[Vec<Made>]>,
}

/// What a bar is called.
pub fn bar_name(key: BarKey, names: &Names, rules: &Rules) -> String {
    let (source, symbol) = names.get(key.symbol);
    let interval = rules.intervals.list()[usize::from(key.interval)].name();
    let mut out = Vec::new();
    keys::bar(source, symbol, interval, key.start, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

struct Check<'a> {
    names: &'a Names,
    rules: &'a Rules,
    moment: &'a Moment,
    open_end: i64,
}

impl Check<'_> {
    fn finding(&self, kind: BreakKind, key: BarKey, cause: impl Into<String>) -> Finding {
        let (source, symbol) = self.names.get(key.symbol);
        Finding::new(
            kind,
            Layer::Silver,
            TABLE,
            bar_name(key, self.names, self.rules),
            cause,
        )
        .of(source, symbol)
        .on(finlake_market::interval::date_of(key.start))
    }

    /// Stream time has passed the bar's end.
    fn is_closed(&self, key: BarKey) -> bool {
        let end = key.start + self.rules.intervals.list()[usize::from(key.interval)].length();
        let (source, _) = self.names.get(key.symbol);
        let time = self.moment.stream_times.get(source);
        time.is_some_and(|t| *t >= end)
    }

    /// Whether the task had to make the bar of a trade of this commit, and whether with every such
    /// trade: its interval was configured then, and is still, or was until the bar had closed. What
    /// waited when it went came to nothing, unless the task stopped gracefully.
    fn is_made(&self, key: BarKey, commit: i64) -> (bool, bool) {
        let Some(made) = self.moment.made.get(usize::from(key.interval)) else {
            return (true, true);
        };
        let Some(range) = made.iter().find(|m| m.has(commit)) else {
            return (false, false);
        };
        let Some(end) = &range.end else {
            return (true, true);
        };
        let (source, _) = self.names.get(key.symbol);
        let mut times = end.stream_times.iter();
        let time = times.find(|(of, _)| of == source).map(|(_, t)| *t);
        let bar = self.rules.intervals.list()[usize::from(key.interval)].length();
        let closed = time.is_some_and(|t| t >= key.start + bar);
        (closed, closed && end.last)
    }

    /// Whether this version was replaced, of a bar that had begun when its interval was added: it
    /// held only the trades that came since, and the one that replaced it is held to all.
    fn is_partial(&self, row: &BarRow) -> bool {
        let made = self.moment.made.get(usize::from(row.key.interval));
        let range = made.and_then(|all| all.iter().find(|m| m.has(row.commit)));
        let (source, _) = self.names.get(row.key.symbol);
        let began = range.and_then(|m| m.began.iter().find(|(of, _)| of == source));
        row.sys_to != self.open_end && began.is_some_and(|(_, time)| row.key.start <= *time)
    }

    /// A trade of this commit has had time to reach the table.
    fn is_overdue(&self, commit: i64) -> bool {
        self.moment.settled
            || self
                .moment
                .commit_times
                .get(&commit)
                .is_some_and(|t| self.moment.system_time - t > self.moment.patience)
    }
}

/// Compares the expected bars of one slice with the rows that the table has of them, versions and
/// all. `rows` in any order; those beyond the moment are left out by the caller.
pub fn compare(
    expected: &[Expected],
    rows: &mut [BarRow],
    names: &Names,
    rules: &Rules,
    moment: &Moment,
    open_end: i64,
    out: &mut Findings,
) {
    let check = Check {
        names,
        rules,
        moment,
        open_end,
    };
    rows.sort_by(|a, b| {
        (a.key, a.ticks_offset, a.sys_from).cmp(&(b.key, b.ticks_offset, b.sys_from))
    });
    histories(&check, rows, out);
    let mut groups = rows.chunk_by(|a, b| a.key == b.key).peekable();
    for bar in expected {
        while let Some(group) = groups.next_if(|g| g[0].key < bar.key) {
            without_trades(&check, group, out);
        }
        let group = groups.next_if(|g| g[0].key == bar.key).unwrap_or(&[]);
        one_bar(&check, bar, group, out);
    }
    for group in groups {
        without_trades(&check, group, out);
    }
}

/// INV-2, INV-3, INV-6.
fn histories(check: &Check<'_>, rows: &[BarRow], out: &mut Findings) {
    let mut key = 0;
    let mut list = Vec::with_capacity(rows.len());
    for (n, row) in rows.iter().enumerate() {
        if n > 0 && rows[n - 1].key != row.key {
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
        out.push(match fault {
            Fault::Overlap(a, b) => {
                let (a, b) = (&rows[a as usize], &rows[b as usize]);
                check
                    .finding(BreakKind::Duplicate, b.key, format!("INV-2:{}", b.sys_from))
                    .expected("one row at any valid and system time")
                    .actual(format!(
                        "output offsets {} and {}",
                        a.kafka_offset, b.kafka_offset
                    ))
                    .detail(
                        "two rows of one bar hold at the same time: a commit was applied twice, \
                         or another engine wrote the table; remove the row that the topic does \
                         not have, or rebuild the table",
                    )
            }
            Fault::Revision(n, expected) => {
                let row = &rows[n as usize];
                if row.prev_sys_from.is_none() && row.bars_offset > 0 {
                    continue; // a retraction may have come before the first version, and counts too
                }
                let cause = format!("revision:{}", row.sys_from);
                check
                    .finding(BreakKind::ValueDrift, row.key, cause)
                    .expected(format!("revision {expected}"))
                    .actual(format!("revision {}", row.revision))
                    .detail(
                        "each version's revision is one more than that of the version it replaces",
                    )
            }
            Fault::Backward(n) | Fault::Flag(n) => {
                let row = &rows[n as usize];
                check
                    .finding(
                        BreakKind::ValueDrift,
                        row.key,
                        format!("INV-3:{}", row.sys_from),
                    )
                    .actual(format!(
                        "valid {}..{}, system {}..{}, is_current {}",
                        row.valid_from, row.valid_to, row.sys_from, row.sys_to, row.is_current
                    ))
                    .detail("the row's times contradict each other; FinLake cannot have written it")
            }
            Fault::Unfollowed(n) => {
                let row = &rows[n as usize];
                if check.moment.asserted.retracts(row.key, row.sys_from) {
                    continue;
                }
                check
                    .finding(BreakKind::Missing, row.key, format!("INV-6:{}", row.sys_to))
                    .expected(format!("a version from {} on", row.sys_to))
                    .detail(
                        "a version was closed and none follows: the one that followed is lost, \
                         unless the bar was retracted; see `finlake history`",
                    )
            }
            Fault::Orphan(n) => {
                let row = &rows[n as usize];
                check
                    .finding(
                        BreakKind::Missing,
                        row.key,
                        format!("INV-6:prev:{}", row.sys_from),
                    )
                    .expected(format!(
                        "the version of {} that this one replaced",
                        row.prev_sys_from.unwrap_or_default()
                    ))
                    .detail("an older version is lost from the table; as-of answers changed")
            }
        });
    }
}

/// Rows of a bar that no trade of Bronze belongs to.
fn without_trades(check: &Check<'_>, group: &[BarRow], out: &mut Findings) {
    let Some(row) = group.iter().rfind(|r| r.from_trades) else {
        return;
    };
    let mut followed = Followed::new(check.moment.asserted.of(row.key));
    if by_system_time(group).all(|r| followed.follows(r, group, &|_| None)) {
        return; // a bar that only an assertion knew
    }
    out.push(
        check
            .finding(BreakKind::ValueDrift, row.key, "trades")
            .expected("no trades, no bar")
            .actual(format!("{} trades", row.content.trade_count))
            .detail(
                "Silver has a bar for which Bronze has no trade: Bronze lost rows (reconcile \
                 --layer bronze says which), or the bar is invented",
            ),
    );
}

/// The versions in the order in which they were made, mostly the one they come in.
fn by_system_time(group: &[BarRow]) -> impl Iterator<Item = &BarRow> {
    let mut rows: Vec<&BarRow> = group.iter().collect();
    rows.sort_by_key(|r| r.sys_from);
    rows.into_iter()
}

/// The versions of a bar that follow from assertions, by system time.
fn corrected(check: &Check<'_>, bar: &Expected, group: &[BarRow]) -> Vec<i64> {
    let asserted = check.moment.asserted.of(bar.key);
    if asserted.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    let replayed = bar.replayed.as_ref().map(|(at, _)| at.as_slice());
    let known: Vec<Option<Ohlcv>> = bar.at.iter().map(|(_, content)| *content).collect();
    for contents in [Some(known.as_slice()), replayed].into_iter().flatten() {
        let before = |offset: i64| {
            let n = bar.at.binary_search_by_key(&offset, |(cut, _)| *cut).ok()?;
            contents.get(n).copied().flatten()
        };
        let mut followed = Followed::new(asserted);
        let rows = by_system_time(group).filter(|r| followed.follows(r, group, &before));
        found.extend(rows.map(|r| r.sys_from));
    }
    found
}

fn one_bar(check: &Check<'_>, bar: &Expected, group: &[BarRow], out: &mut Findings) {
    if group.iter().any(|r| !r.from_trades) {
        return; // a vendor's: trades do not decide about it
    }
    let corrected = corrected(check, bar, group);
    for (n, (cut, content)) in bar.at.iter().enumerate() {
        let replayed = bar.replayed.as_ref().map(|(at, _)| &at[n]);
        for row in group.iter().filter(|r| r.ticks_offset == *cut) {
            let Some(content) = content else {
                if replayed.is_some_and(|r| r.as_ref() == Some(&row.content))
                    || corrected.contains(&row.sys_from)
                {
                    continue;
                }
                out.push(
                    check
                        .finding(
                            BreakKind::ValueDrift,
                            row.key,
                            format!("trades:{}", row.sys_from),
                        )
                        .expected("no trade before the offset that it reflects")
                        .actual(format!("{} trades up to {cut}", row.content.trade_count))
                        .detail(
                            "a version claims trades that Bronze does not have before its offset",
                        ),
                );
                continue;
            };
            let same = row.content == *content && row.vwap == content.vwap().0;
            let as_replayed = || {
                replayed
                    .is_some_and(|r| r.is_some_and(|r| row.content == r && row.vwap == r.vwap().0))
            };
            let excused = || corrected.contains(&row.sys_from) || check.is_partial(row);
            if !same && !as_replayed() && !excused() {
                if row.bars_offset > 0 && row.commit > check.moment.asserted_until {
                    // An assertion may have come with it that Bronze does not hold yet.
                    out.undecided(VALUES, bar_name(row.key, check.names, check.rules));
                } else {
                    drift(check, row, content, out);
                }
            }
            labels(check, row, out);
        }
    }
    current(check, bar, group, out);
}

/// Whether the newest version is there and new enough.
fn current(check: &Check<'_>, bar: &Expected, group: &[BarRow], out: &mut Findings) {
    let Some(total) = &bar.total else {
        return; // only trades that came too late for it: a replay makes it
    };
    let closed = check.is_closed(bar.key);
    let name = || bar_name(bar.key, check.names, check.rules);
    let (made, with_all) = check.is_made(bar.key, bar.last_commit);
    let newest = group.iter().rfind(|r| r.sys_to == check.open_end);
    match newest {
        None if group.iter().any(|r| r.sys_to != check.open_end) => {
            // Closed by a version that is not there: found as INV-6, or a retraction.
        }
        None if made && (closed || check.moment.settled) => out.push(
            check
                .finding(BreakKind::Missing, bar.key, "row")
                .expected(show(total))
                .detail(
                    "the bar's trades are in Bronze and accepted, the bar is not in Silver; \
                     `finlake replay --apply` over its day restores it, unless the task holds the bar \
                     and the table alone lost it: then put the table right",
                ),
        ),
        // Told at a graceful stop, it is wrong still.
        None => out.undecided("row", name()),
        Some(_) if !with_all => out.undecided("version", name()),
        Some(row) => {
            let behind = row.ticks_offset <= bar.last_offset;
            let stage_lags = closed && row.stage != Some(Stage::Closed);
            if (behind && (closed || check.moment.settled) && check.is_overdue(bar.last_commit))
                || (stage_lags && !behind)
                || (stage_lags && check.is_overdue(bar.last_commit))
            {
                out.push(
                    check
                        .finding(BreakKind::Missing, bar.key, "version")
                        .expected(show(total))
                        .actual(format!(
                            "{} ({}, revision {})",
                            show(&row.content),
                            row.stage.map_or("?", Stage::as_str),
                            row.revision
                        ))
                        .detail(format!(
                            "the newest version reflects input up to {}, but offset {} belongs to \
                             the bar too and its version is overdue; `finlake replay --apply` over its \
                             day restores it, unless the task holds the trade and the table alone lost \
                             the version: then put the table right",
                            row.ticks_offset, bar.last_offset
                        )),
                );
            } else if behind || stage_lags {
                // What was overdue may have been joined by a trade that is not.
                out.undecided("version", name());
            }
        }
    }
}

fn show(o: &Ohlcv) -> String {
    format!(
        "open {} high {} low {} close {} volume {} trades {}",
        o.open, o.high, o.low, o.close, o.volume, o.trade_count
    )
}

/// Relative difference of two unscaled numbers.
pub fn relative(expected: i128, actual: i128) -> f64 {
    if expected == actual {
        return 0.0;
    }
    if expected == 0 {
        return f64::INFINITY;
    }
    ((actual - expected) as f64 / expected as f64).abs()
}

fn drift(check: &Check<'_>, row: &BarRow, expected: &Ohlcv, out: &mut Findings) {
    let (e, a) = (expected, &row.content);
    let values = [
        ("open", e.open.0, a.open.0),
        ("high", e.high.0, a.high.0),
        ("low", e.low.0, a.low.0),
        ("close", e.close.0, a.close.0),
        ("volume", e.volume.0, a.volume.0),
        ("quote_volume", e.quote_volume.0, a.quote_volume.0),
        ("trade_count", e.trade_count.into(), a.trade_count.into()),
        ("taker_buy_base", e.taker_buy_base.0, a.taker_buy_base.0),
        ("taker_buy_quote", e.taker_buy_quote.0, a.taker_buy_quote.0),
        ("vwap", e.vwap().0, row.vwap),
    ];
    let places = [
        ("first_trade_time", e.first.time, a.first.time),
        ("first_trade_id", e.first.id, a.first.id),
        ("last_trade_time", e.last.time, a.last.time),
        ("last_trade_id", e.last.id, a.last.id),
    ];
    let mut names = Vec::new();
    let (mut wanted, mut found) = (Vec::new(), Vec::new());
    let mut worst = 0.0f64;
    for (name, e, a) in values {
        if e != a {
            worst = worst.max(relative(e, a));
            names.push(name);
            let scale = match name {
                "trade_count" => 0,
                "quote_volume" | "taker_buy_quote" => 16,
                _ => 8,
            };
            wanted.push(format!("{name} {}", decimal(e, scale)));
            found.push(format!("{name} {}", decimal(a, scale)));
        }
    }
    for (name, e, a) in places {
        if e != a {
            names.push(name);
            wanted.push(format!("{name} {e}"));
            found.push(format!("{name} {a}"));
        }
    }
    let severity = if worst > MATERIAL {
        Severity::Material
    } else {
        Severity::Minor
    };
    out.push(
        check
            .finding(
                BreakKind::ValueDrift,
                row.key,
                format!("{}:{}", names.join("+"), row.sys_from),
            )
            .severity(severity)
            .expected(wanted.join(", "))
            .actual(found.join(", "))
            .detail(format!(
                "the version of system time {} does not hold what the {} trades before input \
                 offset {} give; largest difference {:.6} %",
                row.sys_from,
                e.trade_count,
                row.ticks_offset,
                worst * 100.0
            )),
    );
}

/// Columns that follow from the key.
fn labels(check: &Check<'_>, row: &BarRow, out: &mut Findings) {
    let interval = &check.rules.intervals.list()[usize::from(row.key.interval)];
    let (source, symbol) = check.names.get(row.key.symbol);
    let date = finlake_market::interval::date_of(row.key.start);
    let id = || keys::bar_id(source, symbol, interval.name(), row.key.start);
    let wrong = [
        ("bar_end", row.bar_end != row.key.start + interval.length()),
        ("trade_date", row.trade_date != date),
        ("valid_from", row.valid_from != row.key.start),
        ("valid_to", row.valid_to != check.open_end),
        ("tick_id", row.tick_id != Some(id())),
    ];
    for (name, _) in wrong.iter().filter(|(_, wrong)| *wrong) {
        out.push(
            check
                .finding(
                    BreakKind::ValueDrift,
                    row.key,
                    format!("{name}:{}", row.sys_from),
                )
                .detail(format!("{name} does not follow from the bar's key")),
        );
    }
}

/// A decimal as SQL prints it, without trailing zeros.
pub fn decimal(units: i128, scale: usize) -> String {
    let digits = format!("{:0width$}", units.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let fraction = fraction.trim_end_matches('0');
    let sign = if units < 0 { "-" } else { "" };
    if fraction.is_empty() {
        format!("{sign}{whole}")
    } else {
        format!("{sign}{whole}.{fraction}")
    }
}
