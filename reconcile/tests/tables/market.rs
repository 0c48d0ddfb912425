//! A lakehouse as the pipeline leaves it, made by a naive task of the test's own: every input
//! record, every version of every bar and metric, and the ledger entries of all commits.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use finlake_lakehouse::storage::P_SYNC;
use finlake_lakehouse::{
    BronzeRows, Cut, KafkaIds, LakeConfig, Lakehouse, PartitionBatch, RecordAt, SinkBatch, Table,
    TableSink, VersionRows,
};
use finlake_market::gold::values;
use finlake_market::interval::{DAY, date_of};
use finlake_market::{GoldConfig, Interval, Intervals, Limits, Ohlcv, Point, Trade, validate};
use finlake_reconcile::rules;
use finlake_reconcile::trades::Rules;
use finlake_reconcile::{Books, Layer, Options};
use finlake_schemas::{
    Bar, Basis, Dec8, InputRange, LedgerEntry, Metrics, Origin, OutputCount, Stage, Tick,
    WindowMetrics, keys, topics,
};

/// 2024-08-08T00:00:00Z.
pub const T0: i64 = 1_723_075_200_000_000;
pub const SOURCE: &str = "binance";

pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let x = self.0 ^ (self.0 >> 33);
        x.wrapping_mul(0xff51_afd7_ed55_8ccd) ^ (x >> 29)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

pub fn gold_config() -> GoldConfig {
    GoldConfig {
        windows: vec![2, 3],
        ..GoldConfig::default()
    }
}

pub fn market() -> Rules {
    let list: Vec<Interval> = ["1m", "1h", "1d"]
        .iter()
        .map(|t| Interval::parse(t).unwrap())
        .collect();
    Rules {
        intervals: Intervals::new(&list).unwrap(),
        limits: Limits::default(),
        retention_1m: 35 * DAY,
    }
}

pub fn options(layers: &[Layer]) -> Options {
    Options {
        layers: layers.iter().copied().collect(),
        dates: None,
        symbol: None,
        as_of: None,
        patience: 60_000_000,
        validators: rules::parse(rules::DEFAULT).unwrap(),
        market: market(),
        gold: gold_config(),
        limit: 1_000,
        wait: Duration::ZERO,
        registered: BTreeMap::new(),
    }
}

struct Input {
    offset: i64,
    timestamp_ms: i64,
    symbol: String,
    id: i64,
    price: i128,
    quantity: i128,
    time: i64,
    maker: bool,
}

impl Input {
    fn tick(&self) -> Tick<'_> {
        Tick {
            source: SOURCE,
            symbol: &self.symbol,
            trade_id: self.id,
            price: Dec8(self.price),
            quantity: Dec8(self.quantity),
            trade_time: self.time,
            event_time: None,
            buyer_maker: Some(self.maker),
            ingest_time: Some(self.time + 1_000),
            first_trade_id: None,
            last_trade_id: None,
        }
    }
}

#[derive(Default)]
struct Kept {
    content: Option<Ohlcv>,
    changed: bool,
    emitted: Option<(i64, i32, bool)>,
}

/// A market of so many trades over six days.
pub struct Spec {
    pub partitions: i32,
    pub symbols: usize,
    pub trades: usize,
    pub days: i64,
    pub per_commit: usize,
    pub seed: u64,
    pub faults: bool,
}

pub struct Made {
    pub lake: Lakehouse,
    pub books: Books,
    pub rows: usize,
}

/// Makes the market in a lake of its own.
pub async fn make(dir: &Path, spec: &Spec) -> Made {
    let mut config = LakeConfig::local(dir);
    config.kafka_partitions = spec.partitions;
    config.gold_windows = vec![2, 3];
    config.storage.insert(P_SYNC.into(), "false".into());
    let lake = Lakehouse::open(config).await.unwrap();
    let ids = KafkaIds {
        cluster_id: "test".into(),
        topic_ids: BTreeMap::new(),
    };
    lake.ensure_tables(&ids).await.unwrap();
    let all: Vec<i32> = (0..spec.partitions).collect();
    let mut sinks = Vec::new();
    for table in [Table::Ticks, Table::Ohlcv, Table::Metrics] {
        let mut sink = TableSink::open(&lake, table).await.unwrap();
        sink.assign(&all).await.unwrap();
        sinks.push(sink);
    }
    let mut books = Books::default();
    let mut rows = 0;
    for p in all {
        rows += partition(&lake, &mut sinks, p, spec, &mut books).await;
    }
    Made { lake, books, rows }
}

