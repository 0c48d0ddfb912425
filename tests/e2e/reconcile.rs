//! The tables that the demo leaves behind are clean, by the command and by the audit that ran beside it.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{AsArray, Int32Array, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::Int32Type;
use finlake_devkafka::{DevKafka, Storage};
use finlake_lakehouse::faults::tamper;
use finlake_lakehouse::{Filter, LakeConfig, Lakehouse, Table};

use crate::capture::{gunzip, recorded};
use crate::harness::{Finlake, Ran, http, secs};

#[test]
fn what_the_demo_leaves_is_clean() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| Finlake::new().data(dir.path()).args(args).run(secs(300));
    run(&[
        "demo",
        "--exit",
        "--trades",
        "20000",
        "--symbols",
        "4",
        "--quiet",
    ])
    .ok();
    let report = run(&["reconcile", "--quiet", "--output", "json"]);
    let json = report.json();
    assert_eq!(
        (report.code, &json["breaks"]),
        (0, &0.into()),
        "{}\n{}",
        report.stdout,
        report.stderr
    );
    for layer in ["bronze", "silver", "gold"] {
        assert!(
            json["compared_rows"][layer].as_u64().unwrap() > 100,
            "{json:#}"
        );
    }
    // The tables alone, one day, one symbol.
    let day = [
        "reconcile",
        "--no-kafka",
        "--date",
        "2026-01-06",
        "--layer",
        "silver",
        "--quiet",
        "-o",
        "json",
    ];
    let report = run(&day);
    assert_eq!(report.code, 0, "{}\n{}", report.stdout, report.stderr);
    // A symbol that no table has is no clean result; a day without rows is one.
    for (scope, code) in [(["--symbol", "NOPE"], 2), (["--date", "2031-01-01"], 0)] {
        let ran = run(&[&["reconcile", "--no-kafka", "--quiet"][..], &scope].concat());
        assert_eq!(ran.code, code, "{}\n{}", ran.stdout, ran.stderr);
        let said = ran.stderr.contains("no table has a row of the symbol NOPE");
        assert_eq!(said, code == 2, "{}", ran.stderr);
    }
    // Nothing was found by the audit either: the table of breaks is empty.
    let sql = "select count(*) as n from quality.breaks";
    let rows = run(&["query", "--quiet", "--output", "csv", sql]).ok();
    assert_eq!(rows.stdout.trim(), "n\n0");
}

/// What a demo left in a folder, and its broker and registry, for as long as this lives.
struct Left {
    data: PathBuf,
    broker: DevKafka,
    _dir: tempfile::TempDir,
}

impl Left {
    fn by(args: &[&str]) -> Left {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("d");
        Finlake::new()
            .data(&data)
            .args(["demo", "--exit", "--quiet"])
            .args(args)
            .run(secs(300))
            .ok();
        let broker = DevKafka::start(finlake_devkafka::Config {
            storage: Storage::Folder(data.join("kafka")),
            ..finlake_devkafka::Config::default()
        })
        .unwrap();
        Left {
            data,
            broker,
            _dir: dir,
        }
    }

    fn registry(&self) -> String {
        self.broker.registry_url().unwrap()
    }

    fn finlake(&self, args: &[&str]) -> Ran {
        self.asking(&self.registry(), args)
    }

    fn asking(&self, registry: &str, args: &[&str]) -> Ran {
        Finlake::new()
            .data(&self.data)
            .arg("--bootstrap")
            .arg(self.broker.bootstrap())
            .set("registry.url", registry)
            .args(args)
            .run(secs(120))
    }

    fn reconcile(&self, args: &[&str]) -> Ran {
        let fixed = ["reconcile", "--quiet", "-o", "json"];
        self.finlake(&[&fixed, args].concat())
    }

    /// Changes a file of a table behind FinLake's back; gives the key of the row that was changed.
    fn tamper(&self, table: Table, change: fn(&RecordBatch) -> RecordBatch) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let lake = Lakehouse::open(LakeConfig::local(&self.data))
                .await
                .unwrap();
            let pinned = lake.snapshot(table).await.unwrap();
            let files = pinned.files(&Filter::all()).await.unwrap();
            let file = files.iter().find(|f| f.rows > 3).unwrap();
            tamper(&lake, table, &file.path, |rows| Ok(change(&rows)))
                .await
                .unwrap();
        });
    }
}

