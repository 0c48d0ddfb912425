//! `finlake reconcile`: the tables against the ledger, the layer below, and the topic.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use arrow::array::AsArray;
use arrow::datatypes::Int32Type;
use finlake_devkafka::DevKafka;
use finlake_lakehouse::tables::TableDef;
use finlake_lakehouse::{BronzeRows, Lakehouse, Pinned, RecordAt, Scan, Table};
use finlake_market::{Interval, Intervals};
use finlake_reconcile::columns::Bronze;
use finlake_reconcile::run::{self as checks, Watch};
use finlake_reconcile::trades::{Names, Rules};
use finlake_reconcile::{Books, Layer, Options, Pins, Records, Report, Scope, changes, rules};
use finlake_schemas::registry::Subject;
use finlake_schemas::{Codec, Kind as Schema, keys, topics};
use futures::TryStreamExt;
use rdkafka::Message;
use tokio::runtime::Runtime;

use super::{DIFFERS, SAME, printer};
use crate::audit::{Known, Publisher};
use crate::cli::{Global, ReconcileArgs, ReconcileLayer};
use crate::config::Config;
use crate::kafka::{Topic, reachable};
use crate::output::{Kind, Progress, format_instant, remark};
use crate::parts::{self, micros};

/// Exit code: could not check.
const UNCHECKED: u8 = 2;
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
    let mut options = options(config, args)?;
    let source = Source::open(global, config, args)?;
    let config = source.as_ref().map_or(config, |s| &s.config);
    if let Some(source) = &source {
        options.registered = source.registered();
    }

    let tag = format!("finlake-reconcile-{}-{}", now() / 1000, std::process::id());
    for table in [Table::Ticks, Table::Ohlcv, Table::Metrics] {
        let stale = runtime.block_on(lake.unpin_stale(table, "finlake-reconcile-", STALE));
        if let Err(e) = stale {
            tracing::debug!("{table}: tags of old runs: {e}");
        }
    }
    let pins = runtime
        .block_on(Pins::take(&lake, &options.layers, &tag, options.wait))
        .context("the tables could not be pinned")?;
    if let Some(silver) = &pins.silver {
        // What the table holds, not what is configured today: intervals may have changed, and the
        // demo's are its own.
        let found = runtime.block_on(intervals(silver))?;
        for configured in config.stream.intervals.list() {
            if !found.is_empty() && !found.contains(configured) {
                let text = format!("Silver holds no {configured} bars: they are not compared");
                remark(global.quiet, &text);
            }
        }
        options.market.intervals = Intervals::new(&found)?;
    }
    let outcome = compare(
        global,
        config,
        &lake,
        &pins,
        &options,
        source.as_ref(),
        args,
        &runtime,
    );
    if let Err(e) = runtime.block_on(pins.release()) {
        tracing::warn!("the tag {tag} was left behind ({e}); a later run removes it");
    }
    let (mut report, unread) = outcome?;
    report.unchecked.extend(unread);

    if let (Some(source), false) = (&source, args.report_only) {
        match tell(source, &options, &report) {
            Ok(text) => remark(global.quiet, &text),
            Err(e) => report
                .unchecked
                .push(format!("breaks were not written: {e:#}")),
        }
    }
    print(global, &report)?;
    Ok(match report.exit_code() {
        0 => SAME,
        1 => DIFFERS,
        _ => UNCHECKED,
    })
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

