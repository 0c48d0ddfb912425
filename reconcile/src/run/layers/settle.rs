//! What one span found beside bars: trade ids, offsets against the topic, what lies elsewhere.

use super::*;

/// Maximal runs of ids, ends included.
fn runs(mut ids: Vec<i64>) -> Vec<(i64, i64)> {
    ids.sort_unstable();
    let mut out: Vec<(i64, i64)> = Vec::new();
    for id in ids {
        match out.last_mut() {
            Some(run) if id <= run.1.saturating_add(1) => run.1 = id,
            _ => out.push((id, id)),
        }
    }
    out
}

impl Run<'_> {
    /// Ids of refused records, and up to which id a gap can no longer be on its way.
    pub(super) fn note_ids(&self, walk: &Walk<'_>, p: usize, bronze: &Bronze, span: &mut Span) {
        if !walk.check {
            return;
        }
        let limit = walk.until[p].saturating_sub(self.options.patience);
        let times = bronze.commit_times(p);
        let old = times.iter().filter(|(_, t)| **t <= limit);
        let settled = old.map(|(c, _)| *c).max().unwrap_or(i64::MIN);
        // The newest commits of a stream that still runs; of one that ended all are old enough.
        let ended = walk.newest[p].is_some_and(|(_, last)| last);
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

    /// With a date: records elsewhere that bear an id of this date, or one between them.
    pub(super) async fn foreign(
        &mut self,
        walk: &mut Walk<'_>,
        contested: &mut BTreeSet<(usize, u32, i64)>,
    ) -> Result<()> {
        let Some((from, to)) = self.read_dates() else {
            return Ok(());
        };
        for id in 0..walk.names.len() {
            let symbol = id as u32;
            let (source, name) = walk.names.get(symbol);
            for (p, seen) in walk.seen.iter().enumerate() {
                let own = seen.runs(symbol);
                let (Some(first), Some(last)) = (own.first(), own.last()) else {
                    continue;
                };
                let mut others = Vec::new();
                let partition = i32::try_from(p).unwrap_or(i32::MAX);
                let base = || {
                    let ids = first.0..last.1.saturating_add(1);
                    let f = Filter::all()
                        .source(source)
                        .symbol(name)
                        .partition(partition);
                    f.between("trade_id", ids)
                };
                let elsewhere = [
                    base().dates(0..from.max(0)),
                    base().dates(to..LAST_DAY),
                    base().null("trade_time", true),
                ];
                for filter in elsewhere {
                    let scan = Scan::columns(&["trade_id"]).filter(filter);
                    let mut batches = walk.bronze.scan(&scan).await?;
                    while let Some(b) = batches.try_next().await? {
                        use arrow::array::AsArray;
                        use arrow::datatypes::Int64Type;
                        let ids = b.batch.column(0).as_primitive_opt::<Int64Type>();
                        for id in ids.into_iter().flat_map(|c| c.iter().flatten()) {
                            let at = own.partition_point(|r| r.1 < id);
                            if own.get(at).is_some_and(|r| r.0 <= id) {
                                contested.insert((p, symbol, id));
                            } else {
                                // Lost here, and found there.
                                others.push(id);
                            }
                        }
                    }
                }
                walk.around[p].absorb(symbol, &runs(others));
            }
        }
        Ok(())
    }

    /// With a date: the records of each instrument next to it on either side, so that a gap of the
    /// feed over midnight is seen. Goes outwards day by day, to the first on which each has any. What
    /// is old enough to be judged goes into the span that comes back.
    pub(super) async fn around(&self, walk: &mut Walk<'_>) -> Result<Span> {
        let mut span = Span::of(walk.until.len());
        let (Some((from, to)), true) = (self.read_dates(), walk.check) else {
            return Ok(span);
        };
        let mut own = BTreeSet::new();
        for (p, seen) in walk.seen.iter().enumerate() {
            let met = (0..walk.names.len()).map(|id| id as u32);
            own.extend(met.filter(|s| !seen.runs(*s).is_empty()).map(|s| (p, s)));
        }
        for before in [true, false] {
            let mut lacking = own.clone();
            let mut days = match before {
                true => (0, from),
                false => (to, LAST_DAY),
            };
            while !lacking.is_empty() && days.0 < days.1 {
                let names = lacking.iter().map(|(_, s)| walk.names.get(*s).1.to_owned());
                let names: BTreeSet<String> = names.collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let filter = Filter::all().one_of("symbol", &names);
                let files = walk
                    .bronze
                    .files(&filter.clone().dates(days.0..days.1))
                    .await?;
                let nearest = files.iter().filter_map(|f| day_of(&f.path));
                let nearest = if before { nearest.max() } else { nearest.min() };
                // Files that others wrote may hold any day; they are few.
                let here = |f: &&FileTask| day_of(&f.path) == nearest || day_of(&f.path).is_none();
                for file in files.iter().filter(here) {
                    let filter = filter.clone().dates(days.0..days.1);
                    self.next_to(walk, file, &filter, &mut lacking, &mut span)
                        .await?;
                }
                match nearest {
                    Some(day) if before => days.1 = day,
                    Some(day) => days.0 = day + 1,
                    None => break,
                }
            }
        }
        Ok(span)
    }

    /// Takes note of the ids of a file; removes from `lacking` the instruments that it has.
    async fn next_to(
        &self,
        walk: &mut Walk<'_>,
        file: &FileTask,
        filter: &Filter,
        lacking: &mut BTreeSet<(usize, u32)>,
        span: &mut Span,
    ) -> Result<()> {
        let scan = Scan::columns(columns::IDS)
            .filter(filter.clone())
            .dictionaries();
        let mut ids: BTreeMap<(usize, u32), Vec<i64>> = BTreeMap::new();
        let mut batches = walk.bronze.read_file(file, &scan).await?;
        while let Some(b) = batches.try_next().await? {
            let (until, patience) = (&walk.until, self.options.patience);
            let taken = columns::ids(
                &b.batch,
                &mut walk.names,
                until,
                |p, symbol, id, sys_from| {
                    ids.entry((p, symbol)).or_default().push(id);
                    let ended = walk.newest[p].is_some_and(|(_, last)| last);
                    if ended || sys_from <= until[p].saturating_sub(patience) {
                        note(&mut span.settled_ids, Some((symbol, id)));
                    }
                },
            );
            taken.map_err(bad)?;
        }
        for ((p, symbol), of) in ids {
            walk.around[p].absorb(symbol, &runs(of));
            lacking.remove(&(p, symbol));
        }
        Ok(())
    }

    /// Finds out which record of each contested id counts, and compares the spans concerned again.
    pub(super) async fn settle(
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
            let bronze = self.read(walk, &filter, Hashed::No).await?;
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
            if let Some(result) = results.get_mut(&from) {
                let mut scratch = vec![Seen::default(); partitions];
                let again = self.span(walk, from, &of, &mut scratch, Pass::Again);
                // A symbol in two folders has shown itself before.
                if let Ok(span) = again.await? {
                    *result = span;
                }
            }
        }
        Ok(())
    }

    /// Rows without a trade time: they count, and nothing else can be said of them.
    pub(super) async fn undecodable(&mut self, walk: &mut Walk<'_>) -> Result<Span> {
        let mut span = Span::of(walk.until.len());
        let hashed = match walk.check && self.records.is_some() {
            true => Hashed::Sums,
            false => Hashed::No,
        };
        let filter = scope(self.options).null("trade_time", true);
        let mut bronze = self.read(walk, &filter, hashed).await?;
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
            span.count(p, &folded.counts);
        }
        walk.note(bronze);
        Ok(span)
    }
}
