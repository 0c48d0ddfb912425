//! `cargo bench -p finlake-state`: what a task pays per record and per commit.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use finlake_state::{Budget, Checkpoint, StateDb, StoreSpec, TaskState};

const KEYS: u64 = 20_000;

fn key(n: u64) -> [u8; 24] {
    let mut key = *b"binance:BTCUSDT:00000000";
    key[16..].copy_from_slice(&n.to_be_bytes());
    key
}

fn loaded() -> (tempfile::TempDir, StateDb, TaskState) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = StateDb::open(dir.path(), Budget::default()).expect("opens");
    let mut task = db.task(0, &[StoreSpec::new("bars")]).expect("opens");
    for n in 0..KEYS {
        task.put(0, &key(n * 2), &[n as u8; 160]);
    }
    task.commit(&Checkpoint::default()).expect("commits");
    db.flush().expect("flushes");
    (dir, db, task)
}

fn reads(c: &mut Criterion) {
    let (_dir, _db, mut task) = loaded();
    for n in 0..500 {
        task.put(0, &key(n * 2), &[1; 160]);
    }
    let mut group = c.benchmark_group("get");
    let mut out = Vec::new();
    let mut n = 0;
    group.bench_function("overlay", |b| {
        b.iter(|| {
            n = (n + 7) % 500;
            black_box(task.get_into(0, &key(n * 2), &mut out)).is_ok()
        })
    });
    group.bench_function("rocks hit", |b| {
        b.iter(|| {
            n = (n + 7_919) % KEYS;
            black_box(task.get_into(0, &key(n * 2), &mut out)).is_ok()
        })
    });
    group.bench_function("rocks miss", |b| {
        b.iter(|| {
            n = (n + 7_919) % KEYS;
            black_box(task.get_into(0, &key(n * 2 + 1), &mut out)).is_ok()
        })
    });
    group.finish();
}

fn writes(c: &mut Criterion) {
    let (_dir, _db, mut task) = loaded();
    let mut group = c.benchmark_group("put");
    let mut n = 0;
    group.bench_function("dirty key", |b| {
        b.iter(|| {
            n = (n + 7) % 500;
            task.put(0, &key(n), &[2; 160]);
        })
    });
    task.discard();
    group.finish();
    let mut group = c.benchmark_group("commit");
    for dirty in [20u64, 200, 2_000] {
        group.throughput(Throughput::Elements(dirty));
        group.bench_function(format!("{dirty} keys"), |b| {
            b.iter(|| {
                for n in 0..dirty {
                    task.put(0, &key(n * 2), &[3; 160]);
                }
                black_box(task.dirty().count());
                task.commit(&Checkpoint::default()).expect("commits");
            })
        });
    }
    group.finish();
}

fn restores(c: &mut Criterion) {
    let mut group = c.benchmark_group("restore");
    group.sample_size(10).throughput(Throughput::Elements(KEYS));
    group.bench_function("20000 records", |b| {
        b.iter_batched(
            || {
                let dir = tempfile::tempdir().expect("a temporary folder");
                let db = StateDb::open(dir.path(), Budget::default()).expect("opens");
                let task = db.task(0, &[StoreSpec::new("bars")]).expect("opens");
                (dir, db, task)
            },
            |(dir, db, mut task)| {
                for n in 0..KEYS {
                    task.restore(0, &key(n), Some(&[4; 160])).expect("restores");
                }
                task.finish_restore(&Checkpoint::default()).expect("ends");
                (dir, db, task)
            },
            BatchSize::PerIteration,
        )
    });
    group.finish();
}

criterion_group!(benches, reads, writes, restores);
criterion_main!(benches);
