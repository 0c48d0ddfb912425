//! Every kind of damage at random places is found, with its kind and key, and nothing else is
//! said of a clean table.

use std::collections::BTreeSet;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{Decimal128Type, Int64Type};
use finlake_lakehouse::faults::{Alteration, alter, tamper};
use finlake_lakehouse::{Filter, Lakehouse, Scan, Table};
use finlake_reconcile::run::{Pins, Unwatched, run};
use finlake_reconcile::{Books, Finding, Layer, Options, Records, Report};
use finlake_schemas::{BreakKind, Severity, keys};
use futures::TryStreamExt;
use iceberg::spec::PrimitiveType;

use crate::market::{Made, Rng, SOURCE, Spec, make, options};
use crate::topic::Pristine;

pub const ALL: [Layer; 3] = [Layer::Bronze, Layer::Silver, Layer::Gold];

pub fn spec(seed: u64) -> Spec {
    Spec {
        partitions: 2,
        symbols: 2,
        trades: 1_600,
        days: 6,
        per_commit: 10,
        seed,
        faults: true,
    }
}

pub async fn reconcile(
    lake: &Lakehouse,
    options: &Options,
    books: Option<&Books>,
    records: Option<&dyn Records>,
) -> Report {
    let tag = "finlake-reconcile-test";
    let pins = Pins::take(lake, &options.layers, tag, options.wait)
        .await
        .unwrap();
    let report = run(lake, &pins, options, books, records, &Unwatched)
        .await
        .unwrap();
    pins.release().await.unwrap();
    report
}

pub fn show(report: &Report) -> String {
    let lines: Vec<String> = report
        .findings
        .list()
        .iter()
        .map(|f| {
            format!(
                "{:?} {:?} {} {} | {:?} | {:?}",
                f.kind, f.severity, f.key, f.cause, f.expected, f.actual
            )
        })
        .collect();
    format!("{}\nunchecked {:?}", lines.join("\n"), report.unchecked)
}

#[tokio::test]
async fn clean_tables_are_clean() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(7)).await;
    let report = reconcile(&made.lake, &options(&ALL), Some(&made.books), None).await;
    assert_eq!(report.exit_code(), 0, "{}", show(&report));
    assert_eq!(report.rows[&Layer::Bronze], made.rows as u64);
    assert!(report.rows[&Layer::Silver] > 1_000 && report.rows[&Layer::Gold] >= 4);
    // Each day alone, each symbol alone, without the ledger, and as of a moment in the middle.
    for day in 0..6 {
        let mut o = options(&ALL);
        let first = (crate::market::T0 / 86_400_000_000) as i32 + day;
        o.dates = Some((first, first + 1));
        o.symbol = (day % 2 == 0).then(|| "S1X0".to_owned());
        let report = reconcile(&made.lake, &o, None, None).await;
        assert_eq!(report.exit_code(), 0, "day {day}: {}", show(&report));
        assert!(report.rows[&Layer::Bronze] > 20);
    }
    let mut o = options(&ALL);
    let cut = report.cut[&0];
    o.as_of = Some(cut - 20_500_000);
    let report = reconcile(&made.lake, &o, Some(&made.books), None).await;
    assert_eq!(report.exit_code(), 0, "{}", show(&report));
    assert!(report.rows[&Layer::Bronze] < made.rows as u64);
    o.as_of = Some(cut + 1_000_000_000);
    let report = reconcile(&made.lake, &o, None, None).await;
    assert_eq!(report.exit_code(), 2, "{}", show(&report));
    // Once for Bronze with Silver and once for Silver with Gold, whatever the number of partitions.
    let asked = finlake_schemas::keys::iso_instant(cut + 1_000_000_000);
    let told = report.unchecked.iter().filter(|u| u.contains(&asked));
    let of: Vec<&str> = told.filter_map(|u| u.split(':').next()).collect();
    let silver = "silver.market_ohlcv";
    let both = format!("{silver} and gold.market_metrics");
    assert_eq!(of, [silver, &both], "{:?}", report.unchecked);
}

/// Damages one file at random, runs `check`, and puts the file back.
pub struct Damage<'a> {
    pub made: &'a Made,
    pub rng: Rng,
    /// Damages done so far, each of which changed a table.
    pub done: usize,
}

