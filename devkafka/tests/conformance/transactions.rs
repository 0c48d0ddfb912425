//! Isolation, fencing, generations, offsets of transactions.

use std::time::{Duration, Instant};

use rdkafka::consumer::{Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, Producer};
use rdkafka::{Offset, TopicPartitionList};

use super::clients::*;
use super::member::Member;

const QUIET: Duration = Duration::from_millis(1500);

fn code_of(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::Transaction(e) => Some(e.code()),
        other => other.rdkafka_error_code(),
    }
}

/// Aborted records are invisible to read_committed, visible to read_uncommitted; offsets have holes
/// where the markers lie.
pub async fn abort_isolation(bootstrap: &str) {
    let topic = topic(bootstrap, "abort", 1).await;
    let producer = ready_producer(bootstrap, &unique("tx"), 10_000);
    for (value, commit) in [
        ("a", true),
        ("b", false),
        ("c", true),
        ("d", false),
        ("e", true),
    ] {
        producer.begin_transaction().unwrap();
        send(&producer, &topic, 0, "k", value).await;
        if commit {
            producer.commit_transaction(WAIT).unwrap()
        } else {
            producer.abort_transaction(WAIT).unwrap()
        }
    }
    let committed = read(bootstrap, &topic, 0, "read_committed", 10, QUIET);
    assert_eq!(values(&committed), ["a", "c", "e"]);
    assert_eq!(
        committed.iter().map(|(o, _)| *o).collect::<Vec<_>>(),
        [0, 4, 8],
        "one marker after each transaction"
    );
    let all = read(bootstrap, &topic, 0, "read_uncommitted", 10, QUIET);
    assert_eq!(values(&all), ["a", "b", "c", "d", "e"]);
}

/// Two producers interleave on one partition; one aborts. Only its records go.
pub async fn interleaved_abort(bootstrap: &str) {
    let topic = topic(bootstrap, "interleave", 1).await;
    let a = ready_producer(bootstrap, &unique("tx-a"), 10_000);
    let b = ready_producer(bootstrap, &unique("tx-b"), 10_000);
    a.begin_transaction().unwrap();
    b.begin_transaction().unwrap();
    for i in 0..5 {
        send(&a, &topic, 0, "k", &format!("a{i}")).await;
        send(&b, &topic, 0, "k", &format!("b{i}")).await;
    }
    a.abort_transaction(WAIT).unwrap();
    b.commit_transaction(WAIT).unwrap();
    let committed = read(bootstrap, &topic, 0, "read_committed", 10, QUIET);
    assert_eq!(values(&committed), ["b0", "b1", "b2", "b3", "b4"]);
}

/// An open transaction holds read_committed readers at its first record, even of others' records;
/// watermarks show the last stable offset.
pub async fn open_transaction_blocks(bootstrap: &str) {
    let topic = topic(bootstrap, "block", 1).await;
    let open = ready_producer(bootstrap, &unique("tx"), 20_000);
    let plain = plain_producer(bootstrap);
    send(&plain, &topic, 0, "k", "before").await;
    open.begin_transaction().unwrap();
    send(&open, &topic, 0, "k", "inside").await;
    send(&plain, &topic, 0, "k", "after").await;
    let committed = read(bootstrap, &topic, 0, "read_committed", 10, QUIET);
    assert_eq!(values(&committed), ["before"]);
    let reader = consumer(bootstrap, &unique("g"), "read_committed");
    assert_eq!(
        reader.fetch_watermarks(&topic, 0, WAIT).unwrap(),
        (0, 1),
        "last stable offset"
    );
    let all = consumer(bootstrap, &unique("g"), "read_uncommitted");
    assert_eq!(
        all.fetch_watermarks(&topic, 0, WAIT).unwrap(),
        (0, 3),
        "high watermark"
    );
    open.commit_transaction(WAIT).unwrap();
    let committed = read(bootstrap, &topic, 0, "read_committed", 3, QUIET);
    assert_eq!(values(&committed), ["before", "inside", "after"]);
    assert_eq!(
        reader.fetch_watermarks(&topic, 0, WAIT).unwrap(),
        (0, 4),
        "records and one marker"
    );
}

