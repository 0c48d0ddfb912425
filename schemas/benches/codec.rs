//! Nanoseconds per trade: `cargo bench -p finlake-schemas`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use finlake_schemas::{Codec, Dec8, Kind, Tick, hash128};

fn tick() -> Tick<'static> {
    Tick {
        source: "binance",
        symbol: "BTCUSDT",
        trade_id: 3_735_683_259,
        price: Dec8(6_183_763_000_000),
        quantity: Dec8(2_000_000),
        trade_time: 1_723_161_255_342_000,
        event_time: Some(1_723_161_255_343_000),
        buyer_maker: Some(true),
        ingest_time: Some(1_723_161_254_087_896),
        first_trade_id: None,
        last_trade_id: None,
    }
}

fn codec(c: &mut Criterion) {
    // The same schema with one more field: read by name, through serde.
    let foreign = Kind::Tick.newest().replacen(
        r#""fields": ["#,
        r#""fields": [{"name": "extra", "type": "int"}, "#,
        1,
    );
    let codec = Codec::offline_with(&[(300, &foreign)]);
    let mut group = c.benchmark_group("tick");
    group.throughput(Throughput::Elements(1));
    for version in [1u8, 2] {
        let mut bytes = Vec::new();
        codec
            .encode_tick(&tick(), version, &mut bytes)
            .expect("encodable");
        group.bench_function(format!("decode v{version}"), |b| {
            b.iter(|| codec.decode_tick(black_box(&bytes)))
        });
        let mut out = Vec::with_capacity(256);
        let tick = tick();
        group.bench_function(format!("encode v{version}"), |b| {
            b.iter(|| {
                out.clear();
                codec.encode_tick(black_box(&tick), version, &mut out)
            })
        });
    }
    let mut bytes = Vec::new();
    codec
        .encode_tick(&tick(), 2, &mut bytes)
        .expect("encodable");
    let mut other = vec![0, 0, 0, 1, 44, 0];
    other.extend_from_slice(&bytes[5..]);
    assert!(codec.decode_tick(&other).is_ok());
    group.bench_function("decode v2 by name", |b| {
        b.iter(|| codec.decode_tick(black_box(&other)))
    });
    group.bench_function("hash128", |b| {
        b.iter(|| hash128(black_box(b"binance:BTCUSDT"), black_box(&bytes)))
    });
    group.bench_function("parse price", |b| {
        b.iter(|| Dec8::parse_bytes(black_box(b"61837.63000000")))
    });
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
