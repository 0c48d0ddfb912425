//! `finlake run --roles audit`: a consumer group of its own on the ledger.
//!
//! 1. poll; fold every entry (INV-11, INV-12)
//! 2. every half minute: compare the tables' row counts with the ledger's totals at the tables' own positions
//!    (INV-13), write what is new as breaks, and keep the state with the offsets
//!
//! The state of each partition lies in the group's offset metadata. With `--until-caught-up` no group is joined: the
//! ledger is read from there to its end, once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use finlake_lakehouse::{Lakehouse, Table};
use finlake_reconcile::TaskAudit;
use finlake_schemas::{Codec, topics};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::{Message, Offset, TopicPartitionList};
use tokio::runtime::Handle;

use super::auditor::{Auditor, Unlike};
use crate::config::Config;
use crate::kafka::{self, Moves, Topic, is_passing};
use crate::serve::metrics::Metrics;

/// Between two looks at the tables.
const EVERY: Duration = Duration::from_secs(30);
/// How long a single pass follows tables that a running sink moves on.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// The audit's consumer group.
fn group(config: &Config) -> String {
    format!("{}-audit", config.kafka.application_id)
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
        let consumer = kafka::member(config, &group(config), topics::LEDGER)?;
        let mut worker = Worker {
            consumer: Arc::new(consumer),
            auditor: Auditor::new(config, codec, lake, metrics, runtime)?,
            unable: BTreeSet::new(),
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

struct Worker {
    consumer: Arc<BaseConsumer<Moves>>,
    auditor: Auditor,
    /// Tables that could not be compared at the last look.
    unable: BTreeSet<String>,
}

impl Worker {
    fn run(&mut self, control: &AuditControl) -> Result<()> {
        let mut due = Instant::now() + EVERY;
        let mut pause = Duration::from_millis(500);
        loop {
            let stopping = control.stop.load(Ordering::Relaxed);
            match self.poll() {
                Ok(()) => pause = Duration::from_millis(500),
                // The pipeline does not stop because its audit cannot read.
                Err(e) => {
                    tracing::warn!("audit: {e:#}; it reads on in {pause:?}");
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_secs(30));
                    self.seek_back();
                }
            }
            if stopping || Instant::now() >= due {
                due = Instant::now() + EVERY;
                let unlike = self.auditor.look();
                self.complain(unlike);
                match self.auditor.tell() {
                    Ok(()) => keep(&self.consumer, &self.auditor),
                    // What was found is told the next time; a restart finds it again.
                    Err(e) => tracing::warn!("audit: breaks were not written: {e:#}"),
                }
            }
            if stopping {
                return Ok(());
            }
        }
    }

    /// What was polled and not folded is read again.
    fn seek_back(&self) {
        for (p, next) in self.auditor.positions() {
            let at = match next {
                0 => Offset::Beginning,
                next => Offset::Offset(next),
            };
            if let Err(e) = self
                .consumer
                .seek(topics::LEDGER, p, at, Duration::from_secs(10))
            {
                tracing::debug!("audit: partition {p}: {e}");
            }
        }
    }

    /// Says once of each table that it cannot be compared, until it can.
    fn complain(&mut self, unlike: Vec<(Table, Unlike)>) {
        let mut unable = BTreeSet::new();
        for (table, why) in unlike {
            let Unlike::Unknown(why) = why else { continue };
            let name = table.to_string();
            if !self.unable.contains(&name) {
                tracing::warn!(
                    "audit: the rows of {table} are not compared with the ledger (INV-13): {why}"
                );
            }
            unable.insert(name);
        }
        self.unable = unable;
    }

    /// Folds what has come; waits a little if there is nothing.
    fn poll(&mut self) -> Result<()> {
        let consumer = self.consumer.clone();
        let mut wait = Duration::from_millis(200);
        for _ in 0..10_000 {
            let polled = consumer.poll(wait);
            // Before the record: it may be the first one of a partition that has just come.
            let sought = self.rebalanced()?;
            let message = match polled {
                None => return Ok(()),
                Some(Ok(message)) => message,
                Some(Err(e)) if is_passing(&e) => return Ok(()),
                Some(Err(e)) => return Err(e).context("reading the ledger"),
            };
            wait = Duration::ZERO;
            if sought.contains(&message.partition()) {
                continue;
            }
            let value = message.payload().unwrap_or_default();
            self.auditor
                .entry(message.partition(), message.offset(), value)?;
        }
        Ok(())
    }

    /// Takes over the state of partitions that came, forgets those that went. Gives those that are read from their
    /// beginning instead of their offset.
    fn rebalanced(&mut self) -> Result<Vec<i32>> {
        let mut sought = Vec::new();
        loop {
            // An event is gone only when it has been answered.
            let event = self.consumer.context().0.lock().first().cloned();
            let Some((came, partitions)) = event else {
                return Ok(sought);
            };
            if came {
                self.take_over(&partitions, &mut sought)?;
            } else {
                partitions.iter().for_each(|p| self.auditor.forget(*p));
            }
            self.consumer.context().0.lock().remove(0);
        }
    }

    fn take_over(&mut self, partitions: &[i32], sought: &mut Vec<i32>) -> Result<()> {
        let mut kept = kept(&*self.consumer, partitions)?;
        for &p in partitions {
            let (low, _) =
                self.consumer
                    .fetch_watermarks(topics::LEDGER, p, Duration::from_secs(10))?;
            let kept = kept.remove(&p);
            if let Some((_, None)) = kept {
                let wait = Duration::from_secs(10);
                self.consumer
                    .seek(topics::LEDGER, p, Offset::Beginning, wait)?;
                sought.push(p);
            }
            let state = kept.and_then(|(next, state)| Some((next, state?)));
            self.auditor.begin(p, state, low);
        }
        Ok(())
    }
}

/// What the group keeps, of those partitions that have something: an offset, and the state at it if it is readable.
fn kept<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[i32],
) -> Result<BTreeMap<i32, (i64, Option<TaskAudit>)>> {
    let mut list = TopicPartitionList::new();
    for p in partitions {
        list.add_partition(topics::LEDGER, *p);
    }
    let committed = consumer
        .committed_offsets(list, Duration::from_secs(10))
        .context("state of the audit")?;
    let mut out = BTreeMap::new();
    for element in committed.elements() {
        let (p, text) = (element.partition(), element.metadata());
        let Offset::Offset(next) = element.offset() else {
            continue;
        };
        let state = TaskAudit::decode(text).map_err(|e| tracing::warn!("partition {p}: {e}"));
        out.insert(p, (next, state.ok()));
    }
    Ok(out)
}

