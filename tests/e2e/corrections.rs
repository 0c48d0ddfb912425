//! `market.bars`, the second input, on Apache Kafka: corrections come while instances are killed and partitions move.
//! Each is applied once or in the DLQ with its reason, and `bronze.market_bars` holds every record.

use std::collections::{BTreeMap, BTreeSet};

use finlake::ingest::{KafkaOut, Out};
use finlake_schemas::{Assertion, BarContent, Dec8, Dec16, LedgerEntry, topics};

use crate::exact::{World, market};
use crate::harness::{Kafka, secs};
use crate::rows::{self, ask};

/// A closed 1m bar as the table has it.
pub struct Row {
    source: String,
    symbol: String,
    pub start: i64,
    sys_from: i64,
    revision: i32,
    content: BarContent,
}

/// The closed 1m bars, by symbol and time.
pub fn closed_minutes(world: &World) -> Vec<Row> {
    let lines = ask(
        &world.data(),
        "select source, symbol, cast(bar_start as bigint), cast(sys_from as bigint), revision, open, high, low, close, \
         volume, quote_volume, trade_count, taker_buy_base, taker_buy_quote, cast(first_trade_time as bigint), \
         first_trade_id, cast(last_trade_time as bigint), last_trade_id from silver.market_ohlcv \
         where is_current and bar_interval = '1m' and stage = 'closed' order by 2, 3",
    );
    let row = |line: &String| {
        let c: Vec<&str> = line.split(',').collect();
        let (d8, d16) = (
            |at: usize| Dec8::parse(c[at]).unwrap(),
            |at: usize| Dec16::parse(c[at]).unwrap(),
        );
        let long = |at: usize| c[at].parse::<i64>().unwrap();
        Row {
            source: c[0].to_owned(),
            symbol: c[1].to_owned(),
            start: long(2),
            sys_from: long(3),
            revision: c[4].parse().unwrap(),
            content: BarContent {
                open: d8(5),
                high: d8(6),
                low: d8(7),
                close: d8(8),
                volume: d8(9),
                quote_volume: d16(10),
                trade_count: long(11),
                taker_buy_base: d8(12),
                taker_buy_quote: d16(13),
                first_trade_time: long(14),
                first_trade_id: long(15),
                last_trade_time: long(16),
                last_trade_id: long(17),
            },
        }
    };
    lines.iter().map(row).collect()
}

/// An assertion that the bar's high was one more, or that there was no bar; `stale`: about a version that never was.
/// The high as the tables show it, and the record.
pub fn correction(
    world: &World,
    row: &Row,
    id: u8,
    retracted: bool,
    stale: bool,
) -> (String, (Vec<u8>, Vec<u8>)) {
    let content = BarContent {
        high: Dec8(row.content.high.0 + 100_000_000),
        ..row.content
    };
    let a = Assertion {
        assertion_id: [id; 16],
        source: &row.source,
        symbol: &row.symbol,
        bar_interval: "1m",
        bar_start: row.start,
        expected_sys_from: Some(row.sys_from - i64::from(stale)),
        expected_revision: Some(row.revision),
        content,
        retracted,
        origin: "test",
        reason: "e2e",
        sent_at: 1,
    };
    let (mut key, mut value) = (Vec::new(), Vec::new());
    a.key(&mut key);
    world.codec.encode_assertion(&a, &mut value).unwrap();
    (format!("{:#}", content.high), (key, value))
}

/// Sends the records and waits until they are there.
pub fn send(world: &World, records: &[(Vec<u8>, Vec<u8>)]) {
    let properties = [("bootstrap.servers".to_owned(), world.bootstrap.clone())];
    let mut out = KafkaOut::new(&properties, topics::BARS).unwrap();
    for (key, value) in records {
        out.send(key, value).unwrap();
    }
    out.finish().unwrap();
}

