//! INV-5 for the user: 200 questions about the past, asked while the tables grow, have the same answers after late
//! trades, corrections, merged files, expired snapshots, a replay and a rebuild from the topics; and DuckDB, given
//! nothing but the files and the rule, gives them too.

use std::path::Path;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Float64Type;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use finlake::generate::Rng;
use finlake::output::format_instant;
use finlake_devkafka::DevKafka;
use finlake_lakehouse::query::{AsOf, Options, QueryEngine};
use finlake_lakehouse::{LakeConfig, Lakehouse, Table};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::corrections::{closed_minutes, correction, send};
use crate::exact::{World, market};
use crate::harness::{Finlake, Readers, secs};
use crate::rows;

/// A question and its answer, a line per row.
struct Question {
    as_of: AsOf,
    table: &'static str,
    /// With `MICROS(x)` for the microseconds of a timestamp.
    select: &'static str,
    filter: String,
    tail: &'static str,
    answer: Vec<String>,
}

const BARS: &str = "select symbol, bar_interval, MICROS(bar_start), open, close, volume, trade_count, stage, revision, \
                    MICROS(sys_from)";
const SUMS: &str =
    "select symbol, bar_interval, count(*), sum(volume), sum(trade_count), max(MICROS(sys_from))";
const METRICS: &str =
    "select symbol, observations, close, return_1, volatility_30, revision, MICROS(sys_from)";

fn question(rng: &mut Rng, times: &[i64], frontier: i64) -> Question {
    let time = |rng: &mut Rng| times[rng.below(times.len() as u64) as usize];
    // At an instant at which something changed, just before, or anywhere.
    let system = match rng.below(3) {
        0 => time(rng),
        1 => time(rng) - 1,
        _ => times[0] + rng.below((frontier - times[0]) as u64) as i64,
    };
    let start = 1_767_571_200_000_000; // the generated market's first day
    let valid = (rng.below(2) == 0).then(|| start + rng.below(42 * 24 * 60) as i64 * 60_000_000);
    let symbol = format!("symbol <> 'S{}'", rng.below(100));
    let (table, select, filter, tail) = match rng.below(4) {
        0 => (
            "silver",
            BARS,
            format!("bar_interval = '1h' and {symbol}"),
            "order by 1, 2, 3",
        ),
        1 => (
            "silver",
            BARS,
            "stage = 'closed' and trade_count > 3".to_owned(),
            "order by 1, 2, 3",
        ),
        2 => ("silver", SUMS, symbol, "group by 1, 2 order by 1, 2"),
        _ => ("gold", METRICS, symbol, "order by 1, 2"),
    };
    let as_of = AsOf {
        system: Some(system),
        valid,
        running: rng.below(2) == 0,
    };
    Question {
        as_of,
        table,
        select,
        filter,
        tail,
        answer: Vec::new(),
    }
}

impl Question {
    fn table(&self) -> &'static str {
        match self.table {
            "silver" => "silver.market_ohlcv",
            _ => "gold.market_metrics",
        }
    }

    fn sql(&self) -> String {
        let select = self.select.replace("MICROS(", "to_micros(");
        // DataFusion casts a timestamp to its number of microseconds.
        let select = micros(&select);
        format!(
            "{select} from {} where {} {}",
            self.table(),
            self.filter,
            self.tail
        )
    }

    fn ask(&self, runtime: &Runtime, lake: &Lakehouse) -> Vec<String> {
        let options = Options {
            as_of: self.as_of,
            stable: true,
            ..Options::default()
        };
        let engine = QueryEngine::open(lake);
        let batches: Vec<RecordBatch> = runtime.block_on(async {
            let answer = engine.sql(&self.sql(), &options).await.unwrap();
            answer.collect().await.unwrap()
        });
        batches.iter().flat_map(lines).collect()
    }

    fn json(&self) -> Value {
        json!({
            "system": self.as_of.system, "valid": self.as_of.valid, "running": self.as_of.running, "table": self.table,
            "select": self.select, "where": self.filter, "tail": self.tail,
        })
    }
}

/// `to_micros(x)` → `cast(x as bigint)`
fn micros(sql: &str) -> String {
    let mut out = String::new();
    let mut rest = sql;
    while let Some((before, after)) = rest.split_once("to_micros(") {
        let (name, after) = after.split_once(')').unwrap();
        out.push_str(&format!("{before}cast({name} as bigint)"));
        rest = after;
    }
    out + rest
}

