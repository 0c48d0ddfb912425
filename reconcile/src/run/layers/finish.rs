//! The end of a run: counts against the ledger, gaps in trade ids, Gold from Silver.

use std::cell::RefCell;

use super::*;

impl Run<'_> {
    /// What only all spans together can say.
    pub(super) fn finish(&mut self, mut walk: Walk<'_>, results: BTreeMap<i32, Span>) {
        let partitions = walk.until.len();
        let whole = self.whole();
        let mut counted: Vec<BTreeMap<i64, Counted>> = vec![BTreeMap::new(); partitions];
        let mut bars = counts::Rows::new();
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
                    counted[p].entry(commit).or_default().add(n);
                }
            }
            for (p, of) in span.bars.into_iter().enumerate() {
                let partition = i32::try_from(p).unwrap_or(i32::MAX);
                for (commit, n) in of {
                    *bars.entry((partition, commit)).or_default() += n;
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
            let mut found = Findings::limited(self.options.limit);
            bronze::stamps(std::mem::take(&mut walk.stamps), self.books, &mut found);
            if self.books.is_none_or(|b| !b.are_whole()) {
                // What the ledger has forgotten nobody can compare, nor find right again.
                self.report.unchecked_causes.insert("stamp".to_owned());
            }
            self.report.findings.absorb(found);
            for (p, offsets) in walk.again.iter_mut().enumerate().filter(|_| whole) {
                offsets.sort_unstable();
                let partition = i32::try_from(p).unwrap_or(i32::MAX);
                bronze::doubled(partition, offsets, &mut self.report.findings);
            }
        }
        let Some(books) = self.books.filter(|_| whole) else {
            return;
        };
        let mut found = Findings::limited(self.options.limit);
        let out = &mut found;
        let until = |p: usize| walk.until.get(p).copied().unwrap_or(i64::MIN);
        let unread = RefCell::new(None);
        for (p, counted) in counted.iter().enumerate().filter(|_| walk.check) {
            let partition = i32::try_from(p).unwrap_or(i32::MAX);
            let ledger: BTreeMap<i64, bronze::Taken> = books
                .until(partition, until(p))
                .filter_map(|(commit, line)| Some((commit, line.taken?)))
                .collect();
            let rows = counted.iter().map(|(c, n)| (*c, n.records)).collect();
            let exact = |from, to| match self.offsets_of(partition, (from, to)) {
                Ok(offsets) => offsets,
                Err(why) => {
                    *unread.borrow_mut() = Some(why);
                    None
                }
            };
            let runs = walk.offsets[p].runs();
            bronze::lost(partition, &ledger, &rows, &runs, &exact, out);
            bronze::outcomes(partition, &ledger, counted, out);
        }
        if walk.silver.is_some() {
            let of = counts::Of {
                layer: Layer::Silver,
                table: silver::TABLE,
            };
            let ledger = books.counts(&until, |line| line.bars);
            let uncounted = books.counts(&until, |line| line.uncounted);
            counts::by_commit(of, &ledger, &bars, &uncounted, out);
        }
        self.report.findings.absorb(found);
        if let Some(why) = unread.into_inner() {
            self.cannot(why);
        }
    }

    /// Gaps in the feed's ids that are not on their way any more.
    pub(super) fn gaps(
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
        let (mut missing, mut all) = (0i128, 0i128);
        for (seen, around) in walk.seen.iter().zip(&walk.around) {
            let names = &walk.names;
            let n = bronze::gaps(seen, around, rejected, settled, names, date, &mut found);
            missing += n.0;
            all += n.1;
        }
        self.tally.add(Measure::IdGaps, missing as f64, all as f64);
        if all > 0 && missing as f64 / all as f64 * 1e6 > rule.limit {
            self.report.findings.absorb(found);
            return;
        }
        self.report.findings.absorb(found.allowed());
        let narrow = self.options.dates.is_some() || self.options.symbol.is_some();
        if missing > 0 && narrow {
            // Few enough here: of the scope in which they were told it says nothing.
            self.report.unchecked_causes.insert("trade-id".to_owned());
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
        for (row, p) in rows.iter().zip(&partitions) {
            *by_commit.entry((*p, row.commit)).or_default() += 1;
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
            let uncounted = books.counts(&until, |line| line.uncounted);
            counts::by_commit(of, &ledger, &by_commit, &uncounted, out);
        }
        self.report.compared += began.elapsed();
        Ok(())
    }
}
