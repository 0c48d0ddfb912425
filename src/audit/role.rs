//! `finlake run --roles audit`: a consumer group of its own on the ledger.
//!
//! 1. poll; fold every entry (INV-11, INV-12)
//! 2. every ten seconds: compare the tables' row counts with the ledger's totals at the tables'
//!    own positions (INV-13), send what is new as breaks, and keep the state with the offsets
//!
//! The state of each partition lies in the group's offset metadata, so a restart goes on with the
//! entry after the last one folded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use finlake_lakehouse::{LakeError, Lakehouse, Table};
use finlake_reconcile::counts::{self, Of};
use finlake_reconcile::{Findings, Layer, LedgerAudit, TaskAudit};
use finlake_schemas::{Break, BreakStatus, Codec, topics};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Message, Offset, TopicPartitionList};
use tokio::runtime::Handle;

use super::breaks::{Known, Publisher};
use crate::config::Config;
use crate::kafka::{self, Moves, is_passing};
use crate::serve::metrics::Metrics;

/// Between two looks at the tables.
const EVERY: Duration = Duration::from_secs(10);
/// Entries remembered per partition: the tables must be found within them.
const REMEMBERED: usize = 50_000;
/// Greatest size of offset metadata that brokers take by default.
const METADATA: usize = 4_000;
/// Found by.
const NAME: &str = "audit";

/// Ends the audit from outside.
#[derive(Debug, Default)]
pub struct AuditControl {
    pub stop: AtomicBool,
}

/// A running audit.
pub struct Audit {
    pub control: Arc<AuditControl>,
    thread: JoinHandle<Result<(), String>>,
}

impl Audit {
    /// Starts its thread.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn start(
        config: &Config,
        codec: Arc<Codec>,
        lake: Lakehouse,
        metrics: Arc<Metrics>,
        runtime: Handle,
    ) -> Result<Audit> {
        let group = format!("{}-audit", config.kafka.application_id);
        let consumer = kafka::member(config, &group, topics::LEDGER)?;
        let mut worker = Worker {
            consumer,
            publisher: Publisher::open(config)?,
            config: config.clone(),
            codec,
            lake,
            metrics,
            runtime,
            audit: LedgerAudit::new(),
            lines: BTreeMap::new(),
            next: BTreeMap::new(),
            told: None,
        };
        let control = Arc::new(AuditControl::default());
        let inner = control.clone();
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || worker.run(&inner).map_err(|e| format!("{e:#}")))?;
        Ok(Audit { control, thread })
    }

    /// Asks it to keep its state and stop.
    pub fn stop(&self) {
        self.control.stop.store(true, Ordering::Relaxed);
    }

    /// Whether its thread has ended.
    pub fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for it.
    ///
    /// # Errors
    /// What ended it.
    pub fn join(self) -> Result<()> {
        match self.thread.join() {
            Ok(outcome) => outcome.map_err(|e| anyhow!(e).context("audit")),
            Err(_) => Err(anyhow!("the audit panicked; this is a bug")),
        }
    }
}

/// Which rows of a line.
type Rows = fn(&Line) -> i64;

/// What the tables must hold after a commit.
#[derive(Clone, Copy)]
struct Line {
    commit: i64,
    ticks: i64,
    bars: i64,
    metrics: i64,
    corrected: i64,
}

impl Line {
    /// `None` if the audit has not seen every entry, so that it knows no totals.
    fn of(state: &TaskAudit) -> Option<Line> {
        let total = |name: &str| state.totals.get(name).copied().unwrap_or(0);
        let taken = |name: &str| state.taken.get(name).copied().unwrap_or(0);
        state.whole.then(|| Line {
            commit: state.commit,
            ticks: taken(topics::TICKS),
            bars: total(topics::OHLCV),
            metrics: total(topics::METRICS),
            corrected: taken(topics::BARS),
        })
    }
}

