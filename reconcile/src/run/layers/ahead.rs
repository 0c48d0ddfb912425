//! Silver read ahead. Its files are by month: read day by day, each file would be read once for
//! every day of its month. So a span is read with as many of the days after it as there is room
//! for.

use super::*;

/// Rows held ahead, some 350 bytes each.
const MOST: usize = 150_000;
/// Days read at once, if there is room.
const DAYS: i32 = 31;

/// Rows of days that are still to be compared, by partition.
#[derive(Default)]
pub(super) struct Ahead {
    rows: Vec<Vec<BarRow>>,
    /// The days that are held, all of them.
    days: (i32, i32),
    /// For how many days there was room the last time.
    room: Option<i32>,
}

impl Ahead {
    /// Takes the rows of these days out; `None` if not all of the days are held.
    pub fn take(&mut self, days: (i32, i32)) -> Option<Vec<Vec<BarRow>>> {
        if days.0 < self.days.0 || self.days.1 < days.1 {
            return None;
        }
        // Days are asked for in order.
        self.days.0 = days.1;
        let of = |rows: &mut Vec<BarRow>| {
            rows.extract_if(.., |r| (days.0..days.1).contains(&r.trade_date))
                .collect()
        };
        Some(self.rows.iter_mut().map(of).collect())
    }

    /// Begins anew with the days that are to be read for a span; `end`: of all spans.
    pub fn begin(&mut self, span: (i32, i32), end: i32, partitions: usize) -> (i32, i32) {
        let room = self.room.unwrap_or(DAYS);
        let most = span.0.saturating_add(room).min(end).max(span.1);
        *self = Ahead {
            rows: vec![Vec::new(); partitions],
            days: (span.0, most),
            room: self.room,
        };
        self.days
    }

    /// Adds rows; gives the last days up where there is no room for them.
    pub fn add(&mut self, rows: Vec<Vec<BarRow>>, span: (i32, i32), most: usize) {
        let days = self.days;
        for (into, rows) in self.rows.iter_mut().zip(rows) {
            let held = |r: &BarRow| (days.0..days.1).contains(&r.trade_date);
            into.extend(rows.into_iter().filter(held));
        }
        let total: usize = self.rows.iter().map(Vec::len).sum();
        if total <= most || self.days.1 == span.1 {
            return;
        }
        let mut by_day: BTreeMap<i32, usize> = BTreeMap::new();
        for row in self.rows.iter().flatten() {
            *by_day.entry(row.trade_date).or_default() += 1;
        }
        // Half of it, so that this is not done for every batch.
        let mut sum = 0;
        let first_beyond = by_day.iter().find(|(_, n)| {
            sum += **n;
            sum > most / 2
        });
        let end = first_beyond.map_or(days.1, |(day, _)| *day);
        self.days.1 = end.clamp(span.1, days.1);
        let end = self.days.1;
        for rows in &mut self.rows {
            rows.retain(|r| r.trade_date < end);
        }
    }

    /// All of it was read: tells the next how many days to try.
    pub fn end(&mut self, asked: (i32, i32)) {
        let held = self.days.1 - self.days.0;
        self.room = match self.days == asked {
            true => Some(self.room.unwrap_or(DAYS).saturating_mul(2)),
            false => Some(held),
        };
    }
}

impl Run<'_> {
    /// Versions of the bars of these days, by partition. `first`: the spans come in order.
    pub(super) async fn bar_rows(
        &self,
        walk: &mut Walk<'_>,
        span: (i32, i32),
        first: bool,
    ) -> Result<Vec<Vec<BarRow>>> {
        let partitions = walk.until.len();
        let Some(silver) = walk.silver else {
            return Ok(vec![Vec::new(); partitions]);
        };
        // Of a span that is read once more nobody will ask for the days after it.
        let mut ahead = match first {
            true => std::mem::take(&mut walk.ahead),
            false => Ahead::default(),
        };
        let end = if first { walk.end } else { span.1 };
        if let Some(rows) = ahead.take(span) {
            walk.ahead = ahead;
            return Ok(rows);
        }
        let asked = ahead.begin(span, end, partitions);
        let filter = self.filter(Some(asked));
        let scan = Scan::columns(columns::BARS).filter(filter).dictionaries();
        let mut batches = silver.scan(&scan).await?;
        while let Some(b) = batches.try_next().await? {
            let until = |p: usize| walk.until[p];
            let (market, names) = (&self.options.market, &mut walk.names);
            let mut rows = vec![Vec::new(); partitions];
            columns::bars(&b.batch, market, names, &until, OPEN_END, &mut rows).map_err(bad)?;
            ahead.add(rows, span, MOST);
        }
        ahead.end(asked);
        let rows = ahead.take(span).unwrap_or_default();
        if first {
            walk.ahead = ahead;
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(day: i32, n: i64) -> BarRow {
        BarRow {
            trade_date: day,
            kafka_offset: n,
            ..BarRow::sample(0, i64::from(day) * DAY)
        }
    }

    /// Reads days 0 to 30 of two partitions, with this many rows a day in each, as a table would
    /// give them: all days of one partition first. Gives the readings that it took.
    fn walk(most: usize, per_day: i64) -> usize {
        let (mut ahead, mut readings) = (Ahead::default(), 0);
        for day in 0..30 {
            let span = (day, day + 1);
            let rows = match ahead.take(span) {
                Some(rows) => rows,
                None => {
                    readings += 1;
                    let asked = ahead.begin(span, 30, 2);
                    assert!(asked.0 == day && asked.1 <= 30, "{asked:?}");
                    for p in 0..2 {
                        for n in 0..per_day {
                            let all = (asked.0..asked.1).map(|day| row(day, n)).collect();
                            let mut rows = vec![Vec::new(); 2];
                            rows[p] = all;
                            ahead.add(rows, span, most);
                            let held: usize = ahead.rows.iter().map(Vec::len).sum();
                            let one = 2 * per_day as usize + 30;
                            assert!(held <= most.max(one), "{held} rows");
                        }
                    }
                    ahead.end(asked);
                    ahead.take(span).unwrap()
                }
            };
            for rows in rows {
                let offsets: Vec<i64> = rows.iter().map(|r| r.kafka_offset).collect();
                assert_eq!(offsets, (0..per_day).collect::<Vec<_>>(), "day {day}");
                assert!(rows.iter().all(|r| r.trade_date == day));
            }
        }
        assert!(ahead.rows.iter().all(Vec::is_empty));
        readings
    }

    #[test]
    fn every_day_is_read_whole_and_few_times_if_there_is_room() {
        assert_eq!(walk(1_000_000, 10), 1);
        assert!((3..=8).contains(&walk(200, 10)));
        // No room for two days: each is read by itself, and whole.
        assert!((25..=30).contains(&walk(20, 10)));
    }

    #[test]
    fn a_span_that_is_not_held_whole_is_read() {
        let mut ahead = Ahead::default();
        assert!(ahead.take((0, 7)).is_none());
        assert_eq!(ahead.begin((0, 7), 10, 1), (0, 10));
        ahead.add(vec![vec![row(2, 0), row(8, 1)]], (0, 7), 100);
        ahead.end((0, 10));
        assert_eq!(ahead.take((0, 7)).unwrap()[0].len(), 1);
        assert!(ahead.take((0, 7)).is_none(), "taken");
        assert!(ahead.take((7, 14)).is_none(), "held in part");
    }
}
