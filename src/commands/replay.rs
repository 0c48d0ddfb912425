//! `finlake replay`: the topology once more over what was processed, and what would differ.

use anyhow::Result;
use tokio::runtime::Runtime;

use super::{DIFFERS, SAME, printer};
use crate::app::App;
use crate::cli::{Global, ReplayArgs};
use crate::config::Config;
use crate::output::{Kind, format_instant, remark};
use crate::replay::{self, Difference, Rerun, Tally};

/// Runs the command.
///
/// # Errors
/// Kafka, registry, catalog or storage; input that is no longer there.
pub fn run(global: &Global, config: Config, args: &ReplayArgs) -> Result<u8> {
    let runtime = Runtime::new()?;
    let lake = runtime.block_on(super::existing_lake(&config))?;
    let app = runtime.block_on(App::prepare(config, false))?;
    let handle = runtime.handle();
    let rerun = if args.all {
        replay::whole(&app, &lake, handle, global.quiet)?
    } else {
        let from = match args.from_timestamp {
            Some(at) => replay::From::Time(at),
            None => replay::From::Offsets(args.from_offsets.iter().copied().collect()),
        };
        replay::range(&app, &lake, handle, &from, args.to, global.quiet)?
    };
    report(global, args, &rerun)?;
    let mut code = if rerun.is_equal() { SAME } else { DIFFERS };
    if args.verify {
        code = code.max(verify(global, &app, &lake, handle)?);
    }
    if args.apply {
        let now = jiff::Timestamp::now().as_microsecond();
        let found = &rerun.silver_differences;
        let sent = replay::apply::send(&app.config, &app.codec, found, &args.reason, now)?;
        remark(
            global.quiet,
            &format!(
                "sent {sent} assertions to market.bars; what no longer fits then goes to the dead letters as \
                 stale_assertion"
            ),
        );
    }
    Ok(code)
}

fn report(global: &Global, args: &ReplayArgs, rerun: &Rerun) -> Result<()> {
    let columns = [
        ("table", Kind::Text),
        ("key", Kind::Text),
        ("what", Kind::Text),
        ("live", Kind::Text),
        ("replayed", Kind::Text),
    ];
    let mut out = printer(global, &columns)?;
    let layers = [
        ("silver.market_ohlcv", &rerun.silver_differences),
        ("gold.market_metrics", &rerun.gold_differences),
    ];
    let all = layers
        .iter()
        .flat_map(|(table, found)| found.iter().map(move |d| (*table, d)));
    for (table, d) in all.take(args.limit) {
        out.row(row(table, d))?;
    }
    let tally = |t: &Tally| serde_json::json!({"equal": t.equal, "pending": t.pending, "different": t.different});
    out.finish(&[
        ("records", rerun.records.into()),
        ("from_bronze", rerun.from_bronze.into()),
        ("silver", tally(&rerun.silver)),
        ("gold", tally(&rerun.gold)),
    ])?;
    let said = |name: &str, t: &Tally| {
        format!(
            "{name}: {} equal, {} pending, {} different",
            t.equal, t.pending, t.different
        )
    };
    remark(
        global.quiet,
        &format!(
            "replayed {} records ({} out of Bronze); {}; {}",
            rerun.records,
            rerun.from_bronze,
            said("Silver", &rerun.silver),
            said("Gold", &rerun.gold)
        ),
    );
    Ok(())
}

fn row(table: &str, d: &Difference) -> Vec<Option<String>> {
    let text = |r: &Option<replay::Row>| r.as_ref().map(described);
    vec![
        Some(table.to_owned()),
        Some(String::from_utf8_lossy(&d.key).into_owned()),
        Some(d.what.as_str().to_owned()),
        text(&d.live),
        text(&d.replayed),
    ]
}

fn described(row: &replay::Row) -> String {
    match &row.content {
        replay::Content::Bar(b) => format!(
            "o {} h {} l {} c {} v {} n {}",
            b.open, b.high, b.low, b.close, b.volume, b.trade_count
        ),
        replay::Content::Metrics { close, statistics } => {
            let close = finlake_schemas::Dec8(*close);
            format!("close {close} statistics {statistics:?}")
        }
    }
}

fn verify(
    global: &Global,
    app: &App,
    lake: &finlake_lakehouse::Lakehouse,
    handle: &tokio::runtime::Handle,
) -> Result<u8> {
    let name = format!("verify-{}", std::process::id());
    let began = jiff::Timestamp::now().as_microsecond();
    let verified = replay::verify::run(app, lake, handle, &name)?;
    let mut code = SAME;
    for v in verified {
        let verdict = if v.equal { "equal" } else { "DIFFERENT" };
        remark(
            global.quiet,
            &format!(
                "{}: {} rows live, {} rebuilt from topics: {verdict}",
                v.table, v.live, v.rebuilt
            ),
        );
        for line in &v.differences {
            eprintln!("  {line}");
        }
        if !v.equal {
            code = DIFFERS;
        }
    }
    tracing::info!("verified what was there at {}", format_instant(began));
    Ok(code)
}
