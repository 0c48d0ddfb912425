//! Looking back: replays of what was processed, tables rebuilt from their topics, the remedy for trades that came too
//! late, a reset. On the embedded broker; exact.rs does the same on what kills and zombies left on Apache Kafka.

mod apply;
mod part;

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, Decimal128Array};
use arrow::compute::concat_batches;
use arrow::datatypes::Decimal128Type;
use arrow::record_batch::RecordBatch;
use finlake::demo::market::Message;
use finlake_devkafka::DevKafka;
use finlake_lakehouse::faults::tamper;
use finlake_lakehouse::{Filter, LakeConfig, Lakehouse, Scan, Table};
use finlake_schemas::topics;
use futures::TryStreamExt;

use crate::exact::{PARTITIONS, World, market};
use crate::harness::{Ran, secs};
use crate::rows;

impl World {
    /// Replays everything, and rebuilds the tables from their topics: nothing may differ.
    pub fn replays(&self) {
        let ran = self
            .finlake("replay")
            .args(["replay", "--all", "--verify"])
            .run(secs(600));
        assert_eq!(ran.code, 0, "{}\n{}", ran.stdout, ran.stderr);
        let said = |text: &str| assert!(ran.stderr.contains(text), "{text}: {}", ran.stderr);
        said("0 different; Gold");
        for table in [
            "bronze.market_ticks",
            "silver.market_ohlcv",
            "gold.market_metrics",
        ] {
            assert!(
                ran.stderr
                    .lines()
                    .any(|l| l.starts_with(table) && l.ends_with(": equal")),
                "{table}: {}",
                ran.stderr
            );
        }
    }

    fn replay(&self, args: &[&str]) -> Ran {
        self.finlake("replay")
            .arg("replay")
            .args(args)
            .run(secs(120))
    }
}

fn tick(world: &World, id: i64, time: i64, price: i64) -> Message {
    world.trade("LATE-USD", id, time, price)
}

#[test]
fn everything_replayed_and_every_table_rebuilt_is_equal() {
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    let world = World::at(broker.bootstrap(), "1m,5m,1h,1d");
    world.create_topics();
    let messages = market(&world, 17, 12, 40_000);
    let (first, rest) = messages.split_at(messages.len() / 2);
    for part in [first, rest] {
        world.produce(part);
        world.finish("a");
    }
    world.replays();
    // Nothing is left of the rebuilt tables.
    let left = std::fs::read_dir(world.data()).unwrap();
    let left = left.filter(|e| {
        let name = e.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with("replay-")
    });
    assert_eq!(left.count(), 0);
}

const DAY: i64 = 86_400_000_000;

/// Fifty days of one trade each, and a trade fifty days late, too late for its minute: the first day, and the offset that
/// its dead letter names.
pub fn late_trade(world: &World) -> (i64, String) {
    world.create_topics();
    let day = 1_767_571_200_000_000;
    let mut messages: Vec<Message> = (0..50)
        .map(|n| tick(world, n, day + n * DAY + 1_000, 100 + n))
        .collect();
    // Fifty days late, in the first minute of all, a minute whose bar has left the store.
    messages.push(tick(world, 1_000, day + 2_000, 500));
    world.produce(&messages);
    world.finish("a");
    let letters = world.read(topics::DLQ);
    let at = letters
        .iter()
        .find_map(|(r, headers)| {
            let header = |name: &str| {
                headers
                    .iter()
                    .find(|(k, _)| k == name)
                    .map(|(_, v)| v.as_str())
            };
            let late = header("finlake.error.class") == Some("too_late:1m");
            late.then(|| {
                format!(
                    "market.ticks:{}:{}",
                    r.partition,
                    header("finlake.offset").unwrap()
                )
            })
        })
        .expect("a dead letter that says too_late:1m");
    (day, at)
}

#[test]
fn a_trade_too_late_for_its_minute_is_put_right_by_a_replay() {
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    let world = World::at(broker.bootstrap(), "1m,1h,1d");
    let (day, at) = late_trade(&world);
    let bar = format!(
        "select high, trade_count, revision from silver.market_ohlcv where is_current and bar_interval = '1m' and \
         cast(bar_start as bigint) = {day}"
    );
    assert_eq!(rows::ask(&world.data(), &bar), ["100.00000000,1,0"]);

    let found = world.replay(&["--from-offsets", &at, "--output", "csv"]);
    assert_eq!(found.code, 1, "{}\n{}", found.stdout, found.stderr);
    assert_eq!(found.stdout.lines().count(), 2, "{}", found.stdout);
    assert!(found.stdout.contains("different"), "{}", found.stdout);
    assert_eq!(
        rows::ask(&world.data(), &bar),
        ["100.00000000,1,0"],
        "nothing is written yet"
    );

    world.replay(&[
        "--from-offsets",
        &at,
        "--apply",
        "--reason",
        "the late trade",
    ]);
    world.finish("a");
    assert_eq!(rows::ask(&world.data(), &bar), ["500.00000000,2,1"]);
    let again = world.replay(&["--from-offsets", &at]);
    assert_eq!(again.code, 0, "{}\n{}", again.stdout, again.stderr);

    let key = format!("sim:LATE-USD:1m:{day}");
    let history = world
        .finlake("a")
        .args(["history", &key, "--output", "csv"])
        .run(secs(60))
        .ok();
    let lines: Vec<&str> = history.stdout.lines().skip(1).collect();
    assert_eq!(lines.len(), 2, "{}", history.stdout);
    assert!(lines[0].contains("superseded by") && lines[1].contains("current"));
    // The assertion is in the books: a whole replay takes it in and comes to the same tables.
    world.replays();
}

