//! `finlake replay`: the topology once more over what was processed, and what would differ.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use finlake_lakehouse::Lakehouse;
use finlake_reconcile::{Finding, Layer, Report};
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
    sound(args)?;
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
        let sent = apply(global, &app, &lake, &runtime, args, &rerun, now)?;
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

/// Refuses what does not go together.
fn sound(args: &ReplayArgs) -> Result<()> {
    if !args.all || args.to.is_none() {
        return Ok(());
    }
    if args.verify {
        bail!(
            "--verify rebuilds the tables as their topics have them now, and --all --to compares what was known at an \
             instant: leave out one of the two"
        );
    }
    if args.apply {
        bail!(
            "--all --to compares what was known at an instant, and --apply corrects what is known now: leave out --to, \
             or replay a range of trade time (--from-timestamp)"
        );
    }
    Ok(())
}

/// Sends what differs, if what it comes from is whole; how many assertions.
fn apply(
    global: &Global,
    app: &App,
    lake: &Lakehouse,
    runtime: &Runtime,
    args: &ReplayArgs,
    rerun: &Rerun,
    now: i64,
) -> Result<usize> {
    let found = rerun.silver_differences.iter();
    let found: Vec<&Difference> = found
        .filter(|d| args.over_corrections || !d.corrected)
        .collect();
    let left = rerun.silver_differences.len() - found.len();
    if left > 0 {
        let text = format!(
            "{left} corrected bars stay as they are: a range is replayed from trades alone; --over-corrections sends \
             them too (--key names single ones)"
        );
        remark(global.quiet, &text);
    }
    if found.is_empty() {
        return Ok(0);
    }
    if rerun.asked_bronze {
        remark(
            global.quiet,
            "comparing bronze.market_ticks with the ledger and its topic before anything is sent",
        );
        let report = super::reconcile::bronze(global, &app.config, lake, runtime).context(
            "nothing was sent: bronze.market_ticks could not be compared with the ledger",
        )?;
        trusted(&report)?;
    }
    replay::apply::send(&app.config, &app.codec, &found, &args.reason, now)
}

/// Causes that say that the ledger was read from its first commit on.
const BOOKS: [&str; 2] = ["position", "INV-13"];

/// Refuses to take a Bronze table for the truth that does not hold what the ledger says it took.
fn trusted(report: &Report) -> Result<()> {
    const REMEDY: &str = "Look at it with `finlake reconcile --layer bronze`, rebuild the table from the topic or bring \
                          back an older snapshot, and replay again; without --apply the differences are only shown";
    // A feed's own contradictions are in Bronze as they are in the topic; what the task did with the records, and what is
    // wrong with the ledger itself, a replay is there to put right.
    let counts = |f: &&Finding| {
        f.layer == Layer::Bronze && f.cause != "accepted" && !f.cause.starts_with("contents:")
    };
    let mut found = report.findings.list().iter().filter(counts);
    if let Some(first) = found.next() {
        let more = match found.count() {
            0 => String::new(),
            n => format!(" (and {n} more)"),
        };
        bail!(
            "nothing was sent: Bronze is not what the ledger says: {} {} of {}, {}: expected {}, found {}{more}. What is \
             wrong in Bronze would be taken over into Silver. {REMEDY}",
            first.kind.as_str(),
            first.key,
            first.table,
            first.cause,
            first.expected.as_deref().unwrap_or("-"),
            first.actual.as_deref().unwrap_or("something else"),
        );
    }
    if let Some(why) = report.unchecked.first() {
        bail!("nothing was sent: Bronze could not be compared with the ledger: {why}. {REMEDY}");
    }
    if BOOKS
        .iter()
        .any(|cause| report.unchecked_causes.contains(*cause))
    {
        bail!(
            "nothing was sent: {} does not begin with commit 1, so nobody can say whether Bronze is whole. {REMEDY}",
            topics::LEDGER
        );
    }
    Ok(())
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
    let keys: String = args.keys.iter().map(|k| format!(" --key {k}")).collect();
    let verify = if args.verify { " --verify" } else { "" };
    format!(
        "finlake replay {range}{}{keys}{verify}",
        to.unwrap_or_default()
    )
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
        let asked = replay::Whole {
            until: args.to,
            keys: args.keys.clone(),
        };
        return replay::whole(app, lake, keep, handle, &asked, quiet);
    }
    let asked = replay::Asked {
        from: match args.from_timestamp {
            Some(at) => replay::From::Time(at),
            None => {
                let mut least = BTreeMap::new();
                for &(partition, offset) in &args.from_offsets {
                    let from = least.entry(partition).or_insert(offset);
                    *from = offset.min(*from);
                }
                replay::From::Offsets(least)
            }
        },
        to: args.to,
        keys: args.keys.clone(),
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
    let tally = |t: &Tally| {
        serde_json::json!({
            "equal": t.equal,
            "pending": t.pending,
            "different": t.different,
            "corrected": t.corrected,
        })
    };
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
    remark(
        global.quiet,
        &format!(
            "replayed {} records ({} out of Bronze); Silver: {}; Gold: {}",
            rerun.records, rerun.from_bronze, rerun.silver, rerun.gold
        ),
    );
    Ok(())
}

