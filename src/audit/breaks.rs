//! Breaks as records of `quality.breaks`: what is known, and new versions of it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use finlake_lakehouse::follows;
use finlake_schemas::{Break, Codec, keys, topics};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::{ClientContext, Message};

use crate::config::Config;
use crate::kafka::{self, Topic};

/// Microseconds of UTC.
pub(super) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_micros() as i64)
}

/// The newest version of every break.
pub struct Known;

impl Known {
    /// Reads the compacted topic to its end, by the same rule as the table: in the topic's order, and without records
    /// that come out of turn.
    ///
    /// # Errors
    /// Kafka does not answer, or a record is not a break.
    pub fn read(config: &Config, codec: &Codec) -> Result<BTreeMap<[u8; 16], Break>> {
        let topic = Topic::open(config, topics::BREAKS)?;
        let bounds = topic.bounds()?;
        if bounds.is_empty() {
            bail!(
                "there is no topic {}; `finlake topics create` makes it",
                topics::BREAKS
            );
        }
        let mut known: BTreeMap<[u8; 16], Break> = BTreeMap::new();
        topic.read(&bounds, |message| {
            let Some(value) = message.payload() else {
                return Ok(true);
            };
            let found = decode(codec, value).with_context(|| {
                format!(
                    "{}/{}:{}",
                    topics::BREAKS,
                    message.partition(),
                    message.offset()
                )
            })?;
            fold(&mut known, found);
            Ok(true)
        })?;
        Ok(known)
    }
}

/// Takes the next version in, if it is one.
pub(super) fn fold(known: &mut BTreeMap<[u8; 16], Break>, next: Break) {
    let before = known.get(&next.break_id).map(|b| b.status);
    if follows(before, next.status) {
        known.insert(next.break_id, next);
    }
}

/// A record's value as a break.
pub(super) fn decode(codec: &Codec, value: &[u8]) -> Result<Break> {
    if let Some(id) = finlake_schemas::schema_id(value)
        && !codec.knows(id)
    {
        codec.resolve(id)?;
    }
    Ok(codec.decode_break(value)?)
}

/// Keeps the first failure of a delivery; a flush alone says nothing of it.
#[derive(Clone, Default)]
struct Deliveries(Arc<std::sync::Mutex<Option<String>>>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| error.to_string());
        }
    }
}

/// Sends versions of breaks; by key, so that all versions of one lie in one partition in order.
pub struct Publisher {
    /// Polled while it sends only: a thread that polls for it would cost more than the whole audit.
    producer: BaseProducer<Deliveries>,
    deliveries: Deliveries,
}

impl Publisher {
    /// Makes the client.
    ///
    /// # Errors
    /// Impossible client settings.
    pub fn open(config: &Config) -> Result<Publisher> {
        let mut client = kafka::client(config);
        client
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("message.timeout.ms", "25000");
        let deliveries = Deliveries::default();
        Ok(Publisher {
            producer: client.create_with_context(deliveries.clone())?,
            deliveries,
        })
    }

    /// Sends and waits until all are written. After an error some may be; sending all of them again opens nothing
    /// twice.
    ///
    /// # Errors
    /// A record cannot be encoded, Kafka does not take them in time.
    pub fn send(&self, codec: &Codec, all: &[Break]) -> Result<()> {
        for found in all {
            let (mut key, mut value) = (Vec::new(), Vec::new());
            keys::breaks(found.break_id, &mut key);
            codec.encode_break(found, &mut value)?;
            let mut record = BaseRecord::to(topics::BREAKS).key(&key).payload(&value);
            while let Err((e, back)) = self.producer.send(record) {
                let KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) = e else {
                    return Err(e.into());
                };
                self.producer.poll(Duration::from_millis(50));
                record = back;
            }
        }
        if all.is_empty() {
            return Ok(());
        }
        self.producer
            .flush(Duration::from_secs(30))
            .with_context(|| format!("writing to {}", topics::BREAKS))?;
        let failed = self.deliveries.0.lock();
        match failed.unwrap_or_else(PoisonError::into_inner).take() {
            Some(why) => bail!("{} did not take all breaks: {why}", topics::BREAKS),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use finlake_reconcile::{Finding, Layer, resolved};
    use finlake_schemas::{BreakKind, BreakStatus};

    use super::*;

    #[test]
    fn an_explanation_outlives_a_run_that_did_not_know() {
        let finding = Finding::new(BreakKind::Missing, Layer::Silver, "silver.x", "k", "row");
        let opened = finding.to_break("reconcile", 10);
        let mut explained = opened.clone();
        explained.status = BreakStatus::Explained;
        // A clock that is behind must not hide a newer version either.
        explained.system_time = 5;
        let mut known = BTreeMap::new();
        let mut status = |next: &Break| {
            fold(&mut known, next.clone());
            known[&next.break_id].status
        };
        assert_eq!(status(&opened), BreakStatus::Opened);
        assert_eq!(status(&explained), BreakStatus::Explained);
        assert_eq!(
            status(&finding.to_break("audit", 20)),
            BreakStatus::Explained
        );
        assert_eq!(status(&resolved(&opened, 30)), BreakStatus::Resolved);
        assert_eq!(status(&explained), BreakStatus::Resolved);
        assert_eq!(status(&opened), BreakStatus::Opened);
    }
}
