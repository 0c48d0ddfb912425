//! Administration through librdkafka, and the settings that take effect.

mod conformance;

use std::time::Duration;

use conformance::clients::*;
use finlake_devkafka::{Config, DevKafka};
use rdkafka::admin::*;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{Message, Timestamp};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};

fn broker() -> DevKafka {
    DevKafka::start(Config::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_come_change_and_go() {
    let broker = broker();
    let admin = admin(&broker.bootstrap());
    let options = AdminOptions::new();
    let name = topic_with(&broker.bootstrap(), "t", 2, &[("retention.ms", "5000")]).await;
    let again = admin
        .create_topics(
            &[NewTopic::new(&name, 2, TopicReplication::Fixed(1))],
            &options,
        )
        .await
        .unwrap();
    assert_eq!(
        again[0].as_ref().unwrap_err().1,
        RDKafkaErrorCode::TopicAlreadyExists
    );
    let wrong = NewTopic::new("wrong", 1, TopicReplication::Fixed(1)).set("retention.ms", "soon");
    assert_eq!(
        admin.create_topics(&[wrong], &options).await.unwrap()[0]
            .as_ref()
            .unwrap_err()
            .1,
        RDKafkaErrorCode::InvalidConfig
    );
    let wrong = NewTopic::new("wrong", 1, TopicReplication::Fixed(3));
    assert_eq!(
        admin.create_topics(&[wrong], &options).await.unwrap()[0]
            .as_ref()
            .unwrap_err()
            .1,
        RDKafkaErrorCode::InvalidReplicationFactor
    );
    let only_checked = NewTopic::new("checked", 1, TopicReplication::Fixed(1));
    admin
        .create_topics(&[only_checked], &AdminOptions::new().validate_only(true))
        .await
        .unwrap()[0]
        .as_ref()
        .unwrap();
    assert!(
        admin
            .inner()
            .fetch_metadata(None, WAIT)
            .unwrap()
            .topics()
            .iter()
            .all(|t| t.name() == name)
    );

    let grown = admin
        .create_partitions(&[NewPartitions::new(&name, 5)], &options)
        .await
        .unwrap();
    assert!(grown[0].is_ok(), "{grown:?}");
    assert_eq!(
        admin
            .inner()
            .fetch_metadata(Some(&name), WAIT)
            .unwrap()
            .topics()[0]
            .partitions()
            .len(),
        5
    );
    let shrunk = admin
        .create_partitions(&[NewPartitions::new(&name, 3)], &options)
        .await
        .unwrap();
    assert_eq!(
        shrunk[0].as_ref().unwrap_err().1,
        RDKafkaErrorCode::InvalidPartitions
    );

    let resource = ResourceSpecifier::Topic(&name);
    let shown = admin.describe_configs([&resource], &options).await.unwrap();
    let map = shown[0].as_ref().unwrap().entry_map();
    assert_eq!(map["retention.ms"].value.as_deref(), Some("5000"));
    assert_eq!(map["retention.ms"].source, ConfigSource::DynamicTopic);
    assert_eq!(map["cleanup.policy"].value.as_deref(), Some("delete"));
    assert_eq!(map["cleanup.policy"].source, ConfigSource::Default);
    let change = AlterConfig::new(resource).set("cleanup.policy", "compact");
    admin.alter_configs([&change], &options).await.unwrap()[0]
        .as_ref()
        .unwrap();
    let shown = admin.describe_configs([&resource], &options).await.unwrap();
    let map = shown[0].as_ref().unwrap().entry_map();
    assert_eq!(map["cleanup.policy"].value.as_deref(), Some("compact"));
    assert_eq!(
        map["retention.ms"].value.as_deref(),
        Some("604800000"),
        "AlterConfigs replaces all"
    );

    admin.delete_topics(&[&name], &options).await.unwrap()[0]
        .as_ref()
        .unwrap();
    let gone = admin.delete_topics(&[&name], &options).await.unwrap();
    assert_eq!(
        gone[0].as_ref().unwrap_err().1,
        RDKafkaErrorCode::UnknownTopicOrPartition
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recreated_topic_is_empty() {
    let broker = broker();
    broker.create_topic("same", 1, &[]).unwrap();
    broker.create_topic("same", 1, &[]).unwrap();
    assert!(broker.create_topic("bad name", 1, &[]).is_err());
    let producer = plain_producer(&broker.bootstrap());
    assert_eq!(send(&producer, "same", 0, "k", "one").await, 0);
    let admin = admin(&broker.bootstrap());
    admin
        .delete_topics(&["same"], &AdminOptions::new())
        .await
        .unwrap()[0]
        .as_ref()
        .unwrap();
    broker.create_topic("same", 1, &[]).unwrap();
    assert_eq!(
        read(
            &broker.bootstrap(),
            "same",
            0,
            "read_committed",
            1,
            Duration::from_millis(500)
        ),
        []
    );
    assert_eq!(
        send(&plain_producer(&broker.bootstrap()), "same", 0, "k", "two").await,
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_for_times_and_records_deleted() {
    let broker = broker();
    // Its records bear times of 1970.
    let kept = [("retention.ms", "-1")];
    let name = topic_with(&broker.bootstrap(), "times", 1, &kept).await;
    for codec in ["none", "gzip", "snappy", "lz4"] {
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", broker.bootstrap())
            .set("compression.codec", codec)
            .set("linger.ms", "50")
            .create()
            .unwrap();
        let base = match codec {
            "none" => 1000,
            "gzip" => 2000,
            "snappy" => 3000,
            _ => 4000,
        };
        let payload = "x".repeat(200);
        let records = (0..10).map(|i| {
            let record = FutureRecord::to(&name)
                .partition(0)
                .key("k")
                .payload(&payload)
                .timestamp(base + i * 10);
            producer.send_result(record).map_err(|(e, _)| e).unwrap()
        });
        for delivery in futures::future::join_all(records).await {
            delivery.unwrap().unwrap();
        }
    }
    let consumer = consumer(&broker.bootstrap(), "g", "read_committed");
    let at = |time: i64| {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&name, 0, Offset::Offset(time))
            .unwrap();
        consumer.offsets_for_times(list, WAIT).unwrap().elements()[0].offset()
    };
    assert_eq!(at(0), Offset::Offset(0));
    for (time, offset) in [
        (1045, 5),
        (1090, 9),
        (1091, 10),
        (2045, 15),
        (3045, 25),
        (4045, 35),
    ] {
        assert_eq!(at(time), Offset::Offset(offset), "at {time}");
    }
    assert_eq!(at(4091), Offset::End);
    let admin = admin(&broker.bootstrap());
    let mut before = TopicPartitionList::new();
    before
        .add_partition_offset(&name, 0, Offset::Offset(12))
        .unwrap();
    admin
        .delete_records(&before, &AdminOptions::new())
        .await
        .unwrap();
    assert_eq!(consumer.fetch_watermarks(&name, 0, WAIT).unwrap(), (12, 40));
    assert_eq!(
        read(&broker.bootstrap(), &name, 0, "read_committed", 28, WAIT)[0].0,
        12,
        "within a compressed batch"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn append_time_and_size_limit() {
    let broker = broker();
    let settings = [
        ("message.timestamp.type", "LogAppendTime"),
        ("max.message.bytes", "2000"),
    ];
    let name = topic_with(&broker.bootstrap(), "lat", 1, &settings).await;
    let producer = plain_producer(&broker.bootstrap());
    let record = FutureRecord::to(&name)
        .partition(0)
        .key("k")
        .payload("v")
        .timestamp(5);
    let sent = producer
        .send(record, WAIT)
        .await
        .map_err(|(e, _)| e)
        .unwrap();
    let consumer = consumer(&broker.bootstrap(), "g", "read_committed");
    assign_from(&consumer, &name, 0, Offset::Beginning);
    let message = consumer.poll(WAIT).unwrap().unwrap();
    let Timestamp::LogAppendTime(time) = message.timestamp() else {
        panic!("{:?}", message.timestamp())
    };
    assert!(time > 1_600_000_000_000);
    assert_eq!(sent.offset, 0);
    let big = "x".repeat(5000);
    let record = FutureRecord::to(&name).partition(0).key("k").payload(&big);
    let error = producer.send(record, WAIT).await.unwrap_err().0;
    assert_eq!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::MessageSizeTooLarge)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_topics_are_not_created() {
    let broker = broker();
    let record = FutureRecord::to("nowhere").key("k").payload("v");
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", broker.bootstrap())
        .set("message.timeout.ms", "1500")
        .create()
        .unwrap();
    assert!(producer.send(record, WAIT).await.is_err());
    let auto = DevKafka::start(Config {
        auto_create_topics: true,
        ..Config::default()
    })
    .unwrap();
    let record = FutureRecord::to("somewhere").key("k").payload("v");
    plain_producer(&auto.bootstrap())
        .send(record, WAIT)
        .await
        .map_err(|(e, _)| e)
        .unwrap();
}

/// The address is free and the threads are gone after a shutdown; readers that wait are let go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_frees_the_port() {
    let broker = broker();
    let address = broker.bootstrap();
    let name = topic(&address, "t", 1).await;
    let waiting = consumer(&address, "g", "read_committed");
    assign_from(&waiting, &name, 0, Offset::Beginning);
    assert!(waiting.poll(Duration::from_millis(300)).is_none());
    broker.shutdown();
    let again = DevKafka::start(Config {
        listen: address.parse().unwrap(),
        ..Config::default()
    })
    .unwrap();
    assert_eq!(again.bootstrap(), address);
}
