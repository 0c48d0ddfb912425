//! `finlake replay`: the topology once more over what was processed, and what would differ.

use anyhow::Result;
use finlake_lakehouse::Lakehouse;
use finlake_schemas::topics;
use tokio::runtime::{Handle, Runtime};

use super::{DIFFERS, SAME, printer};
use crate::app::App;
use crate::cli::{Global, ReplayArgs};
use crate::config::Config;
use crate::output::{Kind, format_instant, remark};
use crate::replay::shadow::Keep;
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
    let now = jiff::Timestamp::now().as_microsecond();
    let keep = args.shadow.as_ref().map(|name| Keep {
        name: name.clone(),
        overwrite: args.overwrite,
        command: command(args),
        now,
    });
    // Both before anything is read: it is now that a name may be refused.
    let rebuilt = keep.as_ref().filter(|_| args.verify).map(Keep::rebuilt);
    let rebuilt = Target::begin(rebuilt, &lake, handle)?;
    let shadow = match Target::begin(keep, &lake, handle) {
        Ok(shadow) => shadow,
        Err(e) => {
            rebuilt.abandon(&lake, handle);
            return Err(e);
        }
    };
    let rerun = again(&app, &lake, shadow.lake(), args, now, handle, global.quiet);
    let rerun = match rerun {
        Ok(rerun) => rerun,
        Err(e) => {
            shadow.abandon(&lake, handle);
            rebuilt.abandon(&lake, handle);
            return Err(e);
        }
    };
    report(global, args, &rerun)?;
    told(global, &shadow, &rerun.kept);
    let mut code = if rerun.is_equal() { SAME } else { DIFFERS };
    if args.verify {
        match verify(global, &app, &lake, &rebuilt, handle) {
            Ok(found) => code = code.max(found),
            Err(e) => {
                rebuilt.abandon(&lake, handle);
                return Err(e);
            }
        }
    }
    if args.apply {
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

/// A shadow that was asked for, and the lakehouse it is.
struct Target(Option<(Keep, Lakehouse)>);

impl Target {
    fn begin(keep: Option<Keep>, lake: &Lakehouse, handle: &Handle) -> Result<Target> {
        Ok(Target(match keep {
            Some(keep) => {
                let shadow = keep.create(lake, handle)?;
                Some((keep, shadow))
            }
            None => None,
        }))
    }

    fn lake(&self) -> Option<&Lakehouse> {
        self.0.as_ref().map(|(_, lake)| lake)
    }

    /// A replay that could not be done leaves no shadow.
    fn abandon(&self, lake: &Lakehouse, handle: &Handle) {
        if let Some((keep, _)) = &self.0 {
            keep.abandon(lake, handle);
        }
    }
}

/// What was asked for, as it was typed.
fn command(args: &ReplayArgs) -> String {
    let range = match (args.all, args.from_timestamp) {
        (true, _) => "--all".to_owned(),
        (_, Some(at)) => format!("--from-timestamp {}", format_instant(at)),
        _ => {
            let each = args.from_offsets.iter();
            let each = each.map(|(p, offset)| format!("{}:{p}:{offset}", topics::TICKS));
            format!("--from-offsets {}", each.collect::<Vec<_>>().join(","))
        }
    };
    let to = args.to.map(|at| format!(" --to {}", format_instant(at)));
    let verify = if args.verify { " --verify" } else { "" };
    format!("finlake replay {range}{}{verify}", to.unwrap_or_default())
}

fn again(
    app: &App,
    lake: &Lakehouse,
    keep: Option<&Lakehouse>,
    args: &ReplayArgs,
    now: i64,
    handle: &Handle,
    quiet: bool,
) -> Result<Rerun> {
    if args.all {
        return replay::whole(app, lake, keep, handle, quiet);
    }
    let asked = replay::Asked {
        from: match args.from_timestamp {
            Some(at) => replay::From::Time(at),
            None => replay::From::Offsets(args.from_offsets.iter().copied().collect()),
        },
        to: args.to,
        now,
    };
    replay::range(app, lake, keep, handle, &asked, quiet)
}

/// Says where the rows are, and how they go.
fn told(global: &Global, shadow: &Target, tables: &replay::shadow::Kept) {
    let Some((keep, _)) = &shadow.0 else {
        return;
    };
    let tables = tables
        .iter()
        .map(|(name, rows)| format!("{name} ({rows} rows)"));
    let (tables, name) = (tables.collect::<Vec<_>>().join(", "), &keep.name);
    remark(
        global.quiet,
        &format!("kept in {tables}; `finlake tables drop-shadow {name}` drops them"),
    );
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
        (
            "shadow",
            rerun.kept.iter().map(|(table, _)| table.clone()).collect(),
        ),
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
    lake: &Lakehouse,
    rebuilt: &Target,
    handle: &Handle,
) -> Result<u8> {
    let name = format!("verify-{}", std::process::id());
    let began = jiff::Timestamp::now().as_microsecond();
    let (verified, kept) = replay::verify::run(app, lake, rebuilt.lake(), handle, &name)?;
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
    told(global, rebuilt, &kept);
    tracing::info!("verified what was there at {}", format_instant(began));
    Ok(code)
}
