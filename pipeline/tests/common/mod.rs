//! Drives the production topology record by record, reads back what it sent, and knows what it
//! should have sent.

#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use finlake_pipeline::{Market, PipelineConfig, build};
use finlake_schemas::{
    Assertion, Bar, Codec, Dec8, Dec16, LedgerEntry, Metrics, Sum128, Tick, hash128, keys, topics,
};
use finlake_topology::{OutputRecord, TestDriver};

pub const MIN: i64 = 60_000_000;
pub const HOUR: i64 = 60 * MIN;
pub const DAY: i64 = 24 * HOUR;
/// 2026-01-01T00:00:00Z, also where the driver's clock starts.
pub const T0: i64 = 1_767_225_600_000_000;

/// A trade to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct T {
    pub source: &'static str,
    pub symbol: &'static str,
    pub id: i64,
    /// µs after T0.
    pub at: i64,
    pub price: i64,
    pub quantity: i64,
    pub buyer_maker: bool,
}

pub fn t(id: i64, at: i64, price: i64) -> T {
    T {
        source: "x",
        symbol: "A",
        id,
        at,
        price,
        quantity: 2,
        buyer_maker: false,
    }
}

impl T {
    pub fn of(mut self, symbol: &'static str) -> T {
        self.symbol = symbol;
        self
    }

    pub fn from(mut self, source: &'static str) -> T {
        self.source = source;
        self
    }

    pub fn tick(&self) -> Tick<'static> {
        Tick {
            source: self.source,
            symbol: self.symbol,
            trade_id: self.id,
            price: Dec8::from_int(self.price),
            quantity: Dec8::from_int(self.quantity),
            trade_time: T0 + self.at,
            event_time: None,
            buyer_maker: Some(self.buyer_maker),
            ingest_time: None,
            first_trade_id: None,
            last_trade_id: None,
        }
    }
}

/// A record as it stands in the input topic.
pub type Logged = (i64, Option<Vec<u8>>, Option<Vec<u8>>);

/// The task with its input topic.
pub struct Sim {
    pub driver: TestDriver<Market>,
    pub codec: Arc<Codec>,
    pub log: Vec<Logged>,
    /// Next record to pipe.
    pub at: usize,
    /// The topic market.bars; all of it is piped.
    pub bars_log: Vec<Logged>,
}

impl Sim {
    pub fn new(config: &PipelineConfig) -> Self {
        let codec = Arc::new(Codec::offline());
        let topology = build(config, codec.clone()).unwrap();
        Self {
            driver: TestDriver::new(&topology, "finlake").unwrap(),
            codec,
            log: Vec::new(),
            at: 0,
            bars_log: Vec::new(),
        }
    }

    /// Appends a record to the input topic with this Kafka timestamp.
    pub fn append(&mut self, ts_ms: i64, key: Option<&[u8]>, value: Option<&[u8]>) {
        let own = |b: Option<&[u8]>| b.map(<[u8]>::to_vec);
        self.log.push((ts_ms, own(key), own(value)));
    }

    /// Appends a trade, with a Kafka timestamp that is never too early for it.
    pub fn append_trade(&mut self, t: &T) {
        let tick = t.tick();
        self.append_tick(&tick, (tick.trade_time / 1000).max(0));
    }

    pub fn append_tick(&mut self, tick: &Tick<'_>, ts_ms: i64) {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        tick.key(&mut key);
        self.codec.encode_tick(tick, 2, &mut value).unwrap();
        self.append(ts_ms, Some(&key), Some(&value));
    }

    /// Pipes up to `n` records.
    pub fn pipe(&mut self, n: usize) {
        let end = (self.at + n).min(self.log.len());
        for at in self.at..end {
            let (ts, key, value) = &self.log[at];
            self.driver
                .pipe_at(
                    topics::TICKS,
                    at as i64,
                    *ts,
                    key.as_deref(),
                    value.as_deref(),
                )
                .unwrap();
        }
        self.at = end;
    }

    /// Sends trades and pipes them.
    pub fn trades(&mut self, list: &[T]) {
        for t in list {
            self.append_trade(t);
        }
        self.pipe(list.len());
    }