/// Breaks of this kind whose text names the topic.
fn told(json: &serde_json::Value, kind: &str, topic: &str) -> usize {
    let rows = json["rows"].as_array().unwrap().iter();
    rows.filter(|r| {
        let detail = r["detail"].as_str().unwrap();
        let expected = r["expected"].as_str().unwrap_or_default();
        let said = detail.contains(topic) || expected.contains(topic);
        r["kind"] == kind && said && !detail.contains("computed so")
    })
    .count()
}

/// The second row with another revision.
fn revised(rows: &RecordBatch) -> RecordBatch {
    let at = rows.schema().index_of("revision").unwrap();
    let before = rows.column(at).as_primitive::<Int32Type>();
    let changed = before.values().iter().enumerate();
    let changed = changed.map(|(n, v)| if n == 1 { v + 7 } else { *v });
    let mut columns = rows.columns().to_vec();
    columns[at] = Arc::new(Int32Array::from_iter_values(changed));
    RecordBatch::try_new(rows.schema(), columns).unwrap()
}

/// A table that was edited, row by row against its topic: kind, key, and that it was an edit.
#[test]
fn an_edited_table_is_told_by_its_topic() {
    for (table, topic) in [
        (Table::Ohlcv, "market.ohlcv"),
        (Table::Metrics, "market.metrics"),
    ] {
        let left = Left::by(&["--trades", "4000", "--symbols", "2"]);
        let clean = left.reconcile(&[]);
        assert_eq!(clean.code, 0, "{}\n{}", clean.stdout, clean.stderr);
        // A value that recomputation does not look at.
        left.tamper(table, revised);
        let json = left.reconcile(&["--report-only"]).json();
        assert_eq!(told(&json, "VALUE_DRIFT", topic), 1, "{json:#}");
        assert_eq!(json["breaks"], 1, "{json:#}");
        // The first row is gone, the last stands twice.
        left.tamper(table, |rows| {
            let n = rows.num_rows();
            concat_batches(
                &rows.schema(),
                [&rows.slice(1, n - 1), &rows.slice(n - 1, 1)],
            )
            .unwrap()
        });
        let ran = left.reconcile(&[]);
        let json = ran.json();
        assert_eq!(ran.code, 1);
        assert_eq!(told(&json, "MISSING", topic), 1, "{json:#}");
        assert_eq!(told(&json, "DUPLICATE", topic), 1, "{json:#}");
        // Without Kafka nobody can say, and nobody claims to.
        let json = left.reconcile(&["--no-kafka"]).json();
        let all = json["rows"].as_array().unwrap();
        let record = |r: &serde_json::Value| r["cause"].as_str().unwrap().starts_with("record");
        assert!(!all.iter().any(record), "{json:#}");
        assert_eq!(told(&json, "MISSING", topic), 0, "{json:#}");
    }
}

const COLUMNS: [&str; 9] = [
    "break", "kind", "severity", "layer", "key", "cause", "expected", "actual", "detail",
];

/// Cells of a table for people: columns begin below their names.
fn aligned(table: &str) -> Vec<Vec<String>> {
    let lines: Vec<Vec<char>> = table.lines().map(|l| l.chars().collect()).collect();
    assert!(lines[1].iter().all(|c| "─ ".contains(*c)), "{table}");
    let mut starts = vec![0];
    starts.extend((2..lines[1].len()).filter(|n| lines[1][n - 1] == ' ' && lines[1][*n] == '─'));
    let row = |line: &Vec<char>| {
        let ends = starts[1..].iter().copied().chain([usize::MAX]);
        let cell = |(from, to): (&usize, usize)| {
            let chars = line.iter().take(to).skip(*from);
            chars.collect::<String>().trim_end().to_owned()
        };
        starts.iter().zip(ends).map(cell).collect()
    };
    let (head, rows) = (&lines[0], &lines[2..]);
    [head].into_iter().chain(rows).map(row).collect()
}

