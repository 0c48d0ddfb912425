//! T3: the task alone, in-memory Avro trades → actions (outputs, changelog records, ledger entry),
//! on one thread, with 3 intervals.
//!
//! `cargo bench --profile dev -p finlake-pipeline --bench task` prints a line per case. What counts: copying the
//! record into the batch, hashing it for the ledger, decoding, validating, dedup, three intervals,
//! Gold, and the commit with its store write, every 100,000 trades. Time is that of the thread's
//! CPU, so that other load on the machine does not show; the best and the median round are given.
//! With `-- <symbols> <rounds>` only that case is run, for profilers.

use std::sync::Arc;
use std::time::Instant;

use finlake_pipeline::{Market, PipelineConfig, build};
use finlake_schemas::{Codec, Dec8, Tick};
use finlake_topology::state::{StateDb, StoreSpec};
use finlake_topology::task::{CommitKind, Identity};
use finlake_topology::{RecordBatch, Task, TaskConfig, TopicIdx};

const T0: i64 = 1_767_225_600_000_000;
/// Trades in a second of stream time.
const RATE: i64 = 10_000;
const PER_BATCH: usize = 4096;
const PER_COMMIT: usize = 100_000;
const PER_ROUND: usize = 1_000_000;

/// Keys and values of trades, each as (start, middle, end) in one buffer.
struct Input {
    bytes: Vec<u8>,
    places: Vec<(u32, u32, u32)>,
    times: Vec<i64>,
}

struct Feed {
    names: Vec<String>,
    ids: Vec<i64>,
    prices: Vec<i128>,
    seed: u64,
    sent: i64,
}

impl Feed {
    fn new(symbols: usize) -> Self {
        Self {
            names: (0..symbols).map(|n| format!("SYM{n:04}USDT")).collect(),
            ids: (0..symbols as i64)
                .map(|n| 3_000_000_000 + n * 7_919)
                .collect(),
            prices: (0..symbols as i128)
                .map(|n| (n + 1) * 6_183_763_000)
                .collect(),
            seed: 0x9e37_79b9_7f4a_7c15,
            sent: 0,
        }
    }

    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    fn next(&mut self, codec: &Codec, n: usize) -> Input {
        let mut input = Input {
            bytes: Vec::with_capacity(n * 110),
            places: Vec::with_capacity(n),
            times: Vec::with_capacity(n),
        };
        for _ in 0..n {
            let r = self.random();
            let s = (r % self.names.len() as u64) as usize;
            self.ids[s] += 1;
            self.prices[s] += i128::from(r >> 20 & 0xff) - 127;
            self.prices[s] = self.prices[s].max(1_000_000);
            let time = T0 + self.sent * 1_000_000 / RATE;
            self.sent += 1;
            let tick = Tick {
                source: "binance",
                symbol: &self.names[s],
                trade_id: self.ids[s],
                price: Dec8(self.prices[s]),
                quantity: Dec8(i128::from(r >> 32 & 0x3fff_ffff) + 1),
                trade_time: time,
                event_time: Some(time + 1_000),
                buyer_maker: Some(r & 1 == 0),
                ingest_time: Some(time + 55_000),
                first_trade_id: None,
                last_trade_id: None,
            };
            let start = input.bytes.len() as u32;
            tick.key(&mut input.bytes);
            let middle = input.bytes.len() as u32;
            codec
                .encode_tick(&tick, 2, &mut input.bytes)
                .expect("a good tick");
            input.places.push((start, middle, input.bytes.len() as u32));
            input.times.push(time / 1000 + 60);
        }
        input
    }
}

/// Nanoseconds of CPU that this thread has used.
fn cpu_ns() -> u64 {
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .unwrap_or(0)
}

struct Bench {
    task: Task<Market>,
    batch: RecordBatch,
    offset: i64,
    sent: u64,
    /// CPU of the commits, ns.
    commits: u64,
    _db: StateDb,
}

impl Bench {
    fn new(codec: &Arc<Codec>) -> Self {
        let topology = build(&PipelineConfig::default(), codec.clone()).expect("default settings");
        let db = StateDb::memory();
        let stores: Vec<StoreSpec> = topology
            .stores()
            .iter()
            .map(|name| StoreSpec::new(name.to_string()))
            .collect();
        let state = db.task(0, &stores).expect("memory");
        let config = TaskConfig::new("bench");
        let mut task = Task::new(&topology, 0, state, &config, Identity::default());
        task.resume(&[0]).expect("fresh store");
        Self {
            task,
            batch: RecordBatch::new(),
            offset: 0,
            sent: 0,
            commits: 0,
            _db: db,
        }
    }

    fn run(&mut self, input: &Input) {
        for chunk in 0..input.places.len().div_ceil(PER_BATCH) {
            let from = chunk * PER_BATCH;
            let to = (from + PER_BATCH).min(input.places.len());
            self.batch.clear();
            for n in from..to {
                let (start, middle, end) = input.places[n];
                let key = &input.bytes[start as usize..middle as usize];
                let value = &input.bytes[middle as usize..end as usize];
                let (topic, ts) = (TopicIdx(0), input.times[n]);
                self.batch
                    .push(topic, 0, self.offset, ts, Some(key), Some(value));
                self.offset += 1;
            }
            let now = input.times[to - 1] * 1000;
            for &run in self.batch.runs() {
                self.task
                    .process(&self.batch, run, now)
                    .expect("good records");
            }
            if to % PER_COMMIT < PER_BATCH || to == input.places.len() {
                let before = cpu_ns();
                self.task
                    .prepare_commit(now, CommitKind::default())
                    .expect("prepare");
                self.sent += self.task.outputs().len() as u64;
                let changes = self.task.changelog().count() as u64;
                std::hint::black_box(changes);
                self.task.post_commit(&|_| None, now).expect("commit");
                self.commits += cpu_ns() - before;
            }
        }
    }
}

fn case(symbols: usize, rounds: usize) {
    let codec = Arc::new(Codec::offline());
    let mut feed = Feed::new(symbols);
    let mut bench = Bench::new(&codec);
    // Warm-up: every symbol known, buffers at their size.
    bench.run(&feed.next(&codec, 200_000));
    (bench.sent, bench.commits) = (0, 0);
    let mut cpu = Vec::new();
    let wall = Instant::now();
    let mut spent = 0.0;
    for _ in 0..rounds {
        let input = feed.next(&codec, PER_ROUND);
        let (before, began) = (cpu_ns(), wall.elapsed());
        bench.run(&input);
        cpu.push((cpu_ns() - before) as f64 / PER_ROUND as f64);
        spent += (wall.elapsed() - began).as_secs_f64();
    }
    cpu.sort_by(f64::total_cmp);
    let (best, median) = (cpu[0], cpu[cpu.len() / 2]);
    println!(
        "{symbols:>5} symbols: best {best:.0} ns, median {median:.0} ns of CPU per trade = \
         {:.2} M trades/s per core (best {:.2}); {:.0} ns of it for commits; wall {:.2} M/s; {:.1} records out per 1,000",
        1e3 / median,
        1e3 / best,
        bench.commits as f64 / (rounds * PER_ROUND) as f64,
        rounds as f64 / spent,
        bench.sent as f64 * 1e3 / (rounds * PER_ROUND) as f64,
    );
}

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    if let [symbols, rounds] = numbers[..] {
        return case(symbols, rounds);
    }
    for symbols in [20, 1000] {
        case(symbols, 9);
    }
}