#[test]
fn corrections_are_applied_once_whatever_dies() {
    let Some(kafka) = Kafka::start() else { return };
    let world = World::on(&kafka, "1m,1h,1d");
    world.create_topics();
    let messages = market(&world, 21, 12, 40_000);
    let (first, rest) = messages.split_at(messages.len() / 2);
    world.produce(first);
    world.finish("a");
    let all = closed_minutes(&world);
    // Bars of the quiet days, which the rest of the trades does not touch: some have left the store, some have not.
    let first_day = all.iter().map(|r| r.start).min().unwrap_or(0);
    let day = |r: &Row| (r.start - first_day) / 86_400_000_000;
    let evicted = all.iter().filter(|r| day(r) < 4).take(20);
    let here = all.iter().filter(|r| (10..38).contains(&day(r))).take(40);
    let rows: Vec<&Row> = evicted.chain(here).collect();
    assert_eq!(rows.len(), 60, "of {} closed minutes", all.len());
    let here = |n: usize| n >= 20;
    let mut expected: BTreeMap<(String, i64), (String, bool)> = BTreeMap::new();
    let mut records = Vec::new();
    let mut assert_bar = |row: &Row, n: usize, stale: bool| {
        let retracted = n.is_multiple_of(5);
        let (high, record) = correction(&world, row, n as u8, retracted, stale);
        records.push(record);
        if !stale {
            expected.insert((row.symbol.clone(), row.start), (high, retracted));
        }
    };
    for (n, row) in rows.iter().enumerate() {
        // Every one twice: the second holds already. Some before that with a version that never was.
        if n.is_multiple_of(7) && here(n) {
            assert_bar(row, n, true);
        }
        assert_bar(row, n, false);
        assert_bar(row, n, false);
    }
    records.push((b"sim:X".to_vec(), b"poison".to_vec()));
    let stale = (0..rows.len())
        .filter(|n| n.is_multiple_of(7) && here(*n))
        .count();

    let mut a = world.finlake("a").arg("run").spawn();
    let pieces: Vec<_> = records.chunks(records.len() / 4 + 1).collect();
    let trades: Vec<_> = rest.chunks(rest.len() / pieces.len() + 1).collect();
    let mut b = None;
    for (n, piece) in pieces.iter().enumerate() {
        send(&world, piece);
        world.produce(trades[n]);
        std::thread::sleep(std::time::Duration::from_millis(1_500));
        match n {
            0 => {
                a.kill9();
                a = world.finlake("a").arg("run").spawn();
            }
            // Partitions move; both inputs of each go together.
            1 => b = Some(world.finlake("b").arg("run").spawn()),
            2 => {
                a.kill9();
                a = world.finlake("a").arg("run").spawn();
            }
            _ => {}
        }
    }
    std::thread::sleep(secs(12));
    assert_eq!(a.stop(secs(60)), 0, "{}", a.tail());
    let mut b = b.expect("started");
    assert_eq!(b.stop(secs(60)), 0, "{}", b.tail());
    world.finish("a");

    // Silver: each corrected bar has exactly the content asserted, or is gone.
    let data = world.data();
    let current: BTreeMap<(String, i64), String> = ask(
        &data,
        "select symbol, cast(bar_start as bigint), high from silver.market_ohlcv \
         where is_current and bar_interval = '1m'",
    )
    .iter()
    .map(|line| {
        let c: Vec<&str> = line.split(',').collect();
        ((c[0].to_owned(), c[1].parse().unwrap()), c[2].to_owned())
    })
    .collect();
    for (key, (high, retracted)) in &expected {
        let found = current.get(key);
        match retracted {
            true => assert_eq!(found, None, "{key:?} was taken back"),
            false => assert_eq!(found, Some(high), "{key:?}"),
        }
    }
    rows::histories(&data, "gold.market_metrics", "source, symbol, trade_date");
    // One version each: the second copy said nothing new.
    let revisions = ask(
        &data,
        "select count(*) from silver.market_ohlcv where bar_interval = '1m' and bars_offset > 0 and revision > 0",
    );
    assert!(!revisions.is_empty());

    // Bronze holds every record, once; the DLQ what was refused.
    let bronze = ask(
        &data,
        "select kafka_partition, kafka_offset from bronze.market_bars",
    );
    let distinct: BTreeSet<&String> = bronze.iter().collect();
    assert_eq!(
        (bronze.len(), distinct.len()),
        (records.len(), records.len())
    );
    let mut classes: BTreeMap<String, usize> = BTreeMap::new();
    for (_, headers) in world.read(topics::DLQ) {
        let header = |name: &str| {
            let found = headers.iter().find(|(k, _)| k == name);
            found.map(|(_, v)| v.clone()).unwrap_or_default()
        };
        if header("finlake.topic") == topics::BARS {
            *classes.entry(header("finlake.error.class")).or_default() += 1;
        }
    }
    let refused = BTreeMap::from([
        ("malformed".to_owned(), 1),
        ("stale_assertion".to_owned(), stale),
    ]);
    assert_eq!(classes, refused);

    // INV-11 and INV-12 for the second input.
    let mut next: BTreeMap<i32, i64> = BTreeMap::new();
    let mut last: BTreeMap<i32, LedgerEntry> = BTreeMap::new();
    let (mut applied, mut held, mut rejected) = (0, 0, 0);
    for (record, _) in world.read(topics::LEDGER) {
        let e = world.codec.decode_ledger(&record.value).unwrap();
        let bars = e.inputs.iter().find(|i| i.topic == topics::BARS).unwrap();
        let at = next.entry(record.partition).or_default();
        assert_eq!(bars.start, *at, "INV-12: {e:?}");
        *at = bars.end;
        assert_eq!(
            bars.records,
            bars.accepted + bars.duplicates + bars.rejected
        );
        applied += bars.accepted;
        held += bars.duplicates;
        rejected += bars.rejected;
        last.insert(record.partition, e);
    }
    // The ledger counts what retracts, through kills and restores: so the rows of a table are known exactly.
    let mut retracted = 0;
    for (topic, total, table) in [
        (
            topics::OHLCV,
            LedgerEntry::BARS_RETRACTED,
            "silver.market_ohlcv",
        ),
        (
            topics::METRICS,
            LedgerEntry::METRICS_RETRACTED,
            "gold.market_metrics",
        ),
    ] {
        let sum = |name: &str| -> i64 { last.values().map(|e| e.total(name).unwrap()).sum() };
        let counted = ask(&data, &format!("select count(*) from {table}"));
        assert_eq!(counted, [(sum(topic) - sum(total)).to_string()], "{table}");
        retracted += sum(total);
    }
    let taken_back = expected.values().filter(|(_, retracted)| *retracted);
    assert!(retracted >= taken_back.count() as i64, "{retracted}");
    let ran = world.audit();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    // What was asserted and taken is no drift, what was taken back not missing. (A minute that is gone is missing from
    // its hour's sum, and that is so.)
    let rules = "quality.rules=id_gaps<=0, ohlc_order<=0, current_unique<=0";
    let ran = world
        .finlake("reconcile")
        .args(["reconcile", "--quiet", "--output", "json", "--set", rules])
        .run(secs(300));
    assert_eq!(ran.code, 0, "{}\n{}", ran.stdout, ran.stderr);

    assert_eq!(applied, rows.len() as i64);
    assert_eq!(held, rows.len() as i64);
    assert_eq!(rejected, stale as i64 + 1);
}
