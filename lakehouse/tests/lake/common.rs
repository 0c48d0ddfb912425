//! A lakehouse in a temp dir, records made by hand, and tables read back through iceberg's scan.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use finlake_lakehouse::storage::P_SYNC;
use finlake_lakehouse::{
    BronzeRows, Cut, KafkaIds, LakeConfig, Lakehouse, OPEN_END, PartitionBatch, RecordAt, Rows,
    SinkBatch, Table, TableSink, VersionRows,
};
use finlake_schemas::{Bar, Basis, Dec8, Dec16, Origin, Stage, Tick};
use futures::TryStreamExt;

pub const DAY: i64 = 86_400_000_000;
pub const HOUR: i64 = 3_600_000_000;
pub const MINUTE: i64 = 60_000_000;
/// 2024-08-08T00:00:00Z.
pub const T0: i64 = 1_723_075_200_000_000;

/// Upkeep so eager that a short test meets all of it.
pub fn eager(dir: &Path, partitions: i32) -> LakeConfig {
    let mut c = LakeConfig::local(dir);
    c.kafka_partitions = partitions;
    c.storage.insert(P_SYNC.into(), "false".into());
    c.upkeep.snapshots = 4;
    c.upkeep.snapshot_age = Duration::ZERO;
    c.upkeep.manifests = 5;
    c.upkeep.fan_in = 3;
    // Small numbers, so that short tests meet every way of merging.
    c.upkeep.idle = 7;
    c.upkeep.files = 12;
    c.upkeep.small_rows = 6;
    c.upkeep.copy_rows = 4;
    c.upkeep.plain_rows = 5;
    c.hot.batch = 4;
    c.hot.rewrites = 1;
    c.hot.max_rows = 12;
    c.hot.patience = Duration::from_secs(30);
    c
}

pub fn plain(dir: &Path, partitions: i32) -> LakeConfig {
    let mut c = LakeConfig::local(dir);
    c.kafka_partitions = partitions;
    c.storage.insert(P_SYNC.into(), "false".into());
    c
}

pub fn ids() -> KafkaIds {
    KafkaIds {
        cluster_id: "test".into(),
        topic_ids: BTreeMap::new(),
    }
}

pub async fn open(config: LakeConfig) -> Lakehouse {
    let lake = Lakehouse::open(config).await.unwrap();
    lake.ensure_tables(&ids()).await.unwrap();
    lake
}

pub async fn sink(lake: &Lakehouse, table: Table, partitions: &[i32]) -> TableSink {
    let mut sink = TableSink::open(lake, table).await.unwrap();
    sink.assign(partitions).await.unwrap();
    sink
}

/// A bar version; only what versions are about varies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub symbol: String,
    pub interval: &'static str,
    pub start: i64,
    pub payload: i64,
    pub closed: bool,
    pub retracted: bool,
    pub commit: i64,
    pub sys: i64,
    pub prev: Option<i64>,
}

pub fn sys_of(commit: i64) -> i64 {
    T0 + commit * 10_000_000
}

pub fn length(interval: &str) -> i64 {
    match interval {
        "1m" => MINUTE,
        "1h" => HOUR,
        _ => DAY,
    }
}

pub fn push_bar(rows: &mut VersionRows, v: &Version, offset: i64) {
    let end = v.start + length(v.interval);
    let price = Dec8(i128::from(v.payload) * 100_000_000);
    let bar = Bar {
        source: "binance",
        symbol: &v.symbol,
        bar_interval: v.interval,
        bar_start: v.start,
        bar_end: end,
        trade_date: v.start.div_euclid(DAY) as i32,
        tick_id: finlake_schemas::keys::bar_id("binance", &v.symbol, v.interval, v.start),
        open: price,
        high: price,
        low: price,
        close: price,
        volume: price,
        quote_volume: Dec16(price.0),
        trade_count: v.payload,
        taker_buy_base: price,
        taker_buy_quote: Dec16(price.0),
        vwap: price,
        first_trade_time: v.start,
        first_trade_id: 1,
        last_trade_time: if v.closed { end - 1 } else { v.start + 1 },
        last_trade_id: 2,
        stage: if v.closed {
            Stage::Closed
        } else {
            Stage::Checkpoint
        },
        revision: 0,
        origin: Origin::Trades,
        basis: Basis::AsQuoted,
        basis_at: None,
        retracted: v.retracted,
        commit: v.commit,
        ticks_offset: v.commit * 10,
        bars_offset: 0,
        sys_from: v.sys,
        prev_sys_from: v.prev,
    };
    rows.push_bar(&bar, offset).unwrap();
}

