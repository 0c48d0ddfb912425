//! Writers of breaks that meet in every order, and the topic compacted afterwards: of each break only its newest record
//! is left, and it says what all of them together said.

use std::collections::BTreeMap;
use std::time::Duration;

use finlake::audit::{Breaks, Known, Publisher};
use finlake::config::Config;
use finlake_devkafka::DevKafka;
use finlake_lakehouse::follows;
use finlake_reconcile::{Finding, Layer, resolved};
use finlake_schemas::{Break, BreakKind, BreakStatus, Codec, keys, topics};
use futures::executor::block_on;
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::exact::World;
use crate::harness::{Kafka, KafkaSetup, eventually, secs};

/// What a writer makes of a break.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    /// A run finds it.
    Find,
    /// A run does not find it.
    Miss,
    Explain,
}

const ACTS: [Act; 3] = [Act::Find, Act::Miss, Act::Explain];
/// Twice each writer; in each round the second one comes between the first one's reading and its writing.
const ROUNDS: usize = 2;

/// The acts of one break: its number in base three.
fn act(of: usize, round: usize, writer: usize) -> Act {
    ACTS[of / 3usize.pow((round * 2 + writer) as u32) % 3]
}

fn finding(group: &str, n: usize) -> Finding {
    let key = format!("{group}-{n}");
    Finding::new(BreakKind::Missing, Layer::Silver, "silver.x", key, "row")
}

/// What one writer decides about one break, as `reconcile` and `breaks explain` do.
fn decide(act: Act, finding: &Finding, before: Option<&Break>, now: i64) -> Option<Break> {
    let open = before.filter(|b| b.status != BreakStatus::Resolved);
    let later = before.map_or(now, |b| now.max(b.system_time + 1));
    match (act, open) {
        (Act::Find, None) => Some(finding.to_break("reconcile", later)),
        (Act::Miss, Some(b)) => Some(resolved(b, now)),
        (Act::Explain, Some(b)) => Some(Break {
            status: BreakStatus::Explained,
            system_time: later,
            ..b.clone()
        }),
        _ => None,
    }
}

fn all(group: &str, known: &Breaks, round: usize, writer: usize) -> Vec<Break> {
    let orders = 3usize.pow(2 * ROUNDS as u32);
    (0..orders)
        .filter_map(|n| {
            let f = finding(group, n);
            let now = (round * 10 + writer) as i64;
            decide(act(n, round, writer), &f, known.get(&f.id()), now)
        })
        .collect()
}

/// The old way: what was decided is sent, whatever came between.
fn send(world: &World, all: &[Break]) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &world.bootstrap)
        .set("partitioner", "murmur2_random")
        .create()
        .unwrap();
    for b in all {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        keys::breaks(b.break_id, &mut key);
        world.codec.encode_break(b, &mut value).unwrap();
        let record = BaseRecord::to(topics::BREAKS).key(&key).payload(&value);
        producer.send(record).map_err(|(e, _)| e).unwrap();
        producer.poll(Duration::ZERO);
    }
    producer.flush(secs(30)).unwrap();
}

/// Every committed record, in the topic's order.
fn records(config: &Config, codec: &Codec) -> Vec<Break> {
    let topic = finlake::kafka::Topic::open(config, topics::BREAKS).unwrap();
    let bounds = topic.settled(config).unwrap();
    let mut out = Vec::new();
    topic
        .read(&bounds, |m| {
            out.push(codec.decode_break(m.value.unwrap())?);
            Ok(true)
        })
        .unwrap();
    out
}

fn statuses(records: &[Break]) -> BTreeMap<String, BreakStatus> {
    let mut out: BTreeMap<String, BreakStatus> = BTreeMap::new();
    for b in records {
        if follows(out.get(&b.key).copied(), b.status) {
            out.insert(b.key.clone(), b.status);
        }
    }
    out
}

/// Gives the topic other settings.
fn alter(admin: &AdminClient<DefaultClientContext>, settings: &[(&str, &str)]) {
    let mut change = AlterConfig::new(ResourceSpecifier::Topic(topics::BREAKS));
    for (key, value) in settings {
        change = change.set(key, value);
    }
    let done = block_on(admin.alter_configs([&change], &AdminOptions::new())).unwrap();
    assert!(done.iter().all(Result::is_ok), "{done:?}");
}

