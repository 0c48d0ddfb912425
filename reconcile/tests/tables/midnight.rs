//! What lies between two dates: a gap of the feed over midnight belongs to the run of either.

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::Int64Type;
use finlake_lakehouse::faults::tamper;
use finlake_lakehouse::{Filter, Scan, Table};
use finlake_reconcile::Layer;
use futures::TryStreamExt;

use crate::injections::{reconcile, show, spec};
use crate::market::{Made, Spec, T0, make, options};

const DAY: i64 = 86_400_000_000;

/// Takes the last trades of a symbol on a day out of Bronze; gives their ids, half-open.
async fn lose_the_last(made: &Made, symbol: &str, day: i32, n: usize) -> (i64, i64) {
    let filter = Filter::all().symbol(symbol).dates(day..day + 1);
    let pinned = made.lake.snapshot(Table::Ticks).await.unwrap();
    let files = pinned.files(&filter).await.unwrap();
    let (mut all, mut paths) = (Vec::new(), Vec::new());
    for file in &files {
        let scan = Scan::columns(&["trade_id"]);
        let batches = pinned.read_file(file, &scan).await.unwrap();
        let batches: Vec<RecordBatch> = batches.map_ok(|b| b.batch).try_collect().await.unwrap();
        for b in &batches {
            all.extend_from_slice(b.column(0).as_primitive::<Int64Type>().values());
        }
        paths.push(file.path.to_string());
    }
    all.sort_unstable();
    assert!(all.len() > n);
    let (from, to) = (all[all.len() - n], all[all.len() - 1] + 1);
    for path in paths {
        let rest = |rows: RecordBatch| {
            let ids = rows.column_by_name("trade_id").unwrap();
            let ids = ids.as_primitive::<Int64Type>().values();
            let keep: Vec<bool> = ids.iter().map(|id| !(from..to).contains(id)).collect();
            let rest = filter_record_batch(&rows, &BooleanArray::from(keep)).unwrap();
            Ok(concat_batches(&rows.schema(), [&rest]).unwrap())
        };
        tamper(&made.lake, Table::Ticks, &path, rest).await.unwrap();
    }
    (from, to)
}

#[tokio::test]
async fn a_gap_over_midnight_is_found_by_either_day_under_one_name() {
    let dir = tempfile::tempdir().unwrap();
    let spec = Spec {
        faults: false,
        ..spec(61)
    };
    let made = make(dir.path(), &spec).await;
    let day = (T0 / DAY) as i32 + 2;
    let (from, to) = lose_the_last(&made, "S0X0", day, 3).await;
    let key = format!("binance:S0X0:{from}..{to}");
    let mut ids = Vec::new();
    for date in day - 1..day + 3 {
        let mut o = options(&[Layer::Bronze]);
        o.dates = Some((date, date + 1));
        let report = reconcile(&made.lake, &o, Some(&made.books), None).await;
        let found: Vec<_> = report.findings.list().iter().collect();
        if date == day || date == day + 1 {
            assert_eq!(found.len(), 1, "{}", show(&report));
            assert_eq!((found[0].layer, &found[0].key), (Layer::Feed, &key));
            ids.push(found[0].id());
        } else {
            assert!(found.is_empty(), "{date}: {}", show(&report));
        }
    }
    assert_eq!(ids[0], ids[1], "one gap is one break");
    let all = options(&[Layer::Bronze]);
    let whole = reconcile(&made.lake, &all, Some(&made.books), None).await;
    let found = whole.findings.list().iter();
    let found: Vec<_> = found
        .filter(|f| f.layer == Layer::Feed)
        .map(|f| f.id())
        .collect();
    assert_eq!(found, [ids[0]], "{}", show(&whole));
}

/// Ids are given out in order and times are not quite: with a date, a trade of the day before is not
/// taken for lost.
#[tokio::test]
async fn an_id_that_belongs_to_the_other_side_of_midnight_is_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(67)).await;
    for date in 0..6 {
        let mut o = options(&[Layer::Bronze]);
        let first = (T0 / DAY) as i32 + date;
        o.dates = Some((first, first + 1));
        let report = reconcile(&made.lake, &o, Some(&made.books), None).await;
        assert!(report.findings.is_empty(), "{date}: {}", show(&report));
    }
}