pub fn cuts(first: i64, last: i64) -> Vec<Cut> {
    (first..=last)
        .map(|commit| Cut {
            commit,
            input_end: commit * 10,
            system_time: sys_of(commit),
            ledger_next: Some(commit * 2),
            output_next: (commit % 3 == 0).then_some(commit * 7),
        })
        .collect()
}

fn part(partition: i32, first: i64, last: i64, rows: Rows) -> PartitionBatch {
    PartitionBatch {
        partition,
        input_start: (first - 1) * 10,
        cuts: cuts(first, last),
        frontier: sys_of(last),
        rows,
    }
}

/// Commits `first..=last` of a partition with the versions that belong to them.
pub fn silver(
    lake: &Lakehouse,
    partition: i32,
    first: i64,
    last: i64,
    all: &[Version],
) -> SinkBatch {
    let mut rows = VersionRows::new(&lake.def(Table::Ohlcv), partition).unwrap();
    for (offset, v) in all.iter().enumerate() {
        if (first..=last).contains(&v.commit) {
            push_bar(&mut rows, v, offset as i64);
        }
    }
    SinkBatch {
        parts: vec![part(partition, first, last, rows.into())],
    }
}

/// Ten trades per commit at offsets (commit − 1) × 10 …, every fifth record undecodable.
pub fn bronze(partition: i32, first: i64, last: i64) -> SinkBatch {
    let mut rows = BronzeRows::new("market.ticks", partition);
    for commit in first..=last {
        for i in 0..10 {
            let offset = (commit - 1) * 10 + i;
            let symbol = ["BTCUSDT", "ETHUSDT", "X/Y Z"][(offset % 3) as usize];
            let key = format!("binance:{symbol}");
            let at = RecordAt {
                offset,
                timestamp: T0 + offset * 1_000,
                key: Some(key.as_bytes()),
                schema_id: Some(7),
                commit,
                sys_from: sys_of(commit),
            };
            if offset % 5 == 4 {
                rows.push_raw(&at, b"\x00garbage");
                continue;
            }
            let tick = Tick {
                source: "binance",
                symbol,
                trade_id: offset,
                price: Dec8(i128::from(offset) * 100_000_000 + 1),
                quantity: Dec8(5),
                trade_time: T0 + offset * HOUR / 20 - i64::from(partition),
                event_time: None,
                buyer_maker: Some(offset % 2 == 0),
                ingest_time: Some(T0),
                first_trade_id: None,
                last_trade_id: None,
            };
            rows.push_tick(&at, &tick, b"raw");
        }
    }
    SinkBatch {
        parts: vec![part(partition, first, last, rows.into())],
    }
}

/// All rows of a table as text by column name, through iceberg's own scan.
pub async fn rows(lake: &Lakehouse, table: Table) -> Vec<BTreeMap<String, String>> {
    let table = lake.table(table).await.unwrap();
    let scan = table.scan().build().unwrap();
    let batches: Vec<RecordBatch> = scan.to_arrow().await.unwrap().try_collect().await.unwrap();
    let mut out = vec![];
    for b in &batches {
        out.extend(texts(b));
    }
    out.sort();
    out
}

pub fn texts(b: &RecordBatch) -> Vec<BTreeMap<String, String>> {
    let options = FormatOptions::default().with_null("∅");
    let columns: Vec<_> = b
        .schema()
        .fields()
        .iter()
        .zip(b.columns())
        .map(|(f, a)| {
            let array: Arc<dyn Array> =
                if matches!(a.data_type(), arrow::datatypes::DataType::Timestamp(..)) {
                    arrow::compute::cast(a, &arrow::datatypes::DataType::Int64).unwrap()
                } else {
                    a.clone()
                };
            (f.name().clone(), array)
        })
        .collect();
    (0..b.num_rows())
        .map(|row| {
            columns
                .iter()
                .map(|(name, a)| {
                    let f = ArrayFormatter::try_new(a.as_ref(), &options).unwrap();
                    (name.clone(), f.value(row).to_string())
                })
                .collect()
        })
        .collect()
}

