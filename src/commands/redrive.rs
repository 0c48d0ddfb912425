//! `finlake dlq redrive`: rejected records go into their topic again, each once.
//!
//! 1. How far a class was redriven is the committed offset of a consumer group of its own,
//!    `<application>-dlq-redrive-<class>`: one class does not hide the records of another.
//! 2. Records and offsets are one Kafka transaction, with a transactional id of the application:
//!    a run that is killed leaves nothing half done, and a second run at the same time is fenced.
//! 3. The record is the original: key, value, partition, and whatever headers are not ours. It
//!    bears `finlake.redrive`, with its place in the dead-letter topic.
//!
//! `too_late` is refused: the trade was accepted for the other intervals and would be a
//! duplicate. So is `stale_assertion`: the version it corrects is not the newest any more.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use finlake_schemas::{dlq, topics};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use super::letters::{Letter, Letters, is_class};
use super::printer;
use crate::cli::{DlqRedriveArgs, Global};
use crate::config::Config;
use crate::kafka;
use crate::output::{Kind, Progress, remark};

/// Names the record's place in the dead-letter topic.
pub const HEADER: &str = "finlake.redrive";
/// Headers that begin so are ours: they tell of the rejection and do not go along.
const OURS: &str = "finlake.";
/// Sending these again would change nothing: a trade that was accepted for the other intervals, a correction of a version
/// that is no longer the newest. The remedy of both is a replay.
const REFUSED: [&str; 2] = [dlq::TOO_LATE, dlq::STALE_ASSERTION];
/// Records of one transaction.
const BATCH: usize = 500;
const PATIENCE: Duration = Duration::from_secs(30);

type Redriver = ThreadedProducer<DefaultProducerContext>;

/// What was, or would be, done with the records of one class.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    redriven: u64,
    /// Redriven before.
    before: u64,
    /// Not FinLake's: no class or no source in the headers.
    foreign: u64,
    refused: u64,
}

/// What to do with one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Send,
    Before,
    Foreign,
    Refused,
    NotAsked,
}

/// Decides on one record. `done`: the class's records below this offset were redriven.
fn decide(letter: &Letter, asked: Option<&str>, done: i64, explicit: bool) -> Verdict {
    let class = letter.class();
    if asked.is_some_and(|asked| !is_class(&class, asked)) {
        return Verdict::NotAsked;
    }
    if REFUSED.iter().any(|refused| is_class(&class, refused)) {
        return Verdict::Refused;
    }
    match letter.source() {
        Some((topic, _, _)) if topic == topics::TICKS || topic == topics::BARS => {}
        _ => return Verdict::Foreign,
    }
    if letter.offset < done && !explicit {
        return Verdict::Before;
    }
    Verdict::Send
}

/// Runs the command.
///
/// # Errors
/// `too_late` was asked for, Kafka does not answer, another redrive runs at the same time.
pub fn run(global: &Global, config: &Config, args: &DlqRedriveArgs) -> Result<()> {
    if args
        .class
        .as_deref()
        .is_some_and(|c| is_class(c, dlq::TOO_LATE))
    {
        bail!(
            "too_late records cannot be redriven: the trade was accepted for the other intervals and \
             would be a duplicate; their remedy is a replay of that time range"
        );
    }
    let letters = Letters::open(config)?;
    let mut ranges = letters.bounds(config)?;
    let mut skipped = None;
    if let Some(partition) = args.partition {
        ranges.retain(|p, _| *p == partition);
        let Some(range) = ranges.get_mut(&partition) else {
            bail!("{} has no partition {partition}", topics::DLQ);
        };
        let first = range.0;
        range.0 = args.from.map_or(range.0, |from| from.max(range.0));
        range.1 = args
            .to
            .map_or(range.1, |to| to.saturating_add(1).min(range.1));
        skipped = (range.0 > first).then_some(range.0);
    }
    let mut run = Redrive::new(config, args, skipped)?;
    let total = ranges
        .values()
        .map(|(from, to)| u64::try_from(to - from).unwrap_or(0))
        .sum();
    let progress = Progress::new(global.quiet, "redriving", "records", Some(total));
    letters.read(&ranges, |letter| {
        progress.add(1);
        run.take(letter)?;
        Ok(true)
    })?;
    run.flush()?;
    progress.done();

    let columns = [
        ("class", Kind::Text),
        (
            if args.dry_run {
                "would_redrive"
            } else {
                "redriven"
            },
            Kind::Number,
        ),
        ("redriven_before", Kind::Number),
        ("refused", Kind::Number),
        ("foreign", Kind::Number),
    ];
    let mut out = printer(global, &columns)?;
    for (class, t) in &run.tallies {
        let counts = [t.redriven, t.before, t.refused, t.foreign];
        let mut row = vec![Some(class.clone())];
        row.extend(counts.map(|n| Some(n.to_string())));
        out.row(row)?;
    }
    out.finish(&[])?;
    if run.tallies.values().any(|t| t.refused > 0) {
        remark(
            global.quiet,
            "too_late and stale_assertion records are refused: their remedy is `finlake replay`",
        );
    }
    Ok(())
}

