//! The engine's own cost: a task over a processor that does next to nothing.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use finlake_topology::state::StateDb;
use finlake_topology::{
    Context, Domain, Failure, Forward, Processor, Record, RecordBatch, SinkOptions, TestDriver,
    TopicIdx, Topology, TopologyBuilder,
};

struct Bytes;

impl Domain for Bytes {
    type Msg<'a> = Record<'a>;
    fn source(record: Record<'_>) -> Record<'_> {
        record
    }
}

/// Hands records on.
struct Relay;

impl Processor<Bytes> for Relay {
    fn process(
        &mut self,
        ctx: &mut Context<'_>,
        r: Record<'_>,
        out: &mut dyn Forward<Bytes>,
    ) -> Result<(), Failure> {
        out.forward(ctx, r)
    }
    fn reset(&mut self) {}
}

/// Adds up lengths.
#[derive(Default)]
struct Sum(usize);

impl Processor<Bytes> for Sum {
    fn process(
        &mut self,
        _: &mut Context<'_>,
        r: Record<'_>,
        _: &mut dyn Forward<Bytes>,
    ) -> Result<(), Failure> {
        self.0 += r.value.map_or(0, <[u8]>::len);
        Ok(())
    }
    fn reset(&mut self) {}
}

fn topology(relays: usize) -> Topology<Bytes> {
    let mut b = TopologyBuilder::new();
    let mut at = b.source("in");
    b.sink("out", SinkOptions::counted());
    for n in 0..relays {
        at = b.process(&format!("relay-{n}"), &[at]).with(|| Relay);
    }
    b.process("sum", &[at]).with(Sum::default);
    // The names are fixed and distinct.
    b.build().unwrap()
}

const RECORDS: i64 = 4096;

fn batch(first: i64, batch: &mut RecordBatch) {
    batch.clear();
    let value = [7; 80];
    for n in first..first + RECORDS {
        batch.push(TopicIdx(0), 0, n, 0, Some(b"binance:BTCUSDT"), Some(&value));
    }
}

fn engine(c: &mut Criterion) {
    let mut group = c.benchmark_group("task");
    group.throughput(Throughput::Elements(RECORDS as u64));
    group.bench_function("fill the batch", |b| {
        let mut records = RecordBatch::new();
        b.iter(|| batch(0, &mut records));
    });
    for relays in [0, 4] {
        let t = topology(relays);
        let mut driver = TestDriver::over(&t, "bench", StateDb::memory(), 0).unwrap();
        let mut records = RecordBatch::new();
        let mut next = 0;
        group.bench_function(format!("fill and process, {} nodes", relays + 2), |b| {
            b.iter(|| {
                batch(next, &mut records);
                next += RECORDS;
                driver.pipe_batch(&records).unwrap();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
