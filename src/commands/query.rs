//! `finlake query`: SQL on the tables, as of any valid and system time.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use finlake_lakehouse::query::{AsOf, Options, QueryEngine, QueryError, Stability, not_final};
use futures::TryStreamExt;

use crate::cli::{Global, QueryArgs};
use crate::config::Config;
use crate::output::{Printer, format_instant, remark};

/// Bytes that sorting and joining may take before they spill to disk.
const MEMORY: usize = 1 << 30;

/// Runs the command.
///
/// # Errors
/// A wrong statement, an answer that is not final with `--stable`, catalog or storage.
pub fn run(global: &Global, config: &Config, args: &QueryArgs) -> Result<u8> {
    let mut sql = args.sql.clone();
    if sql == "-" {
        sql.clear();
        io::stdin()
            .read_to_string(&mut sql)
            .context("reading the statement from stdin")?;
    }
    if args.explain {
        sql = format!("EXPLAIN {sql}");
    }
    tokio::runtime::Runtime::new()?.block_on(async {
        let lake = super::existing_lake(config).await?;
        let options = Options {
            as_of: AsOf {
                system: args.as_of_system,
                valid: args.as_of_valid,
                running: args.running,
            },
            stable: args.stable,
            memory: Some(MEMORY),
        };
        let began = Instant::now();
        let answer = QueryEngine::open(&lake).sql(&sql, &options).await?;
        let stability = answer.stability.clone();
        let mut printer =
            Printer::for_schema(io::stdout().lock(), global.format(), &answer.schema)?;
        let mut batches = std::pin::pin!(answer.batches());
        while let Some(batch) = batches.try_next().await.map_err(|e: QueryError| e)? {
            printer.batch(&batch)?;
        }
        let time =
            |at: Option<i64>| at.map_or(serde_json::Value::Null, |t| format_instant(t).into());
        let rows = printer.rows();
        printer.finish(&[
            ("tables", stability.tables.clone().into()),
            ("stable_frontier", time(stability.frontier)),
            ("as_of_system", time(stability.asked)),
            ("final", stability.is_final.into()),
        ])?;
        remark(global.quiet, &said(rows, began.elapsed(), &stability));
        Ok(0)
    })
}

/// How much came, and how long it holds.
fn said(rows: usize, took: Duration, stability: &Stability) -> String {
    let plural = if rows == 1 { "" } else { "s" };
    let mut text = format!("{rows} row{plural} in {:.2} s", took.as_secs_f64());
    if stability.tables.is_empty() {
        return text;
    }
    if stability.is_final {
        let frontier = stability.frontier.map(format_instant).unwrap_or_default();
        text.push_str(&format!("; final (stable frontier {frontier})"));
    } else {
        text.push_str(&format!("; NOT final: {}", not_final(stability)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_whether_it_is_final() {
        let mut stability = Stability {
            tables: vec!["silver.market_ohlcv".into()],
            frontier: Some(2_000_000),
            asked: Some(1_000_000),
            is_final: true,
        };
        let said = |stability: &Stability| said(1, Duration::from_millis(20), stability);
        assert_eq!(
            said(&stability),
            "1 row in 0.02 s; final (stable frontier 1970-01-01T00:00:02.000000Z)"
        );
        stability.is_final = false;
        stability.asked = Some(3_000_000);
        let text = said(&stability);
        assert!(
            text.contains("NOT final") && text.contains("1970-01-01T00:00:03"),
            "{text}"
        );
        stability.asked = None;
        assert!(said(&stability).contains("--as-of-system"));
        stability.tables.clear();
        assert_eq!(said(&stability), "1 row in 0.02 s");
    }
}
