//! The fold against what exchanges published for the same trades, in exact decimals.

mod common;

use std::collections::BTreeMap;

use common::{dec, fold, shuffle, text, trade};
use finlake_market::interval::MINUTE;
use finlake_market::{Interval, Ohlcv, SeenIds, Trade};
use finlake_schemas::{Dec8, Dec16};
use serde_json::Value;

fn int(v: &Value) -> i64 {
    v.as_i64().unwrap()
}

/// P1a: 8,863 trades of a WebSocket capture give the exchange's own 5m kline, all nine values,
/// shuffled and with every trade sent twice.
#[test]
fn p1a_capture_gives_the_exchanges_kline() {
    let (Some(capture), Some(klines)) = (
        text("ws/hft_spot_btcusdt_20240808.jsonl.gz"),
        text("pairs/binance_spot_BTCUSDT-5m-2024-08-01_08.csv.gz"),
    ) else {
        return;
    };
    let open = 1_723_161_300_000i64;
    let mut arrivals: Vec<Trade> = capture
        .lines()
        .filter(|l| l.contains("@trade\""))
        .map(|l| {
            let v: Value = serde_json::from_str(l.split_once(' ').unwrap().1).unwrap();
            let d = &v["data"];
            trade(
                int(&d["t"]),
                int(&d["T"]) * 1000,
                dec(&d["p"]),
                dec(&d["q"]),
                d["m"] == Value::Bool(false),
                1,
            )
        })
        .collect();
    assert_eq!(arrivals.len(), 9757);
    arrivals.extend(arrivals.clone());
    shuffle(&mut arrivals);

    let five = Interval::parse("5m").unwrap();
    let mut seen = SeenIds::new();
    let kept: Vec<Trade> = arrivals
        .into_iter()
        .filter(|t| seen.insert(t.at.id) && five.start_of(t.at.time) == open * 1000)
        .collect();
    let bar = fold(&kept).unwrap();

    let row = klines
        .lines()
        .find(|l| l.starts_with(&open.to_string()))
        .unwrap();
    let k: Vec<&str> = row.split(',').collect();
    let d8 = |n: usize| Dec8::parse(k[n]).unwrap();
    let d16 = |n: usize| Dec16::parse(k[n]).unwrap();
    assert_eq!(bar.open, d8(1));
    assert_eq!(bar.high, d8(2));
    assert_eq!(bar.low, d8(3));
    assert_eq!(bar.close, d8(4));
    assert_eq!(bar.volume, d8(5));
    assert_eq!(bar.quote_volume, d16(7));
    assert_eq!(bar.trade_count, k[8].parse::<i64>().unwrap());
    assert_eq!(bar.trade_count, 8863);
    assert_eq!(bar.taker_buy_base, d8(9));
    assert_eq!(bar.taker_buy_quote, d16(10));
}

/// P3: 1,000 trades of another exchange, 414 of them at the same instant as another, give its
/// 1m bars; its 137 empty minutes have none here.
#[test]
fn p3_kraken_minutes() {
    let (Some(trades), Some(bars)) = (
        text("pairs/kraken_XBTUSDT_trades.json"),
        text("pairs/kraken_XBTUSDT_ohlc_1m.json"),
    ) else {
        return;
    };
    let list = |text: &str| -> Vec<Value> {
        let v: Value = serde_json::from_str(text).unwrap();
        v["result"]["XBTUSDT"].as_array().unwrap().clone()
    };
    let mut arrivals: Vec<Trade> = list(&trades)
        .iter()
        .map(|t| {
            // Seconds with a fraction; µs after cutting, as elsewhere.
            let micros = i64::try_from(dec(&t[2]).0 / 100).unwrap();
            trade(int(&t[6]), micros, dec(&t[0]), dec(&t[1]), t[3] == "b", 1)
        })
        .collect();
    assert_eq!(arrivals.len(), 1000);
    shuffle(&mut arrivals);
    let minute = Interval::parse("1m").unwrap();
    let mut mine: BTreeMap<i64, Ohlcv> = BTreeMap::new();
    for t in &arrivals {
        let start = minute.start_of(t.at.time);
        match mine.get_mut(&start) {
            Some(bar) => bar.fold(t).unwrap(),
            None => {
                mine.insert(start, Ohlcv::of(t));
            }
        }
    }
    let first = *mine.keys().next().unwrap();
    let last = *mine.keys().next_back().unwrap();
    let (mut equal, mut empty) = (0, 0);
    for k in &list(&bars) {
        let start = int(&k[0]) * 1_000_000;
        // The capture begins inside the first minute and may end inside the last.
        if start < first || start > last {
            continue;
        }
        let Some(bar) = mine.get(&start) else {
            assert_eq!(int(&k[7]), 0, "a traded minute is missing: {start}");
            empty += 1;
            continue;
        };
        let published = [dec(&k[1]), dec(&k[2]), dec(&k[3]), dec(&k[4]), dec(&k[6])];
        if [bar.open, bar.high, bar.low, bar.close, bar.volume] == published
            && bar.trade_count == int(&k[7])
        {
            // The published vwap is cut to one digit.
            let vwap = dec(&k[5]).0;
            assert!((bar.vwap().0 - vwap).abs() <= 10_000_000, "{start}");
            equal += 1;
        } else {
            assert!(start == first || start == last, "{start}: {bar:?} {k}");
        }
    }
    assert_eq!((equal, empty), (273, 137));
}

