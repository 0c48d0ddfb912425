//! Injected faults, and what librdkafka makes of them.

mod conformance;

use std::time::Duration;

use conformance::clients::*;
use finlake_devkafka::{Config, DevKafka, Fault};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer;

const QUIET: Duration = Duration::from_millis(1000);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_reply_is_lost_is_retried_and_holds() {
    let broker = DevKafka::start(Config::default()).unwrap();
    let name = topic(&broker.bootstrap(), "lost", 1).await;
    let producer = ready_producer(&broker.bootstrap(), &unique("tx"), 10_000);
    broker.faults().inject_end_txn(true, Fault::DropReply, 1);
    producer.begin_transaction().unwrap();
    send(&producer, &name, 0, "k", "once").await;
    producer.commit_transaction(WAIT).unwrap();
    assert_eq!(broker.faults().outstanding(), 0);
    producer.begin_transaction().unwrap();
    send(&producer, &name, 0, "k", "twice").await;
    producer.commit_transaction(WAIT).unwrap();
    assert_eq!(
        values(&read(
            &broker.bootstrap(),
            &name,
            0,
            "read_committed",
            9,
            QUIET
        )),
        ["once", "twice"]
    );
}

/// The outcome is unknown to the client, and the transaction has in fact been committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_never_answered_has_happened() {
    let broker = DevKafka::start(Config::default()).unwrap();
    let name = topic(&broker.bootstrap(), "unknown", 1).await;
    let id = unique("tx");
    let producer = ready_producer(&broker.bootstrap(), &id, 10_000);
    let group = unique("g");
    let reader = consumer(&broker.bootstrap(), &group, "read_committed");
    broker
        .faults()
        .inject_end_txn(true, Fault::Withhold, u32::MAX);
    producer.begin_transaction().unwrap();
    send(&producer, &name, 0, "k", "there").await;
    producer
        .send_offsets_to_transaction(
            &offsets(&name, &[(0, 3)]),
            &reader.group_metadata().unwrap(),
            WAIT,
        )
        .unwrap();
    let error = producer
        .commit_transaction(Duration::from_secs(2))
        .unwrap_err();
    assert!(
        matches!(&error, KafkaError::Transaction(e) if e.is_retriable()),
        "{error}"
    );
    drop(producer);
    broker.faults().clear();
    let next = ready_producer(&broker.bootstrap(), &id, 10_000);
    assert_eq!(
        values(&read(
            &broker.bootstrap(),
            &name,
            0,
            "read_committed",
            1,
            QUIET
        )),
        ["there"]
    );
    assert_eq!(committed(&reader, &name, 0), Some(3));
    next.begin_transaction().unwrap();
    send(&next, &name, 0, "k", "more").await;
    next.commit_transaction(WAIT).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn injected_errors_delays_and_refusals() {
    const ILLEGAL_GENERATION: i16 = 22;
    let broker = DevKafka::start(Config::default()).unwrap();
    let faults = broker.faults();
    let name = topic(&broker.bootstrap(), "errors", 1).await;
    let producer = ready_producer(&broker.bootstrap(), &unique("tx"), 10_000);
    let reader = consumer(&broker.bootstrap(), &unique("g"), "read_committed");
    assert!(!faults.inject("NoSuchApi", Fault::DropReply, 1));
    assert!(faults.inject("TxnOffsetCommit", Fault::Error(ILLEGAL_GENERATION), 1));
    producer.begin_transaction().unwrap();
    let error = producer
        .send_offsets_to_transaction(
            &offsets(&name, &[(0, 1)]),
            &reader.group_metadata().unwrap(),
            WAIT,
        )
        .unwrap_err();
    assert!(
        matches!(&error, KafkaError::Transaction(e) if e.txn_requires_abort()),
        "{error}"
    );
    producer.abort_transaction(WAIT).unwrap();

    // A batch that was appended and not acknowledged comes again and is not appended again.
    assert!(faults.inject("Produce", Fault::DropReply, 2));
    assert!(faults.inject("Produce", Fault::CloseBefore, 1));
    assert!(faults.inject("Produce", Fault::Delay(Duration::from_millis(300)), 1));
    producer.begin_transaction().unwrap();
    send(&producer, &name, 0, "k", "v").await;
    producer.commit_transaction(WAIT).unwrap();
    assert_eq!(faults.outstanding(), 0);

    faults.refuse_connections(true);
    faults.cut_connections();
    assert!(
        reader
            .fetch_watermarks(&name, 0, Duration::from_secs(1))
            .is_err()
    );
    faults.clear();
    assert_eq!(reader.fetch_watermarks(&name, 0, WAIT).unwrap(), (0, 2));
    assert_eq!(
        values(&read(
            &broker.bootstrap(),
            &name,
            0,
            "read_committed",
            9,
            QUIET
        )),
        ["v"]
    );
}