    /// Appends a record to market.bars and pipes it.
    pub fn send_bars(&mut self, key: Option<&[u8]>, value: Option<&[u8]>) {
        let own = |b: Option<&[u8]>| b.map(<[u8]>::to_vec);
        let ts = self.driver.now_us() / 1000;
        let at = self.bars_log.len() as i64;
        self.bars_log.push((ts, own(key), own(value)));
        self.driver
            .pipe_at(topics::BARS, at, ts, key, value)
            .unwrap();
    }

    pub fn assert(&mut self, a: &Assertion<'_>) {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        a.key(&mut key);
        self.codec.encode_assertion(a, &mut value).unwrap();
        self.send_bars(Some(&key), Some(&value));
    }

    /// Classes of the dead letters that came from market.bars.
    pub fn refused(&self) -> Vec<String> {
        let records = self.driver.outputs(topics::DLQ).into_iter();
        records
            .filter(|r| r.header("finlake.topic") == Some(topics::BARS))
            .map(|r| r.header("finlake.error.class").unwrap().to_owned())
            .collect()
    }

    pub fn commit(&mut self) {
        self.driver.commit().unwrap();
    }

    /// Moves the clock, lets the task act, commits if it asks for it.
    pub fn wait(&mut self, by: i64) -> bool {
        self.driver.advance(by).unwrap();
        self.driver.maybe_commit().unwrap()
    }

    pub fn bars(&self, topic: &str) -> Vec<(i64, Bar<'_>)> {
        let records = self.driver.outputs(topic).into_iter();
        records
            .map(|r| {
                let bar = self.codec.decode_bar(r.value.as_ref().unwrap()).unwrap();
                let mut key = Vec::new();
                keys::bar(
                    bar.source,
                    bar.symbol,
                    bar.bar_interval,
                    bar.bar_start,
                    &mut key,
                );
                assert_eq!(r.key.as_ref(), Some(&key));
                assert_eq!(r.commit, bar.commit);
                (r.commit, bar)
            })
            .collect()
    }

    pub fn versions(&self) -> Vec<Bar<'_>> {
        self.bars(topics::OHLCV).into_iter().map(|b| b.1).collect()
    }

    pub fn metrics(&self) -> Vec<Metrics<'_>> {
        let records = self.driver.outputs(topics::METRICS).into_iter();
        records
            .map(|r| {
                self.codec
                    .decode_metrics(r.value.as_ref().unwrap())
                    .unwrap()
            })
            .collect()
    }

    pub fn ledger(&self) -> Vec<LedgerEntry> {
        let records = self.driver.outputs(topics::LEDGER).into_iter();
        records
            .map(|r| self.codec.decode_ledger(r.value.as_ref().unwrap()).unwrap())
            .collect()
    }

    /// Class and offset of each dead letter.
    pub fn dead(&self) -> Vec<(String, String)> {
        let records = self.driver.outputs(topics::DLQ).into_iter();
        records
            .map(|r| {
                let header = |name| r.header(name).unwrap().to_owned();
                (header("finlake.error.class"), header("finlake.offset"))
            })
            .collect()
    }

    /// Bars of a topic as lines, for golden tests.
    pub fn story(&self, topic: &str) -> String {
        let mut text = String::new();
        for (commit, b) in self.bars(topic) {
            let at = (b.bar_start - T0) / MIN;
            let time = format!("d{} {:02}:{:02}", at / 1440, at / 60 % 24, at % 60);
            let from = |s: i64| (s - T0) / 1000;
            let before = b.prev_sys_from.map_or("-".into(), |s| from(s).to_string());
            writeln!(
                text,
                "c{commit} {}:{} {} {time} {:?} r{} sys {} prev {before} n={} {}/{}/{}/{} v={} at {}",
                b.source, b.symbol, b.bar_interval, b.stage, b.revision, from(b.sys_from),
                b.trade_count, b.open, b.high, b.low, b.close, b.volume, b.ticks_offset,
            )
            .unwrap();
        }
        text
    }
}

/// Natural key of a bar: source, symbol, interval, start.
pub type BarKey = (String, String, String, i64);

/// The content of a bar, as INV-1 means it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub ohlc: [Dec8; 4],
    pub volume: Dec8,
    pub quote: Dec16,
    pub count: i64,
    pub taker: (Dec8, Dec16),
    pub first: (i64, i64),
    pub last: (i64, i64),
}