#[allow(clippy::too_many_arguments)]
fn compare(
    global: &Global,
    config: &Config,
    lake: &Lakehouse,
    pins: &Pins,
    options: &Options,
    source: Option<&Source>,
    args: &ReconcileArgs,
    runtime: &Runtime,
) -> Result<(Report, Vec<String>)> {
    let mut unread = Vec::new();
    let books = match source.map(|s| s.books(global)) {
        Some(Ok(books)) => Some(books),
        Some(Err(e)) => {
            unread.push(format!("the ledger was not read: {e:#}"));
            None
        }
        None => {
            unread.push(format!(
                "Kafka at {} does not answer: the ledger and the topics were not compared \
                 (--no-kafka says that this is intended)",
                config.kafka.bootstrap_servers
            ));
            None
        }
    };
    if args.no_kafka {
        unread.clear();
    }
    let progress = Progress::new(global.quiet, "comparing", "rows", None);
    let bar = Bar {
        progress: &progress,
        quiet: global.quiet,
        done: Cell::new(0),
        said: Cell::new(0),
    };
    let topic = source.map(|source| TicksTopic {
        source,
        rules: &options.market,
        def: lake.def(Table::Ticks),
        read: RefCell::default(),
    });
    let records = topic.as_ref().map(|t| t as &dyn Records);
    let report = runtime.block_on(checks::run(
        lake,
        pins,
        options,
        books.as_ref(),
        records,
        &bar,
    ));
    progress.done();
    Ok((report.context("the tables could not be read")?, unread))
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

/// Kafka and the registry, as they can be reached.
struct Source {
    config: Config,
    codec: Codec,
    /// The folder of an embedded broker that nobody else runs.
    _broker: Option<DevKafka>,
}

impl Source {
    /// The configured cluster; where it does not answer and the data folder holds an embedded
    /// broker's topics, that broker, for the time of the run.
    fn open(global: &Global, config: &Config, args: &ReconcileArgs) -> Result<Option<Source>> {
        if args.no_kafka {
            return Ok(None);
        }
        if !config.data.kafka().is_dir() && !reachable(config) {
            return Ok(None);
        }
        let (config, broker) = match super::reached(global, config.clone()) {
            Ok(reached) => reached,
            Err(e) => {
                tracing::warn!("{e:#}");
                return Ok(None);
            }
        };
        let mut registry = parts::registry(&config);
        // A check must not change the registry.
        registry.register = false;
        let codec = Codec::connect(registry, &Subject::all())
            .with_context(|| format!("schema registry {}", config.registry.url))?;
        Ok(Some(Source {
            config,
            codec,
            _broker: broker,
        }))
    }

    /// The schemas that this version writes are the registered ones: `Codec::connect` made sure.
    fn registered(&self) -> BTreeMap<Layer, String> {
        BTreeMap::from([
            (Layer::Bronze, Schema::Tick.newest().to_owned()),
            (Layer::Silver, Schema::Bar.newest().to_owned()),
            (Layer::Gold, Schema::Metrics.newest().to_owned()),
        ])
    }

    fn books(&self, global: &Global) -> Result<Books> {
        let topic = Topic::open(&self.config, topics::LEDGER)?;
        let bounds = topic.bounds()?;
        if bounds.is_empty() {
            bail!("there is no topic {}", topics::LEDGER);
        }
        let total: i64 = bounds.values().map(|(a, b)| b - a).sum();
        let progress = Progress::new(
            global.quiet,
            "reading the ledger",
            "records",
            u64::try_from(total).ok(),
        );
        let mut books = Books::default();
        topic.read(&bounds, |message| {
            let value = message.payload().unwrap_or_default();
            self.resolve(value)?;
            let entry = self.codec.decode_ledger(value).with_context(|| {
                format!(
                    "{}/{}:{}",
                    topics::LEDGER,
                    message.partition(),
                    message.offset()
                )
            })?;
            books.push(&entry, value);
            progress.add(1);
            Ok(true)
        })?;
        progress.done();
        Ok(books)
    }

    fn resolve(&self, value: &[u8]) -> Result<()> {
        if let Some(id) = finlake_schemas::schema_id(value)
            && !self.codec.knows(id)
        {
            // If nobody knows it, decoding says so.
            self.codec.resolve(id)?;
        }
        Ok(())
    }
}

/// `market.ticks` as content hashes, made by the same code as Bronze's.
struct TicksTopic<'a> {
    source: &'a Source,
    rules: &'a Rules,
    def: TableDef,
    /// Partitions that were read whole: first offset, and the records in order.
    read: RefCell<BTreeMap<i32, Hashes>>,
}

/// First offset that the topic still has; offset and content hash of its records, ascending.
type Hashes = (i64, Vec<(i64, u128)>);

/// A partition with at most this many retained records is read once and kept (32 bytes each); of a
/// larger one each range is read when it is asked for.
const KEPT: i64 = 20_000_000;

/// Records decoded at a time.
const CHUNK: usize = 50_000;

