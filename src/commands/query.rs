//! `finlake query`: SQL on the tables, as of any valid and system time.

use std::io::{self, Read};

use anyhow::{Context, Result};
use finlake_lakehouse::query::{AsOf, Options, QueryEngine, QueryError, Stability};
use futures::TryStreamExt;

use crate::cli::{Global, QueryArgs};
use crate::config::Config;
use crate::output::{Printer, format_instant, remark};
use crate::parts;

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
        let lake = parts::open_lake(config).await?;
        let options = Options {
            as_of: AsOf {
                system: args.as_of_system,
                valid: args.as_of_valid,
                running: args.running,
            },
            stable: args.stable,
            memory: Some(MEMORY),
        };
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
        printer.finish(&[
            ("frontier", time(stability.frontier)),
            ("as_of_system", time(stability.asked)),
            ("final", stability.is_final.into()),
        ])?;
        if !stability.tables.is_empty() {
            remark(global.quiet, &said(&stability));
        }
        Ok(0)
    })
}

/// The frontier, and what it means for this answer.
fn said(stability: &Stability) -> String {
    let Some(frontier) = stability.frontier else {
        return "stable frontier: not known".into();
    };
    let frontier = format_instant(frontier);
    match stability.asked {
        Some(_) if stability.is_final => {
            format!("stable frontier {frontier}; this answer is final")
        }
        Some(_) => format!(
            "stable frontier {frontier}; the asked time lies beyond it, this answer is NOT final"
        ),
        None => format!("stable frontier {frontier}; this is what is known now"),
    }
}