/// Rows as the versions that made them, with sys_to.
pub fn as_versions(rows: &[BTreeMap<String, String>]) -> Vec<(Version, i64)> {
    let mut out: Vec<(Version, i64)> = rows
        .iter()
        .map(|r| {
            let n = |c: &str| r[c].parse::<i64>().unwrap();
            let v = Version {
                symbol: r["symbol"].clone(),
                interval: ["1m", "1h", "1d"]
                    .into_iter()
                    .find(|i| *i == r["bar_interval"])
                    .unwrap(),
                start: n("bar_start"),
                payload: n("trade_count"),
                closed: r["stage"] == "closed",
                retracted: r["retracted"] == "true",
                commit: n("commit"),
                sys: n("sys_from"),
                prev: r["prev_sys_from"].parse().ok(),
            };
            (v, n("sys_to"))
        })
        .collect();
    out.sort();
    out
}

/// INV-2, 3, 6 and the is_current rule over a version table's rows.
pub fn check_invariants(rows: &[BTreeMap<String, String>], retractions: &[Version]) {
    let mut by_key: BTreeMap<[String; 3], Vec<(i64, i64)>> = BTreeMap::new();
    for r in rows {
        let n = |c: &str| r[c].parse::<i64>().unwrap();
        assert!(n("valid_from") < n("valid_to"), "INV-3 {r:?}");
        assert!(n("sys_from") < n("sys_to"), "INV-3 {r:?}");
        assert_eq!(r["is_current"] == "true", n("sys_to") == OPEN_END, "{r:?}");
        let key = ["symbol", "bar_interval", "bar_start"].map(|c| r[c].clone());
        by_key
            .entry(key)
            .or_default()
            .push((n("sys_from"), n("sys_to")));
    }
    for (key, mut spans) in by_key {
        spans.sort();
        for pair in spans.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "INV-2 {key:?}: {pair:?}");
        }
        for (i, (_, to)) in spans.iter().enumerate() {
            let superseded = spans.get(i + 1).is_some_and(|next| next.0 == *to);
            let retracted = retractions.iter().any(|v| {
                v.symbol == key[0]
                    && v.interval == key[1]
                    && v.start.to_string() == key[2]
                    && v.sys == *to
            });
            assert!(
                *to == OPEN_END || superseded || retracted,
                "INV-6 {key:?} at {to}"
            );
        }
    }
}

/// Deterministic ledger of Silver: what a task would emit for random changes.
pub fn ledger(ops: &[Vec<(u8, u8)>]) -> Vec<Version> {
    let mut open: BTreeMap<u8, (i64, i64, bool)> = BTreeMap::new();
    let mut out = vec![];
    for (n, changes) in ops.iter().enumerate() {
        let commit = n as i64 + 1;
        let mut seen = vec![];
        for (key, what) in changes {
            let key = key % 24;
            if seen.contains(&key) {
                continue; // a key is emitted at most once in a commit
            }
            let now = open.get(&key).copied();
            let (payload, closed, retracted) = match (what % 8, now) {
                (0, Some((_, p, c))) => (p, c, true),
                (w, Some((_, p, c))) if i64::from(w) == p && c => continue,
                (w, _) => (i64::from(w) + 1, w % 3 != 0, false),
            };
            seen.push(key);
            let interval = ["1m", "1h", "1d"][usize::from(key / 8)];
            let version = Version {
                symbol: ["BTCUSDT", "ETHUSDT"][usize::from(key % 2)].into(),
                interval,
                // Two of each are a month older.
                start: T0 - i64::from(key % 4 / 2) * 31 * DAY
                    + i64::from(key % 8 / 4) * length(interval),
                payload,
                closed,
                retracted,
                commit,
                sys: sys_of(commit),
                prev: now.map(|n| n.0),
            };
            if retracted {
                open.remove(&key);
            } else {
                open.insert(key, (version.sys, payload, closed));
            }
            out.push(version);
        }
    }
    out
}

/// The rows a ledger stands for.
pub fn expected(all: &[Version]) -> Vec<(Version, i64)> {
    let mut out: Vec<(Version, i64)> = vec![];
    for v in all {
        if v.prev.is_some() {
            let at = out
                .iter_mut()
                .find(|(o, to)| {
                    *to == OPEN_END
                        && (&o.symbol, o.interval, o.start) == (&v.symbol, v.interval, v.start)
                })
                .unwrap();
            assert_eq!(Some(at.0.sys), v.prev);
            at.1 = v.sys;
        }
        if !v.retracted {
            out.push((v.clone(), OPEN_END));
        }
    }
    out.sort();
    out
}