/// Keeps what may be kept. Not doing so costs reading it again.
fn keep<C: ConsumerContext>(consumer: &BaseConsumer<C>, auditor: &Auditor) {
    let list = auditor.marks();
    if list.count() > 0
        && let Err(e) = consumer.commit(&list, CommitMode::Sync)
    {
        tracing::debug!("audit: offsets: {e}");
    }
}

/// What a single pass came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audited {
    /// Ledger entries read.
    pub entries: u64,
    /// Breaks that are open: found now, or by the audit before and neither explained nor resolved since.
    pub open: usize,
    /// Why a table could not be compared.
    pub unchecked: Vec<String>,
}

/// One pass over the ledger up to its end at the start, from where the group's state is to there; compares the tables
/// as they are then, and writes breaks.
///
/// # Errors
/// Kafka, its registry, or breaks that could not be written; a table that cannot be read is `unchecked`.
pub fn once(
    config: &Config,
    codec: Arc<Codec>,
    lake: Lakehouse,
    metrics: Arc<Metrics>,
    runtime: Handle,
) -> Result<Audited> {
    let topic = Topic::open(config, topics::LEDGER)?;
    let bounds = topic.bounds()?;
    let mut client = kafka::reader(config, &group(config));
    client.remove("auto.offset.reset");
    let consumer: BaseConsumer = client.create()?;
    let partitions: Vec<i32> = bounds.keys().copied().collect();
    let mut kept = kept(&consumer, &partitions)?;
    let mut auditor = Auditor::new(config, codec, lake, metrics, runtime)?;
    let mut ranges = BTreeMap::new();
    for (&p, &(low, high)) in &bounds {
        // A state from before the ledger's first record that is left is of no use.
        let state = match kept.remove(&p) {
            Some((next, Some(state))) if (low..=high).contains(&next) => Some((next, state)),
            _ => None,
        };
        let from = state.as_ref().map_or(low, |(next, _)| *next);
        auditor.begin(p, state, low);
        ranges.insert(p, (from, high));
    }
    let by = Instant::now() + PATIENCE;
    let unlike = loop {
        topic.read(&ranges, |m| {
            auditor.entry(m.partition(), m.offset(), m.payload().unwrap_or_default())?;
            Ok(true)
        })?;
        let unlike = auditor.look();
        let ahead = unlike.iter().any(|(_, u)| matches!(u, Unlike::Ahead));
        if !ahead || Instant::now() > by {
            break unlike;
        }
        // A sink is running: the tables hold what came since.
        std::thread::sleep(Duration::from_millis(100));
        for (p, (_, high)) in topic.bounds()? {
            let from = ranges.get(&p).map_or(0, |(_, to)| *to);
            ranges.insert(p, (from, high));
        }
    };
    auditor.tell()?;
    keep(&consumer, &auditor);
    let why = |(table, unlike)| match unlike {
        Unlike::Ahead => format!("{table} holds commits that the ledger does not show yet"),
        Unlike::Unknown(why) => why,
    };
    Ok(Audited {
        entries: auditor.entries(),
        open: auditor.open(),
        unchecked: unlike.into_iter().map(why).collect(),
    })
}
