//! Daily statistics against other people's results.

mod common;

use std::collections::BTreeMap;

use common::text;
use finlake_market::gold::{GoldConfig, Moments, simple_return, values};
use finlake_schemas::Dec8;
use serde_json::Value;

/// Within 1e-9, relative.
#[track_caller]
fn close(got: f64, want: f64, what: &str) {
    assert!(
        (got - want).abs() <= 1e-9 * want.abs(),
        "{what}: {got} is not {want}"
    );
}

/// The adjusted closes of AAPL that the reference was computed from, by date. It repeats them with twelve digits, which
/// are too few: of its 3,269 returns 150 would be off by more than 1e-9, of its Sharpe ratios 15.
fn closes() -> Option<BTreeMap<String, Dec8>> {
    let text = text("daily/bokeh_stocks_AAPL_FB_GOOG_IBM_MSFT.csv.gz")?;
    let rows = text.lines().filter_map(|line| {
        let row: Vec<&str> = line.split(',').collect();
        (row[0] == "AAPL").then(|| (row[1].to_owned(), millionfold(row[7])))
    });
    Some(rows.collect())
}

/// The decimal a million times as large, which the statistics do not see: so its 14 digits after the point fit a price's 8.
fn millionfold(text: &str) -> Dec8 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let padded = format!("{fraction:0<7}");
    let (more, rest) = padded.split_at(6);
    Dec8::parse(&format!("{whole}{more}.{rest}")).expect(text)
}

/// empyrical-reloaded over 13 years of daily closes: returns, windows 20, 63 and 126, 252 periods.
#[test]
fn rolling_volatility_and_sharpe() {
    let (Some(text), Some(closes)) = (
        text("reference/computed_AAPL_adjclose_rolling.csv"),
        closes(),
    ) else {
        return;
    };
    let config = GoldConfig {
        windows: vec![20, 63, 126],
        periods: 252,
        risk_free: 0.0,
    };
    let mut series = Vec::new();
    let mut checked = [0; 5];
    for (n, line) in text.lines().skip(1).enumerate() {
        let row: Vec<&str> = line.split(',').collect();
        series.push(closes[row[0]]);
        let got = values(&series, &config);
        assert_eq!(usize::from(got.observations), n.min(126));
        let w = &got.windows;
        let all = [
            (got.return_1, 2),
            (w[0].volatility, 4),
            (w[1].volatility, 5),
            (w[1].sharpe, 6),
            (w[2].sharpe, 7),
        ];
        for (at, (got, column)) in all.into_iter().enumerate() {
            let what = format!("{} column {column}", row[0]);
            match (got, row[column]) {
                (None, want) => assert_eq!(want, "", "{what}: only the warm-up is empty"),
                (Some(got), want) => {
                    close(got, want.parse().unwrap(), &what);
                    checked[at] += 1;
                }
            }
        }
    }
    let full = [1, 20, 63, 63, 126].map(|window| series.len() - window);
    assert_eq!(checked, full);
    assert!(series.len() > 3_000);
}

/// empyrical's own unit tests, as far as they are about volatility and Sharpe ratio.
#[test]
fn empyrical_vectors() {
    let Some(text) = text("reference/empyrical_vectors.json") else {
        return;
    };
    let v: Value = serde_json::from_str(&text).unwrap();
    // Their not-a-number is a day without a value; here such a day has no row.
    let input = |name: &str| -> Vec<f64> {
        let list = v["inputs"][name].as_array().unwrap();
        list.iter().filter_map(Value::as_f64).collect()
    };
    let mut checked = 0;
    for case in v["expected"].as_array().unwrap() {
        let name = case["returns"].as_str().unwrap_or_default();
        let moments = match name {
            "" => continue,
            name if v["inputs"][name].is_array() => Moments::of(&input(name)),
            _ => continue,
        };
        let got = match case["fn"].as_str().unwrap() {
            "sharpe_ratio" if case["rf"].is_number() => {
                let rf = case["rf"].as_f64().unwrap();
                moments.sharpe(252, rf * 252.0)
            }
            "annual_volatility" => moments.volatility(match case["period"].as_str().unwrap() {
                "daily" => 252,
                "weekly" => 52,
                "monthly" => 12,
                other => panic!("period {other}"),
            }),
            _ => continue,
        };
        checked += 1;
        match case["value"].as_f64() {
            Some(want) => close(got.unwrap(), want, name),
            // Undefined, or infinite where there is no spread: null here.
            None => assert_eq!(got, None, "{case}"),
        }
    }
    assert!(checked >= 9, "{checked}");
}

/// ffn's simple returns of real closes, to its three digits.
#[test]
fn ffn_returns() {
    let (Some(prices), Some(vectors)) = (
        text("reference/ffn_prices_AAPL_MSFT_C_2004-2014.csv"),
        text("reference/ffn_vectors.json"),
    ) else {
        return;
    };
    let v: Value = serde_json::from_str(&vectors).unwrap();
    let names = ["AAPL", "MSFT", "C"];
    let rows: Vec<Vec<Dec8>> = prices
        .lines()
        .skip(1)
        .take(10)
        .map(|l| {
            l.split(',')
                .skip(1)
                .map(|c| Dec8::parse(c).unwrap())
                .collect()
        })
        .collect();
    for (at, name) in names.iter().enumerate() {
        for row in [1usize, 9] {
            let want = v["simple_returns"][name][row.to_string()].as_f64().unwrap();
            let got = simple_return(rows[row - 1][at], rows[row][at]);
            assert!(
                (got - want).abs() <= 5e-4 + 1e-12,
                "{name} {row}: {got} {want}"
            );
        }
        let index = v["price_index_from_100"][name].as_f64().unwrap();
        let got = 100.0 * (1.0 + simple_return(rows[0][at], rows[9][at]));
        assert!((got - index).abs() <= 5e-4, "{name}: {got} {index}");
    }
}
