//! The layers of one run. Input is read in spans of whole days that no bar straddles, so memory
//! holds the rows of one span, whatever the table's size.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use finlake_lakehouse::{Filter, LakeError, Lakehouse, OPEN_END, Pinned, Scan};
use finlake_market::SeenIds;
use finlake_market::interval::DAY;
use futures::TryStreamExt;

use super::{Options, Records, Report, Watch, behind, scope};
use crate::books::Books;
use crate::bronze;
use crate::columns::{self, Bronze};
use crate::counts;
use crate::findings::{Findings, Layer};
use crate::gold;
use crate::rules::{self, Measure, Tally};
use crate::shape;
use crate::silver::{self, BarRow, Moment};
use crate::trades::{self, BarKey, Counted, Cuts, Folded, Names, Outside, Seen};

/// The day of the open end: no trade lies there.
const LAST_DAY: i32 = 2_932_896;

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
}

/// What goes through all spans.
struct Walk<'a> {
    bronze: &'a Pinned,
    silver: Option<&'a Pinned>,
    /// Greatest system time looked at, by partition.
    until: Vec<i64>,
    names: Names,
    seen: Vec<Seen>,
    stream_times: Vec<BTreeMap<String, i64>>,
    /// Check Bronze itself, not only use it.
    check: bool,
    total: u64,
}

/// What one span gave; kept until it is known that no later span changes it.
#[derive(Default)]
struct Span {
    findings: Findings,
    counted: Vec<BTreeMap<i64, Counted>>,
    bars: Vec<BTreeMap<i64, i64>>,
    /// Rows of Silver by commit that were closed and not followed: retracted, at most.
    withdrawn: Vec<BTreeMap<i64, i64>>,
    offsets: Vec<Vec<(i64, i64)>>,
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
        for p in 0..partitions {
            let partition = i32::try_from(p).unwrap_or(i32::MAX);
            let whole = tables.iter().map(|t| t.position(partition).frontier).min();
            let whole = whole.unwrap_or(0);
            let wanted = self.options.as_of.unwrap_or(whole);
            if wanted > whole {
                self.report.unchecked.push(format!(
                    "partition {p} is whole up to {whole} µs only, asked was {wanted}: wait, or ask \
                     for an earlier --as-of"
                ));
            }
            until.push(wanted.min(whole));
            self.report.cut.insert(partition, wanted.min(whole));
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
        let partitions = until.len();
        let spans = self.spans(bronze, silver).await?;
        let total = bronze.files(&filter).await?.iter().map(|f| f.rows).sum();
        let mut walk = Walk {
            bronze,
            silver,
            until,
            names: Names::default(),
            seen: vec![Seen::default(); partitions],
            stream_times: vec![BTreeMap::new(); partitions],
            check,
            total,
        };
        if let Some(silver) = silver {
            self.stream_times(silver, &mut walk).await?;
        }
        let mut results: BTreeMap<i32, Span> = BTreeMap::new();
        let none = vec![Outside::default(); partitions];
        let mut contested = BTreeSet::new();
        for from in spans {
            let mut seen = std::mem::take(&mut walk.seen);
            let span = self.span(&mut walk, from, &none, &mut seen).await?;
            walk.seen = seen;
            contested.extend(span.elsewhere.iter().copied());
            results.insert(from, span);
        }
        if self.options.dates.is_some() {
            self.foreign(&walk, &mut contested).await?;
        }
        if !contested.is_empty() {
            self.settle(&mut walk, &contested, &mut results).await?;
        }
        if self.options.dates.is_none() {
            let undecodable = self.undecodable(&mut walk).await?;
            // Beyond every date.
            results.insert(i32::MAX, undecodable);
        }
        self.finish(walk, results);
        Ok(())
    }

