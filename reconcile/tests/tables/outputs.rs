//! Silver and Gold against their topics: an edited table is told from a wrong computation, and what
//! recomputation cannot see is found.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Int32Type, Int64Type};
use finlake_lakehouse::Table;
use finlake_lakehouse::faults::tamper;
use finlake_reconcile::Layer;
use finlake_schemas::{BreakKind, Severity};

use crate::injections::{
    ALL, Damage, Place, found, keep, key, long, reconcile, scaled, show, spec,
};
use crate::market::{Rng, T0, make, options};
use crate::topic::{Pristine, offsets};

#[tokio::test]
async fn clean_tables_say_what_their_topics_say() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(5)).await;
    let mut topic = Pristine::of(&made).await;
    for n in 0..5 {
        let mut o = options(&ALL);
        if n > 0 {
            let first = (T0 / 86_400_000_000) as i32 + n;
            o.dates = (n % 2 == 0).then_some((first, first + 1));
            o.symbol = (n > 2).then(|| "S1X0".to_owned());
            o.as_of = (n == 3).then_some(T0 + 10 * 86_400_000_000 + 50_000_000);
        }
        let report = reconcile(&made.lake, &o, Some(&made.books), Some(&topic)).await;
        assert_eq!(report.exit_code(), 0, "{n}: {}", show(&report));
        assert!(report.notes.is_empty(), "{:?}", report.notes);
    }
    // What the topic no longer has is not compared, and that is said.
    topic.first = 100;
    let report = reconcile(&made.lake, &options(&ALL), None, Some(&topic)).await;
    assert_eq!(report.exit_code(), 0, "{}", show(&report));
    assert!(report.notes[0].contains("older than what market.ohlcv retains"));
    let since = &report.looked.written_since;
    assert!(since[&Layer::Silver] > T0, "{since:?}");
}

/// Adds to a number that no other check looks at.
fn bumped(batch: &RecordBatch, column: &str, row: usize) -> RecordBatch {
    let at = batch.schema().index_of(column).unwrap();
    let add = |n: usize| i64::from(n == row);
    let changed: ArrayRef = match batch.column(at).as_primitive_opt::<Int64Type>() {
        Some(c) => Arc::new(Int64Array::from_iter_values(
            c.values().iter().enumerate().map(|(n, v)| v + add(n)),
        )),
        None => Arc::new(Int32Array::from_iter_values(
            batch
                .column(at)
                .as_primitive::<Int32Type>()
                .values()
                .iter()
                .enumerate()
                .map(|(n, v)| v + add(n) as i32),
        )),
    };
    let mut columns = batch.columns().to_vec();
    columns[at] = changed;
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

async fn one(d: &mut Damage<'_>, n: usize, topic: &Pristine) {
    let table = [Table::Ohlcv, Table::Metrics][n % 2];
    let damage = |all: &RecordBatch, rng: &mut Rng| {
        let row = rng.below(all.num_rows());
        let (damaged, kind) = match n / 2 % 5 {
            0 => (scaled(all, "close", row, 200), BreakKind::ValueDrift),
            1 => (bumped(all, "revision", row), BreakKind::ValueDrift),
            2 => (bumped(all, "ticks_offset", row), BreakKind::ValueDrift),
            3 => (keep(all, |at| at != row), BreakKind::Missing),
            _ => {
                let copy = all.slice(row, 1);
                let both = concat_batches(&all.schema(), [all, &copy]).unwrap();
                (both, BreakKind::Duplicate)
            }
        };
        let at = long(all, "sys_from", row);
        (damaged, (kind, key(table, all, row), at))
    };
    let (place, (kind, wanted, at)) = d.place(table, damage).await;
    let moment = format!(":{at}");
    let report = d.with(table, place, Some(topic)).await;
    let said = report.findings.list().iter().filter(|f| {
        f.kind == kind && f.key == wanted && (f.cause.ends_with(&moment) || f.cause == "row")
    });
    let said: Vec<_> = said.collect();
    assert!(!said.is_empty(), "{n}: {wanted} {at}\n{}", show(&report));
    let topics = ["market.ohlcv", "market.metrics"];
    let told = said.iter().filter(|f| {
        let text = &f.detail;
        (text.contains(topics[n % 2]) || text.contains("topic")) && !text.contains("computed so")
    });
    assert_eq!(told.count(), 1, "{n}: {said:#?}");
    if (n / 2).is_multiple_of(5) {
        assert_eq!(said.len(), 1, "one changed value is one break: {said:#?}");
        assert_eq!(said[0].severity, Severity::Material);
    }
}

async fn all(each: usize) {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(23)).await;
    let topic = Pristine::of(&made).await;
    let mut d = Damage::of(&made, each as u64);
    for n in 0..each {
        one(&mut d, n, &topic).await;
        assert_eq!(d.done, n + 1, "each was one damage");
    }
    let report = reconcile(&made.lake, &options(&ALL), Some(&made.books), Some(&topic)).await;
    assert_eq!(report.exit_code(), 0, "put back: {}", show(&report));
}

