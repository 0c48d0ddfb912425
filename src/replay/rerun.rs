//! The topology again: the production task over stores in memory, fed from the topics or from Bronze. Here the whole of
//! it, commit by commit as the ledger has it; `range` has the rest.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Result, bail};
use finlake_lakehouse::{Lakehouse, Pinned, Table};
use finlake_pipeline::Market;
use finlake_schemas::{Codec, LedgerEntry, topics};
use finlake_topology::state::StateDb;
use finlake_topology::task::CommitKind;
use finlake_topology::{OutputRecord, RecordBatch, TestDriver, TopicIdx, Topology};
use tokio::runtime::Handle;

use super::compare::{Difference, Replayed, Row, Rows, Tally, compare};
use super::shadow::{self, Kept, Shadow};
use super::topics::Cursor;
use super::{bronze, live};
use crate::app::App;
use crate::output::Progress;

/// Records per batch, and per commit where no ledger says otherwise.
pub(super) const CHUNK: usize = 20_000;
/// Offsets of Bronze that are read at once.
const WINDOW: i64 = 200_000;

/// What a replay found.
#[derive(Debug, Default)]
pub struct Rerun {
    /// Input records fed.
    pub records: u64,
    /// Of them, read from Bronze.
    pub from_bronze: u64,
    pub silver: Tally,
    pub gold: Tally,
    /// Silver's, in order of key.
    pub silver_differences: Vec<Difference>,
    /// Gold's, in order of key.
    pub gold_differences: Vec<Difference>,
    /// The tables of the shadow that it is kept in.
    pub kept: Kept,
}

impl Rerun {
    /// Whether nothing differs.
    pub fn is_equal(&self) -> bool {
        self.silver.different == 0 && self.gold.different == 0
    }

    pub(super) fn compared(&mut self, silver: (&Rows, &Replayed), gold: (&Rows, &Replayed)) {
        (self.silver, self.silver_differences) = compare(silver.0, silver.1);
        (self.gold, self.gold_differences) = compare(gold.0, gold.1);
    }

    /// Ends a shadow, once it is known what differs.
    pub(super) fn keep(&mut self, shadow: Option<Shadow>) -> Result<()> {
        if let Some(shadow) = shadow {
            let found = |t: &Tally| {
                format!(
                    "{} equal, {} pending, {} different",
                    t.equal, t.pending, t.different
                )
            };
            let about = [("silver", &self.silver), ("gold", &self.gold)];
            let about = about.map(|(layer, tally)| (layer.to_owned(), found(tally)));
            self.kept = shadow.finish(BTreeMap::from(about))?;
        }
        Ok(())
    }
}

/// The tables that a replay is compared with.
pub(super) struct Tables {
    pub silver: Pinned,
    pub gold: Pinned,
    pub bronze: Pinned,
}

impl Tables {
    /// Silver and Gold first: Bronze must not be behind them.
    pub async fn open(lake: &Lakehouse) -> Result<Tables> {
        Ok(Tables {
            silver: lake.snapshot(Table::Ohlcv).await?,
            gold: lake.snapshot(Table::Metrics).await?,
            bronze: lake.snapshot(Table::Ticks).await?,
        })
    }

    /// The snapshots that are compared, for other engines to look at the same.
    pub fn named(&self) -> String {
        let (silver, gold) = (self.silver.snapshot_id(), self.gold.snapshot_id());
        format!("{}={silver},{}={gold}", Table::Ohlcv, Table::Metrics)
    }
}

