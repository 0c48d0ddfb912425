//! `quality.breaks` the topic into `quality.breaks` the table, by its own offsets: the table
//! remembers where to read on, so nothing is taken twice and nothing is left out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use finlake_lakehouse::{BreakBatch, BreaksSink, LakeError, Lakehouse};
use finlake_schemas::{Codec, topics};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Message, Offset, TopicPartitionList};
use tokio::runtime::Handle;

use super::breaks::decode;
use crate::config::Config;
use crate::kafka::{self, Moves, Topic, is_passing};

/// Longest wait for Kafka's answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The thread that fills the table.
pub struct BreaksThread {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl BreaksThread {
    /// Starts it. It never stops the application: what fails is tried again, with a warning.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn start(
        config: &Config,
        lake: Lakehouse,
        codec: Arc<Codec>,
        runtime: Handle,
    ) -> Result<BreaksThread> {
        let group = format!("{}-breaks", config.kafka.application_id);
        let consumer = kafka::member(config, &group, topics::BREAKS)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (inner, every) = (stop.clone(), config.lake.commit_interval);
        let thread = std::thread::Builder::new()
            .name("breaks".into())
            .spawn(move || {
                let mut failures = 0u32;
                while !inner.load(Ordering::Relaxed) {
                    match follow(&consumer, &lake, &codec, &runtime, every, &inner) {
                        Ok(()) => return,
                        Err(e) => {
                            failures = (failures + 1).min(6);
                            tracing::warn!("quality.breaks: {e:#}; trying again");
                            // The group's assignment stands: what was owned is begun anew.
                            let owned = owned(&consumer);
                            consumer.context().noted.lock().push((true, owned));
                            std::thread::sleep(Duration::from_millis(200) * 2u32.pow(failures));
                        }
                    }
                }
            })?;
        Ok(BreaksThread { stop, thread })
    }

    /// Takes in what has been read, and ends.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.join().is_err() {
            tracing::error!("the writer of quality.breaks panicked; this is a bug");
        }
    }
}

fn owned(consumer: &BaseConsumer<Moves>) -> Vec<i32> {
    let Ok(list) = consumer.assignment() else {
        return Vec::new();
    };
    let elements = list.elements();
    elements.iter().map(|e| e.partition()).collect()
}

fn follow(
    consumer: &BaseConsumer<Moves>,
    lake: &Lakehouse,
    codec: &Codec,
    runtime: &Handle,
    every: Duration,
    stop: &AtomicBool,
) -> Result<()> {
    let mut sink = runtime.block_on(BreaksSink::open(lake))?;
    let mut batches: BTreeMap<i32, BreakBatch> = BTreeMap::new();
    let mut due = Instant::now() + every;
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            match message {
                Ok(m) => {
                    if let Some(batch) = batches.get_mut(&m.partition())
                        && m.offset() >= batch.next
                    {
                        batch.next = m.offset() + 1;
                        if let Some(value) = m.payload() {
                            let found = decode(codec, value)
                                .with_context(|| format!("{}:{}", m.partition(), m.offset()))?;
                            batch.records.push((m.offset(), found));
                        }
                    }
                }
                Err(e) if is_passing(&e) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let events = std::mem::take(&mut *consumer.context().noted.lock());
        for (came, partitions) in events {
            if came {
                runtime.block_on(sink.assign(&partitions))?;
                let mut starts = BTreeMap::new();
                for p in partitions {
                    let start = match sink.next_offset(p) {
                        Some(start) => start,
                        None => consumer.fetch_watermarks(topics::BREAKS, p, PATIENCE)?.0,
                    };
                    starts.insert(p, start);
                    batches.insert(p, empty(p, start));
                }
                begin(consumer, &starts)?;
            } else {
                sink.revoke(&partitions);
                batches.retain(|p, _| !partitions.contains(p));
            }
        }
        if stopping || Instant::now() >= due {
            due = Instant::now() + every;
            let full: Vec<BreakBatch> = batches
                .values_mut()
                .filter(|b| b.next > b.start)
                .map(|b| {
                    let next = empty(b.partition, b.next);
                    std::mem::replace(b, next)
                })
                .collect();
            if !full.is_empty() {
                runtime.block_on(sink.apply(full))?;
            }
        }
        if stopping {
            return Ok(());
        }
    }
}

/// Reading begins at these offsets. The client takes a moment to start with partitions that have just come, and refuses
/// to seek them before.
fn begin(consumer: &BaseConsumer<Moves>, starts: &BTreeMap<i32, i64>) -> Result<()> {
    let by = Instant::now() + PATIENCE;
    let mut left: Vec<i32> = starts.keys().copied().collect();
    while !left.is_empty() {
        let mut list = TopicPartitionList::new();
        for p in &left {
            list.add_partition_offset(topics::BREAKS, *p, Offset::Offset(starts[p]))?;
        }
        left.clear();
        for at in consumer.seek_partitions(list, PATIENCE)?.elements() {
            match at.error() {
                Ok(()) => {}
                Err(e) if e.rdkafka_error_code() == Some(RDKafkaErrorCode::State) => {
                    if Instant::now() > by {
                        bail!("partition {} is not being read: {e}", at.partition());
                    }
                    left.push(at.partition());
                }
                Err(e) => return Err(e.into()),
            }
        }
        if !left.is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

/// Takes all that the topic holds now into the table, joining no group: what `--until-caught-up` promises. Another
/// instance may do the same meanwhile; the table takes nothing twice.
///
/// # Errors
/// Kafka, catalog or storage; a record that is not a break.
pub fn sink_all(config: &Config, lake: &Lakehouse, codec: &Codec, runtime: &Handle) -> Result<()> {
    let topic = Topic::open(config, topics::BREAKS)?;
    let mut left = 5;
    loop {
        match sink_once(&topic, lake, codec, runtime) {
            Err(e) if left > 0 && e.downcast_ref::<LakeError>().is_some_and(passes) => left -= 1,
            outcome => return outcome,
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn passes(e: &LakeError) -> bool {
    e.is_transient() || e.is_stale()
}

fn sink_once(topic: &Topic, lake: &Lakehouse, codec: &Codec, runtime: &Handle) -> Result<()> {
    let bounds = topic.bounds()?;
    let partitions: Vec<i32> = bounds.keys().copied().collect();
    let mut sink = runtime.block_on(BreaksSink::open(lake))?;
    runtime.block_on(sink.assign(&partitions))?;
    let mut batches = BTreeMap::new();
    let mut ranges = BTreeMap::new();
    for (p, (low, high)) in bounds {
        let start = sink.next_offset(p).unwrap_or(low);
        ranges.insert(p, (start.max(low), high));
        if start < high {
            let next = high;
            batches.insert(
                p,
                BreakBatch {
                    next,
                    ..empty(p, start)
                },
            );
        }
    }
    topic.read(&ranges, |m| {
        if let (Some(batch), Some(value)) = (batches.get_mut(&m.partition), m.value) {
            let at = || format!("{}/{}:{}", topics::BREAKS, m.partition, m.offset);
            let found = decode(codec, value).with_context(at)?;
            batch.records.push((m.offset, found));
        }
        Ok(true)
    })?;
    if !batches.is_empty() {
        runtime.block_on(sink.apply(batches.into_values().collect()))?;
    }
    Ok(())
}

fn empty(partition: i32, start: i64) -> BreakBatch {
    BreakBatch {
        partition,
        start,
        next: start,
        records: Vec::new(),
    }
}