/// P5: klines of two connections, wherever every single trade from `f` to `L` came in an
/// aggregate trade: all of them forming, so the fold is cut after the trade with id `L`. In six of
/// them an aggregate trade goes on beyond `L`: its price counts, its quantity only bounds.
#[test]
fn p5_klines_from_aggregate_trades() {
    let (mut whole, mut straddled, mut klines) = (0, 0, 0);
    for name in [
        "ws/cryptofeed_BINANCE_FUTURES.ws.txt",
        "ws/cryptofeed_BINANCE.ws.txt",
    ] {
        let Some(text) = text(name) else { return };
        let messages: Vec<Value> = text
            .lines()
            .filter_map(|l| l.split_once(": "))
            .filter_map(|(_, json)| serde_json::from_str(json).ok())
            .collect();
        // (symbol, first id) → last id and the trade
        let mut trades: BTreeMap<(String, i64), (i64, Trade)> = BTreeMap::new();
        for d in messages.iter().map(|m| &m["data"]) {
            if d["e"] == "aggTrade" {
                let (f, l) = (int(&d["f"]), int(&d["l"]));
                let t = trade(
                    int(&d["a"]),
                    int(&d["T"]) * 1000,
                    dec(&d["p"]),
                    dec(&d["q"]),
                    d["m"] == Value::Bool(false),
                    l - f + 1,
                );
                trades.insert((d["s"].as_str().unwrap().to_owned(), f), (l, t));
            }
        }
        for d in messages.iter().map(|m| &m["data"]) {
            if d["e"] != "kline" {
                continue;
            }
            klines += 1;
            let k = &d["k"];
            let symbol = k["s"].as_str().unwrap().to_owned();
            let (f, last) = (int(&k["f"]), int(&k["L"]));
            let mut parts: Vec<(i64, Trade)> = trades
                .range((symbol.clone(), f)..=(symbol, last))
                .map(|(_, t)| *t)
                .collect();
            let ids: i64 = parts.iter().map(|(_, t)| t.trades).sum();
            let beyond = parts.last().map_or(0, |(l, _)| l - last);
            if f < 0 || ids != last - f + 1 + beyond {
                continue;
            }
            assert_eq!(k["x"], Value::Bool(false));
            shuffle(&mut parts);
            let bar = fold(parts.iter().map(|(_, t)| t)).unwrap();
            assert!(
                parts.iter().all(|(_, t)| {
                    t.at.time - t.at.time.rem_euclid(MINUTE) == int(&k["t"]) * 1000
                })
            );
            assert_eq!(bar.trade_count - beyond, int(&k["n"]));
            assert_eq!(bar.open, dec(&k["o"]));
            assert_eq!(bar.high, dec(&k["h"]));
            assert_eq!(bar.low, dec(&k["l"]));
            assert_eq!(bar.close, dec(&k["c"]));
            if beyond > 0 {
                straddled += 1;
                let inside = parts.iter().filter(|(l, _)| *l <= last);
                let least = fold(inside.map(|(_, t)| t)).map_or(Dec8(0), |b| b.volume);
                assert!(least < dec(&k["v"]) && dec(&k["v"]) < bar.volume);
                continue;
            }
            whole += 1;
            assert_eq!(bar.volume, dec(&k["v"]));
            assert_eq!(bar.taker_buy_base, dec(&k["V"]));
            let quote = |v: &Value| Dec16::parse(v.as_str().unwrap()).unwrap();
            assert_eq!(bar.quote_volume, quote(&k["q"]));
            assert_eq!(bar.taker_buy_quote, quote(&k["Q"]));
        }
    }
    assert_eq!((whole, straddled, klines), (16, 6, 69));
}

/// P6: merging 1m bars gives the 5m bars of the same weeks, 10,000 of 10,000.
#[test]
fn p6_minutes_merge_into_five_minutes() {
    let (Some(ones), Some(fives)) = (
        text("pairs/rollup_BTCUSDT_1m_20250101-20250204.csv.gz"),
        text("pairs/rollup_BTCUSDT_5m_20250101-20250204.csv.gz"),
    ) else {
        return;
    };
    // Only the order of the stamps and their minute matter, and the data has no gap.
    let rows = |text: &str| -> Vec<(String, [Dec8; 5])> {
        text.lines()
            .skip(1)
            .map(|l| {
                let c: Vec<&str> = l.split(',').collect();
                let d = |n: usize| Dec8::parse(c[n]).unwrap();
                (c[0].to_owned(), [d(1), d(2), d(3), d(4), d(5)])
            })
            .collect()
    };
    let bar = |n: usize, [open, high, low, close, volume]: [Dec8; 5]| {
        let time = n as i64 * MINUTE;
        let mut bar = Ohlcv::of(&trade(n as i64, time, open, volume, false, 1));
        (bar.high, bar.low, bar.close) = (high, low, close);
        bar
    };
    let (ones, fives) = (rows(&ones), rows(&fives));
    assert_eq!((ones.len(), fives.len()), (50_000, 10_000));
    for (n, (stamp, published)) in fives.iter().enumerate() {
        let minutes = &ones[n * 5..n * 5 + 5];
        assert_eq!(stamp, &minutes[0].0);
        let mut parts: Vec<Ohlcv> = minutes
            .iter()
            .enumerate()
            .map(|(m, (_, values))| bar(n * 5 + m, *values))
            .collect();
        shuffle(&mut parts);
        let mut merged = parts[0];
        for part in &parts[1..] {
            merged.merge(part).unwrap();
        }
        let got = [
            merged.open,
            merged.high,
            merged.low,
            merged.close,
            merged.volume,
        ];
        assert_eq!(&got, published, "{stamp}");
    }
}