/// A file, its rows, and the same rows damaged.
pub struct Place {
    pub path: String,
    pub rows: RecordBatch,
    pub damaged: RecordBatch,
}

impl<'a> Damage<'a> {
    pub fn of(made: &'a Made, seed: u64) -> Self {
        let rng = Rng(seed);
        Damage { made, rng, done: 0 }
    }

    /// Looks for a file that `change` makes different without emptying it; what it said of that one.
    pub async fn place<T>(
        &mut self,
        table: Table,
        change: impl Fn(&RecordBatch, &mut Rng) -> (RecordBatch, T),
    ) -> (Place, T) {
        const TRIES: usize = 100;
        for _ in 0..TRIES {
            let (path, rows) = self.file(table).await;
            let (damaged, what) = change(&rows, &mut self.rng);
            if damaged.num_rows() > 0 && damaged != rows {
                let place = Place {
                    path,
                    rows,
                    damaged,
                };
                return (place, what);
            }
        }
        panic!("no file of {table} could be damaged so in {TRIES} tries");
    }

    /// A random file of a table that has at least two rows.
    pub async fn file(&mut self, table: Table) -> (String, RecordBatch) {
        loop {
            let pinned = self.made.lake.snapshot(table).await.unwrap();
            let files = pinned.files(&Filter::all()).await.unwrap();
            let file = &files[self.rng.below(files.len())];
            let batches: Vec<RecordBatch> = pinned
                .read_file(file, &Scan::default())
                .await
                .unwrap()
                .map_ok(|b| b.batch)
                .try_collect()
                .await
                .unwrap();
            let all = concat_batches(&batches[0].schema(), &batches).unwrap();
            if all.num_rows() > 1 {
                return (file.path.to_string(), all);
            }
        }
    }

    pub async fn with(
        &mut self,
        table: Table,
        place: Place,
        records: Option<&dyn Records>,
    ) -> Report {
        assert_ne!(place.damaged, place.rows, "nothing would be damaged");
        let lake = &self.made.lake;
        let like = |rows: RecordBatch| {
            move |before: RecordBatch| {
                Ok(RecordBatch::try_new(
                    before.schema(),
                    rows.columns().to_vec(),
                )?)
            }
        };
        let new = tamper(lake, table, &place.path, like(place.damaged))
            .await
            .unwrap()
            .expect("rows are left");
        self.done += 1;
        let report = reconcile(lake, &options(&ALL), Some(&self.made.books), records).await;
        tamper(lake, table, &new, like(place.rows)).await.unwrap();
        report
    }
}

fn text(batch: &RecordBatch, column: &str, row: usize) -> String {
    batch
        .column_by_name(column)
        .unwrap()
        .as_string::<i32>()
        .value(row)
        .to_owned()
}

pub fn long(batch: &RecordBatch, column: &str, row: usize) -> i64 {
    let array = arrow::compute::cast(
        batch.column_by_name(column).unwrap(),
        &arrow::datatypes::DataType::Int64,
    )
    .unwrap();
    array.as_primitive::<Int64Type>().value(row)
}

pub fn key(table: Table, batch: &RecordBatch, row: usize) -> String {
    let mut out = Vec::new();
    let symbol = text(batch, "symbol", row);
    if table == Table::Ohlcv {
        keys::bar(
            SOURCE,
            &symbol,
            &text(batch, "bar_interval", row),
            long(batch, "bar_start", row),
            &mut out,
        );
    } else {
        let date = arrow::compute::cast(
            batch.column_by_name("trade_date").unwrap(),
            &arrow::datatypes::DataType::Int32,
        )
        .unwrap();
        let date = date
            .as_primitive::<arrow::datatypes::Int32Type>()
            .value(row);
        keys::metrics(SOURCE, &symbol, date, &mut out);
    }
    String::from_utf8(out).unwrap()
}

pub fn keep(batch: &RecordBatch, f: impl Fn(usize) -> bool) -> RecordBatch {
    let mask: BooleanArray = (0..batch.num_rows()).map(|n| Some(f(n))).collect();
    filter_record_batch(batch, &mask).unwrap()
}

