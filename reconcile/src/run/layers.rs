//! The layers of one run. Input is read in spans of whole days that no bar straddles, and of each
//! span one partition folder after the other (a symbol, or a bucket of them), so memory holds the
//! rows of one folder, whatever the table's size.

mod accuracy;
mod ahead;
mod asserted;
mod finish;
mod folders;
mod outputs;
mod reading;
mod settle;
mod topic;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use finlake_lakehouse::{FileTask, Filter, LAST_DAY, LakeError, Lakehouse, OPEN_END, Pinned, Scan};
use finlake_market::SeenIds;
use finlake_market::interval::DAY;
use finlake_schemas::keys::iso_instant;
use futures::TryStreamExt;

use ahead::Ahead;

use super::{Options, Records, Report, Watch, behind, scope};
use crate::asserted::Assertions;
use crate::books::{Books, Made};
use crate::bronze;
use crate::columns::{self, Bronze, Hashed};
use crate::counts;
use crate::findings::{Findings, Layer};
use crate::gold;
use crate::rules::{self, Measure, Tally};
use crate::shape;
use crate::silver::{self, BarRow, Moment};
use crate::topic::Sums;
use crate::trades::{self, BarKey, Counted, Cuts, Folded, Names, Outside, Seen};

type Result<T> = std::result::Result<T, LakeError>;

/// The state of a run.
pub(super) struct Run<'a> {
    pub lake: &'a Lakehouse,
    pub options: &'a Options,
    pub books: Option<&'a Books>,
    pub records: Option<&'a dyn Records>,
    pub watch: &'a dyn Watch,
    pub report: Report,
    pub tally: Tally,
    /// Layers whose schema drifted: their rows are not compared.
    pub unreadable: BTreeSet<Layer>,
}

/// What goes through all spans.
struct Walk<'a> {
    bronze: &'a Pinned,
    silver: Option<&'a Pinned>,
    /// Greatest system time looked at, by partition.
    until: Vec<i64>,
    names: Names,
    seen: Vec<Seen>,
    /// With a date: ids of the trades next to it.
    around: Vec<Seen>,
    stream_times: Vec<BTreeMap<String, i64>>,
    /// Newest commit that the ledger shows within the cut, and whether it was a graceful stop's, by
    /// partition.
    newest: Vec<Option<(i64, bool)>>,
    /// Of each configured interval the commits up to the cut in which its bars were made, by partition.
    made: Vec<Arc<[Vec<Made>]>>,
    /// What was asserted of bars, and the commit up to which Bronze holds that, by partition.
    asserted: Arc<Assertions>,
    asserted_until: Vec<i64>,
    /// Check Bronze itself, not only use it.
    check: bool,
    total: u64,
    /// Go folder by folder.
    by_folder: bool,
    /// Offsets of all rows, those that stand again, and sums of content hashes, by partition: each
    /// span adds its own once.
    offsets: Vec<SeenIds>,
    again: Vec<Vec<i64>>,
    sums: Vec<Sums>,
    stamps: columns::Stamps,
    /// The day after the last span, and what of Silver was read ahead.
    end: i32,
    ahead: Ahead,
}

/// Whether a span is read for the first time, or once more with what is known of others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    First,
    Again,
}

/// A symbol stands in two folders: another engine laid its rows so.
struct Twice;

/// What one span gave; kept until it is known that no later span changes it.
#[derive(Default)]
struct Span {
    findings: Findings,
    counted: Vec<BTreeMap<i64, Counted>>,
    bars: Vec<BTreeMap<i64, i64>>,
    rejected: BTreeMap<u32, Vec<i64>>,
    settled_ids: BTreeMap<u32, i64>,
    elsewhere: Vec<(usize, u32, i64)>,
    tally: Tally,
    ticks: u64,
    bar_rows: u64,
}