/// The same breaks in each format; nothing but whole lines of text where no terminal is.
#[test]
fn a_report_says_the_same_in_each_format() {
    let left = Left::by(&["--trades", "4000", "--symbols", "2"]);
    left.tamper(Table::Ohlcv, revised);
    let run = |args: &[&str]| {
        let ran = left.finlake(&[&["reconcile", "--report-only"], args].concat());
        assert_eq!(ran.code, 1, "{}\n{}", ran.stdout, ran.stderr);
        ran
    };
    let json = run(&["--output", "json"]);
    let report = json.json();
    let rows = report["rows"].as_array().unwrap();
    let cell =
        |row: &serde_json::Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let mut expected = vec![COLUMNS.map(str::to_owned).to_vec()];
    expected.extend(
        rows.iter()
            .map(|row| COLUMNS.map(|name| cell(row, name)).to_vec()),
    );
    assert!(
        !rows.is_empty()
            && rows
                .iter()
                .all(|row| row.as_object().unwrap().len() == COLUMNS.len())
    );
    let commas = expected[1..].iter().flatten().any(|c| c.contains(','));
    assert!(commas, "something to quote: {expected:?}");

    assert_eq!(aligned(&run(&["--output", "table"]).stdout), expected);
    // Also what a pipe gets.
    for args in [&["--output", "csv"][..], &[]] {
        let ran = run(args);
        let mut reader = csv::ReaderBuilder::new();
        let mut reader = reader.has_headers(false).from_reader(ran.stdout.as_bytes());
        let read: Vec<Vec<String>> = reader.deserialize().map(Result::unwrap).collect();
        assert_eq!(read, expected);
    }

    let lines: Vec<&str> = json.stderr.lines().collect();
    assert!(!json.stderr.contains(['\r', '\u{1b}']), "{:?}", json.stderr);
    assert!(!json.stderr.contains("comparing"), "a bar: {}", json.stderr);
    let said = |line: String| assert!(lines.contains(&line.as_str()), "{line}: {}", json.stderr);
    for (layer, n) in report["compared_rows"].as_object().unwrap() {
        said(format!("{layer}: {n} rows compared"));
    }
    for v in report["validators"].as_array().unwrap() {
        let (rule, of) = (v["rule"].as_str().unwrap(), &v["of"]);
        let (value, limit) = (v["value"].as_f64().unwrap(), v["limit"].as_f64().unwrap());
        said(format!(
            "{rule} = {value} (at most {limit}): passed, of {of}"
        ));
    }
    said("1 material VALUE_DRIFT".to_owned());
    assert_eq!(run(&["--quiet"]).stderr, "");

    // Breaks, and something that was not looked at: breaks, and both are said.
    let half = left.asking(
        "http://127.0.0.1:9",
        &["reconcile", "--quiet", "--report-only", "-o", "json"],
    );
    assert_eq!(half.code, 1, "{}\n{}", half.stdout, half.stderr);
    assert_eq!(half.json()["breaks"], 1, "{}", half.stdout);
    assert!(half.stderr.contains("could not check: "), "{}", half.stderr);
}

/// The registry as it stands is one of the three schemas that are compared.
#[test]
fn the_registered_schema_is_compared() {
    let left = Left::by(&["--trades", "2000", "--symbols", "1"]);
    let extended = finlake_schemas::Kind::Bar.newest().replacen(
        r#"{"name": "source","#,
        r#"{"name": "venue", "type": ["null", "string"], "default": null}, {"name": "source","#,
        1,
    );
    assert_ne!(extended, finlake_schemas::Kind::Bar.newest());
    post(&left.registry(), "market.ohlcv-value", &extended);
    let ran = left.reconcile(&["--report-only"]);
    let json = ran.json();
    let row = &json["rows"][0];
    assert_eq!(ran.code, 1, "{json:#}");
    let said = (
        row["kind"].as_str(),
        row["key"].as_str(),
        row["cause"].as_str(),
    );
    assert_eq!(
        said,
        (
            Some("SCHEMA_DRIFT"),
            Some("venue"),
            Some("registry:removed")
        ),
        "{json:#}"
    );
    assert_eq!(json["breaks"], 1);
    // A registry that does not answer: what the tables say of each other is checked all the same.
    let dead = "http://127.0.0.1:9";
    let ran = left.asking(dead, &["reconcile", "--quiet"]);
    assert_eq!(ran.code, 2, "{}\n{}", ran.stdout, ran.stderr);
    assert!(
        ran.stderr.contains("schema registry http://127.0.0.1:9"),
        "{}",
        ran.stderr
    );
    let ran = left.asking(dead, &["reconcile", "--quiet", "--no-kafka"]);
    assert_eq!(ran.code, 0, "{}\n{}", ran.stdout, ran.stderr);
}