fn lines(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("null");
    let cell = |column: &dyn Array, row: usize| match column.as_primitive_opt::<Float64Type>() {
        Some(c) if c.is_valid(row) => format!("{:?}", c.value(row)),
        _ => ArrayFormatter::try_new(column, &options)
            .unwrap()
            .value(row)
            .to_string(),
    };
    let line = |row| {
        let cells = batch.columns().iter().map(|c| cell(c.as_ref(), row));
        cells.collect::<Vec<_>>().join(",")
    };
    (0..batch.num_rows()).map(line).collect()
}

/// DuckDB's rows in the same form. Doubles come as text, since not every JSON parser takes them to the last bit.
fn answer_of(rows: &Value) -> Vec<String> {
    let cell = |c: &Value| match c {
        Value::String(s) => match s.strip_prefix("double ") {
            Some(number) => format!("{:?}", number.parse::<f64>().unwrap()),
            None => s.clone(),
        },
        Value::Null => "null".to_owned(),
        other => other.to_string(),
    };
    let line = |row: &Value| {
        row.as_array()
            .unwrap()
            .iter()
            .map(cell)
            .collect::<Vec<_>>()
            .join(",")
    };
    rows.as_array().unwrap().iter().map(line).collect()
}

fn open(runtime: &Runtime, data: &Path) -> Lakehouse {
    runtime
        .block_on(Lakehouse::open(LakeConfig::local(data)))
        .unwrap()
}

fn same(when: &str, runtime: &Runtime, lake: &Lakehouse, questions: &[Question]) {
    for q in questions {
        assert_eq!(
            q.ask(runtime, lake),
            q.answer,
            "{when}: {:?} {}",
            q.as_of,
            q.sql()
        );
    }
}

/// Snapshots of Silver, and data files of its newest.
fn shape(runtime: &Runtime, lake: &Lakehouse) -> (usize, usize) {
    let silver = runtime.block_on(lake.snapshot(Table::Ohlcv)).unwrap();
    let files = runtime
        .block_on(silver.files(&finlake_lakehouse::Filter::all()))
        .unwrap();
    (silver.metadata().snapshots().count(), files.len())
}

