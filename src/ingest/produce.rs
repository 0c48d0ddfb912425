//! Trades into Kafka. One thread: read, encode, hand to librdkafka, look at deliveries.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use finlake_schemas::Codec;
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use super::files::{InputError, Inputs};
use super::{IngestError, IngestOptions, Position, Progress, Summary};

/// Reported broken lines kept in a summary; all are counted.
const KEPT_ISSUES: usize = 100;
/// Trades between two looks at the clock and the progress.
const STRIDE: u64 = 1_000;

/// Where encoded trades go.
pub trait Out {
    /// Takes one record; it may still be on its way when this returns.
    ///
    /// # Errors
    /// An earlier record could not be delivered, or this one cannot be.
    fn send(&mut self, key: &[u8], value: &[u8]) -> Result<(), IngestError>;

    /// Waits until every record has been acknowledged.
    ///
    /// # Errors
    /// One of them was not.
    fn finish(&mut self) -> Result<(), IngestError>;
}

/// Reads all inputs, sends their trades, waits for the acknowledgements. Blocks.
///
/// # Errors
/// See [`IngestError`]. Trades sent before an error stay sent; sending them again is harmless,
/// since the pipeline knows a trade by its id.
pub fn run(
    mut inputs: Inputs,
    codec: &Codec,
    out: &mut dyn Out,
    options: &IngestOptions,
    progress: &mut dyn Progress,
) -> Result<Summary, IngestError> {
    let mut summary = Summary::default();
    let (mut key, mut value) = (Vec::new(), Vec::new());
    let mut pace = options.rate.map(Pace::new);
    while options.limit.is_none_or(|limit| summary.trades < limit) {
        let trade = match inputs.next() {
            None => break,
            Some(Ok(trade)) => trade,
            Some(Err(InputError::Fatal(e))) => return Err(e),
            Some(Err(InputError::Line(issue))) => {
                progress.issue(&issue);
                if options.strict {
                    // What was sent is delivered first: the count said so far must be true.
                    out.finish()?;
                    return Err(IngestError::Strict(issue));
                }
                summary.broken += 1;
                if summary.issues.len() < KEPT_ISSUES {
                    summary.issues.push(issue);
                }
                continue;
            }
        };
        if let Some(pace) = &mut pace {
            pace.wait();
        }
        let tick = trade.tick();
        key.clear();
        tick.key(&mut key);
        value.clear();
        codec
            .encode_tick(&tick, 2, &mut value)
            .map_err(|error| IngestError::Encode {
                symbol: tick.symbol.to_owned(),
                trade_id: tick.trade_id,
                error,
            })?;
        out.send(&key, &value)?;
        summary.trades += 1;
        summary.first_time.get_or_insert(trade.trade_time);
        summary.last_time = Some(trade.trade_time);
        if summary.trades % STRIDE == 0 {
            progress.position(position(&inputs, &summary));
        }
    }
    out.finish()?;
    progress.position(position(&inputs, &summary));
    summary.lines = inputs.lines();
    summary.skipped = inputs.skipped();
    Ok(summary)
}

fn position(inputs: &Inputs, summary: &Summary) -> Position {
    Position {
        trades: summary.trades,
        bytes_read: inputs.bytes_read(),
        bytes_total: inputs.bytes_total(),
        trade_time: summary.last_time.unwrap_or_default(),
    }
}

/// Holds the sender to a number of trades per second, without catching up after a stall.
struct Pace {
    every: Duration,
    due: Instant,
}

impl Pace {
    fn new(rate: u32) -> Pace {
        Pace {
            every: Duration::from_secs(1) / rate.max(1),
            due: Instant::now(),
        }
    }

    fn wait(&mut self) {
        /// Sleeping for less than this costs more than it keeps.
        const GRAIN: Duration = Duration::from_millis(1);
        let now = Instant::now();
        match self.due.checked_duration_since(now) {
            Some(early) if early >= GRAIN => std::thread::sleep(early),
            Some(_) => {}
            None if now - self.due > Duration::from_secs(1) => self.due = now,
            None => {}
        }
        self.due += self.every;
    }
}

/// An idempotent Kafka producer with the same key → partition function as the Java clients.
pub struct KafkaOut {
    producer: BaseProducer<Deliveries>,
    topic: String,
}

/// Counts what came back; shared with librdkafka's callbacks.
#[derive(Clone, Default)]
struct Deliveries {
    failed: Arc<AtomicU64>,
    first: Arc<Mutex<Option<String>>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.first
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert_with(|| error.to_string());
            self.failed.fetch_add(1, Ordering::Release);
        }
    }
}

impl KafkaOut {
    /// `properties` are librdkafka's, `bootstrap.servers` among them; they override the defaults
    /// here except for idempotence and the partitioner, which correctness rests on.
    ///
    /// # Errors
    /// librdkafka refuses the configuration.
    pub fn new(properties: &[(String, String)], topic: &str) -> Result<KafkaOut, IngestError> {
        let mut config = ClientConfig::new();
        for (name, value) in [
            ("client.id", "finlake-ingest"),
            ("compression.codec", "lz4"),
            ("linger.ms", "20"),
            ("batch.num.messages", "100000"),
            // Bounds memory: some 400 bytes a trade while under way.
            ("queue.buffering.max.messages", "200000"),
            ("message.timeout.ms", "120000"),
        ] {
            config.set(name, value);
        }
        for (name, value) in properties {
            config.set(name, value);
        }
        // One key, one partition, in order and once: what dedup and stream time start from.
        config.set("enable.idempotence", "true");
        config.set("partitioner", "murmur2_random");
        let producer = config
            .create_with_context(Deliveries::default())
            .map_err(|e| IngestError::Kafka(e.to_string()))?;
        Ok(KafkaOut {
            producer,
            topic: topic.to_owned(),
        })
    }

    fn check(&self) -> Result<(), IngestError> {
        let deliveries = self.producer.context();
        let failed = deliveries.failed.load(Ordering::Acquire);
        if failed == 0 {
            return Ok(());
        }
        let first = deliveries
            .first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .unwrap_or_default();
        Err(IngestError::Kafka(format!(
            "{failed} trades were not acknowledged, the first because of: {first}"
        )))
    }
}

impl Out for KafkaOut {
    fn send(&mut self, key: &[u8], value: &[u8]) -> Result<(), IngestError> {
        let mut record = BaseRecord::to(&self.topic).key(key).payload(value);
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    // The brokers set the pace; deliveries make room.
                    self.producer.poll(Duration::from_millis(10));
                    self.check()?;
                    record = back;
                }
                Err((e, _)) => return Err(IngestError::Kafka(e.to_string())),
            }
        }
        self.producer.poll(Duration::ZERO);
        self.check()
    }

    fn finish(&mut self) -> Result<(), IngestError> {
        // Ends by itself: every record is delivered or fails by its own timeout.
        while self.producer.in_flight_count() > 0 {
            self.producer.poll(Duration::from_millis(100));
        }
        self.check()
    }
}
