//! A fast producer of generated trades: one thread, values encoded as ingest encodes them, partition by murmur2.

use std::time::{Duration, Instant};

use finlake::generate::{GeneratedTrade, Market, MarketSpec, Segment};
use finlake_schemas::{Codec, topics};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::harness::{Kafka, secs};

/// 2026-02-02T00:00:00Z.
pub const START: i64 = 1_769_990_400_000_000;

/// A market of trades, and the producer that sends it.
pub struct Feed {
    market: std::iter::Peekable<Market>,
    names: Vec<String>,
    keys: Vec<Vec<u8>>,
    /// Partition of each symbol.
    pub partitions: Vec<i32>,
    producer: BaseProducer,
    value: Vec<u8>,
    /// Trades handed to the producer.
    pub sent: u64,
}

/// What is sent.
#[derive(Clone, Copy)]
pub struct Spec {
    pub symbols: usize,
    pub trades: u64,
    /// Trades per second of market time.
    pub density: u64,
    /// The producer waits this long for a batch to fill, milliseconds.
    pub linger_ms: u32,
}

impl Feed {
    pub fn new(kafka: &Kafka, partitions: i32, spec: Spec) -> Feed {
        let market = Market::new(MarketSpec {
            seed: 42,
            symbols: spec.symbols,
            segments: vec![Segment {
                start: START,
                span: (spec.trades / spec.density) as i64 * 1_000_000,
                trades: spec.trades,
            }],
        });
        let names = market.symbols().to_vec();
        let keys: Vec<Vec<u8>> = names
            .iter()
            .map(|n| format!("{}:{n}", finlake::generate::SOURCE).into_bytes())
            .collect();
        let producer: BaseProducer = kafka
            .client()
            .set("linger.ms", spec.linger_ms.to_string())
            .set("batch.num.messages", "10000")
            .set("queue.buffering.max.messages", "200000")
            .set("enable.idempotence", "true")
            .create()
            .unwrap();
        Feed {
            partitions: keys.iter().map(|k| partition(k, partitions)).collect(),
            market: market.peekable(),
            names,
            keys,
            producer,
            value: Vec::with_capacity(256),
            sent: 0,
        }
    }

    /// Names of the symbols.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The next trade's symbol.
    pub fn next_symbol(&mut self) -> Option<usize> {
        self.market.peek().map(|t| t.symbol)
    }

    /// Sends the next trade; false when there is none.
    pub fn send(&mut self, codec: &Codec) -> bool {
        let Some(trade) = self.market.next() else {
            return false;
        };
        self.encode(codec, &trade);
        let mut record = BaseRecord::to(topics::TICKS)
            .partition(self.partitions[trade.symbol])
            .key(&self.keys[trade.symbol])
            .payload(&self.value);
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    self.producer.poll(Duration::from_millis(5));
                }
                Err((e, _)) => panic!("producing: {e}"),
            }
        }
        self.sent += 1;
        if self.sent.is_multiple_of(1000) {
            self.producer.poll(Duration::ZERO);
        }
        true
    }

    fn encode(&mut self, codec: &Codec, trade: &GeneratedTrade) {
        self.value.clear();
        codec
            .encode_tick(&trade.tick(&self.names), 2, &mut self.value)
            .unwrap();
    }

    /// Sends all, as fast as it goes.
    pub fn rush(&mut self, codec: &Codec) {
        while self.send(codec) {}
        self.flush();
    }

    /// Sends `rate` trades a second for a while (or until none is left), calling `before` with each symbol first.
    pub fn pace(
        &mut self,
        codec: &Codec,
        rate: u64,
        span: Duration,
        mut before: impl FnMut(usize),
    ) {
        let began = Instant::now();
        let mut sent = 0u64;
        loop {
            let elapsed = began.elapsed();
            let due = (elapsed.min(span).as_micros() as u64) * rate / 1_000_000;
            while sent < due {
                let Some(symbol) = self.next_symbol() else {
                    return self.flush();
                };
                before(symbol);
                self.send(codec);
                sent += 1;
            }
            self.producer.poll(Duration::ZERO);
            if elapsed >= span {
                return self.flush();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for all acknowledgements.
    pub fn flush(&mut self) {
        self.producer.flush(secs(120)).unwrap();
        assert_eq!(self.producer.in_flight_count(), 0);
    }
}

/// Partition of a key, as Java clients choose it.
pub fn partition(key: &[u8], partitions: i32) -> i32 {
    (murmur2(key) & 0x7fff_ffff) as i32 % partitions
}

fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h: u32 = 0x9747_b28c ^ data.len() as u32;
    let mut chunks = data.chunks_exact(4);
    for c in &mut chunks {
        let mut k = u32::from_le_bytes([c[0], c[1], c[2], c[3]]).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        h = h.wrapping_mul(M) ^ k;
    }
    let rest = chunks.remainder();
    for (i, b) in rest.iter().enumerate() {
        h ^= u32::from(*b) << (8 * i);
    }
    if !rest.is_empty() {
        h = h.wrapping_mul(M);
    }
    h = (h ^ (h >> 13)).wrapping_mul(M);
    h ^ (h >> 15)
}

#[test]
fn partitions_are_those_of_java_clients() {
    // From Kafka's own UtilsTest.
    assert_eq!(murmur2(b"21") as i32, -973_932_308);
    assert_eq!(murmur2(b"foobar") as i32, -790_332_482);
    assert_eq!(murmur2(b"a-little-bit-long-string") as i32, -985_981_536);
}
