//! The role against the development broker: what it outlives, and which of several is active.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use finlake_devkafka::{Config as BrokerConfig, DevKafka, Fault, Storage};
use finlake_schemas::registry::Subject;
use finlake_schemas::{Codec, InputRange, Kind, LedgerEntry, hash128, topics};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::runtime::Runtime;

use super::*;
use crate::config::{Config, Inputs};
use crate::serve::metrics::Metrics;
use crate::{kafka, parts};

mod tables;

const PARTITIONS: i32 = 3;
/// Of Kafka.
const TOPIC_AUTHORIZATION_FAILED: i16 = 29;

struct Fixture {
    data: tempfile::TempDir,
    broker: DevKafka,
    /// A process of its own to its users: it can go away and come back.
    registry: Option<DevKafka>,
    registry_at: SocketAddr,
    config: Config,
    codec: Arc<Codec>,
    runtime: Runtime,
    /// Last commit and the hash of its entry, by partition.
    written: BTreeMap<i32, (i64, u128)>,
}

fn registry(data: &tempfile::TempDir, listen: SocketAddr) -> DevKafka {
    DevKafka::start(BrokerConfig {
        registry: Some(listen),
        storage: Storage::Folder(data.path().join("registry")),
        ..BrokerConfig::default()
    })
    .unwrap()
}

impl Fixture {
    fn new() -> Fixture {
        let data = tempfile::tempdir().unwrap();
        let broker = DevKafka::start(BrokerConfig {
            auto_create_topics: false,
            registry: None,
            ..BrokerConfig::default()
        })
        .unwrap();
        let registry = registry(&data, SocketAddr::from(([127, 0, 0, 1], 0)));
        let url = registry.registry_url().unwrap();
        let registry_at = url.trim_start_matches("http://").parse().unwrap();
        let set = |key: &str, value: &str| (key.to_owned(), value.to_owned(), "--set".to_owned());
        let inputs = Inputs {
            data: Some(data.path().to_owned()),
            overrides: vec![
                set("kafka.bootstrap_servers", &broker.bootstrap()),
                set("registry.url", &url),
                set("kafka.partitions", &PARTITIONS.to_string()),
            ],
            ..Inputs::default()
        };
        let config = Config::load(&inputs).unwrap();
        for topic in [topics::LEDGER, topics::BREAKS] {
            broker
                .create_topic(topic, PARTITIONS, topics::config(topic))
                .unwrap();
        }
        let codec = Codec::connect(parts::registry(&config), &Subject::all()).unwrap();
        Fixture {
            data,
            broker,
            registry: Some(registry),
            registry_at,
            config,
            codec: Arc::new(codec),
            runtime: Runtime::new().unwrap(),
            written: BTreeMap::new(),
        }
    }

    /// Writes the next entries of a partition; `skip` leaves as many numbers out before.
    fn write(&mut self, partition: i32, entries: i64, skip: i64) {
        let producer: BaseProducer = kafka::client(&self.config).create().unwrap();
        let (commit, hash) = self.written.entry(partition).or_default();
        *commit += skip;
        for _ in 0..entries {
            *commit += 1;
            let entry = LedgerEntry {
                app_id: "finlake".into(),
                task: partition,
                commit: *commit,
                system_time: *commit * 1_000,
                stream_times: vec![],
                inputs: vec![InputRange {
                    topic: topics::TICKS.into(),
                    start: *commit - 1,
                    end: *commit,
                    records: 1,
                    hash: 0,
                    accepted: 1,
                    duplicates: 0,
                    rejected: 0,
                    skipped: 0,
                }],
                outputs: vec![],
                corrections: 0,
                totals: ["records", "accepted"]
                    .map(|name| (name.to_owned(), *commit))
                    .into(),
                schema_ids: vec![],
                prev_hash: *hash,
                last: false,
                heartbeat: false,
            };
            let mut value = Vec::new();
            self.codec.encode_ledger(&entry, &mut value).unwrap();
            *hash = hash128(&[], &value);
            let record = BaseRecord::<(), _>::to(topics::LEDGER).partition(partition);
            producer.send(record.payload(&value)).unwrap();
        }
        producer.flush(Duration::from_secs(10)).unwrap();
    }

    fn audit(&self, codec: &Arc<Codec>) -> (Audit, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new().unwrap());
        let lake = self.runtime.block_on(parts::open_lake(&self.config));
        let audit = Audit::start(
            &self.config,
            codec.clone(),
            lake.unwrap(),
            metrics.clone(),
            self.runtime.handle().clone(),
        );
        (audit.unwrap(), metrics)
    }

    fn breaks(&self) -> Vec<String> {
        let known = Known::read(&self.config, &self.codec).unwrap();
        let causes = known.values().map(|b| format!("{} {}", b.key, b.cause));
        causes.collect()
    }
}