/// Registers a schema.
fn post(registry: &str, subject: &str, schema: &str) {
    let body = serde_json::json!({"schema": schema}).to_string();
    let host = registry.trim_start_matches("http://").trim_end_matches('/');
    let request = format!("POST /subjects/{subject}/versions");
    let answer = http(host, &request, &body).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// The rule of a report's JSON.
fn measured(json: &serde_json::Value, rule: &str) -> (f64, u64) {
    let all = json["validators"].as_array().unwrap().iter();
    let found = all.clone().find(|v| v["rule"] == rule);
    let found = found.unwrap_or_else(|| panic!("{rule} was not measured: {json:#}"));
    let value = found["value"].as_f64();
    let value = value.unwrap_or_else(|| panic!("{rule} was not measured: {json:#}"));
    (value, found["of"].as_u64().unwrap())
}

/// Trades of a recorded answer give the exchange's own bars. The answer begins within a minute,
/// and that one is named.
#[test]
fn recorded_klines_confirm_the_bars_of_recorded_trades() {
    let (Some(trades), Some(klines)) = (
        recorded("pairs/kraken_XBTUSDT_trades.json"),
        recorded("pairs/kraken_XBTUSDT_ohlc_1m.json"),
    ) else {
        return;
    };
    let left = Left::by(&[
        "--intervals",
        "1m,1h,1d",
        "--input",
        trades.to_str().unwrap(),
    ]);
    let rules = ["--layer", "silver", "--rules", "kline_accuracy:1m<=0"];
    // Nothing to compare with is no failure, and is said even to those who want silence.
    let ran = left.reconcile(&rules);
    assert_eq!(ran.code, 0, "{}\n{}", ran.stdout, ran.stderr);
    assert!(
        ran.stderr.contains("kline_accuracy:1m: NOT MEASURED"),
        "{}",
        ran.stderr
    );
    let path = klines.to_str().unwrap();
    left.finlake(&["ingest", "klines", "--interval", "1m", path])
        .ok();
    let ran = left.reconcile(&rules);
    let json = ran.json();
    // 274 minutes have trades; the last one is not over.
    let share = (1.0 / 273.0, 273);
    assert_eq!(measured(&json, "kline_accuracy:1m"), share, "{json:#}");
    assert_eq!((ran.code, &json["breaks"]), (1, &1.into()), "{json:#}");
    let row = &json["rows"][0];
    assert_eq!(row["key"], "kraken:XBTUSDT:1m:1762795380000000");
    assert_eq!(row["expected"], "volume 0.00036969, trade_count 2");
    let lenient = ["--layer", "silver", "--rules", "kline_accuracy:1m<=0.004"];
    let ran = left.reconcile(&lenient);
    assert_eq!(ran.code, 0, "{}\n{}", ran.stdout, ran.stderr);
}

/// The exchange's 5m klines: equal where the capture holds every trade, and a bar whose beginning
/// the capture missed is named; so is one beside an altered kline.
#[test]
fn recorded_klines_name_the_bar_that_lacks_trades() {
    let (Some(capture), Some(klines)) = (
        recorded("ws/hft_spot_btcusdt_20240808.jsonl.gz"),
        recorded("pairs/binance_spot_BTCUSDT-5m-2024-08-01_08.csv.gz"),
    ) else {
        return;
    };
    let left = Left::by(&[
        "--intervals",
        "1m,5m,1h,1d",
        "--input",
        capture.to_str().unwrap(),
    ]);
    left.finlake(&["ingest", "klines", klines.to_str().unwrap()])
        .ok();
    let run = |rule: &str| left.reconcile(&["--layer", "silver", "--report-only", "--rules", rule]);
    let ran = run("kline_accuracy:5m<=0.5");
    let json = ran.json();
    assert_eq!(measured(&json, "kline_accuracy:5m"), (0.5, 2), "{json:#}");
    assert_eq!((ran.code, &json["breaks"]), (0, &0.into()), "{json:#}");
    let json = run("kline_accuracy:5m<=0.4").json();
    assert_eq!(json["breaks"], 1, "{json:#}");
    assert_eq!(json["rows"][0]["cause"], "kline_accuracy");
    let key = json["rows"][0]["key"].as_str().unwrap().to_owned();
    assert!(key.contains("BTCUSDT:5m:"), "{key}");

    let text = gunzip(&klines);
    let line = text
        .lines()
        .find(|l| l.starts_with("1723161300000,"))
        .unwrap();
    let mut cells: Vec<&str> = line.split(',').collect();
    cells[4] = "61700.00000000";
    let altered = left.data.join("BTCUSDT-5m-altered.csv");
    std::fs::write(&altered, cells.join(",")).unwrap();
    left.finlake(&["ingest", "klines", altered.to_str().unwrap()])
        .ok();
    let json = run("kline_accuracy:5m<=0.4").json();
    assert_eq!(json["breaks"], 2, "{json:#}");
    let rows = json["rows"].as_array().unwrap();
    let other = rows.iter().find(|r| r["key"] != key.as_str()).unwrap();
    assert_eq!(other["expected"], "close 61700", "{json:#}");
}
