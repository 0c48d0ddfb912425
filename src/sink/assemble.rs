//! Puts whole commits together, one Kafka partition at a time: a ledger entry, the input records of its ranges,
//! the Silver and Gold records that carry its number.
//!
//! Pure: no I/O, no clock. Records come in as they are polled, in offset order per topic; complete commits come
//! out in commit order. A commit is handed on only if its counts and hashes equal the ledger entry's [INV-13] and
//! it directly follows the one before in number and input position [INV-12]; anything else is an error that stops
//! the sink, never a guess.

use std::collections::VecDeque;

use finlake_schemas::{InputRange, LedgerEntry, OutputCount, hash128, topics};

use super::queue::{Queued, RecordQueue};

/// Which of the sink's topics a record is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feed {
    Ledger,
    Ticks,
    Ohlcv,
    Metrics,
    Bars,
}

impl Feed {
    /// The feeds that fill a table, in table order.
    pub const ROWS: [Feed; FEEDS] = [Feed::Ticks, Feed::Ohlcv, Feed::Metrics, Feed::Bars];

    pub fn topic(self) -> &'static str {
        match self {
            Feed::Ledger => topics::LEDGER,
            Feed::Ticks => topics::TICKS,
            Feed::Ohlcv => topics::OHLCV,
            Feed::Metrics => topics::METRICS,
            Feed::Bars => topics::BARS,
        }
    }
}

/// Feeds that fill a table.
pub const FEEDS: usize = 4;

/// Places in [`Feed::ROWS`] of the inputs and of the outputs, with their topics in the ledger.
pub const INPUTS: [(usize, &str); 2] = [(0, topics::TICKS), (3, topics::BARS)];
const OUTPUTS: [(usize, &str); 2] = [(1, topics::OHLCV), (2, topics::METRICS)];

/// Why the books do not add up. Every one stops the sink.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AssembleError {
    #[error(
        "INV-12: partition {partition}: the ledger goes from commit {after} to {found}; commits between are missing. \
         {} must keep every entry (retention.ms = -1): bring them back, or report a bug",
        topics::LEDGER
    )]
    CommitGap {
        partition: i32,
        after: i64,
        found: i64,
    },
    #[error(
        "INV-12: partition {partition}, commit {commit}: {topic} starts at {found} where {expected} was due"
    )]
    PositionGap {
        partition: i32,
        commit: i64,
        topic: &'static str,
        expected: i64,
        found: i64,
    },
    #[error(
        "INV-13: partition {partition}, commit {commit}: {topic} holds {found} records where the ledger counts \
         {expected}; the topic lost records (retention, DeleteRecords) or was written to by something else"
    )]
    Count {
        partition: i32,
        commit: i64,
        topic: &'static str,
        expected: i64,
        found: i64,
    },
    #[error(
        "INV-13: partition {partition}, commit {commit}: the records of {topic} do not have the ledger's hash"
    )]
    Hash {
        partition: i32,
        commit: i64,
        topic: &'static str,
    },
    #[error("partition {partition}: {topic} offset {offset}: {message}")]
    Undecodable {
        partition: i32,
        topic: &'static str,
        offset: i64,
        message: String,
    },
}

/// What the tables already hold of one partition when assembling begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Last commit in the table; 0 for none.
    pub commit: i64,
    /// Input position the table has reached, exclusive: of market.bars for the table that holds it, of market.ticks
    /// for all others.
    pub input_end: i64,
}

/// A complete commit; its records stand at the front of the assembler's queues until [`Assembler::pop`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// Records at the front of each feed's queue; 0 where the table holds the commit already.
    pub counts: [usize; FEEDS],
    /// Whether each of the tables needs this commit.
    pub wanted: [bool; FEEDS],
}

/// See the module's text. One per Kafka partition.
#[derive(Debug)]
pub struct Assembler {
    partition: i32,
    held: [Held; FEEDS],
    /// Last commit handed on (or held by every table at the start).
    last: i64,
    /// Position of each of [`INPUTS`] after `last`; `None` until the first entry tells.
    input_ends: [Option<i64>; 2],
    ledger: VecDeque<(i64, LedgerEntry)>,
    rows: [RecordQueue; FEEDS],
    /// Consumer positions of the feeds: every record below has been pushed.
    reached: [i64; FEEDS],
}