/// One group per class: its consumer only names the group in transactions.
struct Group {
    consumer: BaseConsumer,
    /// Per partition of the dead-letter topic: next offset of this class.
    done: BTreeMap<i32, i64>,
}

struct Redrive<'a> {
    config: &'a Config,
    args: &'a DlqRedriveArgs,
    /// None in a dry run.
    producer: Option<Redriver>,
    groups: BTreeMap<String, Group>,
    batch: Vec<(String, Letter)>,
    tallies: BTreeMap<String, Tally>,
    /// The first offset of a run that leaves letters before it out.
    skipped: Option<i64>,
}

impl<'a> Redrive<'a> {
    fn new(config: &'a Config, args: &'a DlqRedriveArgs, skipped: Option<i64>) -> Result<Self> {
        let producer = match args.dry_run {
            true => None,
            false => Some(producer(config)?),
        };
        Ok(Self {
            config,
            args,
            producer,
            groups: BTreeMap::new(),
            batch: Vec::new(),
            tallies: BTreeMap::new(),
            skipped,
        })
    }

    fn group(&mut self, class: &str) -> Result<&mut Group> {
        if !self.groups.contains_key(class) {
            let group = Group::open(self.config, class)?;
            self.groups.insert(class.to_owned(), group);
        }
        self.groups
            .get_mut(class)
            .context("the group was just made")
    }

