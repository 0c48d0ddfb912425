//! A fast producer of generated trades: one thread, values encoded as ingest encodes them, partition by murmur2.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use finlake::generate::{GeneratedTrade, Market, MarketSpec, Segment};
use finlake_schemas::{Codec, topics};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::harness::{Kafka, secs};

/// 2026-02-02T00:00:00Z.
pub const START: i64 = 1_769_990_400_000_000;

/// One trade in so many comes late, and one in so many is sent twice.
const ONE_IN: u64 = 200;
/// Trades between the two copies.
const APART: u64 = 10_000;
const MINUTE: i64 = 60_000_000;

/// The market's trades as they are sent.
struct Arrivals {
    market: Market,
    /// In order, each once; else some late and some twice, the same ones every time.
    orderly: bool,
    made: u64,
    /// Copies to come, with the number of trades after which.
    copies: VecDeque<(u64, GeneratedTrade)>,
}

impl Arrivals {
    fn new(market: Market, orderly: bool) -> Arrivals {
        Arrivals {
            market,
            orderly,
            made: 0,
            copies: VecDeque::new(),
        }
    }
}

/// By how much the n-th late trade is late: 1, 2, 4 … 256 minutes, as far as the market goes back.
fn lateness(n: u64, time: i64) -> i64 {
    (MINUTE << (n % 9)).min(time - START)
}

impl Iterator for Arrivals {
    type Item = GeneratedTrade;

    fn next(&mut self) -> Option<GeneratedTrade> {
        if self.copies.front().is_some_and(|(at, _)| *at <= self.made) {
            return self.copies.pop_front().map(|(_, trade)| trade);
        }
        let Some(mut trade) = self.market.next() else {
            return self.copies.pop_front().map(|(_, trade)| trade);
        };
        self.made += 1;
        if self.orderly {
            return Some(trade);
        }
        match self.made % ONE_IN {
            // Its time is an earlier one; its id is the next, so that no id is missing meanwhile.
            0 => trade.trade_time -= lateness(self.made / ONE_IN, trade.trade_time),
            1 => self.copies.push_back((self.made + APART, trade)),
            _ => {}
        }
        Some(trade)
    }
}

/// A market of trades, and the producer that sends it.
pub struct Feed {
    market: std::iter::Peekable<Arrivals>,
    names: Vec<String>,
    keys: Vec<Vec<u8>>,
    /// Partition of each symbol.
    pub partitions: Vec<i32>,
    producer: BaseProducer,
    value: Vec<u8>,
    /// Trades handed to the producer, copies among them.
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

impl Spec {
    fn market(self) -> Market {
        Market::new(MarketSpec {
            seed: 42,
            symbols: self.symbols,
            segments: vec![Segment {
                start: START,
                span: (self.trades / self.density) as i64 * 1_000_000,
                trades: self.trades,
            }],
        })
    }
}

impl Feed {
    /// Trades in order of time, each once.
    pub fn new(kafka: &Kafka, partitions: i32, spec: Spec) -> Feed {
        Feed::of(kafka, partitions, spec, true)
    }

    /// One in a hundred is late by minutes to hours, or sent twice.
    pub fn disorderly(kafka: &Kafka, partitions: i32, spec: Spec) -> Feed {
        Feed::of(kafka, partitions, spec, false)
    }

    fn of(kafka: &Kafka, partitions: i32, spec: Spec, orderly: bool) -> Feed {
        let market = spec.market();
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
            market: Arrivals::new(market, orderly).peekable(),
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
fn one_in_a_hundred_is_late_or_comes_twice_and_no_id_is_missing() {
    let spec = Spec {
        symbols: 3,
        trades: 100_000,
        density: 4,
        linger_ms: 0,
    };
    let all: Vec<GeneratedTrade> = Arrivals::new(spec.market(), false).collect();
    let again: Vec<GeneratedTrade> = Arrivals::new(spec.market(), false).collect();
    assert_eq!(all, again);
    let mut next = [None; 3];
    let (mut stream, mut twice) = (START, 0);
    let mut late = Vec::new();
    for trade in &all {
        let next = next[trade.symbol].get_or_insert(trade.trade_id);
        if trade.trade_id < *next {
            twice += 1;
            continue;
        }
        assert_eq!(trade.trade_id, *next);
        *next += 1;
        if trade.trade_time < stream {
            late.push((stream - trade.trade_time) / MINUTE);
        }
        stream = stream.max(trade.trade_time);
        assert!(trade.trade_time >= START);
    }
    assert_eq!((all.len(), twice), (100_500, 500));
    assert!((490..=500).contains(&late.len()), "{}", late.len());
    let hours = late.iter().filter(|m| **m >= 120).count();
    let minutes = late.iter().filter(|m| **m < 10).count();
    assert!(hours > 50 && minutes > 100, "{hours}, {minutes}");

    let orderly: Vec<GeneratedTrade> = Arrivals::new(spec.market(), true).collect();
    assert_eq!(orderly, spec.market().collect::<Vec<_>>());
}

#[test]
fn partitions_are_those_of_java_clients() {
    // From Kafka's own UtilsTest.
    assert_eq!(murmur2(b"21") as i32, -973_932_308);
    assert_eq!(murmur2(b"foobar") as i32, -790_332_482);
    assert_eq!(murmur2(b"a-little-bit-long-string") as i32, -985_981_536);
}
