//! Reading the dead-letter topic: from where to where, record by record, each in its partition's
//! order. Reads what is committed, joins no group, moves nothing.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use finlake_schemas::{dlq, topics};
use finlake_topology::kafka::Taken;

use crate::config::Config;
use crate::kafka::Topic;

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
    fn of(record: &Taken<'_>) -> Letter {
        let headers = record.headers().into_iter();
        Letter {
            partition: record.partition,
            offset: record.offset,
            timestamp: (record.timestamp_ms >= 0).then_some(record.timestamp_ms),
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: headers.map(|(n, v)| (n, v.unwrap_or_default())).collect(),
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
    topic: Topic,
}

impl Letters {
    pub fn open(config: &Config) -> Result<Letters> {
        Ok(Letters {
            topic: Topic::open(config, topics::DLQ)?,
        })
    }

    /// First and next offset of each partition.
    pub fn bounds(&self, config: &Config) -> Result<BTreeMap<i32, (i64, i64)>> {
        let servers = &config.kafka.bootstrap_servers;
        let bounds = self.topic.bounds().with_context(|| {
            format!("Kafka at {servers} does not answer; check kafka.bootstrap_servers")
        })?;
        if bounds.is_empty() {
            bail!(
                "there is no topic {}; `finlake topics create` makes it",
                topics::DLQ
            );
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
        self.topic.read(ranges, |message| each(Letter::of(message)))
    }
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
