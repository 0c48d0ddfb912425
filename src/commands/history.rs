//! `finlake history`: the versions of one bar or of one day's metrics, and who closed what.

use std::io;

use anyhow::{Context, Result, bail};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use finlake_lakehouse::{History, VersionInfo, VersionKey};
use finlake_market::interval::DAY;

use crate::cli::{Global, HistoryArgs};
use crate::config::Config;
use crate::output::{Kind, Printer, format_instant, parse_instant, remark};

/// Columns of the row that are shown, where it has them.
const BAR: [&str; 7] = [
    "stage",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "trade_count",
];
const METRICS: [&str; 3] = ["close", "observations", "return_1"];

/// A key as people write it.
///
/// # Errors
/// It is not one; how to write it.
pub(crate) fn parse(text: &str) -> Result<VersionKey> {
    let parts: Vec<&str> = text.splitn(4, ':').collect();
    let instant = |text: &str| parse_instant(text).map_err(anyhow::Error::msg);
    match parts[..] {
        [source, symbol, interval, start] => Ok(VersionKey::Bar {
            source: source.into(),
            symbol: symbol.into(),
            interval: interval.into(),
            // As in the topic's key, or as people write it.
            start: start.parse().or_else(|_| instant(start))?,
        }),
        [source, symbol, date] => {
            let date = instant(date).with_context(|| format!("the date in \"{text}\""))?;
            Ok(VersionKey::Metrics {
                source: source.into(),
                symbol: symbol.into(),
                date: date.div_euclid(DAY) as i32,
            })
        }
        _ => bail!(
            "\"{text}\" is not a key; write SOURCE:SYMBOL:INTERVAL:START for a bar, such as \
             binance:BTCUSDT:5m:2024-08-08T23:55:00Z, or SOURCE:SYMBOL:DATE for metrics"
        ),
    }
}

/// How a version ended.
fn ended(v: &VersionInfo) -> String {
    match (v.is_current(), v.closed_by) {
        (true, _) => "current".into(),
        (false, Some(by)) => format!("superseded by the version of {}", format_instant(by)),
        (false, None) => "retracted".into(),
    }
}

/// Runs the command. Exit code 1 if the table never held the key.
///
/// # Errors
/// Not a key, catalog or storage.
pub fn run(global: &Global, config: &Config, args: &HistoryArgs) -> Result<u8> {
    let key = parse(&args.key)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let history: History = runtime.block_on(async {
        let lake = super::existing_lake(config).await?;
        let pinned = lake.snapshot(key.table()).await?;
        anyhow::Ok(pinned.history(&key).await?)
    })?;
    let shown: &[&str] = match key {
        VersionKey::Bar { .. } => &BAR,
        VersionKey::Metrics { .. } => &METRICS,
    };
    let mut columns = vec![
        ("revision", Kind::Number),
        ("sys_from", Kind::Text),
        ("sys_to", Kind::Text),
        ("ended", Kind::Text),
    ];
    columns.extend(shown.iter().map(|name| (*name, Kind::Text)));
    columns.extend([
        ("commit", Kind::Number),
        ("ticks_offset", Kind::Number),
        ("bars_offset", Kind::Number),
        ("kafka_partition", Kind::Number),
        ("kafka_offset", Kind::Number),
    ]);
    let mut printer = Printer::new(io::stdout().lock(), global.format(), &columns)?;
    let options = FormatOptions::default();
    for (i, v) in history.versions.iter().enumerate() {
        let mut row = vec![
            Some(v.revision.to_string()),
            Some(format_instant(v.sys_from)),
            Some(format_instant(v.sys_to)),
            Some(ended(v)),
        ];
        for name in shown {
            let cell = history.rows.column_by_name(name);
            let cell = cell.filter(|c| c.is_valid(i));
            let cell = cell.map(|c| ArrayFormatter::try_new(c, &options));
            row.push(cell.transpose()?.map(|f| f.value(i).to_string()));
        }
        let numbers = [
            v.commit,
            v.ticks_offset,
            v.bars_offset,
            i64::from(v.kafka_partition),
            v.kafka_offset,
        ];
        row.extend(numbers.map(|n| Some(n.to_string())));
        printer.row(row)?;
    }
    printer.finish(&[("table", key.table().to_string().into())])?;
    if history.versions.is_empty() {
        remark(
            global.quiet,
            &format!("{} never held {}", key.table(), args.key),
        );
        return Ok(super::DIFFERS);
    }
    Ok(super::SAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_bars_and_of_metrics_are_told_apart() {
        let bar = VersionKey::Bar {
            source: "binance".into(),
            symbol: "BTCUSDT".into(),
            interval: "5m".into(),
            start: 1_723_161_300_000_000,
        };
        let text = "binance:BTCUSDT:5m:2024-08-08T23:55:00Z";
        assert_eq!(parse(text).unwrap(), bar);
        assert_eq!(
            parse("binance:BTCUSDT:5m:1723161300000000").unwrap(),
            bar,
            "as the topic's key spells it"
        );
        let day = VersionKey::Metrics {
            source: "sim".into(),
            symbol: "A".into(),
            date: 1,
        };
        assert_eq!(parse("sim:A:1970-01-02").unwrap(), day);
        assert!(parse("sim:A").unwrap_err().to_string().contains("INTERVAL"));
        assert!(parse("sim:A:1m:never").is_err());
    }
}
