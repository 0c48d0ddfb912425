//! What the demo prints: rows of Silver and Gold, one question asked at two system times, the DLQ, where everything is.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use finlake_lakehouse::inspect::TableInfo;
use finlake_lakehouse::query::{AsOf, Options, QueryEngine};
use finlake_lakehouse::{Lakehouse, Table};
use tokio::runtime::Handle;

use super::Story;
use crate::app::App;
use crate::commands::tables::time;
use crate::output::{Format, Printer, format_bytes, format_instant};
use crate::parts;

/// Prints everything to stdout.
pub fn results(
    app: &App,
    story: Option<&Story>,
    took: Duration,
    runtime: &Handle,
    data: &Path,
) -> Result<()> {
    let lake = runtime.block_on(parts::open_lake(&app.config))?;
    let show = Show {
        engine: QueryEngine::open(&lake),
        runtime,
    };
    show.silver()?;
    show.gold()?;
    if let Some(story) = story {
        show.as_of(story)?;
    }
    show.rejected(app)?;
    show.closing(&lake, app, took, data)
}

struct Show<'a> {
    engine: QueryEngine,
    runtime: &'a Handle,
}

fn heading(text: &str) -> io::Result<()> {
    let out = io::stdout();
    if out.is_terminal() {
        writeln!(out.lock(), "\n\x1b[1m{text}\x1b[0m")
    } else {
        writeln!(out.lock(), "\n{text}")
    }
}

