//! One Kafka partition's share of the next table commits: rows in builders, cuts, frontier.
//!
//! Decodes each record once, straight into the tables' column builders. Never drops a row: what does not decode is a
//! raw row in Bronze, and an error in Silver and Gold, whose records this application wrote itself.

use finlake_lakehouse::{
    BarsRows, BronzeRows, Cut, LakeError, Lakehouse, PartitionBatch, RecordAt, Rows, Table,
    VersionRows,
};
use finlake_schemas::{Codec, LedgerEntry, topics};

use super::assemble::{AssembleError, Assembler, FEEDS, Feed, INPUTS, Ready};

/// Rows and cuts of one partition since the last table commit.
pub struct Pending {
    partition: i32,
    bronze: BronzeRows,
    bars: BarsRows,
    versions: [VersionRows; 2],
    cuts: [Vec<Cut>; FEEDS],
    /// Input position before the first cut of each table.
    input_start: [Option<i64>; FEEDS],
    frontier: i64,
    rows: usize,
    /// Offset of the first ledger entry taken in: where reading must begin if these rows are lost.
    first_entry: Option<i64>,
    /// Offset after the last record taken in of ohlcv and metrics.
    outputs_next: [Option<i64>; 2],
    /// Kafka timestamp (ms) of the oldest input record, for the end-to-end latency.
    oldest_ms: Option<i64>,
    newest_ms: Option<i64>,
}

/// Why a complete commit could not be taken in.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    #[error(transparent)]
    Lake(#[from] LakeError),
}

impl Pending {
    /// Empty builders for a partition.
    ///
    /// # Errors
    /// Those of [`VersionRows::new`].
    pub fn new(lake: &Lakehouse, partition: i32) -> Result<Self, LakeError> {
        Ok(Self {
            partition,
            bronze: BronzeRows::new(topics::TICKS, partition),
            bars: BarsRows::new(&lake.def(Table::Bars), topics::BARS, partition),
            versions: [
                VersionRows::new(&lake.def(Table::Ohlcv), partition)?,
                VersionRows::new(&lake.def(Table::Metrics), partition)?,
            ],
            cuts: Default::default(),
            input_start: [None; FEEDS],
            frontier: 0,
            rows: 0,
            first_entry: None,
            outputs_next: [None; 2],
            oldest_ms: None,
            newest_ms: None,
        })
    }

    /// Rows gathered, over all tables.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Offset of the first ledger entry taken in.
    pub fn first_entry(&self) -> Option<i64> {
        self.first_entry
    }

    /// Whether there is nothing to commit, not even a frontier.
    pub fn is_empty(&self) -> bool {
        self.cuts.iter().all(Vec::is_empty)
    }

    /// Kafka timestamps (ms) of the oldest and the newest input record gathered.
    pub fn span_ms(&self) -> Option<(i64, i64)> {
        self.oldest_ms.zip(self.newest_ms)
    }

    /// Takes the commit at the assembler's front in; the caller pops it.
    ///
    /// # Errors
    /// [`TakeError`]; the pending rows are then no longer whole and must be dropped.
    pub fn take(
        &mut self,
        codec: &Codec,
        assembler: &Assembler,
        ready: Ready,
    ) -> Result<(), TakeError> {
        let Some((offset, entry)) = assembler.entry() else {
            return Ok(());
        };
        self.first_entry.get_or_insert(offset);
        let ranges = INPUTS.map(|(_, topic)| {
            let range = entry.inputs.iter().find(|i| i.topic == topic);
            // Entries of before an input existed do not speak of it: it was at its beginning.
            range.map_or((0, 0), |r| (r.start, r.end))
        });
        self.frontier = self.frontier.max(entry.system_time);
        self.rows += ready.counts.iter().sum::<usize>();
        self.ticks(codec, assembler, ready.counts[0], entry);
        self.ohlcv(codec, assembler, ready.counts[1])?;
        self.metrics(codec, assembler, ready.counts[2])?;
        self.bars(codec, assembler, ready.counts[3], entry)?;
        for (i, wanted) in ready.wanted.into_iter().enumerate() {
            if wanted {
                let (start, end) = ranges[usize::from(i == INPUTS[1].0)];
                self.input_start[i].get_or_insert(start);
                self.cuts[i].push(Cut {
                    commit: entry.commit,
                    input_end: end,
                    system_time: entry.system_time,
                    ledger_next: Some(offset + 1),
                    output_next: match i {
                        1 | 2 => self.outputs_next[i - 1],
                        _ => None,
                    },
                });
            }
        }
        Ok(())
    }