fn every_order(world: &World) {
    let config = world.config("a");
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", &world.bootstrap)
        .create()
        .unwrap();
    // Nothing is compacted yet.
    let topic = NewTopic::new(topics::BREAKS, 1, TopicReplication::Fixed(1));
    let made = block_on(admin.create_topics(&[topic], &AdminOptions::new())).unwrap();
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    eventually("the topic is there", secs(30), || {
        let known = Known::read(&config, &world.codec).ok()?;
        known.is_empty().then_some(())
    });

    let (first, second) = (Publisher::new(&config), Publisher::new(&config));
    for round in 0..ROUNDS {
        let mut asked = 0;
        let told = first.publish(&world.codec, |known| {
            asked += 1;
            if asked == 2 {
                second.publish(&world.codec, |known| Ok(all("turn", known, round, 1)))?;
            }
            Ok(all("turn", known, round, 0))
        });
        told.unwrap();
        assert_eq!(asked, 3, "overtaken once");
        // And without turns.
        let known = Known::read(&config, &world.codec).unwrap();
        let stale = all("crowd", &known, round, 0);
        send(world, &all("crowd", &known, round, 1));
        send(world, &stale);
    }
    let before = records(&config, &world.codec);
    let said = statuses(&before);
    let orders = 3usize.pow(2 * ROUNDS as u32);
    let of = |group: &str, all: &BTreeMap<String, BreakStatus>| -> Vec<Option<BreakStatus>> {
        (0..orders)
            .map(|n| all.get(&format!("{group}-{n}")).copied())
            .collect()
    };
    for status in [
        BreakStatus::Opened,
        BreakStatus::Explained,
        BreakStatus::Resolved,
    ] {
        assert!(of("turn", &said).contains(&Some(status)), "{status:?}");
    }
    // Within the topic nothing of the turns is out of turn.
    let mut last: BTreeMap<&str, BreakStatus> = BTreeMap::new();
    for b in before.iter().filter(|b| b.key.starts_with("turn")) {
        assert!(follows(last.insert(&b.key, b.status), b.status), "{b:?}");
    }

    alter(
        &admin,
        &[
            ("cleanup.policy", "compact"),
            ("segment.ms", "100"),
            ("min.cleanable.dirty.ratio", "0.01"),
        ],
    );
    let mut filler = orders;
    let compacted = eventually("the topic is compacted", secs(60), || {
        // The segment that is written to is never cleaned: another one begins.
        let next = finding("filler", filler).to_break("reconcile", 1);
        filler += 1;
        send(world, &[next]);
        std::thread::sleep(Duration::from_millis(300));
        let left = records(&config, &world.codec);
        let of_orders = left.iter().filter(|b| !b.key.starts_with("filler"));
        (of_orders.count() == said.len()).then_some(left)
    });
    assert!(compacted.len() < before.len() + filler - orders);
    let after = statuses(&compacted);
    assert_eq!(of("turn", &after), of("turn", &said));
    assert_ne!(
        of("crowd", &after),
        of("crowd", &said),
        "out of turn, compaction changes what is known; else this test shows nothing"
    );
    // What everybody reads.
    let known = Known::read(&config, &world.codec).unwrap();
    for n in 0..orders {
        let f = finding("turn", n);
        assert_eq!(
            known.get(&f.id()).map(|b| b.status),
            said.get(&f.key).copied()
        );
    }
}

#[test]
fn whoever_writes_when_compaction_changes_nothing() {
    let broker = DevKafka::start(finlake_devkafka::Config {
        auto_create_topics: false,
        maintenance_interval_ms: 50,
        ..finlake_devkafka::Config::default()
    })
    .unwrap();
    every_order(&World::at(broker.bootstrap(), "1m,1h,1d"));
}

#[test]
fn whoever_writes_when_compaction_on_apache_kafka_changes_nothing() {
    let setup = KafkaSetup {
        properties: vec![("log.cleaner.backoff.ms".into(), "200".into())],
        ..KafkaSetup::default()
    };
    let Some(kafka) = Kafka::start_with(setup) else {
        return;
    };
    every_order(&World::on(&kafka, "1m,1h,1d"));
}