impl Show<'_> {
    fn query(&self, sql: &str, as_of: AsOf) -> Result<()> {
        self.runtime.block_on(async {
            let options = Options {
                as_of,
                ..Options::default()
            };
            let answer = self.engine.sql(sql, &options).await?;
            let mut printer =
                Printer::for_schema(io::stdout().lock(), Format::Table, &answer.schema)?;
            for batch in answer.collect().await? {
                printer.batch(&batch)?;
            }
            Ok(printer.finish(&[])?)
        })
    }

    /// The text of the first cell of the first row.
    fn first(&self, sql: &str) -> Result<Option<Vec<String>>> {
        self.runtime.block_on(async {
            let batches = self
                .engine
                .sql(sql, &Options::default())
                .await?
                .collect()
                .await?;
            let Some(batch) = batches.iter().find(|b| b.num_rows() > 0) else {
                return Ok(None);
            };
            let mut row = Vec::new();
            for column in batch.columns() {
                row.push(arrow::util::display::array_value_to_string(column, 0)?);
            }
            Ok(Some(row))
        })
    }

    fn silver(&self) -> Result<()> {
        heading("silver.market_ohlcv: the newest hourly bars")?;
        self.query(
            "select symbol, bar_start, open, high, low, close, volume, trade_count as trades, stage, revision \
             from silver.market_ohlcv where is_current and bar_interval = '1h' \
             order by bar_start desc, symbol limit 6",
            AsOf::default(),
        )
    }

    fn gold(&self) -> Result<()> {
        heading("gold.market_metrics: the newest day of each symbol")?;
        self.query(
            "select symbol, trade_date, close, return_1, volatility_30, sharpe_30 from gold.market_metrics \
             where is_current and trade_date = (select max(trade_date) from gold.market_metrics where is_current) \
             order by symbol limit 6",
            AsOf::default(),
        )
    }

    fn as_of(&self, story: &Story) -> Result<()> {
        let at = story.frontier;
        let bar = self.first(&format!(
            "select symbol, cast(bar_start as bigint) as start from silver.market_ohlcv where bar_interval = '1h' \
             and is_current and prev_sys_from is not null and cast(sys_from as bigint) > {at} and stage = 'closed' \
             order by bar_start, symbol limit 1"
        ))?;
        let Some([symbol, start]) = bar.as_deref() else {
            return heading("no bar was corrected by the late trades").map_err(Into::into);
        };
        let sql = format!(
            "select symbol, bar_start, open, high, low, close, volume, trade_count as trades, revision \
             from silver.market_ohlcv where symbol = '{symbol}' and bar_interval = '1h' \
             and cast(bar_start as bigint) = {start} and is_current"
        );
        let frontier = format_instant(at);
        heading(&format!(
            "the same bar as it was known at {frontier}, the stable frontier before {} late trades came …",
            story.late
        ))?;
        self.query(
            &sql.replace(" and is_current", ""),
            AsOf {
                system: Some(at),
                ..AsOf::default()
            },
        )?;
        heading("… and as it is known now")?;
        self.query(&sql, AsOf::default())
    }

    fn rejected(&self, app: &App) -> Result<()> {
        let counts = crate::commands::dlq::counts(&app.config)?;
        let total: u64 = counts.iter().map(|(_, n)| n).sum();
        heading(&format!(
            "market.ticks.dlq: {total} records that could not be used, each with its reason"
        ))?;
        let mut out = io::stdout().lock();
        for (class, n) in counts {
            writeln!(out, "  {n:>6}  {class}")?;
        }
        Ok(())
    }

    fn closing(&self, lake: &Lakehouse, app: &App, took: Duration, data: &Path) -> Result<()> {
        heading("what is in the lakehouse")?;
        let tables = self
            .runtime
            .block_on(finlake_lakehouse::inspect::tables(lake))?;
        let mut out = io::stdout().lock();
        let mut text = String::new();
        for t in tables {
            text.push_str(&line(&t));
        }
        let dir = data.display();
        let silver = self
            .runtime
            .block_on(lake.load(Table::Ohlcv))?
            .map(|l| l.location)
            .unwrap_or_default();
        let warehouse = &app.config.lake.warehouse;
        text.push_str(&format!(
            "\nDone in {:.1} s. Everything lies in {dir}:\n  \
             warehouse  {warehouse}\n  catalog    {dir}/catalog.db (SQLite, catalog name finlake)\n\n\
             Ask it:\n  \
             ./finlake query --data {dir} \"select symbol, count(*) from silver.market_ohlcv where is_current group by 1\"\n  \
             ./finlake tables --data {dir}\n\n\
             pyiceberg:\n  \
             from pyiceberg.catalog import load_catalog\n  \
             c = load_catalog('finlake', type='sql', uri='sqlite:///{dir}/catalog.db')\n  \
             c.load_table('silver.market_ohlcv').scan(row_filter=\"is_current = true\").to_pandas()\n\n\
             DuckDB:\n  \
             load iceberg; select * from iceberg_scan('{silver}') where is_current limit 5;\n",
            took.as_secs_f64(),
        ));
        out.write_all(text.as_bytes())?;
        Ok(())
    }
}

/// A table. One that is not cut at system times, as breaks are not, is whole up to none.
fn line(t: &TableInfo) -> String {
    let mut text = format!(
        "  {:<22} {:>9} rows  {:>4} files  {:>9}",
        t.table.to_string(),
        t.rows,
        t.files,
        format_bytes(t.bytes),
    );
    if let Some(frontier) = time(t.frontier) {
        text.push_str(&format!("  whole up to {frontier}"));
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_without_a_frontier_is_whole_up_to_none() {
        let table = |frontier| TableInfo {
            table: Table::Breaks,
            exists: true,
            location: String::new(),
            rows: 2,
            files: 1,
            bytes: 512,
            snapshots: 1,
            newest: None,
            frontier,
            moved: false,
        };
        let end = |frontier| {
            line(&table(frontier))
                .rsplit_once("512 B")
                .unwrap()
                .1
                .to_owned()
        };
        assert_eq!(end(Some(0)), "\n");
        assert_eq!(end(None), "\n");
        assert_eq!(
            end(Some(1_000_000)),
            "  whole up to 1970-01-01T00:00:01.000000Z\n"
        );
    }
}