impl Assembler {
    /// `held` per table and `from`, the offset at which reading of its feed begins, in the order of [`Feed::ROWS`].
    pub fn new(partition: i32, held: [Held; FEEDS], from: [i64; FEEDS]) -> Self {
        let last = held.iter().map(|h| h.commit).min().unwrap_or(0);
        let (bars, trades) = (held[3], &held[..3]);
        let here = |h: &&Held| last > 0 && h.commit == last;
        Self {
            partition,
            held,
            last,
            input_ends: [
                trades.iter().find(here).map(|h| h.input_end),
                Some(&bars).filter(here).map(|h| h.input_end),
            ],
            ledger: VecDeque::new(),
            rows: Default::default(),
            reached: from,
        }
    }

    /// Last commit handed on.
    pub fn last_commit(&self) -> i64 {
        self.last
    }

    /// Takes in a ledger entry read at `offset`.
    ///
    /// # Errors
    /// [`AssembleError::CommitGap`] when the number does not follow [INV-12].
    pub fn push_ledger(&mut self, offset: i64, entry: LedgerEntry) -> Result<(), AssembleError> {
        let before = self.ledger.back().map_or(self.last, |(_, e)| e.commit);
        if entry.commit <= before {
            return Ok(()); // read again after a seek; the tables hold it
        }
        if entry.commit != before + 1 {
            return Err(AssembleError::CommitGap {
                partition: self.partition,
                after: before,
                found: entry.commit,
            });
        }
        self.ledger.push_back((offset, entry));
        Ok(())
    }

    /// Takes in a record of one of the row feeds.
    pub fn push(&mut self, feed: Feed, record: Queued<'_>) {
        if let Some(i) = Feed::ROWS.iter().position(|f| *f == feed) {
            self.reached[i] = self.reached[i].max(record.offset + 1);
            self.rows[i].push(record);
        }
    }

    /// Tells how far the consumer has read a row feed (steps over markers and aborted records).
    pub fn advance(&mut self, feed: Feed, position: i64) {
        if let Some(i) = Feed::ROWS.iter().position(|f| *f == feed) {
            self.reached[i] = self.reached[i].max(position);
        }
    }

    /// Offset after the last record taken in of each row feed.
    pub fn reached(&self) -> [i64; FEEDS] {
        self.reached
    }

    /// Bytes of a row feed that wait.
    pub fn bytes(&self, feed: usize) -> usize {
        self.rows[feed].bytes()
    }

    /// Row feeds of which the commit at the front lacks records.
    pub fn short(&self) -> [bool; FEEDS] {
        let mut short = [false; FEEDS];
        let Some((_, entry)) = self.ledger.front() else {
            return short;
        };
        let wanted = |i: usize| self.held[i].commit < entry.commit;
        for (i, topic) in INPUTS {
            // Trailing markers need not be waited for: all records counted is enough.
            let range = entry.inputs.iter().find(|r| r.topic == topic);
            let lacks =
                |r: &InputRange| self.reached[i] < r.end && (self.rows[i].len() as i64) < r.records;
            short[i] = wanted(i) && range.is_some_and(lacks);
        }
        for (i, topic) in OUTPUTS {
            let output = entry.outputs.iter().find(|o| o.topic == topic);
            let lacks = |o: &OutputCount| (self.rows[i].len() as i64) < o.count;
            short[i] = wanted(i) && output.is_some_and(lacks);
        }
        short
    }

    /// Ledger entries waiting for their records.
    pub fn entries_waiting(&self) -> usize {
        self.ledger.len()
    }

    /// The entry at the front and its offset.
    pub fn entry(&self) -> Option<(i64, &LedgerEntry)> {
        self.ledger.front().map(|(o, e)| (*o, e))
    }

