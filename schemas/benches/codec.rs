//! Nanoseconds per trade: `cargo bench -p finlake-schemas`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use finlake_schemas::{
    Bar, Basis, Codec, Dec8, Dec16, InputRange, Kind, LedgerEntry, Origin, OutputCount, Stage,
    Tick, hash128, keys,
};

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

fn bar() -> Bar<'static> {
    Bar {
        source: "binance",
        symbol: "BTCUSDT",
        bar_interval: "1m",
        bar_start: 1_723_161_300_000_000,
        bar_end: 1_723_161_360_000_000,
        trade_date: 19_943,
        tick_id: keys::bar_id("binance", "BTCUSDT", "1m", 1_723_161_300_000_000),
        open: Dec8(6_183_764_000_000),
        high: Dec8(6_186_251_000_000),
        low: Dec8(6_169_000_000_001),
        close: Dec8(6_170_000_000_000),
        volume: Dec8(12_345_678_901),
        quote_volume: Dec16(7_634_000_000_000_000_000_000),
        trade_count: 8_863,
        taker_buy_base: Dec8(6_345_678_901),
        taker_buy_quote: Dec16(3_634_000_000_000_000_000_000),
        vwap: Dec8(6_175_000_000_000),
        first_trade_time: 1_723_161_300_010_000,
        first_trade_id: 3_735_684_000,
        last_trade_time: 1_723_161_359_990_000,
        last_trade_id: 3_735_692_862,
        stage: Stage::Closed,
        revision: 2,
        origin: Origin::Trades,
        basis: Basis::AsQuoted,
        basis_at: None,
        retracted: false,
        commit: 77,
        ticks_offset: 9_001,
        bars_offset: 3,
        sys_from: 1_723_161_601_000_000,
        prev_sys_from: Some(1_723_161_600_500_000),
    }
}

fn entry() -> LedgerEntry {
    let input = |topic: &str| InputRange {
        topic: topic.to_owned(),
        start: 9_001,
        end: 9_013,
        records: 10,
        hash: u128::MAX / 3,
        accepted: 7,
        duplicates: 2,
        rejected: 1,
        skipped: 2,
    };
    LedgerEntry {
        app_id: "finlake".to_owned(),
        task: 3,
        commit: 78,
        system_time: 1_723_161_602_000_000,
        stream_times: vec![("binance".to_owned(), 1_723_161_601_999_000)],
        inputs: vec![input("market.ticks"), input("market.bars")],
        outputs: ["market.ohlcv", "market.metrics", "market.ticks.dlq"]
            .map(|topic| OutputCount {
                topic: topic.to_owned(),
                count: 4,
                hash: u128::MAX / 5,
            })
            .to_vec(),
        corrections: 1,
        totals: ["accepted", "records"]
            .map(|name| (name.to_owned(), 9_010))
            .to_vec(),
        schema_ids: vec![1, 2],
        prev_hash: 42,
        last: false,
        heartbeat: false,
    }
}

/// Once per bar and commit, or per commit.
fn records(c: &mut Criterion) {
    let codec = Codec::offline();
    let mut group = c.benchmark_group("record");
    group.throughput(Throughput::Elements(1));
    let (bar, entry) = (bar(), entry());
    let mut out = Vec::with_capacity(1024);
    group.bench_function("encode bar", |b| {
        b.iter(|| {
            out.clear();
            codec.encode_bar(black_box(&bar), &mut out)
        })
    });
    let bytes = out.clone();
    group.bench_function("decode bar", |b| {
        b.iter(|| codec.decode_bar(black_box(&bytes)))
    });
    group.bench_function("encode ledger", |b| {
        b.iter(|| {
            out.clear();
            codec.encode_ledger(black_box(&entry), &mut out)
        })
    });
    let bytes = out.clone();
    group.bench_function("decode ledger", |b| {
        b.iter(|| codec.decode_ledger(black_box(&bytes)))
    });
    group.finish();
}

criterion_group!(benches, codec, records);
criterion_main!(benches);
