//! Breaks as records of `quality.breaks`: what is known, and new versions of it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use finlake_schemas::{Break, Codec, keys, topics};
use rdkafka::Message;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};

use crate::config::Config;
use crate::kafka::{self, Topic};

/// The newest version of every break.
pub struct Known;

impl Known {
    /// Reads the compacted topic to its end.
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
            if let Some(id) = finlake_schemas::schema_id(value)
                && !codec.knows(id)
            {
                codec.resolve(id)?;
            }
            let found = codec.decode_break(value).with_context(|| {
                format!(
                    "{}/{}:{}",
                    topics::BREAKS,
                    message.partition(),
                    message.offset()
                )
            })?;
            let newer = known
                .get(&found.break_id)
                .is_none_or(|k| k.system_time <= found.system_time);
            if newer {
                known.insert(found.break_id, found);
            }
            Ok(true)
        })?;
        Ok(known)
    }
}

/// Sends versions of breaks; by key, so that all versions of one lie in one partition in order.
pub struct Publisher {
    producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext>,
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
            .set("message.timeout.ms", "30000");
        Ok(Publisher {
            producer: client.create()?,
        })
    }

    /// Sends and waits until all are written.
    ///
    /// # Errors
    /// A record cannot be encoded, Kafka does not take them in time.
    pub fn send(&self, codec: &Codec, all: &[Break]) -> Result<()> {
        if all.is_empty() {
            return Ok(());
        }
        for found in all {
            let (mut key, mut value) = (Vec::new(), Vec::new());
            keys::breaks(found.break_id, &mut key);
            codec.encode_break(found, &mut value)?;
            let record = BaseRecord::to(topics::BREAKS).key(&key).payload(&value);
            self.producer.send(record).map_err(|(e, _)| e)?;
        }
        self.producer
            .flush(Duration::from_secs(30))
            .with_context(|| format!("writing to {}", topics::BREAKS))?;
        Ok(())
    }
}