#[test]
fn two_hundred_answers_hold_whatever_happens_and_duckdb_gives_them_too() {
    let Some(readers) = Readers::available() else {
        return;
    };
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    let world = World::at(broker.bootstrap(), "1m,1h,1d");
    let data = world.data();
    world.create_topics();
    let runtime = Runtime::new().unwrap();
    let messages = market(&world, 5, 6, 24_000);
    let mut rng = Rng::new(5);
    let mut questions: Vec<Question> = Vec::new();
    // Snapshots at which was asked.
    let mut seen = Vec::new();
    let pieces: Vec<_> = messages.chunks(messages.len() / 6 + 1).collect();
    let grow = |n: usize| {
        world.produce(pieces[n]);
        world.finish("a");
    };
    for n in 0..4 {
        grow(n);
        let lake = open(&runtime, &data);
        let times: Vec<i64> = rows::ask(
            &data,
            "select distinct cast(sys_from as bigint) from silver.market_ohlcv union \
             select distinct cast(sys_to as bigint) from silver.market_ohlcv where not is_current order by 1",
        )
        .iter()
        .map(|t| t.parse().unwrap())
        .collect();
        let silver = runtime.block_on(lake.snapshot(Table::Ohlcv)).unwrap();
        seen.push(silver.snapshot_id());
        let whole = |table| {
            runtime
                .block_on(lake.snapshot(table))
                .unwrap()
                .frontier()
                .unwrap()
        };
        let frontier = whole(Table::Ohlcv).min(whole(Table::Metrics));
        for _ in 0..50 {
            let mut q = question(&mut rng, &times, frontier);
            q.answer = q.ask(&runtime, &lake);
            questions.push(q);
        }
    }
    let asked = std::time::Instant::now();
    let rows: usize = questions.iter().map(|q| q.answer.len()).sum();
    let told = questions.iter().filter(|q| !q.answer.is_empty()).count();
    assert!(
        rows > 20_000 && told > 120,
        "{rows} rows, {told} answers that say something"
    );

    // Late trades and corrections, some of which take bars back.
    grow(4);
    let closed = closed_minutes(&world);
    let some = closed.iter().step_by(closed.len() / 40).enumerate();
    let records: Vec<_> = some
        .map(|(n, row)| correction(&world, row, n as u8, n % 5 == 0, false).1)
        .collect();
    send(&world, &records);
    world.finish("a");
    same(
        "after corrections",
        &runtime,
        &open(&runtime, &data),
        &questions,
    );

    // The last commits keep as little as the configuration allows: the snapshots that were asked are gone.
    let (snapshots, files) = shape(&runtime, &open(&runtime, &data));
    std::thread::sleep(secs(62).saturating_sub(asked.elapsed()));
    for piece in pieces[5].chunks(pieces[5].len() / 11) {
        world.produce(piece);
        let strict = world
            .finlake("a")
            .set("lake.keep_snapshots", 10)
            .set("lake.keep_snapshots_for", "1m")
            .set("lake.merge_manifests_at", 2);
        strict
            .args(["run", "--until-caught-up"])
            .run(secs(120))
            .ok();
    }
    let lake = open(&runtime, &data);
    let (left, merged) = shape(&runtime, &lake);
    println!("{snapshots} snapshots and {files} files before, {left} and {merged} after");
    let silver = runtime.block_on(lake.snapshot(Table::Ohlcv)).unwrap();
    for id in &seen {
        let gone = silver.metadata().snapshot_by_id(*id).is_none();
        assert!(gone, "snapshot {id} is still there, of {left}");
    }
    same("after expiry", &runtime, &open(&runtime, &data), &questions);

    // A replay puts back what people asserted, if it is told to: those days differ from their trades.
    let replay = |more: &[&str]| {
        let day = ["replay", "--from-timestamp", "2026-01-05T00:00:00Z"];
        world.finlake("replay").args(day).args(more).run(secs(180))
    };
    let found = replay(&["--output", "csv"]);
    let corrected = found.stdout.contains(",corrected,");
    assert!(
        corrected && found.code == 0,
        "{}\n{}",
        found.stdout,
        found.stderr
    );
    let over = [
        "--apply",
        "--over-corrections",
        "--reason",
        "the trades are right",
    ];
    let sent = replay(&over);
    assert!(
        sent.code <= 1 && sent.stderr.contains("assertions"),
        "{}\n{}",
        sent.stdout,
        sent.stderr
    );
    world.finish("a");
    let again = replay(&[]);
    assert_eq!(again.code, 0, "{}\n{}", again.stdout, again.stderr);
    same(
        "after the replay",
        &runtime,
        &open(&runtime, &data),
        &questions,
    );

    // The same from the topics alone.
    let other = data.parent().unwrap().join("rebuilt");
    let rebuild = world
        .finlake_at("rebuild", &other)
        .set("kafka.application_id", "rebuild");
    rebuild
        .args(["run", "--roles", "sink", "--until-caught-up"])
        .run(secs(180))
        .ok();
    same("rebuilt", &runtime, &open(&runtime, &other), &questions);

    // Another engine, the same files, the rule in SQL.
    for place in [&data, &other] {
        let lake = open(&runtime, place);
        let at = |table| {
            let pinned = runtime.block_on(lake.snapshot(table)).unwrap();
            let table = runtime.block_on(async { pinned.iceberg() }).unwrap();
            let location = table.metadata_location().unwrap();
            location.trim_start_matches("file://").to_owned()
        };
        let questions_asked = json!({
            "silver": at(Table::Ohlcv), "gold": at(Table::Metrics),
            "questions": questions.iter().map(Question::json).collect::<Vec<_>>(),
        });
        let answers = readers.as_of(&questions_asked);
        for (q, rows) in questions.iter().zip(answers.as_array().unwrap()) {
            assert_eq!(
                answer_of(rows),
                q.answer,
                "DuckDB: {:?} {}",
                q.as_of,
                q.sql()
            );
        }
    }
    // And the command as its users type it.
    for q in questions.iter().step_by(40) {
        let mut command = Finlake::new()
            .data(&data)
            .args([
                "query",
                "--quiet",
                "--stable",
                "--output",
                "csv",
                "--as-of-system",
            ])
            .arg(format_instant(q.as_of.system.unwrap()));
        if let Some(valid) = q.as_of.valid {
            command = command.arg("--as-of-valid").arg(format_instant(valid));
            if q.as_of.running {
                command = command.arg("--running");
            }
        }
        let said = command.arg(q.sql()).run(secs(60)).ok();
        assert_eq!(
            said.stdout.lines().skip(1).count(),
            q.answer.len(),
            "{}",
            q.sql()
        );
    }
}