pub fn content(b: &Bar<'_>) -> Content {
    Content {
        ohlc: [b.open, b.high, b.low, b.close],
        volume: b.volume,
        quote: b.quote_volume,
        count: b.trade_count,
        taker: (b.taker_buy_base, b.taker_buy_quote),
        first: (b.first_trade_time, b.first_trade_id),
        last: (b.last_trade_time, b.last_trade_id),
    }
}

pub fn key_of(b: &Bar<'_>) -> BarKey {
    let text = |s: &str| s.to_owned();
    (
        text(b.source),
        text(b.symbol),
        text(b.bar_interval),
        b.bar_start,
    )
}

/// The definition: bars of a set of trades by sorting and summing. `skip` leaves a trade out of an
/// interval's bars.
pub fn by_definition<'a>(
    trades: impl IntoIterator<Item = &'a T>,
    intervals: &[(&str, i64)],
    skip: impl Fn(&T, &str) -> bool,
) -> BTreeMap<BarKey, Content> {
    let mut groups: BTreeMap<BarKey, Vec<&T>> = BTreeMap::new();
    for t in trades {
        for (name, length) in intervals {
            if !skip(t, name) {
                let time = T0 + t.at;
                let start = time - time.rem_euclid(*length);
                let text = |s: &str| s.to_owned();
                let key = (text(t.source), text(t.symbol), text(name), start);
                groups.entry(key).or_default().push(t);
            }
        }
    }
    let dec = |n: i64| Dec8::from_int(n);
    let sum8 = |list: &[&T]| dec(list.iter().map(|t| t.quantity).sum());
    let sum16 = |list: &[&T]| Dec16::from_int(list.iter().map(|t| t.quantity * t.price).sum());
    let each = groups.into_iter().map(|(key, mut list)| {
        list.sort_by_key(|t| (t.at, t.id));
        let takers: Vec<&T> = list.iter().copied().filter(|t| !t.buyer_maker).collect();
        let (first, last) = (list[0], list[list.len() - 1]);
        let prices = || list.iter().map(|t| t.price);
        let content = Content {
            ohlc: [
                dec(first.price),
                dec(prices().max().unwrap()),
                dec(prices().min().unwrap()),
                dec(last.price),
            ],
            volume: sum8(&list),
            quote: sum16(&list),
            count: list.len() as i64,
            taker: (sum8(&takers), sum16(&takers)),
            first: (T0 + first.at, first.id),
            last: (T0 + last.at, last.id),
        };
        (key, content)
    });
    each.collect()
}

/// The rows that a reader of the versions ends up with; checks on the way that every version
/// replaces the one before it [INV-6], says something new, and is the only one of its key in its
/// commit.
pub fn current(sim: &Sim) -> BTreeMap<BarKey, Bar<'_>> {
    let mut rows: BTreeMap<BarKey, Bar<'_>> = BTreeMap::new();
    for b in sim.versions() {
        if let Some(before) = rows.get(&key_of(&b)) {
            let open = (!before.retracted).then_some(before.sys_from);
            assert_eq!(b.prev_sys_from, open, "{b:?}");
            assert_eq!(b.revision, before.revision + 1, "{b:?}");
            assert!(
                b.commit > before.commit && b.sys_from > before.sys_from,
                "{b:?}"
            );
            assert!(b.stage >= before.stage, "a bar never opens again: {b:?}");
            let same = content(&b) == content(before)
                && (b.stage, b.retracted) == (before.stage, before.retracted);
            assert!(!same, "INV: a version without news: {b:?}");
        } else {
            assert_eq!((b.revision, b.prev_sys_from), (0, None), "{b:?}");
        }
        assert_eq!(
            b.tick_id,
            keys::bar_id(b.source, b.symbol, b.bar_interval, b.bar_start)
        );
        rows.insert(key_of(&b), b);
    }
    rows
}

