//! The tables' current rows as the oracle's text lines, and the checks on histories.

use std::collections::BTreeSet;
use std::path::Path;

use crate::harness::{Finlake, secs};

/// Runs a statement on a data folder; rows as CSV lines without the header.
pub fn ask(data: &Path, sql: &str) -> Vec<String> {
    let ran = Finlake::new()
        .data(data)
        .args(["query", "--quiet", "--output", "csv"])
        .arg(sql)
        .run(secs(300))
        .ok();
    ran.stdout.lines().skip(1).map(str::to_owned).collect()
}

fn piped(lines: Vec<String>) -> BTreeSet<String> {
    let n = lines.len();
    let set: BTreeSet<String> = lines.into_iter().map(|l| l.replace(',', "|")).collect();
    assert_eq!(set.len(), n, "two current rows of one content");
    set
}

/// Current Silver rows as `oracle::recompute` writes them.
pub fn silver(data: &Path) -> BTreeSet<String> {
    piped(ask(
        data,
        "select source, symbol, bar_interval, cast(bar_start as bigint), open, high, low, close, volume, quote_volume, \
         trade_count, taker_buy_base, taker_buy_quote, \
         concat(cast(cast(first_trade_time as bigint) as varchar), ':', cast(first_trade_id as varchar)), \
         concat(cast(cast(last_trade_time as bigint) as varchar), ':', cast(last_trade_id as varchar)) \
         from silver.market_ohlcv where is_current",
    ))
}

/// Current Gold rows as `oracle::recompute` writes them.
pub fn gold(data: &Path) -> BTreeSet<String> {
    let lines = ask(
        data,
        "select source, symbol, cast(cast(trade_date as int) as varchar), close, return_1, return_30, return_90, \
         volatility_30, volatility_90, sharpe_30, sharpe_90 from gold.market_metrics where is_current",
    );
    let rounded = lines.into_iter().map(|line| {
        let mut cells: Vec<String> = line.split(',').map(str::to_owned).collect();
        for cell in cells.iter_mut().skip(4) {
            *cell = super::oracle::round9(cell.parse().ok());
        }
        cells.join(",")
    });
    piped(rounded.collect())
}

/// (partition, offset) of every Bronze row; doubled rows are found by the count.
pub fn bronze(data: &Path) -> BTreeSet<(i32, i64)> {
    let lines = ask(
        data,
        "select kafka_partition, kafka_offset from bronze.market_ticks",
    );
    let n = lines.len();
    let set: BTreeSet<(i32, i64)> = lines
        .iter()
        .map(|l| {
            let (p, o) = l.split_once(',').expect("two columns");
            (p.parse().expect("partition"), o.parse().expect("offset"))
        })
        .collect();
    assert_eq!(set.len(), n, "INV-2: a Bronze row stands twice");
    set
}

/// INV-2 … INV-8 on a version table, written as SQL over all versions.
pub fn histories(data: &Path, table: &str, key: &str) {
    let none = |what: &str, sql: &str| {
        let found = ask(data, sql);
        assert!(found.is_empty(), "{what} in {table}: {found:?}");
    };
    none(
        "INV-3: an empty or backward interval",
        &format!(
            "select {key} from {table} where sys_from >= sys_to or valid_from >= valid_to limit 5"
        ),
    );
    none(
        "INV-2: two open rows of a key",
        &format!(
            "select {key}, count(*) from {table} where is_current group by {key} having count(*) > 1 limit 5"
        ),
    );
    none(
        "INV-2: two versions of a key with one sys_from",
        &format!(
            "select {key}, sys_from, count(*) from {table} group by {key}, sys_from having count(*) > 1 limit 5"
        ),
    );
    // Versions of a key in order of sys_from: each closes exactly where the next begins (INV-2, INV-6).
    none(
        "INV-6: a sys_to that is not the next version's sys_from",
        &format!(
            "select * from (select {key}, sys_to, is_current, lead(sys_from) over (partition by {key} order by sys_from) as next \
         from {table}) where (next is null and not is_current) or (next is not null and next <> sys_to) limit 5"
        ),
    );
    none(
        "INV-8: two rows of one output record",
        &format!(
            "select kafka_partition, kafka_offset, count(*) from {table} group by 1, 2 having count(*) > 1 limit 5"
        ),
    );
}