/// Replays everything up to what the tables hold, commit by commit as the ledger has it; into the shadow, if there is
/// one, just these commits.
///
/// # Errors
/// Kafka, catalog or storage; input that neither the topic nor Bronze holds.
pub fn whole(
    app: &App,
    lake: &Lakehouse,
    keep: Option<&Lakehouse>,
    runtime: &Handle,
    quiet: bool,
) -> Result<Rerun> {
    let tables = runtime.block_on(Tables::open(lake))?;
    let cuts = |pinned: &Pinned| {
        let commits = (0..app.config.kafka.partitions).map(|p| (p, pinned.position(p).commit));
        shadow::positions(commits)
    };
    let about = BTreeMap::from([
        ("range".to_owned(), "all".to_owned()),
        ("silver-commits".to_owned(), cuts(&tables.silver)),
        ("gold-commits".to_owned(), cuts(&tables.gold)),
        ("compared-with".to_owned(), tables.named()),
    ]);
    let mut shadow = match keep {
        Some(keep) => Some(Shadow::open(keep, app.codec.clone(), runtime, &about)?),
        None => None,
    };
    let mut rerun = Rerun::default();
    let (mut silver, mut gold) = (Replayed::default(), Replayed::default());
    let partitions = 0..app.config.kafka.partitions;
    let total = partitions.clone().map(|p| tables.silver.position(p));
    let total: i64 = total.map(|at| at.input_end).sum();
    let progress = Progress::new(
        quiet,
        "replaying",
        "records",
        Some(total.max(0).unsigned_abs()),
    );
    for p in partitions {
        let mut replay = Partition {
            app,
            tables: &tables,
            runtime,
            progress: &progress,
            number: p,
            rerun: &mut rerun,
        };
        replay.whole(&mut silver, &mut gold, shadow.as_mut())?;
    }
    progress.done();
    let windows = &app.config.gold.windows;
    let (bars, metrics) = runtime.block_on(async {
        let bars = live::bars(&tables.silver, None).await?;
        anyhow::Ok((bars, live::metrics(&tables.gold, windows, None).await?))
    })?;
    rerun.compared((&bars, &silver), (&metrics, &gold));
    rerun.keep(shadow)?;
    Ok(rerun)
}

struct Partition<'a> {
    app: &'a App,
    tables: &'a Tables,
    runtime: &'a Handle,
    progress: &'a Progress,
    number: i32,
    rerun: &'a mut Rerun,
}

impl Partition<'_> {
    fn whole(
        &mut self,
        silver: &mut Replayed,
        gold: &mut Replayed,
        mut shadow: Option<&mut Shadow>,
    ) -> Result<()> {
        let app = self.app;
        let cuts = [&self.tables.silver, &self.tables.gold].map(|t| t.position(self.number).commit);
        let last = cuts[0].max(cuts[1]);
        if last == 0 {
            return Ok(());
        }
        let entries = self.entries(last)?;
        let mut inputs = [
            Input::open(app, topics::TICKS, self.number)?,
            Input::open(app, topics::BARS, self.number)?,
        ];
        let mut driver = driver(&app.topology, self.number)?;
        let mut batch = RecordBatch::new();
        if let Some(shadow) = &mut shadow {
            shadow.begin(self.number)?;
        }
        for (i, entry) in entries.iter().enumerate() {
            driver.set_now(entry.system_time);
            for (idx, input) in inputs.iter_mut().enumerate() {
                let range = entry.inputs.iter().find(|r| r.topic == input.topic);
                if let Some(range) = range.filter(|r| r.end > r.start) {
                    self.feed(&mut driver, &mut batch, idx, input, range.start..range.end)?;
                }
            }
            driver.punctuate()?;
            // A graceful stop is two entries: what was open, then the last heartbeat.
            let stopping = entry.last || entries.get(i + 1).is_some_and(|next| next.last);
            driver.commit_as(CommitKind {
                stopping,
                last: entry.last,
            })?;
            let outputs = driver.take_outputs();
            if let Some(shadow) = &mut shadow {
                shadow.commit(entry, &outputs, cuts.map(|cut| entry.commit <= cut))?;
            }
            collect(
                &app.codec,
                outputs,
                (entry.commit <= cuts[0]).then_some(&mut silver.settled),
                (entry.commit <= cuts[1]).then_some(&mut gold.settled),
            )?;
        }
        // What a stop at the cut gives is in no commit of the ledger, and in no shadow.
        driver.stop()?;
        let outputs = driver.take_outputs();
        let (bars, metrics) = (&mut silver.last, &mut gold.last);
        collect(&app.codec, outputs, Some(bars), Some(metrics))
    }

    /// The ledger up to commit `last`, which must begin with commit 1.
    fn entries(&self, last: i64) -> Result<Vec<LedgerEntry>> {
        let app = self.app;
        let mut cursor = Cursor::open(&app.config, topics::LEDGER, self.number, 0)?;
        let (mut entries, high) = (Vec::<LedgerEntry>::new(), cursor.high);
        cursor.until(high, |r| {
            let entry = app.codec.decode_ledger(r.value.unwrap_or_default())?;
            if entry.commit <= last {
                entries.push(entry);
            }
            Ok(())
        })?;
        match (entries.first(), entries.last()) {
            (Some(first), Some(end)) if first.commit == 1 && end.commit == last => Ok(entries),
            (first, end) => bail!(
                "{}/{} holds commits {:?} to {:?}, the tables hold 1 to {last}: a whole replay follows the ledger. \
                 Replay a range instead (--from-timestamp), which needs Bronze only",
                topics::LEDGER,
                self.number,
                first.map(|e| e.commit),
                end.map(|e| e.commit)
            ),
        }
    }

    fn feed(
        &mut self,
        driver: &mut TestDriver<Market>,
        batch: &mut RecordBatch,
        idx: usize,
        input: &mut Input,
        range: Range<i64>,
    ) -> Result<()> {
        let mut at = range.start;
        let topic = TopicIdx(idx as u16);
        // What retention took away stands in Bronze.
        while at < range.end.min(input.cursor.low) {
            anyhow::ensure!(
                input.topic == topics::TICKS,
                "{} begins at offset {}: offsets {at}.. are gone",
                input.topic,
                input.cursor.low
            );
            let end = range.end.min(input.cursor.low);
            let records = self.bronze(input, at..end)?;
            batch.clear();
            for r in &records {
                let (key, value) = (r.key.as_deref(), r.value.as_deref());
                batch.push(topic, self.number, r.offset, r.timestamp_ms, key, value);
            }
            self.rerun.from_bronze += records.len() as u64;
            self.pipe(driver, batch)?;
            at = end;
        }
        if at >= range.end {
            return Ok(());
        }
        let number = self.number;
        batch.clear();
        input.cursor.until(range.end, |r| {
            batch.push(topic, number, r.offset, r.timestamp_ms, r.key, r.value);
            if batch.len() >= CHUNK {
                driver.pipe_batch(batch)?;
                self.rerun.records += batch.len() as u64;
                self.progress.add(batch.len() as u64);
                batch.clear();
            }
            Ok(())
        })?;
        self.pipe(driver, batch)
    }

    fn pipe(&mut self, driver: &mut TestDriver<Market>, batch: &mut RecordBatch) -> Result<()> {
        driver.pipe_batch(batch)?;
        self.rerun.records += batch.len() as u64;
        self.progress.add(batch.len() as u64);
        batch.clear();
        Ok(())
    }

    /// Records of a range out of Bronze, read ahead window by window.
    fn bronze(&self, input: &mut Input, range: Range<i64>) -> Result<Vec<bronze::Stored>> {
        let mut found = Vec::new();
        let mut at = range.start;
        while at < range.end {
            if !input.window.contains(&at) {
                input.window = at..at.saturating_add(WINDOW);
                let (bronze, codec) = (&self.tables.bronze, &self.app.codec);
                let read = bronze::offsets(bronze, codec, self.number, input.window.clone());
                input.stored = self.runtime.block_on(read)?.into();
            }
            let end = range.end.min(input.window.end);
            while input.stored.front().is_some_and(|r| r.offset < end) {
                found.extend(input.stored.pop_front());
            }
            at = end;
        }
        Ok(found)
    }
}

