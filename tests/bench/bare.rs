//! The limit: what the bare client needs to read a topic, doing nothing with it.
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

use rdkafka::bindings as sys;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::harness::{Kafka, secs};
use crate::meter::own;

/// How records are taken from the client.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    /// `rd_kafka_consume_batch_queue`, 4,096 at a time.
    Batch,
    /// `rd_kafka_queue_poll`, one by one, as rdkafka's consumer does.
    Poll,
}

/// What it took.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    pub records: u64,
    pub seconds: f64,
    pub cpu: f64,
}

impl Cost {
    pub fn rate(&self) -> f64 {
        self.records as f64 / self.seconds
    }

    /// CPU-seconds per million records.
    pub fn per_million(&self) -> f64 {
        self.cpu / self.records as f64 * 1e6
    }
}

/// A record as it lies in the client.
pub struct Seen<'a> {
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

/// Reads a topic from start to end, with the settings of finlake's own consumer.
pub fn read(
    kafka: &Kafka,
    topic: &str,
    partitions: i32,
    way: Way,
    mut each: impl FnMut(Seen<'_>),
) -> Cost {
    let consumer: BaseConsumer = kafka
        .client()
        .set("group.id", "bare")
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("fetch.queue.backoff.ms", "2")
        .set("queued.max.messages.kbytes", "16384")
        .create()
        .unwrap();
    let (mut list, mut due) = (TopicPartitionList::new(), 0u64);
    for p in 0..partitions {
        let (low, high) = consumer.fetch_watermarks(topic, p, secs(10)).unwrap();
        due += (high - low) as u64;
        let at = Offset::Offset(low);
        list.add_partition_offset(topic, p, at).unwrap();
    }
    let cpu = own().cpu;
    let began = Instant::now();
    consumer.assign(&list).unwrap();
    let mut records = 0u64;
    match way {
        Way::Poll => {
            while records < due {
                let Some(m) = consumer.poll(secs(30)) else {
                    panic!("{records} of {due} records");
                };
                let m = m.unwrap();
                records += 1;
                each(Seen {
                    partition: m.partition(),
                    offset: m.offset(),
                    timestamp_ms: m.timestamp().to_millis().unwrap_or(-1),
                    key: m.key().unwrap_or_default(),
                    value: m.payload().unwrap_or_default(),
                });
            }
        }
        // SAFETY: the queue is destroyed before the client; every message is read before it is destroyed, once.
        Way::Batch => unsafe {
            let queue = sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr());
            let mut batch = vec![std::ptr::null_mut(); 4096];
            let by = Instant::now() + Duration::from_secs(600);
            while records < due {
                assert!(Instant::now() < by, "{records} of {due} records");
                let n =
                    sys::rd_kafka_consume_batch_queue(queue, 10, batch.as_mut_ptr(), batch.len());
                for &m in &batch[..usize::try_from(n).unwrap()] {
                    let message = &*m;
                    assert_eq!(
                        message.err,
                        sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
                    );
                    let bytes = |p: *mut std::ffi::c_void, n: usize| match p.is_null() {
                        true => &[][..],
                        false => std::slice::from_raw_parts(p.cast::<u8>(), n),
                    };
                    let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_CREATE_TIME;
                    each(Seen {
                        partition: message.partition,
                        offset: message.offset,
                        timestamp_ms: sys::rd_kafka_message_timestamp(m, &mut kind),
                        key: bytes(message.key, message.key_len),
                        value: bytes(message.payload, message.len),
                    });
                    sys::rd_kafka_message_destroy(m);
                    records += 1;
                }
            }
            sys::rd_kafka_queue_destroy(queue);
        },
    }
    Cost {
        records,
        seconds: began.elapsed().as_secs_f64(),
        cpu: own().cpu - cpu,
    }
}
