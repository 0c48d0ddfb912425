//! One partition of a topic, read in order up to given positions. Reads what is committed, joins no group.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::{Offset, TopicPartitionList};

use crate::config::Config;
use crate::kafka;

const PATIENCE: Duration = Duration::from_secs(30);

/// A record, borrowed from the client.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
}

impl<'a> Seen<'a> {
    fn of<M: Message>(message: &'a M) -> Seen<'a> {
        Seen {
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
            key: message.key(),
            value: message.payload(),
        }
    }
}

/// Where reading stands.
pub struct Cursor {
    consumer: BaseConsumer,
    topic: &'static str,
    partition: i32,
    /// First offset that the topic still holds.
    pub low: i64,
    /// Next offset to be written at the start of the reading.
    pub high: i64,
    /// Read ahead of what was asked for.
    held: Option<OwnedMessage>,
    at_end: bool,
}

impl Cursor {
    /// From `from`, or from the first record there is.
    ///
    /// # Errors
    /// Kafka does not answer, there is no such topic.
    pub fn open(config: &Config, topic: &'static str, partition: i32, from: i64) -> Result<Cursor> {
        let group = format!("{}-reader", config.kafka.application_id);
        let consumer: BaseConsumer = kafka::reader(config, &group).create()?;
        let (low, high) = consumer
            .fetch_watermarks(topic, partition, PATIENCE)
            .with_context(|| {
                let servers = &config.kafka.bootstrap_servers;
                format!("{topic}/{partition} on Kafka at {servers}; check kafka.bootstrap_servers")
            })?;
        let mut list = TopicPartitionList::new();
        let start = from.clamp(low, high);
        list.add_partition_offset(topic, partition, Offset::Offset(start))?;
        consumer.assign(&list)?;
        Ok(Cursor {
            consumer,
            topic,
            partition,
            low,
            high,
            held: None,
            at_end: start >= high,
        })
    }

    /// Hands over every record below `end` that was not handed over before.
    ///
    /// # Errors
    /// Those of `each`; Kafka is silent or fails.
    pub fn until(&mut self, end: i64, mut each: impl FnMut(Seen<'_>) -> Result<()>) -> Result<()> {
        if let Some(held) = &self.held {
            if held.offset() >= end {
                return Ok(());
            }
            each(Seen::of(held))?;
            self.held = None;
        }
        let mut heard = Instant::now();
        while !self.at_end {
            match self.consumer.poll(Duration::from_millis(100)) {
                None if heard.elapsed() > PATIENCE => bail!(
                    "{}/{}: Kafka has sent nothing for {} s; try again",
                    self.topic,
                    self.partition,
                    PATIENCE.as_secs()
                ),
                None => continue,
                Some(Ok(message)) => {
                    if message.offset() >= end {
                        self.held = Some(message.detach());
                        return Ok(());
                    }
                    each(Seen::of(&message))?;
                    if message.offset() + 1 >= end {
                        return Ok(());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => self.at_end = true,
                Some(Err(e)) if kafka::is_passing(&e) => continue,
                Some(Err(e)) => {
                    return Err(e).with_context(|| format!("{}/{}", self.topic, self.partition));
                }
            }
            heard = Instant::now();
        }
        Ok(())
    }
}
