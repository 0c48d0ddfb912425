//! The commands that talk to Kafka, against the development broker.

use std::collections::BTreeMap;
use std::time::Duration;

use finlake_devkafka::{Config as BrokerConfig, DevKafka};
use finlake_schemas::{dlq as rejected, topics as names};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use super::*;
use crate::cli::{DlqCommand, DlqRedriveArgs, SchemasCommand, TopicsCommand};
use crate::config::Inputs;
use crate::output::Format;

struct Fixture {
    _data: tempfile::TempDir,
    broker: DevKafka,
    config: Config,
    global: Global,
}

impl Fixture {
    fn new() -> Fixture {
        let data = tempfile::tempdir().unwrap();
        let broker = DevKafka::start(BrokerConfig {
            auto_create_topics: false,
            ..BrokerConfig::default()
        })
        .unwrap();
        let set = |key: &str, value: &str| (key.to_owned(), value.to_owned(), "--set".to_owned());
        let inputs = Inputs {
            data: Some(data.path().to_owned()),
            overrides: vec![
                set("kafka.bootstrap_servers", &broker.bootstrap()),
                set("registry.url", &broker.registry_url().unwrap()),
                set("kafka.partitions", "2"),
            ],
            ..Inputs::default()
        };
        let global = Global {
            data: None,
            config: None,
            set: Vec::new(),
            bootstrap: None,
            output: Some(Format::Csv),
            quiet: true,
        };
        Fixture {
            _data: data,
            config: Config::load(&inputs).unwrap(),
            broker,
            global,
        }
    }

    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.broker.bootstrap());
        client
    }

    fn create(&self, dry_run: bool) -> u8 {
        topics::run(
            &self.global,
            &self.config,
            &TopicsCommand::Create { dry_run },
        )
        .unwrap()
    }

    /// Rejected records: partition, class, value.
    fn reject(&self, letters: &[(i32, &str, &str)]) {
        let producer: ThreadedProducer<DefaultProducerContext> = self.client().create().unwrap();
        for (n, (partition, class, value)) in letters.iter().enumerate() {
            let (place, offset) = (partition.to_string(), n.to_string());
            let mut headers = OwnedHeaders::new();
            for (key, value) in [
                ("trace", "t1"),
                (rejected::ERROR_CLASS, class),
                (rejected::ERROR_MESSAGE, "because"),
                (rejected::TOPIC, names::TICKS),
                (rejected::PARTITION, &place),
                (rejected::OFFSET, &offset),
            ] {
                headers = headers.insert(Header {
                    key,
                    value: Some(value),
                });
            }
            let record = BaseRecord::to(names::DLQ)
                .partition(*partition)
                .key("src:SYM")
                .payload(*value)
                .headers(headers);
            producer.send(record).map_err(|(e, _)| e).unwrap();
        }
        producer.flush(Duration::from_secs(10)).unwrap();
    }

    fn redrive(&self, class: Option<&str>, at: Option<(i32, i64)>, dry_run: bool) -> Result<u8> {
        let args = DlqRedriveArgs {
            class: class.map(str::to_owned),
            partition: at.map(|(p, _)| p),
            from: at.map(|(_, o)| o),
            to: at.map(|(_, o)| o),
            dry_run,
        };
        dlq::run(&self.global, &self.config, &DlqCommand::Redrive(args))
    }

    /// What is committed in market.ticks: (partition, value, redrive header).
    fn ticks(&self) -> Vec<(i32, String, String)> {
        let consumer: BaseConsumer = self
            .client()
            .set("group.id", "test")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        for partition in 0..2 {
            list.add_partition_offset(names::TICKS, partition, Offset::Beginning)
                .unwrap();
        }
        consumer.assign(&list).unwrap();
        let (mut out, mut ended) = (Vec::new(), 0);
        while ended < 2 {
            match consumer.poll(Duration::from_secs(10)).expect("an answer") {
                Ok(m) => {
                    let headers = m.headers().unwrap();
                    assert!(
                        headers
                            .iter()
                            .all(|h| h.key == "trace" || h.key == redrive::HEADER)
                    );
                    let place = headers.iter().find(|h| h.key == redrive::HEADER).unwrap();
                    let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
                    assert_eq!(m.key(), Some(&b"src:SYM"[..]));
                    out.push((
                        m.partition(),
                        text(m.payload().unwrap()),
                        text(place.value.unwrap()),
                    ));
                }
                Err(KafkaError::PartitionEOF(_)) => ended += 1,
                Err(e) => panic!("{e}"),
            }
        }
        out.sort();
        out
    }
}

