//! The topology again: the production task over stores in memory, fed from the topics or from Bronze. Here the whole of
//! it, commit by commit as the ledger has it; `range` has the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::{Result, bail};
use finlake_lakehouse::{Lakehouse, Pinned, Table};
use finlake_pipeline::Market;
use finlake_schemas::{Codec, LedgerEntry, topics};
use finlake_topology::state::StateDb;
use finlake_topology::task::CommitKind;
use finlake_topology::{OutputRecord, RecordBatch, TestDriver, TopicIdx, Topology};
use tokio::runtime::Handle;

use super::compare::{Difference, Row, Sides, Tally, compare, put, set_apart};
use super::corrected::Corrected;
use super::keys::{self, Wanted, source_of};
use super::shadow::{self, Kept, Shadow};
use super::topics::Cursor;
use super::{bronze, live};
use crate::app::App;
use crate::output::{Progress, format_instant};

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
    /// Bronze was asked for records, whether it had them or not.
    pub asked_bronze: bool,
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

    pub(super) fn compared(&mut self, sides: &Sides) {
        (self.silver, self.silver_differences) = compare(&sides.bars, &sides.silver);
        (self.gold, self.gold_differences) = compare(&sides.metrics, &sides.gold);
    }

    /// Counts apart what was corrected.
    pub(super) fn set_apart(&mut self, corrected: &Corrected) {
        let silver = (&mut self.silver, self.silver_differences.as_mut_slice());
        set_apart(silver, |key| corrected.has_bar(key));
        let gold = (&mut self.gold, self.gold_differences.as_mut_slice());
        set_apart(gold, |key| corrected.has_metrics(key));
    }

    /// Ends a shadow, once it is known what differs.
    pub(super) fn keep(
        &mut self,
        shadow: Option<Shadow>,
        about: impl IntoIterator<Item = (String, String)>,
    ) -> Result<()> {
        if let Some(shadow) = shadow {
            let found = [("silver", &self.silver), ("gold", &self.gold)];
            let found = found.map(|(layer, tally)| (layer.to_owned(), tally.to_string()));
            let about = found.into_iter().chain(about).collect();
            self.kept = shadow.finish(about)?;
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

/// What of the whole is asked for.
#[derive(Debug, Clone, Default)]
pub struct Whole {
    /// System time, µs: only the commits up to it, compared with what was known then.
    pub until: Option<i64>,
    /// Only these keys are compared; none: all.
    pub keys: Vec<Wanted>,
}

/// Replays everything up to what the tables hold, commit by commit as the ledger has it; into the shadow, if there is
/// one, just these commits.
///
/// # Errors
/// Kafka, catalog or storage; input that neither the topic nor Bronze holds; no commit is as old as asked.
pub fn whole(
    app: &App,
    lake: &Lakehouse,
    keep: Option<&Lakehouse>,
    runtime: &Handle,
    asked: &Whole,
    quiet: bool,
) -> Result<Rerun> {
    let tables = runtime.block_on(Tables::open(lake))?;
    let range = match asked.until {
        Some(at) => format!("all known at {}", format_instant(at)),
        None => "all".to_owned(),
    };
    let about = BTreeMap::from([
        ("range".to_owned(), range),
        ("compared-with".to_owned(), tables.named()),
    ]);
    let mut shadow = shadow_of(app, keep, runtime, &about)?;
    let mut rerun = Rerun::default();
    let mut sides = Sides::default();
    let partitions = 0..app.config.kafka.partitions;
    let total = partitions.clone().map(|p| tables.silver.position(p));
    let total: i64 = total.map(|at| at.input_end).sum();
    let total = asked.until.is_none().then(|| total.max(0).unsigned_abs());
    let progress = Progress::new(quiet, "replaying", "records", total);
    let mut cuts: [BTreeMap<i32, i64>; 2] = Default::default();
    for p in partitions {
        let mut replay = Partition {
            app,
            tables: &tables,
            runtime,
            progress: &progress,
            number: p,
            rerun: &mut rerun,
        };
        let reached = replay.whole(&mut sides, shadow.as_mut(), asked.until)?;
        for (cuts, commit) in cuts.iter_mut().zip(reached) {
            cuts.insert(p, commit);
        }
    }
    progress.done();
    if let Some(at) = asked.until {
        let reached = cuts.iter().flat_map(BTreeMap::values).any(|c| *c > 0);
        let at = format_instant(at);
        anyhow::ensure!(
            reached,
            "no commit of the ledger is as old as {at}: nothing was known then"
        );
    }
    let which = live::Which {
        dates: None,
        known: asked.until,
        partitions: None,
    };
    let windows = &app.config.gold.windows;
    (sides.bars, sides.metrics) = runtime.block_on(async {
        let bars = live::bars(&tables.silver, &which).await?;
        anyhow::Ok((bars, live::metrics(&tables.gold, windows, &which).await?))
    })?;
    keys::narrow(&asked.keys, &mut sides)?;
    rerun.compared(&sides);
    let [silver, gold] = cuts.map(|of| shadow::positions(of.into_iter()));
    let about = [("silver-commits", silver), ("gold-commits", gold)];
    rerun.keep(shadow, about.map(|(name, cut)| (name.to_owned(), cut)))?;
    Ok(rerun)
}

/// A shadow in this lakehouse, if there is one.
pub(super) fn shadow_of(
    app: &App,
    keep: Option<&Lakehouse>,
    runtime: &Handle,
    about: &BTreeMap<String, String>,
) -> Result<Option<Shadow>> {
    let open = |lake| Shadow::open(lake, app.codec.clone(), runtime, about);
    keep.map(open).transpose()
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
    /// The commits that were replayed of Silver and of Gold.
    fn whole(
        &mut self,
        sides: &mut Sides,
        mut shadow: Option<&mut Shadow>,
        until: Option<i64>,
    ) -> Result<[i64; 2]> {
        let app = self.app;
        let cuts = [&self.tables.silver, &self.tables.gold].map(|t| t.position(self.number).commit);
        let last = cuts[0].max(cuts[1]);
        if last == 0 {
            return Ok(cuts);
        }
        let entries = self.entries(last)?;
        // Later ones only tell whether a stop has begun.
        let known = |e: &LedgerEntry| until.is_none_or(|at| e.system_time <= at);
        let wanted = entries.partition_point(known);
        let reached = wanted.checked_sub(1).map_or(0, |i| entries[i].commit);
        let cuts = cuts.map(|cut| cut.min(reached));
        if reached == 0 {
            return Ok(cuts);
        }
        let mut inputs = [
            Input::open(app, topics::TICKS, self.number)?,
            Input::open(app, topics::BARS, self.number)?,
        ];
        let mut driver = driver(&app.topology, self.number)?;
        let mut batch = RecordBatch::new();
        if let Some(shadow) = &mut shadow {
            shadow.begin(self.number)?;
        }
        for (i, entry) in entries.iter().enumerate().take(wanted) {
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
            // Neither trades nor corrections nor a stop made what is due now.
            let moved = moved(i.checked_sub(1).map(|i| &entries[i]), entry);
            let is_corrected = entry
                .inputs
                .iter()
                .any(|r| r.topic == topics::BARS && r.end > r.start);
            let by_clock =
                |key: &[u8]| !stopping && !is_corrected && !moved.contains(source_of(key));
            let within = cuts.map(|cut| entry.commit <= cut);
            collect(&app.codec, outputs, |layer, key, row| {
                if within[layer] {
                    let by_clock = by_clock(&key);
                    [&mut sides.silver, &mut sides.gold][layer].take(key, row, by_clock);
                }
            })?;
        }
        // What a stop at the cut gives is in no commit of the ledger, and in no shadow.
        driver.stop()?;
        let outputs = driver.take_outputs();
        let last = [&mut sides.silver.last, &mut sides.gold.last];
        collect(&app.codec, outputs, |layer, key, row| {
            put(last[layer], key, row);
        })?;
        Ok(cuts)
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
            self.rerun.asked_bronze = true;
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

/// Hands over the rows of Silver (0) and of Gold (1); none takes one back.
pub(super) fn collect(
    codec: &Codec,
    outputs: Vec<OutputRecord>,
    mut take: impl FnMut(usize, Vec<u8>, Option<Row>),
) -> Result<()> {
    for record in outputs {
        let value = record.value.as_deref().unwrap_or_default();
        let (layer, row) = match record.topic.as_str() {
            topics::OHLCV => (0, Row::of_bar(&codec.decode_bar(value)?)),
            topics::METRICS => (1, Row::of_metrics(&codec.decode_metrics(value)?)),
            _ => continue,
        };
        if let Some(key) = record.key {
            take(layer, key, row);
        }
    }
    Ok(())
}

/// The sources whose stream time moved from one entry to the next.
fn moved<'a>(before: Option<&LedgerEntry>, entry: &'a LedgerEntry) -> BTreeSet<&'a [u8]> {
    let stood = |at: &(String, i64)| before.is_some_and(|e| e.stream_times.contains(at));
    let moved = entry.stream_times.iter().filter(|at| !stood(at));
    moved.map(|(source, _)| source.as_bytes()).collect()
}