/// A second producer with the same id aborts what the first has open and locks it out for good.
pub async fn fencing(bootstrap: &str) {
    let topic = topic(bootstrap, "fence", 1).await;
    let id = unique("tx");
    let old = ready_producer(bootstrap, &id, 10_000);
    old.begin_transaction().unwrap();
    send(&old, &topic, 0, "k", "zombie").await;
    let new = ready_producer(bootstrap, &id, 10_000);
    new.begin_transaction().unwrap();
    send(&new, &topic, 0, "k", "alive").await;
    let error = old.commit_transaction(WAIT).unwrap_err();
    let KafkaError::Transaction(e) = &error else {
        panic!("{error}")
    };
    assert!(e.is_fatal(), "{error}");
    assert_eq!(
        old.client().fatal_error().map(|(code, _)| code),
        Some(RDKafkaErrorCode::Fenced)
    );
    new.commit_transaction(WAIT).unwrap();
    let committed = read(bootstrap, &topic, 0, "read_committed", 2, QUIET);
    assert_eq!(values(&committed), ["alive"]);
}

/// A member of an earlier generation cannot commit offsets in a transaction (KIP-447).
pub async fn stale_generation(bootstrap: &str) {
    let input = topic(bootstrap, "stale", 2).await;
    let group = unique("g");
    let first = consumer(bootstrap, &group, "read_committed");
    first.subscribe(&[&input]).unwrap();
    poll_until_assigned(&first, 2);
    let stale = first.group_metadata().unwrap();
    let producer = ready_producer(bootstrap, &unique("tx"), 10_000);
    producer.begin_transaction().unwrap();
    producer
        .send_offsets_to_transaction(&offsets(&input, &[(0, 0)]), &stale, WAIT)
        .unwrap();
    producer.commit_transaction(WAIT).unwrap();

    let second = consumer(bootstrap, &group, "read_committed");
    second.subscribe(&[&input]).unwrap();
    both_assigned(&first, &second);
    producer.begin_transaction().unwrap();
    let error = producer
        .send_offsets_to_transaction(&offsets(&input, &[(0, 1)]), &stale, WAIT)
        .unwrap_err();
    let KafkaError::Transaction(e) = &error else {
        panic!("{error}")
    };
    assert!(e.txn_requires_abort(), "{error}");
    producer.abort_transaction(WAIT).unwrap();

    let fresh = first.group_metadata().unwrap();
    producer.begin_transaction().unwrap();
    producer
        .send_offsets_to_transaction(&offsets(&input, &[(0, 1)]), &fresh, WAIT)
        .unwrap();
    producer.commit_transaction(WAIT).unwrap();
}

fn both_assigned(a: &BaseConsumer, b: &BaseConsumer) {
    let begin = Instant::now();
    loop {
        for c in [a, b] {
            if let Some(m) = c.poll(Duration::from_millis(20)) {
                m.unwrap();
            }
        }
        if a.assignment().unwrap().count() == 1 && b.assignment().unwrap().count() == 1 {
            return;
        }
        assert!(begin.elapsed() < WAIT, "no balance");
    }
}

fn metadata_of(bootstrap: &str, group: &str) -> (Member<Usual>, ConsumerGroupMetadata) {
    let consumer = consumer(bootstrap, group, "read_committed");
    let metadata = consumer.group_metadata().unwrap();
    (consumer, metadata)
}

/// Records and offsets of a transaction take effect together, or not at all; a commit without
/// generation and member is accepted.
pub async fn atomic_offsets(bootstrap: &str) {
    let (input, output) = (
        topic(bootstrap, "in", 1).await,
        topic(bootstrap, "out", 1).await,
    );
    let group = unique("g");
    let (consumer, metadata) = metadata_of(bootstrap, &group);
    let producer = ready_producer(bootstrap, &unique("tx"), 10_000);
    producer.begin_transaction().unwrap();
    send(&producer, &output, 0, "k", "x").await;
    producer
        .send_offsets_to_transaction(&offsets(&input, &[(0, 7)]), &metadata, WAIT)
        .unwrap();
    producer.abort_transaction(WAIT).unwrap();
    assert_eq!(committed(&consumer, &input, 0), None);
    producer.begin_transaction().unwrap();
    send(&producer, &output, 0, "k", "y").await;
    producer
        .send_offsets_to_transaction(&offsets(&input, &[(0, 9)]), &metadata, WAIT)
        .unwrap();
    producer.commit_transaction(WAIT).unwrap();
    assert_eq!(committed(&consumer, &input, 0), Some(9));
    assert_eq!(
        values(&read(bootstrap, &output, 0, "read_committed", 2, QUIET)),
        ["y"]
    );
}

