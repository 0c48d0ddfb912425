//! `finlake reconcile`: the tables against the ledger, the layer below, and the topic.

mod metrics;
mod retained;
mod source;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use arrow::array::AsArray;
use arrow::datatypes::Int32Type;
use finlake_lakehouse::{Lakehouse, Pinned, Scan, Table};
use finlake_market::{Interval, Intervals};
use finlake_reconcile::rules::Measure;
use finlake_reconcile::run::{self as checks, Watch};
use finlake_reconcile::trades::Rules;
use finlake_reconcile::{Layer, Options, Pins, Records, Report, Scope, changes, rules};
use finlake_schemas::{BreakStatus, keys};
use futures::TryStreamExt;
use tokio::runtime::Runtime;

use self::retained::Retained;
use self::source::Source;
use super::{DIFFERS, SAME, UNCHECKED, printer};
use crate::audit::Publisher;
use crate::cli::{Global, ReconcileArgs, ReconcileLayer};
use crate::config::Config;
use crate::output::{Kind, Progress, format_instant, remark};
use crate::parts::micros;

/// Found by.
const NAME: &str = "reconcile";
/// Tags of runs that were killed are removed after this long.
const STALE: Duration = Duration::from_secs(24 * 3600);

fn layer(layer: ReconcileLayer) -> Layer {
    match layer {
        ReconcileLayer::Bronze => Layer::Bronze,
        ReconcileLayer::Silver => Layer::Silver,
        ReconcileLayer::Gold => Layer::Gold,
    }
}

/// What a run is to do.
///
/// # Errors
/// A rule that is not one.
pub fn options(config: &Config, args: &ReconcileArgs) -> Result<Options> {
    let pipeline = crate::app::pipeline_config(config);
    let text = args.rules.as_ref().unwrap_or(&config.quality.rules);
    let layers: BTreeSet<Layer> = args.layers.iter().copied().map(layer).collect();
    Ok(Options {
        dates: args.date.map(|date| (date, date + 1)),
        symbol: args.symbol.clone(),
        as_of: args.as_of,
        // A correction waits for its turn, and then for the commit that a heartbeat brings.
        patience: micros(
            config.stream.correct_every + config.stream.heartbeat + Duration::from_secs(30),
        ),
        validators: rules::parse(text)?,
        market: Rules {
            intervals: config.stream.intervals.clone(),
            limits: pipeline.limits,
            retention_1m: pipeline.retention_1m,
        },
        gold: pipeline.gold,
        limit: args.limit,
        wait: args.wait,
        registered: BTreeMap::new(),
        layers,
    })
}

/// Runs the command: 0 clean, 1 breaks, 2 could not check.
///
/// # Errors
/// No lakehouse, storage or catalog; what is only partly checkable is an exit code instead.
pub fn run(global: &Global, config: &Config, args: &ReconcileArgs) -> Result<u8> {
    let runtime = Runtime::new()?;
    let lake = runtime.block_on(super::existing_lake(config))?;
    let (source, options, mut report) = examine(global, config, args, &lake, &runtime)?;

    let mut named = BTreeMap::new();
    if let (Some(source), false) = (&source, args.report_only) {
        match tell(source, &options, &report, &mut named) {
            Ok(text) => remark(global.quiet, &text),
            Err(e) => report
                .unchecked
                .push(format!("breaks were not written: {e:#}")),
        }
    }
    // The report is worth more than its copy for a collector.
    print(global, &report, &named)?;
    let written = args
        .metrics
        .as_ref()
        .map(|path| metrics::write(&report, now(), path));
    if let Some(Err(e)) = &written {
        remark(false, &format!("the metrics were not written: {e:#}"));
    }
    Ok(match report.exit_code() {
        0 if matches!(written, Some(Err(_))) => UNCHECKED,
        0 => SAME,
        1 => DIFFERS,
        _ => UNCHECKED,
    })
}

/// The Bronze layer alone, over all commits, with the ledger's books and the topic: nobody is told of what is found.
///
/// # Errors
/// As `run`.
pub(crate) fn bronze(
    global: &Global,
    config: &Config,
    lake: &Lakehouse,
    runtime: &Runtime,
) -> Result<Report> {
    let args = ReconcileArgs {
        layers: vec![ReconcileLayer::Bronze],
        date: None,
        symbol: None,
        as_of: None,
        // Thresholds say nothing of whether the table is whole.
        rules: Some(String::new()),
        report_only: true,
        metrics: None,
        no_kafka: false,
        wait: Duration::ZERO,
        limit: 1_000,
    };
    let (_, _, report) = examine(global, config, &args, lake, runtime)?;
    Ok(report)
}

