//! `market.bars`, the second input, on Apache Kafka: corrections come while instances are killed and partitions move.
//! Each is applied once or in the DLQ with its reason, and `bronze.market_bars` holds every record.

use std::collections::{BTreeMap, BTreeSet};

use finlake::demo::market::Message;
use finlake::ingest::{KafkaOut, Out};
use finlake::output::format_instant;
use finlake_devkafka::DevKafka;
use finlake_schemas::{Assertion, BarContent, Dec8, Dec16, LedgerEntry, topics};
use serde_json::Value;

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

/// The last minute of a day.
const LAST: i64 = 1_767_571_200_000_000 + 86_400_000_000 - 60_000_000;

/// A trade of one unit, so many seconds into that minute.
fn trade(world: &World, id: i64, second: i64, price: i64) -> Message {
    world.trade("PAST-USD", id, LAST + second * 1_000_000, price)
}

/// Versions of a key as the command lists them.
fn history(world: &World, key: &str) -> Vec<Value> {
    let ran = world.finlake("a").args(["history", key, "-o", "json"]);
    let json = ran.run(secs(60)).ok().json();
    json["rows"].as_array().unwrap().clone()
}

/// These columns of a version, as text, whole numbers without a point.
fn cells(version: &Value, columns: &str) -> String {
    let cell = |name: &str| match &version[name] {
        Value::String(text) => text.replace(".00000000", ""),
        other => other.to_string(),
    };
    columns.split(' ').map(cell).collect::<Vec<_>>().join(" ")
}

/// Asserts that each but the last was superseded by the next; when and how the last one ended.
fn ended(versions: &[Value]) -> Vec<String> {
    let by = |next: &Value| {
        format!(
            "superseded by the version of {}",
            next["sys_from"].as_str().unwrap()
        )
    };
    for pair in versions.windows(2) {
        assert_eq!(pair[0]["sys_to"], pair[1]["sys_from"]);
        assert_eq!(pair[0]["ended"], by(&pair[1]));
    }
    let last = &versions[versions.len() - 1];
    ["sys_to", "ended"]
        .map(|name| last[name].as_str().unwrap().to_owned())
        .to_vec()
}

/// The first such entry of the ledger.
fn entry(world: &World, which: impl Fn(&LedgerEntry) -> bool) -> LedgerEntry {
    let all = world.read(topics::LEDGER).into_iter();
    let mut all = all.map(|(r, _)| world.codec.decode_ledger(&r.value).unwrap());
    all.find(which).expect("such a commit")
}

/// A version's time and input positions are those of the commit that it names, and its record lies where it says.
fn traced(world: &World, topic: &str, version: &Value) -> Vec<u8> {
    let e = entry(world, |e| {
        let at = (&version["kafka_partition"], &version["commit"]);
        (&e.task.into(), &e.commit.into()) == at
    });
    assert_eq!(
        version["sys_from"],
        format_instant(e.system_time),
        "{version}"
    );
    for (input, column) in [
        (topics::TICKS, "ticks_offset"),
        (topics::BARS, "bars_offset"),
    ] {
        let range = e.inputs.iter().find(|i| i.topic == input).unwrap();
        assert_eq!(version[column], range.end, "{version}");
    }
    let all = world.read(topic).into_iter().map(|(record, _)| record);
    let mut here = all.filter(|r| {
        let at = (&version["kafka_partition"], &version["kafka_offset"]);
        (&r.partition.into(), &r.offset.into()) == at
    });
    here.next().expect("its record").value
}

