//! What a replay keeps: tables beside the live ones, which `finlake query`, DuckDB and pyiceberg read together with them;
//! never in place of them, and gone without a trace when they are dropped, whatever interrupted the replay.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, Decimal128Array};
use arrow::datatypes::Decimal128Type;
use arrow::record_batch::RecordBatch;
use finlake_devkafka::DevKafka;
use finlake_lakehouse::faults::tamper;
use finlake_lakehouse::{Filter, LakeConfig, Lakehouse, Table};
use finlake_schemas::topics;
use serde_json::Value;

use crate::exact::{World, market};
use crate::harness::{Ran, Read, Reader, Readers, eventually, secs};
use crate::replay::late_trade;
use crate::rows::{self, ask};

impl World {
    fn shadowed(&self, args: &[&str]) -> Ran {
        let finlake = self.finlake("replay").arg("replay");
        finlake.args(args).run(secs(300))
    }

    fn tables(&self, args: &[&str]) -> Ran {
        self.finlake("tables")
            .arg("tables")
            .args(args)
            .run(secs(60))
    }

    /// A market in two runs of the application, so that there are graceful stops in the ledger.
    fn filled(&self, seed: u64, trades: u64) {
        self.create_topics();
        let messages = market(self, seed, 8, trades);
        let (first, rest) = messages.split_at(messages.len() / 2);
        for part in [first, rest] {
            self.produce(part);
            self.finish("a");
        }
    }
}

fn world() -> (DevKafka, World) {
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    let world = World::at(broker.bootstrap(), "1m,1h,1d");
    (broker, world)
}

fn folder(world: &World, shadow: &str) -> std::path::PathBuf {
    world.data().join("warehouse/shadow").join(shadow)
}

/// Makes the high of a current bar wrong behind FinLake's back; gives its id.
fn damage(data: &Path) -> String {
    let mut id = String::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let config = LakeConfig {
            kafka_partitions: crate::exact::PARTITIONS,
            ..LakeConfig::local(data)
        };
        let lake = Lakehouse::open(config).await.unwrap();
        let pinned = lake.snapshot(Table::Ohlcv).await.unwrap();
        let files = pinned.files(&Filter::all()).await.unwrap();
        let current = |path: &str| !path.rsplit('/').next().unwrap().starts_with("history-");
        let file = files.iter().find(|f| f.rows > 3 && current(&f.path));
        let change = |batch: RecordBatch| {
            let column = |name: &str| batch.schema().index_of(name).unwrap();
            let ids = batch.column(column("tick_id")).as_string::<i32>();
            id = ids.value(1).to_owned();
            let at = column("high");
            let before = batch.column(at).as_primitive::<Decimal128Type>();
            let more = |(n, v): (usize, &i128)| if n == 1 { v + 100_000_000 } else { *v };
            let after = before.values().iter().enumerate().map(more);
            let after = Decimal128Array::from_iter_values(after);
            let mut columns = batch.columns().to_vec();
            columns[at] = Arc::new(after.with_data_type(before.data_type().clone()));
            Ok(RecordBatch::try_new(batch.schema(), columns).unwrap())
        };
        let table = Table::Ohlcv;
        tamper(&lake, table, &file.unwrap().path, change)
            .await
            .unwrap();
    });
    id
}

/// Rows of a table as an engine gives them, by key and system time; where the record stood on its topic is left out,
/// since a replay's is on none.
fn versions(report: &Value, table: &str, key: &str) -> BTreeMap<(String, i64), Value> {
    let rows = report["tables"][table]["rows"].as_array().unwrap().iter();
    let named = rows.map(|row| {
        let mut row = row.clone();
        row.as_object_mut().unwrap().remove("kafka_offset");
        let key = row[key].as_str().unwrap().to_owned();
        ((key, row["sys_from"].as_i64().unwrap()), row)
    });
    named.collect()
}