impl TicksTopic<'_> {
    fn hashes(&self, partition: i32, from: i64, to: i64) -> Result<Hashes> {
        if let Some((low, all)) = self.read.borrow().get(&partition) {
            let (a, b) = (
                all.partition_point(|r| r.0 < from),
                all.partition_point(|r| r.0 < to),
            );
            return Ok((*low, all[a..b.max(a)].to_vec()));
        }
        let topic = Topic::open(&self.source.config, topics::TICKS)?;
        let bounds = topic.bounds()?;
        let (low, high) = bounds.get(&partition).copied().unwrap_or((0, 0));
        if high - low > KEPT {
            return self.range(&topic, partition, low, (from.max(low), to.min(high)));
        }
        let all = self.range(&topic, partition, low, (low, high))?;
        self.read.borrow_mut().insert(partition, all);
        self.hashes(partition, from, to)
    }

    fn range(&self, topic: &Topic, partition: i32, low: i64, range: (i64, i64)) -> Result<Hashes> {
        let mut out = Vec::new();
        let mut rows = BronzeRows::new(topics::TICKS, partition);
        topic.read(&BTreeMap::from([(partition, range)]), |message| {
            let value = message.payload().unwrap_or_default();
            self.source.resolve(value)?;
            let at = RecordAt {
                offset: message.offset(),
                timestamp: message
                    .timestamp()
                    .to_millis()
                    .unwrap_or(-1)
                    .saturating_mul(1000),
                key: message.key(),
                schema_id: finlake_schemas::schema_id(value),
                commit: 0,
                sys_from: 0,
            };
            match self.source.codec.decode_tick(value) {
                Ok(tick) => rows.push_tick(&at, &tick, value),
                Err(_) => rows.push_raw(&at, value),
            }
            if rows.len() >= CHUNK {
                let full = std::mem::replace(&mut rows, BronzeRows::new(topics::TICKS, partition));
                self.hash(full, partition, &mut out)?;
            }
            Ok(true)
        })?;
        self.hash(rows, partition, &mut out)?;
        Ok((low, out))
    }

    fn hash(&self, rows: BronzeRows, partition: i32, out: &mut Vec<(i64, u128)>) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let batch = rows.finish(&self.def)?;
        let p = usize::try_from(partition)?;
        let mut bronze = Bronze::new(p + 1);
        bronze.take(
            &batch,
            self.rules,
            &mut Names::default(),
            &|_| i64::MAX,
            true,
        )?;
        out.append(&mut bronze.hashes[p]);
        Ok(())
    }
}

impl Records for TicksTopic<'_> {
    fn ticks(&self, partition: i32, from: i64, to: i64) -> Result<Hashes, String> {
        self.hashes(partition, from, to)
            .map_err(|e| format!("{}/{partition} was not compared: {e:#}", topics::TICKS))
    }
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_micros() as i64)
}

/// Opens and resolves breaks in the topic; says what changed.
fn tell(source: &Source, options: &Options, report: &Report) -> Result<String> {
    let known = Known::read(&source.config, &source.codec)?;
    let mut layers: BTreeSet<String> = options
        .layers
        .iter()
        .map(|l| l.as_str().to_owned())
        .collect();
    if options.layers.contains(&Layer::Bronze) {
        layers.extend(["feed".to_owned(), "ledger".to_owned()]);
    }
    let mut unchecked = report.unchecked_causes.clone();
    if options.dates.is_some() || options.symbol.is_some() {
        // Needs every row of a commit.
        unchecked.extend(["INV-13", "position", "accepted", "validator"].map(str::to_owned));
    }
    let scope = Scope {
        layers,
        date: options.dates.map(|(from, _)| from),
        symbol: options.symbol.clone(),
        unchecked,
    };
    let mut made = changes(&report.findings, &known, &scope, NAME, now());
    if !report.unchecked.is_empty() {
        // What was not looked at may still be there.
        made.resolve.clear();
    }
    let mut all = made.open.clone();
    all.extend(made.resolve.iter().cloned());
    Publisher::open(&source.config)?.send(&source.codec, &all)?;
    Ok(format!(
        "breaks: {} opened, {} known, {} resolved",
        made.open.len(),
        made.known,
        made.resolve.len()
    ))
}

fn print(global: &Global, report: &Report) -> Result<()> {
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
        let mut id = Vec::new();
        keys::breaks(f.id(), &mut id);
        out.row(vec![
            Some(String::from_utf8_lossy(&id).into_owned()),
            Some(f.kind.as_str().to_owned()),
            Some(f.severity.as_str().to_owned()),
            Some(f.layer.as_str().to_owned()),
            Some(f.key.clone()),
            Some(f.cause.clone()),
            f.expected.clone(),
            f.actual.clone(),
            Some(f.detail.clone()),
        ])?;
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
                "passed": !m.is_broken(),
            })
        })
        .collect();
    out.finish(&[
        ("breaks", report.findings.total().into()),
        ("compared_rows", rows.into()),
        ("validators", validators.into()),
        ("unchecked", report.unchecked.clone().into()),
    ])?;
    for (layer, n) in &report.rows {
        remark(
            global.quiet,
            &format!("{}: {n} rows compared", layer.as_str()),
        );
    }
    if let Some(cut) = report.cut.values().min() {
        remark(global.quiet, &format!("cut: {}", format_instant(*cut)));
    }
    for m in &report.measured {
        let mark = if m.is_broken() { "FAILED" } else { "passed" };
        let text = format!(
            "{} = {} (at most {}): {mark}",
            m.rule.measure, m.value, m.rule.limit
        );
        remark(global.quiet, &text);
    }
    for ((kind, severity), n) in report.findings.counts() {
        remark(
            global.quiet,
            &format!("{n} {} {}", severity.as_str(), kind.as_str()),
        );
    }
    for why in &report.unchecked {
        remark(false, &format!("could not check: {why}"));
    }
    if report.exit_code() == 0 {
        remark(global.quiet, "no breaks");
    }
    Ok(())
}
