//! From a file to a broker and back: the codec's ids come from the broker's registry, the trades
//! come back decodable, each in the partition that a Java client would choose.

use std::time::{Duration, Instant};

use finlake_devkafka::{Config, DevKafka};
use finlake_schemas::{Codec, Dec8, RegistryConfig, Subject, Tick, topics};
use rdkafka::Message;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::*;

const PARTITIONS: i32 = 4;

/// The hash of the Java clients, transcribed for this test from its definition.
fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ key.len() as u32;
    let mut words = key.chunks_exact(4);
    for word in words.by_ref() {
        let mut k = u32::from_le_bytes(word.try_into().unwrap()).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    for (at, byte) in rest.iter().enumerate() {
        hash ^= u32::from(*byte) << (8 * at);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[test]
fn murmur2_as_java_publishes_it() {
    for (key, hash) in [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("abc", 479_470_107),
    ] {
        assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
    }
}

fn properties(broker: &DevKafka) -> Vec<(String, String)> {
    vec![("bootstrap.servers".to_owned(), broker.bootstrap())]
}

#[test]
fn trades_arrive_once_and_where_a_java_client_would_put_them() {
    let broker = DevKafka::start(Config::default()).unwrap();
    broker
        .create_topic(topics::TICKS, PARTITIONS, topics::config(topics::TICKS))
        .unwrap();
    let registry = RegistryConfig::new(&broker.registry_url().unwrap());
    let codec = Codec::connect(registry.clone(), &Subject::all()).unwrap();

    let count = 3_000;
    let text: String = (0..count)
        .map(|i| {
            format!(
                "{{\"e\":\"trade\",\"s\":\"S{}USDT\",\"t\":{i},\"p\":\"1.5\",\"q\":\"2\",\"T\":{},\"m\":true}}\n",
                i % 17,
                1_723_161_255_000i64 + i
            )
        })
        .collect();
    let path =
        std::env::temp_dir().join(format!("finlake-ingest-kafka-{}.jsonl", std::process::id()));
    std::fs::write(&path, text).unwrap();
    let options = IngestOptions::default();
    let inputs = open_inputs(std::slice::from_ref(&path), &options).unwrap();
    let mut out = KafkaOut::new(&properties(&broker), topics::TICKS).unwrap();
    let summary = run(inputs, &codec, &mut out, &options, &mut Quiet).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(summary.trades, count as u64);

    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", broker.bootstrap())
        .set("group.id", "check")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut assignment = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        assignment
            .add_partition_offset(topics::TICKS, partition, Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&assignment).unwrap();
    // Another process: it knows no schema but by asking.
    let other = Codec::connect(
        registry,
        &[Subject::new("other", finlake_schemas::Kind::Bar)],
    )
    .unwrap();
    let mut seen = vec![false; count as usize];
    let deadline = Instant::now() + Duration::from_secs(30);
    while seen.contains(&false) {
        assert!(Instant::now() < deadline, "not all trades came back");
        let Some(message) = consumer.poll(Duration::from_millis(100)) else {
            continue;
        };
        let message = message.unwrap();
        let (key, value) = (message.key().unwrap(), message.payload().unwrap());
        let id = finlake_schemas::schema_id(value).unwrap();
        if !other.knows(id) {
            assert_eq!(other.resolve(id), Ok(finlake_schemas::Resolved::Known));
        }
        let tick = other.decode_tick(value).unwrap();
        assert_eq!(
            tick,
            Tick {
                source: "binance",
                symbol: &format!("S{}USDT", tick.trade_id % 17),
                price: Dec8::from_unscaled(150_000_000).unwrap(),
                quantity: Dec8::from_int(2),
                trade_time: 1_723_161_255_000_000 + tick.trade_id * 1_000,
                buyer_maker: Some(true),
                ..tick
            }
        );
        assert!(finlake_schemas::keys::is_input(
            key,
            tick.source,
            tick.symbol
        ));
        let expected = (murmur2(key) & 0x7fff_ffff) % PARTITIONS as u32;
        assert_eq!(message.partition() as u32, expected);
        let slot = &mut seen[tick.trade_id as usize];
        assert!(!*slot, "trade {} came twice", tick.trade_id);
        *slot = true;
    }
    assert_eq!(
        other.resolve(9_999_999),
        Ok(finlake_schemas::Resolved::Unknown)
    );
    // A consumer waits for its coordinator when it closes.
    drop(consumer);
    broker.shutdown();
}

#[test]
fn a_broker_that_is_gone_is_an_error_and_not_a_hang() {
    let broker = DevKafka::start(Config::default()).unwrap();
    broker.create_topic(topics::TICKS, 1, &[]).unwrap();
    let mut properties = properties(&broker);
    properties.push(("message.timeout.ms".to_owned(), "2000".to_owned()));
    let mut out = KafkaOut::new(&properties, topics::TICKS).unwrap();
    out.send(b"k", b"v").unwrap();
    out.finish().unwrap();
    broker.shutdown();
    let result = out.send(b"k", b"v").and_then(|()| out.finish());
    assert!(matches!(result, Err(IngestError::Kafka(_))), "{result:?}");
}