#[test]
fn a_difference_is_looked_into_with_any_engine() {
    let Some(readers) = Readers::available() else {
        return;
    };
    let (_broker, world) = world();
    world.filled(31, 16_000);
    let data = world.data();
    let id = damage(&data);

    let ran = world.shadowed(&["--all", "--shadow", "check", "--output", "csv"]);
    assert_eq!(ran.code, 1, "{}\n{}", ran.stdout, ran.stderr);
    assert_eq!(ran.stdout.lines().count(), 2, "{}", ran.stdout);
    let said = "kept in shadow_check_silver.market_ohlcv (";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);

    // finlake query: the two joined, now and in the past.
    let differing = "from silver.market_ohlcv l join shadow_check_silver.market_ohlcv s using (tick_id, sys_from) \
                     where l.high <> s.high";
    assert_eq!(
        ask(&data, &format!("select tick_id {differing}")),
        [id.as_str()]
    );
    let times = ask(
        &data,
        "select distinct cast(sys_from as varchar) from silver.market_ohlcv order by 1",
    );
    for time in [&times[0], &times[times.len() / 2], &times[times.len() - 1]] {
        for (layer, sum) in [
            ("silver.market_ohlcv", "trade_count"),
            ("gold.market_metrics", "close"),
        ] {
            let counted = |table: &str| {
                let sql = format!(
                    "select symbol, count(*), sum({sum}), max(revision) from {table} group by 1 order by 1"
                );
                known(&world, time, &sql)
            };
            let live = counted(layer);
            assert_eq!(counted(&format!("shadow_check_{layer}")), live, "at {time}");
            assert!(layer.starts_with("gold") || !live.is_empty());
        }
    }
    for (table, key) in [
        (
            "shadow_check_silver.market_ohlcv",
            "source, symbol, bar_interval, bar_start",
        ),
        (
            "shadow_check_gold.market_metrics",
            "source, symbol, trade_date",
        ),
    ] {
        rows::histories(&data, table, key);
    }

    // Other engines: every version of every row, but for the one value, is the live table's.
    let tables = [
        "silver.market_ohlcv",
        "shadow_check_silver.market_ohlcv",
        "gold.market_metrics",
        "shadow_check_gold.market_metrics",
    ];
    let what = Read {
        tables: tables.to_vec(),
        rows: true,
        ..Read::default()
    };
    let warehouse = format!("file://{}", data.join("warehouse").display());
    let [iceberg, duckdb] = [Reader::Pyiceberg, Reader::Duckdb]
        .map(|r| readers.read(r, &data.join("catalog.db"), &warehouse, &what));
    for table in tables {
        for part in ["count", "hash", "current"] {
            let (a, b) = (
                &iceberg["tables"][table][part],
                &duckdb["tables"][table][part],
            );
            assert_eq!(a, b, "{table} {part}");
        }
    }
    let (live, shadow) = (
        versions(&duckdb, tables[0], "tick_id"),
        versions(&duckdb, tables[1], "tick_id"),
    );
    assert!(live.len() > 1_000);
    let plain = id.replace('-', "");
    let different: Vec<_> = live
        .iter()
        .filter(|(k, v)| shadow.get(k) != Some(v))
        .collect();
    assert_eq!(different.len(), 1, "{different:#?}");
    let (key, row) = different[0];
    assert_eq!((key.0.as_str(), live.len()), (plain.as_str(), shadow.len()));
    assert_ne!(row["high"], shadow[key]["high"]);
    assert_eq!(
        versions(&duckdb, tables[2], "metric_id"),
        versions(&duckdb, tables[3], "metric_id")
    );

    // What the tables say of themselves.
    let properties = &iceberg["tables"][tables[1]]["properties"];
    let said = |name: &str| properties[name].as_str().unwrap_or_default().to_owned();
    assert_eq!(said("finlake.shadow"), "check");
    assert_eq!(said("finlake.shadow.range"), "all");
    assert_eq!(said("finlake.shadow.made-by"), "finlake replay --all");
    assert!(
        said("finlake.shadow.silver").ends_with("1 different"),
        "{properties}"
    );
    assert!(
        said("finlake.shadow.finished") > said("finlake.shadow.begun"),
        "{properties}"
    );
    assert!(
        said("finlake.shadow.silver-commits").starts_with("0="),
        "{properties}"
    );
    let marked = &iceberg["tables"][tables[0]]["properties"];
    assert!(marked.get("finlake.shadow").is_none(), "{marked}");
}

