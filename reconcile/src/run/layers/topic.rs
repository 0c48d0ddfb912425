//! Bronze against the records of its topic, by sums of content hashes: the topic is read once, and
//! again only where sums differ.

use super::*;
use crate::bisect::Side;
use crate::topic::{Ticked, differing};

/// Offsets whose rows and records are compared one by one at a time.
const AT_A_TIME: i64 = 1 << 20;

impl Run<'_> {
    /// Whether a record of the topic is in the scope of the run.
    fn asked_for(&self, record: &Ticked<'_>) -> bool {
        let day = |(from, to): (i32, i32)| {
            let within = i64::from(from).saturating_mul(DAY)..i64::from(to).saturating_mul(DAY);
            record.time.is_some_and(|t| within.contains(&t))
        };
        let symbol = self.options.symbol.as_deref();
        self.read_dates().is_none_or(day) && (symbol.is_none() || record.symbol == symbol)
    }

    /// Whether the run is over every row: the books balance for all of a commit only.
    pub(super) fn whole(&self) -> bool {
        self.options.dates.is_none() && self.options.symbol.is_none()
    }

    /// Offsets at which the topic has records, if it still has them.
    pub(super) fn offsets_of(
        &self,
        partition: i32,
        range: (i64, i64),
    ) -> std::result::Result<Option<Vec<i64>>, String> {
        let Some(records) = self.records else {
            return Ok(None);
        };
        let mut offsets = Vec::new();
        let mut take = |record: &Ticked<'_>| offsets.push(record.offset);
        let first = records.ticks(partition, range, &mut take)?;
        Ok((first <= range.0).then_some(offsets))
    }

    /// Compares what was noted of Bronze, as far as the topic is retained.
    pub(super) async fn against_topic(&mut self, walk: &mut Walk<'_>) -> Result<()> {
        let Some(records) = self.records.filter(|_| walk.check) else {
            return Ok(());
        };
        for (p, mut table) in std::mem::take(&mut walk.sums).into_iter().enumerate() {
            let Some((from, to)) = table.bounds() else {
                continue;
            };
            let partition = i32::try_from(p).unwrap_or(i32::MAX);
            let mut topic = Sums::default();
            let mut noted = 0;
            let of = u64::try_from(to.saturating_sub(from)).unwrap_or(0);
            let read = records.ticks(partition, (from, to), &mut |record| {
                noted += 1;
                if noted % 50_000 == 0 {
                    self.watch.rows("records", 50_000, of);
                }
                if self.asked_for(record) {
                    topic.add(record.offset, record.hash);
                }
            });
            let first = match read {
                Ok(first) => first,
                Err(why) => {
                    self.cannot(why);
                    continue;
                }
            };
            if from < first {
                self.report.notes.push(format!(
                    "rows of partition {p} from offset {from} to {} are older than what market.ticks retains: \
                     {}",
                    to.min(first),
                    match self.whole() && self.books.is_some() {
                        true => "compared with the ledger, not with the topic",
                        false =>
                            "a row lost there shows as a missing trade id only; a run without date and symbol, and \
                             with the ledger, counts them",
                    }
                ));
                // What the topic no longer has cannot be found, nor found right again.
                let causes = ["content", "invented"].map(str::to_owned);
                self.report.unchecked_causes.extend(causes);
            }
            let mut found = Findings::limited(self.options.limit);
            for (from, end) in differing(&mut topic, &mut table, first, AT_A_TIME) {
                self.look_at(walk, partition, (from, end.min(to)), &mut found)
                    .await?;
                if found.is_cut() {
                    break;
                }
            }
            self.report.findings.absorb(found);
        }
        Ok(())
    }

    /// Compares the rows and records of a range one by one.
    async fn look_at(
        &mut self,
        walk: &mut Walk<'_>,
        partition: i32,
        range: (i64, i64),
        out: &mut Findings,
    ) -> Result<()> {
        let Some(records) = self.records else {
            return Ok(());
        };
        let mut expected = Vec::new();
        let read = records.ticks(partition, range, &mut |record| {
            if self.asked_for(record) {
                expected.push((record.offset, record.hash));
            }
        });
        if let Err(why) = read {
            self.cannot(why);
            return Ok(());
        }
        let filter = self
            .filter(self.read_dates())
            .partition(partition)
            .offsets(range.0..range.1);
        let mut rows = self.read(walk, &filter, Hashed::Rows).await?;
        let Some(actual) = usize::try_from(partition)
            .ok()
            .and_then(|p| rows.hashes.get_mut(p))
        else {
            return Ok(());
        };
        let actual = std::mem::take(actual);
        let whole = self.whole();
        if whole && self.books.is_some() {
            // The ledger names what is lost, with and without a topic.
            let mut have: Vec<i64> = actual.iter().map(|r| r.0).collect();
            have.sort_unstable();
            expected.retain(|r| have.binary_search(&r.0).is_ok());
        }
        let (expected, actual) = (Side::new(expected), Side::new(actual));
        bronze::topic(partition, &expected, &actual, out);
        Ok(())
    }
}
