//! The independent batch recomputation: what the tables must hold, from the records of `market.ticks` alone.
//!
//! Naive on purpose and shares no code with the pipeline but the record decoder: maps, sets, whole-history folds.
//! "Equal" is semantics' notion: content of current rows without sys_*, revision, stage, commit and offsets.

use std::collections::{BTreeMap, BTreeSet};

use finlake_schemas::Codec;

/// A record of `market.ticks`.
#[derive(Debug, Clone)]
pub struct Input {
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

#[derive(Debug, Clone)]
struct Trade {
    time: i64,
    id: i64,
    price: i128,
    quantity: i128,
    maker: Option<bool>,
    count: i64,
}

type BarKey = (String, String, String, i64);

/// What must be in the tables and in the DLQ.
#[derive(Debug, Default)]
pub struct Expected {
    /// Current Silver rows, one text line each, sorted.
    pub silver: BTreeSet<String>,
    /// Current Gold rows, one text line each, sorted; statistics rounded to 9 significant digits.
    pub gold: BTreeSet<String>,
    /// (partition, offset) of every input record: all of Bronze.
    pub bronze: BTreeSet<(i32, i64)>,
    /// (partition, offset) of what must be in the DLQ.
    pub rejected: BTreeSet<(i32, i64)>,
    pub accepted: u64,
    pub duplicates: u64,
}

/// Interval names and lengths in µs.
pub fn interval_us(name: &str) -> i64 {
    let (n, unit) = name.split_at(name.len() - 1);
    let n: i64 = n.parse().expect("interval");
    n * match unit {
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => panic!("interval {name}"),
    }
}

const DAY: i64 = 86_400_000_000;

/// A decimal with all the digits of its column, as SQL prints it.
fn fixed(units: i128, scale: usize) -> String {
    let digits = format!("{:0width$}", units.abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{}{whole}.{fraction}", if units < 0 { "-" } else { "" })
}

/// Recomputes everything. `intervals` as configured; 1d is added if it is missing.
pub fn recompute(
    inputs: &[Input],
    codec: &Codec,
    intervals: &[&str],
    max_ahead_us: i64,
) -> Expected {
    let mut expected = Expected::default();
    let mut seen = BTreeSet::new();
    let mut trades: BTreeMap<(String, String), Vec<Trade>> = BTreeMap::new();
    let mut stream_time: BTreeMap<(i32, String), i64> = BTreeMap::new();
    let mut partition_of: BTreeMap<(String, String), i32> = BTreeMap::new();
    for input in inputs {
        expected.bronze.insert((input.partition, input.offset));
        let good = codec.decode_tick(&input.value).ok().filter(|t| {
            let key = format!("{}:{}", t.source, t.symbol);
            key.as_bytes() == input.key
                && t.price.0 > 0
                && t.quantity.0 > 0
                && t.trade_id >= 0
                && t.trade_time > 0
                && t.trade_time <= input.timestamp_ms * 1000 + max_ahead_us
                && match (t.first_trade_id, t.last_trade_id) {
                    (Some(f), Some(l)) => f >= 0 && l >= f,
                    (None, None) => true,
                    _ => false,
                }
        });
        let Some(t) = good else {
            expected.rejected.insert((input.partition, input.offset));
            continue;
        };
        let symbol = (t.source.to_owned(), t.symbol.to_owned());
        if !seen.insert((symbol.clone(), t.trade_id)) {
            expected.duplicates += 1;
            continue;
        }
        expected.accepted += 1;
        let clock = stream_time
            .entry((input.partition, symbol.0.clone()))
            .or_insert(i64::MIN);
        *clock = (*clock).max(t.trade_time);
        partition_of.insert(symbol.clone(), input.partition);
        trades.entry(symbol).or_default().push(Trade {
            time: t.trade_time,
            id: t.trade_id,
            price: t.price.0,
            quantity: t.quantity.0,
            maker: t.buyer_maker,
            count: match (t.first_trade_id, t.last_trade_id) {
                (Some(f), Some(l)) => l - f + 1,
                _ => 1,
            },
        });
    }
    let mut names: Vec<&str> = intervals.to_vec();
    if !names.contains(&"1d") {
        names.push("1d");
    }
    for (symbol, list) in &mut trades {
        list.sort_by_key(|t| (t.time, t.id));
        for name in &names {
            let length = interval_us(name);
            let mut bars: BTreeMap<i64, Vec<&Trade>> = BTreeMap::new();
            for t in list.iter() {
                bars.entry(t.time.div_euclid(length) * length)
                    .or_default()
                    .push(t);
            }
            for (start, of_bar) in &bars {
                let key = (
                    symbol.0.clone(),
                    symbol.1.clone(),
                    (*name).to_owned(),
                    *start,
                );
                expected.silver.insert(bar_line(&key, of_bar));
            }
            if *name == "1d" {
                let now = stream_time[&(partition_of[symbol], symbol.0.clone())];
                let closes: Vec<(i64, i128)> = bars
                    .iter()
                    .filter(|(start, _)| **start + DAY <= now)
                    .map(|(start, b)| (*start, b[b.len() - 1].price))
                    .collect();
                gold(symbol, &closes, &mut expected.gold);
            }
        }
    }
    expected
}

fn bar_line(key: &BarKey, trades: &[&Trade]) -> String {
    let first = trades[0];
    let last = trades[trades.len() - 1];
    let sum = |f: &dyn Fn(&Trade) -> i128| trades.iter().map(|t| f(t)).sum::<i128>();
    let volume = sum(&|t| t.quantity);
    let quote = sum(&|t| t.price * t.quantity);
    let taker = |t: &Trade| t.maker == Some(false);
    let taker_base = sum(&|t| if taker(t) { t.quantity } else { 0 });
    let taker_quote = sum(&|t| if taker(t) { t.price * t.quantity } else { 0 });
    format!(
        "{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}:{}|{}:{}",
        key.0,
        key.1,
        key.2,
        key.3,
        fixed(first.price, 8),
        fixed(trades.iter().map(|t| t.price).max().expect("a trade"), 8),
        fixed(trades.iter().map(|t| t.price).min().expect("a trade"), 8),
        fixed(last.price, 8),
        fixed(volume, 8),
        fixed(quote, 16),
        trades.iter().map(|t| t.count).sum::<i64>(),
        fixed(taker_base, 8),
        fixed(taker_quote, 16),
        first.time,
        first.id,
        last.time,
        last.id,
    )
}

/// 9 significant digits: the two sides sum in different orders.
pub fn round9(x: Option<f64>) -> String {
    x.map_or("null".into(), |x| {
        let s = format!("{x:.8e}");
        if s.starts_with("-0.00000000e") {
            "0.00000000e0".into()
        } else {
            s
        }
    })
}

fn gold(symbol: &(String, String), closes: &[(i64, i128)], into: &mut BTreeSet<String>) {
    let price = |i: usize| closes[i].1 as f64;
    for (i, (start, close)) in closes.iter().enumerate() {
        let back = |n: usize| (i >= n).then(|| price(i) / price(i - n) - 1.0);
        let stat = |n: usize| -> (Option<f64>, Option<f64>) {
            if i < n {
                return (None, None);
            }
            let returns: Vec<f64> = (i - n + 1..=i)
                .map(|j| price(j) / price(j - 1) - 1.0)
                .collect();
            let mean = returns.iter().sum::<f64>() / n as f64;
            let var = returns.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n as f64 - 1.0);
            let sd = var.sqrt();
            (
                Some(sd * 365f64.sqrt()),
                (sd != 0.0).then(|| mean / sd * 365f64.sqrt()),
            )
        };
        let (v30, s30) = stat(30);
        let (v90, s90) = stat(90);
        into.insert(format!(
            "{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}",
            symbol.0,
            symbol.1,
            start.div_euclid(DAY),
            fixed(*close, 8),
            round9(back(1)),
            round9(back(30)),
            round9(back(90)),
            round9(v30),
            round9(v90),
            round9(s30),
            round9(s90),
        ));
    }
}
