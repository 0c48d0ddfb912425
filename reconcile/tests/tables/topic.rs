//! The topics as they were: records of the undamaged tables.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::{filter_record_batch, sort_to_indices, take_record_batch};
use arrow::datatypes::Int64Type;
use finlake_lakehouse::{Filter, Scan, Table};
use finlake_reconcile::columns::{Bronze, Hashed, TICKS};
use finlake_reconcile::topic::Ticked;
use finlake_reconcile::{Records, Stretch};
use finlake_schemas::Kline;
use futures::TryStreamExt;

use crate::market::{Made, market};

/// Offset, hash, trade time and symbol of a record.
type Told = (i64, u128, i64, String);

pub struct Pristine {
    ticks: Vec<Vec<Told>>,
    /// First offset retained of `market.ticks`.
    pub first_tick: i64,
    /// Records of Silver and Gold by partition, in offset order.
    written: BTreeMap<(String, i32), RecordBatch>,
    /// First offset retained of the output topics.
    pub first: i64,
    pub klines: Vec<Kline<'static>>,
    /// How often ticks were asked for.
    pub asked: AtomicUsize,
}

impl Pristine {
    pub async fn of(made: &Made) -> Pristine {
        let pinned = made.lake.snapshot(Table::Ticks).await.unwrap();
        let mut out = Bronze::new(2);
        let mut names = finlake_reconcile::trades::Names::default();
        let mut batches = pinned
            .scan(&Scan::columns(TICKS).dictionaries())
            .await
            .unwrap();
        while let Some(b) = batches.try_next().await.unwrap() {
            let until = [i64::MAX; 2];
            out.take(&b.batch, &market(), &mut names, &until, Hashed::Rows, None)
                .unwrap();
        }
        let told = |p: usize| {
            let rows = out.slices[p].rows().iter().zip(&out.hashes[p]);
            let mut told: Vec<Told> = rows
                .map(|(row, (offset, hash))| {
                    let (_, symbol) = names.get(row.symbol);
                    (*offset, *hash, row.time, symbol.to_owned())
                })
                .collect();
            told.sort_unstable();
            told
        };
        let mut written = BTreeMap::new();
        for table in [Table::Ohlcv, Table::Metrics] {
            let pinned = made.lake.snapshot(table).await.unwrap();
            for p in 0..2 {
                let scan = Scan::default().filter(Filter::all().partition(p));
                let rows = pinned.collect(&scan).await.unwrap();
                let offsets = rows.column_by_name("kafka_offset").unwrap();
                let order = sort_to_indices(offsets, None, None).unwrap();
                let rows = take_record_batch(&rows, &order).unwrap();
                written.insert((table.to_string(), p), rows);
            }
        }
        Pristine {
            ticks: (0..2).map(told).collect(),
            first_tick: 0,
            written,
            first: 0,
            klines: Vec::new(),
            asked: AtomicUsize::new(0),
        }
    }
}

pub fn offsets(batch: &RecordBatch) -> Vec<i64> {
    let column = batch.column_by_name("kafka_offset").unwrap();
    column.as_primitive::<Int64Type>().values().to_vec()
}

impl Records for Pristine {
    fn ticks(
        &self,
        partition: i32,
        range: (i64, i64),
        take: &mut dyn FnMut(&Ticked<'_>),
    ) -> Result<i64, String> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let wanted = range.0.max(self.first_tick)..range.1;
        for (offset, hash, time, symbol) in &self.ticks[partition as usize] {
            if wanted.contains(offset) {
                take(&Ticked {
                    offset: *offset,
                    hash: *hash,
                    time: Some(*time),
                    symbol: Some(symbol),
                });
            }
        }
        Ok(self.first_tick)
    }

    fn written(
        &self,
        table: Table,
        partition: i32,
        range: (i64, i64),
        take: &mut dyn FnMut(&RecordBatch) -> Result<bool, String>,
    ) -> Result<Stretch, String> {
        let all = &self.written[&(table.to_string(), partition)];
        let wanted = |o: &i64| *o >= self.first && (range.0..range.1).contains(o);
        let mask: BooleanArray = offsets(all).iter().map(|o| Some(wanted(o))).collect();
        let rows = filter_record_batch(all, &mask).unwrap();
        let mut next = range.0.max(self.first);
        for at in (0..rows.num_rows()).step_by(97) {
            let piece = rows.slice(at, 97.min(rows.num_rows() - at));
            next = offsets(&piece).last().unwrap() + 1;
            if !take(&piece)? {
                break;
            }
        }
        Ok(Stretch {
            first: self.first,
            next,
        })
    }

    /// Several ranges, so that their edges are looked at.
    fn at_a_time(&self) -> usize {
        150
    }

    fn klines(&self, take: &mut dyn FnMut(&Kline<'_>) -> bool) -> Result<(), String> {
        for kline in &self.klines {
            if !take(kline) {
                break;
            }
        }
        Ok(())
    }
}
