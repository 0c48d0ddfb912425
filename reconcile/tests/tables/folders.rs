//! Bronze folder by folder, and its topic by sums: what a scope, retention or another engine's
//! layout make of it.

use std::collections::BTreeSet;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use finlake_lakehouse::faults::tamper;
use finlake_lakehouse::{Filter, Scan, Table};
use finlake_reconcile::Records;
use finlake_schemas::BreakKind;
use futures::TryStreamExt;

use crate::injections::{ALL, Damage, keep, long, offsets, reconcile, scaled, show, spec};
use crate::market::{Made, T0, make, options};
use crate::topic::Pristine;

/// The files of Bronze with their rows, each with at least two.
async fn ticks(made: &Made) -> Vec<(String, RecordBatch)> {
    let pinned = made.lake.snapshot(Table::Ticks).await.unwrap();
    let mut out = Vec::new();
    for file in pinned.files(&Filter::all()).await.unwrap() {
        let batches: Vec<RecordBatch> = pinned
            .read_file(&file, &Scan::default())
            .await
            .unwrap()
            .map_ok(|b| b.batch)
            .try_collect()
            .await
            .unwrap();
        let rows = concat_batches(&batches[0].schema(), &batches).unwrap();
        if rows.num_rows() > 1 {
            out.push((file.path.to_string(), rows));
        }
    }
    out
}

fn day(path: &str) -> &str {
    let (_, rest) = path.split_once("trade_time_day=").unwrap();
    rest.split('/').next().unwrap()
}

/// Writes these rows in place of a file's.
async fn rewrite(made: &Made, path: &str, rows: RecordBatch) -> String {
    let like = move |before: RecordBatch| {
        Ok(RecordBatch::try_new(
            before.schema(),
            rows.columns().to_vec(),
        )?)
    };
    let new = tamper(&made.lake, Table::Ticks, path, like).await.unwrap();
    new.expect("rows are left")
}

#[tokio::test]
async fn a_symbol_in_two_folders_is_compared_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(11)).await;
    let all = ticks(&made).await;
    let (path, rows) = &all[0];
    let mut others = all[1..].iter();
    let (other, kept) = others
        .find(|(p, _)| day(p) == day(path) && p.rsplit_once('/') != path.rsplit_once('/'))
        .expect("another symbol of that day");
    let strange = concat_batches(&kept.schema(), [kept, &rows.slice(0, 1)]).unwrap();
    rewrite(&made, path, rows.slice(1, rows.num_rows() - 1)).await;
    rewrite(&made, other, strange).await;
    let topic = Pristine::of(&made).await;
    let records = Some(&topic as &dyn Records);
    let report = reconcile(&made.lake, &options(&ALL), Some(&made.books), records).await;
    assert_eq!(report.exit_code(), 0, "{}", show(&report));
    assert_eq!(
        report.rows[&finlake_reconcile::Layer::Bronze],
        made.rows as u64
    );
}

#[tokio::test]
async fn one_day_of_the_table_is_compared_with_that_day_of_the_topic() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(12)).await;
    let topic = Pristine::of(&made).await;
    let records = || Some(&topic as &dyn Records);
    let first = (T0 / 86_400_000_000) as i32;
    for n in 0..6 {
        let mut o = options(&ALL);
        o.dates = Some((first + n, first + n + 1));
        o.symbol = (n % 2 == 1).then(|| "S0X1".to_owned());
        let report = reconcile(&made.lake, &o, None, records()).await;
        assert_eq!(report.exit_code(), 0, "{}", show(&report));
    }
    // Rows that are gone, where no ledger was asked.
    let mut d = Damage::of(&made, 5);
    let (path, all) = d.file(Table::Ticks).await;
    let p = long(&all, "kafka_partition", 0);
    let lost: BTreeSet<i64> = [long(&all, "kafka_offset", 0)].into();
    let rest = keep(&all, |n| {
        long(&all, "kafka_partition", n) != p || !lost.contains(&long(&all, "kafka_offset", n))
    });
    rewrite(&made, &path, rest).await;
    let mut o = options(&[finlake_reconcile::Layer::Bronze]);
    let at = long(&all, "trade_time", 0).div_euclid(86_400_000_000) as i32;
    o.dates = Some((at, at + 1));
    let report = reconcile(&made.lake, &o, None, records()).await;
    assert_eq!(
        offsets(&report, BreakKind::Missing, p),
        lost,
        "{}",
        show(&report)
    );
}

#[tokio::test]
async fn what_the_topic_no_longer_has_is_not_compared_and_not_found_right() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(13)).await;
    let mut topic = Pristine::of(&made).await;
    topic.first_tick = 300;
    let layers = [finlake_reconcile::Layer::Bronze];
    let records = || Some(&topic as &dyn Records);
    let report = reconcile(&made.lake, &options(&layers), Some(&made.books), records()).await;
    assert_eq!(report.exit_code(), 0, "{}", show(&report));
    assert!(report.unchecked_causes.contains("content"));
    for (path, rows) in ticks(&made).await {
        let old = |n: &usize| long(&rows, "kafka_offset", *n) < 300;
        let Some(row) = (0..rows.num_rows()).find(|n| !old(n)) else {
            continue;
        };
        let (p, offset) = (
            long(&rows, "kafka_partition", row),
            long(&rows, "kafka_offset", row),
        );
        let new = rewrite(&made, &path, scaled(&rows, "quantity", row, 5)).await;
        let report = reconcile(&made.lake, &options(&layers), Some(&made.books), records()).await;
        let named = offsets(&report, BreakKind::ValueDrift, p);
        assert_eq!(named, [offset].into(), "{}", show(&report));
        let back = rewrite(&made, &new, rows.clone()).await;
        if let Some(row) = (0..rows.num_rows()).find(old) {
            rewrite(&made, &back, scaled(&rows, "quantity", row, 5)).await;
            let report =
                reconcile(&made.lake, &options(&layers), Some(&made.books), records()).await;
            assert!(report.findings.is_empty(), "{}", show(&report));
            return;
        }
    }
    panic!("no file holds offsets on both sides of 300");
}
