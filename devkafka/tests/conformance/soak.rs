//! Consume-transform-produce by instances that crash: nothing lost, nothing doubled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::util::Timeout;

use super::clients::*;

/// How an instance's life ended.
enum End {
    /// It was told to stop, or "crashed" in the middle of a transaction.
    Left,
    Failed(KafkaError),
}

/// One life of an instance: read a batch, write it out and commit, until it crashes or all is done.
async fn live(
    bootstrap: &str,
    input: &str,
    output: &str,
    group: &str,
    name: &str,
    stop: &AtomicBool,
    lives: u64,
) -> End {
    let producer = txn_producer(bootstrap, name, 5_000);
    if let Err(e) = producer.init_transactions(WAIT) {
        return End::Failed(e);
    }
    let mut config = consumer_config(bootstrap, group, "read_committed");
    config
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("group.instance.id", name);
    let consumer = create(&config);
    consumer.subscribe(&[input]).unwrap();
    let mut transactions = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut batch = Vec::new();
        let mut next: BTreeMap<i32, i64> = BTreeMap::new();
        let begin = Instant::now();
        while batch.len() < 50 && begin.elapsed() < Duration::from_millis(20) {
            match consumer.poll(Duration::from_millis(5)) {
                Some(Ok(m)) => {
                    next.insert(m.partition(), m.offset() + 1);
                    batch.push((m.partition(), value(&m)));
                }
                Some(Err(e)) => return End::Failed(e),
                None => {}
            }
        }
        if batch.is_empty() {
            continue;
        }
        transactions += 1;
        let crash = lives < 4 && transactions == 5 + lives * 7;
        match transact(&producer, &consumer, input, output, &batch, &next, crash).await {
            Ok(true) => return End::Left,
            Ok(false) => {}
            Err(e) => return End::Failed(e),
        }
    }
    End::Left
}

async fn transact(
    producer: &FutureProducer,
    consumer: &BaseConsumer,
    input: &str,
    output: &str,
    batch: &[(i32, String)],
    next: &BTreeMap<i32, i64>,
    crash: bool,
) -> Result<bool, KafkaError> {
    producer.begin_transaction()?;
    let mut sent = Vec::new();
    for (partition, value) in batch {
        let record = FutureRecord::to(output)
            .partition(*partition)
            .key("k")
            .payload(value);
        sent.push(producer.send_result(record).map_err(|(e, _)| e)?);
    }
    for delivery in sent {
        delivery
            .await
            .map_err(|_| KafkaError::Canceled)?
            .map_err(|(e, _)| e)?;
    }
    let list: Vec<(i32, i64)> = next.iter().map(|(p, o)| (*p, *o)).collect();
    let metadata = consumer.group_metadata().ok_or(KafkaError::Canceled)?;
    producer.send_offsets_to_transaction(
        &offsets(input, &list),
        &metadata,
        Timeout::After(Duration::from_secs(10)),
    )?;
    if crash {
        return Ok(true); // clients are dropped with the transaction open
    }
    producer.commit_transaction(WAIT)?;
    Ok(false)
}

/// Three instances over four partitions, each crashing four times in the middle of a transaction.
pub async fn crashing_instances(bootstrap: &str, records: usize) {
    let (input, output) = (
        topic(bootstrap, "soak-in", 4).await,
        topic(bootstrap, "soak-out", 4).await,
    );
    let group = unique("soak");
    let stop = Arc::new(AtomicBool::new(false));
    let crashes = Arc::new(AtomicU64::new(0));
    let mut threads = Vec::new();
    for i in 0..3 {
        let (bootstrap, input, output, group) = (
            bootstrap.to_owned(),
            input.clone(),
            output.clone(),
            group.clone(),
        );
        let (stop, crashes) = (stop.clone(), crashes.clone());
        let name = unique(&format!("soak-{i}"));
        threads.push(std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let mut lives = 0;
            while !stop.load(Ordering::Relaxed) {
                if let End::Failed(e) = runtime.block_on(live(
                    &bootstrap, &input, &output, &group, &name, &stop, lives,
                )) {
                    eprintln!("{name} life {lives}: {e}");
                }
                lives += 1;
                crashes.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let producer = plain_producer(bootstrap);
    for chunk in 0..records / 100 {
        let mut sent = Vec::new();
        for i in chunk * 100..(chunk + 1) * 100 {
            let value = format!("{i:07}");
            let record = FutureRecord::to(&input)
                .partition((i % 4) as i32)
                .key("k")
                .payload(&value);
            sent.push(producer.send_result(record).map_err(|(e, _)| e).unwrap());
        }
        for delivery in sent {
            delivery.await.unwrap().unwrap();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let reader = consumer(bootstrap, &unique("g"), "read_committed");
    let mut list = rdkafka::TopicPartitionList::new();
    for p in 0..4 {
        list.add_partition_offset(&output, p, rdkafka::Offset::Beginning)
            .unwrap();
    }
    reader.assign(&list).unwrap();
    let mut found = poll_values(&reader, records, Duration::from_secs(60));
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    found.extend(poll_values(&reader, usize::MAX, Duration::from_secs(2)));
    let counts = tally(found.iter().map(|(_, v)| v.as_str()));
    let doubled = counts.values().filter(|c| **c > 1).count();
    assert_eq!(
        (counts.len(), doubled, found.len()),
        (records, 0, records),
        "(distinct, doubled, all)"
    );
    assert!(
        crashes.load(Ordering::Relaxed) >= 9,
        "instances crashed {} times",
        crashes.load(Ordering::Relaxed)
    );
}