fn tick(partition: i32, value: &str, place: &str) -> (i32, String, String) {
    (partition, value.to_owned(), place.to_owned())
}

#[test]
fn topics_are_created_once_and_then_compared() {
    let fixture = Fixture::new();
    assert_eq!(
        fixture.create(true),
        DIFFERS,
        "all are missing, and a dry run makes none"
    );
    assert_eq!(fixture.create(true), DIFFERS);
    assert_eq!(fixture.create(false), SAME);
    assert_eq!(fixture.create(true), SAME);
    let mut other = Config::clone(&fixture.config);
    other.kafka.partitions = 3;
    let create = TopicsCommand::Create { dry_run: false };
    assert_eq!(
        topics::run(&fixture.global, &other, &create).unwrap(),
        DIFFERS
    );
}

#[test]
fn schemas_are_missing_until_they_are_registered() {
    let fixture = Fixture::new();
    let run = |command| schemas::run(&fixture.global, &fixture.config, &command).unwrap();
    assert_eq!(run(SchemasCommand::Check), DIFFERS);
    assert_eq!(
        run(SchemasCommand::Check),
        DIFFERS,
        "looking registers nothing"
    );
    assert_eq!(run(SchemasCommand::Register), SAME);
    assert_eq!(run(SchemasCommand::Check), SAME);
}

#[test]
fn each_dead_letter_is_redriven_once() {
    let fixture = Fixture::new();
    fixture.create(false);
    fixture.reject(&[
        (0, "invalid", "a"),
        (0, "malformed", "b"),
        (1, "invalid", "c"),
        (0, "too_late:1m", "d"),
        (0, "invalid", "e"),
    ]);
    let counts = dlq::counts(&fixture.config).unwrap();
    let want = [("invalid", 3), ("malformed", 1), ("too_late:1m", 1)];
    assert_eq!(counts, want.map(|(c, n)| (c.to_owned(), n)));

    fixture.redrive(None, None, true).unwrap();
    assert_eq!(fixture.ticks(), [], "a dry run sends nothing");
    let refused = fixture
        .redrive(Some("too_late:1m"), None, false)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("replay"), "{refused}");

    fixture.redrive(Some("invalid"), None, false).unwrap();
    let invalid = [
        tick(0, "a", "0:0"),
        tick(0, "e", "0:3"),
        tick(1, "c", "1:0"),
    ];
    assert_eq!(fixture.ticks(), invalid);
    fixture.redrive(Some("invalid"), None, false).unwrap();
    assert_eq!(fixture.ticks(), invalid, "not a second time");

    // Another class is not hidden by the first one's position; too_late never goes.
    fixture.redrive(None, None, false).unwrap();
    let mut all = invalid.to_vec();
    all.insert(1, tick(0, "b", "0:1"));
    assert_eq!(fixture.ticks(), all);

    // What comes later goes, and by offset a record can be sent again.
    fixture.reject(&[(1, "malformed", "f")]);
    fixture.redrive(None, None, false).unwrap();
    all.push(tick(1, "f", "1:1"));
    assert_eq!(fixture.ticks(), all);
    fixture.redrive(None, Some((0, 1)), false).unwrap();
    let twice = fixture.ticks().iter().filter(|t| t.1 == "b").count();
    assert_eq!((twice, fixture.ticks().len()), (2, all.len() + 1));
    // Positions did not move back by that.
    fixture.redrive(None, None, false).unwrap();
    assert_eq!(fixture.ticks().len(), all.len() + 1);
}