    fn ticks(&mut self, codec: &Codec, assembler: &Assembler, n: usize, entry: &LedgerEntry) {
        for r in assembler.records(0, n) {
            let value = r.value.unwrap_or_default();
            let at = RecordAt {
                offset: r.offset,
                timestamp: r.timestamp_ms.saturating_mul(1000),
                key: r.key,
                schema_id: finlake_schemas::schema_id(value),
                commit: entry.commit,
                sys_from: entry.system_time,
            };
            match codec.decode_tick(value) {
                Ok(tick) => self.bronze.push_tick(&at, &tick, value),
                Err(_) => self.bronze.push_raw(&at, value),
            }
            self.oldest_ms = Some(
                self.oldest_ms
                    .map_or(r.timestamp_ms, |o| o.min(r.timestamp_ms)),
            );
            self.newest_ms = Some(
                self.newest_ms
                    .map_or(r.timestamp_ms, |o| o.max(r.timestamp_ms)),
            );
        }
    }

    fn undecodable(&self, feed: Feed, offset: i64, message: &impl ToString) -> TakeError {
        TakeError::Assemble(AssembleError::Undecodable {
            partition: self.partition,
            topic: feed.topic(),
            offset,
            message: message.to_string(),
        })
    }

    /// Records of market.bars; a row each, decodable or not.
    fn bars(
        &mut self,
        codec: &Codec,
        assembler: &Assembler,
        n: usize,
        entry: &LedgerEntry,
    ) -> Result<(), TakeError> {
        for r in assembler.records(3, n) {
            let at = RecordAt {
                offset: r.offset,
                timestamp: r.timestamp_ms.saturating_mul(1000),
                key: r.key,
                schema_id: r.value.and_then(finlake_schemas::schema_id),
                commit: entry.commit,
                sys_from: entry.system_time,
            };
            let record = codec.decode_bars_input(r.value.unwrap_or_default()).ok();
            self.bars.push(&at, record.as_ref(), r.value)?;
        }
        Ok(())
    }

    fn ohlcv(&mut self, codec: &Codec, assembler: &Assembler, n: usize) -> Result<(), TakeError> {
        for r in assembler.records(1, n) {
            let bar = codec
                .decode_bar(r.value.unwrap_or_default())
                .map_err(|e| self.undecodable(Feed::Ohlcv, r.offset, &e))?;
            self.versions[0].push_bar(&bar, r.offset)?;
            self.outputs_next[0] = Some(r.offset + 1);
        }
        Ok(())
    }

    fn metrics(&mut self, codec: &Codec, assembler: &Assembler, n: usize) -> Result<(), TakeError> {
        for r in assembler.records(2, n) {
            let metrics = codec
                .decode_metrics(r.value.unwrap_or_default())
                .map_err(|e| self.undecodable(Feed::Metrics, r.offset, &e))?;
            self.versions[1].push_metrics(&metrics, r.offset)?;
            self.outputs_next[1] = Some(r.offset + 1);
        }
        Ok(())
    }

    /// One part per table, `None` where the table has nothing to take.
    pub fn finish(self) -> [Option<PartitionBatch>; FEEDS] {
        let [silver, gold] = self.versions;
        let [c0, c1, c2, c3] = self.cuts;
        let [s0, s1, s2, s3] = self.input_start;
        let (partition, frontier) = (self.partition, self.frontier);
        let part = |cuts: Vec<Cut>, start: Option<i64>, rows: Rows| {
            (!cuts.is_empty()).then(|| PartitionBatch {
                partition,
                input_start: start.unwrap_or(0),
                cuts,
                frontier,
                rows,
            })
        };
        [
            part(c0, s0, Rows::Bronze(self.bronze)),
            part(c1, s1, Rows::Versions(silver)),
            part(c2, s2, Rows::Versions(gold)),
            part(c3, s3, Rows::Bars(self.bars)),
        ]
    }
}
