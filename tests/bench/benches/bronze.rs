//! T4: Kafka → Bronze Iceberg by the role sink (Silver and Gold beside it), catching up and live.

use std::fs::File;

use finlake_lakehouse::tables::TableDef;
use finlake_lakehouse::writer::writer_properties;
use finlake_lakehouse::{BronzeRows, RecordAt, Table};
use finlake_schemas::topics;
use parquet::arrow::ArrowWriter;

use crate::bare::{self, Cost, Way};
use crate::feed::{Feed, Spec};
use crate::harness::secs;
use crate::meter::row;
use crate::world::{World, size};

const RATE: u64 = 10_000;
/// Rows over all files that the limit gathers before it writes: as many as the sink.
const GATHER: usize = 200_000;

/// The bare client and the parquet crate: one file per symbol and 200,000 rows, no transaction, no table.
fn limit(world: &World, trades: u64) -> (Cost, u64) {
    let def = TableDef::new(Table::Ticks, None, &[30, 90]);
    let props = writer_properties(&def).unwrap();
    let codec = &world.codec;
    let out = world.dir().join("limit");
    std::fs::create_dir_all(&out).unwrap();
    let mut rows: Vec<BronzeRows> = Vec::new();
    let mut symbols: Vec<String> = Vec::new();
    let (mut gathered, mut files) = (0, 0u64);
    let mut bytes = 0u64;
    let mut write = |rows: &mut Vec<BronzeRows>, gathered: &mut usize| {
        for r in rows.iter_mut() {
            let full = std::mem::replace(r, BronzeRows::new(topics::TICKS, 0));
            if full.is_empty() {
                continue;
            }
            let batch = full.finish(&def).unwrap();
            files += 1;
            let path = out.join(format!("{files}.parquet"));
            let file = File::create(&path).unwrap();
            let mut parquet =
                ArrowWriter::try_new(file, batch.schema(), Some(props.clone())).unwrap();
            parquet.write(&batch).unwrap();
            parquet.close().unwrap();
            bytes += std::fs::metadata(&path).unwrap().len();
        }
        *gathered = 0;
    };
    let mut last = 0;
    let mut total = 0u64;
    let cost = bare::read(
        &world.kafka,
        topics::TICKS,
        world.partitions,
        Way::Batch,
        |m| {
            let tick = codec.decode_tick(m.value).unwrap();
            if symbols.get(last).is_none_or(|s| s != tick.symbol) {
                last = symbols
                    .iter()
                    .position(|s| s == tick.symbol)
                    .unwrap_or_else(|| {
                        symbols.push(tick.symbol.to_owned());
                        rows.push(BronzeRows::new(topics::TICKS, 0));
                        symbols.len() - 1
                    });
            }
            let at = RecordAt {
                offset: m.offset,
                timestamp: m.timestamp_ms * 1000,
                key: Some(m.key),
                schema_id: finlake_schemas::schema_id(m.value),
                commit: 1,
                sys_from: 1,
            };
            rows[last].push_tick(&at, &tick, m.value);
            gathered += 1;
            total += 1;
            if gathered == GATHER || total == trades {
                write(&mut rows, &mut gathered);
            }
        },
    );
    (cost, bytes)
}

#[test]
#[ignore = "benchmark: ./test --bench"]
fn bronze_catching_up() {
    let Some(world) = World::start(4) else { return };
    world.create_topics();
    let trades = size("BENCH_TRADES", 4_000_000);
    let spec = Spec {
        symbols: 20,
        trades,
        density: RATE,
        linger_ms: 50,
    };
    Feed::new(&world.kafka, world.partitions, spec).rush(&world.codec);
    let stream = world.until_caught_up("a", "stream");
    let (limit, limit_bytes) = limit(&world, trades);
    let sink = world.until_caught_up("a", "sink");
    let per_million = sink.cpu / trades as f64 * 1e6;
    row(
        "T4",
        "role sink, Kafka → Bronze (and Silver, Gold), catching up: CPU-s per million",
        "≤ 1.3 × (bare client + parquet), some 2",
        &format!(
            "{per_million:.2} = {:.2} × {:.2} (limit, {} MB of Parquet); peak {:.0} MB; stream before it {:.2}",
            per_million / limit.per_million(),
            limit.per_million(),
            limit_bytes >> 20,
            sink.peak,
            stream.cpu / trades as f64 * 1e6
        ),
    );
    count(&world, trades);
}

#[test]
#[ignore = "benchmark: ./test --bench"]
fn bronze_live() {
    let Some(mut world) = World::start(4) else {
        return;
    };
    world.set("lake.commit_interval", "1s");
    world.create_topics();
    let seconds = size("BENCH_SECONDS", 60);
    let spec = Spec {
        symbols: 20,
        trades: RATE * (seconds + 5),
        density: RATE,
        linger_ms: 5,
    };
    let mut feed = Feed::new(&world.kafka, world.partitions, spec);
    let stream = world.run("a", "stream");
    let mut sink = world.run("a", "sink");
    feed.pace(&world.codec, RATE, secs(5), |_| {});
    let (before, sent) = (sink.usage(), feed.sent);
    feed.pace(&world.codec, RATE, secs(seconds), |_| {});
    let after = sink.usage();
    let scrape = sink.metrics();
    let lag = feed.sent as f64 - scrape.with("finlake_sink_rows_total", "ticks");
    row(
        "T4",
        "role sink, live at 10,000 trades/s, commit each second: CPU-s per million",
        "≤ 6, ≤ 200 MB, not falling behind",
        &format!(
            "{:.2}, RSS {:.0} MB (peak {:.0}), {} commits, {lag:.0} rows behind, {:.0} files",
            (after.cpu - before.cpu) / (feed.sent - sent) as f64 * 1e6,
            after.rss,
            after.peak,
            scrape.with("finlake_sink_commits_total", "ticks"),
            scrape.with("finlake_sink_files", "ticks"),
        ),
    );
    stream.stop();
    let sent = feed.sent as f64;
    let rows = |s: &crate::meter::Scrape| s.with("finlake_sink_rows_total", "ticks");
    crate::harness::eventually("all rows are in Bronze", secs(60), || {
        assert!(sink.process.is_running(), "{}", sink.process.tail());
        (rows(&sink.metrics()) >= sent).then_some(())
    });
    sink.stop();
    count(&world, feed.sent);
}

/// Nothing was lost or doubled.
fn count(world: &World, trades: u64) {
    let found = crate::rows::ask(
        &world.data(),
        "select count(*), count(distinct kafka_offset * 1024 + kafka_partition) from bronze.market_ticks",
    );
    assert_eq!(found, [format!("{trades},{trades}")]);
}