fn feed(p: i32, spec: &Spec) -> Vec<Input> {
    let mut rng = Rng(spec.seed ^ (p as u64 + 1) << 20);
    let mut out: Vec<Input> = Vec::new();
    let mut ids = vec![1_000i64; spec.symbols];
    let n = spec.trades / spec.partitions as usize;
    let mut offset = 0;
    for i in 0..n {
        let symbol = rng.below(spec.symbols);
        let mut time = T0 + spec.days * DAY * i as i64 / n as i64 + rng.below(1_000) as i64;
        if spec.faults && rng.below(40) == 0 {
            time -= (rng.below(90) as i64 * 60_000_000).min(time - T0);
        }
        let mut input = Input {
            offset,
            timestamp_ms: T0 / 1000 + spec.days * DAY / 1000,
            symbol: format!("S{p}X{symbol}"),
            id: ids[symbol],
            price: (50_000 + rng.below(5_000) as i128) * 100_000_000
                + rng.below(100) as i128 * 1_000_000,
            quantity: (1 + rng.below(900) as i128) * 10_000,
            time,
            maker: rng.below(2) == 0,
        };
        ids[symbol] += 1;
        let fault = if spec.faults { rng.below(50) } else { 50 };
        if fault == 1 {
            // Refused; its id did arrive.
            input.price = -input.price;
        }
        let copy = (fault == 0).then(|| Input {
            offset: offset + 1,
            symbol: input.symbol.clone(),
            ..input
        });
        out.push(input);
        offset += 1;
        if let Some(copy) = copy {
            out.push(copy);
            offset += 1;
        }
        if out.len().is_multiple_of(spec.per_commit) && spec.faults {
            offset += 1; // a transaction marker
        }
    }
    out
}