pub fn found<'a>(report: &'a Report, kind: BreakKind, key: &str) -> Option<&'a Finding> {
    report
        .findings
        .list()
        .iter()
        .find(|f| f.kind == kind && f.key == key)
}

/// Offsets that findings of this kind name.
pub fn offsets(report: &Report, kind: BreakKind, partition: i64) -> BTreeSet<i64> {
    let mut out = BTreeSet::new();
    for f in report.findings.list().iter().filter(|f| f.kind == kind) {
        let range = f
            .key
            .strip_prefix(&format!("market.ticks/{partition}:"))
            .and_then(|r| r.split_once(".."));
        if let Some((from, to)) = range {
            out.extend(from.parse::<i64>().unwrap()..to.parse::<i64>().unwrap());
        }
    }
    out
}

/// A range of input offsets within a file: (partition, the rows in it).
fn some_range(batch: &RecordBatch, rng: &mut Rng) -> (i64, BTreeSet<i64>) {
    let row = rng.below(batch.num_rows());
    let (p, from) = (
        long(batch, "kafka_partition", row),
        long(batch, "kafka_offset", row),
    );
    let to = from + 1 + rng.below(30) as i64;
    let inside = (0..batch.num_rows()).filter(|n| long(batch, "kafka_partition", *n) == p);
    let offsets = inside
        .map(|n| long(batch, "kafka_offset", n))
        .filter(|o| (from..to).contains(o));
    (p, offsets.collect())
}

async fn missing(d: &mut Damage<'_>, n: usize, topic: &Pristine) {
    let table = [Table::Ohlcv, Table::Ticks, Table::Ohlcv, Table::Metrics][n % 4];
    if table == Table::Ticks {
        let without = |all: &RecordBatch, rng: &mut Rng| {
            let (p, lost) = some_range(all, rng);
            let rest = keep(all, |n| {
                long(all, "kafka_partition", n) != p
                    || !lost.contains(&long(all, "kafka_offset", n))
            });
            (rest, (p, lost))
        };
        let (place, (p, lost)) = d.place(table, without).await;
        let asked = n % 8 == 1;
        let records = asked.then_some(topic as &dyn Records);
        let report = d.with(table, place, records).await;
        let named = offsets(&report, BreakKind::Missing, p);
        if asked {
            assert_eq!(lost, named, "{}", show(&report));
        }
        assert!(
            lost.is_subset(&named),
            "lost {lost:?}, named {named:?}\n{}",
            show(&report)
        );
        return;
    }
    let without = |all: &RecordBatch, rng: &mut Rng| {
        let wanted = key(table, all, rng.below(all.num_rows()));
        (keep(all, |n| key(table, all, n) != wanted), wanted)
    };
    let (place, wanted) = d.place(table, without).await;
    let path = place.path.clone();
    let report = d.with(table, place, None).await;
    assert!(
        found(&report, BreakKind::Missing, &wanted).is_some(),
        "{n} {wanted} in {path}\n{}",
        show(&report)
    );
}

async fn duplicate(d: &mut Damage<'_>, n: usize) {
    let table = [Table::Ohlcv, Table::Ticks, Table::Metrics, Table::Ticks][n % 4];
    let twice = |all: &RecordBatch, copies: RecordBatch| {
        concat_batches(&all.schema(), [all, &copies]).unwrap()
    };
    if table == Table::Ticks {
        let copied = |all: &RecordBatch, rng: &mut Rng| {
            let (p, range) = some_range(all, rng);
            let copies = keep(all, |n| {
                long(all, "kafka_partition", n) == p
                    && range.contains(&long(all, "kafka_offset", n))
            });
            (twice(all, copies), (p, range))
        };
        let (place, (p, range)) = d.place(table, copied).await;
        let report = d.with(table, place, None).await;
        let named = offsets(&report, BreakKind::Duplicate, p);
        assert_eq!(named, range, "{}", show(&report));
        return;
    }
    let copied = |all: &RecordBatch, rng: &mut Rng| {
        let row = rng.below(all.num_rows());
        (twice(all, all.slice(row, 1)), key(table, all, row))
    };
    let (place, wanted) = d.place(table, copied).await;
    let report = d.with(table, place, None).await;
    assert!(
        found(&report, BreakKind::Duplicate, &wanted).is_some(),
        "{wanted}\n{}",
        show(&report)
    );
    let bars = report
        .findings
        .list()
        .iter()
        .filter(|f| f.key.contains(':') && f.kind == BreakKind::ValueDrift);
    assert_eq!(bars.count(), 0, "{}", show(&report));
}