/// What was known at that time, which is final.
fn known(world: &World, time: &str, sql: &str) -> Vec<String> {
    let args = [
        "query",
        "--quiet",
        "--stable",
        "-o",
        "csv",
        "--as-of-system",
    ];
    let query = world.finlake("query").args(args).arg(time).arg(sql);
    let ran = query.run(secs(60)).ok();
    ran.stdout.lines().skip(1).map(str::to_owned).collect()
}

#[test]
fn a_shadow_is_neither_overwritten_nor_written_nor_mistaken_for_a_live_table() {
    let (_broker, world) = world();
    world.filled(32, 6_000);
    let data = world.data();
    let before = rows::silver(&data);
    let make = ["--all", "--verify", "--shadow", "kept"];
    let first = world.shadowed(&make);
    assert_eq!(first.code, 0, "{}\n{}", first.stdout, first.stderr);
    // The rebuilt tables are a shadow of their own, with Bronze.
    for table in [
        "bronze.market_ticks",
        "silver.market_ohlcv",
        "gold.market_metrics",
    ] {
        let count = |t: &str| ask(&data, &format!("select count(*) from {t}"));
        assert_eq!(count(&format!("shadow_kept_rebuilt_{table}")), count(table));
    }
    let listed = world.tables(&["shadows", "-o", "json"]).ok().json();
    let listed = listed["rows"].as_array().unwrap();
    let of = |name: &str| listed.iter().filter(|r| r["shadow"] == name).count();
    assert_eq!((of("kept"), of("kept_rebuilt")), (2, 5), "{listed:#?}");
    assert!(
        listed.iter().all(|r| r["finished"].is_string()),
        "{listed:#?}"
    );

    let again = world.shadowed(&make);
    assert_eq!(again.code, 2, "{}", again.stderr);
    assert!(
        again.stderr.contains("finlake tables drop-shadow kept"),
        "{}",
        again.stderr
    );
    let replaced = world.shadowed(&["--all", "--shadow", "kept", "--overwrite"]);
    assert_eq!(replaced.code, 0, "{}", replaced.stderr);

    // Sinks that are told to write there: where a table is missing, and where all of them stand.
    for (name, told) in [
        ("kept", "those of a replay's shadow"),
        ("kept_rebuilt", "belongs to the shadow kept_rebuilt"),
    ] {
        let sink = world
            .finlake("sink")
            .set("lake.namespace_prefix", format!("shadow_{name}"))
            .set("kafka.application_id", "other")
            .args(["run", "--roles", "sink", "--until-caught-up"])
            .run(secs(120));
        assert_eq!(sink.code, 2, "{}", sink.stderr);
        assert!(sink.stderr.contains(told), "{}", sink.stderr);
    }

    for wrong in ["silver", "../silver", ""] {
        let refused = world.tables(&["drop-shadow", wrong]);
        assert_eq!(refused.code, 2, "{wrong}: {}", refused.stderr);
    }
    world.tables(&["drop-shadow", "kept"]).ok();
    world.tables(&["drop-shadow", "kept_rebuilt"]).ok();
    assert!(!folder(&world, "kept").exists() && !folder(&world, "kept_rebuilt").exists());
    assert_eq!(rows::silver(&data), before, "the live table");
    let listed = world.tables(&["shadows", "-o", "csv"]).ok();
    assert_eq!(listed.stdout.lines().count(), 1, "{}", listed.stdout);
    // A replay that cannot be done leaves nothing.
    let nothing = world.shadowed(&["--from-timestamp", "2100-01-01", "--shadow", "kept"]);
    assert_eq!(nothing.code, 2, "{}", nothing.stderr);
    assert!(!folder(&world, "kept").exists());
}