#[tokio::test]
async fn edited_tables_are_found() {
    all(30).await;
}

/// `cargo test -p finlake-reconcile --test tables -- --ignored`
#[tokio::test]
#[ignore = "minutes; part of the chaos run"]
async fn edited_tables_are_found_a_thousand_times() {
    all(1_000).await;
}

/// Table and topic agree, and both are not what the trades give: the task computed it so.
#[tokio::test]
async fn a_wrong_computation_is_no_edit() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(29)).await;
    let mut d = Damage::of(&made, 3);
    let (path, rows) = d.file(Table::Ohlcv).await;
    let wanted = key(Table::Ohlcv, &rows, 0);
    let wrong = scaled(&rows, "volume", 0, 200);
    tamper(&made.lake, Table::Ohlcv, &path, move |before| {
        Ok(RecordBatch::try_new(
            before.schema(),
            wrong.columns().to_vec(),
        )?)
    })
    .await
    .unwrap();
    let topic = Pristine::of(&made).await;
    let report = reconcile(&made.lake, &options(&ALL), Some(&made.books), Some(&topic)).await;
    let f = found(&report, BreakKind::ValueDrift, &wanted).unwrap();
    assert!(f.detail.contains("computed so, and not edited"), "{f:?}");
    // With the topic alone to compare with, there is nothing wrong.
    let silver = options(&[Layer::Silver]);
    let report = reconcile(&made.lake, &silver, None, Some(&topic)).await;
    assert_eq!(
        report
            .findings
            .list()
            .iter()
            .filter(|f| f.cause.starts_with("record"))
            .count(),
        0
    );
}

/// A version for which there is no record.
#[tokio::test]
async fn an_invented_version_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(31)).await;
    let topic = Pristine::of(&made).await;
    let mut d = Damage::of(&made, 9);
    let (path, rows) = d.file(Table::Ohlcv).await;
    let last = offsets(&rows).into_iter().max().unwrap();
    let row = offsets(&rows).iter().position(|o| *o == last).unwrap();
    let at = rows.schema().index_of("kafka_offset").unwrap();
    let mut moved = offsets(&rows);
    moved[row] += 1_000_000;
    let mut columns = rows.columns().to_vec();
    columns[at] = Arc::new(Int64Array::from(moved));
    let damaged = RecordBatch::try_new(rows.schema(), columns).unwrap();
    let wanted = key(Table::Ohlcv, &rows, row);
    let place = Place {
        path,
        rows,
        damaged,
    };
    let report = d.with(Table::Ohlcv, place, Some(&topic)).await;
    let causes: Vec<_> = report
        .findings
        .list()
        .iter()
        .filter(|f| f.key == wanted)
        .map(|f| (f.kind, f.cause.split(':').next().unwrap()))
        .collect();
    assert!(
        causes.contains(&(BreakKind::Missing, "record")),
        "{}",
        show(&report)
    );
    assert!(
        causes.contains(&(BreakKind::Duplicate, "invented")),
        "{}",
        show(&report)
    );
}
