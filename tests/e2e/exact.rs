//! Exactly once on Apache Kafka: several instances, kills, pauses; afterwards the tables equal the batch recomputation.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use finlake::config::{Config, Inputs};
use finlake::generate::Rng;
use finlake_devkafka::DevKafka;
use finlake_schemas::registry::{RegistryConfig, Subject};
use finlake_schemas::{Codec, Dec8, Tick, topics};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::harness::{Finlake, Kafka, secs};
use crate::{oracle, rows};

pub const PARTITIONS: i32 = 4;

/// A Kafka, a registry, a lakehouse folder and state folders of instances.
pub struct World {
    pub bootstrap: String,
    registry: Arc<DevKafka>,
    dir: tempfile::TempDir,
    pub codec: Codec,
    intervals: &'static str,
    app: String,
}

impl World {
    /// On a real broker; the registry is the development one.
    pub fn on(kafka: &Kafka, intervals: &'static str) -> World {
        World::at(kafka.bootstrap(), intervals)
    }

    pub fn at(bootstrap: String, intervals: &'static str) -> World {
        let registry = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
        World::with(bootstrap, Arc::new(registry), intervals, "finlake")
    }

    fn with(
        bootstrap: String,
        registry: Arc<DevKafka>,
        intervals: &'static str,
        app: &str,
    ) -> World {
        let url = registry.registry_url().unwrap();
        let codec = Codec::connect(RegistryConfig::new(&url), &Subject::all()).unwrap();
        World {
            bootstrap,
            registry,
            dir: tempfile::tempdir().unwrap(),
            codec,
            intervals,
            app: app.to_owned(),
        }
    }

    /// The same topics, read by another application into tables of its own.
    pub fn beside(&self, app: &str) -> World {
        let (bootstrap, registry) = (self.bootstrap.clone(), self.registry.clone());
        World::with(bootstrap, registry, self.intervals, app)
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("lake")
    }

    /// Settings of an instance: own state folder, shared tables.
    fn settings(&self, instance: &str) -> Vec<(&'static str, String)> {
        let state = self.dir.path().join(format!("state-{instance}"));
        vec![
            ("kafka.bootstrap_servers", self.bootstrap.clone()),
            ("registry.url", self.registry.registry_url().unwrap()),
            ("kafka.application_id", self.app.clone()),
            ("kafka.partitions", PARTITIONS.to_string()),
            ("kafka.instance_id", instance.to_owned()),
            ("state.dir", state.display().to_string()),
            ("stream.intervals", self.intervals.to_owned()),
            ("stream.session_timeout_ms", "8000".to_owned()),
            ("stream.transaction_timeout_ms", "4000".to_owned()),
            ("lake.commit_interval", "1s".to_owned()),
            ("serve.listen", "127.0.0.1:0".to_owned()),
        ]
    }

    /// A command of an instance.
    pub fn finlake(&self, instance: &str) -> Finlake {
        self.finlake_at(instance, &self.data())
    }

    /// The same with tables of its own.
    pub fn finlake_at(&self, instance: &str, data: &Path) -> Finlake {
        let finlake = Finlake::new()
            .name(&format!("finlake-{instance}"))
            .data(data);
        let settings = self.settings(instance);
        settings.iter().fold(finlake, |f, (k, v)| f.set(k, v))
    }

    /// The same, for what runs inside of the test.
    pub fn config(&self, instance: &str) -> Config {
        let settings = self.settings(instance).into_iter();
        let inputs = Inputs {
            data: Some(self.data()),
            overrides: settings
                .map(|(k, v)| (k.to_owned(), v, "--set".to_owned()))
                .collect(),
            ..Inputs::default()
        };
        Config::load(&inputs).unwrap()
    }

    pub fn create_topics(&self) {
        self.finlake("setup")
            .args(["topics", "create"])
            .run(secs(60))
            .ok();
    }

    /// A tick as a record.
    pub fn message(&self, tick: &Tick<'_>) -> finlake::demo::market::Message {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        tick.key(&mut key);
        self.codec.encode_tick(tick, 2, &mut value).unwrap();
        finlake::demo::market::Message { key, value }
    }

    /// A trade of one coin; `time` in µs.
    pub fn trade(
        &self,
        symbol: &str,
        id: i64,
        time: i64,
        price: i64,
    ) -> finlake::demo::market::Message {
        self.message(&Tick {
            source: "sim",
            symbol,
            trade_id: id,
            price: Dec8(i128::from(price) * 100_000_000),
            quantity: Dec8(100_000_000),
            trade_time: time,
            event_time: None,
            buyer_maker: None,
            ingest_time: None,
            first_trade_id: None,
            last_trade_id: None,
        })
    }

    /// Sends messages in order; partition by murmur2 of the key.
    pub fn produce(&self, messages: &[finlake::demo::market::Message]) {
        use finlake::ingest::{KafkaOut, Out};
        let properties = [("bootstrap.servers".to_owned(), self.bootstrap.clone())];
        let mut out = KafkaOut::new(&properties, topics::TICKS).unwrap();
        for m in messages {
            out.send(&m.key, &m.value).unwrap();
        }
        out.finish().unwrap();
    }