/// Sum of a metric over its labels.
fn sum(metrics: &Metrics, name: &str) -> i64 {
    let all = metrics.registry.gather();
    let of = all.iter().filter(|f| f.name() == name);
    let values = of.flat_map(|f| f.get_metric().iter());
    let sum: f64 = values
        .map(|m| m.get_counter().get_value() + m.get_gauge().get_value())
        .sum();
    sum as i64
}

fn entries(metrics: &Metrics) -> i64 {
    sum(metrics, "finlake_audit_entries_total")
}

fn active(metrics: &Metrics) -> i64 {
    sum(metrics, "finlake_audit_active")
}

fn eventually(what: &str, seconds: u64, is: impl Fn() -> bool) {
    let by = Instant::now() + Duration::from_secs(seconds);
    while !is() {
        assert!(Instant::now() < by, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn end(audit: Audit) {
    audit.stop();
    audit.join().unwrap();
}

#[test]
fn the_audit_reads_on_after_an_error_of_kafka() {
    let mut f = Fixture::new();
    f.write(0, 3, 0);
    let (audit, metrics) = f.audit(&f.codec);
    eventually("it reads the ledger", 30, || entries(&metrics) == 3);
    let refused = Fault::Error(TOPIC_AUTHORIZATION_FAILED);
    assert!(f.broker.faults().inject("Fetch", refused, 3));
    f.write(0, 4, 0);
    let struck = || f.broker.faults().outstanding() == 0;
    eventually("Kafka refuses what it asks", 60, struck);
    f.write(0, 2, 0);
    eventually("it reads on", 60, || entries(&metrics) == 9);
    assert!(!audit.ended());
    end(audit);
    assert_eq!(f.breaks(), Vec::<String>::new());
}

/// What has been polled and could not be folded is polled again.
#[test]
fn nothing_is_passed_over_while_the_registry_is_away() {
    let mut f = Fixture::new();
    // One that has not met the ledger's schema yet.
    let breaks = [Subject::new(topics::BREAKS, Kind::Break)];
    let codec = Arc::new(Codec::connect(parts::registry(&f.config), &breaks).unwrap());
    f.registry = None;
    f.write(1, 5, 0);
    f.write(2, 5, 0);
    let (audit, metrics) = f.audit(&codec);
    eventually("it is active", 30, || active(&metrics) == 1);
    // Some tries.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(entries(&metrics), 0);
    f.registry = Some(registry(&f.data, f.registry_at));
    eventually("it reads all", 60, || entries(&metrics) == 10);
    f.write(1, 1, 0);
    eventually("and what comes", 30, || entries(&metrics) == 11);
    end(audit);
    assert_eq!(f.breaks(), Vec::<String>::new());
}

#[test]
fn one_of_several_is_active_and_reads_all_partitions() {
    let mut f = Fixture::new();
    for p in 0..PARTITIONS {
        f.write(p, 4, 0);
    }
    let mut running = vec![f.audit(&f.codec), f.audit(&f.codec), f.audit(&f.codec)];
    let at = |running: &[(Audit, Arc<Metrics>)]| {
        let mut seats = running.iter().map(|(_, m)| active(m));
        seats.position(|seat| seat == 1)
    };
    while !running.is_empty() {
        eventually("one is active and has read all", 60, || {
            let seats: Vec<i64> = running.iter().map(|(_, m)| active(m)).collect();
            let Some(at) = at(&running) else {
                return false;
            };
            seats.iter().sum::<i64>() == 1
                && sum(&running[at].1, "finlake_audit_commit") == 4 * i64::from(PARTITIONS)
        });
        // Who stands by shows nothing of what it may have seen before.
        for (_, metrics) in running.iter().filter(|(_, m)| active(m) == 0) {
            assert_eq!(sum(metrics, "finlake_audit_commit"), 0);
        }
        let active = running.remove(at(&running).unwrap());
        end(active.0);
    }
    assert_eq!(f.breaks(), Vec::<String>::new());

    // What happens while nobody is there is found by who comes.
    f.write(1, 1, 2);
    let (audit, metrics) = f.audit(&f.codec);
    eventually("it has read on", 60, || entries(&metrics) == 13);
    end(audit);
    assert_eq!(f.breaks(), ["1:7 INV-12:commit"]);
}