struct Worker {
    consumer: BaseConsumer<Moves>,
    publisher: Publisher,
    config: Config,
    codec: Arc<Codec>,
    lake: Lakehouse,
    metrics: Arc<Metrics>,
    runtime: Handle,
    audit: LedgerAudit,
    lines: BTreeMap<i32, VecDeque<Line>>,
    /// Ledger offset after the last entry folded.
    next: BTreeMap<i32, i64>,
    /// Breaks that are known as open; `None` until they were read.
    told: Option<BTreeSet<[u8; 16]>>,
}

impl Worker {
    fn run(&mut self, control: &AuditControl) -> Result<()> {
        let mut found = Findings::default();
        let mut due = Instant::now() + EVERY;
        loop {
            let stopping = control.stop.load(Ordering::Relaxed);
            self.poll(&mut found)?;
            self.rebalanced()?;
            if stopping || Instant::now() >= due {
                due = Instant::now() + EVERY;
                self.tables(&mut found);
                self.tell(std::mem::take(&mut found));
                self.keep();
            }
            if stopping {
                return Ok(());
            }
        }
    }

    /// Folds what has come; waits a little if there is nothing.
    fn poll(&mut self, found: &mut Findings) -> Result<()> {
        let mut wait = Duration::from_millis(200);
        for _ in 0..10_000 {
            let message = match self.consumer.poll(wait) {
                None => return Ok(()),
                Some(Ok(message)) => message,
                Some(Err(e)) if is_passing(&e) => return Ok(()),
                Some(Err(e)) => return Err(e).context("reading the ledger"),
            };
            wait = Duration::ZERO;
            let (partition, offset) = (message.partition(), message.offset());
            let value = message.payload().unwrap_or_default();
            if let Some(id) = finlake_schemas::schema_id(value)
                && !self.codec.knows(id)
            {
                self.codec.resolve(id)?;
            }
            let entry = self
                .codec
                .decode_ledger(value)
                .with_context(|| format!("{}/{partition}:{offset}", topics::LEDGER))?;
            self.next.insert(partition, offset + 1);
            if !self.audit.push(&entry, value, found) {
                continue;
            }
            self.metrics.audit_entry(partition, entry.commit);
            if let Some(line) = self.audit.task(entry.task).and_then(Line::of) {
                let lines = self.lines.entry(entry.task).or_default();
                lines.push_back(line);
                if lines.len() > REMEMBERED {
                    lines.pop_front();
                }
            }
        }
        Ok(())
    }

    /// Takes over the state of partitions that came, forgets those that went.
    fn rebalanced(&mut self) -> Result<()> {
        let events = std::mem::take(&mut *self.consumer.context().0.lock());
        for (came, partitions) in events {
            if !came {
                for p in partitions {
                    self.audit.forget(p);
                    self.lines.remove(&p);
                    self.next.remove(&p);
                }
                continue;
            }
            let mut list = TopicPartitionList::new();
            for p in &partitions {
                list.add_partition(topics::LEDGER, *p);
            }
            let committed = self
                .consumer
                .committed_offsets(list, Duration::from_secs(10))
                .context("state of the audit")?;
            for element in committed.elements() {
                let text = element.metadata();
                if text.is_empty() || self.audit.task(element.partition()).is_some() {
                    continue;
                }
                match TaskAudit::decode(text) {
                    Ok(state) => {
                        let line = Line::of(&state);
                        self.lines
                            .insert(element.partition(), line.into_iter().collect());
                        self.audit.resume(element.partition(), state);
                    }
                    Err(e) => tracing::warn!("partition {}: {e}", element.partition()),
                }
            }
        }
        Ok(())
    }