    /// Processes what is left and stops: everything is in the tables afterwards.
    pub fn finish(&self, instance: &str) {
        self.finlake(instance)
            .args(["run", "--until-caught-up"])
            .run(secs(300))
            .ok();
    }

    /// Every record of a topic as read_committed sees it.
    pub fn read(&self, topic: &str) -> Vec<(oracle::Input, Vec<(String, String)>)> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", "test-reader")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("fetch.queue.backoff.ms", "2")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        for p in 0..PARTITIONS {
            list.add_partition_offset(topic, p, Offset::Beginning)
                .unwrap();
        }
        consumer.assign(&list).unwrap();
        let (mut all, mut ended) = (Vec::new(), BTreeSet::new());
        while ended.len() < PARTITIONS as usize {
            match consumer.poll(secs(60)).expect("records or the end") {
                Ok(m) => {
                    let headers = m.headers().map(|h| {
                        h.iter()
                            .map(|h| {
                                (
                                    h.key.to_owned(),
                                    String::from_utf8_lossy(h.value.unwrap_or_default())
                                        .into_owned(),
                                )
                            })
                            .collect()
                    });
                    all.push((
                        oracle::Input {
                            partition: m.partition(),
                            offset: m.offset(),
                            timestamp_ms: m.timestamp().to_millis().unwrap_or(-1),
                            key: m.key().unwrap_or_default().to_vec(),
                            value: m.payload().unwrap_or_default().to_vec(),
                        },
                        headers.unwrap_or_default(),
                    ));
                }
                Err(KafkaError::PartitionEOF(p)) => {
                    ended.insert(p);
                }
                Err(e) => panic!("{topic}: {e}"),
            }
        }
        all
    }

    /// The whole proof: tables and DLQ equal the recomputation, histories and ledger hold.
    pub fn verify(&self) {
        let inputs: Vec<oracle::Input> = self
            .read(topics::TICKS)
            .into_iter()
            .map(|(i, _)| i)
            .collect();
        let names: Vec<&str> = self.intervals.split(',').collect();
        let expected = oracle::recompute(&inputs, &self.codec, &names, 10_000_000);
        let data = self.data();
        same("Bronze", &rows::bronze(&data), &expected.bronze);
        same("Silver", &rows::silver(&data), &expected.silver);
        same("Gold", &rows::gold(&data), &expected.gold);
        rows::histories(
            &data,
            "silver.market_ohlcv",
            "source, symbol, bar_interval, bar_start",
        );
        rows::histories(&data, "gold.market_metrics", "source, symbol, trade_date");
        self.dead_letters(&expected);
        self.ledger(&expected);
    }

    fn dead_letters(&self, expected: &oracle::Expected) {
        let mut found = BTreeSet::new();
        for (record, headers) in self.read(topics::DLQ) {
            let header = |name: &str| {
                headers
                    .iter()
                    .find(|(k, _)| k == name)
                    .map(|(_, v)| v.clone())
            };
            let class = header("finlake.error.class").expect("a class");
            assert!(
                !class.starts_with("too_late"),
                "{class} does not belong here"
            );
            assert!(header("finlake.error.message").is_some_and(|m| !m.is_empty()));
            let partition: i32 = header("finlake.partition").unwrap().parse().unwrap();
            let offset: i64 = header("finlake.offset").unwrap().parse().unwrap();
            assert_eq!(
                partition, record.partition,
                "output partition = input partition"
            );
            assert!(
                found.insert((partition, offset)),
                "{partition}@{offset} is in the DLQ twice"
            );
        }
        same("DLQ", &found, &expected.rejected);
    }

    /// INV-11 and INV-12 over the whole ledger, and the chain of its entries.
    fn ledger(&self, expected: &oracle::Expected) {
        let mut next = vec![(1i64, 0i64, 0u128); PARTITIONS as usize];
        let (mut accepted, mut duplicates, mut rejected) = (0, 0, 0);
        for (record, _) in self.read(topics::LEDGER) {
            let e = self.codec.decode_ledger(&record.value).unwrap();
            let at = &mut next[record.partition as usize];
            assert_eq!(
                e.commit, at.0,
                "INV-12: commit numbers are contiguous, partition {}",
                record.partition
            );
            assert_eq!(
                e.prev_hash, at.2,
                "the chain of entries, partition {} commit {}",
                record.partition, e.commit
            );
            let ticks = e.inputs.iter().find(|i| i.topic == topics::TICKS).unwrap();
            assert_eq!(ticks.start, at.1, "INV-12: positions are contiguous");
            assert_eq!(
                ticks.records,
                ticks.accepted + ticks.duplicates + ticks.rejected,
                "INV-11: {e:?}"
            );
            accepted += ticks.accepted;
            duplicates += ticks.duplicates;
            rejected += ticks.rejected;
            *at = (
                e.commit + 1,
                ticks.end,
                finlake_schemas::hash128(&[], &record.value),
            );
        }
        assert_eq!(
            (accepted, duplicates, rejected),
            (
                expected.accepted as i64,
                expected.duplicates as i64,
                expected.rejected.len() as i64
            ),
            "sums of the ledger"
        );
    }
}

