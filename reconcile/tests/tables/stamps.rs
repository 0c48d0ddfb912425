//! Columns that follow from no trade: what the sink stamps on rows, and what numbers versions. And what is
//! configured today says nothing of rows that were made by other rules.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Int32Type, TimestampMicrosecondType};
use finlake_lakehouse::Table;
use finlake_schemas::BreakKind;

use crate::injections::{ALL, Damage, key, long, reconcile, show, spec};
use crate::market::{make, options};

/// The batch with another value in one cell.
fn changed(batch: &RecordBatch, column: &str, row: usize) -> RecordBatch {
    let at = batch.schema().index_of(column).unwrap();
    let before = batch.column(at);
    let new: ArrayRef = match before.data_type() {
        DataType::Boolean => {
            let values = before.as_boolean().values();
            let all = values.iter().enumerate().map(|(n, v)| v != (n == row));
            Arc::new(BooleanArray::from(all.collect::<Vec<bool>>()))
        }
        DataType::Int32 => {
            let mut all = before.as_primitive::<Int32Type>().values().to_vec();
            all[row] += 1;
            Arc::new(Int32Array::from(all))
        }
        DataType::Utf8 => {
            let all = before.as_string::<i32>().iter().enumerate();
            let all = all.map(|(n, v)| if n == row { Some("other") } else { v });
            Arc::new(StringArray::from_iter(all))
        }
        ty => {
            let mut all = before
                .as_primitive::<TimestampMicrosecondType>()
                .values()
                .to_vec();
            all[row] -= 1;
            Arc::new(TimestampMicrosecondArray::from(all).with_data_type(ty.clone()))
        }
    };
    let mut columns = batch.columns().to_vec();
    columns[at] = new;
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

#[tokio::test]
async fn columns_that_no_trade_decides_are_compared_without_a_topic() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(71)).await;
    let mut damage = Damage::of(&made, 71);
    let bronze = [
        "sys_to",
        "valid_to",
        "is_current",
        "valid_from",
        "sys_from",
        "schema_id",
        "kafka_topic",
    ];
    let bronze = bronze.map(|column| (Table::Ticks, column));
    let versions = [Table::Ohlcv, Table::Metrics];
    let versions = versions.map(|table| ["valid_to", "revision"].map(|column| (table, column)));
    for (table, column) in bronze.into_iter().chain(versions.into_iter().flatten()) {
        let (place, (name, cause)) = damage
            .place(table, |rows, rng| {
                let row = rng.below(rows.num_rows());
                let of = |name: &str| long(rows, name, row);
                let (name, cause) = match (table, column) {
                    (Table::Ticks, "schema_id") => {
                        let (p, commit) = (of("kafka_partition"), of("commit"));
                        (format!("{p}:{commit}"), "stamp:schema_id:3".to_owned())
                    }
                    (Table::Ticks, _) => {
                        let (p, at) = (of("kafka_partition"), of("kafka_offset"));
                        let name = format!("market.ticks/{p}:{at}..{}", at + 1);
                        (name, format!("stamp:{column}"))
                    }
                    _ => {
                        let cause = format!("{column}:{}", of("sys_from"));
                        (key(table, rows, row), cause)
                    }
                };
                // Of a date's first row the revision may be any: the date may have been taken back before.
                let before = rows.column_by_name("prev_sys_from");
                let first = before.is_some_and(|prev| prev.is_null(row));
                let damaged = match (table, column) {
                    (Table::Metrics, "revision") if first => rows.clone(),
                    _ => changed(rows, column, row),
                };
                (damaged, (name, cause))
            })
            .await;
        let report = damage.with(table, place, None).await;
        let found = report.findings.list();
        assert!(
            found
                .iter()
                .any(|f| (f.kind, &f.key, &f.cause) == (BreakKind::ValueDrift, &name, &cause)),
            "{table} {column}: {name} {cause}\n{}",
            show(&report)
        );
        // A revision that is wrong makes that of the next version wrong too, and nothing else.
        let others = found.iter().filter(|f| !f.cause.contains(column));
        assert_eq!(others.count(), 0, "{table} {column}:\n{}", show(&report));
    }
}

#[tokio::test]
async fn rows_are_held_to_the_rules_they_were_made_by() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(73)).await;
    let mut o = options(&ALL);
    (o.gold.risk_free, o.gold.periods) = (0.04, 252);
    let report = reconcile(&made.lake, &o, Some(&made.books), None).await;
    assert_eq!(report.exit_code(), 0, "{}", show(&report));
}