/// Changes rows of a table behind FinLake's back: `change` gets the file of the row that `which` finds, and its number.
fn damage(
    data: &Path,
    table: Table,
    which: Filter,
    change: fn(&RecordBatch, usize) -> RecordBatch,
) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let config = LakeConfig {
            kafka_partitions: PARTITIONS,
            ..LakeConfig::local(data)
        };
        let lake = Lakehouse::open(config).await.unwrap();
        let pinned = lake.snapshot(table).await.unwrap();
        let scan = Scan::columns(&["kafka_offset"]).filter(which);
        let found: Vec<_> = pinned
            .scan(&scan)
            .await
            .unwrap()
            .try_collect()
            .await
            .unwrap();
        let found = found.iter().find(|b| b.batch.num_rows() > 0).unwrap();
        let row = found.row_numbers()[0] as usize;
        let changed = |rows| Ok(change(&rows, row));
        tamper(&lake, table, &found.file, changed).await.unwrap();
    });
}

/// The bar that begins then, of one minute.
fn minute(start: i64) -> Filter {
    let filter = Filter::all().current().interval("1m");
    filter.between("bar_start", start..start + 1)
}

/// The high is one more.
fn higher(rows: &RecordBatch, row: usize) -> RecordBatch {
    let at = rows.schema().index_of("high").unwrap();
    let before = rows.column(at).as_primitive::<Decimal128Type>();
    let more = |(n, v): (usize, &i128)| if n == row { v + 100_000_000 } else { *v };
    let after = Decimal128Array::from_iter_values(before.values().iter().enumerate().map(more));
    let mut columns = rows.columns().to_vec();
    columns[at] = Arc::new(after.with_data_type(before.data_type().clone()));
    RecordBatch::try_new(rows.schema(), columns).unwrap()
}

/// The row is gone.
fn gone(rows: &RecordBatch, row: usize) -> RecordBatch {
    let after = rows.num_rows() - row - 1;
    let rest = [rows.slice(0, row), rows.slice(row + 1, after)];
    concat_batches(&rows.schema(), &rest).unwrap()
}

/// High and number of trades of a minute.
fn high(world: &World, start: i64) -> String {
    let sql = format!(
        "select high, trade_count from silver.market_ohlcv where is_current and bar_interval = '1m' and \
         cast(bar_start as bigint) = {start}"
    );
    rows::ask(&world.data(), &sql).join(";")
}

fn late_world() -> (DevKafka, World, i64, String) {
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    let world = World::at(broker.bootstrap(), "1m,1h,1d");
    let (day, at) = late_trade(&world);
    (broker, world, day, at)
}

/// Equal, pending, different, corrected of a layer.
fn tally(ran: &Ran, layer: &str) -> [u64; 4] {
    let json = ran.json();
    ["equal", "pending", "different", "corrected"].map(|n| json[layer][n].as_u64().unwrap())
}

fn at(us: i64) -> String {
    finlake::output::format_instant(us)
}

#[test]
fn a_reset_lists_first_and_then_begins_again() {
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    let world = World::at(broker.bootstrap(), "1m,1h,1d");
    world.create_topics();
    world.produce(&market(&world, 23, 4, 5_000));
    world.finish("a");
    let before = rows::silver(&world.data());
    let reset = |args: &[&str]| world.finlake("a").arg("reset").args(args).run(secs(60));
    let refused = reset(&[]);
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("--outputs"), "{}", refused.stderr);
    // What there is was listed all the same.
    for what in ["consumer group", "changelog", "state stores"] {
        assert!(refused.stdout.contains(what), "{}", refused.stdout);
    }
    let refused = reset(&["--yes", "--output", "json"]);
    assert_eq!(
        (refused.code, &refused.json()["done"]),
        (2, &false.into()),
        "{}",
        refused.stdout
    );
    // The static members' sessions have to end first.
    let listed = crate::harness::eventually("the groups are empty", secs(60), || {
        let listed = reset(&["--outputs"]);
        (listed.code == 1).then_some(listed)
    });
    assert!(
        listed.stdout.contains("consumer group"),
        "{}",
        listed.stdout
    );
    assert!(
        !world.read(topics::LEDGER).is_empty(),
        "a list removes nothing"
    );

    assert_eq!(reset(&["--outputs", "--yes"]).code, 0);
    world.create_topics();
    assert!(world.read(topics::LEDGER).is_empty());
    let ran = world
        .finlake("a")
        .set("lake.namespace_prefix", "again_")
        .args(["run", "--until-caught-up"])
        .run(secs(120));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let after = world
        .finlake("a")
        .set("lake.namespace_prefix", "again_")
        .args([
            "query",
            "--quiet",
            "--output",
            "csv",
            "select count(*) from silver.market_ohlcv where is_current",
        ])
        .run(secs(60))
        .ok();
    assert_eq!(
        after.stdout.lines().nth(1),
        Some(before.len().to_string().as_str())
    );
}