/// INV-11, INV-12, INV-13 and the chain of hashes, against what was really sent and read.
pub fn check_ledger(sim: &Sim) {
    let entries = sim.ledger();
    let records = sim.driver.outputs(topics::LEDGER);
    let mut outputs: BTreeMap<(i64, &str), (i64, Sum128)> = BTreeMap::new();
    let mut retracted: BTreeMap<(i64, &str), i64> = BTreeMap::new();
    for topic in [topics::OHLCV, topics::METRICS, topics::DLQ] {
        for OutputRecord {
            key, value, commit, ..
        } in sim.driver.outputs(topic)
        {
            let bytes = value.as_deref().unwrap_or(&[]);
            let takes_back = match topic {
                topics::OHLCV => sim.codec.decode_bar(bytes).unwrap().retracted,
                topics::METRICS => sim.codec.decode_metrics(bytes).unwrap().retracted,
                _ => false,
            };
            *retracted.entry((*commit, topic)).or_default() += i64::from(takes_back);
            let sum = outputs.entry((*commit, topic)).or_default();
            sum.0 += 1;
            sum.1.add(
                key.as_deref().unwrap_or(&[]),
                value.as_deref().unwrap_or(&[]),
            );
        }
    }
    let mut positions = [0; 2];
    let mut prev_hash = 0;
    let mut totals: BTreeMap<String, i64> = BTreeMap::new();
    for (n, e) in entries.iter().enumerate() {
        assert_eq!(e.commit, n as i64 + 1, "INV-12");
        assert_eq!(e.prev_hash, prev_hash);
        prev_hash = hash128(&[], records[n].value.as_ref().unwrap());
        let inputs = [(topics::TICKS, &sim.log), (topics::BARS, &sim.bars_log)];
        assert_eq!(e.inputs.len(), inputs.len());
        for (at, (i, (topic, log))) in e.inputs.iter().zip(inputs).enumerate() {
            assert_eq!(i.topic, topic);
            assert_eq!(i.start, positions[at], "INV-12");
            assert_eq!(i.end - i.start, i.records + i.skipped, "INV-12");
            assert_eq!(i.records, i.accepted + i.duplicates + i.rejected, "INV-11");
            positions[at] = i.end;
            let mut read = Sum128::default();
            for (_, key, value) in &log[i.start as usize..i.end as usize] {
                read.add(
                    key.as_deref().unwrap_or(&[]),
                    value.as_deref().unwrap_or(&[]),
                );
            }
            assert_eq!(i.hash, read.0);
            for (name, n) in [
                ("records", i.records),
                ("accepted", i.accepted),
                ("duplicates", i.duplicates),
                ("rejected", i.rejected),
                ("skipped", i.skipped),
            ] {
                *totals.entry(name.to_owned()).or_default() += n;
            }
        }
        let mut topics_listed = BTreeSet::new();
        for o in &e.outputs {
            let (count, sum) = outputs
                .remove(&(e.commit, o.topic.as_str()))
                .unwrap_or_default();
            assert_eq!((o.count, o.hash), (count, sum.0), "INV-13 {}", o.topic);
            topics_listed.insert(o.topic.as_str());
            *totals.entry(o.topic.clone()).or_default() += o.count;
        }
        assert_eq!(topics_listed.len(), 3);
        *totals.entry("corrections".to_owned()).or_default() += e.corrections;
        for (name, topic) in [
            (LedgerEntry::BARS_RETRACTED, topics::OHLCV),
            (LedgerEntry::METRICS_RETRACTED, topics::METRICS),
        ] {
            let n = retracted.get(&(e.commit, topic)).copied();
            *totals.entry(name.to_owned()).or_default() += n.unwrap_or(0);
        }
        let of_intervals = |name: &str| name.starts_with(LedgerEntry::COMMITS_OF);
        let (made, listed): (BTreeMap<String, i64>, BTreeMap<String, i64>) = e
            .totals
            .iter()
            .cloned()
            .partition(|(name, _)| of_intervals(name));
        assert_eq!(listed, totals);
        assert!(
            !made.is_empty() && made.values().all(|n| *n == e.commit),
            "{made:?}"
        );
        assert_eq!(
            e.heartbeat,
            e.inputs.iter().all(|i| i.records == 0) && e.outputs.iter().all(|o| o.count == 0)
        );
        if n > 0 {
            assert!(e.system_time > entries[n - 1].system_time);
            for (source, time) in &entries[n - 1].stream_times {
                let now = e.stream_times.iter().find(|(s, _)| s == source).unwrap();
                assert!(now.1 >= *time, "stream time went back");
            }
        }
    }
    assert!(
        outputs.is_empty(),
        "sent and not in the ledger: {outputs:?}"
    );
}