#[test]
fn a_missing_topic_and_a_missing_record_say_what_to_do() {
    let fixture = Fixture::new();
    let error = dlq::counts(&fixture.config).unwrap_err().to_string();
    assert!(error.contains("finlake topics create"), "{error}");
    fixture.create(false);
    assert_eq!(dlq::counts(&fixture.config).unwrap(), []);
    fixture.reject(&[(0, "invalid", "a")]);
    let show = |at| {
        let args = crate::cli::DlqShowArgs { at };
        dlq::run(&fixture.global, &fixture.config, &DlqCommand::Show(args))
    };
    assert_eq!(show((0, 0)).unwrap(), SAME);
    assert!(
        show((0, 9))
            .unwrap_err()
            .to_string()
            .contains("it has 0 to 0")
    );
    assert!(
        show((1, 0))
            .unwrap_err()
            .to_string()
            .contains("it is empty")
    );
    assert!(show((7, 0)).unwrap_err().to_string().contains("0 to 1"));
}

#[test]
fn a_question_makes_no_lakehouse() {
    let fixture = Fixture::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let error = runtime
        .block_on(existing_lake(&fixture.config))
        .unwrap_err()
        .to_string();
    assert!(error.contains("finlake demo --data"), "{error}");
    assert!(!fixture.config.data.catalog().exists());
}

#[test]
fn the_topology_is_described_without_a_registry() {
    let fixture = Fixture::new();
    let text = topology::offline(&fixture.config).unwrap().describe("app");
    assert!(
        text.contains(names::TICKS) && text.contains(names::OHLCV),
        "{text}"
    );
    let changelogs = topology::offline(&fixture.config)
        .unwrap()
        .changelogs("app");
    let unique: BTreeMap<_, _> = changelogs.iter().map(|c| (c, ())).collect();
    assert_eq!(unique.len(), changelogs.len());
}

#[test]
fn a_cluster_elsewhere_is_never_replaced_by_the_folder_of_a_demo() {
    let here = Fixture::new();
    std::fs::create_dir_all(here.config.data.kafka()).unwrap();
    for servers in ["kafka-1.example:9092", "127.0.0.1:1,kafka-1.example:9092"] {
        let mut config = here.config.clone();
        config.kafka.bootstrap_servers = servers.to_owned();
        let (kept, broker) = reached(config).unwrap();
        assert_eq!(kept.kafka.bootstrap_servers, servers);
        assert!(broker.is_none());
    }
    // A cluster that answers is kept; one on this machine that does not is the demo's.
    let (kept, broker) = reached(here.config.clone()).unwrap();
    assert_eq!(kept.kafka.bootstrap_servers, here.broker.bootstrap());
    assert!(broker.is_none());
    let mut config = here.config.clone();
    config.kafka.bootstrap_servers = "127.0.0.1:1".to_owned();
    let (found, broker) = reached(config).unwrap();
    assert_eq!(found.kafka.bootstrap_servers, broker.unwrap().bootstrap());
}

#[test]
fn the_broker_of_a_running_demo_is_asked() {
    let data = tempfile::tempdir().unwrap();
    let config = {
        // A port that nobody listens on.
        let port = {
            let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            taken.local_addr().unwrap().port()
        };
        let servers = format!("127.0.0.1:{port}");
        let set = "kafka.bootstrap_servers".to_owned();
        Config::load(&Inputs {
            data: Some(data.path().to_owned()),
            overrides: vec![(set, servers, "--set".to_owned())],
            ..Inputs::default()
        })
        .unwrap()
    };
    let folder = config.data.kafka();
    assert_eq!(DevKafka::running(&folder), None);
    let demo = || {
        DevKafka::start(BrokerConfig {
            storage: Storage::Folder(folder.clone()),
            ..BrokerConfig::default()
        })
    };
    for _ in 0..2 {
        let demo = demo().unwrap();
        let (found, own) = reached(config.clone()).unwrap();
        assert!(own.is_none());
        assert_eq!(found.kafka.bootstrap_servers, demo.bootstrap());
        assert_eq!(Some(found.registry.url), demo.registry_url());
        // A cluster that was named and answers goes before it.
        let other = DevKafka::start(BrokerConfig::default()).unwrap();
        let mut named = config.clone();
        named.kafka.bootstrap_servers = other.bootstrap();
        let (found, _) = reached(named).unwrap();
        assert_eq!(found.kafka.bootstrap_servers, other.bootstrap());
    }
    // What it said is void once it has ended.
    assert_eq!(DevKafka::running(&folder), None);
    let (found, own) = reached(config).unwrap();
    assert_eq!(found.kafka.bootstrap_servers, own.unwrap().bootstrap());
}
