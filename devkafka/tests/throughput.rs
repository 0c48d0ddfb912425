//! How fast librdkafka writes to and reads from the broker. Ignored by default: it measures.
//! `cargo test -p finlake-devkafka --test throughput -- --ignored --nocapture`

mod conformance;

use std::time::{Duration, Instant};

use conformance::clients::*;
use finlake_devkafka::{Config, DevKafka, Storage};
use rdkafka::Offset;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const RECORDS: usize = 1_000_000;

fn measure(bootstrap: &str, topic: &str, what: &str) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("linger.ms", "5")
        .set("enable.idempotence", "true")
        .set("queue.buffering.max.messages", "1000000")
        .create()
        .unwrap();
    let payload = [b'x'; 53];
    let begin = Instant::now();
    for i in 0..RECORDS {
        let key = (i as u32).to_be_bytes();
        let mut record = BaseRecord::to(topic)
            .partition((i % 4) as i32)
            .key(&key[..])
            .payload(&payload[..]);
        while let Err((_, back)) = producer.send(record) {
            producer.poll(Duration::from_millis(1));
            record = back;
        }
        if i % 1024 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(WAIT).unwrap();
    let rate = RECORDS as f64 / begin.elapsed().as_secs_f64();
    println!("{what}: produce {rate:.0} records/s");

    let mut config = consumer_config(bootstrap, &unique("g"), "read_committed");
    config
        .set("fetch.queue.backoff.ms", "2")
        .set("queued.min.messages", "200000");
    let consumer: rdkafka::consumer::BaseConsumer = config.create().unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    for p in 0..4 {
        list.add_partition_offset(topic, p, Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&list).unwrap();
    let begin = Instant::now();
    let mut seen = 0;
    while seen < RECORDS {
        assert!(begin.elapsed() < Duration::from_secs(120));
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            message.unwrap();
            seen += 1;
        }
    }
    let rate = RECORDS as f64 / begin.elapsed().as_secs_f64();
    println!("{what}: replay {rate:.0} records/s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn produce_and_replay() {
    if let Ok(bootstrap) = std::env::var("FINLAKE_KAFKA_BOOTSTRAP") {
        let topic = topic(&bootstrap, "speed", 4).await;
        return measure(&bootstrap, &topic, "kafka");
    }
    let begin = Instant::now();
    let broker = DevKafka::start(Config::default()).unwrap();
    println!("started in {:?}", begin.elapsed());
    let name = topic(&broker.bootstrap(), "speed", 4).await;
    measure(&broker.bootstrap(), &name, "memory");
    let dir = tempfile::tempdir().unwrap();
    let broker = DevKafka::start(Config {
        storage: Storage::Folder(dir.path().to_owned()),
        ..Config::default()
    })
    .unwrap();
    let name = topic(&broker.bootstrap(), "speed", 4).await;
    measure(&broker.bootstrap(), &name, "folder");
}

/// The latency of a small exactly-once commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn commit_latency() {
    let broker = DevKafka::start(Config::default()).unwrap();
    let bootstrap = std::env::var("FINLAKE_KAFKA_BOOTSTRAP").unwrap_or_else(|_| broker.bootstrap());
    let name = topic(&bootstrap, "latency", 4).await;
    let producer = ready_producer(&bootstrap, &unique("tx"), 10_000);
    let reader = consumer(&bootstrap, &unique("g"), "read_committed");
    let metadata = reader.group_metadata().unwrap();
    let mut times = Vec::new();
    for i in 0..500 {
        let begin = Instant::now();
        producer.begin_transaction().unwrap();
        let mut sent = Vec::new();
        for j in 0..200 {
            let record = rdkafka::producer::FutureRecord::to(&name)
                .partition(j % 4)
                .key("k")
                .payload("0123456789");
            sent.push(producer.send_result(record).map_err(|(e, _)| e).unwrap());
        }
        for delivery in sent {
            delivery.await.unwrap().unwrap();
        }
        producer
            .send_offsets_to_transaction(&offsets(&name, &[(0, i), (1, i)]), &metadata, WAIT)
            .unwrap();
        producer.commit_transaction(WAIT).unwrap();
        times.push(begin.elapsed());
    }
    times.sort();
    println!(
        "commit of 200 records: p50 {:?} p99 {:?} max {:?}",
        times[250], times[495], times[499]
    );
}