pub fn scaled(batch: &RecordBatch, column: &str, row: usize, millionths: i128) -> RecordBatch {
    let at = batch.schema().index_of(column).unwrap();
    let before = batch.column(at).as_primitive::<Decimal128Type>();
    let values: Vec<Option<i128>> = (0..batch.num_rows())
        .map(|n| {
            before.is_valid(n).then(|| {
                if n == row {
                    before.value(n) + before.value(n) * millionths / 1_000_000
                } else {
                    before.value(n)
                }
            })
        })
        .collect();
    let changed = Decimal128Array::from(values).with_data_type(before.data_type().clone());
    let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
    columns[at] = std::sync::Arc::new(changed);
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

async fn drift(d: &mut Damage<'_>, n: usize, topic: &Pristine) {
    let (millionths, severity) = if n.is_multiple_of(2) {
        (200, Severity::Material)
    } else {
        (50, Severity::Minor)
    };
    let table = [
        Table::Ohlcv,
        Table::Ohlcv,
        Table::Metrics,
        Table::Metrics,
        Table::Ticks,
    ][n % 5];
    if table == Table::Ticks {
        let priced = |all: &RecordBatch, rng: &mut Rng| {
            let row = rng.below(all.num_rows());
            let at = (
                long(all, "kafka_partition", row),
                long(all, "kafka_offset", row),
            );
            (scaled(all, "price", row, millionths), at)
        };
        let (place, (p, o)) = d.place(table, priced).await;
        let report = d.with(table, place, Some(topic)).await;
        assert_eq!(
            offsets(&report, BreakKind::ValueDrift, p),
            BTreeSet::from([o]),
            "{}",
            show(&report)
        );
        return;
    }
    let drifted = |all: &RecordBatch, rng: &mut Rng| {
        let row = rng.below(all.num_rows());
        let column = if table == Table::Metrics {
            "close"
        } else {
            ["open", "high", "low", "close", "vwap", "volume"][rng.below(6)]
        };
        let changed = scaled(all, column, row, millionths);
        (changed, (key(table, all, row), column))
    };
    let (place, (wanted, column)) = d.place(table, drifted).await;
    let report = d.with(table, place, None).await;
    let drifts = report.findings.list().iter().filter(|f| {
        f.kind == BreakKind::ValueDrift && f.key == wanted && f.cause.contains(column)
                // The validator may name the same bar.
                && f.cause != "volume_sum"
    });
    let severities: Vec<Severity> = drifts.map(|f| f.severity).collect();
    assert_eq!(
        severities,
        [severity],
        "{wanted} {column}\n{}",
        show(&report)
    );
}

/// Columns that partitions are made of: dropping them makes the table unreadable for everyone.
const PARTITIONED: [&str; 4] = ["symbol", "is_current", "trade_date", "trade_time"];

async fn schema(n: usize, rng: &mut Rng) {
    let dir = tempfile::tempdir().unwrap();
    let small = Spec {
        trades: 60,
        days: 1,
        symbols: 1,
        partitions: 1,
        per_commit: 20,
        seed: n as u64,
        faults: false,
    };
    let made = make(dir.path(), &small).await;
    let table = [Table::Ticks, Table::Ohlcv, Table::Metrics][n % 3];
    let columns: Vec<String> = made
        .lake
        .def(table)
        .columns
        .iter()
        .map(|c| c.name.clone())
        .filter(|c| !PARTITIONED.contains(&c.as_str()))
        .collect();
    let column = columns[rng.below(columns.len())].clone();
    let other = match made
        .lake
        .def(table)
        .columns
        .iter()
        .find(|c| c.name == column)
        .unwrap()
        .ty
    {
        finlake_lakehouse::tables::ColType::Str => PrimitiveType::Long,
        _ => PrimitiveType::String,
    };
    let (alteration, wanted, how) = match n / 3 % 4 {
        0 => (Alteration::Drop(column.clone()), column, "table:removed"),
        1 => (
            Alteration::Rename(column.clone(), "renamed".into()),
            column,
            "table:renamed",
        ),
        2 => (
            Alteration::Retype(column.clone(), other),
            column,
            "table:retyped",
        ),
        _ => (
            Alteration::Add("surplus".into(), PrimitiveType::Long),
            "surplus".into(),
            "table:added",
        ),
    };
    alter(&made.lake, table, &alteration).await.unwrap();
    let report = reconcile(&made.lake, &options(&ALL), Some(&made.books), None).await;
    let f = found(&report, BreakKind::SchemaDrift, &wanted);
    assert!(
        f.is_some_and(|f| f.cause == how && f.table == table.to_string()),
        "{how} {wanted}\n{}",
        show(&report)
    );
    assert_eq!(report.exit_code(), 1);
}

async fn all(each: usize) {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(11)).await;
    let topic = Pristine::of(&made).await;
    let mut d = Damage::of(&made, each as u64);
    for n in 0..each {
        missing(&mut d, n, &topic).await;
        duplicate(&mut d, n).await;
        drift(&mut d, n, &topic).await;
        assert_eq!(d.done, 3 * (n + 1), "each was one damage");
        let mut rng = Rng(n as u64);
        schema(n, &mut rng).await;
    }
    let report = reconcile(&made.lake, &options(&ALL), Some(&made.books), Some(&topic)).await;
    assert_eq!(
        report.exit_code(),
        0,
        "everything was put back: {}",
        show(&report)
    );
}

