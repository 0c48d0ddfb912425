//! `finlake run --roles audit`: a consumer group of its own on the ledger, in which one instance is active.
//!
//! 0. until it is active: stand by (`seat.rs`)
//! 1. poll; fold every entry (INV-11, INV-12)
//! 2. every few commits of the tables: compare the rows of their snapshots, and of the whole tables, with the ledger's
//!    totals (INV-13), write what is new as breaks, and keep the state with the offsets
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
use finlake_schemas::{Codec, topics};
use finlake_topology::kafka::Member;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Message, Offset};
use tokio::runtime::Handle;

use super::auditor::{Auditor, Unlike};
use super::seat::{self, Turn, Turns};
use crate::config::Config;
use crate::kafka::{self, Topic, is_passing};
use crate::serve::metrics::Metrics;

/// Between two looks at the tables: so many commit intervals, and at least this. A look reads the metadata of each table,
/// which costs as much however little has happened; no snapshot expires as fast.
const COMMITS: u32 = 6;
const EVERY: Duration = Duration::from_secs(30);
/// Longest wait for the ledger. Each is a wake-up.
const WAIT: Duration = Duration::from_millis(500);
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
        metrics.audit_active(false);
        let mut worker = Worker {
            consumer: Arc::new(seat::join(config)?),
            auditor: Auditor::new(config, codec, lake, metrics.clone(), runtime)?,
            metrics,
            seat: Seat::Empty,
            unable: BTreeSet::new(),
            every: EVERY.max(config.lake.commit_interval * COMMITS),
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

/// What this instance does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seat {
    /// Nothing: it stands by, or the group has not chosen yet.
    Empty,
    /// It was chosen, and has not read the kept states yet.
    Due,
    Active,
}

struct Worker {
    consumer: Arc<Member<Turns>>,
    auditor: Auditor,
    metrics: Arc<Metrics>,
    seat: Seat,
    /// Tables that could not be compared at the last look.
    unable: BTreeSet<String>,
    /// Between two looks.
    every: Duration,
}

impl Worker {
    fn run(&mut self, control: &AuditControl) -> Result<()> {
        let mut due = Instant::now() + self.every;
        let mut pause = Duration::from_millis(500);
        loop {
            let stopping = control.stop.load(Ordering::Relaxed);
            let polled = self.poll();
            self.auditor.show();
            match polled {
                Ok(()) => pause = Duration::from_millis(500),
                // The pipeline does not stop because its audit cannot read.
                Err(e) => {
                    tracing::warn!("audit: {e:#}; it reads on in {pause:?}");
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_secs(30));
                    self.seek_back();
                }
            }
            let is_due = stopping || Instant::now() >= due;
            if is_due {
                due = Instant::now() + self.every;
            }
            if is_due && self.seat == Seat::Active {
                let unlike = self.auditor.look();
                self.complain(unlike);
                match self.auditor.tell() {
                    Ok(()) => seat::keep(&self.consumer, &self.auditor),
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
        let mut wait = WAIT;
        for _ in 0..10_000 {
            let polled = consumer.poll(wait);
            // Before the record: what was polled before a change of turn is not part of what comes after it.
            if let Some(turn) = consumer.context().take() {
                self.turn(turn);
            }
            let taken_over = self.seat == Seat::Due;
            if taken_over {
                self.take_over()?;
            }
            let message = match polled {
                None => return Ok(()),
                Some(Ok(message)) => message,
                Some(Err(e)) if is_passing(&e) => return Ok(()),
                Some(Err(e)) => return Err(e).context("reading the ledger"),
            };
            wait = Duration::ZERO;
            if taken_over || self.seat != Seat::Active {
                continue;
            }
            let value = message.payload().unwrap_or_default();
            self.auditor
                .entry(message.partition(), message.offset(), value)?;
        }
        Ok(())
    }

    /// The group has chosen, or does so anew.
    fn turn(&mut self, turn: Turn) {
        if self.seat == Seat::Active {
            self.auditor.forget();
            self.unable.clear();
        }
        self.metrics.audit_active(false);
        self.seat = match turn {
            Turn::Active => Seat::Due,
            Turn::StandBy => {
                tracing::info!("audit: stands by; another instance of the application is active");
                Seat::Empty
            }
            Turn::Over => Seat::Empty,
        };
    }

    /// From where another instance, or this one before, has got to.
    fn take_over(&mut self) -> Result<()> {
        // Where the tables stand: entries below that need not be remembered. Nothing is known yet to compare them with.
        self.auditor.look();
        seat::take_over(&self.consumer, &mut self.auditor)?;
        self.seat = Seat::Active;
        self.metrics.audit_active(true);
        tracing::info!("audit: active; it reads all partitions of the ledger");
        Ok(())
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
    let mut client = kafka::reader(config, &seat::group(config));
    client.remove("auto.offset.reset");
    let consumer: BaseConsumer = client.create()?;
    let mut auditor = Auditor::new(config, codec, lake, metrics, runtime)?;
    let from = seat::begin(&consumer, &bounds, &mut auditor)?;
    let mut ranges: BTreeMap<i32, (i64, i64)> = BTreeMap::new();
    for ((p, from), (_, high)) in from.into_iter().zip(bounds.into_values()) {
        ranges.insert(p, (from, high));
    }
    let by = Instant::now() + PATIENCE;
    let unlike = loop {
        topic.read(&ranges, |m| {
            auditor.entry(m.partition, m.offset, m.value.unwrap_or_default())?;
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
    seat::keep(&consumer, &auditor);
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
