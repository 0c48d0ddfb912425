//! The sink's loop. See the module above for its rules.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use finlake_lakehouse::{LakeError, Lakehouse, Outcome, Position, SinkBatch, Table, TableSink};
use finlake_schemas::{Codec, LedgerEntry};
use finlake_topology::broker::{Event, PollLimits};
use finlake_topology::kafka::{AttachedConsumer, KafkaConfig};
use finlake_topology::{Error as KafkaError, RecordBatch, TopicIdx};
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::runtime::Handle;

use super::assemble::{AssembleError, Assembler, FEEDS as TABLES, Feed, Held, INPUTS};
use super::batch::Pending;
use super::control::{SinkControl, SinkError, SinkObserver, SinkOptions, SinkStatus};
use super::pace;
use super::queue::Queued;

/// Order of the consumer's topics: the ledger leads, the rest is attached.
const FEEDS: [Feed; TABLES + 1] = [
    Feed::Ledger,
    Feed::Ticks,
    Feed::Ohlcv,
    Feed::Metrics,
    Feed::Bars,
];
/// The tables, in the order of [`Feed::ROWS`].
const FILLS: [Table; TABLES] = [Table::Ticks, Table::Ohlcv, Table::Metrics, Table::Bars];

struct Part {
    assembler: Assembler,
    pending: Pending,
    /// Per feed of [`Feed::ROWS`] past the first: records of commits the table holds are still being skipped.
    skipping: [bool; TABLES],
    held: [Held; TABLES],
    /// Topics held back, in the order of [`FEEDS`].
    held_back: pace::Topics,
    /// The reading began from an offset that a table remembers, which is only a hint.
    hinted: bool,
    ledger_position: i64,
    last_flush: Instant,
}

impl Part {
    /// A partition whose tables hold `held` and whose feeds are read from these offsets.
    fn new(
        lake: &Lakehouse,
        partition: i32,
        held: [Held; TABLES],
        from: [i64; TABLES + 1],
    ) -> Result<Part, LakeError> {
        Ok(Part {
            assembler: Assembler::new(partition, held, [from[1], from[2], from[3], from[4]]),
            pending: Pending::new(lake, partition)?,
            skipping: [false, true, true, false],
            held,
            held_back: [false; TABLES + 1],
            hinted: false,
            ledger_position: from[0],
            last_flush: Instant::now(),
        })
    }
}

/// See the module above.
pub struct Sink {
    consumer: AttachedConsumer,
    watermarks: BaseConsumer,
    lake: Lakehouse,
    tables: [TableSink; TABLES],
    codec: Arc<Codec>,
    runtime: Handle,
    options: SinkOptions,
    status: Arc<Mutex<SinkStatus>>,
    observer: Box<dyn SinkObserver>,
    parts: BTreeMap<i32, Part>,
    batch: RecordBatch,
    due: Instant,
    failures: u32,
}

impl Sink {
    /// Opens the tables and makes the clients; joins nothing yet. `kafka.app_id` is the sink's consumer group.
    ///
    /// # Errors
    /// Those of [`TableSink::open`] and of the clients.
    pub fn new(
        kafka: &KafkaConfig,
        lake: Lakehouse,
        codec: Arc<Codec>,
        runtime: Handle,
        options: SinkOptions,
        observer: Box<dyn SinkObserver>,
    ) -> Result<Self, SinkError> {
        let names: Vec<String> = FEEDS.iter().map(|f| f.topic().to_owned()).collect();
        let consumer = AttachedConsumer::new(kafka, &kafka.app_id, &names)?;
        let mut client = rdkafka::ClientConfig::new();
        client.set("bootstrap.servers", &kafka.bootstrap);
        for (key, value) in &kafka.properties {
            client.set(key, value);
        }
        let watermarks = client
            .create()
            .map_err(|e| KafkaError::Fatal(format!("Kafka client of the sink: {e}")))?;
        let tables = runtime.block_on(async {
            Ok::<_, LakeError>([
                TableSink::open(&lake, Table::Ticks).await?,
                TableSink::open(&lake, Table::Ohlcv).await?,
                TableSink::open(&lake, Table::Metrics).await?,
                TableSink::open(&lake, Table::Bars).await?,
            ])
        })?;
        let tidied = lake.clone();
        runtime.spawn(async move {
            for table in FILLS {
                match tidied.tidy(table).await {
                    Ok(0) => {}
                    Ok(n) => tracing::info!(%table, n, "removed files that nothing refers to"),
                    Err(e) => {
                        tracing::warn!(%table, "looking for files that nothing refers to: {e}")
                    }
                }
            }
        });
        Ok(Self {
            consumer,
            watermarks,
            lake,
            tables,
            codec,
            runtime,
            due: Instant::now() + options.commit_interval,
            options,
            status: Arc::default(),
            observer,
            parts: BTreeMap::new(),
            batch: RecordBatch::new(),
            failures: 0,
        })
    }

