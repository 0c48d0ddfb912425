//! From the sending of a trade to the first record on `market.ohlcv.live` that holds it: every trade counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use finlake_schemas::{Codec, topics};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::world::World;

/// Offset and sending time of a symbol's trades that no live record holds yet.
type Waiting = Mutex<VecDeque<(i64, Instant)>>;

/// Reads the live topic beside the benchmark.
pub struct LiveMeter {
    waiting: Arc<Vec<Waiting>>,
    /// Next offset of each partition: the topic begins empty and has this one producer.
    next: Vec<i64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<u32>>,
}

impl LiveMeter {
    /// `names` and `next` as the feed has them; the consumer stands at the end of the topic when this returns.
    pub fn start(world: &World, names: &[String], next: Vec<i64>) -> LiveMeter {
        let waiting: Arc<Vec<Waiting>> =
            Arc::new(names.iter().map(|_| Waiting::default()).collect());
        let index: std::collections::HashMap<String, usize> =
            names.iter().cloned().zip(0..).collect();
        let consumer: BaseConsumer = world
            .kafka
            .client()
            .set("group.id", "live")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("fetch.queue.backoff.ms", "2")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        for p in 0..world.partitions {
            list.add_partition_offset(topics::LIVE, p, Offset::Beginning)
                .unwrap();
        }
        consumer.assign(&list).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (ends, theirs) = (stop.clone(), waiting.clone());
        let thread = std::thread::spawn(move || {
            let codec = Codec::offline();
            let mut latencies = Vec::new();
            while !ends.load(Ordering::Relaxed) {
                let Some(m) = consumer.poll(Duration::from_millis(20)) else {
                    continue;
                };
                let m = m.unwrap();
                let now = Instant::now();
                let bar = codec.decode_bar(m.payload().unwrap_or_default()).unwrap();
                let mut waiting = theirs[index[bar.symbol]].lock().unwrap();
                while let Some((offset, sent)) = waiting.front() {
                    if *offset >= bar.ticks_offset {
                        break;
                    }
                    latencies.push(now.duration_since(*sent).as_micros() as u32);
                    waiting.pop_front();
                }
            }
            latencies
        });
        LiveMeter {
            waiting,
            next,
            stop,
            thread,
        }
    }

    /// A trade of `symbol` is about to be sent to `partition`.
    pub fn note(&mut self, symbol: usize, partition: i32) {
        let next = &mut self.next[partition as usize];
        self.waiting[symbol]
            .lock()
            .unwrap()
            .push_back((*next, Instant::now()));
        *next += 1;
    }

    /// Trades that no live record holds yet.
    pub fn open(&self) -> usize {
        self.waiting.iter().map(|w| w.lock().unwrap().len()).sum()
    }

    /// All latencies in µs, sorted.
    pub fn finish(self) -> Vec<u32> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = self.thread.join().unwrap();
        all.sort_unstable();
        all
    }
}