#[tokio::test]
async fn damage_is_found() {
    all(24).await;
}

/// The whole count: 260 of each kind. `cargo test -p finlake-reconcile --test tables -- --ignored`
#[tokio::test]
#[ignore = "minutes; part of the chaos run"]
async fn damage_is_found_a_thousand_times() {
    all(260).await;
}

/// A large clean run, with late, repeated and refused trades, and the speed of the comparison.
/// FINLAKE_ROWS sets the size, FINLAKE_COMMITS how many commits wrote it.
#[tokio::test]
#[ignore = "minutes and gigabytes; part of the benchmarks"]
async fn a_large_clean_run() {
    let size = |name: &str, default: usize| {
        let text = std::env::var(name).ok();
        text.map_or(default, |n| n.parse().expect("a number"))
    };
    let rows = size("FINLAKE_ROWS", 50_000_000);
    let commits = size("FINLAKE_COMMITS", 400);
    let dir = tempfile::tempdir().unwrap();
    let large = Spec {
        partitions: 1,
        symbols: 50,
        trades: rows,
        days: 2,
        per_commit: rows / commits,
        seed: 3,
        faults: true,
    };
    let made = make(dir.path(), &large).await;
    for table in [Table::Ticks, Table::Ohlcv, Table::Metrics] {
        let pinned = made.lake.snapshot(table).await.unwrap();
        let files = pinned.files(&Filter::all()).await.unwrap();
        let rows: u64 = files.iter().map(|f| f.rows).sum();
        println!("{table}: {rows} rows in {} files", files.len());
    }
    println!("{} rows made", made.rows);
    let (began, busy) = (std::time::Instant::now(), cpu());
    let report = reconcile(&made.lake, &options(&ALL), Some(&made.books), None).await;
    let (took, busy) = (began.elapsed(), cpu() - busy);
    assert_eq!(report.exit_code(), 0, "{}", show(&report));
    let rate = |t: std::time::Duration| made.rows as f64 / t.as_secs_f64() / 1e6;
    println!(
        "{} rows: {:.1} s, {:.1} s of CPU in all ({:.2} M rows/s per core), comparison alone {:.1} s ({:.2} M rows/s)",
        made.rows,
        took.as_secs_f64(),
        busy.as_secs_f64(),
        rate(busy),
        report.compared.as_secs_f64(),
        rate(report.compared)
    );
}

/// CPU time of this thread, which does all the work.
fn cpu() -> std::time::Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    std::time::Duration::from_nanos(nanos)
}