    /// The first `n` queued records of a table's feed (index in [`Feed::ROWS`]).
    pub fn records(&self, table: usize, n: usize) -> impl Iterator<Item = Queued<'_>> {
        self.rows[table].iter().take(n)
    }

    /// Offsets of ledger, ticks, ohlcv, metrics and bars from which all that was not handed on can be read again;
    /// `None` if nothing was read yet.
    pub fn resume_offsets(&self, ledger_position: i64) -> Option<[i64; FEEDS + 1]> {
        let ledger = self
            .ledger
            .front()
            .map_or(ledger_position, |(offset, _)| *offset);
        let row = |i: usize| self.rows[i].front().map_or(self.reached[i], |r| r.offset);
        self.input_ends[0].map(|ticks| [ledger, ticks, row(1), row(2), row(3)])
    }

    /// The next commit if all of it is here and adds up.
    ///
    /// # Errors
    /// See [`AssembleError`]; the sink must stop.
    pub fn ready(&self) -> Result<Option<Ready>, AssembleError> {
        let Some((_, entry)) = self.ledger.front() else {
            return Ok(None);
        };
        let commit = entry.commit;
        let partition = self.partition;
        let short = self.short();
        let mut ready = Ready {
            counts: [0; FEEDS],
            wanted: [false; FEEDS],
        };
        for (i, held) in self.held.iter().enumerate() {
            ready.wanted[i] = held.commit < commit;
        }
        for ((i, topic), expected) in INPUTS.into_iter().zip(self.input_ends) {
            // Entries of before an input existed do not speak of it.
            let Some(range) = entry.inputs.iter().find(|i| i.topic == topic) else {
                continue;
            };
            if let Some(expected) = expected
                && range.start != expected
            {
                return Err(AssembleError::PositionGap {
                    partition,
                    commit,
                    topic,
                    expected,
                    found: range.start,
                });
            }
            if ready.wanted[i] {
                if short[i] {
                    return Ok(None);
                }
                let n = self.rows[i]
                    .iter()
                    .take_while(|r| r.offset < range.end)
                    .count();
                self.check(i, n, range.records, range.hash, commit)?;
                ready.counts[i] = n;
            }
        }
        for (i, topic) in OUTPUTS {
            let Some(output) = entry.outputs.iter().find(|o| o.topic == topic) else {
                continue;
            };
            if !ready.wanted[i] {
                continue;
            }
            if short[i] {
                return Ok(None);
            }
            let n = output.count as usize;
            self.check(i, n, output.count, output.hash, commit)?;
            ready.counts[i] = n;
        }
        Ok(Some(ready))
    }

    fn check(
        &self,
        i: usize,
        n: usize,
        count: i64,
        hash: u128,
        commit: i64,
    ) -> Result<(), AssembleError> {
        let topic = Feed::ROWS[i].topic();
        if n as i64 != count {
            return Err(AssembleError::Count {
                partition: self.partition,
                commit,
                topic,
                expected: count,
                found: n as i64,
            });
        }
        let found = self.rows[i].iter().take(n).fold(0u128, |sum, r| {
            sum.wrapping_add(hash128(
                r.key.unwrap_or_default(),
                r.value.unwrap_or_default(),
            ))
        });
        if found != hash {
            return Err(AssembleError::Hash {
                partition: self.partition,
                commit,
                topic,
            });
        }
        Ok(())
    }

    /// Takes the commit that [`Self::ready`] told of off the queues.
    pub fn pop(&mut self, ready: Ready) {
        if let Some((_, entry)) = self.ledger.pop_front() {
            self.last = entry.commit;
            for (end, (_, topic)) in self.input_ends.iter_mut().zip(INPUTS) {
                if let Some(range) = entry.inputs.iter().find(|i| i.topic == topic) {
                    *end = Some(range.end);
                }
            }
            for (queue, n) in self.rows.iter_mut().zip(ready.counts) {
                queue.drop_front(n);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn q<'a>(offset: i64, value: &'a [u8]) -> Queued<'a> {
        Queued {
            offset,
            timestamp_ms: 0,
            key: Some(b"k"),
            value: Some(value),
        }
    }

    fn sum(values: &[&[u8]]) -> u128 {
        values
            .iter()
            .fold(0, |s: u128, v| s.wrapping_add(hash128(b"k", v)))
    }

    fn entry(commit: i64, start: i64, end: i64, ticks: &[&[u8]], bars: &[&[u8]]) -> LedgerEntry {
        LedgerEntry {
            app_id: "a".into(),
            task: 0,
            commit,
            system_time: commit * 10,
            stream_times: vec![],
            inputs: vec![InputRange {
                topic: topics::TICKS.into(),
                start,
                end,
                records: ticks.len() as i64,
                hash: sum(ticks),
                accepted: ticks.len() as i64,
                duplicates: 0,
                rejected: 0,
                skipped: end - start - ticks.len() as i64,
            }],
            outputs: vec![OutputCount {
                topic: topics::OHLCV.into(),
                count: bars.len() as i64,
                hash: sum(bars),
            }],
            corrections: 0,
            totals: vec![],
            schema_ids: vec![],
            prev_hash: 0,
            last: false,
            heartbeat: ticks.is_empty(),
        }
    }

    fn fresh() -> Assembler {
        Assembler::new(0, [Held::default(); FEEDS], [0; FEEDS])
    }

    #[test]
    fn a_commit_is_ready_only_when_all_of_it_is_here() {
        let mut a = fresh();
        a.push_ledger(0, entry(1, 0, 4, &[b"x", b"y"], &[b"bar"]))
            .unwrap();
        assert_eq!(a.ready(), Ok(None));
        a.push(Feed::Ticks, q(0, b"x"));
        assert_eq!(a.ready(), Ok(None));
        a.push(Feed::Ticks, q(2, b"y"));
        assert_eq!(a.ready(), Ok(None), "the bar is missing");
        a.push(Feed::Ohlcv, q(7, b"bar"));
        a.push(Feed::Ticks, q(5, b"next commit's"));
        let ready = a.ready().unwrap().unwrap();
        assert_eq!(ready.counts, [2, 1, 0, 0]);
        assert_eq!(ready.wanted, [true; FEEDS]);
        a.pop(ready);
        assert_eq!(a.last_commit(), 1);
        assert_eq!(a.ready(), Ok(None));
    }

    #[test]
    fn a_heartbeat_needs_no_records() {
        let mut a = fresh();
        a.push_ledger(0, entry(1, 0, 0, &[], &[])).unwrap();
        assert_eq!(a.ready().unwrap().unwrap().counts, [0; FEEDS]);
    }

    #[test]
    fn lost_foreign_or_changed_records_stop_it() {
        let mut a = fresh();
        a.push_ledger(0, entry(1, 0, 2, &[b"x", b"y"], &[]))
            .unwrap();
        a.push(Feed::Ticks, q(0, b"x"));
        a.advance(Feed::Ticks, 2);
        assert!(matches!(
            a.ready(),
            Err(AssembleError::Count {
                expected: 2,
                found: 1,
                ..
            })
        ));
        a.push(Feed::Ticks, q(1, b"z"));
        assert!(matches!(a.ready(), Err(AssembleError::Hash { .. })));
        assert!(matches!(
            a.push_ledger(9, entry(3, 2, 2, &[], &[])),
            Err(AssembleError::CommitGap {
                after: 1,
                found: 3,
                ..
            })
        ));
    }

    #[test]
    fn an_entry_whose_input_does_not_follow_stops_it() {
        let mut a = Assembler::new(
            0,
            [Held {
                commit: 4,
                input_end: 10,
            }; FEEDS],
            [10, 0, 0, 10],
        );
        a.push_ledger(3, entry(4, 5, 10, &[], &[])).unwrap();
        a.push_ledger(4, entry(5, 11, 11, &[], &[])).unwrap();
        assert!(matches!(
            a.ready(),
            Err(AssembleError::PositionGap {
                expected: 10,
                found: 11,
                commit: 5,
                ..
            })
        ));
    }

    #[test]
    fn tables_at_different_commits_take_only_what_they_lack() {
        // Bronze holds commit 2, Silver and Gold commit 1: a crash between their snapshots.
        let (ahead, behind) = (
            Held {
                commit: 2,
                input_end: 4,
            },
            Held {
                commit: 1,
                input_end: 2,
            },
        );
        let mut a = Assembler::new(0, [ahead, behind, behind, ahead], [4, 0, 0, 0]);
        a.push_ledger(1, entry(2, 2, 4, &[b"x", b"y"], &[b"bar"]))
            .unwrap();
        a.push_ledger(2, entry(3, 4, 5, &[b"z"], &[])).unwrap();
        a.push(Feed::Ohlcv, q(3, b"bar"));
        let ready = a.ready().unwrap().unwrap();
        assert_eq!(
            (ready.counts, ready.wanted),
            ([0, 1, 0, 0], [false, true, true, false])
        );
        a.pop(ready);
        a.push(Feed::Ticks, q(4, b"z"));
        let ready = a.ready().unwrap().unwrap();
        assert_eq!((ready.counts, ready.wanted), ([1, 0, 0, 0], [true; FEEDS]));
    }

    /// Adds the range of market.bars to an entry.
    fn with_bars(mut entry: LedgerEntry, start: i64, end: i64, bars: &[&[u8]]) -> LedgerEntry {
        entry.inputs.push(InputRange {
            topic: topics::BARS.into(),
            start,
            end,
            records: bars.len() as i64,
            hash: sum(bars),
            accepted: bars.len() as i64,
            duplicates: 0,
            rejected: 0,
            skipped: end - start - bars.len() as i64,
        });
        entry
    }

    #[test]
    fn both_inputs_are_taken_by_their_ranges() {
        let mut a = fresh();
        a.push_ledger(
            0,
            with_bars(entry(1, 0, 1, &[b"x"], &[]), 0, 2, &[b"v", b"w"]),
        )
        .unwrap();
        a.push(Feed::Ticks, q(0, b"x"));
        assert_eq!(a.ready(), Ok(None), "market.bars is missing");
        a.push(Feed::Bars, q(0, b"v"));
        assert_eq!(a.ready(), Ok(None));
        a.push(Feed::Bars, q(1, b"w"));
        a.push(Feed::Bars, q(2, b"next commit's"));
        let ready = a.ready().unwrap().unwrap();
        assert_eq!(ready.counts, [1, 0, 0, 2]);
        a.pop(ready);
        // INV-13 and INV-12 for the second input as for the first.
        a.push_ledger(1, with_bars(entry(2, 1, 1, &[], &[]), 2, 3, &[b"other"]))
            .unwrap();
        assert!(matches!(
            a.ready(),
            Err(AssembleError::Hash {
                topic: "market.bars",
                ..
            })
        ));
        let mut a = fresh();
        a.push_ledger(0, with_bars(entry(1, 0, 0, &[], &[]), 0, 0, &[]))
            .unwrap();
        let ready = a.ready().unwrap().unwrap();
        a.pop(ready);
        a.push_ledger(1, with_bars(entry(2, 0, 0, &[], &[]), 1, 1, &[]))
            .unwrap();
        assert!(matches!(
            a.ready(),
            Err(AssembleError::PositionGap {
                topic: "market.bars",
                expected: 0,
                found: 1,
                ..
            })
        ));
    }

    /// Tables of before market.bars was an input: its own table is new and begins with the ledger.
    #[test]
    fn a_table_that_is_new_reads_the_ledger_from_its_start() {
        let held = Held {
            commit: 2,
            input_end: 4,
        };
        let mut a = Assembler::new(0, [held, held, held, Held::default()], [4, 0, 0, 0]);
        a.push_ledger(0, entry(1, 0, 2, &[b"x", b"y"], &[]))
            .unwrap();
        a.push_ledger(1, entry(2, 2, 4, &[b"z", b"z"], &[]))
            .unwrap();
        a.push_ledger(2, with_bars(entry(3, 4, 4, &[], &[]), 0, 1, &[b"v"]))
            .unwrap();
        a.push(Feed::Bars, q(0, b"v"));
        for wanted in [false, false, true] {
            let ready = a.ready().unwrap().unwrap();
            assert_eq!(ready.wanted, [wanted, wanted, wanted, true]);
            assert_eq!(ready.counts, [0, 0, 0, usize::from(wanted)]);
            a.pop(ready);
        }
        assert_eq!(a.last_commit(), 3);
    }
}