/// Reaches Kafka, pins the tables and compares.
fn examine(
    global: &Global,
    config: &Config,
    args: &ReconcileArgs,
    lake: &Lakehouse,
    runtime: &Runtime,
) -> Result<(Option<Source>, Options, Report)> {
    let mut options = options(config, args)?;
    let mut unread = Vec::new();
    let source = match Source::open(config, args)? {
        Ok(source) => source,
        Err(why) => {
            unread.push(why);
            None
        }
    };
    let config = source.as_ref().map_or(config, |s| &s.config);
    if let Some(source) = &source {
        let (schemas, missing) = source.registered();
        options.registered = schemas;
        unread.extend(missing);
    }

    let tag = format!("finlake-reconcile-{}-{}", now() / 1000, std::process::id());
    for table in [Table::Ticks, Table::Ohlcv, Table::Metrics] {
        let stale = runtime.block_on(lake.unpin_stale(table, "finlake-reconcile-", STALE));
        if let Err(e) = stale {
            tracing::debug!("{table}: tags of old runs: {e}");
        }
    }
    let pins = runtime
        .block_on(Pins::take(lake, &options.layers, &tag, options.wait))
        .context("the tables could not be pinned")?;
    // What the table holds, not what is configured today: intervals may have changed, and the
    // demo's are its own.
    let held = match &pins.silver {
        Some(silver) => held(global, config, silver, runtime).map(Some),
        None => Ok(None),
    };
    let outcome = held.and_then(|held| {
        if let Some(held) = held {
            options.market.intervals = held;
        }
        compare(
            global,
            lake,
            &pins,
            &options,
            source.as_ref(),
            &mut unread,
            runtime,
        )
    });
    if let Err(e) = runtime.block_on(pins.release()) {
        tracing::warn!("the tag {tag} was left behind ({e}); a later run removes it");
    }
    let mut report = outcome?;
    report.unchecked.extend(unread);
    Ok((source, options, report))
}

/// The intervals of the bars that a pinned Silver table holds.
async fn intervals(silver: &Pinned) -> Result<Vec<Interval>> {
    let mut names = BTreeSet::new();
    let scan = Scan::columns(&["bar_interval"]).dictionaries();
    let mut batches = silver.scan(&scan).await?;
    while let Some(b) = batches.try_next().await? {
        let column = b.batch.column(0).as_dictionary_opt::<Int32Type>();
        let values = column.and_then(|c| c.values().as_string_opt::<i32>());
        names.extend(values.into_iter().flatten().flatten().map(str::to_owned));
    }
    Ok(names.iter().map(|n| n.parse()).collect::<Result<_, _>>()?)
}

/// Those, and a remark on configured ones that are not among them.
fn held(global: &Global, config: &Config, silver: &Pinned, runtime: &Runtime) -> Result<Intervals> {
    let found = runtime.block_on(intervals(silver))?;
    for configured in config.stream.intervals.list() {
        if !found.is_empty() && !found.contains(configured) {
            let text = format!("Silver holds no {configured} bars: they are not compared");
            remark(global.quiet, &text);
        }
    }
    Ok(Intervals::new(&found)?)
}

fn compare(
    global: &Global,
    lake: &Lakehouse,
    pins: &Pins,
    options: &Options,
    source: Option<&Source>,
    unread: &mut Vec<String>,
    runtime: &Runtime,
) -> Result<Report> {
    let books = match source.map(|s| s.books(global)) {
        Some(Ok(books)) => Some(books),
        Some(Err(e)) => {
            unread.push(format!("the ledger was not read: {e:#}"));
            None
        }
        None => None,
    };
    let progress = Progress::new(global.quiet, "comparing", "rows", None);
    let bar = Bar {
        progress: &progress,
        quiet: global.quiet,
        done: Cell::new(0),
        said: Cell::new(0),
    };
    let retained = source.map(|source| Retained::new(source, lake));
    let records = retained.as_ref().map(|r| r as &dyn Records);
    let report = runtime.block_on(checks::run(
        lake,
        pins,
        options,
        books.as_ref(),
        records,
        &bar,
    ));
    progress.done();
    report.context("the tables could not be read")
}

/// A bar on a terminal, a line now and then elsewhere.
struct Bar<'a> {
    progress: &'a Progress,
    quiet: bool,
    done: Cell<u64>,
    said: Cell<u64>,
}

impl Watch for Bar<'_> {
    fn rows(&self, what: &str, rows: u64, of: u64) {
        use std::io::IsTerminal;
        self.progress.add(rows);
        self.done.set(self.done.get() + rows);
        let far = self.done.get() >= self.said.get() + 10_000_000;
        if far && !std::io::stderr().is_terminal() {
            self.said.set(self.done.get());
            remark(
                self.quiet,
                &format!("{what}: {} of {of} rows", self.done.get()),
            );
        }
    }
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_micros() as i64)
}

/// Breaks that a finding is, and their keys, where it has other names.
type Named = BTreeMap<[u8; 16], Vec<([u8; 16], String)>>;

