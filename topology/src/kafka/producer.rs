//! The transactional producer of one thread.
//!
//! Deliveries are counted by the client's own polling thread, which wakes the
//! waiting flush: the plain producer would poll in steps of 100 ms.

use std::sync::Arc;
use std::time::{Duration, Instant};

use finlake_state::StoreId;
use parking_lot::{Condvar, Mutex};
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Message, TopicPartitionList};
use rustc_hash::FxHashMap;

use super::config::KafkaConfig;
use super::errors::{Stage, transaction};
use crate::error::Error;

/// What has become of the records of one transaction.
#[derive(Default)]
struct Deliveries {
    /// Number of the transaction; reports of earlier ones are ignored.
    epoch: usize,
    outstanding: u64,
    failed: Option<KafkaError>,
    /// (partition, store) → offset after the last changelog record.
    changelog: FxHashMap<(i32, StoreId), i64>,
}

#[derive(Default)]
struct Reports {
    deliveries: Mutex<Deliveries>,
    settled: Condvar,
}

#[derive(Clone)]
struct Context(Arc<Reports>);

impl ClientContext for Context {}

/// A record's tag: the transaction's number, and the store + 1 in the low bits.
const STORE_BITS: u32 = 16;

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, tag: usize) {
        let mut d = self.0.deliveries.lock();
        if tag >> STORE_BITS != d.epoch {
            return;
        }
        d.outstanding = d.outstanding.saturating_sub(1);
        match result {
            Ok(message) => {
                if let Some(store) = (tag & ((1 << STORE_BITS) - 1)).checked_sub(1) {
                    let end = d.changelog.entry((message.partition(), store));
                    let end = end.or_default();
                    *end = (*end).max(message.offset() + 1);
                }
            }
            Err((error, _)) => {
                d.failed.get_or_insert_with(|| error.clone());
            }
        }
        if d.outstanding == 0 || d.failed.is_some() {
            self.0.settled.notify_all();
        }
    }
}

pub(crate) struct TxnProducer {
    producer: ThreadedProducer<Context>,
    reports: Arc<Reports>,
    id: String,
    timeout: Duration,
    open: bool,
}

impl TxnProducer {
    /// Make and initialise: fences every predecessor of the same id and settles
    /// its open transaction.
    pub fn new(config: &KafkaConfig) -> Result<Self, Error> {
        let reports = Arc::new(Reports::default());
        let producer: ThreadedProducer<Context> = config
            .producer()
            .create_with_context(Context(reports.clone()))
            .map_err(|e| Error::fatal(format!("Kafka producer: {e}")))?;
        let id = config.id();
        producer
            .init_transactions(Duration::from_secs(30))
            .map_err(|e| transaction(Stage::Init, &id, &e))?;
        Ok(Self {
            producer,
            reports,
            id,
            timeout: Duration::from_millis(config.transaction_timeout_ms.into()),
            open: false,
        })
    }

    pub fn begin(&mut self) -> Result<(), Error> {
        {
            let mut d = self.reports.deliveries.lock();
            d.epoch += 1;
            d.outstanding = 0;
            d.failed = None;
            d.changelog.clear();
        }
        let begun = self.producer.begin_transaction();
        begun.map_err(|e| transaction(Stage::Begin, &self.id, &e))?;
        self.open = true;
        Ok(())
    }

    pub fn send<'a>(
        &mut self,
        topic: &str,
        partition: i32,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl ExactSizeIterator<Item = (&'a str, &'a [u8])>,
        store: Option<StoreId>,
    ) -> Result<(), Error> {
        let tag = {
            let mut d = self.reports.deliveries.lock();
            d.outstanding += 1;
            (d.epoch << STORE_BITS) | store.map_or(0, |s| s + 1)
        };
        let mut record = BaseRecord::with_opaque_to(topic, tag).partition(partition);
        record.key = key;
        record.payload = value;
        if headers.len() > 0 {
            let mut all = OwnedHeaders::new_with_capacity(headers.len());
            for (key, value) in headers {
                let value = Some(value);
                all = all.insert(Header { key, value });
            }
            record.headers = Some(all);
        }
        let by = Instant::now() + self.timeout;
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                // The client's own buffer is full: its thread is emptying it.
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if Instant::now() < by =>
                {
                    record = back;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(transaction(Stage::Send, &self.id, &error)),
            }
        }
    }

    /// Wait for every delivery.
    pub fn flush(&mut self) -> Result<(), Error> {
        let by = Instant::now() + self.timeout;
        let mut d = self.reports.deliveries.lock();
        while d.outstanding > 0 && d.failed.is_none() {
            if self.reports.settled.wait_until(&mut d, by).timed_out() {
                return Err(Error::Retry(format!(
                    "transaction of `{}`: {} records were not acknowledged within {:?}",
                    self.id, d.outstanding, self.timeout
                )));
            }
        }
        match d.failed.take() {
            Some(error) => Err(match self.producer.client().fatal_error() {
                // The first symptom of being fenced is often a failed delivery.
                Some((code, why)) if is_fence(code) => {
                    Error::Fenced(format!("transaction of `{}`: {why}", self.id))
                }
                _ => transaction(Stage::Send, &self.id, &error),
            }),
            None => Ok(()),
        }
    }

    pub fn delivered(&self, partition: i32, store: StoreId) -> Option<i64> {
        let d = self.reports.deliveries.lock();
        d.changelog.get(&(partition, store)).copied()
    }

    pub fn send_offsets(
        &mut self,
        offsets: &TopicPartitionList,
        metadata: &ConsumerGroupMetadata,
    ) -> Result<(), Error> {
        let sent = self
            .producer
            .send_offsets_to_transaction(offsets, metadata, self.timeout);
        sent.map_err(|e| transaction(Stage::Offsets, &self.id, &e))
    }

    pub fn commit(&mut self) -> Result<(), Error> {
        let committed = self.producer.commit_transaction(self.timeout);
        committed.map_err(|e| transaction(Stage::Commit, &self.id, &e))?;
        self.open = false;
        Ok(())
    }

    pub fn abort(&mut self) -> Result<(), Error> {
        if !self.open {
            return Ok(());
        }
        let aborted = self.producer.abort_transaction(self.timeout);
        aborted.map_err(|e| transaction(Stage::Abort, &self.id, &e))?;
        self.open = false;
        Ok(())
    }
}

fn is_fence(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch
    )
}