    fn take(&mut self, letter: Letter) -> Result<()> {
        let class = letter.class();
        let asked = self.args.class.as_deref();
        let explicit = self.args.from.is_some();
        // A first look without Kafka: only records that may be sent need their class's position.
        let mut verdict = decide(&letter, asked, 0, explicit);
        if verdict == Verdict::Send {
            let done = self
                .group(&class)?
                .done
                .get(&letter.partition)
                .copied()
                .unwrap_or(0);
            verdict = decide(&letter, asked, done, explicit);
        }
        if verdict == Verdict::NotAsked {
            return Ok(());
        }
        let tally = self.tallies.entry(class.clone()).or_default();
        match verdict {
            Verdict::Send => tally.redriven += 1,
            Verdict::Before => tally.before += 1,
            Verdict::Foreign => tally.foreign += 1,
            Verdict::Refused => tally.refused += 1,
            Verdict::NotAsked => {}
        }
        if verdict == Verdict::Send && self.producer.is_some() {
            self.batch.push((class, letter));
            if self.batch.len() >= BATCH {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// One transaction: the records, and how far each class is now.
    fn flush(&mut self) -> Result<()> {
        let (Some(producer), false) = (&self.producer, self.batch.is_empty()) else {
            return Ok(());
        };
        producer.begin_transaction()?;
        let sent = send(producer, &self.batch, &mut self.groups, self.skipped);
        if let Err(e) = sent.and_then(|()| Ok(producer.commit_transaction(PATIENCE)?)) {
            // The error that led here is the one to tell; an open transaction ends with the
            // broker's timeout, or with the next redrive, which fences this one.
            let _ = producer.abort_transaction(PATIENCE);
            return Err(e.context("nothing of this batch was sent; run it again"));
        }
        self.batch.clear();
        Ok(())
    }
}

impl Group {
    fn open(config: &Config, class: &str) -> Result<Group> {
        let group = format!("{}-dlq-redrive-{class}", config.kafka.application_id);
        let consumer: BaseConsumer = kafka::reader(config, &group).create()?;
        let mut list = TopicPartitionList::new();
        let metadata = consumer.fetch_metadata(Some(topics::DLQ), PATIENCE)?;
        for topic in metadata.topics() {
            for partition in topic.partitions() {
                list.add_partition(topic.name(), partition.id());
            }
        }
        let committed = consumer.committed_offsets(list, PATIENCE)?;
        let done = committed
            .elements()
            .iter()
            .filter_map(|e| Some((e.partition(), e.offset().to_raw().filter(|o| *o >= 0)?)))
            .collect();
        Ok(Group { consumer, done })
    }
}

fn producer(config: &Config) -> Result<Redriver> {
    let mut client = kafka::client(config);
    let producer: Redriver = client
        .set(
            "transactional.id",
            format!("{}-dlq-redrive", config.kafka.application_id),
        )
        .set("transaction.timeout.ms", "10000")
        .set("message.timeout.ms", "10000")
        .set("socket.timeout.ms", "10000")
        .set("linger.ms", "0")
        .create()?;
    producer
        .init_transactions(PATIENCE)
        .context("Kafka does not answer; check kafka.bootstrap_servers")?;
    Ok(producer)
}

fn send(
    producer: &Redriver,
    batch: &[(String, Letter)],
    groups: &mut BTreeMap<String, Group>,
    skipped: Option<i64>,
) -> Result<()> {
    let mut moved: BTreeMap<&str, BTreeMap<i32, i64>> = BTreeMap::new();
    for (class, letter) in batch {
        let (topic, partition, _) = letter.source().context("checked before")?;
        let headers = headers(letter);
        loop {
            let mut record = BaseRecord::<[u8], [u8]>::to(&topic)
                .partition(partition)
                .headers(headers.clone());
            if let Some(key) = &letter.key {
                record = record.key(key);
            }
            if let Some(value) = &letter.value {
                record = record.payload(value);
            }
            match producer.send(record) {
                Ok(()) => break,
                Err((e, _)) if e.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) => {
                    producer.flush(Duration::from_secs(1)).ok();
                }
                Err((e, _)) => return Err(e.into()),
            }
        }
        let next = moved
            .entry(class)
            .or_default()
            .entry(letter.partition)
            .or_default();
        *next = (*next).max(letter.offset + 1);
    }
    producer.flush(PATIENCE)?;
    for (class, positions) in moved {
        let group = groups.get_mut(class).context("the class has a group")?;
        let mut list = TopicPartitionList::new();
        for (partition, next) in positions {
            let done = group.done.entry(partition).or_default();
            // Letters that this run left out are not redriven.
            if skipped.is_some_and(|first| first > *done) {
                continue;
            }
            // Never back: what was redriven by hand from an earlier offset stays redriven.
            *done = (*done).max(next);
            list.add_partition_offset(topics::DLQ, partition, Offset::Offset(*done))?;
        }
        if list.count() == 0 {
            continue;
        }
        let metadata = group
            .consumer
            .group_metadata()
            .context("a consumer with a group")?;
        producer.send_offsets_to_transaction(&list, &metadata, PATIENCE)?;
    }
    Ok(())
}

/// The record's own headers, without those that tell of its rejection, and where it was.
fn headers(letter: &Letter) -> OwnedHeaders {
    let place = format!("{}:{}", letter.partition, letter.offset);
    let own = letter
        .headers
        .iter()
        .filter(|(name, _)| !name.starts_with(OURS));
    let mut headers = OwnedHeaders::new();
    for (name, value) in own {
        headers = headers.insert(Header {
            key: name,
            value: Some(value),
        });
    }
    headers.insert(Header {
        key: HEADER,
        value: Some(&place),
    })
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Headers;

    use super::*;

    fn letter(class: &str, topic: &str, offset: i64) -> Letter {
        let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        Letter {
            partition: 2,
            offset,
            timestamp: None,
            key: None,
            value: None,
            headers: vec![
                header("trace", "abc"),
                header(dlq::ERROR_CLASS, class),
                header(dlq::TOPIC, topic),
                header(dlq::PARTITION, "2"),
                header(dlq::OFFSET, "40"),
            ],
        }
    }

    #[test]
    fn each_record_goes_once_and_too_late_never() {
        let invalid = letter("invalid", topics::TICKS, 7);
        assert_eq!(decide(&invalid, None, 0, false), Verdict::Send);
        assert_eq!(decide(&invalid, None, 8, false), Verdict::Before);
        assert_eq!(
            decide(&invalid, None, 8, true),
            Verdict::Send,
            "asked for by offset"
        );
        assert_eq!(
            decide(&invalid, Some("malformed"), 0, false),
            Verdict::NotAsked
        );
        let stale = letter("stale_assertion", topics::BARS, 7);
        assert_eq!(decide(&stale, None, 0, false), Verdict::Refused);
        let bars = letter("malformed", topics::BARS, 7);
        assert_eq!(decide(&bars, None, 0, false), Verdict::Send);
        let late = letter("too_late:1m", topics::TICKS, 7);
        for (asked, explicit) in [(None, false), (Some("too_late"), true)] {
            assert_eq!(decide(&late, asked, 0, explicit), Verdict::Refused);
        }
        assert_eq!(
            decide(&letter("invalid", "other", 7), None, 0, false),
            Verdict::Foreign
        );
    }

    #[test]
    fn a_redriven_record_keeps_its_own_headers_only() {
        let headers = headers(&letter("invalid", topics::TICKS, 7));
        let names: Vec<_> = headers.iter().map(|h| h.key).collect();
        assert_eq!(names, ["trace", HEADER]);
        assert_eq!(headers.get(1).value, Some(&b"2:7"[..]));
    }
}