/// Opens and resolves breaks in the topic; says what changed. `named`: under which name a finding was
/// known already.
fn tell(source: &Source, options: &Options, report: &Report, named: &mut Named) -> Result<String> {
    let scope = Scope::of(options, report);
    let known_before = Cell::new(0);
    let published = Publisher::new(&source.config).publish(&source.codec, |known| {
        let mut made = changes(&report.findings, known, &scope, NAME, now());
        known_before.set(made.known);
        *named = std::mem::take(&mut made.named);
        if !report.unchecked.is_empty() {
            // What was not looked at may still be there.
            made.resolve.clear();
        }
        Ok([made.open, made.resolve].concat())
    })?;
    let written = |status| {
        let written = published.written.iter();
        written.filter(|b| b.status == status).count()
    };
    let opened = written(BreakStatus::Opened);
    Ok(format!(
        "breaks: {opened} opened, {} known, {} resolved",
        known_before.get(),
        written(BreakStatus::Resolved)
    ))
}

/// The earliest cut of all partitions; it is 0 while one has told the tables nothing, as in the first minute of a new
/// application.
fn cut_in_words(cut: i64) -> String {
    if cut > 0 {
        format_instant(cut)
    } else {
        "none for all partitions yet: one has told the tables nothing".to_owned()
    }
}

fn print(global: &Global, report: &Report, named: &Named) -> Result<()> {
    let text = Kind::Text;
    let columns = [
        ("break", text),
        ("kind", text),
        ("severity", text),
        ("layer", text),
        ("key", text),
        ("cause", text),
        ("expected", text),
        ("actual", text),
        ("detail", text),
    ];
    let mut out = printer(global, &columns)?;
    for f in report.findings.list() {
        let own = vec![(f.id(), f.key.clone())];
        for (of, key) in named.get(&f.id()).unwrap_or(&own) {
            let mut id = Vec::new();
            keys::breaks(*of, &mut id);
            out.row(vec![
                Some(String::from_utf8_lossy(&id).into_owned()),
                Some(f.kind.as_str().to_owned()),
                Some(f.severity.as_str().to_owned()),
                Some(f.layer.as_str().to_owned()),
                Some(key.clone()),
                Some(f.cause.clone()),
                f.expected.clone(),
                f.actual.clone(),
                Some(f.detail.clone()),
            ])?;
        }
    }
    let rows: serde_json::Map<_, _> = report
        .rows
        .iter()
        .map(|(layer, n)| (layer.as_str().to_owned(), (*n).into()))
        .collect();
    let validators: Vec<serde_json::Value> = report
        .measured
        .iter()
        .map(|m| {
            serde_json::json!({
                "rule": m.rule.measure.to_string(),
                "limit": m.rule.limit,
                "value": m.value,
                "of": m.of,
                "passed": !m.is_broken(),
            })
        })
        .chain(report.unmeasured.iter().map(|(rule, why)| {
            serde_json::json!({
                "rule": rule.measure.to_string(),
                "limit": rule.limit,
                "value": null,
                "not_measured": why,
            })
        }))
        .collect();
    out.finish(&[
        ("breaks", report.findings.total().into()),
        ("compared_rows", rows.into()),
        ("validators", validators.into()),
        ("notes", report.notes.clone().into()),
        ("unchecked", report.unchecked.clone().into()),
    ])?;
    for (layer, n) in &report.rows {
        remark(
            global.quiet,
            &format!("{}: {n} rows compared", layer.as_str()),
        );
    }
    if let Some(cut) = report.cut.values().min() {
        remark(global.quiet, &format!("cut: {}", cut_in_words(*cut)));
    }
    for m in &report.measured {
        let mark = if m.is_broken() { "FAILED" } else { "passed" };
        let text = format!(
            "{} = {} (at most {}): {mark}, of {}",
            m.rule.measure, m.value, m.rule.limit, m.of
        );
        remark(global.quiet, &text);
    }
    for ((kind, severity), n) in report.findings.counts() {
        remark(
            global.quiet,
            &format!("{n} {} {}", severity.as_str(), kind.as_str()),
        );
    }
    for (rule, why) in &report.unmeasured {
        // Who asks for more than the default rules wants to know that there was none to be had.
        let asked = !matches!(
            rule.measure,
            Measure::IdGaps | Measure::OhlcOrder | Measure::VolumeSum(_) | Measure::CurrentUnique
        );
        let text = format!("{}: NOT MEASURED: {why}", rule.measure);
        remark(global.quiet && !asked, &text);
    }
    for note in &report.notes {
        remark(false, note);
    }
    for why in &report.unchecked {
        remark(false, &format!("could not check: {why}"));
    }
    if report.exit_code() == 0 {
        remark(global.quiet, "no breaks");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cut_is_not_told_as_the_year_1970() {
        assert!(cut_in_words(0).starts_with("none for all partitions yet"));
        assert_eq!(
            cut_in_words(1_700_000_000_000_000),
            "2023-11-14T22:13:20.000000Z"
        );
    }
}