/// The minute: two late trades, an assertion between them, and at last a retraction.
fn of_the_minute(world: &World) {
    let bar = history(world, &format!("sim:PAST-USD:1m:{LAST}"));
    let held = "revision stage open high low close volume trade_count ticks_offset bars_offset";
    let said: Vec<String> = bar.iter().map(|v| cells(v, held)).collect();
    let expected = [
        "0 closed 100 110 100 110 2 2 3 0",
        "1 closed 100 110 90 90 3 3 4 0",
        "2 closed 100 111 90 90 3 3 4 1",
        "3 closed 100 130 90 130 4 4 5 1",
    ];
    assert_eq!(said, expected);
    for v in &bar {
        let value = traced(world, topics::OHLCV, v);
        let b = world.codec.decode_bar(&value).unwrap();
        assert_eq!((b.bar_interval, b.bar_start), ("1m", LAST));
        assert_eq!(v["close"], format!("{:#}", b.close));
        assert_eq!(
            (&v["revision"], &v["commit"]),
            (&b.revision.into(), &b.commit.into())
        );
    }
    // The commit that took the retraction in, the third record of its topic.
    let taken = entry(world, |e| {
        let mut bars = e.inputs.iter().filter(|i| i.topic == topics::BARS);
        bars.any(|i| (i.start..i.end).contains(&2))
    });
    assert_eq!(
        ended(&bar),
        [format_instant(taken.system_time), "retracted".to_owned()]
    );
}

/// Its day sees the late trades alone.
fn of_the_day(world: &World) {
    let day = history(world, "sim:PAST-USD:2026-01-05");
    let held = "revision close observations return_1 ticks_offset bars_offset";
    let said: Vec<String> = day.iter().map(|v| cells(v, held)).collect();
    assert_eq!(
        said,
        ["0 110 0 null 3 0", "1 90 0 null 4 0", "2 130 0 null 5 1"]
    );
    for v in &day {
        let value = traced(world, topics::METRICS, v);
        let m = world.codec.decode_metrics(&value).unwrap();
        assert_eq!(
            (m.symbol, format!("{:#}", m.close)),
            ("PAST-USD", v["close"].as_str().unwrap().to_owned())
        );
    }
    assert_eq!(ended(&day), ["9999-12-31T00:00:00.000000Z", "current"]);
}

/// A bar and a day that late trades correct, and the bar also people: what each version held, from which inputs it came,
/// what ended it, and by which commit.
#[test]
fn history_tells_what_each_version_held_and_what_ended_it() {
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    let world = World::at(broker.bootstrap(), "1m,1h,1d");
    world.create_topics();
    let trades = |all: &[(i64, i64, i64)]| {
        let all: Vec<_> = all
            .iter()
            .map(|(id, s, price)| trade(&world, *id, *s, *price))
            .collect();
        world.produce(&all);
        world.finish("a");
    };
    let assert = |corrections: &[(u8, bool, bool)]| {
        let row = &closed_minutes(&world)[0];
        assert_eq!(row.start, LAST);
        let record = |(id, retracted, stale): &(u8, bool, bool)| {
            correction(&world, row, *id, *retracted, *stale).1
        };
        send(&world, &corrections.iter().map(record).collect::<Vec<_>>());
        world.finish("a");
    };
    trades(&[(1, 0, 100), (2, 30, 110), (3, 300, 105)]);
    trades(&[(4, 45, 90)]);
    assert(&[(1, false, false)]);
    trades(&[(5, 50, 130)]);
    assert(&[(2, false, true), (3, true, false)]);

    of_the_minute(&world);
    of_the_day(&world);

    let never = world
        .finlake("a")
        .args(["history", "sim:PAST-USD:1m:0"])
        .run(secs(60));
    assert_eq!(never.code, 1, "{}", never.stderr);
    assert!(
        never.stderr.contains("silver.market_ohlcv never held"),
        "{}",
        never.stderr
    );
    // What the correction of a version that never was came to.
    let letters = world.finlake("a").args(["dlq", "list"]).run(secs(60)).ok();
    let letter = letters
        .stdout
        .lines()
        .find(|l| l.contains("stale_assertion"))
        .expect(&letters.stdout);
    assert!(letter.contains("1m bar of"), "{letter}");
    let (at, _) = letter.split_once(',').unwrap();
    let shown = world
        .finlake("a")
        .args(["dlq", "show", at])
        .run(secs(60))
        .ok();
    for said in ["decoded as a correction", "bar_start", "expected_revision"] {
        assert!(shown.stdout.contains(said), "{}", shown.stdout);
    }
}