    /// What it has reached; shared.
    pub fn status(&self) -> Arc<Mutex<SinkStatus>> {
        self.status.clone()
    }

    /// Runs until stopped or drained, or until a human is needed.
    ///
    /// # Errors
    /// [`SinkError`]: the books do not add up, a table moved, input is lost.
    pub fn run(&mut self, control: &SinkControl) -> Result<(), SinkError> {
        self.consumer.subscribe()?;
        loop {
            match self.turn(control) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => self.recover(error)?,
            }
        }
    }

    /// poll → feed → assemble → rebalance → maybe commit. True ends the sink. An event is answered before any failure
    /// of this turn is looked at: an unanswered one blocks the group, and this member's close.
    fn turn(&mut self, control: &SinkControl) -> Result<bool, SinkError> {
        let wait = self.due.saturating_duration_since(Instant::now());
        let mut batch = std::mem::take(&mut self.batch);
        batch.clear();
        let event = self.consumer.poll(
            &mut batch,
            PollLimits::default(),
            wait.min(Duration::from_millis(50)),
        );
        let taken = self.feed(&batch).and_then(|()| self.assemble());
        self.batch = batch;
        let stopping = control.stop.load(Ordering::Relaxed);
        match event? {
            Some(Event::Assigned(partitions)) => {
                self.consumer.accept_assigned()?;
                self.status.lock().joined = true;
                self.expect(&partitions)?;
                self.begin(&partitions, true)?;
            }
            // Until they are released they are ours: what is whole is committed. However that ends, they are
            // released, since the group waits for the answer.
            Some(Event::Revoked(partitions)) => {
                // After a failure rows may be half taken in: they are read again by whoever comes next.
                let committed = match &taken {
                    Ok(()) => self.commit(true),
                    Err(_) => Ok(()),
                };
                self.forget(&partitions);
                self.consumer.release(&partitions)?;
                committed?;
            }
            Some(Event::Lost(partitions)) => {
                self.forget(&partitions);
                self.consumer.release(&partitions)?;
            }
            None => {}
        }
        taken?;
        let drained = self.drained(control)?;
        let full =
            self.parts.values().map(|p| p.pending.rows()).sum::<usize>() >= self.options.max_rows;
        if full || stopping || drained || Instant::now() >= self.due {
            self.commit(stopping || drained)?;
        }
        if (stopping || drained) && control.leave.load(Ordering::Relaxed) {
            self.leave()?;
        }
        Ok(stopping || drained)
    }

    /// Leaves the group: polls until the partitions are revoked, so that others take over at once.
    fn leave(&mut self) -> Result<(), SinkError> {
        self.consumer.unsubscribe();
        let by = Instant::now() + Duration::from_secs(10);
        while !self.parts.is_empty() && Instant::now() < by {
            self.batch.clear();
            let polled = self.consumer.poll(
                &mut self.batch,
                PollLimits::default(),
                Duration::from_millis(50),
            )?;
            if let Some(Event::Revoked(partitions) | Event::Lost(partitions)) = polled {
                self.forget(&partitions);
                self.consumer.release(&partitions)?;
            }
        }
        Ok(())
    }

    fn forget(&mut self, partitions: &[i32]) {
        for p in partitions {
            self.parts.remove(p);
            self.status.lock().positions.remove(p);
        }
        for table in &mut self.tables {
            table.revoke(partitions);
        }
        // Else the frontier of what others go on with stays here as it was.
        self.publish();
    }

    /// Notes partitions as owned before they can be begun, so that a failure in between begins them again.
    fn expect(&mut self, partitions: &[i32]) -> Result<(), SinkError> {
        for &p in partitions {
            let part = Part::new(&self.lake, p, [Held::default(); TABLES], [0; TABLES + 1])?;
            self.parts.entry(p).or_insert(part);
        }
        Ok(())
    }

    /// Reads the positions that stand in the tables and begins there.
    fn begin(&mut self, partitions: &[i32], hints: bool) -> Result<(), SinkError> {
        if partitions.is_empty() {
            return Ok(());
        }
        let [a, b, c, d] = &mut self.tables;
        self.runtime.block_on(async {
            tokio::try_join!(
                a.assign(partitions),
                b.assign(partitions),
                c.assign(partitions),
                d.assign(partitions)
            )
        })?;
        for &partition in partitions {
            let held: [Held; TABLES] = std::array::from_fn(|i| {
                let at = self.tables[i]
                    .positions()
                    .get(&partition)
                    .copied()
                    .unwrap_or_default();
                Held {
                    commit: at.commit,
                    input_end: at.input_end,
                }
            });
            let (lows, highs) = self.bounds(partition)?;
            // The tables of inputs read on where they stand, or not at all.
            let mut inputs = [0; 2];
            for (next, (i, topic)) in inputs.iter_mut().zip(INPUTS) {
                let low = lows[i + 1];
                if held[i].commit > 0 && held[i].input_end < low {
                    return Err(SinkError::Lost {
                        topic,
                        table: FILLS[i],
                        partition,
                        held: held[i].input_end,
                        low,
                    });
                }
                *next = if held[i].commit > 0 {
                    held[i].input_end
                } else {
                    low
                };
            }
            let hint = if hints {
                self.hints(partition)
            } else {
                [None; TABLES + 1]
            };
            let at = |i: usize| {
                hint[i]
                    .filter(|next| (lows[i]..=highs[i]).contains(next))
                    .unwrap_or(lows[i])
            };
            let from = [at(0), inputs[0], at(2), at(3), inputs[1]];
            self.consumer.start(partition, &from)?;
            tracing::info!(
                partition,
                bronze = held[0].commit,
                silver = held[1].commit,
                gold = held[2].commit,
                "the sink goes on after these commits"
            );
            let mut part = Part::new(&self.lake, partition, held, from)?;
            part.hinted = [0, 2, 3].iter().any(|i| from[*i] > lows[*i]);
            self.parts.insert(partition, part);
        }
        self.publish();
        Ok(())
    }

    /// Where the tables say that reading goes on, per feed: hints, since a topic may have changed meanwhile. The
    /// ledger goes on where the table that is furthest behind left it.
    fn hints(&self, partition: i32) -> [Option<i64>; TABLES + 1] {
        let at: [Position; TABLES] = std::array::from_fn(|i| {
            self.tables[i]
                .positions()
                .get(&partition)
                .copied()
                .unwrap_or_default()
        });
        let ledger = at
            .iter()
            .map(|p| p.ledger_next)
            .try_fold(i64::MAX, |least, next| Some(least.min(next?)));
        [ledger, None, at[1].output_next, at[2].output_next, None]
    }

    /// First and next offset of each feed.
    fn bounds(&self, partition: i32) -> Result<([i64; TABLES + 1], [i64; TABLES + 1]), SinkError> {
        let (mut lows, mut highs) = ([0; TABLES + 1], [0; TABLES + 1]);
        for (i, feed) in FEEDS.into_iter().enumerate() {
            (lows[i], highs[i]) = self
                .watermarks
                .fetch_watermarks(feed.topic(), partition, Duration::from_secs(10))
                .map_err(|e| {
                    KafkaError::Retry(format!("watermarks of {}/{partition}: {e}", feed.topic()))
                })?;
        }
        Ok((lows, highs))
    }

    fn feed(&mut self, batch: &RecordBatch) -> Result<(), SinkError> {
        for run in batch.runs() {
            let feed = FEEDS[run.topic.index()];
            let Some(part) = self.parts.get_mut(&run.partition) else {
                continue; // fetched before the partition went
            };
            for r in batch.records(*run) {
                let value = r.value.unwrap_or_default();
                resolve(&self.codec, value, feed, &mut *self.observer)?;
                if feed == Feed::Ledger {
                    let entry: LedgerEntry = self.codec.decode_ledger(value).map_err(|e| {
                        AssembleError::Undecodable {
                            partition: run.partition,
                            topic: feed.topic(),
                            offset: r.offset,
                            message: e.to_string(),
                        }
                    })?;
                    part.ledger_position = r.offset + 1;
                    part.assembler.push_ledger(r.offset, entry)?;
                    continue;
                }
                let i = Feed::ROWS.iter().position(|f| *f == feed).unwrap_or(0);
                if part.skipping[i] {
                    if commit_of(&self.codec, feed, value).is_some_and(|c| c <= part.held[i].commit)
                    {
                        continue;
                    }
                    part.skipping[i] = false;
                }
                part.assembler.push(
                    feed,
                    Queued {
                        offset: r.offset,
                        timestamp_ms: r.timestamp_ms,
                        key: r.key,
                        value: r.value,
                    },
                );
            }
        }
        Ok(())
    }

    /// Takes every commit that is whole, and holds back partitions that run too far ahead of their ledger.
    fn assemble(&mut self) -> Result<(), SinkError> {
        for (&partition, part) in &mut self.parts {
            while part.pending.rows() < self.options.max_rows {
                let Some(ready) = part.assembler.ready()? else {
                    break;
                };
                part.pending.take(&self.codec, &part.assembler, ready)?;
                part.assembler.pop(ready);
                part.hinted = false;
            }
            let hold = pace::held_back(&part.assembler, part.held_back);
            if hold == part.held_back {
                continue;
            }
            let [ticks, ohlcv, metrics, bars] = part.assembler.reached();
            let next = [part.ledger_position, ticks, ohlcv, metrics, bars];
            for (topic, at) in (0u16..).zip(next) {
                let i = usize::from(topic);
                match (part.held_back[i], hold[i]) {
                    (false, true) => self.consumer.hold_input(TopicIdx(topic), partition)?,
                    (true, false) => self.consumer.start_input(TopicIdx(topic), partition, at)?,
                    _ => {}
                }
                part.held_back[i] = hold[i];
            }
        }
        Ok(())
    }

    /// Hands what is whole to the tables. `all`: heartbeats without rows too.
    fn commit(&mut self, all: bool) -> Result<(), SinkError> {
        self.due = Instant::now() + self.options.commit_interval;
        let mut batches: [SinkBatch; TABLES] = Default::default();
        let mut span: Option<(i64, i64)> = None;
        let mut rows = 0;
        for (&partition, part) in &mut self.parts {
            let overdue = part.last_flush.elapsed() >= self.options.frontier_interval;
            if part.pending.is_empty() || (part.pending.rows() == 0 && !all && !overdue) {
                continue;
            }
            part.last_flush = Instant::now();
            let pending =
                std::mem::replace(&mut part.pending, Pending::new(&self.lake, partition)?);
            rows += pending.rows();
            if let Some((old, new)) = pending.span_ms() {
                span = Some(span.map_or((old, new), |(o, n)| (o.min(old), n.max(new))));
            }
            for (batch, of_part) in batches.iter_mut().zip(pending.finish()) {
                batch.parts.extend(of_part);
            }
        }
        if batches.iter().all(|b| b.parts.is_empty()) {
            return Ok(());
        }
        let began = Instant::now();
        let [a, b, c, d] = &mut self.tables;
        let [w, x, y, z] = batches;
        let outcomes = self.runtime.block_on(async {
            let one = |table: Table, outcome: Result<Outcome, LakeError>| {
                outcome.map(|o| (table, o, began.elapsed()))
            };
            tokio::join!(
                async { one(Table::Ticks, commit_one(a, w).await) },
                async { one(Table::Ohlcv, commit_one(b, x).await) },
                async { one(Table::Metrics, commit_one(c, y).await) },
                async { one(Table::Bars, commit_one(d, z).await) },
            )
        });
        // Every table that has committed is told of, even if another has failed.
        let mut failed: Option<LakeError> = None;
        for outcome in [outcomes.0, outcomes.1, outcomes.2, outcomes.3] {
            match outcome {
                Ok((table, outcome, took)) => {
                    let mut status = self.status.lock();
                    status.snapshots[table as usize] += u64::from(outcome.snapshot.is_some());
                    status.lost_swaps += u64::from(outcome.lost_swaps);
                    drop(status);
                    self.observer.committed(table, &outcome, took);
                }
                // What needs a human goes before what a retry mends.
                Err(e) if failed.as_ref().is_none_or(LakeError::is_transient) => failed = Some(e),
                Err(_) => {}
            }
        }
        self.publish();
        if let Some(error) = failed {
            return Err(error.into());
        }
        self.failures = 0;
        if let Some((old, new)) = span {
            self.observer.whole(old, new, rows);
        }
        for (table, sink) in FILLS.into_iter().zip(&self.tables) {
            self.observer
                .shape(table, sink.live_files(), sink.hot_rows());
        }
        self.tell_tools();
        Ok(())
    }

    fn publish(&mut self) {
        let mut status = self.status.lock();
        let mut frontier: Option<i64> = None;
        for &partition in self.parts.keys() {
            let at: [Position; TABLES] = std::array::from_fn(|i| {
                self.tables[i]
                    .positions()
                    .get(&partition)
                    .copied()
                    .unwrap_or_default()
            });
            let whole = at.iter().map(|p| p.frontier).min().unwrap_or(0);
            frontier = Some(frontier.map_or(whole, |least| least.min(whole)));
            status.positions.insert(partition, at);
        }
        drop(status);
        self.observer.frontier(frontier.unwrap_or(0));
    }

    /// Consumer-group offsets, for lag tools alone.
    fn tell_tools(&self) {
        let mut all = Vec::new();
        for (&partition, part) in &self.parts {
            if let Some(mut offsets) = part.assembler.resume_offsets(part.ledger_position) {
                // Entries that were taken in and are not in the tables yet (heartbeats wait) are read again.
                offsets[0] = part.pending.first_entry().unwrap_or(offsets[0]);
                all.push((partition, offsets.to_vec()));
            }
        }
        if !all.is_empty()
            && let Err(e) = self.consumer.commit_for_tools(&all)
        {
            tracing::debug!("offsets for lag tools: {e}");
        }
    }

    fn drained(&mut self, control: &SinkControl) -> Result<bool, SinkError> {
        let goal = control.drain_to.lock();
        let Some(goal) = goal.as_ref() else {
            return Ok(false);
        };
        if self.parts.is_empty() && !self.status.lock().joined {
            return Ok(false);
        }
        let mut positions = Vec::new();
        for (&partition, part) in &mut self.parts {
            self.consumer.positions(partition, &mut positions)?;
            if let Some(at) = positions.first().copied().flatten() {
                part.ledger_position = part.ledger_position.max(at);
            }
            let end = goal.get(&partition).copied().unwrap_or(0);
            if part.ledger_position < end || part.assembler.entries_waiting() > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// After a failure the tables are read again: they alone say what they hold.
    fn recover(&mut self, error: SinkError) -> Result<(), SinkError> {
        let partitions: Vec<i32> = self.parts.keys().copied().collect();
        let hinted = self.parts.values().any(|p| p.hinted);
        let hints = match &error {
            SinkError::Books(AssembleError::CommitGap { .. } | AssembleError::Count { .. })
                if hinted =>
            {
                tracing::warn!(
                    "{error}; the offsets that the tables remember do not fit the topics, reading from the log start"
                );
                false
            }
            SinkError::Lake(e) if e.is_transient() || e.is_stale() => true,
            SinkError::Kafka(KafkaError::Retry(_) | KafkaError::Rejoin(_)) => true,
            _ => return Err(error),
        };
        self.failures += 1;
        self.observer.retried(&error.to_string());
        let pause = Duration::from_millis(100) * 2u32.pow(self.failures.min(7));
        tracing::warn!("{error}; the sink reads the tables again in {pause:?}");
        std::thread::sleep(pause);
        if self.failures > 20 {
            return Err(error);
        }
        self.parts.clear();
        for table in &mut self.tables {
            table.revoke(&partitions);
        }
        match self.begin(&partitions, hints) {
            Ok(()) => Ok(()),
            Err(again) => {
                self.expect(&partitions)?;
                for p in &partitions {
                    self.consumer.hold(*p)?;
                }
                self.recover(again)
            }
        }
    }
}

async fn commit_one(sink: &mut TableSink, batch: SinkBatch) -> Result<Outcome, LakeError> {
    if batch.parts.is_empty() {
        return Ok(Outcome::default());
    }
    sink.commit(batch).await
}

/// The commit number that an output record carries.
fn commit_of(codec: &Codec, feed: Feed, value: &[u8]) -> Option<i64> {
    match feed {
        Feed::Ohlcv => codec.decode_bar(value).ok().map(|b| b.commit),
        Feed::Metrics => codec.decode_metrics(value).ok().map(|m| m.commit),
        Feed::Ledger | Feed::Ticks | Feed::Bars => None,
    }
}

/// Resolves an unknown writer schema before the record is decoded; waits for the registry as long as it takes.
fn resolve(
    codec: &Codec,
    value: &[u8],
    feed: Feed,
    observer: &mut dyn SinkObserver,
) -> Result<(), SinkError> {
    let Some(id) = finlake_schemas::schema_id(value) else {
        return Ok(());
    };
    if codec.knows(id) {
        return Ok(());
    }
    match codec.resolve(id) {
        Ok(_) => Ok(()),
        Err(e) => {
            observer.retried(&e.to_string());
            Err(KafkaError::Retry(format!("schema {id} of {}: {e}", feed.topic())).into())
        }
    }
}