    /// The scope with a span of days, in a filter.
    fn filter(&self, span: Option<(i32, i32)>) -> Filter {
        match span.or(self.options.dates) {
            Some((from, to)) => scope(self.options).dates(from..to),
            None => scope(self.options),
        }
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

    /// How far stream time was at the cut: the ledger says it; without it, the ends of closed bars
    /// do, as far as they go.
    async fn stream_times(&self, silver: &Pinned, walk: &mut Walk<'_>) -> Result<()> {
        if let Some(books) = self.books {
            for (p, times) in walk.stream_times.iter_mut().enumerate() {
                let until = walk.until[p];
                for (_, line) in books.until(i32::try_from(p).unwrap_or(i32::MAX), until) {
                    for (source, time) in &line.stream_times {
                        times.insert(source.clone(), *time);
                    }
                }
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

    /// Reads one span of Bronze.
    /// `days`: the filter wants all rows of these days.
    async fn read(
        &self,
        walk: &mut Walk<'_>,
        filter: Filter,
        days: Option<(i32, i32)>,
        hashed: bool,
    ) -> Result<Bronze> {
        let wanted: Vec<&str> = columns::TICKS
            .iter()
            .copied()
            .filter(|c| hashed || !columns::TOPIC_ONLY.contains(c))
            .collect();
        let exact = Scan::columns(&wanted).filter(filter.clone()).dictionaries();
        // A file of one day needs no look at the time of each row.
        let by_folder = Scan::columns(&wanted)
            .filter(scope(self.options))
            .dictionaries();
        let mut out = Bronze::new(walk.until.len());
        for file in walk.bronze.files(&filter).await? {
            let inside = days.is_some_and(|(from, to): (i32, i32)| {
                day_of(&file.path).is_some_and(|day| from <= day && day < to)
            });
            let scan = if inside { &by_folder } else { &exact };
            let mut batches = walk.bronze.read_file(&file, scan).await?;
            while let Some(b) = batches.try_next().await? {
                let limits = walk.until.clone();
                let until = |p: usize| limits[p];
                let rows = out.rows;
                let market = &self.options.market;
                out.take(&b.batch, market, &mut walk.names, &until, hashed)
                    .map_err(bad)?;
                for rule in &self.options.validators {
                    if let Measure::NullRate(column) = &rule.measure {
                        out.count_nulls(&b.batch, column);
                    }
                }
                self.watch.rows("trades", out.rows - rows, walk.total);
            }
        }
        Ok(out)
    }

    /// Trades so much newer than a span that they may make its own too late for their minutes.
    async fn newer(&self, walk: &mut Walk<'_>, from: i32, bronze: &Bronze) -> Result<Vec<Outside>> {
        let mut out = vec![Outside::default(); walk.until.len()];
        let retention = self.options.market.retention_1m;
        let first = i64::from(from) * DAY + retention;
        let first = i32::try_from(first.div_euclid(DAY)).unwrap_or(i32::MAX);
        let last = bronze
            .slices
            .iter()
            .filter_map(|s| s.offsets())
            .map(|o| o.1)
            .max();
        let Some(last) = last else { return Ok(out) };
        let filter = scope(self.options)
            .dates(first.min(LAST_DAY)..LAST_DAY)
            .offsets(0..last);
        if walk.bronze.files(&filter).await?.is_empty() {
            return Ok(out);
        }
        let newer = self.read(walk, filter, None, false).await?;
        for (p, slice) in newer.slices.iter().enumerate() {
            let valid = slice.rows().iter().filter(|r| r.is_valid());
            out[p].newer = valid.map(|r| (r.symbol, r.time, r.offset)).collect();
        }
        Ok(out)
    }

    /// Compares one span.
    async fn span(
        &mut self,
        walk: &mut Walk<'_>,
        from: i32,
        outside: &[Outside],
        seen: &mut [Seen],
    ) -> Result<Span> {
        let days = (from, from.saturating_add(self.days()));
        let mut span = Span::default();
        let hashed = walk.check && self.records.is_some();
        let mut bronze = self
            .read(walk, self.filter(Some(days)), Some(days), hashed)
            .await?;
        span.ticks = bronze.rows;
        for (column, (nulls, all)) in &bronze.nulls {
            let measure = Measure::NullRate(column.clone());
            span.tally.add(measure, *nulls as f64, *all as f64);
        }
        let rows = self.bar_rows(walk, days).await?;
        let newer = self.newer(walk, from, &bronze).await?;
        let began = Instant::now();
        for (p, mut rows) in rows.into_iter().enumerate() {
            let cuts = rows.iter().filter(|r| r.from_trades);
            let cuts = Cuts::new(cuts.map(|r| (r.key, r.ticks_offset)).collect());
            let outside = Outside {
                newer: newer[p].newer.clone(),
                ..outside[p].clone()
            };
            let market = &self.options.market;
            let slice = &mut bronze.slices[p];
            let folded = trades::fold(slice, market, &cuts, &mut seen[p], &outside)
                .map_err(|e| LakeError::Internal(format!("validated trades overflow: {e}")))?;
            if walk.check {
                let partition = i32::try_from(p).unwrap_or(i32::MAX);
                bronze::doubled(partition, &folded.doubled, &mut span.findings);
                let same = &folded.two_contents;
                bronze::two_contents(partition, same, &walk.names, &mut span.findings);
            }
            self.note_ids(walk, p, &bronze, &mut span);
            if walk.silver.is_some() {
                let times = bronze.commit_times(p);
                self.silver(walk, p, &folded, &mut rows, times, &mut span);
            }
            span.bar_rows += rows.len() as u64;
            span.bars.push(by_commit(&rows));
            span.withdrawn.push(withdrawn(&rows));
            let ids = folded.elsewhere.iter();
            span.elsewhere
                .extend(ids.map(|(symbol, id)| (p, *symbol, *id)));
            span.counted.push(folded.counts);
            span.offsets
                .push(runs(bronze.slices[p].rows().iter().map(|r| r.offset)));
        }
        self.report.compared += began.elapsed();
        if hashed {
            self.against_topic(&bronze, days, &mut span);
        }
        Ok(span)
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
        let partition = i32::try_from(p).unwrap_or(i32::MAX);
        let until = walk.until[p];
        let newest = self.books.and_then(|b| b.until(partition, until).last());
        let moment = Moment {
            commit: newest.map_or(0, |(commit, _)| commit),
            system_time: until,
            stream_times: walk.stream_times[p].clone(),
            settled: newest.is_some_and(|(_, line)| line.last),
            patience: self.options.patience,
            commit_times,
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
        rows.sort_by(|a, b| (a.key, a.sys_from).cmp(&(b.key, b.sys_from)));
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

    /// Versions of the bars of these days, by partition.
    async fn bar_rows(&self, walk: &mut Walk<'_>, days: (i32, i32)) -> Result<Vec<Vec<BarRow>>> {
        let mut rows = vec![Vec::new(); walk.until.len()];
        let Some(silver) = walk.silver else {
            return Ok(rows);
        };
        let filter = self.filter(Some(days));
        let scan = Scan::columns(columns::BARS).filter(filter).dictionaries();
        let mut batches = silver.scan(&scan).await?;
        while let Some(b) = batches.try_next().await? {
            let limits = walk.until.clone();
            let until = |p: usize| limits[p];
            let market = &self.options.market;
            columns::bars(
                &b.batch,
                market,
                &mut walk.names,
                &until,
                OPEN_END,
                &mut rows,
            )
            .map_err(bad)?;
        }
        Ok(rows)
    }

    /// Ids of refused records, and up to which id a gap can no longer be on its way.
    fn note_ids(&self, walk: &Walk<'_>, p: usize, bronze: &Bronze, span: &mut Span) {
        if !walk.check {
            return;
        }
        let limit = walk.until[p].saturating_sub(self.options.patience);
        let times = bronze.commit_times(p);
        let old = times.iter().filter(|(_, t)| **t <= limit);
        let settled = old.map(|(c, _)| *c).max().unwrap_or(i64::MIN);
        // The newest commits of a stream that still runs; of one that ended all are old enough.
        let ended = self.books.is_some_and(|b| {
            let partition = i32::try_from(p).unwrap_or(i32::MAX);
            b.until(partition, walk.until[p])
                .last()
                .is_some_and(|(_, l)| l.last)
        });
        let mut last: Option<(u32, i64)> = None;
        for row in bronze.slices[p].rows() {
            if !row.is_valid() {
                if row.id >= 0 {
                    span.rejected.entry(row.symbol).or_default().push(row.id);
                }
                continue;
            }
            if !ended && row.commit > settled {
                continue;
            }
            match &mut last {
                Some((symbol, id)) if *symbol == row.symbol => *id = (*id).max(row.id),
                _ => {
                    let before = last.replace((row.symbol, row.id));
                    note(&mut span.settled_ids, before);
                }
            }
        }
        note(&mut span.settled_ids, last);
    }

    /// Bronze against the records of the topic in the span's offsets.
    fn against_topic(&mut self, bronze: &Bronze, days: (i32, i32), span: &mut Span) {
        let Some(records) = self.records else { return };
        // A span of time is not a range of offsets: only a run over everything can tell a record
        // that is missing from one that belongs to another day.
        let _ = days;
        for (p, rows) in bronze.hashes.iter().enumerate() {
            let (Some(from), Some(to)) = (
                rows.iter().map(|r| r.0).min(),
                rows.iter().map(|r| r.0 + 1).max(),
            ) else {
                continue;
            };
            let partition = i32::try_from(p).unwrap_or(i32::MAX);
            match records.ticks(partition, from, to) {
                Err(why) => self.report.unchecked.push(why),
                Ok((first, expected)) => {
                    let have: BTreeSet<i64> = rows.iter().map(|r| r.0).collect();
                    let retained = rows.iter().copied().filter(|r| r.0 >= first).collect();
                    let expected = expected
                        .into_iter()
                        .filter(|r| have.contains(&r.0))
                        .collect();
                    let expected = crate::bisect::Side::new(expected);
                    let actual = crate::bisect::Side::new(retained);
                    bronze::topic(partition, &expected, &actual, &mut span.findings);
                }
            }
        }
    }

    /// With a date: records elsewhere that bear an id of this date.
    async fn foreign(
        &mut self,
        walk: &Walk<'_>,
        contested: &mut BTreeSet<(usize, u32, i64)>,
    ) -> Result<()> {
        let Some((from, to)) = self.options.dates else {
            return Ok(());
        };
        for id in 0..walk.names.len() {
            let symbol = id as u32;
            let (source, name) = walk.names.get(symbol);
            for (p, seen) in walk.seen.iter().enumerate() {
                let runs = seen.runs(symbol);
                let (Some(first), Some(last)) = (runs.first(), runs.last()) else {
                    continue;
                };
                let partition = i32::try_from(p).unwrap_or(i32::MAX);
                let base = || {
                    let ids = first.0..last.1.saturating_add(1);
                    let f = Filter::all()
                        .source(source)
                        .symbol(name)
                        .partition(partition);
                    f.between("trade_id", ids)
                };
                for filter in [base().dates(0..from.max(0)), base().dates(to..LAST_DAY)] {
                    let scan = Scan::columns(&["trade_id"]).filter(filter);
                    let mut batches = walk.bronze.scan(&scan).await?;
                    while let Some(b) = batches.try_next().await? {
                        use arrow::array::AsArray;
                        use arrow::datatypes::Int64Type;
                        let ids = b.batch.column(0).as_primitive_opt::<Int64Type>();
                        for id in ids.into_iter().flat_map(|c| c.iter().flatten()) {
                            let at = runs.partition_point(|r| r.1 < id);
                            if runs.get(at).is_some_and(|r| r.0 <= id) {
                                contested.insert((p, symbol, id));
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Finds out which record of each contested id counts, and compares the spans concerned again.
    async fn settle(
        &mut self,
        walk: &mut Walk<'_>,
        contested: &BTreeSet<(usize, u32, i64)>,
        results: &mut BTreeMap<i32, Span>,
    ) -> Result<()> {
        let days = self.days();
        let partitions = walk.until.len();
        let mut outside: BTreeMap<i32, Vec<Outside>> = BTreeMap::new();
        for &(p, symbol, id) in contested {
            let (source, name) = walk.names.get(symbol);
            let partition = i32::try_from(p).unwrap_or(i32::MAX);
            let filter = Filter::all()
                .source(source)
                .symbol(name)
                .partition(partition);
            let filter = filter.between("trade_id", id..id.saturating_add(1));
            let bronze = self.read(walk, filter, None, false).await?;
            let mut rows: Vec<_> = bronze.slices[p]
                .rows()
                .iter()
                .filter(|r| r.is_valid())
                .collect();
            rows.sort_by_key(|r| r.offset);
            let Some(first) = rows.first() else { continue };
            for row in &rows {
                let day = finlake_market::interval::date_of(row.time);
                let span = day.div_euclid(days) * days;
                let of = outside
                    .entry(span)
                    .or_insert_with(|| vec![Outside::default(); partitions]);
                of[p].settled.insert((symbol, id));
                if row.offset == first.offset {
                    continue;
                }
                of[p].losers.insert(row.offset);
                if walk.check {
                    let same = trades::SameId {
                        symbol,
                        id,
                        first: first.offset,
                        other: row.offset,
                    };
                    let out = &mut self.report.findings;
                    bronze::two_contents(partition, &[same], &walk.names, out);
                }
            }
        }
        for (from, of) in outside {
            if results.contains_key(&from) {
                let mut scratch = vec![Seen::default(); partitions];
                let again = self.span(walk, from, &of, &mut scratch).await?;
                results.insert(from, again);
            }
        }
        Ok(())
    }

    /// Rows without a trade time: they count, and nothing else can be said of them.
    async fn undecodable(&mut self, walk: &mut Walk<'_>) -> Result<Span> {
        let mut span = Span::default();
        let hashed = walk.check && self.records.is_some();
        let filter = scope(self.options).null("trade_time", true);
        let mut bronze = self.read(walk, filter, None, hashed).await?;
        span.ticks = bronze.rows;
        for p in 0..walk.until.len() {
            let slice = &mut bronze.slices[p];
            let market = &self.options.market;
            let none = Outside::default();
            let folded = trades::fold(slice, market, &Cuts::default(), &mut Seen::default(), &none)
                .map_err(|e| LakeError::Internal(e.to_string()))?;
            if walk.check {
                let partition = i32::try_from(p).unwrap_or(i32::MAX);
                bronze::doubled(partition, &folded.doubled, &mut span.findings);
            }
            self.note_ids(walk, p, &bronze, &mut span);
            span.counted.push(folded.counts);
            span.bars.push(BTreeMap::new());
            span.withdrawn.push(BTreeMap::new());
            span.offsets
                .push(runs(bronze.slices[p].rows().iter().map(|r| r.offset)));
        }
        if hashed {
            self.against_topic(&bronze, (0, 0), &mut span);
        }
        Ok(span)
    }

    /// What only all spans together can say.
    fn finish(&mut self, walk: Walk<'_>, results: BTreeMap<i32, Span>) {
        let partitions = walk.until.len();
        let whole = self.options.dates.is_none() && self.options.symbol.is_none();
        let mut counted: Vec<BTreeMap<i64, Counted>> = vec![BTreeMap::new(); partitions];
        let mut offsets: Vec<SeenIds> = vec![SeenIds::new(); partitions];
        let mut again: Vec<Vec<i64>> = vec![Vec::new(); partitions];
        let mut bars = counts::Rows::new();
        let mut withdrawn = counts::Rows::new();
        let (mut ticks, mut rows) = (0, 0);
        let mut rejected: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
        let mut settled: BTreeMap<u32, i64> = BTreeMap::new();
        for (_, span) in results {
            self.report.findings.absorb(span.findings);
            self.tally.absorb(span.tally);
            (ticks, rows) = (ticks + span.ticks, rows + span.bar_rows);
            for (symbol, ids) in span.rejected {
                rejected.entry(symbol).or_default().extend(ids);
            }
            for (symbol, id) in span.settled_ids {
                note(&mut settled, Some((symbol, id)));
            }
            for (p, of) in span.counted.into_iter().enumerate() {
                for (commit, n) in of {
                    let sum = counted[p].entry(commit).or_default();
                    sum.records += n.records;
                    sum.accepted += n.accepted;
                    sum.duplicates += n.duplicates;
                    sum.rejected += n.rejected;
                }
            }
            for (p, runs) in span.offsets.iter().enumerate() {
                for (from, to) in runs.iter().filter(|_| whole) {
                    for offset in *from..=*to {
                        if offset >= 0 && !offsets[p].insert(offset) {
                            again[p].push(offset);
                        }
                    }
                }
            }
            for (into, from) in [(&mut bars, span.bars), (&mut withdrawn, span.withdrawn)] {
                for (p, of) in from.into_iter().enumerate() {
                    let partition = i32::try_from(p).unwrap_or(i32::MAX);
                    for (commit, n) in of {
                        *into.entry((partition, commit)).or_default() += n;
                    }
                }
            }
        }
        self.report.rows.insert(Layer::Bronze, ticks);
        if walk.silver.is_some() {
            self.report.rows.insert(Layer::Silver, rows);
        }
        if walk.check {
            for ids in rejected.values_mut() {
                ids.sort_unstable();
            }
            self.gaps(&walk, &rejected, &settled);
            for (p, offsets) in again.iter_mut().enumerate() {
                offsets.sort_unstable();
                let partition = i32::try_from(p).unwrap_or(i32::MAX);
                bronze::doubled(partition, offsets, &mut self.report.findings);
            }
        }
        let Some(books) = self.books.filter(|_| whole) else {
            return;
        };
        let out = &mut self.report.findings;
        let until = |p: usize| walk.until.get(p).copied().unwrap_or(i64::MIN);
        for p in 0..partitions {
            if !walk.check {
                break;
            }
            let partition = i32::try_from(p).unwrap_or(i32::MAX);
            let ledger: BTreeMap<i64, bronze::Taken> = books
                .until(partition, until(p))
                .filter_map(|(commit, line)| Some((commit, line.taken?)))
                .collect();
            let rows = counted[p].iter().map(|(c, n)| (*c, n.records)).collect();
            let exact = |from, to| {
                let (low, list) = self.records?.ticks(partition, from, to).ok()?;
                (low <= from).then(|| list.into_iter().map(|r| r.0).collect())
            };
            let runs = offsets[p].runs();
            bronze::lost(partition, &ledger, &rows, &runs, &exact, out);
            bronze::outcomes(partition, &ledger, &counted[p], out);
        }
        if walk.silver.is_some() {
            let of = counts::Of {
                layer: Layer::Silver,
                table: silver::TABLE,
            };
            let ledger = books.counts(&until, |line| line.bars);
            let by_time = times(books, &until);
            let withdrawn = at_commits(&withdrawn, &by_time);
            counts::by_commit(of, &ledger, &bars, &withdrawn, out);
        }
    }

    /// Gaps in the feed's ids that are not on their way any more.
    fn gaps(
        &mut self,
        walk: &Walk<'_>,
        rejected: &BTreeMap<u32, Vec<i64>>,
        settled: &BTreeMap<u32, i64>,
    ) {
        let rule = self
            .options
            .validators
            .iter()
            .find(|r| r.measure == Measure::IdGaps);
        let Some(rule) = rule else { return };
        let date = self.options.dates.map(|(from, _)| from);
        let mut found = Findings::limited(self.options.limit);
        let (mut missing, mut all) = (0i64, 0i64);
        for seen in &walk.seen {
            let n = bronze::gaps(seen, rejected, settled, &walk.names, date, &mut found);
            missing += n.0;
            all += n.1;
        }
        self.tally.add(Measure::IdGaps, missing as f64, all as f64);
        if all > 0 && missing as f64 / all as f64 * 1e6 > rule.limit {
            self.report.findings.absorb(found);
        }
    }

    /// Gold from Silver.
    pub async fn gold(&mut self, silver: &Pinned, table: &Pinned) -> Result<()> {
        let filter = self.filter(None);
        let mut readable = self.schema(table, Layer::Gold, &filter).await?;
        if !self.options.layers.contains(&Layer::Silver) {
            readable &= self.schema(silver, Layer::Silver, &filter).await?;
        }
        if !readable {
            return Ok(());
        }
        let until = self.cut(&[silver, table]);
        let until = |p: usize| until.get(p).copied().unwrap_or(i64::MIN);
        let mut names = Names::default();
        let market = &self.options.market;
        let daily = market.intervals.list()[market.intervals.daily()].name();
        let mut closed = scope(self.options).interval(daily);
        if let Some((_, to)) = self.options.dates {
            closed = closed.dates(0..to.max(0));
        }
        let mut closes = Vec::new();
        let scan = Scan::columns(columns::CLOSES).filter(closed).dictionaries();
        let mut batches = silver.scan(&scan).await?;
        while let Some(b) = batches.try_next().await? {
            columns::closes(&b.batch, &mut names, &until, OPEN_END, &mut closes).map_err(bad)?;
        }
        let windows = &self.options.gold.windows;
        let wanted = columns::metrics_columns(windows);
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let scan = Scan::columns(&wanted).filter(filter).dictionaries();
        let mut rows = Vec::new();
        let mut partitions = Vec::new();
        let mut batches = table.scan(&scan).await?;
        while let Some(b) = batches.try_next().await? {
            let before = rows.len();
            columns::metrics(&b.batch, windows, &mut names, &until, OPEN_END, &mut rows)
                .map_err(bad)?;
            self.watch.rows("metrics", (rows.len() - before) as u64, 0);
            partitions.extend(columns::partitions(&b.batch, &until).map_err(bad)?);
        }
        self.report.rows.insert(Layer::Gold, rows.len() as u64);
        let began = Instant::now();
        let mut by_commit = counts::Rows::new();
        let mut withdrawn = counts::Rows::new();
        let begun: BTreeSet<(u32, i32, i64)> = rows
            .iter()
            .map(|r| (r.symbol, r.date, r.sys_from))
            .collect();
        for (row, p) in rows.iter().zip(&partitions) {
            *by_commit.entry((*p, row.commit)).or_default() += 1;
            if row.sys_to != OPEN_END && !begun.contains(&(row.symbol, row.date, row.sys_to)) {
                *withdrawn.entry((*p, row.sys_to)).or_default() += 1;
            }
        }
        let gold = &self.options.gold;
        let (dates, out) = (self.options.dates, &mut self.report.findings);
        gold::compare(&mut closes, &mut rows, &names, gold, dates, OPEN_END, out);
        let whole = dates.is_none() && self.options.symbol.is_none();
        if let Some(books) = self.books.filter(|_| whole) {
            let of = counts::Of {
                layer: Layer::Gold,
                table: gold::TABLE,
            };
            let ledger = books.counts(&until, |line| line.metrics);
            let withdrawn = at_commits(&withdrawn, &times(books, &until));
            counts::by_commit(of, &ledger, &by_commit, &withdrawn, out);
        }
        self.report.compared += began.elapsed();
        Ok(())
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

/// Ascending offsets as runs with both ends included.
fn runs(offsets: impl Iterator<Item = i64>) -> Vec<(i64, i64)> {
    let mut out: Vec<(i64, i64)> = Vec::new();
    for offset in offsets {
        match out.last_mut() {
            Some(run) if offset == run.1 + 1 => run.1 = offset,
            Some(run) if offset <= run.1 => {}
            _ => out.push((offset, offset)),
        }
    }
    out
}

fn by_commit(rows: &[BarRow]) -> BTreeMap<i64, i64> {
    let mut out = BTreeMap::new();
    for row in rows {
        *out.entry(row.commit).or_default() += 1;
    }
    out
}

/// Closed rows by the system time at which they were closed.
fn withdrawn(rows: &[BarRow]) -> BTreeMap<i64, i64> {
    let mut out = BTreeMap::new();
    for group in rows.chunk_by(|a, b| a.key == b.key) {
        let ended = group.iter().filter(|r| r.sys_to != OPEN_END);
        for row in ended.filter(|r| group.iter().all(|g| g.sys_from != r.sys_to)) {
            *out.entry(row.sys_to).or_default() += 1;
        }
    }
    out
}

/// Commits by partition and system time.
fn times(books: &Books, until: &dyn Fn(usize) -> i64) -> BTreeMap<(i32, i64), i64> {
    let all = books.counts(until, |line| line.system_time);
    all.into_iter().map(|((p, c), t)| ((p, t), c)).collect()
}

/// From system times to commits.
fn at_commits(by_time: &counts::Rows, commits: &BTreeMap<(i32, i64), i64>) -> counts::Rows {
    let mut out = counts::Rows::new();
    for ((p, time), n) in by_time {
        if let Some(commit) = commits.get(&(*p, *time)) {
            *out.entry((*p, *commit)).or_default() += n;
        }
    }
    out
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

    #[test]
    fn offsets_become_runs() {
        assert_eq!(runs([1, 2, 2, 3, 7].into_iter()), [(1, 3), (7, 7)]);
    }
}