    /// INV-13 by totals: rows of each table against the ledger at the table's own positions.
    fn tables(&self, found: &mut Findings) {
        let (ticks, bars, metrics): (Rows, Rows, Rows) = (|l| l.ticks, |l| l.bars, |l| l.metrics);
        for (table, layer, of) in [
            (Table::Ticks, Layer::Bronze, ticks),
            (Table::Ohlcv, Layer::Silver, bars),
            (Table::Metrics, Layer::Gold, metrics),
        ] {
            match self.table(table, layer, of, found) {
                Ok(()) => {}
                // The sink says the same, and louder.
                Err(e @ LakeError::TableMoved { .. }) => tracing::warn!("audit: {e}"),
                Err(e) => tracing::debug!("audit: {e}"),
            }
        }
    }

    fn table(
        &self,
        table: Table,
        layer: Layer,
        of: Rows,
        found: &mut Findings,
    ) -> Result<(), LakeError> {
        let pinned = self.runtime.block_on(self.lake.snapshot(table))?;
        let (mut expected, mut slack) = (0, 0);
        for (p, position) in &pinned.watermarks().positions {
            if position.commit == 0 {
                continue;
            }
            // Another instance audits this partition, or the table is ahead of what was read.
            let Some(lines) = self.lines.get(p) else {
                return Ok(());
            };
            let at = lines.partition_point(|l| l.commit < position.commit);
            match lines.get(at) {
                Some(line) if line.commit == position.commit => {
                    expected += of(line);
                    slack += line.corrected;
                }
                _ => return Ok(()),
            }
        }
        let rows = pinned
            .metadata()
            .current_snapshot()
            .and_then(|s| s.summary().additional_properties.get("total-records"))
            .and_then(|n| n.parse::<i64>().ok())
            .unwrap_or(0);
        let name = table.to_string();
        self.metrics.audit_table(&name, rows - expected);
        let of = Of {
            layer,
            table: &name,
        };
        // Only versions can be taken back.
        let slack = if table.versioned() { slack } else { 0 };
        counts::totals(of, pinned.snapshot_id(), expected, rows, slack, found);
        Ok(())
    }

    /// Findings as metrics, log lines and breaks, each once.
    fn tell(&mut self, found: Findings) {
        if found.is_empty() {
            return;
        }
        if self.told.is_none() {
            match Known::read(&self.config, &self.codec) {
                Ok(known) => {
                    let open = known.values().filter(|b| b.status != BreakStatus::Resolved);
                    self.told = Some(open.map(|b| b.break_id).collect());
                }
                Err(e) => tracing::warn!("audit: known breaks: {e:#}"),
            }
        }
        let told = self.told.get_or_insert_with(BTreeSet::new);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_micros() as i64);
        let mut new: Vec<Break> = Vec::new();
        for finding in found.list() {
            if told.insert(finding.id()) {
                self.metrics
                    .audit_finding(finding.kind.as_str(), finding.layer.as_str());
                tracing::error!(
                    kind = finding.kind.as_str(),
                    key = finding.key,
                    cause = finding.cause,
                    expected = finding.expected,
                    actual = finding.actual,
                    "audit: {}",
                    finding.detail
                );
                new.push(finding.to_break(NAME, now));
            }
        }
        if let Err(e) = self.publisher.send(&self.codec, &new) {
            tracing::warn!("audit: breaks were not written: {e:#}");
            for b in &new {
                told.remove(&b.break_id);
            }
        }
    }

    /// Offsets with the state of each partition.
    fn keep(&self) {
        let mut list = TopicPartitionList::new();
        for (p, next) in &self.next {
            let Some(state) = self.audit.task(*p) else {
                continue;
            };
            let text = state.encode();
            let mut element = list.add_partition(topics::LEDGER, *p);
            if element.set_offset(Offset::Offset(*next)).is_ok() && text.len() <= METADATA {
                element.set_metadata(text.as_str());
            }
        }
        if list.count() == 0 {
            return;
        }
        if let Err(e) = self.consumer.commit(&list, CommitMode::Sync) {
            tracing::debug!("audit: offsets: {e}");
        }
    }
}
