//! Recorded captures in, the exchange's own klines out.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::harness::{Finlake, root, secs};

/// The recorded data, if it is there; says so if not.
pub fn recorded(name: &str) -> Option<PathBuf> {
    let path = root().join("../shared/data").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!(
        "recorded data {} is not there: this test checks nothing",
        path.display()
    );
    None
}

pub fn gunzip(path: &Path) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap())
        .read_to_string(&mut text)
        .unwrap();
    text
}

/// Fields of a decimal text without trailing zeros, so that 61800.00 equals 61800.00000000.
pub fn plain(text: &str) -> String {
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text.to_owned()
    }
}

/// The published 5m kline of the capture: open … taker-buy quote, nine fields.
fn published_kline() -> Option<Vec<String>> {
    let klines = recorded("pairs/binance_spot_BTCUSDT-5m-2024-08-01_08.csv.gz")?;
    let text = gunzip(&klines);
    let line = text
        .lines()
        .find(|l| l.starts_with("1723161300000,"))
        .expect("the kline");
    let f: Vec<&str> = line.split(',').collect();
    Some(
        [1, 2, 3, 4, 5, 7, 8, 9, 10]
            .iter()
            .map(|i| plain(f[*i]))
            .collect(),
    )
}

const NINE: &str =
    "open, high, low, close, volume, quote_volume, trade_count, taker_buy_base, taker_buy_quote";

fn our_bar(data: &Path) -> Vec<String> {
    let sql = format!(
        "select {NINE} from silver.market_ohlcv where is_current and symbol = 'BTCUSDT' and bar_interval = '5m' \
         and cast(bar_start as bigint) = 1723161300000000"
    );
    let ran = Finlake::new()
        .data(data)
        .args(["query", "--output", "csv"])
        .arg(&sql)
        .run(secs(60))
        .ok();
    let mut lines = ran.stdout.lines().skip(1);
    let row = lines
        .next()
        .expect("one bar")
        .split(',')
        .map(plain)
        .collect();
    assert_eq!(lines.next(), None, "one current row only");
    row
}

#[test]
fn a_capture_gives_the_exchanges_own_bar() {
    let (Some(capture), Some(kline)) = (
        recorded("ws/hft_spot_btcusdt_20240808.jsonl.gz"),
        published_kline(),
    ) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("d");
    Finlake::new()
        .data(&data)
        .args(["demo", "--exit", "--intervals", "1m,5m,1h,1d", "--input"])
        .arg(&capture)
        .run(secs(120))
        .ok();
    assert_eq!(our_bar(&data), kline);
}

#[test]
fn shuffled_and_repeated_messages_give_the_same_rows() {
    let Some(capture) = recorded("ws/hft_spot_btcusdt_20240808.jsonl.gz") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let text = gunzip(&capture);
    let mut lines: Vec<&str> = text.lines().filter(|l| l.contains("@trade")).collect();
    let mut rng = finlake::generate::Rng::new(42);
    for i in 0..lines.len() {
        for _ in 0..rng.below(3) {
            lines.push(lines[i]);
        }
    }
    for i in (1..lines.len()).rev() {
        lines.swap(i, rng.below(i as u64 + 1) as usize);
    }
    let shuffled = dir.path().join("shuffled.jsonl");
    std::fs::write(&shuffled, lines.join("\n")).unwrap();
    let content = |name: &str, input: &Path| {
        let data = dir.path().join(name);
        Finlake::new()
            .data(&data)
            .args(["demo", "--exit", "--intervals", "1m,5m,1h,1d", "--input"])
            .arg(input)
            .run(secs(120))
            .ok();
        let ask = |sql: &str| {
            Finlake::new()
                .data(&data)
                .args(["query", "--output", "csv"])
                .arg(sql)
                .run(secs(60))
                .ok()
                .stdout
        };
        let silver = ask(&format!(
            "select source, symbol, bar_interval, bar_start, {NINE}, vwap, first_trade_id, last_trade_id \
             from silver.market_ohlcv where is_current order by 1, 2, 3, 4"
        ));
        let gold = ask(
            "select source, symbol, trade_date, close, return_1 from gold.market_metrics where is_current order by 1, 2, 3",
        );
        (silver, gold)
    };
    let straight = content("straight", &capture);
    assert!(straight.0.lines().count() > 10, "{}", straight.0);
    assert_eq!(content("shuffled", &shuffled), straight);
}

#[test]
fn captures_replay_to_the_same_rows_and_tables() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "ws/hft_spot_btcusdt_20240808.jsonl.gz",
        "ws/hft_spot_ethusdt_20240808.jsonl.gz",
        "ws/cryptofeed_BINANCE.ws.txt",
        "ws/cryptofeed_BINANCE_FUTURES.ws.txt",
        "ws/nautilus_ws_spot_trade_with_order_ids.json",
        "trades/derived_vision_BTCUSDT-trades-capture-20240808.csv.gz",
        "trades/gct_binance_rest_trades_ETHBTC.json",
    ] {
        let Some(capture) = recorded(name) else {
            continue;
        };
        let data = dir.path().join(name.replace('/', "-"));
        let finlake = |args: &[&str]| Finlake::new().data(&data).args(args);
        let demo = finlake(&["demo", "--exit", "--quiet", "--input"]).arg(&capture);
        demo.run(secs(120)).ok();
        // The embedded broker is gone; its folder is enough.
        let replay = finlake(&["replay", "--all", "--verify", "--output", "json"]).run(secs(120));
        assert_eq!(
            replay.code, 0,
            "{name}: {}\n{}",
            replay.stdout, replay.stderr
        );
        assert!(replay.json()["records"].as_u64().unwrap() > 0, "{name}");
        let equal = replay.stderr.lines().filter(|l| l.ends_with(": equal"));
        assert_eq!(equal.count(), 4, "{name}: {}", replay.stderr);
    }
}