fn row(table: &str, d: &Difference) -> Vec<Option<String>> {
    let text = |r: &Option<replay::Row>| r.as_ref().map(described);
    vec![
        Some(table.to_owned()),
        Some(String::from_utf8_lossy(&d.key).into_owned()),
        Some(d.as_str().to_owned()),
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

#[cfg(test)]
mod tests {
    use finlake_reconcile::Findings;
    use finlake_schemas::BreakKind;

    use super::*;

    fn report(found: &[(BreakKind, Layer, &str)]) -> Report {
        let mut findings = Findings::limited(10);
        for (n, (kind, layer, cause)) in found.iter().enumerate() {
            let key = format!("market.ticks/0:{n}");
            findings.push(Finding::new(
                *kind,
                *layer,
                "bronze.market_ticks",
                key,
                *cause,
            ));
        }
        Report {
            findings,
            ..Report::default()
        }
    }

    fn refused(report: &Report) -> String {
        trusted(report).unwrap_err().to_string()
    }

    #[test]
    fn bronze_is_trusted_if_it_is_what_the_ledger_says() {
        use BreakKind::{Duplicate, Missing, ValueDrift};
        trusted(&Report::default()).unwrap();
        let said = refused(&report(&[
            (Missing, Layer::Feed, "trade-id"),
            (Missing, Layer::Bronze, "position"),
            (Duplicate, Layer::Bronze, "offset"),
        ]));
        for text in [
            "MISSING market.ticks/0:1 ",
            "(and 1 more)",
            "finlake reconcile --layer bronze",
        ] {
            assert!(said.contains(text), "{text}: {said}");
        }
        refused(&report(&[(ValueDrift, Layer::Bronze, "content")]));
        // Of the feed, of the task and of the ledger: Bronze has it as it came.
        trusted(&report(&[
            (Missing, Layer::Feed, "trade-id"),
            (Missing, Layer::Ledger, "INV-12"),
            (Duplicate, Layer::Bronze, "contents:17"),
            (Duplicate, Layer::Bronze, "accepted"),
        ]))
        .unwrap();
    }

    #[test]
    fn what_could_not_be_compared_is_not_trusted() {
        let mut kafka = Report::default();
        kafka.unchecked.push("Kafka does not answer".to_owned());
        assert!(refused(&kafka).contains("Kafka does not answer"));
        let mut cut = Report::default();
        cut.unchecked_causes.insert("INV-13".to_owned());
        assert!(refused(&cut).contains("commit 1"));
        // The topic's beginning is gone: the ledger still counts every row.
        let mut retained = Report::default();
        retained.unchecked_causes.insert("content".to_owned());
        trusted(&retained).unwrap();
    }
}
