//! Reading the dead-letter topic: from where to where, record by record, each in its partition's
//! order. Reads what is committed, joins no group, moves nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use finlake_schemas::{dlq, topics};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::config::Config;

/// Longest wait for the next record before the read is given up.
const PATIENCE: Duration = Duration::from_secs(20);

/// A rejected record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Where it stands in the dead-letter topic.
    pub partition: i32,
    pub offset: i64,
    /// Kafka timestamp, ms.
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    /// All headers, as they are.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Letter {
    fn of(message: &BorrowedMessage<'_>) -> Letter {
        let headers = message.headers().map_or_else(Vec::new, |headers| {
            headers
                .iter()
                .map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec()))
                .collect()
        });
        Letter {
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers,
        }
    }

    /// A header as text; the last one of that name counts.
    pub fn header(&self, name: &str) -> Option<String> {
        let found = self.headers.iter().rev().find(|(n, _)| n == name);
        found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    }

    /// The error class; `unknown` for a record that somebody else put there.
    pub fn class(&self) -> String {
        self.header(dlq::ERROR_CLASS)
            .unwrap_or_else(|| "unknown".into())
    }

    /// The topic, partition and offset it was read from.
    pub fn source(&self) -> Option<(String, i32, i64)> {
        Some((
            self.header(dlq::TOPIC)?,
            self.header(dlq::PARTITION)?.parse().ok()?,
            self.header(dlq::OFFSET)?.parse().ok()?,
        ))
    }
}

/// Whether a class is the one asked for: `too_late` also stands for `too_late:1m`.
pub fn is_class(class: &str, asked: &str) -> bool {
    class == asked
        || class
            .strip_prefix(asked)
            .is_some_and(|rest| rest.starts_with(':'))
}

/// A reader of the dead-letter topic.
pub struct Letters {
    consumer: BaseConsumer,
}

impl Letters {
    pub fn open(config: &Config) -> Result<Letters> {
        Ok(Letters {
            consumer: consumer(config, "finlake-dlq-reader")?,
        })
    }

    /// First and next offset of each partition.
    pub fn bounds(&self, config: &Config) -> Result<BTreeMap<i32, (i64, i64)>> {
        let servers = &config.kafka.bootstrap_servers;
        let metadata = self
            .consumer
            .fetch_metadata(Some(topics::DLQ), PATIENCE)
            .with_context(|| {
                format!("Kafka at {servers} does not answer; check kafka.bootstrap_servers")
            })?;
        let partitions: Vec<i32> = metadata
            .topics()
            .iter()
            .filter(|t| t.name() == topics::DLQ && t.error().is_none())
            .flat_map(|t| t.partitions().iter().map(|p| p.id()))
            .collect();
        if partitions.is_empty() {
            bail!(
                "there is no topic {}; `finlake topics create` makes it",
                topics::DLQ
            );
        }
        let mut bounds = BTreeMap::new();
        for partition in partitions {
            let bound = self
                .consumer
                .fetch_watermarks(topics::DLQ, partition, PATIENCE)?;
            bounds.insert(partition, bound);
        }
        Ok(bounds)
    }

    /// Hands every committed record of these ranges (first, next offset) to `each`; `false` ends
    /// the reading.
    pub fn read(
        &self,
        ranges: &BTreeMap<i32, (i64, i64)>,
        mut each: impl FnMut(Letter) -> Result<bool>,
    ) -> Result<()> {
        let mut open = BTreeMap::new();
        let mut list = TopicPartitionList::new();
        for (&partition, &(from, to)) in ranges {
            if from < to {
                list.add_partition_offset(topics::DLQ, partition, Offset::Offset(from))?;
                open.insert(partition, to);
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        self.consumer.assign(&list)?;
        let result = self.drain(&mut open, &mut each);
        self.consumer.unassign()?;
        result
    }

    fn drain(
        &self,
        open: &mut BTreeMap<i32, i64>,
        each: &mut impl FnMut(Letter) -> Result<bool>,
    ) -> Result<()> {
        let mut heard = Instant::now();
        while !open.is_empty() {
            match self.consumer.poll(Duration::from_millis(100)) {
                None if heard.elapsed() > PATIENCE => {
                    bail!(
                        "Kafka has sent nothing for {} s; try again",
                        PATIENCE.as_secs()
                    )
                }
                None => continue,
                Some(Ok(message)) => {
                    let partition = message.partition();
                    if let Some(&end) = open.get(&partition) {
                        if message.offset() < end && !each(Letter::of(&message))? {
                            return Ok(());
                        }
                        if message.offset() + 1 >= end {
                            open.remove(&partition);
                        }
                    }
                }
                // Markers and aborted records at the end of a range show only here.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                }
                Some(Err(e)) if is_passing(&e) => continue,
                Some(Err(e)) => return Err(e.into()),
            }
            heard = Instant::now();
        }
        Ok(())
    }
}

/// Errors that librdkafka gets over by itself.
fn is_passing(e: &KafkaError) -> bool {
    matches!(
        e.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
        )
    )
}

/// A consumer that is only assigned, never subscribed.
pub fn consumer(config: &Config, group: &str) -> Result<BaseConsumer> {
    let mut client = ClientConfig::new();
    for (key, value) in &config.kafka.client_properties().0 {
        client.set(key, value);
    }
    Ok(client
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "error")
        .create()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_stands_for_its_intervals() {
        assert!(is_class("too_late:1m", "too_late"));
        assert!(is_class("too_late:1m", "too_late:1m"));
        assert!(!is_class("too_late:1m", "too_late:1h"));
        assert!(!is_class("invalid", "in"));
    }

    #[test]
    fn a_letter_knows_where_it_came_from() {
        let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        let mut letter = Letter {
            partition: 1,
            offset: 2,
            timestamp: None,
            key: None,
            value: None,
            headers: vec![
                header(dlq::TOPIC, "market.ticks"),
                header(dlq::PARTITION, "3"),
            ],
        };
        assert_eq!((letter.source(), letter.class()), (None, "unknown".into()));
        letter.headers.push(header(dlq::OFFSET, "17"));
        letter.headers.push(header(dlq::ERROR_CLASS, "invalid"));
        assert_eq!(letter.source(), Some(("market.ticks".into(), 3, 17)));
        assert_eq!(letter.class(), "invalid");
    }
}