impl Run<'_> {
    fn cannot(&mut self, why: impl Into<String>) {
        self.report.unchecked.push(why.into());
    }

    /// Schema checks; false if the rows cannot be compared.
    async fn schema(&mut self, pinned: &Pinned, layer: Layer, filter: &Filter) -> Result<bool> {
        let registered = self.options.registered.get(&layer).map(String::as_str);
        let mut found = Findings::default();
        let checked = shape::check(self.lake, pinned, layer, filter, registered, &mut found).await;
        self.report.findings.absorb(found);
        let (readable, unchecked) = checked?;
        self.report.unchecked.extend(unchecked);
        if !readable {
            self.unreadable.insert(layer);
            self.cannot(format!(
                "the rows of {} were not compared, since its schema drifted",
                pinned.table()
            ));
        }
        Ok(readable)
    }

    /// The cut: the greatest system time that is compared, by partition.
    fn cut(&mut self, tables: &[&Pinned]) -> Vec<i64> {
        let partitions = tables
            .iter()
            .flat_map(|t| t.watermarks().positions.keys())
            .max()
            .map_or(0, |p| usize::try_from(*p).unwrap_or(0) + 1);
        let mut until = Vec::with_capacity(partitions);
        let mut behind = None;
        for p in 0..partitions {
            let partition = i32::try_from(p).unwrap_or(i32::MAX);
            let whole = tables.iter().map(|t| t.position(partition).frontier).min();
            let whole = whole.unwrap_or(0);
            let wanted = self.options.as_of.unwrap_or(whole);
            if wanted > whole {
                behind = Some(behind.map_or(whole, |least: i64| least.min(whole)));
            }
            until.push(wanted.min(whole));
            self.report.cut.insert(partition, wanted.min(whole));
        }
        if let (Some(whole), Some(asked)) = (behind, self.options.as_of) {
            let names: Vec<_> = tables.iter().map(|t| t.table().to_string()).collect();
            self.report.unchecked.push(format!(
                "{}: whole up to {} only, asked was {}: wait, or ask for an earlier --as-of",
                names.join(" and "),
                iso_instant(whole),
                iso_instant(asked)
            ));
        }
        until
    }

    /// Bronze, and Silver from Bronze.
    pub async fn trades(
        &mut self,
        bronze: &Pinned,
        silver: Option<&Pinned>,
        check: bool,
    ) -> Result<()> {
        let filter = self.filter(None);
        let mut readable = self.schema(bronze, Layer::Bronze, &filter).await?;
        if let Some(silver) = silver {
            readable &= self.schema(silver, Layer::Silver, &filter).await?;
            if let Some((p, below, above)) = behind(bronze, silver) {
                self.cannot(format!(
                    "Bronze is at commit {below} of partition {p}, Silver at {above}: Bronze is \
                     behind the cut; start the sink or wait for it"
                ));
                return Ok(());
            }
        }
        if !readable {
            return Ok(());
        }
        let until = match silver {
            Some(silver) => self.cut(&[silver]),
            None => self.cut(&[bronze]),
        };
        let total = bronze.files(&filter).await?.iter().map(|f| f.rows).sum();
        let newest = self.newest(&until);
        let made = self.made(&newest);
        for by_folder in [true, false] {
            let partitions = until.len();
            let walk = Walk {
                bronze,
                silver,
                until: until.clone(),
                names: Names::default(),
                seen: vec![Seen::default(); partitions],
                around: vec![Seen::default(); partitions],
                stream_times: vec![BTreeMap::new(); partitions],
                newest: newest.clone(),
                made: made.clone(),
                asserted: Arc::default(),
                asserted_until: vec![i64::MAX; partitions],
                check,
                total,
                by_folder,
                offsets: vec![SeenIds::new(); partitions],
                again: vec![Vec::new(); partitions],
                sums: vec![Sums::default(); partitions],
                stamps: columns::Stamps::default(),
                end: i32::MIN,
                ahead: Ahead::default(),
            };
            if let Ok(()) = self.walk(walk).await? {
                break;
            }
        }
        Ok(())
    }

    /// All spans.
    async fn walk(&mut self, mut walk: Walk<'_>) -> Result<std::result::Result<(), Twice>> {
        let partitions = walk.until.len();
        if let Some(silver) = walk.silver {
            self.stream_times(silver, &mut walk).await?;
            self.assertions(&mut walk).await?;
        }
        let mut results: BTreeMap<i32, Span> = BTreeMap::new();
        let none = vec![Outside::default(); partitions];
        let mut contested = BTreeSet::new();
        let spans = self.spans(walk.bronze, walk.silver).await?;
        walk.end = spans
            .last()
            .map_or(i32::MIN, |from| from.saturating_add(self.days()));
        for from in spans {
            let mut seen = std::mem::take(&mut walk.seen);
            let span = self
                .span(&mut walk, from, &none, &mut seen, Pass::First)
                .await?;
            walk.seen = seen;
            let span = match span {
                Ok(span) => span,
                Err(twice) => return Ok(Err(twice)),
            };
            contested.extend(span.elsewhere.iter().copied());
            results.insert(from, span);
        }
        if self.options.dates.is_some() {
            self.foreign(&mut walk, &mut contested).await?;
            let around = self.around(&mut walk).await?;
            results.insert(i32::MAX, around);
        }
        if !contested.is_empty() {
            self.settle(&mut walk, &contested, &mut results).await?;
        }
        if self.options.dates.is_none() {
            let undecodable = self.undecodable(&mut walk).await?;
            // Beyond every date.
            results.insert(i32::MAX, undecodable);
        }
        self.against_topic(&mut walk).await?;
        self.finish(walk, results);
        Ok(Ok(()))
    }

    fn newest(&self, until: &[i64]) -> Vec<Option<(i64, bool)>> {
        let of = |(p, until): (i32, &i64)| {
            let (commit, line) = self.books?.until(p, *until).last()?;
            Some((commit, line.last))
        };
        (0..).zip(until).map(of).collect()
    }

    /// Of each interval the commits in which its bars were made, up to the cut, by partition.
    fn made(&self, newest: &[Option<(i64, bool)>]) -> Vec<Arc<[Vec<Made>]>> {
        let Some(books) = self.books else {
            return vec![Arc::default(); newest.len()];
        };
        let intervals = self.options.market.intervals.list();
        let of = |(p, newest): (i32, &Option<(i64, bool)>)| {
            let cut = newest.map_or(i64::MAX, |(commit, _)| commit);
            let made = intervals.iter().map(|i| books.made(p, i.name(), cut));
            made.collect()
        };
        (0..).zip(newest).map(of).collect()
    }

    /// The scope with a span of days, in a filter.
    fn filter(&self, span: Option<(i32, i32)>) -> Filter {
        match span.or(self.options.dates) {
            Some((from, to)) => scope(self.options).dates(from..to),
            None => scope(self.options),
        }
    }

    /// The dates of the run, widened to the whole spans that are read.
    fn read_dates(&self) -> Option<(i32, i32)> {
        let days = self.days();
        let whole = |day: i32| day.div_euclid(days) * days;
        let (from, to) = self.options.dates?;
        Some((whole(from), whole(to - 1).saturating_add(days)))
    }

    fn days(&self) -> i32 {
        i32::try_from(self.options.market.span() / DAY).unwrap_or(1)
    }

    /// First days of the spans that hold anything.
    async fn spans(&self, bronze: &Pinned, silver: Option<&Pinned>) -> Result<Vec<i32>> {
        let days = self.days();
        let mut firsts = BTreeSet::new();
        if let Some((from, to)) = self.options.dates {
            for day in from..to {
                firsts.insert(day.div_euclid(days) * days);
            }
            return Ok(firsts.into_iter().collect());
        }
        let mut unnamed = Vec::new();
        for file in bronze.files(&self.filter(None)).await? {
            match day_of(&file.path) {
                Some(day) => {
                    firsts.insert(day.div_euclid(days) * days);
                }
                None => unnamed.push(file),
            }
        }
        // Of files that others wrote the rows tell.
        let scan = Scan::columns(&["trade_time"]);
        for file in unnamed {
            let mut batches = bronze.read_file(&file, &scan).await?;
            while let Some(b) = batches.try_next().await? {
                use arrow::array::AsArray;
                use arrow::datatypes::TimestampMicrosecondType;
                if let Some(c) = b
                    .batch
                    .column(0)
                    .as_primitive_opt::<TimestampMicrosecondType>()
                {
                    for t in c.iter().flatten() {
                        let day = finlake_market::interval::date_of(t);
                        firsts.insert(day.div_euclid(days) * days);
                    }
                }
            }
        }
        // Bars whose trades are gone from Bronze.
        if let Some(silver) = silver {
            let scan = Scan::columns(&["trade_date"]).filter(scope(self.options));
            let mut batches = silver.scan(&scan).await?;
            while let Some(b) = batches.try_next().await? {
                use arrow::array::AsArray;
                use arrow::datatypes::Date32Type;
                if let Some(c) = b.batch.column(0).as_primitive_opt::<Date32Type>() {
                    let mut last = None;
                    for d in c.iter().flatten() {
                        if last != Some(d) {
                            last = Some(d);
                            firsts.insert(d.div_euclid(days) * days);
                        }
                    }
                }
            }
        }
        Ok(firsts.into_iter().collect())
    }

    /// How far stream time was at the cut: the ledger says it; without it, or where its beginning is
    /// gone, the ends of closed bars do, as far as they go.
    async fn stream_times(&self, silver: &Pinned, walk: &mut Walk<'_>) -> Result<()> {
        if let Some(books) = self.books {
            let mut whole = true;
            for (p, times) in walk.stream_times.iter_mut().enumerate() {
                let until = walk.until[p];
                let mut lines = books
                    .until(i32::try_from(p).unwrap_or(i32::MAX), until)
                    .peekable();
                whole &= lines.peek().is_some_and(|(commit, _)| *commit <= 1);
                for (_, line) in lines {
                    for (source, time) in &line.stream_times {
                        times.insert(source.clone(), *time);
                    }
                }
            }
            if whole {
                return Ok(());
            }
        }
        let filter = match self.options.dates {
            Some((from, to)) => Filter::all().dates(from..to.saturating_add(2)),
            None => Filter::all(),
        };
        let scan = Scan::columns(columns::BARS).filter(filter.text("stage", "closed"));
        let mut batches = silver.scan(&scan.dictionaries()).await?;
        let mut names = Names::default();
        while let Some(b) = batches.try_next().await? {
            let mut rows = vec![Vec::new(); walk.until.len()];
            let until = |p: usize| walk.until[p];
            let market = &self.options.market;
            columns::bars(&b.batch, market, &mut names, &until, OPEN_END, &mut rows)
                .map_err(bad)?;
            for (p, rows) in rows.iter().enumerate() {
                for row in rows {
                    let (source, _) = names.get(row.key.symbol);
                    let times = &mut walk.stream_times[p];
                    match times.get_mut(source) {
                        Some(t) => *t = (*t).max(row.bar_end),
                        None => {
                            times.insert(source.to_owned(), row.bar_end);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Compares one span, part by part.
    async fn span(
        &mut self,
        walk: &mut Walk<'_>,
        from: i32,
        outside: &[Outside],
        seen: &mut [Seen],
        pass: Pass,
    ) -> Result<std::result::Result<Span, Twice>> {
        let days = (from, from.saturating_add(self.days()));
        let (filter, newer) = (self.filter(Some(days)), self.newer_than(from));
        let files = walk.bronze.files(&filter).await?;
        let groups = folders::groups(files, walk.bronze.files(&newer).await?, walk.by_folder);
        let hashed = match (walk.check && self.records.is_some(), pass) {
            (true, Pass::First) => Hashed::Sums,
            _ => Hashed::No,
        };
        let mut span = Span::of(walk.until.len());
        let mut versions = self.bar_rows(walk, days, pass == Pass::First).await?;
        let mut done = BTreeSet::new();
        for group in groups {
            let mut bronze = self
                .read_files(walk, &group.files, &filter, Some(days), hashed)
                .await?;
            if !done.is_disjoint(&bronze.symbols) {
                return Ok(Err(Twice));
            }
            done.extend(bronze.symbols.iter().copied());
            let mut outside = outside.to_vec();
            self.newer(walk, &group.newer, &newer, &bronze, &mut outside)
                .await?;
            let began = Instant::now();
            let rows = parted(&mut versions, Some(&bronze.symbols));
            self.part(walk, &mut bronze, rows, &outside, seen, &mut span)?;
            if pass == Pass::First {
                walk.note(bronze);
            }
            self.report.compared += began.elapsed();
        }
        // Versions of bars of which Bronze has no trade.
        let rows = parted(&mut versions, None);
        if rows.iter().any(|r| !r.is_empty()) {
            let mut none = Bronze::new(walk.until.len());
            self.part(walk, &mut none, rows, outside, seen, &mut span)?;
        }
        Ok(Ok(span))
    }

    /// Compares the rows of some instruments.
    fn part(
        &self,
        walk: &Walk<'_>,
        bronze: &mut Bronze,
        rows: Vec<Vec<BarRow>>,
        outside: &[Outside],
        seen: &mut [Seen],
        span: &mut Span,
    ) -> Result<()> {
        span.ticks += bronze.rows;
        for (column, (nulls, all)) in &bronze.nulls {
            let measure = Measure::NullRate(column.clone());
            span.tally.add(measure, *nulls as f64, *all as f64);
        }
        for (p, mut rows) in rows.into_iter().enumerate() {
            let cuts = rows.iter().filter(|r| r.from_trades);
            let cuts = Cuts::new(cuts.map(|r| (r.key, r.ticks_offset)).collect());
            let market = &self.options.market;
            let slice = &mut bronze.slices[p];
            let folded = trades::fold(slice, market, &cuts, &mut seen[p], &outside[p])
                .map_err(|e| LakeError::Internal(format!("validated trades overflow: {e}")))?;
            if walk.check {
                let partition = i32::try_from(p).unwrap_or(i32::MAX);
                bronze::doubled(partition, &folded.doubled, &mut span.findings);
                let same = &folded.two_contents;
                bronze::two_contents(partition, same, &walk.names, &mut span.findings);
            }
            self.note_ids(walk, p, bronze, span);
            if walk.silver.is_some() {
                let times = bronze.commit_times(p);
                self.silver(walk, p, &folded, &mut rows, times, span);
            }
            span.bar_rows += rows.len() as u64;
            for row in &rows {
                *span.bars[p].entry(row.commit).or_default() += 1;
            }
            let ids = folded.elsewhere.iter();
            span.elsewhere
                .extend(ids.map(|(symbol, id)| (p, *symbol, *id)));
            span.count(p, &folded.counts);
        }
        Ok(())
    }

    /// Silver against the folded trades.
    fn silver(
        &self,
        walk: &Walk<'_>,
        p: usize,
        folded: &Folded,
        rows: &mut [BarRow],
        commit_times: BTreeMap<i64, i64>,
        span: &mut Span,
    ) {
        let until = walk.until[p];
        let newest = walk.newest[p];
        let moment = Moment {
            commit: newest.map_or(0, |(commit, _)| commit),
            system_time: until,
            stream_times: walk.stream_times[p].clone(),
            settled: newest.is_some_and(|(_, last)| last),
            patience: self.options.patience,
            commit_times,
            asserted: walk.asserted.clone(),
            asserted_until: walk.asserted_until[p],
            made: walk.made[p].clone(),
        };
        let market = &self.options.market;
        let out = &mut span.findings;
        silver::compare(
            &folded.bars,
            rows,
            &walk.names,
            market,
            &moment,
            OPEN_END,
            out,
        );
        rows.sort_by_key(|r| (r.key, r.sys_from));
        let last: BTreeMap<BarKey, i64> =
            folded.bars.iter().map(|b| (b.key, b.last_offset)).collect();
        let current = |key: BarKey| {
            rows[rows.partition_point(|r| r.key < key)..]
                .iter()
                .take_while(|r| r.key == key)
                .find(|r| r.sys_to == OPEN_END)
        };
        let whole = |key: BarKey| {
            current(key).is_some_and(|r| last.get(&key).is_some_and(|o| *o < r.ticks_offset))
        };
        let rules = &self.options.validators;
        let (names, tally) = (&walk.names, &mut span.tally);
        rules::bars(rules, rows, names, market, OPEN_END, whole, tally, out);
    }
}

fn bad(e: columns::BadColumn) -> LakeError {
    LakeError::Corrupt {
        what: "a pinned table".to_owned(),
        detail: e.to_string(),
    }
}

fn note(into: &mut BTreeMap<u32, i64>, id: Option<(u32, i64)>) {
    if let Some((symbol, id)) = id {
        let greatest = into.entry(symbol).or_insert(i64::MIN);
        *greatest = (*greatest).max(id);
    }
}

/// The UTC day that a file's folder says, `trade_time_day=2026-01-05`.
fn day_of(path: &str) -> Option<i32> {
    let (_, rest) = path.split_once("trade_time_day=")?;
    let text = rest.split('/').next()?;
    let mut parts = text.splitn(3, '-');
    let mut number = || parts.next()?.parse::<i64>().ok();
    let (y, m, d) = (number()?, number()?, number()?);
    if !(1970..=9999).contains(&y) || !(1..=12).contains(&m) || !(1..=31).contains(&d) {
        return None;
    }
    // Days from civil, by eras of 400 years counted from March.
    let y = if m <= 2 { y - 1 } else { y };
    let (era, year) = (y.div_euclid(400), y.rem_euclid(400));
    let day = (153 * (m + if m > 2 { -3 } else { 9 }) + 2) / 5 + d - 1;
    let days = era * 146_097 + year * 365 + year / 4 - year / 100 + day - 719_468;
    i32::try_from(days).ok()
}

impl Span {
    /// For this many partitions.
    fn of(partitions: usize) -> Span {
        Span {
            counted: vec![BTreeMap::new(); partitions],
            bars: vec![BTreeMap::new(); partitions],
            ..Span::default()
        }
    }

    /// Adds what the pipeline must have done with some rows of a partition.
    fn count(&mut self, partition: usize, counts: &BTreeMap<i64, Counted>) {
        for (commit, n) in counts {
            self.counted[partition].entry(*commit).or_default().add(*n);
        }
    }
}

/// Takes the rows of these instruments out, or all that are left.
fn parted(rows: &mut [Vec<BarRow>], symbols: Option<&BTreeSet<u32>>) -> Vec<Vec<BarRow>> {
    let Some(symbols) = symbols else {
        return rows.iter_mut().map(std::mem::take).collect();
    };
    let of = |rows: &mut Vec<BarRow>| {
        rows.extract_if(.., |r| symbols.contains(&r.key.symbol))
            .collect()
    };
    rows.iter_mut().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_of_folders() {
        assert_eq!(day_of("a/trade_time_day=1970-01-01/x"), Some(0));
        assert_eq!(
            day_of("a/trade_time_day=2026-01-05/symbol=X/x"),
            Some(20_458)
        );
        assert_eq!(day_of("a/trade_time_day=2000-02-29/x"), Some(11_016));
        assert_eq!(day_of("a/trade_time_day=null/x"), None);
        assert_eq!(day_of("a/x"), None);
    }
}
