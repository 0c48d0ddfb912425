//! Daily statistics against other people's results.

mod common;

use common::text;
use finlake_market::gold::{GoldConfig, Moments, simple_return, values};
use finlake_schemas::Dec8;
use serde_json::Value;

#[track_caller]
fn close(got: f64, want: f64, what: &str) {
    assert!(
        (got - want).abs() <= 1e-9 * want.abs().max(1e-6),
        "{what}: {got} is not {want}"
    );
}

/// empyrical-reloaded over 13 years of daily closes: windows 20, 63 and 126, 252 periods.
/// Prices and results carry 12 digits. The prices are vendor-adjusted floats with more digits than
/// a price has, so they enter as returns.
#[test]
fn rolling_volatility_and_sharpe() {
    let Some(text) = text("reference/computed_AAPL_adjclose_rolling.csv") else {
        return;
    };
    let rows: Vec<Vec<&str>> = text
        .lines()
        .skip(1)
        .map(|l| l.split(',').collect())
        .collect();
    let returns: Vec<f64> = rows[1..].iter().map(|r| r[2].parse().unwrap()).collect();
    let mut checked = 0;
    for (n, row) in rows.iter().enumerate() {
        for (column, window) in [(4, 20usize), (5, 63), (6, 63), (7, 126)] {
            if row[column].is_empty() {
                assert!(n < window, "only the warm-up is empty");
                continue;
            }
            let want: f64 = row[column].parse().unwrap();
            let moments = Moments::of(&returns[n - window..n]);
            let got = if column < 6 {
                moments.volatility(252)
            } else {
                moments.sharpe(252, 0.0)
            };
            // A Sharpe ratio near zero is a difference: its error is that of its terms.
            let scale = if column < 6 {
                want.abs()
            } else {
                want.abs().max(1.0)
            };
            assert!(
                (got.unwrap() - want).abs() <= 1e-9 * scale,
                "row {n} column {column}: {got:?} is not {want}"
            );
            checked += 1;
        }
    }
    assert!(checked > 10_000, "{checked}");
}

/// The whole path from decimal closes on the same series, cut to 8 digits.
#[test]
fn from_closes_to_values() {
    let Some(text) = text("reference/computed_AAPL_adjclose_rolling.csv") else {
        return;
    };
    let config = GoldConfig {
        windows: vec![20, 63],
        periods: 252,
        risk_free: 0.0,
    };
    let mut closes = Vec::new();
    for (n, line) in text.lines().skip(1).enumerate() {
        let row: Vec<&str> = line.split(',').collect();
        // Eight digits after the point keep a price of 4 to 9 digits.
        let (whole, fraction) = row[1].split_once('.').unwrap_or((row[1], "0"));
        let cut = &fraction[..fraction.len().min(8)];
        closes.push(Dec8::parse(&format!("{whole}.{cut}")).unwrap());
        let got = values(&closes, &config);
        assert_eq!(usize::from(got.observations), n.min(63));
        for (at, column) in [(0, 4), (1, 5)] {
            match (got.windows[at].volatility, row[column]) {
                (None, "") => {}
                (Some(got), want) => {
                    let want: f64 = want.parse().unwrap();
                    assert!((got - want).abs() <= 1e-6 * want, "{n}: {got} {want}");
                }
                other => panic!("{n}: {other:?}"),
            }
        }
    }
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