/// While offsets are pending in a transaction, a read that asks for stable offsets waits.
pub async fn unstable_offsets(bootstrap: &str) {
    let input = topic(bootstrap, "unstable", 2).await;
    let group = unique("g");
    let (consumer, metadata) = metadata_of(bootstrap, &group);
    let producer = ready_producer(bootstrap, &unique("tx"), 20_000);
    producer.begin_transaction().unwrap();
    producer
        .send_offsets_to_transaction(&offsets(&input, &[(0, 5)]), &metadata, WAIT)
        .unwrap();
    let ask = |partition| {
        let mut list = TopicPartitionList::new();
        list.add_partition(&input, partition);
        consumer.committed_offsets(list, Duration::from_millis(1500))
    };
    assert!(ask(0).is_err(), "pending offset must not be readable");
    assert_eq!(
        ask(1).unwrap().elements()[0].offset(),
        Offset::Invalid,
        "only that partition waits"
    );
    producer.commit_transaction(WAIT).unwrap();
    assert_eq!(committed(&consumer, &input, 0), Some(5));
}

/// A transaction left open is aborted after its timeout, and its producer fenced.
pub async fn timeout_abort(bootstrap: &str) {
    let topic = topic(bootstrap, "timeout", 1).await;
    let producer = ready_producer(bootstrap, &unique("tx"), 2_000);
    let begin = Instant::now();
    producer.begin_transaction().unwrap();
    send(&producer, &topic, 0, "k", "lost").await;
    send(&plain_producer(bootstrap), &topic, 0, "k", "kept").await;
    let found = read(bootstrap, &topic, 0, "read_committed", 1, WAIT);
    assert_eq!(values(&found), ["kept"]);
    assert!(
        begin.elapsed() > Duration::from_millis(1_000),
        "aborted too early"
    );
    let error = producer.commit_transaction(WAIT).unwrap_err();
    let KafkaError::Transaction(e) = &error else {
        panic!("{error}")
    };
    assert!(e.is_fatal(), "{error}");
    assert_eq!(code_of(&error), Some(RDKafkaErrorCode::Fenced), "{error}");
}

/// The whole log can be read again from 0, with the same offsets.
pub async fn replay_from_zero(bootstrap: &str) {
    let topic = topic(bootstrap, "replay", 1).await;
    let producer = ready_producer(bootstrap, &unique("tx"), 10_000);
    for i in 0..20 {
        producer.begin_transaction().unwrap();
        for j in 0..5 {
            send(&producer, &topic, 0, "k", &format!("{i}.{j}")).await;
        }
        if i % 3 == 0 {
            producer.abort_transaction(WAIT).unwrap()
        } else {
            producer.commit_transaction(WAIT).unwrap()
        }
    }
    let first = read(bootstrap, &topic, 0, "read_committed", 65, QUIET);
    assert_eq!(first.len(), 65);
    assert_eq!(
        first,
        read(bootstrap, &topic, 0, "read_committed", 65, QUIET)
    );
}

/// A transactional batch that the coordinator was not told of is refused (no hanging transactions):
/// the client never does this, so it is shown by a fenced producer's late batch.
pub async fn late_batch_of_fenced_producer(bootstrap: &str) {
    let topic = topic(bootstrap, "late", 1).await;
    let id = unique("tx");
    let old: FutureProducer = ready_producer(bootstrap, &id, 10_000);
    old.begin_transaction().unwrap();
    send(&old, &topic, 0, "k", "one").await;
    let _new = ready_producer(bootstrap, &id, 10_000);
    let record = rdkafka::producer::FutureRecord::to(&topic)
        .partition(0)
        .key("k")
        .payload("two");
    assert!(old.send(record, WAIT).await.is_err());
    let found = read(bootstrap, &topic, 0, "read_committed", 1, QUIET);
    assert!(found.is_empty(), "{found:?}");
}
