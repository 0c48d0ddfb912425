//! Bronze, read file by file into slices, and what is remembered of rows that were compared.

use super::*;

/// Rows of 64 bytes for which room is made at once: a GiB of addresses.
const MOST_ROOM: usize = 1 << 24;

impl Run<'_> {
    /// Reads rows of Bronze.
    pub(super) async fn read(
        &self,
        walk: &mut Walk<'_>,
        filter: &Filter,
        hashed: Hashed,
    ) -> Result<Bronze> {
        let files = walk.bronze.files(filter).await?;
        self.read_files(walk, &files, filter, None, hashed).await
    }

    /// Reads rows of these files. `days`: the filter wants all rows of these days.
    pub(super) async fn read_files(
        &self,
        walk: &mut Walk<'_>,
        files: &[FileTask],
        filter: &Filter,
        days: Option<(i32, i32)>,
        hashed: Hashed,
    ) -> Result<Bronze> {
        let wanted: Vec<&str> = columns::TICKS
            .iter()
            .copied()
            .filter(|c| {
                hashed != Hashed::No || !columns::TOPIC_ONLY.contains(c) || self.counts_nulls(c)
            })
            .chain(columns::STAMPS.iter().copied().filter(|_| walk.check))
            .collect();
        let exact = Scan::columns(&wanted).filter(filter.clone()).dictionaries();
        // A file of one day needs no look at the time of each row.
        let by_day = Scan::columns(&wanted)
            .filter(scope(self.options))
            .dictionaries();
        let mut out = Bronze::new(walk.until.len());
        out.stamps = walk.check.then(columns::Stamps::default);
        let room: u64 = files.iter().map(|f| f.rows).sum();
        out.room = usize::try_from(room).unwrap_or(0).min(MOST_ROOM);
        for file in files {
            let inside = days.is_some_and(|(from, to): (i32, i32)| {
                day_of(&file.path).is_some_and(|day| from <= day && day < to)
            });
            let scan = if inside { &by_day } else { &exact };
            let mut batches = walk.bronze.read_file(file, scan).await?;
            while let Some(b) = batches.try_next().await? {
                let rows = out.rows;
                let market = &self.options.market;
                out.take(
                    &b.batch,
                    market,
                    &mut walk.names,
                    &walk.until,
                    hashed,
                    self.books,
                )
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

    fn counts_nulls(&self, column: &str) -> bool {
        let of = |m: &Measure| matches!(m, Measure::NullRate(c) if c == column);
        self.options.validators.iter().any(|r| of(&r.measure))
    }

    /// The filter for trades so much newer than a span that they may make its own too late for
    /// their minutes.
    pub(super) fn newer_than(&self, from: i32) -> Filter {
        let first = i64::from(from) * DAY + self.options.market.retention_1m;
        let first = i32::try_from(first.div_euclid(DAY)).unwrap_or(i32::MAX);
        scope(self.options).dates(first.min(LAST_DAY)..LAST_DAY)
    }

    /// Adds to `outside` what of such files came before some row of this part of the span.
    pub(super) async fn newer(
        &self,
        walk: &mut Walk<'_>,
        files: &[FileTask],
        filter: &Filter,
        bronze: &Bronze,
        outside: &mut [Outside],
    ) -> Result<()> {
        let ends = bronze.slices.iter().filter_map(|s| s.offsets());
        let Some(last) = ends.map(|(_, end)| end).max().filter(|_| !files.is_empty()) else {
            return Ok(());
        };
        let filter = filter.clone().offsets(0..last);
        let newer = self
            .read_files(walk, files, &filter, None, Hashed::No)
            .await?;
        for (p, slice) in newer.slices.iter().enumerate() {
            let valid = slice.rows().iter().filter(|r| r.is_valid());
            outside[p].newer = valid.map(|r| (r.symbol, r.time, r.offset)).collect();
        }
        Ok(())
    }
}

impl Walk<'_> {
    /// Takes note of the offsets and hashes of rows that are compared and in offset order.
    pub(super) fn note(&mut self, bronze: Bronze) {
        for (p, slice) in bronze.slices.iter().enumerate() {
            let mut before = None;
            for row in slice.rows() {
                // One that stands twice side by side was found.
                if row.offset >= 0
                    && before.replace(row.offset) != Some(row.offset)
                    && !self.offsets[p].insert(row.offset)
                {
                    self.again[p].push(row.offset);
                }
            }
        }
        if let Some(stamps) = bronze.stamps {
            self.stamps.absorb(stamps);
        }
        for (sums, new) in self.sums.iter_mut().zip(bronze.sums) {
            sums.absorb(new);
        }
    }
}