/// An input topic's partition, and what was read ahead of it from Bronze.
struct Input {
    topic: &'static str,
    cursor: Cursor,
    window: Range<i64>,
    stored: std::collections::VecDeque<bronze::Stored>,
}

impl Input {
    fn open(app: &App, topic: &'static str, partition: i32) -> Result<Input> {
        Ok(Input {
            topic,
            cursor: Cursor::open(&app.config, topic, partition, 0)?,
            window: 0..0,
            stored: std::collections::VecDeque::new(),
        })
    }
}

pub(super) fn driver(topology: &Topology<Market>, partition: i32) -> Result<TestDriver<Market>> {
    Ok(TestDriver::over(
        topology,
        "replay",
        StateDb::memory(),
        partition,
    )?)
}

/// Takes Silver and Gold records in; later ones replace earlier ones.
pub(super) fn collect(
    codec: &Codec,
    outputs: Vec<OutputRecord>,
    silver: Option<&mut Rows>,
    gold: Option<&mut Rows>,
) -> Result<()> {
    let mut into = [silver, gold];
    for record in outputs {
        let value = record.value.as_deref().unwrap_or_default();
        let (rows, row) = match record.topic.as_str() {
            topics::OHLCV => (0, Row::of_bar(&codec.decode_bar(value)?)),
            topics::METRICS => (1, Row::of_metrics(&codec.decode_metrics(value)?)),
            _ => continue,
        };
        let (Some(rows), Some(key)) = (&mut into[rows], record.key) else {
            continue;
        };
        match row {
            Some(row) => rows.insert(key, row),
            None => rows.remove(&key),
        };
    }
    Ok(())
}