fn same<T: Ord + std::fmt::Debug>(what: &str, found: &BTreeSet<T>, expected: &BTreeSet<T>) {
    let missing: Vec<_> = expected.difference(found).take(3).collect();
    let extra: Vec<_> = found.difference(expected).take(3).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "{what}: {} rows, expected {}; missing e.g. {missing:#?}; not expected e.g. {extra:#?}",
        found.len(),
        expected.len()
    );
}

/// Messages of a generated market with duplicates, late trades and poison; the late group last.
pub fn market(
    world: &World,
    seed: u64,
    symbols: usize,
    trades: u64,
) -> Vec<finlake::demo::market::Message> {
    let mut feed = finlake::demo::market::feed(seed, symbols, trades, &world.codec).unwrap();
    feed.first.append(&mut feed.late);
    feed.first
}

#[test]
fn two_instances_on_apache_kafka_equal_the_recomputation() {
    let Some(kafka) = Kafka::start() else { return };
    let world = World::on(&kafka, "1m,5m,1h,1d");
    world.create_topics();
    let messages = market(&world, 7, 12, 60_000);
    let (first, rest) = messages.split_at(messages.len() / 2);
    let mut a = world.finlake("a").arg("run").spawn();
    let mut b = world.finlake("b").arg("run").spawn();
    world.produce(first);
    std::thread::sleep(secs(6));
    world.produce(rest);
    std::thread::sleep(secs(4));
    assert_eq!(a.stop(secs(60)), 0, "{}", a.tail());
    assert_eq!(b.stop(secs(60)), 0, "{}", b.tail());
    for log in [a.log(), b.log()] {
        assert!(
            !log.contains("quality.breaks: "),
            "the table of breaks was followed without a second try: {log}"
        );
    }
    world.finish("a");
    world.verify();
    world.reconciles();
}

/// kill -9 at random moments, restarted each time with its store.
pub fn kills(world: &World, kills: usize, trades: u64, seed: u64) {
    world.create_topics();
    let messages = market(world, seed, 16, trades);
    let mut rng = Rng::new(seed);
    let mut process = world.finlake("a").arg("run").spawn();
    let piece = messages.len() / (kills + 1) + 1;
    let mut replayed = 0;
    for part in messages.chunks(piece).take(kills) {
        world.produce(part);
        std::thread::sleep(Duration::from_millis(300 + rng.below(2_500)));
        process.kill9();
        assert!(
            !process.log().contains("rebuilding"),
            "the store was wiped: {}",
            process.tail()
        );
        replayed += process.log().matches("replayed").count();
        process = world.finlake("a").arg("run").spawn();
    }
    for part in messages.chunks(piece).skip(kills) {
        world.produce(part);
    }
    // Before it runs, a signal ends it without a word.
    process.wait_for_log("replayed", secs(60));
    std::thread::sleep(secs(3));
    assert_eq!(process.stop(secs(60)), 0, "{}", process.tail());
    replayed += process.log().matches("replayed").count();
    assert!(
        replayed > 0,
        "the log says how many changelog records were replayed: {}",
        process.tail()
    );
    world.finish("a");
    world.verify();
    world.replays();
    world.reconciles();
}

#[test]
fn kills_at_random_moments_cost_nothing() {
    let Some(kafka) = Kafka::start() else { return };
    kills(&World::on(&kafka, "1m,1h,1d"), 4, 60_000, 11);
}

/// The long form: 30 kills, a million trades.
#[test]
#[ignore = "chaos: ./test --chaos"]
fn thirty_kills_over_a_million_trades() {
    let Some(kafka) = Kafka::start() else { return };
    kills(&World::on(&kafka, "1m,1h,1d"), 30, 1_000_000, 3);
}

#[test]
fn a_zombie_woken_after_its_session_doubles_nothing() {
    let Some(kafka) = Kafka::start() else { return };
    let world = World::on(&kafka, "1m,1h,1d");
    world.create_topics();
    let messages = market(&world, 5, 12, 40_000);
    let parts: Vec<_> = messages.chunks(messages.len() / 4 + 1).collect();
    let mut a = world.finlake("a").arg("run").spawn();
    let mut b = world.finlake("b").arg("run").spawn();
    world.produce(parts[0]);
    std::thread::sleep(secs(4));
    world.produce(parts[1]);
    a.pause();
    world.produce(parts[2]);
    // Past the session (8 s) and the broker's scan for dead transactions (10 s).
    std::thread::sleep(secs(22));
    a.resume();
    world.produce(parts[3]);
    std::thread::sleep(secs(10));
    a.stop(secs(60));
    assert_eq!(b.stop(secs(60)), 0, "{}", b.tail());
    world.finish("b");
    world.verify();
    world.replays();
    world.reconciles();
}