#[allow(clippy::too_many_lines)]
async fn partition(
    lake: &Lakehouse,
    sinks: &mut [TableSink],
    p: i32,
    spec: &Spec,
    books: &mut Books,
) -> usize {
    let rules = market();
    let list = rules.intervals.list();
    let gold = gold_config();
    let inputs = feed(p, spec);
    let chunks: Vec<&[Input]> = inputs.chunks(spec.per_commit).collect();
    let mut bronze = BronzeRows::new(topics::TICKS, p);
    let mut silver = VersionRows::new(&lake.def(Table::Ohlcv), p).unwrap();
    let mut metrics = VersionRows::new(&lake.def(Table::Metrics), p).unwrap();
    let mut cuts: Vec<Cut> = Vec::new();
    let mut seen: BTreeSet<(String, i64)> = BTreeSet::new();
    let mut bars: BTreeMap<(String, usize, i64), Kept> = BTreeMap::new();
    let mut closes: BTreeMap<String, BTreeMap<i32, Dec8>> = BTreeMap::new();
    let mut days: BTreeMap<(String, i32), (String, i64, i32)> = BTreeMap::new();
    let (mut stream, mut start, mut hash) = (i64::MIN, 0, 0u128);
    let mut totals: BTreeMap<String, i64> = BTreeMap::new();
    let (mut outputs, mut golden) = (0i64, 0i64);
    for (n, chunk) in chunks.iter().enumerate() {
        let commit = n as i64 + 1;
        let system = T0 + 10 * DAY + commit * 1_000_000;
        let end = chunk.last().unwrap().offset + 1;
        let last = n + 1 == chunks.len();
        let (mut accepted, mut duplicates, mut rejected) = (0, 0, 0);
        for input in *chunk {
            let tick = input.tick();
            let key = format!("{SOURCE}:{}", input.symbol);
            let at = RecordAt {
                offset: input.offset,
                timestamp: input.timestamp_ms * 1000,
                key: Some(key.as_bytes()),
                schema_id: Some(2),
                commit,
                sys_from: system,
            };
            bronze.push_tick(&at, &tick, b"");
            let Ok(trade) = validate(
                &tick,
                Some(key.as_bytes()),
                input.timestamp_ms,
                &rules.limits,
            ) else {
                rejected += 1;
                continue;
            };
            if !seen.insert((input.symbol.clone(), input.id)) {
                duplicates += 1;
                continue;
            }
            accepted += 1;
            stream = stream.max(input.time);
            for (k, i) in list.iter().enumerate() {
                fold(
                    bars.entry((input.symbol.clone(), k, i.start_of(input.time)))
                        .or_default(),
                    &trade,
                );
            }
        }
        let mut changed: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
        let mut made = 0;
        for ((symbol, k, from), kept) in &mut bars {
            let to = from + list[*k].length();
            let closed = stream >= to;
            let due = (closed && (kept.changed || !kept.emitted.is_some_and(|e| e.2)))
                || (kept.changed && (last || (list[*k].length() == DAY && commit % 7 == 0)));
            if !due {
                continue;
            }
            let o = kept.content.unwrap();
            let before = kept.emitted;
            let revision = before.map_or(0, |b| b.1 + 1);
            let bar = Bar {
                source: SOURCE,
                symbol,
                bar_interval: list[*k].name(),
                bar_start: *from,
                bar_end: to,
                trade_date: date_of(*from),
                tick_id: keys::bar_id(SOURCE, symbol, list[*k].name(), *from),
                open: o.open,
                high: o.high,
                low: o.low,
                close: o.close,
                volume: o.volume,
                quote_volume: o.quote_volume,
                trade_count: o.trade_count,
                taker_buy_base: o.taker_buy_base,
                taker_buy_quote: o.taker_buy_quote,
                vwap: o.vwap(),
                first_trade_time: o.first.time,
                first_trade_id: o.first.id,
                last_trade_time: o.last.time,
                last_trade_id: o.last.id,
                stage: if closed {
                    Stage::Closed
                } else {
                    Stage::Checkpoint
                },
                revision,
                origin: Origin::Trades,
                basis: Basis::AsQuoted,
                basis_at: None,
                retracted: false,
                commit,
                ticks_offset: end,
                bars_offset: 0,
                sys_from: system,
                prev_sys_from: before.map(|b| b.0),
            };
            silver.push_bar(&bar, outputs).unwrap();
            outputs += 1;
            made += 1;
            kept.emitted = Some((system, revision, closed));
            kept.changed = false;
            if list[*k].length() == DAY && closed {
                closes
                    .entry(symbol.clone())
                    .or_default()
                    .insert(bar.trade_date, o.close);
                changed
                    .entry(symbol.clone())
                    .or_default()
                    .insert(bar.trade_date);
            }
        }
        let mut measured = 0;
        for (symbol, dates) in changed {
            let first = *dates.first().unwrap();
            let series: Vec<(i32, Dec8)> = closes[&symbol].iter().map(|(d, c)| (*d, *c)).collect();
            for (at, (date, close)) in series.iter().enumerate().filter(|(_, (d, _))| *d >= first) {
                let window: Vec<Dec8> = series[at.saturating_sub(gold.reach())..=at]
                    .iter()
                    .map(|s| s.1)
                    .collect();
                let v = values(&window, &gold);
                let text = format!("{close} {v:?}");
                let before = days.get(&(symbol.clone(), *date)).cloned();
                if before.as_ref().is_some_and(|b| b.0 == text) {
                    continue;
                }
                let revision = before.as_ref().map_or(0, |b| b.2 + 1);
                let row = Metrics {
                    source: SOURCE,
                    symbol: &symbol,
                    trade_date: *date,
                    metric_id: keys::metrics_id(SOURCE, &symbol, *date),
                    close: *close,
                    observations: v.observations.into(),
                    return_1: v.return_1,
                    windows: v
                        .windows
                        .iter()
                        .map(|w| WindowMetrics {
                            n: w.n.into(),
                            ret: w.ret,
                            volatility: w.volatility,
                            sharpe: w.sharpe,
                        })
                        .collect(),
                    periods: gold.periods.into(),
                    risk_free: gold.risk_free,
                    valid_from: (i64::from(*date) + 1) * DAY,
                    revision,
                    retracted: false,
                    commit,
                    ticks_offset: end,
                    bars_offset: 0,
                    sys_from: system,
                    prev_sys_from: before.map(|b| b.1),
                };
                metrics.push_metrics(&row, golden).unwrap();
                golden += 1;
                measured += 1;
                days.insert((symbol.clone(), *date), (text, system, revision));
            }
        }
        let records = chunk.len() as i64;
        let mut entry = LedgerEntry {
            app_id: "test".into(),
            task: p,
            commit,
            system_time: system,
            stream_times: vec![(SOURCE.into(), stream)],
            inputs: vec![InputRange {
                topic: topics::TICKS.into(),
                start,
                end,
                records,
                hash: 0,
                accepted,
                duplicates,
                rejected,
                skipped: end - start - records,
            }],
            outputs: vec![
                OutputCount {
                    topic: topics::OHLCV.into(),
                    count: made,
                    hash: 0,
                },
                OutputCount {
                    topic: topics::METRICS.into(),
                    count: measured,
                    hash: 0,
                },
            ],
            corrections: 0,
            totals: vec![],
            schema_ids: vec![2],
            prev_hash: hash,
            last,
            heartbeat: false,
        };
        for (name, n) in [
            ("records", records),
            ("accepted", accepted),
            ("duplicates", duplicates),
            ("rejected", rejected),
            ("skipped", end - start - records),
            ("corrections", 0),
            (topics::OHLCV, made),
            (topics::METRICS, measured),
        ] {
            *totals.entry(name.into()).or_default() += n;
        }
        entry.totals = totals.clone().into_iter().collect();
        let value = format!("{entry:?}").into_bytes();
        hash = finlake_schemas::hash128(&[], &value);
        books.push(&entry, &value);
        cuts.push(Cut {
            commit,
            input_end: end,
            system_time: system,
            ..Cut::default()
        });
        start = end;
        // In several snapshots, so that there are hot, settled and history files.
        if cuts.len() == 40 || last {
            let frontier = cuts.last().unwrap().system_time;
            let input_start = if cuts[0].commit == 1 {
                0
            } else {
                start_of(&inputs, spec.per_commit, cuts[0].commit)
            };
            let part = |rows| SinkBatch {
                parts: vec![PartitionBatch {
                    partition: p,
                    input_start,
                    cuts: cuts.clone(),
                    frontier,
                    rows,
                }],
            };
            let fresh = BronzeRows::new(topics::TICKS, p);
            sinks[0]
                .commit(part(std::mem::replace(&mut bronze, fresh).into()))
                .await
                .unwrap();
            let fresh = VersionRows::new(&lake.def(Table::Ohlcv), p).unwrap();
            sinks[1]
                .commit(part(std::mem::replace(&mut silver, fresh).into()))
                .await
                .unwrap();
            let fresh = VersionRows::new(&lake.def(Table::Metrics), p).unwrap();
            sinks[2]
                .commit(part(std::mem::replace(&mut metrics, fresh).into()))
                .await
                .unwrap();
            cuts.clear();
        }
    }
    inputs.len()
}

/// Position before a commit: the end of the one before.
fn start_of(inputs: &[Input], per_commit: usize, commit: i64) -> i64 {
    inputs[per_commit * (commit as usize - 1) - 1].offset + 1
}

fn fold(kept: &mut Kept, trade: &Trade) {
    kept.changed = true;
    match &mut kept.content {
        Some(o) => o.fold(trade).unwrap(),
        None => kept.content = Some(Ohlcv::of(trade)),
    }
    let _ = Point { time: 0, id: 0 };
}