/// A range has no history: one version of each bar, known from the replay on.
#[test]
fn the_remedy_for_a_late_trade_is_seen_beside_the_live_bar() {
    let (_broker, world) = world();
    let (day, at) = late_trade(&world);
    let data = world.data();
    let ran = world.shadowed(&["--from-offsets", &at, "--shadow", "late", "--output", "csv"]);
    assert_eq!(ran.code, 1, "{}\n{}", ran.stdout, ran.stderr);
    let of = |table: &str| {
        format!(
            "{table} where is_current and bar_interval = '1m' and cast(bar_start as bigint) = {day}"
        )
    };
    let high = |table: &str| {
        ask(
            &data,
            &format!("select high, trade_count, revision from {}", of(table)),
        )
    };
    assert_eq!(high("silver.market_ohlcv"), ["100.00000000,1,0"]);
    assert_eq!(
        high("shadow_late_silver.market_ohlcv"),
        ["500.00000000,2,0"]
    );
    let times = "select distinct cast(sys_from as varchar), is_current from shadow_late_silver.market_ohlcv";
    let times = ask(&data, times);
    assert_eq!(times.len(), 1, "{times:?}");
    let (begun, current) = times[0].split_once(',').unwrap();
    assert_eq!(current, "true");
    let count = |time: &str| {
        let counted = known(
            &world,
            time,
            "select count(*) from shadow_late_silver.market_ohlcv",
        );
        counted[0].parse::<u64>().unwrap()
    };
    assert!(count(begun) > 100, "fifty days of bars");
    assert_eq!(count("2026-01-01T00:00:00Z"), 0);
    let days = |table: &str| {
        let sql =
            format!("select count(*), count(distinct trade_date) from {table} where is_current");
        ask(&data, &sql)
    };
    // The last day is not over.
    assert_eq!(days("shadow_late_gold.market_metrics"), ["49,49"]);
    assert_eq!(days("gold.market_metrics"), ["49,49"]);
}

/// kill -9 while the tables are half written, then both ways to begin again.
#[test]
fn an_interrupted_replay_leaves_what_is_marked_and_dropped() {
    let (_broker, world) = world();
    world.filled(33, 24_000);
    let data = world.data();
    let before = rows::silver(&data);
    let half = |name: &str| {
        let args = ["replay", "--all", "--shadow", name];
        let mut replay = world.finlake("replay").args(args).spawn();
        let data = folder(&world, name).join(format!("shadow_{name}_silver/market_ohlcv/data"));
        eventually("the shadow's first file", secs(120), || {
            data.exists().then_some(())
        });
        assert!(replay.is_running(), "{}", replay.tail());
        replay.kill9();
    };
    half("cut");
    let listed = world.tables(&["shadows", "-o", "json"]).ok().json();
    let row = &listed["rows"][0];
    assert_eq!(
        (&row["shadow"], &row["finished"]),
        (&"cut".into(), &Value::Null),
        "{listed}"
    );
    let refused = world.shadowed(&["--all", "--shadow", "cut"]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    // Files of a commit that never was, too.
    let orphan = folder(&world, "cut").join("shadow_cut_silver/market_ohlcv/data/orphan.parquet");
    std::fs::write(&orphan, b"half").unwrap();
    let whole = world.shadowed(&["--all", "--shadow", "cut", "--overwrite"]);
    assert_eq!(whole.code, 0, "{}\n{}", whole.stdout, whole.stderr);
    assert!(!orphan.exists());
    let current = "select count(*) from shadow_cut_silver.market_ohlcv where is_current";
    assert_eq!(ask(&data, current), [before.len().to_string()]);

    half("gone");
    world.tables(&["drop-shadow", "gone"]).ok();
    assert!(!folder(&world, "gone").exists());
    assert_eq!(world.tables(&["drop-shadow", "gone"]).code, 2);
    assert_eq!(rows::silver(&data), before, "the live table");
    assert!(!world.read(topics::LEDGER).is_empty());
}
